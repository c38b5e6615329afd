//! Discards (reference 7.6).

use super::disks::Limited;
use super::{BLOCK, id, run_blank};
use crate::control::{DiscardPolicy, Errno};
use crate::{Features, Pool, PoolOptions};
use platform::block::Limits;

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
        world.runtime.timers.sleep(core::time::Duration::from_secs(2)).await;
        assert_eq!(world.data.discarded_sectors(), 0);
        let snap = pool.open_thin(id(1), None).await.unwrap();
        world.expect(&snap, 0, 4 * BLOCK, 0x11).await;
        // The verdict by time is still "shared", but nobody else refers to the blocks.
        snap.discard(0, 3 * BLOCK).await.unwrap();
        pool.commit().await.unwrap();
        world.runtime.timers.sleep(core::time::Duration::from_secs(2)).await;
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
        world.runtime.timers.sleep(core::time::Duration::from_millis(10)).await;
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
        world.runtime.timers.sleep(core::time::Duration::from_secs(2)).await;
        assert_eq!((world.data.discarded_sectors(), pool.status().data_used_blocks), (0, 0));
    });
    run_blank(7, 64, async |world| {
        let change = |limits: &mut Limits| limits.discard_sectors_max = BLOCK - 1;
        let data = world.slow(Limited { inner: world.data.clone(), change });
        let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
        assert_eq!(pool.status().discard, DiscardPolicy::NoPassdown);
    });
}
