//! Deletes and releases in steps: how much each takes, with plenty of metadata blocks and with few.

use super::{LEAF, commit, details, format_on, id, no_flush, runtime, sound};
use crate::metadata::{Metadata, MetadataError, Progress, dump};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::convert::Infallible;
use std::string::String;
use std::vec::Vec;

/// Leaves that one step frees.
const STEP: u64 = 256;

/// More than that.
const LARGE: u64 = 300;

/// Data blocks of a pool that has many bitmaps, 62 of them: dropping a full leaf may change each.
const MANY_BITMAPS: u64 = 1_000_000;

/// About so many leaves: in a tree that has grown some are not full.
#[track_caller]
fn about(mappings: u64, leaves: u64) {
    assert!(((leaves - 4) * LEAF..(leaves + 4) * LEAF).contains(&mappings), "{mappings} mappings, not {leaves} leaves");
}

async fn mapped(metadata: &Metadata, device: u64) -> u64 {
    details(metadata, id(device)).await.mapped_blocks
}

#[test]
fn a_step_frees_so_many_leaves_and_leaves_a_smaller_device() {
    block_on_ready(async {
        let (disk, blocks) = (MemDisk::new(8 * 1000), LARGE * LEAF);
        let metadata = format_on(&disk, blocks + 100).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..blocks).await.unwrap();
        assert!(metadata.is_large(id(1)).await.unwrap());
        // Together with another change: with so much room neither needs a commit of its own.
        metadata.create_thin(id(2)).await.unwrap();
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Partial));
        assert!(!metadata.is_tight());
        about(mapped(&metadata, 1).await, LARGE - STEP);
        commit(&metadata).await;
        sound(&disk);
        about(metadata.free_data_blocks(), STEP);
        assert!(!metadata.is_large(id(1)).await.unwrap());
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Complete));
        commit(&metadata).await;
        sound(&disk);
        assert_eq!(metadata.free_data_blocks(), blocks + 100);
        let left = metadata.devices().await.unwrap();
        assert!(left.len() == 1 && left[0].0 == id(2), "{left:?}");
    });
}

/// The number of mappings alone does not tell: so many could lie in three times as many leaves.
#[test]
fn a_device_of_few_full_leaves_is_not_large() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 500);
        let metadata = format_on(&disk, 100 * LEAF).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..100 * LEAF).await.unwrap();
        assert!(!metadata.is_large(id(1)).await.unwrap());
        assert_eq!(metadata.shrink_if_large(id(1)).await, Ok(Progress::Complete));
        assert_eq!(mapped(&metadata, 1).await, 100 * LEAF);
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Complete));
        commit(&metadata).await;
        sound(&disk);
        assert_eq!(metadata.free_data_blocks(), 100 * LEAF);
    });
}

#[test]
fn what_others_have_as_well_goes_at_once_however_large() {
    block_on_ready(async {
        let (disk, blocks) = (MemDisk::new(8 * 1000), LARGE * LEAF);
        let metadata = format_on(&disk, blocks).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..blocks).await.unwrap();
        metadata.create_snap(id(2), id(1)).await.unwrap();
        assert!(!metadata.is_large(id(2)).await.unwrap());
        assert_eq!(metadata.delete(id(2)).await, Ok(Progress::Complete));
        commit(&metadata).await;
        assert!(metadata.is_large(id(1)).await.unwrap());
        // A metadata snapshot shares the way to the device.
        metadata.reserve_metadata_snap(no_flush).await.unwrap();
        assert!(!metadata.is_large(id(1)).await.unwrap());
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Complete));
        commit(&metadata).await;
        sound(&disk);
        assert_eq!(metadata.free_data_blocks(), 0);
    });
}

/// With two blocks to spare there is no room to drop any leaf, but none is dropped.
#[test]
fn a_snapshot_that_has_no_leaf_alone_goes_at_once_with_hardly_any_room() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = format_on(&disk, MANY_BITMAPS).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..2 * LEAF).await.unwrap();
        metadata.create_snap(id(2), id(1)).await.unwrap();
        metadata.spare_only(2).await.unwrap();
        assert!(!metadata.is_large(id(2)).await.unwrap());
        assert_eq!(metadata.delete(id(2)).await, Ok(Progress::Complete));
        commit(&metadata).await;
        assert_eq!(metadata.devices().await.unwrap().len(), 1);
        assert!(metadata.is_large(id(1)).await.unwrap(), "it has its leaves alone again");
    });
}

/// With room for the counts of a few mappings but not for those of a leaf.
#[test]
fn without_room_for_a_leaf_a_step_takes_a_few_mappings() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = format_on(&disk, MANY_BITMAPS).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..20).await.unwrap();
        metadata.spare_only(20).await.unwrap();
        assert!(metadata.is_large(id(1)).await.unwrap());
        // Not beside another change, which could not be kept if even this failed.
        metadata.set_transaction_id(0, 1).await.unwrap();
        let error = metadata.delete(id(1)).await.unwrap_err();
        assert!(error.is_no_metadata_space(), "{error}");
        commit(&metadata).await;
        for left in [12, 4, 0] {
            assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Partial));
            assert!(metadata.is_tight());
            commit(&metadata).await;
            assert_eq!(mapped(&metadata, 1).await, left);
        }
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Complete));
        commit(&metadata).await;
        assert_eq!(metadata.free_data_blocks(), MANY_BITMAPS);
    });
}

