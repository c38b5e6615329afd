//! What re-implementations get wrong (reference 9.1): the traps of the library that no other file has.

use crate::harness::*;
use pdata::Error;
use pdata::block::BlockKind;
use pdata::btree::{NODE, Node};
use platform::task::block_on_ready;

/// A kind of block for whoever needs blocks.
static PLAIN: BlockKind = BlockKind { name: "test block", salt: 1, number_at: 8, check: |_| Ok(()) };

/// Inserts a key whose value refers to a data block, counted once for it.
async fn insert(store: &Store, root: u64, key: u64, block: u64) -> u64 {
    store.data.inc(&store.tm, block..block + 1).await.unwrap();
    store.tree.insert(&store.tm, root, key, Long::new(block)).await.unwrap().0
}

async fn remove(store: &Store, root: u64, key: u64) -> u64 {
    let (root, gone) = store.tree.remove(&store.tm, root, key).await.unwrap();
    let block = gone.unwrap().block.get();
    store.data.dec(&store.tm, block..block + 1, &mut |_| ()).await.unwrap();
    root
}

async fn counts(store: &Store, blocks: std::ops::Range<u64>) -> Vec<u32> {
    let mut found = Vec::new();
    for block in blocks {
        found.push(store.tm.blocks().look(|blocks| store.data.try_count(blocks, block)).await.unwrap());
    }
    found
}

/// A copy of a node that lives on counts what it points to once more; a node that merely moves counts nothing. Also of
/// siblings that lend or take entries.
#[test]
fn trap_4_a_copied_node_counts_what_it_points_to_and_a_moved_one_does_not() {
    block_on_ready(async {
        let mut store = Store::new(1000, 1000, 64).await;
        let mut root = store.tree.create(&store.tm).await.unwrap();
        for key in 0..300 {
            root = insert(&store, root, key, key).await;
        }
        store.commit().await;
        // Each of these moves the way to a leaf.
        for key in [50, 150, 250] {
            root = remove(&store, root, key).await;
            root = insert(&store, root, key, key).await;
        }
        assert_eq!(counts(&store, 0..300).await, [1; 300]);
        store.commit().await;
        // Another tree shares everything.
        let other = root;
        store.tm.inc(other);
        root = insert(&store, root, 1000, 999).await;
        let copied = counts(&store, 0..300).await.iter().filter(|count| **count == 2).count();
        assert!((1..=30).contains(&copied), "the last leaf, and a sibling perhaps: {copied}");
        // Leaves shrink, borrow from siblings and merge with them, all shared.
        for key in (0..300).filter(|key| key % 7 != 0) {
            root = remove(&store, root, key).await;
        }
        store.commit().await;
        store.check([root, other]).await;
        store.tree.delete(&store.tm, root).await.unwrap();
        assert_eq!(counts(&store, 0..300).await, [1; 300]);
        assert_eq!(counts(&store, 999..1000).await, [0]);
        store.tree.delete(&store.tm, other).await.unwrap();
        assert_eq!(store.data.nr_free(), 1000);
        store.commit().await;
        store.check([]).await;
    });
}

/// A block that several point to is copied for the one that changes it, also if the disk does not have it yet: the others go
/// on seeing what it was. What nobody points to cannot be changed.
#[test]
fn a_shared_block_that_was_not_written_yet_stays_for_the_others() {
    block_on_ready(async {
        for pointers in 2..6 {
            let store = Store::new(200, 10, 64).await;
            let block = store.tm.new_block(&PLAIN).await.unwrap();
            let number = block.number();
            block.bytes_mut()[100] = 7;
            drop(block);
            (1..pointers).for_each(|_| store.tm.inc(number));
            let shadow = store.tm.shadow(number, &PLAIN).await.unwrap();
            assert!(shadow.duplicated && shadow.block.number() != number && shadow.block.bytes()[100] == 7);
            shadow.block.bytes_mut()[100] = 8;
            assert_eq!(store.tm.blocks().read(number, &PLAIN).await.unwrap().bytes()[100], 7, "{pointers}");
            assert_eq!(store.tm.count(number).await, Ok(pointers - 1));
            (1..pointers).for_each(|_| store.tm.dec(number));
            let error = store.tm.shadow(number, &PLAIN).await.err();
            assert_eq!(error, Some(Error::BadCount { block: number, count: 0, by: -1 }));
        }
    });
}

