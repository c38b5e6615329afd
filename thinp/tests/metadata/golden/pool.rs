//! Each image as a pool, on a data disk where every sector tells its number: a read shows which mapping it followed.

use super::{Watched, image, stored_xml, xml};
use crate::harness::*;
use crate::judge::Judge;
use platform::Runtime;
use platform::block::{BlockDevice, Bufs, Disk, Io, Limits, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::Seeded;
use platform::simulated;
use platform::task::Executor;
use platform::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use thinp::control::{DeviceId, Errno};
use thinp::{Features, Pool, PoolOptions, Thin};

/// Random operations on each pool in CI.
const STEPS: u64 = 60;

/// What sector `sector` of the data disk holds until it is written: eight bytes, repeated.
fn stamp(sector: u64) -> u64 {
    1 << 48 | sector
}

/// A data disk whose sectors repeat eight bytes each. Clones are the same disk.
#[derive(Clone)]
struct Stamped {
    written: Rc<RefCell<HashMap<u64, u64>>>,
    size_sectors: Rc<Cell<u64>>,
}

impl BlockDevice for Stamped {
    fn limits(&self) -> Limits {
        Limits { size_sectors: self.size_sectors.get(), ..MemDisk::new(0).limits() }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        let (mut sector, mut written) = (request.sector, self.written.borrow_mut());
        assert!(sector + request.sectors <= self.size_sectors.get());
        match request.op {
            Op::Read => {
                for out in request.bufs.iter_mut().flat_map(|buf| buf.chunks_exact_mut(SECTOR_BYTES)) {
                    let word = written.get(&sector).copied().unwrap_or(stamp(sector));
                    out.chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&word.to_le_bytes()));
                    sector += 1;
                }
            }
            Op::Write { .. } => {
                for bytes in request.bufs.iter().flat_map(|buf| buf.chunks_exact(SECTOR_BYTES)) {
                    written.insert(sector, word_of(bytes));
                    sector += 1;
                }
            }
            Op::WriteZeroes => written.extend((sector..sector + request.sectors).map(|sector| (sector, 0))),
            // What is discarded may read as anything, and so it reads as its stamp again.
            Op::Discard => written.retain(|at, _| !(sector..sector + request.sectors).contains(at)),
            Op::Flush => {}
        }
        drop(written);
        io.complete(Ok(()));
    }
}

/// The eight bytes that a sector repeats.
fn word_of(sector: &[u8]) -> u64 {
    assert!(sector.chunks_exact(8).all(|bytes| bytes == &sector[..8]), "a sector is torn");
    u64::from_le_bytes(sector[..8].try_into().unwrap())
}

fn run<T: 'static>(seed: u64, test: impl AsyncFnOnce(Runtime) -> T + 'static) -> T {
    simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(seed)), 16 << 20, test)
}

/// What a volume should hold.
#[derive(Clone, Default)]
struct Volume {
    /// Mapped blocks; those of the image with the data block they were mapped to, new ones begin as zeroes.
    blocks: BTreeMap<u64, Option<u64>>,
    /// Sectors written since, and what is in them.
    sectors: BTreeMap<u64, u64>,
}

impl Volume {
    fn word(&self, sector: u64, block_sectors: u64) -> u64 {
        let block = self.blocks.get(&(sector / block_sectors)).copied().flatten();
        let below = block.map_or(0, |block| stamp(block * block_sectors + sector % block_sectors));
        self.sectors.get(&sector).copied().unwrap_or(below)
    }
}

struct Tester {
    runtime: Runtime,
    meta: MemDisk,
    watched: Watched,
    data: Stamped,
    pool: Pool,
    dice: Dice,
    block_sectors: u64,
    volumes: BTreeMap<DeviceId, Volume>,
    held: bool,
}

async fn open(runtime: &Runtime, meta: &Disk, data: &Stamped) -> Pool {
    let features = Features { error_if_no_space: true, ..Features::default() };
    let options = PoolOptions { features, cache_blocks: 200, ..PoolOptions::default() };
    Pool::open(runtime, meta.clone(), Disk::new(data.clone()), options).await.unwrap()
}

impl Tester {
    async fn new(case: &str, seed: u64, runtime: Runtime) -> Option<Tester> {
        let (meta, xml) = (image(case)?, stored_xml(case)?);
        let number = |name: &str| xml::superblock(&xml)[name].parse::<u64>().unwrap();
        let (block_sectors, data_blocks) = (number("data_block_size"), number("nr_data_blocks"));
        let size_sectors = Rc::new(Cell::new(data_blocks * block_sectors));
        let data = Stamped { written: Rc::default(), size_sectors };
        let watched = Watched::new(&meta);
        let pool = open(&runtime, &watched.device, &data).await;
        let as_mapped = |mappings: BTreeMap<u64, u64>| Volume {
            blocks: mappings.into_iter().map(|(block, data)| (block, Some(data))).collect(),
            sectors: BTreeMap::new(),
        };
        let volumes = xml::parse(&xml).into_iter().map(|(id, mappings)| (id, as_mapped(mappings))).collect();
        let (dice, held) = (Dice::new(seed), case == "msnap");
        Some(Tester { runtime, meta, watched, data, pool, dice, block_sectors, volumes, held })
    }

