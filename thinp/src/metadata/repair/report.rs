//! What a repair tells: where things came from, what was lost, what was assumed.

use super::super::MetadataError;
use super::super::restore::Restored;
use super::states::{Origin, State};
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

/// For people, a line each.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Restored { devices, mappings, metadata_blocks_used, metadata_blocks } = self.restored;
        writeln!(f, "{devices} devices and {mappings} mappings, from {}", self.state)?;
        writeln!(f, "{metadata_blocks_used} of {metadata_blocks} blocks of the new metadata disk are in use")?;
        if let Some(why) = self.superblock {
            writeln!(f, "the superblock was of no use: {why}")?;
        }
        let parameters = [
            ("transaction id", self.transaction_id),
            ("data block size in sectors", self.data_block_sectors),
            ("data blocks", self.data_blocks),
        ];
        for (what, Parameter { value, source }) in parameters {
            writeln!(f, "{what}: {value}, {source}")?;
        }
        for Alternative { state, mappings } in &self.alternatives {
            writeln!(f, "{state} would have given {mappings} mappings")?;
        }
        if self.unreadable > 0 {
            writeln!(f, "{} blocks of the damaged disk cannot be read", self.unreadable)?;
        }
        if self.beyond > 0 {
            writeln!(f, "{} leaves lead beyond the data disk and were left out", self.beyond)?;
        }
        if self.devices_missing {
            writeln!(f, "devices may be missing: a part of the tree that names them was lost")?;
        }
        self.damaged.iter().try_for_each(|device| writeln!(f, "{device}"))?;
        if self.untold > 0 {
            writeln!(f, "and {} more devices", self.untold)?;
        }
        match (self.damaged.is_empty() && !self.devices_missing, self.mappings_lost()) {
            (true, _) => f.write_str("nothing of this state was lost"),
            (false, lost) => write!(f, "mappings known to be lost: {lost}"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin {
            Origin::Superblock => f.write_str("the state of the last commit"),
            Origin::Copy { block } => write!(f, "the metadata snapshot in block {block}"),
            Origin::Search => match self.mapping_root {
                Some(root) => write!(f, "a state that was found by search (its tree of devices is in block {root})"),
                None => f.write_str("the details of the devices alone"),
            },
        }
    }
}

impl fmt::Display for DamagedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}: {} mappings", self.device, self.mappings)?;
        match self.expected {
            Some(expected) => write!(f, " of {expected}")?,
            None => f.write_str(", it is not known of how many")?,
        }
        if self.assumed > 0 {
            write!(f, "; {} of them are assumed to be its own", self.assumed)?;
        }
        if self.details_lost {
            f.write_str("; its details were lost, so every block counts as shared")?;
        }
        for (index, LostRange { first, last }) in self.ranges.iter().enumerate() {
            let separator = if index == 0 { "; parts may be missing in virtual blocks" } else { "," };
            match *last {
                u64::MAX => write!(f, "{separator} {first}..")?,
                last => write!(f, "{separator} {first}..{last}")?,
            }
        }
        if self.untold > 0 { write!(f, ", and {} more ranges", self.untold) } else { Ok(()) }
    }
}
