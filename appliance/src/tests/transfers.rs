//! Transfers that break off: by the link, by the power.

use super::streams::{into, receive, refusal, send, with_more_digests};
use super::{BLOCK, Disks, World, errno, name, run};
use export::{LogicalUnit, UnitError};
use mgmt::*;
use platform::block::Bufs;
use platform::random::Seeded;
use platform::time::Duration;
use std::collections::BTreeSet;
use std::format;
use std::rc::Rc;
use std::string::ToString;
use std::vec::Vec;

/// A volume of 40 blocks with two snapshots, their contents, and a copy of the first.
async fn prepared(world: &World) -> [Vec<u8>; 2] {
    world.create("v", 40).await;
    for n in 0..10 {
        world.fill("v", n * 4 * BLOCK, 2 * BLOCK, 1 + n as u8).await;
    }
    world.snapshot("v", "s1").await;
    for n in 0..9 {
        world.fill("v", (n * 4 + 1) * BLOCK, 2 * BLOCK, 101 + n as u8).await;
    }
    world.snapshot("v", "s2").await;
    let stream = send(world, "s1", None, None).await;
    receive(world, &into("copy"), &stream, false).await.unwrap();
    [world.contents("s1").await, world.contents("s2").await]
}

/// As [`receive`] that breaks off, with time between the pieces, so that there are checkpoints.
async fn receive_slowly(world: &World, target: &str, bytes: &[u8]) -> Result<Volume, ReceiveError<()>> {
    let mut rest = bytes;
    let source = async |piece: &mut [u8]| {
        world.runtime.timers.sleep(Duration::from_millis(400)).await;
        if rest.is_empty() {
            return Err(());
        }
        let len = rest.len().min(piece.len());
        piece[..len].copy_from_slice(&rest[..len]);
        rest = &rest[len..];
        Ok(len)
    };
    world.manager.receive(&into(target), source).await
}

#[test]
fn a_transfer_goes_on_where_it_broke_off() {
    for seed in 0..6 {
        run(seed, Disks::new(400), async move |world| {
            let [_, contents] = prepared(&world).await;
            let base = (seed % 2 == 0).then_some("s1");
            let target = if base.is_some() { "copy" } else { "new" };
            let whole = send(&world, "s2", base, None).await;
            let mut stream = with_more_digests(&whole);
            let (mut sent, mut goes) = (0, 0);
            loop {
                let cut = (stream.len() as u64 / 3 + world.below(stream.len() as u64)) as usize;
                if cut < stream.len() {
                    // What came behind the last digest may be anything.
                    let mut part = stream[..cut].to_vec();
                    if world.below(2) == 0 {
                        let len = part.len();
                        part[len - 1] ^= 0x55;
                    }
                    receive_slowly(&world, target, &part).await.unwrap_err();
                    sent += cut;
                } else {
                    receive(&world, &into(target), &stream, false).await.unwrap();
                    break;
                }
                let Ok(state) = world.manager.receive_state(&name(target)) else { continue };
                assert!(!state.running);
                let token = state.resume.unwrap();
                stream = with_more_digests(&send(&world, "s2", base, Some(token)).await);
                goes += 1;
                assert!(goes < 100);
            }
            assert!(world.contents(target).await == contents, "seed {seed}, {goes} pieces, {sent} bytes");
            world.settle().await;
            assert!(world.records().iter().all(|name| !name.starts_with('.')), "{:?}", world.records());
            world.sound().await;
        });
    }
}

/// A transaction is lost while a stream comes slowly, and with it what was received and not committed: that must not be taken for
/// what the next digest verifies.
#[test]
fn what_a_lost_transaction_took_is_not_gone_on_with() {
    run(11, Disks::new(400), async |world| {
        let [_, contents] = prepared(&world).await;
        let stream = with_more_digests(&send(&world, "s2", None, None).await);
        let (half, mut sent) = (stream.len() / 2, 0);
        let source = async |piece: &mut [u8]| {
            if sent == half {
                world.lose_a_transaction().await;
                world.manager.clear_needs_check().await.unwrap();
                world.runtime.timers.sleep(Duration::from_secs(2)).await;
            }
            let end = if sent < half { half } else { stream.len() - 40 };
            let len = piece.len().min(end - sent);
            piece[..len].copy_from_slice(&stream[sent..sent + len]);
            sent += len;
            if len == 0 { Err(()) } else { Ok(len) }
        };
        world.manager.receive(&into("new"), source).await.unwrap_err();
        let token = world.manager.receive_state(&name("new")).ok().and_then(|state| state.resume);
        let rest = send(&world, "s2", None, token).await;
        receive(&world, &into("new"), &rest, false).await.unwrap();
        assert!(world.contents("new").await == contents, "what was received differs from what was sent");
        world.settle().await;
        world.sound().await;
    });
}

