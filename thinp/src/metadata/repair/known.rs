//! What is known of each tree, as compact as there are many.

use super::forest::{Role, Tree};
use super::scan::Scan;
use super::table::{Record, Table};
use hashbrown::HashMap;
use zerocopy::little_endian::{U32, U64};

/// Nodes that are looked at as the roots of trees of two kinds: only damage makes such.
const TWOFOLD_MAX: usize = 256;

/// The trees below all nodes that are more than leaves of mappings.
pub struct Known {
    trees: Table<Packed>,
    /// What such a node is besides.
    twofold: HashMap<(u64, Role), Tree>,
}

/// [`Tree`] without padding.
struct Packed {
    block: U32,
    role: Option<Role>,
    whole: bool,
    has_keys: bool,
    first: U64,
    last: U64,
    devices: U64,
    ids: U64,
    mappings: U64,
    time: U32,
    newest: U64,
    transaction_id: U64,
}

impl Record for Packed {
    fn block(&self) -> u64 {
        self.block.get().into()
    }
}

impl Packed {
    fn new(block: U32, role: Option<Role>, tree: &Tree) -> Packed {
        let (first, last) = tree.keys.unwrap_or_default();
        Packed {
            block,
            role,
            whole: tree.whole,
            has_keys: tree.keys.is_some(),
            first: first.into(),
            last: last.into(),
            devices: tree.devices.into(),
            ids: tree.ids.into(),
            mappings: tree.mappings.into(),
            time: tree.time.into(),
            newest: tree.newest.into(),
            transaction_id: tree.transaction_id.into(),
        }
    }

    fn tree(&self) -> Tree {
        Tree {
            whole: self.whole,
            keys: self.has_keys.then(|| (self.first.get(), self.last.get())),
            devices: self.devices.get(),
            ids: self.ids.get(),
            mappings: self.mappings.get(),
            time: self.time.get(),
            newest: self.newest.get(),
            transaction_id: self.transaction_id.get(),
        }
    }
}

impl Known {
    /// Nothing yet, of the nodes of a scan.
    pub fn of(scan: &Scan) -> Known {
        let mut trees = Table::default();
        for found in scan.nodes().filter(|found| !found.is_plain_leaf()) {
            // No metadata disk has more blocks.
            let Ok(block) = u32::try_from(found.block) else { continue };
            trees.push(Packed::new(block.into(), None, &Tree::default()));
        }
        Known { trees, twofold: HashMap::new() }
    }

    /// What it takes for so many nodes.
    pub fn bytes(nodes: usize) -> usize {
        Table::<Packed>::bytes(nodes).saturating_add(TWOFOLD_MAX.saturating_mul(4 * size_of::<Tree>()))
    }

    /// What is known of the tree at `block`.
    pub fn get(&self, block: u64, role: Role) -> Option<Tree> {
        let packed = self.trees.get(block)?;
        if packed.role == Some(role) { Some(packed.tree()) } else { self.twofold.get(&(block, role)).copied() }
    }

    /// Nothing more can be known of the tree at `block`: it is of another kind, and so are too many.
    pub fn is_full(&self, block: u64) -> bool {
        let free = self.trees.get(block).is_some_and(|packed| packed.role.is_none());
        !free && self.twofold.len() >= TWOFOLD_MAX
    }

    /// Notes what is known.
    pub fn set(&mut self, block: u64, role: Role, tree: &Tree) {
        let Some(packed) = self.trees.get_mut(block) else { return };
        if packed.role.is_none_or(|known| known == role) {
            *packed = Packed::new(packed.block, Some(role), tree);
        } else {
            self.twofold.insert((block, role), *tree);
        }
    }
}
