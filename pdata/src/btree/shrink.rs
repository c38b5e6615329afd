//! Deleting a large tree in steps: leaf after leaf from its end. Between two steps it is a legal tree, so that each step
//! may be a transaction of its own.

use super::{BTree, DEPTH_MAX, NODE, Node, ValueType, edit, view};
use crate::block_manager::BlockMut;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::vec::Vec;

/// What [`BTree::shrink`] left of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shrunk {
    /// The root of what is left, if anything is.
    pub root: Option<u64>,
    /// Entries that are gone; not counted when nothing is left.
    pub entries: u64,
    /// Leaves that were freed: those that nobody else refers to.
    pub leaves: usize,
}

/// The last child of a node on the way down the right edge.
struct Last {
    index: usize,
    number: u64,
    shared: bool,
    at_floor: bool,
    is_leaf: bool,
    entries: usize,
}

/// What became of the last leaf.
enum Dropped {
    /// There was no room to drop it.
    Kept { root: u64 },
    /// It is gone.
    Leaf { root: u64, entries: usize, freed: bool },
    /// It was all that was left, or the rest belongs to others as well.
    Tree { freed: bool },
}

impl<V: ValueType> BTree<V> {
    /// Leaves that [`BTree::delete`] would free, those of trees below its values included. Counts up to `most`.
    pub async fn exclusive_leaves(&self, tm: &TransactionManager, root: u64, most: usize) -> Result<usize> {
        let mut found = 0usize;
        let mut stack = Vec::from([(root, 1)]);
        while let Some((number, depth)) = stack.pop() {
            if depth > DEPTH_MAX {
                return Err(Error::TooDeep { root });
            }
            if found >= most {
                break;
            }
            if tm.is_shared(number).await? {
                continue;
            }
            let block = tm.blocks().read(number, &NODE).await?;
            let values = {
                let bytes = block.bytes();
                let node = Node::parse(&bytes, number)?;
                stack.extend(node.children().map(|child| (child, depth + 1)));
                if node.is_internal() { continue } else { node.values::<V::Value>()?.to_vec() }
            };
            let below = self.values.exclusive_leaves(tm, &values, most.saturating_sub(found)).await?;
            found = found.saturating_add(1).saturating_add(below);
        }
        Ok(found.min(most))
    }

    /// The way to a key leads through a node that others refer to as well.
    pub async fn is_way_shared(&self, tm: &TransactionManager, root: u64, key: u64) -> Result<bool> {
        let mut number = root;
        for _ in 0..DEPTH_MAX {
            if tm.is_shared(number).await? {
                return Ok(true);
            }
            let block = tm.blocks().read(number, &NODE).await?;
            let bytes = block.bytes();
            let node = Node::parse(&bytes, number)?;
            if !node.is_internal() {
                return Ok(false);
            }
            number = node.child(node.lower_bound(key).unwrap_or(0))?;
        }
        Err(Error::TooDeep { root })
    }

    /// Drops leaves off the end of a tree to which the caller has a counted reference, until `leaves` of them were freed,
    /// nothing is left, or `room` denies a leaf with so many values of its own. A tree that others refer to as well is
    /// gone at once.
    pub async fn shrink(
        &self,
        tm: &TransactionManager,
        root: u64,
        leaves: usize,
        room: impl Fn(usize) -> bool,
    ) -> Result<Shrunk> {
        let mut shrunk = Shrunk { root: Some(root), ..Shrunk::default() };
        if tm.is_shared(root).await? {
            tm.dec(root);
            return Ok(Shrunk::default());
        }
        while let Some(root) = shrunk.root.filter(|_| shrunk.leaves < leaves) {
            match self.drop_last(tm, root, &room).await? {
                Dropped::Kept { root } => {
                    shrunk.root = Some(root);
                    break;
                }
                Dropped::Leaf { root, entries, freed } => {
                    shrunk.root = Some(root);
                    shrunk.entries = shrunk.entries.saturating_add(entries as u64);
                    shrunk.leaves = shrunk.leaves.saturating_add(usize::from(freed));
                }
                Dropped::Tree { freed } => {
                    shrunk.root = None;
                    shrunk.leaves = shrunk.leaves.saturating_add(usize::from(freed));
                }
            }
            tm.settle_some().await?;
        }
        Ok(shrunk)
    }

    /// Drops the last leaf, top-down in one pass: as in a removal, what could fall below the floor is filled up first.
    async fn drop_last(&self, tm: &TransactionManager, root: u64, room: &impl Fn(usize) -> bool) -> Result<Dropped> {
        let mut node = self.shadow(tm, root).await?;
        let root = node.number();
        let mut depth = 1;
        while depth <= DEPTH_MAX {
            if view(&node, |node| Ok(!node.is_internal()))? {
                let freed = self.drop_values(tm, node.number(), room).await?;
                return Ok(if freed { Dropped::Tree { freed } } else { Dropped::Kept { root } });
            }
            let last = last(tm, &node).await?;
            if depth == 1 && last.index == 0 {
                if last.shared {
                    tm.dec(last.number);
                    tm.dec(root);
                    return Ok(Dropped::Tree { freed: false });
                }
                self.collapse(tm, &node, last.number).await?;
            } else if last.is_leaf {
                if last.shared {
                    tm.dec(last.number);
                } else if !self.drop_values(tm, last.number, room).await? {
                    return Ok(Dropped::Kept { root });
                }
                edit(&node, |node| node.remove(last.index..last.index.saturating_add(1)))?;
                return Ok(Dropped::Leaf { root, entries: last.entries, freed: !last.shared });
            } else if last.at_floor {
                self.fill_up(tm, &node, last.index).await?;
            } else {
                node = self.shadow_child(tm, &node, last.index).await?;
                depth += 1;
            }
        }
        Err(Error::TooDeep { root })
    }

    /// Frees a leaf and what its values refer to, if there is room for that.
    async fn drop_values(&self, tm: &TransactionManager, leaf: u64, room: &impl Fn(usize) -> bool) -> Result<bool> {
        let block = tm.blocks().read(leaf, &NODE).await?;
        let values = Node::parse(&block.bytes(), leaf)?.values::<V::Value>()?.to_vec();
        if !room(values.len()) {
            return Ok(false);
        }
        self.values.dec(tm, &values).await?;
        tm.dec(leaf);
        Ok(true)
    }
}

async fn last(tm: &TransactionManager, parent: &BlockMut<'_>) -> Result<Last> {
    let (index, number) = view(parent, |node| {
        let index = node.len().saturating_sub(1);
        Ok((index, node.child(index)?))
    })?;
    let shared = tm.is_shared(number).await?;
    let block = tm.blocks().read(number, &NODE).await?;
    let bytes = block.bytes();
    let node = Node::parse(&bytes, number)?;
    let (at_floor, is_leaf, entries) = (node.len() <= node.floor(), !node.is_internal(), node.len());
    Ok(Last { index, number, shared, at_floor, is_leaf, entries })
}
