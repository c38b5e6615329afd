//! A pool that was made elsewhere: one device, so large that deleting it takes several transactions.

use crate::image::Image;
use crate::model::BLOCK;
use crate::quick::QuickDisk;
use crate::shape::Shape;
use crate::world::World;
use platform::block::Disk;
use std::cell::RefCell;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, OpenMode, VirtualBlock};

/// What the appliance calls the device when it adopts the pool.
pub const NAME: &str = "thin-0";

/// Mappings: a step of a delete drops up to 256 leaves, of up to 252 mappings each.
pub const MAPPINGS: u64 = 2 * 256 * 252 + 2000;

const BUFS_BYTES: usize = 8 << 20;

thread_local! {
    /// The metadata, for it takes a while to make.
    static MADE: RefCell<Option<Image>> = const { RefCell::new(None) };
}

/// The metadata of such a pool, for a data disk of the shape's size.
pub fn metadata(shape: &Shape) -> Image {
    let shape = *shape;
    let made = || {
        World::new(0).run(BUFS_BYTES, async move |runtime| {
            let disk = QuickDisk::new(Image::new(shape.metadata_blocks * 8));
            let mode = OpenMode::Format { data_block_sectors: BLOCK as u32, data_blocks: shape.data_blocks };
            let metadata =
                Metadata::open(&runtime, Disk::new(disk.clone()), mode, 2000, false).await.expect("a new pool");
            let device = DeviceId::new(0).expect("an id");
            metadata.create_thin(device).await.expect("a device");
            metadata.open_device(device).await.expect("the device just made");
            for block in 0..MAPPINGS {
                let data = metadata.reserve_data_block().await.expect("room");
                metadata.insert(device, VirtualBlock(block), data).await.expect("room");
            }
            metadata.commit(async || Ok(())).await.expect("a disk without faults");
            disk.image()
        })
    };
    MADE.with_borrow_mut(|kept| kept.get_or_insert_with(made).clone())
}
