//! The appliance without its network, over disks in memory that record what is written.

mod deletions;
mod owner;
mod policies;
mod records;
mod sanitize;
mod snapshots;
mod streams;
mod transfers;

use crate::control::Manager;
use crate::repair::Workshop;
use crate::service::{Service, Targets};
use crate::settings::Settings;
use crate::{Secrets, startup};
use export::{Directory, LogicalUnit, Peer, Portal, PortalOptions};
use mgmt::*;
use platform::Runtime;
use platform::block::{BlockDevice, Bufs, Disk, Io, IoError, Limits, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::Executor;
use platform::time::WallClock;
use std::boxed::Box;
use std::cell::RefCell;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, println, vec};
use thinp::metadata::check;

/// Bytes of a data block of the tests' pools.
pub const BLOCK: u64 = 64 << 10;

/// What was written to the two disks, and when they were flushed, in the order in which it was completed.
#[derive(Clone)]
pub struct Journal {
    entries: Rc<RefCell<Vec<Entry>>>,
    faults: Rc<RefCell<Faults>>,
}

/// Which requests fail: the disk (0 for metadata, 1 for data), what is asked of it, and the sector.
type Faults = Box<dyn FnMut(usize, Op, u64) -> bool>;

enum Entry {
    Write { disk: usize, sector: u64, bytes: Vec<u8>, fua: bool },
    Flush { disk: usize },
}

/// A disk that records its writes.
struct Recorded {
    disk: usize,
    inner: MemDisk,
    journal: Journal,
}

impl BlockDevice for Recorded {
    fn limits(&self) -> Limits {
        // Writes and reads only: what is recorded is all that happens.
        Limits { discard_sectors_max: 0, write_zeroes_sectors_max: 0, ..self.inner.limits() }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        let (disk, op, sector) = (self.disk, request.op, request.sector);
        if (self.journal.faults.borrow_mut())(disk, op, sector) {
            return io.complete(Err(IoError::Device { op, sector }));
        }
        match op {
            Op::Write { fua } => {
                let bytes = request.bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                self.journal.entries.borrow_mut().push(Entry::Write { disk, sector, bytes, fua });
            }
            Op::Flush => self.journal.entries.borrow_mut().push(Entry::Flush { disk }),
            _ => {}
        }
        self.inner.submit(io);
    }
}

/// The disks of a pool.
#[derive(Clone)]
pub struct Disks {
    pub meta: MemDisk,
    pub data: MemDisk,
}

impl Disks {
    pub fn new(data_blocks: u64) -> Disks {
        Disks { meta: MemDisk::new(1024 * 8), data: MemDisk::new(data_blocks * BLOCK / SECTOR_BYTES as u64) }
    }

    pub fn fork(&self) -> Disks {
        Disks { meta: self.meta.fork(), data: self.data.fork() }
    }

    /// What a power cut leaves after so many of the recorded events: of what was not flushed, any part.
    pub fn after(&self, journal: &Journal, events: usize, random: &Seeded) -> Disks {
        let disks = self.fork();
        let journal = journal.entries.borrow();
        let flushed = |disk: usize| {
            let mut behind = journal.iter().take(events).enumerate().rev();
            behind.find(|(_, entry)| matches!(entry, Entry::Flush { disk: of } if *of == disk)).map_or(0, |(at, _)| at)
        };
        let flushed = [flushed(0), flushed(1)];
        for (at, entry) in journal.iter().take(events).enumerate() {
            let Entry::Write { disk, sector, bytes, fua } = entry else { continue };
            let mut coin = [0];
            random.fill(&mut coin);
            if at < flushed[*disk] || *fua || coin[0] % 2 == 0 {
                [&disks.meta, &disks.data][*disk].poke(sector * SECTOR_BYTES as u64, bytes);
            }
        }
        disks
    }
}

impl Journal {
    fn new() -> Journal {
        Journal { entries: Rc::default(), faults: Rc::new(RefCell::new(Box::new(|_, _, _| false))) }
    }

    /// Has these requests fail, and no others any more.
    pub fn fail(&self, faults: impl FnMut(usize, Op, u64) -> bool + 'static) {
        *self.faults.borrow_mut() = Box::new(faults);
    }

    pub fn fail_no_more(&self) {
        self.fail(|_, _, _| false);
    }

    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    pub fn clear(&self) {
        self.entries.borrow_mut().clear();
    }

    /// Commits: the superblock was written.
    pub fn commits(&self) -> usize {
        let superblock = |entry: &&Entry| matches!(entry, Entry::Write { disk: 0, sector: 0, .. });
        self.entries.borrow().iter().filter(superblock).count()
    }
}

/// A machine that does not know the time.
struct NoClock;

impl WallClock for NoClock {
    fn unix_seconds(&self) -> Option<u64> {
        None
    }
}

/// An appliance that is on.
pub struct World {
    pub runtime: Runtime,
    pub manager: Rc<Manager>,
    pub disks: Disks,
    pub journal: Journal,
}

/// Turns an appliance on.
pub fn run<T: 'static>(seed: u64, disks: Disks, test: impl AsyncFnOnce(Rc<World>) -> T + 'static) -> T {
    run_with(seed, disks, "check.start=no", test)
}

pub fn run_with<T: 'static>(
    seed: u64,
    disks: Disks,
    settings: &str,
    test: impl AsyncFnOnce(Rc<World>) -> T + 'static,
) -> T {
    println!("seed {seed}");
    let random: Rc<dyn Random> = Rc::new(Seeded::from_u64(seed));
    let (settings, warnings) = Settings::parse(settings);
    assert!(warnings.is_empty(), "{warnings:?}");
    simulated::run(&Executor::new(), random, 32 << 20, async move |runtime| {
        test(Rc::new(World::boot(runtime, disks, settings).await)).await
    })
}

