//! Insertion: top-down in one pass, making room before descending (reference 4.3).

use super::{BTree, DEPTH_MAX, NODE, NodeMut, ValueType, damaged, edit, note, spread, view};
use crate::block_manager::BlockMut;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use zerocopy::IntoBytes;

/// A sibling with fewer free slots is not worth moving entries to.
const WORTHWHILE_FREE: usize = 8;

/// What to do at a node.
enum Step<T> {
    /// It is full: make room first.
    Full,
    /// Go on with a child. `lower`: the key comes before all of the node's.
    Descend { index: usize, lower: bool },
    /// The key is here.
    Replace { index: usize, before: T },
    /// The key goes here.
    Add { index: usize },
}

/// What a sibling could take from a full node.
#[derive(PartialEq)]
pub(super) enum Sibling {
    Roomy,
    Tight,
    /// Others see it: to change it would cost a copy.
    Shared,
}

impl<V: ValueType> BTree<V> {
    /// Inserts a value. Returns the new root, and the value that the key had before.
    pub async fn insert(
        &self,
        tm: &TransactionManager,
        root: u64,
        key: u64,
        value: V::Value,
    ) -> Result<(u64, Option<V::Value>)> {
        let mut node = self.shadow(tm, root).await?;
        let new_root = node.number();
        let mut parent: Option<(BlockMut<'_>, usize)> = None;
        for _ in 0..DEPTH_MAX {
            let mut step = self.step(&node, key)?;
            if matches!(step, Step::Full) {
                node = match &parent {
                    None => self.split_root(tm, node).await?,
                    Some((parent, index)) => self.make_room(tm, parent, *index, node, key).await?,
                };
                step = self.step(&node, key)?;
            }
            match step {
                Step::Full => return Err(damaged(node.number(), "it stays full when split")),
                Step::Replace { index, before } => {
                    edit(&node, |node| node.set_value(index, value.as_bytes()))?;
                    return Ok((new_root, Some(before)));
                }
                Step::Add { index } => {
                    edit(&node, |node| node.insert(index, key, value.as_bytes()))?;
                    return Ok((new_root, None));
                }
                Step::Descend { index, lower } => {
                    if lower {
                        edit(&node, |node| node.set_key(index, key))?;
                    }
                    let child = self.shadow_child(tm, &node, index).await?;
                    parent = Some((core::mem::replace(&mut node, child), index));
                }
            }
        }
        Err(Error::TooDeep { root })
    }

    fn step(&self, node: &BlockMut<'_>, key: u64) -> Result<Step<V::Value>> {
        view(node, |node| {
            let found = node.search(key);
            Ok(match found {
                Ok(index) if !node.is_internal() => Step::Replace { index, before: node.value(index)? },
                _ if node.is_full() => Step::Full,
                Ok(index) => Step::Descend { index, lower: false },
                Err(index) if !node.is_internal() => Step::Add { index },
                Err(0) => Step::Descend { index: 0, lower: true },
                Err(above) => Step::Descend { index: above.saturating_sub(1), lower: false },
            })
        })
    }

    /// Splits a full root into two children of itself: its block stays the root.
    pub(super) async fn split_root<'a>(&self, tm: &'a TransactionManager, root: BlockMut<'a>) -> Result<BlockMut<'a>> {
        note(&root, "split, a root")?;
        let right = tm.new_block(&NODE).await?;
        *right.bytes_mut() = *root.bytes();
        let left = self.new_like(tm, &root).await?;
        let keys = edit(&left, |left| {
            edit(&right, |right| {
                left.spread(right, right.len() / 2)?;
                Ok(left.key(0).zip(right.key(0)))
            })
        })?;
        let (left_key, right_key) = keys.ok_or(damaged(root.number(), "it is full without entries"))?;
        NodeMut::format(&mut root.bytes_mut(), true, size_of::<u64>());
        edit(&root, |root| {
            root.insert(0, left_key, &left.number().to_le_bytes())?;
            root.insert(1, right_key, &right.number().to_le_bytes())
        })?;
        Ok(root)
    }

    /// Makes room in a full node, child `index` of `parent`. Returns the node that the key belongs in now.
    pub(super) async fn make_room<'a>(
        &self,
        tm: &'a TransactionManager,
        parent: &BlockMut<'a>,
        index: usize,
        node: BlockMut<'a>,
        key: u64,
    ) -> Result<BlockMut<'a>> {
        let children = view(parent, |parent| Ok(parent.len()))?;
        let left_index = index.checked_sub(1);
        let right_index = index.checked_add(1).filter(|right| *right < children);
        let mut shared = false;
        for (sibling, is_left) in [(left_index, true), (right_index, false)] {
            let Some(sibling) = sibling else { continue };
            match self.judge_sibling(tm, parent, sibling).await? {
                Sibling::Tight => {}
                Sibling::Shared => shared = true,
                Sibling::Roomy => {
                    note(&node, "spread to a sibling")?;
                    let other = self.shadow_child(tm, parent, sibling).await?;
                    let (left, right) = if is_left { (other, node) } else { (node, other) };
                    let total = len(&left)?.saturating_add(len(&right)?);
                    spread(parent, sibling.min(index), &left, &right, total / 2)?;
                    return pick(left, right, key);
                }
            }
        }
        match left_index {
            Some(left_index) if !shared && right_index.is_some() => {
                self.split_two_into_three(tm, parent, left_index, node, key).await
            }
            _ => self.split_one_into_two(tm, parent, index, node, key).await,
        }
    }

    pub(super) async fn judge_sibling(
        &self,
        tm: &TransactionManager,
        parent: &BlockMut<'_>,
        index: usize,
    ) -> Result<Sibling> {
        let number = view(parent, |parent| parent.child(index))?;
        if tm.is_shared(number).await? {
            return Ok(Sibling::Shared);
        }
        let block = tm.blocks().read(number, &NODE).await?;
        let bytes = block.bytes();
        let node = super::Node::parse(&bytes, number)?;
        let roomy = node.max_entries().saturating_sub(node.len()) >= WORTHWHILE_FREE;
        Ok(if roomy { Sibling::Roomy } else { Sibling::Tight })
    }

    async fn split_one_into_two<'a>(
        &self,
        tm: &'a TransactionManager,
        parent: &BlockMut<'a>,
        index: usize,
        node: BlockMut<'a>,
        key: u64,
    ) -> Result<BlockMut<'a>> {
        note(&node, "split in two")?;
        let right = self.split_off(tm, parent, index, &node, len(&node)? / 2).await?;
        pick(node, right, key)
    }

    /// Moves all but the first `left_len` entries of a node, child `index` of `parent`, into a new one behind it.
    pub(super) async fn split_off<'a>(
        &self,
        tm: &'a TransactionManager,
        parent: &BlockMut<'_>,
        index: usize,
        node: &BlockMut<'_>,
        left_len: usize,
    ) -> Result<BlockMut<'a>> {
        let right = self.new_like(tm, node).await?;
        let at = index.saturating_add(1);
        edit(parent, |parent| parent.insert(at, u64::MAX, &right.number().to_le_bytes()))?;
        spread(parent, index, node, &right, left_len)?;
        Ok(right)
    }

    /// Makes three nodes of a full one, `right`, and its left sibling.
    async fn split_two_into_three<'a>(
        &self,
        tm: &'a TransactionManager,
        parent: &BlockMut<'a>,
        left_index: usize,
        right: BlockMut<'a>,
        key: u64,
    ) -> Result<BlockMut<'a>> {
        note(&right, "split, two into three")?;
        let left = self.shadow_child(tm, parent, left_index).await?;
        let middle = self.new_like(tm, &right).await?;
        let (left_len, right_len) = (len(&left)?, len(&right)?);
        let new_left_len = left_len.saturating_add(right_len) / 3;
        let new_middle_len = left_len.saturating_add(right_len).saturating_sub(new_left_len) / 2;
        let middle_index = left_index.saturating_add(1);
        edit(parent, |parent| parent.insert(middle_index, u64::MAX, &middle.number().to_le_bytes()))?;
        let from_left = left_len.saturating_sub(new_left_len);
        spread(parent, middle_index, &middle, &right, new_middle_len.saturating_sub(from_left))?;
        spread(parent, left_index, &left, &middle, new_left_len)?;
        let right = pick(middle, right, key)?;
        pick(left, right, key)
    }

    /// An empty node for the same kind of entries.
    pub(super) async fn new_like<'a>(&self, tm: &'a TransactionManager, node: &BlockMut<'_>) -> Result<BlockMut<'a>> {
        let (internal, value_bytes) = edit(node, |node| Ok((node.is_internal(), node.value_bytes())))?;
        let new = tm.new_block(&NODE).await?;
        NodeMut::format(&mut new.bytes_mut(), internal, value_bytes);
        Ok(new)
    }
}

pub(super) fn len(node: &BlockMut<'_>) -> Result<usize> {
    view(node, |node| Ok(node.len()))
}

/// The one of two neighbours that a key belongs in.
fn pick<'a>(left: BlockMut<'a>, right: BlockMut<'a>, key: u64) -> Result<BlockMut<'a>> {
    let first = view(&right, |right| Ok(right.key(0)))?;
    Ok(if first.is_some_and(|first| key < first) { left } else { right })
}
