//! The commands about blocks (SBC-3).
//!
//! Data moves in chunks as it comes; only COMPARE AND WRITE has all of it at once. A range lock is held around
//! each chunk's I/O and not while waiting for an initiator: a slow one holds up nobody.

use super::cdb::{Command, Compare, Extent, compare_and_write_blocks_max};
use super::exec::parameters;
use super::lu::Lu;
use super::sense::Sense;
use super::vpd::{TRANSFER_BLOCKS_MAX, UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX, WRITE_SAME_BYTES_MAX};
use super::{Failure, Transfer};
use crate::budget::Chunk;
use crate::unit::{Attributes, LogicalUnit, UnitError};
use alloc::vec::Vec;
use core::ops::Range;
use platform::block::Bufs;
use platform::buf::Buf;
use platform::task::yield_now;

/// Most bytes that are read, written or zeroed at a time.
pub const CHUNK_BYTES: u32 = 256 << 10;

/// Most bytes that are zeroed without data at a time.
const ZERO_BYTES: u64 = 16 << 20;

/// Most descriptors of a GET LBA STATUS.
const STATUS_DESCRIPTORS_MAX: usize = 256;

/// How often it asks the unit. What it has not got to by then is for the next.
const STATUS_QUESTIONS_MAX: usize = 512;

/// Runs one of the commands that move or name blocks.
pub async fn execute<U: LogicalUnit, T: Transfer>(
    lu: &Lu<U>,
    command: Command,
    transfer: &mut T,
) -> Result<(), Failure> {
    let run = Run { lu, attributes: lu.unit.attributes() };
    match command {
        Command::Read { extent, fua } => run.read(extent, fua, transfer).await,
        Command::Write { extent, fua } => run.write(extent, fua, None, transfer).await,
        // What is verified is the medium.
        Command::WriteAndVerify { extent, compare } => run.write(extent, true, Some(compare), transfer).await,
        Command::Verify { extent, compare } => run.verify(extent, compare, transfer).await,
        Command::WriteSame { extent, unmap, no_data } => run.write_same(extent, unmap, no_data, transfer).await,
        Command::CompareAndWrite { extent, fua } => run.compare_and_write(extent, fua, transfer).await,
        Command::OrWrite { extent, fua } => run.or_write(extent, fua, transfer).await,
        Command::SynchronizeCache { extent } => run.synchronize(extent).await,
        Command::StartStopUnit { .. } => run.flush().await,
        Command::PreFetch { extent } => run.range(extent).map(|_| ()).map_err(Failure::from),
        Command::Unmap { list_bytes } => run.unmap(list_bytes, transfer).await,
        Command::GetLbaStatus { lba, allocation } => run.lba_status(lba, allocation, transfer).await,
        _ => Err(Sense::INVALID_OPCODE.into()),
    }
}

struct Run<'a, U> {
    lu: &'a Lu<U>,
    attributes: Attributes,
}

