//! The open transaction: copy-on-write of blocks and the counts that go with it (reference 5.1).
//!
//! A block of a committed transaction is never changed: [`TransactionManager::shadow`] copies it to a new place
//! first. A block made in this transaction may be changed in place, as long as nothing else came to share it.

use crate::block::{BLOCK_BYTES, Block, BlockKind};
use crate::block_manager::{BlockManager, BlockMut, BlockRef};
use crate::pins::{Pin, Pins};
use crate::space_map::{ChangeCost, MetadataMap, SpaceMapRoot};
use crate::{Error, Result};
use alloc::rc::Rc;
use core::cell::RefCell;
use hashbrown::HashMap;

/// Changes of counts that may wait before [`TransactionManager::settle_some`] applies them.
const PENDING_MAX: usize = 1024;

/// A block that may be changed, from [`TransactionManager::shadow`].
pub struct Shadow<'a> {
    /// The block, perhaps in a new place: whoever pointed to the old place must point here.
    pub block: BlockMut<'a>,
    /// The old block lives on for others. Everything that it points to is now pointed to once more, and the caller
    /// must count that.
    pub duplicated: bool,
}

/// Blocks, their counts, and which of them belong to the open transaction.
pub struct TransactionManager {
    blocks: BlockManager,
    map: MetadataMap,
    /// Made in this transaction. True: its count may no longer be 1.
    shadows: RefCell<HashMap<u64, bool>>,
}

impl TransactionManager {
    /// A new metadata space map of `nr_blocks` with nothing in use but block 0, for the superblock.
    pub async fn create(blocks: BlockManager, nr_blocks: u64) -> Result<TransactionManager> {
        let map = MetadataMap::unformatted(nr_blocks);
        let manager = TransactionManager { blocks, map, shadows: RefCell::default() };
        manager.map.format(&manager, nr_blocks).await?;
        Ok(manager)
    }

    /// The metadata space map that `root` describes.
    pub async fn open(blocks: BlockManager, root: &SpaceMapRoot) -> Result<TransactionManager> {
        TransactionManager::reopen(blocks, root, &Pins::default()).await
    }

    /// As [`TransactionManager::open`], in place of one that was dropped with its transaction: `pins` are those of that.
    pub async fn reopen(blocks: BlockManager, root: &SpaceMapRoot, pins: &Pins) -> Result<TransactionManager> {
        let map = MetadataMap::open(&blocks, root, pins.clone()).await?;
        Ok(TransactionManager { blocks, map, shadows: RefCell::default() })
    }

    /// The blocks, for reading.
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Blocks that the metadata map counts.
    pub fn nr_blocks(&self) -> u64 {
        self.map.nr_blocks()
    }

    /// Readers of former commits.
    pub fn pins(&self) -> &Pins {
        self.map.pins()
    }

    /// Keeps what the last commit leads to as it is. To be called when nothing was changed since.
    pub async fn pin(&self) -> Result<Rc<Pin>> {
        self.map.pin(&self.blocks).await
    }

    /// Blocks that this transaction can still take (reference 3.3): what it freed is not among them, nor what is held back
    /// for readers of former commits.
    pub fn free_blocks(&self) -> u64 {
        self.map.free_blocks()
    }

    /// What changes of the counts of metadata blocks take at most.
    pub async fn change_cost(&self) -> Result<ChangeCost> {
        self.map.change_cost(&self.blocks).await
    }

    /// How often a block is pointed to.
    pub async fn count(&self, block: u64) -> Result<u32> {
        self.map.count(&self.blocks, block).await
    }

    /// More than one pointer leads to a block. Cheaper than [`TransactionManager::count`].
    pub async fn is_shared(&self, block: u64) -> Result<bool> {
        Ok(self.map.count_up_to_3(&self.blocks, block).await? > 1)
    }

    /// One more pointer to a block. Applied later, seen at once.
    pub fn inc(&self, block: u64) {
        self.change_count(block, 1);
    }

