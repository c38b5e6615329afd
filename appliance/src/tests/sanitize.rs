//! Volumes that are sanitized.

use super::{BLOCK, Disks, World, errno, name, run};
use crate::units::Unit;
use export::{LogicalUnit, Sanitize, UnitError};
use mgmt::*;
use platform::block::{Bufs, Disk, Op};
use platform::random::Seeded;
use platform::simulated;
use platform::task::Executor;
use std::rc::Rc;
use std::{format, vec};
use thinp::{Pool, PoolOptions};

const BLOCKS: u64 = 600;

/// A volume of which all is mapped, with a session.
async fn full_volume(world: &World) -> Rc<Unit> {
    world.create("v", BLOCKS).await;
    world.create("other", 4).await;
    world.fill("other", 0, 2 * BLOCK, 7).await;
    for block in 0..BLOCKS {
        world.fill("v", block * BLOCK, BLOCK, 1).await;
    }
    world.login("v").await.unwrap()
}

/// Bytes of the data disk that are `byte`.
fn bytes_with(disks: &Disks, byte: u8) -> usize {
    let bytes = disks.data.peek(0, ((BLOCKS + 20) * BLOCK) as usize);
    bytes.iter().filter(|found| **found == byte).count()
}

async fn write(world: &World, unit: &Unit) -> Result<(), UnitError> {
    let buf = world.runtime.bufs.zeroed(512).unwrap();
    unit.write(0, Bufs::from_iter([buf]), false).await
}

#[test]
fn nothing_is_left_of_a_volume_and_others_are_as_they_were() {
    let disks = Disks::new(BLOCKS + 20);
    let data = disks.clone();
    run(1, disks, async move |world| {
        let unit = full_volume(&world).await;
        let used = world.data_used_blocks();
        assert!(bytes_with(&data, 1) as u64 >= BLOCKS * BLOCK);
        unit.begin_sanitize(false).await.unwrap();
        assert_eq!(unit.sanitize(), Some(Sanitize::Running { progress: 0 }));
        assert_eq!(write(&world, &unit).await, Err(UnitError::Sanitizing));
        // Others have their turn.
        world.fill("other", 0, BLOCK, 8).await;
        unit.sanitized().await.unwrap();
        assert_eq!(unit.sanitize(), None);
        assert_eq!(world.data_used_blocks(), used - BLOCKS);
        assert_eq!(world.contents("v").await, vec![0; (BLOCKS * BLOCK) as usize]);
        assert_eq!(world.contents("other").await[..BLOCK as usize], vec![8; BLOCK as usize]);
        assert!((bytes_with(&data, 1) as u64) < BLOCK, "what was written is still on the data disk");
        write(&world, &unit).await.unwrap();
        world.sound().await;
    });
}

#[test]
fn what_shares_blocks_is_refused() {
    run(2, Disks::new(BLOCKS + 20), async |world| {
        let unit = full_volume(&world).await;
        world.snapshot("v", "s").await;
        assert_eq!(unit.begin_sanitize(false).await, Err(UnitError::NotNow));
        assert_eq!((unit.sanitize(), write(&world, &unit).await), (None, Ok(())));
        world.manager.delete_volume(&name("s")).await.unwrap();
        let copy = world.login("other").await.unwrap();
        assert_eq!(copy.share(0, &unit, BLOCK, BLOCK).await, Ok(true));
        assert_eq!(unit.begin_sanitize(false).await, Err(UnitError::NotNow));
        copy.unmap(0, BLOCK).await.unwrap();
        unit.begin_sanitize(false).await.unwrap();
        // And while it goes on nobody begins to share.
        let new = NewSnapshot { name: name("s"), read_only: true };
        assert_eq!(errno(world.manager.create_snapshot(&name("v"), new).await), "EBUSY");
        assert_eq!(copy.share(0, &unit, BLOCK, BLOCK).await, Err(UnitError::Sanitizing));
        let message = world.manager.message("create_snap 77 1").await;
        assert_eq!(errno(message), "EBUSY");
        drop(unit);
        assert_eq!(errno(world.manager.delete_volume(&name("v")).await), "EBUSY");
        let unit = world.login("v").await.unwrap();
        unit.sanitized().await.unwrap();
        world.sound().await;
    });
}

/// Requests that were let in end before anything is erased.
#[test]
fn what_is_under_way_ends_first() {
    run(3, Disks::new(BLOCKS + 20), async |world| {
        let unit = full_volume(&world).await;
        let (writer, w) = (unit.clone(), world.clone());
        let writing = world.runtime.spawner.spawn(async move {
            let mut buf = w.runtime.bufs.zeroed(1 << 20).unwrap();
            buf.fill(9);
            writer.write(0, Bufs::from_iter([buf]), false).await
        });
        platform::task::yield_now().await;
        unit.begin_sanitize(false).await.unwrap();
        writing.await.unwrap().unwrap();
        unit.sanitized().await.unwrap();
        assert_eq!(world.contents("v").await, vec![0; (BLOCKS * BLOCK) as usize]);
    });
}

