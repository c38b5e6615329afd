//! Two hosts on one pool: who finds the other's changes stops at once; nothing acknowledged is lost to the second.

use super::{BLOCK, World, id, run, run_blank};
use crate::control::{BlockStatus, Mode};
use crate::metadata::check;
use crate::{Error, Features, Pool, PoolOptions, Thin};
use pdata::checksum::crc32c_raw;
use platform::block::{BlockDevice, Disk};
use platform::block::{IoError, Op};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use platform::time::Duration;
use std::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

/// XORed with a superblock's checksum (reference 1.2).
const SUPERBLOCK_SALT: u32 = 160774;

/// A second is what a detection may take.
const SECOND: Duration = Duration::from_secs(1);

fn bytes(disk: &MemDisk) -> Vec<u8> {
    disk.peek(0, disk.limits().size_sectors as usize * 512)
}

fn both(world: &World) -> (Vec<u8>, Vec<u8>) {
    (bytes(&world.meta.contents()), bytes(&world.data.contents()))
}

/// What a commit of Linux does to block 0: another transaction id, and a checksum that fits.
async fn change_from_outside(world: &World) {
    let disk = Disk::new(world.meta.clone());
    let (result, mut block) = disk.read(0, world.runtime.bufs.alloc(4096).unwrap()).await;
    result.unwrap();
    block[48] = block[48].wrapping_add(1);
    let checksum = crc32c_raw(&block[4..]) ^ SUPERBLOCK_SALT;
    block[..4].copy_from_slice(&checksum.to_le_bytes());
    disk.write(0, block, true).await.0.unwrap();
}

/// The first owner says so in every way and changes nothing any more.
async fn is_out(world: &World, pool: &Pool, thin: &Thin) {
    let before = both(world);
    assert!(pool.is_taken_over() && pool.status().mode == Mode::Fail);
    for result in [
        world.write(thin, 0, 8, 0xEE).await,
        world.write(thin, 7 * BLOCK, 8, 0xEE).await,
        world.read(thin, 0, 8).await.map(|_| ()),
        thin.flush().await,
        thin.discard(0, BLOCK).await,
        pool.create_thin(id(9)).await,
        pool.message("create_thin 9").await.map(|_| ()),
        pool.commit().await,
        pool.grow().await,
    ] {
        assert_eq!(result, Err(Error::TakenOver));
    }
    assert_eq!(Error::TakenOver.answer().block_status, BlockStatus::Failed);
    pool.close().await.unwrap();
    assert!(both(world) == before, "something was written after the pool was taken over");
}

