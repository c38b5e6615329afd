//! A single-core cooperative executor.
//!
//! Ready tasks run in the order in which they were woken, or, under the simulator, in an order that a
//! seed decides. When none is ready the [`Machine`] polls its devices, due timers fire, and if still
//! nothing is ready the machine parks until the next timer or an interrupt.

use crate::sync::oneshot;
use crate::time::{Instant, Timers};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, Poll, Waker};

/// Tasks run between two looks at the devices.
const BURST: usize = 64;

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// What an executor runs on.
pub trait Machine {
    /// Looks at the devices: sends what is queued, takes what completed. True if anything moved.
    fn poll(&self) -> bool;

    /// Nothing is ready: sleep until `deadline` (forever if none) or until a device wants attention.
    /// May return early.
    fn park(&self, deadline: Option<Instant>);
}

/// Runs tasks.
pub struct Executor(Rc<Shared>);

/// Starts tasks on an executor.
#[derive(Clone)]
pub struct Spawner(Rc<Shared>);

struct Shared {
    tasks: RefCell<Vec<Slot>>,
    vacant: RefCell<Vec<usize>>,
    ready: Arc<Ready>,
    /// Picks the next of `n` ready tasks; without it the oldest.
    chooser: Option<Box<dyn Fn(usize) -> usize>>,
    live: Cell<usize>,
}

struct Slot {
    future: Option<LocalFuture>,
    waker: Arc<TaskWaker>,
}

/// Wakers may be used from interrupt-like places and other threads; tasks themselves never are.
struct Ready(spin::Mutex<VecDeque<usize>>);

struct TaskWaker {
    index: usize,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.0.lock().push_back(self.index);
        }
    }
}

impl Default for Executor {
    fn default() -> Self {
        Executor::new()
    }
}

impl Executor {
    /// Runs ready tasks oldest first.
    pub fn new() -> Executor {
        Executor::build(None)
    }

    /// Lets `chooser(n)` pick which of the `n` ready tasks, oldest first, runs next: for the simulator.
    pub fn with_chooser(chooser: impl Fn(usize) -> usize + 'static) -> Executor {
        Executor::build(Some(Box::new(chooser)))
    }

    fn build(chooser: Option<Box<dyn Fn(usize) -> usize>>) -> Executor {
        Executor(Rc::new(Shared {
            tasks: RefCell::default(),
            vacant: RefCell::default(),
            ready: Arc::new(Ready(spin::Mutex::new(VecDeque::new()))),
            chooser,
            live: Cell::new(0),
        }))
    }

    /// A handle that starts tasks here.
    pub fn spawner(&self) -> Spawner {
        Spawner(self.0.clone())
    }

    /// Polls at most `most` ready tasks; true if any was.
    pub fn run_ready(&self, most: usize) -> bool {
        let mut ran = false;
        for _ in 0..most {
            let Some(index) = self.next_ready() else { break };
            self.poll_task(index);
            ran = true;
        }
        ran
    }

    /// Runs until `main` resolves.
    pub fn run<T: 'static>(
        &self,
        timers: &Timers,
        machine: &dyn Machine,
        main: impl Future<Output = T> + 'static,
    ) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawner().spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            let mut busy = self.run_ready(BURST);
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            busy |= machine.poll();
            busy |= timers.fire();
            if !busy && self.0.ready.0.lock().is_empty() {
                machine.park(timers.next_deadline());
            }
        }
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> usize {
        self.0.live.get()
    }

    /// Drops all tasks where they are, as a power cut does, and those that they start meanwhile.
    fn drop_tasks(&self) {
        loop {
            let futures: Vec<_> = self.0.tasks.borrow_mut().iter_mut().filter_map(|slot| slot.future.take()).collect();
            if futures.is_empty() {
                return;
            }
        }
    }

    fn next_ready(&self) -> Option<usize> {
        let mut ready = self.0.ready.0.lock();
        match &self.0.chooser {
            Some(choose) if ready.len() > 1 => {
                let at = choose(ready.len()).min(ready.len() - 1);
                ready.remove(at)
            }
            _ => ready.pop_front(),
        }
    }

    fn poll_task(&self, index: usize) {
        // The future is out of its slot while it runs, so that it can spawn.
        let (mut future, waker) = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(index) else { return };
            slot.waker.queued.store(false, Ordering::Release);
            let Some(future) = slot.future.take() else { return };
            (future, slot.waker.clone())
        };
        let waker = Waker::from(waker);
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => {
                if let Some(slot) = self.0.tasks.borrow_mut().get_mut(index) {
                    slot.future = Some(future);
                }
            }
            Poll::Ready(()) => {
                drop(future);
                self.0.live.set(self.0.live.get() - 1);
                self.0.vacant.borrow_mut().push(index);
            }
        }
    }
}

