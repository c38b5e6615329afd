//! What can go wrong with a pool, and what each error is answered with.

mod answers;

pub use answers::Answer;

use crate::control::{DeviceId, Errno, Mode};
use crate::metadata::MetadataError;
use core::fmt;
use platform::block::IoError;
use platform::buf::NoBuffers;

/// One of the two disks of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolDisk {
    /// Holds the mappings.
    Metadata,
    /// Holds the data blocks.
    Data,
}

impl fmt::Display for PoolDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PoolDisk::Metadata => "metadata disk",
            PoolDisk::Data => "data disk",
        })
    }
}

/// Why an operation on an open pool or one of its devices failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The metadata refused or failed it.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A message that no pool understands.
    #[error("the pool does not understand this message ({0}): see the table of messages")]
    BadMessage(&'static str),
    /// Messages are not taken in this mode.
    #[error("the pool takes no such message in {0} mode: {way}", way = .0.way_out())]
    MessageRefused(Mode),
    /// The pool's mode does not allow this I/O.
    #[error("the pool cannot do this in {0} mode: {way}", way = .0.way_out())]
    Refused(Mode),
    /// The device is active: a handle on it is held.
    #[error("thin device {0} is in use: log its sessions out first")]
    Active(DeviceId),
    /// The device is being deleted.
    #[error("thin device {0} is being deleted: wait until it is gone")]
    Deleting(DeviceId),
    /// The device is being erased.
    #[error("thin device {0} is being erased: wait until that is done")]
    Erasing(DeviceId),
    /// A device is not erased, because what others map would be lost.
    #[error(
        "{blocks} data blocks of thin device {device} are shared with other devices or the metadata snapshot: \
         delete those, or release it, first"
    )]
    SharesBlocks {
        /// The thin device.
        device: DeviceId,
        /// Data blocks of it that are shared.
        blocks: u64,
    },
    /// The device is the pool's own.
    #[error("thin device {0} holds the pool's records: choose another")]
    Reserved(DeviceId),
    /// No data block is free.
    #[error("no data block is free: grow the data disk, or delete or discard something")]
    NoDataSpace,
    /// Writes of this device that were not flushed yet were lost with an aborted transaction.
    #[error("unflushed changes of thin device {0} were lost when a transaction failed: check its contents")]
    ChangesLost(DeviceId),
    /// The pool was opened to ignore discards.
    #[error("the pool was opened to ignore discards: open it without ignore_discard")]
    DiscardsIgnored,
    /// The data disk, or the external origin, failed.
    #[error("thin device {device} fails at sector {sector}: {source}; see to the data disk")]
    Io {
        /// The thin device.
        device: DeviceId,
        /// First sector of the piece on the thin device.
        sector: u64,
        /// What the disk said.
        source: IoError,
    },
    /// The data disk failed a read that is of no one device.
    #[error("the data disk cannot be read at sector {sector}: {source}; see to the data disk")]
    DataIo {
        /// First sector of the read on the data disk.
        sector: u64,
        /// What the disk said.
        source: IoError,
    },
    /// The data disk could not be flushed.
    #[error("the data disk cannot be flushed: {0}; see to that disk")]
    Flush(IoError),
    /// A buffer is no whole number of sectors.
    #[error("a request for sector {sector} of a thin device has buffers that are no whole sectors: give whole ones")]
    Malformed {
        /// First sector asked for.
        sector: u64,
    },
    /// Blocks cannot be copied by sharing them.
    #[error("blocks of the pool cannot be shared: {0}; copy their data")]
    NotShareable(&'static str),
    /// A request reaches beyond what a sector number can say.
    #[error("sectors {sector}+{sectors} reach beyond the largest thin device: ask for less")]
    OutOfRange {
        /// First sector asked for.
        sector: u64,
        /// Sectors asked for.
        sectors: u64,
    },
    /// No memory for I/O.
    #[error(transparent)]
    NoBuffers(#[from] NoBuffers),
    /// The records of the reserved device are damaged.
    #[error(
        "page {page} of the pool's records (thin device {device}) is damaged: {what}; delete that device and adopt the pool again"
    )]
    DamagedRecords {
        /// The reserved device.
        device: DeviceId,
        /// The logical page.
        page: u32,
        /// What is wrong.
        what: &'static str,
    },
    /// The pool has a reserved device already.
    #[error("thin device {0} holds the pool's records already: use those")]
    RecordsExist(DeviceId),
    /// A page of records is longer than fits.
    #[error("a page of the pool's records holds at most {most} bytes, not {len}: write less")]
    PageTooLong {
        /// Bytes asked for.
        len: usize,
        /// Bytes that fit.
        most: usize,
    },
    /// There is no such page of records.
    #[error("the pool's records have no page {0}: read one that was written")]
    NoPage(u32),
    /// All thin ids are in use.
    #[error("no thin id of the pool is free: delete a device")]
    NoFreeId,
    /// There is no needs_check to clear.
    #[error("the pool does not need a check: go on using it")]
    NoCheckNeeded,
    /// A check found more than hints.
    #[error("the check of the metadata disk found {problems} problems: run thin_repair on it")]
    NotSound {
        /// How many.
        problems: u64,
    },
    /// Another host has activated the pool. Nothing is written here any more.
    #[error(
        "another host has taken the pool over, so nothing of it is used here any more: stop one of the two, \
         then open the pool again on the other"
    )]
    TakenOver,
    /// The pool was closed.
    #[error("the pool is closed: open it again")]
    Closed,
}

