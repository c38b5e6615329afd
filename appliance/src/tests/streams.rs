//! Streams as they are: what is sent, and what is received.

use super::{BLOCK, Disks, World, errno, name, run};
use mgmt::*;
use std::cell::RefCell;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};
use thinp::stream::{Decoder, Encoder, Event, HEADER_BYTES};

pub async fn send(world: &World, snapshot: &str, base: Option<&str>, resume: Option<String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let request = SendRequest { snapshot: name(snapshot), base: base.map(name), resume };
    let sink = async |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok::<_, ()>(())
    };
    world.manager.send(&request, sink).await.unwrap();
    bytes
}

pub fn into(volume: &str) -> ReceiveRequest {
    ReceiveRequest { volume: name(volume), size_bytes: None, base: None, read_only: false }
}

/// Gives a stream in pieces of uneven sizes; it breaks off where the bytes end if `broken`.
pub async fn receive(
    world: &World,
    request: &ReceiveRequest,
    bytes: &[u8],
    broken: bool,
) -> Result<Volume, ReceiveError<&'static str>> {
    let mut rest = bytes;
    let mut turn = 0;
    let source = async |piece: &mut [u8]| {
        turn += 1;
        if rest.is_empty() && broken {
            return Err("the peer is gone");
        }
        let len = rest.len().min(piece.len()).min([70_000, 1, 513, 4096][turn % 4]);
        let (now, later) = rest.split_at(len);
        piece[..len].copy_from_slice(now);
        rest = later;
        Ok(len)
    };
    world.manager.receive(request, source).await
}

pub fn refusal<T: core::fmt::Debug>(result: Result<T, ReceiveError<&'static str>>) -> (String, String) {
    match result {
        Err(ReceiveError::Refused(error)) => (errno::<()>(Err(error.clone())), error.message),
        other => panic!("{other:?}"),
    }
}

/// Two appliances: the first has a volume with snapshots, the second gets them.
async fn histories(world: &World) -> Vec<Vec<u8>> {
    world.create("v", 40).await;
    let mut contents = Vec::new();
    for n in 1..=3u64 {
        for _ in 0..6 {
            let (at, blocks) = (world.below(36), 1 + world.below(4));
            world.fill("v", at * BLOCK, blocks * BLOCK, n as u8 * 16 + world.below(16) as u8).await;
        }
        let unit = world.login("v").await.unwrap();
        export::LogicalUnit::unmap(&*unit, world.below(30) * BLOCK, 3 * BLOCK).await.unwrap();
        drop(unit);
        world.snapshot("v", &format!("s{n}")).await;
        contents.push(world.contents(&format!("s{n}")).await);
    }
    contents
}

#[test]
fn what_is_sent_is_received_byte_for_byte() {
    for seed in 0..4 {
        let sent: Rc<RefCell<Vec<Vec<u8>>>> = Rc::default();
        let streams = sent.clone();
        let contents = run(seed, Disks::new(400), async move |world| {
            let contents = histories(&world).await;
            for (snapshot, base) in
                [("s1", None), ("s2", Some("s1")), ("s3", Some("s2")), ("s3", None), ("s3", Some("s1"))]
            {
                let stream = send(&world, snapshot, base, None).await;
                streams.borrow_mut().push(stream);
            }
            // An increment costs what differs.
            let used = streams.borrow()[3].len() as f64;
            let mapped = world.volume("s3").await.mapped_bytes as f64;
            assert!(used >= mapped && used < mapped * 1.05, "{used} for {mapped}");
            // Made here again: on itself rolled back, and onto a new volume.
            world.settle().await;
            world.sound().await;
            contents
        });
        let streams = sent.take();
        run(seed + 100, Disks::new(400), async move |world| {
            let copy = receive(&world, &into("copy"), &streams[0], false).await.unwrap();
            assert_eq!((copy.intact, copy.read_only), (Some(true), false));
            assert_eq!(world.contents("copy").await, contents[0]);
            // Out of order it is refused, by what it holds.
            let (code, says) = refusal(receive(&world, &into("copy"), &streams[2], false).await);
            assert!(code == "EINVAL" && says.contains("does not hold that"), "{says}");
            world.snapshot("copy", "kept").await;
            for (stream, expected) in [(1, 1), (2, 2)] {
                let serial = world.volume("copy").await.serial;
                let after = receive(&world, &into("copy"), &streams[stream], false).await.unwrap();
                assert_eq!((after.serial, after.id), (serial, copy.id));
                assert_eq!(world.contents("copy").await, contents[expected]);
            }
            assert_eq!(world.contents("kept").await, contents[0]);
            // A full stream onto what is there, which unmaps what it does not mention.
            world.fill("copy", 0, 40 * BLOCK, 0xEE).await;
            assert_eq!(world.volume("copy").await.contents, None, "a session was there");
            refusal(receive(&world, &into("copy"), &streams[2], false).await);
            let after = receive(&world, &into("copy"), &streams[3], false).await.unwrap();
            assert_eq!(after.mapped_bytes, streams[3].len() as u64 / BLOCK * BLOCK);
            assert_eq!(world.contents("copy").await, contents[2]);
            // An increment into a new volume is put on whatever holds its base.
            receive(&world, &into("third"), &streams[4], false).await.unwrap();
            assert_eq!(world.contents("third").await, contents[2]);
            world.settle().await;
            assert_eq!(world.records(), ["copy", "kept", "third"]);
            world.sound().await;
        });
    }
}

