//! One opened pool: its transaction, trees, data map and superblock. An abort throws it away and opens another.

use super::owner::Block0;
use super::superblock::{self, PaddedRoot, SUPERBLOCK, Superblock};
use super::trees::{DATA_BLOCKS_MAX, DETAILS, DetailsRecord, MappingTree};
use super::{Details, MetadataError, Result};
use crate::control::DeviceId;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use futures_util::future::join;
use pdata::TransactionManager;
use pdata::block::{BLOCK_BYTES, BLOCK_SECTORS, Block};
use pdata::block_manager::BlockManager;
use pdata::pins::Pins;
use pdata::space_map::{DiskMap, METADATA_BLOCKS_MAX};
use platform::Runtime;
use platform::block::{Disk, IoError};

/// The least that a pool with one device and some room to change it fits in.
const METADATA_BLOCKS_MIN: u64 = 64;

pub(super) struct Core {
    pub tm: TransactionManager,
    pub data: Rc<DiskMap>,
    pub tree: MappingTree,
    /// As the next commit will write it, the space maps excepted.
    pub superblock: RefCell<Superblock>,
    /// As it is on disk.
    pub committed: Cell<Superblock>,
    /// Block 0, to see whether the disk is still ours.
    pub block0: Block0,
    /// Something besides the devices' own state changed.
    pub changed: Cell<bool>,
}

/// What the data map is reached through: block 0 of the metadata disk and those behind it.
fn blocks(runtime: &Runtime, disk: &Disk, cache_blocks: usize) -> BlockManager {
    BlockManager::new(disk.clone(), runtime.bufs.clone(), cache_blocks)
}

/// Metadata blocks that a disk offers.
pub(super) fn disk_blocks(disk: &Disk) -> u64 {
    (disk.size_sectors() / BLOCK_SECTORS).min(METADATA_BLOCKS_MAX)
}

impl Core {
    fn new(tm: TransactionManager, data: DiskMap, superblock: Superblock, block0: Box<Block>) -> Core {
        let data = Rc::new(data);
        Core {
            tm,
            tree: MappingTree::new(data.clone()),
            data,
            superblock: RefCell::new(superblock),
            committed: Cell::new(superblock),
            block0: Block0::new(block0),
            changed: Cell::new(false),
        }
    }

    /// The committed state on a disk. `pins` are those of what was opened there before.
    pub async fn open(
        runtime: &Runtime,
        disk: &Disk,
        cache_blocks: usize,
        read_only: bool,
        pins: &Pins,
    ) -> Result<Core> {
        let blocks = blocks(runtime, disk, cache_blocks);
        let block0 = blocks.read_raw(SUPERBLOCK).await?;
        let superblock = Superblock::open(&block0, read_only)?;
        let (disk_blocks, map) = (blocks.disk_blocks(), &superblock.metadata_space_map.root);
        if disk_blocks < map.nr_blocks.get() {
            return Err(MetadataError::DiskShrunk { disk_blocks, map_blocks: map.nr_blocks.get() });
        }
        let data_blocks = superblock.data_space_map.root.nr_blocks.get();
        if data_blocks > DATA_BLOCKS_MAX {
            return Err(MetadataError::BadSuperblock { what: "it has more data blocks than mappings can tell apart" });
        }
        let tm = TransactionManager::reopen(blocks, map, pins).await?;
        let data = DiskMap::open(&superblock.data_space_map.root);
        Ok(Core::new(tm, data, superblock, block0))
    }

    /// Makes an empty pool. What was there before is unreadable from the first step on; the superblock comes last.
    pub async fn format(
        runtime: &Runtime,
        disk: &Disk,
        cache_blocks: usize,
        data_block_sectors: u32,
        data_blocks: u64,
    ) -> Result<Core> {
        let core = Core::create(runtime, disk, cache_blocks, data_block_sectors, data_blocks).await?;
        core.commit(async || Ok(())).await?;
        Ok(core)
    }

    /// An empty pool that is not on disk before its first commit. What was there is unreadable from the first step on.
    pub async fn create(
        runtime: &Runtime,
        disk: &Disk,
        cache_blocks: usize,
        data_block_sectors: u32,
        data_blocks: u64,
    ) -> Result<Core> {
        superblock::check_data_block_sectors(data_block_sectors)?;
        let nr_blocks = disk_blocks(disk);
        if nr_blocks < METADATA_BLOCKS_MIN {
            return Err(MetadataError::TooSmall { blocks: nr_blocks, least: METADATA_BLOCKS_MIN });
        }
        if data_blocks > DATA_BLOCKS_MAX {
            return Err(MetadataError::BadSuperblock { what: "more data blocks than mappings can tell apart" });
        }
        let blocks = blocks(runtime, disk, cache_blocks);
        blocks.erase(SUPERBLOCK).await?;
        let tm = TransactionManager::create(blocks, nr_blocks).await?;
        let data = DiskMap::create(&tm, data_blocks).await?;
        let erased = Box::new([0; BLOCK_BYTES]);
        let core = Core::new(tm, data, Superblock::format(data_block_sectors, nr_blocks), erased);
        let (mapping_root, details_root) = (core.tree.devices.create(&core.tm).await?, DETAILS.create(&core.tm).await?);
        core.set_mapping_root(mapping_root);
        core.set_details_root(details_root);
        Ok(core)
    }

