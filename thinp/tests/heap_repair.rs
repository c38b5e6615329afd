//! A repair takes no more memory than it was given, however large the pool is. `HEAP_MAPPINGS` as in `heap.rs`.

mod large_pool;

use large_pool::{BUFS_BYTES, HEAP, mebibytes};
use platform::Runtime;
use platform::block::Disk;
use platform::task::block_on_ready;
use thinp::metadata::repair::{Options, Origin, Report, repair};
use thinp::metadata::restore::Overrides;

/// What a repair is given.
const MEMORY_BYTES: usize = 64 << 20;
/// What it may take besides: buffers of requests, and a few hundred kilobytes.
const BESIDES_BYTES: usize = BUFS_BYTES + (1 << 20);
/// Few enough for the making of the pool to take less than its repair.
const CACHE_BLOCKS: usize = 1_024;
const SEED: u64 = 17;

/// Where block 0 has the index of the metadata space map, and the root of the tree of devices.
const SPACE_INDEX: usize = 208;
const MAPPING_ROOT: usize = 320;
/// Where a node has its number of entries at most, and where its keys begin.
const MAX_ENTRIES: usize = 20;
const KEYS: usize = 32;

async fn read(runtime: &Runtime, disk: &Disk, block: u64) -> Vec<u8> {
    let (result, buf) = disk.read(block * 8, runtime.bufs.zeroed(4096).unwrap()).await;
    result.unwrap();
    buf.to_vec()
}

async fn erase(runtime: &Runtime, disk: &Disk, block: u64) {
    let (erased, _) = disk.write(block * 8, runtime.bufs.zeroed(4096).unwrap(), false).await;
    erased.unwrap();
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

async fn repaired(runtime: &Runtime, from: &Disk, name: &str) -> Report {
    let overrides = Overrides { data_block_sectors: Some(128), ..Overrides::default() };
    let options = Options { overrides, last_commit: false };
    let report = repair(runtime, from, &large_pool::disk(name), MEMORY_BYTES, &options).await.unwrap();
    println!(
        "{name}: {} mappings, from {}; heap so far {:.1} MiB",
        report.restored.mappings,
        report.state,
        mebibytes(HEAP.max_allocated())
    );
    report
}

/// First every node may be the root of something that was lost, then every pair of roots may be the last state.
#[test]
fn a_repair_takes_no_more_heap_than_it_was_given() {
    let (mappings, runtime) = (large_pool::mappings(), large_pool::runtime(SEED));
    let from = large_pool::disk("damaged");
    let before_bytes = HEAP.allocated();
    block_on_ready(async {
        large_pool::pool(&runtime, &from, CACHE_BLOCKS, mappings).await.unwrap();
        let superblock = read(&runtime, &from, 0).await;
        let devices = read(&runtime, &from, word(&superblock, MAPPING_ROOT)).await;
        let first_root = word(&devices, KEYS + 8 * devices[MAX_ENTRIES] as usize);
        erase(&runtime, &from, first_root).await;
        erase(&runtime, &from, word(&superblock, SPACE_INDEX)).await;
        let report = repaired(&runtime, &from, "without a root and a space map").await;
        assert!(report.restored.mappings >= mappings && !report.damaged.is_empty(), "{report}");
        erase(&runtime, &from, 0).await;
        let report = repaired(&runtime, &from, "without a superblock").await;
        assert!(report.restored.mappings >= mappings && report.state.origin == Origin::Search, "{report}");
    });
    let peak_bytes = HEAP.max_allocated() - before_bytes;
    println!(
        "heap in use at most, repairs of two devices that share {mappings} mappings: {:.1} MiB",
        mebibytes(peak_bytes)
    );
    assert!(
        peak_bytes > CACHE_BLOCKS * 4096 * 3 / 2,
        "the repairs took less than their pool's making: {peak_bytes} bytes"
    );
    assert!(peak_bytes <= MEMORY_BYTES + BESIDES_BYTES, "{peak_bytes} bytes");
}
