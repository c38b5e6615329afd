//! The leaves of a tree in the order of their keys, as they are on disk: read many at a time, past the cache.
//!
//! Every node must lie where its parent says, hold only keys that lead to it and be as deep as its siblings. So a damaged
//! tree, or one that refers to itself, ends in an error and never in an endless walk.

use super::{DEPTH_MAX, NODE, Node, damaged};
use crate::block_manager::{Batch, BlockManager};
use crate::{Error, Result};
use alloc::vec::Vec;

/// Where a node was found, and which keys it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its block.
    pub number: u64,
    /// The least key that leads to it.
    pub first: u64,
    /// The greatest key that leads to it.
    pub last: u64,
}

impl Place {
    /// Where the root of a tree is.
    pub fn root(number: u64) -> Place {
        Place { number, first: 0, last: u64::MAX }
    }

    /// All keys of the node are such as lead here.
    pub fn fits(&self, node: &Node<'_>) -> bool {
        let keys = self.first..=self.last;
        node.key(0).is_none_or(|key| keys.contains(&key))
            && node.keys().next_back().is_none_or(|key| keys.contains(&key))
    }

    /// The places of a node's children, in order.
    pub fn children<'a>(
        &self,
        node: &Node<'a>,
    ) -> impl DoubleEndedIterator<Item = Place> + ExactSizeIterator + use<'a> {
        let lasts: Vec<u64> = node.keys().skip(1).map(|next| next.saturating_sub(1)).chain([self.last]).collect();
        let children: Vec<Place> = node
            .children()
            .zip(node.keys().zip(lasts))
            .map(|(number, (first, last))| Place { number, first, last })
            .collect();
        children.into_iter()
    }

    /// The node in this place, if it is what belongs here.
    pub fn check<'a>(&self, node: Node<'a>, internal: bool) -> Result<Node<'a>> {
        if node.is_internal() != internal {
            return Err(damaged(self.number, "it is not as deep as its siblings"));
        }
        if !self.fits(&node) || node.is_empty() && *self != Place::root(self.number) {
            return Err(damaged(self.number, "its keys are not those that its parent leads here for"));
        }
        Ok(node)
    }
}

/// The places of a tree's leaves, in order, without reading the leaves.
pub struct LeafPlaces<'a> {
    blocks: &'a BlockManager,
    /// What is still to be read of each level from the root's on, the next last.
    levels: Vec<Vec<Place>>,
    /// Levels of internal nodes.
    height: usize,
    batch: Batch,
}

impl<'a> LeafPlaces<'a> {
    /// All leaves of the tree at `root`.
    pub async fn open(blocks: &'a BlockManager, root: u64) -> Result<LeafPlaces<'a>> {
        let levels = Vec::from([Vec::from([Place::root(root)])]);
        let mut places = LeafPlaces { blocks, levels, height: 0, batch: Batch::default() };
        let mut number = root;
        loop {
            blocks.read_batch(&[number], &NODE, &mut places.batch).await;
            let node = Node::parse(places.batch.get(0)?, number)?;
            if !node.is_internal() {
                return Ok(places);
            }
            number = node.child(0)?;
            places.height = places.height.saturating_add(1);
            if places.height > DEPTH_MAX {
                return Err(Error::TooDeep { root });
            }
        }
    }

    /// The next leaves, all those with the same parent. After an error the next call goes on behind what could not be
    /// read.
    pub async fn next(&mut self) -> Result<Option<Vec<Place>>> {
        loop {
            let leaves = self.levels.len() > self.height;
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            if leaves {
                let mut places = self.levels.pop().unwrap_or_default();
                places.reverse();
                return Ok(Some(places));
            }
            let Some(place) = level.pop() else {
                self.levels.pop();
                continue;
            };
            self.blocks.read_batch(&[place.number], &NODE, &mut self.batch).await;
            let node = place.check(Node::parse(self.batch.get(0)?, place.number)?, true)?;
            self.levels.push(place.children(&node).rev().collect());
        }
    }
}

/// The leaves themselves.
pub struct Leaves<'a> {
    places: LeafPlaces<'a>,
    /// What `batch` holds.
    group: Vec<Place>,
    next: usize,
    batch: Batch,
}

impl<'a> Leaves<'a> {
    /// All leaves of the tree at `root`.
    pub async fn open(blocks: &'a BlockManager, root: u64) -> Result<Leaves<'a>> {
        let places = LeafPlaces::open(blocks, root).await?;
        Ok(Leaves { places, group: Vec::new(), next: 0, batch: Batch::default() })
    }

    /// The next leaf. After an error the next call goes on behind what could not be read.
    pub async fn next(&mut self) -> Result<Option<Node<'_>>> {
        while self.next >= self.group.len() {
            let Some(group) = self.places.next().await? else { return Ok(None) };
            let numbers: Vec<u64> = group.iter().map(|place| place.number).collect();
            self.places.blocks.read_batch(&numbers, &NODE, &mut self.batch).await;
            (self.group, self.next) = (group, 0);
        }
        let index = self.next;
        self.next = index.saturating_add(1);
        let Some(place) = self.group.get(index) else { return Ok(None) };
        place.check(Node::parse(self.batch.get(index)?, place.number)?, false).map(Some)
    }
}
