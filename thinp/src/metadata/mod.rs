//! The pool's metadata: what dm-thin-metadata is to dm-thin, on the same disk format (reference 1, 6).
//!
//! One transaction is always open. Changes go into it one at a time, in the order in which they were asked
//! for; [`Metadata::commit`] makes them durable and opens the next. A commit holds changes up, never lookups.

mod error;

pub use error::MetadataError;

use crate::control::DeviceId;
use alloc::vec::Vec;
use platform::Runtime;
use platform::block::{Disk, IoError};

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
    /// Where to go on, if the limit was reached before the end of the range.
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
    _private: (),
}

#[expect(unused_variables, reason = "the bodies follow")]
impl Metadata {
    /// Opens (or makes) the pool on `disk`. The cache holds `cache_blocks` of 4 KiB.
    pub async fn open(
        runtime: &Runtime,
        disk: Disk,
        mode: OpenMode,
        cache_blocks: usize,
        read_only: bool,
    ) -> Result<Metadata> {
        unreachable!()
    }
    /// Sectors in a data block.
    pub fn data_block_sectors(&self) -> u32 {
        unreachable!()
    }
    /// Userland's transaction id.
    pub fn transaction_id(&self) -> u64 {
        unreachable!()
    }
    /// The snapshot clock.
    pub fn time(&self) -> u32 {
        unreachable!()
    }
    /// Block of the held metadata snapshot, as committed.
    pub fn held_root(&self) -> Option<u64> {
        unreachable!()
    }
    /// The flag in the superblock.
    pub fn needs_check(&self) -> bool {
        unreachable!()
    }
    /// Every change fails with [`MetadataError::ReadOnly`] while set.
    pub fn set_read_only(&self, read_only: bool) {
        unreachable!()
    }
    /// Makes an empty device.
    pub async fn create_thin(&self, device: DeviceId) -> Result<()> {
        unreachable!()
    }
    /// Makes a snapshot. The origin, if active, must be quiesced (no lookup between verdict and write).
    pub async fn create_snap(&self, device: DeviceId, origin: DeviceId) -> Result<()> {
        unreachable!()
    }
    /// Deletes a device that is not open.
    pub async fn delete(&self, device: DeviceId) -> Result<()> {
        unreachable!()
    }
    /// Loads a device's details; needed before its mappings can be used. Opens nest.
    pub async fn open_device(&self, device: DeviceId) -> Result<Details> {
        unreachable!()
    }
    /// Undoes one [`Metadata::open_device`].
    pub fn close_device(&self, device: DeviceId) {
        unreachable!()
    }
    /// Details of an open device, up to the moment.
    pub fn details(&self, device: DeviceId) -> Option<Details> {
        unreachable!()
    }
    /// All devices by id.
    pub async fn devices(&self) -> Result<Vec<(DeviceId, Details)>> {
        unreachable!()
    }
    /// Looks a block up if that takes no waiting: the hot path. The device must be open.
    pub fn try_lookup(&self, device: DeviceId, block: VirtualBlock) -> Result<Option<Mapping>, Blocked> {
        unreachable!()
    }
    /// Looks a block up.
    pub async fn lookup(&self, device: DeviceId, block: VirtualBlock) -> Result<Option<Mapping>> {
        unreachable!()
    }
    /// The first mapped block at or after `from`.
    pub async fn next_mapped(&self, device: DeviceId, from: VirtualBlock) -> Result<Option<VirtualBlock>> {
        unreachable!()
    }
    /// The last mapped block.
    pub async fn highest_mapped(&self, device: DeviceId) -> Result<Option<VirtualBlock>> {
        unreachable!()
    }
    /// The first run of mappings in `begin..end`.
    pub async fn mapped_range(
        &self,
        device: DeviceId,
        begin: VirtualBlock,
        end: VirtualBlock,
    ) -> Result<Option<MappedRange>> {
        unreachable!()
    }
    /// Reserves a data block that is free now and was free at the last commit. Held in memory only, until
    /// [`Metadata::insert`] or [`Metadata::unreserve_data_block`]: a crash cannot leak it.
    pub async fn reserve_data_block(&self) -> Result<DataBlock> {
        unreachable!()
    }
    /// Gives a reserved data block back.
    pub fn unreserve_data_block(&self, block: DataBlock) {
        unreachable!()
    }
    /// Maps a virtual block to a reserved data block (in place of what it was mapped to) and counts the block.
    pub async fn insert(&self, device: DeviceId, block: VirtualBlock, data: DataBlock) -> Result<()> {
        unreachable!()
    }
    /// Exchanges the mappings of two mapped blocks of one device. Allocates no data block.
    pub async fn swap(&self, device: DeviceId, a: VirtualBlock, b: VirtualBlock) -> Result<()> {
        unreachable!()
    }
    /// Removes the mappings in `begin..end`, at most `most` of them.
    pub async fn remove_range(
        &self,
        device: DeviceId,
        begin: VirtualBlock,
        end: VirtualBlock,
        most: u64,
    ) -> Result<Removed> {
        unreachable!()
    }
    /// How many leaves refer to a data block.
    pub async fn data_block_count(&self, block: DataBlock) -> Result<u32> {
        unreachable!()
    }
    /// Keeps data blocks from being reserved, in memory only: while they are being discarded on the data disk.
    pub fn hold_data(&self, run: DataRun) {
        unreachable!()
    }
    /// Undoes [`Metadata::hold_data`].
    pub fn release_data(&self, run: DataRun) {
        unreachable!()
    }
    /// The open device has uncommitted changes (reference 6.5).
    pub fn changed(&self, device: DeviceId) -> bool {
        unreachable!()
    }
    /// Anything is uncommitted.
    pub fn any_changes(&self) -> bool {
        unreachable!()
    }
    /// Makes the transaction durable. `flush_data` makes the data durable that new mappings point to; it may
    /// overlap the write-out of metadata, and is awaited before the superblock is written.
    pub async fn commit(&self, flush_data: impl AsyncFnOnce() -> Result<(), IoError>) -> Result<()> {
        unreachable!()
    }
    /// Drops the transaction, goes back to what was committed and sets needs_check. Reservations and holds of data
    /// blocks stay. If this fails the metadata is of no further use.
    pub async fn abort(&self) -> Result<()> {
        unreachable!()
    }
    /// The device had uncommitted changes when the transaction was aborted (reference 6.6).
    pub fn aborted_with_changes(&self, device: DeviceId) -> bool {
        unreachable!()
    }
    /// Sets the flag in the superblock, on disk at once.
    pub async fn set_needs_check(&self) -> Result<()> {
        unreachable!()
    }
    /// Size of the data map in data blocks.
    pub fn data_blocks(&self) -> u64 {
        unreachable!()
    }
    /// Data blocks neither counted nor reserved nor held.
    pub fn free_data_blocks(&self) -> u64 {
        unreachable!()
    }
    /// Size of the metadata map in 4 KiB blocks.
    pub fn metadata_blocks(&self) -> u64 {
        unreachable!()
    }
    /// Free metadata blocks less the reserve (reference 3.3).
    pub fn free_metadata_blocks(&self) -> u64 {
        unreachable!()
    }
    /// min(1024, a quarter of the metadata blocks) (reference 7.3).
    pub fn metadata_low_water_blocks(&self) -> u64 {
        unreachable!()
    }
    /// Changes the transaction id from `current` to `new`.
    pub async fn set_transaction_id(&self, current: u64, new: u64) -> Result<()> {
        unreachable!()
    }
    /// Takes a metadata snapshot and returns its block. Commits before and after: `flush_data` runs twice.
    pub async fn reserve_metadata_snap(&self, flush_data: impl AsyncFn() -> Result<(), IoError>) -> Result<u64> {
        unreachable!()
    }
    /// Lets the metadata snapshot go; effective on disk with a commit that is included.
    pub async fn release_metadata_snap(&self, flush_data: impl AsyncFn() -> Result<(), IoError>) -> Result<()> {
        unreachable!()
    }
    /// Grows the data map to `blocks`.
    pub async fn grow_data(&self, blocks: u64) -> Result<()> {
        unreachable!()
    }
    /// Grows the metadata map to `blocks`.
    pub async fn grow_metadata(&self, blocks: u64) -> Result<()> {
        unreachable!()
    }
}