    pub fn mapping_root(&self) -> u64 {
        self.superblock.borrow().mapping_root.get()
    }

    pub fn set_mapping_root(&self, root: u64) {
        self.superblock.borrow_mut().mapping_root.set(root);
        self.changed.set(true);
    }

    pub fn details_root(&self) -> u64 {
        self.superblock.borrow().details_root.get()
    }

    pub fn set_details_root(&self, root: u64) {
        self.superblock.borrow_mut().details_root.set(root);
        self.changed.set(true);
    }

    /// Root of a device's tree, as the tree of devices has it.
    pub async fn device_root(&self, device: DeviceId) -> Result<Option<u64>> {
        let (root, key) = (self.mapping_root(), u64::from(device.get()));
        let found = self.tm.blocks().look(|blocks| self.tree.devices.try_lookup(blocks, root, key)).await?;
        Ok(found.map(|root| root.get()))
    }

    /// Points the tree of devices to a device's tree. The reference that it held before passes to the caller.
    pub async fn set_device_root(&self, device: DeviceId, device_root: u64) -> Result<()> {
        let key = u64::from(device.get());
        let (root, _) = self.tree.devices.insert(&self.tm, self.mapping_root(), key, device_root.into()).await?;
        self.set_mapping_root(root);
        Ok(())
    }

    /// A device's details, as the tree has them.
    pub async fn device_details(&self, device: DeviceId) -> Result<Option<Details>> {
        let (root, key) = (self.details_root(), u64::from(device.get()));
        let found = self.tm.blocks().look(|blocks| DETAILS.try_lookup(blocks, root, key)).await?;
        Ok(found.map(Details::from))
    }

    pub async fn set_device_details(&self, device: DeviceId, details: Details) -> Result<()> {
        let (key, record) = (u64::from(device.get()), DetailsRecord::from(details));
        let (root, _) = DETAILS.insert(&self.tm, self.details_root(), key, record).await?;
        self.set_details_root(root);
        Ok(())
    }

    /// Makes the transaction durable (reference 5.2): data flush and write-out of metadata, side by side; metadata flush;
    /// the superblock alone; metadata flush. What another owner committed is not overwritten: its blocks may be free here.
    pub async fn commit(&self, flush_data: impl AsyncFnOnce() -> Result<(), IoError>) -> Result<()> {
        let mut next = *self.superblock.borrow();
        next.data_space_map = PaddedRoot::new(self.data.close(&self.tm).await?);
        next.metadata_space_map = PaddedRoot::new(self.tm.close().await?);
        let blocks = self.tm.blocks();
        let metadata = async {
            self.block0.check(blocks).await?;
            blocks.write_out().await?;
            Ok::<(), MetadataError>(blocks.flush().await?)
        };
        let (metadata, data) = join(metadata, flush_data()).await;
        metadata?;
        data.map_err(MetadataError::DataFlush)?;
        self.write_superblock(&next).await?;
        *self.superblock.borrow_mut() = next;
        self.data.committed();
        self.tm.committed();
        self.changed.set(false);
        Ok(())
    }

    /// Sets or clears needs_check in the superblock on disk, and changes nothing else there.
    pub async fn set_needs_check(&self, needed: bool) -> Result<()> {
        let mut committed = self.committed.get();
        committed.set_needs_check(needed);
        self.write_superblock(&committed).await?;
        self.superblock.borrow_mut().set_needs_check(needed);
        Ok(())
    }

    async fn write_superblock(&self, superblock: &Superblock) -> Result<()> {
        self.block0.write(self.tm.blocks(), superblock).await?;
        self.committed.set(*superblock);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use platform::mem::MemDisk;
    use platform::random::Seeded;
    use platform::simulated;
    use platform::task::block_on_ready;

    fn is_refused(opened: Result<Core>) -> bool {
        matches!(opened.map(|_| ()), Err(MetadataError::BadSuperblock { .. }))
    }

    #[test]
    fn a_pool_has_no_more_data_blocks_than_mappings_can_tell_apart() {
        block_on_ready(async {
            let runtime = simulated::runtime_at_once(Rc::new(Seeded::from_u64(1)), 1 << 20);
            let memory = MemDisk::new(METADATA_BLOCKS_MIN * BLOCK_SECTORS);
            let disk = Disk::new(memory.clone());
            // So many would fit, were the metadata disk larger.
            let largest = Core::format(&runtime, &disk, 64, 128, DATA_BLOCKS_MAX).await;
            assert!(matches!(largest.map(|_| ()), Err(MetadataError::Storage(error)) if error.is_no_space()));
            assert!(is_refused(Core::format(&runtime, &disk, 64, 128, DATA_BLOCKS_MAX + 1).await));

            let core = Core::format(&runtime, &disk, 64, 128, 100).await.unwrap();
            for (blocks, refused) in [(DATA_BLOCKS_MAX, false), (DATA_BLOCKS_MAX + 1, true)] {
                let mut superblock = core.committed.get();
                superblock.data_space_map.root.nr_blocks.set(blocks);
                let mut block = superblock.to_block();
                superblock::KIND.seal(&mut block, SUPERBLOCK);
                memory.poke(0, &block);
                let opened = Core::open(&runtime, &disk, 64, false, &Pins::default()).await;
                assert_eq!((opened.is_ok(), is_refused(opened)), (!refused, refused), "{blocks}");
            }
        });
    }
}
