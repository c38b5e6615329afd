//! Each operation of the pool against each kind of failure: the n-th read, write, flush or discard of a disk, or the n-th
//! buffer, for n = 1, 2, 3 … until the operation goes through without. After each failure the pool is in the documented
//! mode (reference 7.4), the error says where, and what a power cut then leaves is sound and holds what was acknowledged.

use super::{BLOCK, World, id, run};
use crate::control::{Errno, Mode};
use crate::metadata::MetadataError;
use crate::metadata::check::check;
use crate::{Change, Error, Features, OpenError, Pool, PoolOptions, Records, Thin};
use platform::Runtime;
use platform::block::{BlockDevice, Disk, IoError, Op, Request};
use platform::buf::BufPool;
use platform::layers::Fault;
use platform::mem::MemDisk;
use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::format;
use std::future::Future;
use std::pin::Pin;
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

/// A pool whose disks and buffers may fail.
struct Scene {
    world: World,
    pool: Pool,
    /// Device 0: four blocks, the first two shared with device 1. Device 2 has an external origin. Device 3 is large.
    thins: RefCell<BTreeMap<u64, Thin>>,
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

struct Case {
    name: &'static str,
    /// Success means that it is durable.
    durable: bool,
    /// What comes before, and does not fail.
    before: for<'a> fn(&'a Scene) -> Running<'a>,
    operation: for<'a> fn(&'a Scene) -> Running<'a>,
}

macro_rules! steps {
    (|$scene:ident| $body:expr) => {
        |$scene| {
            Box::pin(async move {
                $body;
                Ok(())
            })
        }
    };
}

macro_rules! case {
    ($name:literal, $durable:expr, $before:expr, $operation:expr) => {
        Case { name: $name, durable: $durable, before: $before, operation: $operation }
    };
}

/// Blocks of the large device.
const LARGE_BLOCKS: u64 = 300;
const ORIGIN_SECTORS: u64 = 2 * BLOCK + 40;
const ORIGIN_BYTE: u8 = 0x0A;

impl Scene {
    fn thin(&self, device: u64) -> Thin {
        self.thins.borrow()[&device].clone()
    }

    async fn put(&self, device: u64, sector: u64, sectors: u64, byte: u8) -> Result<(), Error> {
        self.world.write(&self.thin(device), sector, sectors, byte).await
    }

    /// Made before.
    async fn records(&self) -> Result<Records, Error> {
        Records::find(&self.pool).await?.ok_or(Error::NoPage(0))
    }
}

