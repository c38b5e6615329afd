//! Bulk insertion: sorted entries, as many as one leaf takes in each pass from the root.
//!
//! A node that fills up at its end leaves behind a full one on its left and goes on as a new one that has just enough
//! entries to be legal. So ascending keys make full nodes, in an empty tree and behind the last entry of any other, and the
//! tree is whole after every pass. Where keys fall between those that are there, room is made as for a single one.
//!
//! Whoever has more entries than fit in memory, a restore for one, calls it with an iterator that makes them as it goes,
//! or once for each part, with the root that the last call returned:
//!
//! ```
//! use pdata::{TransactionManager, block_manager::BlockManager, btree::{BTree, Plain}};
//! # use platform::{block::Disk, buf::BufPool, mem::MemDisk, task::block_on_ready};
//! use zerocopy::little_endian::U64;
//!
//! # block_on_ready(async {
//! # let disk = Disk::new(MemDisk::new(8 * 1024));
//! # let blocks = BlockManager::new(disk, BufPool::new(1 << 20), 64);
//! # let tm = TransactionManager::create(blocks, 1024).await?;
//! let tree = BTree::<Plain<U64>>::plain();
//! let mut root = tree.create(&tm).await?;
//! for part in [0..50_000, 50_000..100_000] {
//!     let entries = part.map(|key| (key, U64::new(key / 7)));
//!     root = tree.insert_sorted(&tm, root, entries, |_, _| ()).await?;
//! }
//! let last = tm.blocks().look(|blocks| tree.try_last(blocks, root)).await?;
//! assert_eq!(last, Some((99_999, U64::new(14_285))));
//! # Ok::<(), pdata::Error>(())
//! # }).unwrap();
//! ```

use super::insert::{Sibling, len};
use super::{BTree, DEPTH_MAX, ValueType, damaged, edit, note, spread, view};
use crate::block_manager::BlockMut;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use core::iter::Peekable;
use zerocopy::IntoBytes;

/// The leaf that a key belongs in.
struct Leaf<'a> {
    node: BlockMut<'a>,
    /// The first key that belongs in another leaf, if there is one.
    end: Option<u64>,
}

impl<V: ValueType> BTree<V> {
    /// Inserts entries in ascending order of their keys; in any other order it works as well but slowly. `replaced` is
    /// told of every entry whose value gave way to another: it belongs to the caller again. Returns the new root.
    pub async fn insert_sorted(
        &self,
        tm: &TransactionManager,
        root: u64,
        entries: impl IntoIterator<Item = (u64, V::Value)>,
        mut replaced: impl FnMut(u64, V::Value),
    ) -> Result<u64> {
        let mut root = root;
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            root = self.insert_pass(tm, root, &mut entries, &mut replaced).await?;
            tm.settle_some().await?;
        }
        Ok(root)
    }

    /// One pass of [`BTree::insert_sorted`]: takes as many entries as go into the leaf of the first, at least that. What it
    /// costs is bounded as a single insertion is. Returns the new root.
    pub async fn insert_pass(
        &self,
        tm: &TransactionManager,
        root: u64,
        entries: &mut Peekable<impl Iterator<Item = (u64, V::Value)>>,
        mut replaced: impl FnMut(u64, V::Value),
    ) -> Result<u64> {
        let Some((first, _)) = entries.peek() else { return Ok(root) };
        let shadow = self.shadow(tm, root).await?;
        let root = shadow.number();
        let leaf = self.leaf_with_room(tm, shadow, *first).await?;
        fill::<V>(&leaf, entries, &mut replaced)?;
        Ok(root)
    }

    /// Goes down to the leaf that `key` belongs in, and makes room on the way if there is none.
    async fn leaf_with_room<'a>(&self, tm: &'a TransactionManager, root: BlockMut<'a>, key: u64) -> Result<Leaf<'a>> {
        let root_number = root.number();
        let mut node = if lacks_room(&root, key)? { self.split_root(tm, root).await? } else { root };
        let mut end = None;
        for _ in 0..DEPTH_MAX {
            let Some(mut index) = child_for(&node, key)? else { return Ok(Leaf { node, end }) };
            let mut child = self.shadow_child(tm, &node, index).await?;
            if lacks_room(&child, key)? {
                self.make_room_for_run(tm, &node, index, child, key).await?;
                index = child_for(&node, key)?.ok_or(damaged(node.number(), "it is no internal node any more"))?;
                child = self.shadow_child(tm, &node, index).await?;
                if lacks_room(&child, key)? {
                    return Err(damaged(child.number(), "it stays full when split"));
                }
            }
            end = view(&node, |node| Ok(node.key(index.saturating_add(1))))?.or(end);
            node = child;
        }
        Err(Error::TooDeep { root: root_number })
    }

    /// Makes room in a full node, child `index` of `parent`.
    async fn make_room_for_run<'a>(
        &self,
        tm: &'a TransactionManager,
        parent: &BlockMut<'a>,
        index: usize,
        node: BlockMut<'a>,
        key: u64,
    ) -> Result<()> {
        let (at_end, floor) =
            view(&node, |node| Ok((node.lower_bound(key) == node.len().checked_sub(1), node.floor())))?;
        if !at_end {
            return self.make_room(tm, parent, index, node, key).await.map(|_| ());
        }
        if let Some(left_index) = index.checked_sub(1)
            && self.judge_sibling(tm, parent, left_index).await? == Sibling::Roomy
        {
            let left = self.shadow_child(tm, parent, left_index).await?;
            let left_len = view(&left, |left| Ok(left.max_entries()))?;
            return spread(parent, left_index, &left, &node, left_len);
        }
        note(&node, "split at its end")?;
        let left_len = len(&node)?.saturating_sub(floor);
        self.split_off(tm, parent, index, &node, left_len).await.map(drop)
    }
}

/// A node must be split, or relieved, before `key` goes into it or below it.
fn lacks_room(node: &BlockMut<'_>, key: u64) -> Result<bool> {
    view(node, |node| Ok(node.is_full() && (node.is_internal() || node.search(key).is_err())))
}

/// The child of a node that `key` belongs in, none of a leaf.
fn child_for(node: &BlockMut<'_>, key: u64) -> Result<Option<usize>> {
    let (internal, below) = view(node, |node| Ok((node.is_internal(), node.lower_bound(key))))?;
    if internal && below.is_none() {
        edit(node, |node| node.set_key(0, key))?;
    }
    Ok(internal.then_some(below.unwrap_or(0)))
}

/// Moves entries into a leaf while they ascend, belong there and fit.
fn fill<V: ValueType>(
    leaf: &Leaf<'_>,
    entries: &mut Peekable<impl Iterator<Item = (u64, V::Value)>>,
    replaced: &mut impl FnMut(u64, V::Value),
) -> Result<()> {
    edit(&leaf.node, |node| {
        let mut next = 0;
        while let Some(&(key, value)) = entries.peek() {
            if key < next || leaf.end.is_some_and(|end| key >= end) {
                break;
            }
            match node.search(key) {
                Ok(index) => {
                    replaced(key, node.value(index)?);
                    node.set_value(index, value.as_bytes())?;
                }
                Err(_) if node.is_full() => break,
                Err(index) => node.insert(index, key, value.as_bytes())?,
            }
            entries.next();
            next = key.saturating_add(1);
        }
        Ok(())
    })
}
