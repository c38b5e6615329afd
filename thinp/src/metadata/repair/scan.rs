//! The first look at a damaged disk: every block is read once, and what is whole is noted.
//!
//! A block counts as whole if its checksum is right, it carries its own number and its contents keep to the rules of its kind.
//! Nothing is believed about what leads where.

use super::super::superblock::{self, SUPERBLOCK, Superblock};
use super::super::trees::{DetailsRecord, Packed};
use super::forest::Role;
use super::table::{Record, Table};
use alloc::vec::Vec;
use core::cell::Cell;
use pdata::block::Block;
use pdata::block_manager::{Batch, BlockManager};
use pdata::btree::{NODE, Node};
use zerocopy::little_endian::{U32, U64};

/// Blocks that are read together.
const BLOCKS_AT_ONCE: u64 = 256;

/// Copies of superblocks that are kept, of those in the lowest blocks.
const COPIES_MAX: usize = 256;

/// What a whole node is, as far as it tells by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Above other nodes.
    Internal,
    /// Mappings, or roots of devices' trees.
    Leaf {
        /// It may be roots: all values are block numbers of this disk.
        like_roots: bool,
    },
    /// Details of devices.
    Details,
}

/// A whole node.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub block: u64,
    /// The first key and the last, if it has any.
    pub keys: Option<(u64, u64)>,
    /// Of mappings: behind the last data block.
    pub data_end: u64,
    /// Of mappings: the latest.
    pub time: u32,
    /// Of mappings: how many are of that time.
    pub newest: u8,
    pub entries: u8,
    pub what: What,
}

/// What leads to a node, where its keys allow it to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Under {
    Nothing,
    /// Only nodes below which something is missing.
    Damaged,
    Whole,
}

/// [`Found`] as it is kept, without padding, for there may be millions; and what is found out about it later.
struct Noted {
    block: U32,
    first: U64,
    last: U64,
    data_end: U64,
    time: U32,
    newest: u8,
    entries: u8,
    what: What,
    role: Cell<Option<Role>>,
    under: Cell<Under>,
    kept: Cell<bool>,
}

impl Record for Noted {
    fn block(&self) -> u64 {
        self.block.get().into()
    }
}

impl Noted {
    fn found(&self) -> Found {
        Found {
            block: self.block(),
            keys: (self.entries > 0).then(|| (self.first.get(), self.last.get())),
            data_end: self.data_end.get(),
            time: self.time.get(),
            newest: self.newest,
            entries: self.entries,
            what: self.what,
        }
    }
}

/// More nodes than there is memory for.
pub struct TooMany {
    /// So many were found, and that was not all of the disk.
    pub nodes: u64,
}

/// All that was found, and what could not be read.
#[derive(Default)]
pub struct Scan {
    nodes: Table<Noted>,
    /// How many nodes there are.
    pub count: usize,
    /// How many of them are more than leaves of mappings.
    pub inner: usize,
    /// Superblocks in other places than block 0: metadata snapshots, held or long released.
    pub copies: Vec<(u64, Superblock)>,
    /// Blocks that the disk failed to read.
    pub unreadable: u64,
    /// Leaves left out because they have mappings beyond the data disk: what wrote those cannot be believed.
    pub beyond: u64,
}

impl Scan {
    /// Reads the whole disk, of a pool with so many data blocks. Nothing comes of it if that has more nodes than `fits`
    /// allows.
    pub async fn run(
        blocks: &BlockManager,
        nr_blocks: u64,
        data_blocks: u64,
        fits: impl Fn(&Scan) -> bool,
    ) -> Result<Scan, TooMany> {
        let mut scan = Scan::default();
        let mut batch = Batch::default();
        let mut begin = 0;
        while begin < nr_blocks {
            let end = nr_blocks.min(begin.saturating_add(BLOCKS_AT_ONCE));
            let numbers: Vec<u64> = (begin..end).collect();
            blocks.read_batch_raw(&numbers, &mut batch).await;
            for (index, number) in numbers.into_iter().enumerate() {
                match batch.get(index) {
                    Ok(block) => scan.look(number, block, nr_blocks, data_blocks),
                    // One bad sector fails the request for all of its neighbours.
                    Err(_) => match blocks.read_raw(number).await {
                        Ok(block) => scan.look(number, &block, nr_blocks, data_blocks),
                        Err(_) => scan.unreadable = scan.unreadable.saturating_add(1),
                    },
                }
            }
            if !fits(&scan) {
                return Err(TooMany { nodes: scan.count as u64 });
            }
            begin = end;
        }
        Ok(scan)
    }

