//! Removal: top-down in one pass, filling up what could fall below the floor before descending (reference 4.4).
//!
//! Linux rebalances every node on the way. Here only a node at its floor is: it keeps shapes legal with fewer copies.

use super::{BTree, DEPTH_MAX, NODE, Node, ValueType, damaged, edit, note, spread, view};
use crate::block_manager::BlockMut;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use alloc::vec::Vec;

/// What to do at a node.
enum Step {
    /// It is a leaf.
    Cut,
    /// It has one child, in this block.
    Collapse(u64),
    /// Go on with child `index`.
    Child { index: usize, number: u64 },
}

impl<V: ValueType> BTree<V> {
    /// Removes a key. Returns the new root, and the value if the key was there.
    pub async fn remove(&self, tm: &TransactionManager, root: u64, key: u64) -> Result<(u64, Option<V::Value>)> {
        if tm.blocks().look(|blocks| self.try_lookup(blocks, root, key)).await?.is_none() {
            return Ok((root, None));
        }
        let (root, removed) = self.remove_run(tm, root, key, key, 1).await?;
        Ok((root, removed.first().map(|(_, value)| *value)))
    }

    /// Removes `first`, which must be there, and entries after it up to `last` and at most `most`, as far as it takes one
    /// pass through the tree. Returns the new root and what was removed.
    pub async fn remove_run(
        &self,
        tm: &TransactionManager,
        root: u64,
        first: u64,
        last: u64,
        most: usize,
    ) -> Result<(u64, Vec<(u64, V::Value)>)> {
        let mut node = self.shadow(tm, root).await?;
        let new_root = node.number();
        let mut depth = 1;
        while depth <= DEPTH_MAX {
            match step(&node, first)? {
                Step::Cut => return Ok((new_root, cut::<V>(&node, first, last, most, depth == 1)?)),
                Step::Collapse(_) if depth > 1 => {
                    return Err(damaged(node.number(), "it has one child but is no root"));
                }
                Step::Collapse(child) => self.collapse(tm, &node, child).await?,
                Step::Child { index, number } => {
                    if at_floor(tm, number).await? {
                        self.fill_up(tm, &node, index).await?;
                    } else {
                        node = self.shadow_child(tm, &node, index).await?;
                        depth += 1;
                    }
                }
            }
        }
        Err(Error::TooDeep { root })
    }

    /// Replaces a root by its only child. The block stays the root.
    pub(super) async fn collapse(&self, tm: &TransactionManager, root: &BlockMut<'_>, child: u64) -> Result<()> {
        if child == root.number() {
            return Err(damaged(child, "it is its own child"));
        }
        let shared = tm.is_shared(child).await?;
        let block = tm.blocks().read(child, &NODE).await?;
        *root.bytes_mut() = *block.bytes();
        note(root, if shared { "became root, shared" } else { "became root" })?;
        if shared {
            // The child stays for others: what it points to is now pointed to from here as well.
            self.inc_all(tm, root).await?;
        }
        tm.dec(child);
        Ok(())
    }

    /// Merges child `index` with a sibling, or takes entries from it.
    pub(super) async fn fill_up(&self, tm: &TransactionManager, parent: &BlockMut<'_>, index: usize) -> Result<()> {
        let left_index = index.saturating_sub(1);
        let right_index = left_index.saturating_add(1);
        let left = self.shadow_child(tm, parent, left_index).await?;
        let right = self.shadow_child(tm, parent, right_index).await?;
        if left.number() == right.number() {
            return Err(damaged(left.number(), "it is its own neighbour"));
        }
        let (left_len, floor) = view(&left, |node| Ok((node.len(), node.floor())))?;
        let total = left_len.saturating_add(view(&right, |node| Ok(node.len()))?);
        if total < floor.saturating_add(1).saturating_mul(2) {
            note(&left, "merged")?;
            edit(&left, |left| edit(&right, |right| left.spread(right, total)))?;
            edit(parent, |parent| parent.remove(right_index..right_index.saturating_add(1)))?;
            tm.dec(right.number());
            Ok(())
        } else {
            note(&left, "filled up from a sibling")?;
            spread(parent, left_index, &left, &right, total / 2)
        }
    }
}

fn step(node: &BlockMut<'_>, key: u64) -> Result<Step> {
    view(node, |node| {
        if !node.is_internal() {
            return Ok(Step::Cut);
        }
        if node.len() == 1 {
            return node.child(0).map(Step::Collapse);
        }
        let index = node.lower_bound(key).ok_or(damaged(node.number(), "a key to remove is gone"))?;
        Ok(Step::Child { index, number: node.child(index)? })
    })
}

async fn at_floor(tm: &TransactionManager, number: u64) -> Result<bool> {
    let block = tm.blocks().read(number, &NODE).await?;
    let bytes = block.bytes();
    let node = Node::parse(&bytes, number)?;
    Ok(node.len() <= node.floor())
}

/// Removes entries from a leaf, but never so many that it falls below its floor, unless it is the root.
fn cut<V: ValueType>(
    leaf: &BlockMut<'_>,
    first: u64,
    last: u64,
    most: usize,
    is_root: bool,
) -> Result<Vec<(u64, V::Value)>> {
    let (begin, removed) = view(leaf, |node| {
        let gone = |_| damaged(leaf.number(), "a key to remove is gone");
        let begin = node.search(first).map_err(gone)?;
        let spare = if is_root { node.len() } else { node.len().saturating_sub(node.floor()) };
        let entries = node.keys().zip(node.values::<V::Value>()?.iter().copied()).skip(begin);
        Ok((begin, entries.take(spare.min(most)).take_while(|(key, _)| *key <= last).collect::<Vec<_>>()))
    })?;
    edit(leaf, |node| node.remove(begin..begin.saturating_add(removed.len())))?;
    Ok(removed)
}
