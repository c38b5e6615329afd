//! Two trees side by side, past what they share.
//!
//! Trees that come from one another by snapshots have most of their nodes in common: the same block, not an equal one. Where
//! both walks stand before the same block, what is below it is the same in both, and need not be read. So the blocks read follow
//! what differs and not what exists.
//!
//! This holds for two trees of one committed state only. A block that is free in one state may be in use for something else in
//! the next, so that across two states the same number may mean different nodes. It does not depend on keys: shared subtrees
//! may hang at any level, under parents with any keys. For a block is on one height above the leaves in every tree, and keeps
//! its keys, so both walks come to it when everything before it is done.

use super::leaves::Place;
use super::{DEPTH_MAX, NODE, Node, Value, damaged};
use crate::block_manager::{Batch, BlockManager};
use crate::{Error, Result};
use alloc::vec::Vec;
use core::iter::Zip;
use core::marker::PhantomData;
use core::ops::Range;
use core::slice;
use zerocopy::little_endian::U64;

/// Leaves of one tree that are read together.
const LEAVES_AT_ONCE: usize = 32;

/// Whether what both trees share is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// It is skipped, and not read.
    Skip,
    /// It is read, once, and told as such.
    Read,
}

/// Consecutive entries of a leaf.
#[derive(Debug, Clone, Copy)]
pub struct Entries<'a, T> {
    keys: &'a [U64],
    values: &'a [T],
}

impl<'a, T: Value> Entries<'a, T> {
    fn of(node: &Node<'a>, range: Range<usize>) -> Result<Entries<'a, T>> {
        let keys = node.stored_keys().get(range.clone()).unwrap_or_default();
        Ok(Entries { keys, values: node.values()?.get(range).unwrap_or_default() })
    }

    const fn none() -> Entries<'a, T> {
        Entries { keys: &[], values: &[] }
    }
}

impl<'a, T: Value> IntoIterator for Entries<'a, T> {
    type Item = (&'a U64, &'a T);
    type IntoIter = Zip<slice::Iter<'a, U64>, slice::Iter<'a, T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.iter().zip(self.values)
    }
}

/// A stretch of both trees.
#[derive(Debug, Clone, Copy)]
pub enum Stretch<'a, T> {
    /// Entries that both have, from a leaf that they share.
    Shared(Entries<'a, T>),
    /// All that either has between two keys, from leaves of its own. Keys and values may be equal nevertheless.
    Own {
        /// Of the left tree.
        left: Entries<'a, T>,
        /// Of the right tree.
        right: Entries<'a, T>,
    },
}

/// A walk through two trees at once, in the order of their keys. In memory are the ways down and the leaves read ahead.
///
/// Every node must lie where its parent says, hold only keys that lead to it and be as deep as its siblings. So a damaged
/// tree, or one that refers to itself, ends in an error and never in an endless walk.
pub struct Pairs<'a, T> {
    left: Side<'a>,
    right: Side<'a>,
    shared: Shared,
    values: PhantomData<T>,
}

