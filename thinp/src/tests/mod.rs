//! The pool against disks that lose power, fill up and fail.

mod checks;
mod discards;
mod disks;
mod erasures;
mod faults;
mod messages;
mod model;
mod modes;
mod online;
mod opening;
mod owner;
mod records;
mod shares;
mod shortage;
mod snapshots;
mod steps;
mod transfers;
mod views;
mod writes;

use crate::control::DeviceId;
use crate::{Error, Pool, PoolOptions, Thin};
use disks::{CachedDisk, Slow};
use platform::Runtime;
use platform::block::{BlockDevice, Bufs, Disk, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::Executor;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

/// Sectors in a data block of the tests' pools.
pub const BLOCK: u64 = 128;

/// Where a test runs: simulated time, tasks in an order that the seed decides, two disks with volatile caches.
#[derive(Clone)]
pub struct World {
    pub runtime: Runtime,
    pub meta: CachedDisk,
    pub data: CachedDisk,
}

/// Runs a test over two disks.
pub fn run<T: 'static>(seed: u64, meta: MemDisk, data: MemDisk, test: impl AsyncFnOnce(World) -> T + 'static) -> T {
    std::println!("seed {seed}");
    let random: Rc<dyn Random> = Rc::new(Seeded::from_u64(seed));
    let chooser = random.clone();
    let executor = Executor::with_chooser(move |n| disks::below(&*chooser, n as u64) as usize);
    simulated::run(&executor, random, 16 << 20, async move |runtime| {
        test(World { runtime, meta: CachedDisk::new(meta), data: CachedDisk::new(data) }).await
    })
}

/// Runs a test over two blank disks: 512 metadata blocks, `data_blocks` data blocks.
pub fn run_blank<T: 'static>(seed: u64, data_blocks: u64, test: impl AsyncFnOnce(World) -> T + 'static) -> T {
    run(seed, MemDisk::new(512 * 8), MemDisk::new(data_blocks * BLOCK), test)
}

impl World {
    /// A disk over one of the two, with random latency.
    pub fn slow(&self, inner: impl BlockDevice + 'static) -> Disk {
        let (spawner, timers) = (self.runtime.spawner.clone(), self.runtime.timers.clone());
        Disk::new(Slow { inner: Rc::new(inner), spawner, timers, random: self.runtime.random.clone() })
    }

    pub fn meta_disk(&self) -> Disk {
        self.slow(self.meta.clone())
    }

    pub fn data_disk(&self) -> Disk {
        self.slow(self.data.clone())
    }

    pub async fn open_with(&self, options: PoolOptions) -> Pool {
        Pool::open(&self.runtime, self.meta_disk(), self.data_disk(), options).await.unwrap()
    }

    pub async fn open(&self) -> Pool {
        self.open_with(PoolOptions::default()).await
    }

    /// A new pool with device 0, open.
    pub async fn pool_with_device(&self, options: PoolOptions) -> (Pool, Thin) {
        let pool = self.open_with(options).await;
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        (pool, thin)
    }

    pub fn below(&self, n: u64) -> u64 {
        disks::below(&*self.runtime.random, n)
    }

    /// Writes sectors that are full of `byte`.
    pub async fn write(&self, thin: &Thin, sector: u64, sectors: u64, byte: u8) -> Result<(), Error> {
        self.write_bytes(thin, sector, &vec![byte; sectors as usize * SECTOR_BYTES], false).await
    }

    /// Writes bytes in buffers of uneven sizes.
    pub async fn write_bytes(&self, thin: &Thin, sector: u64, bytes: &[u8], fua: bool) -> Result<(), Error> {
        let mut bufs = Bufs::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let sectors = 1 + self.below((rest.len() / SECTOR_BYTES) as u64) as usize;
            let (now, later) = rest.split_at(sectors * SECTOR_BYTES);
            let mut buf = self.runtime.bufs.wait(now.len()).await?;
            buf.copy_from_slice(now);
            bufs.push(buf);
            rest = later;
        }
        thin.write(sector, bufs, fua).await
    }

    pub async fn read(&self, thin: &Thin, sector: u64, sectors: u64) -> Result<Vec<u8>, Error> {
        let mut buf = self.runtime.bufs.wait(sectors as usize * SECTOR_BYTES).await?;
        buf.fill(0xEE);
        let (result, buf) = thin.read(sector, buf).await;
        assert!(result.is_err() || buf.len() == sectors as usize * SECTOR_BYTES);
        result.map(|()| buf.to_vec())
    }

    /// The sectors are full of `byte`.
    pub async fn expect(&self, thin: &Thin, sector: u64, sectors: u64, byte: u8) {
        let bytes = self.read(thin, sector, sectors).await.unwrap();
        let wrong = bytes.iter().position(|found| *found != byte);
        assert_eq!(wrong, None, "sector {} is {:#x}", sector, wrong.map_or(0, |at| bytes[at]));
    }

    /// What a power cut leaves of both disks.
    pub fn cut(&self) -> (MemDisk, MemDisk) {
        (self.meta.cut(&*self.runtime.random), self.data.cut(&*self.runtime.random))
    }
}

pub fn id(id: u64) -> DeviceId {
    DeviceId::new(id).unwrap()
}
