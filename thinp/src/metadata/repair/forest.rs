//! The trees that the nodes found make up: how much is below each, whether anything is missing, and which nodes nothing
//! leads to. Those are the roots of this and of earlier states of the pool, and what lost its parent.

use super::super::Details;
use super::super::trees::DetailsRecord;
use super::known::Known;
use super::scan::{Found, Scan, Under, What};
use alloc::vec;
use alloc::vec::Vec;
use pdata::block_manager::BlockManager;
use pdata::btree::{DEPTH_MAX, NODE, Node};
use zerocopy::little_endian::U64;

/// What a tree's leaves hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Mappings of one device.
    Mappings,
    /// Roots of devices' trees.
    Devices,
    /// Details of devices.
    Details,
}

/// What is below a node.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tree {
    /// Nothing is missing.
    pub whole: bool,
    /// The first and the last key.
    pub keys: Option<(u64, u64)>,
    pub devices: u64,
    /// A sum of the devices' ids, scrambled: equal for equal sets.
    pub ids: u64,
    /// Mappings, or what details say of their number.
    pub mappings: u64,
    /// The latest time of anything.
    pub time: u32,
    /// Mappings of that time.
    pub newest: u64,
    /// The highest transaction id of details.
    pub transaction_id: u64,
}

impl Tree {
    /// Adds a child whose keys must be from `first` to `last` and behind those so far.
    fn add(&mut self, child: &Tree, first: u64, last: u64) {
        if let Some((child_first, child_last)) = child.keys {
            let behind = self.keys.is_none_or(|(_, own_last)| own_last < child_first);
            if !behind || child_first < first || child_last > last {
                self.whole = false;
                return;
            }
            self.keys = Some((self.keys.map_or(child_first, |(own_first, _)| own_first), child_last));
        }
        self.devices = self.devices.saturating_add(child.devices);
        self.ids = self.ids.wrapping_add(child.ids);
        self.add_below(child);
    }

    /// Adds the tree of a device.
    fn add_below(&mut self, child: &Tree) {
        self.whole &= child.whole;
        self.mappings = self.mappings.saturating_add(child.mappings);
        if child.time > self.time {
            (self.time, self.newest) = (child.time, 0);
        }
        if child.time == self.time {
            self.newest = self.newest.saturating_add(child.newest);
        }
        self.transaction_id = self.transaction_id.max(child.transaction_id);
    }
}