#[test]
fn only_the_same_transfer_is_gone_on_with() {
    run(10, Disks::new(400), async |world| {
        prepared(&world).await;
        let whole = with_more_digests(&send(&world, "s2", None, None).await);
        receive_slowly(&world, "new", &whole[..whole.len() / 2]).await.unwrap_err();
        let token = world.manager.receive_state(&name("new")).unwrap().resume.unwrap();
        let request = SendRequest { snapshot: name("s1"), base: None, resume: Some(token.clone()) };
        assert!(world.manager.send(&request, async |_: &[u8]| Ok::<_, ()>(())).await.is_err(), "of another snapshot");
        let request = SendRequest { snapshot: name("s2"), base: None, resume: Some("gs1nonsense".to_string()) };
        assert!(world.manager.send(&request, async |_: &[u8]| Ok::<_, ()>(())).await.is_err());
        let rest = send(&world, "s2", None, Some(token)).await;
        let (code, says) = refusal(receive(&world, &into("elsewhere"), &rest, false).await);
        assert!(code == "EINVAL" && says.contains("no beginning"), "{says}");
        // Begun anew, the old beginning is given up.
        receive(&world, &into("new"), &whole, false).await.unwrap();
        assert!(world.manager.receive_state(&name("new")).is_err());
        let (_, says) = refusal(receive(&world, &into("new"), &rest, false).await);
        assert!(says.contains("no beginning"), "{says}");
        // What nobody resumes is given up after a day.
        receive_slowly(&world, "late", &whole[..whole.len() / 2]).await.unwrap_err();
        assert!(world.manager.receive_state(&name("late")).is_ok());
        world.runtime.timers.sleep(Duration::from_secs(25 * 3600)).await;
        assert!(world.manager.receive_state(&name("late")).is_err());
        assert_eq!(world.records(), ["copy", "new", "s1", "s2", "v"]);
        world.sound().await;
    });
}

/// However often it is begun and resumed, there is one task that gives up what nobody resumes.
#[test]
fn a_transfer_that_breaks_off_again_and_again_leaves_no_tasks() {
    run(12, Disks::new(400), async |world| {
        prepared(&world).await;
        let whole = with_more_digests(&send(&world, "s2", None, None).await);
        receive_slowly(&world, "new", &whole[..whole.len() / 2]).await.unwrap_err();
        world.settle().await;
        let holders = Rc::strong_count(&world.manager.service);
        for day in 0..3 {
            world.runtime.timers.sleep(Duration::from_secs(23 * 3600)).await;
            let token = world.manager.receive_state(&name("new")).unwrap().resume;
            assert!(token.is_some(), "day {day}: the day begins anew when a transfer breaks off");
            let rest = send(&world, "s2", None, token).await;
            receive(&world, &into("new"), &rest[..300], true).await.unwrap_err();
            world.settle().await;
            assert_eq!(Rc::strong_count(&world.manager.service), holders);
        }
        world.runtime.timers.sleep(Duration::from_secs(25 * 3600)).await;
        assert!(world.manager.receive_state(&name("new")).is_err());
        world.sound().await;
    });
}

/// The power is cut after each write and flush of a receive onto a volume: it shows its old contents or the new ones; what can be
/// resumed is, and nothing else is left.
#[test]
fn a_power_cut_leaves_the_old_contents_or_the_new() {
    let (before, journal, contents, stream) = run(20, Disks::new(400), async |world| {
        let contents = prepared(&world).await;
        let stream = with_more_digests(&send(&world, "s2", Some("s1"), None).await);
        world.settle().await;
        let before = world.disks.fork();
        world.journal.clear();
        let mut rest = &stream[..];
        let source = async |piece: &mut [u8]| {
            world.runtime.timers.sleep(Duration::from_millis(400)).await;
            let len = rest.len().min(piece.len());
            piece[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            Ok::<_, ()>(len)
        };
        world.manager.receive(&into("copy"), source).await.unwrap();
        world.settle().await;
        (before, world.journal.clone(), contents, stream)
    });
    let (contents, stream) = (Rc::new(contents), Rc::new(stream));
    let mut seen = BTreeSet::new();
    let random = Seeded::from_u64(99);
    for events in 0..=journal.len() {
        let (contents, stream) = (contents.clone(), stream.clone());
        let state = run(21, before.after(&journal, events, &random), async move |world| {
            world.settle().await;
            let bytes = world.contents("copy").await;
            let new = bytes == contents[1];
            assert!(new || bytes == contents[0], "after {events} events");
            let token = world.manager.receive_state(&name("copy")).ok().and_then(|state| state.resume);
            let hidden: Vec<_> = world.records().into_iter().filter(|name| name.starts_with('.')).collect();
            assert_eq!(hidden.len(), usize::from(token.is_some()), "{hidden:?}");
            world.sound().await;
            let resumed = token.is_some();
            if let Some(token) = token {
                assert!(!new);
                let rest = send(&world, "s2", Some("s1"), Some(token)).await;
                assert!(rest.len() < stream.len());
                receive(&world, &into("copy"), &rest, false).await.unwrap();
                assert!(world.contents("copy").await == contents[1]);
            }
            (new, resumed)
        });
        seen.insert(state);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(false, false), (false, true), (true, false)]);
}

