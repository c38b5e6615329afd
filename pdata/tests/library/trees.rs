//! Trees against `BTreeMap`, with sharing, tiny caches and random commits.

use crate::harness::*;
use pdata::btree::{BTree, Plain};
use pdata::{Error, TransactionManager};
use platform::block::Disk;
use platform::task::{Executor, block_on_ready};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;
use zerocopy::little_endian::U64;

const DATA_BLOCKS: u64 = 40_000;

pub struct Tree {
    pub root: u64,
    pub model: BTreeMap<u64, u64>,
}

pub struct Trees {
    pub store: Store,
    pub dice: Dice,
    pub trees: Vec<Tree>,
    /// As of the last commit.
    committed: Vec<(u64, BTreeMap<u64, u64>)>,
    deepest: usize,
}

impl Trees {
    pub async fn new(seed: u64, cache_blocks: usize) -> Trees {
        let store = Store::new(20_000, DATA_BLOCKS, cache_blocks).await;
        let root = store.tree.create(&store.tm).await.unwrap();
        let trees = vec![Tree { root, model: BTreeMap::new() }];
        Trees { store, dice: Dice::new(seed), trees, committed: Vec::new(), deepest: 0 }
    }

    fn pick(&self) -> usize {
        self.dice.below(self.trees.len() as u64) as usize
    }

    fn key(&self) -> u64 {
        match self.dice.below(20) {
            0 => self.dice.word(),
            1 => u64::MAX - self.dice.below(3),
            2 => self.dice.below(3),
            _ => 1000 + self.dice.below(12_000),
        }
    }

    pub async fn step(&mut self) {
        match self.dice.below(100) {
            0..=34 => self.insert_run().await,
            35..=44 => self.insert_sorted().await,
            45..=74 => self.remove_some().await,
            75..=84 => self.read().await,
            85..=88 if self.trees.len() < 8 => self.share().await,
            89..=91 if self.trees.len() > 1 => self.delete().await,
            92 if self.trees.len() > 1 => self.shrink().await,
            92..=94 => self.commit().await,
            95 => self.go_back().await,
            _ => self.remove_one().await,
        }
    }

    async fn insert_run(&mut self) {
        let (at, first, len) = (self.pick(), self.key(), self.dice.below(200));
        let direction = self.dice.below(3);
        for n in 0..len {
            let key = match direction {
                0 => first.saturating_add(n),
                1 => first.saturating_sub(n),
                _ => self.key(),
            };
            // Few different blocks among the small ones, so that some counts are large.
            let block = if self.dice.below(2) == 0 { self.dice.below(5) } else { self.dice.below(DATA_BLOCKS) };
            let (store, tree) = (&self.store, &mut self.trees[at]);
            store.data.inc(&store.tm, block..block + 1).await.unwrap();
            let (root, before) = store.tree.insert(&store.tm, tree.root, key, Long::new(block)).await.unwrap();
            tree.root = root;
            assert_eq!(before.map(|value| value.block.get()), tree.model.insert(key, block));
            if let Some(before) = before {
                self.dec(before.block.get()).await;
            }
        }
        self.store.tm.settle_some().await.unwrap();
    }

    /// Inserts a run of keys, close together or far apart, at times in no good order.
    async fn insert_sorted(&mut self) {
        let (at, first, len) = (self.pick(), self.key(), self.dice.below(600));
        let gap = 1 + self.dice.below(3);
        let mut keys: Vec<u64> = (0..len).map(|n| first.saturating_add(n * gap)).collect();
        keys.dedup();
        if self.dice.below(10) == 0 {
            keys.reverse();
        }
        let entries: Vec<_> = keys.into_iter().map(|key| (key, self.dice.below(DATA_BLOCKS))).collect();
        let (store, tree) = (&self.store, &mut self.trees[at]);
        for (_, block) in &entries {
            store.data.inc(&store.tm, *block..*block + 1).await.unwrap();
        }
        let mut replaced = Vec::new();
        let values = entries.iter().map(|(key, block)| (*key, Long::new(*block)));
        let see = |key, value: Long| replaced.push((key, value.block.get()));
        tree.root = store.tree.insert_sorted(&store.tm, tree.root, values, see).await.unwrap();
        let before = entries.iter().filter_map(|(key, block)| Some((*key, tree.model.insert(*key, *block)?)));
        assert_eq!(replaced, before.collect::<Vec<_>>());
        for (_, block) in replaced {
            self.dec(block).await;
        }
    }