/// Spreads the bits of an id (the finalizer of SplitMix64), so that sums of different sets differ.
fn scramble(id: u64) -> u64 {
    let id = id.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let id = (id ^ id >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let id = (id ^ id >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    id ^ id >> 31
}

/// A node whose children are being looked at.
struct Visit {
    block: u64,
    role: Role,
    /// Of the children: those of a leaf of roots are trees of mappings.
    child_role: Role,
    tree: Tree,
    /// Keys and children, the next last.
    pending: Vec<(u64, u64)>,
}

impl Visit {
    /// Adds what the next child is to what is known of the tree.
    fn take(&mut self, child: Option<&Tree>) {
        let Some((first, _)) = self.pending.pop() else { return };
        match child {
            None => self.tree.whole = false,
            Some(child) if self.role != self.child_role => self.tree.add_below(child),
            Some(child) => {
                let last = self.pending.last().map_or(u64::MAX, |(next, _)| next.saturating_sub(1));
                self.tree.add(child, first, last);
            }
        }
    }
}

/// What is known of a child.
enum Look {
    Known(Tree),
    Missing,
    Unvisited,
}

/// The trees.
pub struct Forest<'a> {
    pub blocks: &'a BlockManager,
    pub scan: &'a Scan,
    known: Known,
}

impl<'a> Forest<'a> {
    /// Looks at every node found.
    pub async fn grow(blocks: &'a BlockManager, scan: &'a Scan) -> Forest<'a> {
        let mut forest = Forest { blocks, scan, known: Known::of(scan) };
        for found in scan.nodes() {
            let Some(role) = forest.role(&found).await else { continue };
            let alone = role == Role::Mappings && found.what != What::Internal;
            if !alone {
                let tree = forest.survey(found.block, role).await.unwrap_or_default();
                let under = if tree.whole { Under::Whole } else { Under::Damaged };
                for child in forest.children_in_place(&found).await {
                    scan.lead_to(child, under);
                }
            }
            if role != Role::Mappings || found.keys.is_some() {
                scan.set_role(found.block, role);
            }
        }
        forest
    }

    /// With these trees, whatever the nodes hold.
    #[cfg(test)]
    pub fn knowing(blocks: &'a BlockManager, scan: &'a Scan, trees: &[(u64, Role, Tree)]) -> Forest<'a> {
        let mut known = Known::of(scan);
        trees.iter().for_each(|(block, role, tree)| known.set(*block, *role, tree));
        Forest { blocks, scan, known }
    }

    /// Roots of trees of devices or details that no whole tree contains.
    pub fn roots(&self) -> impl Iterator<Item = (u64, Role)> + use<'a> {
        let roles = self.scan.roles().filter(|(_, role, under)| *role != Role::Mappings && *under != Under::Whole);
        roles.map(|(block, role, _)| (block, role))
    }

    /// Roots of trees of mappings that nothing leads to.
    pub fn orphans(&self) -> impl Iterator<Item = u64> + use<'a> {
        let roles = self.scan.roles().filter(|(_, role, under)| *role == Role::Mappings && *under == Under::Nothing);
        roles.map(|(block, ..)| block)
    }

    /// What a node's tree holds, by the first leaf that is found.
    async fn role(&self, found: &Found) -> Option<Role> {
        let mut found = *found;
        for _ in 0..DEPTH_MAX {
            match found.what {
                What::Details => return Some(Role::Details),
                What::Leaf { like_roots: false } => return Some(Role::Mappings),
                What::Leaf { like_roots: true } => {
                    let roots = self.children(found.block).await;
                    let of_mappings = |what| what == What::Internal || matches!(what, What::Leaf { .. });
                    let is_root = |root: &u64| self.scan.get(*root).is_some_and(|found| of_mappings(found.what));
                    let any = roots.iter().any(|(_, root)| is_root(root));
                    return Some(if any { Role::Devices } else { Role::Mappings });
                }
                What::Internal => {
                    let children = self.children(found.block).await;
                    found = children.iter().find_map(|(_, child)| self.scan.get(*child))?;
                }
            }
        }
        None
    }

    /// Keys and children of an internal node, or ids and roots of a leaf of those.
    pub async fn children(&self, block: u64) -> Vec<(u64, u64)> {
        let Ok(read) = self.blocks.read(block, &NODE).await else { return Vec::new() };
        let bytes = read.bytes();
        let Ok(node) = Node::parse(&bytes, block) else { return Vec::new() };
        if node.is_internal() {
            return node.keys().zip(node.children()).collect();
        }
        let roots = node.values::<U64>().unwrap_or_default();
        node.keys().zip(roots.iter().map(|root| root.get())).collect()
    }

    /// Children, but for those whose keys cannot be where they are.
    async fn children_in_place(&self, found: &Found) -> Vec<u64> {
        let children = self.children(found.block).await;
        let last =
            |index: usize| children.get(index.saturating_add(1)).map_or(u64::MAX, |(next, _)| next.saturating_sub(1));
        let in_place = |index: usize, first: u64, child: u64| {
            found.what != What::Internal || self.scan.get(child).is_none_or(|child| child.fits(first, last(index)))
        };
        let placed = children.iter().enumerate().filter(|(index, (first, child))| in_place(*index, *first, *child));
        placed.map(|(_, (_, child))| *child).collect()
    }

    /// Details of the devices in a leaf.
    pub async fn details(&self, block: u64) -> Vec<(u64, Details)> {
        let Ok(read) = self.blocks.read(block, &NODE).await else { return Vec::new() };
        let bytes = read.bytes();
        let records = Node::parse(&bytes, block).and_then(|node| {
            let records = node.values::<DetailsRecord>()?;
            Ok(node.keys().zip(records.iter().map(|record| (*record).into())).collect())
        });
        records.unwrap_or_default()
    }

    /// What is known of the tree at `block`, if there is a node that can be read as such a tree.
    pub async fn survey(&mut self, block: u64, role: Role) -> Option<Tree> {
        let mut stack: Vec<Visit> = Vec::new();
        if let Look::Unvisited = self.look(block, role) {
            stack.push(self.visit(block, role).await);
        }
        while let Some(visit) = stack.last_mut() {
            let Some((_, child)) = visit.pending.last().copied() else {
                self.known.set(visit.block, visit.role, &visit.tree);
                stack.pop();
                continue;
            };
            match self.look(child, visit.child_role) {
                Look::Unvisited => {
                    let role = visit.child_role;
                    stack.push(self.visit(child, role).await);
                }
                Look::Known(tree) => visit.take(Some(&tree)),
                Look::Missing => visit.take(None),
            }
        }
        self.tree(block, role)
    }

    /// The same, if it was asked for before or takes no asking.
    pub fn tree(&self, block: u64, role: Role) -> Option<Tree> {
        match self.look(block, role) {
            Look::Known(tree) => Some(tree),
            Look::Missing | Look::Unvisited => None,
        }
    }

    fn look(&self, block: u64, role: Role) -> Look {
        if let Some(tree) = self.known.get(block, role) {
            return Look::Known(tree);
        }
        let Some(found) = self.scan.get(block) else { return Look::Missing };
        match (found.what, role) {
            (What::Leaf { .. }, Role::Mappings) => Look::Known(leaf(&found)),
            _ if self.known.is_full(block) => Look::Missing,
            (What::Internal, _) | (What::Details, Role::Details) => Look::Unvisited,
            (What::Leaf { like_roots }, Role::Devices) if like_roots || found.entries == 0 => Look::Unvisited,
            _ => Look::Missing,
        }
    }

    /// Starts with a node. Until it is done it counts as damaged: so no tree contains itself.
    async fn visit(&mut self, block: u64, role: Role) -> Visit {
        self.known.set(block, role, &Tree::default());
        let found = self.scan.get(block);
        let mut tree = Tree { whole: true, ..Tree::default() };
        let (mut pending, mut child_role) = (Vec::new(), role);
        match found.map(|found| found.what) {
            Some(What::Details) => {
                let details = self.details(block).await;
                tree.devices = details.len() as u64;
                for (id, details) in details {
                    tree.ids = tree.ids.wrapping_add(scramble(id));
                    tree.add_below(&Tree {
                        whole: true,
                        mappings: details.mapped_blocks,
                        time: details.creation_time.max(details.snapshotted_time),
                        transaction_id: details.transaction_id,
                        ..Tree::default()
                    });
                }
                tree.keys = found.and_then(|found| found.keys);
            }
            what => {
                pending = self.children(block).await;
                if what != Some(What::Internal) {
                    child_role = Role::Mappings;
                    tree.devices = pending.len() as u64;
                    tree.ids = pending.iter().fold(0, |sum: u64, (id, _)| sum.wrapping_add(scramble(*id)));
                    tree.keys = found.and_then(|found| found.keys);
                }
                pending.reverse();
            }
        }
        Visit { block, role, child_role, tree, pending }
    }

    /// The leaves of the tree at `root` in the order of their keys, and the places in between where nothing usable is.
    pub async fn walk(&self, root: u64, role: Role) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut pending = vec![(Piece { block: root, first: 0, last: u64::MAX, missing: false }, 0)];
        while let Some((piece, depth)) = pending.pop() {
            let found = self.scan.get(piece.block).filter(|found| found.fits(piece.first, piece.last));
            match found.map(|found| (found.what, found.entries)) {
                Some((What::Internal, _)) if depth < DEPTH_MAX => {
                    let children = self.children(piece.block).await;
                    let mut last = piece.last;
                    for (first, block) in children.into_iter().rev() {
                        pending.push((Piece { block, first, last, missing: false }, depth.saturating_add(1)));
                        last = first.saturating_sub(1);
                    }
                }
                Some((_, 0)) => {}
                Some((What::Leaf { .. }, _)) if role == Role::Mappings => pieces.push(piece),
                Some((What::Leaf { like_roots: true }, _)) if role == Role::Devices => pieces.push(piece),
                Some((What::Details, _)) if role == Role::Details => pieces.push(piece),
                _ => pieces.push(Piece { missing: true, ..piece }),
            }
        }
        pieces
    }
}

