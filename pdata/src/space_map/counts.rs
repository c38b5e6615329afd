//! The format that both space maps share: bitmaps, their index, and the btree of counts above 2 (reference 3.2, 3.3).

use super::bitmap::{self, BITMAP, ENTRIES_PER_BITMAP, MANY, WORDS_PER_BITMAP};
use super::{ChangeCost, Committed, Index, IndexEntry, SpaceMapRoot};
use crate::block_manager::{BlockManager, BlockMut, Stop};
use crate::btree::{BTree, Plain};
use crate::pins::Pins;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use core::cell::Cell;
use core::ops::Range;
use zerocopy::little_endian::U32;

const OVERFLOW: BTree<Plain<U32>> = BTree::plain();

/// Counts of the blocks `0..nr_blocks`.
pub(crate) struct CountMap<I> {
    pub index: I,
    nr_blocks: Cell<u64>,
    nr_allocated: Cell<u64>,
    overflow_root: Cell<u64>,
}

impl<I: Index> CountMap<I> {
    /// A map of no blocks, not even its own: [`CountMap::create_overflow`] comes next.
    pub fn empty(index: I) -> CountMap<I> {
        CountMap { index, nr_blocks: Cell::new(0), nr_allocated: Cell::new(0), overflow_root: Cell::new(0) }
    }

    /// Makes the btree of counts above 2.
    pub async fn create_overflow(&self, tm: &TransactionManager) -> Result<()> {
        self.overflow_root.set(OVERFLOW.create(tm).await?);
        Ok(())
    }

    /// The map that `root` describes, its index already opened.
    pub fn open(root: &SpaceMapRoot, index: I) -> CountMap<I> {
        CountMap {
            index,
            nr_blocks: Cell::new(root.nr_blocks.get()),
            nr_allocated: Cell::new(root.nr_allocated.get()),
            overflow_root: Cell::new(root.ref_count_root.get()),
        }
    }

    /// What the superblock records; the owner knows where the index is.
    pub fn root(&self, bitmap_root: u64) -> SpaceMapRoot {
        SpaceMapRoot {
            nr_blocks: self.nr_blocks.get().into(),
            nr_allocated: self.nr_allocated.get().into(),
            bitmap_root: bitmap_root.into(),
            ref_count_root: self.overflow_root.get().into(),
        }
    }

    /// Blocks counted.
    pub fn nr_blocks(&self) -> u64 {
        self.nr_blocks.get()
    }

    /// Blocks with a count above 0, if whoever wrote the map told the truth.
    pub fn nr_allocated(&self) -> u64 {
        self.nr_allocated.get()
    }

    /// What changes of counts take at most.
    pub async fn change_cost(&self, blocks: &BlockManager) -> Result<ChangeCost> {
        let root = self.overflow_root.get();
        let overflow_leaves = blocks.look(|blocks| OVERFLOW.try_leaves_at_most(blocks, root)).await?;
        let nr_blocks = self.nr_blocks();
        Ok(ChangeCost { nr_blocks, bitmaps: nr_blocks.div_ceil(ENTRIES_PER_BITMAP), overflow_leaves, index_blocks: 0 })
    }

    fn check(&self, block: u64) -> Result<()> {
        let blocks = self.nr_blocks.get();
        if block < blocks { Ok(()) } else { Err(Error::OutOfRange { block, blocks }) }
    }

    /// The count of a block, where 3 stands for all above it.
    pub fn try_count_up_to_3(&self, blocks: &BlockManager, block: u64) -> Result<u32, Stop> {
        self.check(block)?;
        let entry = self.index.try_entry(blocks, block / ENTRIES_PER_BITMAP)?;
        let bitmap = blocks.try_read(entry.bitmap.get(), &BITMAP)?;
        let count = bitmap::get(&bitmap.bytes(), block % ENTRIES_PER_BITMAP);
        Ok(count)
    }

    /// The count of a block.
    pub fn try_count(&self, blocks: &BlockManager, block: u64) -> Result<u32, Stop> {
        match self.try_count_up_to_3(blocks, block)? {
            MANY => {
                let missing = Error::Damaged { block: self.overflow_root.get(), kind: "overflow tree", what: MISSING };
                let count = OVERFLOW.try_lookup(blocks, self.overflow_root.get(), block)?;
                Ok(count.ok_or(Stop::Failed(missing))?.get())
            }
            count => Ok(count),
        }
    }

    /// Adds `by` to the count of each block in `range`. `freed` is told of those that reach 0.
    pub async fn change_range(
        &self,
        tm: &TransactionManager,
        range: Range<u64>,
        by: i64,
        freed: &mut impl FnMut(u64),
    ) -> Result<()> {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else { return Ok(()) };
        self.check(last)?;
        let changed = |block, by, count| {
            if by < 0 && count == 0 {
                freed(block);
            }
        };
        self.change(tm, range.map(|block| (block, by)), changed).await
    }

