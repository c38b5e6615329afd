//! Nodes and trees that are made up, for tests.

use super::forest::{Forest, Role, Tree};
use super::scan::{Found, Scan, What};
use pdata::block::{BLOCK_BYTES, Block};
use pdata::block_manager::BlockManager;
use pdata::btree::NODE;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use zerocopy::{Immutable, IntoBytes};

/// Blocks of the disk.
pub const DISK_BLOCKS: u64 = 1024;

/// Blocks of the data disk.
pub const DATA_BLOCKS: u64 = 5000;

/// What a scan has found.
pub struct Made {
    blocks: BlockManager,
    pub scan: Scan,
}

impl Made {
    /// These nodes, in the order of their blocks, and a disk where they are not.
    pub fn new(nodes: &[Found]) -> Made {
        let mut scan = Scan::default();
        nodes.iter().for_each(|node| scan.note(node));
        Made { blocks: manager(MemDisk::new(DISK_BLOCKS * 8)), scan }
    }

    /// What a scan finds on a disk with these blocks.
    pub fn stored(blocks: &[(u64, Block)]) -> Made {
        let disk = MemDisk::new(DISK_BLOCKS * 8);
        blocks.iter().for_each(|(number, block)| disk.poke(number * BLOCK_BYTES as u64, block));
        let blocks = manager(disk);
        let Ok(scan) = block_on_ready(Scan::run(&blocks, DISK_BLOCKS, DATA_BLOCKS, |_| true)) else { unreachable!() };
        Made { blocks, scan }
    }

    /// The trees that those make up.
    pub fn grown(&self) -> Forest<'_> {
        block_on_ready(Forest::grow(&self.blocks, &self.scan))
    }

    /// The trees at these blocks are known.
    pub fn forest(&self, trees: &[(u64, Role, Tree)]) -> Forest<'_> {
        Forest::knowing(&self.blocks, &self.scan, trees)
    }
}

/// A leaf of mappings from `first` to `last`, which it holds both.
pub fn leaf(block: u64, first: u64, last: u64) -> Found {
    Found { keys: Some((first, last)), entries: 2, newest: 1, time: 3, ..node(block, What::Leaf { like_roots: false }) }
}

/// A node without entries.
pub fn node(block: u64, what: What) -> Found {
    Found { block, keys: None, data_end: 0, time: 0, newest: 0, entries: 0, what }
}

fn manager(disk: MemDisk) -> BlockManager {
    BlockManager::new(Disk::new(disk), BufPool::new(1 << 20), 0)
}

/// A leaf as it lies on the disk (reference 2.1), and its place.
pub fn leaf_of<V: IntoBytes + Immutable>(number: u64, entries: &[(u64, V)]) -> (u64, Block) {
    (number, laid_out(number, 2, entries))
}

/// An internal node of keys and children, and its place.
pub fn internal(number: u64, children: &[(u64, u64)]) -> (u64, Block) {
    (number, laid_out(number, 1, children))
}

fn laid_out<V: IntoBytes + Immutable>(number: u64, flags: u32, entries: &[(u64, V)]) -> Block {
    let value_bytes = size_of::<V>();
    let max_entries = (BLOCK_BYTES - 32) / (8 + value_bytes) / 3 * 3;
    let mut block = [0; BLOCK_BYTES];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(4, &flags.to_le_bytes());
    put(16, &(entries.len() as u32).to_le_bytes());
    put(20, &(max_entries as u32).to_le_bytes());
    put(24, &(value_bytes as u32).to_le_bytes());
    for (index, (key, value)) in entries.iter().enumerate() {
        put(32 + 8 * index, &key.to_le_bytes());
        put(32 + 8 * max_entries + value_bytes * index, value.as_bytes());
    }
    NODE.seal(&mut block, number);
    block
}
