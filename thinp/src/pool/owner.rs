//! One pool, one owner: who finds that another host has the pool writes nothing any more.
//!
//! Every commit looks at block 0 before it overwrites it. Writes in place need no commit, so while a device is active
//! block 0 is looked at every [`HEARTBEAT`], too. Nothing is written for that.

use super::Inner;
use crate::control::Mode;
use crate::error::Error;
use crate::metadata::MetadataError;
use alloc::rc::Rc;
use platform::time::Duration;

/// From one look at block 0 to the next. With the time that the look takes it is less than a second.
const HEARTBEAT: Duration = Duration::from_millis(900);

impl Inner {
    /// Another host has the pool: from now on neither disk takes a write from here, every request fails, and no view shows
    /// anything.
    pub(crate) fn taken_over(&self) -> Error {
        if !self.state.is_taken_over() {
            log::error!("pool: {}", Error::TakenOver);
            self.data.lock();
            self.meta_disk.lock();
            self.metadata.give_up();
            self.metadata.revoke_views();
            self.state.take_over();
        }
        Error::TakenOver
    }

    /// Looks at block 0 as long as devices are active. An idle pool is left alone: its next commit looks.
    pub(crate) fn start_heartbeat(self: &Rc<Self>) {
        let (timers, weak, opened) = (self.runtime.timers.clone(), Rc::downgrade(self), self.opened.clone());
        self.runtime.spawner.spawn(async move {
            loop {
                let woken = opened.notified();
                let quiet = |pool: Rc<Inner>| pool.devices.borrow().is_empty() && !pool.state.closed();
                let Some(quiet) = weak.upgrade().map(quiet) else { return };
                if quiet {
                    woken.await;
                }
                timers.sleep(HEARTBEAT).await;
                let Some(pool) = weak.upgrade() else { return };
                if pool.state.closed() {
                    return;
                }
                if pool.mode() >= Mode::ReadOnly {
                    continue;
                }
                match pool.metadata.check_owner().await {
                    Ok(()) => {}
                    Err(MetadataError::TakenOver) => {
                        pool.taken_over();
                        return;
                    }
                    Err(error) => log::warn!("pool: it cannot be seen whose the pool is: {error}"),
                }
            }
        });
    }
}
