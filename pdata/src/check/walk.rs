//! Walking trees, each node once however many trees share it.

use super::{Checker, Problem};
use crate::btree::{DEPTH_MAX, NODE, Node, Value};
use crate::{Error, Result};
use alloc::vec::Vec;
use hashbrown::HashMap;

/// The walk through trees of one kind, which may share nodes.
#[derive(Default)]
pub struct Walk {
    /// Entries of the last level below each node seen.
    entries: HashMap<u64, u64>,
}

/// A node whose children are being walked.
struct Visit {
    number: u64,
    /// Children with the least and the greatest key that they may have, last first.
    children: Vec<(u64, u64, u64)>,
    entries: u64,
}

/// Where a node was found, and which keys it may have.
#[derive(Clone, Copy)]
struct Place {
    parent: Option<u64>,
    first: u64,
    last: u64,
}

impl Walk {
    /// Counts one reference to the tree at `root`, and if that is the first, those within. `leaf_entry` sees each entry of
    /// each leaf once. Returns the number of the tree's entries.
    pub async fn tree<T: Value>(
        &mut self,
        checker: &mut Checker,
        root: u64,
        mut leaf_entry: impl FnMut(&mut Checker, u64, T),
    ) -> u64 {
        let mut stack = Vec::new();
        let everywhere = Place { parent: None, first: 0, last: u64::MAX };
        let Some(visit) = self.enter(checker, root, everywhere, &mut leaf_entry).await else {
            return self.entries_below(root);
        };
        stack.push(visit);
        loop {
            let depth = stack.len();
            let Some(visit) = stack.last_mut() else { return self.entries_below(root) };
            let Some((child, first, last)) = visit.children.pop() else {
                let (number, entries) = (visit.number, visit.entries);
                self.entries.insert(number, entries);
                stack.pop();
                if let Some(parent) = stack.last_mut() {
                    parent.entries = parent.entries.saturating_add(entries);
                }
                continue;
            };
            let place = Place { parent: Some(visit.number), first, last };
            match self.enter(checker, child, place, &mut leaf_entry).await {
                Some(_) if depth >= DEPTH_MAX => {
                    checker.tell(Error::TooDeep { root }.into());
                    return self.entries_below(root);
                }
                Some(child) => stack.push(child),
                None => visit.entries = visit.entries.saturating_add(self.entries_below(child)),
            }
        }
    }

    /// Entries of the last level below a node that was walked.
    pub fn entries_below(&self, number: u64) -> u64 {
        self.entries.get(&number).copied().unwrap_or(0)
    }

    /// Counts a reference to a node. Seen for the first time, an internal node is returned to be walked, a leaf is shown.
    async fn enter<T: Value>(
        &mut self,
        checker: &mut Checker,
        number: u64,
        place: Place,
        leaf_entry: &mut impl FnMut(&mut Checker, u64, T),
    ) -> Option<Visit> {
        if checker.metadata.add(number) > 0 {
            return None;
        }
        let read = checker.blocks.read(number, &NODE).await;
        let seen = read.and_then(|block| self.see(checker, &Node::parse(&block.bytes(), number)?, place, leaf_entry));
        seen.unwrap_or_else(|error| {
            checker.tell(error.into());
            None
        })
    }

    fn see<T: Value>(
        &mut self,
        checker: &mut Checker,
        node: &Node<'_>,
        place: Place,
        leaf_entry: &mut impl FnMut(&mut Checker, u64, T),
    ) -> Result<Option<Visit>> {
        let number = node.number();
        if let Some(parent) = place.parent {
            if node.len() < node.floor() {
                checker.tell(Problem::Underfull { block: number, entries: node.len(), floor: node.floor() });
            }
            let inside = place.first..=place.last;
            if !node.keys().next().into_iter().chain(node.keys().next_back()).all(|key| inside.contains(&key)) {
                checker.tell(Problem::KeyRange { block: number, parent });
            }
        }
        if !node.is_internal() {
            self.entries.insert(number, node.len() as u64);
            node.keys().zip(node.values()?).for_each(|(key, value)| leaf_entry(checker, key, *value));
            return Ok(None);
        }
        let lasts = node.keys().skip(1).map(|next| next.saturating_sub(1)).chain([place.last]);
        let places = node.children().zip(node.keys().zip(lasts));
        let mut children: Vec<_> = places.map(|(child, (first, last))| (child, first, last)).collect();
        children.reverse();
        Ok(Some(Visit { number, children, entries: 0 }))
    }
}
