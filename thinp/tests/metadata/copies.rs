//! What copies that share blocks cost, and on whose metadata they work (`metadata::Metadata::share`).

use crate::harness::*;
use platform::block::{Disk, Op};
use platform::layers::Trace;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::Cell;
use std::rc::Rc;
use thinp::metadata::{Metadata, MetadataError, Source, VirtualBlock};

fn source(device: u64, first: VirtualBlock) -> Source {
    Source { device: id(device), first, stays: false }
}

/// Shares a mapped range of one device with another.
async fn share_all(metadata: &Metadata, from: u64, target: u64, blocks: u64) {
    let mut done = 0;
    while done < blocks {
        let at = VirtualBlock(done);
        done += metadata.share(source(from, at), id(target), at, blocks - done).await.unwrap().blocks;
    }
}

/// A mapping is 16 bytes of a leaf. A copy writes the leaves of the target, the counts, and the way to all of these; those of
/// the source only where they get another time.
#[test]
fn a_copied_block_is_a_few_bytes_of_metadata() {
    const BLOCKS: u64 = 100_000;
    block_on_ready(async {
        let (disk, written) = (MemDisk::new(16_384 * 8), Rc::new(Cell::new(0)));
        let bytes = written.clone();
        let counting = Trace::new(Rc::new(disk.clone()), move |request, done| {
            if done.is_none() && matches!(request.op, Op::Write { .. }) {
                bytes.set(bytes.get() + request.sectors * 512);
            }
        });
        let metadata = format_on(Disk::new(counting), 2 * BLOCKS, CACHE).await;
        for device in [1, 2] {
            metadata.create_thin(id(device)).await.unwrap();
            metadata.open_device(id(device)).await.unwrap();
        }
        for block in 0..BLOCKS {
            provision(&metadata, id(1), block).await;
        }
        commit(&metadata).await;
        written.set(0);
        let begun = std::time::Instant::now();
        share_all(&metadata, 1, 2, BLOCKS).await;
        commit(&metadata).await;
        let (by_block, took) = (written.get() as f64 / BLOCKS as f64, begun.elapsed().as_secs_f64());
        println!("{by_block:.1} bytes of metadata a block, {:.0} blocks a second", BLOCKS as f64 / took);
        assert!(by_block < 20.0, "{by_block} bytes a block");
        let counts: Vec<u32> = [0, BLOCKS - 1].map(|block| block_on_ready(count(&metadata, block))).to_vec();
        assert_eq!(counts, [2, 2]);
        assert_eq!(metadata.free_data_blocks(), BLOCKS);
        check(&disk);
        thin_check(&disk);
    });
}

async fn count(metadata: &Metadata, block: u64) -> u32 {
    let mapping = metadata.lookup(id(1), VirtualBlock(block)).await.unwrap().unwrap();
    metadata.data_block_count(mapping.block).await.unwrap()
}

#[test]
fn what_is_not_there_is_not_shared() {
    block_on_ready(async {
        let metadata = format(&MemDisk::new(512 * 8), 100).await;
        metadata.create_thin(id(1)).await.unwrap();
        let (first, second) = (VirtualBlock(0), VirtualBlock(1));
        let not_open = metadata.share(source(1, first), id(1), second, 1).await;
        assert_eq!(not_open, Err(MetadataError::NotOpen(id(1))));
        metadata.open_device(id(1)).await.unwrap();
        let not_mapped = metadata.share(source(1, first), id(1), second, 1).await;
        assert_eq!(not_mapped, Err(MetadataError::NotMapped { device: id(1), block: 0 }));
        metadata.set_read_only(true);
        assert_eq!(metadata.share(source(1, first), id(1), second, 1).await, Err(MetadataError::ReadOnly));
        assert_eq!(metadata.time(), 0, "the clock did not tick");
    });
}
