//! One state of the pool as it can be rebuilt: its devices and the leaves of each.

use super::super::Details;
use super::fill::Hole;
use super::forest::{Forest, Piece, Role};
use super::states::State;
use crate::control::DeviceId;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use hashbrown::{HashMap, HashSet};

/// Stands for the root of a device whose root is not known: no disk has such blocks.
const ROOTLESS: u64 = 1 << 40;

/// Entries that are left out: keys, by leaf.
pub type Dropped = HashMap<u64, HashSet<u64>>;

/// A thin device of the state.
pub struct Device {
    pub id: DeviceId,
    /// Root of its tree.
    root: u64,
    /// As the details tree has them, if it does.
    pub details: Option<Details>,
}

/// A state that is being rebuilt.
pub struct Salvage {
    pub state: State,
    pub devices: Vec<Device>,
    /// What is put where nothing was: by the missing block and its first key.
    pub fills: HashMap<(u64, u64), Vec<u64>>,
    /// Keys of entries that are left out, by leaf; never of a leaf that is in its own place.
    pub dropped: Dropped,
    /// Devices for which a tree was found that nothing led to.
    pub adopted: HashSet<DeviceId>,
    /// Parts of the tree of devices are missing.
    pub devices_missing: bool,
}

/// What is left of a device.
#[derive(Default)]
pub struct Remains {
    /// Its leaves in order.
    pub leaves: Vec<u64>,
    /// Mappings in them.
    pub mappings: u64,
    /// Of those, mappings in leaves that were filled in.
    pub filled: u64,
    /// Where there is nothing.
    pub holes: Vec<Piece>,
    /// The latest time.
    pub time: u32,
    /// Behind the last data block.
    pub data_end: u64,
}

impl Piece {
    /// The whole of a device's tree is missing.
    pub fn is_root(&self) -> bool {
        self.first == 0 && self.last == u64::MAX
    }
}

/// The devices of a mapping tree and their roots.
pub async fn roots(forest: &Forest<'_>, root: u64) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    for piece in forest.walk(root, Role::Devices).await.iter().filter(|piece| !piece.missing) {
        all.extend(forest.children(piece.block).await);
    }
    all
}

#[cfg(test)]
impl Device {
    /// With its tree at `root`, and so many mappings by its details.
    pub fn made(id: u32, root: u64, mapped_blocks: u64) -> Device {
        let details = Details { mapped_blocks, ..Details::default() };
        Device { id: DeviceId::new(id.into()).unwrap(), root, details: Some(details) }
    }
}

impl Salvage {
    /// Of these devices and nothing else.
    #[cfg(test)]
    pub fn made(devices: Vec<Device>) -> Salvage {
        let state = State { origin: super::states::Origin::Search, mapping_root: None, details_root: None };
        let (fills, dropped) = (HashMap::new(), Dropped::new());
        Salvage { state, devices, fills, dropped, adopted: HashSet::new(), devices_missing: false }
    }

    /// The devices that the trees of a state name.
    pub async fn open(forest: &Forest<'_>, state: State) -> Salvage {
        let mut devices: BTreeMap<u64, (Option<u64>, Option<Details>)> = BTreeMap::new();
        let mut devices_missing = state.mapping_root.is_none();
        if let Some(root) = state.mapping_root {
            let pieces = forest.walk(root, Role::Devices).await;
            devices_missing = pieces.iter().any(|piece| piece.missing);
            for (id, root) in roots(forest, root).await {
                devices.entry(id).or_default().0 = Some(root);
            }
        }
        if let Some(root) = state.details_root {
            for piece in forest.walk(root, Role::Details).await {
                if !piece.missing {
                    for (id, details) in forest.details(piece.block).await {
                        devices.entry(id).or_default().1 = Some(details);
                    }
                }
            }
        }
        let devices = devices.into_iter().filter_map(|(id, (root, details))| {
            // Nobody can have made a device with an id of more than 24 bits.
            let id = DeviceId::new(id)?;
            Some(Device { id, root: root.unwrap_or(ROOTLESS | u64::from(id.get())), details })
        });
        let devices = devices.collect();
        let (fills, dropped) = (HashMap::new(), Dropped::new());
        Salvage { state, devices, fills, dropped, adopted: HashSet::new(), devices_missing }
    }

    /// What is left of a device.
    pub async fn remains(&self, forest: &Forest<'_>, device: &Device) -> Remains {
        let mut remains = Remains::default();
        for piece in forest.walk(device.root, Role::Mappings).await {
            if !piece.missing {
                remains.add(self, forest, piece.block, false);
                continue;
            }
            let filled = self.fills.get(&(piece.block, piece.first)).map(Vec::as_slice).unwrap_or_default();
            for leaf in filled {
                // Another device that shares the place may have had less room for it.
                if forest.scan.get(*leaf).is_some_and(|found| found.fits(piece.first, piece.last)) {
                    remains.add(self, forest, *leaf, true);
                }
            }
            remains.holes.push(piece);
        }
        remains
    }

