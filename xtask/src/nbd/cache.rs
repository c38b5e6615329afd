//! Disks with a volatile write cache, and the power supply that all of them hang on.
//!
//! # The fault model
//! - **Durable** is what the file holds. A completed FLUSH makes durable every write to that disk that completed
//!   before the FLUSH came; a completed FUA write is durable itself. Nothing else promises anything.
//! - **Unflushed** writes are kept by 512-byte sector, each sector with all its versions in order. Reads see the
//!   newest one. TRIM and WRITE ZEROES are writes of zeroes.
//! - **A cut** takes the power from every disk at the same instant. Each unflushed sector ends up as any of its
//!   versions or as what was durable: requests are torn at sector boundaries, and nothing orders two sectors. The
//!   request that arrives at the instant of the cut may leave any part of itself behind and is never answered.
//! - A single sector is never torn, and durable sectors never change on their own: dm-thin's superblock rests on
//!   the first, its redundancy is not made for the second.
//! - The cache is bounded: beyond [`CACHE_SECTORS_MAX`] a disk writes random sectors back on its own, as disks do.
//! - With [`Flush::Ignored`] a FLUSH or FUA is acknowledged and does nothing: a lying disk. A test that passes on
//!   it shows nothing.
//!
//! Choices come from one seed; the order of requests is the guest's, so a seed repeats the dice, not the run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::dice::Dice;

/// Bytes in a sector: what a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// Unflushed sector versions a disk holds before it writes some back on its own: 64 MiB.
pub const CACHE_SECTORS_MAX: usize = 131_072;

/// What a FLUSH or FUA does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// What it says.
    Honest,
    /// Nothing; it only says so.
    Ignored,
}

/// The requests that count towards a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Everything that changes a disk or flushes it.
    Changes,
    /// Flushes alone: the cache is fullest just before one.
    Flushes,
    /// Flushes of one disk. Of a metadata disk: the two that every commit rests on.
    FlushesOf(DiskIndex),
}

/// What one cut did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Sectors that had unflushed versions.
    pub unflushed_sectors: usize,
    /// Of these, the ones that kept what was durable before.
    pub lost_sectors: usize,
    /// Sectors that shared one fate: 1 tears requests anywhere, 8 only between 4 KiB blocks.
    pub grain_sectors: u64,
    /// The chance, in percent, that a sector was kept.
    pub keep_percent: u64,
}

/// Why a request was not served.
#[derive(Debug)]
pub enum Refusal {
    /// The power is off: no answer at all.
    PowerOff,
    /// Beyond the end, or not whole sectors.
    Invalid,
    /// The file underneath failed.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Io(error)
    }
}

/// The contents of a written sector.
type Sector = Box<[u8; SECTOR_BYTES]>;

/// One disk: a file and what was written to it since the last flush.
struct Volatile {
    file: File,
    size_bytes: u64,
    /// Sector number to its unflushed versions, oldest first; never an empty list.
    unflushed: BTreeMap<u64, Vec<Sector>>,
    versions: usize,
}

/// A number of requests until the power goes.
struct Trigger {
    count: Count,
    left: u64,
}

struct State {
    on: bool,
    flush: Flush,
    disks: Vec<Volatile>,
    trigger: Option<Trigger>,
    last_cut: Option<Cut>,
    dice: Dice,
}

/// The power supply of a set of disks, shared by whoever serves them.
#[derive(Clone)]
pub struct Supply(Arc<(Mutex<State>, Condvar)>);

/// A disk on a supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskIndex(usize);