fn cases() -> Vec<Case> {
    std::vec![
        case!("create_thin", true, steps!(|_s| ()), steps!(|s| s.pool.message("create_thin 9").await.map(drop)?)),
        case!(
            "create_snap of an active device",
            true,
            steps!(|s| s.put(0, 5 * BLOCK, BLOCK, 0x51).await?),
            steps!(|s| s.pool.message("create_snap 9 0").await.map(drop)?)
        ),
        case!(
            "delete",
            true,
            steps!(|s| drop(s.thins.borrow_mut().remove(&1))),
            steps!(|s| s.pool.delete(id(1)).await?)
        ),
        case!(
            "delete of a large device",
            true,
            steps!(|s| drop(s.thins.borrow_mut().remove(&3))),
            steps!(|s| s.pool.delete(id(3)).await?)
        ),
        case!("set_transaction_id", true, steps!(|_s| ()), steps!(|s| s.pool.set_transaction_id(0, 7).await?)),
        case!(
            "reserve_metadata_snap",
            true,
            steps!(|s| s.put(0, 5 * BLOCK, BLOCK, 0x51).await?),
            steps!(|s| s.pool.reserve_metadata_snap().await.map(|_| ())?)
        ),
        case!(
            "release_metadata_snap",
            true,
            steps!(|s| {
                s.pool.reserve_metadata_snap().await?;
                s.put(0, 0, BLOCK, 0x51).await?;
            }),
            steps!(|s| s.pool.release_metadata_snap().await?)
        ),
        case!("first write of a block", false, steps!(|_s| ()), steps!(|s| s.put(0, 5 * BLOCK, BLOCK, 0x52).await?)),
        case!("first write of a part", false, steps!(|_s| ()), steps!(|s| s.put(0, 5 * BLOCK, 3, 0x53).await?)),
        case!("overwrite", false, steps!(|_s| ()), steps!(|s| s.put(0, 2 * BLOCK, BLOCK, 0x54).await?)),
        case!("breaking sharing, whole", false, steps!(|_s| ()), steps!(|s| s.put(0, 0, BLOCK, 0x55).await?)),
        case!("breaking sharing, copying", false, steps!(|_s| ()), steps!(|s| s.put(1, BLOCK, 3, 0x56).await?)),
        case!(
            "write across blocks, FUA",
            true,
            steps!(|_s| ()),
            steps!(|s| {
                let bytes = std::vec![0x57; 512 * 3 * BLOCK as usize];
                s.world.write_bytes(&s.thin(0), BLOCK, &bytes, true).await?;
            })
        ),
        case!(
            "zeroes over shared blocks",
            false,
            steps!(|_s| ()),
            steps!(|s| s.thin(0).write_zeroes(3, 2 * BLOCK).await?)
        ),
        case!("discard", false, steps!(|_s| ()), steps!(|s| s.thin(0).discard(0, 4 * BLOCK).await?)),
        case!(
            "discard of a large device, and commit",
            true,
            steps!(|_s| ()),
            steps!(|s| {
                s.thin(3).discard(0, LARGE_BLOCKS * BLOCK).await?;
                s.pool.commit().await?;
            })
        ),
        case!(
            "flush with changes",
            true,
            steps!(|s| s.put(0, 4 * BLOCK, 2 * BLOCK, 0x58).await?),
            steps!(|s| s.thin(0).flush().await?)
        ),
        case!(
            "flush without",
            true,
            steps!(|s| s.put(0, 2 * BLOCK, 9, 0x59).await?),
            steps!(|s| s.thin(0).flush().await?)
        ),
        case!("commit", true, steps!(|s| s.thin(0).discard(0, 2 * BLOCK).await?), steps!(|s| s.pool.commit().await?)),
        case!(
            "growth of both disks",
            true,
            steps!(|s| {
                s.world.meta.resize(900 * 8);
                s.world.data.resize(600 * BLOCK);
            }),
            steps!(|s| s.pool.grow().await?)
        ),
        case!("close", true, steps!(|s| s.put(0, 4 * BLOCK, BLOCK, 0x5A).await?), steps!(|s| s.pool.close().await?)),
        case!("read", false, steps!(|_s| ()), steps!(|s| drop(s.world.read(&s.thin(0), 0, 5 * BLOCK).await?))),
        case!(
            "read of an external origin",
            false,
            steps!(|_s| ()),
            steps!(|s| drop(s.world.read(&s.thin(2), 0, 4 * BLOCK).await?))
        ),
        case!(
            "copy from an external origin",
            false,
            steps!(|_s| ()),
            steps!(|s| s.put(2, 2 * BLOCK + 9, 3, 0x5B).await?)
        ),
        case!("records made", true, steps!(|_s| ()), steps!(|s| drop(Records::create(&s.pool).await?))),
        case!(
            "records changed",
            true,
            steps!(|s| drop(Records::create(&s.pool).await?)),
            steps!(|s| {
                let changes = [Change::CreateThin(id(8)), Change::CreateSnap { device: id(9), origin: id(0) }];
                s.records().await?.apply(&changes, &[(0, std::vec![7; 100]), (1, std::vec![8; 9])]).await?;
            })
        ),
    ]
}

/// What all cases start from: made once.
fn base() -> (MemDisk, MemDisk) {
    run(1, MemDisk::new(700 * 8), MemDisk::new(500 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        world.write(&thin, 2 * BLOCK, 2 * BLOCK, 0x22).await.unwrap();
        for device in [2, 3] {
            pool.create_thin(id(device)).await.unwrap();
        }
        let large = pool.open_thin(id(3), None).await.unwrap();
        for block in 0..LARGE_BLOCKS {
            world.write(&large, block * BLOCK, 1, 0x33).await.unwrap();
        }
        drop((thin, large));
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    })
}