    /// An id that exists, half of the time.
    fn any_device(&self) -> DeviceId {
        match self.volumes.len() as u64 {
            existing @ 1.. if self.dice.chance(2) => {
                *self.volumes.keys().nth(self.dice.below(existing) as usize).unwrap()
            }
            _ => id(self.dice.below(12)),
        }
    }

    fn existing(&self) -> Option<DeviceId> {
        let existing = self.volumes.len() as u64;
        (existing > 0).then(|| *self.volumes.keys().nth(self.dice.below(existing) as usize).unwrap())
    }

    /// A sector of a block that is mapped, or near one.
    fn any_sector(&self, device: DeviceId) -> u64 {
        let blocks = &self.volumes[&device].blocks;
        let mapped = blocks.keys().nth(self.dice.below(blocks.len().max(1) as u64) as usize);
        let block = mapped.map_or(0, |block| block + self.dice.below(3) / 2);
        block * self.block_sectors + self.dice.below(self.block_sectors)
    }

    async fn thin(&self, device: DeviceId) -> Thin {
        self.pool.open_thin(device, None).await.unwrap()
    }

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..=4 => self.create().await,
            5..=11 => self.snapshot().await,
            12..=15 => self.delete().await,
            16..=50 => self.write().await,
            51..=65 => self.discard().await,
            66..=68 => self.hold_or_release().await,
            69..=71 => self.set_id().await,
            72..=74 => self.grow().await,
            75..=79 => self.pool.commit().await.unwrap(),
            80..=82 => self.runtime.timers.sleep(Duration::from_millis(1100)).await,
            _ => self.read().await,
        }
    }

    async fn create(&mut self) {
        let device = self.any_device();
        match self.pool.create_thin(device).await {
            Ok(()) => assert!(self.volumes.insert(device, Volume::default()).is_none()),
            Err(error) => assert_eq!((error.errno(), self.volumes.contains_key(&device)), (Errno::EEXIST, true)),
        }
    }

    async fn snapshot(&mut self) {
        let (device, Some(origin)) = (self.any_device(), self.existing()) else { return };
        match self.pool.create_snap(device, origin).await {
            Ok(()) => assert!(self.volumes.insert(device, self.volumes[&origin].clone()).is_none()),
            Err(error) => assert_eq!((error.errno(), self.volumes.contains_key(&device)), (Errno::EEXIST, true)),
        }
    }

    async fn delete(&mut self) {
        let device = self.any_device();
        match self.pool.delete(device).await {
            Ok(()) => assert!(self.volumes.remove(&device).is_some()),
            Err(error) => assert_eq!((error.errno(), self.volumes.contains_key(&device)), (Errno::ENODATA, false)),
        }
    }

    /// Writes a few sectors of one block, or the whole of it.
    async fn write(&mut self) {
        let Some(device) = self.existing() else { return };
        let (mut sector, word) = (self.any_sector(device), 1 << 49 | self.dice.below(1 << 48));
        let mut sectors = (1 + self.dice.below(8)).min(self.block_sectors - sector % self.block_sectors);
        if self.dice.chance(4) {
            (sector, sectors) = (sector / self.block_sectors * self.block_sectors, self.block_sectors);
        }
        let mut buf = self.runtime.bufs.wait(sectors as usize * SECTOR_BYTES).await.unwrap();
        buf.chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&word.to_le_bytes()));
        match self.thin(device).await.write(sector, Bufs::from_iter([buf]), self.dice.chance(5)).await {
            Ok(()) => {
                let volume = self.volumes.get_mut(&device).unwrap();
                volume.blocks.entry(sector / self.block_sectors).or_insert(None);
                volume.sectors.extend((sector..sector + sectors).map(|sector| (sector, word)));
            }
            Err(error) => assert_eq!(error.errno(), Errno::ENOSPC, "{error}"),
        }
    }

    async fn discard(&mut self) {
        let Some(device) = self.existing() else { return };
        let (sector, sectors) = (self.any_sector(device), self.dice.below(20 * self.block_sectors));
        self.thin(device).await.discard(sector, sectors).await.unwrap();
        let (first, behind) = (sector.div_ceil(self.block_sectors), (sector + sectors) / self.block_sectors);
        let volume = self.volumes.get_mut(&device).unwrap();
        volume.blocks.retain(|block, _| !(first..behind).contains(block));
        volume.sectors.retain(|sector, _| !(first..behind).contains(&(sector / self.block_sectors)));
    }

    async fn hold_or_release(&mut self) {
        let (reserved, released) = if self.dice.chance(2) {
            (self.pool.reserve_metadata_snap().await.map(|_| ()), Ok(()))
        } else {
            (Ok(()), self.pool.release_metadata_snap().await)
        };
        match (reserved, released) {
            (Err(error), _) => assert_eq!((error.errno(), self.held), (Errno::EBUSY, true)),
            (_, Err(error)) => assert_eq!((error.errno(), self.held), (Errno::EINVAL, false)),
            (Ok(()), Ok(())) => self.held = self.pool.status().held_root.is_some(),
        }
    }

    async fn set_id(&mut self) {
        let (now, next) = (self.pool.status().transaction_id, self.dice.below(u64::MAX));
        self.pool.message(&format!("set_transaction_id {now} {next}")).await.unwrap();
        assert_eq!(self.pool.status().transaction_id, next);
    }

    async fn grow(&mut self) {
        self.data.size_sectors.set(self.data.size_sectors.get() + self.dice.below(3 * self.block_sectors));
        self.meta.resize(self.meta.limits().size_sectors + self.dice.below(1000));
        self.pool.grow().await.unwrap();
        let status = self.pool.status();
        assert_eq!(status.data_total_blocks, self.data.size_sectors.get() / self.block_sectors);
        assert_eq!(status.metadata_total_blocks, self.meta.limits().size_sectors / 8);
    }

    async fn read(&self) {
        if let Some(device) = self.existing() {
            self.expect(device, self.any_sector(device)).await;
        }
    }

    /// Some sectors read as they should.
    async fn expect(&self, device: DeviceId, sector: u64) {
        let buf = self.runtime.bufs.wait(8 * SECTOR_BYTES).await.unwrap();
        let (result, buf) = self.thin(device).await.read(sector, buf).await;
        result.unwrap();
        for (sector, bytes) in (sector..).zip(buf.chunks_exact(SECTOR_BYTES)) {
            let expected = self.volumes[&device].word(sector, self.block_sectors);
            assert_eq!(word_of(bytes), expected, "sector {sector} of {device}");
        }
    }

    /// Every device is there, and in each some blocks read as they should.
    async fn expect_all(&self) {
        let devices: Vec<DeviceId> = self.pool.devices().await.unwrap().iter().map(|(id, _)| *id).collect();
        assert!(devices.iter().eq(self.volumes.keys()));
        for (device, volume) in &self.volumes {
            let every = 1 + volume.blocks.len() / 50;
            for block in volume.blocks.keys().step_by(every) {
                self.expect(*device, block * self.block_sectors).await;
            }
        }
    }
}

