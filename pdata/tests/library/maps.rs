//! Space maps against plain arrays of counts.

use crate::harness::*;
use pdata::space_map::ENTRIES_PER_BITMAP;
use pdata::{Error, TransactionManager};
use platform::block::Disk;
use platform::task::block_on_ready;

/// A kind of block for whoever needs blocks.
static PLAIN: pdata::block::BlockKind =
    pdata::block::BlockKind { name: "test block", salt: 1, number_at: 8, check: |_| Ok(()) };

#[test]
fn a_disk_map_counts() {
    let dice = Dice::new(seed());
    block_on_ready(async {
        let size = 50_000;
        let mut store = Store::new(3000, size, 16).await;
        let (mut now, mut committed) = (vec![0u32; size as usize], vec![0u32; size as usize]);
        for _ in 0..1500 {
            let begin = dice.below(size);
            let end = (begin + dice.below(if dice.below(10) == 0 { 20_000 } else { 20 })).min(size);
            let range = begin as usize..end as usize;
            match dice.below(10) {
                0..=4 => {
                    store.data.inc(&store.tm, begin..end).await.unwrap();
                    now[range].iter_mut().for_each(|count| *count += 1);
                }
                5..=7 if now[range.clone()].iter().all(|count| *count > 0) => {
                    let mut freed = Vec::new();
                    store.data.dec(&store.tm, begin..end, &mut |block| freed.push(block)).await.unwrap();
                    now[range.clone()].iter_mut().for_each(|count| *count -= 1);
                    assert!(freed.into_iter().eq((begin..end).filter(|block| now[*block as usize] == 0)));
                }
                8 => {
                    let skipped = dice.below(size);
                    match store.data.find_free(&store.tm, |block| block == skipped).await {
                        Ok(block) => {
                            assert_eq!((now[block as usize], committed[block as usize]), (0, 0));
                            assert_ne!(block, skipped);
                        }
                        Err(error) => {
                            assert_eq!(error, Error::NoSpace);
                            let free = (0..size as usize).filter(|b| now[*b] == 0 && committed[*b] == 0);
                            assert_eq!(free.filter(|block| *block as u64 != skipped).count(), 0);
                        }
                    }
                }
                _ => {
                    store.commit().await;
                    committed.clone_from(&now);
                    if dice.below(2) == 0 {
                        store.reopen().await;
                    }
                }
            }
            store.tm.settle_some().await.unwrap();
            let block = dice.below(size);
            let count = store.tm.blocks().look(|blocks| store.data.try_count(blocks, block)).await.unwrap();
            assert_eq!(count, now[block as usize]);
            assert_eq!(store.data.nr_free(), now.iter().filter(|count| **count == 0).count() as u64);
        }
    });
}

#[test]
fn a_count_cannot_drop_below_zero_nor_leave_the_map() {
    block_on_ready(async {
        let store = Store::new(100, 1000, 16).await;
        let below = store.data.dec(&store.tm, 5..6, &mut |_| ()).await;
        assert_eq!(below, Err(Error::BadCount { block: 5, count: 0, by: -1 }));
        let beyond = store.data.inc(&store.tm, 990..1001).await;
        assert_eq!(beyond, Err(Error::OutOfRange { block: 1000, blocks: 1000 }));
    });
}

