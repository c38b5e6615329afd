//! What a repair assumes where nothing leads: only what must be so, and never what is older than something else.

use crate::harness::*;
use crate::image::{self, DETAILS_ROOT, MAPPING_ROOT};
use crate::repairs::{BLOCKS, GIVEN, MEMORY_BYTES, repaired, repaired_with, root_of, two_devices};
use platform::block::{Disk, IoError, Op};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::rc::Rc;
use thinp::metadata::repair::{self, Options};
use thinp::metadata::{Metadata, Progress, VirtualBlock};

/// Mappings of [`two_devices`].
const ALL: u64 = 10_001;

fn erase(disk: &MemDisk, block: u64) {
    disk.poke(block * 4096, &[0; 4096]);
}

async fn provision_all(metadata: &Metadata, device: u64, blocks: std::ops::Range<u64>) {
    metadata.open_device(id(device)).await.unwrap();
    for block in blocks {
        provision(metadata, id(device), block).await;
    }
    metadata.close_device(id(device));
}

/// What of a device is mapped, and the data blocks.
fn mapped(disk: &MemDisk, device: u64) -> Vec<(u64, u64)> {
    let entries = image::entries(disk, root_of(disk, device));
    entries.iter().map(|entry| (entry.key, image::word(disk, entry.value_at) >> 24)).collect()
}

#[test]
fn a_leaf_that_leads_beyond_the_data_disk_is_left_out() {
    let disk = two_devices();
    let leaf = image::node(&disk, image::leaves(&disk, root_of(&disk, 1))[3]);
    image::put(&disk, leaf[5].value_at, &(60_000u64 << 24).to_le_bytes());
    let (fresh, report) = repaired(&disk).unwrap();
    let lost = 2 * leaf.len() as u64;
    assert_eq!((report.beyond, report.data_blocks.value, report.mappings_lost()), (1, 60_000, lost), "{report}");
    assert_eq!(check(&fresh).mappings, ALL - lost);
}

/// A full pool: device 3 lost half of its mappings, and device 1 was given their data blocks. Returns the root of the tree of
/// devices before that.
fn half_is_given_away() -> (MemDisk, u64) {
    let disk = MemDisk::new(BLOCKS * 8);
    let before = block_on_ready(async {
        let metadata = format(&disk, 300).await;
        for device in [1, 3] {
            metadata.create_thin(id(device)).await.unwrap();
        }
        provision_all(&metadata, 1, 0..200).await;
        provision_all(&metadata, 3, 0..100).await;
        commit(&metadata).await;
        let before = image::word(&disk, MAPPING_ROOT);
        metadata.open_device(id(3)).await.unwrap();
        metadata.remove_range(id(3), VirtualBlock(0), VirtualBlock(50), 50).await.unwrap();
        commit(&metadata).await;
        provision_all(&metadata, 1, 1000..1050).await;
        commit(&metadata).await;
        before
    });
    (disk, before)
}

#[test]
fn of_an_earlier_leaf_only_what_nobody_else_has_is_taken() {
    let (disk, _) = half_is_given_away();
    let left = mapped(&disk, 3);
    erase(&disk, root_of(&disk, 3));
    let (fresh, report) = repaired(&disk).unwrap();
    assert_eq!(check(&fresh).mappings, 300);
    assert_eq!((mapped(&fresh, 3), report.damaged.len(), report.mappings_lost()), (left, 1, 0), "{report}");
}

#[test]
fn a_leaf_that_is_free_and_that_nothing_leads_to_is_not_taken() {
    let (disk, before) = half_is_given_away();
    erase(&disk, root_of(&disk, 3));
    // Now no tree names the leaf that device 3 had at first.
    erase(&disk, before);
    let (fresh, report) = repaired_with(&disk, &Options { last_commit: true, ..GIVEN }).unwrap();
    assert_eq!((check(&fresh).mappings, report.mappings_lost()), (250, 50), "{report}");
}

