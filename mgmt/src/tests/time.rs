//! Peers that are slow, silent or gone, and the end of the interface.

use crate::http::Limits;
use crate::testing::{Response, Rig, TOKEN};
use alloc::format;
use platform::time::Duration;

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let rig = Rig::new();
    let client = rig.connect();
    let rest = rig.run(async move {
        client.send(HEALTH).await.unwrap();
        client.read().await;
        client.read_to_end().await
    });
    assert!(rest.is_empty());
    assert_eq!(rig.elapsed(), Limits::default().idle_timeout);
}

#[test]
fn a_head_that_drips_is_cut_off() {
    let rig = Rig::new();
    let (client, timers) = (rig.connect(), rig.timers().clone());
    let answer = rig.run(async move {
        for byte in HEALTH.iter().take(30) {
            timers.sleep(Duration::from_secs(1)).await;
            let _ = client.send(&[*byte]).await;
        }
        client.read_to_end().await
    });
    let (response, rest) = Response::parse(&answer, false);
    assert_eq!((response.status, response.header("connection"), rest.len()), (408, Some("close"), 0));
}

#[test]
fn a_body_that_drips_is_cut_off() {
    let rig = Rig::new();
    let (client, timers) = (rig.connect(), rig.timers().clone());
    let answer = rig.run(async move {
        let head = format!(
            "POST /v1/pool/message HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: text/plain\r\nContent-Length: 60\r\n\r\n"
        );
        client.send(head.as_bytes()).await.unwrap();
        for _ in 0..60 {
            timers.sleep(Duration::from_secs(1)).await;
            let _ = client.send(b"a").await;
        }
        client.read_to_end().await
    });
    assert_eq!(Response::parse(&answer, false).0.status, 408);
    assert!(rig.control.messages.borrow().is_empty());
}

#[test]
fn a_peer_that_takes_nothing_is_dropped() {
    let rig = Rig::new();
    for n in 0..100 {
        rig.json("POST", "/v1/volumes", &format!(r#"{{"name":"v{n}","size_bytes":512}}"#));
    }
    let (client, timers) = (rig.connect(), rig.timers().clone());
    let answer = rig.run(async move {
        let request = format!("GET /v1/volumes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        client.send(request.as_bytes()).await.unwrap();
        timers.sleep(Duration::from_secs(31)).await;
        client.read_to_end().await
    });
    assert!(answer.starts_with(b"HTTP/1.1 200 OK") && !answer.ends_with(b"0\r\n\r\n"), "it was broken off");
    assert_eq!(rig.api.counters.connections.get(), 0);
}

#[test]
fn a_peer_that_leaves_in_the_middle_is_forgotten() {
    let rig = Rig::new();
    for part in ["GET /healthz HT", "POST /v1/pool/message HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"] {
        rig.talk(part.as_bytes());
        assert_eq!(rig.api.counters.connections.get(), 0, "{part}");
    }
    assert_eq!(rig.elapsed(), Duration::ZERO);
}

#[test]
fn a_refused_peer_that_goes_on_sending_can_read_why() {
    let rig = Rig::new();
    let (client, timers) = (rig.connect(), rig.timers().clone());
    let answer = rig.run(async move {
        client.send(b"GARBAGE\r\n\r\n").await.unwrap();
        timers.sleep(Duration::from_millis(500)).await;
        client.send(&[b'x'; 9000]).await.expect("the server still takes bytes");
        client.read_to_end().await
    });
    assert_eq!(Response::parse(&answer, false).0.status, 400);
    assert_eq!(rig.elapsed(), Duration::from_secs(1));
}

#[test]
fn shutdown_ends_idle_connections_and_lets_the_busy_finish() {
    let rig = Rig::new();
    let (idle, busy, api) = (rig.connect(), rig.connect(), rig.api.clone());
    let timers = rig.timers().clone();
    let down = {
        let api = rig.api.clone();
        async move { api.shutdown().await }
    };
    let answer = rig.run(async move {
        idle.send(HEALTH).await.unwrap();
        assert!(!idle.read().await.is_empty());
        let (head, tail) = HEALTH.split_at(10);
        busy.send(head).await.unwrap();
        timers.sleep(Duration::from_secs(1)).await;
        let rest = async {
            assert!(idle.read().await.is_empty());
            busy.send(tail).await.unwrap();
            busy.read_to_end().await
        };
        futures_util::future::join(down, rest).await.1
    });
    let (response, rest) = Response::parse(&answer, false);
    assert_eq!((response.status, response.header("connection"), rest.len()), (200, Some("close"), 0));
    assert_eq!((api.counters.connections.get(), rig.elapsed()), (0, Duration::from_secs(1)));
}
