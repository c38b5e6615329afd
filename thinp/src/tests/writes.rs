//! Provisioning, sharing, flushing (reference 7.6, 9.1).

use super::disks::{Gate, Limited, Log, logged};
use super::{BLOCK, World, id, run, run_blank};
use crate::control::ThinStatus;
use crate::{Error, Features, Pool, PoolOptions, Thin};
use platform::block::{Bufs, Disk, IoError, Limits, Op};
use platform::buf::BufPool;
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::yield_now;
use platform::time::Duration;
use std::cell::Cell;
use std::rc::Rc;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

/// A pool over logged disks, with device 0.
async fn logged_pool(world: &World, log: &Log) -> (Pool, Thin) {
    let meta = Disk::new(logged("meta", world.meta.clone(), log));
    let data = Disk::new(logged("data", world.data.clone(), log));
    let pool = Pool::open(&world.runtime, meta, data, PoolOptions::default()).await.unwrap();
    pool.create_thin(id(0)).await.unwrap();
    let thin = pool.open_thin(id(0), None).await.unwrap();
    log.borrow_mut().clear();
    (pool, thin)
}

fn count(log: &Log, disk: &str, what: impl Fn(&Op) -> bool) -> usize {
    log.borrow().iter().filter(|(name, op, _)| *name == disk && what(op)).count()
}

/// Superblock writes: commits.
fn commits(log: &Log) -> usize {
    log.borrow().iter().filter(|(name, op, at)| *name == "meta" && matches!(op, Op::Write { .. }) && *at == 0).count()
}

/// A data disk whose middle is full of old data, with or without a command that zeroes.
fn used_data(blocks: u64) -> MemDisk {
    let data = MemDisk::new((blocks + 64) * BLOCK);
    data.poke(1 << 20, &vec![0x77; ((blocks + 64) * BLOCK * 512 - (2 << 20)) as usize]);
    data
}

#[test]
fn a_new_block_is_zero_around_what_was_written() {
    let cannot_zero = |limits: &mut Limits| limits.write_zeroes_sectors_max = 0;
    for (change, seed) in [(Some(cannot_zero), 1), (None, 2)] {
        run(seed, MemDisk::new(4096), used_data(64), async move |world| {
            let data = match change {
                Some(change) => world.slow(Limited { inner: world.data.clone(), change }),
                None => world.data_disk(),
            };
            let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
            pool.create_thin(id(0)).await.unwrap();
            let thin = pool.open_thin(id(0), None).await.unwrap();
            for block in 0..40 {
                let at = block * BLOCK + block * 3;
                world.write(&thin, at, 5, 0x11).await.unwrap();
                world.expect(&thin, block * BLOCK, block * 3, 0).await;
                world.expect(&thin, at, 5, 0x11).await;
                world.expect(&thin, at + 5, BLOCK - block * 3 - 5, 0).await;
            }
        });
    }
}

#[test]
fn skip_block_zeroing_leaves_what_was_there() {
    run(3, MemDisk::new(4096), used_data(64), async |world| {
        let features = Features { skip_block_zeroing: true, ..Features::default() };
        let (_pool, thin) = world.pool_with_device(PoolOptions { features, ..PoolOptions::default() }).await;
        for block in 0..40 {
            world.write(&thin, block * BLOCK, 1, 0x11).await.unwrap();
        }
        world.expect(&thin, 39 * BLOCK, 1, 0x11).await;
        world.expect(&thin, 39 * BLOCK + 1, BLOCK - 1, 0x77).await;
    });
}

#[test]
fn a_block_written_whole_is_not_zeroed_first() {
    run_blank(4, 32, async |world| {
        let log = Log::default();
        let (_pool, thin) = logged_pool(&world, &log).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        assert_eq!(count(&log, "data", |op| matches!(op, Op::WriteZeroes | Op::Read)), 0);
        assert_eq!(count(&log, "data", |op| matches!(op, Op::Write { .. })), 1);
        world.write(&thin, BLOCK + 1, 1, 0x11).await.unwrap();
        assert_eq!(count(&log, "data", |op| *op == Op::WriteZeroes), 2, "before and behind");
    });
}

