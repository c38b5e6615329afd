//! Short of metadata blocks: what is tried again after a commit, what is refused and how, what is undone.

use super::{BLOCK, id, run_blank};
use crate::control::Mode;
use crate::metadata::{MetadataError, VirtualBlock};
use crate::{Change, Error, Pool, PoolOptions, Records};
use std::string::ToString;
use std::vec::Vec;

const OUT: Mode = Mode::OutOfMetadataSpace;

/// Takes metadata blocks until there is room just for a change that leaves as many as there were: one is for commits.
async fn leave_barely_room(pool: &Pool) {
    let (_, mut hogged) = take_room(pool).await;
    pool.0.metadata.let_go(hogged.split_off(hogged.len() - 2)).await.unwrap();
    assert!(pool.0.metadata.has_room());
}

/// Takes metadata blocks until there is no room for a change any more; tells how many are left, and which were taken.
async fn take_room(pool: &Pool) -> (u64, Vec<u64>) {
    let (mut left_blocks, mut hogged) = (200, Vec::new());
    while pool.0.metadata.has_room() {
        left_blocks -= 1;
        hogged.extend(pool.0.metadata.hog(left_blocks).await.unwrap());
    }
    (left_blocks, hogged)
}

/// Maps a block of device 0, which is open: by the metadata alone, so that nobody commits. It copies what it changes,
/// and there is no room any more before the next commit.
async fn map_and_leave_no_room(pool: &Pool) {
    let metadata = &pool.0.metadata;
    let data = metadata.reserve_data_block().await.unwrap();
    metadata.insert(id(0), VirtualBlock(7), data).await.unwrap();
    assert!(!metadata.has_room() && metadata.any_changes());
}

#[test]
fn a_change_that_finds_no_room_is_made_after_a_commit() {
    run_blank(1, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        leave_barely_room(&pool).await;
        map_and_leave_no_room(&pool).await;
        pool.create_thin(id(1)).await.unwrap();
        assert_eq!(thin.status().await.unwrap().to_string(), "128 1023");
    });
    run_blank(2, 64, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        let records = Records::create(&pool).await.unwrap();
        leave_barely_room(&pool).await;
        map_and_leave_no_room(&pool).await;
        records.apply(&[Change::CreateThin(id(1))], &[(0, b"one".to_vec())]).await.unwrap();
        assert_eq!((records.read(0).await.unwrap(), pool.devices().await.unwrap().len()), (b"one".to_vec(), 3));
    });
}

/// What takes metadata is refused for the mode. What frees some is not, and is told what it lacks.
#[test]
fn what_there_is_no_room_for_is_refused() {
    run_blank(3, 64, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.create_thin(id(1)).await.unwrap();
        let hogged = pool.0.metadata.hog(5).await.unwrap();
        assert_eq!(pool.status().mode, Mode::Write, "nobody has noticed yet");
        assert_eq!(pool.create_thin(id(2)).await, Err(Error::MessageRefused(OUT)));
        assert_eq!((pool.status().mode, pool.status().needs_check), (OUT, false));
        assert_eq!(pool.set_transaction_id(0, 1).await, Err(Error::MessageRefused(OUT)), "it would find room");
        assert_eq!(pool.delete(id(1)).await, Err(MetadataError::NoMetadataSpace.into()));
        pool.0.metadata.let_go(hogged).await.unwrap();
        pool.delete(id(1)).await.unwrap();
        assert_eq!((pool.status().mode, pool.status().transaction_id), (Mode::Write, 0));
    });
}

#[test]
fn a_delete_that_makes_too_little_room_does_not_end_the_mode() {
    run_blank(4, 64, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.create_thin(id(1)).await.unwrap();
        pool.create_thin(id(2)).await.unwrap();
        let (left_blocks, _) = take_room(&pool).await;
        pool.0.metadata.hog(left_blocks - 10).await.unwrap();
        assert_eq!(pool.create_thin(id(3)).await, Err(Error::MessageRefused(OUT)));
        pool.delete(id(1)).await.unwrap();
        let seen = pool.events();
        pool.delete(id(2)).await.unwrap();
        assert_eq!((pool.status().mode, pool.events()), (OUT, seen));
    });
}

/// What might have to be undone is in no transaction with others.
#[test]
fn a_tight_change_is_committed_at_once() {
    run_blank(5, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        assert_eq!(pool.committed_state(), None);
        leave_barely_room(&pool).await;
        world.write(&thin, 7 * BLOCK, BLOCK, 0x11).await.unwrap();
        assert!(pool.committed_state().is_some());
    });
}

/// Nobody loses anything by a write that took more than there is.
#[test]
fn a_write_that_is_undone_is_a_write_that_was_refused() {
    // A full leaf: one more makes two of it.
    const MAPPED: u64 = 252;
    run_blank(6, 300, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 1, 0x11).await.unwrap();
        for block in 1..MAPPED {
            let data = pool.0.metadata.reserve_data_block().await.unwrap();
            pool.0.metadata.insert(id(0), VirtualBlock(block), data).await.unwrap();
        }
        pool.commit().await.unwrap();
        leave_barely_room(&pool).await;
        assert_eq!(world.write(&thin, MAPPED * BLOCK, 1, 0x22).await, Err(Error::Refused(OUT)));
        assert_eq!((pool.status().mode, pool.status().needs_check), (OUT, false));
        thin.flush().await.unwrap();
        world.expect(&thin, 0, 1, 0x11).await;
        assert_eq!(pool.status().data_used_blocks, MAPPED);
    });
}

#[test]
fn changes_before_the_one_that_is_refused_are_undone() {
    run_blank(7, 64, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        let records = Records::create(&pool).await.unwrap();
        leave_barely_room(&pool).await;
        let changes: Vec<_> = (1..100).map(|n| Change::CreateThin(id(n))).collect();
        let refused = records.apply(&changes, &[(0, b"many".to_vec())]).await;
        assert_eq!(refused, Err(MetadataError::NoMetadataSpace.into()));
        pool.commit().await.unwrap();
        assert_eq!((records.read(0).await.unwrap(), pool.devices().await.unwrap().len()), (b"".to_vec(), 2));
        records.apply(&changes[..1], &[(0, b"one".to_vec())]).await.unwrap();
    });
}

/// Records that there is no room to change are as they were, and so is the pool.
#[test]
fn a_page_that_is_refused_costs_the_pool_nothing() {
    run_blank(8, 64, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        let records = Records::create(&pool).await.unwrap();
        pool.create_thin(id(1)).await.unwrap();
        let hogged = pool.0.metadata.hog(5).await.unwrap();
        for changes in [&[][..], &[Change::Delete(id(1))]] {
            let refused = records.apply(changes, &[(0, b"one".to_vec())]).await;
            assert_eq!(refused, Err(MetadataError::NoMetadataSpace.into()));
            assert!(!pool.status().needs_check);
        }
        pool.0.metadata.let_go(hogged).await.unwrap();
        records.apply(&[Change::Delete(id(1))], &[(0, b"one".to_vec())]).await.unwrap();
        assert_eq!(records.read(0).await.unwrap(), b"one");
    });
}
