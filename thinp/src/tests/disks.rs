//! Disks for tests: one with a volatile cache that a power cut empties at random, one that takes its time.

use platform::block::{BlockDevice, Io, Limits, Op, Request, SECTOR_BYTES};
use platform::layers::Trace;
use platform::mem::MemDisk;
use platform::random::Random;
use platform::task::Spawner;
use platform::time::{Duration, Timers};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

/// A random number below `n`.
pub fn below(random: &dyn Random, n: u64) -> u64 {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    u64::from_le_bytes(bytes) % n
}

/// What discarded sectors read as: nobody may count on zeroes.
const DISCARDED: u8 = 0xDD;

type Sector = [u8; SECTOR_BYTES];

/// A disk whose writes stay in a cache until a flush. Clones are the same disk.
#[derive(Clone)]
pub struct CachedDisk(Rc<Cached>);

struct Cached {
    durable: MemDisk,
    /// Versions of each sector written since the last flush, oldest first.
    cache: RefCell<BTreeMap<u64, Vec<Sector>>>,
    /// Flushes do nothing: to see that tests notice.
    flushes_lie: Cell<bool>,
    discards: Cell<u64>,
}

impl CachedDisk {
    pub fn new(durable: MemDisk) -> CachedDisk {
        CachedDisk(Rc::new(Cached {
            durable,
            cache: RefCell::default(),
            flushes_lie: Cell::new(false),
            discards: Cell::new(0),
        }))
    }

    /// From now on flushes do nothing.
    pub fn lie_about_flushes(&self) {
        self.0.flushes_lie.set(true);
    }

    /// Changes the size, as a hypervisor does.
    pub fn resize(&self, size_sectors: u64) {
        self.0.durable.resize(size_sectors);
    }

    /// Sectors discarded so far.
    pub fn discarded_sectors(&self) -> u64 {
        self.0.discards.get()
    }

    /// What a power cut leaves: of each sector what is durable or any version in the cache.
    pub fn cut(&self, random: &dyn Random) -> MemDisk {
        let left = self.0.durable.fork();
        for (sector, versions) in self.0.cache.borrow().iter() {
            let choice = below(random, versions.len() as u64 + 1) as usize;
            if let Some(version) = versions.get(choice) {
                left.poke(sector * SECTOR_BYTES as u64, version);
            }
        }
        left
    }

    /// Everything, as after a clean shutdown.
    pub fn contents(&self) -> MemDisk {
        let all = self.0.durable.fork();
        for (sector, versions) in self.0.cache.borrow().iter() {
            all.poke(sector * SECTOR_BYTES as u64, versions.last().unwrap());
        }
        all
    }

    fn get(&self, sector: u64, out: &mut [u8]) {
        match self.0.cache.borrow().get(&sector) {
            Some(versions) => out.copy_from_slice(versions.last().unwrap()),
            None => out.copy_from_slice(&self.0.durable.peek(sector * SECTOR_BYTES as u64, SECTOR_BYTES)),
        }
    }

    fn put(&self, sector: u64, bytes: Sector, fua: bool) {
        if fua && !self.0.flushes_lie.get() {
            self.0.cache.borrow_mut().remove(&sector);
            self.0.durable.poke(sector * SECTOR_BYTES as u64, &bytes);
        } else {
            self.0.cache.borrow_mut().entry(sector).or_default().push(bytes);
        }
    }

    fn flush(&self) {
        if !self.0.flushes_lie.get() {
            for (sector, versions) in self.0.cache.take() {
                self.0.durable.poke(sector * SECTOR_BYTES as u64, versions.last().unwrap());
            }
        }
    }
}

impl BlockDevice for CachedDisk {
    fn limits(&self) -> Limits {
        self.0.durable.limits()
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        let mut sector = request.sector;
        match request.op {
            Op::Read => {
                for out in request.bufs.iter_mut().flat_map(|buf| buf.chunks_exact_mut(SECTOR_BYTES)) {
                    self.get(sector, out);
                    sector += 1;
                }
            }
            Op::Write { fua } => {
                for bytes in request.bufs.iter().flat_map(|buf| buf.chunks_exact(SECTOR_BYTES)) {
                    self.put(sector, bytes.try_into().unwrap(), fua);
                    sector += 1;
                }
            }
            Op::Discard | Op::WriteZeroes => {
                let fill = if request.op == Op::Discard { DISCARDED } else { 0 };
                (sector..sector + request.sectors).for_each(|at| self.put(at, [fill; SECTOR_BYTES], false));
                if request.op == Op::Discard {
                    self.0.discards.set(self.0.discards.get() + request.sectors);
                }
            }
            Op::Flush => self.flush(),
        }
        io.complete(Ok(()));
    }
}

/// Passes each request on after a random time, so that requests overtake each other.
pub struct Slow {
    pub inner: Rc<dyn BlockDevice>,
    pub spawner: Spawner,
    pub timers: Timers,
    pub random: Rc<dyn Random>,
}

impl BlockDevice for Slow {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        let micros = below(&*self.random, 200);
        if micros < 50 {
            return self.inner.submit(io);
        }
        let (inner, sleep) = (self.inner.clone(), self.timers.sleep(Duration::from_micros(micros)));
        self.spawner.spawn(async move {
            sleep.await;
            inner.submit(io);
        });
    }
}

/// A disk with other limits.
pub struct Limited<D> {
    pub inner: D,
    pub change: fn(&mut Limits),
}

impl<D: BlockDevice> BlockDevice for Limited<D> {
    fn limits(&self) -> Limits {
        let mut limits = self.inner.limits();
        (self.change)(&mut limits);
        limits
    }

    fn submit(&self, io: Io) {
        self.inner.submit(io);
    }
}

/// Does not answer the requests that its rule picks until it is opened. Clones are the same disk.
#[derive(Clone)]
pub struct Gate {
    inner: Rc<dyn BlockDevice>,
    holds: fn(&Request) -> bool,
    opened: Rc<Cell<bool>>,
    pub held: Rc<RefCell<Vec<Io>>>,
}

impl Gate {
    pub fn new(inner: impl BlockDevice + 'static, holds: fn(&Request) -> bool) -> Gate {
        Gate { inner: Rc::new(inner), holds, opened: Rc::default(), held: Rc::default() }
    }

    /// Lets go what it holds, and all that comes.
    pub fn open(&self) {
        self.opened.set(true);
        self.held.take().into_iter().for_each(|io| self.inner.submit(io));
    }

    /// Holds again what comes from now on.
    pub fn close(&self) {
        self.opened.set(false);
    }
}

impl BlockDevice for Gate {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        if (self.holds)(io.request()) && !self.opened.get() {
            self.held.borrow_mut().push(io);
        } else {
            self.inner.submit(io);
        }
    }
}

/// Which disk, and what was asked of it.
pub type Log = Rc<RefCell<Vec<(&'static str, Op, u64)>>>;

/// Notes each request, when it starts.
pub fn logged(name: &'static str, inner: impl BlockDevice + 'static, log: &Log) -> Trace {
    let log = log.clone();
    Trace::new(Rc::new(inner), move |request, done| {
        if done.is_none() {
            log.borrow_mut().push((name, request.op, request.sector));
        }
    })
}
