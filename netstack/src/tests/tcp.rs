//! Beginnings and ends of connections, and peers that misbehave.

use super::client::{Broken, Client};
use super::{GOOD, Quality, World, pattern, serve};
use crate::{ListenError, ListenOptions, TcpReader, TcpWriter};
use alloc::rc::Rc;
use alloc::vec;
use embedded_io_async::{Read, Write};
use platform::Runtime;
use platform::net::{Listener, NetError, Stream};
use platform::time::Duration;
use smoltcp::socket::tcp::State;

/// Runs a test in which `server` meets `client` over a good cable.
fn meet<F: Future<Output = ()> + 'static>(seed: u64, options: ListenOptions, test: impl FnOnce(Scene) -> F + 'static) {
    let world = World::new(seed, GOOD);
    let net = world.clone();
    world.run(move |runtime| async move {
        let (stack, listener) = serve(&net, &runtime, false, options);
        let client = Client::start(&net, &runtime);
        test(Scene { world: net, runtime, stack, listener, client }).await;
    });
}

struct Scene {
    world: Rc<World>,
    runtime: Runtime,
    stack: crate::Stack,
    listener: crate::TcpListener,
    client: Client,
}

impl Scene {
    async fn accept(&self) -> (TcpReader, TcpWriter) {
        self.listener.accept().await.unwrap().split()
    }
}

#[test]
fn after_the_peers_end_of_stream_we_can_still_write() {
    meet(1, ListenOptions::default(), |scene| async move {
        let peer = scene.client.connect(3260).await.unwrap();
        let (mut reader, mut writer) = scene.accept().await;
        peer.send(b"last words").await.unwrap();
        peer.close();
        let mut buf = [0; 100];
        assert_eq!(reader.read(&mut buf).await, Ok(10));
        assert_eq!(reader.read(&mut buf).await, Ok(0));
        assert_eq!(reader.read(&mut buf).await, Ok(0));
        let writing = scene.runtime.spawner.spawn(async move { writer.write_all(&pattern(0, 500_000)).await });
        drop(reader);
        assert_eq!(peer.receive_pattern().await, Ok(500_000));
        assert_eq!(writing.await, Ok(Ok(())));
    });
}

#[test]
fn a_reset_breaks_both_halves_but_what_came_before_is_read() {
    meet(2, ListenOptions::default(), |scene| async move {
        let peer = scene.client.connect(3260).await.unwrap();
        let (mut reader, mut writer) = scene.accept().await;
        peer.send(b"before").await.unwrap();
        let writing = scene.runtime.spawner.spawn(async move {
            let result = writer.write_all(&pattern(0, 10 << 20)).await;
            (result, writer.flush().await)
        });
        scene.runtime.timers.sleep(Duration::from_millis(100)).await;
        peer.abort();
        assert_eq!(writing.await, Ok((Err(NetError::Reset), Err(NetError::Reset))));
        let mut buf = [0; 100];
        assert_eq!(reader.read(&mut buf).await, Ok(6));
        assert_eq!(reader.read(&mut buf).await, Err(NetError::Reset));
    });
}

#[test]
fn a_dropped_connection_delivers_what_was_written() {
    meet(3, ListenOptions::default(), |scene| async move {
        let peer = scene.client.connect(3260).await.unwrap();
        let (reader, mut writer) = scene.accept().await;
        writer.write_all(&pattern(0, 200_000)).await.unwrap();
        drop((reader, writer));
        assert_eq!(peer.receive_pattern().await, Ok(200_000));
        // Everything is delivered although the peer keeps its side open.
        scene.stack.settle().await;
        peer.close();
        scene.runtime.timers.sleep(Duration::from_secs(1)).await;
        assert_eq!(peer.state(), State::Closed);
    });
}

#[test]
fn a_peer_that_never_reads_is_given_up_after_the_linger_time() {
    let options = ListenOptions { connections_max: 1, linger: Duration::from_secs(5), ..ListenOptions::default() };
    meet(4, options, |scene| async move {
        let peer = scene.client.connect(3260).await.unwrap();
        let (reader, mut writer) = scene.accept().await;
        writer.write_all(&pattern(0, 200_000)).await.unwrap();
        drop((reader, writer));
        let before = scene.runtime.timers.now();
        scene.stack.settle().await;
        let took = scene.runtime.timers.now() - before;
        assert!(took >= Duration::from_secs(4) && took <= Duration::from_secs(7), "{took:?}");
        scene.runtime.timers.sleep(Duration::from_millis(1)).await;
        assert_eq!(peer.state(), State::Closed);
        // Its place is free.
        scene.client.connect(3260).await.unwrap();
    });
}

#[test]
fn a_peer_that_sends_on_after_we_closed_does_not_hold_the_place() {
    let options = ListenOptions { connections_max: 1, linger: Duration::from_secs(5), ..ListenOptions::default() };
    meet(5, options, |scene| async move {
        let peer = scene.client.connect(3260).await.unwrap();
        drop(scene.accept().await);
        // Nobody reads it, and it neither blocks nor breaks until the linger time is over.
        while peer.send(&[0; 1000]).await.is_ok() {
            scene.runtime.timers.sleep(Duration::from_millis(10)).await;
        }
        let later = scene.client.connect(3260).await.unwrap();
        assert_eq!(later.state(), State::Established);
    });
}

