//! Space maps: their own blocks, and what they say against what was counted.

use super::{Checker, Counts, MapName, Problem, Problems, Walk};
use crate::Result;
use crate::block::Block;
use crate::block_manager::{Batch, BlockManager};
use crate::btree::Leaves;
use crate::space_map::{
    BITMAP, CoreIndex, ENTRIES_PER_BITMAP, INDEX, IndexEntry, MANY, METADATA_BLOCKS_MAX, SpaceMapRoot, bitmap,
};
use alloc::vec;
use alloc::vec::Vec;
use platform::task::yield_now;
use zerocopy::little_endian::U32;

/// Counts in a word of a bitmap.
const PER_WORD: usize = 32;

/// What a comparison has found of a space map, over all passes.
#[derive(Debug, Default)]
pub struct Compared {
    /// Blocks in use.
    allocated: u64,
}

/// What one bitmap turned out to hold.
#[derive(Default)]
struct Tally {
    used: u64,
    first_free: Option<u32>,
}

/// The bitmaps of a map, some at a time.
struct Bitmaps<'a> {
    blocks: &'a BlockManager,
    name: MapName,
    root: &'a SpaceMapRoot,
    counted: &'a Counts,
    problems: &'a mut Problems,
    overflow: Overflow<'a>,
    /// Of the bitmap being compared.
    counts: Vec<u32>,
    batch: Batch,
}

impl Checker {
    /// Walks the metadata map's own blocks.
    pub async fn metadata_map(&mut self, root: &SpaceMapRoot) {
        let (blocks, most) = (root.nr_blocks.get(), METADATA_BLOCKS_MAX);
        if blocks > most {
            self.tell(Problem::Bitmaps { map: MapName::Metadata, blocks, bitmaps: most / ENTRIES_PER_BITMAP });
        }
        self.metadata.add(root.bitmap_root.get());
        match metadata_index(self.blocks(), root).await {
            Ok(entries) => entries.iter().for_each(|entry| self.metadata.add(entry.bitmap.get())),
            Err(error) => self.tell(error.into()),
        }
        self.overflow(root).await;
    }

    /// Walks the blocks of a disk map.
    pub async fn disk_map(&mut self, root: &SpaceMapRoot) {
        let (mut bitmaps, mut in_order) = (0, true);
        let mut walk = Walk::default();
        let index = root.bitmap_root.get();
        walk.tree(self, index, |checker, node, entries: &[IndexEntry]| {
            for (k, entry) in node.keys().zip(entries) {
                in_order &= k == bitmaps;
                bitmaps = bitmaps.saturating_add(1);
                checker.metadata.add(entry.bitmap.get());
            }
        })
        .await;
        let blocks = root.nr_blocks.get();
        if !in_order || bitmaps != blocks.div_ceil(ENTRIES_PER_BITMAP) {
            self.tell(Problem::Bitmaps { map: MapName::Data, blocks, bitmaps });
        }
        self.overflow(root).await;
    }

    async fn overflow(&mut self, root: &SpaceMapRoot) {
        Walk::default().tree(self, root.ref_count_root.get(), |_, _, _: &[U32]| ()).await;
    }

    /// Compares a disk map with what this pass counted. `compared` is kept from pass to pass; with the last the map's total
    /// is compared, too.
    pub async fn compare_disk_map(&mut self, root: &SpaceMapRoot, counted: &Counts, compared: &mut Compared) {
        let blocks = self.blocks.clone();
        let mut bitmaps = Bitmaps::new(&blocks, MapName::Data, root, counted, &mut self.problems).await;
        // What of the index cannot be read was told by the walk.
        let Ok(mut leaves) = Leaves::open(&blocks, root.bitmap_root.get()).await else { return };
        while let Ok(Some(leaf)) = leaves.next().await {
            let Ok(entries) = leaf.values::<IndexEntry>() else { continue };
            let entries: Vec<_> = leaf.keys().zip(entries.iter().copied()).collect();
            bitmaps.compare(&entries, compared).await;
        }
        bitmaps.finish(compared).await;
    }