impl<U: LogicalUnit> Run<'_, U> {
    /// The bytes of an extent that lies within the unit.
    fn range(&self, extent: Extent) -> Result<Range<u64>, Sense> {
        let end = extent.lba.checked_add(extent.blocks).filter(|end| *end <= self.attributes.blocks);
        let end = end.ok_or(Sense::LBA_OUT_OF_RANGE)?;
        let block_bytes = u64::from(self.attributes.block_bytes);
        let bytes = |lba: u64| lba.checked_mul(block_bytes).ok_or(Sense::LBA_OUT_OF_RANGE);
        Ok(bytes(extent.lba)?..bytes(end)?)
    }

    /// As `range`, for a command that moves that many blocks.
    fn transfer_range(&self, extent: Extent) -> Result<Range<u64>, Sense> {
        let range = self.range(extent)?;
        if extent.blocks > u64::from(TRANSFER_BLOCKS_MAX) { Err(Sense::INVALID_FIELD_IN_CDB) } else { Ok(range) }
    }

    fn failed_read(&self, error: UnitError) -> Failure {
        Failure::of_unit(error, false, self.attributes.block_bytes)
    }

    fn failed_write(&self, error: UnitError) -> Failure {
        Failure::of_unit(error, true, self.attributes.block_bytes)
    }

    fn whole_blocks(&self, len_bytes: usize) -> usize {
        len_bytes - len_bytes % (self.attributes.block_bytes as usize).max(1)
    }

    async fn read<T: Transfer>(&self, extent: Extent, fua: bool, transfer: &mut T) -> Result<(), Failure> {
        let range = self.transfer_range(extent)?;
        let taken = transfer.announce(range.end - range.start);
        if fua {
            // What is returned must be on stable storage.
            self.lu.unit.flush().await.map_err(|e| self.failed_read(e))?;
        }
        let wanted = taken.next_multiple_of(u64::from(self.attributes.block_bytes.max(1)));
        for piece in pieces(range.start..range.start + wanted, u64::from(CHUNK_BYTES)) {
            let chunk = transfer.buffer((piece.end - piece.start) as usize).await?;
            let chunk = self.read_chunk(piece, chunk).await?;
            transfer.send(chunk).await?;
        }
        Ok(())
    }

    /// Fills a chunk from `range`.
    async fn read_chunk(&self, range: Range<u64>, chunk: Chunk) -> Result<Chunk, Failure> {
        let _lock = self.lu.locks.shared(range.clone()).await;
        self.read_locked(range, chunk).await
    }

    async fn read_locked(&self, range: Range<u64>, chunk: Chunk) -> Result<Chunk, Failure> {
        let (result, buf) = self.lu.unit.read(range.start, chunk.buf).await;
        result.map_err(|e| self.failed_read(e))?;
        Ok(Chunk { buf, claim: chunk.claim })
    }

    async fn write_locked(&self, offset_bytes: u64, buf: Buf, fua: bool) -> Result<(), Failure> {
        self.lu.unit.write(offset_bytes, Bufs::from_iter([buf]), fua).await.map_err(|e| self.failed_write(e))
    }

    /// WRITE, and WRITE AND VERIFY with `verify`. Of a short transfer only whole blocks are written.
    async fn write<T: Transfer>(
        &self,
        extent: Extent,
        fua: bool,
        verify: Option<Compare>,
        transfer: &mut T,
    ) -> Result<(), Failure> {
        let range = self.transfer_range(extent)?;
        let mut at = range.start;
        while let Some(mut chunk) = transfer.receive().await? {
            let len = self.whole_blocks(chunk.buf.len());
            if len == 0 {
                break;
            }
            chunk.buf.truncate(len);
            let piece = at..at + len as u64;
            let _lock = self.lu.locks.shared(piece.clone()).await;
            let written = match verify {
                Some(Compare::Blocks) => Some(copy(&chunk, transfer)?),
                _ => None,
            };
            self.write_locked(at, chunk.buf, fua).await?;
            if verify.is_some() {
                let back = self.read_locked(piece.clone(), transfer.spare(len)?).await?;
                written.map_or(Ok(()), |written| equal(&back.buf, &written.buf, 0))?;
            }
            at = piece.end;
        }
        Ok(())
    }

    async fn verify<T: Transfer>(&self, extent: Extent, compare: Compare, transfer: &mut T) -> Result<(), Failure> {
        let range = self.transfer_range(extent)?;
        match compare {
            Compare::Nothing => {
                for piece in pieces(range, u64::from(CHUNK_BYTES)) {
                    let chunk = transfer.buffer((piece.end - piece.start) as usize).await?;
                    self.read_chunk(piece, chunk).await?;
                }
            }
            Compare::Blocks => {
                let mut at = range.start;
                while let Some(mut data) = transfer.receive().await? {
                    data.buf.truncate(self.whole_blocks(data.buf.len()));
                    let piece = at..at + data.buf.len() as u64;
                    if piece.is_empty() {
                        break;
                    }
                    let medium = self.read_chunk(piece.clone(), transfer.spare(data.buf.len())?).await?;
                    equal(&medium.buf, &data.buf, at - range.start)?;
                    at = piece.end;
                }
            }
            Compare::OneBlock => {
                let block = self.exactly(u64::from(self.attributes.block_bytes), transfer).await?;
                for piece in pieces(range.clone(), u64::from(CHUNK_BYTES)) {
                    let chunk = transfer.spare((piece.end - piece.start) as usize)?;
                    let medium = self.read_chunk(piece.clone(), chunk).await?;
                    for (index, at) in medium.buf.chunks(block.buf.len().max(1)).zip(0u64..) {
                        equal(index, &block.buf, piece.start - range.start + at * block.buf.len() as u64)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The data of a command that needs a certain amount, no more and no less.
    async fn exactly<T: Transfer>(&self, bytes: u64, transfer: &mut T) -> Result<Chunk, Failure> {
        if transfer.offered() != bytes {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        Ok(transfer.receive().await?.ok_or(Sense::INVALID_FIELD_IN_CDB)?)
    }

    async fn write_same<T: Transfer>(
        &self,
        extent: Extent,
        unmap: bool,
        no_data: bool,
        transfer: &mut T,
    ) -> Result<(), Failure> {
        let range = self.range(extent)?;
        if range.is_empty() || range.end - range.start > WRITE_SAME_BYTES_MAX || (unmap && !self.attributes.is_thin()) {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let pattern = match no_data {
            true => None,
            false => {
                let block = self.exactly(u64::from(self.attributes.block_bytes), transfer).await?;
                Some(block).filter(|block| block.buf.iter().any(|byte| *byte != 0))
            }
        };
        match pattern {
            Some(block) => self.fill(range, &block.buf, transfer).await,
            None if unmap => self.deallocate(range).await,
            None => self.zero(range).await,
        }
    }

    /// Writes a block again and again.
    async fn fill<T: Transfer>(&self, range: Range<u64>, block: &[u8], transfer: &mut T) -> Result<(), Failure> {
        for piece in pieces(range, u64::from(CHUNK_BYTES)) {
            let mut chunk = transfer.spare((piece.end - piece.start) as usize)?;
            chunk.buf.chunks_exact_mut(block.len().max(1)).for_each(|place| place.copy_from_slice(block));
            let _lock = self.lu.locks.shared(piece.clone()).await;
            self.write_locked(piece.start, chunk.buf, false).await?;
        }
        Ok(())
    }

    async fn zero(&self, range: Range<u64>) -> Result<(), Failure> {
        for piece in pieces(range, ZERO_BYTES) {
            let _lock = self.lu.locks.shared(piece.clone()).await;
            let zeroed = self.lu.unit.write_zeroes(piece.start, piece.end - piece.start).await;
            zeroed.map_err(|e| self.failed_write(e))?;
        }
        Ok(())
    }

    /// Frees the whole pool blocks of a range, and zeroes the rest: what is unmapped reads as zero.
    async fn deallocate(&self, range: Range<u64>) -> Result<(), Failure> {
        let pool_block = u64::from(self.attributes.unmap_granularity_blocks) * u64::from(self.attributes.block_bytes);
        let start = range.start.checked_next_multiple_of(pool_block).unwrap_or(range.end).min(range.end);
        let to_the_end = range.end == self.attributes.size_bytes();
        let end = if to_the_end { range.end } else { range.end - range.end % pool_block.max(1) };
        if start >= end {
            return self.zero_mapped(range).await;
        }
        self.zero_mapped(range.start..start).await?;
        {
            let _lock = self.lu.locks.shared(start..end).await;
            self.lu.unit.unmap(start, end - start).await.map_err(|e| self.failed_write(e))?;
        }
        self.zero_mapped(end..range.end).await
    }

    /// Zeroes what is mapped of a range that is shorter than two pool blocks; the rest reads as zero already.
    async fn zero_mapped(&self, range: Range<u64>) -> Result<(), Failure> {
        let mut at = range.start;
        while at < range.end {
            let (mapped, len) = self.mapped(at, range.end - at).await?;
            if mapped {
                self.zero(at..at + len).await?;
            }
            at += len;
        }
        Ok(())
    }

    /// What the unit says about a non-empty range, cut to whole blocks and to the range.
    async fn mapped(&self, at: u64, len_bytes: u64) -> Result<(bool, u64), Failure> {
        let (mapped, len) = self.lu.unit.mapped(at, len_bytes).await.map_err(|e| self.failed_read(e))?;
        let block_bytes = u64::from(self.attributes.block_bytes);
        let len = len - len % block_bytes.max(1);
        Ok((mapped, len.clamp(block_bytes.min(len_bytes), len_bytes)))
    }

    async fn compare_and_write<T: Transfer>(&self, extent: Extent, fua: bool, transfer: &mut T) -> Result<(), Failure> {
        let range = self.range(extent)?;
        if extent.blocks > u64::from(compare_and_write_blocks_max(self.attributes.block_bytes)) {
            return Err(Sense::cdb_field(13).into());
        }
        let half = range.end - range.start;
        if half == 0 && transfer.offered() == 0 {
            return Ok(());
        }
        let mut expected = self.exactly(2 * half, transfer).await?;
        let new = expected.buf.split_off(half as usize);
        let medium = transfer.spare(half as usize)?;
        let _lock = self.lu.locks.exclusive(range.clone()).await;
        let medium = self.read_locked(range.clone(), medium).await?;
        equal(&medium.buf, &expected.buf, 0)?;
        self.write_locked(range.start, new, fua).await
    }

    async fn or_write<T: Transfer>(&self, extent: Extent, fua: bool, transfer: &mut T) -> Result<(), Failure> {
        let range = self.transfer_range(extent)?;
        let mut at = range.start;
        while let Some(mut chunk) = transfer.receive().await? {
            chunk.buf.truncate(self.whole_blocks(chunk.buf.len()));
            let piece = at..at + chunk.buf.len() as u64;
            if piece.is_empty() {
                break;
            }
            let medium = transfer.spare(chunk.buf.len())?;
            let _lock = self.lu.locks.exclusive(piece.clone()).await;
            let medium = self.read_locked(piece.clone(), medium).await?;
            chunk.buf.iter_mut().zip(medium.buf.iter()).for_each(|(new, old)| *new |= old);
            self.write_locked(at, chunk.buf, fua).await?;
            at = piece.end;
        }
        Ok(())
    }

    async fn synchronize(&self, extent: Extent) -> Result<(), Failure> {
        self.range(extent)?;
        self.flush().await
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.lu.unit.flush().await.map_err(|e| self.failed_write(e))
    }

    async fn unmap<T: Transfer>(&self, list_bytes: u32, transfer: &mut T) -> Result<(), Failure> {
        if !self.attributes.is_thin() {
            return Err(Sense::INVALID_OPCODE.into());
        }
        if list_bytes == 0 {
            return Ok(());
        }
        let list = transfer.receive().await?.ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let extents = unmap_descriptors(&list.buf)?;
        let ranges = extents.iter().filter(|extent| extent.blocks > 0).map(|extent| self.range(*extent));
        let ranges = ranges.collect::<Result<Vec<_>, Sense>>()?;
        for range in ranges {
            self.deallocate(range).await?;
        }
        Ok(())
    }

    async fn lba_status<T: Transfer>(&self, lba: u64, allocation: u32, transfer: &mut T) -> Result<(), Failure> {
        let block_bytes = u64::from(self.attributes.block_bytes.max(1));
        if lba >= self.attributes.blocks {
            return Err(Sense::LBA_OUT_OF_RANGE.into());
        }
        let most = (allocation as usize).saturating_sub(8).div_ceil(16).clamp(1, STATUS_DESCRIPTORS_MAX);
        let (mut at, size) = (lba * block_bytes, self.attributes.size_bytes());
        let mut runs: Vec<(Extent, bool)> = Vec::new();
        for _ in 0..STATUS_QUESTIONS_MAX {
            if at >= size {
                break;
            }
            // The unit may have the answer at once, again and again.
            transfer.unless_aborted(yield_now()).await?;
            let most_bytes = (size - at).min(u64::from(u32::MAX) * block_bytes);
            let (mapped, len) = self.mapped(at, most_bytes).await?;
            let next = Extent { lba: at / block_bytes, blocks: len / block_bytes };
            let full = runs.len() == most;
            match runs.last_mut() {
                Some((run, same)) if *same == mapped && run.blocks + next.blocks <= u64::from(u32::MAX) => {
                    run.blocks += next.blocks;
                }
                _ if full => break,
                _ => runs.push((next, mapped)),
            }
            at += len;
        }
        parameters(transfer, status_list(&runs), allocation).await
    }
}

/// The parameter data of GET LBA STATUS.
fn status_list(runs: &[(Extent, bool)]) -> Vec<u8> {
    let mut data = Vec::with_capacity(8 + 16 * runs.len());
    data.extend((4 + 16 * runs.len() as u32).to_be_bytes());
    data.extend([0; 4]);
    for (run, mapped) in runs {
        data.extend(run.lba.to_be_bytes());
        data.extend((run.blocks as u32).to_be_bytes());
        data.extend([u8::from(!mapped), 0, 0, 0]);
    }
    data
}

/// The extents of an UNMAP parameter list.
fn unmap_descriptors(list: &[u8]) -> Result<Vec<Extent>, Sense> {
    let Some((header, rest)) = list.split_first_chunk::<8>() else { return Err(Sense::PARAMETER_LIST_LENGTH) };
    let told = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let (descriptors, _) = rest.get(..told.min(rest.len())).unwrap_or(&[]).as_chunks::<16>();
    if descriptors.len() > UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let extents: Vec<Extent> = descriptors
        .iter()
        .map(|&[a, b, c, d, e, f, g, h, i, j, k, l, ..]| Extent {
            lba: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            blocks: u64::from(u32::from_be_bytes([i, j, k, l])),
        })
        .collect();
    let blocks = extents.iter().fold(0u64, |sum, extent| sum + extent.blocks);
    if blocks > u64::from(UNMAP_BLOCKS_MAX) { Err(Sense::INVALID_FIELD_IN_PARAMETERS) } else { Ok(extents) }
}

/// A range in pieces of at most `most` bytes.
fn pieces(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(most as usize).map(move |at| at..(at + most).min(end))
}

/// MISCOMPARE with the place of the first byte that differs, counted from `offset`.
fn equal(medium: &[u8], data: &[u8], offset: u64) -> Result<(), Failure> {
    match medium.iter().zip(data).position(|(a, b)| a != b) {
        Some(at) => Err(Sense::MISCOMPARE.with_information(offset + at as u64).into()),
        None => Ok(()),
    }
}

fn copy<T: Transfer>(chunk: &Chunk, transfer: &T) -> Result<Chunk, Failure> {
    let mut copy = transfer.spare(chunk.buf.len())?;
    copy.buf.copy_from_slice(&chunk.buf);
    Ok(copy)
}