    fn look(&mut self, number: u64, block: &Block, nr_blocks: u64, data_blocks: u64) {
        if NODE.verify(block, number).is_ok() {
            let found = Node::parse(block, number).ok().and_then(|node| classify(&node, nr_blocks));
            match found {
                Some(found) if found.data_end > data_blocks && !found.like_roots() => {
                    self.beyond = self.beyond.saturating_add(1);
                }
                Some(found) => self.note(&found),
                None => {}
            }
        } else if number != SUPERBLOCK
            && self.copies.len() < COPIES_MAX
            && superblock::KIND.verify(block, number).is_ok()
            && let Ok(copy) = Superblock::of_snapshot(block)
        {
            self.copies.push((number, copy));
        }
    }

    pub(super) fn note(&mut self, found: &Found) {
        let (first, last) = found.keys.unwrap_or_default();
        let Ok(block) = u32::try_from(found.block) else { return };
        self.count = self.count.saturating_add(1);
        self.inner = self.inner.saturating_add(usize::from(!found.is_plain_leaf()));
        self.nodes.push(Noted {
            block: block.into(),
            first: first.into(),
            last: last.into(),
            data_end: found.data_end.into(),
            time: found.time.into(),
            newest: found.newest,
            entries: found.entries,
            what: found.what,
            role: Cell::new(None),
            under: Cell::new(Under::Nothing),
            kept: Cell::new(false),
        });
    }

    /// What the records of so many nodes take.
    pub fn bytes(nodes: usize) -> usize {
        Table::<Noted>::bytes(nodes)
    }

    /// The whole node in a block.
    pub fn get(&self, block: u64) -> Option<Found> {
        self.nodes.get(block).map(Noted::found)
    }

    /// All whole nodes, by block.
    pub fn nodes(&self) -> impl Iterator<Item = Found> {
        self.nodes.iter().map(Noted::found)
    }

    /// Something leads to a node.
    pub fn lead_to(&self, block: u64, under: Under) {
        if let Some(noted) = self.nodes.get(block) {
            noted.under.set(noted.under.get().max(under));
        }
    }

    /// A node's tree holds this.
    pub fn set_role(&self, block: u64, role: Role) {
        if let Some(noted) = self.nodes.get(block) {
            noted.role.set(Some(role));
        }
    }

    /// A leaf is in its place in the state that is rebuilt.
    pub fn keep(&self, block: u64) {
        if let Some(noted) = self.nodes.get(block) {
            noted.kept.set(true);
        }
    }

    /// The leaves kept since the last time, by block.
    pub fn take_kept(&self) -> impl Iterator<Item = u64> {
        self.nodes.iter().filter(|noted| noted.kept.take()).map(Noted::block)
    }

    /// The nodes whose role is known, and what leads to them, by block.
    pub fn roles(&self) -> impl Iterator<Item = (u64, Role, Under)> {
        self.nodes.iter().filter_map(|noted| Some((noted.block(), noted.role.get()?, noted.under.get())))
    }
}

impl Found {
    /// It holds mappings, and can hold nothing else.
    pub fn is_plain_leaf(&self) -> bool {
        self.what == What::Leaf { like_roots: false } && self.entries > 0
    }

    /// It may hold roots of devices' trees.
    pub fn like_roots(&self) -> bool {
        self.what == What::Leaf { like_roots: true }
    }