/// What can be seen of a pool from outside: facts by name.
type Facts = BTreeMap<String, u64>;

async fn open_thins(pool: &Pool, origin: &Disk) -> Result<BTreeMap<u64, Thin>, Error> {
    let mut thins = BTreeMap::new();
    for (device, _) in pool.devices().await?.into_iter().filter(|(device, _)| device.get() < 100) {
        let origin = (device == id(2)).then(|| origin.clone());
        thins.insert(u64::from(device.get()), pool.open_thin(device, origin).await?);
    }
    Ok(thins)
}

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

/// An external origin that ends within a block.
fn origin() -> MemDisk {
    MemDisk::from_bytes(&std::vec![ORIGIN_BYTE; ORIGIN_SECTORS as usize * 512])
}

/// Runs a case over copies of the disks, with its n-th failure (from 0).
fn spoilt(case: Case, base: &(MemDisk, MemDisk), target: Target, n: u64, sticks: bool) -> Outcome {
    run(n, base.0.fork(), base.1.fork(), async move |world| {
        let failure = Rc::new(Failure { target, sticks, left: Cell::new(None), struck: Cell::new(false) });
        let meta = failure.over(world.meta.clone(), Target::Metadata);
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
    assert!(failures > 110, "{failures}");
}

#[test]
fn every_failure_of_data_disk_or_origin_fails_the_request_alone() {
    let failures = every_failure(&TARGETS[3..8], false);
    assert!(failures > 50, "{failures}");
}

#[test]
fn every_failure_of_an_allocation_leaves_a_sound_pool() {
    let failures = every_failure(&TARGETS[8..], false);
    assert!(failures > 110, "{failures}");
}

#[test]
fn a_metadata_disk_that_fails_for_good_fails_the_pool_and_stays_sound() {
    let failures = every_failure(&TARGETS[..3], true);
    assert!(failures > 110, "{failures}");
}

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

/// Runs every case on a pool of this size, one after the other; how many were refused for lack of space.
fn on_small_disks(metadata_blocks: u64, data_blocks: u64) -> u64 {
    let disks = (MemDisk::new(metadata_blocks * 8), MemDisk::new(data_blocks * BLOCK));
    run(metadata_blocks + data_blocks, disks.0, disks.1, async move |world| {
        let features = Features { error_if_no_space: true, ..Features::default() };
        let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
        let scene = Scene { world: world.clone(), pool, thins: RefCell::default() };
        let mut refused = 0;
        for case in cases().into_iter().filter(|case| !["close", "growth of both disks"].contains(&case.name)) {
            for device in 0..4 {
                // What is there already stays.
                let made = scene.pool.create_thin(id(device)).await;
                refused += u64::from(matches!(made, Err(Error::MessageRefused(_))));
            }
            *scene.thins.borrow_mut() = open_thins(&scene.pool, &Disk::new(origin())).await.unwrap();
            if scene.thins.borrow().len() < 4 {
                break;
            }
            for step in [case.before, case.operation] {
                match step(&scene).await {
                    Err(Error::NoDataSpace | Error::Refused(_) | Error::MessageRefused(_)) => refused += 1,
                    Err(Error::Metadata(MetadataError::NoMetadataSpace)) => refused += 1,
                    // The records are there, a metadata snapshot is or is not, the device is in use.
                    Err(error) if error.errno() != Errno::EIO => {}
                    Err(error) => panic!("{}: {error}", case.name),
                    Ok(()) => {}
                }
                let status = scene.pool.status();
                assert!(status.mode < Mode::ReadOnly && !status.needs_check, "{}: {status}", case.name);
            }
        }
        scene.pool.close().await.unwrap();
        let report = check(&world.runtime, &world.meta_disk(), 1 << 20).await.unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        refused
    })
}

/// The n-th allocation of a data block, or of a metadata block, finds none.
#[test]
fn every_size_of_a_full_disk_refuses_and_spoils_nothing() {
    let data: u64 = (1..24).map(|blocks| on_small_disks(512, blocks)).sum();
    let metadata: u64 = (64..160).map(|blocks| on_small_disks(blocks, 64)).sum();
    assert!(data > 20 && metadata > 100, "{data}, {metadata}");
}
