//! Every n-th request to the disk fails, for n = 1, 2, 3 ... until the whole story succeeds. After each failure the
//! transaction is aborted, the disk is sound, and the story can go on.

use crate::harness::*;
use crate::model::dump;
use platform::block::{Disk, IoError};
use platform::layers::{Fault, ShortTransfers};
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::Cell;
use std::rc::Rc;
use thinp::metadata::{Metadata, Progress, Result, VirtualBlock};

async fn write(metadata: &Metadata, device: u64, blocks: std::ops::Range<u64>) -> Result<()> {
    for block in blocks {
        let data = metadata.reserve_data_block().await?;
        let inserted = metadata.insert(id(device), VirtualBlock(block * 3 % 1000), data).await;
        if inserted.is_err() {
            metadata.unreserve_data_block(data);
        }
        inserted?;
    }
    Ok(())
}

/// Everything that a pool does, in a cache too small for it.
async fn story(metadata: &Metadata) -> Result<()> {
    let flush = async || Ok(());
    metadata.open_device(id(1)).await?;
    write(metadata, 1, 0..120).await?;
    metadata.create_snap(id(2), id(1)).await?;
    metadata.commit(flush).await?;
    write(metadata, 1, 50..90).await?;
    metadata.lookup(id(1), VirtualBlock(999)).await?;
    metadata.reserve_metadata_snap(flush).await?;
    metadata.swap(id(1), VirtualBlock(0), VirtualBlock(300)).await?;
    metadata.remove_range(id(1), VirtualBlock(100), VirtualBlock(700), 1000).await?;
    assert_eq!(metadata.delete(id(2)).await?, Progress::Complete);
    metadata.grow_data(50_000).await?;
    metadata.commit(flush).await?;
    assert_eq!(metadata.release_metadata_snap(flush).await?, Progress::Complete);
    metadata.create_thin(id(3)).await?;
    metadata.commit(flush).await
}

#[test]
fn every_nth_request_fails() {
    let base = MemDisk::new(600 * 8);
    block_on_ready(async {
        let metadata = format(&base, 3000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        write(&metadata, 1, 0..1000).await.unwrap();
        commit(&metadata).await;
        for n in 1.. {
            let disk = base.fork();
            let left = Rc::new(Cell::new(n));
            let countdown = left.clone();
            let fault = Fault::new(Rc::new(ShortTransfers::new(Rc::new(disk.clone()), 8)), move |request| {
                countdown.set(countdown.get() - 1);
                (countdown.get() == 0).then_some(IoError::Device { op: request.op, sector: request.sector })
            });
            let Ok(metadata) =
                Metadata::open(&runtime(), Disk::new(fault), thinp::metadata::OpenMode::Existing, 16, false).await
            else {
                continue;
            };
            let failed = story(&metadata).await;
            if left.get() > 0 {
                failed.unwrap();
                println!("{} requests failed, one at a time", n - 1);
                assert!(n > 100);
                return;
            }
            let error = failed.expect_err("a failed request went unnoticed");
            assert!(error.spoils(), "{error}");
            let committed = dump(&disk).await;
            metadata.abort().await.unwrap();
            check(&disk);
            assert_eq!(dump(&disk).await, committed);
            if n % 50 == 1 {
                thin_check(&disk);
            }
            metadata.open_device(id(1)).await.unwrap();
            write(&metadata, 1, 0..5).await.unwrap();
            commit(&metadata).await;
            check(&disk);
        }
    });
}
