//! The operations that are to meet failures, and the pool on which they begin.

use super::super::{BLOCK, World, id, run};
use crate::{Change, CopySource, Error, Pool, PoolOptions, Records, Thin};
use platform::block::Disk;
use platform::mem::MemDisk;
use std::boxed::Box;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::vec::Vec;

/// A pool whose disks and buffers may fail.
pub struct Scene {
    pub world: World,
    pub pool: Pool,
    /// Device 0: four blocks, the first two shared with device 1. Device 2 has an external origin. Device 3 is large.
    pub thins: RefCell<BTreeMap<u64, Thin>>,
}

pub type Running<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + 'a>>;

pub struct Case {
    pub name: &'static str,
    /// Success means that it is durable.
    pub durable: bool,
    /// What comes before, and does not fail.
    pub before: for<'a> fn(&'a Scene) -> Running<'a>,
    pub operation: for<'a> fn(&'a Scene) -> Running<'a>,
}

macro_rules! steps {
    (|$scene:ident| $body:expr) => {
        |$scene| {
            Box::pin(async move {
                let () = $body;
                Ok(())
            })
        }
    };
}

macro_rules! case {
    ($name:literal, $durable:expr, $before:expr, $operation:expr) => {
        Case { name: $name, durable: $durable, before: $before, operation: $operation }
    };
}

/// Blocks of the large device.
pub const LARGE_BLOCKS: u64 = 300;
pub const ORIGIN_SECTORS: u64 = 2 * BLOCK + 40;
pub const ORIGIN_BYTE: u8 = 0x0A;

impl Scene {
    pub fn thin(&self, device: u64) -> Thin {
        self.thins.borrow()[&device].clone()
    }

    pub async fn put(&self, device: u64, sector: u64, sectors: u64, byte: u8) -> Result<(), Error> {
        self.world.write(&self.thin(device), sector, sectors, byte).await
    }

    /// Made before.
    pub async fn records(&self) -> Result<Records, Error> {
        Records::find(&self.pool).await?.ok_or(Error::NoPage(0))
    }
}

