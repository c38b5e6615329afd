//! Random operations, many at a time, on the pool and on a naive model of it, with power cuts.
//!
//! The model keeps for each sector of each volume the values that were written since the last flush: after a power cut
//! any of them may be there, and nothing else.

use super::{BLOCK, World, id, run};
use crate::metadata::check::check;
use crate::{Error, Features, Pool, PoolOptions, Thin};
use platform::block::SECTOR_BYTES;
use platform::mem::MemDisk;
use platform::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

const VOLUME_BLOCKS: u64 = 9;
const VOLUME_SECTORS: u64 = VOLUME_BLOCKS * BLOCK;
const VOLUMES_MAX: u32 = 5;
const WORKERS: usize = 6;

/// One sector: what may be there, oldest first. Before `first` there is nothing that could come back.
#[derive(Clone)]
struct Place {
    /// Index of `values[0]` in all that was ever written here.
    first: u64,
    values: Vec<u32>,
    /// So many of the last values may be what is read now.
    unsure: usize,
    /// While a snapshot is being made: what it may hold.
    watched: Option<Vec<u32>>,
}

impl Place {
    fn of(value: u32) -> Place {
        Place { first: 0, values: vec![value], unsure: 1, watched: None }
    }

    fn write(&mut self, value: u32) {
        self.values.push(value);
        self.unsure += 1;
        if let Some(watched) = &mut self.watched {
            watched.push(value);
        }
    }

    fn watch(&mut self) {
        self.watched = Some(self.values[self.values.len() - self.unsure..].to_vec());
    }

    /// What a snapshot made since [`Place::watch`] may hold.
    fn snapshot(&mut self) -> Place {
        let values = self.watched.take().unwrap();
        Place { first: 0, unsure: values.len(), values, watched: None }
    }

    /// Index of the oldest value that may be read now.
    fn now(&self) -> u64 {
        self.first + (self.values.len() - self.unsure) as u64
    }

    /// Nothing before the index can come back.
    fn durable(&mut self, index: u64) {
        let gone = index.saturating_sub(self.first) as usize;
        self.values.drain(..gone);
        self.first += gone as u64;
        self.unsure = self.unsure.min(self.values.len());
    }

