//! The heap stays within its budget however large the pool is.
//!
//! `HEAP_MAPPINGS` says how many mappings are inserted, by default few enough for CI; the benchmark inserts 10^7.

use cap::Cap;
use platform::Runtime;
use platform::block::{BlockDevice, Disk, Io, IoError, Limits, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::Seeded;
use platform::simulated;
use platform::task::block_on_ready;
use std::alloc::System;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, MetadataError, OpenMode, Progress, VirtualBlock};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const BUDGET_BYTES: usize = 64 << 20;
/// Of the budget, what is left for the cache: a cached block takes a little more than its 4 KiB.
const CACHE_BLOCKS: usize = 12_288;
const BUFS_BYTES: usize = 4 << 20;

const DATA_BLOCK_SECTORS: u32 = 128;
/// 16 TiB.
const DATA_BLOCKS: u64 = 1 << 28;
const METADATA_SECTORS: u64 = 2 << 21;
const VIRTUAL_BLOCKS: u64 = 1 << 34;
const INSERTS_A_COMMIT: u64 = 1_000;
const SEED: u64 = 16;

/// A disk whose contents are not on the heap: a sparse file without a name.
struct FileDisk(File);

impl FileDisk {
    fn new() -> FileDisk {
        let path = format!("{}/heap-{}.img", env!("CARGO_TARGET_TMPDIR"), std::process::id());
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(METADATA_SECTORS * SECTOR_BYTES as u64).unwrap();
        FileDisk(file)
    }
}

impl BlockDevice for FileDisk {
    fn limits(&self) -> Limits {
        Limits { size_sectors: METADATA_SECTORS, ..MemDisk::new(0).limits() }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        let mut at = request.sector * SECTOR_BYTES as u64;
        let op = request.op;
        for buf in &mut request.bufs {
            match op {
                Op::Read => self.0.read_exact_at(buf, at).unwrap(),
                Op::Write { .. } => self.0.write_all_at(buf, at).unwrap(),
                _ => return io.complete(Err(IoError::Unsupported(op))),
            }
            at += buf.len() as u64;
        }
        io.complete(Ok(()));
    }
}

async fn insert(
    metadata: &Metadata,
    device: DeviceId,
    blocks: impl Iterator<Item = VirtualBlock>,
) -> Result<(), MetadataError> {
    for (n, block) in (1..).zip(blocks) {
        let data = metadata.reserve_data_block().await?;
        metadata.insert(device, block, data).await?;
        if u64::is_multiple_of(n, INSERTS_A_COMMIT) {
            metadata.commit(async || Ok(())).await?;
        }
    }
    metadata.commit(async || Ok(())).await
}

async fn life(runtime: &Runtime, mappings: u64) -> Result<(), MetadataError> {
    let disk = Disk::new(FileDisk::new());
    let format = OpenMode::Format { data_block_sectors: DATA_BLOCK_SECTORS, data_blocks: DATA_BLOCKS };
    let metadata = Metadata::open(runtime, disk, format, CACHE_BLOCKS, false).await?;
    let (origin, snapshot) = (DeviceId::new(1).unwrap(), DeviceId::new(2).unwrap());
    metadata.create_thin(origin).await?;
    metadata.open_device(origin).await?;
    let roll = || {
        let mut bytes = [0; 8];
        runtime.random.fill(&mut bytes);
        VirtualBlock(u64::from_le_bytes(bytes) % VIRTUAL_BLOCKS)
    };
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
    let mappings = std::env::var("HEAP_MAPPINGS").map_or(100_000, |text| text.parse().unwrap());
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