/// A machine that is turned off in order with a full volume `v`.
fn prepared(seed: u64) -> Disks {
    let disks = Disks::new(BLOCKS + 20);
    run(seed, disks.clone(), async move |world| {
        drop(full_volume(&world).await);
        world.manager.service.close().await;
    });
    disks
}

#[test]
fn a_power_cut_interrupts_it_and_the_next_start_goes_on() {
    let base = prepared(4);
    let before = base.fork();
    let (journal, begun) = run(5, base, async |world| {
        let unit = world.login("v").await.unwrap();
        unit.begin_sanitize(true).await.unwrap();
        let begun = world.journal.len();
        unit.sanitized().await.unwrap();
        (world.journal.clone(), begun)
    });
    let random = Seeded::from_u64(6);
    let (mut resumed, all) = (0, journal.len());
    for n in 0..8 {
        let events = begun + (all - begun) * n / 7;
        let cut = before.after(&journal, events, &random);
        let data = cut.clone();
        resumed += run(7, cut, async move |world| {
            let unit = world.login("v").await.unwrap();
            let interrupted = unit.sanitize().is_some();
            assert!(interrupted || events == all, "after {events} of {begun} to {all} events");
            if interrupted {
                assert_eq!(write(&world, &unit).await, Err(UnitError::Sanitizing));
                unit.sanitized().await.unwrap();
            }
            assert_eq!(world.contents("v").await, vec![0; (BLOCKS * BLOCK) as usize]);
            assert!((bytes_with(&data, 1) as u64) < BLOCK, "after {events} of {all} events");
            world.sound().await;
            usize::from(interrupted)
        });
    }
    assert!(resumed >= 6, "{resumed}");
}

/// Who holds a metadata snapshot keeps blocks from being erased.
#[test]
fn one_that_failed_is_known_after_a_restart() {
    let disks = prepared(8);
    let cut = run(9, disks, async |world| {
        let unit = world.login("v").await.unwrap();
        unit.begin_sanitize(true).await.unwrap();
        assert_eq!(errno(world.manager.reserve_metadata_snapshot().await), "EBUSY");
        world.manager.service.served().unwrap().pool.commit().await.unwrap();
        (world.disks.fork(), unit.sanitize())
    });
    assert!(matches!(cut.1, Some(Sanitize::Running { .. })));
    // Another host takes one before the restart.
    let (meta, data) = (cut.0.meta.clone(), cut.0.data.clone());
    simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(12)), 32 << 20, async move |runtime| {
        let (meta, data) = (Disk::new(meta), Disk::new(data));
        let pool = Pool::open(&runtime, meta, data, PoolOptions::default()).await.unwrap();
        pool.reserve_metadata_snap().await.unwrap();
        pool.close().await.unwrap();
    });
    let failed = Some(Sanitize::Failed { unrestricted: true });
    let first = cut.0.clone();
    run(10, first, async move |world| {
        let unit = world.login("v").await.unwrap();
        assert_eq!(unit.sanitized().await, Err(UnitError::Failed));
        assert_eq!((unit.sanitize(), unit.begin_sanitize(true).await), (failed, Err(UnitError::NotNow)));
        assert_eq!(unit.sanitize(), failed, "what was refused changes nothing");
        let new = NewSnapshot { name: name("s"), read_only: true };
        assert_eq!(errno(world.manager.create_snapshot(&name("v"), new).await), "EBUSY");
        world.manager.service.close().await;
    });
    for leaves in [true, false] {
        run(11, cut.0.fork(), async move |world| {
            let unit = world.login("v").await.unwrap();
            assert_eq!((unit.sanitize(), unit.sanitized().await), (failed, Err(UnitError::Failed)));
            if leaves {
                unit.leave_sanitize().await.unwrap();
                assert_eq!((unit.sanitize(), write(&world, &unit).await), (None, Ok(())));
                return;
            }
            world.manager.release_metadata_snapshot().await.unwrap();
            unit.begin_sanitize(false).await.unwrap();
            unit.sanitized().await.unwrap();
            assert_eq!(world.contents("v").await, vec![0; (BLOCKS * BLOCK) as usize]);
            world.sound().await;
        });
    }
}

#[test]
fn one_that_failed_ends_with_its_volume() {
    run(13, Disks::new(100), async |world| {
        for by_message in [false, true] {
            let old = world.create("v", 4).await.id;
            world.fill("v", 0, BLOCK, 1).await;
            let unit = world.login("v").await.unwrap();
            unit.begin_sanitize(false).await.unwrap();
            world.journal.fail(|disk, op, _| disk == 1 && matches!(op, Op::Write { .. }));
            assert_eq!(unit.sanitized().await, Err(UnitError::Failed));
            world.journal.fail_no_more();
            drop(unit);
            match by_message {
                true => drop(world.manager.message(&format!("delete {old}")).await.unwrap()),
                false => world.manager.delete_volume(&name("v")).await.unwrap(),
            }
            assert_eq!(world.create("w", 4).await.id, old);
            let unit = world.login("w").await.unwrap();
            assert_eq!((unit.sanitize(), write(&world, &unit).await), (None, Ok(())));
            drop(unit);
            world.manager.delete_volume(&name("w")).await.unwrap();
        }
    });
}
