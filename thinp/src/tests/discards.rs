//! Discards (reference 7.6).

use super::disks::{Gate, Limited};
use super::{BLOCK, World, id, run, run_blank};
use crate::control::{DiscardPolicy, Errno, Mode};
use crate::metadata::{DataBlock, DataRun, MetadataError};
use crate::{Features, Pool, PoolOptions};
use core::ops::Range;
use platform::block::{Bufs, Disk, Limits, Op};
use platform::mem::MemDisk;
use platform::time::Duration;
use std::vec::Vec;

fn with(features: Features) -> PoolOptions {
    PoolOptions { features, ..PoolOptions::default() }
}

#[test]
fn trap_26_only_whole_blocks_are_unmapped() {
    run_blank(1, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        thin.discard(1, BLOCK - 1).await.unwrap();
        thin.discard(1, 2 * BLOCK - 2).await.unwrap();
        thin.discard(0, 0).await.unwrap();
        world.expect(&thin, 0, 4 * BLOCK, 0x11).await;
        thin.discard(1, 3 * BLOCK).await.unwrap();
        world.expect(&thin, 0, BLOCK, 0x11).await;
        world.expect(&thin, BLOCK, 2 * BLOCK, 0).await;
        world.expect(&thin, 3 * BLOCK, BLOCK, 0x11).await;
        assert_eq!(pool.committed_status().await.unwrap().data_used_blocks, 2);
    });
}

#[test]
fn a_discard_of_everything_is_done_in_steps() {
    run_blank(2, 2200, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        for block in 0..2100 {
            world.write(&thin, block * 3 * BLOCK, 1, 0x11).await.unwrap();
        }
        assert_eq!(pool.status().data_used_blocks, 2100);
        thin.discard(0, u64::MAX).await.unwrap();
        pool.commit().await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 0);
        world.expect(&thin, 0, BLOCK, 0).await;
    });
}

/// Trap 27: the disk is told of blocks that nothing refers to any more, and of no others.
#[test]
fn trap_27_shared_blocks_are_not_passed_down() {
    run_blank(3, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        thin.discard(0, 4 * BLOCK).await.unwrap();
        pool.commit().await.unwrap();
        world.runtime.timers.sleep(Duration::from_secs(2)).await;
        assert_eq!(world.data.discarded_sectors(), 0);
        let snap = pool.open_thin(id(1), None).await.unwrap();
        world.expect(&snap, 0, 4 * BLOCK, 0x11).await;
        // The verdict by time is still "shared", but nobody else refers to the blocks.
        snap.discard(0, 3 * BLOCK).await.unwrap();
        pool.commit().await.unwrap();
        world.runtime.timers.sleep(Duration::from_secs(2)).await;
        assert_eq!(world.data.discarded_sectors(), 3 * BLOCK);
        world.expect(&snap, 3 * BLOCK, BLOCK, 0x11).await;
    });
}

/// The mapping comes back with the power: what it points to must still be there.
#[test]
fn the_disk_is_told_when_the_commit_is_durable() {
    run_blank(4, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        thin.discard(0, 4 * BLOCK).await.unwrap();
        assert_eq!(world.data.discarded_sectors(), 0);
        thin.flush().await.unwrap();
        world.runtime.timers.sleep(Duration::from_millis(10)).await;
        assert_eq!(world.data.discarded_sectors(), 4 * BLOCK);
        assert_eq!(pool.status().data_used_blocks, 0);
    });
}

#[test]
fn features_and_the_disk_decide_what_becomes_of_discards() {
    run_blank(5, 64, async |world| {
        let features = Features { ignore_discard: true, ..Features::default() };
        let (pool, thin) = world.pool_with_device(with(features)).await;
        assert_eq!(pool.status().discard, DiscardPolicy::Ignore);
        assert_eq!(thin.discard(0, BLOCK).await.unwrap_err().errno(), Errno::EOPNOTSUPP);
    });
    run_blank(6, 64, async |world| {
        let features = Features { no_discard_passdown: true, ..Features::default() };
        let (pool, thin) = world.pool_with_device(with(features)).await;
        assert_eq!(pool.status().discard, DiscardPolicy::NoPassdown);
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.discard(0, BLOCK).await.unwrap();
        thin.flush().await.unwrap();
        world.runtime.timers.sleep(Duration::from_secs(2)).await;
        assert_eq!((world.data.discarded_sectors(), pool.status().data_used_blocks), (0, 0));
    });
    run_blank(7, 64, async |world| {
        let changes: [(fn(&mut Limits), _); 2] = [
            (|limits| limits.discard_sectors_max = BLOCK - 1, DiscardPolicy::NoPassdown),
            (|limits| limits.discard_sectors_max = BLOCK, DiscardPolicy::Passdown),
        ];
        for (change, policy) in changes {
            let data = world.slow(Limited { inner: world.data.clone(), change });
            let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
            assert_eq!(pool.status().discard, policy);
            pool.close().await.unwrap();
        }
    });
}

