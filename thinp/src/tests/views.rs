//! Views of an open pool: its status, and its modes.

use super::disks::Gate;
use super::{BLOCK, id, run};
use crate::control::Mode;
use crate::{Pool, PoolOptions};
use platform::block::{Class, Op, Request};
use platform::mem::MemDisk;
use platform::time::Duration;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

#[test]
fn views_are_shown_and_give_way_before_the_pool_is_out_of_metadata() {
    run(1, MemDisk::new(400 * 8), MemDisk::new(256 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 20 * BLOCK, 0x11).await.unwrap();
        let old = pool.open_view("old", None).await.unwrap();
        world.runtime.timers.sleep(Duration::from_secs(5)).await;
        world.write(&thin, 20 * BLOCK, BLOCK, 0x11).await.unwrap();
        let young = pool.open_view("young", None).await.unwrap();
        let shown = pool.views();
        let holders: Vec<(String, u64)> =
            shown.views.into_iter().map(|view| (view.holder, view.age.as_secs())).collect();
        assert_eq!(holders.len(), 2);
        assert!(holders[0].0 == "old" && holders[0].1 >= 5 && holders[1].0 == "young" && holders[1].1 < 5);
        // The leaf, what leads to it, and space maps.
        let used = pool.status().metadata_used_blocks;
        assert!(shown.held_back_blocks > 3);
        drop(old);
        assert_eq!(pool.views().held_back_blocks, 0);
        assert_eq!(pool.status().metadata_used_blocks, used - shown.held_back_blocks);
        // Each takes a metadata block for good, and some more until its commit.
        let mut devices = 1;
        while pool.create_thin(id(devices)).await.is_ok() {
            devices += 1;
        }
        assert_eq!(pool.status().mode, Mode::OutOfMetadataSpace);
        assert!(young.is_ended() && pool.views().views.is_empty());
        pool.delete(id(1)).await.unwrap();
        pool.delete(id(2)).await.unwrap();
        assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::Write, false));
    });
}

/// Reads that hang keep what they read: who holds it is told for as long.
#[test]
fn a_view_that_was_ended_is_shown_until_its_reads_have_ended() {
    run(2, MemDisk::new(400 * 8), MemDisk::new(256 * BLOCK), async move |world| {
        let reads = |request: &Request| request.op == Op::Read && request.flow.class == Class::Background;
        let gate = Gate::new(world.meta.clone(), reads);
        let pool = Pool::open(&world.runtime, world.slow(gate.clone()), world.data_disk(), PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let (spawner, timers) = (world.runtime.spawner.clone(), world.runtime.timers.clone());
        let view = Rc::new(pool.open_view("hung", None).await.unwrap());
        let read = view.clone();
        let reading = spawner.spawn(async move { read.devices().await.map(|_| ()) });
        timers.sleep(Duration::from_secs(5)).await;
        assert_eq!(gate.held.borrow().len(), 1);
        let maker = pool.clone();
        let making = spawner.spawn(async move {
            let mut devices = 1;
            while maker.create_thin(id(devices)).await.is_ok() {
                devices += 1;
            }
        });
        timers.sleep(Duration::from_secs(7)).await;
        let shown = pool.views();
        let told: Vec<_> = shown.views.iter().map(|view| (view.holder.as_str(), view.held_back_blocks)).collect();
        assert_eq!(told, [("hung", shown.held_back_blocks)]);
        let (view_shown, seconds) = (&shown.views[0], |since: Duration| since.as_secs());
        assert_eq!((seconds(view_shown.age), view_shown.ending.map(seconds)), (12, Some(6)));
        assert!(shown.held_back_blocks > 0 && view.is_ended());
        drop(view);
        gate.open();
        making.await.unwrap();
        assert_eq!(reading.await.unwrap(), Err(pdata::Error::Ended.into()));
        assert_eq!((pool.views().views, pool.views().held_back_blocks), (Vec::new(), 0));
        assert_eq!(pool.status().mode, Mode::OutOfMetadataSpace);
    });
}

/// The commit before it is one as any other: what it frees is free, and the data disk is told.
#[test]
fn what_was_freed_before_a_view_is_passed_down() {
    run(4, MemDisk::new(400 * 8), MemDisk::new(64 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        thin.flush().await.unwrap();
        thin.discard(0, 3 * BLOCK).await.unwrap();
        assert_eq!(world.data.discarded_sectors(), 0);
        let _view = pool.open_view("test", None).await.unwrap();
        world.runtime.timers.sleep(Duration::from_millis(10)).await;
        assert_eq!(world.data.discarded_sectors(), 3 * BLOCK);
    });
}

/// Who knows what a view showed knows by the commit's number whether another one would show the same.
#[test]
fn a_view_is_of_the_last_commit() {
    run(3, MemDisk::new(400 * 8), MemDisk::new(64 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        let (first, same) = (pool.open_view("a", None).await.unwrap(), pool.open_view("b", None).await.unwrap());
        assert_eq!((pool.committed_state(), first.commit()), (Some(first.commit()), same.commit()));
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        assert_eq!(pool.committed_state(), None);
        thin.flush().await.unwrap();
        let next = pool.committed_state().unwrap();
        assert!(next > first.commit());
        world.write(&thin, BLOCK, BLOCK, 0x11).await.unwrap();
        let view = pool.open_view("c", None).await.unwrap();
        assert!(view.commit() > next && pool.committed_state() == Some(view.commit()));
        let limits = world.data_disk().limits();
        assert_eq!(pool.data_transfer_bytes_max(), limits.transfer_sectors_max.max(1).saturating_mul(512));
    });
}