    async fn dec(&self, block: u64) {
        let mut freed = false;
        self.store.data.dec(&self.store.tm, block..block + 1, &mut |_| freed = true).await.unwrap();
        let count = self.store.tm.blocks().look(|blocks| self.store.data.try_count(blocks, block)).await.unwrap();
        assert_eq!(freed, count == 0);
    }

    /// Removes a range, in as many passes as it takes.
    async fn remove_some(&mut self) {
        let (at, first) = (self.pick(), self.key());
        let last = first.saturating_add(self.dice.below(120));
        let most = 1 + self.dice.below(30) as usize;
        loop {
            let (store, tree) = (&self.store, &mut self.trees[at]);
            let next = store.tm.blocks().look(|blocks| store.tree.try_next(blocks, tree.root, first)).await.unwrap();
            let Some((key, _)) = next.filter(|(key, _)| *key <= last) else { break };
            let (root, gone) = store.tree.remove_run(&store.tm, tree.root, key, last, most).await.unwrap();
            assert!(!gone.is_empty() && gone.len() <= most);
            tree.root = root;
            for (key, value) in gone {
                assert_eq!(self.trees[at].model.remove(&key), Some(value.block.get()));
                self.dec(value.block.get()).await;
            }
        }
        assert_eq!(self.trees[at].model.range(first..=last).next(), None);
    }

    async fn remove_one(&mut self) {
        let (at, key) = (self.pick(), self.key());
        let (store, tree) = (&self.store, &mut self.trees[at]);
        let (root, gone) = store.tree.remove(&store.tm, tree.root, key).await.unwrap();
        tree.root = root;
        let gone = gone.map(|value| value.block.get());
        assert_eq!(gone, tree.model.remove(&key));
        if let Some(block) = gone {
            self.dec(block).await;
        }
    }

    async fn read(&mut self) {
        let (store, tree, key) = (&self.store, &self.trees[self.pick()], self.key());
        let blocks = store.tm.blocks();
        let found = blocks.look(|blocks| store.tree.try_lookup(blocks, tree.root, key)).await.unwrap();
        assert_eq!(found.map(|value| value.block.get()), tree.model.get(&key).copied());
        let next = blocks.look(|blocks| store.tree.try_next(blocks, tree.root, key)).await.unwrap();
        let expected = tree.model.range(key..).next().map(|(key, block)| (*key, *block));
        assert_eq!(next.map(|(key, value)| (key, value.block.get())), expected);
        let prev = blocks.look(|blocks| store.tree.try_prev(blocks, tree.root, key)).await.unwrap();
        let expected = tree.model.range(..=key).next_back().map(|(key, block)| (*key, *block));
        assert_eq!(prev.map(|(key, value)| (key, value.block.get())), expected);
        let mut cursor = store.tree.cursor(blocks, tree.root, key, 1 + self.dice.below(40) as usize);
        let expected = tree.model.range(key..).take(self.dice.below(400) as usize);
        for (key, block) in expected {
            assert_eq!(cursor.next().await.unwrap(), Some((*key, Long::new(*block))));
        }
        let last = blocks.look(|blocks| store.tree.try_last(blocks, tree.root)).await.unwrap();
        assert_eq!(last.map(|(key, _)| key), tree.model.keys().next_back().copied());
    }

    async fn share(&mut self) {
        let at = self.pick();
        let (root, model) = (self.trees[at].root, self.trees[at].model.clone());
        self.store.tm.inc(root);
        self.trees.push(Tree { root, model });
    }

    async fn delete(&mut self) {
        let tree = self.trees.swap_remove(self.pick());
        self.store.tree.delete(&self.store.tm, tree.root).await.unwrap();
    }

