//! The pool's metadata: what dm-thin-metadata is to dm-thin, on the same disk format (reference 1, 6).
//!
//! One transaction is always open. Changes go into it one at a time, in the order in which they were asked
//! for; [`Metadata::commit`] makes them durable and opens the next. A commit holds changes up, never lookups.

mod change;
pub mod check;
mod commit;
mod copy;
mod data_space;
mod delete;
pub mod delta;
mod devices;
pub mod dump;
mod error;
#[cfg(test)]
mod hog;
mod mappings;
mod owner;
pub mod repair;
pub mod restore;
mod room;
pub mod space;
mod state;
mod superblock;
#[cfg(test)]
mod tests;
mod text;
mod trees;
pub mod view;

pub use copy::{Shared, Source};
pub use delete::Progress;
pub use error::MetadataError;

use self::change::Turns;
use self::data_space::Space;
use self::devices::Device;
use self::room::Room;
use self::state::Core;
use self::view::Views;
use crate::control::DeviceId;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use pdata::pins::Pins;
use platform::Runtime;
use platform::block::Disk;

/// Result of a metadata operation.
pub type Result<T, E = MetadataError> = core::result::Result<T, E>;

/// A block of a thin device, counted in pool blocks from the device's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualBlock(pub u64);

/// A block of the data disk, counted in pool blocks from the disk's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataBlock(pub u64);

/// Where a virtual block lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// On the data disk.
    pub block: DataBlock,
    /// A snapshot may hold it too: it must be copied, not overwritten (reference 6.3).
    pub shared: bool,
}

/// What is known of a thin device besides its mappings (reference 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Details {
    /// Mappings of the device.
    pub mapped_blocks: u64,
    /// The pool's transaction id when the device was created.
    pub transaction_id: u64,
    /// The pool's clock when the device was created.
    pub creation_time: u32,
    /// The pool's clock after the latest snapshot of which it was origin or copy.
    pub snapshotted_time: u32,
}

/// Consecutive virtual blocks on consecutive data blocks with the same verdict on sharing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRange {
    /// First virtual block.
    pub begin: VirtualBlock,
    /// Behind the last virtual block.
    pub end: VirtualBlock,
    /// Where `begin` lives.
    pub data_begin: DataBlock,
    /// As in [`Mapping::shared`].
    pub shared: bool,
}

/// Consecutive data blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataRun {
    /// The first.
    pub begin: DataBlock,
    /// How many.
    pub blocks: u64,
}

/// What [`Metadata::remove_range`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Mappings removed.
    pub mappings: u64,
    /// Data blocks that nothing refers to any more, by the counts: safe to discard on the data disk (hold them
    /// with [`Metadata::hold_data`] until that is done). Free for allocation after the next commit.
    pub freed: Vec<DataRun>,
    /// Where to go on, if not everything was removed.
    pub next: Option<VirtualBlock>,
}

/// Whether [`Metadata::open`] expects a pool or makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// There is a pool; a blank disk is [`MetadataError::Blank`].
    Existing,
    /// Makes an empty pool, whatever is there.
    Format {
        /// Sectors in a data block: 128 to 2 097 152, a multiple of 128.
        data_block_sectors: u32,
        /// Size of the data disk in such blocks.
        data_blocks: u64,
    },
}

/// [`Metadata::try_lookup`] would have to wait: take [`Metadata::lookup`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocked;

/// The metadata of an open pool.
pub struct Metadata {
    runtime: Runtime,
    disk: Disk,
    cache_blocks: usize,
    read_only: Cell<bool>,
    core: RefCell<Rc<Core>>,
    devices: RefCell<BTreeMap<DeviceId, Device>>,
    /// Those of them that are changed.
    devices_changed: Cell<u64>,
    space: RefCell<Space>,
    turns: Turns,
    room: Room,
    views: Views,
}

impl Metadata {
    /// Opens (or makes) the pool on `disk`. The cache holds `cache_blocks` of 4 KiB. `read_only` as by
    /// [`Metadata::set_read_only`].
    pub async fn open(
        runtime: &Runtime,
        disk: Disk,
        mode: OpenMode,
        cache_blocks: usize,
        read_only: bool,
    ) -> Result<Metadata> {
        let core = match mode {
            OpenMode::Existing => Core::open(runtime, &disk, cache_blocks, read_only, &Pins::default()).await?,
            OpenMode::Format { .. } if read_only => return Err(MetadataError::ReadOnly),
            OpenMode::Format { data_block_sectors, data_blocks } => {
                Core::format(runtime, &disk, cache_blocks, data_block_sectors, data_blocks).await?
            }
        };
        let metadata = Metadata {
            runtime: runtime.clone(),
            disk,
            cache_blocks,
            read_only: Cell::new(read_only),
            core: RefCell::new(Rc::new(core)),
            devices: RefCell::default(),
            devices_changed: Cell::new(0),
            space: RefCell::default(),
            turns: Turns::new(),
            room: Room::default(),
            views: Views::new(runtime),
        };
        // Only changes need to know, and reading does not take the counts: they may be damaged.
        if !read_only && !metadata.needs_check() {
            metadata.costs(&metadata.core()).await?;
        }
        Ok(metadata)
    }

    fn core(&self) -> Rc<Core> {
        self.core.borrow().clone()
    }

    /// Sectors in a data block.
    pub fn data_block_sectors(&self) -> u32 {
        self.core.borrow().committed.get().data_block_sectors.get()
    }

    /// Userland's transaction id.
    pub fn transaction_id(&self) -> u64 {
        self.core.borrow().superblock.borrow().transaction_id.get()
    }

    /// The snapshot clock.
    pub fn time(&self) -> u32 {
        self.core.borrow().superblock.borrow().time.get()
    }

    /// Block of the held metadata snapshot, as committed.
    pub fn held_root(&self) -> Option<u64> {
        self.core.borrow().committed.get().held_root()
    }

    /// The flag in the superblock.
    pub fn needs_check(&self) -> bool {
        self.core.borrow().superblock.borrow().needs_check()
    }

    /// Every change fails with [`MetadataError::ReadOnly`] while set.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.set(read_only);
    }
}