    /// The places where nothing is, each once.
    pub async fn holes(&self, forest: &Forest<'_>) -> Vec<Hole> {
        let (mut holes, mut seen) = (Vec::new(), HashSet::new());
        for (index, device) in self.devices.iter().enumerate() {
            let remains = self.remains(forest, device).await;
            let lacking = device.lacking(remains.mappings);
            for piece in remains.holes {
                if seen.insert((piece.block, piece.first)) {
                    holes.push(Hole::new(piece, index, lacking));
                }
            }
        }
        holes
    }

    /// A tree was found for all devices whose root is missing in this place.
    pub fn adopt(&mut self, place: &Piece, root: u64) {
        for device in self.devices.iter_mut().filter(|device| device.root == place.block) {
            device.root = root;
            self.adopted.insert(device.id);
        }
    }

    /// All leaves that are in their places, each once, by block.
    pub async fn leaves_kept(&self, forest: &Forest<'_>) -> Vec<u64> {
        for device in &self.devices {
            let pieces = forest.walk(device.root, Role::Mappings).await;
            pieces.iter().filter(|piece| !piece.missing).for_each(|piece| forest.scan.keep(piece.block));
        }
        forest.scan.take_kept().collect()
    }
}

impl Remains {
    fn add(&mut self, salvage: &Salvage, forest: &Forest<'_>, leaf: u64, filled: bool) {
        let Some(found) = forest.scan.get(leaf) else { return };
        let mut entries = u64::from(found.entries);
        if filled {
            let dropped = salvage.dropped.get(&leaf).map_or(0, HashSet::len);
            entries = entries.saturating_sub(dropped as u64);
            self.filled = self.filled.saturating_add(entries);
        }
        self.mappings = self.mappings.saturating_add(entries);
        self.time = self.time.max(found.time);
        self.data_end = self.data_end.max(found.data_end);
        self.leaves.push(leaf);
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::{Made, internal, leaf, leaf_of};
    use super::*;
    use crate::metadata::DataBlock;
    use crate::metadata::trees::Packed;
    use alloc::vec;
    use platform::task::block_on_ready;

    fn place(block: u64, first: u64, last: u64) -> Piece {
        Piece { block, first, last, missing: true }
    }

    #[test]
    fn a_root_has_all_keys_below_it() {
        assert!(place(1, 0, u64::MAX).is_root());
        assert!(!place(1, 1, u64::MAX).is_root() && !place(1, 0, 9).is_root() && !place(1, 1, 9).is_root());
    }

    #[test]
    fn a_tree_is_adopted_by_all_devices_whose_root_is_missing_there() {
        let made = Made::new(&[leaf(7, 5, 9)]);
        let forest = made.forest(&[]);
        let mut salvage = Salvage::made(vec![Device::made(1, 40, 2), Device::made(2, 40, 2), Device::made(3, 41, 2)]);
        salvage.adopt(&place(40, 0, u64::MAX), 7);
        let left = |salvage: &Salvage| {
            let remains = salvage.devices.iter().map(|device| block_on_ready(salvage.remains(&forest, device)));
            remains.map(|remains| (remains.mappings, remains.holes.len())).collect::<Vec<_>>()
        };
        assert_eq!(left(&salvage), [(2, 0), (2, 0), (0, 1)]);
        let adopted = |id| salvage.adopted.contains(&DeviceId::new(id).unwrap());
        assert!(adopted(1) && adopted(2) && !adopted(3));
    }

    #[test]
    fn what_fills_a_place_counts_but_for_what_is_left_out() {
        let made = Made::new(&[leaf(7, 5, 9), leaf(8, 20, 29)]);
        let forest = made.forest(&[]);
        let mut salvage = Salvage::made(vec![Device::made(1, 40, 4)]);
        salvage.fills.insert((40, 0), vec![7, 8]);
        salvage.dropped.entry(8).or_default().insert(20);
        let remains = block_on_ready(salvage.remains(&forest, &salvage.devices[0]));
        assert_eq!((remains.leaves, remains.mappings, remains.filled, remains.time), (vec![7, 8], 3, 3, 3));
        assert_eq!(block_on_ready(salvage.leaves_kept(&forest)), [0; 0], "none of them is in its own place");
    }

    /// Two devices share the missing block 40: one has keys up to 49 there, the other up to 19.
    #[test]
    fn a_leaf_fills_a_place_only_of_the_devices_that_have_room_for_it() {
        let mappings =
            |block: u64, keys: [u64; 2]| leaf_of(block, &keys.map(|key| (key, Packed::new(DataBlock(key), 1))));
        let trees = [internal(1, &[(0, 40), (50, 3)]), internal(2, &[(0, 40), (20, 4)])];
        let leaves = [mappings(3, [50, 59]), mappings(4, [20, 29]), mappings(5, [5, 19]), mappings(6, [25, 30])];
        let made = Made::stored(&[trees.as_slice(), &leaves].concat());
        let forest = made.forest(&[]);
        let mut salvage = Salvage::made(vec![Device::made(1, 1, 6), Device::made(2, 2, 4)]);
        salvage.fills.insert((40, 0), vec![5, 6]);
        let leaves = |device: usize| block_on_ready(salvage.remains(&forest, &salvage.devices[device])).leaves;
        assert_eq!((leaves(0), leaves(1)), (vec![5, 6, 3], vec![5, 4]));
    }
}
