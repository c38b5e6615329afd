//! What goes where nodes are missing: nodes that lost their parent, and leaves of the same device in earlier states.
//!
//! A leaf does not say whose it is, and free blocks are full of leaves that were replaced long ago. So a node without a parent
//! is taken if the metadata space map counts it as in use, and its place can be no other; without a space map only as far as
//! the device lacks that many mappings. Leaves of earlier states come from trees that name the device. What is taken
//! in is compared with all that was there: an entry whose data block is mapped elsewhere by now is stale and left out.

use super::super::trees::Packed;
use super::forest::{Forest, Piece, Role, Tree};
use super::salvage::{Device, Dropped, Salvage};
use super::scan::TooMany;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::Cell;
use core::cmp::Reverse;
use hashbrown::HashMap;
use pdata::TransactionManager;
use pdata::block_manager::{Batch, BlockManager};
use pdata::btree::{NODE, Node};
use smallvec::SmallVec;

/// Places that are filled; what is missing in others stays so.
const HOLES_MAX: usize = 4096;

/// Leaves that are taken in.
const LEAVES_MAX: usize = 16384;

/// Earlier states that are searched for a device.
const EARLIER_MAX: usize = 8;

/// Leaves whose entries are compared with all others in one pass.
const LEAVES_A_PASS: usize = 512;

/// Memory for a node without a parent: [`Orphan`], and what puts them in order.
const ORPHAN_BYTES: usize = size_of::<Orphan>() + 12;

/// Leaves that are read together.
const LEAVES_AT_ONCE: usize = 256;

/// A place where nothing is, which several devices may share.
pub struct Hole {
    pub piece: Piece,
    /// One of the devices.
    device: usize,
    /// Mappings that this device lacks, if that is known.
    lacking: Option<u64>,
    /// What was put there, by first key: last key and leaf.
    leaves: BTreeMap<u64, (u64, u64)>,
}

/// A node without a parent. There may be many.
struct Orphan {
    first: u64,
    block: u64,
    /// References, as the space map has them.
    count: Option<u32>,
    /// Holes that it would fit.
    places: Cell<u8>,
}

impl Orphan {
    fn tree(&self, forest: &Forest<'_>) -> Tree {
        forest.tree(self.block, Role::Mappings).unwrap_or_default()
    }
}

impl Hole {
    pub fn new(piece: Piece, device: usize, lacking: Option<u64>) -> Hole {
        Hole { piece, device, lacking, leaves: BTreeMap::new() }
    }

    fn has_room(&self, first: u64, last: u64) -> bool {
        let before = self.leaves.range(..=last).next_back();
        before.is_none_or(|(_, (before_last, _))| *before_last < first)
    }

    fn put(&mut self, forest: &Forest<'_>, block: u64) {
        let Some((first, last)) = forest.scan.get(block).and_then(|found| found.keys) else { return };
        if self.piece.first <= first && last <= self.piece.last && self.has_room(first, last) {
            self.leaves.insert(first, (last, block));
        }
    }
}

/// Fills the holes of a salvage as far as can be, with so much memory.
pub async fn fill(
    salvage: &mut Salvage,
    forest: &mut Forest<'_>,
    space: Option<&TransactionManager>,
    memory_bytes: usize,
) -> Result<(), TooMany> {
    let mut holes = salvage.holes(forest).await;
    holes.truncate(HOLES_MAX);
    if holes.is_empty() {
        return Ok(());
    }
    let orphans = orphans(forest, space, memory_bytes / ORPHAN_BYTES).await?;
    match_roots(salvage, forest, &mut holes, &orphans);
    take_orphans(forest, &mut holes, &orphans).await;
    take_earlier(salvage, forest, &mut holes).await;
    let mut left = LEAVES_MAX;
    let mut taken = Vec::new();
    for hole in &holes {
        let leaves: Vec<u64> = hole.leaves.values().map(|(_, leaf)| *leaf).take(left).collect();
        left = left.saturating_sub(leaves.len());
        taken.extend_from_slice(&leaves);
        salvage.fills.insert((hole.piece.block, hole.piece.first), leaves);
    }
    taken.sort_unstable();
    taken.dedup();
    let mut kept = salvage.leaves_kept(forest).await;
    taken.retain(|leaf| kept.binary_search(leaf).is_err());
    for part in taken.chunks(LEAVES_A_PASS) {
        leave_out_stale(&mut salvage.dropped, forest.blocks, part, &kept).await;
        kept.extend_from_slice(part);
    }
    Ok(())
}

