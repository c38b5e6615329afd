//! Data blocks: which are free, which are spoken for.
//!
//! A block for a new mapping is reserved in memory and counted only together with its mapping, so that a crash in between
//! leaks nothing (reference 9.1, trap 15). Likewise a block that is being discarded on the data disk is held in memory.

use super::{DataBlock, DataRun, Metadata, MetadataError, Result};
use alloc::collections::BTreeMap;
use hashbrown::HashSet;

/// Data blocks that must not be handed out although nothing refers to them.
#[derive(Default)]
pub(super) struct Space {
    /// For mappings to come.
    reserved: HashSet<u64>,
    /// Runs that are being discarded on the data disk: their first blocks and lengths. No two overlap.
    held: BTreeMap<u64, u64>,
}

impl Space {
    /// A reserved block is about to be mapped; false if it is not reserved.
    pub fn take_reserved(&mut self, block: DataBlock) -> bool {
        self.reserved.remove(&block.0)
    }

    fn is_spoken_for(&self, block: u64) -> bool {
        self.reserved.contains(&block) || self.is_held(block)
    }

    fn is_held(&self, block: u64) -> bool {
        let before = self.held.range(..=block).next_back();
        before.is_some_and(|(begin, blocks)| block < begin.saturating_add(*blocks))
    }
}

impl DataRun {
    /// The block numbers.
    pub(super) fn range(&self) -> core::ops::Range<u64> {
        self.begin.0..self.begin.0.saturating_add(self.blocks)
    }
}

impl Metadata {
    /// Reserves a data block that is free now and was free at the last commit, until [`Metadata::insert`] or
    /// [`Metadata::unreserve_data_block`].
    pub async fn reserve_data_block(&self) -> Result<DataBlock> {
        let change = self.change().await?;
        let core = &change.core;
        let spoken_for = |block| self.space.borrow().is_spoken_for(block);
        let block = core.data.find_free(&core.tm, spoken_for).await.map_err(|error| match error {
            pdata::Error::NoSpace => MetadataError::NoDataSpace,
            error => error.into(),
        })?;
        self.space.borrow_mut().reserved.insert(block);
        Ok(DataBlock(block))
    }

    /// Gives a reserved data block back.
    pub fn unreserve_data_block(&self, block: DataBlock) {
        self.space.borrow_mut().reserved.remove(&block.0);
    }

    /// How many leaves refer to a data block.
    pub async fn data_block_count(&self, block: DataBlock) -> Result<u32> {
        let core = self.look().await?.core.clone();
        Ok(core.tm.blocks().look(|blocks| core.data.try_count(blocks, block.0)).await?)
    }

    /// Keeps data blocks from being reserved, in memory only, while they are being discarded on the data disk.
    pub fn hold_data(&self, run: DataRun) {
        self.space.borrow_mut().held.insert(run.begin.0, run.blocks);
    }

    /// Undoes [`Metadata::hold_data`].
    pub fn release_data(&self, run: DataRun) {
        self.space.borrow_mut().held.remove(&run.begin.0);
    }

    /// Size of the data map in data blocks.
    pub fn data_blocks(&self) -> u64 {
        self.core.borrow().data.nr_blocks()
    }

    /// Data blocks that nothing refers to and that are not reserved. Those freed in this transaction are among them,
    /// though they can be reserved only after the commit.
    pub fn free_data_blocks(&self) -> u64 {
        let reserved = self.space.borrow().reserved.len() as u64;
        self.core.borrow().data.nr_free().saturating_sub(reserved)
    }

    /// Size of the metadata map in 4 KiB blocks.
    pub fn metadata_blocks(&self) -> u64 {
        self.core.borrow().tm.nr_blocks()
    }

    /// Free metadata blocks less the reserve (reference 3.3).
    pub fn free_metadata_blocks(&self) -> u64 {
        let core = self.core.borrow();
        let reserve = (core.tm.nr_blocks() / 10).min(4096);
        core.tm.free_blocks().saturating_sub(reserve)
    }

    /// The metadata low water mark of the status line: min(1024, a quarter of the blocks) (reference 7.3).
    pub fn metadata_low_water_blocks(&self) -> u64 {
        (self.metadata_blocks() / 4).min(1024)
    }

    /// Grows the data map to `blocks`. Refused where the metadata disk is too small to count so many.
    pub async fn grow_data(&self, blocks: u64) -> Result<()> {
        let change = self.change_with_room().await?;
        let core = &change.core;
        check_growth(core.data.nr_blocks(), blocks, super::trees::DATA_BLOCKS_MAX, self.needs_check())?;
        self.check_room_to_grow(core.data.growth_blocks(blocks))?;
        change.begin_apart();
        core.data.grow(&core.tm, blocks).await?;
        log::trace!("pool grown");
        core.changed.set(true);
        core.tm.settle_some().await?;
        change.done();
        Ok(())
    }

    /// Grows the metadata map to `blocks`, which the disk must have.
    pub async fn grow_metadata(&self, blocks: u64) -> Result<()> {
        let change = self.change().await?;
        let core = &change.core;
        check_growth(core.tm.nr_blocks(), blocks, super::state::disk_blocks(&self.disk), self.needs_check())?;
        change.begin_apart();
        core.tm.grow(blocks).await?;
        log::trace!("pool grown");
        core.changed.set(true);
        change.done();
        Ok(())
    }
}

fn check_growth(from: u64, to: u64, most: u64, needs_check: bool) -> Result<()> {
    if needs_check {
        return Err(MetadataError::NeedsCheck);
    }
    if to < from {
        return Err(MetadataError::Shrink { from, to });
    }
    if to > most { Err(MetadataError::TooLarge { blocks: to, most }) } else { Ok(()) }
}
