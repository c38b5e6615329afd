//! The simulated disk, and what may go wrong with it.
//!
//! A disk is four things, kept apart: the **durable** bytes; the **volatile** versions of sectors, each from a write,
//! discard or write-zeroes that is under way or was completed and not flushed since; **bad** sectors, which cannot be read;
//! and **overlays**, which are read in place of what a sector holds. Bad sectors and overlays last until the sector is
//! written again.
//!
//! - *Time.* Each request takes some time, a few of them long, and they end in any order. A read sees what was completed
//!   before it ends.
//! - *Flush.* When it completes, of every sector the last version that was complete when the flush was sent is durable, and
//!   the ones before it are gone. A write with FUA is durable when it completes.
//! - *Power cut.* Of each sector's volatile versions, those under way included, any one may be durable, or none. So
//!   requests are torn at sectors and reordered at will; what a completed flush or FUA write covers is never lost.
//! - *Discard.* The sectors hold nonsense afterwards, not zeroes.
//! - *Errors.* A request may fail. Of a write that failed any sectors may have been written. Reading a bad sector fails. A
//!   disk that is full takes no write to a page that it has no room for; all else goes on.
//! - *Lies.* A read may come back with a bit flipped; a write may end up elsewhere, or nowhere, with success, so that
//!   reads are stale; a flush may do nothing. No storage can keep its promises over the last three; what the appliance must
//!   do nevertheless, [`crate::lies`] says.
//!
//! [`Faults`] says how often each happens, and counts what did.

use crate::faults::{self, Deed, Faults};
use crate::image::{Image, Sector};
use crate::quick::limits;
use crate::world::World;
use platform::block::{BlockDevice, Io, IoError, Limits, Op, SECTOR_BYTES};
use platform::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

/// What discarded sectors hold.
pub const NONSENSE: u8 = 0xDD;

/// A disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Rc<Shared>);

struct Shared {
    world: World,
    /// For the trace.
    name: u64,
    state: RefCell<State>,
    faults: RefCell<Faults>,
    size_sectors: Cell<u64>,
    /// Called when a first sector that was written has become durable.
    first_sector_durable: RefCell<Option<Rc<dyn Fn()>>>,
}

struct State {
    durable: Image,
    /// As reads see it.
    current: Image,
    /// By sector: completed ones in the order of their completion, then those under way.
    volatile: BTreeMap<u64, Vec<Version>>,
    requests: u64,
    /// Where the writes under way go.
    writing: BTreeMap<u64, Range<u64>>,
    completions: u64,
    bad: BTreeSet<u64>,
    overlays: BTreeMap<u64, Box<Sector>>,
}

struct Version {
    request: u64,
    content: Content,
    /// The number of the completion.
    completed: Option<u64>,
}

#[derive(Clone)]
enum Content {
    Zeroes,
    Nonsense,
    /// A sector of a write.
    Bytes(Rc<[u8]>, usize),
}

impl Content {
    fn sector(&self) -> Sector {
        match self {
            Content::Zeroes => [0; SECTOR_BYTES],
            Content::Nonsense => [NONSENSE; SECTOR_BYTES],
            Content::Bytes(bytes, at) => *bytes[*at..].first_chunk().expect("writes are of whole sectors"),
        }
    }
}

/// A request whose outcome a power cut decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outstanding {
    pub request: u64,
    pub sector: u64,
    pub completed: bool,
}

impl SimDisk {
    /// A disk that holds `image`.
    pub fn new(world: &World, name: u64, image: Image) -> SimDisk {
        let size_sectors = Cell::new(image.size_sectors());
        let state = State {
            current: image.clone(),
            durable: image,
            volatile: BTreeMap::new(),
            requests: 0,
            writing: BTreeMap::new(),
            completions: 0,
            bad: BTreeSet::new(),
            overlays: BTreeMap::new(),
        };
        SimDisk(Rc::new(Shared {
            world: world.clone(),
            name,
            state: RefCell::new(state),
            faults: RefCell::default(),
            size_sectors,
            first_sector_durable: RefCell::default(),
        }))
    }