/// The nodes without a parent that may be in use, by first key.
async fn orphans(
    forest: &mut Forest<'_>,
    space: Option<&TransactionManager>,
    most: usize,
) -> Result<Vec<Orphan>, TooMany> {
    let mut nodes = 0usize;
    for block in forest.orphans() {
        nodes = nodes.saturating_add(usize::from(count(space, block).await != Some(0)));
    }
    if nodes > most {
        return Err(TooMany { nodes: nodes as u64 });
    }
    // Exactly so many, for a vector that grows is in memory twice.
    let mut orphans = Vec::with_capacity(nodes);
    for block in forest.orphans() {
        let count = count(space, block).await;
        if count == Some(0) {
            continue;
        }
        let Some(tree) = forest.survey(block, Role::Mappings).await else { continue };
        let Some((first, _)) = tree.keys else { continue };
        orphans.push(Orphan { first, block, count, places: Cell::new(0) });
    }
    orphans.sort_unstable_by_key(|orphan| orphan.first);
    Ok(orphans)
}

/// References to a block, if the space map tells.
async fn count(space: Option<&TransactionManager>, block: u64) -> Option<u32> {
    space?.count(block).await.ok()
}

/// Gives a device whose root is lost the one whole tree that has exactly its number of mappings. Several devices have it
/// together if the space map counts as many references.
fn match_roots(salvage: &mut Salvage, forest: &Forest<'_>, holes: &mut Vec<Hole>, orphans: &[Orphan]) {
    let mut trees = HashMap::<u64, (u32, &Orphan)>::new();
    let trees_of_orphans = orphans.iter().map(|orphan| (orphan, orphan.tree(forest)));
    for (orphan, tree) in trees_of_orphans.filter(|(_, tree)| tree.whole) {
        let (times, _) = trees.entry(tree.mappings).or_insert((0, orphan));
        *times = times.saturating_add(1);
    }
    let mut wanted = HashMap::<u64, u32>::new();
    for hole in holes.iter().filter(|hole| hole.piece.is_root()) {
        let devices = wanted.entry(hole.lacking.unwrap_or(0)).or_default();
        *devices = devices.saturating_add(1);
    }
    holes.retain(|hole| {
        let lacking = hole.lacking.filter(|lacking| *lacking > 0 && hole.piece.is_root());
        let Some((lacking, (1, tree))) = lacking.and_then(|lacking| Some((lacking, trees.get(&lacking)?))) else {
            return true;
        };
        let devices = wanted.get(&lacking).copied();
        if devices != Some(1) && devices != tree.count {
            return true;
        }
        salvage.adopt(&hole.piece, tree.block);
        false
    });
}

/// Puts nodes without a parent where only they can belong.
async fn take_orphans(forest: &Forest<'_>, holes: &mut [Hole], orphans: &[Orphan]) {
    for hole in holes.iter() {
        within(forest, orphans, &hole.piece)
            .for_each(|orphan| orphan.places.set(orphan.places.get().saturating_add(1)));
    }
    for hole in holes {
        let mut fitting: Vec<&Orphan> =
            within(forest, orphans, &hole.piece).filter(|orphan| orphan.places.get() == 1).collect();
        fitting.sort_by_key(|orphan| {
            let tree = orphan.tree(forest);
            (orphan.count.is_none(), Reverse((tree.time, tree.mappings)))
        });
        let mut lacking = hole.lacking;
        for orphan in fitting {
            let Tree { keys: Some((first, last)), mappings, .. } = orphan.tree(forest) else { continue };
            let fits = lacking.is_some_and(|lacking| mappings <= lacking);
            if !(fits || orphan.count.is_some()) || !hole.has_room(first, last) {
                continue;
            }
            lacking = lacking.map(|lacking| lacking.saturating_sub(mappings));
            for piece in forest.walk(orphan.block, Role::Mappings).await.iter().filter(|piece| !piece.missing) {
                hole.put(forest, piece.block);
            }
        }
    }
}

