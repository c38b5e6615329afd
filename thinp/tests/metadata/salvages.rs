//! What a repair takes for what, on small pools.

use crate::dumps::{same, xml};
use crate::harness::*;
use crate::image::{self, DETAILS_ROOT, MAPPING_ROOT};
use crate::repairs::{GIVEN, repaired, repaired_with, root_of};
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use thinp::metadata::VirtualBlock;
use thinp::metadata::dump::Format;
use thinp::metadata::repair::{Options, Origin};
use thinp::metadata::restore::Overrides;

/// Mappings of a device with several leaves under one internal node.
const LARGE: u64 = 600;

/// All that is lost with the superblock.
const ALL_GIVEN: Options = Options {
    overrides: Overrides { transaction_id: Some(0), data_block_sectors: Some(128), data_blocks: Some(60_000) },
    last_commit: false,
};

/// A pool of devices that map the same virtual blocks, each its own data.
fn pool_of(devices: &[u64], mappings: u64) -> MemDisk {
    let disk = MemDisk::new(512 * 8);
    block_on_ready(async {
        let metadata = format(&disk, 60_000).await;
        for device in devices {
            metadata.create_thin(id(*device)).await.unwrap();
            metadata.open_device(id(*device)).await.unwrap();
            for block in 0..mappings {
                provision(&metadata, id(*device), block).await;
            }
        }
        commit(&metadata).await;
    });
    disk
}

fn wiped(disk: &MemDisk, blocks: &[u64]) -> MemDisk {
    let damaged = disk.fork();
    blocks.iter().for_each(|block| damaged.poke(block * 4096, &[0; 4096]));
    damaged
}

#[test]
fn leaves_of_another_device_do_not_fill_a_hole() {
    let disk = pool_of(&[1, 2], LARGE);
    for device in [1, 2] {
        let (fresh, report) = repaired(&wiped(&disk, &[root_of(&disk, device)])).unwrap();
        same(&xml(&fresh, Format::Xml09), &xml(&disk, Format::Xml09));
        assert_eq!(report.damaged.iter().map(|damaged| damaged.device).collect::<Vec<_>>(), [id(device)]);
    }
}

#[test]
fn a_pool_without_devices_comes_back() {
    let disk = pool_of(&[], 0);
    let (fresh, report) = repaired_with(&wiped(&disk, &[0]), &ALL_GIVEN).unwrap();
    same(&xml(&fresh, Format::Xml09), &xml(&disk, Format::Xml09));
    assert_eq!((report.restored.devices, report.restored.mappings), (0, 0));
}

#[test]
fn devices_that_are_all_large_make_a_state() {
    let disk = pool_of(&[1, 2], LARGE);
    let (fresh, report) = repaired_with(&wiped(&disk, &[0]), &ALL_GIVEN).unwrap();
    same(&xml(&fresh, Format::Xml09), &xml(&disk, Format::Xml09));
    assert_eq!(
        (report.state.origin, report.state.mapping_root),
        (Origin::Search, Some(image::word(&disk, MAPPING_ROOT)))
    );
    assert!(report.damaged.is_empty() && !report.devices_missing, "{report}");
}

/// Each device gets back what it had itself.
#[test]
fn leaves_of_an_earlier_state_fill_the_holes_of_the_same_device() {
    let disk = pool_of(&[1, 2], LARGE);
    block_on_ready(async {
        let metadata = open_on(platform::block::Disk::new(disk.clone()), CACHE).await;
        metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
        for device in [1, 2] {
            metadata.open_device(id(device)).await.unwrap();
            provision(&metadata, id(device), LARGE).await;
        }
        commit(&metadata).await;
    });
    // The last leaves are new, and so is all that leads to them; the metadata snapshot has the others.
    let last = |device| *image::leaves(&disk, root_of(&disk, device)).last().unwrap();
    let (_, report) = repaired(&wiped(&disk, &[last(1), last(2)])).unwrap();
    let told: Vec<_> = report.damaged.iter().map(|damaged| (damaged.device, damaged.mappings)).collect();
    assert_eq!(told, [(id(1), LARGE), (id(2), LARGE)], "all but the new one each");
    assert_eq!(report.state.origin, Origin::Superblock);
}

/// The state of the last commit is the one that is wanted, unless it gives less than another.
#[test]
fn an_earlier_state_that_gives_more_is_taken_unless_the_last_commit_is_wanted() {
    let disk = pool_of(&[1], LARGE);
    let (mapping_root, details_root) = (image::word(&disk, MAPPING_ROOT), image::word(&disk, DETAILS_ROOT));
    block_on_ready(async {
        let metadata = open_on(platform::block::Disk::new(disk.clone()), CACHE).await;
        metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        metadata.remove_range(id(1), VirtualBlock(0), VirtualBlock(LARGE / 2), LARGE).await.unwrap();
        commit(&metadata).await;
    });
    let new_roots = [image::word(&disk, MAPPING_ROOT), image::word(&disk, DETAILS_ROOT)];
    assert_ne!(new_roots, [mapping_root, details_root]);
    let last_leaf = *image::leaves(&disk, root_of(&disk, 1)).last().unwrap();
    let damaged = wiped(&disk, &[last_leaf]);
    let (_, report) = repaired(&damaged).unwrap();
    assert!(matches!(report.state.origin, Origin::Copy { .. }), "{report}");
    assert_eq!((report.restored.mappings, report.alternatives.len()), (LARGE, 1));
    assert_eq!(report.alternatives[0].state.origin, Origin::Superblock);
    assert!(report.alternatives[0].mappings < LARGE);
    let (_, report) = repaired_with(&damaged, &Options { last_commit: true, ..GIVEN }).unwrap();
    assert_eq!((report.state.origin, report.alternatives.len()), (Origin::Superblock, 0));
}
