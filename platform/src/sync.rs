//! What tasks of one executor wait on. Single-threaded: nothing here is `Send`.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

/// A value sent once.
pub mod oneshot {
    use super::*;

    struct Slot<T> {
        value: Option<T>,
        waker: Option<Waker>,
        sender_gone: bool,
    }

    /// The sender was dropped without sending.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
    #[error("the sender is gone")]
    pub struct Gone;

    /// Sends the value.
    pub struct Sender<T>(Rc<RefCell<Slot<T>>>);

    /// Resolves to the value.
    pub struct Receiver<T>(Rc<RefCell<Slot<T>>>);

    /// A connected pair.
    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let slot = Rc::new(RefCell::new(Slot { value: None, waker: None, sender_gone: false }));
        (Sender(slot.clone()), Receiver(slot))
    }

    impl<T> Sender<T> {
        /// Hands the value over. If the receiver is gone the value is dropped.
        pub fn send(self, value: T) {
            self.0.borrow_mut().value = Some(value);
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            let waker = {
                let mut slot = self.0.borrow_mut();
                slot.sender_gone = true;
                slot.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    impl<T> Future for Receiver<T> {
        type Output = Result<T, Gone>;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            let mut slot = self.0.borrow_mut();
            if let Some(value) = slot.value.take() {
                return Poll::Ready(Ok(value));
            }
            if slot.sender_gone {
                return Poll::Ready(Err(Gone));
            }
            slot.waker = Some(cx.waker().clone());
            Poll::Pending
        }
    }
}

/// Wakes whoever waits. A notification without a waiter is lost: take [`Notify::notified`] first,
/// then look at the state, then await.
#[derive(Default)]
pub struct Notify {
    /// Counts notifications, so that a [`Notified`] sees those since it was made.
    generation: Cell<u64>,
    next_ticket: Cell<u64>,
    /// Of those who wait, by their tickets: in the order in which they came.
    wakers: RefCell<BTreeMap<u64, Waker>>,
}

impl Notify {
    /// Nobody waits yet.
    pub const fn new() -> Notify {
        Notify { generation: Cell::new(0), next_ticket: Cell::new(0), wakers: RefCell::new(BTreeMap::new()) }
    }

    /// Resolves at the first [`Notify::notify_all`] after this call.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, generation: self.generation.get(), ticket: None }
    }

    /// Wakes everybody who waits.
    pub fn notify_all(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        let wakers = core::mem::take(&mut *self.wakers.borrow_mut());
        wakers.into_values().for_each(Waker::wake);
    }
}

/// The future of [`Notify::notified`]. Dropping it ends the waiting.
pub struct Notified<'a> {
    notify: &'a Notify,
    generation: u64,
    ticket: Option<u64>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let notify = self.notify;
        if notify.generation.get() != self.generation {
            return Poll::Ready(());
        }
        let ticket = *self.ticket.get_or_insert_with(|| notify.next_ticket.replace(notify.next_ticket.get() + 1));
        notify.wakers.borrow_mut().insert(ticket, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.notify.wakers.borrow_mut().remove(&ticket);
        }
    }
}

/// A first-come-first-served counter of permits: one permit is a mutex, and where readers take one
/// and a writer takes all it is a reader-writer lock.
pub struct Semaphore {
    free: Cell<usize>,
    next_ticket: Cell<u64>,
    queue: RefCell<VecDeque<Ticket>>,
}

struct Ticket {
    number: u64,
    permits: usize,
    waker: Option<Waker>,
}

impl Semaphore {
    /// `permits` are free.
    pub const fn new(permits: usize) -> Semaphore {
        Semaphore { free: Cell::new(permits), next_ticket: Cell::new(0), queue: RefCell::new(VecDeque::new()) }
    }