#[test]
fn trap_28_unprovisioned_reads_do_not_allocate() {
    run_blank(5, 32, async |world| {
        let log = Log::default();
        let (pool, thin) = logged_pool(&world, &log).await;
        world.expect(&thin, 0, 1000 * BLOCK / 10, 0).await;
        world.expect(&thin, u64::MAX / 2, 8, 0).await;
        assert_eq!(pool.status().data_used_blocks, 0);
        assert!(log.borrow().is_empty());
        assert_eq!(thin.status().await.unwrap().to_string(), "0 -");
    });
}

/// Design decision 7, and trap 15: what is not there yet is neither mapped nor counted.
#[test]
fn trap_15_a_mapping_enters_when_its_data_is_there() {
    let disks = run_blank(6, 32, async |world| {
        let data = Gate::new(world.data.clone(), |request| matches!(request.op, Op::Write { .. }));
        let pool = Pool::open(&world.runtime, world.meta_disk(), world.slow(data.clone()), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        let (writer, writing) = (thin.clone(), world.clone());
        world.runtime.spawner.spawn(async move { writing.write(&writer, 3, 4, 0x11).await });
        world.runtime.timers.sleep(Duration::from_secs(3)).await;
        assert!(!data.held.borrow().is_empty());
        assert_eq!(thin.status().await.unwrap().to_string(), "0 -");
        pool.create_thin(id(1)).await.unwrap();
        world.cut()
    });
    run(7, disks.0, disks.1, async |world| {
        let pool = world.open().await;
        assert_eq!(pool.status().data_used_blocks, 0);
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.expect(&thin, 0, BLOCK, 0).await;
    });
}

#[test]
fn a_snapshot_keeps_what_was_there() {
    run_blank(8, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 2 * BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        let snap = pool.open_thin(id(1), None).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 2);
        world.write(&thin, 10, 5, 0x22).await.unwrap();
        world.write(&snap, BLOCK, BLOCK, 0x33).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 4);
        world.expect(&thin, 0, 10, 0x11).await;
        world.expect(&thin, 10, 5, 0x22).await;
        world.expect(&thin, 15, 2 * BLOCK - 15, 0x11).await;
        world.expect(&snap, 0, BLOCK, 0x11).await;
        world.expect(&snap, BLOCK, BLOCK, 0x33).await;
    });
}

/// Trap 28: the old block may be somebody else's as soon as it is no longer ours.
#[test]
fn trap_28_breaking_sharing_waits_for_reads_of_the_old_block() {
    run_blank(22, 32, async |world| {
        // Reads of one sector are not answered.
        let gate = Gate::new(world.data.clone(), |request| request.op == Op::Read && request.sectors == 1);
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        let (reader, w) = (thin.clone(), world.clone());
        let reading = world.runtime.spawner.spawn(async move { w.read(&reader, 0, 1).await });
        world.runtime.timers.sleep(Duration::from_secs(1)).await;
        // A whole block: nothing needs to be copied.
        let (writer, w) = (thin.clone(), world.clone());
        let writing = world.runtime.spawner.spawn(async move { w.write(&writer, 0, BLOCK, 0x22).await });
        let mut writing = core::pin::pin!(writing);
        assert!(world.runtime.timers.timeout(Duration::from_secs(5), &mut writing).await.is_err());
        gate.open();
        reading.await.unwrap().unwrap();
        writing.await.unwrap().unwrap();
    });
}

/// What is under way when a snapshot is taken must not reach a block that the snapshot has, too.
#[test]
fn trap_28_a_snapshot_waits_for_writes_under_way() {
    run_blank(31, 32, async |world| {
        // Writes of just three sectors are not answered.
        let gate = Gate::new(world.data.clone(), |r| matches!(r.op, Op::Write { .. }) && r.sectors == 3);
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        let (writer, w) = (thin.clone(), world.clone());
        let writing = world.runtime.spawner.spawn(async move { w.write(&writer, 5, 3, 0x22).await });
        world.runtime.timers.sleep(Duration::from_secs(1)).await;
        let snapshot = pool.create_snap(id(1), id(0));
        assert!(world.runtime.timers.timeout(Duration::from_secs(5), snapshot).await.is_err());
        assert_eq!(pool.devices().await.unwrap().len(), 1);
        gate.open();
        writing.await.unwrap().unwrap();
        world.runtime.timers.sleep(Duration::from_secs(1)).await;
        assert_eq!(pool.devices().await.unwrap().len(), 2);
    });
}