impl Supply {
    /// A supply that is on, without disks. Its flushes are honest.
    pub fn new(seed: u64) -> Supply {
        let state = State {
            on: true,
            flush: Flush::Honest,
            disks: Vec::new(),
            trigger: None,
            last_cut: None,
            dice: Dice::new(seed),
        };
        Supply(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a disk over `file`; its length, rounded down to sectors, is the disk's size.
    pub fn add(&self, file: File) -> io::Result<DiskIndex> {
        let size_bytes = file.metadata()?.len() / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        let mut state = self.state();
        state.disks.push(Volatile { file, size_bytes, unflushed: BTreeMap::new(), versions: 0 });
        Ok(DiskIndex(state.disks.len() - 1))
    }

    /// The size of a disk.
    pub fn size_bytes(&self, disk: DiskIndex) -> u64 {
        self.state().disks[disk.0].size_bytes
    }

    /// Changes what a FLUSH or FUA does from now on.
    pub fn set_flush(&self, flush: Flush) {
        self.state().flush = flush;
    }

    /// Lets the power go when `after` more requests of this kind have come; the last of them is cut.
    pub fn arm(&self, count: Count, after: u64) {
        self.state().trigger = Some(Trigger { count, left: after.max(1) });
    }

    /// Takes the power now, unless it is off already.
    pub fn cut(&self) -> io::Result<Cut> {
        let mut state = self.state();
        let cut = state.cut();
        self.0.1.notify_all();
        cut
    }

    /// Waits for an armed cut.
    pub fn wait_cut(&self, limit: Duration) -> Option<Cut> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        while state.on {
            let left = end.checked_duration_since(Instant::now())?;
            state = self.0.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.last_cut
    }

    /// Whether the disks have power.
    pub fn is_on(&self) -> bool {
        self.state().on
    }

    /// Gives the power back; the disks hold what is durable.
    pub fn power_on(&self) {
        let mut state = self.state();
        state.on = true;
        state.trigger = None;
    }

    /// Reads into `buf`.
    pub fn read(&self, disk: DiskIndex, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Refusal> {
        let state = self.state();
        let (disk, first) = state.disk(disk, offset_bytes, buf.len() as u64)?;
        disk.file.read_exact_at(buf, offset_bytes)?;
        for (sector, versions) in disk.unflushed.range(first..first + (buf.len() / SECTOR_BYTES) as u64) {
            if let Some(newest) = versions.last() {
                let at = (sector - first) as usize * SECTOR_BYTES;
                buf[at..at + SECTOR_BYTES].copy_from_slice(&newest[..]);
            }
        }
        Ok(())
    }

    /// Writes `data`, whole sectors.
    pub fn write(&self, disk: DiskIndex, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), Refusal> {
        let mut state = self.state();
        state.disk(disk, offset_bytes, data.len() as u64)?;
        let first = offset_bytes / SECTOR_BYTES as u64;
        state.disks[disk.0].remember(first, data);
        self.count(&mut state, None)?;
        let last = first + (data.len() / SECTOR_BYTES) as u64;
        let State { disks, dice, flush, .. } = &mut *state;
        if fua && *flush == Flush::Honest {
            disks[disk.0].write_back(first..last)?;
        }
        disks[disk.0].bound(dice)?;
        Ok(())
    }

    /// Makes durable what was written to this disk.
    pub fn flush(&self, disk: DiskIndex) -> Result<(), Refusal> {
        let mut state = self.state();
        state.disk(disk, 0, 0)?;
        self.count(&mut state, Some(disk))?;
        if state.flush == Flush::Honest {
            state.disks[disk.0].write_back(0..u64::MAX)?;
        }
        Ok(())
    }

    /// Counts one request, perhaps a flush of a disk, towards the armed cut, and cuts when it is the one.
    fn count(&self, state: &mut State, flushed: Option<DiskIndex>) -> Result<(), Refusal> {
        let Some(trigger) = &mut state.trigger else { return Ok(()) };
        let counts = match trigger.count {
            Count::Changes => true,
            Count::Flushes => flushed.is_some(),
            Count::FlushesOf(disk) => flushed == Some(disk),
        };
        if !counts {
            return Ok(());
        }
        trigger.left -= 1;
        if trigger.left > 0 {
            return Ok(());
        }
        state.cut()?;
        self.0.1.notify_all();
        Err(Refusal::PowerOff)
    }
}

impl State {
    /// The disk and the first sector of a range that lies on it, when there is power.
    fn disk(&self, disk: DiskIndex, offset_bytes: u64, len_bytes: u64) -> Result<(&Volatile, u64), Refusal> {
        if !self.on {
            return Err(Refusal::PowerOff);
        }
        let disk = &self.disks[disk.0];
        let whole = (offset_bytes | len_bytes).is_multiple_of(SECTOR_BYTES as u64);
        let end = offset_bytes.checked_add(len_bytes).ok_or(Refusal::Invalid)?;
        if !whole || end > disk.size_bytes {
            return Err(Refusal::Invalid);
        }
        Ok((disk, offset_bytes / SECTOR_BYTES as u64))
    }

    fn cut(&mut self) -> io::Result<Cut> {
        self.trigger = None;
        if let (false, Some(cut)) = (self.on, self.last_cut) {
            return Ok(cut);
        }
        self.on = false;
        let grain_sectors = [1, 1, 8][self.dice.below(3) as usize];
        let keep_percent = [0, 20, 50, 80, 97][self.dice.below(5) as usize];
        let mut cut = Cut { unflushed_sectors: 0, lost_sectors: 0, grain_sectors, keep_percent };
        for disk in &mut self.disks {
            cut.unflushed_sectors += disk.unflushed.len();
            cut.lost_sectors += disk.lose(&mut self.dice, grain_sectors, keep_percent)?;
        }
        self.last_cut = Some(cut);
        Ok(cut)
    }
}

impl Volatile {
    fn remember(&mut self, first: u64, data: &[u8]) {
        for (sector, bytes) in (first..).zip(data.as_chunks::<SECTOR_BYTES>().0) {
            self.unflushed.entry(sector).or_default().push(Box::new(*bytes));
            self.versions += 1;
        }
    }

    /// Writes the newest version of every unflushed sector of the range to the file.
    fn write_back(&mut self, sectors: std::ops::Range<u64>) -> io::Result<()> {
        let rest: BTreeMap<u64, Vec<Sector>> = self.unflushed.extract_if(sectors, |_, _| true).collect();
        self.versions -= rest.values().map(Vec::len).sum::<usize>();
        self.store(rest.iter().filter_map(|(sector, versions)| Some((*sector, versions.last()?))))
    }

    /// Writes sectors in ascending order to the file, neighbours in one piece.
    fn store<'a>(&self, sectors: impl Iterator<Item = (u64, &'a Sector)>) -> io::Result<()> {
        let mut run: Vec<u8> = Vec::new();
        let mut start = 0;
        for (sector, bytes) in sectors {
            if sector != start + (run.len() / SECTOR_BYTES) as u64 {
                self.file.write_all_at(&run, start * SECTOR_BYTES as u64)?;
                run.clear();
            }
            if run.is_empty() {
                start = sector;
            }
            run.extend_from_slice(&bytes[..]);
        }
        self.file.write_all_at(&run, start * SECTOR_BYTES as u64)
    }

    /// Keeps the cache within its bound.
    fn bound(&mut self, dice: &mut Dice) -> io::Result<()> {
        while self.versions > CACHE_SECTORS_MAX {
            let from = dice.below(self.size_bytes / SECTOR_BYTES as u64);
            let start = self.unflushed.range(from..).next().map_or(0, |(sector, _)| *sector);
            self.write_back(start..start + 64)?;
        }
        Ok(())
    }

    /// The power is gone: makes a random choice of the unflushed versions durable and forgets the others. Returns
    /// how many sectors kept none.
    fn lose(&mut self, dice: &mut Dice, grain_sectors: u64, keep_percent: u64) -> io::Result<usize> {
        let unflushed = std::mem::take(&mut self.unflushed);
        self.versions = 0;
        let mut kept: Vec<(u64, &Sector)> = Vec::new();
        let mut group = (u64::MAX, false);
        for (sector, versions) in &unflushed {
            if grain_sectors == 1 {
                // Each version had its own chance to reach the medium; the last that did is what is found.
                let survivor = versions.iter().rev().find(|_| dice.chance(keep_percent));
                kept.extend(survivor.map(|bytes| (*sector, bytes)));
                continue;
            }
            if group.0 != sector / grain_sectors {
                group = (sector / grain_sectors, dice.chance(keep_percent));
            }
            if group.1 {
                kept.extend(versions.last().map(|bytes| (*sector, bytes)));
            }
        }
        self.store(kept.iter().copied())?;
        Ok(unflushed.len() - kept.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: u64 = 64;

    fn supply(seed: u64) -> (Supply, DiskIndex, tempfile::File) {
        let file = tempfile::file(SECTORS * SECTOR_BYTES as u64);
        let supply = Supply::new(seed);
        let disk = supply.add(file.try_clone().unwrap()).unwrap();
        (supply, disk, file)
    }

    /// An unnamed file.
    mod tempfile {
        pub use std::fs::File;

        pub fn file(size_bytes: u64) -> File {
            let name = format!("xtask-cache-{}-{}", std::process::id(), crate::dice::Dice::fresh_seed());
            let path = std::env::temp_dir().join(name);
            let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            file.set_len(size_bytes).unwrap();
            file
        }
    }

    fn sector(file: &File, sector: u64) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        file.read_exact_at(&mut bytes, sector * SECTOR_BYTES as u64).unwrap();
        bytes
    }

    /// Random writes, flushes and cuts against a list of what each sector may be.
    #[test]
    fn a_cut_keeps_the_flushed_and_any_choice_of_the_rest() {
        let seed = Dice::fresh_seed();
        println!("seed {seed}");
        let mut dice = Dice::new(seed);
        let (supply, disk, file) = supply(seed);
        let mut allowed: Vec<Vec<u8>> = vec![vec![0]; SECTORS as usize];
        let (mut lost, mut intermediate) = (0, 0);
        for round in 0..400 {
            for _ in 0..dice.between(1, 30) {
                let value = dice.between(1, 255) as u8;
                let first = dice.below(SECTORS - 4);
                let count = dice.between(1, 4);
                let fua = dice.chance(10);
                let data = vec![value; count as usize * SECTOR_BYTES];
                supply.write(disk, first * SECTOR_BYTES as u64, &data, fua).unwrap();
                for at in first..first + count {
                    if fua {
                        allowed[at as usize].clear();
                    }
                    allowed[at as usize].push(value);
                }
                if dice.chance(10) {
                    supply.flush(disk).unwrap();
                    allowed.iter_mut().for_each(|versions| *versions = vec![*versions.last().unwrap()]);
                }
            }
            let mut newest = vec![0; (SECTORS as usize) * SECTOR_BYTES];
            supply.read(disk, 0, &mut newest).unwrap();
            supply.cut().unwrap();
            assert!(matches!(supply.flush(disk), Err(Refusal::PowerOff)));
            supply.power_on();
            for at in 0..SECTORS as usize {
                let found = sector(&file, at as u64);
                assert!(found.iter().all(|byte| *byte == found[0]), "round {round}: sector {at} torn inside");
                assert_eq!(newest[at * SECTOR_BYTES], *allowed[at].last().unwrap(), "round {round}: sector {at}");
                assert!(allowed[at].contains(&found[0]), "round {round}: sector {at} is {}", found[0]);
                lost += usize::from(found[0] != *allowed[at].last().unwrap());
                intermediate +=
                    usize::from(allowed[at].len() > 2 && allowed[at][1..allowed[at].len() - 1].contains(&found[0]));
                allowed[at] = vec![found[0]];
            }
        }
        assert!(lost > 1000 && intermediate > 10, "{lost} lost, {intermediate} in between: the cuts are too kind");
    }

    #[test]
    fn a_lying_disk_loses_what_it_said_was_flushed() {
        let (supply, disk, file) = supply(1);
        supply.set_flush(Flush::Ignored);
        let mut lost = 0;
        for value in 1..100 {
            supply.write(disk, 0, &[value; SECTOR_BYTES], false).unwrap();
            supply.flush(disk).unwrap();
            supply.cut().unwrap();
            supply.power_on();
            lost += usize::from(sector(&file, 0)[0] != value);
        }
        assert!(lost > 20, "{lost}");
    }

    #[test]
    fn an_armed_cut_comes_with_its_request() {
        let (supply, disk, file) = supply(2);
        supply.arm(Count::Flushes, 2);
        supply.write(disk, 0, &[1; SECTOR_BYTES], false).unwrap();
        supply.flush(disk).unwrap();
        supply.write(disk, 0, &[2; SECTOR_BYTES], false).unwrap();
        assert!(matches!(supply.flush(disk), Err(Refusal::PowerOff)));
        assert!(supply.wait_cut(Duration::ZERO).is_some() && !supply.is_on());
        assert!([1, 2].contains(&sector(&file, 0)[0]));

        let other = supply.add(file).unwrap();
        supply.power_on();
        supply.arm(Count::FlushesOf(other), 1);
        supply.flush(disk).unwrap();
        supply.write(other, 0, &[3; SECTOR_BYTES], false).unwrap();
        assert!(supply.is_on());
        assert!(matches!(supply.flush(other), Err(Refusal::PowerOff)));
    }

    #[test]
    fn the_cache_is_bounded_and_ranges_are_checked() {
        let file = tempfile::file(1 << 30);
        let supply = Supply::new(3);
        let disk = supply.add(file).unwrap();
        let data = vec![7; 1 << 20];
        for at in 0..80 {
            supply.write(disk, at << 20, &data, false).unwrap();
        }
        assert!(supply.state().disks[0].versions <= CACHE_SECTORS_MAX);
        let mut back = vec![0; 1 << 20];
        for at in 0..80 {
            supply.read(disk, at << 20, &mut back).unwrap();
            assert_eq!(back, data);
        }
        assert!(matches!(supply.write(disk, 1 << 30, &data, false), Err(Refusal::Invalid)));
        assert!(matches!(supply.write(disk, 100, &data[..512], false), Err(Refusal::Invalid)));
        assert!(matches!(supply.read(disk, u64::MAX - 511, &mut back[..512]), Err(Refusal::Invalid)));
    }
}
