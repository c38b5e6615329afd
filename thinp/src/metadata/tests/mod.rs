//! The metadata alone, on disks in memory that answer at once.

mod checks;
mod deletes;
mod deltas;
mod dumps;
mod mappings;
mod restores;
mod room;
mod scene;
mod space;
mod turns;
mod views;

use super::view::View;
use super::{DataBlock, Details, Metadata, OpenMode, VirtualBlock, check};
use crate::control::DeviceId;
use platform::Runtime;
use platform::block::{Disk, IoError};
use platform::mem::MemDisk;
use platform::random::Seeded;
use platform::simulated;
use std::rc::Rc;

pub fn runtime() -> Runtime {
    simulated::runtime_at_once(Rc::new(Seeded::from_u64(1)), 1 << 20)
}

pub fn id(id: u64) -> DeviceId {
    DeviceId::new(id).unwrap()
}

/// Mappings in a full leaf.
pub const LEAF: u64 = 252;

/// An empty pool, and the disk that it is on.
pub async fn format(metadata_blocks: u64, data_blocks: u64) -> (MemDisk, Metadata) {
    let disk = MemDisk::new(metadata_blocks * 8);
    let metadata = format_on(&disk, data_blocks).await;
    (disk, metadata)
}

pub async fn format_on(disk: &MemDisk, data_blocks: u64) -> Metadata {
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

pub async fn open_view(metadata: &Metadata) -> View {
    metadata.open_view("test", None, async || Ok(())).await.unwrap()
}

/// Maps a virtual block of an open device to a new data block.
pub async fn map(metadata: &Metadata, device: u64, block: u64) -> super::Result<DataBlock> {
    let data = metadata.reserve_data_block().await?;
    metadata.insert(id(device), VirtualBlock(block), data).await?;
    Ok(data)
}

/// A new device with so many blocks mapped, open.
pub async fn device(metadata: &Metadata, device: u64, blocks: u64) {
    metadata.create_thin(id(device)).await.unwrap();
    metadata.open_device(id(device)).await.unwrap();
    for block in 0..blocks {
        map(metadata, device, block).await.unwrap();
    }
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