/// Changing the metadata map's counts takes metadata blocks. What is noted meanwhile is seen at once, by who asks for a
/// count and by who looks for a free block; and there may be far more of it than Linux's 1024.
#[test]
fn trap_7_counts_include_what_waits_and_waiting_has_no_limit() {
    block_on_ready(async {
        let mut store = Store::new(17_000, 10, 64).await;
        store.commit().await;
        let mut taken = Vec::new();
        for _ in 0..5000 {
            let block = store.tm.new_block(&PLAIN).await.unwrap().number();
            assert_eq!(store.tm.count(block).await, Ok(1));
            taken.push(block);
        }
        // Large counts, each in the overflow tree, whose nodes are metadata blocks themselves.
        for block in &taken {
            (0..3).for_each(|_| store.tm.inc(*block));
            assert_eq!(store.tm.count(*block).await, Ok(4));
        }
        let mut distinct = taken.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 5000);
        store.commit().await;
        for (n, block) in taken.iter().enumerate() {
            assert_eq!(store.tm.count(*block).await, Ok(4));
            (0..1 + n % 4).for_each(|_| store.tm.dec(*block));
            assert_eq!(store.tm.count(*block).await, Ok(3 - n as u32 % 4));
            assert_eq!(store.tm.is_shared(*block).await, Ok(3 - n as u32 % 4 > 1));
        }
        store.commit().await;
        store.reopen().await;
        for (n, block) in taken.iter().enumerate() {
            assert_eq!(store.tm.count(*block).await, Ok(3 - n as u32 % 4));
            (0..3 - n % 4).for_each(|_| store.tm.dec(*block));
        }
        store.commit().await;
        store.check([]).await;
        // Round a small map: what waits to be counted is not free.
        let store = Store::new(100, 10, 64).await;
        let mut taken = std::collections::BTreeSet::new();
        while let Ok(block) = store.tm.new_block(&PLAIN).await {
            assert!(taken.insert(block.number()), "{} is handed out twice", block.number());
        }
        assert!(taken.len() > 80);
    });
}

/// Key 0 of each node on the leftmost way.
async fn leftmost_keys(store: &Store, root: u64) -> Vec<u64> {
    let (mut keys, mut number) = (Vec::new(), root);
    loop {
        let block = store.tm.blocks().read(number, &NODE).await.unwrap();
        let bytes = block.bytes();
        let node = Node::parse(&bytes, number).unwrap();
        keys.push(node.key(0).unwrap());
        if !node.is_internal() {
            return keys;
        }
        number = node.child(0).unwrap();
    }
}

#[test]
fn trap_21_a_parents_key_may_be_smaller_than_its_childs_first_and_never_larger() {
    block_on_ready(async {
        let mut store = Store::new(4000, 10, 64).await;
        let mut root = store.tree.create(&store.tm).await.unwrap();
        for key in 10_000..14_000 {
            root = insert(&store, root, key, 1).await;
        }
        assert_eq!(leftmost_keys(&store, root).await, [10_000; 3]);
        // Below the least: lowered on the whole way, at once.
        root = insert(&store, root, 9_000, 2).await;
        assert_eq!(leftmost_keys(&store, root).await, [9_000; 3]);
        // The least goes: parents keep their lower key, and what is left is found through it.
        root = remove(&store, root, 9_000).await;
        assert_eq!(leftmost_keys(&store, root).await, [9_000, 9_000, 10_000]);
        root = insert(&store, root, 9_500, 2).await;
        for (key, there) in [(8_999, false), (9_000, false), (9_500, true), (10_000, true), (13_999, true)] {
            let found = store.tm.blocks().look(|blocks| store.tree.try_lookup(blocks, root, key)).await.unwrap();
            assert_eq!(found.is_some(), there, "{key}");
        }
        store.commit().await;
        store.check([root]).await;
    });
}
