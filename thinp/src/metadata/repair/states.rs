//! Which states of the pool can be rebuilt: pairs of a mapping tree and a details tree.
//!
//! Besides the state that the superblock leads to there are earlier ones, of which free blocks still hold nodes, and that of
//! a metadata snapshot. A pair is *whole* if nothing is missing in it and both trees name the same devices and the
//! same number of mappings.

use super::super::superblock::Superblock;
use super::forest::{Forest, Role, Tree};
use alloc::vec::Vec;
use hashbrown::HashMap;

/// Where a state was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The superblock leads to it: the state of the last commit.
    Superblock,
    /// The copy of a superblock in this block does: the state of a metadata snapshot.
    Copy {
        /// The copy.
        block: u64,
    },
    /// Nothing leads to it; its trees belong together by what they hold.
    Search,
}

/// A state of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Where it was found.
    pub origin: Origin,
    /// Root of the mapping tree, if there is one.
    pub mapping_root: Option<u64>,
    /// Root of the details tree, if there is one.
    pub details_root: Option<u64>,
}

/// A tree and where it is.
#[derive(Clone, Copy)]
struct Root {
    block: u64,
    tree: Tree,
}

/// What was found, to be compared.
struct Candidates {
    mappings: Vec<Root>,
    /// By the devices that they name.
    details: HashMap<u64, Vec<Root>>,
}

/// The states worth a closer look, the most trustworthy first.
pub async fn states(forest: &mut Forest<'_>, superblock: Option<&Superblock>) -> Vec<State> {
    let mut states = Vec::new();
    if let Some(superblock) = superblock {
        let (mapping_root, details_root) = (superblock.mapping_root.get(), superblock.details_root.get());
        let state = pair(Origin::Superblock, mapping_root, details_root);
        states.push(state);
        if is_whole(forest, &state).await {
            return states;
        }
    }
    let copies: Vec<(u64, u64, u64)> = forest.scan.copies.iter().map(roots_of_copy).collect();
    let candidates = candidates(forest, &copies).await;
    let mut found: Vec<State> = candidates.best_whole().into_iter().chain(candidates.best_damaged()).collect();
    for state in &mut found {
        let is = |(_, mappings, details): &&(u64, u64, u64)| {
            state.mapping_root == Some(*mappings) && state.details_root.is_none_or(|root| root == *details)
        };
        if let Some((block, _, details)) = copies.iter().find(is) {
            *state = State { origin: Origin::Copy { block: *block }, details_root: Some(*details), ..*state };
        }
    }
    states.extend(found);
    if states.is_empty() {
        let newest =
            candidates.details.values().flatten().max_by_key(|root| (root.tree.time, root.tree.transaction_id));
        let details_root = newest.map(|root| root.block);
        states.extend(details_root.map(|_| State { origin: Origin::Search, mapping_root: None, details_root }));
    }
    states
}

fn pair(origin: Origin, mapping_root: u64, details_root: u64) -> State {
    State { origin, mapping_root: Some(mapping_root), details_root: Some(details_root) }
}

fn roots_of_copy((block, copy): &(u64, Superblock)) -> (u64, u64, u64) {
    (*block, copy.mapping_root.get(), copy.details_root.get())
}

async fn is_whole(forest: &mut Forest<'_>, state: &State) -> bool {
    let (Some(mappings), Some(details)) = (state.mapping_root, state.details_root) else { return false };
    let mappings = forest.survey(mappings, Role::Devices).await;
    let details = forest.survey(details, Role::Details).await;
    mappings.zip(details).is_some_and(|(mappings, details)| belong_together(&mappings, &details))
}

/// The trees are whole and say the same.
fn belong_together(mappings: &Tree, details: &Tree) -> bool {
    let (same_ids, same_mappings) = (mappings.ids == details.ids, mappings.mappings == details.mappings);
    mappings.whole && details.whole && same_ids && same_mappings && mappings.devices == details.devices
}

async fn candidates(forest: &mut Forest<'_>, copies: &[(u64, u64, u64)]) -> Candidates {
    let mut roots = forest.roots.clone();
    for (_, mappings, details) in copies {
        roots.extend([(*mappings, Role::Devices), (*details, Role::Details)]);
    }
    roots.sort_unstable_by_key(|(block, role)| (*block, *role == Role::Details));
    roots.dedup();
    let mut candidates = Candidates { mappings: Vec::new(), details: HashMap::new() };
    for (block, role) in roots {
        let Some(tree) = forest.survey(block, role).await else { continue };
        let root = Root { block, tree };
        match role {
            Role::Details => candidates.details.entry(tree.ids).or_default().push(root),
            Role::Devices | Role::Mappings => candidates.mappings.push(root),
        }
    }
    candidates
}

impl Candidates {
    /// Of the whole pairs the one with the most mappings, of those the newest.
    fn best_whole(&self) -> Option<State> {
        let pairs = self.mappings.iter().filter_map(|mappings| {
            let same = self.details.get(&mappings.tree.ids)?.iter();
            let details = same
                .filter(|details| belong_together(&mappings.tree, &details.tree))
                .max_by_key(|details| (details.tree.time, details.tree.transaction_id))?;
            let age = (mappings.tree.time.max(details.tree.time), details.tree.transaction_id);
            Some(((mappings.tree.mappings, age), mappings.block, details.block))
        });
        let (_, mappings, details) = pairs.max_by_key(|(rank, ..)| *rank)?;
        Some(pair(Origin::Search, mappings, details))
    }

    /// Of the others the one with the most mappings among those whose details tree is there; if there is none the newest
    /// mapping tree.
    fn best_damaged(&self) -> Option<State> {
        let ranked = self.mappings.iter().map(|mappings| {
            let same = self.details.get(&mappings.tree.ids).into_iter().flatten();
            // A tree of more mappings than its devices have has got leaves of others.
            let details = same
                .filter(|details| details.tree.mappings >= mappings.tree.mappings)
                .max_by_key(|details| (details.tree.time, details.tree.transaction_id));
            let Tree { mappings: entries, time, .. } = mappings.tree;
            let rank = if details.is_some() { (1, entries, time) } else { (0, time.into(), entries as u32) };
            (rank, mappings.block, details.map(|details| details.block))
        });
        let (_, mapping_root, details_root) = ranked.max_by_key(|(rank, ..)| *rank)?;
        Some(State { origin: Origin::Search, mapping_root: Some(mapping_root), details_root })
    }
}
