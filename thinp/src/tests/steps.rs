//! Deleting what is large, and running out of space, while other I/O goes on.

use super::{BLOCK, World, id, run, run_blank};
use crate::control::{Errno, Mode};
use crate::error::Error;
use crate::metadata::{VirtualBlock, check};
use crate::records::{Change, Records};
use crate::{Pool, PoolOptions};
use core::time::Duration;
use platform::mem::MemDisk;
use std::rc::Rc;

/// Mappings without data: by the metadata alone, for it is their number that matters.
async fn map_many(pool: &Pool, device: u64, blocks: u64) {
    let metadata = &pool.0.metadata;
    metadata.open_device(id(device)).await.unwrap();
    for block in 0..blocks {
        let data = metadata.reserve_data_block().await.unwrap();
        metadata.insert(id(device), VirtualBlock(block), data).await.unwrap();
    }
    metadata.close_device(id(device));
    pool.commit().await.unwrap();
}

async fn sound(world: &World) {
    let disk = platform::block::Disk::new(world.meta.contents());
    let report = check::check(&world.runtime, &disk, 1 << 20).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

#[test]
fn a_large_device_is_deleted_while_others_write() {
    const LARGE: u64 = 300_000;
    let meta = MemDisk::new(5000 * 8);
    let disks = run(1, meta, MemDisk::new((LARGE + 1000) * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.create_thin(id(7)).await.unwrap();
        map_many(&pool, 7, LARGE).await;
        assert!(pool.is_large(id(7)).await.unwrap() && !pool.is_large(id(0)).await.unwrap());
        let deleter = pool.clone();
        let deleted = Rc::new(core::cell::Cell::new(false));
        let done = deleted.clone();
        let deleting = world.runtime.spawner.spawn(async move {
            let result = deleter.delete(id(7)).await;
            done.set(true);
            result
        });
        let mut writes = 0;
        while !deleted.get() {
            world.write(&thin, writes % 500 * BLOCK, 1, 0x11).await.unwrap();
            if writes == 0 {
                assert_eq!(pool.open_thin(id(7), None).await.err(), Some(Error::Deleting(id(7))));
                assert_eq!(pool.create_snap(id(8), id(7)).await, Err(Error::Deleting(id(7))));
                assert_eq!(pool.delete(id(7)).await, Err(Error::Deleting(id(7))));
            }
            thin.flush().await.unwrap();
            writes += 1;
        }
        deleting.await.unwrap().unwrap();
        assert!(writes >= 2, "only {writes} writes had their turn");
        assert_eq!(pool.status().data_used_blocks, writes.min(500));
        sound(&world).await;

        // The next one is interrupted, and goes on after the power cut.
        pool.create_thin(id(8)).await.unwrap();
        map_many(&pool, 8, LARGE).await;
        let deleter = pool.clone();
        world.runtime.spawner.spawn(async move { deleter.delete(id(8)).await });
        while pool.status().data_used_blocks > LARGE - 10_000 {
            world.write(&thin, 0, 1, 0x22).await.unwrap();
        }
        world.cut()
    });
    run(2, disks.0, disks.1, async |world| {
        sound(&world).await;
        let pool = world.open().await;
        let used = pool.status().data_used_blocks;
        assert!(used > 1000, "{used}: it was cut off too late to show anything");
        pool.delete(id(8)).await.unwrap();
        assert!(pool.status().data_used_blocks <= 500);
        sound(&world).await;
    });
}

/// Metadata is full, by writes that go on until they fail. Nothing that was acknowledged is lost, nobody asks for a check, and
/// once there is space again, writes succeed within a second, whichever way it came.
#[test]
fn full_metadata_takes_writes_again_when_there_is_space() {
    for (seed, way) in ["delete", "discard", "release", "growth"].into_iter().enumerate() {
        run(10 + seed as u64, MemDisk::new(150 * 8), MemDisk::new(40_000 * BLOCK), async move |world| {
            let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
            pool.create_thin(id(1)).await.unwrap();
            map_many(&pool, 1, 2_000).await;
            if way == "release" {
                pool.reserve_metadata_snap().await.unwrap();
                pool.delete(id(1)).await.unwrap();
            }
            let mut written = 0;
            let error = loop {
                // Far apart, so that leaves are soon needed.
                match world.write(&thin, written * 97 % 39_000 * BLOCK, 1, 0x44).await {
                    Ok(()) => written += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(error, Error::Refused(Mode::OutOfMetadataSpace), "{way}, after {written} blocks");
            assert!(!pool.status().needs_check && written > 1000);
            match way {
                "delete" => pool.delete(id(1)).await.unwrap(),
                "discard" => thin.discard(0, 30_000 * BLOCK).await.unwrap(),
                "release" => pool.release_metadata_snap().await.unwrap(),
                _ => {
                    world.meta.resize(400 * 8);
                    pool.grow().await.unwrap();
                }
            }
            world.runtime.timers.sleep(Duration::from_secs(1)).await;
            assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::Write, false), "{way}");
            world.write(&thin, 39_500 * BLOCK, BLOCK, 0x55).await.unwrap();
            thin.flush().await.unwrap();
            let kept = (0..written).map(|n| n * 97 % 39_000).filter(|block| way != "discard" || *block >= 30_000);
            for block in kept.step_by(13) {
                world.expect(&thin, block * BLOCK, 1, 0x44).await;
            }
            sound(&world).await;
        });
    }
}

#[test]
fn a_device_that_is_being_deleted_is_left_alone() {
    run_blank(21, 32, async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        let records = Records::create(&pool).await.unwrap();
        pool.create_thin(id(7)).await.unwrap();
        let deletion = pool.begin_deletion(id(7)).await.unwrap();
        let deleting = Error::Deleting(id(7));
        assert_eq!(pool.open_thin(id(7), None).await.err(), Some(deleting));
        assert_eq!(pool.create_snap(id(8), id(7)).await, Err(deleting));
        assert_eq!(pool.delete(id(7)).await, Err(deleting));
        assert_eq!(pool.shrink_to_delete(id(7)).await, Err(deleting));
        let changes = [
            Change::CreateSnap { device: id(8), origin: id(7) },
            Change::Exchange(id(0), id(7)),
            Change::Delete(id(7)),
        ];
        for change in changes {
            assert_eq!(records.apply(&[change], &[]).await, Err(deleting));
        }
        drop(deletion);
        drop(pool.open_thin(id(7), None).await.unwrap());
        pool.delete(id(7)).await.unwrap();
    });
}