/// The orphans, sorted by their first keys, that can be in a place.
fn within<'o>(forest: &Forest<'_>, orphans: &'o [Orphan], piece: &Piece) -> impl Iterator<Item = &'o Orphan> {
    let (first, last) = (piece.first, piece.last);
    let ends = move |orphan: &&Orphan| orphan.tree(forest).keys.is_some_and(|(_, orphan_last)| orphan_last <= last);
    let begin = orphans.partition_point(|orphan| orphan.first < first);
    let from = orphans.get(begin..).unwrap_or_default().iter();
    from.take_while(move |orphan| orphan.first <= last).filter(ends)
}

/// Puts leaves where they are in earlier states of the same device, the newest first.
async fn take_earlier(salvage: &Salvage, forest: &mut Forest<'_>, holes: &mut [Hole]) {
    let mut earlier = Vec::new();
    for (block, role) in forest.roots() {
        if role == Role::Devices
            && salvage.state.mapping_root != Some(block)
            && let Some(tree) = forest.survey(block, role).await
        {
            earlier.push(((tree.time, tree.mappings), block));
            earlier.sort_by_key(|(rank, _)| Reverse(*rank));
            earlier.truncate(EARLIER_MAX);
        }
    }
    for (_, block) in earlier {
        let roots: HashMap<u64, u64> = super::salvage::roots(forest, block).await.into_iter().collect();
        // Holes of one device follow each other.
        let mut walked: Option<(u64, Vec<Piece>)> = None;
        for hole in holes.iter_mut() {
            let Some(device) = salvage.devices.get(hole.device) else { continue };
            let Some(root) = roots.get(&u64::from(device.id.get())).copied() else { continue };
            if walked.as_ref().is_none_or(|(of, _)| *of != root) {
                walked = Some((root, forest.walk(root, Role::Mappings).await));
            }
            let pieces = walked.as_ref().map(|(_, pieces)| pieces.as_slice()).unwrap_or_default();
            let last = hole.piece.last;
            let begin = pieces.partition_point(|piece| piece.last < hole.piece.first);
            for piece in pieces.iter().skip(begin).take_while(|piece| piece.first <= last) {
                if !piece.missing {
                    hole.put(forest, piece.block);
                }
            }
        }
    }
}

/// Finds the entries of `taken` whose data blocks other leaves map to another place or time.
async fn leave_out_stale(dropped: &mut Dropped, blocks: &BlockManager, taken: &[u64], kept: &[u64]) {
    let mut owners = HashMap::<u64, Owner>::new();
    each_mapping(blocks, taken, |leaf, key, mapping| {
        let new = Owner { key, time: mapping.time(), leaves: SmallVec::new() };
        let owner = owners.entry(mapping.block().0).or_insert(new);
        if (owner.key, owner.time) == (key, mapping.time()) {
            owner.leaves.push(leaf);
        } else {
            dropped.entry(leaf).or_default().insert(key);
        }
    })
    .await;
    each_mapping(blocks, kept, |leaf, key, mapping| {
        let left_out = dropped.get(&leaf).is_some_and(|keys| keys.contains(&key));
        let Some(owner) = owners.get(&mapping.block().0).filter(|_| !left_out) else { return };
        if (owner.key, owner.time) != (key, mapping.time()) {
            for stale in &owner.leaves {
                dropped.entry(*stale).or_default().insert(owner.key);
            }
        }
    })
    .await;
}

