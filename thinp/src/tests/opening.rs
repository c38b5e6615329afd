//! Which disks are opened, formatted, refused (design "Where it runs").

use super::disks::CachedDisk;
use super::{BLOCK, World, id, run, run_blank};
use crate::control::{Errno, Mode};
use crate::metadata::MetadataError;
use crate::{Error, Features, Format, OpenError, Pool, PoolDisk, PoolOptions};
use platform::block::{BlockDevice, Disk};
use platform::layers::ShortTransfers;
use platform::mem::MemDisk;
use platform::random::Seeded;
use platform::simulated;
use platform::task::Executor;
use platform::time::Duration;
use std::rc::Rc;
use std::vec;

const META_SECTORS: u64 = 512 * 8;

/// A pool with device 0 and one block of 0x11: its two disks after a clean end.
fn made() -> (MemDisk, MemDisk) {
    run_blank(1, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        drop(thin);
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    })
}

fn bytes(disk: &MemDisk) -> vec::Vec<u8> {
    disk.peek(0, disk.limits().size_sectors as usize * 512)
}

/// Opening fails with this error, and both disks are as they were.
fn refused(meta: MemDisk, data: MemDisk, options: PoolOptions) -> OpenError {
    let before = (bytes(&meta), bytes(&data));
    run(2, meta, data, async move |world| {
        let result = Pool::open(&world.runtime, world.meta_disk(), world.data_disk(), options).await;
        let error = result.err().expect("it must not open");
        assert!(bytes(&world.meta.contents()) == before.0, "the metadata disk was changed");
        assert!(bytes(&world.data.contents()) == before.1, "the data disk was changed");
        error
    })
}

fn try_default(meta: MemDisk, data: MemDisk) -> OpenError {
    refused(meta, data, PoolOptions::default())
}

async fn holds_the_block(world: World) {
    let pool = world.open().await;
    assert!(!pool.formatted());
    let thin = pool.open_thin(id(0), None).await.unwrap();
    world.expect(&thin, 0, BLOCK, 0x11).await;
    world.expect(&thin, BLOCK, BLOCK, 0).await;
}

#[test]
fn blank_disks_become_a_pool_that_opens_again() {
    let (meta, data) = made();
    run(3, meta, data, holds_the_block);
}

/// Nor does anything wait for what will not come any more.
#[test]
fn no_task_of_a_pool_outlives_it() {
    let executor = Rc::new(Executor::new());
    let tasks = executor.clone();
    simulated::run(&executor, Rc::new(Seeded::from_u64(1)), 16 << 20, async move |runtime| {
        let (meta, data) = (MemDisk::new(META_SECTORS), MemDisk::new(32 * BLOCK));
        let world = World { runtime, meta: CachedDisk::new(meta), data: CachedDisk::new(data) };
        let before = tasks.live();
        for used in [false, true] {
            let pool = world.open().await;
            if used {
                pool.create_thin(id(0)).await.unwrap();
                let thin = pool.open_thin(id(0), None).await.unwrap();
                world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
            }
            world.runtime.timers.sleep(Duration::from_secs(5)).await;
            assert!(tasks.live() > before);
            drop(pool);
            world.runtime.timers.sleep(Duration::from_secs(1)).await;
            assert_eq!(tasks.live(), before, "used {used}");
        }
    });
}

#[test]
fn nothing_is_made_unless_allowed() {
    let never = PoolOptions { format: Format::Never, ..PoolOptions::default() };
    let blank = || (MemDisk::new(META_SECTORS), MemDisk::new(32 * BLOCK));
    let (meta, data) = blank();
    assert_eq!(refused(meta, data, never), OpenError::Blank);
    let features = Features { read_only: true, ..Features::default() };
    let read_only = PoolOptions { features, ..PoolOptions::default() };
    let (meta, data) = blank();
    let error = refused(meta, data, read_only);
    assert_eq!((error, error.errno()), (OpenError::Blank, Errno::EPERM));
}