/// What it is asked for is there already: nothing of others is committed for it.
#[test]
fn a_device_that_one_transaction_can_delete_stays_as_it_is() {
    run_blank(22, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.create_snap(id(7), id(0)).await.unwrap();
        world.write(&thin, 0, 3 * BLOCK, 0x11).await.unwrap();
        pool.shrink_to_delete(id(7)).await.unwrap();
        assert_eq!((pool.committed_state(), pool.status().data_used_blocks), (None, 3));
    });
}

/// Even a few mappings are many where there is hardly any room for what their data blocks' counts take.
#[test]
fn a_pool_tells_which_device_is_large() {
    run(23, MemDisk::new(100 * 8), MemDisk::new(32 * BLOCK), async |world| {
        let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
        pool.create_thin(id(7)).await.unwrap();
        pool.0.metadata.map_run(id(7), 0..20).await.unwrap();
        assert_eq!(pool.is_large(id(7)).await, Ok(false));
        pool.0.metadata.spare_only(4).await.unwrap();
        assert_eq!((pool.is_large(id(7)).await, pool.is_large(id(0)).await), (Ok(true), Ok(false)));
    });
}

#[test]
fn a_large_device_goes_with_its_record() {
    run(20, MemDisk::new(4000 * 8), MemDisk::new(110_000 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        let records = Records::create(&pool).await.unwrap();
        records.apply(&[Change::CreateThin(id(7))], &[(0, b"seven".to_vec())]).await.unwrap();
        map_many(&pool, 7, 100_000).await;
        assert!(pool.is_large(id(7)).await.unwrap());
        // A refusal comes before anything is taken away.
        let active = pool.open_thin(id(7), None).await.unwrap();
        assert_eq!(records.apply(&[Change::Delete(id(7))], &[]).await, Err(Error::Active(id(7))));
        drop(active);
        let used = pool.status().data_used_blocks;
        pool.shrink_to_delete(id(7)).await.unwrap();
        assert!(pool.status().data_used_blocks < used && !pool.is_large(id(7)).await.unwrap());
        world.write(&thin, 0, 1, 0x11).await.unwrap();
        records.apply(&[Change::Delete(id(7))], &[(0, b"gone".to_vec())]).await.unwrap();
        assert_eq!(records.read(0).await.unwrap(), b"gone");
        assert!(!pool.devices().await.unwrap().iter().any(|(device, _)| *device == id(7)));
        sound(&world).await;
    });
}

