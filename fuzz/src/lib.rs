//! Coverage-guided fuzzing of what reads a metadata disk or a stream, and of what an initiator can send: `cargo xtask fuzz
//! TARGET` (libFuzzer, on stable Rust).
//!
//! - [`image`] turns a fuzzer's bytes into a disk: a small pool made by `thinp`, changed in a few places, its checksums
//!   made right again, so that the fuzzer gets behind them;
//! - [`disk`] is that disk, of a bounded size and cheap to make;
//! - [`iscsi`] plays whole sessions against a live target in memory; the disk, its target and the pipes are those of the
//!   tests of `export`;
//! - [`run`] does one execution within the budget of memory.
//!
//! The targets under `src/bin` may return any error. They must not panic, loop for ever (libFuzzer's `-timeout`) or
//! allocate more than [`BUDGET_BYTES`].
#![forbid(unsafe_code)]

#[path = "../../export/tests/common/mod.rs"]
pub mod common;
pub mod disk;
pub mod image;
pub mod iscsi;
#[path = "../../export/tests/portal/pipe.rs"]
mod pipe;

use cap::Cap;
use platform::Runtime;
use platform::random::Seeded;
use platform::simulated;
use platform::task::block_on_ready;
use std::alloc::System;
use std::rc::Rc;

/// What one execution may have allocated at a time: the heap that a pool of any size gets by with.
pub const BUDGET_BYTES: usize = 64 << 20;

/// Metadata blocks in the cache: few, so that it is always full.
pub const CACHE_BLOCKS: usize = 16;

/// An allocation beyond its limit fails, which ends the process: libFuzzer keeps the input.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// A runtime whose tasks are never run: everything that is fuzzed completes at once.
pub fn runtime() -> Runtime {
    simulated::runtime_at_once(Rc::new(Seeded::from_u64(1)), 1 << 20)
}

/// Runs `test` within the budget, over what the harness holds already.
pub fn run(test: impl Future<Output = ()>) {
    image::prepare();
    within_budget(|| block_on_ready(test));
}

/// Runs `test` within the budget.
pub fn within_budget(test: impl FnOnce()) {
    HEAP.set_limit(HEAP.allocated() + BUDGET_BYTES).expect("the limit is above what is allocated");
    test();
    HEAP.set_limit(usize::MAX).expect("no limit");
}