/// What lies in the block that has a device's number is nothing of it.
#[test]
fn a_device_whose_root_is_lost_has_only_what_is_known_to_be_its_own() {
    let disk = MemDisk::new(BLOCKS * 8);
    block_on_ready(async {
        let metadata = format(&disk, 1000).await;
        for device in 1..60 {
            metadata.create_thin(id(device)).await.unwrap();
        }
        provision_all(&metadata, 1, 0..100).await;
        commit(&metadata).await;
    });
    let root = root_of(&disk, 1);
    assert!((2..60).contains(&root), "there is no device {root}");
    erase(&disk, image::word(&disk, MAPPING_ROOT));
    let (fresh, report) = repaired_with(&disk, &Options { last_commit: true, ..GIVEN }).unwrap();
    assert_eq!(
        (mapped(&fresh, 1).len(), mapped(&fresh, root).len(), check(&fresh).mappings),
        (100, 0, 100),
        "{report}"
    );
}

/// Only the number of their mappings tells devices apart, and here it does not.
#[test]
fn a_tree_that_may_be_of_either_of_two_devices_is_given_to_none() {
    let disk = MemDisk::new(BLOCKS * 8);
    block_on_ready(async {
        let metadata = format(&disk, 1000).await;
        for device in [1, 3] {
            metadata.create_thin(id(device)).await.unwrap();
            provision_all(&metadata, device, 0..100).await;
        }
        commit(&metadata).await;
    });
    erase(&disk, root_of(&disk, 3));
    erase(&disk, image::word(&disk, MAPPING_ROOT));
    let (fresh, report) = repaired_with(&disk, &Options { last_commit: true, ..GIVEN }).unwrap();
    assert_eq!((check(&fresh).mappings, report.restored.devices), (0, 2), "{report}");
}

#[test]
fn what_was_written_after_the_last_snapshot_is_shared_too_if_details_are_lost() {
    let disk = two_devices();
    block_on_ready(async {
        let metadata = open_on(Disk::new(disk.clone()), CACHE).await;
        provision_all(&metadata, 1, 6000..6001).await;
        commit(&metadata).await;
    });
    erase(&disk, image::word(&disk, DETAILS_ROOT));
    let (fresh, _) = repaired_with(&disk, &Options { last_commit: true, ..GIVEN }).unwrap();
    check(&fresh);
    block_on_ready(async {
        let metadata = open_on(Disk::new(fresh), CACHE).await;
        metadata.open_device(id(1)).await.unwrap();
        assert!(metadata.lookup(id(1), VirtualBlock(6000)).await.unwrap().unwrap().shared);
    });
}

/// Details of the same devices with as many mappings, without a superblock: an older snapshot time lets what is shared be
/// overwritten.
#[test]
fn of_two_details_trees_the_newer_is_taken() {
    let disk = MemDisk::new(BLOCKS * 8);
    block_on_ready(async {
        let metadata = format(&disk, 1000).await;
        metadata.create_thin(id(1)).await.unwrap();
        for times in 1..=3 {
            metadata.create_snap(id(2), id(1)).await.unwrap();
            if times == 1 {
                provision_all(&metadata, 1, 0..10).await;
            }
            while metadata.delete(id(2)).await.unwrap() == Progress::Partial {}
            commit(&metadata).await;
        }
    });
    erase(&disk, 0);
    let (fresh, _) = repaired(&disk).unwrap();
    let details = block_on_ready(async { open_read_only(&fresh).await.devices().await.unwrap() });
    let told: Vec<_> = details.iter().map(|(_, details)| (details.mapped_blocks, details.snapshotted_time)).collect();
    assert_eq!(told, [(10, 3)]);
}

/// The disk fails requests that touch a bad sector, not just that sector.
#[test]
fn a_bad_sector_takes_only_its_block() {
    let disk = two_devices();
    let leaf = image::leaves(&disk, root_of(&disk, 1))[3];
    let lost = 2 * image::node(&disk, leaf).len() as u64;
    let bad = leaf * 8 + 3;
    let failing = Fault::new(Rc::new(disk), move |request| {
        let touches = (request.sector..request.sector + request.sectors).contains(&bad);
        touches.then_some(IoError::Device { op: Op::Read, sector: bad })
    });
    let fresh = MemDisk::new(BLOCKS * 8);
    let onto = Disk::new(fresh.clone());
    let report = block_on_ready(repair::repair(&runtime(), &Disk::new(failing), &onto, MEMORY_BYTES, &GIVEN)).unwrap();
    assert_eq!((report.unreadable, report.mappings_lost()), (1, lost), "{report}");
    assert_eq!(check(&fresh).mappings, ALL - lost);
}