/// A stream as `thin_send` makes it: without any chunk of ours.
fn foreign(chunks: &[(u64, u64, Option<u8>)]) -> Vec<u8> {
    let header = |offset: u64, length: u64, command: u32| {
        let magic = 0x24C4_F02A_AE2E_4FA9u64;
        [&magic.to_be_bytes()[..], &offset.to_be_bytes(), &length.to_be_bytes(), &command.to_be_bytes()].concat()
    };
    let mut bytes = header(0, 0, 2);
    for (offset, length, byte) in chunks {
        bytes.extend(header(*offset, *length, if byte.is_some() { 0 } else { 1 }));
        bytes.extend(byte.map_or(Vec::new(), |byte| vec![byte; *length as usize]));
    }
    bytes.extend(header(0, 24, 3));
    let data = chunks.iter().filter(|chunk| chunk.2.is_some()).count() as u64;
    for count in [chunks.len() as u64 + 2, data, chunks.len() as u64 - data] {
        bytes.extend(count.to_be_bytes());
    }
    bytes
}

#[test]
fn foreign_streams_need_a_size_and_a_word_on_their_base() {
    run(7, Disks::new(200), async |world| {
        // Blocks of the sender are half of ours.
        let half = BLOCK / 2;
        let full =
            foreign(&[(half, half, Some(1)), (4 * BLOCK, 2 * BLOCK, Some(2)), (9 * BLOCK + half, half, Some(3))]);
        let (code, says) = refusal(receive(&world, &into("v"), &full, false).await);
        assert!(code == "EINVAL" && says.contains("how large"), "{says}");
        let sized = |size_bytes| ReceiveRequest { size_bytes: Some(VolumeSize::new(size_bytes).unwrap()), ..into("v") };
        let (code, says) = refusal(receive(&world, &sized(9 * BLOCK), &full, false).await);
        assert!(code == "EINVAL" && says.contains("beyond the volume's"), "{says}");
        receive(&world, &sized(10 * BLOCK), &full, false).await.unwrap();
        let mut expected = vec![0; 10 * BLOCK as usize];
        let mut fill = |at: u64, len: u64, byte| expected[at as usize..(at + len) as usize].fill(byte);
        fill(half, half, 1);
        fill(4 * BLOCK, 2 * BLOCK, 2);
        fill(9 * BLOCK + half, half, 3);
        assert!(world.contents("v").await == expected);
        assert_eq!(world.volume("v").await.contents, None, "nobody knows what that is");
        // An increment that unmaps a part of a block: that is zeroed.
        let more = foreign(&[(4 * BLOCK + half, BLOCK + half, None), (0, half, Some(4))]);
        let on_it = ReceiveRequest { base: Some(name("v")), ..into("v") };
        receive(&world, &on_it, &more, false).await.unwrap();
        let mut fill = |at: u64, len: u64, byte| expected[at as usize..(at + len) as usize].fill(byte);
        fill(4 * BLOCK + half, BLOCK + half, 0);
        fill(0, half, 4);
        assert!(world.contents("v").await == expected);
        assert_eq!(world.volume("v").await.mapped_bytes, 3 * BLOCK);
        // Without the word it is a full stream.
        receive(&world, &into("v"), &more, false).await.unwrap();
        assert_eq!(world.volume("v").await.mapped_bytes, BLOCK);
        world.settle().await;
        world.sound().await;
    });
}

