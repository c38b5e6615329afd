//! The data path of a thin device (reference 7.6).
//!
//! Requests are cut at data-block boundaries. A piece whose block is mapped, and not shared if it is
//! written, and on which nobody holds a lock, goes straight to the data disk: the hot path, a lookup and a request.
//! Every other piece takes the slow road as a task of its own, so that nobody's going away leaves a
//! block half copied.

mod discard;
mod erase;
mod lock;
mod read;
mod share;
mod transfer;
mod write;

pub use erase::Erasure;
pub use share::CopySource;
pub(crate) use transfer::Scratch;

use crate::control::{DeviceId, Mode, ThinStatus};
use crate::error::Error;
use crate::metadata::{Mapping, VirtualBlock};
use crate::pool::Inner;
use alloc::rc::Rc;
use core::cell::Cell;
use core::future::poll_fn;
use core::ops::Range;
use core::task::{Context, Poll};
use lock::{InFlight, RangeLock, RangeLocks};
use platform::block::{Bufs, Disk, Flow, IoError, SECTOR_BYTES};
use platform::buf::Buf;

/// An active thin device. Clones are the same device; it is active until the last is gone.
#[derive(Clone)]
pub struct Thin(Rc<Device>);

pub(crate) struct Device {
    pool: Rc<Inner>,
    id: DeviceId,
    /// The data disk, in this device's flow.
    data: Disk,
    origin: Option<Disk>,
    locks: RangeLocks,
    in_flight: InFlight,
    /// Out of data space, writes of this device fail whatever the pool's option.
    never_queues: Cell<bool>,
}

impl Device {
    pub(crate) fn new(pool: Rc<Inner>, id: DeviceId, origin: Option<Disk>) -> Device {
        let flow = Flow { volume: id.get(), ..Flow::default() };
        Device {
            data: pool.data.with_flow(flow),
            origin: origin.map(|disk| disk.with_flow(flow)),
            pool,
            id,
            locks: RangeLocks::default(),
            in_flight: InFlight::default(),
            never_queues: Cell::new(false),
        }
    }

    /// Keeps all I/O away and waits for what is under way: for a snapshot, or after a transaction was lost.
    pub(crate) async fn quiesce(&self) -> RangeLock<'_> {
        let lock = self.locks.lock(0..u64::MAX).await;
        self.in_flight.drain().await;
        lock
    }

    /// Locks blocks, to write to them or to change what they map to.
    async fn lock(&self, blocks: Range<u64>) -> Result<RangeLock<'_>, Error> {
        let lock = self.locks.lock(blocks).await;
        self.check_writable()?;
        Ok(lock)
    }

    /// After the end of I/O only the records are written.
    fn check_writable(&self) -> Result<(), Error> {
        let ended = self.pool.state.io_ended() && self.pool.reserved.get() != Some(self.id);
        if ended { Err(Error::Closed) } else { self.pool.check_working() }
    }

    /// The hot path's lookup: `None` if it takes the slow road.
    fn try_lookup(&self, block: VirtualBlock) -> Option<Option<Mapping>> {
        if self.locks.busy(block.0) {
            return None;
        }
        self.pool.metadata.try_lookup(self.id, block).ok()
    }

    /// Where a piece lies on the data disk, within which the metadata keeps all mappings.
    fn data_sector(&self, piece: &Piece, mapping: &Mapping) -> u64 {
        self.block_sector(mapping.block) + piece.at
    }

    /// No durability can be promised on top of changes that were lost (reference 6.6).
    fn check_nothing_lost(&self) -> Result<(), Error> {
        let lost = self.pool.metadata.aborted_with_changes(self.id);
        if lost { Err(Error::ChangesLost(self.id)) } else { Ok(()) }
    }

    fn io_error(&self, piece: &Piece) -> impl Fn(IoError) -> Error + use<> {
        let (device, sector) = (self.id, piece.block.0.wrapping_mul(self.pool.block_sectors).wrapping_add(piece.at));
        move |source| Error::Io { device, sector, source }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.pool.inactive(self.id);
    }
}

/// The part of a request that lies in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    block: VirtualBlock,
    /// First sector, from the start of the block.
    at: u64,
    sectors: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at + self.sectors
    }
}

/// Cuts sectors at block boundaries. The range must not reach beyond `u64::MAX`.
fn pieces(sectors: Range<u64>, block_sectors: u64) -> impl Iterator<Item = Piece> {
    let mut next = sectors.start;
    core::iter::from_fn(move || {
        if next >= sectors.end {
            return None;
        }
        let (block, at) = (VirtualBlock(next / block_sectors), next % block_sectors);
        let count = (block_sectors - at).min(sectors.end - next);
        next += count;
        Some(Piece { block, at, sectors: count })
    })
}

/// The sectors that a request means, if it can mean any.
fn range(sector: u64, sectors: u64) -> Result<Range<u64>, Error> {
    let end = sector.checked_add(sectors).ok_or(Error::OutOfRange { sector, sectors })?;
    Ok(sector..end)
}

/// The range that buffers of whole sectors fill.
fn range_of<'b>(sector: u64, bufs: impl Iterator<Item = &'b Buf>) -> Result<Range<u64>, Error> {
    let mut sectors = 0u64;
    for buf in bufs {
        if !buf.len().is_multiple_of(SECTOR_BYTES) {
            return Err(Error::Malformed { sector });
        }
        sectors = sectors.saturating_add((buf.len() / SECTOR_BYTES) as u64);
    }
    range(sector, sectors)
}