    /// Takes leaves off the end; what is left is a tree like any other.
    async fn shrink(&mut self) {
        let mut tree = self.trees.swap_remove(self.pick());
        let (leaves, mut room) = (1 + self.dice.below(8) as usize, self.dice.below(200) as usize);
        let tm = &self.store.tm;
        let exclusive = self.store.tree.exclusive_leaves(tm, tree.root, usize::MAX).await.unwrap();
        let left = core::cell::Cell::new(room);
        let enough = |values: usize| left.replace(left.get().saturating_sub(values)) >= values;
        let shrunk = self.store.tree.shrink(tm, tree.root, leaves, enough).await.unwrap();
        assert!(shrunk.leaves <= leaves.min(exclusive));
        let Some(root) = shrunk.root else { return };
        room -= left.get().min(room);
        assert!(shrunk.leaves == leaves || left.get() < 15, "stopped after {shrunk:?} with {room} values used");
        tree.root = root;
        for _ in 0..shrunk.entries {
            tree.model.pop_last().unwrap();
        }
        let now = self.store.tree.exclusive_leaves(tm, root, usize::MAX).await.unwrap();
        assert!(now + shrunk.leaves <= exclusive + 2, "{exclusive} - {shrunk:?} = {now}");
        self.trees.push(tree);
    }

    pub async fn commit(&mut self) {
        self.store.commit().await;
        self.committed = self.trees.iter().map(|tree| (tree.root, tree.model.clone())).collect();
        self.store.check(self.trees.iter().map(|tree| tree.root)).await;
        for tree in &self.trees {
            assert!(self.all(tree.root).await.iter().eq(&tree.model));
            let mut cursor = self.store.tree.cursor(self.store.tm.blocks(), tree.root, 0, 32);
            for (key, block) in &tree.model {
                assert_eq!(cursor.next().await.unwrap(), Some((*key, Long::new(*block))));
            }
            assert_eq!((cursor.next().await, cursor.next().await), (Ok(None), Ok(None)));
        }
    }

    /// Forgets the transaction, as after a power cut.
    async fn go_back(&mut self) {
        if self.committed.is_empty() {
            return;
        }
        self.store.reopen().await;
        self.trees = self.committed.iter().map(|(root, model)| Tree { root: *root, model: model.clone() }).collect();
    }

    async fn all(&self, root: u64) -> BTreeMap<u64, u64> {
        let (mut all, mut next) = (BTreeMap::new(), Some(0));
        while let Some(from) = next {
            let scan = |blocks: &_| {
                self.store.tree.try_scan(blocks, root, from, |key, value| {
                    assert_eq!(value, Long::new(value.block.get()));
                    all.insert(key, value.block.get());
                    ControlFlow::Continue(())
                })
            };
            next = self.store.tm.blocks().look(scan).await.unwrap();
        }
        all
    }
}

#[test]
fn trees_agree_with_maps() {
    let seed = seed();
    for (n, cache_blocks) in [16, 16, 5000].into_iter().enumerate() {
        block_on_ready(async {
            let mut trees = Trees::new(seed + n as u64, cache_blocks).await;
            for _ in 0..800 {
                trees.step().await;
                trees.deepest = trees.deepest.max(trees.trees.iter().map(|tree| tree.model.len()).max().unwrap_or(0));
            }
            trees.commit().await;
            println!("{} trees, at most {} entries", trees.trees.len(), trees.deepest);
            assert!(trees.deepest > 3000, "too small for three levels: {}", trees.deepest);
            while let Some(tree) = trees.trees.pop() {
                if trees.dice.below(2) == 0 {
                    trees.store.tree.delete(&trees.store.tm, tree.root).await.unwrap();
                    continue;
                }
                let mut root = Some(tree.root);
                while let Some(left) = root {
                    root = trees.store.tree.shrink(&trees.store.tm, left, 60, |_| true).await.unwrap().root;
                    trees.store.commit().await;
                    let others = trees.trees.iter().map(|tree| tree.root);
                    trees.store.check(others.chain(root)).await;
                }
            }
            trees.store.commit().await;
            trees.store.check([]).await;
            assert_eq!(trees.store.data.nr_free(), DATA_BLOCKS);
            // Superblock, two bitmaps, index and overflow leaf; index leaf, overflow leaf and three bitmaps of the data map.
            assert_eq!(trees.store.tm.free_blocks(), 20_000 - 10);
        });
    }
}

