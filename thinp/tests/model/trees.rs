//! One tree of wide values, which branches at every fourth entry: so its internal nodes fill up, empty and merge as
//! often as leaves do elsewhere. The model is a map.

use crate::count;
use crate::world::Dice;
use pdata::TransactionManager;
use pdata::block_manager::BlockManager;
use pdata::btree::{BTree, Node, Plain};
use pdata::check::{Checker, Walk};
use platform::block::Disk;
use platform::buf::BufPool;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::BTreeMap;

/// Three of them fill a leaf.
type Wide = [u8; 1000];

const TREE: BTree<Plain<Wide>> = BTree::plain();
const METADATA_BLOCKS: u64 = 8000;
const KEYS: u64 = 4000;

struct Tree {
    disk: MemDisk,
    tm: TransactionManager,
    dice: Dice,
    root: u64,
    model: BTreeMap<u64, u8>,
    /// A snapshot: another root of the same tree, and what it held.
    held: Option<(u64, BTreeMap<u64, u8>)>,
    /// Where insertions go on in order.
    at: u64,
}

/// A history of one tree.
pub fn history(seed: u64, operations: u64) {
    block_on_ready(async {
        let (disk, dice) = (MemDisk::new(METADATA_BLOCKS * 8), Dice::new(seed));
        let cache_blocks = [16, 64, 1000][dice.below(3) as usize];
        let blocks = BlockManager::new(Disk::new(disk.clone()), BufPool::new(1 << 20), cache_blocks);
        let tm = TransactionManager::create(blocks, METADATA_BLOCKS).await.unwrap();
        let root = TREE.create(&tm).await.unwrap();
        let mut tree = Tree { disk, tm, dice, root, model: BTreeMap::new(), held: None, at: 0 };
        let mut growing = true;
        for step in 0..operations {
            growing = if growing { tree.model.len() < 2000 } else { tree.model.len() < 20 };
            tree.step(growing).await;
            if tree.dice.chance(500) || step + 1 == operations {
                tree.commit().await;
            }
            if tree.dice.chance(4000) || step + 1 == operations {
                tree.commit().await;
                tree.check().await;
            }
        }
    });
}

impl Tree {
    async fn step(&mut self, growing: bool) {
        let removals = if growing { 10 } else { 85 };
        match self.dice.below(1000) {
            0..5 => self.snapshot().await,
            5..8 => self.drop_snapshot().await,
            8..100 => self.look().await,
            percent if percent % 100 < removals => self.remove().await,
            _ => self.insert().await,
        }
    }

    async fn insert(&mut self) {
        // In order upwards, or anywhere.
        let anywhere = self.dice.below(KEYS);
        let key = if self.dice.chance(2) { anywhere } else { self.at };
        self.at = if self.dice.chance(200) { anywhere } else { (self.at + 1) % KEYS };
        let value = self.dice.below(256) as u8;
        let (root, before) = TREE.insert(&self.tm, self.root, key, [value; 1000]).await.unwrap();
        self.root = root;
        assert_eq!(before.map(|wide| wide[999]), self.model.insert(key, value));
        count("tree: insertion");
    }

    async fn remove(&mut self) {
        let from = self.dice.below(KEYS);
        let Some((&first, _)) = self.model.range(from..).next() else { return };
        let (last, most) = (first + self.dice.below(400), 1 + self.dice.below(30) as usize);
        let (root, gone) = TREE.remove_run(&self.tm, self.root, first, last, most).await.unwrap();
        self.root = root;
        assert!(!gone.is_empty() && gone.len() <= most);
        let expected: Vec<(u64, u8)> =
            self.model.range(first..=last).take(gone.len()).map(|(key, value)| (*key, *value)).collect();
        assert!(gone.iter().map(|(key, wide)| (*key, wide[0])).eq(expected.iter().copied()));
        for (key, _) in &expected {
            self.model.remove(key);
        }
        count("tree: removal");
    }

    async fn look(&mut self) {
        let key = self.dice.below(KEYS);
        let found = self.tm.blocks().look(|blocks| TREE.try_lookup(blocks, self.root, key)).await.unwrap();
        assert_eq!(found.map(|wide| wide[500]), self.model.get(&key).copied());
        let next = self.tm.blocks().look(|blocks| TREE.try_next(blocks, self.root, key)).await.unwrap();
        let expected = self.model.range(key..).next().map(|(key, value)| (*key, *value));
        assert_eq!(next.map(|(key, wide)| (key, wide[0])), expected);
        count("tree: lookup");
    }

    /// Another pointer to the root: from now on a change copies what it touches.
    async fn snapshot(&mut self) {
        self.drop_snapshot().await;
        self.tm.inc(self.root);
        self.held = Some((self.root, self.model.clone()));
        count("tree: snapshot");
    }

    async fn drop_snapshot(&mut self) {
        let Some((root, model)) = self.held.take() else { return };
        for (key, value) in &model {
            let found = self.tm.blocks().look(|blocks| TREE.try_lookup(blocks, root, *key)).await.unwrap();
            assert_eq!(found.map(|wide| wide[0]), Some(*value), "key {key} of a snapshot");
        }
        TREE.delete(&self.tm, root).await.unwrap();
    }

    async fn commit(&mut self) {
        self.tm.close().await.unwrap();
        self.tm.blocks().write_out().await.unwrap();
        self.tm.committed();
    }

    /// Recounts everything on the disk.
    async fn check(&mut self) {
        let map = self.tm.close().await.unwrap();
        self.tm.blocks().write_out().await.unwrap();
        self.tm.committed();
        let blocks = BlockManager::new(Disk::new(self.disk.clone()), BufPool::new(1 << 20), 512);
        let (mut checker, mut walk) = (Checker::new(blocks, METADATA_BLOCKS), Walk::default());
        checker.metadata.add(0);
        for root in [Some(self.root), self.held.as_ref().map(|(root, _)| *root)].into_iter().flatten() {
            walk.tree(&mut checker, root, |_: &mut Checker, _: &Node<'_>, _: &[Wide]| ()).await;
        }
        checker.metadata_map(&map).await;
        checker.compare_metadata_map(&map).await;
        let (problems, _) = checker.into_problems();
        assert!(problems.is_empty(), "{problems:#?}");
        count("tree: checked");
    }
}
