//! Moving data on the data disk within its limits: requests, copies, zeroes.

use super::lock::Entered;
use super::{Device, Piece, take_front};
use crate::error::Error;
use crate::metadata::{DataBlock, VirtualBlock};
use alloc::rc::Rc;
use core::cell::RefCell;
use core::future::Future;
use core::ops::Range;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use platform::block::{Bufs, Completion, Disk, IoError, Op, SECTOR_BYTES};
use platform::buf::{Buf, BufPool, NoBuffers};
use platform::sync::{Permit, Semaphore};
use platform::task::Spawner;
use smallvec::SmallVec;

/// A request to a disk, cut to the disk's limits, all of its parts under way. Resolves to the buffers in order.
pub(super) struct Transfer {
    completions: SmallVec<[Completion; 1]>,
    answered: usize,
    result: Result<(), IoError>,
    bufs: Bufs,
    /// Keeps the block from being reused meanwhile, and the device from being deleted.
    counted: Option<(Entered, Rc<Device>)>,
    spawner: Spawner,
}

impl Transfer {
    /// Starts a read or write of whole buffers at `sector`.
    pub(super) fn start(disk: &Disk, spawner: &Spawner, op: Op, sector: u64, bufs: Bufs) -> Transfer {
        let limits = disk.limits();
        let sectors: u64 = bufs.iter().map(|buf| (buf.len() / SECTOR_BYTES) as u64).sum();
        let mut completions = SmallVec::new();
        if sectors <= limits.transfer_sectors_max && bufs.len() <= limits.segments_max {
            completions.push(disk.start(op, sector, sectors, bufs));
        } else {
            start_parts(disk, op, sector, bufs, &mut completions);
        }
        let spawner = spawner.clone();
        Transfer { completions, answered: 0, result: Ok(()), bufs: Bufs::new(), counted: None, spawner }
    }

    /// Counted as I/O on a mapped block of the device until the disk has answered, even if this is dropped before.
    fn counted(mut self, device: &Rc<Device>) -> Transfer {
        self.counted = Some((device.in_flight.enter(), device.clone()));
        self
    }
}

fn start_parts(disk: &Disk, op: Op, mut sector: u64, mut bufs: Bufs, completions: &mut SmallVec<[Completion; 1]>) {
    let limits = disk.limits();
    while !bufs.is_empty() {
        let mut part = take_front(&mut bufs, limits.transfer_sectors_max.max(1));
        if part.len() > limits.segments_max.max(1) {
            let mut rest: Bufs = part.drain(limits.segments_max.max(1)..).collect();
            rest.append(&mut bufs);
            bufs = rest;
        }
        let sectors = part.iter().map(|buf| (buf.len() / SECTOR_BYTES) as u64).sum();
        completions.push(disk.start(op, sector, sectors, part));
        sector = sector.saturating_add(sectors);
    }
}

impl Future for Transfer {
    type Output = (Result<(), IoError>, Bufs);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Some(completion) = this.completions.get_mut(this.answered) {
            let mut done = ready!(Pin::new(completion).poll(cx));
            this.answered += 1;
            this.result = this.result.and(done.result);
            this.bufs.append(&mut done.bufs);
        }
        this.counted = None;
        Poll::Ready((this.result, core::mem::take(&mut this.bufs)))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Nobody waits any more, but the disk is still at work on the block.
        if let Some(counted) = self.counted.take() {
            let completions = core::mem::take(&mut self.completions).into_iter().skip(self.answered);
            self.spawner.spawn(async move {
                for completion in completions {
                    completion.await;
                }
                drop(counted);
            });
        }
    }
}

/// Bytes copied or zeroed by one request.
const SCRATCH_BYTES: usize = 64 << 10;

/// Where buffers for copying come from: the common pool, or, when payloads have used that up, one buffer kept for
/// the purpose. Without it, writes that hold the pool's buffers could wait for a buffer to copy with for ever.
pub(crate) struct Scratch {
    bufs: BufPool,
    kept: RefCell<Option<Buf>>,
    turn: Semaphore,
}

impl Scratch {
    pub(crate) fn new(bufs: &BufPool) -> Result<Scratch, NoBuffers> {
        let kept = RefCell::new(Some(bufs.alloc(SCRATCH_BYTES)?));
        Ok(Scratch { bufs: bufs.clone(), kept, turn: Semaphore::new(1) })
    }

    async fn take(&self) -> Result<ScratchBuf<'_>, NoBuffers> {
        if let Ok(buf) = self.bufs.alloc(SCRATCH_BYTES) {
            return Ok(ScratchBuf { buf, kept: None });
        }
        let turn = self.turn.acquire(1).await;
        let kept = self.kept.take();
        let buf = match kept {
            Some(buf) => buf,
            // A disk that went away took it along.
            None => self.bufs.wait(SCRATCH_BYTES).await?,
        };
        Ok(ScratchBuf { buf, kept: Some((self, turn)) })
    }
}

struct ScratchBuf<'s> {
    buf: Buf,
    kept: Option<(&'s Scratch, Permit<'s>)>,
}

