//! Each operation of the pool against each kind of failure: the n-th read, write, flush or discard of a disk, or the n-th
//! buffer, for n = 1, 2, 3 … until the operation goes through without. After each failure the pool is in the documented
//! mode (reference 7.4), the error says where, and what a power cut then leaves is sound and holds what was acknowledged.

mod cases;
mod opening;
mod space;

use self::cases::{Case, LARGE_BLOCKS, Scene, base, cases, open_thins, origin};
use super::{BLOCK, World, id, run};
use crate::control::Mode;
use crate::metadata::MetadataError;
use crate::metadata::check::check;
use crate::{Error, Pool, PoolOptions};
use platform::Runtime;
use platform::block::{BlockDevice, Disk, IoError, Op, Request};
use platform::buf::BufPool;
use platform::layers::{Fault, ShortTransfers};
use platform::mem::MemDisk;
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::format;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Metadata(Kind),
    Data(Kind),
    Origin,
    Buffer,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read,
    Write,
    Flush,
    Discard,
}

fn kind(request: &Request) -> Kind {
    match request.op {
        Op::Read => Kind::Read,
        Op::Write { .. } | Op::WriteZeroes => Kind::Write,
        Op::Flush => Kind::Flush,
        Op::Discard => Kind::Discard,
    }
}

const TARGETS: [Target; 9] = [
    Target::Metadata(Kind::Read),
    Target::Metadata(Kind::Write),
    Target::Metadata(Kind::Flush),
    Target::Data(Kind::Read),
    Target::Data(Kind::Write),
    Target::Data(Kind::Flush),
    Target::Data(Kind::Discard),
    Target::Origin,
    Target::Buffer,
];

/// Fails the n-th of what it targets, and all behind it if it sticks.
struct Failure {
    target: Target,
    sticks: bool,
    /// How many more go through; `None` while it is not armed.
    left: Cell<Option<u64>>,
    struck: Cell<bool>,
}

impl Failure {
    fn strikes(&self, target: Target) -> bool {
        let Some(left) = self.left.get().filter(|_| target == self.target) else { return false };
        self.left.set(Some(left.saturating_sub(1)));
        let strikes = left == 0 && (self.sticks || !self.struck.get());
        self.struck.set(self.struck.get() || strikes);
        strikes
    }

    fn over(self: &Rc<Self>, inner: impl BlockDevice + 'static, target: fn(Kind) -> Target) -> Disk {
        let failure = self.clone();
        Disk::new(Fault::new(Rc::new(inner), move |request| {
            let strikes = failure.strikes(target(kind(request)));
            strikes.then_some(IoError::Device { op: request.op, sector: request.sector })
        }))
    }
}

/// What can be seen of a pool from outside: facts by name.
type Facts = BTreeMap<String, u64>;

async fn facts(world: &World, pool: &Pool, origin: &Disk) -> Facts {
    let status = pool.status();
    let mut facts = Facts::from([
        ("transaction id".into(), status.transaction_id),
        ("metadata snapshot".into(), status.held_root.is_some().into()),
        ("data blocks".into(), status.data_total_blocks),
        ("metadata blocks".into(), status.metadata_total_blocks),
    ]);
    for (device, thin) in open_thins(pool, origin).await.unwrap() {
        facts.insert(format!("device {device}"), 1);
        for block in (0..8).chain([LARGE_BLOCKS - 1]) {
            for at in [0, 1, 9, 100] {
                let sector = world.read(&thin, block * BLOCK + at, 1).await.unwrap();
                facts.insert(format!("device {device}, block {block}, sector {at}"), sector[0].into());
            }
        }
    }
    facts
}

/// A fact that is not there is 0.
fn fact(facts: &Facts, name: &str) -> u64 {
    facts.get(name).copied().unwrap_or(0)
}

/// What came of a case.
struct Outcome {
    result: Result<(), Error>,
    mode: Mode,
    needs_check: bool,
    struck: bool,
    disks: (MemDisk, MemDisk),
}

/// Runs a case over copies of the disks, with its n-th failure (from 0).
fn spoilt(case: Case, base: &(MemDisk, MemDisk), target: Target, n: u64, sticks: bool) -> Outcome {
    run(n, base.0.fork(), base.1.fork(), async move |world| {
        let failure = Rc::new(Failure { target, sticks, left: Cell::new(None), struck: Cell::new(false) });
        // A request for each block, so that there are many to fail.
        let meta = failure.over(ShortTransfers::new(Rc::new(world.meta.clone()), 8), Target::Metadata);
        let data = failure.over(world.data.clone(), Target::Data);
        let origin = failure.over(origin(), |_| Target::Origin);
        let heap = failure.clone();
        let bufs = BufPool::with_heap(16 << 20, move |_| !heap.strikes(Target::Buffer));
        let runtime = Runtime { bufs, ..world.runtime.clone() };
        // As few blocks as the cache holds at least, so that metadata is read again and again.
        let options = PoolOptions { cache_blocks: 1, ..PoolOptions::default() };
        let pool = Pool::open(&runtime, meta, data, options).await.unwrap();
        let thins = RefCell::new(open_thins(&pool, &origin).await.unwrap());
        let scene = Scene { world: world.clone(), pool, thins };
        (case.before)(&scene).await.unwrap();
        failure.left.set(Some(n));
        let result = (case.operation)(&scene).await;
        // What it set off in the background.
        world.runtime.timers.sleep(core::time::Duration::from_millis(5)).await;
        failure.left.set(None);
        let status = scene.pool.status();
        let (mode, needs_check, struck) = (status.mode, status.needs_check, failure.struck.get());
        // After a failure the power fails, too.
        let disks = if struck { world.cut() } else { (world.meta.contents(), world.data.contents()) };
        Outcome { result, mode, needs_check, struck, disks }
    })
}