/// The metadata map never hands out a block that the committed state uses, down to the last.
#[test]
fn trap_6_no_reuse_before_commit() {
    block_on_ready(async {
        let mut store = Store::new(200, 100, 16).await;
        store.commit().await;
        let mut taken = Vec::new();
        let last = loop {
            assert!(taken.len() < 200, "there are no more");
            match store.tm.new_block(&PLAIN).await {
                Ok(block) => taken.push(block.number()),
                Err(error) => break error,
            }
        };
        assert_eq!(last, Error::NoSpace);
        let mut distinct = taken.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), taken.len());
        assert_eq!(store.tm.free_blocks(), 0);
        // All but eight go back; none of them was committed, so they can be had again at once.
        taken.iter().skip(8).for_each(|block| store.tm.dec(*block));
        store.commit().await;
        assert_eq!(store.tm.free_blocks(), taken.len() as u64 - 8);
        for block in &taken[..8] {
            assert_eq!(store.tm.count(*block).await, Ok(1));
            store.tm.dec(*block);
        }
        // These were committed: they are not for this transaction, not even when the bitmap says that they are free.
        for block in &taken[..4] {
            store.tm.inc(*block);
        }
        store.tm.settle().await.unwrap();
        for block in &taken[..4] {
            store.tm.dec(*block);
        }
        while let Ok(block) = store.tm.new_block(&PLAIN).await {
            assert!(!taken[..8].contains(&block.number()));
            store.tm.inc(block.number());
            store.tm.dec(block.number());
        }
    });
}

#[test]
fn both_maps_grow_when_they_are_full() {
    block_on_ready(async {
        // The metadata map grows from within its first bitmap to its third.
        let mut store = Store::new(100, 100, 64).await;
        store.data.inc(&store.tm, 0..100).await.unwrap();
        store.commit().await;
        let mut taken = Vec::new();
        while let Ok(block) = store.tm.new_block(&PLAIN).await {
            taken.push(block.number());
        }
        store.disk.resize(40_000 * 8);
        store.tm.grow(40_000).await.unwrap();
        store.data.grow(&store.tm, 33_000).await.unwrap();
        assert_eq!(store.data.find_free(&store.tm, |_| false).await, Ok(100));
        taken.iter().for_each(|block| store.tm.dec(*block));
        store.data.dec(&store.tm, 0..100, &mut |_| ()).await.unwrap();
        store.commit().await;
        store.check([]).await;
        store.reopen().await;
        assert_eq!((store.tm.nr_blocks(), store.data.nr_blocks(), store.data.nr_free()), (40_000, 33_000, 33_000));
        assert_eq!(store.tm.grow(39_999).await, Err(Error::BadSize { from: 40_000, to: 39_999 }));
        assert_eq!(store.data.grow(&store.tm, 32_999).await, Err(Error::BadSize { from: 33_000, to: 32_999 }));
        assert_eq!(store.data.grow(&store.tm, 33_000).await, Ok(()));
        let block = store.tm.new_block(&PLAIN).await.unwrap();
        store.tm.dec(block.number());
    });
}

#[test]
fn a_commit_without_changes_moves_nothing() {
    block_on_ready(async {
        let mut store = Store::new(200, 100, 16).await;
        store.data.inc(&store.tm, 0..10).await.unwrap();
        store.commit().await;
        for _ in 0..2 {
            let before = store.roots;
            store.commit().await;
            assert_eq!(store.roots, before);
            store.reopen().await;
        }
    });
}

#[test]
fn a_metadata_map_counts_no_more_than_its_index_has_bitmaps_for() {
    block_on_ready(async {
        let (most, mut store) = (255 * ENTRIES_PER_BITMAP, Store::new(100, 100, 16).await);
        let wrong = |from| Some(Error::BadSize { from, to: most + 1 });
        assert_eq!(store.tm.grow(most + 1).await.err(), wrong(100));
        let blocks = || blocks_on(Disk::new(store.disk.clone()), 16);
        assert_eq!(TransactionManager::create(blocks(), most + 1).await.err(), wrong(0));
        store.commit().await;
        let mut root = store.roots.1;
        root.nr_blocks = (most + 1).into();
        let blocks = blocks_on(Disk::new(store.disk.clone()), 16);
        assert_eq!(TransactionManager::open(blocks, &root).await.err(), wrong(0));
    });
}

