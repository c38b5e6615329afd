//! Deletes and releases of what is large: in steps, each of which may be the last before a power cut.

use crate::harness::*;
use platform::block::{Disk, IoError};
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use thinp::metadata::{Metadata, Progress, VirtualBlock};

async fn flush() -> Result<(), IoError> {
    Ok(())
}

/// Mappings of the large device: some 800 leaves.
const LARGE: u64 = 200_000;

/// Device 1 with many mappings, device 2 a snapshot of it that has broken some of the sharing.
async fn large_pool(disk: &MemDisk) -> Metadata {
    let metadata = format(disk, LARGE + 20_000).await;
    metadata.create_thin(id(1)).await.unwrap();
    metadata.open_device(id(1)).await.unwrap();
    for block in 0..LARGE {
        provision(&metadata, id(1), block).await;
        if block % 20_000 == 0 {
            commit(&metadata).await;
        }
    }
    metadata.create_snap(id(2), id(1)).await.unwrap();
    metadata.open_device(id(2)).await.unwrap();
    for block in (0..LARGE).step_by(30) {
        provision(&metadata, id(2), block).await;
    }
    commit(&metadata).await;
    metadata.close_device(id(1));
    metadata.close_device(id(2));
    metadata
}

#[test]
fn a_large_device_goes_in_small_transactions() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 8000);
        let metadata = large_pool(&disk).await;
        let (data_free, metadata_free) = (metadata.free_data_blocks(), metadata.free_metadata_blocks());
        for (device, steps_min) in [(2, 3), (1, 3)] {
            let mut steps = 0;
            let mut mapped = u64::MAX;
            while metadata.delete(id(device)).await.unwrap() == Progress::Partial {
                let taken = metadata_free.saturating_sub(metadata.free_metadata_blocks());
                assert!(taken < 1000, "a step took {taken} blocks before its commit");
                commit(&metadata).await;
                steps += 1;
                // As after a power cut.
                check(&disk);
                let again = open_on(Disk::new(disk.clone()), CACHE).await;
                let details = again.devices().await.unwrap().into_iter().find(|(found, _)| *found == id(device));
                let (_, details) = details.expect("it is there until the last step");
                assert!(details.mapped_blocks < mapped && details.mapped_blocks > 0);
                mapped = details.mapped_blocks;
            }
            commit(&metadata).await;
            check(&disk);
            assert!(steps >= steps_min, "device {device}: {steps} steps");
        }
        thin_check(&disk);
        assert_eq!(metadata.free_data_blocks(), LARGE + 20_000);
        assert!(metadata.free_data_blocks() > data_free && metadata.free_metadata_blocks() > metadata_free + 800);
        assert!(metadata.devices().await.unwrap().is_empty());
    });
}

#[test]
fn a_snapshot_that_shares_everything_goes_at_once() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 8000);
        let metadata = large_pool(&disk).await;
        metadata.create_snap(id(3), id(1)).await.unwrap();
        assert!(!metadata.is_large(id(3)).await.unwrap());
        assert_eq!(metadata.delete(id(3)).await, Ok(Progress::Complete));
        commit(&metadata).await;
        check(&disk);
        // Held by a metadata snapshot, so does any device.
        metadata.reserve_metadata_snap(flush).await.unwrap();
        for device in [1, 2] {
            assert!(!metadata.is_large(id(device)).await.unwrap());
            assert_eq!(metadata.delete(id(device)).await, Ok(Progress::Complete));
            commit(&metadata).await;
            check(&disk);
        }
    });
}

#[test]
fn a_large_metadata_snapshot_is_released_in_small_transactions() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 8000);
        let metadata = large_pool(&disk).await;
        metadata.reserve_metadata_snap(flush).await.unwrap();
        for device in [1, 2] {
            assert_eq!(metadata.delete(id(device)).await, Ok(Progress::Complete));
        }
        metadata.create_thin(id(7)).await.unwrap();
        commit(&metadata).await;
        let mut steps = 0;
        loop {
            let free = metadata.free_metadata_blocks();
            let progress = metadata.release_metadata_snap(flush).await.unwrap();
            assert!(metadata.free_metadata_blocks() > free);
            check(&disk);
            if progress == Progress::Complete {
                break;
            }
            steps += 1;
            thin_check(&disk);
            if let Some(verdict) = run_tool(&disk, "thin_check", &["-m"]) {
                verdict.unwrap();
            }
            let held = open_on(Disk::new(disk.clone()), CACHE).await.held_root();
            assert_eq!(held, metadata.held_root());
        }
        assert!(steps >= 3, "{steps} steps");
        assert_eq!((metadata.held_root(), metadata.free_data_blocks()), (None, LARGE + 20_000));
        assert_eq!(metadata.devices().await.unwrap().len(), 1);
    });
}

