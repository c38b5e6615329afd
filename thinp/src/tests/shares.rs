//! Copies that share blocks (reference 6.3).

use super::disks::Gate;
use super::{BLOCK, World, id, run, run_blank};
use crate::{CopySource, Error, Features, Pool, PoolOptions, Thin};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::time::Duration;
use std::string::ToString;
use std::vec::Vec;

/// A new pool with devices 0 and 1, open.
async fn pool_with_two(world: &World) -> (Pool, Thin, Thin) {
    let (pool, a) = world.pool_with_device(PoolOptions::default()).await;
    pool.create_thin(id(1)).await.unwrap();
    let b = pool.open_thin(id(1), None).await.unwrap();
    (pool, a, b)
}

/// The clock, as the details of a device made now tell it.
async fn clock(pool: &Pool) -> u32 {
    pool.0.metadata.time().max(pool.devices().await.unwrap().iter().map(|(_, d)| d.snapshotted_time).max().unwrap())
}

#[test]
fn either_side_is_written_and_the_other_keeps_what_was_copied() {
    // First overwritten in part: source, or target.
    for (seed, source_first) in [(1, true), (2, false)] {
        let disks = run_blank(seed, 32, async move |world| {
            let (pool, a, b) = pool_with_two(&world).await;
            world.write(&a, 0, 3 * BLOCK, 0x11).await.unwrap();
            world.write(&b, 0, 9 * BLOCK, 0x22).await.unwrap();
            b.share(4 * BLOCK, CopySource::new(&a, 0), 3 * BLOCK).await.unwrap();
            assert_eq!(pool.status().data_used_blocks, 9, "three of the target were freed");
            assert_eq!(b.status().await.unwrap().to_string(), std::format!("{} {}", 9 * BLOCK, 9 * BLOCK - 1));
            world.expect(&b, 4 * BLOCK, 3 * BLOCK, 0x11).await;
            let (first, second) = if source_first { ((&a, 0), (&b, 4)) } else { ((&b, 4), (&a, 0)) };
            world.write(first.0, first.1 * BLOCK + 5, 2, 0x33).await.unwrap();
            world.expect(second.0, second.1 * BLOCK, 3 * BLOCK, 0x11).await;
            world.write(second.0, second.1 * BLOCK + 9, 2, 0x44).await.unwrap();
            for (thin, at, byte) in [(first.0, first.1 * BLOCK + 5, 0x33), (second.0, second.1 * BLOCK + 9, 0x44)] {
                world.expect(thin, at / BLOCK * BLOCK, at % BLOCK, 0x11).await;
                world.expect(thin, at, 2, byte).await;
                world.expect(thin, at + 2, BLOCK - at % BLOCK - 2, 0x11).await;
            }
            assert_eq!(pool.status().data_used_blocks, 10, "the second copied although it was alone by then");
            b.flush().await.unwrap();
            world.cut()
        });
        run(seed, disks.0, disks.1, async move |world| {
            let pool = world.open().await;
            assert_eq!(pool.status().data_used_blocks, 10);
            let (a, b) = (pool.open_thin(id(0), None).await.unwrap(), pool.open_thin(id(1), None).await.unwrap());
            world.expect(&a, BLOCK, 2 * BLOCK, 0x11).await;
            world.expect(&b, 5 * BLOCK, 2 * BLOCK, 0x11).await;
            world.expect(&b, 7 * BLOCK, 2 * BLOCK, 0x22).await;
        });
    }
}

#[test]
fn a_thousand_copies_tick_once() {
    run_blank(3, 2500, async |world| {
        let (pool, a, b) = pool_with_two(&world).await;
        for n in 0..1000 {
            world.write(&a, 0, 1, 0x10).await.unwrap();
            b.share(n * BLOCK, CopySource::new(&a, 0), BLOCK).await.unwrap();
        }
        assert_eq!(clock(&pool).await, 1);
        // Devices made later have a time before their first moment.
        pool.create_thin(id(2)).await.unwrap();
        let c = pool.open_thin(id(2), None).await.unwrap();
        c.share(2000 * BLOCK, CopySource::new(&b, 0), 999 * BLOCK).await.unwrap();
        assert_eq!(clock(&pool).await, 1);
        world.expect(&c, 2990 * BLOCK + 1, BLOCK - 1, 0).await;
        world.expect(&c, 2990 * BLOCK, 1, 0x10).await;
    });
}

