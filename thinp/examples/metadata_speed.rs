//! What metadata operations cost on a disk without latency: `cargo run --release -p thinp --example metadata_speed`.

use platform::Runtime;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::task::{Executor, block_on_ready};
use platform::time::{Clock, Instant, Timers};
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, MetadataError, OpenMode, VirtualBlock};

const METADATA_BLOCKS: u64 = 65_536;
const CACHE_BLOCKS: usize = 60_000;
const VIRTUAL_BLOCKS: u64 = 1 << 30;
const LOOKUPS: u64 = 1_000_000;
const SNAPSHOTS: u64 = 100;

/// The disk answers at once, so nothing ever waits for the time.
struct NoTime;

impl Clock for NoTime {
    fn now(&self) -> Instant {
        Instant::default()
    }
}

fn id(number: u64) -> DeviceId {
    DeviceId::new(number).expect("a small number")
}

async fn commit(metadata: &Metadata) -> Result<(), MetadataError> {
    metadata.commit(async || Ok(())).await
}

/// Nanoseconds of each of `times` repetitions.
fn each(start: std::time::Instant, times: u64) -> u128 {
    start.elapsed().as_nanos() / u128::from(times.max(1))
}

async fn measure(runtime: &Runtime, dice: impl Fn() -> VirtualBlock) -> Result<(), MetadataError> {
    let disk = Disk::new(MemDisk::new(METADATA_BLOCKS * 8));
    let format = OpenMode::Format { data_block_sectors: 128, data_blocks: 4_000_000 };
    let metadata = Metadata::open(runtime, disk, format, CACHE_BLOCKS, false).await?;
    let device = id(1);
    metadata.create_thin(device).await?;
    metadata.open_device(device).await?;
    let mut inserted = 0u64;
    for size in [10_000u64, 100_000, 1_000_000, 1_200_000] {
        let (start, before) = (std::time::Instant::now(), inserted);
        while inserted < size {
            let data = metadata.reserve_data_block().await?;
            metadata.insert(device, dice(), data).await?;
            inserted += 1;
            if inserted.is_multiple_of(1000) {
                commit(&metadata).await?;
            }
        }
        let insert = each(start, inserted - before);
        let start = std::time::Instant::now();
        let blocked = (0..LOOKUPS).filter(|_| metadata.try_lookup(device, dice()).is_err()).count();
        let lookup = each(start, LOOKUPS);
        println!("{inserted} mappings: insert {insert} ns, lookup {lookup} ns (dice included), {blocked} not cached");
    }
    let start = std::time::Instant::now();
    for snapshot in 0..SNAPSHOTS {
        metadata.create_snap(id(2 + snapshot), device).await?;
        commit(&metadata).await?;
    }
    println!("snapshot and commit: {} ns", each(start, SNAPSHOTS));
    let start = std::time::Instant::now();
    for snapshot in 0..SNAPSHOTS {
        metadata.delete(id(2 + snapshot)).await?;
        commit(&metadata).await?;
    }
    println!("delete a snapshot and commit: {} ns", each(start, SNAPSHOTS));
    metadata.close_device(device);
    let start = std::time::Instant::now();
    metadata.delete(device).await?;
    commit(&metadata).await?;
    println!("delete the device and commit: {:?}", start.elapsed());
    Ok(())
}

fn main() -> Result<(), MetadataError> {
    let random = Rc::new(Seeded::from_u64(1));
    let runtime = Runtime {
        spawner: Executor::new().spawner(),
        timers: Timers::new(Rc::new(NoTime)),
        random: random.clone(),
        bufs: BufPool::new(64 << 20),
    };
    let dice = || {
        let mut bytes = [0; 8];
        random.fill(&mut bytes);
        VirtualBlock(u64::from_le_bytes(bytes) % VIRTUAL_BLOCKS)
    };
    block_on_ready(measure(&runtime, dice))
}
