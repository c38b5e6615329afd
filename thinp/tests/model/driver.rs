//! A pool and the model of it, driven together by random operations.

use crate::count;
use crate::model::{Mapping, Model};
use crate::world::{BLOCK, DataDisk, Dice, MetadataDisk};
use platform::Runtime;
use platform::block::Disk;
use platform::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use thinp::control::{DeviceId, Errno, Mode};
use thinp::{Error, Features, Pool, PoolOptions, Thin};

/// What makes one history unlike another.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub metadata_blocks: u64,
    pub data_blocks: u64,
    pub cache_blocks: usize,
    /// Blocks of a device that operations reach.
    pub virtual_blocks: u64,
    /// Data blocks that one device has from the start.
    pub filled_blocks: u64,
}

/// Devices that exist at a time, at most.
pub const DEVICES: u64 = 10;

/// Blocks written one after the other.
struct Run {
    device: u32,
    block: u64,
    backwards: bool,
    left: u64,
}

pub struct Driver {
    pub runtime: Runtime,
    pub dice: Dice,
    pub meta: MetadataDisk,
    pub data: DataDisk,
    /// As it is now: disks grow.
    pub shape: Shape,
    pub shape_at_first: Shape,
    pub model: Model,
    pub options: PoolOptions,
    pool: Option<Pool>,
    pub thins: BTreeMap<u32, Thin>,
    /// Sectors that the data disk should have been told to discard.
    pub discarded_sectors: u64,
    /// Freed by discards that are not committed.
    pub to_discard_blocks: u64,
    /// Writes found no data block since the pool last had one.
    pub short_of_data: bool,
    pub read_only: bool,
    pub needs_check: bool,
    pub mode_seen: Mode,
    /// Devices whose changes an abort lost.
    pub lost: BTreeSet<u32>,
    pub superblocks_seen: u64,
    /// Discards that unmapped something since anything else took metadata blocks.
    pub discards: u64,
    stamp: u32,
    run: Option<Run>,
}

pub fn id(device: u32) -> DeviceId {
    DeviceId::new(device.into()).unwrap()
}

/// Features and cache of a pool about to be opened.
pub fn random_options(dice: &Dice, shape: &Shape) -> PoolOptions {
    let features = Features {
        skip_block_zeroing: dice.chance(6),
        ignore_discard: dice.chance(20),
        no_discard_passdown: dice.chance(6),
        read_only: false,
        error_if_no_space: dice.chance(2),
    };
    PoolOptions { features, cache_blocks: shape.cache_blocks, ..PoolOptions::default() }
}

impl Driver {
    pub async fn new(
        runtime: Runtime,
        dice: Dice,
        meta: MetadataDisk,
        data: DataDisk,
        shape: Shape,
        model: Model,
    ) -> Driver {
        let options = random_options(&dice, &shape);
        let disks = (Disk::new(meta.clone()), Disk::new(data.clone()));
        let pool = Pool::open(&runtime, disks.0, disks.1, options).await.unwrap();
        let mode_seen = pool.status().mode;
        let mut driver = Driver {
            superblocks_seen: meta.superblocks(),
            discarded_sectors: 0,
            to_discard_blocks: 0,
            short_of_data: false,
            read_only: false,
            needs_check: false,
            lost: BTreeSet::new(),
            discards: 0,
            stamp: 1,
            run: None,
            thins: BTreeMap::new(),
            mode_seen,
            runtime,
            dice,
            meta,
            data,
            shape,
            shape_at_first: shape,
            model,
            options,
            pool: Some(pool),
        };
        driver.open_thins().await;
        driver
    }

    pub fn pool(&self) -> &Pool {
        self.pool.as_ref().unwrap()
    }

    /// In place of the pool before, of which nothing must be left when this one is opened.
    pub async fn open_pool(&mut self) {
        self.thins.clear();
        self.pool = None;
        let disks = (Disk::new(self.meta.clone()), Disk::new(self.data.clone()));
        self.pool = Some(Pool::open(&self.runtime, disks.0, disks.1, self.options).await.unwrap());
    }

    pub async fn open_thins(&mut self) {
        let devices: Vec<u32> = self.model.devices.keys().copied().collect();
        for device in devices {
            self.open_thin(device).await;
        }
    }

