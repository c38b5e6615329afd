//! The trees of a pool and what their values refer to (reference 6.1).

use super::{DataBlock, DataRun, Details};
use alloc::rc::Rc;
use alloc::vec::Vec;
use pdata::TransactionManager;
use pdata::block_manager::BlockManager;
use pdata::btree::{BTree, Leaves, Plain, Roots, Value, ValueType};
use pdata::space_map::DiskMap;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bits of a mapping that hold its time; the data block is above them.
const TIME_BITS: u32 = 24;

/// The last time that fits a mapping.
pub(super) const TIME_MAX: u32 = (1 << TIME_BITS) - 1;

/// Data blocks that a mapping can tell apart.
pub(super) const DATA_BLOCKS_MAX: u64 = 1 << (64 - TIME_BITS);

/// A mapping as stored: data block and time in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Packed(U64);

impl Packed {
    pub fn new(block: DataBlock, time: u32) -> Packed {
        Packed(U64::new(block.0 << TIME_BITS | u64::from(time & TIME_MAX)))
    }

    pub fn block(self) -> DataBlock {
        DataBlock(self.0.get() >> TIME_BITS)
    }

    pub fn time(self) -> u32 {
        (self.0.get() & u64::from(TIME_MAX)) as u32
    }
}

/// Details as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DetailsRecord {
    mapped_blocks: U64,
    transaction_id: U64,
    creation_time: U32,
    snapshotted_time: U32,
}

impl From<Details> for DetailsRecord {
    fn from(details: Details) -> DetailsRecord {
        DetailsRecord {
            mapped_blocks: details.mapped_blocks.into(),
            transaction_id: details.transaction_id.into(),
            creation_time: details.creation_time.into(),
            snapshotted_time: details.snapshotted_time.into(),
        }
    }
}

impl From<DetailsRecord> for Details {
    fn from(record: DetailsRecord) -> Details {
        Details {
            mapped_blocks: record.mapped_blocks.get(),
            transaction_id: record.transaction_id.get(),
            creation_time: record.creation_time.get(),
            snapshotted_time: record.snapshotted_time.get(),
        }
    }
}

/// Thin id to [`DetailsRecord`].
pub(super) const DETAILS: BTree<Plain<DetailsRecord>> = BTree::plain();

/// Groups data blocks into runs of consecutive ones, without reordering.
pub(super) fn runs(blocks: impl IntoIterator<Item = DataBlock>) -> Vec<DataRun> {
    let mut runs = Vec::new();
    blocks.into_iter().for_each(|block| append(&mut runs, block));
    runs
}

/// Appends a block to the last run, or as a run of its own.
pub(super) fn append(runs: &mut Vec<DataRun>, block: DataBlock) {
    match runs.last_mut() {
        Some(last) if last.begin.0.checked_add(last.blocks) == Some(block.0) => last.blocks += 1,
        _ => runs.push(DataRun { begin: block, blocks: 1 }),
    }
}

/// Mappings that fit a leaf, and children that fit a node above.
pub(super) const NODE_ENTRIES: u64 = BTree::<Mappings>::CAPACITY as u64;

/// The least number of mappings in a leaf that is not alone.
pub(super) const LEAF_MAPPINGS_MIN: u64 = BTree::<Mappings>::FLOOR as u64;

/// Values of the lower level, virtual block to [`Packed`]: each refers to a data block.
pub(super) struct Mappings {
    data: Rc<DiskMap>,
}

impl ValueType for Mappings {
    type Value = Packed;

    async fn inc(&self, tm: &TransactionManager, values: &[Packed]) -> pdata::Result<()> {
        for run in runs(values.iter().map(|value| value.block())) {
            self.data.inc(tm, run.range()).await?;
        }
        Ok(())
    }

    async fn dec(&self, tm: &TransactionManager, values: &[Packed]) -> pdata::Result<()> {
        for run in runs(values.iter().map(|value| value.block())) {
            self.data.dec(tm, run.range(), &mut |_| ()).await?;
        }
        Ok(())
    }
}

/// The two levels of the mapping tree.
pub(super) struct MappingTree {
    /// Thin id to the root of the device's tree.
    pub devices: BTree<Roots<Mappings>>,
}

impl MappingTree {
    pub fn new(data: Rc<DiskMap>) -> MappingTree {
        MappingTree { devices: BTree::new(Roots::new(BTree::new(Mappings { data }))) }
    }

    /// The trees of single devices.
    pub fn mappings(&self) -> &BTree<Mappings> {
        self.devices.lower()
    }
}

/// The entries of a tree in order.
pub(super) struct Entries<'a, T> {
    leaves: Leaves<'a>,
    /// Read ahead, the next last.
    ready: Vec<(u64, T)>,
}

impl<'a, T: Value> Entries<'a, T> {
    pub async fn open(blocks: &'a BlockManager, root: u64) -> pdata::Result<Entries<'a, T>> {
        Ok(Entries { leaves: Leaves::open(blocks, root).await?, ready: Vec::new() })
    }

    pub async fn next(&mut self) -> pdata::Result<Option<(u64, T)>> {
        while self.ready.is_empty() {
            let Some(leaf) = self.leaves.next().await? else { return Ok(None) };
            self.ready.extend(leaf.keys().zip(leaf.values()?.iter().copied()).rev());
        }
        Ok(self.ready.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_packs_as_the_reference_says() {
        let packed = Packed::new(DataBlock(10), 1);
        assert_eq!(packed.0.get(), 0x0000_0000_0A00_0001);
        assert_eq!((packed.block(), packed.time()), (DataBlock(10), 1));
        let last = Packed::new(DataBlock(DATA_BLOCKS_MAX - 1), TIME_MAX);
        assert_eq!((last.0.get(), last.block().0, last.time()), (u64::MAX, DATA_BLOCKS_MAX - 1, TIME_MAX));
    }

    #[test]
    fn consecutive_blocks_are_one_run() {
        let found = runs([4, 5, 6, 9, 8, u64::MAX, 0].map(DataBlock));
        let found: Vec<_> = found.iter().map(|run| (run.begin.0, run.blocks)).collect();
        assert_eq!(found, [(4, 3), (9, 1), (8, 1), (u64::MAX, 1), (0, 1)]);
    }
}
