//! Our side: carries out operations on `thinp`, alone, over disks in memory, and answers like `guest/replay.c`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use platform::Runtime;
use platform::block::{Bufs, Disk, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::Seeded;
use platform::simulated;
use platform::task::Executor;
use platform::time::Duration;
use thinp::control::{DeviceId, Errno, Mode, Status};
use thinp::metadata::{DataBlock, Metadata, MetadataError, OpenMode};
use thinp::{CopySource, Error, Format, Pool, PoolOptions, Thin};
use xtask::dice::Dice;

use crate::script::{Extent, Op, PoolArguments, WriteKind, digest, pattern};

/// Memory for reads and writes.
const BUFS_BYTES: usize = 64 << 20;
/// So long everybody sleeps who waits for nothing else: long enough for all that is under way on disks in memory.
const SETTLE: Duration = Duration::from_micros(1);
/// The pool commits within this time by itself.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);

/// The disks of a pool.
#[derive(Clone)]
pub struct Disks {
    /// Of metadata.
    pub meta: MemDisk,
    /// Of data: as many sectors as the pool's blocks have.
    pub data: MemDisk,
    /// Of which external origins are the front.
    pub origin: MemDisk,
}

/// Runs `history` with a pool of ours on these disks. The pool has `data_block_sectors`, an existing one as well.
pub fn run<T: 'static>(
    disks: Disks,
    data_block_sectors: u64,
    history: impl AsyncFnOnce(&mut Ours) -> T + 'static,
) -> T {
    let random = Rc::new(Seeded::from_u64(0));
    simulated::run(&Executor::new(), random, BUFS_BYTES, async move |runtime| {
        let mut ours = Ours { runtime, disks, data_block_sectors, pool: None, thins: BTreeMap::new(), queued: None };
        history(&mut ours).await
    })
}

/// The pool and what is open of it.
pub struct Ours {
    runtime: Runtime,
    disks: Disks,
    data_block_sectors: u64,
    pool: Option<Pool>,
    thins: BTreeMap<u64, Thin>,
    /// The write that waits for data space, and what became of it.
    queued: Option<Queued>,
}

/// What became of a write that waits, once it is done.
type Queued = Rc<RefCell<Option<Result<(), Error>>>>;

fn answer(result: Result<(), Errno>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(errno) => format!("E{}", errno.number()),
    }
}

fn errno<T>(result: Result<T, Error>) -> Result<(), Errno> {
    result.map(drop).map_err(|error| error.errno())
}

impl Ours {
    /// The open pool's state, without a commit.
    pub fn status(&self) -> Status {
        self.open_pool().status()
    }

    /// The mode of the pool.
    pub fn mode(&self) -> Mode {
        self.pool.as_ref().map_or(Mode::Write, |pool| pool.status().mode)
    }

    fn open_pool(&self) -> &Pool {
        self.pool.as_ref().expect("histories use the pool while it is open")
    }

    fn thin(&self, id: u64) -> &Thin {
        self.thins.get(&id).expect("histories use thin devices while they are open")
    }

    /// Ids of all devices.
    pub async fn devices(&self) -> Result<Vec<u64>, Error> {
        Ok(self.open_pool().devices().await?.iter().map(|(id, _)| u64::from(id.get())).collect())
    }

    /// Every block of the extent is mapped.
    pub async fn is_mapped(&self, id: u64, at: Extent) -> Result<bool, Error> {
        Ok(self.thin(id).mapped_run(at.sector, at.sectors).await? == (true, at.sectors))
    }

    /// No block of the extent is mapped.
    pub async fn is_unmapped(&self, id: u64, at: Extent) -> Result<bool, Error> {
        Ok(self.thin(id).mapped_run(at.sector, at.sectors).await? == (false, at.sectors))
    }

    /// The write that was queued has an answer.
    pub fn queued_is_done(&self) -> bool {
        self.queued.as_ref().is_some_and(|queued| queued.borrow().is_some())
    }

    /// Lets the pool commit by itself.
    pub async fn idle(&self) {
        self.runtime.timers.sleep(COMMIT_PERIOD + SETTLE).await;
    }