impl ScratchBuf<'_> {
    /// Passes the first `sectors` through a request and puts the buffer together again.
    async fn request(&mut self, disk: &Disk, op: Op, sector: u64, sectors: u64) -> Result<(), IoError> {
        let mut front = core::mem::replace(&mut self.buf, Buf::empty());
        let rest = front.split_off(sectors as usize * SECTOR_BYTES);
        let mut done = disk.start(op, sector, sectors, Bufs::from_iter([front])).await;
        if let Some(mut front) = done.bufs.pop()
            && front.unsplit(rest).is_ok()
        {
            self.buf = front;
        }
        done.result
    }
}

impl Drop for ScratchBuf<'_> {
    fn drop(&mut self) {
        if let Some((scratch, _turn)) = self.kept.take()
            && self.buf.len() == SCRATCH_BYTES
        {
            scratch.kept.replace(Some(core::mem::replace(&mut self.buf, Buf::empty())));
        }
    }
}

/// What the rest of a new block is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filling {
    /// Whatever is there (skip_block_zeroing).
    Nothing,
    /// Zeroes.
    Zeroes,
    /// The contents of a shared block.
    Copy(DataBlock),
    /// The external origin's, and zeroes behind its end.
    Origin(VirtualBlock),
}

impl Device {
    pub(super) fn block_sector(&self, block: DataBlock) -> u64 {
        block.0.saturating_mul(self.pool.block_sectors)
    }

    /// Starts a read or write of a piece of a data block of this device.
    pub(super) fn start(&self, op: Op, sector: u64, bufs: Bufs) -> Transfer {
        Transfer::start(&self.data, &self.pool.runtime.spawner, op, sector, bufs)
    }

    /// Fills sectors (from the block's start) of a data block, around a piece that is written.
    pub(super) async fn fill(
        &self,
        to: DataBlock,
        here: Range<u64>,
        with: Filling,
        piece: &Piece,
    ) -> Result<(), Error> {
        let (target, failed) = (self.block_sector(to), self.io_error(piece));
        if here.is_empty() {
            return Ok(());
        }
        match with {
            Filling::Nothing => Ok(()),
            Filling::Zeroes => self.zero(target + here.start, here.end - here.start).await?.map_err(failed),
            Filling::Copy(old) => self.copy(&self.data, self.block_sector(old), target, here).await?.map_err(failed),
            Filling::Origin(block) => {
                let Some(origin) = &self.origin else { return Ok(()) };
                let source = block.0.saturating_mul(self.pool.block_sectors);
                let there = origin.size_sectors().saturating_sub(source).clamp(here.start, here.end);
                self.copy(origin, source, target, here.start..there).await?.map_err(&failed)?;
                if self.pool.options.features.skip_block_zeroing {
                    return Ok(());
                }
                self.zero(target + there, here.end - there).await?.map_err(failed)
            }
        }
    }

    /// Makes sectors of the data disk zero.
    pub(super) async fn zero(&self, sector: u64, sectors: u64) -> Result<Result<(), IoError>, NoBuffers> {
        if sectors == 0 || self.data.limits().write_zeroes_sectors_max > 0 {
            return Ok(self.data.write_zeroes(sector, sectors).await);
        }
        let mut scratch = self.pool.scratch.take().await?;
        scratch.buf.fill(0);
        let step = self.step(&self.data);
        let mut done = 0;
        while done < sectors {
            let now = step.min(sectors - done);
            if let Err(error) = scratch.request(&self.data, Op::Write { fua: false }, sector + done, now).await {
                return Ok(Err(error));
            }
            done += now;
        }
        Ok(Ok(()))
    }

    /// Copies sectors, counted from `source` on one disk and from `target` on the data disk.
    async fn copy(
        &self,
        from: &Disk,
        source: u64,
        target: u64,
        sectors: Range<u64>,
    ) -> Result<Result<(), IoError>, NoBuffers> {
        if sectors.is_empty() {
            return Ok(Ok(()));
        }
        let mut scratch = self.pool.scratch.take().await?;
        let step = self.step(&self.data).min(self.step(from));
        let mut at = sectors.start;
        while at < sectors.end {
            let now = step.min(sectors.end - at);
            let mut result = scratch.request(from, Op::Read, source.saturating_add(at), now).await;
            if result.is_ok() {
                result = scratch.request(&self.data, Op::Write { fua: false }, target + at, now).await;
            }
            if result.is_err() {
                return Ok(result);
            }
            at += now;
        }
        Ok(Ok(()))
    }

    /// Most sectors of one request through a scratch buffer.
    fn step(&self, disk: &Disk) -> u64 {
        disk.limits().transfer_sectors_max.clamp(1, (SCRATCH_BYTES / SECTOR_BYTES) as u64)
    }

    /// The piece's I/O on the mapped block `sector`, counted.
    pub(super) fn start_mapped(self: &Rc<Self>, op: Op, sector: u64, bufs: Bufs) -> Transfer {
        self.start(op, sector, bufs).counted(self)
    }

    /// What a new block of an unmapped place is filled with around the payload.
    pub(super) fn filling_of_unmapped(&self, piece: &Piece) -> Filling {
        if self.origin.is_some() {
            Filling::Origin(piece.block)
        } else if self.pool.options.features.skip_block_zeroing {
            Filling::Nothing
        } else {
            Filling::Zeroes
        }
    }
}
