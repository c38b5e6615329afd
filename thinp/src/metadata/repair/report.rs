//! What a repair tells: where things came from, what was lost, what was assumed.

use super::super::MetadataError;
use super::super::restore::Restored;
use super::states::State;
use crate::control::DeviceId;
use alloc::vec::Vec;
use core::fmt;

/// Devices, and ranges of each, that are told one by one.
pub(super) const TOLD_MAX: usize = 1000;

/// Where a parameter of the pool was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The superblock.
    Superblock,
    /// The copy of a superblock that a metadata snapshot is, in this block.
    Copy(u64),
    /// The one who asked for the repair.
    Given,
    /// It was inferred from the devices and mappings found: the least that they allow.
    Inferred,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Superblock => f.write_str("as in the superblock"),
            Source::Copy(block) => write!(f, "as in the metadata snapshot in block {block}"),
            Source::Given => f.write_str("as given"),
            Source::Inferred => f.write_str("inferred from what was found"),
        }
    }
}

/// A parameter of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its value.
    pub value: u64,
    /// Where that is from.
    pub source: Source,
}

/// Virtual blocks of a device, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// A device of which something was lost or assumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedDevice {
    /// Its id.
    pub device: DeviceId,
    /// Mappings that it has now.
    pub mappings: u64,
    /// Mappings that it had, by its details.
    pub expected: Option<u64>,
    /// Of the mappings that it has, those whose place was found by search, or is that of an earlier state.
    pub assumed: u64,
    /// Its details were lost: every block of it will be copied before it is overwritten, as if a snapshot had it, too.
    pub details_lost: bool,
    /// Where mappings may have been lost.
    pub ranges: Vec<LostRange>,
    /// Ranges beyond those.
    pub untold: u64,
}

/// A state of the pool that was found and not rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternative {
    /// The state.
    pub state: State,
    /// Mappings that it would have given.
    pub mappings: u64,
}

/// What a repair did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What the new metadata holds.
    pub restored: Restored,
    /// The state that it was made of.
    pub state: State,
    /// Other states that were looked at.
    pub alternatives: Vec<Alternative>,
    /// Why the superblock could not be used.
    pub superblock: Option<MetadataError>,
    /// Blocks that the disk failed to read.
    pub unreadable: u64,
    /// Leaves left out because they lead beyond the data disk.
    pub beyond: u64,
    /// Some devices may be missing altogether: parts of the tree that names them are lost.
    pub devices_missing: bool,
    /// Userland's transaction id.
    pub transaction_id: Parameter,
    /// Sectors in a data block.
    pub data_block_sectors: Parameter,
    /// Size of the data disk in such blocks.
    pub data_blocks: Parameter,
    /// Devices of which something was lost or assumed.
    pub damaged: Vec<DamagedDevice>,
    /// Such devices beyond those.
    pub untold: u64,
}

impl Report {
    /// Mappings that are known to be lost, of all devices together.
    pub fn mappings_lost(&self) -> u64 {
        let lost = |device: &DamagedDevice| device.expected.unwrap_or(0).saturating_sub(device.mappings);
        self.damaged.iter().map(lost).fold(0, u64::saturating_add)
    }
}
