//! Checking an open pool, and clearing needs_check.

use super::disks::Gate;
use super::{BLOCK, World, id, run, run_blank};
use crate::control::{Errno, Mode};
use crate::{Error, Features, Pool, PoolOptions, Thin};
use platform::block::{Disk, IoError, Op};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::yield_now;
use platform::time::Duration;
use std::cell::Cell;
use std::rc::Rc;

/// The data disk, whose flushes fail while this is set.
fn breaking_data(world: &World) -> (Rc<Cell<bool>>, Fault) {
    let broken = Rc::new(Cell::new(false));
    let rule = broken.clone();
    let data = Fault::new(Rc::new(world.data.clone()), move |request| {
        let fails = rule.get() && request.op == Op::Flush;
        fails.then_some(IoError::Device { op: request.op, sector: request.sector })
    });
    (broken, data)
}

/// A pool whose second commit failed: device 0 has one mapping on disk and one that was lost. The disk works again.
async fn failed_pool(world: &World) -> (Pool, Thin) {
    let (broken, data) = breaking_data(world);
    let data = Disk::new(data);
    let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
    pool.create_thin(id(0)).await.unwrap();
    let thin = pool.open_thin(id(0), None).await.unwrap();
    world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
    thin.flush().await.unwrap();
    world.write(&thin, BLOCK, BLOCK, 0x22).await.unwrap();
    broken.set(true);
    thin.flush().await.unwrap_err();
    broken.set(false);
    assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::ReadOnly, true));
    (pool, thin)
}

/// What it leaves behind.
fn disks_that_need_a_check(seed: u64) -> (MemDisk, MemDisk) {
    run_blank(seed, 32, async |world| {
        failed_pool(&world).await;
        world.cut()
    })
}

/// The pool takes writes and messages.
async fn use_it(world: &World, pool: &Pool, new: u64) {
    assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::Write, false));
    let thin = pool.open_thin(id(0), None).await.unwrap();
    world.expect(&thin, 0, BLOCK, 0x11).await;
    world.write(&thin, BLOCK, BLOCK, 0x33).await.unwrap();
    thin.flush().await.unwrap();
    pool.create_thin(id(new)).await.unwrap();
}

#[test]
fn needs_check_is_cleared_by_request_after_a_clean_check() {
    let disks = disks_that_need_a_check(1);
    let disks = run(2, disks.0, disks.1, async |world| {
        let pool = world.open().await;
        assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::ReadOnly, true));
        let seen = pool.events();
        let view = pool.open_view("test", None).await.unwrap();
        let checked = pool.check_view(&view).await.unwrap();
        drop(view);
        assert!(checked.is_sound() && checked.mappings == 1, "{checked:?}");
        assert!(pool.status().needs_check, "a check alone clears nothing");
        assert_eq!(pool.clear_needs_check().await.unwrap(), checked);
        assert!(pool.events() > seen);
        use_it(&world, &pool, 5).await;
        assert_eq!(pool.clear_needs_check().await.unwrap_err(), Error::NoCheckNeeded);
        world.cut()
    });
    run(3, disks.0, disks.1, async |world| use_it(&world, &world.open().await, 6).await);
}

#[test]
fn damage_keeps_the_flag() {
    let (meta, data) = disks_that_need_a_check(4);
    // The root of the mappings (reference 1.1).
    let root = u64::from_le_bytes(meta.peek(320, 8).try_into().unwrap());
    meta.poke(root * 4096 + 2000, &[0xff]);
    run(5, meta, data, async |world| {
        let pool = world.open().await;
        let report = pool.check_view(&pool.open_view("test", None).await.unwrap()).await.unwrap();
        assert!(!report.is_sound());
        let error = pool.clear_needs_check().await.unwrap_err();
        assert_eq!(error, Error::NotSound { problems: report.problems.len() as u64 });
        assert_eq!(error.errno(), Errno::EILSEQ);
        assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::ReadOnly, true));
    });
}

