//! A pool and a naive model of it, driven together.

use crate::harness::*;
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::{BTreeMap, BTreeSet};
use thinp::control::DeviceId;
use thinp::metadata::{DataBlock, DataRun, Metadata, MetadataError, Progress, Source, VirtualBlock};

/// Virtual block to data block, for each device.
pub type Mappings = BTreeMap<DeviceId, BTreeMap<u64, u64>>;

/// Reads everything, in any order that its users like, off a disk that nobody else uses.
pub async fn dump(disk: &MemDisk) -> Mappings {
    let metadata = open_read_only(disk).await;
    let mut all = Mappings::new();
    for (device, details) in metadata.devices().await.unwrap() {
        metadata.open_device(device).await.unwrap();
        let mappings = mappings_of(&metadata, device).await;
        assert_eq!(details.mapped_blocks, mappings.len() as u64, "mapped blocks of {device}");
        all.insert(device, mappings);
    }
    all
}

pub async fn mappings_of(metadata: &Metadata, device: DeviceId) -> BTreeMap<u64, u64> {
    let (mut found, mut from) = (BTreeMap::new(), VirtualBlock(0));
    while let Some(range) = metadata.mapped_range(device, from, VirtualBlock(u64::MAX)).await.unwrap() {
        assert!(range.begin >= from && range.end > range.begin);
        let blocks = range.begin.0..range.end.0;
        found.extend(blocks.zip(range.data_begin.0..));
        from = range.end;
    }
    found
}

fn blocks_of(runs: &[DataRun]) -> BTreeSet<u64> {
    runs.iter().flat_map(|run| run.begin.0..run.begin.0 + run.blocks).collect()
}

/// What happened how often: none of it may be rare.
pub type Tally = BTreeMap<&'static str, u64>;

pub struct Driver {
    pub disk: MemDisk,
    /// What the pool writes to: `disk`, or a layer over it.
    pub device: Disk,
    pub metadata: Metadata,
    pub dice: Dice,
    pub now: Mappings,
    pub committed: Mappings,
    pub held: Option<Mappings>,
    pub tally: Tally,
    cache_blocks: usize,
}

/// Device ids and virtual blocks in use: few, so that they meet often.
const DEVICES: u64 = 12;
const VIRTUAL_BLOCKS: u64 = 1500;

impl Driver {
    pub async fn new(disk: MemDisk, device: Disk, seed: u64, data_blocks: u64, cache_blocks: usize) -> Driver {
        let metadata = format_on(device.clone(), data_blocks, cache_blocks).await;
        Driver::over(disk, device, metadata, seed, cache_blocks)
    }

