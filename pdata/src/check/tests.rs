//! Space maps and trees that are wrong in one place: what a check tells of each, and that it tells of nothing else.

use super::{Checker, Compared, Counts, MapName, PROBLEMS_MAX, Problem, Severity, Walk};
use crate::block::{BLOCK_BYTES, Block, BlockKind};
use crate::block_manager::BlockManager;
use crate::btree::{DEPTH_MAX, NODE};
use crate::space_map::{BITMAP, DiskMap, ENTRIES_PER_BITMAP, METADATA_BLOCKS_MAX, SpaceMapRoot, bitmap};
use crate::{Error, TransactionManager};
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::ops::Range;
use core::pin::pin;
use core::slice;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use zerocopy::little_endian::U64;

const DATA: MapName = MapName::Data;

/// Where a leaf's keys are, and of the index' and the overflow tree's leaves the values.
const KEYS_AT: usize = 32;
const ENTRIES_AT: usize = KEYS_AT + 168 * 8;
const COUNTS_AT: usize = KEYS_AT + 336 * 8;

fn blocks_on(disk: &MemDisk) -> BlockManager {
    BlockManager::new(Disk::new(disk.clone()), BufPool::new(1 << 20), 64)
}

/// Both maps on disk, and how often blocks of the data disk are referred to.
struct Maps {
    disk: MemDisk,
    data: SpaceMapRoot,
    metadata: SpaceMapRoot,
    references: Vec<Range<u64>>,
}

impl Maps {
    /// Maps of `blocks` data blocks, in which each of the ranges is counted once.
    fn new(blocks: u64, references: &[Range<u64>]) -> Maps {
        let disk = MemDisk::new(8 * 300);
        let (data, metadata) = block_on_ready(async {
            let tm = TransactionManager::create(blocks_on(&disk), 300).await.unwrap();
            let map = DiskMap::create(&tm, blocks).await.unwrap();
            for range in references {
                map.inc(&tm, range.clone()).await.unwrap();
            }
            let roots = (map.close(&tm).await.unwrap(), tm.close().await.unwrap());
            tm.blocks().write_out().await.unwrap();
            roots
        });
        Maps { disk, data, metadata, references: references.to_vec() }
    }

    /// As many, of which a range is referred to.
    fn used(blocks: u64, range: Range<u64>) -> Maps {
        Maps::new(blocks, slice::from_ref(&range))
    }

    /// Changes a metadata block.
    fn change(&self, number: u64, kind: &BlockKind, change: impl FnOnce(&mut Block)) {
        let at = number * BLOCK_BYTES as u64;
        let mut block: Block = self.disk.peek(at, BLOCK_BYTES).try_into().unwrap();
        change(&mut block);
        kind.seal(&mut block, number);
        self.disk.poke(at, &block);
    }

    fn index(&self, change: impl FnOnce(&mut Block)) {
        self.change(self.data.bitmap_root.get(), &NODE, change);
    }

    fn overflow(&self, change: impl FnOnce(&mut Block)) {
        self.change(self.data.ref_count_root.get(), &NODE, change);
    }

    /// Changes the count of a data block in its bitmap.
    fn set(&self, block: u64, count: u32) {
        let (k, index) = (block / ENTRIES_PER_BITMAP, block % ENTRIES_PER_BITMAP);
        let at = self.data.bitmap_root.get() * BLOCK_BYTES as u64 + ENTRIES_AT as u64 + k * 16;
        let number = u64::from_le_bytes(self.disk.peek(at, 8).try_into().unwrap());
        self.change(number, &BITMAP, |bits| bitmap::set(bits, index, count));
    }

    /// Changes what the index says of a bitmap's free entries: how many there are, and that none is before.
    fn set_hints(&self, k: usize, free: u32, none_before: u32) {
        self.index(|index| {
            put(index, ENTRIES_AT + k * 16 + 8, &free.to_le_bytes());
            put(index, ENTRIES_AT + k * 16 + 12, &none_before.to_le_bytes());
        });
    }