/// Traps 18 and 19: who never took part in a snapshot copies nothing, nor does who has copied since.
#[test]
fn trap_18_only_blocks_older_than_the_last_snapshot_are_copied() {
    run_blank(9, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.create_thin(id(5)).await.unwrap();
        let other = pool.open_thin(id(5), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        world.write(&other, 0, BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        world.write(&other, 0, 1, 0x22).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 2, "the other device is not shared");
        world.write(&thin, 0, 1, 0x22).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 3);
        world.write(&thin, 0, 1, 0x33).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 3, "it was copied already");
        let snap = pool.open_thin(id(1), None).await.unwrap();
        world.write(&snap, 0, 1, 0x44).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 3, "copied, and the old block freed");
        world.write(&snap, 5 * BLOCK, 1, 0x55).await.unwrap();
        world.write(&snap, 5 * BLOCK, 1, 0x66).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 4, "born after the snapshot");
    });
}

#[test]
fn trap_24_a_flush_commits_only_what_changed() {
    run_blank(10, 32, async |world| {
        let log = Log::default();
        let (pool, thin) = logged_pool(&world, &log).await;
        world.write(&thin, 0, 1, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        assert_eq!(commits(&log), 1);
        log.borrow_mut().clear();
        world.write(&thin, 5, 1, 0x22).await.unwrap();
        thin.flush().await.unwrap();
        assert_eq!(count(&log, "meta", |_| true), 0);
        assert_eq!(log.borrow().last().map(|(name, op, _)| (*name, *op)), Some(("data", Op::Flush)));
        // Another device's change is not this one's.
        pool.create_thin(id(1)).await.unwrap();
        let other = pool.open_thin(id(1), None).await.unwrap();
        world.write(&other, 0, 1, 0x33).await.unwrap();
        log.borrow_mut().clear();
        thin.flush().await.unwrap();
        assert_eq!(count(&log, "meta", |_| true), 0);
    });
}

#[test]
fn trap_24_fua_filling_a_new_block_completes_after_the_commit() {
    run_blank(11, 32, async |world| {
        let log = Log::default();
        let (_pool, thin) = logged_pool(&world, &log).await;
        world.write_bytes(&thin, 0, &[1; 512], true).await.unwrap();
        assert_eq!(commits(&log), 1);
        log.borrow_mut().clear();
        world.write_bytes(&thin, 1, &[1; 512], true).await.unwrap();
        assert_eq!(*log.borrow(), [("data", Op::Write { fua: true }, 1)], "the block is mapped durably");
        log.borrow_mut().clear();
        world.write(&thin, 1, 1, 0x11).await.unwrap();
        assert_eq!(*log.borrow(), [("data", Op::Write { fua: false }, 1)], "nobody asked for more");
        world.write(&thin, BLOCK, 1, 0x11).await.unwrap();
        world.write_bytes(&thin, 1, &[1; 512], true).await.unwrap();
        assert_eq!(count(&log, "data", |op| *op == Op::Write { fua: true }), 0, "the commit makes it durable");
        assert_eq!(commits(&log), 1);
    });
}

/// The simulator's seed 107053883109: of two blocks that a FUA write goes to, it maps the first; the second, which another write
/// maps meanwhile, is overwritten in place, and during that the transaction is lost.
#[test]
fn trap_24_a_fua_write_that_a_lost_transaction_takes_is_not_acknowledged() {
    run_blank(18, 32, async |world| {
        let fails = Rc::new(Cell::new(false));
        let failing = fails.clone();
        let fault = Fault::new(Rc::new(world.data.clone()), move |request| {
            let fails = request.op == Op::Flush && failing.get();
            fails.then_some(IoError::Device { op: request.op, sector: request.sector })
        });
        let first = Gate::new(fault, |request| request.op == Op::Write { fua: false } && request.sectors == 3);
        let second = Gate::new(first.clone(), |request| request.op == Op::Write { fua: true });
        let (meta, data) = (Disk::new(world.meta.clone()), Disk::new(second.clone()));
        let pool = Pool::open(&world.runtime, meta, data, PoolOptions::default()).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        pool.commit().await.unwrap();
        let write = |sector, sectors: usize, fua| {
            let (world, thin) = (world.clone(), thin.clone());
            let bytes = vec![0x11; sectors * 512];
            world.clone().runtime.spawner.spawn(async move { world.write_bytes(&thin, sector, &bytes, fua).await })
        };
        let settled = || world.runtime.timers.sleep(Duration::from_millis(1));
        let other = write(BLOCK, 3, false);
        settled().await;
        let fua = write(BLOCK - 2, 7, true);
        settled().await;
        assert!(thin.mapped_run(0, 1).await.unwrap().0, "block 0 is mapped");
        assert_eq!(first.held.borrow().len(), 1);
        first.open();
        other.await.unwrap().unwrap();
        settled().await;
        assert_eq!(second.held.borrow().len(), 1, "block 1 is written in place");
        fails.set(true);
        pool.commit().await.unwrap_err();
        second.open();
        assert_eq!(fua.await.unwrap(), Err(Error::ChangesLost(id(0))));
    });
}

/// Trap 25, and the order of reference 5.2.
#[test]
fn trap_25_the_data_flush_comes_before_the_superblock() {
    run_blank(12, 32, async |world| {
        let log = Log::default();
        let (_pool, thin) = logged_pool(&world, &log).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        let log = log.borrow();
        let place = |name, op, at| log.iter().rposition(|entry| *entry == (name, op, at));
        let superblock = place("meta", Op::Write { fua: false }, 0).unwrap();
        let written = log.iter().position(|(name, op, _)| *name == "data" && matches!(op, Op::Write { .. })).unwrap();
        let data_flush = log.iter().position(|entry| *entry == ("data", Op::Flush, 0)).unwrap();
        let meta_flushes: Vec<usize> =
            log.iter().enumerate().filter(|(_, e)| **e == ("meta", Op::Flush, 0)).map(|(n, _)| n).collect();
        assert!(written < data_flush && data_flush < superblock);
        assert_eq!(meta_flushes.len(), 2);
        let between = &log[meta_flushes[0] + 1..superblock];
        // Before it is overwritten it is read: it must still be this pool's.
        let read = |op: &Op, at: u64| *op == Op::Read && at == 0;
        assert!(between.iter().all(|(name, op, at)| *name == "data" || read(op, *at)), "alone, behind a flush");
        assert_eq!(meta_flushes[1], superblock + 1);
    });
}

#[test]
fn one_commit_serves_all_who_wait() {
    run_blank(13, 32, async |world| {
        let log = Log::default();
        let (_pool, thin) = logged_pool(&world, &log).await;
        for block in 0..8 {
            world.write(&thin, block * BLOCK, 1, 0x11).await.unwrap();
        }
        let flushes: Vec<_> = (0..8)
            .map(|_| {
                let thin = thin.clone();
                world.runtime.spawner.spawn(async move { thin.flush().await })
            })
            .collect();
        for flush in flushes {
            flush.await.unwrap().unwrap();
        }
        assert_eq!(commits(&log), 1);
    });
}

#[test]
fn changes_are_committed_within_a_second_and_an_idle_pool_writes_nothing() {
    run_blank(14, 32, async |world| {
        let log = Log::default();
        let (_pool, thin) = logged_pool(&world, &log).await;
        world.write(&thin, 0, 1, 0x11).await.unwrap();
        world.runtime.timers.sleep(Duration::from_millis(1010)).await;
        assert_eq!(commits(&log), 1);
        log.borrow_mut().clear();
        world.runtime.timers.sleep(Duration::from_secs(100)).await;
        // It is only looked whether the pool is still this host's.
        assert!(log.borrow().iter().all(|entry| *entry == ("meta", Op::Read, 0)), "{:?}", log.borrow());
        // The first change after a pause is committed almost at once.
        world.write(&thin, BLOCK, 1, 0x11).await.unwrap();
        world.runtime.timers.sleep(Duration::from_millis(10)).await;
        assert_eq!(commits(&log), 1);
    });
}

#[test]
fn a_failed_write_leaves_its_block_unmapped_and_unleaked() {
    run_blank(15, 32, async |world| {
        let fails = Rc::new(Cell::new(true));
        let failing = fails.clone();
        let data = Fault::new(Rc::new(world.data.clone()), move |request| {
            let write = matches!(request.op, Op::Write { .. });
            (write && failing.get()).then_some(IoError::Device { op: request.op, sector: request.sector })
        });
        let pool =
            Pool::open(&world.runtime, world.meta_disk(), world.slow(data), PoolOptions::default()).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        for _ in 0..100 {
            let error = world.write(&thin, 7, 1, 0x11).await.unwrap_err();
            assert!(matches!(error, Error::Io { sector: 7, .. }), "{error}");
        }
        assert_eq!(pool.status().data_used_blocks, 0);
        fails.set(false);
        world.write(&thin, 7, 1, 0x11).await.unwrap();
        world.expect(&thin, 0, 7, 0).await;
    });
}

#[test]
fn an_external_origin_shows_through_and_is_copied() {
    run_blank(16, 32, async |world| {
        let pool = world.open().await;
        pool.create_thin(id(0)).await.unwrap();
        // Two blocks and a half.
        let origin = MemDisk::new(2 * BLOCK + 64);
        origin.poke(0, &vec![0x99; (2 * BLOCK as usize + 64) * 512]);
        let thin = pool.open_thin(id(0), Some(world.slow(origin.clone()))).await.unwrap();
        world.expect(&thin, 0, 2 * BLOCK + 64, 0x99).await;
        world.expect(&thin, 2 * BLOCK + 64, 2 * BLOCK, 0).await;
        world.write(&thin, 5, 2, 0x11).await.unwrap();
        world.write(&thin, 2 * BLOCK + 3, 2, 0x22).await.unwrap();
        world.write(&thin, 9 * BLOCK + 3, 2, 0x33).await.unwrap();
        world.expect(&thin, 0, 5, 0x99).await;
        world.expect(&thin, 5, 2, 0x11).await;
        world.expect(&thin, 7, 2 * BLOCK - 7 + 3, 0x99).await;
        world.expect(&thin, 2 * BLOCK + 3, 2, 0x22).await;
        world.expect(&thin, 2 * BLOCK + 5, 59, 0x99).await;
        world.expect(&thin, 2 * BLOCK + 64, 64, 0).await;
        world.expect(&thin, 9 * BLOCK, 3, 0).await;
        // Zeroes are data where the origin shows through.
        world.write_zeroes_and_check(&thin, BLOCK, BLOCK).await;
        thin.discard(BLOCK, BLOCK).await.unwrap();
        world.expect(&thin, BLOCK, BLOCK, 0x99).await;
        assert!(origin.peek(0, 4096).iter().all(|byte| *byte == 0x99), "nobody writes to it");
    });
}

impl World {
    async fn write_zeroes_and_check(&self, thin: &Thin, sector: u64, sectors: u64) {
        thin.write_zeroes(sector, sectors).await.unwrap();
        self.expect(thin, sector, sectors, 0).await;
    }
}

#[test]
fn zeroes_keep_blocks_mapped_and_provision_nothing() {
    run_blank(17, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 3 * BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        world.write_zeroes_and_check(&thin, 10, 2 * BLOCK).await;
        world.expect(&thin, 0, 10, 0x11).await;
        world.expect(&thin, 2 * BLOCK + 10, BLOCK - 10, 0x11).await;
        let snap = pool.open_thin(id(1), None).await.unwrap();
        world.expect(&snap, 0, 3 * BLOCK, 0x11).await;
        world.write_zeroes_and_check(&thin, 1 << 30, 1 << 8).await;
        thin.write_zeroes(0, 1 << 60).await.unwrap();
        assert_eq!(thin.mapped_run(0, u64::MAX).await, Ok((true, 3 * BLOCK)));
        assert_eq!(thin.mapped_run(2 * BLOCK + 1, 5).await, Ok((true, 5)));
        assert_eq!(thin.mapped_run(3 * BLOCK + 1, 50 * BLOCK).await, Ok((false, 50 * BLOCK)));
        let status = ThinStatus::Mapped { mapped_sectors: 3 * BLOCK, highest_mapped_sector: Some(3 * BLOCK - 1) };
        assert_eq!(thin.status().await, Ok(status));
    });
}