    pub async fn open_thin(&mut self, device: u32) {
        let origin = self.model.device(device).origin.map(|origin| Disk::new(self.model.origins[origin]));
        let thin = self.pool().open_thin(id(device), origin).await.unwrap();
        self.thins.insert(device, thin);
    }

    /// One random operation on both, and what must hold after any.
    pub async fn step(&mut self) {
        match self.dice.below(2000) {
            0..=989 => self.write().await,
            990..=1019 => self.write_zeroes().await,
            1020..=1319 => self.read().await,
            1320..=1549 => self.discard().await,
            1550..=1669 => self.flush().await,
            1670..=1683 => self.create().await,
            1684..=1725 => self.snapshot().await,
            1726..=1743 => self.delete().await,
            1744..=1771 => self.write().await,
            1772..=1811 => self.share().await,
            1812..=1831 => self.set_transaction_id().await,
            1832..=1843 => self.reserve().await,
            1844..=1855 => self.release().await,
            1856..=1885 => self.bad_message().await,
            1886..=1909 => self.look().await,
            1910..=1929 => self.commit().await,
            1930..=1949 => self.runtime.timers.sleep(Duration::from_millis(1100)).await,
            1950..=1961 => self.grow().await,
            1962..=1963 => self.restart().await,
            1964..=1966 => self.power_cut().await,
            1967 => self.lose_transaction().await,
            _ => self.status_lines().await,
        }
        self.settle().await;
    }

    /// If anything was committed, commits the rest, so that the model knows what is.
    async fn settle(&mut self) {
        // What a change set off in the background.
        self.runtime.timers.sleep(Duration::from_micros(1)).await;
        let committed = self.meta.superblocks() != self.superblocks_seen;
        if committed && !self.read_only {
            self.pool().commit().await.unwrap();
            self.committed();
        }
        self.check_status(committed);
        if self.read_only && self.dice.chance(30) {
            self.restart().await;
            self.check_status(true);
        }
    }

    /// Everything is durable, and what discards freed is on its way to the data disk.
    pub fn committed(&mut self) {
        self.made_durable();
        self.discarded_sectors += std::mem::take(&mut self.to_discard_blocks) * BLOCK;
    }

    pub fn made_durable(&mut self) {
        self.superblocks_seen = self.meta.superblocks();
        self.model.committed();
        if self.short_of_data && self.model.used < self.data_blocks() {
            self.short_of_data = false;
            count("out of data space, and back");
        }
    }

    /// Data blocks that the pool counts.
    pub fn data_blocks(&self) -> u64 {
        self.shape.data_blocks
    }

    /// So few metadata blocks are left that operations may be refused for that.
    pub fn metadata_is_short(&self) -> bool {
        let status = self.pool().status();
        let free = status.metadata_total_blocks - status.metadata_used_blocks;
        let with_reserve = free + (status.metadata_total_blocks / 10).min(4096);
        // For the commit, for the change, and for a discard and a delete after it.
        free == 0 || with_reserve < 48 + 16 + DEVICES + 8 + 40
    }

