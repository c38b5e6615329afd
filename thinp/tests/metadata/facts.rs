//! What the reference says of the format and of each operation, one fact at a time; traps are those of its section 9.1.

use crate::harness::*;
use crate::image::word;
use platform::block::{Disk, IoError, Op};
use platform::layers::Stats;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::RefCell;
use std::rc::Rc;
use thinp::metadata::{DataBlock, Details, Mapping, Metadata, MetadataError, OpenMode, Progress, VirtualBlock};

pub async fn no_flush() -> Result<(), IoError> {
    Ok(())
}

pub async fn pool() -> (MemDisk, Metadata) {
    let disk = MemDisk::new(2048 * 8);
    let metadata = format(&disk, 1024).await;
    (disk, metadata)
}

pub async fn device(metadata: &Metadata, number: u64) {
    metadata.create_thin(id(number)).await.unwrap();
    metadata.open_device(id(number)).await.unwrap();
}

pub async fn lookup(metadata: &Metadata, device: u64, block: u64) -> Option<Mapping> {
    metadata.lookup(id(device), VirtualBlock(block)).await.unwrap()
}

#[test]
fn a_fresh_pool() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        assert_eq!(disk.peek(32, 8), [0xba, 0x52, 0x9c, 0x01, 0, 0, 0, 0]);
        assert_eq!(disk.peek(0, 4096)[364..], [0; 4096 - 364]);
        assert_eq!((word(&disk, 40), word(&disk, 48), word(&disk, 56)), (2, 0, 0));
        assert_eq!((word(&disk, 64), word(&disk, 72), word(&disk, 192), word(&disk, 200)), (1024, 0, 2048, 9));
        assert_eq!((word(&disk, 336), word(&disk, 344)), (8 << 32 | 128, 2048));
        check(&disk);
        thin_check(&disk);
        // The used figure includes the reserve (trap 16): 213 of 2048.
        assert_eq!(metadata.metadata_blocks() - metadata.free_metadata_blocks(), 213);
        assert_eq!((metadata.metadata_low_water_blocks(), metadata.free_data_blocks()), (512, 1024));
    });
}

#[test]
fn trap_29_only_a_blank_block_is_blank() {
    block_on_ready(async {
        let open = async |disk: &MemDisk| {
            Metadata::open(&runtime(), Disk::new(disk.clone()), OpenMode::Existing, 64, false).await.err().unwrap()
        };
        let (disk, _) = pool().await;
        let damaged = |at: u64, bytes: &[u8]| {
            let copy = disk.fork();
            copy.poke(at, bytes);
            copy
        };
        assert_eq!(open(&MemDisk::new(800)).await, MetadataError::Blank);
        // Bytes 364 and on are zero anyway. Whoever formats must look at the data disk, too.
        assert_eq!(open(&damaged(0, &[0; 512])).await, MetadataError::Blank);
        assert_eq!(open(&damaged(4095, &[1])).await, MetadataError::BadSuperblockChecksum);
        assert_eq!(open(&damaged(8, &[3])).await, MetadataError::NotSuperblock { found: 3 });
        assert_eq!(open(&damaged(32, &[0])).await, MetadataError::BadMagic { found: 27022010 & !0xff });
        disk.resize(2047 * 8);
        assert_eq!(open(&disk).await, MetadataError::DiskShrunk { disk_blocks: 2047, map_blocks: 2048 });
        assert!(matches!(open(&MemDisk::new(0)).await, MetadataError::Storage(_)));
    });
}

#[test]
fn a_disk_that_only_reads_is_not_changed() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        provision(&metadata, id(1), 5).await;
        commit(&metadata).await;
        let before = bytes_of(&disk);
        let metadata = open_read_only(&disk).await;
        metadata.open_device(id(1)).await.unwrap();
        assert!(lookup(&metadata, 1, 5).await.is_some());
        assert_eq!(metadata.create_thin(id(2)).await, Err(MetadataError::ReadOnly));
        assert_eq!(metadata.reserve_data_block().await, Err(MetadataError::ReadOnly));
        assert_eq!(metadata.commit(no_flush).await, Err(MetadataError::ReadOnly));
        assert!(bytes_of(&disk) == before);
    });
}

