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
    let rootless = superblock.is_none_or(|superblock| forest.scan.get(superblock.mapping_root.get()).is_none());
    let copies: Vec<(u64, u64, u64)> = forest.scan.copies.iter().map(roots_of_copy).collect();
    let candidates = candidates(forest, &copies).await;
    let whole = candidates.newest_whole();
    let damaged = candidates.newest_damaged().filter(|(age, _)| whole.is_none_or(|(newest, _)| *age > newest));
    let found = whole.into_iter().chain(damaged.filter(|_| rootless)).map(|(_, state)| state);
    states.extend(found.map(|state| of_copy(state, &copies)));
    if states.is_empty() {
        let newest =
            candidates.details.values().flatten().max_by_key(|root| (root.tree.time, root.tree.transaction_id));
        let details_root = newest.map(|root| root.block);
        states.extend(details_root.map(|_| State { origin: Origin::Search, mapping_root: None, details_root }));
    }
    states
}

/// A state that was found by search may be that of a metadata snapshot.
fn of_copy(state: State, copies: &[(u64, u64, u64)]) -> State {
    let is = |(_, mappings, details): &&(u64, u64, u64)| {
        state.mapping_root == Some(*mappings) && state.details_root.is_none_or(|root| root == *details)
    };
    match copies.iter().find(is) {
        Some((block, mappings, details)) => pair(Origin::Copy { block: *block }, *mappings, *details),
        None => state,
    }
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

/// How new a mapping tree is: the time of its newest mappings, and how many there are of that time.
type Age = (u32, u64);

impl Candidates {
    /// The newest whole pair; of several as new the one with the most mappings.
    fn newest_whole(&self) -> Option<(Age, State)> {
        let pairs = self.mappings.iter().filter_map(|mappings| {
            let same = self.details.get(&mappings.tree.ids)?.iter();
            let details = same
                .filter(|details| belong_together(&mappings.tree, &details.tree))
                .max_by_key(|details| (details.tree.time, details.tree.transaction_id))?;
            let later = (details.tree.time, details.tree.transaction_id);
            let state = pair(Origin::Search, mappings.block, details.block);
            Some(((mappings.age(), mappings.tree.mappings, later), state))
        });
        pairs.max_by_key(|(rank, _)| *rank).map(|((age, ..), state)| (age, state))
    }

    /// The newest of the others, if there is one among those that are whole themselves or whose details tree is there.
    fn newest_damaged(&self) -> Option<(Age, State)> {
        let ranked = self.mappings.iter().map(|mappings| {
            let same = self.details.get(&mappings.tree.ids).into_iter().flatten();
            // A tree of more mappings than its devices have has got leaves of others.
            let details = same
                .filter(|details| details.tree.mappings >= mappings.tree.mappings)
                .max_by_key(|details| (details.tree.time, details.tree.transaction_id))
                .map(|details| details.block);
            let state = State { origin: Origin::Search, mapping_root: Some(mappings.block), details_root: details };
            ((details.is_some() || mappings.tree.whole, mappings.age(), mappings.tree.mappings), state)
        });
        ranked.max_by_key(|(rank, _)| *rank).map(|((_, age, _), state)| (age, state))
    }
}

impl Root {
    fn age(&self) -> Age {
        (self.tree.time, self.tree.newest)
    }
}
