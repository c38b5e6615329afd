//! Read-only snapshots, groups, the way back.

use super::{BLOCK, Disks, errno, name, run};
use export::{LogicalUnit, UnitError};
use mgmt::*;
use platform::block::Bufs;
use platform::random::Seeded;
use std::format;
use std::string::String;
use std::vec::Vec;

#[test]
fn a_read_only_snapshot_refuses_writes_and_knows_whether_it_is_intact() {
    let disks = Disks::new(200);
    let meta = disks.clone();
    run(1, disks, async |world| {
        world.create("v", 20).await;
        world.fill("v", 0, 5 * BLOCK, 1).await;
        let snapshot = world.snapshot("v", "s").await;
        assert_eq!((snapshot.read_only, snapshot.intact), (true, Some(true)));
        assert_eq!(snapshot.contents.as_ref(), Some(&snapshot.identity));
        let unit = world.login("s").await.unwrap();
        assert!(unit.attributes().read_only);
        let buf = world.runtime.bufs.zeroed(512).unwrap();
        assert_eq!(unit.write(0, Bufs::from_iter([buf]), false).await, Err(UnitError::ReadOnly));
        assert_eq!(unit.unmap(0, BLOCK).await, Err(UnitError::ReadOnly));
        // In use nobody makes it writable.
        let writable = VolumeChange::ReadOnly(false);
        assert_eq!(errno(world.manager.change_volume(&name("s"), writable).await), "EBUSY");
        drop(unit);
        let size = VolumeChange::SizeBytes(VolumeSize::new(BLOCK).unwrap());
        assert_eq!(errno(world.manager.change_volume(&name("s"), size).await), "EPERM");
        // Writes to the origin and snapshots of either change nothing.
        world.fill("v", 0, 3 * BLOCK, 2).await;
        let copy = world.snapshot("s", "copy").await;
        assert_eq!(copy.contents, snapshot.contents, "it holds the same");
        assert_eq!(world.volume("s").await.intact, Some(true));
        world.manager.service.close().await;
    });
    // Another host writes to it.
    run(2, meta.clone(), async |world| {
        let served = world.manager.service.served().unwrap();
        let device = served.catalog().named("s").unwrap().id().unwrap();
        let thin = served.pool.open_thin(device, None).await.unwrap();
        let buf = world.runtime.bufs.zeroed(512).unwrap();
        thin.write(0, Bufs::from_iter([buf]), true).await.unwrap();
        drop(thin);
        let snapshot = world.volume("s").await;
        assert_eq!((snapshot.read_only, snapshot.intact, snapshot.contents), (true, Some(false), None));
        assert_eq!(world.volume("copy").await.intact, Some(true));
        // What it holds now can be made a base again, and is not what it was.
        let before = snapshot.identity;
        for read_only in [false, true] {
            world.manager.change_volume(&name("s"), VolumeChange::ReadOnly(read_only)).await.unwrap();
        }
        let again = world.volume("s").await;
        assert_eq!((again.intact, again.identity == before), (Some(true), true));
        assert!(again.contents.is_some() && again.contents.as_ref() != Some(&before));
        world.sound().await;
    });
}

/// Found by the simulator (seed 107047375858): marking its blocks as shared changed the tree by which it is known.
#[test]
fn a_read_only_volume_that_others_copy_from_stays_intact() {
    run(4, Disks::new(200), async |world| {
        for volume in ["v", "other"] {
            world.create(volume, 20).await;
            world.fill(volume, 0, 5 * BLOCK, 1).await;
        }
        world.manager.change_volume(&name("v"), VolumeChange::ReadOnly(true)).await.unwrap();
        world.snapshot("other", "s").await;
        world.fill("other", 0, 5 * BLOCK, 2).await;
        world.create("target", 20).await;
        let unit = world.login("target").await.unwrap();
        // What is written since the last snapshot would have to be marked: initiators copy the data instead.
        for (source, shared) in [("v", false), ("s", true)] {
            let from = world.login(source).await.unwrap();
            assert_eq!(unit.share(0, &from, 0, 5 * BLOCK).await, Ok(shared));
            assert_eq!(world.volume(source).await.intact, Some(true));
        }
        drop(unit);
        assert_eq!(world.volume("target").await.mapped_bytes, 5 * BLOCK);
        assert_eq!(world.contents("target").await, world.contents("s").await);
        world.sound().await;
    });
}