/// The table of reference 6.3.
#[test]
fn trap_18_shared_is_what_is_older_than_the_devices_own_snapshot() {
    block_on_ready(async {
        let (_, metadata) = pool().await;
        device(&metadata, 0).await;
        device(&metadata, 9).await;
        let first = provision(&metadata, id(0), 7).await;
        provision(&metadata, id(9), 7).await;
        assert_eq!(lookup(&metadata, 0, 7).await, Some(Mapping { block: first, shared: false }));
        metadata.create_snap(id(1), id(0)).await.unwrap();
        assert_eq!(lookup(&metadata, 0, 7).await, Some(Mapping { block: first, shared: true }));
        // The clock of the pool moved, but not for a device that took no part.
        assert!(!lookup(&metadata, 9, 7).await.unwrap().shared);
        let second = provision(&metadata, id(0), 7).await;
        assert_eq!(lookup(&metadata, 0, 7).await, Some(Mapping { block: second, shared: false }));
        let expected = Details { mapped_blocks: 1, transaction_id: 0, creation_time: 1, snapshotted_time: 1 };
        assert_eq!(metadata.open_device(id(1)).await, Ok(expected));
        assert_eq!(metadata.details(id(0)), Some(Details { creation_time: 0, ..expected }));
        assert_eq!(lookup(&metadata, 1, 7).await, Some(Mapping { block: first, shared: true }));
    });
}

#[test]
fn errors_of_device_operations() {
    block_on_ready(async {
        let (_, metadata) = pool().await;
        device(&metadata, 1).await;
        assert_eq!(metadata.create_thin(id(1)).await, Err(MetadataError::Exists(id(1))));
        // That the id exists is looked at first.
        assert_eq!(metadata.create_snap(id(1), id(2)).await, Err(MetadataError::Exists(id(1))));
        assert_eq!(metadata.create_snap(id(3), id(2)).await, Err(MetadataError::NoDevice(id(2))));
        assert_eq!(metadata.time(), 0, "a failed snapshot does not advance the clock");
        assert_eq!(metadata.delete(id(1)).await, Err(MetadataError::InUse(id(1))));
        assert_eq!(metadata.delete(id(2)).await, Err(MetadataError::NoDevice(id(2))));
        assert_eq!(metadata.open_device(id(2)).await, Err(MetadataError::NoDevice(id(2))));
        assert_eq!(metadata.lookup(id(2), VirtualBlock(0)).await, Err(MetadataError::NotOpen(id(2))));
        let wrong = metadata.set_transaction_id(5, 6).await;
        assert_eq!(wrong, Err(MetadataError::WrongTransactionId { expected: 5, found: 0 }));
        metadata.set_transaction_id(0, u64::MAX).await.unwrap();
        assert_eq!(metadata.transaction_id(), u64::MAX);
        let not_reserved = metadata.insert(id(1), VirtualBlock(0), DataBlock(5)).await;
        assert_eq!(not_reserved, Err(MetadataError::NotReserved(DataBlock(5))));
        assert!(!metadata.any_changes() || metadata.changed(id(1)));
        commit(&metadata).await;
        assert!(!metadata.any_changes());
    });
}

#[test]
fn trap_17_the_clock_does_not_overflow() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        provision(&metadata, id(1), 0).await;
        commit(&metadata).await;
        let mut superblock = disk.peek(0, 4096);
        superblock[44..48].copy_from_slice(&((1u32 << 24) - 2).to_le_bytes());
        let checksum = pdata::checksum::crc32c_raw(&superblock[4..]) ^ 160774;
        superblock[..4].copy_from_slice(&checksum.to_le_bytes());
        disk.poke(0, &superblock);
        let metadata = open_on(Disk::new(disk.clone()), 64).await;
        metadata.create_snap(id(2), id(1)).await.unwrap();
        let refused = metadata.create_snap(id(3), id(1)).await;
        assert_eq!(refused, Err(MetadataError::ClockExhausted((1 << 24) - 1)));
        metadata.open_device(id(2)).await.unwrap();
        let data = provision(&metadata, id(2), 1).await;
        assert_eq!(lookup(&metadata, 2, 1).await, Some(Mapping { block: data, shared: false }));
        commit(&metadata).await;
        check(&disk);
        thin_check(&disk);
    });
}

/// A block reserved, committed around and never mapped is not lost by a crash; nor is one held for a discard.
#[test]
fn trap_15_nothing_leaks_between_allocation_and_mapping() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        let reserved = metadata.reserve_data_block().await.unwrap();
        let data = provision(&metadata, id(1), 3).await;
        assert_ne!(reserved, data);
        assert_eq!(metadata.free_data_blocks(), 1022);
        commit(&metadata).await;
        check(&disk);
        thin_check(&disk);
        let removed = metadata.remove_range(id(1), VirtualBlock(0), VirtualBlock(9), 9).await.unwrap();
        metadata.hold_data(removed.freed[0]);
        commit(&metadata).await;
        thin_check(&disk);
        let mut handed_out = Vec::new();
        while let Ok(block) = metadata.reserve_data_block().await {
            handed_out.push(block);
        }
        assert_eq!(handed_out.len(), 1022);
        assert!(!handed_out.contains(&data) && !handed_out.contains(&reserved));
        assert_eq!(metadata.reserve_data_block().await, Err(MetadataError::NoDataSpace));
        metadata.release_data(removed.freed[0]);
        assert_eq!(metadata.reserve_data_block().await, Ok(data));
        metadata.unreserve_data_block(reserved);
        assert_eq!(metadata.reserve_data_block().await, Ok(reserved));
    });
}