/// Takes the first `sectors` off buffers of whole sectors.
fn take_front(bufs: &mut Bufs, sectors: u64) -> Bufs {
    let mut wanted = usize::try_from(sectors).unwrap_or(usize::MAX).saturating_mul(SECTOR_BYTES);
    let mut whole = 0;
    for buf in bufs.iter() {
        if buf.len() > wanted {
            break;
        }
        wanted -= buf.len();
        whole += 1;
    }
    let mut front: Bufs = bufs.drain(..whole).filter(|buf| !buf.is_empty()).collect();
    if wanted > 0
        && let Some(partly) = bufs.first_mut()
    {
        front.push(partly.split_to(wanted));
    }
    front
}

/// Polls all parts of a request until each is done. All, because one may wait for what another has under way: who
/// breaks sharing waits for requests on mapped blocks of the same device.
async fn all<P>(parts: &mut [P], mut poll: impl FnMut(&mut P, &mut Context<'_>) -> Poll<()>) {
    poll_fn(|cx| {
        let pending = parts.iter_mut().fold(false, |pending, part| poll(part, cx).is_pending() | pending);
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await
}

impl Thin {
    pub(crate) fn new(device: Rc<Device>) -> Thin {
        Thin(device)
    }

    /// Its id.
    pub fn id(&self) -> DeviceId {
        self.0.id
    }

    /// Writes that need a data block fail at once when there is none.
    pub fn never_queue(&self) {
        self.0.never_queues.set(true);
    }

    /// Makes durable what completed before: a commit if mappings of this device changed, else a flush of the data
    /// disk (reference 6.5).
    pub async fn flush(&self) -> Result<(), Error> {
        let (device, pool) = (&self.0, &self.0.pool);
        pool.check_working()?;
        device.check_nothing_lost()?;
        if pool.metadata.changed(device.id) {
            return pool.commit().await;
        }
        device.data.flush().await.map_err(Error::Flush)
    }

    /// Whether `sector` is mapped, and for how many sectors, of at most `sectors_max`, at least the answer holds.
    pub async fn mapped_run(&self, sector: u64, sectors_max: u64) -> Result<(bool, u64), Error> {
        let (id, metadata, block_sectors) = (self.0.id, &self.0.pool.metadata, self.0.pool.block_sectors);
        self.0.pool.check_working()?;
        let end = range(sector, sectors_max)?.end;
        let (first, behind) = (VirtualBlock(sector / block_sectors), VirtualBlock(end.div_ceil(block_sectors)));
        let run_to = |block: VirtualBlock| block.0.saturating_mul(block_sectors).min(end) - sector;
        let Some(mut run) = metadata.mapped_range(id, first, behind).await? else {
            return Ok((false, sectors_max));
        };
        if run.begin != first {
            return Ok((false, run_to(run.begin)));
        }
        for _ in 0..RUNS_MAX {
            match metadata.mapped_range(id, run.end, behind).await? {
                Some(next) if next.begin == run.end => run = next,
                _ => break,
            }
        }
        Ok((true, run_to(run.end)))
    }

    /// The status line's facts (reference 7.3).
    pub async fn status(&self) -> Result<ThinStatus, Error> {
        let (id, pool) = (self.0.id, &self.0.pool);
        if pool.mode() == Mode::Fail {
            return Ok(ThinStatus::Fail);
        }
        let mapped_blocks = pool.metadata.details(id).map_or(0, |details| details.mapped_blocks);
        let highest = pool.metadata.highest_mapped(id).await?;
        let behind = highest.map(|block| block.0.saturating_add(1).saturating_mul(pool.block_sectors));
        Ok(ThinStatus::Mapped {
            mapped_sectors: mapped_blocks.saturating_mul(pool.block_sectors),
            highest_mapped_sector: behind.map(|sector| sector.saturating_sub(1)),
        })
    }
}

/// Most runs of mappings that one query joins.
const RUNS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;
    use platform::buf::BufPool;

    #[test]
    fn requests_are_cut_at_block_boundaries() {
        let cut: Vec<Piece> = pieces(100..300, 128).collect();
        let piece = |block, at, sectors| Piece { block: VirtualBlock(block), at, sectors };
        assert_eq!(cut, vec![piece(0, 100, 28), piece(1, 0, 128), piece(2, 0, 44)]);
        assert_eq!(pieces(5..5, 128).count(), 0);
        let last: Vec<Piece> = pieces(u64::MAX - 3..u64::MAX, 384).collect();
        assert_eq!(last.iter().map(|p| p.sectors).sum::<u64>(), 3);
    }

    #[test]
    fn buffers_are_cut_without_a_copy() {
        let pool = BufPool::new(1 << 20);
        let mut bufs: Bufs = [1024, 512, 2048].iter().map(|len| pool.zeroed(*len).unwrap()).collect();
        let lens = |bufs: &Bufs| bufs.iter().map(|b| b.len()).collect::<Vec<_>>();
        assert_eq!(lens(&take_front(&mut bufs, 4)), [1024, 512, 512]);
        assert_eq!(lens(&take_front(&mut bufs, 1)), [512]);
        assert_eq!(lens(&take_front(&mut bufs, 9)), [1024]);
        assert_eq!(lens(&bufs), [0; 0]);
    }
}
