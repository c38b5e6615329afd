//! Telling the data disk of blocks that discards freed, once the commit that frees them is durable.
//!
//! Earlier would be wrong: after a crash the old mapping is back, and must not point to contents that the disk has
//! thrown away. The blocks are held meanwhile, in memory only, so that nobody is given them.

use super::Inner;
use crate::control::DiscardPolicy;
use crate::error::Error;
use crate::metadata::DataRun;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use platform::sync::Notify;

/// Most runs of blocks that wait for a commit before one is made for their sake, and most that are being discarded before
/// who frees more waits for the data disk.
const RUNS_MAX: usize = 16_384;

/// Runs of blocks on their way to the data disk.
#[derive(Default)]
pub(crate) struct Passdown {
    /// Freed in the open transaction.
    waiting: RefCell<Vec<DataRun>>,
    /// How many are being discarded.
    running: Cell<usize>,
    /// Notified by every one that was.
    discarded: Notify,
}

impl Passdown {
    /// Nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// What waits for the commit about to begin.
    pub(crate) fn take(&self) -> Vec<DataRun> {
        self.waiting.take()
    }

    /// Waits until no block is held for a discard under way.
    pub(crate) async fn ended(&self) {
        self.down_to(0).await;
    }

    /// Waits until no more than so many runs are being discarded.
    async fn down_to(&self, most: usize) {
        loop {
            let discarded = self.discarded.notified();
            if self.running.get() <= most {
                return;
            }
            discarded.await;
        }
    }

    fn begin(&self, runs: usize) {
        self.running.set(self.running.get().saturating_add(runs));
    }

    fn end_one(&self) {
        self.running.set(self.running.get().saturating_sub(1));
        self.discarded.notify_all();
    }
}

impl Inner {
    /// Holds blocks that a change just freed until the data disk was told.
    pub(super) fn pass_down_later(&self, freed: Vec<DataRun>) {
        if self.discard_policy() == DiscardPolicy::Passdown {
            freed.iter().for_each(|run| self.metadata.hold_data(*run));
            self.passdown.waiting.borrow_mut().extend(freed);
        }
    }

    /// Keeps what is held within bounds. Only who frees blocks waits, without a lock: a data disk that does not discard is in
    /// nobody else's way.
    pub(crate) async fn bound_passdown(self: &Rc<Self>) -> Result<(), Error> {
        let many = self.passdown.waiting.borrow().len() > RUNS_MAX;
        if many {
            self.commit().await?;
        }
        self.passdown.down_to(RUNS_MAX).await;
        Ok(())
    }

    /// The commit that frees the blocks is durable.
    pub(crate) fn pass_down(self: &Rc<Self>, freed: Vec<DataRun>) {
        if freed.is_empty() {
            return;
        }
        let pool = self.clone();
        self.passdown.begin(freed.len());
        self.runtime.spawner.spawn(async move {
            for run in freed {
                let (sector, sectors) = (run.begin.0 * pool.block_sectors, run.blocks * pool.block_sectors);
                // A disk that fails a discard keeps the contents, which is its right: as in dm-thin nobody is told.
                if let Err(error) = pool.data.discard(sector, sectors).await {
                    log::debug!("pool: the data disk did not discard {sectors} sectors from {sector}: {error}");
                }
                pool.metadata.release_data(run);
                pool.passdown.end_one();
            }
            pool.look_at_space();
        });
    }

    /// The blocks were not freed after all.
    pub(crate) fn keep(&self, freed: Vec<DataRun>) {
        freed.into_iter().for_each(|run| self.metadata.release_data(run));
    }
}
