//! For tests that measure the heap: a large pool whose metadata is not on it.

use platform::block::{BlockDevice, Io, IoError, Limits, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::Random;
use std::fs::File;
use std::os::unix::fs::FileExt;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, MetadataError, OpenMode, VirtualBlock};

const METADATA_SECTORS: u64 = 2 << 21;
const VIRTUAL_BLOCKS: u64 = 1 << 34;
const INSERTS_A_COMMIT: u64 = 1_000;

/// Data blocks of 64 KiB: 16 TiB.
pub const DATA_BLOCKS: u64 = 1 << 28;

/// A new pool of that size.
pub const FORMAT: OpenMode = OpenMode::Format { data_block_sectors: 128, data_blocks: DATA_BLOCKS };

/// How many mappings the environment asks for.
pub fn mappings() -> u64 {
    std::env::var("HEAP_MAPPINGS").map_or(100_000, |text| text.parse().unwrap())
}

/// A virtual block anywhere.
pub fn any_block(random: &dyn Random) -> VirtualBlock {
    let mut bytes = [0; 8];
    random.fill(&mut bytes);
    VirtualBlock(u64::from_le_bytes(bytes) % VIRTUAL_BLOCKS)
}

/// A disk whose contents are not on the heap: a sparse file without a name.
pub struct FileDisk(File);

impl FileDisk {
    pub fn new(name: &str) -> FileDisk {
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
pub async fn insert(
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
