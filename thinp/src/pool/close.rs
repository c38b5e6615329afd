//! The end of a pool. Whoever has the disks next may write to them at once, and whatever still came from here would be on top
//! of that: so what is under way is waited for, and nothing begins any more.

use super::{Inner, Pool};
use crate::control::Mode;
use crate::error::Error;
use alloc::rc::Rc;

impl Pool {
    /// Ends the I/O of all devices for good, commits, and waits until the data disk has discarded what it is to discard. Only
    /// the records are still written: that somebody else may have the pool belongs into them now, and then the pool is to be
    /// [closed](Pool::close).
    pub async fn end_io(&self) -> Result<(), Error> {
        let inner = self.0.clone();
        self.detached(async move {
            let _control = inner.control.acquire(1).await;
            inner.end_io().await
        })
        .await
    }

    /// Commits and changes nothing any more, on neither disk. Handles that are still held fail what needs the pool.
    pub async fn close(&self) -> Result<(), Error> {
        let inner = self.0.clone();
        self.detached(async move {
            let _control = inner.control.acquire(1).await;
            let ended = inner.end_io().await;
            let _held = inner.commits.hold().await;
            inner.metadata.set_read_only(true);
            inner.state.close();
            inner.commits.wake_periodic();
            inner.opened.notify_all();
            ended
        })
        .await
    }
}

impl Inner {
    /// No device becomes active meanwhile: the caller keeps changes of the set of devices away.
    async fn end_io(self: &Rc<Self>) -> Result<(), Error> {
        self.state.end_io();
        for device in self.all_active() {
            drop(device.quiesce().await);
        }
        let committed = if self.mode() < Mode::ReadOnly { self.commit().await } else { Ok(()) };
        self.passdown.ended().await;
        committed
    }
}
