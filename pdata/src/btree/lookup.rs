//! Reading a tree: plain calls over cached blocks.

use super::{BTree, DEPTH_MAX, NODE, Node, ValueType, damaged};
use crate::block_manager::{BlockManager, Stop};
use crate::{Error, Result};
use core::ops::ControlFlow;
use smallvec::SmallVec;

impl<V: ValueType> BTree<V> {
    /// The value of a key.
    pub fn try_lookup(&self, blocks: &BlockManager, root: u64, key: u64) -> Result<Option<V::Value>, Stop> {
        let mut number = root;
        for _ in 0..DEPTH_MAX {
            let block = blocks.try_read(number, &NODE)?;
            let bytes = block.bytes();
            let node = Node::parse(&bytes, number)?;
            let Some(index) = node.lower_bound(key) else { return Ok(None) };
            if node.is_internal() {
                number = node.child(index)?;
            } else if node.key(index) == Some(key) {
                return Ok(Some(node.value(index)?));
            } else {
                return Ok(None);
            }
        }
        Err(Stop::Failed(Error::TooDeep { root }))
    }

    /// A bound of the number of leaves, from what is near the root.
    pub fn try_leaves_at_most(&self, blocks: &BlockManager, root: u64) -> Result<u64, Stop> {
        let mut leaves = 1u64;
        let mut number = root;
        for depth in 0..DEPTH_MAX {
            let block = blocks.try_read(number, &NODE)?;
            let bytes = block.bytes();
            let node = Node::parse(&bytes, number)?;
            if !node.is_internal() {
                return Ok(leaves);
            }
            // Of other nodes than the root only the first is looked at: they may all be full.
            leaves = leaves.saturating_mul(if depth == 0 { node.len() } else { node.max_entries() } as u64);
            number = node.child(0)?;
        }
        Err(Stop::Failed(Error::TooDeep { root }))
    }

    /// The first entry at or after `from`.
    pub fn try_next(&self, blocks: &BlockManager, root: u64, from: u64) -> Result<Option<(u64, V::Value)>, Stop> {
        let mut found = None;
        self.try_scan(blocks, root, from, |key, value| {
            found = Some((key, value));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Shows the entries at and after `from` to `visit`, in order, as far as one leaf has them or until `visit` breaks.
    /// Returns where to go on, or `None` at the end of the tree or after a break. Nothing is shown before everything
    /// needed is in the cache.
    pub fn try_scan(
        &self,
        blocks: &BlockManager,
        root: u64,
        from: u64,
        mut visit: impl FnMut(u64, V::Value) -> ControlFlow<()>,
    ) -> Result<Option<u64>, Stop> {
        let Some(leaf) = find_leaf(blocks, root, from)? else { return Ok(None) };
        let block = blocks.try_read(leaf, &NODE)?;
        let bytes = block.bytes();
        let node = Node::parse(&bytes, leaf)?;
        for (key, value) in node.keys().zip(node.values::<V::Value>()?).skip_while(|(key, _)| *key < from) {
            if visit(key, *value).is_break() {
                return Ok(None);
            }
        }
        Ok(node.keys().next_back().and_then(|last| last.checked_add(1)))
    }

    /// The last entry at or before `to`.
    pub fn try_prev(&self, blocks: &BlockManager, root: u64, to: u64) -> Result<Option<(u64, V::Value)>, Stop> {
        let mut number = root;
        // The nearest subtree to the left: it has the entry if this one has none that early, for a parent's key may be
        // below all that its child has.
        let mut left = None;
        for _ in 0..DEPTH_MAX * 2 {
            let block = blocks.try_read(number, &NODE)?;
            let bytes = block.bytes();
            let node = Node::parse(&bytes, number)?;
            match node.lower_bound(to) {
                Some(index) if node.is_internal() => {
                    left = index.checked_sub(1).map(|index| node.child(index)).transpose()?.or(left);
                    number = node.child(index)?;
                }
                Some(index) => return Ok(node.key(index).zip(Some(node.value(index)?))),
                None => match left.take() {
                    Some(subtree) => number = subtree,
                    None => return Ok(None),
                },
            }
        }
        Err(Stop::Failed(Error::TooDeep { root }))
    }

    /// The last entry.
    pub fn try_last(&self, blocks: &BlockManager, root: u64) -> Result<Option<(u64, V::Value)>, Stop> {
        self.try_prev(blocks, root, u64::MAX)
    }
}

/// The leaf with the first key at or after `from`.
fn find_leaf(blocks: &BlockManager, root: u64, from: u64) -> Result<Option<u64>, Stop> {
    // The way down: each internal node with the child taken.
    let mut way = SmallVec::<[(u64, usize); 8]>::new();
    let (mut number, mut beside) = (root, false);
    loop {
        let block = blocks.try_read(number, &NODE)?;
        let bytes = block.bytes();
        let node = Node::parse(&bytes, number)?;
        if node.is_internal() {
            if way.len() >= DEPTH_MAX {
                return Err(Stop::Failed(Error::TooDeep { root }));
            }
            let index = node.lower_bound(from).unwrap_or(0);
            way.push((number, index));
            number = node.child(index)?;
            continue;
        }
        if node.keys().next_back().is_some_and(|last| last >= from) {
            return Ok(Some(number));
        }
        if node.is_empty() && !way.is_empty() {
            return Err(Stop::Failed(damaged(number, "it is empty but no root")));
        }
        // Nothing here: the first leaf of the next subtree to the right, if there is one, has it. Were it not so, the walk
        // could be as long as damaged nodes can name one another.
        if beside {
            return Err(Stop::Failed(damaged(number, "its keys are before those of the nodes above")));
        }
        let Some(next) = next_subtree(blocks, &way)? else { return Ok(None) };
        way.clear();
        (number, beside) = (next, true);
    }
}

/// The subtree to the right of where a way ended.
fn next_subtree(blocks: &BlockManager, way: &[(u64, usize)]) -> Result<Option<u64>, Stop> {
    for (number, index) in way.iter().rev() {
        let block = blocks.try_read(*number, &NODE)?;
        let bytes = block.bytes();
        let (node, next) = (Node::parse(&bytes, *number)?, index.saturating_add(1));
        if next < node.len() {
            return Ok(Some(node.child(next)?));
        }
    }
    Ok(None)
}