    /// Carries an operation out. A plain write that has to wait for data space is answered with "queued".
    pub async fn apply(&mut self, op: &Op) -> String {
        let answer = match op {
            Op::OpenPool(arguments) => answer(self.open(arguments).await),
            Op::ClosePool => answer(self.close().await),
            Op::Message(text) => answer(errno(self.open_pool().message(text).await)),
            Op::OpenThin { id, origin, .. } => answer(self.open_thin(*id, *origin).await),
            Op::CloseThin(id) => {
                self.thins.remove(id);
                answer(Ok(()))
            }
            // The size of a thin device is its user's business, here as in dm-thin.
            Op::ResizeThin { .. } => answer(Ok(())),
            Op::Write { id, at, seed, kind } => self.write(*id, *at, *seed, *kind).await,
            Op::JoinQueued => answer(self.join_queued()),
            Op::WaitForTimeout => answer(self.wait_for_timeout().await),
            Op::Read { id, at } => self.read(*id, *at).await,
            Op::Discard { id, at } => answer(errno(self.thin(*id).discard(at.sector, at.sectors).await)),
            Op::Flush(id) => answer(errno(self.thin(*id).flush().await)),
            Op::Status => match self.open_pool().committed_status().await {
                Ok(status) => status.to_string(),
                Err(error) => answer(Err(error.errno())),
            },
            Op::ThinStatus(id) => match self.thin(*id).status().await {
                Ok(status) => status.to_string(),
                Err(error) => answer(Err(error.errno())),
            },
            Op::GrowData { blocks } => answer(self.grow_data(*blocks).await),
            Op::GrowMetadata { sectors } => {
                self.disks.meta.resize(*sectors);
                answer(errno(self.open_pool().grow().await))
            }
        };
        self.runtime.timers.sleep(SETTLE).await;
        answer
    }

    async fn open(&mut self, arguments: &PoolArguments) -> Result<(), Errno> {
        let blank = self.disks.meta.peek(0, 4096).iter().all(|byte| *byte == 0);
        let options = PoolOptions {
            // The kernel formats whatever the data disk holds.
            format: if blank && !arguments.features.read_only { Format::Force } else { Format::Never },
            data_block_sectors: self.data_block_sectors as u32,
            low_water_blocks: arguments.low_water_blocks,
            features: arguments.features,
            commit_period: COMMIT_PERIOD,
            no_space_timeout: Some(Duration::from_secs(arguments.no_space_timeout_seconds)),
            ..PoolOptions::default()
        };
        let (meta, data) = (Disk::new(self.disks.meta.clone()), Disk::new(self.disks.data.clone()));
        let pool = Pool::open(&self.runtime, meta, data, options).await.map_err(|error| error.errno())?;
        self.pool = Some(pool);
        Ok(())
    }

    async fn close(&mut self) -> Result<(), Errno> {
        if !self.thins.is_empty() {
            return Err(Errno::EBUSY);
        }
        let result = errno(self.open_pool().close().await);
        self.pool = None;
        result
    }

    async fn open_thin(&mut self, id: u64, origin_sectors: Option<u64>) -> Result<(), Errno> {
        let origin = origin_sectors.map(|sectors| {
            let disk = self.disks.origin.fork();
            disk.resize(sectors);
            Disk::new(disk)
        });
        let id = DeviceId::new(id).ok_or(Errno::EINVAL)?;
        let thin = self.open_pool().open_thin(id, origin).await.map_err(|error| error.errno())?;
        self.thins.insert(u64::from(id.get()), thin);
        Ok(())
    }

    async fn write(&mut self, id: u64, at: Extent, seed: u64, kind: WriteKind) -> String {
        let bytes = pattern(at, seed);
        let mut buf = self.runtime.bufs.zeroed(bytes.len()).expect("the budget is larger than a write");
        buf.copy_from_slice(&bytes);
        let (thin, slot) = (self.thin(id).clone(), Rc::<RefCell<Option<_>>>::default());
        let done = slot.clone();
        self.runtime.spawner.spawn(async move {
            let durable = kind == WriteKind::Durable;
            let mut result = thin.write(at.sector, Bufs::from_iter([buf]), durable).await;
            if durable && result.is_ok() {
                result = thin.flush().await;
            }
            *done.borrow_mut() = Some(result);
        });
        self.runtime.timers.sleep(SETTLE).await;
        let result = slot.borrow_mut().take();
        match result {
            Some(result) => answer(errno(result)),
            None => {
                self.queued = Some(slot);
                "queued".to_owned()
            }
        }
    }