impl World {
    async fn boot(runtime: Runtime, disks: Disks, settings: Settings) -> World {
        let journal = Journal::new();
        let recorded =
            |disk, inner: &MemDisk| Disk::new(Recorded { disk, inner: inner.clone(), journal: journal.clone() });
        let both = vec![("meta".to_string(), recorded(0, &disks.meta)), ("data".to_string(), recorded(1, &disks.data))];
        let unknown: Rc<dyn WallClock> = Rc::new(NoClock);
        let clock = settings.time.map_or(unknown, |time| time.from_now(&runtime.timers));
        let service = Service::new(&runtime, settings, &Secrets::default(), clock);
        let served = startup::open(&runtime, &both, &service, 256, &|_| ()).await.unwrap();
        service.serve(served);
        service.begin(&runtime);
        let portal = Portal::new(&runtime, Rc::new(Targets(service.clone())), PortalOptions::default());
        let workshop = Workshop { disks: both, memory_bytes: 1 << 20, console: Rc::new(|_| ()) };
        let manager = Rc::new(Manager { runtime: runtime.clone(), service, portal, workshop });
        World { runtime, manager, disks, journal }
    }

    pub fn below(&self, n: u64) -> u64 {
        let mut bytes = [0; 8];
        self.runtime.random.fill(&mut bytes);
        u64::from_le_bytes(bytes) % n
    }

    pub async fn create(&self, volume: &str, blocks: u64) -> Volume {
        let size_bytes = VolumeSize::new(blocks * BLOCK).unwrap();
        let new = NewVolume { name: name(volume), size_bytes, block_bytes: None, physical_block_bytes: None };
        self.manager.create_volume(new).await.unwrap()
    }

    pub async fn snapshot(&self, of: &str, snapshot: &str) -> Volume {
        let new = NewSnapshot { name: name(snapshot), read_only: true };
        self.manager.create_snapshot(&name(of), new).await.unwrap()
    }

    pub async fn volume(&self, volume: &str) -> Volume {
        self.manager.volume(&name(volume)).await.unwrap()
    }

    /// Exports a volume, and logs in.
    pub async fn login(&self, volume: &str) -> Result<Rc<crate::units::Unit>, export::Refusal> {
        let rule = Export { initiators: Initiators::All, addresses: Vec::new(), authentication: None };
        self.manager.set_export(&name(volume), Some(rule)).await.unwrap();
        self.login_again(volume).await
    }

    /// Logs in to a volume that is exported.
    pub async fn login_again(&self, volume: &str) -> Result<Rc<crate::units::Unit>, export::Refusal> {
        let target = self.manager.service.target_name(volume);
        let peer = Peer { initiator: "iqn.host".to_string(), address: [192, 0, 2, 1].into(), proven: None };
        Targets(self.manager.service.clone()).open(&target, &peer).await
    }

    /// Has a commit fail that has something to commit; the pool is read-only afterwards.
    pub async fn lose_a_transaction(&self) {
        let pool = self.manager.service.served().unwrap().pool.clone();
        self.journal.fail(|disk, op, _| disk == 1 && op == Op::Flush);
        pool.commit().await.unwrap_err();
        self.journal.fail_no_more();
    }

    /// Fills bytes of a volume, in a session of its own.
    pub async fn fill(&self, volume: &str, offset: u64, len: u64, byte: u8) {
        let unit = self.login(volume).await.unwrap();
        let mut buf = self.runtime.bufs.wait(len as usize).await.unwrap();
        buf.fill(byte);
        unit.write(offset, Bufs::from_iter([buf]), false).await.unwrap();
        unit.flush().await.unwrap();
    }

    /// All that a volume reads as.
    pub async fn contents(&self, volume: &str) -> Vec<u8> {
        let served = self.manager.service.served().unwrap();
        let record = served.catalog().named(volume).cloned().unwrap();
        let thin = served.pool.open_thin(record.id().unwrap(), None).await.unwrap();
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < record.size_bytes.unwrap() {
            let len = (record.size_bytes.unwrap() - bytes.len() as u64).min(1 << 20);
            let buf = self.runtime.bufs.wait(len as usize).await.unwrap();
            let (read, buf) = thin.read(bytes.len() as u64 / SECTOR_BYTES as u64, buf).await;
            read.unwrap();
            bytes.extend_from_slice(&buf);
        }
        bytes
    }

    /// The names of all records, the hidden ones included.
    pub fn records(&self) -> Vec<String> {
        let served = self.manager.service.served().unwrap();
        let catalog = served.catalog();
        let mut names: Vec<String> = catalog.volumes().map(|record| record.name.clone()).collect();
        names.sort();
        names
    }

    /// Waits until what goes on by itself has been done.
    pub async fn settle(&self) {
        self.runtime.timers.sleep(platform::time::Duration::from_secs(3)).await;
    }

    /// The metadata has no problem, and records and devices agree.
    pub async fn sound(&self) {
        let served = self.manager.service.served().unwrap();
        served.pool.commit().await.unwrap();
        let report = check::check(&self.runtime, &Disk::new(self.disks.meta.clone()), 1 << 20).await.unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        let devices = served.pool.devices().await.unwrap();
        assert_eq!(devices.len(), self.records().len() + 1, "{:?} and {devices:?}", self.records());
    }

    pub fn data_used_blocks(&self) -> u64 {
        self.manager.pool().unwrap().status.data_used_blocks
    }
}

pub fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

/// Who fails with this errno.
pub fn errno<T: core::fmt::Debug>(result: Result<T, ControlError>) -> String {
    format!("{}", result.unwrap_err().code)
}