/// A snapshot adds nothing to a data block's count; copying the leaf does.
#[test]
fn trap_3_a_data_count_counts_leaves() {
    block_on_ready(async {
        let (_, metadata) = pool().await;
        device(&metadata, 1).await;
        let data = provision(&metadata, id(1), 3).await;
        provision(&metadata, id(1), 4).await;
        metadata.create_snap(id(2), id(1)).await.unwrap();
        assert_eq!(metadata.data_block_count(data).await, Ok(1));
        provision(&metadata, id(1), 4).await;
        assert_eq!(metadata.data_block_count(data).await, Ok(2));
        let removed = metadata.remove_range(id(1), VirtualBlock(3), VirtualBlock(4), 1).await.unwrap();
        assert_eq!((removed.mappings, removed.freed), (1, vec![]));
        assert_eq!(metadata.data_block_count(data).await, Ok(1));
    });
}

/// A second snapshot in the same transaction: what the first one shares must be copied again.
#[test]
fn trap_5_a_shadow_that_became_shared_is_shadowed_again() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        let mut expected = Vec::new();
        for snapshot in 2..6 {
            let data = provision(&metadata, id(1), 0).await;
            metadata.create_snap(id(snapshot), id(1)).await.unwrap();
            expected.push((snapshot, data));
        }
        provision(&metadata, id(1), 0).await;
        commit(&metadata).await;
        check(&disk);
        thin_check(&disk);
        for (snapshot, data) in expected {
            metadata.open_device(id(snapshot)).await.unwrap();
            assert_eq!(lookup(&metadata, snapshot, 0).await.unwrap().block, data);
        }
    });
}

/// A details leaf of 126 splits at the root, whose block then has 252 slots of 8 bytes.
#[test]
fn trap_20_internal_nodes_hold_252_children() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        for device in 0..300 {
            metadata.create_thin(id(device * 7 % 300)).await.unwrap();
        }
        commit(&metadata).await;
        let root = word(&disk, 328);
        assert_eq!(disk.peek(root * 4096 + 4, 4), [1, 0, 0, 0]);
        assert_eq!(disk.peek(root * 4096 + 20, 8), [252, 0, 0, 0, 8, 0, 0, 0]);
        check(&disk);
        thin_check(&disk);
    });
}

#[test]
fn trap_10_release_lets_go_of_everything_that_was_held() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        let fresh = (metadata.free_metadata_blocks(), metadata.free_data_blocks());
        for number in 1..4 {
            device(&metadata, number).await;
            for block in 0..100 {
                provision(&metadata, id(number), block * 5).await;
            }
        }
        assert_eq!(metadata.release_metadata_snap(no_flush).await, Err(MetadataError::NoSnapshotHeld));
        let held = metadata.reserve_metadata_snap(no_flush).await.unwrap();
        assert_eq!((metadata.held_root(), word(&disk, 56)), (Some(held), held));
        let copy = disk.peek(held * 4096, 4096);
        assert_eq!((word(&disk, held * 4096 + 8), copy[56..64].to_vec()), (held, vec![0; 8]));
        assert_eq!(copy[64..320], [0; 256], "the copy has no space maps");
        assert_eq!(copy[320..344], disk.peek(320, 24)[..]);
        let again = metadata.reserve_metadata_snap(no_flush).await;
        assert_eq!(again, Err(MetadataError::SnapshotHeld(held)));
        let dump = run_tool(&disk, "thin_dump", &["-m"]);
        for number in 1..4 {
            metadata.remove_range(id(number), VirtualBlock(0), VirtualBlock(u64::MAX), 50).await.unwrap();
            metadata.close_device(id(number));
            assert_eq!(metadata.delete(id(number)).await, Ok(Progress::Complete));
        }
        commit(&metadata).await;
        check(&disk);
        thin_check(&disk);
        assert_eq!(metadata.free_data_blocks(), fresh.1 - 300, "the snapshot pins the data");
        assert_eq!(run_tool(&disk, "thin_dump", &["-m"]), dump);
        assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Complete));
        assert_eq!((metadata.held_root(), word(&disk, 56)), (None, 0));
        check(&disk);
        thin_check(&disk);
        assert_eq!((metadata.free_metadata_blocks(), metadata.free_data_blocks()), fresh);
    });
}

