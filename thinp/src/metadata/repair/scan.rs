//! The first look at a damaged disk: every block is read once, and what is whole is noted.
//!
//! A block counts as whole if its checksum is right, it carries its own number and its contents keep to the rules of its kind.
//! Nothing is believed about what leads where.

use super::super::superblock::{self, SUPERBLOCK, Superblock};
use super::super::trees::{DetailsRecord, Packed};
use alloc::vec::Vec;
use pdata::block::Block;
use pdata::block_manager::{Batch, BlockManager};
use pdata::btree::{NODE, Node};
use zerocopy::little_endian::U64;

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
    pub newest: u16,
    pub entries: u16,
    pub what: What,
}

/// All that was found, and what could not be read.
#[derive(Default)]
pub struct Scan {
    /// By block.
    nodes: Vec<Found>,
    /// Superblocks in other places than block 0: metadata snapshots, held or long released.
    pub copies: Vec<(u64, Superblock)>,
    /// Blocks that the disk failed to read.
    pub unreadable: u64,
}

impl Scan {
    /// Reads the whole disk; nothing comes of it if that has more than `nodes_max` nodes.
    pub async fn run(blocks: &BlockManager, nr_blocks: u64, nodes_max: usize) -> Option<Scan> {
        let mut scan = Scan::default();
        let mut batch = Batch::default();
        let mut begin = 0;
        while begin < nr_blocks {
            let end = nr_blocks.min(begin.saturating_add(BLOCKS_AT_ONCE));
            let numbers: Vec<u64> = (begin..end).collect();
            blocks.read_batch_raw(&numbers, &mut batch).await;
            for (index, number) in numbers.into_iter().enumerate() {
                match batch.get(index) {
                    Ok(block) => scan.note(number, block, nr_blocks),
                    // One bad sector fails the request for all of its neighbours.
                    Err(_) => match blocks.read_raw(number).await {
                        Ok(block) => scan.note(number, &block, nr_blocks),
                        Err(_) => scan.unreadable = scan.unreadable.saturating_add(1),
                    },
                }
            }
            if scan.nodes.len() > nodes_max {
                return None;
            }
            begin = end;
        }
        Some(scan)
    }

    fn note(&mut self, number: u64, block: &Block, nr_blocks: u64) {
        if NODE.verify(block, number).is_ok() {
            self.nodes.extend(Node::parse(block, number).ok().and_then(|node| classify(&node, nr_blocks)));
        } else if number != SUPERBLOCK
            && self.copies.len() < COPIES_MAX
            && superblock::KIND.verify(block, number).is_ok()
            && let Ok(copy) = Superblock::of_snapshot(block)
        {
            self.copies.push((number, copy));
        }
    }

    /// The whole node in a block.
    pub fn get(&self, block: u64) -> Option<&Found> {
        let index = self.nodes.binary_search_by_key(&block, |found| found.block).ok()?;
        self.nodes.get(index)
    }

    /// All whole nodes, by block.
    pub fn nodes(&self) -> &[Found] {
        &self.nodes
    }

    /// Drops leaves with mappings beyond the data disk: what wrote those cannot be believed. Returns how many.
    pub fn keep_below(&mut self, data_blocks: u64) -> u64 {
        let before = self.nodes.len();
        let like_roots = Found::like_roots;
        self.nodes.retain(|found| found.data_end <= data_blocks || like_roots(found));
        before.saturating_sub(self.nodes.len()) as u64
    }
}

impl Found {
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
    let entries = u16::try_from(node.len()).ok()?;
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
        newest: u16::try_from(newest).unwrap_or(u16::MAX),
        ..found(What::Leaf { like_roots })
    })
}