/// How much room is enough for the whole device at once: twice what the counts of all of its leaves may take.
#[test]
fn a_device_is_large_when_its_counts_may_take_half_of_what_is_spare() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 800);
        let metadata = format_on(&disk, MANY_BITMAPS).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..LEAF).await.unwrap();
        for (spare, large) in [(200, false), (100, true)] {
            metadata.spare_only(spare).await.unwrap();
            assert_eq!(metadata.is_large(id(1)).await, Ok(large), "{spare} blocks to spare");
        }
        let before = metadata.spare();
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Partial));
        assert_eq!((before, mapped(&metadata, 1).await), (100, 0), "there is room for once that");
        commit(&metadata).await;
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Complete));
    });
}

#[test]
fn with_nothing_to_spare_deletes_and_releases_are_refused() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = format_on(&disk, 1000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.reserve_metadata_snap(no_flush).await.unwrap();
        metadata.spare_only(0).await.unwrap();
        assert_eq!(metadata.delete(id(1)).await, Err(MetadataError::NoMetadataSpace));
        let released = metadata.release_metadata_snap(no_flush).await;
        assert_eq!(released, Err(MetadataError::NoMetadataSpace));
        assert!(MetadataError::NoMetadataSpace.is_no_metadata_space());
        assert!(!metadata.any_changes() && !metadata.ran_out_alone());
    });
}

/// A pool whose metadata snapshot has devices of so many full leaves, numbered from 1 on, alone.
async fn snapshot_of(disk: &MemDisk, leaves: &[u64]) -> Metadata {
    let metadata = format_on(disk, leaves.iter().sum::<u64>() * LEAF).await;
    let mut begin = 0;
    for (number, leaves) in (1..).zip(leaves) {
        metadata.create_thin(id(number)).await.unwrap();
        metadata.map_run(id(number), begin..begin + leaves * LEAF).await.unwrap();
        begin += leaves * LEAF;
    }
    metadata.reserve_metadata_snap(no_flush).await.unwrap();
    for (number, _) in (1..).zip(leaves) {
        assert_eq!(metadata.delete(id(number)).await, Ok(Progress::Complete));
    }
    commit(&metadata).await;
    assert_eq!(metadata.free_data_blocks(), 0);
    metadata
}

#[test]
fn a_release_takes_so_many_leaves_from_the_last_device_on() {
    for leaves in [&[LARGE][..], &[100, 100, 100]] {
        block_on_ready(async {
            let disk = MemDisk::new(8 * 1000);
            let metadata = snapshot_of(&disk, leaves).await;
            assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Partial));
            sound(&disk);
            about(metadata.free_data_blocks(), STEP);
            assert!(metadata.held_root().is_some());
            assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Complete));
            sound(&disk);
            assert_eq!((metadata.free_data_blocks(), metadata.held_root()), (LARGE * LEAF, None));
        });
    }
}

/// Devices in the metadata snapshot.
async fn held_devices(disk: &MemDisk) -> usize {
    let options = dump::Options { metadata_snap: true, skip_mappings: true, ..dump::Options::default() };
    let mut text = Vec::new();
    let sink = async |piece: &[u8]| {
        text.extend_from_slice(piece);
        Ok::<(), Infallible>(())
    };
    dump::dump(&runtime(), &Disk::new(disk.clone()), &options, sink).await.unwrap();
    String::from_utf8(text).unwrap().matches("<device ").count()
}

/// So many empty devices, all of which a metadata snapshot has as well; the pool has another in a tree of its own.
async fn snapshot_of_shared(disk: &MemDisk, devices: u64) -> Metadata {
    let metadata = format_on(disk, MANY_BITMAPS).await;
    for number in 1..=devices {
        metadata.create_thin(id(number)).await.unwrap();
    }
    metadata.reserve_metadata_snap(no_flush).await.unwrap();
    metadata.create_thin(id(devices + 1)).await.unwrap();
    metadata
}

/// Of which the snapshot has no leaf alone: each counts as one, for there is something to be done for each.
#[test]
fn a_release_takes_so_many_devices_at_a_time() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 1000);
        let metadata = snapshot_of_shared(&disk, LARGE).await;
        metadata.spare_only(60).await.unwrap();
        assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Partial));
        assert_eq!(held_devices(&disk).await as u64, LARGE - STEP);
        // When there are none the trees go without the room that a leaf of devices would take.
        assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Complete));
        assert_eq!(metadata.devices().await.unwrap().len() as u64, LARGE + 1);
    });
}

#[test]
fn a_release_stops_when_nothing_is_left_to_spare() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = snapshot_of_shared(&disk, 10).await;
        metadata.spare_only(1).await.unwrap();
        assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Partial));
        assert_eq!(held_devices(&disk).await, 9);
    });
}

#[test]
fn a_metadata_snapshot_without_devices_is_released_without_room_for_a_leaf() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = snapshot_of_shared(&disk, 0).await;
        metadata.spare_only(1).await.unwrap();
        assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Complete));
        assert_eq!(metadata.held_root(), None);
    });
}

#[test]
fn a_release_that_has_no_room_for_anything_fails() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 400);
        let metadata = format_on(&disk, MANY_BITMAPS).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..LEAF).await.unwrap();
        let held = metadata.reserve_metadata_snap(no_flush).await.unwrap();
        assert_eq!(metadata.delete(id(1)).await, Ok(Progress::Complete));
        metadata.spare_only(30).await.unwrap();
        let error = metadata.release_metadata_snap(no_flush).await.unwrap_err();
        assert!(error.is_no_metadata_space() && metadata.ran_out_alone(), "{error}");
        metadata.roll_back().await.unwrap();
        assert_eq!((metadata.held_root(), metadata.any_changes(), metadata.spare()), (Some(held), false, 30));
    });
}