#[test]
fn both_maps_grow() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        let refused = metadata.grow_metadata(4096).await;
        assert_eq!(refused, Err(MetadataError::TooLarge { blocks: 4096, most: 2048 }));
        assert_eq!(metadata.grow_data(1023).await, Err(MetadataError::Shrink { from: 1024, to: 1023 }));
        disk.resize(40_000 * 8);
        metadata.grow_metadata(40_000).await.unwrap();
        // New metadata blocks can be used after the commit.
        commit(&metadata).await;
        metadata.grow_data(100_000).await.unwrap();
        while metadata.data_blocks() - metadata.free_data_blocks() < 3000 {
            let used = metadata.data_blocks() - metadata.free_data_blocks();
            provision(&metadata, id(1), used).await;
        }
        commit(&metadata).await;
        check(&disk);
        thin_check(&disk);
        assert_eq!((metadata.metadata_blocks(), metadata.data_blocks()), (40_000, 100_000));
        metadata.set_needs_check().await.unwrap();
        assert_eq!(metadata.grow_data(200_000).await, Err(MetadataError::NeedsCheck));
        assert!(open_on(Disk::new(disk.clone()), 64).await.needs_check());
    });
}

/// Design decision 7: data flush and write-out, metadata flush, superblock alone, metadata flush.
#[test]
fn trap_25_the_order_of_a_commit() {
    block_on_ready(async {
        let disk = MemDisk::new(2048 * 8);
        drop(format(&disk, 1024).await);
        let log = Rc::new(RefCell::new(Vec::new()));
        let see = log.clone();
        let trace = platform::layers::Trace::new(Rc::new(disk), move |request, done| {
            if done.is_none() && request.op != Op::Read {
                see.borrow_mut().push(match request.op {
                    Op::Flush => "flush",
                    _ if request.sector < 8 => "superblock",
                    _ => "metadata",
                });
            }
        });
        let metadata = open_on(Disk::new(trace), 64).await;
        device(&metadata, 1).await;
        provision(&metadata, id(1), 5).await;
        assert!(log.borrow().is_empty(), "nothing is written before the commit");
        let data = log.clone();
        let flush_data = async move || {
            data.borrow_mut().push("data flush");
            Ok(())
        };
        metadata.commit(flush_data).await.unwrap();
        log.borrow_mut().dedup();
        let superblock = log.borrow().iter().position(|what| *what == "superblock").unwrap();
        assert!(log.borrow()[..superblock].contains(&"data flush"));
        log.borrow_mut().retain(|what| *what != "data flush");
        assert_eq!(*log.borrow(), ["metadata", "flush", "superblock", "flush"]);
        log.borrow_mut().clear();
        commit(&metadata).await;
        assert!(log.borrow().is_empty(), "a commit without changes writes nothing");
    });
}

#[test]
fn a_failed_data_flush_fails_the_commit_and_the_abort_takes_everything_back() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        let old = provision(&metadata, id(1), 5).await;
        commit(&metadata).await;
        provision(&metadata, id(1), 6).await;
        metadata.set_transaction_id(0, 4).await.unwrap();
        device(&metadata, 2).await;
        let failed = metadata.commit(async || Err(IoError::Gone)).await;
        assert_eq!(failed, Err(MetadataError::DataFlush(IoError::Gone)));
        assert!(failed.unwrap_err().spoils());
        assert_eq!(metadata.lookup(id(1), VirtualBlock(5)).await, Err(MetadataError::Spoilt));
        assert_eq!(metadata.commit(no_flush).await, Err(MetadataError::Spoilt));
        metadata.abort().await.unwrap();
        assert!(metadata.needs_check() && metadata.aborted_with_changes(id(1)));
        assert_eq!(metadata.details(id(1)).unwrap().mapped_blocks, 1);
        assert_eq!((lookup(&metadata, 1, 5).await.unwrap().block, lookup(&metadata, 1, 6).await), (old, None));
        assert_eq!((metadata.details(id(2)), metadata.transaction_id()), (None, 0));
        check(&disk);
    });
}

/// What is cached is looked up without a request to the disk, and without waiting.
#[test]
fn a_cached_lookup_reads_nothing() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        for block in 0..600 {
            provision(&metadata, id(1), block).await;
        }
        commit(&metadata).await;
        let stats = Stats::new(Rc::new(disk));
        let metadata = open_on(Disk::new(stats.clone()), 64).await;
        metadata.open_device(id(1)).await.unwrap();
        assert!(metadata.try_lookup(id(1), VirtualBlock(300)).is_err());
        let found = lookup(&metadata, 1, 300).await;
        let reads = stats.counters().reads.get();
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(300)), Ok(found));
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(301)).map(|found| found.is_some()), Ok(true));
        assert_eq!(stats.counters().reads.get(), reads);
    });
}