pub fn cases() -> Vec<Case> {
    std::vec![
        case!("create_thin", true, steps!(|_s| ()), steps!(|s| s.pool.message("create_thin 9").await.map(drop)?)),
        case!(
            "create_snap of an active device",
            true,
            steps!(|s| s.put(0, 5 * BLOCK, BLOCK, 0x51).await?),
            steps!(|s| s.pool.message("create_snap 9 0").await.map(drop)?)
        ),
        case!(
            "delete",
            true,
            steps!(|s| drop(s.thins.borrow_mut().remove(&1))),
            steps!(|s| s.pool.delete(id(1)).await?)
        ),
        case!(
            "delete of a large device",
            true,
            steps!(|s| drop(s.thins.borrow_mut().remove(&3))),
            steps!(|s| s.pool.delete(id(3)).await?)
        ),
        case!("set_transaction_id", true, steps!(|_s| ()), steps!(|s| s.pool.set_transaction_id(0, 7).await?)),
        case!(
            "reserve_metadata_snap",
            true,
            steps!(|s| s.put(0, 5 * BLOCK, BLOCK, 0x51).await?),
            steps!(|s| s.pool.reserve_metadata_snap().await.map(|_| ())?)
        ),
        case!(
            "release_metadata_snap",
            true,
            steps!(|s| {
                s.pool.reserve_metadata_snap().await?;
                s.put(0, 0, BLOCK, 0x51).await?;
            }),
            steps!(|s| s.pool.release_metadata_snap().await?)
        ),
        case!("first write of a block", false, steps!(|_s| ()), steps!(|s| s.put(0, 5 * BLOCK, BLOCK, 0x52).await?)),
        case!("first write of a part", false, steps!(|_s| ()), steps!(|s| s.put(0, 5 * BLOCK, 3, 0x53).await?)),
        case!("overwrite", false, steps!(|_s| ()), steps!(|s| s.put(0, 2 * BLOCK, BLOCK, 0x54).await?)),
        case!("breaking sharing, whole", false, steps!(|_s| ()), steps!(|s| s.put(0, 0, BLOCK, 0x55).await?)),
        case!("breaking sharing, copying", false, steps!(|_s| ()), steps!(|s| s.put(1, BLOCK, 3, 0x56).await?)),
        case!(
            "write across blocks, FUA",
            true,
            steps!(|_s| ()),
            steps!(|s| {
                let bytes = std::vec![0x57; 512 * 3 * BLOCK as usize];
                s.world.write_bytes(&s.thin(0), BLOCK, &bytes, true).await?;
            })
        ),
        case!(
            "zeroes over shared blocks",
            false,
            steps!(|_s| ()),
            steps!(|s| s.thin(0).write_zeroes(3, 2 * BLOCK).await?)
        ),
        case!("discard", false, steps!(|_s| ()), steps!(|s| s.thin(0).discard(0, 4 * BLOCK).await?)),
        case!(
            "discard of a large device, and commit",
            true,
            steps!(|_s| ()),
            steps!(|s| {
                s.thin(3).discard(0, LARGE_BLOCKS * BLOCK).await?;
                s.pool.commit().await?;
            })
        ),
        case!(
            "flush with changes",
            true,
            steps!(|s| s.put(0, 4 * BLOCK, 2 * BLOCK, 0x58).await?),
            steps!(|s| s.thin(0).flush().await?)
        ),
        case!(
            "flush without",
            true,
            steps!(|s| s.put(0, 2 * BLOCK, 9, 0x59).await?),
            steps!(|s| s.thin(0).flush().await?)
        ),
        case!(
            "blocks shared with another device, and flush",
            true,
            steps!(|s| s.put(0, 5 * BLOCK, BLOCK, 0x5C).await?),
            steps!(|s| {
                s.thin(3).share(3 * BLOCK, CopySource::new(&s.thin(0), 5 * BLOCK), BLOCK).await?;
                s.thin(3).flush().await?;
            })
        ),
        case!("commit", true, steps!(|s| s.thin(0).discard(0, 2 * BLOCK).await?), steps!(|s| s.pool.commit().await?)),
        case!(
            "growth of both disks",
            true,
            steps!(|s| {
                s.world.meta.resize(900 * 8);
                s.world.data.resize(600 * BLOCK);
            }),
            steps!(|s| s.pool.grow().await?)
        ),
        case!("close", true, steps!(|s| s.put(0, 4 * BLOCK, BLOCK, 0x5A).await?), steps!(|s| s.pool.close().await?)),
        case!("read", false, steps!(|_s| ()), steps!(|s| drop(s.world.read(&s.thin(0), 0, 5 * BLOCK).await?))),
        case!(
            "read of an external origin",
            false,
            steps!(|_s| ()),
            steps!(|s| drop(s.world.read(&s.thin(2), 0, 4 * BLOCK).await?))
        ),
        case!(
            "copy from an external origin",
            false,
            steps!(|_s| ()),
            steps!(|s| s.put(2, 2 * BLOCK + 9, 3, 0x5B).await?)
        ),
        case!("records made", true, steps!(|_s| ()), steps!(|s| drop(Records::create(&s.pool).await?))),
        case!(
            "records changed",
            true,
            steps!(|s| drop(Records::create(&s.pool).await?)),
            steps!(|s| {
                let changes = [Change::CreateThin(id(8)), Change::CreateSnap { device: id(9), origin: id(0) }];
                s.records().await?.apply(&changes, &[(0, std::vec![7; 100]), (1, std::vec![8; 9])]).await?;
            })
        ),
    ]
}

/// What all cases start from: made once.
pub fn base() -> (MemDisk, MemDisk) {
    run(1, MemDisk::new(700 * 8), MemDisk::new(500 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 4 * BLOCK, 0x11).await.unwrap();
        pool.create_snap(id(1), id(0)).await.unwrap();
        world.write(&thin, 2 * BLOCK, 2 * BLOCK, 0x22).await.unwrap();
        for device in [2, 3] {
            pool.create_thin(id(device)).await.unwrap();
        }
        let large = pool.open_thin(id(3), None).await.unwrap();
        for block in 0..LARGE_BLOCKS {
            world.write(&large, block * BLOCK, 1, 0x33).await.unwrap();
        }
        drop((thin, large));
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    })
}

/// An external origin that ends within a block.
pub fn origin() -> MemDisk {
    MemDisk::from_bytes(&std::vec![ORIGIN_BYTE; ORIGIN_SECTORS as usize * 512])
}

pub async fn open_thins(pool: &Pool, origin: &Disk) -> Result<BTreeMap<u64, Thin>, Error> {
    let mut thins = BTreeMap::new();
    for (device, _) in pool.devices().await?.into_iter().filter(|(device, _)| device.get() < 100) {
        let origin = (device == id(2)).then(|| origin.clone());
        thins.insert(u64::from(device.get()), pool.open_thin(device, origin).await?);
    }
    Ok(thins)
}
