//! What the pool tells and is told: identifiers, modes, status, errno. The management interface depends on
//! these and on nothing else of the pool.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// A thin device's identifier, 24 bits (reference 1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u32);

impl DeviceId {
    /// The greatest id.
    pub const MAX: DeviceId = DeviceId((1 << 24) - 1);

    /// `None` if the number has more than 24 bits.
    pub const fn new(id: u64) -> Option<DeviceId> {
        if id <= DeviceId::MAX.0 as u64 { Some(DeviceId(id as u32)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The error numbers that dm-thin answers with, by their Linux names and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(clippy::upper_case_acronyms, missing_docs, reason = "these are their names")]
#[repr(u16)]
pub enum Errno {
    EPERM = 1,
    EIO = 5,
    ENOMEM = 12,
    ENOTBLK = 15,
    EBUSY = 16,
    EEXIST = 17,
    EINVAL = 22,
    ENOSPC = 28,
    ENODATA = 61,
    EILSEQ = 84,
    EOPNOTSUPP = 95,
}

impl Errno {
    /// The number, positive.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What an I/O request that failed is answered with, whatever the protocol: Linux's `blk_status_t` as far as a pool needs
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockStatus {
    /// The pool has no space for it.
    NoSpace,
    /// The pool takes no writes now.
    WriteProtected,
    /// What was asked for cannot be read or written.
    Medium,
    /// The request is malformed or reaches too far.
    OutOfRange,
    /// No resources now: try again.
    Busy,
    /// Anything else.
    Failed,
}

/// The pool's mode, by severity (reference 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Everything works.
    Write,
    /// No data block is free; writes that need one are queued or fail.
    OutOfDataSpace,
    /// No metadata block is free (less the reserve).
    OutOfMetadataSpace,
    /// Nothing changes any more.
    ReadOnly,
    /// Nothing works any more.
    Fail,
}

impl Mode {
    /// What to do to get back to write mode.
    pub const fn way_out(self) -> &'static str {
        match self {
            Mode::Write => "try again",
            Mode::OutOfDataSpace => "grow the data disk and the pool, or delete or discard something",
            Mode::OutOfMetadataSpace => {
                "grow the metadata disk and the pool, delete something, or release the metadata snapshot"
            }
            Mode::ReadOnly => "see in the log why, check the metadata, and open the pool for writing",
            Mode::Fail => "see in the log why, see to the disks, and open the pool again",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Write => "write",
            Mode::OutOfDataSpace => "out of data space",
            Mode::OutOfMetadataSpace => "out of metadata space",
            Mode::ReadOnly => "read-only",
            Mode::Fail => "fail",
        })
    }
}

/// What becomes of discards (reference 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscardPolicy {
    /// Thin devices refuse them.
    Ignore,
    /// Unmap, and tell the data disk.
    Passdown,
    /// Unmap only.
    NoPassdown,
}

/// The pool's state at one moment. Displays as the status line of `dmsetup status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Userland transaction id.
    pub transaction_id: u64,
    /// Metadata blocks (4 KiB) in use, the reserve included.
    pub metadata_used_blocks: u64,
    /// Metadata blocks in all.
    pub metadata_total_blocks: u64,
    /// Data blocks in use.
    pub data_used_blocks: u64,
    /// Data blocks in all.
    pub data_total_blocks: u64,
    /// Sectors in a data block.
    pub data_block_sectors: u32,
    /// Metadata block of the held metadata snapshot.
    pub held_root: Option<u64>,
    /// The mode.
    pub mode: Mode,
    /// What becomes of discards.
    pub discard: DiscardPolicy,
    /// Out of data space, writes fail at once instead of waiting.
    pub error_if_no_space: bool,
    /// The metadata needs a check before it may be written.
    pub needs_check: bool,
    /// Metadata low water mark in blocks.
    pub metadata_low_water_blocks: u64,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mode == Mode::Fail {
            return f.write_str("Fail");
        }
        write!(
            f,
            "{} {}/{} {}/{} ",
            self.transaction_id,
            self.metadata_used_blocks,
            self.metadata_total_blocks,
            self.data_used_blocks,
            self.data_total_blocks
        )?;
        match self.held_root {
            Some(block) => write!(f, "{block} ")?,
            None => f.write_str("- ")?,
        }
        f.write_str(match self.mode {
            Mode::Write => "rw ",
            Mode::OutOfDataSpace => "out_of_data_space ",
            Mode::OutOfMetadataSpace | Mode::ReadOnly | Mode::Fail => "ro ",
        })?;
        f.write_str(match self.discard {
            DiscardPolicy::Ignore => "ignore_discard ",
            DiscardPolicy::Passdown => "discard_passdown ",
            DiscardPolicy::NoPassdown => "no_discard_passdown ",
        })?;
        f.write_str(if self.error_if_no_space { "error_if_no_space " } else { "queue_if_no_space " })?;
        f.write_str(if self.needs_check { "needs_check " } else { "- " })?;
        write!(f, "{} ", self.metadata_low_water_blocks)
    }
}

/// As many blocks as the disks have room for at one moment: what a pool can grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskBlocks {
    /// Metadata blocks (4 KiB), at most what the format can count.
    pub metadata: u64,
    /// Data blocks.
    pub data: u64,
}

/// Who reads a former moment of the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewInfo {
    /// Who opened it.
    pub holder: String,
    /// How long ago that was.
    pub age: Duration,
    /// How long ago it was ended, if reads that are still under way keep it from giving its blocks back.
    pub ending: Option<Duration>,
    /// Metadata blocks that it holds back, alone or with other views.
    pub held_back_blocks: u64,
}

/// The views of the metadata that are open or ending at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewsInfo {
    /// The views, oldest first.
    pub views: Vec<ViewInfo>,
    /// Views that there can be at a time.
    pub views_max: usize,
    /// Metadata blocks that nothing but views uses any more: they are not free.
    pub held_back_blocks: u64,
}

/// A thin device's state at one moment. Displays as the status line of `dmsetup status` (reference 7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThinStatus {
    /// The pool works.
    Mapped {
        /// Sectors mapped.
        mapped_sectors: u64,
        /// The last sector mapped, if any is.
        highest_mapped_sector: Option<u64>,
    },
    /// The pool failed.
    Fail,
}

impl fmt::Display for ThinStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ThinStatus::Fail => f.write_str("Fail"),
            ThinStatus::Mapped { mapped_sectors, highest_mapped_sector: Some(highest) } => {
                write!(f, "{mapped_sectors} {highest}")
            }
            ThinStatus::Mapped { mapped_sectors, highest_mapped_sector: None } => write!(f, "{mapped_sectors} -"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_24_bits() {
        assert_eq!(DeviceId::new(0xFF_FFFF), Some(DeviceId::MAX));
        assert_eq!([0x100_0000, 0x100_0001, u64::MAX].map(DeviceId::new), [None; 3]);
    }
}