/// Trap 29.
#[test]
fn trap_29_blank_metadata_beside_a_used_data_disk_is_refused() {
    const SECTORS: u64 = 40 * BLOCK;
    let used_at = |sector: u64| {
        let data = MemDisk::new(SECTORS);
        data.poke(sector * 512 + 511, &[1]);
        try_default(MemDisk::new(META_SECTORS), data)
    };
    for sector in [0, 2047, SECTORS - 2048, SECTORS - 1] {
        assert_eq!(used_at(sector), OpenError::DataInUse { sector });
    }
    // Between the two ends nobody looks, in whatever pieces the disk is read.
    for most in [BLOCK, 100] {
        let data = MemDisk::new(SECTORS);
        data.poke(2048 * 512, &[1]);
        data.poke((SECTORS - 2049) * 512, &[1]);
        run(4, MemDisk::new(META_SECTORS), data, async move |world| {
            let data = world.slow(ShortTransfers::new(Rc::new(world.data.clone()), most));
            let pool = Pool::open(&world.runtime, world.meta_disk(), data, PoolOptions::default()).await.unwrap();
            assert!(pool.formatted());
        });
    }
}

/// Trap 29.
#[test]
fn trap_29_a_zeroed_first_sector_is_not_blank() {
    let (meta, data) = made();
    meta.poke(0, &[0; 512]);
    // Linux leaves the rest of block 0 zero, and so do we: then the data disk decides.
    assert_eq!(try_default(meta.fork(), data.fork()), OpenError::DataInUse { sector: 0 });
    meta.poke(4095, &[1]);
    assert!(matches!(try_default(meta, data), OpenError::Metadata(error) if error.is_damage()));
}

/// A repair is for disks that work and hold the wrong thing, and for nothing else.
#[test]
fn damage_is_told_from_failures_and_refusals() {
    use pdata::Error::{Damaged, Io, NoMemory, NoSpace};
    let source = platform::block::IoError::Device { op: platform::block::Op::Read, sector: 8 };
    let damage = [
        MetadataError::Storage(Damaged { block: 1, kind: "btree node", what: "it is not sealed" }),
        MetadataError::Blank,
        MetadataError::BadSuperblockChecksum,
    ];
    let others = [
        MetadataError::Storage(Io { block: 1, action: "read", source }),
        MetadataError::Storage(NoSpace),
        MetadataError::Spoilt,
        MetadataError::TakenOver,
        MetadataError::NoDataSpace,
    ];
    assert!(damage.iter().all(|error| error.is_damage()) && !others.iter().any(|error| error.is_damage()));
    assert!(MetadataError::Storage(NoSpace).is_no_metadata_space());
    assert!(!MetadataError::Storage(NoMemory).is_no_metadata_space());
}

#[test]
fn a_forced_format_gives_the_old_pool_up() {
    let (meta, data) = made();
    run(5, meta, data, async |world| {
        let pool = world.open_with(PoolOptions { format: Format::Force, ..PoolOptions::default() }).await;
        assert!(pool.formatted());
        assert!(pool.devices().await.unwrap().is_empty());
    });
}

#[test]
fn swapped_disks_are_told_apart() {
    let (meta, data) = made();
    assert_eq!(try_default(data, meta), OpenError::Swapped);
    let (meta, _) = made();
    assert_eq!(try_default(MemDisk::new(META_SECTORS), meta), OpenError::Swapped);
}

#[test]
fn a_data_disk_smaller_than_the_pool_is_refused_and_a_larger_one_changes_nothing() {
    let (meta, data) = made();
    data.resize(32 * BLOCK - 1);
    let error = try_default(meta.fork(), data.fork());
    assert_eq!(error, OpenError::DataTooSmall { disk_blocks: 31, pool_blocks: 32, block_sectors: 128 });
    assert_eq!(error.errno(), Errno::EINVAL);
    data.resize(64 * BLOCK);
    run(6, meta, data, async |world| {
        let pool = world.open().await;
        assert_eq!(pool.status().data_total_blocks, 32);
        pool.grow().await.unwrap();
        assert_eq!(pool.status().data_total_blocks, 64);
    });
}