/// Whatever is done to a stream: it is refused with place and reason, the target is unchanged, nothing is left behind.
#[test]
fn hostile_streams_change_nothing() {
    let seed = std::env::var("GOSSAMER_SEED").ok().map_or(8, |seed| seed.parse().unwrap());
    run(seed, Disks::new(400), async |world| {
        let contents = histories(&world).await;
        let whole = send(&world, "s2", None, None).await;
        let increment = send(&world, "s2", Some("s1"), None).await;
        receive(&world, &into("copy"), &send(&world, "s1", None, None).await, false).await.unwrap();
        let used = world.data_used_blocks();
        for round in 0..150 {
            let mut bytes = if round % 2 == 0 { whole.clone() } else { increment.clone() };
            let at = world.below(bytes.len() as u64) as usize;
            match world.below(5) {
                0 => bytes.truncate(at),
                1 => bytes[at] ^= 1 << world.below(8),
                2 => {
                    // In a header, most likely.
                    let at = at % (4 * HEADER_BYTES);
                    bytes[at] = world.below(256) as u8;
                }
                3 => bytes.rotate_left(at),
                _ => bytes.extend_from_within(at..),
            }
            if bytes == whole || bytes == increment {
                continue;
            }
            let target = ["copy", "new"][world.below(2) as usize];
            let result = receive(&world, &into(target), &bytes, false).await;
            let (code, says) = refusal(result);
            assert_eq!(code, "EINVAL", "round {round}: {says}");
            assert!(says.contains("byte") || says.contains("stream"), "round {round}: {says}");
        }
        assert!(world.contents("copy").await == contents[0]);
        for target in ["copy", "new"] {
            if world.manager.receive_state(&name(target)).is_ok() {
                world.manager.forget_receive(&name(target)).await.unwrap();
            }
        }
        world.settle().await;
        assert_eq!(world.records(), ["copy", "s1", "s2", "s3", "v"]);
        assert_eq!(world.data_used_blocks(), used, "nothing is leaked");
        world.sound().await;
    });
}

#[test]
fn a_full_pool_stops_it_with_what_is_missing() {
    run(9, Disks::new(60), async |world| {
        world.create("v", 40).await;
        world.fill("v", 0, 30 * BLOCK, 1).await;
        world.snapshot("v", "s").await;
        let stream = send(&world, "s", None, None).await;
        let used = world.data_used_blocks();
        let (code, says) = refusal(receive(&world, &into("copy"), &stream, false).await);
        assert_eq!(code, "ENOSPC");
        assert!(says.contains(&format!("{} bytes more", (30 + used - 60) * BLOCK)), "{says}, {used} used");
        world.settle().await;
        assert_eq!((world.records(), world.data_used_blocks()), (vec!["s".to_string(), "v".to_string()], used));
        world.fill("v", 0, BLOCK, 2).await;
        world.sound().await;
    });
}

