//! What the pool under test runs on: simulated time, disks that lose what was not flushed, dice.

use platform::Runtime;
use platform::block::{BlockDevice, Io, IoError, Limits, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::Executor;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Sectors in a data block.
pub const BLOCK: u64 = 128;

/// What the sectors of a block hold: the first four bytes of each, which is all that these disks keep.
pub type Stamps = [u32; BLOCK as usize];

/// What discarded sectors read as: nobody may count on zeroes.
const DISCARDED: u32 = 0xDDDD_DDDD;

/// Random choices that a seed repeats.
#[derive(Clone)]
pub struct Dice(Rc<Seeded>);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Rc::new(Seeded::from_u64(seed)))
    }

    /// A number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }

    pub fn chance(&self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// Runs a test in simulated time.
pub fn run<T: 'static>(seed: u64, test: impl AsyncFnOnce(Runtime) -> T + 'static) -> T {
    simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(seed)), 8 << 20, test)
}

/// The metadata disk. What was written since the last flush a power cut may undo. Clones are the same disk.
#[derive(Clone)]
pub struct MetadataDisk(Rc<Metadata>);

struct Metadata {
    disk: MemDisk,
    /// Blocks written since the last flush, as they were then.
    unflushed: RefCell<HashMap<u64, Vec<u8>>>,
    superblocks: Cell<u64>,
}

const METADATA_BLOCK_BYTES: u64 = 4096;

impl MetadataDisk {
    pub fn new(disk: MemDisk) -> MetadataDisk {
        MetadataDisk(Rc::new(Metadata { disk, unflushed: RefCell::default(), superblocks: Cell::new(0) }))
    }

    /// The disk below, as everybody sees it.
    pub fn contents(&self) -> &MemDisk {
        &self.0.disk
    }

    /// How often the superblock was written.
    pub fn superblocks(&self) -> u64 {
        self.0.superblocks.get()
    }

    /// Loses some of what was not flushed: whole blocks, or some of their sectors.
    pub fn cut(&self, dice: &Dice) {
        let mut blocks: Vec<_> = self.0.unflushed.take().into_iter().collect();
        blocks.sort_unstable();
        for (block, before) in blocks {
            let fate = dice.below(3);
            for (sector, bytes) in (0..).zip(before.chunks(SECTOR_BYTES)) {
                if fate == 0 || (fate == 1 && dice.chance(2)) {
                    self.0.disk.poke(block * METADATA_BLOCK_BYTES + sector * SECTOR_BYTES as u64, bytes);
                }
            }
        }
    }
}

impl BlockDevice for MetadataDisk {
    fn limits(&self) -> Limits {
        self.0.disk.limits()
    }

    fn submit(&self, io: Io) {
        let request = io.request();
        match request.op {
            Op::Flush => self.0.unflushed.borrow_mut().clear(),
            Op::Read => {}
            _ => {
                let bytes = request.sector * SECTOR_BYTES as u64;
                let whole = (request.sectors % 8, bytes % METADATA_BLOCK_BYTES) == (0, 0);
                assert!(whole, "metadata is written by blocks");
                let first = bytes / METADATA_BLOCK_BYTES;
                assert!(first > 0 || request.sectors == 8, "the superblock is written alone");
                self.0.superblocks.set(self.0.superblocks.get() + u64::from(first == 0));
                for block in first..first + request.sectors / 8 {
                    let before = || self.0.disk.peek(block * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES as usize);
                    self.0.unflushed.borrow_mut().entry(block).or_insert_with(before);
                }
            }
        }
        self.0.disk.submit(io);
    }
}

/// The data disk: keeps a stamp of each sector. What was written since the last flush a power cut may undo.
#[derive(Clone)]
pub struct DataDisk(Rc<Data>);

struct Data {
    blocks: RefCell<HashMap<u64, Box<Stamps>>>,
    unflushed: RefCell<HashMap<u64, Box<Stamps>>>,
    sectors: Cell<u64>,
    flush_fails: Cell<bool>,
    discarded_sectors: Cell<u64>,
}

impl DataDisk {
    pub fn new(sectors: u64) -> DataDisk {
        DataDisk(Rc::new(Data {
            blocks: RefCell::default(),
            unflushed: RefCell::default(),
            sectors: Cell::new(sectors),
            flush_fails: Cell::new(false),
            discarded_sectors: Cell::new(0),
        }))
    }

    pub fn resize(&self, sectors: u64) {
        self.0.sectors.set(sectors);
    }

