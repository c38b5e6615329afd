//! The pool against a naive model of it: a million random operations on tiny disks with tiny caches, half of them on each
//! of two threads. `SEED=n` repeats a run, `EFFORT=n` makes it n times as long.
//!
//! What happened is counted, from the model and from the library's own log, and none of it may be rare.

mod copies;
mod discards;
mod driver;
mod history;
mod lives;
mod messages;
mod model;
mod trees;
mod verify;
mod world;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;

/// What happened how often.
type Counts = BTreeMap<String, u64>;

thread_local! {
    static COUNTS: RefCell<Counts> = RefCell::default();
}

/// Something happened.
fn count(what: &str) {
    COUNTS.with_borrow_mut(|counts| match counts.get_mut(what) {
        Some(count) => *count += 1,
        None => drop(counts.insert(what.to_owned(), 1)),
    });
}

/// Counts what the libraries tell at the finest level.
struct CountingLog;

impl log::Log for CountingLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == log::Level::Trace && metadata.target().starts_with("pdata")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            match record.args().as_str() {
                Some(text) if !history::IN_TREE.get() => count(text),
                _ if history::IN_TREE.get() => count(&format!("tree: {}", record.args())),
                _ => count(&record.args().to_string()),
            }
        }
    }

    fn flush(&self) {}
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

const OPERATIONS: u64 = 1_000_000;

#[test]
fn a_million_operations_agree_with_the_model() {
    static LOG: CountingLog = CountingLog;
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("SEED").unwrap_or_else(|| clock() % 1_000_000_007);
    let effort = number("EFFORT").unwrap_or(1).max(1);
    tell(&format!("SEED={seed} EFFORT={effort}\n"));
    let begun = std::time::Instant::now();
    let threads = [0, 1].map(|thread| {
        std::thread::spawn(move || {
            let told = TellWhere;
            history::run_all(seed * 2 + thread, OPERATIONS / 2 * effort);
            drop(told);
            COUNTS.take()
        })
    });
    let mut counts = Counts::new();
    for thread in threads {
        let mine = thread.join().unwrap_or_else(|_| panic!("the model disagrees: SEED={seed} repeats it"));
        mine.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
    }
    let mut table = String::new();
    counts.iter().for_each(|(what, count)| writeln!(table, "{count:>9} {what}").unwrap());
    writeln!(table, "          in {:.1} s", begun.elapsed().as_secs_f64()).unwrap();
    tell(&table);
    let rare: Vec<_> = history::FLOORS
        .iter()
        .filter(|(what, floor)| counts.get(*what).copied().unwrap_or(0) < floor * effort)
        .collect();
    assert!(rare.is_empty(), "too rare: {rare:?}");
}

/// Tells where a history came to its end.
struct TellWhere;

impl Drop for TellWhere {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, step) = history::WHERE.get();
            tell(&format!("history {seed}, operation {step}\n"));
        }
    }
}

/// Past the capture of tests' output: what happened is to be seen in CI.
fn tell(text: &str) {
    std::io::stdout().lock().write_all(text.as_bytes()).unwrap();
}
