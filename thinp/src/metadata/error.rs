//! What can go wrong with a pool's metadata.

use super::DataBlock;
use crate::control::DeviceId;
use platform::block::IoError;

/// Why a metadata operation failed. [`MetadataError::spoils`] tells whether the transaction survived it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The first metadata block is all zeroes: there is no pool here.
    #[error("the metadata disk is blank from block 0 on: format it, or attach the right disk")]
    Blank,
    /// The metadata disk cannot hold a pool.
    #[error("the metadata disk has {blocks} blocks of 4 KiB, a pool needs at least {least}: attach a larger one")]
    TooSmall {
        /// Blocks of the disk.
        blocks: u64,
        /// The least that works.
        least: u64,
    },
    /// Block 0 says that it is another block.
    #[error(
        "block 0 of the metadata disk calls itself block {found}, so it is no thin pool's superblock: attach the right disk"
    )]
    NotSuperblock {
        /// What it calls itself.
        found: u64,
    },
    /// Block 0 has no thin pool's magic.
    #[error(
        "block 0 of the metadata disk has magic {found:#x}, so it is no thin pool's superblock: attach the right disk"
    )]
    BadMagic {
        /// The magic found.
        found: u64,
    },
    /// The superblock's checksum is wrong.
    #[error("the superblock, block 0 of the metadata disk, has a wrong checksum: run thin_check, then thin_repair")]
    BadSuperblockChecksum,
    /// The superblock asks for what this version does not know.
    #[error(
        "the superblock, block 0 of the metadata disk, has unknown incompatible feature flags {flags:#x}: \
         use a newer version"
    )]
    UnknownFeatures {
        /// The flags set.
        flags: u32,
    },
    /// A field of the superblock is out of its range.
    #[error("the superblock, block 0 of the metadata disk, is damaged: {what}; run thin_check, then thin_repair")]
    BadSuperblock {
        /// What is wrong.
        what: &'static str,
    },
    /// The metadata disk is smaller than its space map.
    #[error(
        "the metadata disk has {disk_blocks} blocks, its space map {map_blocks}: the disk was cut short, attach all of it"
    )]
    DiskShrunk {
        /// Blocks of the disk.
        disk_blocks: u64,
        /// Blocks that the space map counts.
        map_blocks: u64,
    },
    /// Reading, writing or understanding metadata failed.
    #[error(transparent)]
    Storage(#[from] pdata::Error),
    /// The data disk could not be flushed before a commit.
    #[error("the data disk cannot be flushed before a commit: {0}; see to that disk")]
    DataFlush(IoError),
    /// The device exists.
    #[error("thin device {0} exists: choose another id")]
    Exists(DeviceId),
    /// There is no such device.
    #[error("there is no thin device {0}: choose one that exists")]
    NoDevice(DeviceId),
    /// The device is open.
    #[error("thin device {0} is in use: end that use first")]
    InUse(DeviceId),
    /// The device must be opened first.
    #[error("thin device {0} is not open: open it first")]
    NotOpen(DeviceId),
    /// The virtual block has no mapping.
    #[error("virtual block {block} of thin device {device} is not mapped: write it first")]
    NotMapped {
        /// The device.
        device: DeviceId,
        /// The virtual block.
        block: u64,
    },
    /// A mapping leads beyond the data disk.
    #[error(
        "virtual block {block} of thin device {device} is mapped to data block {data_block}, which the pool does not have; run thin_check"
    )]
    BadMapping {
        /// The device.
        device: DeviceId,
        /// The virtual block.
        block: u64,
        /// Where it is said to be.
        data_block: u64,
    },
    /// The pool's clock has no further tick for a snapshot (reference 9.1, trap 17).
    #[error(
        "the pool takes no more snapshots, for its clock stands at the last value, {0}: copy its volumes to a new pool"
    )]
    ClockExhausted(u32),
    /// The current transaction id is not the expected one.
    #[error("the pool's transaction id is {found}, not {expected}: begin again from the present one")]
    WrongTransactionId {
        /// What the caller expected.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// A metadata snapshot is held already.
    #[error("a metadata snapshot is held already at metadata block {0}: release it first")]
    SnapshotHeld(u64),
    /// No metadata snapshot is held.
    #[error("the pool holds no metadata snapshot: reserve one first")]
    NoSnapshotHeld,
    /// No data block is free.
    #[error("no data block is free: grow the data disk, or delete or discard something")]
    NoDataSpace,
    /// No metadata block is free outside the reserve; nothing was changed. A commit may help: blocks freed since the last
    /// one are not yet free.
    #[error("no metadata block is free (less the reserve): grow the metadata disk or delete volumes")]
    NoMetadataSpace,
    /// As many views are open as may be.
    #[error("{most} views of the metadata are open: wait until one of their jobs has ended")]
    TooManyViews {
        /// The most possible.
        most: usize,
    },
    /// A smaller size was asked for.
    #[error(
        "a disk of the pool has {to} blocks now and had {from}, and a pool cannot shrink: give the disk its size back"
    )]
    Shrink {
        /// Blocks now.
        from: u64,
        /// Blocks asked for.
        to: u64,
    },
    /// A larger size was asked for than there is, or than the format can count.
    #[error("a disk of the pool cannot grow to {blocks} blocks: make it at most {most}")]
    TooLarge {
        /// Blocks asked for.
        blocks: u64,
        /// The most possible.
        most: u64,
    },
    /// The data block was not reserved by [`super::Metadata::reserve_data_block`].
    #[error("data block {} was not reserved: reserve it before it is mapped", .0.0)]
    NotReserved(DataBlock),
    /// The metadata was opened or switched read-only.
    #[error("the metadata is open read-only: open the pool for writing")]
    ReadOnly,
    /// The metadata needs a check before it may grow.
    #[error("the metadata needs a check before it changes: check it, then clear the flag")]
    NeedsCheck,
    /// Block 0 is not what was written here last.
    #[error(
        "block 0 of the metadata disk was changed by another host, which has this pool: stop one of the two, \
         then open the pool again on the other"
    )]
    TakenOver,
    /// An earlier failure spoilt the transaction; only [`super::Metadata::abort`] helps.
    #[error("an earlier failure of a disk spoilt the pool's transaction: abort it")]
    Spoilt,
}

impl MetadataError {
    /// No metadata block is free, at least none outside the reserve.
    pub fn is_no_metadata_space(&self) -> bool {
        match self {
            MetadataError::NoMetadataSpace => true,
            MetadataError::Storage(error) => error.is_no_space(),
            _ => false,
        }
    }

    /// What is on the metadata disk is not what should be there, while the disk itself works.
    pub fn is_damage(&self) -> bool {
        match self {
            MetadataError::Storage(error) => !error.is_io() && !error.is_no_space(),
            MetadataError::Blank
            | MetadataError::NotSuperblock { .. }
            | MetadataError::BadMagic { .. }
            | MetadataError::BadSuperblockChecksum
            | MetadataError::BadSuperblock { .. }
            | MetadataError::BadMapping { .. } => true,
            _ => false,
        }
    }

    /// Of a change or commit: the transaction is not to be committed any more, [`super::Metadata::abort`] is the way on. All
    /// other errors of changes are refusals that changed nothing. Of a lookup it only says that metadata could not be read.
    pub fn spoils(&self) -> bool {
        matches!(
            self,
            MetadataError::Storage(_) | MetadataError::DataFlush(_) | MetadataError::Spoilt | MetadataError::TakenOver
        )
    }
}
