//! Checking what is on a disk: walks trees, recounts references, compares with the space maps.
//!
//! A target walks all of its trees with one [`Checker`], then lets it compare. What is found is told as [`Problem`]s;
//! nothing is changed and nothing stops the check. Blocks are read past the cache, many at a time. Memory is needed for
//! the counts, about 3 bytes a metadata block, and nothing else that grows: see [`Counts`] for what is done if a disk has more
//! blocks than fit.

mod array;
mod counts;
mod maps;
#[cfg(test)]
mod tests;
mod walk;

pub use counts::Counts;
pub use maps::Compared;
pub use walk::Walk;

use crate::Error;
use crate::block_manager::BlockManager;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Problems that are kept; more are only counted.
pub const PROBLEMS_MAX: usize = 1000;

/// Which of a pool's two space maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapName {
    /// Counts the metadata blocks.
    Metadata,
    /// Counts the blocks of the data disk.
    Data,
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// A hint or total that others write carelessly; nothing is lost.
    Hint,
    /// Space that nothing uses and nobody can have.
    Leak,
    /// Using this loses data.
    Damage,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A block cannot be read or understood.
    #[error(transparent)]
    Unreadable(#[from] Error),
    /// A node that is no root has fewer entries than it must.
    #[error("btree node {block} has {entries} entries, at least {floor} are needed")]
    Underfull {
        /// The node.
        block: u64,
        /// Its entries.
        entries: usize,
        /// The least.
        floor: usize,
    },
    /// A node has keys that its parent leads elsewhere for.
    #[error("btree node {block} has keys outside of what its parent {parent} says")]
    KeyRange {
        /// The node.
        block: u64,
        /// Its parent.
        parent: u64,
    },
    /// The blocks of an array do not make up its length.
    #[error("the array at {root} is not one of {len} values: a block is missing, not full, or beyond its end")]
    Array {
        /// The array.
        root: u64,
        /// Its length, as its target says.
        len: u64,
    },
    /// A stored count is not what was counted.
    #[error("{map:?} block {block} is referred to {counted} times, its space map says {stored}")]
    Count {
        /// The map.
        map: MapName,
        /// The block.
        block: u64,
        /// As stored.
        stored: u32,
        /// As it is.
        counted: u32,
    },
    /// The overflow tree counts a block that it should not.
    #[error("{map:?} block {block} is in the overflow tree with {count}, its bitmap says {bits}")]
    Overflow {
        /// The map.
        map: MapName,
        /// The block.
        block: u64,
        /// In the overflow tree.
        count: u32,
        /// In the bitmap.
        bits: u32,
    },
    /// Something points to a block that the map does not have.
    #[error("{map:?} block {block} is referred to, but there are only {blocks}")]
    Beyond {
        /// The map.
        map: MapName,
        /// The block.
        block: u64,
        /// Blocks counted by the map.
        blocks: u64,
    },
    /// A map counts a block that it does not have.
    #[error("the {map:?} space map says that block {block}, beyond its end, is referred to {stored} times")]
    BeyondEnd {
        /// The map.
        map: MapName,
        /// The block.
        block: u64,
        /// As stored.
        stored: u32,
    },
    /// A map has not exactly the bitmaps that it needs.
    #[error("the {map:?} space map of {blocks} blocks has {bitmaps} bitmaps, or they are numbered wrongly")]
    Bitmaps {
        /// The map.
        map: MapName,
        /// Blocks counted by the map.
        blocks: u64,
        /// Its bitmaps.
        bitmaps: u64,
    },
    /// The map's number of allocated blocks is wrong.
    #[error("the {map:?} space map says that {stored} blocks are in use; {counted} are")]
    Allocated {
        /// The map.
        map: MapName,
        /// As stored.
        stored: u64,
        /// As it is.
        counted: u64,
    },
    /// A bitmap's number of free entries is wrong.
    #[error("the {map:?} space map says that bitmap {bitmap} has {stored} free entries; it has {counted}")]
    Free {
        /// The map.
        map: MapName,
        /// Which bitmap.
        bitmap: u64,
        /// As stored.
        stored: u32,
        /// As it is.
        counted: u32,
    },
    /// A free entry is hidden from the search for one.
    #[error("the {map:?} space map says that bitmap {bitmap} has no free entry before {stored}; {counted} is free")]
    FreeBefore {
        /// The map.
        map: MapName,
        /// Which bitmap.
        bitmap: u64,
        /// As stored.
        stored: u32,
        /// The first free entry.
        counted: u32,
    },
}

impl Problem {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Problem::Count { stored: 1, counted: 0, .. } => Severity::Leak,
            // Even "none free": 0.9 says so of the last bitmap of a full map (reference 2.3).
            Problem::Allocated { .. } | Problem::Free { .. } | Problem::FreeBefore { .. } => Severity::Hint,
            _ => Severity::Damage,
        }
    }
}

/// What was found so far.
#[derive(Debug, Default)]
struct Problems {
    kept: Vec<Problem>,
    untold: u64,
}

impl Problems {
    fn tell(&mut self, problem: Problem) {
        if self.kept.len() < PROBLEMS_MAX {
            self.kept.push(problem);
        } else {
            self.untold = self.untold.saturating_add(1);
        }
    }
}

/// A check under way.
pub struct Checker {
    blocks: Rc<BlockManager>,
    nr_blocks: u64,
    /// References to metadata blocks, as counted so far.
    pub metadata: Counts,
    problems: Problems,
}

impl Checker {
    /// Starts with nothing counted of `nr_blocks` metadata blocks.
    pub fn new(blocks: impl Into<Rc<BlockManager>>, nr_blocks: u64) -> Checker {
        // No metadata map has so many blocks that a byte for each would be too much.
        let metadata = Counts::new(nr_blocks, usize::MAX);
        Checker { blocks: blocks.into(), nr_blocks, metadata, problems: Problems::default() }
    }

    /// The blocks that are checked.
    pub fn blocks(&self) -> &Rc<BlockManager> {
        &self.blocks
    }

    /// Metadata blocks that can be referred to.
    fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    /// Notes a problem.
    pub fn tell(&mut self, problem: Problem) {
        self.problems.tell(problem);
    }

    /// The problems found, and how many more there were than are kept.
    pub fn into_problems(self) -> (Vec<Problem>, u64) {
        (self.problems.kept, self.problems.untold)
    }
}