#[test]
fn what_the_source_has_not_mapped_is_unmapped() {
    run_blank(4, 64, async |world| {
        let (pool, a, b) = pool_with_two(&world).await;
        world.write(&a, 2 * BLOCK, BLOCK, 0x11).await.unwrap();
        world.write(&b, 0, 9 * BLOCK, 0x22).await.unwrap();
        b.share(BLOCK, CopySource::new(&a, 0), 5 * BLOCK).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 5);
        for (block, byte) in [(0, 0x22), (1, 0), (2, 0), (3, 0x11), (4, 0), (5, 0), (6, 0x22)] {
            world.expect(&b, block * BLOCK, BLOCK, byte).await;
        }
    });
}

/// In steps of a thousand blocks, and no block beyond the last.
#[test]
fn many_blocks_are_shared_and_their_neighbours_stay() {
    run_blank(12, 64, async |world| {
        let (pool, a, b) = pool_with_two(&world).await;
        for block in [9, 10, 1500, 2009, 2010] {
            world.write(&a, block * BLOCK, BLOCK, 0x11).await.unwrap();
        }
        for block in [19, 1510, 1600, 2020, 3100] {
            world.write(&b, block * BLOCK, BLOCK, 0x22).await.unwrap();
        }
        b.share(20 * BLOCK, CopySource::new(&a, 10 * BLOCK), 2000 * BLOCK).await.unwrap();
        let expected =
            [(19, 0x22), (20, 0x11), (21, 0), (1510, 0x11), (1600, 0), (2019, 0x11), (2020, 0x22), (3100, 0x22)];
        for (block, byte) in expected {
            world.expect(&b, block * BLOCK, BLOCK, byte).await;
        }
        assert_eq!(pool.committed_status().await.unwrap().data_used_blocks, 8);
    });
}

/// dm-thin makes no device that does, and `thin_check` 1.x takes it for damage.
#[test]
fn a_device_maps_no_data_block_twice() {
    run_blank(5, 64, async |world| {
        let (pool, a, b) = pool_with_two(&world).await;
        world.write(&a, 0, 3 * BLOCK, 0x11).await.unwrap();
        let refused = |result| matches!(result, Err(Error::NotShareable(_)));
        assert!(refused(a.share(9 * BLOCK, CopySource::new(&a, 0), BLOCK).await), "within a device");
        b.share(4 * BLOCK, CopySource::new(&a, 0), BLOCK).await.unwrap();
        assert!(refused(b.share(8 * BLOCK, CopySource::new(&a, 0), BLOCK).await), "the same once more");
        assert!(refused(a.share(8 * BLOCK, CopySource::new(&b, 4 * BLOCK), BLOCK).await), "the way back");
        // A snapshot has the same leaf, until either is written, and then both have what is in it.
        pool.create_snap(id(2), id(0)).await.unwrap();
        let c = pool.open_thin(id(2), None).await.unwrap();
        assert!(refused(c.share(8 * BLOCK, CopySource::new(&a, BLOCK), BLOCK).await));
        world.write(&c, 0, BLOCK, 0x22).await.unwrap();
        assert!(refused(c.share(8 * BLOCK, CopySource::new(&a, BLOCK), BLOCK).await));
        // What is the snapshot's own the origin may have.
        a.share(8 * BLOCK, CopySource::new(&c, 0), BLOCK).await.unwrap();
        world.expect(&a, 8 * BLOCK, BLOCK, 0x22).await;
        assert_eq!(pool.status().data_used_blocks, 4);
    });
}

