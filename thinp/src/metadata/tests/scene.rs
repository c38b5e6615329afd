//! Metadata in states that take many requests, or the errors of others, to come about.

use super::super::superblock;
use super::super::trees::Packed;
use super::super::{DataBlock, Metadata, Result};
use crate::control::DeviceId;
use core::ops::Range;
use pdata::block::BLOCK_BYTES;

impl Metadata {
    /// Maps blocks of a device, which must not be mapped, to the data blocks of the same numbers, which must be free,
    /// in leaves that are full; and commits.
    pub async fn map_run(&self, device: DeviceId, blocks: Range<u64>) -> Result<()> {
        let change = self.change().await?;
        let core = &change.core;
        self.load(core, device).await?;
        let root = self.own(&change, device).await?;
        let time = self.time();
        let entries = blocks.clone().map(|block| (block, Packed::new(DataBlock(block), time)));
        let root = core.tree.mappings().insert_sorted(&core.tm, root, entries, |_, _| ()).await?;
        core.data.inc(&core.tm, blocks.clone()).await?;
        self.update(device, |device| {
            device.root = root;
            device.details.mapped_blocks += blocks.end - blocks.start;
        })?;
        self.commit_in(&change, async || Ok(())).await
    }

    /// Maps a block of a device to a data block that is not counted, and commits.
    pub async fn map_uncounted(&self, device: DeviceId, block: u64, data: DataBlock) -> Result<()> {
        let change = self.change().await?;
        let core = &change.core;
        self.load(core, device).await?;
        let root = self.own(&change, device).await?;
        let packed = Packed::new(data, self.time());
        let (root, _) = core.tree.mappings().insert(&core.tm, root, block, packed).await?;
        self.update(device, |device| {
            device.root = root;
            device.details.mapped_blocks += 1;
        })?;
        self.commit_in(&change, async || Ok(())).await
    }

    /// Takes metadata blocks that nothing refers to until just so many are to spare, and commits.
    pub async fn spare_only(&self, blocks: u64) -> Result<()> {
        let change = self.change().await?;
        let tm = &change.core.tm;
        self.commit_in(&change, async || Ok(())).await?;
        for _ in blocks..self.spare_blocks() {
            tm.copy_in(&superblock::KIND, &[0; BLOCK_BYTES]).await?;
        }
        change.core.changed.set(true);
        self.commit_in(&change, async || Ok(())).await?;
        assert_eq!(self.spare_blocks(), blocks);
        Ok(())
    }

    /// Metadata blocks to spare.
    pub fn spare(&self) -> u64 {
        self.spare_blocks()
    }
}
