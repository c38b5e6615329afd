//! Locks on ranges of a device's virtual blocks, and the count of I/O under way (reference 7.6).
//!
//! The hot path takes no lock. It asks [`RangeLocks::busy`] and enters [`InFlight`], both without waiting. Who changes
//! mappings locks the range, which sends newcomers to the slow road where they queue, and drains what
//! entered before.

use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use platform::sync::Notify;

/// First come, first served, among those whose ranges overlap.
#[derive(Default)]
pub struct RangeLocks {
    /// Holders and waiters in the order of their arrival. A ticket is held once nothing before it overlaps it.
    tickets: RefCell<VecDeque<Ticket>>,
    next_number: Cell<u64>,
}

struct Ticket {
    number: u64,
    range: Range<u64>,
    waker: Option<Waker>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl RangeLocks {
    /// Somebody holds or waits for a range with this block in it.
    pub fn busy(&self, block: u64) -> bool {
        self.tickets.borrow().iter().any(|t| t.range.contains(&block))
    }

    /// Waits for the range.
    pub async fn lock(&self, range: Range<u64>) -> RangeLock<'_> {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        self.tickets.borrow_mut().push_back(Ticket { number, range, waker: None });
        // From here on dropping the future gives the place up.
        let lock = RangeLock { locks: self, number };
        Turn(&lock).await;
        lock
    }

    fn poll_turn(&self, number: u64, waker: &Waker) -> Poll<()> {
        let mut tickets = self.tickets.borrow_mut();
        let Some(at) = tickets.iter().position(|t| t.number == number) else { return Poll::Ready(()) };
        let (before, rest) = tickets.make_contiguous().split_at_mut(at);
        let Some(mine) = rest.first_mut() else { return Poll::Ready(()) };
        if !before.iter().any(|t| overlap(&t.range, &mine.range)) {
            return Poll::Ready(());
        }
        mine.waker = Some(waker.clone());
        Poll::Pending
    }

    fn release(&self, number: u64) {
        let wakers: Vec<Waker> = {
            let mut tickets = self.tickets.borrow_mut();
            let Some(at) = tickets.iter().position(|t| t.number == number) else { return };
            let Some(gone) = tickets.remove(at) else { return };
            let behind = tickets.iter_mut().skip(at).filter(|t| overlap(&t.range, &gone.range));
            behind.filter_map(|t| t.waker.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

struct Turn<'a, 'l>(&'a RangeLock<'l>);

impl Future for Turn<'_, '_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.locks.poll_turn(self.0.number, cx.waker())
    }
}

/// A held range, free again on drop.
#[must_use]
pub struct RangeLock<'l> {
    locks: &'l RangeLocks,
    number: u64,
}

impl Drop for RangeLock<'_> {
    fn drop(&mut self) {
        self.locks.release(self.number);
    }
}

/// Counts I/O on mapped blocks, by epochs, so that one can wait for all that began before a moment
/// while newcomers go on.
#[derive(Default)]
pub struct InFlight {
    current: RefCell<Rc<Epoch>>,
    /// Epochs that somebody waits for, oldest first.
    ending: RefCell<Vec<Rc<Epoch>>>,
}

#[derive(Default)]
struct Epoch {
    running: Cell<usize>,
    ended: Notify,
}

impl InFlight {
    /// Counts one I/O until the result is dropped.
    pub fn enter(&self) -> Entered {
        let epoch = self.current.borrow().clone();
        epoch.running.set(epoch.running.get() + 1);
        Entered(epoch)
    }

    /// Waits until everything that entered before the call has left.
    pub async fn drain(&self) {
        let before = self.current.replace(Rc::default());
        self.ending.borrow_mut().push(before);
        let epochs = self.ending.borrow().clone();
        for epoch in epochs {
            loop {
                let ended = epoch.ended.notified();
                if epoch.running.get() == 0 {
                    break;
                }
                ended.await;
            }
        }
        self.ending.borrow_mut().retain(|epoch| epoch.running.get() > 0);
    }
}

/// One I/O under way.
pub struct Entered(Rc<Epoch>);

impl Drop for Entered {
    fn drop(&mut self) {
        let running = self.0.running.get() - 1;
        self.0.running.set(running);
        if running == 0 {
            self.0.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;

    fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn overlapping_ranges_take_turns_and_others_do_not_wait() {
        let locks = RangeLocks::default();
        let mut a = Box::pin(locks.lock(0..4));
        let Poll::Ready(a) = poll(&mut a) else { panic!("nobody is before it") };
        let mut all = Box::pin(locks.lock(0..u64::MAX));
        assert!(poll(&mut all).is_pending());
        let mut behind = Box::pin(locks.lock(9..10));
        assert!(poll(&mut behind).is_pending(), "it came after a waiter that overlaps it");
        assert!(locks.busy(9) && locks.busy(77));
        drop(a);
        let Poll::Ready(all) = poll(&mut all) else { panic!("its turn") };
        drop(all);
        assert!(poll(&mut behind).is_ready());
        drop(behind);
        assert!(!locks.busy(9));
    }

    #[test]
    fn a_waiter_that_gives_up_lets_others_pass() {
        let locks = RangeLocks::default();
        let mut first = Box::pin(locks.lock(0..1));
        let Poll::Ready(first) = poll(&mut first) else { panic!("nobody is before it") };
        let mut middle = Box::pin(locks.lock(0..9));
        assert!(poll(&mut middle).is_pending());
        let mut last = Box::pin(locks.lock(5..6));
        assert!(poll(&mut last).is_pending());
        drop(middle);
        assert!(poll(&mut last).is_ready());
        drop(first);
    }

    #[test]
    fn a_drain_waits_for_those_before_it_only() {
        let in_flight = InFlight::default();
        let old = in_flight.enter();
        let mut first = Box::pin(in_flight.drain());
        assert!(poll(&mut first).is_pending());
        let young = in_flight.enter();
        let mut second = Box::pin(in_flight.drain());
        assert!(poll(&mut second).is_pending());
        drop(old);
        assert!(poll(&mut first).is_ready());
        let mut third = Box::pin(in_flight.drain());
        assert!(poll(&mut third).is_pending(), "what the second one waits for came before it, too");
        assert!(poll(&mut second).is_pending());
        drop(young);
        assert!(poll(&mut second).is_ready() && poll(&mut third).is_ready());
        let mut empty = Box::pin(in_flight.drain());
        assert!(poll(&mut empty).is_ready());
        assert!(in_flight.ending.borrow().is_empty(), "nobody waits for what has ended");
    }
}