/// Were it not so, a write could reach the data block after it had become the target's, too, and a read what another was
/// given.
#[test]
fn a_copy_waits_for_what_is_under_way_on_either_side() {
    for writes in [true, false] {
        run_blank(6, 64, async move |world| {
            // Requests of two sectors are not answered.
            let gate = Gate::new(world.data.clone(), |request| request.sectors == 2);
            let opening =
                Pool::open(&world.runtime, world.meta_disk(), Disk::new(gate.clone()), PoolOptions::default());
            let pool = opening.await.unwrap();
            for n in [0, 1] {
                pool.create_thin(id(n)).await.unwrap();
            }
            let (a, b) = (pool.open_thin(id(0), None).await.unwrap(), pool.open_thin(id(1), None).await.unwrap());
            world.write(&a, 0, BLOCK, 0x11).await.unwrap();
            world.write(&b, 0, BLOCK, 0x22).await.unwrap();
            let (w, source, target) = (world.clone(), a.clone(), b.clone());
            let io = world.runtime.spawner.spawn(async move {
                if writes { w.write(&source, 0, 2, 0x33).await } else { w.read(&target, 0, 2).await.map(drop) }
            });
            world.runtime.timers.sleep(Duration::from_secs(1)).await;
            assert_eq!(gate.held.borrow().len(), 1);
            let (to, from) = (b.clone(), a.clone());
            let copying =
                world.runtime.spawner.spawn(async move { to.share(0, CopySource::new(&from, 0), BLOCK).await });
            let mut copying = core::pin::pin!(copying);
            assert!(world.runtime.timers.timeout(Duration::from_secs(5), &mut copying).await.is_err());
            world.expect(&b, BLOCK, BLOCK, 0).await;
            // And what comes meanwhile waits for the copy.
            let late = [a.clone(), b.clone()].map(|thin| {
                let world = world.clone();
                world.clone().runtime.spawner.spawn(async move { world.write(&thin, 9, 1, 0x55).await })
            });
            let [mut late_a, mut late_b] = late;
            for late in [&mut late_a, &mut late_b] {
                assert!(world.runtime.timers.timeout(Duration::from_secs(5), late).await.is_err());
            }
            gate.open();
            io.await.unwrap().unwrap();
            copying.await.unwrap().unwrap();
            late_a.await.unwrap().unwrap();
            late_b.await.unwrap().unwrap();
            world.write(&a, 0, 1, 0x44).await.unwrap();
            world.expect(&b, 0, 2, if writes { 0x33 } else { 0x11 }).await;
            world.expect(&b, 2, 7, 0x11).await;
            world.expect(&b, 9, 1, 0x55).await;
            world.expect(&b, 10, BLOCK - 10, 0x11).await;
        });
    }
}

#[test]
fn a_copy_that_was_not_committed_leaves_what_was_there() {
    let disks = run_blank(7, 8, async |world| {
        let options = PoolOptions { commit_period: Duration::from_secs(1000), ..PoolOptions::default() };
        let (pool, a) = world.pool_with_device(options).await;
        pool.create_thin(id(1)).await.unwrap();
        let b = pool.open_thin(id(1), None).await.unwrap();
        world.write(&a, 0, 2 * BLOCK, 0x11).await.unwrap();
        world.write(&b, 0, 2 * BLOCK, 0x22).await.unwrap();
        pool.commit().await.unwrap();
        b.share(0, CopySource::new(&a, 0), 2 * BLOCK).await.unwrap();
        // Four blocks are free, and the two that the target lost are not to be had before the commit.
        world.write(&a, 4 * BLOCK, 4 * BLOCK, 0x33).await.unwrap();
        world.cut()
    });
    run(8, disks.0, disks.1, async |world| {
        let pool = world.open().await;
        let (a, b) = (pool.open_thin(id(0), None).await.unwrap(), pool.open_thin(id(1), None).await.unwrap());
        world.expect(&a, 0, 2 * BLOCK, 0x11).await;
        world.expect(&b, 0, 2 * BLOCK, 0x22).await;
        assert_eq!(pool.status().data_used_blocks, 4);
    });
}

#[test]
fn out_of_data_space_a_copy_works_and_brings_space() {
    run_blank(9, 8, async |world| {
        let features = Features { error_if_no_space: true, ..Features::default() };
        let (pool, thin) = world.pool_with_device(PoolOptions { features, ..PoolOptions::default() }).await;
        pool.create_thin(id(1)).await.unwrap();
        let other = pool.open_thin(id(1), None).await.unwrap();
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        world.write(&other, 0, 4 * BLOCK, 0x33).await.unwrap();
        assert_eq!(world.write(&thin, 8 * BLOCK, 1, 0x22).await, Err(Error::NoDataSpace));
        other.share(0, CopySource::new(&thin, 0), 4 * BLOCK).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 4);
        world.write(&thin, 8 * BLOCK, 1, 0x22).await.unwrap();
        world.expect(&other, 0, 4 * BLOCK, 0x11).await;
    });
}