/// A check names the first thousand, and counts the others.
#[test]
fn all_problems_are_counted_that_keep_the_flag() {
    run(11, MemDisk::new(2048 * 8), MemDisk::new(32 * BLOCK), async |world| {
        let pool = world.open().await;
        pool.0.metadata.hog(300).await.unwrap();
        pool.0.metadata.set_needs_check().await.unwrap();
        let report = pool.check_view(&pool.open_view("test", None).await.unwrap()).await.unwrap();
        assert!(report.problems.len() == 1000 && report.untold > 300, "{}", report.untold);
        let problems = 1000 + report.untold;
        assert_eq!(pool.clear_needs_check().await, Err(Error::NotSound { problems }));
    });
}

/// The simulator's seed 107049293955: a slow write to a block whose mapping was lost came into the block when another device had it.
#[test]
fn what_began_before_a_transaction_was_lost_ends_before_blocks_are_given_away() {
    for left in [false, true] {
        run_blank(8, 32, async move |world| {
            let (broken, data) = breaking_data(&world);
            let gate = Gate::new(data, |request| request.op == Op::Write { fua: false } && request.sectors == 3);
            let data = Disk::new(gate.clone());
            let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
            pool.create_thin(id(0)).await.unwrap();
            pool.create_thin(id(1)).await.unwrap();
            let thin = pool.open_thin(id(0), None).await.unwrap();
            world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
            let (theirs, slow) = (world.clone(), thin.clone());
            let slow = world.runtime.spawner.spawn(async move {
                // Who does not wait for the disk has the write under way nevertheless.
                let patience = Duration::from_millis(if left { 2 } else { 1000 });
                let ended = theirs.runtime.timers.timeout(patience, theirs.write(&slow, 1, 3, 0x22)).await;
                assert_eq!(ended.is_err(), left);
            });
            broken.set(true);
            yield_now().await;
            pool.commit().await.unwrap_err();
            broken.set(false);
            drop(thin);
            let clearing = pool.clone();
            let cleared = world.runtime.spawner.spawn(async move { clearing.clear_needs_check().await.map(drop) });
            world.runtime.timers.sleep(Duration::from_millis(5)).await;
            assert_eq!(
                (gate.held.borrow().len(), pool.status().mode),
                (1, Mode::ReadOnly),
                "a block may be given away"
            );
            gate.open();
            slow.await.unwrap();
            cleared.await.unwrap().unwrap();
            let other = pool.open_thin(id(1), None).await.unwrap();
            world.write(&other, 0, BLOCK, 0x33).await.unwrap();
            world.expect(&other, 0, BLOCK, 0x33).await;
        });
    }
}

#[test]
fn a_device_that_the_disk_is_at_work_for_is_not_deleted() {
    run_blank(9, 32, async |world| {
        let gate =
            Gate::new(world.data.clone(), |request| request.op == Op::Write { fua: false } && request.sectors == 3);
        let data = Disk::new(gate.clone());
        let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        let write = world.write(&thin, 1, 3, 0x22);
        assert!(world.runtime.timers.timeout(Duration::from_millis(1), write).await.is_err());
        drop(thin);
        assert_eq!(pool.delete(id(0)).await, Err(Error::Active(id(0))));
        gate.open();
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        pool.delete(id(0)).await.unwrap();
    });
}

#[test]
fn a_pool_that_was_opened_read_only_stays_so() {
    let disks = disks_that_need_a_check(6);
    run(7, disks.0, disks.1, async |world| {
        let features = Features { read_only: true, ..Features::default() };
        let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
        assert!(pool.check_view(&pool.open_view("test", None).await.unwrap()).await.unwrap().is_sound());
        assert_eq!(pool.clear_needs_check().await, Err(Error::MessageRefused(Mode::ReadOnly)));
        assert!(pool.status().needs_check);
    });
}

#[test]
fn the_pool_that_failed_goes_on_after_its_check() {
    run_blank(8, 32, async |world| {
        let (pool, thin) = failed_pool(&world).await;
        pool.clear_needs_check().await.unwrap();
        assert_eq!(thin.flush().await, Err(Error::ChangesLost(id(0))), "what was lost stays told");
        drop(thin);
        use_it(&world, &pool, 5).await;
    });
}