    /// Adds to the counts of blocks in ascending order. `changed` is told of each at once: the block, what was added, and
    /// what its count is now.
    pub async fn change(
        &self,
        tm: &TransactionManager,
        changes: impl IntoIterator<Item = (u64, i64)>,
        mut changed: impl FnMut(u64, i64, u32),
    ) -> Result<()> {
        let mut changes = changes.into_iter().peekable();
        while let Some(first) = changes.peek().map(|(block, _)| *block) {
            self.check(first)?;
            let k = first / ENTRIES_PER_BITMAP;
            let (bitmap, before) = self.shadow_bitmap(tm, k).await?;
            let mut change = Change { first: k.saturating_mul(ENTRIES_PER_BITMAP), bitmap, entry: before, delta: 0 };
            while let Some((block, by)) = changes.next_if(|(block, _)| block / ENTRIES_PER_BITMAP == k) {
                self.check(block)?;
                let count = match change.add_small(block, by)? {
                    Some(count) => count,
                    None => self.add_large(tm, &mut change, block, by).await?,
                };
                changed(block, by, count);
            }
            self.nr_allocated.set(self.nr_allocated.get().saturating_add_signed(change.delta));
            self.index.set_entry(k, Some(before), change.entry);
        }
        Ok(())
    }

    /// Changes a count that is above 2 before or after, and returns it.
    async fn add_large(&self, tm: &TransactionManager, change: &mut Change<'_>, block: u64, by: i64) -> Result<u32> {
        let stored = change.stored(block);
        let old = if stored < MANY { stored } else { tm.blocks().look(|blocks| self.try_count(blocks, block)).await? };
        let new = sum(block, old, by)?;
        if new >= MANY {
            let (root, _) = OVERFLOW.insert(tm, self.overflow_root.get(), block, U32::new(new)).await?;
            self.overflow_root.set(root);
            if stored < MANY {
                log::trace!("overflow count inserted");
            }
        } else if stored == MANY {
            let (root, _) = OVERFLOW.remove(tm, self.overflow_root.get(), block).await?;
            self.overflow_root.set(root);
            log::trace!("overflow count removed");
        }
        change.set(block, old, new);
        Ok(new)
    }

