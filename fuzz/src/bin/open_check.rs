//! Checks an arbitrary image, opens it read-only and reads all that is in it.
#![no_main]

use fuzz::image::{Bytes, decode};
use fuzz::{BUDGET_BYTES, CACHE_BLOCKS, run, runtime};
use platform::block::Disk;
use thinp::metadata::{Metadata, OpenMode, Result, VirtualBlock, check};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let disk = Disk::new(decode(&mut Bytes::new(data)));
    // Damage is a result here, and an error elsewhere: both are fine.
    let _ = check::check(&runtime(), &disk, BUDGET_BYTES / 4).await;
    let _ = read_all(disk).await;
}));

async fn read_all(disk: Disk) -> Result<()> {
    let metadata = Metadata::open(&runtime(), disk, OpenMode::Existing, CACHE_BLOCKS, true).await?;
    for (device, _) in metadata.devices().await? {
        metadata.open_device(device).await?;
        metadata.highest_mapped(device).await?;
        let mut from = VirtualBlock(0);
        while let Some(range) = metadata.mapped_range(device, from, VirtualBlock(u64::MAX)).await? {
            assert!(range.begin >= from && range.end > range.begin, "{from:?} leads back to {range:?}");
            metadata.data_block_count(range.data_begin).await?;
            from = range.end;
        }
        metadata.close_device(device);
    }
    Ok(())
}
