//! Opens an arbitrary image and changes it, as the bytes tell, until the first error; then checks what is left.
#![no_main]

use fuzz::image::{Bytes, decode};
use fuzz::{BUDGET_BYTES, CACHE_BLOCKS, run, runtime};
use platform::block::Disk;
use thinp::control::DeviceId;
use thinp::metadata::{DataBlock, Metadata, MetadataError, OpenMode, Result, VirtualBlock, check};

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let mut bytes = Bytes::new(data);
    let disk = Disk::new(decode(&mut bytes));
    let _ = change(disk.clone(), &mut bytes).await;
    let _ = check::check(&runtime(), &disk, BUDGET_BYTES / 4).await;
}));

async fn change(disk: Disk, bytes: &mut Bytes<'_>) -> Result<()> {
    let metadata = Metadata::open(&runtime(), disk, OpenMode::Existing, CACHE_BLOCKS, false).await?;
    while !bytes.is_empty() {
        match step(&metadata, bytes).await {
            // A refusal changed nothing; after anything else only an abort helps.
            Err(error) if error.spoils() => return metadata.abort().await,
            _ => {}
        }
    }
    metadata.commit(async || Ok(())).await
}

async fn step(metadata: &Metadata, bytes: &mut Bytes<'_>) -> Result<()> {
    let (what, flush) = (bytes.byte(), async || Ok(()));
    let device = DeviceId::new(u64::from(bytes.byte() % 8)).ok_or(MetadataError::ReadOnly)?;
    match what % 12 {
        0 => metadata.create_thin(device).await,
        1 => metadata.create_snap(device, DeviceId::new(1).ok_or(MetadataError::ReadOnly)?).await,
        2 => metadata.delete(device).await.map(drop),
        3 => metadata.open_device(device).await.map(drop),
        4 => {
            metadata.close_device(device);
            Ok(())
        }
        5 => {
            let block = VirtualBlock(bytes.number());
            let data = metadata.reserve_data_block().await?;
            metadata.insert(device, block, data).await
        }
        6 => metadata.lookup(device, VirtualBlock(bytes.number())).await.map(drop),
        7 => {
            let (begin, most) = (bytes.number(), u64::from(bytes.byte()) + 1);
            let end = VirtualBlock(begin.saturating_add(bytes.number()));
            metadata.remove_range(device, VirtualBlock(begin), end, most).await.map(drop)
        }
        8 => metadata.data_block_count(DataBlock(bytes.number())).await.map(drop),
        9 => metadata.reserve_metadata_snap(flush).await.map(drop),
        10 => metadata.release_metadata_snap(flush).await.map(drop),
        _ => metadata.commit(flush).await,
    }
}