    /// One pointer less. A block at 0 is free from the next transaction on.
    pub fn dec(&self, block: u64) {
        self.change_count(block, -1);
    }

    fn change_count(&self, block: u64, by: i64) {
        self.map.defer(block, by);
        if let Some(changed) = self.shadows.borrow_mut().get_mut(&block) {
            *changed = true;
        }
    }

    /// A block of zeroes, pointed to once: by the caller.
    pub async fn new_block(&self, kind: &'static BlockKind) -> Result<BlockMut<'_>> {
        let number = self.allocate().await?;
        Ok(self.blocks.create(number, kind, &[0; BLOCK_BYTES]))
    }

    /// Takes a block, and makes room for it in the cache.
    async fn allocate(&self) -> Result<u64> {
        let number = self.map.allocate(&self.blocks).await?;
        self.shadows.borrow_mut().insert(number, false);
        self.blocks.make_room().await?;
        Ok(number)
    }

    /// A block of the committed or the open transaction, made changeable.
    pub async fn shadow(&self, number: u64, kind: &'static BlockKind) -> Result<Shadow<'_>> {
        self.make_shadow(number, kind, BlockManager::relocate).await
    }

    /// As [`TransactionManager::shadow`], for a block that will be asked for as it was before.
    pub(crate) async fn shadow_and_keep(&self, number: u64, kind: &'static BlockKind) -> Result<Shadow<'_>> {
        self.make_shadow(number, kind, BlockManager::copy).await
    }

    async fn make_shadow<'a>(
        &'a self,
        number: u64,
        kind: &'static BlockKind,
        replace: impl FnOnce(&'a BlockManager, BlockRef, u64) -> BlockMut<'a>,
    ) -> Result<Shadow<'a>> {
        let made_here = self.shadows.borrow().get(&number).copied();
        // Whether it is shared need be asked only if its count was changed.
        let count = if made_here == Some(false) { 1 } else { self.map.count_up_to_3(&self.blocks, number).await? };
        if count == 0 {
            return Err(Error::BadCount { block: number, count, by: -1 });
        }
        let source = self.blocks.read(number, kind).await?;
        if count == 1 && made_here.is_some() {
            return Ok(Shadow { block: self.blocks.change(source), duplicated: false });
        }
        if made_here.is_some() {
            log::trace!("block shadowed again");
        }
        let new = self.allocate().await?;
        self.dec(number);
        let block = if count > 1 { self.blocks.copy(source, new) } else { replace(&self.blocks, source, new) };
        Ok(Shadow { block, duplicated: count > 1 })
    }

    /// A block of the open transaction that holds `bytes`.
    pub async fn copy_in(&self, kind: &'static BlockKind, bytes: &Block) -> Result<u64> {
        let number = self.allocate().await?;
        self.blocks.create(number, kind, bytes);
        Ok(number)
    }

    /// Applies the changes of counts that wait. Long operations call it between their steps.
    pub async fn settle_some(&self) -> Result<()> {
        if self.map.pending() > PENDING_MAX { self.map.settle(self).await } else { Ok(()) }
    }

    /// Applies all changes of counts.
    pub async fn settle(&self) -> Result<()> {
        self.map.settle(self).await
    }

    /// Blocks that will be free after a commit, as far as changes of counts are applied ([`TransactionManager::settle`]).
    pub fn free_blocks_after_commit(&self) -> u64 {
        self.map.free_blocks_after_commit()
    }

    /// Enlarges the metadata map.
    pub async fn grow(&self, nr_blocks: u64) -> Result<()> {
        self.map.grow(self, nr_blocks).await
    }

    /// Completes the metadata map, once everything else has been. What it returns belongs into the superblock; nothing
    /// may change until that was written.
    pub async fn close(&self) -> Result<SpaceMapRoot> {
        self.map.close(self).await
    }

    /// The superblock is durable: the next transaction begins.
    pub fn committed(&self) {
        self.map.committed();
        self.shadows.borrow_mut().clear();
    }
}