    /// Its keys lie between these, both included.
    pub fn fits(&self, first: u64, last: u64) -> bool {
        self.keys.is_none_or(|(own_first, own_last)| first <= own_first && own_last <= last)
    }
}

/// What a node is; nothing if it belongs to a space map.
fn classify(node: &Node<'_>, nr_blocks: u64) -> Option<Found> {
    let keys = node.key(0).zip(node.keys().next_back());
    let entries = u8::try_from(node.len()).ok()?;
    let found = |what| Found { block: node.number(), keys, data_end: 0, time: 0, newest: 0, entries, what };
    if node.is_internal() {
        return Some(found(What::Internal));
    }
    if node.values::<DetailsRecord>().is_ok() {
        return Some(found(What::Details));
    }
    let mappings = node.values::<Packed>().ok()?;
    let roots = node.values::<U64>().ok()?;
    let like_roots = !roots.is_empty() && roots.iter().all(|root| (1..nr_blocks).contains(&root.get()));
    let time = mappings.iter().map(|mapping| mapping.time()).max().unwrap_or(0);
    let newest = mappings.iter().filter(|mapping| mapping.time() == time).count();
    Some(Found {
        data_end: mappings.iter().map(|mapping| mapping.block().0.saturating_add(1)).max().unwrap_or(0),
        time,
        newest: u8::try_from(newest).unwrap_or(u8::MAX),
        ..found(What::Leaf { like_roots })
    })
}

#[cfg(test)]
mod tests {
    use super::super::forest::Tree;
    use super::super::known::Known;
    use super::super::made::{DATA_BLOCKS, DISK_BLOCKS, Made, leaf_of};
    use super::*;
    use crate::metadata::DataBlock;

    /// The bound that the documentation of [`super::super`] tells.
    #[test]
    fn a_node_takes_no_more_memory_than_is_told() {
        assert_eq!((Scan::bytes(1024), Scan::bytes(1025)), (1024 * 38, 2 * 1024 * 38));
        assert_eq!(Known::bytes(1024) - Known::bytes(0), 1024 * 67);
        // A table of 256 that grows has up to twice that, beside the half that it had.
        assert_eq!(Known::bytes(0), 4 * 256 * size_of::<Tree>());
    }

    #[test]
    fn a_node_is_of_no_third_kind_when_too_many_are_of_two() {
        let scan = scan_of(&[What::Internal; 259]);
        let mut known = Known::of(&scan);
        for block in 7..7 + 255 {
            known.set(block, Role::Devices, &Tree::default());
            known.set(block, Role::Mappings, &Tree::default());
        }
        assert!(!known.is_full(7), "one more has room");
        known.set(7 + 255, Role::Devices, &Tree::default());
        known.set(7 + 255, Role::Mappings, &Tree::default());
        assert!(known.is_full(7));
        assert!(!known.is_full(7 + 256), "nothing is known of it: it has a place of its own");
    }

    #[test]
    fn an_empty_node_has_no_keys_and_may_be_anything() {
        let (mappings, roots) = (What::Leaf { like_roots: false }, What::Leaf { like_roots: true });
        let scan = scan_of(&[mappings, roots, What::Details, What::Internal]);
        let found = |block| scan.get(block).unwrap();
        assert_eq!([7, 8, 9, 10].map(|block| found(block).is_plain_leaf()), [true, false, false, false]);
        assert_eq!([7, 8, 9, 10].map(|block| found(block).like_roots()), [false, true, false, false]);
        let mut scan = Scan::default();
        scan.note(&super::super::made::node(7, mappings));
        let empty = scan.get(7).unwrap();
        assert_eq!((empty.keys, empty.is_plain_leaf()), (None, false));
    }

    #[test]
    fn a_node_fits_where_both_its_ends_do() {
        let fits = |first, last| {
            let node = Found { keys: Some((5, 9)), entries: 2, ..super::super::made::node(7, What::Internal) };
            node.fits(first, last)
        };
        assert_eq!([fits(5, 9), fits(6, 9), fits(5, 8), fits(6, 8)], [true, false, false, false]);
        assert!(super::super::made::node(7, What::Internal).fits(6, 8), "what is empty fits anywhere");
    }