    /// Compares the metadata map with what was counted. Comes last, when everything was walked.
    pub async fn compare_metadata_map(&mut self, root: &SpaceMapRoot) {
        let blocks = self.blocks.clone();
        let mut bitmaps = Bitmaps::new(&blocks, MapName::Metadata, root, &self.metadata, &mut self.problems).await;
        let Ok(entries) = metadata_index(&blocks, root).await else { return };
        let entries: Vec<_> = (0..).zip(entries).collect();
        let mut compared = Compared::default();
        bitmaps.compare(&entries, &mut compared).await;
        bitmaps.finish(&compared).await;
    }
}

/// The entries of the metadata map's index that are in use.
async fn metadata_index(blocks: &BlockManager, root: &SpaceMapRoot) -> Result<Vec<IndexEntry>> {
    let mut batch = Batch::default();
    blocks.read_batch(&[root.bitmap_root.get()], &INDEX, &mut batch).await;
    Ok(CoreIndex::load(batch.get(0)?).first(root.nr_blocks.get().div_ceil(ENTRIES_PER_BITMAP)))
}

/// The overflow tree's entries in order.
struct Overflow<'a> {
    leaves: Option<Leaves<'a>>,
    /// Read ahead, the next last.
    ready: Vec<(u64, u32)>,
}

impl Overflow<'_> {
    /// The next entry up to that of block `last`. What cannot be read is left out: the walk told of it.
    async fn up_to(&mut self, last: u64) -> Option<(u64, u32)> {
        while self.ready.is_empty() {
            let leaf = self.leaves.as_mut()?.next().await;
            let Ok(Some(leaf)) = leaf else {
                self.leaves = None;
                return None;
            };
            let Ok(counts) = leaf.values::<U32>() else { continue };
            self.ready.extend(leaf.keys().zip(counts.iter().map(|count| count.get())).rev());
        }
        self.ready.pop_if(|(block, _)| *block <= last)
    }
}