/// The index of 200 bitmaps is two leaves and a root.
#[test]
fn closing_a_disk_map_takes_no_more_blocks_than_it_says() {
    block_on_ready(async {
        let mut store = Store::new(1000, 200 * ENTRIES_PER_BITMAP, 500).await;
        store.commit().await;
        for changed in [&[][..], &[3], &[3, 4], &[3, 199], &(0..200).collect::<Vec<u64>>()] {
            for bitmap in changed {
                let block = bitmap * ENTRIES_PER_BITMAP + 7;
                store.data.inc(&store.tm, block..block + 1).await.unwrap();
            }
            let told = store.data.close_blocks();
            let before = store.tm.free_blocks();
            store.data.close(&store.tm).await.unwrap();
            let taken = before - store.tm.free_blocks();
            let root = u64::from(!changed.is_empty());
            assert!(taken <= told + root && told <= changed.len().min(7) as u64, "{told} for {taken}, {changed:?}");
            store.commit().await;
        }
    });
}

#[test]
fn a_change_of_a_count_takes_no_more_blocks_than_it_says() {
    block_on_ready(async {
        let mut store = Store::new(200, 100, 16).await;
        for _ in 0..4 {
            store.data.inc(&store.tm, 0..10).await.unwrap();
        }
        store.commit().await;
        let cost = store.data.change_cost(store.tm.blocks()).await.unwrap().blocks(1);
        let before = store.tm.free_blocks();
        store.data.inc(&store.tm, 3..4).await.unwrap();
        store.data.close(&store.tm).await.unwrap();
        // The bitmap, a leaf of counts above 2, and the index.
        assert_eq!((before - store.tm.free_blocks(), cost), (3, 3));
    });
}

/// The blocks of a pinned commit are those of all bitmaps.
#[test]
fn what_is_pinned_in_the_second_bitmap_is_not_handed_out() {
    block_on_ready(async {
        let mut store = Store::new(ENTRIES_PER_BITMAP, 100, 64).await;
        store.disk.resize(20_000 * 8);
        // The new bitmap lies in the area that it counts.
        store.tm.grow(20_000).await.unwrap();
        store.commit().await;
        let pin = store.tm.pin().await.unwrap();
        let mut free = Vec::new();
        for block in 0..20_000 {
            if store.tm.count(block).await == Ok(0) {
                free.push(block);
            }
        }
        free.iter().filter(|block| **block < ENTRIES_PER_BITMAP).for_each(|block| store.tm.inc(*block));
        store.commit().await;
        let blocks = blocks_on(Disk::new(store.disk.clone()), 64);
        let tm = TransactionManager::reopen(blocks, &store.roots.1, store.tm.pins()).await.unwrap();
        let mut first = None;
        for block in free {
            if first.is_none() && tm.count(block).await == Ok(0) {
                first = Some(block);
            }
        }
        assert!(pin.held_back_blocks() > Some(0) && tm.count(ENTRIES_PER_BITMAP).await == Ok(0));
        assert_eq!(Some(tm.new_block(&PLAIN).await.unwrap().number()), first);
    });
}

#[test]
fn changes_of_counts_wait_until_there_are_more_than_1024() {
    block_on_ready(async {
        let mut store = Store::new(4000, 10, 64).await;
        store.commit().await;
        let free = store.tm.free_blocks_after_commit();
        (1000..2024).for_each(|block| store.tm.inc(block));
        store.tm.settle_some().await.unwrap();
        assert_eq!(store.tm.free_blocks_after_commit(), free);
        store.tm.inc(2024);
        store.tm.settle_some().await.unwrap();
        assert!(store.tm.free_blocks_after_commit() <= free - 1025);
    });
}

#[test]
fn changes_of_counts_that_wait_are_settled_however_few() {
    block_on_ready(async {
        let mut store = Store::new(4000, 10, 64).await;
        store.commit().await;
        let free = store.tm.free_blocks_after_commit();
        store.tm.inc(1000);
        assert_eq!(store.tm.free_blocks_after_commit(), free);
        store.tm.settle().await.unwrap();
        assert_eq!(store.tm.free_blocks_after_commit(), free - 1);
    });
}