#[test]
fn disks_too_small_for_a_pool_are_refused() {
    let tiny_data = try_default(MemDisk::new(META_SECTORS), MemDisk::new(BLOCK - 1));
    assert!(matches!(tiny_data, OpenError::DataTooSmall { .. }));
    let tiny_meta = try_default(MemDisk::new(8), MemDisk::new(32 * BLOCK));
    assert!(matches!(tiny_meta, OpenError::Metadata(MetadataError::TooSmall { .. })));
    let odd = PoolOptions { data_block_sectors: 129, ..PoolOptions::default() };
    let error = refused(MemDisk::new(META_SECTORS), MemDisk::new(32 * BLOCK), odd);
    assert_eq!(error, OpenError::BadBlockSize { sectors: 129 });
}

#[test]
fn a_damaged_superblock_is_refused_and_named() {
    let with = |at: u64, bytes: &[u8]| {
        let (meta, data) = made();
        meta.poke(at, bytes);
        try_default(meta, data)
    };
    assert_eq!(with(45, &[9]), OpenError::Metadata(MetadataError::BadSuperblockChecksum));
    assert_eq!(with(45, &[9]).errno(), Errno::EILSEQ);
    assert!(matches!(with(32, &[9]), OpenError::Metadata(MetadataError::BadMagic { .. })));
    assert_eq!(with(8, &[9]).errno(), Errno::ENOTBLK);
}

#[test]
fn an_incompatible_flag_is_refused() {
    let (meta, data) = made();
    meta.poke(360, &[1]);
    let checksum = pdata::checksum::crc32c_raw(&meta.peek(4, 4092)) ^ 160_774;
    meta.poke(0, &checksum.to_le_bytes());
    let error = try_default(meta, data);
    assert_eq!(error, OpenError::Metadata(MetadataError::UnknownFeatures { flags: 1 }));
    assert_eq!(error.errno(), Errno::EINVAL);
}

#[test]
fn a_write_protected_disk_opens_read_only_only() {
    let (meta, data) = made();
    run(7, meta, data, async |world| {
        let change = |limits: &mut platform::block::Limits| limits.read_only = true;
        let data = || Disk::new(super::disks::Limited { inner: world.data.clone(), change });
        let options = PoolOptions::default();
        let error = Pool::open(&world.runtime, world.meta_disk(), data(), options).await.err().unwrap();
        assert_eq!(error, OpenError::WriteProtected(PoolDisk::Data));
        let features = Features { read_only: true, ..Features::default() };
        let options = PoolOptions { features, ..options };
        let pool = Pool::open(&world.runtime, world.meta_disk(), data(), options).await.unwrap();
        assert_eq!(pool.status().mode, Mode::ReadOnly);
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.expect(&thin, 0, BLOCK, 0x11).await;
        assert_eq!(world.write(&thin, 5 * BLOCK, 1, 1).await, Err(Error::Refused(Mode::ReadOnly)));
    });
}

/// Nothing that reads needs the counts, and the volumes can be copied off such a pool.
#[test]
fn a_pool_with_damaged_counts_can_be_read() {
    let (meta, data) = made();
    // Root of the data map's tree of counts above 2 (reference 1.1, 1.3).
    let root = u64::from_le_bytes(meta.peek(64 + 24, 8).try_into().unwrap());
    meta.poke(root * 4096, &[0xAA; 4096]);
    run(32, meta, data, async |world| {
        let features = crate::Features { read_only: true, ..crate::Features::default() };
        let options = PoolOptions { features, ..PoolOptions::default() };
        let pool = Pool::open(&world.runtime, world.meta_disk(), world.data_disk(), options).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.expect(&thin, 0, BLOCK, 0x11).await;
        drop((thin, pool));
        let changeable = Pool::open(&world.runtime, world.meta_disk(), world.data_disk(), PoolOptions::default()).await;
        assert!(changeable.is_err());
    });
}
