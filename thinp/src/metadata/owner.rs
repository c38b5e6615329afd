//! Whose the metadata disk is.
//!
//! Nothing in the format keeps two hosts from activating one pool, and each would overwrite what the other committed. But
//! whoever changes a pool writes block 0. So it is read again before it is written, and from time to time in between: if it
//! is not what was written here last, somebody else has the pool.

use super::superblock::{self, SUPERBLOCK, Superblock};
use super::{Metadata, MetadataError, Result};
use alloc::boxed::Box;
use core::cell::{Cell, RefCell};
use pdata::block::Block;
use pdata::block_manager::BlockManager;

/// Block 0 as it must be on the disk.
pub(super) struct Block0 {
    last: RefCell<Box<Block>>,
    /// Being written; or its writing failed, and it may be there or not.
    attempted: RefCell<Option<Box<Block>>>,
    writes: Cell<u64>,
}

impl Block0 {
    /// It was read so, or erased.
    pub fn new(block: Box<Block>) -> Block0 {
        Block0 { last: RefCell::new(block), attempted: RefCell::default(), writes: Cell::new(0) }
    }

    /// It is the one or the other, or what a read that overlaps our own write sees: some bytes of each.
    fn is_ours(&self, found: &Block) -> bool {
        let (last, attempted) = (self.last.borrow(), self.attempted.borrow());
        let attempted = attempted.as_ref().unwrap_or(&last);
        found.iter().zip(last.iter().zip(attempted.iter())).all(|(found, (last, new))| found == last || found == new)
    }

    /// Fails if the other, read later, was written by somebody else.
    pub fn check_same(&self, other: &Block0) -> Result<()> {
        if self.is_ours(&other.last.borrow()) { Ok(()) } else { Err(MetadataError::TakenOver) }
    }

    /// Reads the block and fails if somebody else wrote it.
    pub async fn check(&self, blocks: &BlockManager) -> Result<()> {
        let writes = self.writes.get();
        let found = blocks.read_raw(SUPERBLOCK).await?;
        // Written meanwhile, it was checked just before that.
        let overtaken = self.writes.get() != writes;
        if overtaken || self.is_ours(&found) {
            return Ok(());
        }
        // What is no superblock nobody has written: the disk has failed.
        superblock::KIND.verify(&found, SUPERBLOCK)?;
        Err(MetadataError::TakenOver)
    }

    /// Writes a superblock durably, if the disk is still ours.
    pub async fn write(&self, blocks: &BlockManager, superblock: &Superblock) -> Result<()> {
        self.check(blocks).await?;
        let mut block = Box::new(superblock.to_block());
        superblock::KIND.seal(&mut block, SUPERBLOCK);
        *self.attempted.borrow_mut() = Some(block.clone());
        blocks.write_raw(SUPERBLOCK, &superblock::KIND, &block).await?;
        blocks.flush().await?;
        *self.last.borrow_mut() = block;
        *self.attempted.borrow_mut() = None;
        self.writes.set(self.writes.get().wrapping_add(1));
        Ok(())
    }
}

impl Metadata {
    /// Reads block 0 and fails with [`MetadataError::TakenOver`] if it is not what was read or written here last.
    pub async fn check_owner(&self) -> Result<()> {
        let core = self.core();
        core.block0.check(core.tm.blocks()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pdata::block::BLOCK_BYTES;

    #[test]
    fn a_look_during_a_write_of_ones_own_sees_some_of_both() {
        let block0 = Block0::new(Box::new([1; BLOCK_BYTES]));
        let mut mixed = [1; BLOCK_BYTES];
        mixed[512..1500].fill(2);
        assert!(!block0.is_ours(&mixed));
        *block0.attempted.borrow_mut() = Some(Box::new([2; BLOCK_BYTES]));
        assert!(block0.is_ours(&mixed) && block0.is_ours(&[1; BLOCK_BYTES]) && block0.is_ours(&[2; BLOCK_BYTES]));
        mixed[700] = 3;
        assert!(!block0.is_ours(&mixed));
    }
}