/// Both disks have grown, and both maps are full: more data needs more metadata.
#[test]
fn a_pool_that_is_full_in_both_ways_grows() {
    run(30, MemDisk::new(150 * 8), MemDisk::new(40_000 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        let mut written = 0;
        while world.write(&thin, written * 97 % 39_000 * BLOCK, 1, 0x44).await.is_ok() {
            written += 1;
        }
        assert_eq!(pool.status().mode, Mode::OutOfMetadataSpace);
        world.meta.resize(600 * 8);
        world.data.resize(300_000 * BLOCK);
        pool.grow().await.unwrap();
        let status = pool.status();
        assert_eq!((status.metadata_total_blocks, status.data_total_blocks), (600, 300_000));
        assert_eq!((status.mode, status.needs_check), (Mode::Write, false));
        world.write(&thin, 39_900 * BLOCK, 1, 0x44).await.unwrap();
        pool.commit().await.unwrap();
        sound(&world).await;
    });
}

/// A data disk too large for the metadata disk is no damage.
#[test]
fn growth_that_takes_more_metadata_than_there_is_is_refused() {
    run(31, MemDisk::new(512 * 8), MemDisk::new(64 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        let mut most = 0;
        for bitmaps in [600, 450, 400, 300, 200, 130] {
            world.data.resize(bitmaps * 16_320 * BLOCK);
            let grown = pool.grow().await;
            assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::Write, false), "{bitmaps} bitmaps");
            match grown {
                Ok(()) => {
                    most = bitmaps;
                    break;
                }
                Err(error) => assert_eq!(error.errno(), Errno::ENOSPC, "{bitmaps} bitmaps: {error}"),
            }
        }
        assert_eq!(pool.status().data_total_blocks, most * 16_320);
        assert!((130..400).contains(&most), "{most} bitmaps");
        world.write(&thin, BLOCK, BLOCK, 0x22).await.unwrap();
        thin.discard(0, BLOCK).await.unwrap();
        pool.commit().await.unwrap();
        assert_eq!(pool.status().mode, Mode::Write);
        sound(&world).await;
    });
}

/// On metadata that is full to the last block, what frees space either succeeds or is refused as a whole, and never tries for
/// ever. It can be repeated when there is space.
#[test]
fn without_room_for_one_step_deletes_and_releases_are_refused() {
    for (n, way) in ["release", "delete"].into_iter().enumerate() {
        let (mut refused, mut went) = (0, 0);
        for left in (20..120).step_by(5) {
            let (seed, meta) = (left + 1000 * n as u64, MemDisk::new(700 * 8));
            let result = run(seed, meta, MemDisk::new(400_000 * BLOCK), async move |world| {
                let (pool, _thin) = world.pool_with_device(PoolOptions::default()).await;
                pool.create_thin(id(1)).await.unwrap();
                map_many(&pool, 1, 5_000).await;
                if way == "release" {
                    pool.reserve_metadata_snap().await.unwrap();
                    pool.delete(id(1)).await.unwrap();
                }
                let hogged = pool.0.metadata.hog(left).await.unwrap();
                let result = free_or_be_refused(&world, &pool, way).await;
                pool.0.metadata.let_go(hogged).await.unwrap();
                sound(&world).await;
                result
            });
            *(if result.is_ok() { &mut went } else { &mut refused }) += 1;
        }
        std::println!("{way}: {went} went, {refused} were refused");
        assert!(went > 2 && refused > 2, "{way}: {went} went, {refused} were refused");
    }
}

/// Frees what device 1 has, at once or after the metadata disk has grown; returns the first result.
async fn free_or_be_refused(world: &World, pool: &Pool, way: &str) -> Result<(), Error> {
    let free = async || match way {
        "delete" => pool.delete(id(1)).await,
        _ => pool.release_metadata_snap().await,
    };
    let held = pool.status().held_root;
    let first = free().await;
    if let Err(error) = &first {
        for error in [error, &free().await.unwrap_err()] {
            let status = pool.status();
            assert_eq!((error.errno(), status.mode), (Errno::ENOSPC, Mode::OutOfMetadataSpace), "{error}");
            assert_eq!((status.needs_check, status.held_root), (false, held));
        }
        world.meta.resize(1500 * 8);
        pool.grow().await.unwrap();
        assert_eq!(pool.status().mode, Mode::Write);
        free().await.unwrap();
    }
    first
}