    /// From now on flushes fail, or work again.
    pub fn fail_flushes(&self, fail: bool) {
        self.0.flush_fails.set(fail);
    }

    /// Sectors discarded so far.
    pub fn discarded_sectors(&self) -> u64 {
        self.0.discarded_sectors.get()
    }

    /// Loses some sectors that were not flushed.
    pub fn cut(&self, dice: &Dice) {
        let mut unflushed: Vec<_> = self.0.unflushed.take().into_iter().collect();
        unflushed.sort_unstable_by_key(|(block, _)| *block);
        let mut blocks = self.0.blocks.borrow_mut();
        for (block, before) in unflushed {
            let (now, bits) = (blocks.entry(block).or_insert_with(|| before.clone()), dice.below(u64::MAX));
            for (sector, (now, before)) in now.iter_mut().zip(before.iter()).enumerate() {
                if bits >> (sector % 61) & 1 == 0 {
                    *now = *before;
                }
            }
        }
    }

    fn set(&self, sector: u64, stamp: u32, durable: bool) {
        let (block, at) = (sector / BLOCK, (sector % BLOCK) as usize);
        let mut blocks = self.0.blocks.borrow_mut();
        let now = blocks.entry(block).or_insert_with(|| Box::new([0; BLOCK as usize]));
        let mut unflushed = self.0.unflushed.borrow_mut();
        match unflushed.get_mut(&block) {
            Some(before) if durable => before[at] = stamp,
            None if !durable => drop(unflushed.insert(block, now.clone())),
            _ => {}
        }
        now[at] = stamp;
    }
}

impl BlockDevice for DataDisk {
    fn limits(&self) -> Limits {
        limits(self.0.sectors.get())
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        match request.op {
            Op::Read => {
                let blocks = self.0.blocks.borrow();
                let mut block = None;
                for_sectors(request.sector, &mut request.bufs, |sector, bytes| {
                    if sector.is_multiple_of(BLOCK) || block.is_none() {
                        block = Some(blocks.get(&(sector / BLOCK)));
                    }
                    let stamp = block.flatten().map_or(0, |stamps| stamps[(sector % BLOCK) as usize]);
                    *bytes = stamp.to_le_bytes();
                });
            }
            Op::Write { fua } => {
                let first = request.sector;
                for_sectors(first, &mut request.bufs, |sector, bytes| {
                    self.set(sector, u32::from_le_bytes(*bytes), fua);
                });
            }
            Op::Discard | Op::WriteZeroes => {
                let stamp = if request.op == Op::Discard { DISCARDED } else { 0 };
                let (first, count) = (request.sector, request.sectors);
                (first..first + count).for_each(|sector| self.set(sector, stamp, false));
                let discarded = if request.op == Op::Discard { count } else { 0 };
                self.0.discarded_sectors.set(self.0.discarded_sectors.get() + discarded);
            }
            Op::Flush if self.0.flush_fails.get() => {
                return io.complete(Err(IoError::Device { op: Op::Flush, sector: 0 }));
            }
            Op::Flush => self.0.unflushed.borrow_mut().clear(),
        }
        io.complete(Ok(()));
    }
}

/// Calls `f` with each sector's number and first bytes.
fn for_sectors(first: u64, bufs: &mut platform::block::Bufs, mut f: impl FnMut(u64, &mut [u8; 4])) {
    let sectors = bufs.iter_mut().flat_map(|buf| buf.chunks_exact_mut(SECTOR_BYTES));
    for (sector, bytes) in (first..).zip(sectors) {
        f(sector, bytes.first_chunk_mut().unwrap());
    }
}

fn limits(size_sectors: u64) -> Limits {
    Limits { size_sectors, ..MemDisk::new(0).limits() }
}

/// An external origin of any length.
#[derive(Clone, Copy)]
pub struct Origin {
    pub sectors: u64,
}

impl Origin {
    /// What is read from it, its end and what is behind it included.
    pub fn stamp(self, sector: u64) -> u32 {
        if sector < self.sectors { 0x0100_0000 | sector as u32 } else { 0 }
    }
}

impl BlockDevice for Origin {
    fn limits(&self) -> Limits {
        Limits { read_only: true, ..limits(self.sectors) }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        assert_eq!(request.op, Op::Read, "nobody changes an external origin");
        let first = request.sector;
        for_sectors(first, &mut request.bufs, |sector, bytes| *bytes = self.stamp(sector).to_le_bytes());
        io.complete(Ok(()));
    }
}