    fn scan_of(whats: &[What]) -> Scan {
        let mut scan = Scan::default();
        for (block, what) in (7..).zip(whats) {
            let keys = Some((1, 2));
            scan.note(&Found { block, keys, data_end: 0, time: 0, newest: 0, entries: 2, what: *what });
        }
        scan
    }

    fn mapping(block: u64, time: u32) -> Packed {
        Packed::new(DataBlock(block), time)
    }

    #[test]
    fn a_leaf_tells_what_it_maps_and_when() {
        let mappings = [(5, mapping(3, 3)), (6, mapping(9, 5)), (9, mapping(4, 5))];
        let made = Made::stored(&[leaf_of(7, &mappings)]);
        let found = made.scan.get(7).unwrap();
        assert_eq!((found.keys, found.entries, found.data_end), (Some((5, 9)), 3, 10));
        assert_eq!((found.time, found.newest), (5, 2));
        assert!(found.is_plain_leaf());
    }

    #[test]
    fn a_leaf_whose_values_are_all_blocks_of_the_disk_may_be_roots() {
        let values: [&[u64]; 5] = [&[1, DISK_BLOCKS - 1], &[1, DISK_BLOCKS], &[0, 1], &[], &[DISK_BLOCKS]];
        let nodes = (7..).zip(values).map(|(block, values)| {
            let entries = (0..).zip(values.iter().map(|value| U64::new(*value)));
            leaf_of(block, &entries.collect::<Vec<_>>())
        });
        let made = Made::stored(&nodes.collect::<Vec<_>>());
        let like_roots = made.scan.nodes().map(|found| found.like_roots()).collect::<Vec<_>>();
        assert_eq!(like_roots, [true, false, false, false, false]);
    }

    #[test]
    fn a_leaf_with_mappings_beyond_the_data_disk_is_left_out() {
        let last = mapping(DATA_BLOCKS - 1, 0);
        let beyond = [(5, last), (6, mapping(DATA_BLOCKS, 0))];
        let made = Made::stored(&[leaf_of(7, &[(5, last)]), leaf_of(8, &beyond)]);
        assert_eq!(made.scan.nodes().map(|found| found.block).collect::<Vec<_>>(), [7]);
        assert_eq!((made.scan.count, made.scan.beyond), (1, 1));
    }

    #[test]
    fn what_is_kept_is_kept_once() {
        let scan = scan_of(&[What::Leaf { like_roots: false }; 3]);
        [9, 7, 9, 10].into_iter().for_each(|block| scan.keep(block));
        assert_eq!(scan.take_kept().collect::<Vec<_>>(), [7, 9]);
        assert_eq!(scan.take_kept().count(), 0);
    }

    #[test]
    fn a_node_may_be_the_root_of_trees_of_two_kinds() {
        let scan = scan_of(&[What::Internal, What::Leaf { like_roots: false }, What::Details]);
        assert_eq!((scan.count, scan.inner), (3, 2));
        let mut known = Known::of(&scan);
        let tree = |mappings| Tree { whole: true, mappings, time: 5, keys: Some((1, 9)), ..Tree::default() };
        let of = |known: &Known, block, role| known.get(block, role).map(|tree| (tree.whole, tree.keys, tree.mappings));
        assert_eq!(of(&known, 7, Role::Devices), None);
        known.set(7, Role::Devices, &tree(3));
        assert_eq!(of(&known, 7, Role::Mappings), None);
        known.set(7, Role::Mappings, &tree(4));
        known.set(7, Role::Devices, &tree(5));
        assert_eq!(of(&known, 7, Role::Devices), Some((true, Some((1, 9)), 5)));
        assert_eq!(of(&known, 7, Role::Mappings), Some((true, Some((1, 9)), 4)));
        assert_eq!(of(&known, 9, Role::Details), None);
    }
}
