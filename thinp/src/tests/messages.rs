//! Messages and status lines, word for word (reference 7.2, 7.3, 6.2).

use super::{BLOCK, id, run_blank};
use crate::control::{DiskBlocks, Errno, Mode};
use crate::{Error, Features, OpenError, Pool, PoolDisk, PoolOptions};
use std::string::ToString;

async fn errno(pool: &Pool, message: &str) -> Option<Errno> {
    pool.message(message).await.err().map(|error| error.errno())
}

#[test]
fn trap_22_errors_have_dm_thins_numbers() {
    run_blank(1, 32, async |world| {
        let pool = world.open().await;
        assert_eq!(errno(&pool, "create_thin 1").await, None);
        assert_eq!(errno(&pool, "create_thin 1").await, Some(Errno::EEXIST));
        assert_eq!(errno(&pool, "create_snap 1 9").await, Some(Errno::EEXIST), "checked first");
        assert_eq!(errno(&pool, "create_snap 2 9").await, Some(Errno::ENODATA));
        assert_eq!(errno(&pool, "create_snap 2 1").await, None);
        assert_eq!(errno(&pool, "delete 9").await, Some(Errno::ENODATA));
        let thin = pool.open_thin(id(2), None).await.unwrap();
        assert_eq!(errno(&pool, "delete 2").await, Some(Errno::EBUSY));
        drop(thin);
        assert_eq!(errno(&pool, "delete 2").await, None);
        assert_eq!(errno(&pool, "set_transaction_id 1 2").await, Some(Errno::EINVAL));
        assert_eq!(errno(&pool, "set_transaction_id 0 18446744073709551615").await, None);
        assert_eq!(errno(&pool, "release_metadata_snap").await, Some(Errno::EINVAL));
        assert_eq!(errno(&pool, "reserve_metadata_snap").await, None);
        assert_eq!(errno(&pool, "reserve_metadata_snap").await, Some(Errno::EBUSY));
        assert_eq!(errno(&pool, "release_metadata_snap").await, None);
        assert_eq!(errno(&pool, "create_thin 0x1").await, Some(Errno::EINVAL));
        assert_eq!(errno(&pool, "").await, Some(Errno::EINVAL));
        assert!(pool.open_thin(id(77), None).await.err().is_some_and(|error| error.errno() == Errno::ENODATA));
    });
}

#[test]
fn messages_are_durable_when_they_succeed() {
    let disks = run_blank(2, 32, async |world| {
        let pool = world.open().await;
        pool.message("create_thin 1").await.unwrap();
        pool.message("create_snap 2 1").await.unwrap();
        pool.message("set_transaction_id 0 7").await.unwrap();
        pool.message("delete 1").await.unwrap();
        world.cut()
    });
    super::run(3, disks.0, disks.1, async |world| {
        let pool = world.open().await;
        let devices = pool.devices().await.unwrap();
        assert_eq!(devices.iter().map(|(id, _)| id.get()).collect::<std::vec::Vec<_>>(), [2]);
        assert_eq!(pool.status().transaction_id, 7);
    });
}

/// The lines of reference 7.3, which a running Linux printed (512 metadata blocks here: reserve 51, low water 128).
#[test]
fn trap_16_the_status_line_counts_the_reserve_as_used() {
    run_blank(4, 1024, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        let line = pool.status().to_string();
        assert!(line.starts_with("0 ") && line.ends_with(" - rw discard_passdown queue_if_no_space - 128 "), "{line}");
        assert_eq!(pool.status().metadata_total_blocks, 512);
        assert!((60..64).contains(&pool.status().metadata_used_blocks), "{line}");
        world.write(&thin, 0, 4 * BLOCK, 1).await.unwrap();
        let block = pool.reserve_metadata_snap().await.unwrap();
        let line = pool.committed_status().await.unwrap().to_string();
        assert!(line.contains(&std::format!(" 4/1024 {block} rw ")), "{line}");
        assert_eq!(thin.status().await.unwrap().to_string(), "512 511");
        thin.discard(0, 3 * BLOCK).await.unwrap();
        assert_eq!(thin.status().await.unwrap().to_string(), "128 511");
    });
}

