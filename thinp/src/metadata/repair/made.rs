//! Nodes and trees that are made up, for tests: no disk holds them.

use super::forest::{Forest, Role, Tree};
use super::scan::{Found, Scan, What};
use pdata::block_manager::BlockManager;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::mem::MemDisk;

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
        let disk = Disk::new(MemDisk::new(1024 * 8));
        Made { blocks: BlockManager::new(disk, BufPool::new(1 << 20), 0), scan }
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