    async fn shadow_bitmap<'a>(&self, tm: &'a TransactionManager, k: u64) -> Result<(BlockMut<'a>, IndexEntry)> {
        let mut entry = tm.blocks().look(|blocks| self.index.try_entry(blocks, k)).await?;
        let old = entry.bitmap.get();
        let shadow = tm.shadow_and_keep(old, &BITMAP).await?;
        if shadow.duplicated {
            return Err(Error::Damaged { block: old, kind: BITMAP.name, what: "it is in use more than once" });
        }
        let new = shadow.block.number();
        if new != old {
            let before = entry;
            entry.bitmap = new.into();
            self.index.set_entry(k, Some(before), entry);
        }
        Ok((shadow.block, entry))
    }

    /// The first block of `range` that is free now, was free at the last commit (reference 3.3), and is not skipped,
    /// nor pinned. `trust_hints` passes over bitmaps that claim to be full. The free blocks seen that were not to be had are
    /// added to `passed`.
    async fn find_free(
        &self,
        blocks: &BlockManager,
        pins: Option<&Pins>,
        range: Range<u64>,
        trust_hints: bool,
        passed: &mut u64,
        mut skip: impl FnMut(u64) -> bool,
    ) -> Result<Option<u64>> {
        let end = range.end.min(self.nr_blocks.get());
        let mut at = range.start;
        while at < end {
            let k = at / ENTRIES_PER_BITMAP;
            let first = k * ENTRIES_PER_BITMAP;
            let next = first.saturating_add(ENTRIES_PER_BITMAP).min(end);
            let entry = blocks.look(|blocks| self.index.try_entry(blocks, k)).await?;
            if entry.nr_free.get() > 0 || !trust_hints {
                let current = blocks.read(entry.bitmap.get(), &BITMAP).await?;
                let committed = match self.index.committed(k) {
                    Committed::At(block) => Some(blocks.read(block, &BITMAP).await?),
                    Committed::Same | Committed::Absent => None,
                };
                let committed = committed.as_ref().map(|bitmap| bitmap.bytes());
                let pinned = pins.map(|pins| pins.words(k * WORDS_PER_BITMAP));
                let (pinned, inside) = (pinned.as_deref().unwrap_or_default(), at - first..next - first);
                let skip = |index| skip(first + index);
                let found = bitmap::find_free(&current.bytes(), committed.as_deref(), pinned, inside.clone(), skip);
                if let Some(index) = found {
                    return Ok(Some(first + index));
                }
                *passed = passed.saturating_add(bitmap::free(&current.bytes(), inside));
            }
            if next < end {
                log::trace!("allocation went on to the next bitmap");
            }
            at = next;
        }
        Ok(None)
    }

    /// As [`CountMap::find_free`] over the whole map, from `cursor` on and around. If bitmaps that claim to be full hide free
    /// blocks, as the total tells, they are searched nonetheless: others write wrong hints (reference 9.1, trap 14).
    pub async fn find_free_from(
        &self,
        blocks: &BlockManager,
        pins: Option<&Pins>,
        cursor: u64,
        mut skip: impl FnMut(u64) -> bool,
    ) -> Result<Option<u64>> {
        let all = self.nr_blocks.get();
        for trust_hints in [true, false] {
            let mut passed = 0;
            for range in [cursor..all, 0..cursor.min(all)] {
                let found = self.find_free(blocks, pins, range, trust_hints, &mut passed, &mut skip).await?;
                if found.is_some() {
                    return Ok(found);
                }
            }
            if passed >= all.saturating_sub(self.nr_allocated.get()) {
                break;
            }
        }
        Ok(None)
    }

    /// Counts `nr_blocks` from now on: the new ones are 0.
    pub async fn extend(&self, tm: &TransactionManager, nr_blocks: u64) -> Result<()> {
        let from = self.nr_blocks.get();
        if nr_blocks < from {
            return Err(Error::BadSize { from, to: nr_blocks });
        }
        // Whoever made the last bitmap may have counted as free only what the map then had (reference 2.3).
        let partial = from % ENTRIES_PER_BITMAP;
        if partial != 0 {
            let k = from / ENTRIES_PER_BITMAP;
            let before = tm.blocks().look(|blocks| self.index.try_entry(blocks, k)).await?;
            let used = bitmap::used(&tm.blocks().read(before.bitmap.get(), &BITMAP).await?.bytes());
            let nr_free = u32::try_from(ENTRIES_PER_BITMAP.saturating_sub(used)).unwrap_or(0);
            self.index.set_entry(k, Some(before), IndexEntry { nr_free: nr_free.into(), ..before });
        }
        for k in from.div_ceil(ENTRIES_PER_BITMAP)..nr_blocks.div_ceil(ENTRIES_PER_BITMAP) {
            let bitmap = tm.new_block(&BITMAP).await?;
            let nr_free = (ENTRIES_PER_BITMAP as u32).into();
            let entry = IndexEntry { bitmap: bitmap.number().into(), nr_free, none_free_before: 0.into() };
            self.index.set_entry(k, None, entry);
        }
        self.nr_blocks.set(nr_blocks);
        Ok(())
    }
}

const MISSING: &str = "a count above 2 is missing";

/// A change of counts in one bitmap.
struct Change<'a> {
    /// The block that the bitmap's first entry counts.
    first: u64,
    bitmap: BlockMut<'a>,
    entry: IndexEntry,
    /// Blocks that became allocated less those that became free.
    delta: i64,
}

impl Change<'_> {
    fn stored(&self, block: u64) -> u32 {
        bitmap::get(&self.bitmap.bytes(), block.saturating_sub(self.first))
    }

    /// Changes a count that is below 3 before and after, and returns it; does nothing with others.
    fn add_small(&mut self, block: u64, by: i64) -> Result<Option<u32>> {
        let old = self.stored(block);
        if old >= MANY {
            return Ok(None);
        }
        let new = sum(block, old, by)?;
        if new >= MANY {
            return Ok(None);
        }
        self.set(block, old, new);
        Ok(Some(new))
    }

    /// Stores a count and keeps the hints right.
    fn set(&mut self, block: u64, old: u32, new: u32) {
        let index = block.saturating_sub(self.first);
        bitmap::set(&mut self.bitmap.bytes_mut(), index, new);
        let (index, entry) = (index as u32, &mut self.entry);
        if old == 0 && new > 0 {
            self.delta += 1;
            entry.nr_free = entry.nr_free.get().saturating_sub(1).into();
            if entry.none_free_before.get() == index {
                entry.none_free_before = (index + 1).into();
            }
        } else if old > 0 && new == 0 {
            self.delta -= 1;
            entry.nr_free = entry.nr_free.get().saturating_add(1).min(ENTRIES_PER_BITMAP as u32).into();
            entry.none_free_before = entry.none_free_before.get().min(index).into();
        }
    }
}

/// A count after a change.
pub(super) fn sum(block: u64, count: u32, by: i64) -> Result<u32> {
    let sum = i64::from(count).checked_add(by).and_then(|sum| u32::try_from(sum).ok());
    sum.ok_or(Error::BadCount { block, count, by })
}

#[cfg(test)]
mod tests;