/// Metadata that is full to the reserve, data blocks in an order that makes every change of counts expensive: what frees
/// space goes on working, nothing is ever left half done, and nothing runs out by surprise.
#[test]
fn full_metadata_is_emptied_again() {
    let seed = seed();
    for (n, data_blocks) in [(0, 30_000), (1, 400_000), (2, 3_000_000)] {
        let dice = Dice::new(seed + n);
        block_on_ready(async {
            let disk = MemDisk::new(8 * 700);
            let metadata = format(&disk, data_blocks).await;
            metadata.create_thin(id(0)).await.unwrap();
            metadata.open_device(id(0)).await.unwrap();
            let devices = fill(&metadata, &dice, data_blocks).await;
            println!("{data_blocks} data blocks: {devices} devices fill the metadata");
            commit(&metadata).await;
            check(&disk);
            // Discards first, some of each device: on shared leaves they take blocks, and may end. Then deletes.
            let mut discards = 0;
            for device in 0..devices {
                let begin = dice.below(1000);
                let end = VirtualBlock(begin + dice.below(300));
                metadata.open_device(id(device)).await.unwrap();
                let mut from = Some(VirtualBlock(begin));
                while let Some(at) = from {
                    let removed =
                        settled(&metadata, async || metadata.remove_range(id(device), at, end, 50).await).await;
                    assert!(removed.is_some() || discards > 0, "not one discard was possible");
                    discards += u64::from(removed.is_some());
                    from = removed.and_then(|removed| removed.next);
                }
                metadata.close_device(id(device));
            }
            println!("{discards} discards");
            metadata.close_device(id(0));
            commit(&metadata).await;
            check(&disk);
            for device in 0..devices {
                let delete = async || metadata.delete(id(device)).await;
                while settled(&metadata, delete).await.expect("room to delete") == Progress::Partial {}
            }
            commit(&metadata).await;
            check(&disk);
            thin_check(&disk);
            assert_eq!(metadata.free_data_blocks(), data_blocks);
            assert!(metadata.has_room());
        });
    }
}

/// Snapshots and scattered writes until there is no room; returns the number of devices.
async fn fill(metadata: &Metadata, dice: &Dice, data_blocks: u64) -> u64 {
    let mut devices = 1;
    loop {
        let made = metadata.create_snap(id(devices), id(dice.below(devices))).await;
        if made.is_err() && !metadata.any_changes() {
            return devices;
        }
        commit(metadata).await;
        devices += u64::from(made.is_ok());
        metadata.open_device(id(devices - 1)).await.unwrap();
        for _ in 0..50 + dice.below(200) {
            // Blocks that are passed over lie between those that are taken, so these are far apart.
            let skipped: Vec<_> = match metadata.reserve_data_block().await {
                Ok(data) => vec![data],
                Err(_) => break,
            };
            let data = if data_blocks > 100_000 { far_block(metadata, skipped).await } else { skipped[0] };
            let inserted = metadata.insert(id(devices - 1), VirtualBlock(dice.below(1000)), data).await;
            metadata.unreserve_data_block(data);
            match inserted {
                Ok(()) => {}
                Err(error) if !error.spoils() && metadata.any_changes() => commit(metadata).await,
                Err(error) => {
                    if error.spoils() {
                        metadata.roll_back().await.unwrap();
                    }
                    metadata.close_device(id(devices - 1));
                    return devices;
                }
            }
            if metadata.is_tight() {
                commit(metadata).await;
            }
        }
        metadata.close_device(id(devices - 1));
    }
}

/// A block some hundred blocks behind the last.
async fn far_block(metadata: &Metadata, mut reserved: Vec<thinp::metadata::DataBlock>) -> thinp::metadata::DataBlock {
    while reserved.len() < 500 {
        let Ok(next) = metadata.reserve_data_block().await else { break };
        reserved.push(next);
    }
    let last = reserved.pop().unwrap();
    reserved.into_iter().for_each(|block| metadata.unreserve_data_block(block));
    last
}

/// Carries out what frees space as the pool does: if it may not share its transaction, or frees lack that are not
/// committed, after a commit.
async fn settled<T>(metadata: &Metadata, operation: impl AsyncFn() -> thinp::metadata::Result<T>) -> Option<T> {
    loop {
        match operation().await {
            Ok(done) => {
                if metadata.is_tight() {
                    commit(metadata).await;
                }
                return Some(done);
            }
            Err(error) if error.spoils() => {
                assert!(metadata.ran_out_alone(), "{error}");
                metadata.roll_back().await.unwrap();
                return None;
            }
            Err(error) => {
                assert!(error.is_no_metadata_space(), "{error}");
                if !metadata.any_changes() {
                    return None;
                }
                commit(metadata).await;
            }
        }
    }
}
