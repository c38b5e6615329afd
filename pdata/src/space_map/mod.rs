//! Reference counts on disk (reference 2.2, 2.3, 3).
//!
//! Two bits a block in bitmaps, counts above 2 in a btree: both maps share that format. [`DiskMap`] counts the blocks of
//! another disk; [`MetadataMap`] counts the very blocks that it is made of.

pub(crate) mod bitmap;
mod counts;
mod disk;
mod index;
mod metadata;

pub use bitmap::ENTRIES_PER_BITMAP;
pub use disk::DiskMap;
pub use metadata::{METADATA_BLOCKS_MAX, MetadataMap};

pub(crate) use bitmap::{BITMAP, MANY};
pub(crate) use counts::CountMap;
pub(crate) use index::{Committed, CoreIndex, INDEX, Index, IndexEntry, TreeIndex};

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A space map as a superblock records it (reference 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SpaceMapRoot {
    /// Blocks counted.
    pub nr_blocks: U64,
    /// Blocks with a count above 0.
    pub nr_allocated: U64,
    /// Where the index of the bitmaps is: a btree's root, or the index block.
    pub bitmap_root: U64,
    /// Root of the btree of counts above 2.
    pub ref_count_root: U64,
}

/// How many metadata blocks changes of a map's counts may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeCost {
    nr_blocks: u64,
    bitmaps: u64,
    overflow_leaves: u64,
    index_blocks: u64,
}

impl ChangeCost {
    /// The most that each of three or more changes of single counts takes, whatever the map: a bitmap, an overflow leaf, a
    /// block of the index, and a new overflow leaf.
    pub const BLOCKS_BY_CHANGE: u64 = 4;

    /// The most that `changes` of single counts take in one transaction, new overflow leaves aside: each may change a
    /// bitmap, an overflow leaf and a block of the index of its own, but none of these twice.
    pub fn blocks(&self, changes: u64) -> u64 {
        let parts = [self.bitmaps, self.overflow_leaves, self.index_blocks];
        parts.iter().fold(0, |sum: u64, part| sum.saturating_add(changes.min(*part)))
    }

    /// What new overflow leaves and nodes above them take if as many counts rise above 2: leaves are half full when they are
    /// split off.
    pub fn new_leaves(&self, changes: u64) -> u64 {
        changes.min(self.nr_blocks) / 168 + 2
    }
}

#[cfg(test)]
mod tests {
    use super::ChangeCost;

    #[test]
    fn a_change_takes_what_it_touches_but_nothing_twice() {
        let cost = ChangeCost { nr_blocks: 40_000, bitmaps: 3, overflow_leaves: 2, index_blocks: 1 };
        assert_eq!([0, 1, 2, 1000].map(|changes| cost.blocks(changes)), [0, 3, 5, 6]);
        // A split makes a leaf, and perhaps a root above it; no more counts rise than there are blocks.
        assert!(cost.new_leaves(1) >= 2 && cost.new_leaves(10_000) >= 2 + 10_000 / 252);
        assert_eq!(cost.new_leaves(u64::MAX), cost.new_leaves(40_000));
    }

    #[test]
    fn no_map_takes_more_than_the_most() {
        let largest = u64::MAX;
        let cost = ChangeCost { nr_blocks: largest, bitmaps: largest, overflow_leaves: largest, index_blocks: largest };
        // A new leaf may need a root above and a new one at its side; a few changes pay for those.
        for changes in [3, 10, 252, 1000, 1 << 20] {
            assert!(cost.blocks(changes) + cost.new_leaves(changes) <= changes * ChangeCost::BLOCKS_BY_CHANGE);
        }
    }
}
