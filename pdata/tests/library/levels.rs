//! Keys of three levels against a map, with sharing, tiny caches and random commits.

use crate::harness::*;
use pdata::btree::{BTree, Node, Roots};
use pdata::check::{Checker, Counts, Walk};
use platform::block::Disk;
use platform::task::block_on_ready;
use std::collections::BTreeMap;
use zerocopy::little_endian::U64;

const DATA_BLOCKS: u64 = 5000;

type Key = (u64, u64, u64);
type Top = BTree<Roots<Roots<Refs>>>;

#[derive(Clone)]
struct Tree {
    root: u64,
    model: BTreeMap<Key, u64>,
}

struct Levels {
    store: Store,
    top: Top,
    dice: Dice,
    trees: Vec<Tree>,
    committed: Vec<Tree>,
}

fn top(store: &Store) -> Top {
    BTree::new(Roots::new(BTree::new(Roots::new(BTree::new(Refs { data: store.data.clone() })))))
}

impl Levels {
    fn pick(&self) -> usize {
        self.dice.below(self.trees.len() as u64) as usize
    }

    /// Few keys of the upper levels, so that the lower trees are more than a leaf.
    fn key(&self) -> Key {
        (self.dice.below(4), self.dice.below(30) * 1000, self.dice.below(60))
    }

    async fn step(&mut self) {
        match self.dice.below(40) {
            0..=24 => self.insert().await,
            25..=31 => self.remove().await,
            32 | 33 if self.trees.len() < 5 => {
                let tree = self.trees[self.pick()].clone();
                self.store.tm.inc(tree.root);
                self.trees.push(tree);
            }
            34 if self.trees.len() > 1 => {
                let tree = self.trees.swap_remove(self.pick());
                self.top.delete(&self.store.tm, tree.root).await.unwrap();
            }
            35 => self.remove_subtree().await,
            36 => self.commit().await,
            37 if !self.committed.is_empty() => {
                self.store.reopen().await;
                self.top = top(&self.store);
                self.trees = self.committed.clone();
            }
            _ => {}
        }
        self.store.tm.settle_some().await.unwrap();
    }

    async fn dec(&self, block: u64) {
        self.store.data.dec(&self.store.tm, block..block + 1, &mut |_| ()).await.unwrap();
    }

    async fn insert(&mut self) {
        let at = self.pick();
        for _ in 0..self.dice.below(30) {
            let (key, block) = (self.key(), self.dice.below(DATA_BLOCKS));
            let (tm, root) = (&self.store.tm, self.trees[at].root);
            self.store.data.inc(tm, block..block + 1).await.unwrap();
            let bottom = async |tree: &BTree<Refs>, root| tree.insert(tm, root, key.2, Long::new(block)).await;
            let middle = async |tree: &BTree<Roots<_>>, root| tree.change_lower(tm, root, key.1, bottom).await;
            let (root, before) = self.top.change_lower(tm, root, key.0, middle).await.unwrap();
            self.trees[at].root = root;
            let before = before.map(|value| value.block.get());
            assert_eq!(before, self.trees[at].model.insert(key, block));
            if let Some(before) = before {
                self.dec(before).await;
            }
        }
    }

    async fn remove(&mut self) {
        let at = self.pick();
        for _ in 0..self.dice.below(60) {
            let (key, tm, root) = (self.key(), &self.store.tm, self.trees[at].root);
            let bottom = async |tree: &BTree<Refs>, root| tree.remove(tm, root, key.2).await;
            let middle = async |tree: &BTree<Roots<_>>, root| tree.change_lower(tm, root, key.1, bottom).await;
            let (root, gone) = self.top.change_lower(tm, root, key.0, middle).await.unwrap();
            self.trees[at].root = root;
            let gone = gone.map(|value| value.block.get());
            assert_eq!(gone, self.trees[at].model.remove(&key));
            if let Some(block) = gone {
                self.dec(block).await;
            }
        }
    }

    /// Removes all that one key of the upper level leads to.
    async fn remove_subtree(&mut self) {
        let (at, (key, ..)) = (self.pick(), self.key());
        let (tm, tree) = (&self.store.tm, &mut self.trees[at]);
        let (root, gone) = self.top.remove(tm, tree.root, key).await.unwrap();
        tree.root = root;
        tree.model.retain(|(first, ..), _| *first != key);
        if let Some(lower) = gone {
            self.top.lower().delete(tm, lower.get()).await.unwrap();
        }
    }

    async fn commit(&mut self) {
        self.store.commit().await;
        self.committed = self.trees.clone();
        let roots = self.store.roots;
        let mut checker = Checker::new(blocks_on(Disk::new(self.store.disk.clone()), 4096), roots.1.nr_blocks.get());
        let (mut walk, mut counts) = (Walk::default(), Counts::new(DATA_BLOCKS, 1 << 20));
        checker.metadata.add(0);
        let mut level: Vec<u64> = self.trees.iter().map(|tree| tree.root).collect();
        for _ in 0..2 {
            let mut next = Vec::new();
            for root in level {
                let keep =
                    |_: &mut Checker, _: &Node<'_>, lower: &[U64]| next.extend(lower.iter().map(|root| root.get()));
                walk.tree(&mut checker, root, keep).await;
            }
            level = next;
        }
        for root in level {
            let count = |_: &mut Checker, _: &Node<'_>, values: &[Long]| {
                values.iter().for_each(|value| counts.add(value.block.get()));
            };
            walk.tree(&mut checker, root, count).await;
        }
        compare(checker, roots, counts).await;
        for tree in &self.trees {
            assert_eq!(self.all(tree.root).await, tree.model);
        }
    }

    async fn all(&self, root: u64) -> BTreeMap<Key, u64> {
        let (blocks, mut all) = (self.store.tm.blocks(), BTreeMap::new());
        let mut top = self.top.cursor(blocks, root, 0, 4);
        while let Some((a, root)) = top.next().await.unwrap() {
            let mut middle = self.top.lower().cursor(blocks, root.get(), 0, 4);
            while let Some((b, root)) = middle.next().await.unwrap() {
                let mut bottom = self.top.lower().lower().cursor(blocks, root.get(), 0, 4);
                while let Some((c, value)) = bottom.next().await.unwrap() {
                    all.insert((a, b, c), value.block.get());
                }
            }
        }
        all
    }
}

#[test]
fn keys_of_three_levels_agree_with_a_map() {
    let seed = seed();
    for (n, cache_blocks) in [16, 2000].into_iter().enumerate() {
        block_on_ready(async {
            let store = Store::new(10_000, DATA_BLOCKS, cache_blocks).await;
            let top = top(&store);
            let root = top.create(&store.tm).await.unwrap();
            let trees = vec![Tree { root, model: BTreeMap::new() }];
            let dice = Dice::new(seed + n as u64);
            let mut levels = Levels { store, top, dice, trees, committed: Vec::new() };
            for _ in 0..500 {
                levels.step().await;
            }
            levels.commit().await;
            for tree in std::mem::take(&mut levels.trees) {
                levels.top.delete(&levels.store.tm, tree.root).await.unwrap();
            }
            levels.commit().await;
            assert_eq!(levels.store.data.nr_free(), DATA_BLOCKS);
        });
    }
}