impl Error {
    /// Linux's error number for it.
    pub fn errno(&self) -> Errno {
        self.answer().errno
    }
}

/// Why a pool could not be opened. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The metadata is unusable; the error names the block.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A disk failed.
    #[error("the {disk} cannot be read at sector {sector}: {source}; see to that disk")]
    Io {
        /// Which.
        disk: PoolDisk,
        /// Where.
        sector: u64,
        /// What it said.
        source: IoError,
    },
    /// Both disks are blank, and formatting was not allowed.
    #[error("block 0 of the metadata disk is blank: there is no pool; allow formatting to make one")]
    Blank,
    /// The metadata disk is blank but the data disk is not: the metadata was lost, or it is the wrong disk.
    #[error(
        "block 0 of the metadata disk is blank, but sector {sector} of the data disk is not: \
         is this the right metadata disk? format=yes makes a new pool and gives the old data up"
    )]
    DataInUse {
        /// The first sector seen that is not zero.
        sector: u64,
    },
    /// The data disk carries a thin superblock and the metadata disk does not.
    #[error(
        "block 0 of the data disk is a thin pool's superblock, so the metadata and data disks are swapped: swap them back"
    )]
    Swapped,
    /// The data disk is smaller than the pool's data.
    #[error(
        "the data disk has {disk_blocks} blocks of {block_sectors} sectors, the pool needs {pool_blocks}: attach all of it"
    )]
    DataTooSmall {
        /// Whole blocks on the disk.
        disk_blocks: u64,
        /// Blocks that the pool counts.
        pool_blocks: u64,
        /// Sectors in a block.
        block_sectors: u32,
    },
    /// A pool cannot have blocks of this size.
    #[error("the pool cannot have data blocks of {sectors} sectors: choose a multiple of 128 from 128 to 2097152")]
    BadBlockSize {
        /// The size asked for.
        sectors: u32,
    },
    /// A disk refuses writes, but the pool was not to be opened read-only.
    #[error("the {0} is read-only: open the pool read-only, or attach the disk writable")]
    WriteProtected(PoolDisk),
    /// No memory for I/O.
    #[error(transparent)]
    NoBuffers(#[from] NoBuffers),
}

impl OpenError {
    /// Linux's error number for it.
    pub fn errno(&self) -> Errno {
        self.answer().1
    }
}