impl<'a, T: Value> Pairs<'a, T> {
    /// The entries at and after `from` of the trees at `left` and `right`, both of one committed state. No root is a tree
    /// without entries.
    pub async fn open(
        blocks: &'a BlockManager,
        left: Option<u64>,
        right: Option<u64>,
        from: u64,
        shared: Shared,
    ) -> Result<Pairs<'a, T>> {
        let (left, right) = (Side::open(blocks, left, from).await?, Side::open(blocks, right, from).await?);
        Ok(Pairs { left, right, shared, values: PhantomData })
    }

    /// The next stretch; none at the end. After an error there is no going on.
    pub async fn next(&mut self) -> Result<Option<Stretch<'_, T>>> {
        loop {
            match self.plan() {
                Plan::End => return Ok(None),
                Plan::Meet => self.meet()?,
                Plan::OpenLeft => self.left.open_next(&self.right, self.shared).await?,
                Plan::OpenRight => self.right.open_next(&self.left, Shared::Skip).await?,
                Plan::TellShared => return Ok(Some(Stretch::Shared(self.left.take(u64::MAX)?))),
                Plan::TellOwn(last) => {
                    let (left, right) = (self.left.take(last)?, self.right.take(last)?);
                    return Ok(Some(Stretch::Own { left, right }));
                }
            }
        }
    }

    /// What comes next, by what both sides stand before.
    fn plan(&mut self) -> Plan {
        let (left, right) = (self.left.front(), self.right.front());
        match (left, right) {
            (Front::End, Front::End) => Plan::End,
            (Front::Subtree { shared: true, .. }, _) => Plan::OpenLeft,
            (Front::Leaf { shared: true, .. }, _) => Plan::TellShared,
            (Front::Subtree { place: a, .. }, Front::Subtree { place: b, .. }) if a.number == b.number => Plan::Meet,
            // Never beyond what the other has not read yet.
            (Front::Leaf { last: a, .. }, Front::Leaf { last: b, .. }) => Plan::TellOwn(a.min(b)),
            (Front::Leaf { last, .. }, Front::End) | (Front::End, Front::Leaf { last, .. }) => Plan::TellOwn(last),
            (Front::Leaf { first, last, .. }, Front::Subtree { place, .. }) => match place.first.checked_sub(1) {
                Some(before) if first <= before => Plan::TellOwn(last.min(before)),
                _ => Plan::OpenRight,
            },
            (Front::Subtree { place, .. }, Front::Leaf { first, last, .. }) => match place.first.checked_sub(1) {
                Some(before) if first <= before => Plan::TellOwn(last.min(before)),
                _ => Plan::OpenLeft,
            },
            (Front::Subtree { .. }, Front::End) => Plan::OpenLeft,
            (Front::End, Front::Subtree { .. }) => Plan::OpenRight,
            // What begins earlier cannot be found in the other. Of what begins together, the lower may be found in the higher.
            (Front::Subtree { place: a, height: x, .. }, Front::Subtree { place: b, height: y, .. }) => {
                if (a.first, y) <= (b.first, x) { Plan::OpenLeft } else { Plan::OpenRight }
            }
        }
    }

    /// Both stand before the same block.
    fn meet(&mut self) -> Result<()> {
        let (Some((place, height)), Some((_, others))) = (self.left.pop(), self.right.pop()) else { return Ok(()) };
        if height != others {
            return Err(damaged(place.number, "it is not as deep as its siblings"));
        }
        if self.shared == Shared::Read {
            self.left.levels.push(Level { places: Vec::from([place]), height, shared: true });
        }
        Ok(())
    }
}

/// What to do next.
enum Plan {
    End,
    /// Step past the same block on both sides.
    Meet,
    OpenLeft,
    OpenRight,
    /// The rest of the left leaf.
    TellShared,
    /// What both leaves have up to this key.
    TellOwn(u64),
}

/// What a side stands before.
#[derive(Clone, Copy)]
enum Front {
    End,
    /// Not read yet.
    Subtree {
        place: Place,
        /// Levels below it.
        height: usize,
        shared: bool,
    },
    /// A leaf at hand, with entries left.
    Leaf {
        /// The key of the next.
        first: u64,
        /// The greatest key that leads to it.
        last: u64,
        shared: bool,
    },
}

/// Subtrees still to come, siblings of one height.
struct Level {
    /// The next last.
    places: Vec<Place>,
    /// Levels below them: 0 for leaves.
    height: usize,
    /// The other tree has them, too, and was not asked for them.
    shared: bool,
}

/// A leaf at hand.
struct Leaf {
    place: Place,
    shared: bool,
    /// Where it is in the batch.
    index: usize,
    /// Entries not told yet.
    rest: Range<usize>,
    /// The key of the next.
    first: u64,
}

/// One of the trees.
struct Side<'a> {
    blocks: &'a BlockManager,
    from: u64,
    /// From the root's down.
    levels: Vec<Level>,
    leaf: Option<Leaf>,
    /// The leaves in `batch`, and how many of them are behind.
    ahead: Vec<u64>,
    passed: usize,
    batch: Batch,
}

