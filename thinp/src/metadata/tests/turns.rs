//! Transactions: what belongs to one, how it ends, and what comes after one that was spoilt.

use super::{commit, device, format_on, id, map, no_flush, open, runtime, sound};
use crate::metadata::{Blocked, Metadata, MetadataError, OpenMode, VirtualBlock};
use platform::block::{BlockDevice, Disk, IoError, Op, Request};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

fn bytes(disk: &MemDisk) -> Vec<u8> {
    disk.peek(0, disk.limits().size_sectors as usize * 512)
}

#[test]
fn who_may_only_read_makes_no_pool() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 100);
        let mode = OpenMode::Format { data_block_sectors: 128, data_blocks: 100 };
        let made = Metadata::open(&runtime(), Disk::new(disk.clone()), mode, 64, true).await;
        assert_eq!(made.err(), Some(MetadataError::ReadOnly));
        assert!(bytes(&disk).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn the_data_map_only_grows() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 200), 100).await;
        assert_eq!(metadata.grow_data(99).await, Err(MetadataError::Shrink { from: 100, to: 99 }));
        assert_eq!(metadata.grow_metadata(199).await, Err(MetadataError::Shrink { from: 200, to: 199 }));
        let most = 200;
        assert_eq!(metadata.grow_metadata(201).await, Err(MetadataError::TooLarge { blocks: 201, most }));
        assert_eq!(metadata.grow_data(100).await, Ok(()));
        assert_eq!(metadata.grow_data(101).await, Ok(()));
        assert_eq!(metadata.data_blocks(), 101);
    });
}

#[test]
fn a_pool_that_needs_a_check_says_so_on_disk_and_does_not_grow() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 200);
        let metadata = format_on(&disk, 100).await;
        metadata.set_needs_check().await.unwrap();
        assert!(metadata.needs_check());
        let metadata = open(Disk::new(disk)).await;
        assert!(metadata.needs_check());
        assert_eq!(metadata.grow_data(200).await, Err(MetadataError::NeedsCheck));
        metadata.clear_needs_check().await.unwrap();
        assert_eq!((metadata.needs_check(), metadata.grow_data(200).await), (false, Ok(())));
    });
}

#[test]
fn what_was_given_up_is_neither_changed_nor_looked_up() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 200), 100).await;
        device(&metadata, 1, 0).await;
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(0)), Ok(None));
        metadata.give_up();
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(0)), Err(Blocked));
        assert_eq!(metadata.lookup(id(1), VirtualBlock(0)).await, Err(MetadataError::Spoilt));
        assert_eq!(metadata.create_thin(id(2)).await, Err(MetadataError::Spoilt));
        assert!(!metadata.ran_out_alone());
    });
}

/// The disk fails a read half-way through a change.
#[test]
fn a_change_that_failed_half_way_spoils_what_is_not_committed() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 200);
        let metadata = format_on(&disk, 1000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.map_run(id(1), 0..600).await.unwrap();
        let fails = Rc::new(Cell::new(false));
        let failing = fails.clone();
        let rule = move |request: &Request| (failing.get() && request.op == Op::Read).then_some(IoError::Gone);
        let metadata = open(Disk::new(Fault::new(Rc::new(disk.clone()), rule))).await;
        metadata.open_device(id(1)).await.unwrap();
        assert!(metadata.lookup(id(1), VirtualBlock(0)).await.unwrap().is_some());
        metadata.create_thin(id(2)).await.unwrap();
        let data = metadata.reserve_data_block().await.unwrap();
        fails.set(true);
        let error = metadata.insert(id(1), VirtualBlock(599), data).await.unwrap_err();
        assert!(error.spoils() && !metadata.ran_out_alone(), "{error}");
        fails.set(false);
        assert_eq!(metadata.try_lookup(id(1), VirtualBlock(0)), Err(Blocked));
        assert_eq!(metadata.commit(no_flush).await, Err(MetadataError::Spoilt));
        metadata.abort().await.unwrap();
        assert!(metadata.needs_check() && metadata.lookup(id(1), VirtualBlock(599)).await.unwrap().is_some());
        assert_eq!(metadata.devices().await.unwrap().len(), 1);
        sound(&disk);
    });
}

/// Metadata is so full that a mapping, or as many blocks as it has to leave, may not be found.
#[test]
fn a_change_that_ran_out_alone_is_undone_as_if_it_had_been_refused() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 400), 1000).await;
        device(&metadata, 1, 0).await;
        map(&metadata, 1, 0).await.unwrap();
        let (mut ran_out, mut went) = (0, 0);
        for spare in (10..60).rev() {
            metadata.spare_only(spare).await.unwrap();
            let data = metadata.reserve_data_block().await.unwrap();
            match metadata.insert(id(1), VirtualBlock(spare), data).await {
                Err(error) if error.spoils() => {
                    assert!(error.is_no_metadata_space() && metadata.ran_out_alone(), "{error}");
                    assert_eq!(metadata.try_lookup(id(1), VirtualBlock(0)), Err(Blocked));
                    metadata.roll_back().await.unwrap();
                    assert!(!metadata.ran_out_alone() && !metadata.any_changes() && !metadata.needs_check());
                    assert_eq!(metadata.lookup(id(1), VirtualBlock(spare)).await, Ok(None));
                    assert_eq!(metadata.spare(), spare);
                    ran_out += 1;
                }
                Err(error) => assert_eq!(error, MetadataError::NoMetadataSpace),
                Ok(()) => went += u32::from(metadata.any_changes()),
            }
            metadata.unreserve_data_block(data);
            commit(&metadata).await;
        }
        assert!(ran_out > 0 && went > 0, "{ran_out} ran out, {went} went");
    });
}

/// An abort goes back to what is on disk only if that is its own.
#[test]
fn an_abort_does_not_take_anothers_transaction_for_its_own() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 200);
        let first = format_on(&disk, 100).await;
        first.create_thin(id(1)).await.unwrap();
        let second = open(Disk::new(disk.clone())).await;
        second.create_thin(id(2)).await.unwrap();
        commit(&second).await;
        let before = bytes(&disk);
        assert_eq!(first.abort().await, Err(MetadataError::TakenOver));
        assert_eq!(first.create_thin(id(3)).await, Err(MetadataError::Spoilt));
        assert!(bytes(&disk) == before);
    });
}

/// As for who has it open: what was lost is told until it is closed (reference 6.6).
#[test]
fn a_closed_device_forgets_at_the_next_commit_what_an_abort_took() {
    block_on_ready(async {
        let metadata = format_on(&MemDisk::new(8 * 200), 100).await;
        for number in [1, 2] {
            device(&metadata, number, 0).await;
        }
        commit(&metadata).await;
        for number in [1, 2] {
            map(&metadata, number, 0).await.unwrap();
        }
        metadata.close_device(id(1));
        metadata.abort().await.unwrap();
        assert!(metadata.aborted_with_changes(id(1)) && metadata.aborted_with_changes(id(2)));
        metadata.create_thin(id(3)).await.unwrap();
        commit(&metadata).await;
        metadata.open_device(id(1)).await.unwrap();
        assert!(!metadata.aborted_with_changes(id(1)) && metadata.aborted_with_changes(id(2)));
    });
}
