//! The heap stays within its budget however large the pool is.
//!
//! `HEAP_MAPPINGS` says how many mappings are inserted, by default few enough for CI; the benchmark inserts 10^7.

mod large_pool;

use large_pool::{DATA_BLOCKS, DEVICES, HEAP, mebibytes};
use platform::Runtime;
use platform::task::block_on_ready;
use thinp::metadata::{MetadataError, Progress};

const BUDGET_BYTES: usize = 64 << 20;
/// Of the budget, what is left for the cache: a cached block takes a little more than its 4 KiB.
const CACHE_BLOCKS: usize = 12_288;

const SEED: u64 = 16;

async fn life(runtime: &Runtime, mappings: u64) -> Result<(), MetadataError> {
    let metadata = large_pool::pool(runtime, &large_pool::disk("heap"), CACHE_BLOCKS, mappings).await?;
    let [origin, snapshot] = DEVICES;
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
    let mappings = large_pool::mappings();
    block_on_ready(life(&large_pool::runtime(SEED), mappings)).unwrap();
    let peak_bytes = HEAP.max_allocated();
    let peak = mebibytes(peak_bytes);
    println!("heap in use at most, a 16 TiB pool with {mappings} mappings: {peak:.1} MiB");
    assert!(peak_bytes > CACHE_BLOCKS * 4096, "the cache was never full: {peak_bytes} bytes show nothing");
    assert!(peak_bytes <= BUDGET_BYTES, "{peak_bytes} bytes");
}
