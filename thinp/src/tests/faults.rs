//! The n-th request of one disk fails, for n = 1, 2, 3 … until a history goes through without: the pool is in a
//! documented mode, and what is on the disks is sound and holds what was acknowledged.

use super::{BLOCK, World, id, run};
use crate::control::{Mode, Status};
use crate::metadata::check::check;
use crate::{Change, Error, OpenError, Pool, PoolOptions, Records};
use platform::block::{BlockDevice, Disk, IoError};
use platform::layers::Fault;
use platform::mem::MemDisk;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

const BLOCKS: usize = 6;

/// Of each block of device 0 what may be there after a power cut: the first is durable.
type Expected = Rc<RefCell<Vec<Vec<u8>>>>;

struct History {
    world: World,
    pool: Pool,
    expected: Expected,
}

impl History {
    async fn put(&self, thin: &crate::Thin, blocks: std::ops::Range<usize>, byte: u8) -> Result<(), Error> {
        self.expected.borrow_mut()[blocks.clone()].iter_mut().for_each(|values| values.push(byte));
        let (at, count) = (blocks.start as u64 * BLOCK, blocks.len() as u64 * BLOCK);
        if byte == 0 { thin.discard(at, count).await } else { self.world.write(thin, at, count, byte).await }
    }

    async fn flush(&self, thin: &crate::Thin) -> Result<(), Error> {
        let now: Vec<u8> = self.expected.borrow().iter().map(|values| *values.last().unwrap()).collect();
        thin.flush().await?;
        *self.expected.borrow_mut() = now.into_iter().map(|byte| vec![byte]).collect();
        Ok(())
    }

    async fn run(&self) -> Result<(), Error> {
        let pool = &self.pool;
        pool.create_thin(id(0)).await?;
        let thin = pool.open_thin(id(0), None).await?;
        self.put(&thin, 0..4, 0x11).await?;
        self.flush(&thin).await?;
        pool.create_snap(id(1), id(0)).await?;
        self.put(&thin, 1..3, 0x22).await?;
        self.put(&thin, 2..5, 0x33).await?;
        self.flush(&thin).await?;
        let records = match Records::find(pool).await? {
            Some(records) => records,
            None => Records::create(pool).await?,
        };
        records.apply(&[Change::CreateThin(id(7))], &[(0, vec![7; 100])]).await?;
        pool.reserve_metadata_snap().await?;
        self.put(&thin, 0..2, 0).await?;
        self.put(&thin, 3..6, 0x44).await?;
        self.flush(&thin).await?;
        pool.release_metadata_snap().await?;
        records.apply(&[Change::Delete(id(1)), Change::Delete(id(7))], &[(0, vec![8; 100])]).await?;
        self.put(&thin, 0..6, 0x55).await?;
        self.flush(&thin).await?;
        drop((thin, records));
        pool.close().await
    }
}

/// The disk, whose `n`-th request fails; whether that happened.
fn failing(disk: impl BlockDevice + 'static, n: u64) -> (Disk, Rc<Cell<bool>>) {
    let (seen, failed) = (Cell::new(0), Rc::new(Cell::new(false)));
    let told = failed.clone();
    let fault = Fault::new(Rc::new(disk), move |request| {
        seen.set(seen.get() + 1);
        let fails = seen.get() == n;
        told.set(told.get() || fails);
        fails.then_some(IoError::Device { op: request.op, sector: request.sector })
    });
    (Disk::new(fault), failed)
}

/// Runs the history on new disks with a failure; what a power cut then leaves, and what must be there.
fn spoilt(n: u64, of_metadata: bool) -> (MemDisk, MemDisk, Expected, bool) {
    run(n, MemDisk::new(512 * 8), MemDisk::new(32 * BLOCK), async move |world| {
        let expected: Expected = Rc::new(RefCell::new(vec![vec![0]; BLOCKS]));
        let (meta, meta_failed) = failing(world.meta.clone(), if of_metadata { n } else { 0 });
        let (data, data_failed) = failing(world.data.clone(), if of_metadata { 0 } else { n });
        if let Ok(pool) = Pool::open(&world.runtime, meta, data, PoolOptions::default()).await {
            let history = History { world: world.clone(), pool: pool.clone(), expected: expected.clone() };
            if let Err(error) = history.run().await {
                std::println!("{n}: {error}, {} mode", pool.status().mode);
            }
            let Status { mode, needs_check, .. } = pool.status();
            assert!(matches!(mode, Mode::Write | Mode::ReadOnly | Mode::Fail), "{mode}");
            assert!(mode != Mode::ReadOnly || needs_check || history.pool.0.state.closed());
        }
        let (meta, data) = world.cut();
        (meta, data, expected, meta_failed.get() || data_failed.get())
    })
}

async fn sound(world: World, expected: Expected) {
    let pool = match Pool::open(&world.runtime, world.meta_disk(), world.data_disk(), PoolOptions::default()).await {
        Ok(pool) => pool,
        // Formatting failed before the superblock was written.
        Err(OpenError::DataInUse { .. }) => panic!("data was written before the pool was made"),
        Err(error) => panic!("{error}"),
    };
    let report = check(&world.runtime, &world.meta_disk(), 64).await.unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    let Ok(thin) = pool.open_thin(id(0), None).await else {
        assert!(expected.borrow().iter().all(|values| values[0] == 0));
        return;
    };
    for (block, values) in (0..).zip(expected.take()) {
        let bytes = world.read(&thin, block * BLOCK, BLOCK).await.unwrap();
        assert!(bytes.chunks(512).all(|sector| values.contains(&sector[0])), "block {block} is not of {values:x?}");
    }
}

fn every_failure(of_metadata: bool) -> u64 {
    let mut n = 1;
    loop {
        let (meta, data, expected, failed) = spoilt(n, of_metadata);
        run(n, meta, data, async move |world| sound(world, expected).await);
        if !failed {
            return n - 1;
        }
        n += 1;
    }
}

#[test]
fn every_failure_of_the_metadata_disk_leaves_a_sound_pool() {
    assert!(every_failure(true) > 50);
}

#[test]
fn every_failure_of_the_data_disk_leaves_a_sound_pool() {
    assert!(every_failure(false) > 30);
}
