//! Power cuts: whatever of the unflushed writes survives, whole or torn, the disk holds the last commit or the next.

use crate::harness::*;
use crate::model::{Driver, Mappings, Tally, dump};
use platform::block::{BlockDevice, Disk, Io, Limits, Op};
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

const SECTOR: usize = 512;

/// A disk with a volatile cache: what was written since the last flush may be lost in any part.
#[derive(Clone)]
struct Volatile {
    /// What everybody reads.
    seen: MemDisk,
    inner: Rc<Inner>,
}

struct Inner {
    durable: MemDisk,
    unflushed: RefCell<Vec<(u64, Vec<u8>)>>,
    /// Disks as power cuts left them, not yet looked at.
    cuts: RefCell<Vec<MemDisk>>,
    dice: Dice,
    /// One write or flush in so many is followed by a cut.
    one_in: u64,
    flush_works: bool,
}

impl Volatile {
    fn new(sectors: u64, seed: u64, one_in: u64, flush_works: bool) -> Volatile {
        let disk = MemDisk::new(sectors);
        let inner = Inner {
            durable: disk.fork(),
            unflushed: RefCell::default(),
            cuts: RefCell::default(),
            dice: Dice::new(seed),
            one_in,
            flush_works,
        };
        Volatile { seen: disk, inner: Rc::new(inner) }
    }

    fn write(&self, at_bytes: u64, bytes: &[u8]) {
        self.inner.unflushed.borrow_mut().push((at_bytes, bytes.to_vec()));
        self.inner.maybe_cut();
    }
}

impl Inner {
    /// Keeps a random part of what is not flushed: of each write all, nothing, or some sectors.
    fn maybe_cut(&self) {
        if !self.dice.chance(self.one_in) {
            return;
        }
        let disk = self.durable.fork();
        let survival = self.dice.below(5);
        for (at, bytes) in self.unflushed.borrow().iter() {
            let torn = self.dice.chance(8);
            let whole = self.dice.below(4) < survival;
            for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                if if torn { self.dice.chance(2) } else { whole } {
                    disk.poke(at + (sector * SECTOR) as u64, bytes);
                }
            }
        }
        self.cuts.borrow_mut().push(disk);
    }

    fn flush(&self) {
        self.maybe_cut();
        if self.flush_works {
            for (at, bytes) in self.unflushed.borrow_mut().drain(..) {
                self.durable.poke(at, &bytes);
            }
            self.maybe_cut();
        }
    }
}

impl BlockDevice for Volatile {
    fn limits(&self) -> Limits {
        self.seen.limits()
    }

    fn submit(&self, io: Io) {
        let request = io.request();
        let mut at = request.sector * SECTOR as u64;
        match request.op {
            Op::Write { .. } => {
                for buf in &request.bufs {
                    self.write(at, buf);
                    at += buf.len() as u64;
                }
            }
            Op::Flush => self.inner.flush(),
            _ => {}
        }
        self.seen.submit(io);
    }
}

/// A cut's disk is sound and holds one of two states.
async fn sound(disk: &MemDisk, before: &Mappings, after: &Mappings) -> Result<(), String> {
    let report = thinp::metadata::check::check(&runtime(), &Disk::new(disk.clone()), CACHE).await;
    let report = report.map_err(|error| error.to_string())?;
    if let Some(problem) = report.problems.first() {
        return Err(problem.to_string());
    }
    let found = dump(disk).await;
    if found == *before || found == *after { Ok(()) } else { Err("neither the last commit nor the next".into()) }
}

async fn cuts(seed: u64, one_in: u64, flush_works: bool, steps: u64) -> (Tally, u64, Result<(), String>) {
    // Small, so that blocks are soon used again.
    let disk = Volatile::new(160 * 8, seed, one_in, flush_works);
    let mut driver = Driver::new(disk.seen.clone(), Disk::new(disk.clone()), seed, 3000, 16).await;
    disk.inner.flush();
    disk.inner.cuts.borrow_mut().clear();
    let (mut cuts, mut judged) = (0, 0);
    // Readers of former commits: after a cut nothing may be left of them.
    let mut views = VecDeque::new();
    for _ in 0..steps {
        let before = driver.committed.clone();
        driver.step().await;
        if driver.dice.chance(8) {
            driver.commit().await;
        }
        if driver.dice.chance(20) {
            views.push_back(driver.metadata.open_view("test", None, async || Ok(())).await.unwrap());
            driver.committed = driver.now.clone();
            views.truncate(4);
        }
        if driver.dice.chance(30) {
            views.pop_front();
        }
        for cut in disk.inner.cuts.take() {
            cuts += 1;
            // A step commits what it found or what it left.
            if let Err(why) = sound(&cut, &before, &driver.committed).await {
                return (driver.tally, cuts, Err(why));
            }
            if driver.dice.chance(200) && judged < 20 {
                judged += 1;
                thin_check(&cut);
            }
        }
    }
    (driver.tally, cuts, Ok(()))
}

#[test]
fn a_power_cut_finds_the_last_commit_or_the_next() {
    let seed = seed();
    let mut total = 0;
    for n in 0..4 {
        let (tally, cuts, result) = block_on_ready(cuts(seed + n, 3, true, 600));
        println!("seed {}: {cuts} cuts, {tally:?}", seed + n);
        assert_eq!(result, Ok(()), "seed {}", seed + n);
        total += cuts;
    }
    assert!(total > 500, "only {total} cuts");
}

/// The test above can fail.
#[test]
fn without_flushes_a_power_cut_does_harm() {
    let seed = seed();
    let harmed = (0..4).any(|n| block_on_ready(cuts(seed + n, 3, false, 300)).2.is_err());
    assert!(harmed, "a disk that never flushes looked sound after every cut");
}
