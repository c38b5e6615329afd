//! From the chunks of a stream to a thin device.

use super::{STEP_BYTES, TransferError};
use crate::service::ServiceError;
use alloc::string::ToString;
use mgmt::VolumeName;
use platform::block::{Bufs, SECTOR_BYTES};
use platform::buf::{Buf, BufPool};
use thinp::control::Mode;
use thinp::{Pool, Thin};

/// Writes what comes piece by piece in pieces of whole sectors.
pub(super) struct Writer<'w> {
    volume: &'w VolumeName,
    bufs: BufPool,
    pool: Pool,
    thin: Thin,
    /// What came of the present chunk and is not written.
    gathered: Option<Gathered>,
    /// Where the present chunk ends in the volume.
    chunk_end: u64,
}

struct Gathered {
    buf: Buf,
    /// Where it goes in the volume.
    offset: u64,
    /// Bytes of it that came.
    len: usize,
}

impl<'w> Writer<'w> {
    /// Writes to a hidden device, for a volume. Where there is no space it does not wait for some.
    pub fn new(volume: &'w VolumeName, bufs: BufPool, pool: Pool, thin: Thin) -> Writer<'w> {
        thin.never_queue();
        Writer { volume, bufs, pool, thin, gathered: None, chunk_end: 0 }
    }

    /// A chunk of data begins.
    pub fn begin(&mut self, offset: u64, length: u64) {
        self.chunk_end = offset.saturating_add(length);
    }

    /// Takes the next bytes of the chunk.
    pub async fn payload(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), ServiceError> {
        while !bytes.is_empty() {
            let mut gathered = match self.gathered.take() {
                Some(gathered) => gathered,
                None => {
                    let len = self.chunk_end.saturating_sub(offset).min(STEP_BYTES as u64) as usize;
                    let buf = self.bufs.wait(len).await.map_err(thinp::Error::from)?;
                    Gathered { buf, offset, len: 0 }
                }
            };
            let room = gathered.buf.get_mut(gathered.len..).unwrap_or_default();
            let len = room.len().min(bytes.len());
            let (now, later) = bytes.split_at(len);
            if let Some(room) = room.get_mut(..len) {
                room.copy_from_slice(now);
            }
            gathered.len = gathered.len.saturating_add(len);
            (offset, bytes) = (offset.saturating_add(len as u64), later);
            if gathered.len < gathered.buf.len() {
                self.gathered = Some(gathered);
            } else {
                self.write(gathered).await?;
            }
        }
        Ok(())
    }

    async fn write(&self, gathered: Gathered) -> Result<(), ServiceError> {
        let Gathered { buf, offset, .. } = gathered;
        match self.thin.write(offset / SECTOR_BYTES as u64, Bufs::from_iter([buf]), false).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.told(error, offset, self.chunk_end).await),
        }
    }

    /// All that was written is durable; an error if a transaction was lost that had some of it.
    pub async fn flush(&self) -> Result<(), ServiceError> {
        Ok(self.thin.flush().await?)
    }

    /// Unmaps whole blocks, and zeroes the parts of others.
    pub async fn unmap(&self, offset: u64, length: u64) -> Result<(), ServiceError> {
        let unit = SECTOR_BYTES as u64;
        let (begin, end) = (offset / unit, offset.saturating_add(length) / unit);
        let block = self.pool.data_block_sectors();
        let (first, last) = (begin.next_multiple_of(block).min(end), end / block * block);
        let zeroes = [begin..first, last.max(first)..end];
        for part in zeroes {
            if let Err(error) = self.thin.write_zeroes(part.start, part.end - part.start).await {
                return Err(self.told(error, part.start.saturating_mul(unit), part.end.saturating_mul(unit)).await);
            }
        }
        if first < last {
            self.thin.unmap(first, last - first).await?;
        }
        Ok(())
    }

    /// Tells what is missing at least for the rest of a chunk, when there is no data space.
    async fn told(&self, error: thinp::Error, offset: u64, end: u64) -> ServiceError {
        if !matches!(error, thinp::Error::NoDataSpace | thinp::Error::Refused(Mode::OutOfDataSpace)) {
            return error.into();
        }
        let unit = SECTOR_BYTES as u64;
        // Some of the write that failed may have found space.
        let mapped = self.thin.mapped_run(offset / unit, end.saturating_sub(offset) / unit).await;
        let there = mapped.map_or(0, |(mapped, sectors)| if mapped { sectors } else { 0 });
        let wanted_sectors = (end.saturating_sub(offset) / unit).saturating_sub(there);
        let status = self.pool.status();
        let block_sectors = u64::from(status.data_block_sectors);
        let free_blocks = status.data_total_blocks.saturating_sub(status.data_used_blocks);
        let missing_blocks = wanted_sectors.div_ceil(block_sectors).saturating_sub(free_blocks).max(1);
        let missing_bytes = missing_blocks.saturating_mul(block_sectors).saturating_mul(unit);
        TransferError::NoSpace { volume: self.volume.to_string(), missing_bytes }.into()
    }
}