#[test]
fn a_peer_may_finish_what_it_was_sending_when_we_closed() {
    let options = ListenOptions { connections_max: 1, receive_bytes: 8192, ..ListenOptions::default() };
    meet(12, options, |scene| async move {
        let peer = scene.client.connect(3260).await.unwrap();
        drop(scene.accept().await);
        peer.send(&[0; 1 << 20]).await.unwrap();
        peer.close();
        assert_eq!(peer.receive().await, Ok(vec![]));
        scene.runtime.timers.sleep(Duration::from_secs(1)).await;
        scene.client.connect(3260).await.unwrap();
    });
}

#[test]
fn a_peer_behind_a_cut_cable_is_dead_in_time() {
    meet(6, ListenOptions::default(), |scene| async move {
        let _idle = scene.client.connect(3260).await.unwrap();
        let (mut reader, _writer) = scene.accept().await;
        let mut buf = [0; 10];
        let timers = scene.runtime.timers.clone();
        // An idle peer that answers lives as long as it likes.
        assert!(timers.timeout(Duration::from_secs(300), reader.read(&mut buf)).await.is_err());
        scene.world.quality.set(Quality { lost_permille: 1000, ..GOOD });
        let before = timers.now();
        assert_eq!(reader.read(&mut buf).await, Err(NetError::Reset));
        assert!(timers.now() - before <= Duration::from_secs(61));
    });
}

#[test]
fn beyond_the_limit_peers_are_refused_until_a_place_is_free() {
    let options = ListenOptions { connections_max: 2, ..ListenOptions::default() };
    meet(7, options, |scene| async move {
        let first = scene.client.connect(3260).await.unwrap();
        let _second = scene.client.connect(3260).await.unwrap();
        assert_eq!(scene.client.connect(3260).await.err(), Some(Broken));
        let halves = scene.accept().await;
        assert_eq!(scene.client.connect(3260).await.err(), Some(Broken));
        first.close();
        drop(halves);
        scene.runtime.timers.sleep(Duration::from_secs(1)).await;
        scene.client.connect(3260).await.unwrap();
    });
}

#[test]
fn connections_that_we_closed_first_do_not_use_up_the_places() {
    let options = ListenOptions { connections_max: 2, ..ListenOptions::default() };
    meet(8, options, |scene| async move {
        for n in 0..20 {
            let peer = scene.client.connect(3260).await.unwrap_or_else(|_| panic!("connection {n} was refused"));
            let (reader, mut writer) = scene.accept().await;
            writer.write_all(b"bye").await.unwrap();
            drop((reader, writer));
            assert_eq!(peer.receive().await.unwrap(), b"bye");
            assert_eq!(peer.receive().await.unwrap(), b"");
            peer.close();
            scene.runtime.timers.sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn half_open_connections_are_given_up_and_their_places_used_again() {
    let options = ListenOptions { connections_max: 4, ..ListenOptions::default() };
    meet(9, options, |scene| async move {
        // An async block takes only the fields that it names.
        let _listening = &scene.listener;
        // The address must be known before the cable gets bad.
        scene.client.connect(3260).await.unwrap().abort();
        let peers: vec::Vec<_> = (0..4).map(|_| scene.client.open(3260, 4096)).collect();
        // SYNs arrive, answers do not.
        scene.runtime.timers.sleep(Duration::from_micros(75)).await;
        scene.world.quality.set(Quality { lost_permille: 1000, ..GOOD });
        peers.iter().for_each(|p| p.abort());
        scene.runtime.timers.sleep(Duration::from_secs(15)).await;
        scene.world.quality.set(GOOD);
        for _ in 0..4 {
            scene.client.connect(3260).await.unwrap();
        }
    });
}

#[test]
fn a_dropped_listener_refuses_and_leaves_accepted_connections_alone() {
    meet(10, ListenOptions::default(), |scene| async move {
        let accepted = scene.client.connect(3260).await.unwrap();
        let (mut reader, _writer) = scene.accept().await;
        let waiting = scene.client.connect(3260).await.unwrap();
        drop(scene.listener);
        assert_eq!(waiting.receive().await, Err(Broken));
        assert_eq!(scene.client.connect(3260).await.err(), Some(Broken));
        accepted.send(b"x").await.unwrap();
        assert_eq!(reader.read(&mut [0; 4]).await, Ok(1));
    });
}

#[test]
fn ports_are_listened_on_once() {
    meet(11, ListenOptions::default(), |scene| async move {
        let again = scene.stack.listen(3260, ListenOptions::default());
        assert_eq!(again.err(), Some(ListenError::InUse(3260)));
        assert_eq!(scene.stack.listen(0, ListenOptions::default()).err(), Some(ListenError::Zero));
        assert_eq!(scene.client.connect(80).await.err(), Some(Broken));
        let http = scene.stack.listen(80, ListenOptions::default()).unwrap();
        assert_eq!(http.describe(), "10.0.0.1:80");
        let peer = scene.client.connect(80).await.unwrap();
        let stream = http.accept().await.unwrap();
        assert_eq!(alloc::format!("{} {}", stream.ends().local, stream.ends()), "10.0.0.1:80 10.0.0.2:50001");
        drop(peer);
    });
}