    fn check(&self) -> Vec<Problem> {
        self.check_passes().0
    }

    /// The problems, and how many passes it took with as little memory as possible.
    fn check_passes(&self) -> (Vec<Problem>, usize) {
        block_on_ready(async {
            let mut checker = Checker::new(blocks_on(&self.disk), self.metadata.nr_blocks.get());
            checker.metadata.add(0);
            checker.disk_map(&self.data).await;
            checker.metadata_map(&self.metadata).await;
            let mut counts = Counts::new(self.data.nr_blocks.get(), 0);
            let (mut compared, mut passes) = (Compared::default(), 0);
            loop {
                self.references.iter().for_each(|range| counts.add_run(range.start, range.end - range.start));
                checker.compare_disk_map(&self.data, &counts, &mut compared).await;
                passes += 1;
                if !counts.next_pass() {
                    break;
                }
            }
            checker.compare_metadata_map(&self.metadata).await;
            (checker.into_problems().0, passes)
        })
    }
}

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn counts_at_the_borders_of_bitmaps_are_no_problem() {
    let border = ENTRIES_PER_BITMAP;
    let around = border - 1..border + 1;
    let references = [around.clone(), around.clone(), around, border..border + 1, 2 * border..2 * border + 100];
    assert_eq!(Maps::new(2 * border + 100, &references).check(), []);
}

#[test]
fn a_count_is_compared_with_the_references() {
    let maps = Maps::new(100, &[0..50, 10..20]);
    maps.set(7, 2);
    maps.set(10, 1);
    let told = |block, stored, counted| Problem::Count { map: DATA, block, stored, counted };
    assert_eq!(maps.check(), [told(7, 2, 1), told(10, 1, 2)]);
    maps.set(10, 0);
    // Now 50 are in use no more.
    maps.set_hints(0, ENTRIES_PER_BITMAP as u32 - 49, 0);
    let total = Problem::Allocated { map: DATA, stored: 50, counted: 49 };
    assert_eq!(maps.check(), [told(7, 2, 1), told(10, 0, 2), total]);
}

#[test]
fn a_count_beyond_the_end_of_its_map_is_told_as_such() {
    let mut maps = Maps::used(100, 0..50);
    maps.set(100, 1);
    maps.set_hints(0, ENTRIES_PER_BITMAP as u32 - 51, 0);
    maps.data.nr_allocated.set(51);
    assert_eq!(maps.check(), [Problem::BeyondEnd { map: DATA, block: 100, stored: 1 }]);
    maps.references.push(99..102);
    let beyond = |block| Problem::Beyond { map: DATA, block, blocks: 100 };
    let told = maps.check();
    assert_eq!(told[..2], [beyond(100), beyond(101)]);
    assert!(told.contains(&Problem::Count { map: DATA, block: 99, stored: 0, counted: 1 }));
}

#[test]
fn an_overflow_entry_and_its_bitmap_must_both_say_many() {
    // Block 5 is referred to 4 times, block 6 3 times.
    let references = [5..7, 5..7, 5..7, 5..6];
    assert_eq!(Maps::new(100, &references).check(), []);
    let maps = Maps::new(100, &references);
    maps.set(5, 2);
    let told = maps.check();
    assert!(told.contains(&Problem::Overflow { map: DATA, block: 5, count: 4, bits: 2 }), "{told:?}");
    assert!(told.contains(&Problem::Count { map: DATA, block: 5, stored: 2, counted: 4 }), "{told:?}");
    let maps = Maps::new(100, &references);
    maps.overflow(|leaf| put(leaf, COUNTS_AT + 4, &2u32.to_le_bytes()));
    let told = maps.check();
    assert!(told.contains(&Problem::Overflow { map: DATA, block: 6, count: 2, bits: 3 }), "{told:?}");
    maps.overflow(|leaf| put(leaf, KEYS_AT + 8, &7u64.to_le_bytes()));
    let told = maps.check();
    assert!(told.contains(&Problem::Overflow { map: DATA, block: 6, count: 0, bits: 3 }), "{told:?}");
    assert!(told.contains(&Problem::Overflow { map: DATA, block: 7, count: 2, bits: 0 }), "{told:?}");
}