#[test]
fn what_is_sent_or_received_is_in_use() {
    run(10, Disks::new(200), async |world| {
        world.create("v", 40).await;
        world.fill("v", 0, 30 * BLOCK, 1).await;
        world.snapshot("v", "s").await;
        let refused = SendRequest { snapshot: name("v"), base: None, resume: None };
        let result = world.manager.send(&refused, async |_: &[u8]| Ok::<_, ()>(())).await;
        assert!(matches!(result, Err(RunsError::Refused(ControlError { code, .. })) if code.name() == "EINVAL"));
        let mut looked = false;
        let request = SendRequest { snapshot: name("s"), base: None, resume: None };
        let mut stream = Vec::new();
        let sink = async |piece: &[u8]| {
            stream.extend_from_slice(piece);
            if !looked {
                looked = true;
                assert!(world.volume("s").await.in_use);
                assert_eq!(errno(world.manager.delete_volume(&name("s")).await), "EBUSY");
                let device = world.volume("s").await.id;
                assert_eq!(errno(world.manager.message(&format!("delete {device}")).await), "EBUSY");
                let change = VolumeChange::ReadOnly(false);
                assert_eq!(errno(world.manager.change_volume(&name("s"), change).await), "EBUSY");
                assert!(world.login("s").await.is_ok(), "it can be read meanwhile");
            }
            Ok::<_, ()>(())
        };
        world.manager.send(&request, sink).await.unwrap();
        assert!(looked && !world.volume("s").await.in_use);

        let unit = world.login("v").await.unwrap();
        assert_eq!(refusal(receive(&world, &into("v"), &stream, false).await).0, "EBUSY");
        drop(unit);
        let (mut rest, mut looked) = (&stream[..], false);
        let source = async |piece: &mut [u8]| {
            if rest.len() < stream.len() / 2 && !looked {
                looked = true;
                assert!(world.volume("v").await.in_use);
                assert!(world.login("v").await.is_err(), "nobody may use it meanwhile");
                assert_eq!(errno(world.manager.delete_volume(&name("v")).await), "EBUSY");
                let device = world.volume("v").await.id;
                assert_eq!(errno(world.manager.message(&format!("delete {device}")).await), "EBUSY");
                assert_eq!(refusal(receive(&world, &into("v"), &stream, false).await).0, "EBUSY");
                assert!(world.manager.receive_state(&name("v")).unwrap().running);
            }
            let len = rest.len().min(piece.len());
            piece[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            Ok::<_, ()>(len)
        };
        world.manager.receive(&into("v"), source).await.unwrap();
        assert!(looked && world.login("v").await.is_ok());
        world.settle().await;
        assert_eq!(world.records(), ["s", "v"]);
    });
}

/// The simulator's seed 107047175322 at `c9b89be`: a volume that had been received and then grown was still told to hold what it
/// had received, so that a stream that was refused could be taken for one that had come in.
#[test]
fn a_volume_of_another_size_does_not_hold_what_it_received() {
    run(13, Disks::new(200), async |world| {
        world.create("v", 10).await;
        world.fill("v", 0, 2 * BLOCK, 1).await;
        world.snapshot("v", "base").await;
        world.fill("v", BLOCK, 2 * BLOCK, 2).await;
        world.snapshot("v", "s").await;
        receive(&world, &into("copy"), &send(&world, "base", None, None).await, false).await.unwrap();
        let resize = async |blocks| {
            let size = VolumeChange::SizeBytes(VolumeSize::new(blocks * BLOCK).unwrap());
            world.manager.change_volume(&name("copy"), size).await.unwrap();
            world.volume("copy").await.contents
        };
        assert!(resize(10).await.is_some(), "it is as large as before");
        assert_eq!(resize(12).await, None);
        let increment = send(&world, "s", Some("base"), None).await;
        let (code, says) = refusal(receive(&world, &into("copy"), &increment, false).await);
        assert!(code == "EINVAL" && says.contains("does not hold"), "{code}: {says}");
    });
}

#[test]
fn a_volume_that_is_made_meanwhile_is_not_replaced() {
    run(11, Disks::new(200), async |world| {
        world.create("v", 10).await;
        world.fill("v", 0, 10 * BLOCK, 1).await;
        world.snapshot("v", "s").await;
        let stream = send(&world, "s", None, None).await;
        let mut rest = &stream[..];
        let source = async |piece: &mut [u8]| {
            if rest.len() < stream.len() / 2 && !world.records().contains(&"copy".to_string()) {
                world.create("copy", 10).await;
                world.fill("copy", 0, BLOCK, 7).await;
            }
            let len = rest.len().min(piece.len());
            piece[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            Ok::<_, &str>(len)
        };
        let result = world.manager.receive(&into("copy"), source).await;
        assert_eq!(refusal(result).0, "EEXIST");
        assert_eq!(world.contents("copy").await[..BLOCK as usize], vec![7; BLOCK as usize]);
        world.settle().await;
        let _ = world.manager.forget_receive(&name("copy")).await;
        assert_eq!(world.records(), ["copy", "s", "v"]);
        world.sound().await;
    });
}

/// A stream that ends its stretches early, as one of many small chunks does.
pub fn with_more_digests(stream: &[u8]) -> Vec<u8> {
    let (mut decoder, mut input, mut out) = (Decoder::new(None), stream, Vec::new());
    let mut encoder: Option<Encoder> = None;
    while let Some(event) = decoder.next(&mut input).unwrap() {
        match event {
            Event::Info => {
                encoder = Some(Encoder::begin(decoder.info().unwrap(), &mut out).unwrap());
            }
            Event::Data { offset, length } => {
                let encoder = encoder.as_mut().unwrap();
                encoder.digest(&mut out).unwrap();
                encoder.data(offset, length, &mut out).unwrap();
            }
            Event::Payload { bytes, .. } => {
                encoder.as_mut().unwrap().payload(bytes).unwrap();
                out.extend_from_slice(bytes);
            }
            Event::Unmap { offset, length } => encoder.as_mut().unwrap().unmap(offset, length, &mut out).unwrap(),
            Event::Digest(_) => {}
            Event::End(_) => drop(encoder.take().unwrap().end(&mut out).unwrap()),
        }
    }
    out
}