/// What is under way on a block reaches it before somebody else can be given it.
#[test]
fn a_discard_waits_for_io_under_way_on_its_blocks() {
    run_blank(8, 64, async |world| {
        // Writes of just three sectors are never answered.
        let gate = Gate::new(world.data.clone(), |r| matches!(r.op, Op::Write { .. }) && r.sectors == 3);
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        let mut buf = world.runtime.bufs.zeroed(3 * 512).unwrap();
        buf.fill(0x22);
        // Not even who gives up waiting makes the write under way go away.
        let write = thin.write(5, Bufs::from_iter([buf]), false);
        assert!(world.runtime.timers.timeout(Duration::from_secs(1), write).await.is_err());
        assert_eq!(gate.held.borrow().len(), 1);
        let discard = thin.discard(0, BLOCK);
        assert!(world.runtime.timers.timeout(Duration::from_secs(5), discard).await.is_err());
        assert_eq!(pool.status().data_used_blocks, 1);
        gate.open();
        world.runtime.timers.sleep(Duration::from_secs(2)).await;
        assert_eq!(pool.status().data_used_blocks, 0);
    });
}

#[test]
fn a_block_is_not_handed_out_while_the_disk_discards_it() {
    run_blank(9, 8, async |world| {
        let gate = Gate::new(world.data.clone(), |request| request.op == Op::Discard);
        let features = Features { error_if_no_space: true, ..Features::default() };
        let pool =
            Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), with(features)).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, 8 * BLOCK, 0x11).await.unwrap();
        thin.discard(0, BLOCK).await.unwrap();
        thin.flush().await.unwrap();
        let writing = world.write(&thin, 9 * BLOCK, 1, 0x22);
        assert!(world.runtime.timers.timeout(Duration::from_secs(5), writing).await.is_err());
        gate.open();
        world.write(&thin, 9 * BLOCK, 1, 0x22).await.unwrap();
    });
}

