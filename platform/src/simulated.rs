//! Simulated time: it passes only when everybody waits for it. So a test takes no longer for its sleeps, and runs the
//! same way every time.

use crate::Runtime;
use crate::buf::BufPool;
use crate::random::Random;
use crate::task::{Executor, Machine};
use crate::time::{Clock, Instant, Timers};
use alloc::rc::Rc;
use core::cell::Cell;

/// A clock that stands still while anybody has anything to do.
#[derive(Debug, Default)]
pub struct StillClock(Cell<Instant>);

impl Clock for StillClock {
    fn now(&self) -> Instant {
        self.0.get()
    }
}

/// A machine without devices.
impl Machine for StillClock {
    fn poll(&self) -> bool {
        false
    }

    /// Goes on to `deadline`.
    ///
    /// # Panics
    /// If everybody waits for something that will never happen.
    fn park(&self, deadline: Option<Instant>) {
        let deadline = deadline.expect("everybody waits, and nothing will ever happen");
        self.0.set(deadline.max(self.0.get()));
    }
}

/// Runs `main` in simulated time on an executor, with `bufs_bytes` for I/O buffers.
pub fn run<T: 'static>(
    executor: &Executor,
    random: Rc<dyn Random>,
    bufs_bytes: usize,
    main: impl AsyncFnOnce(Runtime) -> T + 'static,
) -> T {
    let clock = Rc::new(StillClock::default());
    let timers = Timers::new(clock.clone());
    let runtime =
        Runtime { spawner: executor.spawner(), timers: timers.clone(), random, bufs: BufPool::new(bufs_bytes) };
    executor.run(&timers, &*clock, async move { main(runtime).await })
}

/// A runtime for futures that complete at once ([`crate::task::block_on_ready`]): its tasks are never run.
pub fn runtime_at_once(random: Rc<dyn Random>, bufs_bytes: usize) -> Runtime {
    let timers = Timers::new(Rc::new(StillClock::default()));
    Runtime { spawner: Executor::new().spawner(), timers, random, bufs: BufPool::new(bufs_bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Seeded;
    use crate::time::Duration;

    #[test]
    fn a_day_takes_no_time_and_sleepers_wake_in_order() {
        const HOUR: Duration = Duration::from_secs(3600);
        let random = Rc::new(Seeded::from_u64(1));
        let passed = run(&Executor::new(), random, 0, async |runtime| {
            let (start, timers) = (runtime.timers.now(), runtime.timers.clone());
            let later = runtime.spawner.spawn(async move {
                timers.sleep(24 * HOUR).await;
                timers.now()
            });
            runtime.timers.sleep(HOUR).await;
            let first = runtime.timers.now();
            (first - start, later.await.unwrap() - start)
        });
        assert_eq!(passed, (HOUR, 24 * HOUR));
    }

    #[test]
    #[should_panic(expected = "nothing will ever happen")]
    fn waiting_for_nothing_is_told() {
        run(&Executor::new(), Rc::new(Seeded::from_u64(1)), 0, async |_| core::future::pending::<()>().await);
    }
}
