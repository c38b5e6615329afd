//! Building a tree from the bottom, of entries in order and of leaves that other trees have, too.
//!
//! What is inserted one by one is never shared: this is for a restore, which knows which leaves were.

use super::node::NodeMut;
use super::{BTree, NODE, Node, ValueType};
use crate::block::BLOCK_BYTES;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::vec::Vec;
use hashbrown::HashSet;
use zerocopy::IntoBytes;

/// A leaf that was written and belongs to no tree yet, or to several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// Its block.
    pub block: u64,
    /// Its first key.
    pub first: u64,
    /// Its last key.
    pub last: u64,
    entries: usize,
}

/// Leaves that trees may share, and which of them are in use.
#[derive(Default)]
pub struct SharedLeaves {
    used: HashSet<u64>,
}

/// A tree under construction.
pub struct Builder<'a, V: ValueType> {
    tree: &'a BTree<V>,
    tm: &'a TransactionManager,
    /// Complete, in order, each with at least the least number of entries.
    leaves: Vec<(Leaf, Owner)>,
    /// A leaf with less: good enough if it turns out to be the only one.
    small: Option<Leaf>,
    /// Entries behind those.
    tail: Vec<(u64, V::Value)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Owner {
    This,
    Shared,
}

impl<V: ValueType> BTree<V> {
    /// Starts a tree.
    pub fn build<'a>(&'a self, tm: &'a TransactionManager) -> Builder<'a, V> {
        Builder { tree: self, tm, leaves: Vec::new(), small: None, tail: Vec::new() }
    }
}

impl<V: ValueType> Builder<'_, V> {
    /// The last key so far.
    pub fn last_key(&self) -> Option<u64> {
        let leaf = self.small.or(self.leaves.last().map(|(leaf, _)| *leaf)).map(|leaf| leaf.last);
        self.tail.last().map(|(key, _)| *key).or(leaf)
    }

    /// Appends an entry, whose key must be greater than all before. It belongs to the tree from now on, but is referred to
    /// only when its leaf is written: the [`ValueType`] is told.
    pub async fn push(&mut self, key: u64, value: V::Value) -> Result<()> {
        self.unpack_small().await?;
        self.tail.push((key, value));
        self.spill().await
    }

    /// Appends a leaf, whose keys must be greater than all before. If it is too small for its place its entries are copied.
    pub async fn share(&mut self, leaf: Leaf) -> Result<()> {
        self.unpack_small().await?;
        let alone = self.leaves.is_empty() && self.tail.is_empty();
        if leaf.entries < BTree::<V>::FLOOR && alone {
            self.small = Some(leaf);
            return Ok(());
        }
        if leaf.entries < BTree::<V>::FLOOR || (!self.tail.is_empty() && self.tail.len() < BTree::<V>::FLOOR) {
            return self.unpack(leaf).await;
        }
        self.write_tail().await?;
        self.leaves.push((leaf, Owner::Shared));
        Ok(())
    }

    /// Completes the tree; returns its root and its number of entries.
    pub async fn finish(mut self, shared: &mut SharedLeaves) -> Result<(u64, u64)> {
        if let Some(small) = self.small.take() {
            self.leaves.push((small, Owner::Shared));
        }
        if !self.tail.is_empty() && self.tail.len() < BTree::<V>::FLOOR {
            // Only a shared leaf is ever followed by so little.
            let entries = core::mem::take(&mut self.tail);
            if let Some((leaf, _)) = self.leaves.pop() {
                self.unpack(leaf).await?;
            }
            self.tail.extend(entries);
        }
        self.write_tail().await?;
        let total = self.leaves.iter().fold(0, |sum: u64, (leaf, _)| sum.saturating_add(leaf.entries as u64));
        for (leaf, _) in self.leaves.iter().filter(|(_, owner)| *owner == Owner::Shared) {
            // Its first user takes over the reference with which it was written.
            if !shared.used.insert(leaf.block) {
                self.tm.inc(leaf.block);
            }
        }
        let mut level: Vec<(u64, u64)> = self.leaves.iter().map(|(leaf, _)| (leaf.first, leaf.block)).collect();
        while level.len() > 1 {
            level = self.parents(&level).await?;
        }
        match level.first() {
            Some((_, root)) => Ok((*root, total)),
            None => Ok((self.tree.create(self.tm).await?, total)),
        }
    }

    /// Completes leaves that other trees may share.
    pub async fn finish_leaves(mut self) -> Result<Vec<Leaf>> {
        self.write_tail().await?;
        Ok(self.leaves.into_iter().map(|(leaf, _)| leaf).collect())
    }

    async fn unpack_small(&mut self) -> Result<()> {
        match self.small.take() {
            Some(leaf) => self.unpack(leaf).await,
            None => Ok(()),
        }
    }

    /// Takes over a copy of a leaf's entries.
    async fn unpack(&mut self, leaf: Leaf) -> Result<()> {
        {
            let block = self.tm.blocks().read(leaf.block, &NODE).await?;
            let bytes = block.bytes();
            let node = Node::parse(&bytes, leaf.block)?;
            self.tail.extend(node.keys().zip(node.values()?.iter().copied()));
        }
        self.spill().await
    }

    /// Writes full leaves as long as enough remains for another.
    async fn spill(&mut self) -> Result<()> {
        let full = BTree::<V>::CAPACITY;
        while self.tail.len() >= full.saturating_mul(2) {
            self.write_leaf(full).await?;
        }
        Ok(())
    }

    /// Writes all entries that are left: at most two leaves, as even as can be.
    async fn write_tail(&mut self) -> Result<()> {
        if self.tail.len() > BTree::<V>::CAPACITY {
            self.write_leaf(self.tail.len() / 2).await?;
        }
        if self.tail.is_empty() { Ok(()) } else { self.write_leaf(self.tail.len()).await }
    }

    /// Writes the first entries of the tail as a leaf of its own.
    async fn write_leaf(&mut self, entries: usize) -> Result<()> {
        let part: Vec<(u64, V::Value)> = self.tail.drain(..entries.min(self.tail.len())).collect();
        let values: Vec<V::Value> = part.iter().map(|(_, value)| *value).collect();
        self.tree.values.inc(self.tm, &values).await?;
        let (Some((first, _)), Some((last, _))) = (part.first(), part.last()) else { return Ok(()) };
        let (first, last) = (*first, *last);
        let block = self.write_node(false, part.iter().map(|(key, value)| (*key, value.as_bytes()))).await?;
        self.leaves.push((Leaf { block, first, last, entries: part.len() }, Owner::This));
        Ok(())
    }

    /// Writes the nodes above a level, which is given by first keys and blocks; all have about the same number of children.
    async fn parents(&self, level: &[(u64, u64)]) -> Result<Vec<(u64, u64)>> {
        let most = super::node::capacity(size_of::<u64>());
        let nodes = level.len().div_ceil(most).max(1);
        let mut parents = Vec::with_capacity(nodes);
        for index in 0..nodes {
            let cut = |index: usize| index.saturating_mul(level.len()).checked_div(nodes).unwrap_or(0);
            let children = level.get(cut(index)..cut(index.saturating_add(1))).unwrap_or_default();
            let Some((first, _)) = children.first() else { continue };
            let entries: Vec<(u64, [u8; 8])> =
                children.iter().map(|(key, block)| (*key, block.to_le_bytes())).collect();
            let block = self.write_node(true, entries.iter().map(|(key, block)| (*key, block.as_slice()))).await?;
            parents.push((*first, block));
        }
        Ok(parents)
    }

    async fn write_node<'e>(&self, internal: bool, entries: impl Iterator<Item = (u64, &'e [u8])>) -> Result<u64> {
        let mut block = [0; BLOCK_BYTES];
        let value_bytes = if internal { size_of::<u64>() } else { size_of::<V::Value>() };
        NodeMut::format(&mut block, internal, value_bytes);
        let mut node = NodeMut::parse(&mut block, 0)?;
        for (index, (key, value)) in entries.enumerate() {
            node.insert(index, key, value)?;
        }
        let number = self.tm.copy_in(&NODE, &block).await?;
        self.tm.settle_some().await?;
        Ok(number)
    }
}

