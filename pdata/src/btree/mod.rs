//! Copy-on-write btrees of 64-bit keys (reference 2.1, 4).
//!
//! A tree is known by the number of its root block, which every change may move; a changed tree is valid only under the
//! root that the change returned. Reading is a plain call that stops where a block is not in the cache
//! ([`crate::Stop::Miss`]); changing waits for blocks and must be the only change of its transaction at a time.
//!
//! Values are owned: what is inserted belongs to the tree, what is replaced or removed belongs to the caller again. Only
//! where a whole leaf is duplicated or dropped does the tree itself count references, by the [`ValueType`].
//!
//! A tree of trees is two trees: the values of the upper one are the roots of lower ones ([`Roots`]).

mod build;
mod bulk;
mod cursor;
mod delete;
mod insert;
mod leaves;
mod levels;
mod lookup;
mod node;
mod pairs;
mod remove;
mod shrink;
#[cfg(test)]
mod tests;

pub use build::{Builder, Leaf, SharedLeaves};
pub use cursor::Cursor;
pub use leaves::{LeafPlaces, Leaves, Place};
pub use levels::Roots;
pub use node::{NODE, Node};
pub use pairs::{Entries, Pairs, Shared, Stretch};
pub use shrink::Shrunk;

use crate::block_manager::BlockMut;
use crate::transaction_manager::TransactionManager;
use crate::{Error, Result};
use core::marker::PhantomData;
use node::NodeMut;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Levels of the deepest tree that is believed.
pub const DEPTH_MAX: usize = 64;

/// Bytes that can be a value.
pub trait Value: Copy + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + 'static {}

impl<T: Copy + FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned + 'static> Value for T {}

/// What the values of a tree refer to.
pub trait ValueType {
    /// As stored.
    type Value: Value;

    /// A leaf with these values was duplicated: what they refer to is referred to once more.
    fn inc(&self, tm: &TransactionManager, values: &[Self::Value]) -> impl Future<Output = Result<()>>;

    /// A leaf with these values is gone: what they refer to is referred to once less.
    fn dec(&self, tm: &TransactionManager, values: &[Self::Value]) -> impl Future<Output = Result<()>>;

    /// Values that are roots of trees: leaves of those that [`ValueType::dec`] would free. Counts up to `most`.
    fn exclusive_leaves(
        &self,
        _tm: &TransactionManager,
        _values: &[Self::Value],
        _most: usize,
    ) -> impl Future<Output = Result<usize>> {
        async { Ok(0) }
    }
}

/// Values that refer to nothing.
pub struct Plain<T>(PhantomData<T>);

impl<T> Plain<T> {
    /// The value type.
    pub const fn new() -> Plain<T> {
        Plain(PhantomData)
    }
}

impl<T> Default for Plain<T> {
    fn default() -> Plain<T> {
        Plain::new()
    }
}

impl<T: Value> ValueType for Plain<T> {
    type Value = T;

    async fn inc(&self, _: &TransactionManager, _: &[T]) -> Result<()> {
        Ok(())
    }

    async fn dec(&self, _: &TransactionManager, _: &[T]) -> Result<()> {
        Ok(())
    }
}

/// The operations on trees of one value type.
pub struct BTree<V> {
    values: V,
}

impl<T> BTree<Plain<T>> {
    /// Trees of values that refer to nothing.
    pub const fn plain() -> BTree<Plain<T>> {
        BTree::new(Plain::new())
    }
}

impl<V> BTree<V> {
    /// Trees of values of this type.
    pub const fn new(values: V) -> BTree<V> {
        BTree { values }
    }
}

impl<V: ValueType> BTree<V> {
    /// Entries that fit a leaf (reference 2.1). With values of 8 bytes it is as many as the children of an internal node.
    pub const CAPACITY: usize = node::capacity(size_of::<V::Value>());

    /// The least number of entries of a leaf that is no root.
    pub const FLOOR: usize = Self::CAPACITY / 3;

    /// The value type.
    pub fn value_type(&self) -> &V {
        &self.values
    }

    /// An empty tree: one leaf.
    pub async fn create(&self, tm: &TransactionManager) -> Result<u64> {
        let block = tm.new_block(&NODE).await?;
        NodeMut::format(&mut block.bytes_mut(), false, size_of::<V::Value>());
        Ok(block.number())
    }

    /// Shadows a node, and counts what it points to if it was duplicated.
    async fn shadow<'a>(&self, tm: &'a TransactionManager, number: u64) -> Result<BlockMut<'a>> {
        let shadow = tm.shadow(number, &NODE).await?;
        if shadow.duplicated {
            self.inc_all(tm, &shadow.block).await?;
        }
        Ok(shadow.block)
    }

    /// Shadows child `index` of a shadowed node.
    async fn shadow_child<'a>(
        &self,
        tm: &'a TransactionManager,
        parent: &BlockMut<'a>,
        index: usize,
    ) -> Result<BlockMut<'a>> {
        let number = view(parent, |node| node.child(index))?;
        let child = self.shadow(tm, number).await?;
        if child.number() != number {
            edit(parent, |node| node.set_child(index, child.number()))?;
        }
        Ok(child)
    }

    /// Counts everything that a node points to once more.
    async fn inc_all(&self, tm: &TransactionManager, block: &BlockMut<'_>) -> Result<()> {
        let values = view(block, |node| {
            node.children().for_each(|child| tm.inc(child));
            if node.is_internal() { Ok(None) } else { node.values::<V::Value>().map(|values| Some(values.to_vec())) }
        })?;
        match values {
            Some(values) => self.values.inc(tm, &values).await,
            None => Ok(()),
        }
    }
}

/// Looks at a shadowed node.
fn view<T>(block: &BlockMut<'_>, look: impl FnOnce(&Node<'_>) -> Result<T>) -> Result<T> {
    look(&Node::parse(&block.bytes(), block.number())?)
}

/// Changes a shadowed node.
fn edit<T>(block: &BlockMut<'_>, change: impl FnOnce(&mut NodeMut<'_>) -> Result<T>) -> Result<T> {
    change(&mut NodeMut::parse(&mut block.bytes_mut(), block.number())?)
}

/// Moves entries between neighbours, children `left_index` and the next of `parent`, until the left one has `left_len`.
/// The right one keeps at least one entry.
fn spread(
    parent: &BlockMut<'_>,
    left_index: usize,
    left: &BlockMut<'_>,
    right: &BlockMut<'_>,
    left_len: usize,
) -> Result<()> {
    let first = edit(left, |left| {
        edit(right, |right| {
            left.spread(right, left_len)?;
            right.key(0).ok_or(damaged(right.number(), "it lost all entries"))
        })
    })?;
    edit(parent, |parent| parent.set_key(left_index.saturating_add(1), first))
}

/// Tells the log what becomes of a node: tests count from it how often each shape of change is met.
fn note(node: &BlockMut<'_>, what: &str) -> Result<()> {
    view(node, |node| {
        log::trace!("{} {what}", if node.is_internal() { "internal node" } else { "leaf" });
        Ok(())
    })
}

fn damaged(block: u64, what: &'static str) -> Error {
    Error::Damaged { block, kind: NODE.name, what }
}
