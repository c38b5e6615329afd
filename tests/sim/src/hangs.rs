//! What no simulated clock can see: a task that goes round and round and never waits for anything.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Real seconds in which nothing happens in a world. A run takes about one.
const PATIENCE_SECONDS: u32 = 20;

/// A run, and how much has happened in it.
struct Watched {
    seed: u64,
    beats: Arc<AtomicU64>,
}

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

thread_local! {
    static BEATS: Arc<AtomicU64> = Arc::default();
}

fn watched() -> MutexGuard<'static, Vec<Watched>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something happened in a world of this thread, or its time goes on.
pub fn beat() {
    BEATS.with(|beats| beats.fetch_add(1, Ordering::Relaxed));
}

/// A run of this seed goes on in this thread until this is dropped.
pub struct Watch(u64);

impl Watch {
    pub fn begin(seed: u64) -> Watch {
        watched().push(Watched { seed, beats: BEATS.with(Arc::clone) });
        Watch(seed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        watched().retain(|watched| watched.seed != self.0);
    }
}

/// Calls `tell` with the seed of a run that hangs. To be called once.
pub fn watch(tell: impl Fn(u64) + Send + 'static) {
    thread::spawn(move || {
        let mut before: Vec<(u64, u64, u32)> = Vec::new();
        loop {
            // One second after the other: who is stopped is not watched.
            thread::sleep(Duration::from_secs(1));
            let now: Vec<(u64, u64)> =
                watched().iter().map(|run| (run.seed, run.beats.load(Ordering::Relaxed))).collect();
            let idle = |run: &(u64, u64)| {
                before.iter().find(|(seed, beats, _)| (*seed, *beats) == *run).map_or(0, |(_, _, idle)| idle + 1)
            };
            before = now.iter().map(|run| (run.0, run.1, idle(run))).collect();
            if let Some((seed, ..)) = before.iter().find(|(_, _, idle)| *idle >= PATIENCE_SECONDS) {
                tell(*seed);
            }
        }
    });
}