/// A run is of the device's sectors, wherever its blocks lie on the data disk.
#[test]
fn a_mapped_run_ends_where_nothing_is_mapped() {
    run_blank(21, 32, async |world| {
        let (_, thin) = world.pool_with_device(PoolOptions::default()).await;
        for block in [0, 2, 1, 3, 6, 5] {
            world.write(&thin, block * BLOCK, 1, 0x11).await.unwrap();
        }
        assert_eq!(thin.mapped_run(0, u64::MAX).await, Ok((true, 4 * BLOCK)));
        assert_eq!(thin.mapped_run(BLOCK + 1, BLOCK).await, Ok((true, BLOCK)));
        assert_eq!(thin.mapped_run(4 * BLOCK + 7, u64::MAX >> 1).await, Ok((false, BLOCK - 7)));
        assert_eq!(thin.mapped_run(5 * BLOCK + 1, 9 * BLOCK).await, Ok((true, 2 * BLOCK - 1)));
    });
}

#[test]
fn small_limits_and_short_memory_only_take_longer() {
    run_blank(18, 40, async |mut world| {
        world.runtime.bufs = BufPool::new(1200 << 10);
        let change = |limits: &mut Limits| {
            limits.transfer_sectors_max = 16;
            limits.segments_max = 2;
            limits.write_zeroes_sectors_max = 0;
        };
        let data = world.slow(Limited { inner: world.data.clone(), change });
        let options = PoolOptions { cache_blocks: 64, ..PoolOptions::default() };
        let pool = Pool::open(&world.runtime, world.meta_disk(), data, options).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        // Payloads take all buffers that there are, and then blocks must be copied.
        let payloads: Vec<Bufs> = (0..)
            .map_while(|_| world.runtime.bufs.zeroed(4096).ok())
            .map(|mut buf| {
                buf.fill(0x22);
                Bufs::from_iter([buf])
            })
            .collect();
        assert!(payloads.len() > 32);
        let writes: Vec<_> = payloads
            .into_iter()
            .enumerate()
            .map(|(n, bufs)| {
                let (thin, at) = (thin.clone(), (n as u64 % 16) * BLOCK + 3);
                world.runtime.spawner.spawn(async move { thin.write(at, bufs, false).await })
            })
            .collect();
        for write in writes {
            write.await.unwrap().unwrap();
        }
        world.expect(&thin, 3, 8, 0x22).await;
        world.expect(&thin, 11, BLOCK - 11, 0x11).await;
    });
}

