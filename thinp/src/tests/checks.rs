//! Checking an open pool, and clearing needs_check.

use super::{BLOCK, World, id, run, run_blank};
use crate::control::{Errno, Mode};
use crate::{Error, Features, Pool, PoolOptions, Thin};
use platform::block::{Disk, IoError, Op};
use platform::layers::Fault;
use platform::mem::MemDisk;
use std::cell::Cell;
use std::rc::Rc;

/// A pool whose second commit failed: device 0 has one mapping on disk and one that was lost. The disk works again.
async fn failed_pool(world: &World) -> (Pool, Thin) {
    let broken = Rc::new(Cell::new(false));
    let rule = broken.clone();
    let data = Disk::new(Fault::new(Rc::new(world.data.clone()), move |request| {
        let fails = rule.get() && request.op == Op::Flush;
        fails.then_some(IoError::Device { op: request.op, sector: request.sector })
    }));
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