    fn join_queued(&mut self) -> Result<(), Errno> {
        let queued = self.queued.take().expect("histories join what was queued");
        let result = queued.borrow_mut().take().expect("histories join what is done");
        errno(result)
    }

    async fn wait_for_timeout(&mut self) -> Result<(), Errno> {
        let timers = &self.runtime.timers;
        while !self.queued_is_done() && self.open_pool().status().mode == Mode::OutOfDataSpace {
            timers.sleep(COMMIT_PERIOD).await;
        }
        Ok(())
    }

    async fn read(&self, id: u64, at: Extent) -> String {
        let len = at.sectors as usize * SECTOR_BYTES;
        let mut buf = self.runtime.bufs.zeroed(len).expect("the budget is larger than a read");
        buf.fill(0xEE);
        match self.thin(id).read(at.sector, buf).await {
            (Ok(()), buf) => format!("{:016x}", digest(&buf)),
            (Err(error), _) => answer(Err(error.errno())),
        }
    }

    async fn grow_data(&mut self, blocks: u64) -> Result<(), Errno> {
        let old = self.open_pool().status().data_total_blocks;
        self.disks.data.resize(blocks * self.data_block_sectors);
        let result = errno(self.open_pool().grow().await);
        if result.is_err() {
            self.disks.data.resize(old * self.data_block_sectors);
        }
        result
    }
}

/// Blocks that copies reach in each device.
const COPIED_BLOCKS: u64 = 40;

/// Copies blocks of a pool that nobody uses by sharing them, between any two devices of it; returns how many copies were whole. The
/// same dice do the same to pools that are the same.
pub fn share_some(disks: &Disks, data_block_sectors: u64, mut dice: Dice) -> Result<u64, Error> {
    run(disks.clone(), data_block_sectors, async move |ours| {
        let disks = (Disk::new(ours.disks.meta.clone()), Disk::new(ours.disks.data.clone()));
        let options = PoolOptions { format: Format::Never, ..PoolOptions::default() };
        let pool = Pool::open(&ours.runtime, disks.0, disks.1, options).await.expect("a history left a sound pool");
        let mut thins = Vec::new();
        for (id, _) in pool.devices().await? {
            thins.push(pool.open_thin(id, None).await?);
        }
        let (copies, mut shared) = (if thins.is_empty() { 0 } else { dice.below(20) }, 0);
        for _ in 0..copies {
            let mut any = |limit: u64| dice.below(limit);
            let (source, target) = (any(thins.len() as u64) as usize, any(thins.len() as u64) as usize);
            let [from, to, blocks] =
                [any(COPIED_BLOCKS), any(COPIED_BLOCKS), 1 + any(8)].map(|n| n * data_block_sectors);
            match thins[target].share(to, CopySource::new(&thins[source], from), blocks).await {
                Ok(()) => shared += 1,
                Err(Error::NotShareable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        drop(thins);
        pool.close().await?;
        Ok(shared)
    })
}

/// The stored reference count of every data block.
pub fn data_counts(meta: MemDisk, blocks: u64) -> Result<Vec<u32>, MetadataError> {
    let disks = Disks { meta, data: MemDisk::new(0), origin: MemDisk::new(0) };
    run(disks, 0, async move |ours| {
        let disk = Disk::new(ours.disks.meta.clone());
        let metadata = Metadata::open(&ours.runtime, disk, OpenMode::Existing, 1024, true).await?;
        let mut counts = Vec::new();
        for block in 0..blocks {
            counts.push(metadata.data_block_count(DataBlock(block)).await?);
        }
        Ok(counts)
    })
}