    fn read(&mut self, value: u32, sector: u64) {
        let from = self.values.len() - self.unsure;
        let possible = &self.values[from..];
        let Some(at) = possible.iter().rposition(|v| *v == value) else {
            panic!("sector {sector} is {value:#x}, not of {possible:x?}")
        };
        // What is there now need not be what a power cut leaves.
        let value = self.values.remove(from + at);
        self.values.push(value);
        self.unsure = 1;
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Existence {
    Sure,
    Creating,
    Deleting,
}

struct Volume {
    places: Vec<Place>,
    exists: Existence,
    /// Sectors with an operation under way.
    busy: Vec<Range<u64>>,
    /// Being created from this volume.
    origin: Option<u32>,
}

#[derive(Default)]
struct Model {
    volumes: BTreeMap<u32, Volume>,
    stamp: u32,
    seen: Seen,
}

/// How often what happened.
#[derive(Default, Debug, Clone, Copy)]
struct Seen {
    writes: u64,
    reads: u64,
    discards: u64,
    flushes: u64,
    snapshots: u64,
    deletes: u64,
    full: u64,
    cuts: u64,
}

impl Seen {
    fn add(&mut self, more: &Seen) {
        self.writes += more.writes;
        self.reads += more.reads;
        self.discards += more.discards;
        self.flushes += more.flushes;
        self.snapshots += more.snapshots;
        self.deletes += more.deletes;
        self.full += more.full;
        self.cuts += more.cuts;
    }
}

impl Volume {
    fn of(places: Vec<Place>) -> Volume {
        Volume { places, exists: Existence::Sure, busy: Vec::new(), origin: None }
    }

    fn blank() -> Volume {
        Volume::of(vec![Place::of(0); VOLUME_SECTORS as usize])
    }

    fn range(&mut self, sectors: &Range<u64>) -> &mut [Place] {
        &mut self.places[sectors.start as usize..sectors.end as usize]
    }

    /// A range without an operation under way.
    fn claim(&mut self, sectors: Range<u64>) -> bool {
        let free = self.busy.iter().all(|b| b.end <= sectors.start || sectors.end <= b.start);
        if free {
            self.busy.push(sectors);
        }
        free
    }

    fn release(&mut self, sectors: &Range<u64>) {
        self.busy.retain(|b| b != sectors);
    }
}

type Shared = Rc<RefCell<Model>>;

/// What the tasks of one life of the pool share.
struct Life {
    world: World,
    pool: Pool,
    model: Shared,
    thins: RefCell<BTreeMap<u32, Thin>>,
    control: Cell<bool>,
}

fn bytes_of(stamp: u32, sectors: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(sectors as usize * SECTOR_BYTES / 4)
}

impl Life {
    fn pick(&self) -> Option<(u32, Thin)> {
        let thins = self.thins.borrow();
        let at = self.world.below(thins.len().max(1) as u64) as usize;
        thins.iter().nth(at).map(|(id, thin)| (*id, thin.clone()))
    }

    /// Random sectors, often whole blocks, with nothing under way.
    fn claim(&self, volume: u32) -> Option<Range<u64>> {
        let w = &self.world;
        let sectors = if w.below(3) == 0 {
            let block = w.below(VOLUME_BLOCKS);
            block * BLOCK..(block + 1 + w.below(3)).min(VOLUME_BLOCKS) * BLOCK
        } else {
            let start = w.below(VOLUME_SECTORS);
            start..(start + 1 + w.below(200)).min(VOLUME_SECTORS)
        };
        let mut model = self.model.borrow_mut();
        let volume = model.volumes.get_mut(&volume).filter(|v| v.exists == Existence::Sure)?;
        volume.claim(sectors.clone()).then_some(sectors)
    }

    fn volume<T>(&self, volume: u32, f: impl FnOnce(&mut Volume) -> T) -> T {
        f(self.model.borrow_mut().volumes.get_mut(&volume).unwrap())
    }

    fn tolerate(&self, result: &Result<(), Error>) {
        match result {
            Ok(()) => {}
            Err(Error::NoDataSpace) => self.model.borrow_mut().seen.full += 1,
            Err(error) => panic!("{error}"),
        }
    }

    async fn write(&self, number: u32, thin: &Thin, zeroes: bool) {
        let Some(sectors) = self.claim(number) else { return };
        let stamp = {
            let mut model = self.model.borrow_mut();
            model.seen.writes += 1;
            model.stamp += 1;
            if zeroes { 0 } else { model.stamp }
        };
        self.volume(number, |v| v.range(&sectors).iter_mut().for_each(|p| p.write(stamp)));
        let (count, fua) = (sectors.end - sectors.start, self.world.below(8) == 0);
        let result = if zeroes {
            thin.write_zeroes(sectors.start, count).await
        } else {
            self.world.write_bytes(thin, sectors.start, &bytes_of(stamp, count), fua).await
        };
        self.tolerate(&result);
        self.volume(number, |volume| {
            for place in volume.range(&sectors) {
                if result.is_ok() {
                    place.unsure = 1;
                }
                if result.is_ok() && fua && !zeroes {
                    place.durable(place.now());
                }
            }
            volume.release(&sectors);
        });
    }

    async fn discard(&self, number: u32, thin: &Thin) {
        let Some(sectors) = self.claim(number) else { return };
        let whole = sectors.start.div_ceil(BLOCK) * BLOCK..sectors.end / BLOCK * BLOCK;
        let some = whole.start < whole.end;
        self.model.borrow_mut().seen.discards += u64::from(some);
        if some {
            self.volume(number, |v| v.range(&whole).iter_mut().for_each(|p| p.write(0)));
        }
        thin.discard(sectors.start, sectors.end - sectors.start).await.unwrap();
        self.volume(number, |volume| {
            if some {
                volume.range(&whole).iter_mut().for_each(|p| p.unsure = 1);
            }
            volume.release(&sectors);
        });
    }

    async fn read(&self, number: u32, thin: &Thin, sectors: Range<u64>) {
        self.model.borrow_mut().seen.reads += 1;
        let bytes = self.world.read(thin, sectors.start, sectors.end - sectors.start).await.unwrap();
        self.volume(number, |volume| {
            for (at, sector) in sectors.clone().zip(bytes.chunks_exact(SECTOR_BYTES)) {
                let value = u32::from_le_bytes(*sector.first_chunk().unwrap());
                assert!(sector.chunks_exact(4).all(|w| w == value.to_le_bytes()), "sector {at} is torn");
                volume.places[at as usize].read(value, at);
            }
            volume.release(&sectors);
        });
    }

    async fn flush(&self, number: u32, thin: &Thin) {
        let now: Vec<u64> = self.volume(number, |v| v.places.iter().map(Place::now).collect());
        thin.flush().await.unwrap();
        let mut model = self.model.borrow_mut();
        model.seen.flushes += 1;
        if let Some(volume) = model.volumes.get_mut(&number) {
            volume.places.iter_mut().zip(now).for_each(|(place, index)| place.durable(index));
        }
    }

    /// Makes a volume or a snapshot.
    async fn create(&self) {
        let origin = self.pick().map(|(number, _)| number).filter(|_| self.world.below(3) > 0);
        let number = {
            let mut model = self.model.borrow_mut();
            let Some(number) = (0..VOLUMES_MAX).find(|n| !model.volumes.contains_key(n)) else { return };
            let from = origin.and_then(|origin| {
                let volume = model.volumes.get_mut(&origin).filter(|v| v.exists == Existence::Sure)?;
                volume.places.iter_mut().for_each(Place::watch);
                Some(origin)
            });
            let volume = Volume { exists: Existence::Creating, origin: from, ..Volume::blank() };
            model.volumes.insert(number, volume);
            number
        };
        let origin = self.volume(number, |v| v.origin);
        match origin {
            Some(origin) => self.pool.create_snap(id(number.into()), id(origin.into())).await.unwrap(),
            None => self.pool.create_thin(id(number.into())).await.unwrap(),
        }
        self.model.borrow_mut().created(number);
        let thin = self.pool.open_thin(id(number.into()), None).await.unwrap();
        self.thins.borrow_mut().insert(number, thin);
    }

    async fn delete(&self) {
        let Some((number, thin)) = self.pick() else { return };
        let idle = self.volume(number, |volume| {
            let idle = volume.busy.is_empty() && volume.exists == Existence::Sure;
            if idle {
                volume.exists = Existence::Deleting;
            }
            idle
        });
        if !idle {
            return;
        }
        assert_eq!(self.pool.delete(id(number.into())).await, Err(Error::Active(id(number.into()))));
        self.thins.borrow_mut().remove(&number);
        drop(thin);
        // A flush may still have it open.
        while let Err(error) = self.pool.delete(id(number.into())).await {
            assert_eq!(error, Error::Active(id(number.into())));
            self.world.runtime.timers.sleep(Duration::from_micros(100)).await;
        }
        let mut model = self.model.borrow_mut();
        model.volumes.remove(&number);
        model.seen.deletes += 1;
    }

    async fn step(&self) {
        let kind = self.world.below(100);
        if kind >= 95 && !self.control.replace(true) {
            if kind == 99 {
                self.delete().await;
            } else {
                self.create().await;
            }
            self.control.set(false);
            return;
        }
        let Some((number, thin)) = self.pick() else { return };
        match kind {
            0..45 => self.write(number, &thin, false).await,
            45..48 => self.write(number, &thin, true).await,
            48..60 => self.discard(number, &thin).await,
            60..90 => {
                if let Some(sectors) = self.claim(number) {
                    self.read(number, &thin, sectors).await;
                }
            }
            90..94 => self.flush(number, &thin).await,
            _ => self.pool.commit().await.unwrap(),
        }
    }

    /// After opening: all that should be there is, and nothing else.
    async fn verify(&self) {
        let there: Vec<u32> = self.pool.devices().await.unwrap().into_iter().map(|(id, _)| id.get()).collect();
        self.model.borrow_mut().settle(&there);
        let known: Vec<u32> = self.model.borrow().volumes.keys().copied().collect();
        assert_eq!(there, known);
        for number in known {
            let thin = self.pool.open_thin(id(number.into()), None).await.unwrap();
            for block in 0..VOLUME_BLOCKS {
                self.read(number, &thin, block * BLOCK..(block + 1) * BLOCK).await;
            }
            self.thins.borrow_mut().insert(number, thin);
        }
    }
}

impl Model {
    fn created(&mut self, number: u32) {
        let origin = self.volumes.get_mut(&number).unwrap().origin.take();
        let places = match origin {
            Some(origin) => {
                self.seen.snapshots += 1;
                self.volumes.get_mut(&origin).unwrap().places.iter_mut().map(Place::snapshot).collect()
            }
            None => Volume::blank().places,
        };
        self.volumes.insert(number, Volume::of(places));
    }

    /// A power cut: operations under way happened or did not, and any unflushed value may be there.
    fn settle(&mut self, there: &[u32]) {
        let unsure: Vec<u32> =
            self.volumes.iter().filter(|(_, v)| v.exists != Existence::Sure).map(|(n, _)| *n).collect();
        for number in unsure {
            match self.volumes[&number].exists {
                _ if !there.contains(&number) => drop(self.volumes.remove(&number)),
                Existence::Creating => self.created(number),
                Existence::Deleting | Existence::Sure => {}
            }
        }
        for volume in self.volumes.values_mut() {
            volume.exists = Existence::Sure;
            volume.busy.clear();
            volume.places.iter_mut().for_each(|place| place.unsure = place.values.len());
        }
    }
}

fn options(world: &World) -> PoolOptions {
    let features = Features {
        error_if_no_space: world.below(2) == 0,
        no_discard_passdown: world.below(4) == 0,
        ..Features::default()
    };
    PoolOptions { features, cache_blocks: 64, ..PoolOptions::default() }
}

/// One life of a pool, until the power fails: what was left.
async fn life(world: World, model: Shared, lie: bool) -> (MemDisk, MemDisk) {
    if lie {
        world.data.lie_about_flushes();
        world.meta.lie_about_flushes();
    }
    if !model.borrow().volumes.is_empty() {
        let report = check(&world.runtime, &world.meta_disk(), 64).await.unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }
    let pool = world.open_with(options(&world)).await;
    let life = Life { world: world.clone(), pool, model, thins: RefCell::default(), control: Cell::new(false) };
    let life = Rc::new(life);
    life.verify().await;
    for _ in 0..WORKERS {
        let life = life.clone();
        world.runtime.spawner.spawn(async move {
            loop {
                life.step().await;
                // A step that found nothing to do takes time, too.
                life.world.runtime.timers.sleep(Duration::from_micros(life.world.below(100))).await;
            }
        });
    }
    let micros = world.below(60_000);
    world.runtime.timers.sleep(Duration::from_micros(micros)).await;
    life.model.borrow_mut().seen.cuts += 1;
    world.cut()
}

/// Lives and power cuts of one pool; what happened.
fn history(seed: u64, lives: u64, data_blocks: u64, lie: bool) -> Seen {
    let model = Shared::default();
    let mut disks = (MemDisk::new(512 * 8), MemDisk::new(data_blocks * BLOCK));
    for n in 0..lives {
        let model = model.clone();
        let seed = seed.wrapping_mul(1000) + n;
        disks = run(seed, disks.0, disks.1, async move |world| life(world, model, lie).await);
    }
    model.take().seen
}

#[test]
fn what_was_flushed_survives_power_cuts() {
    let mut all = Seen::default();
    for seed in 0..10 {
        let seen = history(seed, 8, 40, false);
        std::println!("{seen:?}");
        all.add(&seen);
    }
    let Seen { writes, reads, discards, flushes, snapshots, deletes, full, .. } = all;
    assert!(writes > 4000 && reads > 4000 && discards > 300 && flushes > 300, "{all:?}");
    assert!(snapshots > 40 && deletes > 20 && full > 5, "{all:?}");
}

#[test]
fn a_full_pool_loses_nothing() {
    let seen = history(77, 12, 14, false);
    std::println!("{seen:?}");
    assert!(seen.full > 10 && seen.snapshots > 0 && seen.deletes > 0, "{seen:?}");
}

#[test]
#[should_panic]
fn the_model_notices_flushes_that_do_nothing() {
    for seed in 0..6 {
        history(seed, 8, 40, true);
    }
}