impl Drop for Executor {
    /// Tasks hold spawners, and these the tasks: without this neither would ever be freed.
    fn drop(&mut self) {
        self.drop_tasks();
    }
}

impl Spawner {
    /// Starts a task. It runs to its end whether or not the handle is kept.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let (sender, receiver) = oneshot::channel();
        self.start(Box::pin(async move { sender.send(future.await) }));
        JoinHandle(receiver)
    }

    fn start(&self, future: LocalFuture) {
        let shared = &self.0;
        let vacant = shared.vacant.borrow_mut().pop();
        let mut tasks = shared.tasks.borrow_mut();
        let index = vacant.unwrap_or(tasks.len());
        // A waker of its own for each task: a late wake of the slot's former task is a spurious poll at most.
        let waker = Arc::new(TaskWaker { index, queued: AtomicBool::new(false), ready: shared.ready.clone() });
        let slot = Slot { future: Some(future), waker: waker.clone() };
        match tasks.get_mut(index) {
            Some(place) => *place = slot,
            None => tasks.push(slot),
        }
        drop(tasks);
        shared.live.set(shared.live.get() + 1);
        waker.wake();
    }
}

/// Resolves to the task's result. Dropping it detaches the task.
pub struct JoinHandle<T>(oneshot::Receiver<T>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, oneshot::Gone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Lets other ready tasks run first.
pub async fn yield_now() {
    let mut yielded = false;
    core::future::poll_fn(|cx| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Runs a future that only waits for itself (a disk in memory, say): for examples and tests.
///
/// # Panics
/// If the future waits for something that never wakes it.
pub fn block_on_ready<T>(future: impl Future<Output = T>) -> T {
    let ready = Arc::new(Ready(spin::Mutex::new(VecDeque::new())));
    let waker = Arc::new(TaskWaker { index: 0, queued: AtomicBool::new(false), ready });
    let mut future = pin!(future);
    loop {
        waker.queued.store(false, Ordering::Release);
        match future.as_mut().poll(&mut Context::from_waker(&Waker::from(waker.clone()))) {
            Poll::Ready(value) => return value,
            Poll::Pending => assert!(waker.queued.load(Ordering::Acquire), "the future waits for something else"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Queue, Semaphore};

    #[test]
    fn tasks_run_in_order_and_can_spawn() {
        let executor = Executor::new();
        let log = Rc::new(RefCell::new(Vec::new()));
        let spawner = executor.spawner();
        for n in 0..3 {
            let (log, again) = (log.clone(), spawner.clone());
            spawner.spawn(async move {
                log.borrow_mut().push(n);
                yield_now().await;
                let inner = log.clone();
                again.spawn(async move { inner.borrow_mut().push(n + 10) }).await.unwrap();
                log.borrow_mut().push(n + 20);
            });
        }
        while executor.run_ready(1) {}
        assert_eq!(*log.borrow(), [0, 1, 2, 10, 11, 12, 20, 21, 22]);
        assert_eq!(executor.live(), 0);
    }

    #[test]
    fn tasks_end_with_their_executor() {
        let executor = Executor::new();
        let (spawner, witness) = (executor.spawner(), Rc::new(()));
        let held = witness.clone();
        executor.spawner().spawn(async move {
            let _held = (held, spawner);
            core::future::pending::<()>().await;
        });
        executor.run_ready(1);
        assert_eq!(Rc::strong_count(&witness), 2);
        drop(executor);
        assert_eq!(Rc::strong_count(&witness), 1);
    }

    #[test]
    fn a_semaphore_is_fair_and_a_dropped_waiter_leaves_the_queue() {
        let semaphore = Semaphore::new(2);
        let both = block_on_ready(semaphore.acquire(2));
        let mut waiting = Box::pin(semaphore.acquire(2));
        let mut behind = Box::pin(semaphore.acquire(1));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        assert!(behind.as_mut().poll(&mut cx).is_pending());
        drop(both);
        assert!(behind.as_mut().poll(&mut cx).is_pending(), "the first comes first");
        drop(waiting);
        assert!(behind.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_queue_bounds_and_closes() {
        let queue = Queue::new(1);
        assert!(queue.try_push(1).is_ok());
        assert_eq!(queue.try_push(2), Err(2));
        queue.close();
        assert_eq!(block_on_ready(queue.pop()), Some(1));
        assert_eq!(block_on_ready(queue.pop()), None);
    }
}
