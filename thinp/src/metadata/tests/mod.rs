//! The metadata alone, on disks in memory that answer at once.

mod checks;
mod deltas;
mod restores;
mod room;
mod space;
mod views;

use super::view::View;
use super::{DataBlock, Metadata, OpenMode, VirtualBlock};
use crate::control::DeviceId;
use platform::Runtime;
use platform::block::Disk;
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

/// An empty pool, and the disk that it is on.
pub async fn format(metadata_blocks: u64, data_blocks: u64) -> (MemDisk, Metadata) {
    let disk = MemDisk::new(metadata_blocks * 8);
    let mode = OpenMode::Format { data_block_sectors: 128, data_blocks };
    let metadata = Metadata::open(&runtime(), Disk::new(disk.clone()), mode, 256, false).await.unwrap();
    (disk, metadata)
}

pub async fn commit(metadata: &Metadata) {
    metadata.commit(async || Ok(())).await.unwrap();
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
