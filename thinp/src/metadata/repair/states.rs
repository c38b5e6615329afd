//! Which states of the pool can be rebuilt: pairs of a mapping tree and a details tree.
//!
//! Besides the state that the superblock leads to there are earlier ones, of which free blocks still hold nodes, and that of
//! a metadata snapshot. A pair is *whole* if nothing is missing in it and both trees name the same devices and the
//! same number of mappings.

use super::super::superblock::Superblock;
use super::forest::{Forest, Role, Tree};
use alloc::vec::Vec;

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

/// What was found, to be compared. There may be a tree of every transaction.
struct Candidates {
    /// Roots of mapping trees.
    mappings: Vec<u64>,
    /// Details trees, in order.
    details: Vec<Group>,
}

/// Details trees that name the same devices and the same number of mappings.
#[derive(Clone, Copy)]
struct Group {
    ids: u64,
    mappings: u64,
    /// The newest of them that is whole.
    whole: Option<u64>,
    /// The newest of them and of those that name more mappings of the same devices.
    newest: u64,
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
    let whole = candidates.newest_whole(forest);
    let damaged = candidates.newest_damaged(forest).filter(|(age, _)| whole.is_none_or(|(newest, _)| *age > newest));
    let found = whole.into_iter().chain(damaged.filter(|_| rootless)).map(|(_, state)| state);
    states.extend(found.map(|state| of_copy(state, &copies)));
    if states.is_empty() {
        let details_root = candidates.details.iter().map(|group| group.newest).reduce(|a, b| newer(forest, a, b));
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
    let mut roots: Vec<(u64, Role)> = forest.roots().collect();
    for (_, mappings, details) in copies {
        roots.extend([(*mappings, Role::Devices), (*details, Role::Details)]);
    }
    roots.sort_unstable_by_key(|(block, role)| (*block, *role == Role::Details));
    roots.dedup();
    let (mut mappings, mut details) = (Vec::new(), Vec::new());
    for (block, role) in roots {
        let Some(tree) = forest.survey(block, role).await else { continue };
        match role {
            Role::Details => details.push((tree.ids, tree.mappings, block)),
            Role::Devices | Role::Mappings => mappings.push(block),
        }
    }
    Candidates { mappings, details: groups(forest, details) }
}

/// Groups details trees, of which the devices, mappings and roots are given.
fn groups(forest: &Forest<'_>, mut trees: Vec<(u64, u64, u64)>) -> Vec<Group> {
    trees.sort_unstable();
    let mut groups: Vec<Group> = Vec::new();
    for (ids, mappings, block) in trees {
        let whole = forest.tree(block, Role::Details).filter(|tree| tree.whole).map(|_| block);
        match groups.last_mut().filter(|group| (group.ids, group.mappings) == (ids, mappings)) {
            Some(group) => {
                group.newest = newer(forest, group.newest, block);
                group.whole = group.whole.into_iter().chain(whole).reduce(|a, b| newer(forest, a, b));
            }
            None => groups.push(Group { ids, mappings, whole, newest: block }),
        }
    }
    let mut more: Option<Group> = None;
    for group in groups.iter_mut().rev() {
        if let Some(more) = more.filter(|more| more.ids == group.ids) {
            group.newest = newer(forest, group.newest, more.newest);
        }
        more = Some(*group);
    }
    groups
}

/// The newer of two details trees.
fn newer(forest: &Forest<'_>, a: u64, b: u64) -> u64 {
    let rank = |block| {
        let tree = forest.tree(block, Role::Details).unwrap_or_default();
        (tree.time, tree.transaction_id, block)
    };
    if rank(a) > rank(b) { a } else { b }
}

/// How new a mapping tree is: the time of its newest mappings, and how many there are of that time.
type Age = (u32, u64);

impl Candidates {
    /// The newest whole pair; of several as new the one with the most mappings.
    fn newest_whole(&self, forest: &Forest<'_>) -> Option<(Age, State)> {
        let pairs = self.mappings.iter().filter_map(|root| {
            let mappings = forest.tree(*root, Role::Devices)?;
            let key = (mappings.ids, mappings.mappings);
            let group = self.details.binary_search_by_key(&key, |group| (group.ids, group.mappings)).ok()?;
            let block = self.details.get(group)?.whole?;
            let details = forest.tree(block, Role::Details).filter(|details| belong_together(&mappings, details))?;
            let rank = (age(&mappings), mappings.mappings, (details.time, details.transaction_id));
            Some((rank, pair(Origin::Search, *root, block)))
        });
        pairs.max_by_key(|(rank, _)| *rank).map(|((age, ..), state)| (age, state))
    }