    /// The status line is as the model has it. Metadata blocks are compared elsewhere, with the space map on disk.
    fn check_status(&mut self, committed: bool) {
        let status = self.pool().status();
        let full = self.model.used == self.data_blocks();
        let expected = match status.mode {
            Mode::OutOfMetadataSpace => {
                assert!(self.metadata_is_short(), "{status}");
                self.short_of_data = false;
                Mode::OutOfMetadataSpace
            }
            _ if self.read_only => Mode::ReadOnly,
            // A write that failed for another reason gave its block back.
            Mode::Write if !full || committed => {
                self.short_of_data = false;
                Mode::Write
            }
            _ if self.short_of_data => Mode::OutOfDataSpace,
            _ => Mode::Write,
        };
        if self.mode_seen != status.mode {
            count(match (self.mode_seen, status.mode) {
                (_, Mode::OutOfMetadataSpace) => "out of metadata space",
                (Mode::OutOfMetadataSpace, _) => "out of metadata space, and back",
                (_, Mode::OutOfDataSpace) => "out of data space",
                _ => "other changes of mode",
            });
            self.mode_seen = status.mode;
        }
        let mode = match expected {
            Mode::Write => "rw",
            Mode::OutOfDataSpace => "out_of_data_space",
            _ => "ro",
        };
        let features = &self.options.features;
        let discard = match (features.ignore_discard, features.no_discard_passdown) {
            (true, _) => "ignore_discard",
            (false, true) => "no_discard_passdown",
            (false, false) => "discard_passdown",
        };
        // Once writes waited in vain, out of data space they fail at once.
        let timed_out = status.mode != Mode::Write && status.error_if_no_space;
        let no_space = if features.error_if_no_space || timed_out { "error_if_no_space" } else { "queue_if_no_space" };
        let held = status.held_root.map_or("-".into(), |block| block.to_string());
        assert_eq!(status.held_root.is_some(), self.model.held.is_some());
        let needs_check = if self.needs_check { "needs_check" } else { "-" };
        let (id, used, total) = (self.model.transaction_id, self.model.used, self.data_blocks());
        let (metadata_used, metadata_total) = (status.metadata_used_blocks, self.shape.metadata_blocks);
        let low = (metadata_total / 4).min(1024);
        let line = format!(
            "{id} {metadata_used}/{metadata_total} {used}/{total} {held} {mode} {discard} {no_space} {needs_check} {low} "
        );
        assert_eq!(status.to_string(), line);
    }

    /// A device that exists.
    pub fn any_device(&self) -> Option<u32> {
        let devices = &self.model.devices;
        let at = self.dice.below(devices.len().max(1) as u64) as usize;
        devices.keys().nth(at).copied()
    }

    /// A device that exists, more likely one with a low id: some grow large.
    pub fn busy_device(&self) -> Option<u32> {
        self.any_device().min(self.any_device())
    }

    /// Sectors of some blocks: a part of one, some whole ones, or across boundaries.
    fn any_sectors(&self) -> (u64, u64) {
        let first = self.dice.below(self.shape.virtual_blocks) * BLOCK;
        match self.dice.below(8) {
            0..=3 => {
                let at = self.dice.below(BLOCK);
                (first + at, 1 + self.dice.below(BLOCK - at))
            }
            4..=5 => (first, BLOCK * (1 + self.dice.below(2))),
            _ => (first + self.dice.below(BLOCK), 1 + self.dice.below(300)),
        }
    }

    /// The next block of a run of writes, or some sectors.
    fn any_write(&mut self) -> Option<(u32, u64, u64)> {
        self.run.take_if(|run| run.left == 0 || !self.model.devices.contains_key(&run.device));
        if self.run.is_none() && self.dice.chance(6) {
            let (block, left) = (self.dice.below(self.shape.virtual_blocks), self.dice.below(60));
            self.run = Some(Run { device: self.busy_device()?, block, backwards: self.dice.chance(3), left });
        }
        let Some(run) = &mut self.run else {
            let (sector, sectors) = self.any_sectors();
            return Some((self.busy_device()?, sector, sectors));
        };
        run.left = run.left.saturating_sub(1);
        let block = run.block;
        run.block = if run.backwards { block.saturating_sub(1) } else { (block + 1) % self.shape.virtual_blocks };
        Some((run.device, block * BLOCK + self.dice.below(BLOCK), 1))
    }

    async fn write(&mut self) {
        let Some((device, sector, sectors)) = self.any_write() else { return };
        let fua = self.dice.chance(20);
        self.stamp += 1;
        let stamp = self.stamp;
        let thin = self.thins[&device].clone();
        let mut buf = self.runtime.bufs.alloc(sectors as usize * 512).unwrap();
        buf.chunks_exact_mut(512).for_each(|sector| sector[..4].copy_from_slice(&stamp.to_le_bytes()));
        let bufs = if sectors > 3 && self.dice.chance(4) {
            let rest = buf.split_off(512 * (1 + self.dice.below(sectors - 1)) as usize);
            [buf, rest].into_iter().collect()
        } else {
            [buf].into_iter().collect()
        };
        let plan = self.plan(device, sector, sectors);
        let result = thin.write(sector, bufs, fua).await;
        if fua && self.lost.contains(&device) {
            assert_eq!(result, Err(Error::ChangesLost(id(device))));
            return;
        }
        self.judge(&plan, result);
        for piece in &plan.pieces {
            // Pieces go their own ways: one that found no space does not keep the others from being written.
            if result.is_ok() || !piece.is_new || self.was_written(&thin, device, piece, stamp).await {
                self.apply(device, piece, stamp, fua && result.is_ok());
            }
        }
    }