impl<'a> Side<'a> {
    async fn open(blocks: &'a BlockManager, root: Option<u64>, from: u64) -> Result<Side<'a>> {
        let mut levels = Vec::new();
        if let Some(root) = root {
            let height = height(blocks, root).await?;
            levels.push(Level { places: Vec::from([Place::root(root)]), height, shared: false });
        }
        Ok(Side { blocks, from, levels, leaf: None, ahead: Vec::new(), passed: 0, batch: Batch::default() })
    }

    fn front(&mut self) -> Front {
        if let Some(Leaf { place, shared, first, .. }) = self.leaf {
            return Front::Leaf { first, last: place.last, shared };
        }
        while self.levels.pop_if(|level| level.places.is_empty()).is_some() {}
        let Some(level) = self.levels.last() else { return Front::End };
        let next = level.places.last().copied();
        next.map_or(Front::End, |place| Front::Subtree { place, height: level.height, shared: level.shared })
    }

    /// Steps past the next subtree.
    fn pop(&mut self) -> Option<(Place, usize)> {
        let level = self.levels.last_mut()?;
        Some((level.places.pop()?, level.height))
    }

    /// Goes down into the next subtree.
    async fn open_next(&mut self, other: &Side<'_>, shared: Shared) -> Result<()> {
        let Some(level) = self.levels.last() else { return Ok(()) };
        if level.height == 0 { self.open_leaf(other, shared).await } else { self.open_internal().await }
    }

    async fn open_internal(&mut self) -> Result<()> {
        let shared = self.levels.last().is_some_and(|level| level.shared);
        let Some((place, height)) = self.pop() else { return Ok(()) };
        // These are few, and both trees may come to the same.
        let block = self.blocks.read(place.number, &NODE).await?;
        let bytes = block.bytes();
        let node = place.check(Node::parse(&bytes, place.number)?, true)?;
        let places = place.children(&node).rev().filter(|child| child.last >= self.from).collect();
        self.levels.push(Level { places, height: height.saturating_sub(1), shared });
        Ok(())
    }

    async fn open_leaf(&mut self, other: &Side<'_>, shared: Shared) -> Result<()> {
        let is_shared = self.levels.last().is_some_and(|level| level.shared);
        let Some(place) = self.levels.last().and_then(|level| level.places.last()).copied() else { return Ok(()) };
        let read = self.ahead.iter().skip(self.passed).position(|number| *number == place.number);
        let index = match read {
            Some(further) => self.passed.saturating_add(further),
            None => {
                self.read_ahead(other, shared).await;
                0
            }
        };
        self.pop();
        self.passed = index.saturating_add(1);
        let node = place.check(Node::parse(self.batch.get(index)?, place.number)?, false)?;
        let begin = node.search(self.from).unwrap_or_else(|above| above);
        self.leaf =
            node.key(begin).map(|first| Leaf { place, shared: is_shared, index, rest: begin..node.len(), first });
        Ok(())
    }

    /// Reads the next leaf, and those that come behind it for certain: not those that the other side comes to as well, but
    /// if they are to be read by this one.
    async fn read_ahead(&mut self, other: &Side<'_>, shared: Shared) {
        let (others, horizon) = other.leaves_ahead();
        let coming = self.levels.iter().rev().take_while(|level| level.height == 0);
        self.ahead.clear();
        for place in coming.flat_map(|level| level.places.iter().rev()) {
            // What both have lies before all that the other has not read yet.
            let certain =
                place.first <= horizon && (shared == Shared::Read || others.binary_search(&place.number).is_err());
            if self.ahead.len() >= LEAVES_AT_ONCE {
                break;
            }
            if certain || self.ahead.is_empty() {
                self.ahead.push(place.number);
            }
        }
        self.blocks.read_batch(&self.ahead, &NODE, &mut self.batch).await;
    }

    /// Leaves known to come, by their numbers, and up to which key they are all.
    fn leaves_ahead(&self) -> (Vec<u64>, u64) {
        let levels = || self.levels.iter().rev().filter(|level| !level.places.is_empty());
        let leaves = levels().take_while(|level| level.height == 0).flat_map(|level| &level.places);
        let mut numbers: Vec<u64> = leaves.map(|place| place.number).collect();
        numbers.sort_unstable();
        let above = levels().find(|level| level.height > 0).and_then(|level| level.places.last());
        (numbers, above.map_or(u64::MAX, |place| place.first.saturating_sub(1)))
    }

    /// Entries of the leaf at hand up to key `last`, none if there is no leaf.
    fn take<T: Value>(&mut self, last: u64) -> Result<Entries<'_, T>> {
        let Some(leaf) = &mut self.leaf else { return Ok(Entries::none()) };
        let node = Node::parse(self.batch.get(leaf.index)?, leaf.place.number)?;
        let end = node.lower_bound(last).map_or(0, |index| index.saturating_add(1));
        let taken = leaf.rest.start..end;
        leaf.rest.start = end;
        match node.key(end) {
            Some(first) => leaf.first = first,
            None => self.leaf = None,
        }
        Entries::of(&node, taken)
    }
}

/// Levels of internal nodes above the leaves.
async fn height(blocks: &BlockManager, root: u64) -> Result<usize> {
    let mut number = root;
    for height in 0..DEPTH_MAX {
        let block = blocks.read(number, &NODE).await?;
        let bytes = block.bytes();
        let node = Node::parse(&bytes, number)?;
        if !node.is_internal() {
            return Ok(height);
        }
        number = node.child(0)?;
    }
    Err(Error::TooDeep { root })
}
