//! Each size of a disk that is too small: the n-th allocation of a block finds none.

use super::super::{BLOCK, id, run};
use super::cases::{Scene, cases, open_thins, origin};
use crate::control::{Errno, Mode};
use crate::metadata::MetadataError;
use crate::metadata::check::check;
use crate::{Error, Features, PoolOptions};
use platform::block::Disk;
use platform::mem::MemDisk;
use std::cell::RefCell;

/// Runs every case on a pool of this size, one after the other; how many were refused for lack of space.
fn on_small_disks(metadata_blocks: u64, data_blocks: u64) -> u64 {
    let disks = (MemDisk::new(metadata_blocks * 8), MemDisk::new(data_blocks * BLOCK));
    run(metadata_blocks + data_blocks, disks.0, disks.1, async move |world| {
        let features = Features { error_if_no_space: true, ..Features::default() };
        let pool = world.open_with(PoolOptions { features, ..PoolOptions::default() }).await;
        let scene = Scene { world: world.clone(), pool, thins: RefCell::default() };
        let mut refused = 0;
        for case in cases().into_iter().filter(|case| !["close", "growth of both disks"].contains(&case.name)) {
            for device in 0..4 {
                // What is there already stays.
                let made = scene.pool.create_thin(id(device)).await;
                refused += u64::from(matches!(made, Err(Error::MessageRefused(_))));
            }
            *scene.thins.borrow_mut() = open_thins(&scene.pool, &Disk::new(origin())).await.unwrap();
            if scene.thins.borrow().len() < 4 {
                break;
            }
            for step in [case.before, case.operation] {
                match step(&scene).await {
                    Err(Error::NoDataSpace | Error::Refused(_) | Error::MessageRefused(_)) => refused += 1,
                    Err(Error::Metadata(MetadataError::NoMetadataSpace)) => refused += 1,
                    // The records are there, a metadata snapshot is or is not, the device is in use.
                    Err(error) if error.errno() != Errno::EIO => {}
                    Err(error) => panic!("{}: {error}", case.name),
                    Ok(()) => {}
                }
                let status = scene.pool.status();
                assert!(status.mode < Mode::ReadOnly && !status.needs_check, "{}: {status}", case.name);
            }
        }
        scene.pool.close().await.unwrap();
        let report = check(&world.runtime, &world.meta_disk(), 1 << 20).await.unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        refused
    })
}

/// The n-th allocation of a data block, or of a metadata block, finds none.
#[test]
fn every_size_of_a_full_disk_refuses_and_spoils_nothing() {
    let data: u64 = (1..24).map(|blocks| on_small_disks(512, blocks)).sum();
    let metadata: u64 = (64..160).map(|blocks| on_small_disks(blocks, 64)).sum();
    assert!(data > 20 && metadata > 100, "{data}, {metadata}");
}