    /// Waits for `permits`, in turn.
    pub fn acquire(&self, permits: usize) -> Acquire<'_> {
        Acquire { semaphore: self, permits, ticket: None }
    }

    /// Takes `permits` if nobody waits and enough are free.
    pub fn try_acquire(&self, permits: usize) -> Option<Permit<'_>> {
        if !self.queue.borrow().is_empty() || self.free.get() < permits {
            return None;
        }
        self.free.set(self.free.get() - permits);
        Some(Permit { semaphore: self, permits })
    }

    fn wake_first(&self) {
        let waker = {
            let mut queue = self.queue.borrow_mut();
            queue.front_mut().filter(|t| t.permits <= self.free.get()).and_then(|t| t.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The future of [`Semaphore::acquire`]. Dropping it gives up its place.
pub struct Acquire<'a> {
    semaphore: &'a Semaphore,
    permits: usize,
    ticket: Option<u64>,
}

impl<'a> Future for Acquire<'a> {
    type Output = Permit<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit<'a>> {
        let semaphore = self.semaphore;
        let Some(number) = self.ticket else {
            if let Some(permit) = semaphore.try_acquire(self.permits) {
                return Poll::Ready(permit);
            }
            let number = semaphore.next_ticket.get();
            semaphore.next_ticket.set(number + 1);
            let ticket = Ticket { number, permits: self.permits, waker: Some(cx.waker().clone()) };
            semaphore.queue.borrow_mut().push_back(ticket);
            self.ticket = Some(number);
            return Poll::Pending;
        };
        let mut queue = semaphore.queue.borrow_mut();
        let first = queue.front().is_some_and(|t| t.number == number);
        if first && semaphore.free.get() >= self.permits {
            queue.pop_front();
            drop(queue);
            self.ticket = None;
            semaphore.free.set(semaphore.free.get() - self.permits);
            semaphore.wake_first();
            return Poll::Ready(Permit { semaphore, permits: self.permits });
        }
        if let Some(ticket) = queue.iter_mut().find(|t| t.number == number) {
            ticket.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.ticket {
            self.semaphore.queue.borrow_mut().retain(|t| t.number != number);
            self.semaphore.wake_first();
        }
    }
}

/// Held permits, free again on drop.
#[must_use]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    permits: usize,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.semaphore.free.set(self.semaphore.free.get() + self.permits);
        self.semaphore.wake_first();
    }
}

/// A bounded queue between tasks. Clones share it.
pub struct Queue<T>(Rc<QueueShared<T>>);

struct QueueShared<T> {
    items: RefCell<VecDeque<T>>,
    most: usize,
    closed: Cell<bool>,
    changed: Notify,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue(self.0.clone())
    }
}

impl<T> Queue<T> {
    /// A queue that holds at most `most` items.
    pub fn new(most: usize) -> Queue<T> {
        Queue(Rc::new(QueueShared {
            items: RefCell::default(),
            most,
            closed: Cell::new(false),
            changed: Notify::new(),
        }))
    }

    /// Appends, or returns the item if the queue is full or closed.
    pub fn try_push(&self, item: T) -> Result<(), T> {
        if self.0.closed.get() || self.0.items.borrow().len() >= self.0.most {
            return Err(item);
        }
        self.0.items.borrow_mut().push_back(item);
        self.0.changed.notify_all();
        Ok(())
    }

    /// Appends, waiting for room. Returns the item if the queue is closed.
    pub async fn push(&self, mut item: T) -> Result<(), T> {
        loop {
            let changed = self.0.changed.notified();
            item = match self.try_push(item) {
                Ok(()) => return Ok(()),
                Err(item) if self.0.closed.get() => return Err(item),
                Err(item) => item,
            };
            changed.await;
        }
    }

    /// Takes the oldest item; `None` once the queue is closed and empty.
    pub async fn pop(&self) -> Option<T> {
        loop {
            let changed = self.0.changed.notified();
            if let Some(item) = self.try_pop() {
                return Some(item);
            }
            if self.0.closed.get() {
                return None;
            }
            changed.await;
        }
    }

    /// Takes the oldest item if there is one.
    pub fn try_pop(&self) -> Option<T> {
        let item = self.0.items.borrow_mut().pop_front()?;
        self.0.changed.notify_all();
        Some(item)
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.0.items.borrow().len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Refuses further items and wakes everybody.
    pub fn close(&self) {
        self.0.closed.set(true);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Seeded;
    use crate::simulated;
    use crate::task::Executor;
    use crate::time::Duration;

    #[test]
    fn who_gave_up_waiting_is_forgotten() {
        let waiting = simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(1)), 0, async |runtime| {
            let event = Rc::new(Notify::new());
            for _ in 0..10 {
                let (event, timers) = (event.clone(), runtime.timers.clone());
                let waiter = async move { timers.timeout(Duration::from_secs(30), event.notified()).await };
                assert!(runtime.spawner.spawn(waiter).await.unwrap().is_err());
            }
            event.wakers.borrow().len()
        });
        assert_eq!(waiting, 0);
    }
}
