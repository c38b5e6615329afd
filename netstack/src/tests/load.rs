//! Many connections, many bytes.

use super::client::Client;
use super::{BAD, GOOD, Quality, World, pattern, serve};
use crate::{ListenOptions, TcpStream};
use alloc::vec;
use alloc::vec::Vec;
use embedded_io_async::{Read, Write};
use futures_util::future::join_all;
use platform::net::{Listener, Stream};
use platform::time::Duration;

const MIB: usize = 1 << 20;

async fn echo(stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    let mut buf = vec![0; 4096];
    while let Ok(read @ 1..) = reader.read(&mut buf).await {
        writer.write_all(&buf[..read]).await.unwrap();
    }
}

async fn write_pattern(stream: TcpStream, len: usize) {
    let (_reader, mut writer) = stream.split();
    for at in (0..len).step_by(10_000) {
        writer.write_all(&pattern(at, 10_000.min(len - at))).await.unwrap();
    }
    writer.flush().await.unwrap();
}

#[test]
fn thirty_two_clients_that_connect_at_once_are_all_served() {
    let world = World::new(1, GOOD);
    let (net, spawned) = (world.clone(), 32);
    world.run(move |runtime| async move {
        let (_stack, listener) = serve(&net, &runtime, false, ListenOptions::default());
        let client = Client::start(&net, &runtime);
        let peers: Vec<_> = (0..spawned).map(|_| client.open(3260, 4096)).collect();
        // All handshakes are over before the first is accepted.
        for peer in &peers {
            peer.established().await.expect("a client was refused");
        }
        for _ in 0..spawned {
            runtime.spawner.spawn(echo(listener.accept().await.unwrap()));
        }
        let talks = peers.iter().enumerate().map(|(n, peer)| async move {
            peer.send(&[n as u8; 100]).await.unwrap();
            peer.close();
            let mut back = Vec::new();
            while let Ok(bytes) = peer.receive().await
                && !bytes.is_empty()
            {
                back.extend(bytes);
            }
            assert_eq!(back, [n as u8; 100]);
        });
        join_all(talks).await;
    });
}

fn download(seed: u64, quality: Quality, offloads: bool, len: usize) -> u64 {
    let world = World::new(seed, quality);
    let net = world.clone();
    world.run(move |runtime| async move {
        let (stack, listener) = serve(&net, &runtime, offloads, ListenOptions::default());
        let peer = Client::start(&net, &runtime).open(3260, MIB / 4);
        let stream = listener.accept().await.unwrap();
        let writing = runtime.spawner.spawn(write_pattern(stream, len));
        assert_eq!(peer.receive_pattern().await, Ok(len));
        writing.await.unwrap();
        peer.close();
        stack.settle().await;
        net.frames_sent.get()
    })
}

#[test]
fn what_is_written_arrives_over_a_bad_cable() {
    for seed in 10..15 {
        download(seed, BAD, false, 2 * MIB);
    }
}

#[test]
fn a_card_that_segments_gets_few_long_frames_with_right_checksums() {
    let plain = download(20, GOOD, false, 8 * MIB);
    let offloaded = download(20, GOOD, true, 8 * MIB);
    assert!(plain > 8 * MIB as u64 / 1460);
    // The client's acknowledgements are counted, too.
    assert!(offloaded < plain / 4, "{offloaded} frames with segmentation, {plain} without");
    download(21, BAD, true, 2 * MIB);
}

#[test]
fn what_is_sent_to_us_arrives_over_a_bad_cable_while_we_send() {
    for seed in 30..33 {
        let world = World::new(seed, BAD);
        let net = world.clone();
        world.run(move |runtime| async move {
            let (_stack, listener) = serve(&net, &runtime, false, ListenOptions::default());
            let peer = Client::start(&net, &runtime).open(3260, MIB / 4);
            let (mut reader, mut writer) = listener.accept().await.unwrap().split();
            // The halves belong to different tasks.
            let writing = runtime.spawner.spawn(async move {
                for at in (0..MIB).step_by(4096) {
                    writer.write_all(&pattern(at, 4096)).await.unwrap();
                }
            });
            let reading = runtime.spawner.spawn(async move {
                let (mut at, mut buf) = (0, vec![0; 7777]);
                while let read @ 1.. = reader.read(&mut buf).await.unwrap() {
                    assert!(buf[..read] == pattern(at, read));
                    at += read;
                }
                at
            });
            let send = async {
                for at in (0..MIB).step_by(4096) {
                    peer.send(&pattern(at, 4096)).await.unwrap();
                }
                peer.close();
            };
            let (_, received) = futures_util::join!(send, peer.receive_pattern());
            assert_eq!(received, Ok(MIB));
            assert_eq!(reading.await, Ok(MIB));
            writing.await.unwrap();
        });
    }
}

#[test]
fn a_slow_reader_holds_the_sender_up_and_loses_nothing() {
    let world = World::new(40, GOOD);
    let net = world.clone();
    world.run(move |runtime| async move {
        let options = ListenOptions { receive_bytes: 8192, ..ListenOptions::default() };
        let (_stack, listener) = serve(&net, &runtime, false, options);
        let peer = Client::start(&net, &runtime).open(3260, 8192);
        let (mut reader, _writer) = listener.accept().await.unwrap().split();
        let timers = runtime.timers.clone();
        let reading = runtime.spawner.spawn(async move {
            let (mut at, mut buf) = (0, vec![0; 3000]);
            loop {
                timers.sleep(Duration::from_millis(50)).await;
                match reader.read(&mut buf).await.unwrap() {
                    0 => return at,
                    read => {
                        assert!(buf[..read] == pattern(at, read));
                        at += read;
                    }
                }
            }
        });
        let begun = runtime.timers.now();
        peer.send(&pattern(0, 300_000)).await.unwrap();
        peer.close();
        assert_eq!(reading.await, Ok(300_000));
        // The window opens with each read: a hundred reads, and nobody waits for a probe.
        assert!(runtime.timers.now() - begun < Duration::from_secs(6));
    });
}

#[test]
fn a_question_is_answered_after_one_round_trip() {
    let world = World::new(50, GOOD);
    let net = world.clone();
    world.run(move |runtime| async move {
        let (_stack, listener) = serve(&net, &runtime, false, ListenOptions::default());
        let peer = Client::start(&net, &runtime).connect(3260).await.unwrap();
        runtime.spawner.spawn(echo(listener.accept().await.unwrap()));
        let begun = runtime.timers.now();
        for n in 0..100u8 {
            peer.send(&[n; 48]).await.unwrap();
            assert_eq!(peer.receive().await, Ok(vec![n; 48]));
        }
        // A round trip takes 100 microseconds.
        assert!(runtime.timers.now() - begun <= Duration::from_millis(11));
    });
}

#[test]
fn what_is_written_out_of_the_blue_is_sent_at_once() {
    let world = World::new(51, GOOD);
    let net = world.clone();
    world.run(move |runtime| async move {
        let (_stack, listener) = serve(&net, &runtime, false, ListenOptions::default());
        let peer = Client::start(&net, &runtime).connect(3260).await.unwrap();
        let (_reader, mut writer) = listener.accept().await.unwrap().split();
        for n in 0..20u8 {
            runtime.timers.sleep(Duration::from_secs(1)).await;
            let begun = runtime.timers.now();
            writer.write_all(&[n; 48]).await.unwrap();
            assert_eq!(peer.receive().await, Ok(vec![n; 48]));
            assert!(runtime.timers.now() - begun <= Duration::from_micros(60));
        }
    });
}