async fn is_sound(world: &World) {
    let disk = Disk::new(world.meta.clone());
    let report = check::check(&world.runtime, &disk, 1 << 20).await.unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn writes_in_place_stop_within_a_second() {
    run_blank(1, 64, async |world| {
        let (first, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        let second = world.open().await;
        second.create_thin(id(1)).await.unwrap();
        let (taken_at, mut written) = (world.runtime.timers.now(), 0);
        // Blocks of its own need no commit: only the look at block 0 can tell.
        while world.write(&thin, 0, 8, 0x22).await.is_ok() {
            written += 1;
            world.runtime.timers.sleep(Duration::from_millis(1)).await;
        }
        assert!(written > 0 && world.runtime.timers.now() <= taken_at + SECOND, "after {written} writes");
        is_out(&world, &first, &thin).await;
        // What was acknowledged before is the second owner's now.
        let theirs = second.open_thin(id(0), None).await.unwrap();
        world.expect(&theirs, 8, 4 * BLOCK - 8, 0x11).await;
        world.write(&theirs, 5 * BLOCK, BLOCK, 0x33).await.unwrap();
        theirs.flush().await.unwrap();
        is_sound(&world).await;
        assert!(!second.is_taken_over());
    });
}

/// The looks go on for as long as a device is active, and not without one.
#[test]
fn block_0_is_looked_at_while_a_device_is_active() {
    run_blank(12, 64, async |world| {
        let looks = Rc::new(Cell::new(0));
        let counted = looks.clone();
        let meta = Disk::new(Fault::new(Rc::new(world.meta.clone()), move |request| {
            counted.set(counted.get() + u32::from(request.op == Op::Read && request.sector == 0));
            None
        }));
        let pool = Pool::open(&world.runtime, meta, world.data_disk(), PoolOptions::default()).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let in_ten_seconds = async || {
            world.runtime.timers.sleep(2 * SECOND).await;
            let before = looks.get();
            world.runtime.timers.sleep(10 * SECOND).await;
            looks.get() - before
        };
        for _ in 0..2 {
            assert_eq!(in_ten_seconds().await, 0);
            let _thin = pool.open_thin(id(0), None).await.unwrap();
            assert!((10..=12).contains(&in_ten_seconds().await));
        }
    });
}

#[test]
fn a_commit_finds_the_other_before_it_overwrites_anything_of_it() {
    run_blank(2, 64, async |world| {
        let (first, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        let second = world.open().await;
        second.create_thin(id(1)).await.unwrap();
        let theirs = bytes(&world.meta.contents());
        world.write(&thin, BLOCK, BLOCK, 0x22).await.unwrap();
        assert_eq!(thin.flush().await, Err(Error::TakenOver));
        // The blocks that it took next were free here, too.
        assert!(bytes(&world.meta.contents()) == theirs, "metadata was written over the other's");
        is_sound(&world).await;
        is_out(&world, &first, &thin).await;
    });
}

#[test]
fn linux_is_noticed_too_and_an_abort_writes_no_flag_over_it() {
    for abort in [false, true] {
        run_blank(3, 64, async move |world| {
            let fails = Rc::new(Cell::new(false));
            let failing = fails.clone();
            let meta = Fault::new(Rc::new(world.meta.clone()), move |request| {
                let hit = failing.get() && matches!(request.op, Op::Write { .. });
                hit.then_some(IoError::Device { op: request.op, sector: request.sector })
            });
            let options = PoolOptions::default();
            let pool = Pool::open(&world.runtime, Disk::new(meta), world.data_disk(), options).await.unwrap();
            pool.create_thin(id(0)).await.unwrap();
            let thin = pool.open_thin(id(0), None).await.unwrap();
            world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
            thin.flush().await.unwrap();
            change_from_outside(&world).await;
            fails.set(abort);
            let theirs = world.meta.contents().peek(0, 4096);
            world.write(&thin, BLOCK, BLOCK, 0x22).await.unwrap();
            assert_eq!(thin.flush().await, Err(Error::TakenOver), "abort {abort}");
            fails.set(false);
            assert_eq!(world.meta.contents().peek(0, 4096), theirs, "no needs_check over the other's superblock");
            is_out(&world, &pool, &thin).await;
        });
    }
}

#[test]
fn a_commit_looks_again_before_the_superblock() {
    run_blank(10, 64, async |world| {
        let (armed, outside) = (Rc::new(Cell::new(false)), world.clone());
        let comes = armed.clone();
        // The other comes when all but the superblock is written.
        let meta = Fault::new(Rc::new(world.meta.clone()), move |request| {
            if request.op == Op::Flush && comes.replace(false) {
                block_on_ready(change_from_outside(&outside));
            }
            None
        });
        let options = PoolOptions::default();
        let pool = Pool::open(&world.runtime, Disk::new(meta), world.data_disk(), options).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        world.write(&thin, BLOCK, BLOCK, 0x22).await.unwrap();
        armed.set(true);
        assert_eq!(thin.flush().await, Err(Error::TakenOver));
        assert!(!armed.get(), "nothing was flushed");
        is_out(&world, &pool, &thin).await;
    });
}

/// The blocks that a view shows are kept by its own pool only.
#[test]
fn views_of_a_pool_that_was_taken_over_show_nothing() {
    for noticed in [false, true] {
        run_blank(9, 64, async move |world| {
            let (first, thin) = world.pool_with_device(PoolOptions::default()).await;
            world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
            let view = first.open_view("test", None).await.unwrap();
            assert!(first.check_view(&view).await.unwrap().problems.is_empty());
            let second = world.open().await;
            for device in 1..20 {
                second.create_thin(id(device)).await.unwrap();
            }
            if noticed {
                world.runtime.timers.sleep(SECOND).await;
                assert!(view.is_ended() && first.views().views.is_empty());
            }
            assert_eq!(first.check_view(&view).await, Err(Error::TakenOver), "noticed {noticed}");
            assert!(view.is_ended() && first.space(&view).await == Err(Error::TakenOver));
            assert_eq!(first.freed_by(&view, &[id(0)]).await, Err(Error::TakenOver));
            assert_eq!(first.open_view("another", None).await.err(), Some(Error::TakenOver));
            is_out(&world, &first, &thin).await;
            is_sound(&world).await;
        });
    }
}

/// Neither what was changed in memory when the other was noticed, nor what had waited for its turn.
#[test]
fn a_change_that_is_under_way_when_the_pool_is_taken_over_is_not_taken_for_made() {
    for made in [false, true] {
        run_blank(13, 64, async move |world| {
            let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
            let change = async || {
                assert_eq!(pool.0.taken_over(), Error::TakenOver);
                if made { Ok(()) } else { pool.0.metadata.create_thin(id(1)).await }
            };
            assert_eq!(pool.0.change(change).await, Err(Error::TakenOver), "made {made}");
            is_out(&world, &pool, &thin).await;
        });
    }
}

/// It writes nothing, so it is in nobody's way.
#[test]
fn a_pool_that_is_open_read_only_is_not_taken_over() {
    let (meta, data) = run_blank(14, 64, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    });
    run(15, meta, data, async |world| {
        let features = Features { read_only: true, ..Features::default() };
        let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
        let view = pool.open_view("test", None).await.unwrap();
        change_from_outside(&world).await;
        assert!(pool.check_view(&view).await.unwrap().is_sound());
        assert!(!pool.is_taken_over() && pool.status().mode == Mode::ReadOnly);
    });
}

#[test]
fn an_idle_pool_with_active_devices_only_reads() {
    run_blank(4, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        let before = both(&world);
        world.runtime.timers.sleep(Duration::from_secs(60)).await;
        assert!(both(&world) == before && pool.status().mode == Mode::Write);
    });
}

#[test]
fn opening_read_only_or_in_need_of_a_check_writes_nothing() {
    let (meta, data) = run_blank(5, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        drop(thin);
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    });
    for needs_check in [false, true] {
        let meta = meta.fork();
        if needs_check {
            let mut block = meta.peek(0, 4096);
            block[4] |= 1;
            let checksum = crc32c_raw(&block[4..]) ^ SUPERBLOCK_SALT;
            block[..4].copy_from_slice(&checksum.to_le_bytes());
            meta.poke(0, &block);
        }
        run(6, meta, data.fork(), async move |world| {
            let before = both(&world);
            let features = Features { read_only: !needs_check, ..Features::default() };
            let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
            let thin = pool.open_thin(id(0), None).await.unwrap();
            world.expect(&thin, 0, BLOCK, 0x11).await;
            world.runtime.timers.sleep(Duration::from_secs(5)).await;
            drop(thin);
            pool.close().await.unwrap();
            assert!(both(&world) == before, "needs_check {needs_check}: something was written");
        });
    }
}

/// A power cut is no other host: the same instance goes on.
#[test]
fn ones_own_crash_is_not_elsewhere() {
    let (meta, data) = run_blank(7, 64, async |world| {
        let (_pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        world.write(&thin, BLOCK, BLOCK, 0x22).await.unwrap();
        world.cut()
    });
    run(8, meta, data, async |world| {
        let pool = world.open().await;
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.expect(&thin, 0, BLOCK, 0x11).await;
        for round in 0..20 {
            world.write(&thin, (2 + round) * BLOCK, BLOCK, 0x33).await.unwrap();
            thin.flush().await.unwrap();
            world.runtime.timers.sleep(Duration::from_millis(300)).await;
        }
        assert!(!pool.is_taken_over());
    });
}