/// A leaf in its place, or a place without anything.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// The block that is there, or that should be.
    pub block: u64,
    /// The least key that leads there.
    pub first: u64,
    /// The greatest.
    pub last: u64,
    /// There is nothing usable.
    pub missing: bool,
}

fn leaf(found: &Found) -> Tree {
    Tree {
        whole: true,
        keys: found.keys,
        mappings: found.entries.into(),
        time: found.time,
        newest: found.newest.into(),
        ..Tree::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::{Made, leaf, leaf_of, node};
    use super::*;
    use platform::task::block_on_ready;

    fn child(first: u64, last: u64) -> Tree {
        let keys = Some((first, last));
        Tree { whole: true, keys, devices: 1, ids: 7, mappings: 10, time: 3, newest: 4, transaction_id: 2 }
    }

    /// A tree of children with their keys and bounds.
    fn tree_of(children: &[[u64; 4]]) -> Tree {
        let mut tree = Tree { whole: true, ..Tree::default() };
        children.iter().for_each(|[from, to, first, last]| tree.add(&child(*from, *to), *first, *last));
        tree
    }

    #[test]
    fn children_are_in_order_and_within_their_bounds() {
        let two = tree_of(&[[5, 9, 5, 9], [10, 12, 10, u64::MAX]]);
        assert_eq!((two.whole, two.keys), (true, Some((5, 12))));
        assert_eq!((two.devices, two.ids, two.mappings, two.newest), (2, 14, 20, 8));
        for wrong in [[5, 9, 6, 9], [5, 9, 5, 8]] {
            let tree = tree_of(&[wrong]);
            assert_eq!((tree.whole, tree.keys, tree.mappings), (false, None, 0), "{wrong:?}");
        }
        for second in [[9, 12, 0, 20], [1, 2, 0, 20], [5, 9, 0, 20]] {
            let tree = tree_of(&[[5, 9, 5, 9], second]);
            assert_eq!((tree.whole, tree.keys, tree.mappings), (false, Some((5, 9)), 10), "{second:?}");
        }
        let mut with_empty = tree_of(&[[5, 9, 5, 9]]);
        with_empty.add(&Tree { whole: true, ..Tree::default() }, 10, 20);
        assert_eq!((with_empty.whole, with_empty.keys), (true, Some((5, 9))));
    }

    #[test]
    fn the_latest_time_and_its_mappings_count() {
        let of = |time, newest| Tree { time, newest, ..child(1, 2) };
        let mut tree = Tree { whole: true, ..Tree::default() };
        for (time, newest, expected) in [(3, 4, (3, 4)), (5, 1, (5, 1)), (5, 2, (5, 3)), (4, 9, (5, 3))] {
            tree.add_below(&of(time, newest));
            assert_eq!((tree.time, tree.newest), expected);
        }
        assert_eq!((tree.transaction_id, tree.whole), (2, true));
        tree.add_below(&Tree { whole: false, ..child(1, 2) });
        assert!(!tree.whole);
        tree.add_below(&child(1, 2));
        assert!(!tree.whole, "what is missing stays so");
    }

    /// The first numbers that SplitMix64 gives for the seed 0.
    #[test]
    fn ids_are_scrambled_as_by_split_mix() {
        let gamma = 0x9E37_79B9_7F4A_7C15_u64;
        let numbers = [0, gamma, gamma.wrapping_mul(2)].map(scramble);
        assert_eq!(numbers, [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
    }

    #[test]
    fn a_child_of_a_tree_is_bounded_by_the_next_and_a_devices_tree_is_not() {
        let visit = |child_role| {
            let tree = Tree { whole: true, ..Tree::default() };
            Visit { block: 1, role: Role::Devices, child_role, tree, pending: vec![(10, 3), (5, 2)] }
        };
        let mut roots = visit(Role::Devices);
        roots.take(Some(&child(5, 9)));
        roots.take(Some(&child(10, u64::MAX)));
        assert_eq!((roots.tree.whole, roots.tree.keys, roots.tree.devices), (true, Some((5, u64::MAX)), 2));
        let mut roots = visit(Role::Devices);
        roots.take(Some(&child(5, 10)));
        assert!(!roots.tree.whole, "10 is the next child's");
        let mut leaf = visit(Role::Mappings);
        leaf.take(Some(&child(0, 99)));
        assert_eq!((leaf.tree.whole, leaf.tree.keys, leaf.tree.devices, leaf.tree.mappings), (true, None, 0, 10));
        leaf.take(None);
        assert!(!leaf.tree.whole);
    }

    #[test]
    fn a_leaf_of_mappings_is_a_whole_tree_of_nothing_else() {
        let made = Made::new(&[leaf(7, 5, 9), node(8, What::Leaf { like_roots: false })]);
        let forest = made.forest(&[]);
        let tree = forest.tree(7, Role::Mappings).unwrap();
        assert_eq!((tree.whole, tree.keys, tree.mappings, tree.time, tree.newest), (true, Some((5, 9)), 2, 3, 1));
        assert!(matches!(forest.look(7, Role::Devices), Look::Missing), "it holds no roots");
        assert!(matches!(forest.look(8, Role::Devices), Look::Unvisited), "it may be a tree without devices");
        assert!(matches!(forest.look(7, Role::Details), Look::Missing));
        assert!(forest.tree(9, Role::Mappings).is_none(), "there is no node");
        let walked = |block, role| {
            let pieces = block_on_ready(forest.walk(block, role));
            pieces.iter().map(|piece| (piece.block, piece.missing)).collect::<Vec<_>>()
        };
        assert_eq!(walked(7, Role::Mappings), [(7, false)]);
        assert_eq!(walked(7, Role::Devices), [(7, true)]);
        assert_eq!(walked(8, Role::Mappings), [], "it is empty");
    }

    #[test]
    fn a_walk_takes_only_leaves_of_its_kind() {
        let filled = |block, what| Found { keys: Some((1, 2)), entries: 2, ..node(block, what) };
        let made = Made::new(&[filled(7, What::Leaf { like_roots: true }), filled(8, What::Details)]);
        let forest = made.forest(&[]);
        let is_taken = |block, role| !block_on_ready(forest.walk(block, role))[0].missing;
        let roles = [Role::Mappings, Role::Devices, Role::Details];
        assert_eq!(roles.map(|role| is_taken(7, role)), [true, true, false]);
        assert_eq!(roles.map(|role| is_taken(8, role)), [false, false, true]);
    }

    #[test]
    fn a_leaf_of_details_tells_of_its_devices_together() {
        let details = |mapped_blocks, transaction_id, creation_time, snapshotted_time| {
            DetailsRecord::from(Details { mapped_blocks, transaction_id, creation_time, snapshotted_time })
        };
        let made = Made::stored(&[leaf_of(7, &[(4, details(100, 8, 1, 6)), (9, details(20, 3, 5, 2))])]);
        let tree = block_on_ready(made.grown().survey(7, Role::Details)).unwrap();
        assert_eq!((tree.whole, tree.keys, tree.devices, tree.mappings), (true, Some((4, 9)), 2, 120));
        assert_eq!(tree.ids, scramble(4).wrapping_add(scramble(9)));
        assert_eq!((tree.time, tree.transaction_id), (6, 8), "the latest of all");
        let made = Made::stored(&[leaf_of(7, &[(4, details(1, 8, 7, 6))])]);
        assert_eq!(block_on_ready(made.grown().survey(7, Role::Details)).unwrap().time, 7);
    }

    /// Many nodes that are of two kinds only damage makes: what is known of them is bounded.
    #[test]
    fn a_node_that_nothing_more_can_be_known_of_counts_as_missing() {
        let nodes: Vec<Found> = (1..=300).map(|block| node(block, What::Internal)).collect();
        let made = Made::new(&nodes);
        let trees = |role| (1..=300).map(move |block| (block, role, Tree::default()));
        let devices: Vec<_> = trees(Role::Devices).chain(trees(Role::Mappings).take(256)).collect();
        let forest = made.forest(&devices);
        assert!(matches!(forest.look(300, Role::Devices), Look::Known(_)));
        assert!(matches!(forest.look(300, Role::Mappings), Look::Missing));
        let fewer = made.forest(&devices[..555]);
        assert!(matches!(fewer.look(300, Role::Mappings), Look::Unvisited));
    }
}