/// Who logs in to what was received while the pool takes no changes reads it, and it stays what was received.
#[test]
fn a_received_volume_is_served_write_protected_while_the_pool_is_read_only() {
    run(12, Disks::new(400), async |world| {
        let [_, contents] = prepared(&world).await;
        let stream = send(&world, "s2", None, None).await;
        let received = receive(&world, &into("new"), &stream, false).await.unwrap();
        assert_eq!((received.intact, received.read_only), (Some(true), false));
        let other = world.login("v").await.unwrap();
        let rule = Export { initiators: Initiators::All, addresses: Vec::new(), authentication: None };
        world.manager.set_export(&name("new"), Some(rule)).await.unwrap();
        let buf = world.runtime.bufs.zeroed(512).unwrap();
        other.write(3 * BLOCK, Bufs::from_iter([buf]), false).await.unwrap();
        world.lose_a_transaction().await;
        let unit = world.login_again("new").await.unwrap();
        assert!(unit.attributes().read_only);
        let buf = world.runtime.bufs.zeroed(512).unwrap();
        assert_eq!(unit.write(0, Bufs::from_iter([buf]), false).await, Err(UnitError::ReadOnly));
        assert!(world.contents("new").await == contents);
        // The session knows it as write-protected for as long as it lasts.
        world.manager.clear_needs_check().await.unwrap();
        assert!(world.login_again("new").await.unwrap().attributes().read_only);
        assert_eq!(world.volume("new").await.intact, Some(true));
        drop(unit);
        let unit = world.login_again("new").await.unwrap();
        assert!(!unit.attributes().read_only);
        let buf = world.runtime.bufs.zeroed(512).unwrap();
        unit.write(0, Bufs::from_iter([buf]), false).await.unwrap();
        assert_eq!(world.volume("new").await.intact, None);
        world.sound().await;
    });
}

/// Nobody else gets the number of a checkpoint as long as the transfer knows it by that.
#[test]
fn a_message_does_not_delete_the_checkpoint_of_a_transfer() {
    run(11, Disks::new(400), async |world| {
        let [contents, _] = prepared(&world).await;
        let stream = with_more_digests(&send(&world, "s1", None, None).await);
        let (mut rest, mut refused) = (&stream[..], 0);
        let source = async |piece: &mut [u8]| {
            world.runtime.timers.sleep(Duration::from_millis(400)).await;
            let served = world.manager.service.served().unwrap();
            let checkpoint = served.catalog().named(".verified-new").map(|record| record.device);
            if let Some(device) = checkpoint {
                assert_eq!(errno(world.manager.message(&format!("delete {device}")).await), "EBUSY");
                refused += 1;
            }
            let len = rest.len().min(piece.len());
            piece[..len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            Ok::<_, ()>(len)
        };
        world.manager.receive(&into("new"), source).await.unwrap();
        assert!(refused > 1 && world.contents("new").await == contents);
        world.settle().await;
        assert_eq!(world.records(), ["copy", "new", "s1", "s2", "v"]);
        assert_eq!(world.manager.message("delete 77").await.map_err(|error| error.code.name()), Err("ENODATA"));
    });
}

/// Between two attempts nothing remembers it: then it may be deleted, and the transfer is to be begun anew.
#[test]
fn a_transfer_whose_checkpoint_was_deleted_takes_no_other_volume() {
    run(12, Disks::new(400), async |world| {
        prepared(&world).await;
        let stream = with_more_digests(&send(&world, "s1", None, None).await);
        receive_slowly(&world, "new", &stream[..stream.len() / 2]).await.unwrap_err();
        let served = world.manager.service.served().unwrap();
        let device = served.catalog().named(".verified-new").map(|record| record.device).unwrap();
        world.settle().await;
        world.manager.message(&format!("delete {device}")).await.unwrap();
        let mut made = ["copy", "new", "s1", "s2", "v"].map(ToString::to_string).to_vec();
        for n in 0..device {
            made.push(format!("mine-{n}"));
            if world.create(&format!("mine-{n}"), 4).await.id.get() == device {
                break;
            }
        }
        receive(&world, &into("new"), &stream, false).await.unwrap();
        world.settle().await;
        made.sort();
        assert_eq!(world.records(), made);
    });
}