#[test]
fn a_volume_goes_back_to_its_snapshot_and_stays_itself() {
    run(3, Disks::new(300), async |world| {
        let first = world.create("v", 20).await;
        world.fill("v", 0, 10 * BLOCK, 1).await;
        world.snapshot("v", "s").await;
        let old = world.contents("v").await;
        let larger = VolumeChange::SizeBytes(VolumeSize::new(30 * BLOCK).unwrap());
        world.manager.change_volume(&name("v"), larger).await.unwrap();
        world.fill("v", 5 * BLOCK, 20 * BLOCK, 2).await;
        let back = |force| RollBack { to: name("s"), force };
        let unit = world.login("v").await.unwrap();
        assert_eq!(errno(world.manager.roll_back(&name("v"), back(false)).await), "EBUSY");
        let after = world.manager.roll_back(&name("v"), back(true)).await.unwrap();
        assert_eq!(unit.attributes().size_bytes(), 20 * BLOCK);
        drop(unit);
        assert_eq!((after.size_bytes, after.mapped_bytes), (Some(20 * BLOCK), 10 * BLOCK));
        assert_eq!((after.id, &after.serial), (first.id, &first.serial));
        assert_eq!(world.contents("v").await, old);
        world.settle().await;
        assert_eq!(world.records(), ["s", "v"], "the old tree is deleted");
        assert_eq!(world.data_used_blocks(), 10 + 4, "what both share, and the records");
        // Unused, it is known to hold what the snapshot does, until a session logs in.
        let after = world.manager.roll_back(&name("v"), back(false)).await.unwrap();
        assert_eq!((after.intact, &after.contents), (Some(true), &world.volume("s").await.contents));
        world.fill("v", 0, BLOCK, 3).await;
        assert_eq!(world.volume("v").await.contents, None);
        assert_eq!(world.contents("s").await, old);
        world.create("other", 1).await;
        assert_eq!(errno(world.manager.roll_back(&name("other"), back(false)).await), "EINVAL");
        assert_eq!(errno(world.manager.roll_back(&name("s"), back(false)).await), "EINVAL");
        world.settle().await;
        world.sound().await;
    });
}

#[test]
fn a_group_is_taken_whole_or_not_at_all() {
    run(4, Disks::new(100), async |world| {
        for volume in ["a", "b"] {
            world.create(volume, 4).await;
            world.fill(volume, 0, BLOCK, 1).await;
        }
        let of = |pairs: &[(&str, &str)]| NewSnapshots {
            snapshots: pairs.iter().map(|(v, s)| SnapshotOf { volume: name(v), name: name(s) }).collect(),
            read_only: true,
        };
        let commits = world.manager.pool().unwrap().status.transaction_id;
        let taken = world.manager.create_snapshots(of(&[("a", "a1"), ("b", "b1"), ("a", "a2")])).await.unwrap();
        assert_eq!(world.manager.pool().unwrap().status.transaction_id, commits, "it is the user's");
        assert!(taken.iter().all(|snapshot| snapshot.intact == Some(true)));
        for (bad, says) in [
            (&[("a", "a3"), ("b", "a3")][..], "EEXIST"),
            (&[("a", "a3"), ("b", "b1")], "EEXIST"),
            (&[("a", "a3"), ("c", "c1")], "ENODATA"),
        ] {
            assert_eq!(errno(world.manager.create_snapshots(of(bad)).await), says);
        }
        assert_eq!(world.records(), ["a", "a1", "a2", "b", "b1"]);
        world.sound().await;
    });
}

