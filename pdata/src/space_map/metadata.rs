//! The counts of the metadata blocks themselves.
//!
//! Changing a count may shadow a bitmap, which allocates one block and frees another, which changes counts. So changes
//! are not made at once but noted, and [`MetadataMap::settle`] applies them bitmap by bitmap, each of which may note more,
//! until none is left (reference 3.5). Reading a count adds what is noted, and a block with a note is never handed out.

use super::bitmap::{self, BITMAP};
use super::counts::sum;
use super::index::INDEX;
use super::{ChangeCost, CoreIndex, CountMap, ENTRIES_PER_BITMAP, SpaceMapRoot};
use crate::block_manager::{Batch, BlockManager};
use crate::pins::{Pin, Pins};
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use hashbrown::HashMap;

/// Most blocks that a metadata map can count (reference 1.5).
pub const METADATA_BLOCKS_MAX: u64 = super::index::INDEX_ENTRIES as u64 * ENTRIES_PER_BITMAP;

/// Bitmaps that are read together to be pinned.
const PINNED_AT_ONCE: usize = 64;

/// The metadata space map.
pub struct MetadataMap {
    counts: CountMap<CoreIndex>,
    index_block: Cell<u64>,
    /// Noted changes of counts, none of them 0.
    pending: RefCell<HashMap<u64, i64>>,
    /// Behind the block handed out last.
    cursor: Cell<u64>,
    /// While there are no bitmaps for it: the rest of an area that is known to be free (reference 3.6).
    untouched: RefCell<Option<Range<u64>>>,
    /// Free blocks as of the last commit.
    committed_free: Cell<u64>,
    /// Blocks handed out since.
    taken: Cell<u64>,
    pins: Pins,
}

impl MetadataMap {
    /// A map without bitmaps that hands out 1, 2, 3 ... until [`MetadataMap::format`] gave it some.
    pub(crate) fn unformatted(nr_blocks: u64) -> MetadataMap {
        MetadataMap::new(CountMap::empty(CoreIndex::empty()), 0, Some(1..nr_blocks), Pins::default())
    }

    fn new(counts: CountMap<CoreIndex>, index_block: u64, untouched: Option<Range<u64>>, pins: Pins) -> MetadataMap {
        MetadataMap {
            committed_free: Cell::new(counts.nr_blocks().saturating_sub(counts.nr_allocated())),
            counts,
            index_block: Cell::new(index_block),
            pending: RefCell::default(),
            cursor: Cell::new(0),
            untouched: RefCell::new(untouched),
            taken: Cell::new(0),
            pins,
        }
    }

    /// Makes index, overflow tree and bitmaps, then counts them, and block 0 for the superblock.
    pub(crate) async fn format(&self, tm: &TransactionManager, nr_blocks: u64) -> Result<()> {
        check_size(0, nr_blocks)?;
        let index = tm.new_block(&INDEX).await?;
        self.counts.index.store(&mut index.bytes_mut());
        self.index_block.set(index.number());
        self.counts.create_overflow(tm).await?;
        self.counts.extend(tm, nr_blocks).await?;
        *self.untouched.borrow_mut() = None;
        self.defer(0, 1);
        self.settle(tm).await?;
        self.committed_free.set(nr_blocks);
        Ok(())
    }

    /// The map that `root` describes. Of the commit that it belongs to, and of former ones, `pins` may hold some.
    pub(crate) async fn open(blocks: &BlockManager, root: &SpaceMapRoot, pins: Pins) -> Result<MetadataMap> {
        let (index_block, nr_blocks) = (root.bitmap_root.get(), root.nr_blocks.get());
        check_size(0, nr_blocks)?;
        let index = CoreIndex::load(&blocks.read(index_block, &INDEX).await?.bytes());
        let map = MetadataMap::new(CountMap::open(root, index), index_block, None, pins);
        let used = if map.pins.is_empty() { Vec::new() } else { map.used(blocks).await? };
        map.pins.reopened(&used);
        Ok(map)
    }

    pub(crate) fn nr_blocks(&self) -> u64 {
        self.counts.nr_blocks()
    }

    /// Free at the last commit, not handed out since, and not held back for readers.
    pub(crate) fn free_blocks(&self) -> u64 {
        let not_free = self.taken.get().saturating_add(self.pins.held_back_blocks());
        self.committed_free.get().saturating_sub(not_free)
    }

    /// Free once the changes applied so far are committed.
    pub(crate) fn free_blocks_after_commit(&self) -> u64 {
        let free = self.counts.nr_blocks().saturating_sub(self.counts.nr_allocated());
        free.saturating_sub(self.pins.freed_blocks())
    }

    /// The count of a block, what is noted included; above 2 it may be any number above 2.
    pub(crate) async fn count_up_to_3(&self, blocks: &BlockManager, block: u64) -> Result<u32> {
        let stored = blocks.look(|blocks| self.counts.try_count_up_to_3(blocks, block)).await?;
        let noted = self.noted(block);
        // What is noted against a large count matters only if it is known how large.
        if noted < 0 && stored > 2 { self.count(blocks, block).await } else { sum(block, stored, noted) }
    }

    /// The count of a block, what is noted included.
    pub(crate) async fn count(&self, blocks: &BlockManager, block: u64) -> Result<u32> {
        let stored = blocks.look(|blocks| self.counts.try_count(blocks, block)).await?;
        sum(block, stored, self.noted(block))
    }