    /// Changes what goes wrong.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.faults.borrow_mut());
    }

    /// Has `f` called each time that a first sector which was written has become durable.
    pub fn when_first_sector_durable(&self, f: impl Fn() + 'static) {
        *self.0.first_sector_durable.borrow_mut() = Some(Rc::new(f));
    }

    /// The disk grows while it is in use.
    pub fn grow(&self, size_sectors: u64) {
        let mut state = self.0.state.borrow_mut();
        state.durable.grow(size_sectors);
        state.current.grow(size_sectors);
        self.0.size_sectors.set(size_sectors.max(self.0.size_sectors.get()));
    }

    /// Its size now.
    pub fn size_sectors(&self) -> u64 {
        self.0.size_sectors.get()
    }

    /// How many requests were completed.
    pub fn completions(&self) -> u64 {
        self.0.state.borrow().completions
    }

    /// The requests that have volatile versions, oldest first.
    pub fn outstanding(&self) -> Vec<Outstanding> {
        let state = self.0.state.borrow();
        let mut found = BTreeMap::new();
        for (sector, versions) in &state.volatile {
            for version in versions {
                let (request, completed) = (version.request, version.completed.is_some());
                found.entry(request).or_insert(Outstanding { request, sector: *sector, completed });
            }
        }
        found.into_values().collect()
    }

    /// What the disk holds after a power cut that keeps the versions that `keeps(request, sector)` says, the last of each
    /// sector.
    pub fn cut(&self, keeps: impl Fn(u64, u64) -> bool) -> Image {
        let state = self.0.state.borrow();
        let mut image = state.durable.clone();
        for (sector, versions) in &state.volatile {
            if let Some(version) = versions.iter().rev().find(|version| keeps(version.request, *sector)) {
                image.write(*sector, &version.content.sector());
            }
        }
        image
    }

    fn duration(&self) -> Duration {
        let usual = Duration::from_micros(20 + self.0.world.below(200));
        if self.happens(Deed::Hung, |faults| faults.hung) {
            Duration::from_secs(30)
        } else if self.happens(Deed::Slowed, |faults| faults.slow) {
            usual * 100
        } else {
            usual
        }
    }

    /// Decides whether a fault happens, and counts it.
    fn happens(&self, deed: Deed, rule: impl Fn(&Faults) -> u64) -> bool {
        let once_in = rule(&self.0.faults.borrow());
        let happens = once_in > 0 && self.0.world.once_in(once_in);
        if happens {
            faults::count(self.0.name, deed);
        }
        happens
    }

    /// Enters the versions that a request makes; returns its number, and what of it is written nowhere.
    fn begin(&self, io: &Io) -> u64 {
        let request = io.request();
        let contents: Box<dyn Fn(u64) -> Content> = match request.op {
            Op::Write { .. } => {
                let bytes: Vec<u8> = request.bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                let bytes: Rc<[u8]> = bytes.into();
                Box::new(move |at| Content::Bytes(bytes.clone(), at as usize * SECTOR_BYTES))
            }
            Op::Discard => Box::new(|_| Content::Nonsense),
            _ => Box::new(|_| Content::Zeroes),
        };
        let mut state = self.0.state.borrow_mut();
        state.requests += 1;
        let number = state.requests;
        if !matches!(request.op, Op::Read | Op::Flush) {
            let lost = self.happens(Deed::WriteLost, |faults| faults.lost_writes);
            let astray = !lost && self.happens(Deed::WriteMisdirected, |faults| faults.misdirected_writes);
            let room = self.0.size_sectors.get() - request.sectors;
            let first = if astray { self.0.world.below(room + 1) / 8 * 8 } else { request.sector };
            state.writing.insert(number, first..first + if lost { 0 } else { request.sectors });
            for at in (0..request.sectors).filter(|_| !lost) {
                let version = Version { request: number, content: contents(at), completed: None };
                state.volatile.entry(first + at).or_default().push(version);
            }
        }
        number
    }

    fn complete(&self, mut io: Io, number: u64, flush_covers: u64) {
        let (op, sector, sectors) = (io.request().op, io.request().sector, io.request().sectors);
        self.0.world.note(self.0.name ^ number << 8 ^ sector << 20 ^ sectors << 50);
        let result = match op {
            Op::Read => self.complete_read(&mut io),
            Op::Flush => self.complete_flush(flush_covers),
            Op::Write { fua } => self.complete_write(number, fua, self.is_full(number)),
            Op::Discard | Op::WriteZeroes => self.complete_write(number, false, false),
        };
        io.complete(result.map_err(|()| IoError::Device { op, sector }));
    }

    fn complete_read(&self, io: &mut Io) -> Result<(), ()> {
        let request = io.request_mut();
        let (first, sectors) = (request.sector, request.sectors);
        let mut state = self.0.state.borrow_mut();
        state.completions += 1;
        let anywhere = || first + self.0.world.below(sectors);
        if self.happens(Deed::SectorBad, |faults| faults.sectors_going_bad) {
            state.bad.insert(anywhere());
        }
        if self.happens(Deed::BitFlipped, |faults| faults.flipped_sectors) {
            let sector = anywhere();
            let mut bytes = Box::new([0; SECTOR_BYTES]);
            state.current.read(sector, &mut bytes[..]);
            bytes[self.0.world.below(SECTOR_BYTES as u64) as usize] ^= 1 << self.0.world.below(8);
            state.overlays.insert(sector, bytes);
        }
        let range = first..first + sectors;
        if self.happens(Deed::Failed, |faults| faults.failed_reads) || state.bad.range(range.clone()).next().is_some() {
            return Err(());
        }
        let mut at = first;
        for buf in &mut request.bufs {
            state.current.read(at, buf);
            for (sector, bytes) in state.overlays.range(at..at + (buf.len() / SECTOR_BYTES) as u64) {
                let offset = (sector - at) as usize * SECTOR_BYTES;
                buf[offset..offset + SECTOR_BYTES].copy_from_slice(&bytes[..]);
            }
            at += (buf.len() / SECTOR_BYTES) as u64;
        }
        if self.happens(Deed::BitFlipped, |faults| faults.flipped_reads) {
            let buf = &mut request.bufs[0];
            let at = self.0.world.below(buf.len() as u64) as usize;
            buf[at] ^= 1 << self.0.world.below(8);
        }
        Ok(())
    }

    /// Whether there is no room for a write.
    fn is_full(&self, number: u64) -> bool {
        let mut faults = self.0.faults.borrow_mut();
        let Some(left) = &mut faults.full_after else { return false };
        *left = left.saturating_sub(1);
        let state = self.0.state.borrow();
        let full = *left == 0 && !state.current.has_pages(state.writing[&number].clone());
        if full {
            faults::count(self.0.name, Deed::Full);
        }
        full
    }

    fn complete_write(&self, number: u64, fua: bool, full: bool) -> Result<(), ()> {
        let failed = full || self.happens(Deed::Failed, |faults| faults.failed_writes);
        let mut state = self.0.state.borrow_mut();
        let State { durable, current, volatile, completions, bad, overlays, writing, .. } = &mut *state;
        *completions += 1;
        let sectors = writing.remove(&number).expect("what completes was begun");
        let mut empty = Vec::new();
        for (sector, versions) in volatile.range_mut(sectors) {
            let Some(at) = versions.iter().position(|version| version.request == number) else { continue };
            if full || failed && self.0.world.once_in(2) {
                versions.remove(at);
                if versions.is_empty() {
                    empty.push(*sector);
                }
                continue;
            }
            let version = &mut versions[at];
            version.completed = Some(*completions);
            let bytes = version.content.sector();
            current.write(*sector, &bytes);
            bad.remove(sector);
            overlays.remove(sector);
            let completed = versions.iter().filter(|version| version.completed.is_some()).count();
            // Behind those that were completed before.
            let version = versions.remove(at);
            versions.insert(completed - 1, version);
            if fua && !failed {
                durable.write(*sector, &bytes);
                versions.drain(..completed);
            }
            if versions.is_empty() {
                empty.push(*sector);
            }
        }
        empty.iter().for_each(|sector| drop(volatile.remove(sector)));
        if failed { Err(()) } else { Ok(()) }
    }

    /// Whether this is the flush that somebody asked to fail.
    fn is_failing_flush(&self) -> bool {
        let mut faults = self.0.faults.borrow_mut();
        let before = faults.failing_flush;
        faults.failing_flush = before.and_then(|before| before.checked_sub(1));
        before == Some(0)
    }

    fn complete_flush(&self, covers: u64) -> Result<(), ()> {
        if self.is_failing_flush() || self.happens(Deed::Failed, |faults| faults.failed_flushes) {
            return Err(());
        }
        if self.happens(Deed::FlushLost, |faults| faults.lost_flushes) {
            return Ok(());
        }
        let mut first = false;
        {
            let mut state = self.0.state.borrow_mut();
            let State { durable, volatile, completions, .. } = &mut *state;
            *completions += 1;
            for (sector, versions) in volatile.iter_mut() {
                let covered =
                    versions.iter().take_while(|version| version.completed.is_some_and(|n| n <= covers)).count();
                if let Some(version) = versions.drain(..covered).next_back() {
                    durable.write(*sector, &version.content.sector());
                    first |= *sector == 0;
                }
            }
            volatile.retain(|_, versions| !versions.is_empty());
        }
        let told = self.0.first_sector_durable.borrow().clone();
        if let Some(told) = told.filter(|_| first) {
            told();
        }
        Ok(())
    }
}

impl BlockDevice for SimDisk {
    fn limits(&self) -> Limits {
        limits(self.0.size_sectors.get())
    }

    fn submit(&self, io: Io) {
        let number = self.begin(&io);
        let covers = self.0.state.borrow().completions;
        let disk = self.clone();
        self.0.world.after(self.duration(), move || disk.complete(io, number, covers));
    }
}
