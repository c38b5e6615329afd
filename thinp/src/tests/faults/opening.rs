//! Each failure while a pool is opened or made.

use super::super::{BLOCK, World, id, run};
use super::cases::base;
use super::{Failure, TARGETS, Target};
use crate::control::Mode;
use crate::metadata::check::check;
use crate::{OpenError, Pool, PoolOptions};
use platform::Runtime;
use platform::buf::BufPool;
use platform::mem::MemDisk;
use std::cell::Cell;
use std::format;
use std::rc::Rc;
use std::string::String;

/// Opens a pool whose n-th request or allocation fails; what it said, whether that happened, and what a power cut leaves.
fn opened(disks: (MemDisk, MemDisk), target: Target, n: u64) -> (Result<(), OpenError>, bool, (MemDisk, MemDisk)) {
    run(n, disks.0, disks.1, async move |world| {
        let failure = Rc::new(Failure { target, sticks: false, left: Cell::new(Some(n)), struck: Cell::new(false) });
        let meta = failure.over(world.meta.clone(), Target::Metadata);
        let data = failure.over(world.data.clone(), Target::Data);
        let heap = failure.clone();
        let bufs = BufPool::with_heap(16 << 20, move |_| !heap.strikes(Target::Buffer));
        let runtime = Runtime { bufs, ..world.runtime.clone() };
        let result = Pool::open(&runtime, meta, data, PoolOptions::default()).await.map(drop);
        (result, failure.struck.get(), world.cut())
    })
}

/// Every failure while a pool is opened, or made: the next opening goes well.
fn every_failure_of_opening(disks: impl Fn() -> (MemDisk, MemDisk)) -> u64 {
    let mut failures = 0;
    for target in TARGETS {
        for n in 0.. {
            let (result, struck, left) = opened(disks(), target, n);
            let what = format!("opening, {target:?} {}, {result:?}", n + 1);
            // A write-out that gets no buffer waits for those under way, if there are any.
            let harmless = target == Target::Buffer && result.is_ok();
            assert!(result.is_err() == struck || harmless, "{what}");
            run(n, left.0, left.1, async move |world| {
                world.pool_with_new_device(what).await;
            });
            if !struck {
                break;
            }
            failures += 1;
        }
    }
    failures
}

impl World {
    async fn pool_with_new_device(&self, what: String) {
        let pool = self.open().await;
        assert_eq!(pool.status().mode, Mode::Write, "{what}");
        pool.create_thin(id(9)).await.unwrap();
        pool.close().await.unwrap();
        let report = check(&self.runtime, &self.meta_disk(), 1 << 20).await.unwrap();
        assert!(report.problems.is_empty(), "{what}: {:?}", report.problems);
    }
}

#[test]
fn every_failure_of_opening_or_making_a_pool_leaves_one_that_opens() {
    let base = base();
    assert!(every_failure_of_opening(|| (base.0.fork(), base.1.fork())) > 5);
    assert!(every_failure_of_opening(|| (MemDisk::new(512 * 8), MemDisk::new(32 * BLOCK))) > 15);
}
