//! Which pool, if any, two disks hold, and whether one may be made (design "Where it runs", reference 1.4).
//! Only reads.

use crate::error::{OpenError, PoolDisk};
use crate::metadata::OpenMode;
use platform::block::{Disk, SECTOR_BYTES};
use platform::buf::{Buf, BufPool};

/// Bytes 32..40 of a thin superblock (reference 1.1).
const MAGIC: u64 = 27_022_010;
const MAGIC_OFFSET: usize = 32;
const SUPERBLOCK_BYTES: usize = 4096;
/// What must be zero at both ends of a data disk that may be formatted.
const BLANK_SECTORS: u64 = (1 << 20) / SECTOR_BYTES as u64;
const CHUNK_SECTORS: u64 = 128;

/// Whether a pool may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Only existing pools are opened.
    Never,
    /// If the first 4 KiB of the metadata disk and the first and last MiB of the data disk are zero.
    #[default]
    IfBlank,
    /// Whatever is there: an existing pool is given up.
    Force,
}

/// Says how the metadata is to be opened, or why nothing must be touched.
pub(crate) async fn inspect(
    bufs: &BufPool,
    meta: &Disk,
    data: &Disk,
    format: Format,
    data_block_sectors: u32,
) -> Result<OpenMode, OpenError> {
    if format == Format::Force {
        return made(data, data_block_sectors);
    }
    let mut buf = bufs.wait(CHUNK_SECTORS as usize * SECTOR_BYTES).await?;
    let superblock_sectors = (SUPERBLOCK_BYTES / SECTOR_BYTES) as u64;
    buf = read(PoolDisk::Data, data, 0, superblock_sectors, buf).await?;
    let data_has_magic = magic(&buf) == Some(MAGIC);
    buf = read(PoolDisk::Metadata, meta, 0, superblock_sectors, buf).await?;
    if data_has_magic && magic(&buf) != Some(MAGIC) {
        return Err(OpenError::Swapped);
    }
    let superblock = buf.get(..SUPERBLOCK_BYTES.min(buf.len())).unwrap_or_default();
    if superblock.iter().any(|byte| *byte != 0) {
        return Ok(OpenMode::Existing);
    }
    let size = data.size_sectors();
    let last = size.saturating_sub(BLANK_SECTORS);
    for (begin, end) in [(0, BLANK_SECTORS.min(size)), (last, size)] {
        buf = check_zero(data, begin, end, buf).await?;
    }
    match format {
        Format::Never => Err(OpenError::Blank),
        Format::IfBlank | Format::Force => made(data, data_block_sectors),
    }
}

fn made(data: &Disk, data_block_sectors: u32) -> Result<OpenMode, OpenError> {
    if !(128..=2_097_152).contains(&data_block_sectors) || !data_block_sectors.is_multiple_of(128) {
        return Err(OpenError::BadBlockSize { sectors: data_block_sectors });
    }
    let data_blocks = data.size_sectors() / u64::from(data_block_sectors);
    if data_blocks == 0 {
        return Err(OpenError::DataTooSmall { disk_blocks: 0, pool_blocks: 1, block_sectors: data_block_sectors });
    }
    Ok(OpenMode::Format { data_block_sectors, data_blocks })
}

fn magic(block: &[u8]) -> Option<u64> {
    let bytes = block.get(MAGIC_OFFSET..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

async fn check_zero(data: &Disk, begin: u64, end: u64, mut buf: Buf) -> Result<Buf, OpenError> {
    let mut sector = begin;
    while sector < end {
        let most = data.limits().transfer_sectors_max.clamp(1, CHUNK_SECTORS);
        let sectors = most.min(end - sector);
        buf = read(PoolDisk::Data, data, sector, sectors, buf).await?;
        let bytes = buf.get(..sectors as usize * SECTOR_BYTES).unwrap_or_default();
        if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
            return Err(OpenError::DataInUse { sector: sector + (at / SECTOR_BYTES) as u64 });
        }
        sector += sectors;
    }
    Ok(buf)
}

/// Reads into the front of `buf`; what lies beyond the end of the disk reads as zero.
async fn read(which: PoolDisk, disk: &Disk, sector: u64, sectors: u64, mut buf: Buf) -> Result<Buf, OpenError> {
    buf.fill(0);
    let there = sectors.min(disk.size_sectors().saturating_sub(sector));
    if there == 0 {
        return Ok(buf);
    }
    let rest = buf.split_off(there as usize * SECTOR_BYTES);
    let (result, mut front) = disk.read(sector, buf).await;
    result.map_err(|source| OpenError::Io { disk: which, sector, source })?;
    front.unsplit(rest).map_err(|rest| platform::buf::NoBuffers { len_bytes: rest.len() })?;
    Ok(front)
}
