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
