//! Time as an argument: a monotonic clock behind a trait, and timers over it.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::ops::{Add, Sub};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
pub use core::time::Duration;

/// A point in monotonic time, in nanoseconds since an arbitrary start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant {
    /// Nanoseconds since the clock's start.
    pub nanos: u64,
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Instant { nanos: self.nanos.saturating_add(nanos) }
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// Zero if `earlier` is later.
    fn sub(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.nanos.saturating_sub(earlier.nanos))
    }
}

/// Monotonic time.
pub trait Clock {
    /// Never goes back.
    fn now(&self) -> Instant;
}

/// Time of day, for logs and schedules only.
pub trait WallClock {
    /// Seconds since 1970-01-01 UTC, or `None` if nobody knows.
    fn unix_seconds(&self) -> Option<u64>;
}

/// A clock and who waits for it. Clones share both.
#[derive(Clone)]
pub struct Timers(Rc<Shared>);

struct Shared {
    clock: Rc<dyn Clock>,
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    next_id: Cell<u64>,
}

/// The time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

impl Timers {
    /// Timers over a clock.
    pub fn new(clock: Rc<dyn Clock>) -> Timers {
        Timers(Rc::new(Shared { clock, waiting: RefCell::default(), next_id: Cell::new(0) }))
    }

    /// The time now.
    pub fn now(&self) -> Instant {
        self.0.clock.now()
    }

    /// Resolves at `deadline` or soon after.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        let id = self.0.next_id.get();
        self.0.next_id.set(id + 1);
        Sleep { shared: self.0.clone(), key: (deadline, id) }
    }

    /// Resolves after `duration`.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Drops `future` if it takes longer than `duration`.
    pub async fn timeout<T>(&self, duration: Duration, future: impl Future<Output = T>) -> Result<T, Elapsed> {
        let mut future = core::pin::pin!(future);
        let mut sleep = self.sleep(duration);
        core::future::poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(value));
            }
            Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }

    /// Wakes whose time has come; true if there were any.
    pub fn fire(&self) -> bool {
        if self.0.waiting.borrow().is_empty() {
            return false;
        }
        let now = self.now();
        let mut fired = false;
        loop {
            let first = {
                let mut waiting = self.0.waiting.borrow_mut();
                match waiting.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return fired,
                }
            };
            first.wake();
            fired = true;
        }
    }

    /// When the next sleeper wakes.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.0.waiting.borrow().keys().next().map(|key| key.0)
    }
}

/// The future of [`Timers::sleep`].
pub struct Sleep {
    shared: Rc<Shared>,
    key: (Instant, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.clock.now() >= self.key.0 {
            return Poll::Ready(());
        }
        self.shared.waiting.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.shared.waiting.borrow_mut().remove(&self.key);
    }
}