/// What a leaf that was taken says of a data block.
struct Owner {
    key: u64,
    time: u32,
    leaves: SmallVec<[u64; 1]>,
}

async fn each_mapping(blocks: &BlockManager, leaves: &[u64], mut see: impl FnMut(u64, u64, Packed)) {
    let mut batch = Batch::default();
    for part in leaves.chunks(LEAVES_AT_ONCE) {
        blocks.read_batch(part, &NODE, &mut batch).await;
        for (index, leaf) in part.iter().enumerate() {
            let node = batch.get(index).and_then(|block| Node::parse(block, *leaf));
            let Ok(node) = node else { continue };
            for (key, mapping) in node.keys().zip(node.values::<Packed>().unwrap_or_default()) {
                see(*leaf, key, *mapping);
            }
        }
    }
}

impl Device {
    /// Mappings that were not found, if it is known how many there were.
    pub fn lacking(&self, mapped: u64) -> Option<u64> {
        self.details.map(|details| details.mapped_blocks.saturating_sub(mapped))
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::{Made, internal, leaf, leaf_of, node};
    use super::super::scan::{Found, What};
    use super::*;
    use crate::metadata::DataBlock;
    use alloc::vec;
    use platform::task::block_on_ready;

    fn hole(first: u64, last: u64, device: usize, lacking: Option<u64>) -> Hole {
        Hole::new(Piece { block: 40 + device as u64, first, last, missing: true }, device, lacking)
    }

    fn orphan(block: u64, first: u64, count: Option<u32>) -> Orphan {
        Orphan { first, block, count, places: Cell::new(0) }
    }

    fn filled(hole: &Hole) -> Vec<u64> {
        hole.leaves.values().map(|(_, leaf)| *leaf).collect()
    }

    #[test]
    fn leaves_are_put_where_they_have_room() {
        let ends = [(5, 9), (10, 12), (9, 10), (12, 15), (1, 5), (3, 4), (19, 21)];
        let leaves: Vec<Found> = (1..).zip(ends).map(|(block, (first, last))| leaf(block, first, last)).collect();
        let made = Made::new(&leaves);
        let forest = made.forest(&[]);
        let put = |blocks: &[u64]| {
            let mut hole = hole(3, 20, 0, None);
            blocks.iter().for_each(|block| hole.put(&forest, *block));
            filled(&hole)
        };
        assert_eq!(put(&[1, 2]), [1, 2]);
        assert_eq!(put(&[2, 1]), [1, 2]);
        assert_eq!(put(&[1, 3]), [1], "9 is in both");
        assert_eq!(put(&[2, 4]), [2], "12 is in both");
        assert_eq!(put(&[5]), [0; 0], "it begins before the place");
        assert_eq!(put(&[7]), [0; 0], "it ends behind the place");
        assert_eq!(put(&[6, 1, 2]), [6, 1, 2]);
        assert_eq!(put(&[8]), [0; 0], "there is no such node");
    }

    /// Of which devices the root is missing, by their mappings; and trees of so many mappings each, with their references.
    fn adopted(devices: &[u64], trees: &[(u64, u32)]) -> Vec<u32> {
        let nodes: Vec<Found> = (1..=trees.len() as u64).map(|block| node(block, What::Internal)).collect();
        let made = Made::new(&nodes);
        let known = |(block, (mappings, _)): (u64, &(u64, u32))| {
            (block, Role::Mappings, Tree { whole: true, mappings: *mappings, ..Tree::default() })
        };
        let forest = made.forest(&(1..).zip(trees).map(known).collect::<Vec<_>>());
        let orphans: Vec<Orphan> = (1..).zip(trees).map(|(block, (_, count))| orphan(block, 0, Some(*count))).collect();
        let device = |(id, mappings): (u32, &u64)| Device::made(id, 40 + u64::from(id), *mappings);
        let mut salvage = Salvage::made((0..).zip(devices).map(device).collect());
        let hole = |(index, mappings): (usize, &u64)| hole(0, u64::MAX, index, Some(*mappings));
        let mut holes: Vec<Hole> = devices.iter().enumerate().map(hole).collect();
        match_roots(&mut salvage, &forest, &mut holes, &orphans);
        assert_eq!(holes.len() + salvage.adopted.len(), devices.len());
        let mut adopted: Vec<u32> = salvage.adopted.iter().map(|id| id.get()).collect();
        adopted.sort_unstable();
        adopted
    }

    #[test]
    fn a_device_takes_the_one_whole_tree_that_has_its_number_of_mappings() {
        assert_eq!(adopted(&[9, 8], &[(9, 1), (7, 1)]), [0]);
        assert_eq!(adopted(&[9, 9], &[(9, 1)]), [0; 0], "whose it is nobody knows");
        assert_eq!(adopted(&[9, 9], &[(9, 2)]), [0, 1], "it is both's");
        assert_eq!(adopted(&[9], &[(9, 2)]), [0], "what else had it is gone");
        assert_eq!(adopted(&[9], &[(9, 1), (9, 1)]), [0; 0], "there are two");
        assert_eq!(adopted(&[0], &[(0, 1)]), [0; 0], "nothing is lost");
    }

    #[test]
    fn a_part_of_a_device_or_one_of_unknown_size_takes_no_tree() {
        let made = Made::new(&[node(1, What::Internal)]);
        let tree = Tree { whole: true, mappings: 9, ..Tree::default() };
        for (first, lacking, whole) in [(1, Some(9), true), (0, None, true), (0, Some(9), false)] {
            let forest = made.forest(&[(1, Role::Mappings, Tree { whole, ..tree })]);
            let mut salvage = Salvage::made(vec![Device::made(0, 40, 9)]);
            let mut holes = vec![hole(first, u64::MAX, 0, lacking)];
            match_roots(&mut salvage, &forest, &mut holes, &[orphan(1, 0, Some(1))]);
            assert_eq!((holes.len(), salvage.adopted.len()), (1, 0));
        }
    }

    /// Fills one place from 10 to 99 with leaves of two mappings: first key, last key, references.
    fn taken(lacking: Option<u64>, leaves: &[(u64, u64, Option<u32>)]) -> Vec<u64> {
        let nodes = (1..).zip(leaves).map(|(block, (first, last, _))| leaf(block, *first, *last));
        let made = Made::new(&nodes.collect::<Vec<_>>());
        let forest = made.forest(&[]);
        let mut orphans: Vec<Orphan> =
            (1..).zip(leaves).map(|(block, (first, _, count))| orphan(block, *first, *count)).collect();
        orphans.sort_by_key(|orphan| orphan.first);
        let mut holes = [hole(10, 99, 0, lacking)];
        block_on_ready(take_orphans(&forest, &mut holes, &orphans));
        filled(&holes[0])
    }

    #[test]
    fn a_node_without_parent_goes_where_it_fits() {
        let used = Some(1);
        assert_eq!(taken(Some(4), &[(10, 20, used), (21, 99, used)]), [1, 2], "up to both ends");
        assert_eq!(taken(Some(4), &[(9, 20, used), (90, 100, used), (100, 110, used)]), [0; 0]);
        assert_eq!(taken(Some(0), &[(10, 20, used)]), [1], "the space map knows better than the details");
        assert_eq!(taken(None, &[(10, 20, None)]), [0; 0], "nothing says that it is in use");
        assert_eq!(taken(Some(2), &[(10, 20, None)]), [1], "as many as are missing");
        assert_eq!(taken(Some(1), &[(10, 20, None)]), [0; 0], "more than are missing");
        assert_eq!(taken(Some(3), &[(10, 20, None), (21, 30, None)]).len(), 1, "one of the two");
        assert_eq!(taken(Some(4), &[(10, 20, None), (20, 30, used)]), [2], "what is in use comes first");
    }

    #[test]
    fn a_node_that_fits_two_places_goes_nowhere() {
        let made = Made::new(&[leaf(1, 10, 20), leaf(2, 60, 70)]);
        let forest = made.forest(&[]);
        let mut holes = [hole(0, 99, 0, Some(9)), hole(0, 50, 1, Some(9))];
        block_on_ready(take_orphans(&forest, &mut holes, &[orphan(1, 10, Some(1)), orphan(2, 60, Some(1))]));
        assert_eq!((filled(&holes[0]), filled(&holes[1])), (vec![2], vec![]));
    }

    /// The earlier state of device 0: a leaf for key 9, one for key 10, and one for two more; and that of device 1.
    #[test]
    fn leaves_of_an_earlier_state_fill_a_place_from_its_first_key_on() {
        let mappings = |block: u64, keys: &[u64]| {
            let entries: Vec<_> = keys.iter().map(|key| (*key, Packed::new(DataBlock(*key), 1))).collect();
            leaf_of(block, &entries)
        };
        let (roots, tree) = (leaf_of(1, &[(0, 2_u64), (1, 6)]), internal(2, &[(9, 3), (10, 4), (11, 5)]));
        let leaves = [mappings(3, &[9]), mappings(4, &[10]), mappings(5, &[11, 12]), mappings(6, &[10, 11])];
        let made = Made::stored(&[&[roots, tree], leaves.as_slice()].concat());
        let mut forest = made.grown();
        let salvage = Salvage::made(vec![Device::made(0, 40, 4), Device::made(1, 41, 2)]);
        for (first, last, expected) in [(10, 99, &[4, 5][..]), (9, 12, &[3, 4, 5]), (10, 11, &[4]), (11, 12, &[5])] {
            let mut holes = [hole(first, last, 0, None)];
            block_on_ready(take_earlier(&salvage, &mut forest, &mut holes));
            assert_eq!(filled(&holes[0]), expected, "{first} to {last}");
        }
        let mut holes = [hole(0, 99, 0, None), hole(0, 99, 1, None)];
        block_on_ready(take_earlier(&salvage, &mut forest, &mut holes));
        assert_eq!((filled(&holes[0]), filled(&holes[1])), (vec![3, 4, 5], vec![6]), "each its own");
    }

    #[test]
    fn more_nodes_without_parent_than_memory_are_refused() {
        let made = Made::new(&[leaf(1, 10, 19), leaf(2, 20, 29), leaf(3, 30, 39)]);
        (1..=3).for_each(|block| made.scan.set_role(block, Role::Mappings));
        let filled_with = |orphans: usize| {
            let mut salvage = Salvage::made(vec![Device::made(0, 40, 6)]);
            let mut forest = made.forest(&[]);
            let memory_bytes = orphans * ORPHAN_BYTES;
            let filled = block_on_ready(fill(&mut salvage, &mut forest, None, memory_bytes));
            filled.map(|()| salvage.fills[&(40, 0)].clone()).map_err(|TooMany { nodes }| nodes)
        };
        assert_eq!(filled_with(2), Err(3));
        assert_eq!(filled_with(3), Ok(vec![1, 2, 3]));
        assert_eq!(filled_with(4), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn a_device_lacks_what_its_details_name_and_is_not_there() {
        let mut device = Device::made(1, 40, 9);
        assert_eq!([3, 9, 10].map(|mapped| device.lacking(mapped)), [Some(6), Some(0), Some(0)]);
        device.details = None;
        assert_eq!(device.lacking(3), None);
    }

    /// The bound that the documentation of [`super::super`] tells.
    #[test]
    fn a_node_without_a_parent_takes_no_more_memory_than_is_told() {
        assert_eq!(ORPHAN_BYTES, 44);
    }
}