#[test]
fn an_overflow_entry_behind_the_last_bitmap_is_told() {
    for behind in [ENTRIES_PER_BITMAP, ENTRIES_PER_BITMAP + 1, 100 * ENTRIES_PER_BITMAP, 1 << 40, u64::MAX] {
        let maps = Maps::new(ENTRIES_PER_BITMAP, &[5..7, 5..7, 5..7]);
        maps.overflow(|leaf| put(leaf, KEYS_AT + 8, &behind.to_le_bytes()));
        let missing = Problem::Overflow { map: DATA, block: 6, count: 0, bits: 3 };
        assert_eq!(maps.check(), [missing, Problem::Overflow { map: DATA, block: behind, count: 3, bits: 0 }]);
    }
}

#[test]
fn of_bitmaps_that_the_index_lost_no_overflow_entry_is_told() {
    let many = ENTRIES_PER_BITMAP + 5..ENTRIES_PER_BITMAP + 6;
    let maps = Maps::new(2 * ENTRIES_PER_BITMAP, &[many.clone(), many.clone(), many]);
    maps.index(|leaf| put(leaf, 16, &1u32.to_le_bytes()));
    let told = maps.check();
    assert!(told.contains(&Problem::Bitmaps { map: DATA, blocks: 2 * ENTRIES_PER_BITMAP, bitmaps: 1 }), "{told:?}");
    assert!(!told.iter().any(|problem| matches!(problem, Problem::Overflow { .. })), "{told:?}");
}

#[test]
fn the_hints_of_a_bitmap_are_compared_with_it() {
    let (all, used) = (ENTRIES_PER_BITMAP as u32, 40..16_000);
    let maps = Maps::new(ENTRIES_PER_BITMAP, &[0..32, used.clone()]);
    let free = all - 32 - (used.end - used.start) as u32;
    // Block 32 is the first that is free, 16,000 is another.
    maps.set_hints(0, free, 32);
    assert_eq!(maps.check(), []);
    maps.set_hints(0, free - 1, 33);
    let number = Problem::Free { map: DATA, bitmap: 0, stored: free - 1, counted: free };
    assert_eq!(maps.check(), [number, Problem::FreeBefore { map: DATA, bitmap: 0, stored: 33, counted: 32 }]);
    // A whole word of free ones comes first, or one in use.
    let maps = Maps::new(ENTRIES_PER_BITMAP, &[0..32, 64..96]);
    maps.set_hints(0, all - 64, 33);
    assert_eq!(maps.check(), [Problem::FreeBefore { map: DATA, bitmap: 0, stored: 33, counted: 32 }]);
    maps.set_hints(0, all - 64, 32);
    assert_eq!(maps.check(), []);
}

/// Linux says "none free" of the last bitmap of a full map, whose entries beyond the end are free.
#[test]
fn a_full_map_may_say_that_nothing_is_free() {
    let maps = Maps::used(100, 0..100);
    maps.set_hints(0, ENTRIES_PER_BITMAP as u32 - 100, ENTRIES_PER_BITMAP as u32);
    assert_eq!(maps.check(), []);
    let maps = Maps::used(100, 0..99);
    maps.set_hints(0, ENTRIES_PER_BITMAP as u32 - 99, ENTRIES_PER_BITMAP as u32);
    let hidden = Problem::FreeBefore { map: DATA, bitmap: 0, stored: ENTRIES_PER_BITMAP as u32, counted: 99 };
    assert_eq!(maps.check(), [hidden]);
}

#[test]
fn an_index_has_as_many_bitmaps_as_its_map_needs_in_order() {
    let mut maps = Maps::new(2 * ENTRIES_PER_BITMAP, &[]);
    let told = |blocks| Problem::Bitmaps { map: DATA, blocks, bitmaps: 2 };
    let (blocks, longer) = (2 * ENTRIES_PER_BITMAP, 2 * ENTRIES_PER_BITMAP + 1);
    maps.data.nr_blocks.set(longer);
    assert_eq!(maps.check(), [told(longer)]);
    maps.data.nr_blocks.set(blocks);
    assert_eq!(maps.check(), []);
    maps.index(|leaf| put(leaf, KEYS_AT + 8, &2u64.to_le_bytes()));
    assert_eq!(maps.check()[0], told(blocks));
}