#[test]
fn who_goes_away_leaves_no_block_half_written() {
    run_blank(19, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        for n in 0..20 {
            let sector = n * BLOCK + 5;
            let timers = &world.runtime.timers;
            // Some are dropped before anything happened, some later.
            let _ = timers.timeout(Duration::from_micros(n * 20), world.write(&thin, sector, 4, 0x11)).await;
        }
        let mut buf = world.runtime.bufs.zeroed(4096).unwrap();
        buf.fill(0x22);
        drop(thin.write(0, Bufs::from_iter([buf]), false));
        world.runtime.timers.sleep(Duration::from_millis(10)).await;
        for n in 0..20 {
            let bytes = world.read(&thin, n * BLOCK, BLOCK).await.unwrap();
            let written = bytes.iter().filter(|byte| **byte == 0x11).count();
            assert!(written == 0 || written == 4 * 512, "{written} bytes of block {n}");
            assert!(bytes.iter().all(|byte| [0, 0x11].contains(byte)));
        }
        drop(thin);
        yield_now().await;
        pool.delete(id(0)).await.unwrap();
        pool.commit().await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 0);
    });
}

#[test]
fn malformed_requests_are_refused() {
    run_blank(20, 32, async |world| {
        let (_pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        let buf = world.runtime.bufs.zeroed(100).unwrap();
        let (result, buf) = thin.read(3, buf).await;
        assert_eq!((result, buf.len()), (Err(Error::Malformed { sector: 3 }), 100));
        assert_eq!(thin.write(3, Bufs::from_iter([buf]), false).await, Err(Error::Malformed { sector: 3 }));
        let beyond = Error::OutOfRange { sector: u64::MAX, sectors: 2 };
        assert_eq!(world.write(&thin, u64::MAX, 2, 0).await, Err(beyond));
        assert_eq!(thin.discard(u64::MAX, 2).await, Err(beyond));
        assert_eq!(thin.write(0, Bufs::new(), false).await, Ok(()));
    });
}