/// The status line is Linux's when it shut the pool down, but for what is a matter of its options and its past. The
/// pool that crashed had gone on after it was asked.
fn expect_status(case: &str, pool: &Pool) {
    if case == "crashed" {
        return;
    }
    let Ok(text) = std::fs::read_to_string(shared().join(format!("golden/{case}.status"))) else { return };
    let line = text.lines().find_map(|line| line.split_once(" thin-pool ")).unwrap().1;
    let theirs = line.replace("out_of_data_space", "rw").replace("queue_if_no_space", "error_if_no_space");
    assert_eq!(pool.status().to_string().trim_end(), theirs.trim_end());
}

async fn used(case: String, seed: u64, runtime: Runtime) {
    let Some(mut tester) = Tester::new(&case, seed, runtime).await else { return };
    expect_status(&case, &tester.pool);
    tester.expect_all().await;
    if case == "needs-check" {
        assert_eq!(tester.pool.create_thin(id(5)).await.unwrap_err().errno(), Errno::EOPNOTSUPP);
        tester.pool.close().await.unwrap();
        assert!(tester.watched.take().is_empty(), "it is read-only");
        return;
    }
    let (judge, mut commits) = (Judge::default(), 0);
    for step in 0..STEPS * effort() {
        tester.step().await;
        for left in tester.watched.take() {
            commits += 1;
            check(&left);
            judge.must_be_clean(&left, format!("{case}, SEED={seed}, step {step}"));
        }
    }
    tester.expect_all().await;
    tester.pool.close().await.unwrap();
    tester.pool = open(&tester.runtime, &tester.watched.device, &tester.data).await;
    tester.expect_all().await;
    println!("{case}: {commits} commits, {} of them judged by both tools", judge.finish());
    assert!(commits > 0);
}

fn used_as_a_pool(case: &'static str) {
    let seed = seed();
    run(seed, async move |runtime| used(case.into(), seed, runtime).await);
}

super::for_each_case!(used_as_a_pool);
