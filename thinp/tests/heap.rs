//! The heap stays within its budget however large the pool is.
//!
//! `HEAP_MAPPINGS` says how many mappings are inserted, by default few enough for CI; the benchmark inserts 10^7.

mod file_disk;

use cap::Cap;
use file_disk::{DATA_BLOCKS, FORMAT, FileDisk, any_block, insert};
use platform::Runtime;
use platform::block::Disk;
use platform::random::Seeded;
use platform::simulated;
use platform::task::block_on_ready;
use std::alloc::System;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, MetadataError, Progress};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const BUDGET_BYTES: usize = 64 << 20;
/// Of the budget, what is left for the cache: a cached block takes a little more than its 4 KiB.
const CACHE_BLOCKS: usize = 12_288;
const BUFS_BYTES: usize = 4 << 20;

const SEED: u64 = 16;

async fn life(runtime: &Runtime, mappings: u64) -> Result<(), MetadataError> {
    let metadata = Metadata::open(runtime, Disk::new(FileDisk::new("heap")), FORMAT, CACHE_BLOCKS, false).await?;
    let (origin, snapshot) = (DeviceId::new(1).unwrap(), DeviceId::new(2).unwrap());
    metadata.create_thin(origin).await?;
    metadata.open_device(origin).await?;
    let roll = || any_block(&*runtime.random);
    insert(&metadata, origin, (0..mappings).map(|_| roll())).await?;
    metadata.create_snap(snapshot, origin).await?;
    insert(&metadata, origin, (0..mappings / 100).map(|_| roll())).await?;
    metadata.close_device(origin);
    while metadata.delete(origin).await? == Progress::Partial {
        metadata.commit(async || Ok(())).await?;
    }
    metadata.commit(async || Ok(())).await?;
    assert_eq!(metadata.open_device(snapshot).await?.mapped_blocks, DATA_BLOCKS - metadata.free_data_blocks());
    Ok(())
}

#[test]
fn a_large_pool_takes_no_more_heap_than_its_budget() {
    let mappings = file_disk::mappings();
    let runtime = simulated::runtime_at_once(Rc::new(Seeded::from_u64(SEED)), BUFS_BYTES);
    block_on_ready(life(&runtime, mappings)).unwrap();
    let peak_bytes = HEAP.max_allocated();
    println!(
        "heap in use at most, a 16 TiB pool with {mappings} mappings: {:.1} MiB",
        peak_bytes as f64 / f64::from(1 << 20)
    );
    assert!(peak_bytes > CACHE_BLOCKS * 4096, "the cache was never full: {peak_bytes} bytes show nothing");
    assert!(peak_bytes <= BUDGET_BYTES, "{peak_bytes} bytes");
}
