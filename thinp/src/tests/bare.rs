//! Metadata without a pool around it, on a disk that answers at once.

use crate::control::DeviceId;
use crate::metadata::{DataBlock, Details, Metadata, OpenMode, VirtualBlock, check};
use platform::Runtime;
use platform::block::{Disk, IoError};
use platform::mem::MemDisk;
use platform::random::Seeded;
use platform::simulated;
use std::rc::Rc;

/// Mappings in a full leaf.
pub const LEAF: u64 = 252;

pub fn runtime() -> Runtime {
    simulated::runtime_at_once(Rc::new(Seeded::from_u64(1)), 1 << 20)
}

pub async fn format(disk: &MemDisk, data_blocks: u64) -> Metadata {
    let mode = OpenMode::Format { data_block_sectors: 128, data_blocks };
    Metadata::open(&runtime(), Disk::new(disk.clone()), mode, 1024, false).await.unwrap()
}

pub async fn open(disk: Disk) -> Metadata {
    Metadata::open(&runtime(), disk, OpenMode::Existing, 1024, false).await.unwrap()
}

pub async fn no_flush() -> Result<(), IoError> {
    Ok(())
}

pub async fn commit(metadata: &Metadata) {
    metadata.commit(no_flush).await.unwrap();
}

/// A new device, open.
pub async fn device(metadata: &Metadata, device: DeviceId) {
    metadata.create_thin(device).await.unwrap();
    metadata.open_device(device).await.unwrap();
}

/// Maps a virtual block to a new data block.
pub async fn provision(metadata: &Metadata, device: DeviceId, block: u64) -> DataBlock {
    let data = metadata.reserve_data_block().await.unwrap();
    metadata.insert(device, VirtualBlock(block), data).await.unwrap();
    data
}

/// What is known of a device, open or not.
pub async fn details(metadata: &Metadata, device: DeviceId) -> Details {
    metadata.devices().await.unwrap().into_iter().find(|(found, _)| *found == device).unwrap().1
}

/// What is on the disk is sound, and nothing is lost.
#[track_caller]
pub fn sound(disk: &MemDisk) {
    let report = platform::task::block_on_ready(check::check(&runtime(), &Disk::new(disk.clone()), 1 << 20)).unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}
