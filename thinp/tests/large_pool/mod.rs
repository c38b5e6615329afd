//! For tests that measure the heap: a large pool whose metadata is not on it.

use cap::Cap;
use platform::Runtime;
use platform::block::{BlockDevice, Disk, Io, IoError, Limits, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use std::alloc::System;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, MetadataError, OpenMode, VirtualBlock};

#[global_allocator]
pub static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Most bytes of buffers.
pub const BUFS_BYTES: usize = 4 << 20;

/// The two devices.
pub const DEVICES: [DeviceId; 2] = [DeviceId::new(1).unwrap(), DeviceId::new(2).unwrap()];

const METADATA_SECTORS: u64 = 2 << 21;
const VIRTUAL_BLOCKS: u64 = 1 << 34;
const INSERTS_A_COMMIT: u64 = 1_000;

/// Data blocks of 64 KiB: 16 TiB.
pub const DATA_BLOCKS: u64 = 1 << 28;

/// Where the tests run; everything is answered at once.
pub fn runtime(seed: u64) -> Runtime {
    simulated::runtime_at_once(Rc::new(Seeded::from_u64(seed)), BUFS_BYTES)
}

/// A disk of 2 GiB for metadata, blank.
pub fn disk(name: &str) -> Disk {
    Disk::new(FileDisk::new(name))
}

pub fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A pool of 16 TiB with a device of so many mappings at random places, and a snapshot that shares all but a hundredth of
/// them. The first device is open.
pub async fn pool(
    runtime: &Runtime,
    disk: &Disk,
    cache_blocks: usize,
    mappings: u64,
) -> Result<Metadata, MetadataError> {
    let format = OpenMode::Format { data_block_sectors: 128, data_blocks: DATA_BLOCKS };
    let metadata = Metadata::open(runtime, disk.clone(), format, cache_blocks, false).await?;
    let [origin, snapshot] = DEVICES;
    metadata.create_thin(origin).await?;
    metadata.open_device(origin).await?;
    let roll = || any_block(&*runtime.random);
    insert(&metadata, origin, (0..mappings).map(|_| roll())).await?;
    metadata.create_snap(snapshot, origin).await?;
    insert(&metadata, origin, (0..mappings / 100).map(|_| roll())).await?;
    Ok(metadata)
}

/// How many mappings the environment asks for.
pub fn mappings() -> u64 {
    std::env::var("HEAP_MAPPINGS").map_or(100_000, |text| text.parse().unwrap())
}

/// A virtual block anywhere.
fn any_block(random: &dyn Random) -> VirtualBlock {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    VirtualBlock(u64::from_le_bytes(bytes) % VIRTUAL_BLOCKS)
}

/// A disk whose contents are not on the heap: a sparse file without a name.
struct FileDisk(File);

impl FileDisk {
    fn new(name: &str) -> FileDisk {
        let path = format!("{}/{name}-{}.img", env!("CARGO_TARGET_TMPDIR"), std::process::id());
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

/// Maps virtual blocks.
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
