//! Deleting a tree in steps, leaf after leaf.

use crate::harness::*;
use pdata::btree::{BTree, Leaves, Roots, Shrunk};
use platform::block::Disk;
use platform::task::block_on_ready;
use std::cell::RefCell;
use std::ops::Range;

const DATA_BLOCKS: u64 = 5000;

/// A tree of these keys, whose values are the data blocks of the same numbers.
async fn tree(store: &Store, keys: Range<u64>) -> u64 {
    store.data.inc(&store.tm, keys.clone()).await.unwrap();
    let root = store.tree.create(&store.tm).await.unwrap();
    let entries = keys.map(|key| (key, Long::new(key)));
    store.tree.insert_sorted(&store.tm, root, entries, |_, _| ()).await.unwrap()
}

/// How many entries each leaf of a committed tree has.
async fn leaves(store: &Store, root: u64) -> Vec<usize> {
    let blocks = blocks_on(Disk::new(store.disk.clone()), 16);
    let (mut leaves, mut found) = (Leaves::open(&blocks, root).await.unwrap(), Vec::new());
    while let Some(leaf) = leaves.next().await.unwrap() {
        found.push(leaf.len());
    }
    found
}

/// Puts a new value at a key of a tree that shares it.
async fn change(store: &Store, root: u64, key: u64, block: u64) -> u64 {
    store.data.inc(&store.tm, block..block + 1).await.unwrap();
    let (root, old) = store.tree.insert(&store.tm, root, key, Long::new(block)).await.unwrap();
    let old = old.unwrap().block.get();
    store.data.dec(&store.tm, old..old + 1, &mut |_| ()).await.unwrap();
    root
}

#[test]
fn as_many_leaves_as_asked_for_go_from_the_end_and_what_is_left_is_a_legal_tree() {
    block_on_ready(async {
        let mut store = Store::new(2000, DATA_BLOCKS, 1000).await;
        // 280 leaves are too many for one internal node.
        let mut root = tree(&store, 0..4200).await;
        store.commit().await;
        let mut left = leaves(&store, root).await;
        assert!(left.len() > 252);
        for step in [1, 2, 3, 60, 1, 100, 80, 1, 1].into_iter().chain([5; 100]) {
            if step >= left.len() {
                break;
            }
            let gone: usize = left.split_off(left.len() - step).iter().sum();
            let shrunk = store.tree.shrink(&store.tm, root, step, |_| true).await.unwrap();
            root = shrunk.root.unwrap();
            assert_eq!((shrunk.leaves, shrunk.entries), (step, gone as u64));
            let entries = left.iter().sum::<usize>() as u64;
            assert_eq!(store.data.nr_free(), DATA_BLOCKS - entries);
            let last = store.tm.blocks().look(|blocks| store.tree.try_last(blocks, root)).await.unwrap();
            assert_eq!(last, Some((entries - 1, Long::new(entries - 1))));
            if left.len() % 5 < 2 {
                store.commit().await;
                store.check([root]).await;
            }
        }
        let shrunk = store.tree.shrink(&store.tm, root, 100, |_| true).await.unwrap();
        assert_eq!((shrunk.root, shrunk.leaves), (None, left.len()));
        store.commit().await;
        store.check([]).await;
        assert_eq!(store.data.nr_free(), DATA_BLOCKS);
    });
}

/// Only leaves that nobody else has are counted: others cost nothing.
#[test]
fn leaves_of_other_trees_go_uncounted_and_stay_with_those() {
    block_on_ready(async {
        let mut store = Store::new(200, DATA_BLOCKS, 100).await;
        let other = tree(&store, 0..300).await;
        store.tm.inc(other);
        store.commit().await;
        let lens = leaves(&store, other).await;
        let middle: usize = lens[..7].iter().sum();
        let root = change(&store, other, 299, 1000).await;
        let root = change(&store, root, middle as u64, 1001).await;
        for most in [1, 2, 100] {
            assert_eq!(store.tree.exclusive_leaves(&store.tm, root, most).await, Ok(most.min(2)));
        }
        let shrunk = store.tree.shrink(&store.tm, root, 2, |_| true).await.unwrap();
        assert_eq!((shrunk.leaves, shrunk.entries), (2, 300 - middle as u64));
        let root = shrunk.root.unwrap();
        let shrunk = store.tree.shrink(&store.tm, root, 1, |_| true).await.unwrap();
        assert_eq!(shrunk, Shrunk { root: None, entries: shrunk.entries, leaves: 0 });
        store.commit().await;
        store.check([other]).await;
        // One of two references to the whole.
        store.tm.inc(other);
        assert_eq!(store.tree.exclusive_leaves(&store.tm, other, 100).await, Ok(0));
        assert_eq!(store.tree.shrink(&store.tm, other, 100, |_| true).await, Ok(Shrunk::default()));
        store.commit().await;
        store.check([other]).await;
        assert_eq!(store.data.nr_free(), DATA_BLOCKS - 300);
    });
}

#[test]
fn a_leaf_without_room_for_its_values_stays() {
    block_on_ready(async {
        for (keys, allowed) in [(300, 3), (300, 0), (9, 0)] {
            let mut store = Store::new(200, DATA_BLOCKS, 100).await;
            let root = tree(&store, 0..keys).await;
            store.commit().await;
            let lens = leaves(&store, root).await;
            let asked = RefCell::new(Vec::new());
            let room = |values| {
                asked.borrow_mut().push(values);
                asked.borrow().len() <= allowed
            };
            let shrunk = store.tree.shrink(&store.tm, root, 100, room).await.unwrap();
            let mut expected: Vec<usize> = lens.into_iter().rev().take(allowed + 1).collect();
            assert_eq!(asked.take(), expected);
            expected.pop();
            let gone = expected.iter().sum::<usize>() as u64;
            assert_eq!((shrunk.leaves, shrunk.entries), (allowed, gone));
            store.commit().await;
            store.check([shrunk.root.unwrap()]).await;
            assert_eq!(store.data.nr_free(), DATA_BLOCKS - keys + gone);
        }
    });
}

#[test]
fn the_leaves_of_a_tree_of_trees_are_those_of_all_its_trees() {
    block_on_ready(async {
        let store = Store::new(200, DATA_BLOCKS, 100).await;
        let upper = BTree::new(Roots::new(BTree::new(Refs { data: store.data.clone() })));
        let mut root = upper.create(&store.tm).await.unwrap();
        let mut all = 1;
        for key in 0..3 {
            let lower = tree(&store, key * 100..key * 100 + 50).await;
            all += store.tree.exclusive_leaves(&store.tm, lower, 100).await.unwrap();
            root = upper.insert(&store.tm, root, key, lower.into()).await.unwrap().0;
        }
        let shared = tree(&store, 400..500).await;
        store.tm.inc(shared);
        root = upper.insert(&store.tm, root, 3, shared.into()).await.unwrap().0;
        assert!(all > 10);
        for most in [1, 2, all - 1, all, 100] {
            assert_eq!(upper.exclusive_leaves(&store.tm, root, most).await, Ok(most.min(all)));
        }
    });
}