/// Single inserts in order fill the leaves as Linux does: 248 of 252 upwards, 245 downwards (reference 4.3).
#[test]
fn leaves_are_well_filled() {
    let tree = BTree::<Plain<U64>>::plain();
    for (fill, keys) in [(248, (0..3000).collect::<Vec<u64>>()), (245, (0..3000).rev().collect())] {
        block_on_ready(async {
            let store = Store::new(4000, 3000, 1000).await;
            let mut root = tree.create(&store.tm).await.unwrap();
            let before = store.tm.free_blocks();
            for key in keys {
                root = tree.insert(&store.tm, root, key, key.into()).await.unwrap().0;
            }
            // The root moved to an internal node of its own.
            let leaves = before - store.tm.free_blocks();
            assert_eq!(leaves, 3000_u64.div_ceil(fill));
        });
    }
}

/// Ascending keys in bulk fill all nodes but the last two of each level, wherever the root's first split left off.
#[test]
fn bulk_insertion_fills_nodes() {
    let tree = BTree::<Plain<U64>>::plain();
    block_on_ready(async {
        let store = Store::new(4000, 3000, 1000).await;
        let mut root = tree.create(&store.tm).await.unwrap();
        let before = store.tm.free_blocks();
        let entries = |keys: std::ops::Range<u64>| keys.map(|key| (key, U64::new(key)));
        for part in 0..100 {
            root =
                tree.insert_sorted(&store.tm, root, entries(part * 1777..(part + 1) * 1777), |_, _| ()).await.unwrap();
        }
        let used = before - store.tm.free_blocks();
        let leaves = 177_700_u64.div_ceil(252);
        assert!(used <= leaves + leaves.div_ceil(252) + 3, "{used} nodes for {leaves} leaves");
    });
}

/// A cursor with read-ahead has many reads under way together, and a short walk reads little more than it needs.
#[test]
fn a_cursor_reads_ahead() {
    let tree = BTree::<Plain<U64>>::plain();
    block_on_ready(async {
        let mut store = Store::new(4000, 3000, 1000).await;
        let root = tree.create(&store.tm).await.unwrap();
        let entries = (0..200_000).map(|key| (key, U64::new(key)));
        let root = tree.insert_sorted(&store.tm, root, entries, |_, _| ()).await.unwrap();
        store.commit().await;
        // The greatest number of reads under way together, how often somebody waited, and all reads.
        let walk = |read_ahead, steps| {
            let slow = Slow::new(store.disk.clone());
            let (executor, disk) = (Executor::new(), Disk::new(slow.clone()));
            let map = store.roots.1;
            let done = Rc::new(Cell::new(false));
            let told = done.clone();
            executor.spawner().spawn(async move {
                let tm = TransactionManager::open(blocks_on(disk, 1000), &map).await.unwrap();
                let mut cursor = BTree::<Plain<U64>>::plain().cursor(tm.blocks(), root, 0, read_ahead);
                for key in 0..steps {
                    assert_eq!(cursor.next().await.unwrap(), Some((key, U64::new(key))));
                }
                told.set(true);
            });
            let (mut most, mut rounds, mut reads) = (0, 0, 0);
            while !done.get() {
                while executor.run_ready(1) {}
                let answered = slow.answer();
                (most, rounds, reads) = (answered.max(most), rounds + 1, reads + answered);
            }
            (most, rounds, reads)
        };
        let leaves = 200_000_usize.div_ceil(252);
        let (most, rounds, reads) = walk(32, 200_000);
        assert!(most == 32 && rounds < leaves / 32 + 30 && reads < leaves + 10, "{most} {rounds} {reads}");
        let (most, rounds, _) = walk(1, 200_000);
        assert!(most == 1 && rounds >= leaves, "{most} {rounds}");
        let (_, _, reads) = walk(32, 300);
        assert!(reads <= 6, "{reads}");
    });
}

#[test]
fn a_tree_that_nobody_refers_to_is_not_deleted() {
    block_on_ready(async {
        let store = Store::new(200, 10, 64).await;
        let root = store.tree.create(&store.tm).await.unwrap();
        store.tm.dec(root);
        let deleted = store.tree.delete(&store.tm, root).await;
        assert_eq!(deleted, Err(Error::BadCount { block: root, count: 0, by: -1 }));
    });
}
