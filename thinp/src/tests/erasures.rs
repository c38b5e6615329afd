//! Erasing devices.

use super::{BLOCK, World, id, run, run_blank};
use crate::{CopySource, Error, PoolOptions};
use platform::block::SECTOR_BYTES;
use std::string::ToString;
use std::vec::Vec;

/// How many sectors of the data disk hold this byte.
async fn sectors_with(world: &World, byte: u8) -> usize {
    let disk = world.data_disk();
    let mut found = 0;
    for block in 0..disk.size_sectors() / BLOCK {
        let buf = world.runtime.bufs.zeroed(BLOCK as usize * SECTOR_BYTES).unwrap();
        let (read, buf) = disk.read(block * BLOCK, buf).await;
        read.unwrap();
        found += buf.chunks(SECTOR_BYTES).filter(|sector| sector.iter().all(|b| *b == byte)).count();
    }
    found
}

/// Also where a snapshot was: it is gone, and so each block is the device's own, whatever the times of its mappings tell.
#[test]
fn what_was_mapped_is_gone_from_the_data_disk() {
    run_blank(1, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 20 * BLOCK, 0x11).await.unwrap();
        world.write(&thin, 1000 * BLOCK, 20 * BLOCK + 3, 0x11).await.unwrap();
        pool.create_snap(id(7), id(0)).await.unwrap();
        pool.delete(id(7)).await.unwrap();
        assert_eq!(sectors_with(&world, 0x11).await as u64, 40 * BLOCK + 3);
        let erasure = thin.begin_erasure().await.unwrap();
        assert_eq!(erasure.left_blocks(), 41);
        while erasure.step().await.unwrap() {}
        assert_eq!((erasure.left_blocks(), sectors_with(&world, 0x11).await), (0, 0));
        drop(erasure);
        thin.flush().await.unwrap();
        assert_eq!((pool.status().data_used_blocks, thin.status().await.unwrap().to_string()), (0, "0 -".into()));
        world.expect(&thin, 1000 * BLOCK, BLOCK, 0).await;
        world.write(&thin, BLOCK, 1, 0x22).await.unwrap();
    });
}

#[test]
fn what_others_map_is_not_erased() {
    run_blank(2, 64, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(7), id(0)).await.unwrap();
        world.write(&thin, 0, BLOCK, 0x22).await.unwrap();
        let shares = |blocks| Some(Error::SharesBlocks { device: id(0), blocks });
        assert_eq!(thin.begin_erasure().await.err(), shares(3));
        pool.delete(id(7)).await.unwrap();
        pool.reserve_metadata_snap().await.unwrap();
        assert_eq!(thin.begin_erasure().await.err(), shares(4));
        pool.release_metadata_snap().await.unwrap();
        pool.create_thin(id(8)).await.unwrap();
        let other = pool.open_thin(id(8), None).await.unwrap();
        other.share(0, CopySource::new(&thin, 3 * BLOCK), BLOCK).await.unwrap();
        assert_eq!(thin.begin_erasure().await.err(), shares(1));
        other.discard(0, BLOCK).await.unwrap();

        let erasure = thin.begin_erasure().await.unwrap();
        let erasing = Some(Error::Erasing(id(0)));
        assert_eq!(thin.begin_erasure().await.err(), erasing);
        assert_eq!(pool.create_snap(id(9), id(0)).await.err(), erasing);
        assert_eq!(pool.reserve_metadata_snap().await.err(), erasing);
        assert_eq!(other.share(0, CopySource::new(&thin, 0), BLOCK).await.err(), erasing);
        assert_eq!(thin.share(0, CopySource::new(&other, 0), BLOCK).await.err(), erasing);
        world.expect(&thin, 0, BLOCK, 0x22).await;
        drop(erasure);
        pool.create_snap(id(9), id(0)).await.unwrap();
        pool.reserve_metadata_snap().await.unwrap();
    });
}

/// What is left after a power cut is erased by the next erasure; nothing that was unmapped is still on the disk.
#[test]
fn a_power_cut_leaves_what_is_not_erased_mapped() {
    const BLOCKS: u64 = 600;
    for steps in 0..3 {
        let disks = run_blank(10 + steps, BLOCKS + 10, async move |world| {
            let (_pool, thin) = world.pool_with_device(PoolOptions::default()).await;
            for block in 0..BLOCKS {
                world.write(&thin, block * BLOCK, BLOCK, 0x11).await.unwrap();
            }
            thin.flush().await.unwrap();
            let erasure = thin.begin_erasure().await.unwrap();
            for step in 0..steps {
                assert!(erasure.step().await.unwrap());
                if step % 2 == 0 {
                    thin.flush().await.unwrap();
                }
            }
            world.cut()
        });
        run(steps, disks.0, disks.1, async move |world| {
            let pool = world.open().await;
            let thin = pool.open_thin(id(0), None).await.unwrap();
            let left: Vec<u64> = {
                let erasure = thin.begin_erasure().await.unwrap();
                let before = erasure.left_blocks();
                assert!(sectors_with(&world, 0x11).await as u64 <= before * BLOCK, "unmapped and not overwritten");
                while erasure.step().await.unwrap() {}
                [before, erasure.left_blocks()].into()
            };
            assert!(left[0] < BLOCKS || steps == 0, "{left:?}");
            assert_eq!((left[1], sectors_with(&world, 0x11).await), (0, 0));
        });
    }
}

/// Between two steps other I/O goes on.
#[test]
fn a_step_erases_what_lies_in_16_mib() {
    run_blank(5, 64, async |world| {
        let (_pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        let blocks = (16 << 20) / (BLOCK * SECTOR_BYTES as u64);
        for block in [0, blocks - 1, blocks] {
            world.write(&thin, block * BLOCK, 1, 0x11).await.unwrap();
        }
        let erasure = thin.begin_erasure().await.unwrap();
        let mut left = Vec::new();
        while erasure.step().await.unwrap() {
            left.push(erasure.left_blocks());
        }
        assert_eq!(left, [1, 0]);
    });
}