impl SharedLeaves {
    /// Drops those of `leaves` that no tree uses.
    pub async fn drop_unused<V: ValueType>(
        &self,
        tree: &BTree<V>,
        tm: &TransactionManager,
        leaves: &[Leaf],
    ) -> Result<(), Error> {
        for leaf in leaves.iter().filter(|leaf| !self.used.contains(&leaf.block)) {
            tree.delete(tm, leaf.block).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_manager::BlockManager;
    use crate::btree::{Leaves, Plain};
    use alloc::vec;
    use core::ops::Range;
    use platform::block::Disk;
    use platform::buf::BufPool;
    use platform::mem::MemDisk;
    use platform::task::block_on_ready;
    use zerocopy::little_endian::U64;

    /// Builds trees of runs of keys, given by their lengths; those named twice are shared. What the leaves then are.
    fn build(trees: &[&[u64]], shared: &[u64]) -> Vec<Vec<(u64, usize)>> {
        let disk = MemDisk::new(8 * 1024);
        let tree = BTree::<Plain<U64>>::plain();
        block_on_ready(async {
            let blocks = BlockManager::new(Disk::new(disk), BufPool::new(1 << 20), 64);
            let tm = TransactionManager::create(blocks, 1024).await.unwrap();
            let mut leaves = SharedLeaves::default();
            let mut roots = vec![];
            let mut known: Vec<(u64, Vec<Leaf>)> = vec![];
            for pieces in trees {
                let mut builder = tree.build(&tm);
                let mut next = 0;
                for &piece in *pieces {
                    let keys = next..next + piece;
                    next += piece;
                    if !shared.contains(&piece) {
                        for key in keys {
                            builder.push(key, key.into()).await.unwrap();
                        }
                        continue;
                    }
                    if !known.iter().any(|(len, _)| *len == piece) {
                        let mut part = tree.build(&tm);
                        for key in keys {
                            part.push(key, key.into()).await.unwrap();
                        }
                        known.push((piece, part.finish_leaves().await.unwrap()));
                    }
                    for leaf in &known.iter().find(|(len, _)| *len == piece).unwrap().1 {
                        builder.share(*leaf).await.unwrap();
                    }
                }
                assert_eq!(builder.last_key(), next.checked_sub(1));
                let (root, entries) = builder.finish(&mut leaves).await.unwrap();
                assert_eq!(entries, next);
                roots.push(root);
            }
            tm.close().await.unwrap();
            tm.blocks().write_out().await.unwrap();
            let mut all = vec![];
            for root in roots {
                let mut leaves = Leaves::open(tm.blocks(), root).await.unwrap();
                let (mut found, mut next) = (vec![], 0);
                while let Some(leaf) = leaves.next().await.unwrap() {
                    assert!(leaf.keys().eq(next..next + leaf.len() as u64));
                    next += leaf.len() as u64;
                    found.push((leaf.number(), leaf.len()));
                }
                let least = if found.len() > 1 { 84 } else { 0 };
                assert!(found.iter().all(|(_, len)| (least..=252).contains(len)), "{found:?}");
                all.push(found);
            }
            all
        })
    }

    #[test]
    fn leaves_are_shared_where_their_size_allows() {
        let lens = |pieces: &[u64]| build(&[pieces], &[])[0].iter().map(|(_, len)| *len).collect::<Vec<_>>();
        assert_eq!(lens(&[0]), [0]);
        assert_eq!(lens(&[252]), [252]);
        assert_eq!(lens(&[253]), [126, 127]);
        assert_eq!(lens(&[252 * 3 + 1]), [252, 252, 126, 127]);
        // Too deep for one internal node.
        assert_eq!(lens(&[252 * 300]).len(), 300);

        let same = build(&[&[500, 300], &[500]], &[500]);
        assert_eq!(same[0][..2], same[1]);
        // A small one is shared as the only leaf, and copied beside others.
        let small = build(&[&[10], &[10], &[10, 300], &[10, 5]], &[10]);
        assert_eq!(small[0], small[1]);
        assert_ne!(small[2][0].0, small[0][0].0);
        assert_eq!((small[3].len(), small[3][0].1), (1, 15));
        // What is too little before or behind a shared leaf is put together with it.
        let mixed = build(&[&[100], &[100, 3], &[100, 200]], &[100]);
        assert_eq!((mixed[1].len(), mixed[1][0].1), (1, 103));
        assert_eq!(mixed[2][0], mixed[0][0]);
        let lens =
            |pieces: &[u64], shared| build(&[pieces], &[shared])[0].iter().map(|(_, len)| *len).collect::<Vec<_>>();
        assert_eq!((lens(&[3, 100], 100), lens(&[300, 10], 10)), (vec![103], vec![155, 155]));
    }

    /// 84 entries are the least that a leaf may have.
    #[test]
    fn the_smallest_leaves_are_shared_and_stay_beside_shared_ones() {
        let cases: [(&[u64], u64, Range<usize>); 4] =
            [(&[84, 300], 84, 0..1), (&[300, 84], 84, 2..3), (&[84, 500], 500, 1..3), (&[500, 84], 500, 0..2)];
        for (pieces, shared, leaves) in cases {
            let built = build(&[pieces, pieces], &[shared]);
            assert_eq!(built[0].len(), 3);
            assert_eq!(built[0][leaves.clone()], built[1][leaves], "{pieces:?}");
        }
    }

    #[test]
    fn a_shared_leaf_is_counted_for_each_tree_and_dropped_if_no_tree_has_it() {
        let tree = BTree::<Plain<U64>>::plain();
        block_on_ready(async {
            let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 100)), BufPool::new(1 << 20), 64);
            let tm = TransactionManager::create(blocks, 100).await.unwrap();
            let mut part = tree.build(&tm);
            for key in 0..300 {
                part.push(key, key.into()).await.unwrap();
            }
            let leaves = part.finish_leaves().await.unwrap();
            let [both, own] = leaves[..] else { panic!("{leaves:?}") };
            let unused = tree.create(&tm).await.unwrap();
            let leaf = Leaf { block: unused, first: 0, last: 0, entries: 0 };
            let mut shared = SharedLeaves::default();
            for leaves in [&[both, own][..], &[both]] {
                let mut builder = tree.build(&tm);
                for leaf in leaves {
                    builder.share(*leaf).await.unwrap();
                }
                builder.finish(&mut shared).await.unwrap();
            }
            shared.drop_unused(&tree, &tm, &[both, own, leaf]).await.unwrap();
            let counts = [tm.count(both.block).await, tm.count(own.block).await, tm.count(unused).await];
            assert_eq!(counts, [Ok(2), Ok(1), Ok(0)]);
        });
    }
}
