//! Walking trees, each node once however many trees share it.

use super::{Checker, Problem};
use crate::block::Block;
use crate::block_manager::Batch;
use crate::btree::{DEPTH_MAX, NODE, Node, Place, Value};
use crate::{Error, Result};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use hashbrown::HashMap;
use platform::task::yield_now;

/// Blocks in a page of [`Walk::seen`].
const PAGE: u64 = 4096;

/// Nodes that are looked at before others may use the processor.
const SEEN_AT_ONCE: usize = 16;

/// Stands for an internal node; a leaf is its number of entries and 1 more.
const INTERNAL: u16 = u16::MAX;

/// The walk through trees of one kind, which may share nodes.
#[derive(Default)]
pub struct Walk {
    /// What each metadata block is: 0 if it was not seen, [`INTERNAL`], or a leaf.
    seen: BTreeMap<u64, Box<[u16; PAGE as usize]>>,
    /// Entries of the last level below each internal node.
    totals: HashMap<u64, u64>,
    batch: Batch,
}

/// An internal node whose children are being walked.
struct Visit {
    number: u64,
    /// Children that are internal nodes themselves, last first.
    pending: Vec<Place>,
    /// Entries of the last level found below it so far.
    entries: u64,
}

impl Walk {
    /// Counts one reference to the tree at `root`, and if that is the first, those within. `leaf` sees each leaf once, with
    /// its values. Returns the number of the tree's entries.
    pub async fn tree<T: Value>(
        &mut self,
        checker: &mut Checker,
        root: u64,
        mut leaf: impl FnMut(&mut Checker, &Node<'_>, &[T]),
    ) -> u64 {
        if !self.refer(checker, root) {
            return self.entries_below(root);
        }
        let mut stack: Vec<Visit> = Vec::new();
        let mut next = Some(Place::root(root));
        loop {
            match next.take() {
                Some(_) if stack.len() >= DEPTH_MAX => checker.tell(Error::TooDeep { root }.into()),
                Some(place) => {
                    let parent = stack.last().map(|visit| visit.number);
                    stack.extend(self.enter(checker, place, parent, &mut leaf).await);
                }
                None => {}
            }
            let Some(visit) = stack.last_mut() else { return self.entries_below(root) };
            next = visit.pending.pop();
            if next.is_none() {
                let (number, entries) = (visit.number, visit.entries);
                self.totals.insert(number, entries);
                stack.pop();
                if let Some(parent) = stack.last_mut() {
                    parent.entries = parent.entries.saturating_add(entries);
                }
            }
        }
    }

    /// Entries of the last level below a node that was walked.
    pub fn entries_below(&self, number: u64) -> u64 {
        match self.kind(number) {
            INTERNAL => self.totals.get(&number).copied().unwrap_or(0),
            leaf => u64::from(leaf.saturating_sub(1)),
        }
    }

    /// The leaves that were walked, by their place on disk.
    pub fn leaves(&self) -> impl Iterator<Item = u64> {
        let pages = self.seen.iter();
        pages.flat_map(|(page, kinds)| {
            let numbers = page.saturating_mul(PAGE)..;
            numbers.zip(kinds.iter()).filter(|(_, kind)| !matches!(**kind, 0 | INTERNAL)).map(|(number, _)| number)
        })
    }

    fn kind(&self, number: u64) -> u16 {
        let page = self.seen.get(&(number / PAGE));
        page.and_then(|page| page.get((number % PAGE) as usize)).copied().unwrap_or(0)
    }

    fn set_kind(&mut self, number: u64, kind: u16) {
        let page = self.seen.entry(number / PAGE).or_insert_with(|| Box::new([0; PAGE as usize]));
        if let Some(place) = page.get_mut((number % PAGE) as usize) {
            *place = kind;
        }
    }

    /// Counts a reference to a node, or to another block; true if it is the first and the block is to be read.
    pub(super) fn refer(&mut self, checker: &mut Checker, number: u64) -> bool {
        checker.metadata.add(number);
        let new = self.kind(number) == 0 && number < checker.nr_blocks();
        if new {
            self.set_kind(number, INTERNAL);
        }
        new
    }

    /// Reads a node. If it is internal, its children are counted, and those that are leaves read together.
    async fn enter<T: Value>(
        &mut self,
        checker: &mut Checker,
        place: Place,
        parent: Option<u64>,
        leaf: &mut impl FnMut(&mut Checker, &Node<'_>, &[T]),
    ) -> Option<Visit> {
        let mut batch = core::mem::take(&mut self.batch);
        checker.blocks.read_batch(&[place.number], &NODE, &mut batch).await;
        let children = self.see(checker, batch.get(0), place, parent, leaf);
        let visit = match children {
            Some(children) => Some(self.children(checker, place.number, children, &mut batch, leaf).await),
            None => None,
        };
        self.batch = batch;
        visit
    }

    async fn children<T: Value>(
        &mut self,
        checker: &mut Checker,
        number: u64,
        mut children: Vec<Place>,
        batch: &mut Batch,
        leaf: &mut impl FnMut(&mut Checker, &Node<'_>, &[T]),
    ) -> Visit {
        let mut visit = Visit { number, pending: Vec::new(), entries: 0 };
        children.retain(|child| {
            let new = self.refer(checker, child.number);
            if !new {
                visit.entries = visit.entries.saturating_add(self.entries_below(child.number));
            }
            new
        });
        let numbers: Vec<u64> = children.iter().map(|child| child.number).collect();
        checker.blocks.read_batch(&numbers, &NODE, batch).await;
        for (index, child) in children.iter().enumerate() {
            let block = batch.get(index);
            // An internal child is read again when it is its turn: what is below it is read in between.
            if block.is_ok_and(|block| Node::parse(block, child.number).is_ok_and(|node| node.is_internal())) {
                visit.pending.push(*child);
            } else {
                self.see(checker, block, *child, Some(number), leaf);
                visit.entries = visit.entries.saturating_add(self.entries_below(child.number));
            }
            if index % SEEN_AT_ONCE == SEEN_AT_ONCE - 1 {
                yield_now().await;
            }
        }
        visit.pending.reverse();
        visit
    }

    /// Checks a node in its place. A leaf is shown, of an internal node the children are returned.
    fn see<T: Value>(
        &mut self,
        checker: &mut Checker,
        block: Result<&Block>,
        place: Place,
        parent: Option<u64>,
        leaf: &mut impl FnMut(&mut Checker, &Node<'_>, &[T]),
    ) -> Option<Vec<Place>> {
        let node = match block.and_then(|block| Node::parse(block, place.number)) {
            Ok(node) => node,
            Err(error) => {
                checker.tell(error.into());
                return None;
            }
        };
        if let Some(parent) = parent {
            check_place(checker, &node, place, parent);
        }
        if node.is_internal() {
            return Some(place.children(&node).collect());
        }
        self.set_kind(place.number, u16::try_from(node.len()).unwrap_or(0).saturating_add(1));
        match node.values::<T>() {
            Ok(values) => leaf(checker, &node, values),
            Err(error) => checker.tell(error.into()),
        }
        None
    }
}

/// A node that is no root has enough entries, and only keys that lead to it.
fn check_place(checker: &mut Checker, node: &Node<'_>, place: Place, parent: u64) {
    let block = place.number;
    if node.len() < node.floor() {
        checker.tell(Problem::Underfull { block, entries: node.len(), floor: node.floor() });
    }
    if !place.fits(node) {
        checker.tell(Problem::KeyRange { block, parent });
    }
}
