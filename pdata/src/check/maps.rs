//! Space maps: their own blocks, and what they say against what was counted.

use super::{Checker, Counts, MapName, Problem, Walk};
use crate::Result;
use crate::block::Block;
use crate::space_map::{BITMAP, CoreIndex, ENTRIES_PER_BITMAP, INDEX, IndexEntry, MANY, SpaceMapRoot, bitmap};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use zerocopy::little_endian::U32;

/// What a space map consists of.
pub struct MapContents {
    root: SpaceMapRoot,
    entries: Vec<IndexEntry>,
    overflow: BTreeMap<u64, u32>,
}

/// What one bitmap turned out to hold.
#[derive(Default)]
struct Tally {
    used: u64,
    first_free: Option<u32>,
}

impl Checker {
    /// Walks the metadata map's own blocks.
    pub async fn metadata_map(&mut self, root: &SpaceMapRoot) -> MapContents {
        let bitmaps = root.nr_blocks.get().div_ceil(ENTRIES_PER_BITMAP);
        self.metadata.add(root.bitmap_root.get());
        let entries = match self.blocks.read(root.bitmap_root.get(), &INDEX).await {
            Ok(block) => CoreIndex::load(&block.bytes()).first(bitmaps),
            Err(error) => {
                self.tell(error.into());
                Vec::new()
            }
        };
        self.map(root, entries).await
    }

    /// Walks the blocks of a disk map.
    pub async fn disk_map(&mut self, root: &SpaceMapRoot) -> MapContents {
        let mut entries = Vec::new();
        let index = root.bitmap_root.get();
        let mut in_order = true;
        let keep = |_: &mut Checker, k, entry: IndexEntry| {
            in_order &= k == entries.len() as u64;
            entries.push(entry);
        };
        Walk::default().tree(self, index, keep).await;
        let (blocks, bitmaps) = (root.nr_blocks.get(), entries.len() as u64);
        if !in_order || bitmaps != blocks.div_ceil(ENTRIES_PER_BITMAP) {
            self.tell(Problem::Bitmaps { map: MapName::Data, blocks, bitmaps });
        }
        self.map(root, entries).await
    }

    async fn map(&mut self, root: &SpaceMapRoot, entries: Vec<IndexEntry>) -> MapContents {
        entries.iter().for_each(|entry| {
            self.metadata.add(entry.bitmap.get());
        });
        let mut overflow = BTreeMap::new();
        let tree = root.ref_count_root.get();
        let keep = |_: &mut Checker, block, count: U32| {
            overflow.insert(block, count.get());
        };
        Walk::default().tree(self, tree, keep).await;
        MapContents { root: *root, entries, overflow }
    }

    /// Compares a disk map with what was counted.
    pub async fn compare_disk_map(&mut self, map: &MapContents, counted: &Counts) {
        self.compare(MapName::Data, map, counted).await;
    }

    /// Compares the metadata map with what was counted. Comes last, when everything was walked.
    pub async fn compare_metadata_map(&mut self, map: &MapContents) {
        let counted = core::mem::replace(&mut self.metadata, Counts::new(0));
        self.compare(MapName::Metadata, map, &counted).await;
        self.metadata = counted;
    }

    async fn compare(&mut self, name: MapName, map: &MapContents, counted: &Counts) {
        let blocks = map.root.nr_blocks.get();
        counted.beyond().iter().for_each(|block| self.tell(Problem::Beyond { map: name, block: *block, blocks }));
        let mut allocated: u64 = 0;
        for (k, entry) in (0..).zip(&map.entries) {
            match self.compare_bitmap(name, map, counted, k, entry).await {
                Ok(used) => allocated = allocated.saturating_add(used),
                Err(error) => self.tell(error.into()),
            }
        }
        let stored = map.root.nr_allocated.get();
        if stored != allocated {
            self.tell(Problem::Allocated { map: name, stored, counted: allocated });
        }
    }

    /// Compares one bitmap and its entry in the index; returns how many of its blocks are in use.
    async fn compare_bitmap(
        &mut self,
        name: MapName,
        map: &MapContents,
        counted: &Counts,
        k: u64,
        entry: &IndexEntry,
    ) -> Result<u64> {
        let block = self.blocks.read(entry.bitmap.get(), &BITMAP).await?;
        let tally = self.tally(name, map, counted, k.saturating_mul(ENTRIES_PER_BITMAP), &block.bytes());
        let stored = entry.nr_free.get();
        let free = ENTRIES_PER_BITMAP.saturating_sub(tally.used) as u32;
        if stored != free {
            self.tell(Problem::Free { map: name, bitmap: k, stored, counted: free });
        }
        let stored = entry.none_free_before.get();
        if let Some(counted) = tally.first_free.filter(|first| *first < stored) {
            self.tell(Problem::FreeBefore { map: name, bitmap: k, stored, counted });
        }
        Ok(tally.used)
    }

    fn tally(&mut self, map: MapName, contents: &MapContents, counted: &Counts, first: u64, bits: &Block) -> Tally {
        let mut tally = Tally::default();
        for index in 0..ENTRIES_PER_BITMAP {
            let block = first.saturating_add(index);
            let stored = bitmap::get(bits, index);
            let large = contents.overflow.get(&block).copied();
            if let Some(count) = large.filter(|count| stored != MANY || *count < MANY) {
                self.tell(Problem::Overflow { map, block, count, bits: stored });
            }
            let stored = if stored == MANY { large.unwrap_or(MANY) } else { stored };
            let counted = counted.get(block);
            if stored != counted && (block < contents.root.nr_blocks.get() || stored > 0) {
                self.tell(Problem::Count { map, block, stored, counted });
            }
            if stored == MANY && large.is_none() {
                self.tell(Problem::Overflow { map, block, count: 0, bits: MANY });
            }
            if stored > 0 {
                tally.used += 1;
            } else if tally.first_free.is_none() && block < contents.root.nr_blocks.get() {
                tally.first_free = Some(index as u32);
            }
        }
        tally
    }
}