#[test]
fn read_only_pools_take_no_messages() {
    let disks = run_blank(5, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, BLOCK, 0x11).await.unwrap();
        drop(thin);
        pool.close().await.unwrap();
        (world.meta.contents(), world.data.contents())
    });
    super::run(6, disks.0, disks.1, async |world| {
        let features = Features { read_only: true, ..Features::default() };
        let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
        for message in ["create_thin 1", "delete 0", "reserve_metadata_snap", "nonsense"] {
            assert_eq!(errno(&pool, message).await, Some(Errno::EOPNOTSUPP), "{message}");
        }
        // By their functions, too.
        assert_eq!(pool.create_thin(id(1)).await, Err(Error::MessageRefused(Mode::ReadOnly)));
        assert_eq!(pool.delete(id(0)).await, Err(Error::MessageRefused(Mode::ReadOnly)));
        assert_eq!(pool.committed_status().await, Ok(pool.status()), "there is nothing to commit");
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.expect(&thin, 0, BLOCK, 0x11).await;
        world.write(&thin, 0, 1, 0x22).await.unwrap();
        assert_eq!(world.write(&thin, BLOCK, 1, 0x22).await.unwrap_err().errno(), Errno::EIO);
        // Trap 26: it succeeds and does nothing.
        thin.discard(0, BLOCK).await.unwrap();
        // The simulator's seed 107055000679: zeroes are not promised where there are none.
        assert_eq!(thin.unmap(0, BLOCK).await, Err(Error::Refused(Mode::ReadOnly)));
        thin.unmap(BLOCK, 9 * BLOCK).await.unwrap();
        world.expect(&thin, 1, BLOCK - 1, 0x11).await;
        thin.flush().await.unwrap();
        assert!(pool.status().to_string().contains(" ro discard_passdown queue_if_no_space - "));
    });
}

/// `dmsetup status` commits, and shows what it committed.
#[test]
fn a_status_query_makes_what_it_shows_durable() {
    let disks = run_blank(7, 32, async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 3 * BLOCK, 0x11).await.unwrap();
        let status = pool.committed_status().await.unwrap();
        assert_eq!((status.data_used_blocks, pool.data_block_sectors()), (3, BLOCK));
        world.cut()
    });
    super::run(8, disks.0, disks.1, async |world| {
        let pool = world.open().await;
        assert_eq!((pool.status().data_used_blocks, pool.data_block_sectors()), (3, BLOCK));
        let thin = pool.open_thin(id(0), None).await.unwrap();
        world.expect(&thin, 0, 3 * BLOCK, 0x11).await;
    });
}

#[test]
fn a_pool_grows_to_both_of_its_disks() {
    run_blank(9, 32, async |world| {
        let pool = world.open().await;
        world.meta.resize(600 * 8);
        world.data.resize(40 * BLOCK + 1);
        let sizes = DiskBlocks { metadata: 600, data: 40 };
        assert_eq!(pool.disk_blocks(), sizes);
        for _ in 0..2 {
            pool.grow().await.unwrap();
            let status = pool.status();
            assert_eq!((status.metadata_total_blocks, status.data_total_blocks), (sizes.metadata, sizes.data));
        }
        // What the format cannot count is not there.
        world.meta.resize(5_000_000 * 8);
        assert_eq!(pool.disk_blocks().metadata, 4_161_600);
    });
}

#[test]
fn a_pool_has_no_use_for_more_metadata_than_its_map_counts() {
    run_blank(10, 32, async |world| {
        let pool = world.open().await;
        world.meta.resize(1 << 40);
        assert_eq!(pool.disk_blocks().metadata, 255 * 16_320);
    });
}

/// An error says what is the matter and what to do about it.
#[test]
fn errors_name_the_mode_and_the_way_out() {
    let modes = [
        (Mode::Write, "write mode: try again"),
        (Mode::OutOfDataSpace, "out of data space mode: grow the data disk and the pool, or "),
        (Mode::OutOfMetadataSpace, "out of metadata space mode: grow the metadata disk and the pool, "),
        (Mode::ReadOnly, "read-only mode: see in the log why, check the metadata, "),
        (Mode::Fail, "fail mode: see in the log why, see to the disks, "),
    ];
    for (mode, says) in modes {
        let text = Error::Refused(mode).to_string();
        assert!(text.contains(says), "{text}");
    }
    for (disk, name) in [(PoolDisk::Metadata, "the metadata disk is "), (PoolDisk::Data, "the data disk is ")] {
        let text = OpenError::WriteProtected(disk).to_string();
        assert!(text.starts_with(name), "{text}");
    }
    assert_eq!((Errno::ENOSPC.to_string().as_str(), Errno::ENOSPC.number()), ("ENOSPC", 28));
}