/// What is on the disks now: sound, and usable unless it needs a check.
fn inspect((meta, data): (MemDisk, MemDisk), what: &str) -> Facts {
    let what = what.to_string();
    run(2, meta, data, async move |world| {
        let report = check(&world.runtime, &world.meta_disk(), 1 << 20).await.unwrap();
        assert!(report.problems.is_empty(), "{what}: {:?}", report.problems);
        let pool = world.open().await;
        let origin = Disk::new(origin());
        let facts = facts(&world, &pool, &origin).await;
        if !pool.status().needs_check {
            let thin = pool.open_thin(id(0), None).await.unwrap();
            world.write(&thin, 20 * BLOCK, BLOCK, 0x77).await.unwrap();
            thin.flush().await.unwrap();
        }
        facts
    })
}

/// The mode, and the error, are those of the reference.
fn judge(outcome: &Outcome, target: Target, sticks: bool, what: &str) {
    let Outcome { result, mode, needs_check, .. } = outcome;
    let spoilt = matches!(result, Err(Error::Metadata(error)) if error.spoils());
    let of_data_flush = matches!(result, Err(Error::Metadata(MetadataError::DataFlush(_))));
    match target {
        // Without the disk not even the abort works; a lookup that fails changes nothing.
        Target::Metadata(Kind::Read) if sticks => assert!(matches!(mode, Mode::Fail | Mode::Write), "{what}: {mode}"),
        Target::Metadata(_) if sticks => assert_eq!(*mode, Mode::Fail, "{what}"),
        Target::Metadata(Kind::Write | Kind::Flush) => assert_eq!(*mode, Mode::ReadOnly, "{what}"),
        Target::Metadata(_) | Target::Buffer => assert!(spoilt || *mode == Mode::Write, "{what}: {mode}"),
        Target::Data(Kind::Flush) => {
            assert_eq!(*mode == Mode::ReadOnly, of_data_flush, "{what}: {mode}");
        }
        // The request fails, and nothing else.
        Target::Data(_) | Target::Origin => assert_eq!(*mode, Mode::Write, "{what}"),
    }
    assert!(*mode != Mode::ReadOnly || *needs_check, "{what}");
    let Err(error) = result else {
        // A disk may refuse to discard; and what was not needed for the answer may fail.
        let harmless = matches!(target, Target::Data(Kind::Discard) | Target::Buffer);
        return assert!(harmless || *mode != Mode::Write, "{what}: nobody was told");
    };
    let text = error.to_string();
    let place = ["metadata block", "metadata disk", "data disk", "thin device", "sector", "memory", "buffer"];
    assert!(place.iter().any(|place| text.contains(place)), "{what}: {text}");
}

fn every_failure(targets: &[Target], sticks: bool) -> u64 {
    let base = base();
    let at_first = inspect((base.0.fork(), base.1.fork()), "base");
    let mut failures = 0;
    for index in 0..cases().len() {
        let case = || cases().swap_remove(index);
        let name = case().name;
        let before =
            spoilt(Case { operation: |_| Box::pin(async { Ok(()) }), ..case() }, &base, Target::Origin, 0, false);
        let before = inspect(before.disks, name);
        for &target in targets {
            let mut after = Facts::new();
            let mut n = 0;
            let mut outcomes = Vec::new();
            loop {
                let outcome = spoilt(case(), &base, target, n, sticks);
                let what = format!("{name}, {target:?} {}, {:?}", n + 1, outcome.result);
                if !outcome.struck {
                    assert_eq!(outcome.result, Ok(()), "{what}");
                    after.extend(inspect(outcome.disks, &what));
                    break;
                }
                judge(&outcome, target, sticks, &what);
                outcomes.push((outcome, what));
                n += 1;
            }
            for (outcome, what) in outcomes {
                failures += 1;
                let done = outcome.result.is_ok() && case().durable;
                let found = inspect(outcome.disks, &what);
                for name in before.keys().chain(after.keys()).chain(found.keys()) {
                    let (now, new) = (fact(&found, name), fact(&after, name));
                    let old = [fact(&before, name), fact(&at_first, name)];
                    let may_be = now == new || (!done && old.contains(&now));
                    assert!(may_be, "{what}: {name} is {now:#x}, not {new:#x} or one of {old:x?}");
                }
            }
        }
    }
    failures
}

#[test]
fn every_failure_of_the_metadata_disk_leaves_a_sound_pool() {
    let failures = every_failure(&TARGETS[..3], false);
    assert!(failures > 150, "{failures}");
}

#[test]
fn every_failure_of_data_disk_or_origin_fails_the_request_alone() {
    let failures = every_failure(&TARGETS[3..8], false);
    assert!(failures > 50, "{failures}");
}

#[test]
fn every_failure_of_an_allocation_leaves_a_sound_pool() {
    let failures = every_failure(&TARGETS[8..], false);
    assert!(failures > 150, "{failures}");
}

#[test]
fn a_metadata_disk_that_fails_for_good_fails_the_pool_and_stays_sound() {
    let failures = every_failure(&TARGETS[..3], true);
    assert!(failures > 150, "{failures}");
}
