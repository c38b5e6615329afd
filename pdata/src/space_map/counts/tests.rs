//! Hints of the index, others' wrong ones among them.

use super::{CountMap, ENTRIES_PER_BITMAP, Index, IndexEntry};
use crate::block_manager::BlockManager;
use crate::space_map::{DiskMap, TreeIndex};
use crate::{Error, TransactionManager};
use alloc::rc::Rc;
use alloc::vec::Vec;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::layers::Stats;
use platform::mem::MemDisk;
use platform::task::block_on_ready;

struct Map {
    tm: TransactionManager,
    counts: CountMap<TreeIndex>,
}

impl Map {
    async fn new(nr_blocks: u64) -> Map {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 200)), BufPool::new(1 << 18), 100);
        let tm = TransactionManager::create(blocks, 200).await.unwrap();
        let counts = CountMap::empty(TreeIndex::create(&tm).await.unwrap());
        counts.create_overflow(&tm).await.unwrap();
        counts.extend(&tm, nr_blocks).await.unwrap();
        Map { tm, counts }
    }

    fn entry(&self, k: u64) -> IndexEntry {
        self.counts.index.try_entry(self.tm.blocks(), k).unwrap()
    }

    /// Says that so many blocks of bitmap `k` are free, as others may have written it.
    fn claim(&self, k: u64, nr_free: u32) {
        let entry = self.entry(k);
        self.counts.index.set_entry(k, Some(entry), IndexEntry { nr_free: nr_free.into(), ..entry });
    }

    async fn change(&self, changes: impl IntoIterator<Item = (u64, i64)>) {
        self.counts.change(&self.tm, changes, |_, _, _| ()).await.unwrap();
    }

    /// The first free block from `cursor` on and around.
    async fn find(&self, cursor: u64) -> Option<u64> {
        self.counts.find_free_from(self.tm.blocks(), None, cursor, |_| false).await.unwrap()
    }
}

#[test]
fn trap_14_bitmaps_that_claim_to_be_full_are_searched_last() {
    block_on_ready(async {
        let map = Map::new(3 * ENTRIES_PER_BITMAP).await;
        map.claim(0, 0);
        assert_eq!(map.find(5).await, Some(ENTRIES_PER_BITMAP));
        map.claim(2, 0);
        assert_eq!(map.find(2 * ENTRIES_PER_BITMAP).await, Some(ENTRIES_PER_BITMAP));
        map.claim(1, 0);
        let mut found = Vec::new();
        for cursor in [5, ENTRIES_PER_BITMAP + 5, 2 * ENTRIES_PER_BITMAP + 5, 3 * ENTRIES_PER_BITMAP] {
            found.push(map.find(cursor).await.unwrap());
        }
        assert_eq!(found, [5, ENTRIES_PER_BITMAP + 5, 2 * ENTRIES_PER_BITMAP + 5, 0]);
    });
}

#[test]
fn no_block_beyond_the_end_is_free() {
    block_on_ready(async {
        let nr_blocks = ENTRIES_PER_BITMAP + 10;
        let map = Map::new(nr_blocks).await;
        map.change((1..nr_blocks - 1).map(|block| (block, 1))).await;
        for (cursor, expected) in [(1, nr_blocks - 1), (ENTRIES_PER_BITMAP, nr_blocks - 1), (nr_blocks, 0)] {
            assert_eq!(map.find(cursor).await, Some(expected));
        }
        map.change([(nr_blocks - 1, 1)]).await;
        assert_eq!(map.find(ENTRIES_PER_BITMAP).await, Some(0));
        map.change([(0, 1)]).await;
        assert_eq!((map.find(0).await, map.find(ENTRIES_PER_BITMAP).await), (None, None));
    });
}

/// Others count as free in the last bitmap only what the map had.
#[test]
fn a_map_that_grows_counts_all_entries_of_its_last_bitmap() {
    block_on_ready(async {
        let map = Map::new(100).await;
        map.change((0..100).map(|block| (block, 1))).await;
        map.claim(0, 0);
        map.counts.extend(&map.tm, 2 * ENTRIES_PER_BITMAP).await.unwrap();
        let free = [0, 1].map(|k| u64::from(map.entry(k).nr_free.get()));
        assert_eq!(free, [ENTRIES_PER_BITMAP - 100, ENTRIES_PER_BITMAP]);
        assert_eq!(map.find(0).await, Some(100));
    });
}

/// What is added, how many are allocated then, and below which entry none is free.
type Step = (&'static [(u64, i64)], u64, u32);

#[test]
fn hints_follow_what_changes() {
    block_on_ready(async {
        let map = Map::new(ENTRIES_PER_BITMAP).await;
        let steps: [Step; 9] = [
            (&[(5, 1)], 1, 0),
            (&[(0, 1)], 2, 1),
            (&[(1, 2), (2, 5)], 4, 3),
            // No change at all, of one that is free and of one that is not.
            (&[(3, 0), (5, 0)], 4, 3),
            (&[(2, -3)], 4, 3),
            (&[(1, -1), (2, -1)], 4, 3),
            (&[(1, -1)], 3, 1),
            (&[(5, -1)], 2, 1),
            (&[(0, -1), (2, -1)], 0, 0),
        ];
        for (changes, allocated, none_free_before) in steps {
            map.change(changes.iter().copied()).await;
            let entry = map.entry(0);
            assert_eq!(map.counts.nr_allocated(), allocated, "{changes:?}");
            assert_eq!(u64::from(entry.nr_free.get()), ENTRIES_PER_BITMAP - allocated, "{changes:?}");
            assert_eq!(entry.none_free_before.get(), none_free_before, "{changes:?}");
        }
    });
}

/// A full map of which something was freed since the last commit: the usual state of a full pool in use.
#[test]
fn a_full_map_is_not_read_from_end_to_end() {
    const BITMAPS: u64 = 120;
    block_on_ready(async {
        let stats = Stats::new(Rc::new(MemDisk::new(8 * 400)));
        let counters = stats.counters();
        let blocks = BlockManager::new(Disk::new(stats), BufPool::new(1 << 18), 16);
        let tm = TransactionManager::create(blocks, 400).await.unwrap();
        let map = DiskMap::create(&tm, BITMAPS * ENTRIES_PER_BITMAP).await.unwrap();
        map.inc(&tm, 0..BITMAPS * ENTRIES_PER_BITMAP).await.unwrap();
        map.close(&tm).await.unwrap();
        tm.close().await.unwrap();
        tm.blocks().write_out().await.unwrap();
        map.committed();
        tm.committed();
        map.dec(&tm, 5..6, &mut |_| ()).await.unwrap();
        let before = counters.read_sectors.get();
        assert_eq!(map.find_free(&tm, |_| false).await, Err(Error::NoSpace));
        let read = (counters.read_sectors.get() - before) / 8;
        assert!(read < 10, "{read} blocks were read to find none");
    });
}
