//! Trees against `BTreeMap`, with sharing, tiny caches and random commits.

use crate::harness::*;
use pdata::btree::{BTree, Plain};
use platform::task::block_on_ready;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use zerocopy::little_endian::U64;

const DATA_BLOCKS: u64 = 40_000;

struct Tree {
    root: u64,
    model: BTreeMap<u64, u64>,
}

struct Trees {
    store: Store,
    dice: Dice,
    trees: Vec<Tree>,
    /// As of the last commit.
    committed: Vec<(u64, BTreeMap<u64, u64>)>,
    deepest: usize,
}

impl Trees {
    async fn new(seed: u64, cache_blocks: usize) -> Trees {
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

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..=44 => self.insert_run().await,
            45..=74 => self.remove_some().await,
            75..=84 => self.read().await,
            85..=88 if self.trees.len() < 8 => self.share().await,
            89..=91 if self.trees.len() > 1 => self.delete().await,
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

    async fn commit(&mut self) {
        self.store.commit().await;
        self.committed = self.trees.iter().map(|tree| (tree.root, tree.model.clone())).collect();
        self.store.check(self.trees.iter().map(|tree| tree.root)).await;
        for tree in &self.trees {
            assert!(self.all(tree.root).await.iter().eq(&tree.model));
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
            for tree in core::mem::take(&mut trees.trees) {
                trees.store.tree.delete(&trees.store.tm, tree.root).await.unwrap();
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
