//! The counts of another disk's blocks: a thin pool's data disk.

use super::index::index_blocks;
use super::{ChangeCost, CountMap, ENTRIES_PER_BITMAP, SpaceMapRoot, TreeIndex};
use crate::block_manager::{BlockManager, Stop};
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use core::cell::Cell;
use core::ops::Range;

/// A disk's space map (reference 3.4). Allocation is split: [`DiskMap::find_free`] proposes a block, and
/// [`DiskMap::inc`] takes it once something points to it, so that a crash in between leaks nothing.
pub struct DiskMap {
    counts: CountMap<TreeIndex>,
    /// Behind the block proposed last.
    cursor: Cell<u64>,
}

impl DiskMap {
    /// A map of `nr_blocks` free blocks.
    pub async fn create(tm: &TransactionManager, nr_blocks: u64) -> Result<DiskMap> {
        let counts = CountMap::empty(TreeIndex::create(tm).await?);
        counts.create_overflow(tm).await?;
        counts.extend(tm, nr_blocks).await?;
        Ok(DiskMap { counts, cursor: Cell::new(0) })
    }

    /// The map that `root` describes.
    pub fn open(root: &SpaceMapRoot) -> DiskMap {
        DiskMap { counts: CountMap::open(root, TreeIndex::open(root.bitmap_root.get())), cursor: Cell::new(0) }
    }

    /// Blocks counted.
    pub fn nr_blocks(&self) -> u64 {
        self.counts.nr_blocks()
    }

    /// Blocks with a count of 0, if whoever wrote the map told the truth.
    pub fn nr_free(&self) -> u64 {
        self.counts.nr_blocks().saturating_sub(self.counts.nr_allocated())
    }

    /// How often a block is pointed to.
    pub fn try_count(&self, blocks: &BlockManager, block: u64) -> Result<u32, Stop> {
        self.counts.try_count(blocks, block)
    }

    /// Counts every block of `range` once more.
    pub async fn inc(&self, tm: &TransactionManager, range: Range<u64>) -> Result<()> {
        self.counts.change_range(tm, range, 1, &mut |_| ()).await
    }

    /// Counts every block of `range` once less. `freed` is told of those that nothing points to any more.
    pub async fn dec(&self, tm: &TransactionManager, range: Range<u64>, freed: &mut impl FnMut(u64)) -> Result<()> {
        self.counts.change_range(tm, range, -1, freed).await
    }

    /// A block that is free, was free at the last commit, and is not skipped; the search goes round from the last.
    pub async fn find_free(&self, tm: &TransactionManager, skip: impl FnMut(u64) -> bool) -> Result<u64> {
        let found = self.counts.find_free_from(tm.blocks(), None, self.cursor.get(), skip).await?;
        let block = found.ok_or(Error::NoSpace)?;
        self.cursor.set(block.saturating_add(1));
        Ok(block)
    }

    /// Enlarges the map.
    pub async fn grow(&self, tm: &TransactionManager, nr_blocks: u64) -> Result<()> {
        self.counts.extend(tm, nr_blocks).await
    }

    /// Completes the map for a commit. What it returns belongs into the superblock.
    pub async fn close(&self, tm: &TransactionManager) -> Result<SpaceMapRoot> {
        self.counts.index.close(tm).await?;
        Ok(self.counts.root(self.counts.index.root()))
    }

    /// Metadata blocks that [`DiskMap::close`] takes at most for what was changed so far, the way to these aside.
    pub fn close_blocks(&self) -> u64 {
        (self.counts.index.changed() as u64).min(self.index_blocks())
    }

    /// Metadata blocks that [`DiskMap::grow`] to `nr_blocks` takes at most, [`DiskMap::close`] included, the ways aside.
    pub fn growth_blocks(&self, nr_blocks: u64) -> u64 {
        let bitmaps = |blocks: u64| blocks.div_ceil(ENTRIES_PER_BITMAP);
        match bitmaps(nr_blocks).saturating_sub(bitmaps(self.nr_blocks())) {
            0 => 0,
            new => new.saturating_add(index_blocks(new)),
        }
    }

    /// What changes of counts take at most, [`DiskMap::close`] included.
    pub async fn change_cost(&self, blocks: &BlockManager) -> Result<ChangeCost> {
        let cost = self.counts.change_cost(blocks).await?;
        Ok(ChangeCost { index_blocks: self.index_blocks(), ..cost })
    }

    fn index_blocks(&self) -> u64 {
        index_blocks(self.nr_blocks().div_ceil(ENTRIES_PER_BITMAP))
    }

    /// The superblock is durable.
    pub fn committed(&self) {
        self.counts.index.commit();
    }
}