    async fn write_zeroes(&mut self) {
        let Some(device) = self.any_device() else { return };
        let (sector, sectors) = self.any_sectors();
        // Within one block, so that an error says all.
        let sectors = sectors.min(BLOCK - sector % BLOCK);
        let mut plan = self.plan(device, sector, sectors);
        let nothing_there =
            self.model.mapping(device, sector / BLOCK).is_none() && self.model.device(device).origin.is_none();
        if nothing_there {
            plan = Plan::default();
        }
        let result = self.thins[&device].clone().write_zeroes(sector, sectors).await;
        self.judge(&plan, result);
        for piece in plan.pieces.iter().filter(|piece| result.is_ok() || !piece.is_new) {
            self.apply(device, piece, 0, false);
        }
        count("zeroes written");
    }

    /// What a write does to each block.
    fn plan(&self, device: u32, sector: u64, sectors: u64) -> Plan {
        let mut plan = Plan::default();
        let (mut at, end) = (sector, sector + sectors);
        while at < end {
            let (block, begin) = (at / BLOCK, at % BLOCK);
            let len = (BLOCK - begin).min(end - at);
            let mapping = self.model.mapping(device, block);
            let is_new = mapping.is_none_or(|mapping| self.model.is_shared(device, mapping));
            plan.needed += u64::from(is_new);
            let alone = mapping.is_some_and(|mapping| self.model.refs(mapping.slot) == 1);
            plan.given_back += u64::from(is_new && alone);
            plan.pieces.push(Piece { block, sectors: begin..begin + len, mapping, is_new });
            at += len;
        }
        plan
    }

