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

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::{String, ToString};
    use alloc::vec;

    fn report() -> Report {
        let restored = Restored { devices: 2, mappings: 90, metadata_blocks_used: 11, metadata_blocks: 64 };
        let parameter = |value, source| Parameter { value, source };
        Report {
            restored,
            state: State { origin: Origin::Superblock, mapping_root: Some(3), details_root: Some(4) },
            alternatives: vec![],
            superblock: None,
            unreadable: 0,
            beyond: 0,
            devices_missing: false,
            transaction_id: parameter(7, Source::Superblock),
            data_block_sectors: parameter(128, Source::Given),
            data_blocks: parameter(1000, Source::Copy(30)),
            damaged: vec![],
            untold: 0,
        }
    }

    fn device() -> DamagedDevice {
        DamagedDevice {
            device: DeviceId::new(5).unwrap(),
            mappings: 60,
            expected: Some(100),
            assumed: 0,
            details_lost: false,
            ranges: vec![],
            untold: 0,
        }
    }

    const BEGIN: &str = "\
2 devices and 90 mappings, from the state of the last commit
11 of 64 blocks of the new metadata disk are in use
transaction id: 7, as in the superblock
data block size in sectors: 128, as given
data blocks: 1000, as in the metadata snapshot in block 30
";

    #[test]
    fn a_repair_without_loss_says_so_and_no_more() {
        assert_eq!(report().to_string(), String::from(BEGIN) + "nothing of this state was lost");
        let inferred = Parameter { value: 8, source: Source::Inferred };
        let told = Report { data_blocks: inferred, ..report() }.to_string();
        assert!(told.contains("\ndata blocks: 8, inferred from what was found\n"), "{told}");
    }

    #[test]
    fn everything_that_was_lost_is_told() {
        let state = State { origin: Origin::Copy { block: 31 }, ..report().state };
        let told = Report {
            alternatives: vec![Alternative { state, mappings: 80 }],
            unreadable: 1,
            beyond: 1,
            devices_missing: true,
            damaged: vec![device(), DamagedDevice { expected: None, ..device() }],
            untold: 1,
            ..report()
        };
        let end = "\
the metadata snapshot in block 31 would have given 80 mappings
1 blocks of the damaged disk cannot be read
1 leaves lead beyond the data disk and were left out
devices may be missing: a part of the tree that names them was lost
device 5: 60 mappings of 100
device 5: 60 mappings, it is not known of how many
and 1 more devices
mappings known to be lost: 40";
        assert_eq!(told.to_string(), String::from(BEGIN) + end);
        for told in [Report { devices_missing: true, ..report() }, Report { damaged: vec![device()], ..report() }] {
            assert!(told.to_string().contains("mappings known to be lost: "), "{told}");
        }
    }

    #[test]
    fn a_damaged_device_tells_what_is_left_of_it() {
        let range = |first, last| LostRange { first, last };
        let told = DamagedDevice {
            assumed: 1,
            details_lost: true,
            ranges: vec![range(3, 9), range(20, u64::MAX)],
            untold: 1,
            ..device()
        };
        let expected = "device 5: 60 mappings of 100; 1 of them are assumed to be its own; its details were lost, so every \
                        block counts as shared; parts may be missing in virtual blocks 3..9, 20.., and 1 more ranges";
        assert_eq!(told.to_string(), expected);
    }

    #[test]
    fn a_state_tells_where_it_was_found() {
        let told = |origin, mapping_root| State { origin, mapping_root, details_root: None }.to_string();
        let found = "a state that was found by search (its tree of devices is in block 9)";
        assert_eq!(told(Origin::Search, Some(9)), found);
        assert_eq!(told(Origin::Search, None), "the details of the devices alone");
    }
}