    pub fn over(disk: MemDisk, device: Disk, metadata: Metadata, seed: u64, cache_blocks: usize) -> Driver {
        let (now, committed, held) = Default::default();
        let dice = Dice::new(seed);
        Driver { disk, device, metadata, dice, now, committed, held, tally: Tally::new(), cache_blocks }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    /// Any id, or that of a device that exists.
    fn any_device(&self) -> DeviceId {
        let existing = self.now.len() as u64;
        if existing > 0 && self.dice.chance(2) {
            return *self.now.keys().nth(self.dice.below(existing) as usize).unwrap();
        }
        id(self.dice.below(DEVICES))
    }

    /// One random operation, on pool and model.
    pub async fn step(&mut self) {
        match self.dice.below(1000) {
            0..=29 => self.create().await,
            30..=79 => self.snapshot().await,
            80..=109 => self.delete().await,
            110..=589 => self.write_some().await,
            590..=649 => self.share().await,
            650..=799 => self.discard().await,
            800..=839 => self.swap().await,
            840..=849 => self.hold().await,
            850..=864 => self.release().await,
            865..=874 => self.reopen().await,
            875..=894 => self.abort().await,
            895..=899 => self.grow().await,
            _ => self.look().await,
        }
    }

    async fn create(&mut self) {
        let device = self.any_device();
        match self.metadata.create_thin(device).await {
            Ok(()) => {
                assert!(self.now.insert(device, BTreeMap::new()).is_none());
                self.metadata.open_device(device).await.unwrap();
                self.count("create");
            }
            Err(error) => self.refused(error, MetadataError::Exists(device), self.now.contains_key(&device)),
        }
    }

    async fn snapshot(&mut self) {
        let (device, origin) = (self.any_device(), self.any_device());
        match self.metadata.create_snap(device, origin).await {
            Ok(()) => {
                let copy = self.now[&origin].clone();
                assert!(self.now.insert(device, copy).is_none());
                self.metadata.open_device(device).await.unwrap();
                self.count("snapshot");
            }
            Err(MetadataError::Exists(_)) => assert!(self.now.contains_key(&device)),
            Err(error) => self.refused(error, MetadataError::NoDevice(origin), !self.now.contains_key(&origin)),
        }
    }

    async fn delete(&mut self) {
        let device = self.any_device();
        if self.now.contains_key(&device) {
            assert_eq!(self.metadata.delete(device).await, Err(MetadataError::InUse(device)));
            self.metadata.close_device(device);
            let in_steps = self.delete_whole(device).await;
            self.now.remove(&device);
            if in_steps {
                // No abort finds a part of it.
                self.commit().await;
            }
            self.count("delete");
        } else {
            let error = self.metadata.delete(device).await.unwrap_err();
            self.refused(error, MetadataError::NoDevice(device), true);
        }
    }

    /// Deletes a device, in steps if need be, with commits where only they make room; true if it took steps.
    async fn delete_whole(&mut self, device: DeviceId) -> bool {
        let (mut in_steps, mut committed) = (false, false);
        loop {
            match self.metadata.delete(device).await {
                Ok(Progress::Complete) => return in_steps,
                Ok(Progress::Partial) => (in_steps, committed) = (true, false),
                Err(MetadataError::NoMetadataSpace) if !committed => {
                    self.commit().await;
                    committed = true;
                    self.count("delete after commit");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Writes to a run of blocks: provisions what is unmapped, breaks sharing of what is shared.
    async fn write_some(&mut self) {
        let device = self.any_device();
        let first = self.dice.below(VIRTUAL_BLOCKS);
        let backwards = self.dice.chance(4);
        for n in 0..1 + self.dice.below(40) {
            let block = if backwards { first.saturating_sub(n) } else { first + n };
            if !self.write(device, block).await {
                return;
            }
        }
    }

    async fn write(&mut self, device: DeviceId, block: u64) -> bool {
        if !self.now.contains_key(&device) {
            let error = self.metadata.lookup(device, VirtualBlock(block)).await;
            assert_eq!(error, Err(MetadataError::NotOpen(device)));
            return false;
        }
        let found = self.lookup(device, block).await;
        if found.is_some_and(|mapping| !mapping.shared) {
            let mappings = self.now.values().flat_map(|mappings| mappings.values());
            let sharers = mappings.filter(|data| **data == found.unwrap().block.0).count();
            assert_eq!(sharers, 1, "{block} of {device} is to be written in place");
            self.count("write in place");
            return true;
        }
        let data = match self.metadata.reserve_data_block().await {
            Ok(data) => data,
            Err(MetadataError::NoDataSpace) => {
                self.count("no data space");
                return false;
            }
            Err(error) => panic!("{error}"),
        };
        for (what, mappings) in
            [("now", Some(&self.now)), ("committed", Some(&self.committed)), ("held", self.held.as_ref())]
        {
            let mut used = mappings.into_iter().flat_map(|m| m.values()).flat_map(|m| m.values());
            assert!(!used.any(|used| *used == data.0), "{} handed out, in use {what}", data.0);
        }
        match self.metadata.insert(device, VirtualBlock(block), data).await {
            Ok(()) => {
                let before = self.now.get_mut(&device).unwrap().insert(block, data.0);
                assert_eq!(before, found.map(|mapping| mapping.block.0));
                self.count(if before.is_some() { "break sharing" } else { "provision" });
                true
            }
            Err(error) => {
                self.metadata.unreserve_data_block(data);
                self.refused(error, MetadataError::NoMetadataSpace, true);
                false
            }
        }
    }

    /// Copies a run of blocks by sharing them.
    async fn share(&mut self) {
        let (source, device) = (self.any_device(), self.any_device());
        let (mut from, mut to) = (self.dice.below(VIRTUAL_BLOCKS), self.dice.below(VIRTUAL_BLOCKS));
        let end = from + if self.dice.chance(4) { self.dice.below(600) } else { self.dice.below(40) };
        if !self.now.contains_key(&source) || !self.now.contains_key(&device) {
            return;
        }
        let (stays, root) = (self.dice.chance(30), self.metadata.root(source).await.unwrap());
        while let Some(next) = self.now[&source].range(from..end).next().map(|(block, _)| *block) {
            (from, to) = (next, to + next - from);
            let clock = self.metadata.time();
            let (first, at) = (VirtualBlock(from), VirtualBlock(to));
            let copied = Source { device: source, first, stays };
            let shared = match self.metadata.share(copied, device, at, end - from).await {
                Ok(shared) => shared,
                Err(error) => return self.refused(error, MetadataError::NoMetadataSpace, true),
            };
            let ticks = self.metadata.time() - clock;
            assert!(ticks == 0 || (ticks, clock) == (1, 0), "the clock went from {clock} by {ticks}");
            assert!(shared.blocks <= end - from);
            assert!(!stays || source == device || self.metadata.root(source).await.unwrap() == root);
            if shared.blocks == 0 {
                let data = self.now[&source][&from];
                let leaves = self.metadata.data_block_count(DataBlock(data)).await.unwrap();
                let known = leaves > 1 || self.now[&device].get(&from) == Some(&data);
                assert!(known || stays || self.metadata.free_metadata_blocks() < 400, "{data} could be shared");
                self.count("no share");
                (from, to) = (from + 1, to + 1);
                continue;
            }
            let run: Vec<u64> = (from..from + shared.blocks).map(|block| self.now[&source][&block]).collect();
            let mappings = self.now.get_mut(&device).unwrap();
            let before: BTreeSet<u64> =
                (to..).zip(&run).filter_map(|(block, data)| mappings.insert(block, *data)).collect();
            let expected: BTreeSet<u64> = before.into_iter().filter(|data| !self.is_used(*data)).collect();
            assert_eq!(blocks_of(&shared.freed), expected, "freed of {device} {to}+{}", shared.blocks);
            for block in 0..shared.blocks {
                let target = self.lookup(device, to + block).await.unwrap();
                let source = self.lookup(source, from + block).await;
                assert!(target.shared && source.is_none_or(|source| source.shared), "{target:?} {source:?}");
            }
            let mappings = &self.now[&device];
            assert_eq!(mappings.values().collect::<BTreeSet<_>>().len(), mappings.len(), "{device} has a block twice");
            (from, to) = (from + shared.blocks, to + shared.blocks);
            self.count("share");
        }
    }

    /// Whether anything maps a data block, the metadata snapshot included.
    fn is_used(&self, data: u64) -> bool {
        let all = self.now.values().chain(self.held.iter().flat_map(|held| held.values()));
        all.flat_map(|mappings| mappings.values()).any(|used| *used == data)
    }

    async fn discard(&mut self) {
        let device = self.any_device();
        let begin = self.dice.below(VIRTUAL_BLOCKS);
        let len = if self.dice.chance(4) { self.dice.below(VIRTUAL_BLOCKS) } else { self.dice.below(40) };
        let most = 1 + self.dice.below(500);
        let Some(mappings) = self.now.get_mut(&device) else { return };
        let (begin, end) = (VirtualBlock(begin), VirtualBlock(begin + len));
        let removed = match self.metadata.remove_range(device, begin, end, most).await {
            Ok(removed) => removed,
            Err(error) => return self.refused(error, MetadataError::NoMetadataSpace, true),
        };
        let all = mappings.range(begin.0..end.0).map(|(block, _)| *block);
        let gone: Vec<u64> = all.take(removed.mappings as usize).collect();
        assert!(
            removed.mappings <= most
                && (removed.mappings == most || self.metadata.is_tight() || removed.next.is_none())
        );
        let gone: BTreeSet<u64> = gone.iter().map(|block| mappings.remove(block).unwrap()).collect();
        let next = mappings.range(begin.0..end.0).next().map(|(block, _)| VirtualBlock(*block));
        assert_eq!(removed.next, next);
        let expected: BTreeSet<u64> = gone.into_iter().filter(|block| !self.is_used(*block)).collect();
        assert_eq!(blocks_of(&removed.freed), expected, "freed of {device} {begin:?}..{end:?}");
        self.count(if removed.mappings > 0 { "discard" } else { "discard nothing" });
    }

    async fn swap(&mut self) {
        let device = self.any_device();
        let Some(mappings) = self.now.get_mut(&device).filter(|mappings| mappings.len() > 1) else { return };
        let pick = || *mappings.keys().nth(self.dice.below(mappings.len() as u64) as usize).unwrap();
        let (a, b) = (pick(), pick());
        if let Err(error) = self.metadata.swap(device, VirtualBlock(a), VirtualBlock(b)).await {
            return self.refused(error, MetadataError::NoMetadataSpace, true);
        }
        let (value_a, value_b) = (mappings[&a], mappings[&b]);
        mappings.extend([(a, value_b), (b, value_a)]);
        self.count("swap");
    }

    async fn hold(&mut self) {
        match self.metadata.reserve_metadata_snap(async || Ok(())).await {
            Ok(block) => {
                assert_eq!(self.metadata.held_root(), Some(block));
                self.committed = self.now.clone();
                assert!(self.held.replace(self.now.clone()).is_none());
                self.count("reserve snapshot");
            }
            Err(MetadataError::SnapshotHeld(_)) => assert!(self.held.is_some()),
            Err(error) => {
                assert_eq!(error, MetadataError::NoMetadataSpace);
                // What it would have been of was committed before.
                self.committed = self.now.clone();
                self.count("no room for a snapshot");
            }
        }
    }

    async fn release(&mut self) {
        let mut committed = false;
        let result = loop {
            match self.metadata.release_metadata_snap(async || Ok(())).await {
                // A large one goes in steps.
                Ok(Progress::Partial) => committed = false,
                Err(MetadataError::NoMetadataSpace) if !committed => {
                    self.commit().await;
                    committed = true;
                }
                result => break result,
            }
        };
        if self.held.take().is_some() {
            assert_eq!(result, Ok(Progress::Complete));
            self.committed = self.now.clone();
            self.count("release snapshot");
        } else {
            assert_eq!(result, Err(MetadataError::NoSnapshotHeld));
        }
    }

    pub async fn commit(&mut self) {
        commit(&self.metadata).await;
        self.committed = self.now.clone();
        self.count("commit");
    }

    async fn reopen(&mut self) {
        self.commit().await;
        self.metadata = open_on(self.device.clone(), self.cache_blocks).await;
        self.open_devices().await;
        self.count("reopen");
    }

    pub async fn open_devices(&mut self) {
        for device in self.now.keys() {
            self.metadata.open_device(*device).await.unwrap();
        }
    }

    async fn abort(&mut self) {
        let existed: Vec<DeviceId> = self.now.keys().copied().collect();
        self.metadata.abort().await.unwrap();
        assert!(self.metadata.needs_check());
        self.now = self.committed.clone();
        for device in self.now.keys().filter(|device| !existed.contains(device)) {
            self.metadata.open_device(*device).await.unwrap();
        }
        self.count("abort");
    }

    async fn grow(&mut self) {
        if self.metadata.needs_check() {
            return;
        }
        let blocks = self.metadata.data_blocks() + self.dice.below(20);
        if let Err(error) = self.metadata.grow_data(blocks).await {
            return self.refused(error, MetadataError::NoMetadataSpace, true);
        }
        assert_eq!(self.metadata.data_blocks(), blocks);
        self.commit().await;
        self.count("grow");
    }

    async fn lookup(&self, device: DeviceId, block: u64) -> Option<thinp::metadata::Mapping> {
        let fast = self.metadata.try_lookup(device, VirtualBlock(block));
        let found = self.metadata.lookup(device, VirtualBlock(block)).await.unwrap();
        assert!(fast.is_err() || fast == Ok(found));
        assert_eq!(found.map(|mapping| mapping.block.0), self.now[&device].get(&block).copied());
        found
    }

    async fn look(&mut self) {
        let device = self.any_device();
        let Some(mappings) = self.now.get(&device) else { return };
        let from = self.dice.below(VIRTUAL_BLOCKS);
        self.lookup(device, from).await;
        let next = self.metadata.next_mapped(device, VirtualBlock(from)).await.unwrap();
        assert_eq!(next.map(|block| block.0), mappings.range(from..).next().map(|(block, _)| *block));
        let highest = self.metadata.highest_mapped(device).await.unwrap();
        assert_eq!(highest.map(|block| block.0), mappings.keys().next_back().copied());
        assert_eq!(self.metadata.details(device).unwrap().mapped_blocks, mappings.len() as u64);
        if let Some(data) = mappings.values().next() {
            assert!(self.metadata.data_block_count(DataBlock(*data)).await.unwrap() > 0);
        }
        self.count("look");
    }

    /// Everything in core is as the model says.
    pub async fn compare(&self) {
        for (device, mappings) in &self.now {
            assert_eq!(mappings_of(&self.metadata, *device).await, *mappings, "mappings of {device}");
        }
        let devices: Vec<DeviceId> = self.metadata.devices().await.unwrap().iter().map(|(id, _)| *id).collect();
        assert!(devices.iter().eq(self.now.keys()));
    }

    fn refused(&mut self, error: MetadataError, expected: MetadataError, is_right: bool) {
        if error.is_no_metadata_space() {
            self.count("no metadata space");
            if error.spoils() {
                assert!(self.metadata.ran_out_alone());
                block_on_ready(self.metadata.roll_back()).unwrap();
            }
        } else {
            assert_eq!(error, expected);
            assert!(is_right, "{error}");
        }
    }
}
