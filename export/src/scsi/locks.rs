//! Range locks of a logical unit: COMPARE AND WRITE and ORWRITE are atomic against every other command.
//!
//! Ordinary reads and writes share; a lock waits for those before it that overlap and do not share, so
//! nobody starves.

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use platform::sync::Notify;

/// The locks held and waited for.
#[derive(Default)]
pub struct RangeLocks {
    /// In the order of arrival.
    entries: RefCell<Vec<Entry>>,
    next_id: Cell<u64>,
    /// Exclusive ones among the entries. While there are none nobody waits.
    exclusive: Cell<usize>,
    released: Notify,
}

struct Entry {
    id: u64,
    bytes: Range<u64>,
    exclusive: bool,
}

/// A lock, held or waited for, until dropped.
#[must_use]
pub struct RangeLock<'a> {
    locks: &'a RangeLocks,
    id: u64,
    exclusive: bool,
}

impl RangeLocks {
    /// A lock that others may share.
    pub async fn shared(&self, bytes: Range<u64>) -> RangeLock<'_> {
        self.lock(bytes, false).await
    }

    /// A lock that nobody shares.
    pub async fn exclusive(&self, bytes: Range<u64>) -> RangeLock<'_> {
        self.lock(bytes, true).await
    }

    async fn lock(&self, bytes: Range<u64>, exclusive: bool) -> RangeLock<'_> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        if exclusive {
            self.exclusive.set(self.exclusive.get() + 1);
        }
        self.entries.borrow_mut().push(Entry { id, bytes, exclusive });
        let lock = RangeLock { locks: self, id, exclusive };
        loop {
            let released = self.released.notified();
            if self.exclusive.get() == 0 || self.granted(id) {
                return lock;
            }
            released.await;
        }
    }

    fn granted(&self, id: u64) -> bool {
        let entries = self.entries.borrow();
        let Some(at) = entries.iter().position(|entry| entry.id == id) else { return false };
        let (before, rest) = entries.split_at(at);
        let Some(mine) = rest.first() else { return false };
        !before.iter().any(|other| {
            let overlaps = other.bytes.start < mine.bytes.end && mine.bytes.start < other.bytes.end;
            overlaps && (other.exclusive || mine.exclusive)
        })
    }
}

impl Drop for RangeLock<'_> {
    fn drop(&mut self) {
        self.locks.entries.borrow_mut().retain(|entry| entry.id != self.id);
        if self.exclusive {
            self.locks.exclusive.set(self.locks.exclusive.get() - 1);
        }
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use core::future::Future;
    use core::task::{Context, Poll, Waker};

    fn poll<'a>(future: &mut core::pin::Pin<Box<impl Future<Output = RangeLock<'a>>>>) -> Option<RangeLock<'a>> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(lock) => Some(lock),
            Poll::Pending => None,
        }
    }

    #[test]
    fn exclusive_waits_for_overlaps_and_holds_up_those_behind_it() {
        let locks = RangeLocks::default();
        let first = poll(&mut Box::pin(locks.shared(0..10))).unwrap();
        let _beside = poll(&mut Box::pin(locks.shared(5..15))).unwrap();
        let mut exclusive = Box::pin(locks.exclusive(8..9));
        assert!(poll(&mut exclusive).is_none());
        let mut behind = Box::pin(locks.shared(0..20));
        assert!(poll(&mut behind).is_none(), "first come, first served");
        let _elsewhere = poll(&mut Box::pin(locks.shared(20..30))).unwrap();
        drop(first);
        assert!(poll(&mut exclusive).is_none());
        drop(_beside);
        let held = poll(&mut exclusive).unwrap();
        assert!(poll(&mut behind).is_none());
        drop(held);
        assert!(poll(&mut behind).is_some());
    }

    #[test]
    fn one_that_gives_up_waiting_holds_up_nobody() {
        let locks = RangeLocks::default();
        let _shared = poll(&mut Box::pin(locks.shared(0..10))).unwrap();
        let mut exclusive = Box::pin(locks.exclusive(0..10));
        assert!(poll(&mut exclusive).is_none());
        drop(exclusive);
        assert!(poll(&mut Box::pin(locks.shared(0..10))).is_some());
        assert_eq!(locks.exclusive.get(), 0);
    }
}