    /// The result of a write is what it must be.
    fn judge(&mut self, plan: &Plan, result: Result<(), Error>) {
        let free = self.data_blocks() - self.model.used;
        match result {
            Ok(()) => {
                assert!(plan.needed <= free + plan.given_back, "{} blocks of {free}", plan.needed);
                assert!(!self.read_only || plan.needed == 0, "read-only");
            }
            Err(Error::NoDataSpace) => {
                assert!(plan.needed > free || self.short_of_data, "{} blocks of {free}", plan.needed);
                self.short_of_data = true;
                count("write without data space");
            }
            Err(Error::Refused(Mode::ReadOnly)) => assert!(self.read_only && plan.needed > 0),
            Err(Error::Refused(Mode::OutOfMetadataSpace)) => {
                assert!(self.metadata_is_short() && plan.needed > 0, "{}", self.pool().status());
                count("write without metadata space");
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn was_written(&self, thin: &Thin, device: u32, piece: &Piece, stamp: u32) -> bool {
        let first = piece.block * BLOCK + piece.sectors.start;
        assert!(device == thin.id().get());
        let (mapped, _) = thin.mapped_run(first, 1).await.unwrap();
        mapped && self.stamps(thin, first, 1).await[0] == stamp
    }

    fn apply(&mut self, device: u32, piece: &Piece, stamp: u32, durable: bool) {
        let whole = piece.sectors.end - piece.sectors.start == BLOCK;
        let slot = if piece.is_new {
            self.discards = 0;
            let zeroing = !self.options.features.skip_block_zeroing;
            let mut stamps = self.model.filling(device, piece.block, zeroing);
            stamps[piece.sectors.start as usize..piece.sectors.end as usize].fill(stamp);
            let slot = self.model.new_slot(stamps);
            self.model.map(device, piece.block, slot);
            slot
        } else {
            let slot = piece.mapping.unwrap().slot;
            self.model.overwrite(slot, piece.sectors.clone(), stamp);
            slot
        };
        if durable {
            self.model.force(slot, piece.sectors.clone());
        }
        count(match (piece.mapping, piece.is_new, whole) {
            (Some(_), false, _) => "written in place",
            (Some(_), true, true) => "sharing broken without a copy",
            (Some(_), true, false) => "sharing broken with a copy",
            (None, _, true) => "provisioned whole",
            (None, _, false) => "provisioned in part",
        });
    }

    pub async fn stamps(&self, thin: &Thin, sector: u64, sectors: u64) -> Vec<u32> {
        let mut buf = self.runtime.bufs.alloc(sectors as usize * 512).unwrap();
        buf.chunks_exact_mut(512).for_each(|sector| sector[..4].fill(0xEE));
        let (result, buf) = thin.read(sector, buf).await;
        result.unwrap();
        buf.chunks_exact(512).map(|sector| u32::from_le_bytes(*sector.first_chunk().unwrap())).collect()
    }

    async fn read(&mut self) {
        let Some(device) = self.any_device() else { return };
        let (sector, sectors) = self.any_sectors();
        let found = self.stamps(&self.thins[&device], sector, sectors).await;
        self.model.compare(device, sector, &found);
        count("read");
    }

    async fn flush(&mut self) {
        let Some(device) = self.any_device() else { return };
        let result = self.thins[&device].clone().flush().await;
        if self.lost.contains(&device) {
            assert_eq!(result, Err(Error::ChangesLost(id(device))));
            return;
        }
        result.unwrap();
        // Traps 24 and 25: a commit if, and only if, this device changed.
        let committed = self.meta.superblocks() != self.superblocks_seen;
        assert_eq!(committed, self.model.changed().contains(&device), "a commit by the flush of {device}");
        if !committed {
            self.model.flushed();
        }
        count(if committed { "flush with a commit" } else { "flush without" });
    }

    async fn commit(&mut self) {
        if self.read_only {
            assert_eq!(self.pool().commit().await, Err(Error::Refused(Mode::ReadOnly)));
            return;
        }
        self.pool().commit().await.unwrap();
        self.committed();
    }

    async fn status_lines(&mut self) {
        let Some(device) = self.any_device() else { return };
        let mappings = &self.model.device(device).mappings;
        let highest = mappings.keys().next_back().map_or("-".into(), |block| ((block + 1) * BLOCK - 1).to_string());
        let line = format!("{} {highest}", mappings.len() as u64 * BLOCK);
        assert_eq!(self.thins[&device].status().await.unwrap().to_string(), line);
        let found = self.pool().devices().await.unwrap();
        let facts = found
            .iter()
            .map(|(id, d)| (id.get(), d.mapped_blocks, d.transaction_id, d.creation_time, d.snapshotted_time));
        let expected = self
            .model
            .devices
            .iter()
            .map(|(id, d)| (*id, d.mappings.len() as u64, d.transaction_id, d.creation_time, d.snapshotted_time));
        assert!(facts.clone().eq(expected), "{:?}", facts.collect::<Vec<_>>());
        count("details compared");
    }

    /// Runs of mappings are as the model has them.
    async fn look(&mut self) {
        let Some(device) = self.any_device() else { return };
        let first = self.dice.below(self.shape.virtual_blocks);
        let mappings = &self.model.device(device).mappings;
        let (mapped, sectors) = self.thins[&device].mapped_run(first * BLOCK, 20 * BLOCK).await.unwrap();
        assert_eq!(mapped, mappings.contains_key(&first));
        assert!(sectors > 0 && sectors <= 20 * BLOCK);
        let told = first..first + sectors / BLOCK;
        assert!(told.clone().all(|block| mappings.contains_key(&block) == mapped), "{told:?} of {device}");
        count("mappings queried");
    }

    pub async fn expect_errno<T>(&self, result: Result<T, Error>, errno: Errno) {
        assert_eq!(result.err().map(|error| error.errno()), Some(errno));
    }
}

/// What a write has to do.
#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    /// Data blocks.
    needed: u64,
    /// Blocks that it copies although nobody else has them: time says that they are shared.
    given_back: u64,
}

struct Piece {
    block: u64,
    /// Within the block.
    sectors: std::ops::Range<u64>,
    mapping: Option<Mapping>,
    /// It goes into a new data block.
    is_new: bool,
}