#[test]
fn a_metadata_map_has_at_most_255_bitmaps() {
    let Maps { disk, mut metadata, .. } = Maps::new(100, &[]);
    for (blocks, bitmaps) in [(METADATA_BLOCKS_MAX, None), (METADATA_BLOCKS_MAX + 1, Some(255)), (1 << 40, Some(255))] {
        metadata.nr_blocks.set(blocks);
        let mut checker = Checker::new(blocks_on(&disk), 300);
        block_on_ready(checker.metadata_map(&metadata));
        let told = bitmaps.map(|bitmaps| Problem::Bitmaps { map: MapName::Metadata, blocks, bitmaps });
        assert_eq!(checker.into_problems().0, Vec::from_iter(told));
    }
}

#[test]
fn the_total_is_compared_once_after_the_last_pass() {
    // A byte a block for all is more than the least budget.
    let (blocks, last) = (9 * 4 * ENTRIES_PER_BITMAP, 9 * 4 * ENTRIES_PER_BITMAP - 1);
    let mut references = vec![0..blocks, 0..blocks];
    (0..2).for_each(|_| references.extend([3..4, last..last + 1]));
    let mut maps = Maps::new(blocks, &references);
    assert_eq!(maps.check_passes(), (vec![], 2));
    maps.data.nr_allocated.set(blocks - 1);
    assert_eq!(maps.check(), [Problem::Allocated { map: DATA, stored: blocks - 1, counted: blocks }]);
}

#[test]
fn what_is_wrong_with_a_count_tells_how_bad_it_is() {
    let count = |stored, counted| Problem::Count { map: DATA, block: 5, stored, counted }.severity();
    assert_eq!(
        [count(1, 0), count(2, 1), count(0, 1), count(2, 0)].map(|bad| bad == Severity::Leak),
        [true, false, false, false]
    );
    assert_eq!([count(2, 1), count(0, 1), count(1, 2)], [Severity::Damage; 3]);
    let hints = [
        Problem::Allocated { map: DATA, stored: 1, counted: 2 },
        Problem::Free { map: DATA, bitmap: 0, stored: 1, counted: 2 },
        Problem::FreeBefore { map: DATA, bitmap: 0, stored: 2, counted: 1 },
    ];
    assert!(hints.iter().all(|problem| problem.severity() == Severity::Hint));
}

#[test]
fn problems_beyond_the_thousandth_are_only_counted() {
    let mut checker = Checker::new(blocks_on(&MemDisk::new(8)), 1);
    let problem = |block| Problem::Beyond { map: DATA, block, blocks: 1 };
    (0..1002).for_each(|block| checker.tell(problem(block)));
    let (kept, untold) = checker.into_problems();
    assert_eq!((kept.len(), kept.last(), untold), (PROBLEMS_MAX, Some(&problem(999)), 2));
}

/// Writes a node whose values are numbers.
fn node(disk: &MemDisk, number: u64, internal: bool, entries: impl ExactSizeIterator<Item = (u64, u64)>) {
    let mut block = [0; BLOCK_BYTES];
    (block[4], block[20], block[24]) = (if internal { 1 } else { 2 }, 252, 8);
    put(&mut block, 16, &(entries.len() as u32).to_le_bytes());
    for (index, (key, value)) in entries.enumerate() {
        put(&mut block, KEYS_AT + index * 8, &key.to_le_bytes());
        put(&mut block, KEYS_AT + (252 + index) * 8, &value.to_le_bytes());
    }
    NODE.seal(&mut block, number);
    disk.poke(number * BLOCK_BYTES as u64, &block);
}