    /// The newest of the others, if there is one among those that are whole themselves or whose details tree is there.
    fn newest_damaged(&self, forest: &Forest<'_>) -> Option<(Age, State)> {
        let ranked = self.mappings.iter().filter_map(|root| {
            let mappings = forest.tree(*root, Role::Devices)?;
            // A tree of more mappings than its devices have has got leaves of others.
            let least = (mappings.ids, mappings.mappings);
            let group = self.details.get(self.details.partition_point(|group| (group.ids, group.mappings) < least));
            let details_root = group.filter(|group| group.ids == mappings.ids).map(|group| group.newest);
            let state = State { origin: Origin::Search, mapping_root: Some(*root), details_root };
            Some(((details_root.is_some() || mappings.whole, age(&mappings), mappings.mappings), state))
        });
        ranked.max_by_key(|(rank, _)| *rank).map(|((_, age, _), state)| (age, state))
    }
}

fn age(mappings: &Tree) -> Age {
    (mappings.time, mappings.newest)
}

#[cfg(test)]
mod tests {
    use super::super::made::{Made, node};
    use super::super::scan::What;
    use super::*;
    use platform::task::block_on_ready;

    /// Details trees in even blocks, mapping trees in odd ones.
    fn made() -> Made {
        let nodes = (1..20).map(|block| node(block, if block % 2 == 0 { What::Details } else { What::Internal }));
        Made::new(&nodes.collect::<Vec<_>>())
    }

    fn tree(ids: u64, mappings: u64, time: u32) -> Tree {
        Tree { whole: true, devices: 1, ids, mappings, time, newest: 1, ..Tree::default() }
    }

    fn candidates_of(forest: &Forest<'_>, mappings: &[u64], details: &[u64]) -> Candidates {
        let known = |block: &u64| {
            let tree = forest.tree(*block, Role::Details).unwrap();
            (tree.ids, tree.mappings, *block)
        };
        Candidates { mappings: mappings.to_vec(), details: groups(forest, details.iter().map(known).collect()) }
    }

    /// The roots of the newest pairs: whole and damaged.
    fn newest(made: &Made, trees: &[(u64, Tree)]) -> [Option<(Option<u64>, Option<u64>)>; 2] {
        let role = |block: u64| if block.is_multiple_of(2) { Role::Details } else { Role::Devices };
        let trees: Vec<_> = trees.iter().map(|(block, tree)| (*block, role(*block), *tree)).collect();
        let forest = made.forest(&trees);
        let (details, mappings): (Vec<u64>, Vec<u64>) =
            trees.iter().map(|(block, ..)| *block).partition(|block| block.is_multiple_of(2));
        let candidates = candidates_of(&forest, &mappings, &details);
        [candidates.newest_whole(&forest), candidates.newest_damaged(&forest)]
            .map(|found| found.map(|(_, state)| (state.mapping_root, state.details_root)))
    }

    #[test]
    fn trees_belong_together_if_they_are_whole_and_say_the_same() {
        let one = tree(5, 100, 1);
        assert!(belong_together(&one, &one));
        for other in [
            Tree { whole: false, ..one },
            Tree { ids: 6, ..one },
            Tree { mappings: 101, ..one },
            Tree { devices: 2, ..one },
        ] {
            assert!(!belong_together(&one, &other) && !belong_together(&other, &one), "{other:?}");
        }
        assert!(belong_together(&one, &Tree { time: 9, newest: 7, keys: Some((1, 2)), ..one }));
    }

    #[test]
    fn the_newest_pair_is_taken() {
        let of = |pair: (u64, u64)| Some((Some(pair.0), Some(pair.1)));
        let (old, new) = (tree(5, 100, 1), tree(5, 120, 2));
        let [whole, _] = newest(&made(), &[(1, old), (2, old), (3, new), (4, new)]);
        assert_eq!(whole, of((3, 4)));
        let [whole, _] = newest(&made(), &[(3, old), (4, old), (1, new), (2, new)]);
        assert_eq!(whole, of((1, 2)));
        let [whole, damaged] = newest(&made(), &[(1, old), (2, old), (3, new)]);
        assert_eq!(whole, of((1, 2)), "the newer one has no details");
        assert_eq!(damaged, Some((Some(3), None)), "which a tree can do without that is whole itself");
        let [_, damaged] = newest(&made(), &[(1, old), (2, old), (3, Tree { whole: false, ..new })]);
        assert_eq!(damaged, of((1, 2)), "but no other");
        let fewer = tree(5, 80, 2);
        let [whole, _] = newest(&made(), &[(1, old), (2, old), (3, fewer), (4, fewer)]);
        assert_eq!(whole, of((3, 4)), "however few mappings it has");
        let [whole, _] = newest(&made(), &[(1, old), (2, Tree { whole: false, ..old })]);
        assert_eq!(whole, None);
    }

