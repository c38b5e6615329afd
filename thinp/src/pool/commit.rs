//! The commit engine: who needs a commit joins the next one; one serves all who joined before it began
//! (design decision 7, reference 5.2, 7.6).

use super::Inner;
use crate::control::Mode;
use crate::error::Error;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use platform::sync::{Notify, Permit, Semaphore, oneshot};
use platform::time::Instant;

/// Commits wanted, under way and done.
pub(crate) struct Commits {
    waiting: RefCell<Vec<oneshot::Sender<Result<(), Error>>>>,
    led: Cell<bool>,
    /// One commit at a time. Who needs several changes in one commit holds it meanwhile.
    gate: Semaphore,
    last: Cell<Instant>,
    /// Wakes the periodic task. Its own, so that the task does not keep the pool alive.
    wake: Rc<Notify>,
}

impl Commits {
    pub(crate) fn new(now: Instant) -> Commits {
        Commits {
            waiting: RefCell::default(),
            led: Cell::new(false),
            gate: Semaphore::new(1),
            last: Cell::new(now),
            wake: Rc::default(),
        }
    }

    /// Something changed, or the pool ends.
    pub(crate) fn wake_periodic(&self) {
        self.wake.notify_all();
    }

    /// Keeps commits away.
    pub(crate) async fn hold(&self) -> Permit<'_> {
        self.gate.acquire(1).await
    }
}

impl Inner {
    /// Makes durable what completed before, data and metadata; joins the next commit to begin.
    pub(crate) async fn commit(self: &Rc<Self>) -> Result<(), Error> {
        let (sender, receiver) = oneshot::channel();
        self.commits.waiting.borrow_mut().push(sender);
        if !self.commits.led.replace(true) {
            self.runtime.spawner.spawn(self.clone().lead());
        }
        receiver.await.unwrap_or(Err(Error::Closed))
    }

    /// Commits as long as somebody waits. A task of its own, so that nobody's going away interrupts a commit.
    async fn lead(self: Rc<Self>) {
        loop {
            let held = self.commits.hold().await;
            let batch = self.commits.waiting.take();
            if batch.is_empty() {
                self.commits.led.set(false);
                return;
            }
            let result = self.commit_held(&held).await;
            drop(held);
            for sender in batch {
                sender.send(result);
            }
        }
    }

    /// Commits while the caller keeps other commits away.
    pub(crate) async fn commit_held(self: &Rc<Self>, _held: &Permit<'_>) -> Result<(), Error> {
        if self.mode() >= Mode::ReadOnly {
            return Err(self.state.refusal());
        }
        let freed = self.passdown.take();
        if !self.metadata.any_changes() {
            self.pass_down(freed);
            return self.data.flush().await.map_err(Error::Flush);
        }
        let result = self.metadata.commit(async || self.data.flush().await).await;
        self.commits.last.set(self.runtime.timers.now());
        match result {
            Ok(()) => {
                self.pass_down(freed);
                self.look_at_space();
                Ok(())
            }
            Err(error) => {
                self.keep(freed);
                Err(self.failed(error).await)
            }
        }
    }

    /// Commits at most a period after a change. An idle pool writes nothing.
    pub(crate) fn start_periodic(self: &Rc<Self>) {
        let wake = self.commits.wake.clone();
        let (timers, weak) = (self.runtime.timers.clone(), Rc::downgrade(self));
        self.runtime.spawner.spawn(async move {
            loop {
                let woken = wake.notified();
                match due(&weak) {
                    Due::Never => return,
                    Due::Idle => woken.await,
                    Due::At(deadline) => {
                        timers.sleep_until(deadline).await;
                        let Some(pool) = weak.upgrade() else { return };
                        if let Err(error) = pool.commit().await {
                            log::error!("pool: the periodic commit failed: {error}");
                        }
                    }
                }
            }
        });
    }
}

enum Due {
    Never,
    Idle,
    At(Instant),
}

fn due(pool: &Weak<Inner>) -> Due {
    let Some(pool) = pool.upgrade() else { return Due::Never };
    if pool.state.closed() {
        Due::Never
    } else if pool.mode() < Mode::ReadOnly && (pool.metadata.any_changes() || !pool.passdown.is_empty()) {
        Due::At(pool.commits.last.get() + pool.options.commit_period)
    } else {
        Due::Idle
    }
}