fn leaf(disk: &MemDisk, number: u64, keys: Range<u32>) {
    node(disk, number, false, keys.map(|key| (key.into(), key.into())));
}

/// Walks the tree of numbers at `root`: its entries, and the problems.
fn walk(disk: &MemDisk, nr_blocks: u64, root: u64) -> (u64, Vec<Problem>) {
    let mut checker = Checker::new(blocks_on(disk), nr_blocks);
    let entries = block_on_ready(Walk::default().tree(&mut checker, root, |_, _, _: &[U64]| ()));
    (entries, checker.into_problems().0)
}

#[test]
fn a_node_that_does_not_belong_in_its_place_is_told() {
    let disk = MemDisk::new(8 * 10);
    node(&disk, 1, true, [(0, 2), (100, 3)].into_iter());
    leaf(&disk, 2, 0..84);
    leaf(&disk, 3, 100..184);
    assert_eq!(walk(&disk, 10, 1), (168, vec![]));
    leaf(&disk, 2, 0..83);
    assert_eq!(walk(&disk, 10, 1), (167, vec![Problem::Underfull { block: 2, entries: 83, floor: 84 }]));
    leaf(&disk, 2, 17..101);
    leaf(&disk, 3, 99..183);
    let told = [2, 3].map(|block| Problem::KeyRange { block, parent: 1 });
    assert_eq!(walk(&disk, 10, 1), (168, told.into()));
}

#[test]
fn a_tree_is_walked_as_deep_as_is_believed() {
    for levels in [DEPTH_MAX as u64, DEPTH_MAX as u64 + 1] {
        let disk = MemDisk::new(8 * 100);
        (1..=levels).for_each(|number| node(&disk, number, true, [(0, number + 1)].into_iter()));
        leaf(&disk, levels + 1, 0..84);
        let (entries, problems) = walk(&disk, 100, 1);
        let (deep, believed) = (Problem::from(Error::TooDeep { root: 1 }), levels == DEPTH_MAX as u64);
        assert_eq!((entries, problems.contains(&deep)), if believed { (84, false) } else { (0, true) });
    }
}

#[test]
fn what_lies_behind_the_last_block_is_counted_and_not_read() {
    let disk = MemDisk::new(8 * 10);
    leaf(&disk, 4, 0..84);
    leaf(&disk, 5, 0..84);
    assert_eq!(walk(&disk, 5, 4), (84, vec![]));
    let mut checker = Checker::new(blocks_on(&disk), 5);
    block_on_ready(async {
        assert_eq!(Walk::default().tree(&mut checker, 5, |_, _, _: &[U64]| ()).await, 0);
    });
    assert_eq!(checker.metadata.beyond(), [5]);
    assert_eq!(checker.into_problems().0, []);
}

#[test]
fn a_walk_lets_others_run_after_every_sixteenth_leaf() {
    let disk = MemDisk::new(8 * 100);
    for (leaves, turns) in [(15, 0), (16, 1), (31, 1), (40, 2)] {
        node(&disk, 1, true, (0..leaves).map(|leaf| (leaf * 84, 2 + leaf)).collect::<Vec<_>>().into_iter());
        (0..leaves as u32).for_each(|n| leaf(&disk, 2 + u64::from(n), n * 84..n * 84 + 84));
        let mut checker = Checker::new(blocks_on(&disk), 100);
        let mut walk = Walk::default();
        let mut walked = pin!(walk.tree(&mut checker, 1, |_, _, _: &[U64]| ()));
        let mut polls = 0;
        let entries = block_on_ready(poll_fn(|context| {
            polls += 1;
            walked.as_mut().poll(context)
        }));
        assert_eq!((entries, polls - 1), (leaves * 84, turns));
    }
}

#[test]
fn a_reference_to_the_last_number_is_beyond() {
    let mut counts = Counts::new(100, 1 << 20);
    counts.add(u64::MAX - 1);
    counts.add(u64::MAX);
    counts.add_run(99, 2);
    assert_eq!(counts.beyond(), [u64::MAX - 1, u64::MAX, 100]);
}
