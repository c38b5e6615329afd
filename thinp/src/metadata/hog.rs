//! For tests: metadata that is fuller than the reserve allows, as another implementation may leave it.

use super::superblock;
use super::{Metadata, Result};
use alloc::vec::Vec;
use pdata::block::BLOCK_BYTES;

impl Metadata {
    /// Takes metadata blocks that nothing refers to until about `left_blocks` are free, and commits.
    pub(crate) async fn hog(&self, left_blocks: u64) -> Result<Vec<u64>> {
        let change = self.change().await?;
        let tm = &change.core.tm;
        let mut hogged = Vec::new();
        while tm.free_blocks() > left_blocks {
            hogged.push(tm.copy_in(&superblock::KIND, &[0; BLOCK_BYTES]).await?);
        }
        change.core.changed.set(true);
        self.commit_in(&change, async || Ok(())).await?;
        Ok(hogged)
    }

    /// Gives them back, and commits.
    pub(crate) async fn let_go(&self, hogged: Vec<u64>) -> Result<()> {
        let change = self.change().await?;
        hogged.into_iter().for_each(|block| change.core.tm.dec(block));
        change.core.changed.set(true);
        self.commit_in(&change, async || Ok(())).await
    }
}
