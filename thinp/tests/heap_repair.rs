//! A repair takes no more memory than it was given, however large the pool is. `HEAP_MAPPINGS` as in `heap.rs`.

mod file_disk;

use cap::Cap;
use file_disk::{FORMAT, FileDisk, any_block, insert};
use platform::Runtime;
use platform::block::Disk;
use platform::random::Seeded;
use platform::simulated;
use platform::task::block_on_ready;
use std::alloc::System;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::repair::{Options, Report, repair};
use thinp::metadata::restore::Overrides;
use thinp::metadata::{Metadata, MetadataError};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// What a repair is given.
const MEMORY_BYTES: usize = 64 << 20;
/// What it may take besides: buffers of requests, and a few hundred kilobytes.
const BESIDES_BYTES: usize = BUFS_BYTES + (1 << 20);
const BUFS_BYTES: usize = 4 << 20;
/// Few enough for the making of the pool to take less than its repair.
const CACHE_BLOCKS: usize = 1_024;
const SEED: u64 = 17;

/// A device, and a snapshot that shares all but a hundredth of it.
async fn make(runtime: &Runtime, disk: &Disk, mappings: u64) -> Result<(), MetadataError> {
    let metadata = Metadata::open(runtime, disk.clone(), FORMAT, CACHE_BLOCKS, false).await?;
    let (origin, snapshot) = (DeviceId::new(1).unwrap(), DeviceId::new(2).unwrap());
    metadata.create_thin(origin).await?;
    metadata.open_device(origin).await?;
    let roll = || any_block(&*runtime.random);
    insert(&metadata, origin, (0..mappings).map(|_| roll())).await?;
    metadata.create_snap(snapshot, origin).await?;
    insert(&metadata, origin, (0..mappings / 100).map(|_| roll())).await
}

#[test]
fn a_repair_takes_no_more_heap_than_it_was_given() {
    let mappings = file_disk::mappings();
    let runtime = simulated::runtime_at_once(Rc::new(Seeded::from_u64(SEED)), BUFS_BYTES);
    let (from, to) = (Disk::new(FileDisk::new("damaged")), Disk::new(FileDisk::new("repaired")));
    let before_bytes = HEAP.allocated();
    let report: Report = block_on_ready(async {
        make(&runtime, &from, mappings).await.unwrap();
        let (erased, _) = from.write(0, runtime.bufs.zeroed(4096).unwrap(), false).await;
        erased.unwrap();
        let overrides = Overrides { data_block_sectors: Some(128), ..Overrides::default() };
        repair(&runtime, &from, &to, MEMORY_BYTES, &Options { overrides, last_commit: false }).await.unwrap()
    });
    let peak_bytes = HEAP.max_allocated() - before_bytes;
    let restored = report.restored.mappings;
    println!(
        "heap in use at most, a repair of two devices that share {mappings} mappings, {restored} in all: {:.1} MiB",
        peak_bytes as f64 / f64::from(1 << 20)
    );
    assert!(restored >= 2 * mappings, "{restored}");
    assert!(
        peak_bytes > CACHE_BLOCKS * 4096 * 3 / 2,
        "the repair took less than its pool's making: {peak_bytes} bytes"
    );
    assert!(peak_bytes <= MEMORY_BYTES + BESIDES_BYTES, "{peak_bytes} bytes");
}
