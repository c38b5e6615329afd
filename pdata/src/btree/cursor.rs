//! A walk through a tree in order, with reads ahead of it (reference 4.5).

use super::{BTree, DEPTH_MAX, NODE, Node, Value, ValueType, damaged};
use crate::block_manager::{BlockManager, BlockRef};
use crate::{Error, Result};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::marker::PhantomData;

/// Steps through the entries of a tree in ascending order of their keys. It holds one node of each level, and the nodes
/// that it read ahead.
///
/// The tree must not be changed meanwhile.
pub struct Cursor<'a, T> {
    blocks: &'a BlockManager,
    root: u64,
    /// Where the first leaf is entered; all others are from their beginning.
    from: u64,
    /// The least key that may come next.
    least: u64,
    /// Most blocks of a level that are read at once.
    read_ahead: usize,
    /// From the root down to a leaf; empty before the first step.
    way: Vec<Level>,
    ended: bool,
    values: PhantomData<T>,
}

/// One level of the way down.
struct Level {
    node: BlockRef,
    /// The entry that comes next: of an internal node, the child to go down to next.
    next: usize,
    /// The children from `next` on, as many as have been read.
    ahead: VecDeque<BlockRef>,
    /// How many children to read next time. It doubles each time, so that a short walk reads little too much.
    window: usize,
}

impl<V: ValueType> BTree<V> {
    /// A walk through the entries at and after `from`. It keeps up to `read_ahead` reads under way together on each level,
    /// and fewer with a cache too small for that.
    pub fn cursor<'a>(
        &self,
        blocks: &'a BlockManager,
        root: u64,
        from: u64,
        read_ahead: usize,
    ) -> Cursor<'a, V::Value> {
        let read_ahead = blocks.read_ahead(read_ahead);
        Cursor { blocks, root, from, least: from, read_ahead, way: Vec::new(), ended: false, values: PhantomData }
    }
}

impl<T: Value> Cursor<'_, T> {
    /// The next entry; none at the end. After an error there is no going on.
    pub async fn next(&mut self) -> Result<Option<(u64, T)>> {
        loop {
            match self.in_leaf()? {
                Some((key, value)) => {
                    self.ended = key == u64::MAX;
                    self.least = key.saturating_add(1);
                    return Ok(Some((key, value)));
                }
                None if self.ended => return Ok(None),
                None => self.ended = !self.step_to_leaf().await?,
            }
        }
    }

    /// The next entry of the leaf at hand.
    fn in_leaf(&mut self) -> Result<Option<(u64, T)>> {
        let Some(level) = self.way.last_mut().filter(|_| !self.ended) else { return Ok(None) };
        let bytes = level.node.bytes();
        let node = Node::parse(&bytes, level.node.number())?;
        let Some(key) = node.key(level.next) else { return Ok(None) };
        let value = node.value(level.next)?;
        if key < self.least {
            // Or a tree that leads to one node twice would be a walk without end.
            return Err(damaged(node.number(), "its keys overlap its neighbour's"));
        }
        level.next = level.next.saturating_add(1);
        Ok(Some((key, value)))
    }

    /// Goes on to the next leaf, or to the first; false if there is none.
    async fn step_to_leaf(&mut self) -> Result<bool> {
        let mut node = match self.way.pop() {
            None => self.blocks.read(self.root, &NODE).await?,
            Some(_leaf) => match self.next_child().await? {
                Some(node) => node,
                None => return Ok(false),
            },
        };
        loop {
            let (next, internal) = self.enter(&node)?;
            self.way.push(Level { node, next, ahead: VecDeque::new(), window: 1 });
            if !internal {
                self.from = 0;
                return Ok(true);
            }
            match self.next_child().await? {
                Some(child) => node = child,
                None => return Ok(false),
            }
        }
    }

    /// Where to begin in a node, and whether it is an internal one.
    fn enter(&self, node: &BlockRef) -> Result<(usize, bool)> {
        let bytes = node.bytes();
        let node = Node::parse(&bytes, node.number())?;
        if self.way.len() >= DEPTH_MAX {
            return Err(Error::TooDeep { root: self.root });
        }
        if node.is_internal() {
            return Ok((node.lower_bound(self.from).unwrap_or(0), true));
        }
        if node.is_empty() && !self.way.is_empty() {
            return Err(damaged(node.number(), "it is empty but no root"));
        }
        Ok((node.search(self.from).unwrap_or_else(|above| above), false))
    }

    /// The next child of the lowest node that has one left.
    async fn next_child(&mut self) -> Result<Option<BlockRef>> {
        while let Some(level) = self.way.last_mut() {
            if level.ahead.is_empty() {
                let children = level.children()?;
                level.ahead.extend(self.blocks.read_many(children, &NODE).await?);
                level.window = level.window.saturating_mul(2).min(self.read_ahead);
            }
            if let Some(child) = level.ahead.pop_front() {
                level.next = level.next.saturating_add(1);
                return Ok(Some(child));
            }
            self.way.pop();
        }
        Ok(None)
    }
}

impl Level {
    /// The children to read together.
    fn children(&self) -> Result<Vec<u64>> {
        let bytes = self.node.bytes();
        let node = Node::parse(&bytes, self.node.number())?;
        Ok(node.children().skip(self.next).take(self.window).collect())
    }
}