#[test]
fn what_cannot_be_shared_is_refused() {
    run_blank(10, 64, async |world| {
        let (pool, a, b) = pool_with_two(&world).await;
        world.write(&a, 0, BLOCK, 0x11).await.unwrap();
        for (to, from, sectors) in [(1, 0, BLOCK), (0, 1, BLOCK), (0, 0, BLOCK - 1)] {
            assert!(matches!(b.share(to, CopySource::new(&a, from), sectors).await, Err(Error::NotShareable(_))));
        }
        assert!(matches!(b.share(u64::MAX - 127, CopySource::new(&a, 0), BLOCK).await, Err(Error::OutOfRange { .. })));
        pool.create_thin(id(2)).await.unwrap();
        let with_origin = pool.open_thin(id(2), Some(Disk::new(MemDisk::new(BLOCK)))).await.unwrap();
        assert!(matches!(with_origin.share(0, CopySource::new(&a, 0), BLOCK).await, Err(Error::NotShareable(_))));
        assert!(matches!(a.share(0, CopySource::new(&with_origin, 0), BLOCK).await, Err(Error::NotShareable(_))));
        let disks = (Disk::new(MemDisk::new(4096)), Disk::new(MemDisk::new(64 * BLOCK)));
        let elsewhere = Pool::open(&world.runtime, disks.0, disks.1, PoolOptions::default()).await.unwrap();
        elsewhere.create_thin(id(1)).await.unwrap();
        let stranger = elsewhere.open_thin(id(1), None).await.unwrap();
        assert!(matches!(stranger.share(0, CopySource::new(&a, 0), BLOCK).await, Err(Error::NotShareable(_))));
        world.expect(&b, 0, BLOCK, 0).await;
    });
}

/// Who copies one way meets who copies the other, who takes snapshots, writes and discards: none waits for ever, and every
/// block is one that was written whole.
#[test]
fn copies_both_ways_under_writes_discards_and_snapshots() {
    for seed in 20..24 {
        run_blank(seed, 400, async |world| {
            let (pool, a, b) = pool_with_two(&world).await;
            let mut workers = Vec::new();
            for n in 0..6u64 {
                let (w, pool, thins) = (world.clone(), pool.clone(), [a.clone(), b.clone()]);
                workers.push(world.runtime.spawner.spawn(async move {
                    for round in 0..40u64 {
                        let [x, y] = [n % 2, (n + round) % 2].map(|at| &thins[at as usize]);
                        let (from, to) = (w.below(20) * BLOCK, w.below(20) * BLOCK);
                        match w.below(8) {
                            0 => x.discard(to, 3 * BLOCK).await.unwrap(),
                            1 if n == 0 => pool.create_snap(id(100 + round), id(w.below(2))).await.unwrap(),
                            1..=3 => w.write(x, to, BLOCK, 1 + w.below(250) as u8).await.unwrap(),
                            _ => match x.share(to, CopySource::new(y, from), (1 + w.below(12)) * BLOCK).await {
                                Ok(()) | Err(Error::NotShareable(_)) => {}
                                Err(error) => panic!("{error}"),
                            },
                        }
                    }
                }));
            }
            for worker in workers {
                worker.await.unwrap();
            }
            for thin in [&a, &b] {
                for block in 0..40 {
                    let bytes = world.read(thin, block * BLOCK, BLOCK).await.unwrap();
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "block {block} is of two writes");
                }
            }
            pool.commit().await.unwrap();
            let report = crate::metadata::check::check(&world.runtime, &world.meta_disk(), 1 << 20).await.unwrap();
            assert!(report.problems.is_empty(), "{:?}", report.problems);
        });
    }
}

#[test]
fn a_held_metadata_snapshot_keeps_the_old_mappings() {
    run_blank(11, 64, async |world| {
        let (pool, a, b) = pool_with_two(&world).await;
        world.write(&a, 0, 2 * BLOCK, 0x11).await.unwrap();
        world.write(&b, 0, 2 * BLOCK, 0x22).await.unwrap();
        pool.reserve_metadata_snap().await.unwrap();
        b.share(0, CopySource::new(&a, 0), 2 * BLOCK).await.unwrap();
        pool.commit().await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 4, "the snapshot maps what the target lost");
        pool.release_metadata_snap().await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 2);
        world.expect(&b, 0, 2 * BLOCK, 0x11).await;
    });
}