/// Its commits free the blocks, too, and nobody else commits before somebody wants one.
#[test]
fn what_was_discarded_before_a_metadata_snapshot_is_reclaimed_after_it() {
    run_blank(10, 8, async |world| {
        let features = Features { error_if_no_space: true, ..Features::default() };
        let (pool, thin) = world.pool_with_device(with(features)).await;
        world.write(&thin, 0, 8 * BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        thin.discard(0, BLOCK).await.unwrap();
        pool.reserve_metadata_snap().await.unwrap();
        world.write(&thin, 9 * BLOCK, 1, 0x22).await.unwrap();
        pool.release_metadata_snap().await.unwrap();
        thin.discard(BLOCK, BLOCK).await.unwrap();
        pool.reserve_metadata_snap().await.unwrap();
        world.write(&thin, 10 * BLOCK, 1, 0x22).await.unwrap();
    });
}

/// They are held, and so nobody can have them, until a commit.
#[test]
fn very_many_freed_runs_do_not_wait_for_somebody_elses_commit() {
    const MOST: u64 = 16_384;
    run_blank(11, 64, async |world| {
        let pool = world.open().await;
        let free = async |runs: Range<u64>| {
            let runs: Vec<_> = runs.map(|run| DataRun { begin: DataBlock(2 * run), blocks: 1 }).collect();
            pool.0.change_freeing(async || Ok(runs.clone()), |runs| runs).await.unwrap();
            pool.0.bound_passdown().await.unwrap();
            pool.0.passdown.is_empty()
        };
        assert!(!free(0..1).await && !free(1..MOST).await, "a few are passed down with the next commit");
        assert!(free(MOST..MOST + 1).await);
    });
}

/// Held is what is being discarded, too: who frees more than the data disk discards waits for it.
#[test]
fn a_data_disk_that_discards_slowly_is_waited_for() {
    const MOST: u64 = 16_384;
    run_blank(12, 64, async |world| {
        let gate = Gate::new(world.data.clone(), |request| request.op == Op::Discard);
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
        let pool = pool.await.unwrap();
        let free = async |first: u64| {
            let runs: Vec<_> = (0..MOST + 1).map(|n| DataRun { begin: DataBlock(first + 2 * n), blocks: 1 }).collect();
            pool.0.change_freeing(async || Ok(runs.clone()), |runs| runs).await.unwrap();
            pool.0.bound_passdown().await.unwrap();
        };
        let timeout = |waits| world.runtime.timers.timeout(Duration::from_secs(100), waits);
        assert!(timeout(free(0)).await.is_err());
        // Nobody else does.
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        gate.open();
        free(1 << 20).await;
    });
}

/// However long they are.
#[test]
fn what_is_held_is_kept_by_runs() {
    run_blank(14, 64, async |world| {
        let pool = world.open().await;
        let metadata = &pool.0.metadata;
        let runs = [(0, 7), (8, 1 << 40)].map(|(begin, blocks)| DataRun { begin: DataBlock(begin), blocks });
        runs.iter().for_each(|run| metadata.hold_data(*run));
        assert_eq!(metadata.reserve_data_block().await, Ok(DataBlock(7)));
        assert_eq!(metadata.reserve_data_block().await, Err(MetadataError::NoDataSpace));
        metadata.release_data(runs[0]);
        for block in 0..7 {
            assert_eq!(metadata.reserve_data_block().await, Ok(DataBlock(block)));
        }
        assert_eq!(metadata.reserve_data_block().await, Err(MetadataError::NoDataSpace));
    });
}

/// Whoever has the disks next may write at once.
#[test]
fn a_closed_pool_does_not_discard() {
    run_blank(13, 8, async |world| {
        let gate = Gate::new(world.data.clone(), |request| request.op == Op::Discard);
        let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.write(&thin, 0, 8 * BLOCK, 0x11).await.unwrap();
        for block in [1, 3, 5] {
            thin.discard(block * BLOCK, BLOCK).await.unwrap();
        }
        let closing = pool.clone();
        let mut closed = world.runtime.spawner.spawn(async move { closing.close().await });
        assert!(world.runtime.timers.timeout(Duration::from_secs(10), &mut closed).await.is_err());
        gate.open();
        closed.await.unwrap().unwrap();
        assert_eq!(world.data.discarded_sectors(), 3 * BLOCK);
        world.runtime.timers.sleep(Duration::from_secs(20)).await;
        assert_eq!(world.data.discarded_sectors(), 3 * BLOCK);
    });
}

/// Blocks of a full pool, all of one device.
const FULL_BLOCKS: u64 = 600;

/// Short of metadata a discard commits on the way: who waits for space then is not given a block of which the disk is told
/// only later. How much metadata is left decides whether it commits, and whether the writes are refused for want of it.
#[test]
fn what_a_commit_on_the_way_frees_is_handed_out_when_the_disk_was_told() {
    let mut given = 0;
    for left_blocks in [66, 68, 70] {
        let full = run(left_blocks, MemDisk::new(512 * 8), MemDisk::new(FULL_BLOCKS * BLOCK), async move |world| {
            let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
            for block in 0..FULL_BLOCKS {
                world.write(&thin, block * BLOCK, 1, 0x11).await.unwrap();
            }
            pool.0.metadata.hog(left_blocks).await.unwrap();
            pool.close().await.unwrap();
            (world.meta.contents(), world.data.contents())
        });
        for seed in 100..106 {
            given += run(seed, full.0.fork(), full.1.fork(), discard_while_writes_wait);
        }
    }
    std::println!("{given} writes were given what a commit on the way freed");
    assert!(given > 60, "{given}");
}

/// Discards everything while writes wait; returns how many of them went if there was a commit on the way.
async fn discard_while_writes_wait(world: World) -> u64 {
    let gate = Gate::new(world.data.clone(), |request| request.op == Op::Flush);
    let pool = Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
    let pool = pool.await.unwrap();
    let thin = pool.open_thin(id(0), None).await.unwrap();
    let (spawner, timers) = (world.runtime.spawner.clone(), world.runtime.timers.clone());
    let write = |block: u64| {
        let (world, thin) = (world.clone(), thin.clone());
        spawner.spawn(async move { world.write(&thin, block * BLOCK, 1, 0x22).await.map(|()| block) })
    };
    let mut writes: Vec<_> = (FULL_BLOCKS..FULL_BLOCKS + 4).map(write).collect();
    timers.sleep(Duration::from_millis(10)).await;
    assert_eq!((pool.status().mode, gate.held.borrow().len()), (Mode::OutOfDataSpace, 0));
    let discarded = thin.clone();
    let discard = spawner.spawn(async move { discarded.discard(0, FULL_BLOCKS * BLOCK).await });
    timers.sleep(Duration::from_millis(10)).await;
    assert_eq!(gate.held.borrow().len(), 1);
    let on_the_way = pool.status().data_used_blocks > 0;
    writes.push(write(FULL_BLOCKS + 4));
    timers.sleep(Duration::from_millis(10)).await;
    gate.open();
    discard.await.unwrap().unwrap();
    let mut given = Vec::new();
    for write in writes {
        given.extend(write.await.unwrap());
    }
    thin.flush().await.unwrap();
    timers.sleep(Duration::from_secs(2)).await;
    for block in &given {
        world.expect(&thin, block * BLOCK, 1, 0x22).await;
    }
    if on_the_way { given.len() as u64 } else { 0 }
}
