//! Streams: bodies of any length, both ways.

use crate::error::{Code, ControlError};
use crate::http::Limits;
use crate::testing::{Response, Rig, TOKEN};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use platform::time::Duration;
use serde_json::json;
use thinp::control::Errno;

const OCTETS: &str = "application/octet-stream";

fn with_volumes() -> Rig {
    let rig = Rig::new();
    for name in ["s1", "s2"] {
        rig.json("POST", "/v1/volumes", &format!(r#"{{"name":"{name}","size_bytes":512}}"#));
    }
    rig
}

#[test]
fn a_stream_is_sent_as_it_is_asked_for() {
    let rig = with_volumes();
    let sent = rig.json("GET", "/v1/volumes/s2/stream?from=s1&resume=gs1ab", "");
    assert_eq!((sent.status, sent.header("content-type")), (200, Some(OCTETS)));
    let asked = r#"SendRequest { snapshot: VolumeName("s2"), base: Some(VolumeName("s1")), resume: Some("gs1ab") }"#;
    assert_eq!(sent.text(), format!("{asked}\n"));
    rig.json("GET", "/v1/volumes/s3/stream", "").assert_error(Code::Errno(Errno::ENODATA));
    for bad in ["?from=", "?from=S1", "?base=s1", "?from=s1&from=s1"] {
        rig.json("GET", &format!("/v1/volumes/s2/stream{bad}"), "").assert_error(Code::Errno(Errno::EINVAL));
    }
    assert_eq!(rig.json("HEAD", "/v1/volumes/s2/stream", "").status, 400);
}

#[test]
fn a_stream_that_breaks_off_cannot_be_taken_for_whole_and_gets_no_words_of_ours() {
    let rig = with_volumes();
    rig.control.pieces.set(3);
    rig.control.pieces_end_early.set(true);
    let request = format!("GET /v1/volumes/s2/stream HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    let bytes = rig.talk(request.as_bytes());
    assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n") && !bytes.ends_with(b"0\r\n\r\n"));
    assert!(!core::str::from_utf8(&bytes).unwrap().contains("EBUSY"));
}

#[test]
fn a_body_longer_than_any_other_is_received() {
    let rig = Rig::new();
    let body = "x".repeat(10 * Limits::default().body_bytes_max);
    let answer = rig.ask("PUT", "/v1/volumes/v1/stream?size_bytes=1024&read_only=yes&base=b1", OCTETS, &body);
    assert_eq!((answer.status, &answer.value()["name"]), (200, &json!("v1")));
    let asked = "ReceiveRequest { volume: VolumeName(\"v1\"), size_bytes: Some(VolumeSize(1024)), \
                 base: Some(VolumeName(\"b1\")), read_only: true }";
    assert_eq!(*rig.control.messages.borrow(), [format!("{asked}: {} bytes", body.len())]);
    // Chunks of chunked coding, too.
    let head = "PUT /v1/volumes/v2/stream HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n";
    let mut request = format!("{head}Authorization: Bearer {TOKEN}\r\n\r\n").into_bytes();
    for _ in 0..100 {
        request.extend(format!("1000\r\n{}\r\n", "y".repeat(4096)).bytes());
    }
    request.extend(b"0\r\n\r\n");
    assert_eq!(Response::parse(&rig.talk(&request), false).0.status, 200);
    assert!(rig.control.messages.borrow()[1].ends_with(": 409600 bytes"));
}

#[test]
fn bad_receives_are_refused() {
    let rig = Rig::new();
    for bad in
        ["?size_bytes=", "?size_bytes=-1", "?size_bytes=513", "?size_bytes=0", "?read_only=1", "?base=B", "?from=s1"]
    {
        rig.ask("PUT", &format!("/v1/volumes/v1/stream{bad}"), OCTETS, "x").assert_error(Code::Errno(Errno::EINVAL));
    }
    let no_body = format!(
        "PUT /v1/volumes/v1/stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    );
    Response::parse(&rig.talk(no_body.as_bytes()), false).0.assert_error(Code::LengthRequired);
    *rig.control.fails.borrow_mut() = Some(ControlError::new(Errno::ENOSPC, "the pool is full", "grow it"));
    let long = "x".repeat(1 << 20);
    rig.ask("PUT", "/v1/volumes/v1/stream", OCTETS, &long).assert_error(Code::Errno(Errno::ENOSPC));
    assert!(rig.control.volumes.borrow().is_empty());
}

/// A client that vanishes in its middle is given up after its time-out, and one that is slow is not.
#[test]
fn who_sends_nothing_is_given_up_and_who_is_slow_is_not() {
    for (pause, arrives) in [(29, true), (31, false)] {
        let rig = Rig::new();
        let (client, timers) = (rig.connect(), rig.timers().clone());
        let answer = rig.run(async move {
            let head = "PUT /v1/volumes/v1/stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4000\r\n";
            client.send(format!("{head}Authorization: Bearer {TOKEN}\r\n\r\n").as_bytes()).await.unwrap();
            for _ in 0..4 {
                timers.sleep(Duration::from_secs(pause)).await;
                let _ = client.send(&[b'x'; 1000]).await;
            }
            client.read_to_end().await
        });
        let (response, _) = Response::parse(&answer, false);
        assert_eq!(response.status, if arrives { 200 } else { 408 }, "{pause} s");
        assert_eq!(rig.control.volumes.borrow().len(), usize::from(arrives));
    }
}

#[test]
fn a_transfer_that_broke_off_is_told_and_forgotten() {
    let rig = Rig::new();
    let state = rig.json("GET", "/v1/volumes/v1/receive", "");
    let expected = json!({"running": false, "resume": "gs1ab", "verified_bytes": 65536});
    assert_eq!((state.status, state.value()), (200, expected));
    assert_eq!(rig.json("DELETE", "/v1/volumes/v1/receive", "").status, 204);
    let messages: Vec<_> = rig.control.messages.borrow().clone();
    assert_eq!(messages, ["forget v1".to_string()]);
}