#[test]
fn a_group_of_a_hundred_volumes_is_one_commit() {
    run(5, Disks::new(400), async |world| {
        let volumes: Vec<_> = (0..100).map(|volume| format!("v{volume}")).collect();
        for volume in &volumes {
            world.create(volume, 1).await;
            world.fill(volume, 0, BLOCK, 1).await;
        }
        let of = |volume: &String| SnapshotOf { volume: name(volume), name: name(&format!("{volume}-s")) };
        let group = NewSnapshots { snapshots: volumes.iter().map(of).collect(), read_only: true };
        world.journal.clear();
        let taken = world.manager.create_snapshots(group).await.unwrap();
        assert_eq!((taken.len(), world.journal.commits()), (100, 1));
        world.sound().await;
    });
}

/// The power is cut after each write and flush of a roll-back and of a group: each has happened whole, or not at all, and nothing
/// hidden is left.
#[test]
fn snapshots_and_ways_back_survive_a_power_cut_at_any_moment() {
    let disks = Disks::new(300);
    let first = disks.fork();
    let (before, journal) = run(5, first.clone(), async move |world| {
        for volume in ["a", "b"] {
            world.create(volume, 20).await;
            world.fill(volume, 0, 10 * BLOCK, 1).await;
        }
        world.snapshot("a", "s").await;
        world.fill("a", 5 * BLOCK, 10 * BLOCK, 2).await;
        let before = world.disks.fork();
        world.journal.clear();
        let group = ["a", "b"].map(|v| SnapshotOf { volume: name(v), name: name(&std::format!("{v}1")) }).into();
        world.manager.create_snapshots(NewSnapshots { snapshots: group, read_only: true }).await.unwrap();
        world.manager.roll_back(&name("a"), RollBack { to: name("s"), force: false }).await.unwrap();
        world.settle().await;
        (before, world.journal.clone())
    });
    let mut states = std::collections::BTreeSet::new();
    let random = Seeded::from_u64(99);
    for events in 0..=journal.len() {
        let state = run(6, before.after(&journal, events, &random), async |world| {
            world.settle().await;
            let names = world.records();
            let grouped = names.iter().any(|name| name == "a1");
            let expected: &[&str] = if grouped { &["a", "a1", "b", "b1", "s"] } else { &["a", "b", "s"] };
            assert_eq!(names, expected);
            let bytes = world.contents("a").await;
            let back = bytes[5 * BLOCK as usize] == 1;
            let byte = |at: usize| match at as u64 / BLOCK {
                0..5 => 1,
                5..10 => {
                    if back {
                        1
                    } else {
                        2
                    }
                }
                10..15 => {
                    if back {
                        0
                    } else {
                        2
                    }
                }
                _ => 0,
            };
            assert!(bytes.iter().enumerate().all(|(at, found)| *found == byte(at)), "back: {back}");
            for snapshot in names.iter().filter(|name| ["s", "a1", "b1"].contains(&name.as_str())) {
                assert_eq!(world.volume(snapshot).await.intact, Some(true));
            }
            world.sound().await;
            (grouped, back)
        });
        states.insert(state);
    }
    assert_eq!(states.into_iter().collect::<Vec<_>>(), [(false, false), (true, false), (true, true)]);
}

#[test]
fn a_list_is_whole_while_snapshots_are_deleted() {
    for seed in 0..20 {
        run(100 + seed, Disks::new(100), async |world| {
            world.create("v", 4).await;
            world.fill("v", 0, BLOCK, 1).await;
            for n in 0..20 {
                world.snapshot("v", &format!("s{n}")).await;
            }
            let deleter = world.clone();
            let deleting = world.runtime.spawner.spawn(async move {
                for n in (0..20).rev() {
                    deleter.manager.delete_volume(&name(&format!("s{n}"))).await.unwrap();
                }
            });
            for _ in 0..200 {
                let listed = world.manager.volumes(None, 256).await.unwrap();
                assert!(listed.iter().any(|volume| volume.name == name("v")));
                let first = world.manager.volumes(None, 1).await.unwrap();
                assert_eq!(first.len(), 1, "there is more");
                platform::task::yield_now().await;
            }
            deleting.await.unwrap();
        });
    }
}