    /// What changes of counts take at most.
    pub(crate) async fn change_cost(&self, blocks: &BlockManager) -> Result<ChangeCost> {
        self.counts.change_cost(blocks).await
    }

    fn noted(&self, block: u64) -> i64 {
        self.pending.borrow().get(&block).copied().unwrap_or(0)
    }

    /// Blocks with noted changes.
    pub(crate) fn pending(&self) -> usize {
        self.pending.borrow().len()
    }

    /// Notes a change of a count.
    pub(crate) fn defer(&self, block: u64, by: i64) {
        let mut pending = self.pending.borrow_mut();
        let noted = pending.entry(block).or_insert(0);
        *noted = noted.saturating_add(by);
        if *noted == 0 {
            pending.remove(&block);
        }
    }

    /// Applies what is noted, and what that leads to, until nothing is.
    pub(crate) async fn settle(&self, tm: &TransactionManager) -> Result<()> {
        loop {
            let mut notes: Vec<_> = self.pending.borrow().iter().map(|(block, by)| (*block, *by)).collect();
            if notes.is_empty() {
                return Ok(());
            }
            notes.sort_unstable();
            // A note stays until its change is made: somebody may ask for the count, or for a free block, meanwhile. What
            // count and note are together never changes here, whatever else is noted on the way.
            let changed = |block, by: i64, count| {
                self.defer(block, by.saturating_neg());
                self.pins.changed(block, count);
            };
            self.counts.change(tm, notes, changed).await?;
        }
    }

    /// A free block, noted as pointed to once.
    pub(crate) async fn allocate(&self, blocks: &BlockManager) -> Result<u64> {
        let untouched = self.untouched.borrow_mut().as_mut().map(Iterator::next);
        let block = match untouched {
            Some(next) => next,
            None => {
                let noted = |block| self.pending.borrow().contains_key(&block);
                self.counts.find_free_from(blocks, Some(&self.pins), self.cursor.get(), noted).await?
            }
        };
        let block = block.ok_or(Error::NoSpace)?;
        self.cursor.set(block.saturating_add(1));
        self.taken.set(self.taken.get().saturating_add(1));
        self.defer(block, 1);
        Ok(block)
    }

    /// Counts `nr_blocks` from now on. The bitmaps for the new area live in it: the old one may be full.
    pub(crate) async fn grow(&self, tm: &TransactionManager, nr_blocks: u64) -> Result<()> {
        let from = self.counts.nr_blocks();
        check_size(from, nr_blocks)?;
        *self.untouched.borrow_mut() = Some(from..nr_blocks);
        let extended = self.counts.extend(tm, nr_blocks).await;
        *self.untouched.borrow_mut() = None;
        extended?;
        self.settle(tm).await
    }

    /// Applies everything noted and writes the index into its block.
    pub(crate) async fn close(&self, tm: &TransactionManager) -> Result<SpaceMapRoot> {
        self.settle(tm).await?;
        if self.counts.index.changed() {
            let shadow = tm.shadow(self.index_block.get(), &INDEX).await?;
            self.index_block.set(shadow.block.number());
            self.settle(tm).await?;
            self.counts.index.store(&mut shadow.block.bytes_mut());
        }
        Ok(self.counts.root(self.index_block.get()))
    }

    /// The superblock is durable.
    pub(crate) fn committed(&self) {
        self.counts.index.commit();
        self.pins.committed();
        self.committed_free.set(self.counts.nr_blocks().saturating_sub(self.counts.nr_allocated()));
        self.taken.set(0);
    }

    /// Who reads former commits.
    pub(crate) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Pins the last commit. Nothing was changed since.
    pub(crate) async fn pin(&self, blocks: &BlockManager) -> Result<Rc<Pin>> {
        if let Some(used) = self.pins.of_last_commit() {
            return Ok(self.pins.pin(used));
        }
        let used = self.used(blocks).await?;
        Ok(self.pins.pin(Rc::new(used)))
    }

    /// A bit for each block that is in use. Nothing was changed since the last commit.
    async fn used(&self, blocks: &BlockManager) -> Result<Vec<u32>> {
        let bitmaps = self.counts.nr_blocks().div_ceil(ENTRIES_PER_BITMAP);
        let entries = self.counts.index.first(bitmaps);
        let numbers: Vec<u64> = entries.iter().map(|entry| entry.bitmap.get()).collect();
        let (mut used, mut batch) = (Vec::new(), Batch::default());
        for numbers in numbers.chunks(PINNED_AT_ONCE) {
            blocks.read_batch(numbers, &BITMAP, &mut batch).await;
            for index in 0..numbers.len() {
                used.extend(bitmap::used_bits(batch.get(index)?));
            }
        }
        Ok(used)
    }
}

fn check_size(from: u64, to: u64) -> Result<()> {
    if (from..=METADATA_BLOCKS_MAX).contains(&to) { Ok(()) } else { Err(Error::BadSize { from, to }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use platform::block::Disk;
    use platform::buf::BufPool;
    use platform::mem::MemDisk;
    use platform::task::block_on_ready;

    /// The bitmap says of any count above 2 only that it is one.
    #[test]
    fn what_waits_is_taken_from_the_whole_of_a_large_count() {
        block_on_ready(async {
            let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 18), 64);
            let tm = TransactionManager::create(blocks, 100).await.unwrap();
            (0..5).for_each(|_| tm.inc(50));
            tm.settle().await.unwrap();
            for shared in [true, true, true, false] {
                tm.dec(50);
                assert_eq!(tm.is_shared(50).await, Ok(shared));
            }
        });
    }
}
