//! Random histories against the model, on tiny disks with tiny caches.

use crate::harness::*;
use crate::model::{Driver, Tally, dump};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;

/// One history; the disk is checked after every commit.
async fn history(seed: u64, metadata_blocks: u64, data_blocks: u64, cache_blocks: usize, steps: u64) -> Tally {
    let disk = MemDisk::new(metadata_blocks * 8);
    let mut driver = Driver::new(disk.clone(), Disk::new(disk), seed, data_blocks, cache_blocks).await;
    for step in 0..steps {
        driver.step().await;
        if driver.dice.chance(12) {
            driver.commit().await;
            check(&driver.disk);
            if driver.dice.chance(40) {
                thin_check(&driver.disk);
                assert_eq!(dump(&driver.disk).await, driver.committed, "step {step}");
            }
        }
        if driver.dice.chance(20) {
            driver.compare().await;
        }
    }
    driver.tally
}

#[test]
fn histories_agree_with_the_model() {
    let seed = seed();
    let mut total = Tally::new();
    // Ample, short of data, short of metadata.
    for (n, (metadata_blocks, data_blocks)) in
        [(1024, 8000), (512, 700), (80, 20_000), (128, 20_000)].into_iter().enumerate()
    {
        for cache_blocks in [1000, 16] {
            let seed = seed + n as u64 * 2 + cache_blocks as u64;
            let tally = block_on_ready(history(seed, metadata_blocks, data_blocks, cache_blocks, 1500));
            tally.into_iter().for_each(|(what, count)| *total.entry(what).or_default() += count);
        }
    }
    println!("{total:#?}");
    for what in [
        "no data space",
        "no metadata space",
        "break sharing",
        "share",
        "abort",
        "reserve snapshot",
        "release snapshot",
        "swap",
    ] {
        assert!(total.get(what).is_some_and(|count| *count >= 5), "{what} is too rare: {total:?}");
    }
}
