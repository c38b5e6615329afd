//! The way back from needs_check (reference 7.4): a check of the disk while nothing changes it. For one beside everything
//! else see [`Pool::check_view`].

use super::{Inner, Pool};
use crate::control::Mode;
use crate::error::Error;
use crate::metadata::check::{self, Report};
use alloc::rc::Rc;
use pdata::block::BLOCK_BYTES;

impl Pool {
    /// Checks all of the metadata and, if it is sound, takes needs_check away, on disk at once, and goes back to write
    /// mode. Nothing else does. Waits for all I/O that is under way. Fails with [`Error::NoCheckNeeded`], or
    /// [`Error::NotSound`] and leaves everything as it is.
    pub async fn clear_needs_check(&self) -> Result<Report, Error> {
        let inner = self.0.clone();
        self.detached(async move {
            let _alone = inner.control.acquire(1).await;
            if !inner.metadata.needs_check() {
                return Err(Error::NoCheckNeeded);
            }
            if inner.mode() == Mode::Fail || inner.options.features.read_only {
                return Err(Error::MessageRefused(inner.mode()));
            }
            let report = inner.check_metadata().await?;
            if !report.is_sound() {
                return Err(Error::NotSound { problems: report.found() });
            }
            // What began before the transaction was lost may be at work on blocks whose mappings went with it, and which are given
            // away from now on.
            for device in inner.all_active() {
                drop(device.quiesce().await);
            }
            if let Err(error) = inner.metadata.clear_needs_check().await {
                return Err(inner.failed(error).await);
            }
            inner.metadata.set_read_only(false);
            inner.set_mode(Mode::Write);
            inner.look_at_space();
            Ok(report)
        })
        .await
    }
}

impl Inner {
    /// Nothing changes meanwhile: the pool is read-only, and commits are kept away.
    async fn check_metadata(self: &Rc<Self>) -> Result<Report, Error> {
        if self.state.closed() {
            return Err(Error::Closed);
        }
        let _held = self.commits.hold().await;
        Ok(check::check(&self.runtime, &self.meta_disk, self.check_memory_bytes()).await?)
    }

    /// What a check's counts of data blocks may take.
    pub(super) fn check_memory_bytes(&self) -> usize {
        self.options.cache_blocks.saturating_mul(BLOCK_BYTES)
    }
}