    /// Without a superblock.
    #[test]
    fn a_damaged_state_is_looked_at_only_if_it_is_newer_than_the_whole_one() {
        let found = |trees: &[(u64, Role, Tree)]| {
            let made = made();
            trees.iter().for_each(|(block, role, _)| made.scan.set_role(*block, *role));
            block_on_ready(states(&mut made.forest(trees), None))
        };
        let search =
            |mapping_root| State { origin: Origin::Search, mapping_root: Some(mapping_root), details_root: None };
        let whole = pair(Origin::Search, 1, 2);
        let pair_of = |time| [(1, Role::Devices, tree(5, 100, time)), (2, Role::Details, tree(5, 100, time))];
        let with = |third: Tree| {
            let [mappings, details] = pair_of(4);
            found(&[mappings, details, (3, Role::Devices, third)])
        };
        assert_eq!(found(&pair_of(4)), [whole]);
        assert_eq!(with(tree(6, 100, 5)), [whole, search(3)]);
        assert_eq!(with(Tree { newest: 2, ..tree(6, 100, 4) }), [whole, search(3)], "more of the same time is newer");
        for older in [tree(6, 200, 3), tree(6, 200, 4)] {
            assert_eq!(with(older), [whole], "{older:?}");
        }
    }

    /// The details of a damaged mapping tree name as many mappings as are left of it, or more.
    #[test]
    fn a_damaged_tree_goes_with_details_that_name_more() {
        let damaged = |mappings| Tree { whole: false, ..tree(5, mappings, 2) };
        let pair = |details| Some((Some(1), details));
        let with = |trees: &[(u64, Tree)]| newest(&made(), trees);
        let (fewer, more, other) = (tree(5, 79, 9), tree(5, 100, 1), tree(6, 100, 9));
        assert_eq!(with(&[(1, damaged(80)), (2, fewer), (4, more), (6, other)]), [None, pair(Some(4))]);
        assert_eq!(with(&[(1, damaged(80)), (2, fewer), (6, other)]), [None, pair(None)], "none fits");
        // Of those that name exactly as many, and of those that name more, the newest.
        assert_eq!(with(&[(1, damaged(100)), (4, more), (6, tree(5, 100, 3))]), [None, pair(Some(6))]);
        assert_eq!(with(&[(1, damaged(100)), (4, tree(5, 100, 3)), (6, tree(5, 120, 2))]), [None, pair(Some(4))]);
        assert_eq!(with(&[(1, damaged(100)), (4, more), (6, tree(5, 120, 2))]), [None, pair(Some(6))]);
    }

    #[test]
    fn of_details_of_the_same_time_the_latest_transaction_counts() {
        let of = |transaction_id| Tree { transaction_id, ..tree(5, 100, 1) };
        let [whole, _] = newest(&made(), &[(1, tree(5, 100, 1)), (2, of(8)), (4, of(7))]);
        assert_eq!(whole, Some((Some(1), Some(2))));
        let [whole, _] = newest(&made(), &[(1, tree(5, 100, 1)), (2, of(7)), (4, of(7))]);
        assert_eq!(whole, Some((Some(1), Some(4))), "of the same the last on the disk");
    }

    #[test]
    fn what_both_roots_of_a_copy_lead_to_is_a_metadata_snapshot() {
        let copies = [(30, 1, 2), (31, 3, 4)];
        let state = |mapping_root, details_root| State { origin: Origin::Search, mapping_root, details_root };
        let origin = |mapping_root, details_root| of_copy(state(mapping_root, details_root), &copies).origin;
        assert_eq!(origin(Some(1), Some(2)), Origin::Copy { block: 30 });
        assert_eq!(origin(Some(3), Some(4)), Origin::Copy { block: 31 });
        assert_eq!(of_copy(state(Some(3), None), &copies), pair(Origin::Copy { block: 31 }, 3, 4));
        for (mapping_root, details_root) in [(Some(1), Some(4)), (Some(5), Some(2)), (Some(5), None), (None, Some(2))] {
            assert_eq!(origin(mapping_root, details_root), Origin::Search, "{mapping_root:?} {details_root:?}");
        }
    }

    #[test]
    fn a_copys_roots_are_the_superblocks() {
        let mut copy = Superblock::format(128, 0);
        copy.mapping_root.set(40);
        copy.details_root.set(50);
        assert_eq!(roots_of_copy(&(30, copy)), (30, 40, 50));
    }
}