impl<'a> Bitmaps<'a> {
    async fn new(
        blocks: &'a BlockManager,
        name: MapName,
        root: &'a SpaceMapRoot,
        counted: &'a Counts,
        problems: &'a mut Problems,
    ) -> Bitmaps<'a> {
        let nr_blocks = root.nr_blocks.get();
        let beyond = counted.beyond().iter();
        beyond.for_each(|block| problems.tell(Problem::Beyond { map: name, block: *block, blocks: nr_blocks }));
        let leaves = Leaves::open(blocks, root.ref_count_root.get()).await.ok();
        let overflow = Overflow { leaves, ready: Vec::new() };
        let counts = vec![0; ENTRIES_PER_BITMAP as usize];
        Bitmaps { blocks, name, root, counted, problems, overflow, counts, batch: Batch::default() }
    }

    /// Compares bitmaps, given by their numbers and entries in the index, with what was counted.
    async fn compare(&mut self, entries: &[(u64, IndexEntry)], compared: &mut Compared) {
        let window = self.counted.bitmaps();
        let entries: Vec<_> = entries.iter().filter(|(k, _)| window.contains(k)).collect();
        let numbers: Vec<u64> = entries.iter().map(|(_, entry)| entry.bitmap.get()).collect();
        let mut batch = core::mem::take(&mut self.batch);
        self.blocks.read_batch(&numbers, &BITMAP, &mut batch).await;
        for (index, (k, entry)) in entries.into_iter().enumerate() {
            let first = k.saturating_mul(ENTRIES_PER_BITMAP);
            let large = self.large_counts(first, first.saturating_add(ENTRIES_PER_BITMAP - 1)).await;
            match batch.get(index) {
                Ok(bits) => {
                    let tally = self.tally(*k, bits, &large);
                    self.compare_hints(*k, entry, &tally);
                    compared.allocated = compared.allocated.saturating_add(tally.used);
                }
                Err(error) => self.problems.tell(error.into()),
            }
            // A bitmap takes a while, and others wait for the processor.
            yield_now().await;
        }
        self.batch = batch;
    }

    /// The overflow tree's entries for the blocks from `first` to `last`.
    async fn large_counts(&mut self, first: u64, last: u64) -> Vec<(u64, u32)> {
        let mut large = Vec::new();
        while let Some((block, count)) = self.overflow.up_to(last).await {
            if block >= first {
                large.push((block, count));
            }
        }
        large
    }

    /// Compares the counts of a bitmap's blocks.
    fn tally(&mut self, k: u64, bits: &Block, large: &[(u64, u32)]) -> Tally {
        let mut tally = Tally::default();
        let mut counts = core::mem::take(&mut self.counts);
        if !self.counted.of_bitmap(k, &mut counts) {
            counts.fill(0);
        }
        let first = k.saturating_mul(ENTRIES_PER_BITMAP);
        for ((word, counts), at) in bitmap::words(bits).iter().zip(counts.chunks(PER_WORD)).zip((0..).step_by(PER_WORD))
        {
            let alike = match word.get() {
                bitmap::ALL_0 => 0,
                bitmap::ALL_1 => 1,
                _ => u32::MAX,
            };
            if counts.iter().all(|count| *count == alike) {
                tally.used = tally.used.saturating_add(u64::from(alike) * PER_WORD as u64);
                if alike == 0 && tally.first_free.is_none() {
                    tally.first_free = Some(at);
                }
                continue;
            }
            for (index, counted) in (u64::from(at)..).zip(counts) {
                let block = first.saturating_add(index);
                let stored = self.compare_count(block, bitmap::get(bits, index), *counted, large);
                if stored > 0 {
                    tally.used = tally.used.saturating_add(1);
                } else if tally.first_free.is_none() {
                    tally.first_free = Some(index as u32);
                }
            }
        }
        for (block, count) in large {
            let bits = bitmap::get(bits, block.saturating_sub(first));
            if bits != MANY || *count < MANY {
                self.problems.tell(Problem::Overflow { map: self.name, block: *block, count: *count, bits });
            }
        }
        self.counts = counts;
        tally
    }

    /// Compares the count of one block; returns it as stored.
    fn compare_count(&mut self, block: u64, bits: u32, counted: u32, large: &[(u64, u32)]) -> u32 {
        let mut stored = bits;
        if bits == MANY {
            match large.binary_search_by_key(&block, |(block, _)| *block).ok().and_then(|found| large.get(found)) {
                Some((_, count)) => stored = *count,
                None => self.problems.tell(Problem::Overflow { map: self.name, block, count: 0, bits }),
            }
        }
        if block >= self.root.nr_blocks.get() && stored > 0 {
            self.problems.tell(Problem::BeyondEnd { map: self.name, block, stored });
        } else if stored != counted {
            self.problems.tell(Problem::Count { map: self.name, block, stored, counted });
        }
        stored
    }

    /// Compares what the index says of a bitmap.
    fn compare_hints(&mut self, k: u64, entry: &IndexEntry, tally: &Tally) {
        let map = self.name;
        let stored = entry.nr_free.get();
        let blocks = self.root.nr_blocks.get().saturating_sub(k.saturating_mul(ENTRIES_PER_BITMAP));
        // Some count only the blocks that there are in the last bitmap (reference 2.3): a hint, and not the worst.
        let counted = ENTRIES_PER_BITMAP.saturating_sub(tally.used) as u32;
        if stored != counted {
            self.problems.tell(Problem::Free { map, bitmap: k, stored, counted });
        }
        let stored = entry.none_free_before.get();
        let hidden = tally.first_free.filter(|first| *first < stored && u64::from(*first) < blocks);
        if let Some(counted) = hidden {
            self.problems.tell(Problem::FreeBefore { map, bitmap: k, stored, counted });
        }
    }

    /// Behind the last bitmap: there must be no more counts, and if this was the last pass the total must be right.
    async fn finish(mut self, compared: &Compared) {
        if !self.counted.is_last_pass() {
            return;
        }
        while let Some((block, count)) = self.overflow.up_to(u64::MAX).await {
            // Behind an index that cannot be read to its end there may be others.
            if block >= self.root.nr_blocks.get() {
                self.problems.tell(Problem::Overflow { map: self.name, block, count, bits: 0 });
            }
        }
        let (stored, counted) = (self.root.nr_allocated.get(), compared.allocated);
        if stored != counted {
            self.problems.tell(Problem::Allocated { map: self.name, stored, counted });
        }
    }
}
