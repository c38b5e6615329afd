//! What can go wrong below a target's metadata.

use platform::block::IoError;

/// Why an operation on persistent data failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The disk failed a request for a block.
    #[error("metadata block {block} cannot be {action}: {source}; see to the metadata disk")]
    Io {
        /// The block.
        block: u64,
        /// "read" or "written".
        action: &'static str,
        /// What the disk said.
        source: IoError,
    },
    /// The disk failed a flush.
    #[error("the metadata disk cannot be flushed: {0}; see to that disk")]
    Flush(IoError),
    /// A block does not hold what it should.
    #[error("metadata block {block} is no good {kind}: {what}; check the metadata, then repair it")]
    Damaged {
        /// The block.
        block: u64,
        /// What it should be.
        kind: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// A block number beyond what its space map counts.
    #[error("block {block} lies beyond the {blocks} blocks of its space map; check the metadata, then repair it")]
    OutOfRange {
        /// The block.
        block: u64,
        /// Blocks counted.
        blocks: u64,
    },
    /// A count would drop below zero or rise above 2^32 - 1.
    #[error(
        "the reference count of block {block} cannot change from {count} by {by}; check the metadata, then repair it"
    )]
    BadCount {
        /// The block.
        block: u64,
        /// Its count.
        count: u32,
        /// The change asked for.
        by: i64,
    },
    /// The space map has no free block.
    #[error("no metadata block is free: grow the metadata disk, or delete what is no longer needed")]
    NoSpace,
    /// No I/O buffer could be had.
    #[error("there is no memory for metadata I/O: try again later")]
    NoMemory,
    /// A map would grow beyond what its format can count, or shrink.
    #[error(
        "a space map cannot change from {from} to {to} blocks: it only grows, and only to what its index can count"
    )]
    BadSize {
        /// Blocks now.
        from: u64,
        /// Blocks asked for.
        to: u64,
    },
    /// A reader's pin was ended.
    #[error("what was read is a former state of the metadata, and its blocks were needed: read the present one")]
    Ended,
    /// Blocks are taken apart in the wrong order: the tree is too deep or refers to itself.
    #[error("the tree at metadata block {root} is deeper than any sound one; check the metadata, then repair it")]
    TooDeep {
        /// The root.
        root: u64,
    },
}

impl Error {
    /// The space map is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::NoSpace)
    }

    /// The disk is at fault, not its contents.
    pub fn is_io(&self) -> bool {
        matches!(self, Error::Io { .. } | Error::Flush(_) | Error::NoMemory)
    }
}

/// Result of an operation on persistent data.
pub type Result<T, E = Error> = core::result::Result<T, E>;
