//! Reading: mapped blocks from the data disk, unmapped ones from the external origin or nowhere.

use super::transfer::Transfer;
use super::{Device, Piece, Thin, all, pieces, range_of};
use crate::error::Error;
use crate::metadata::Mapping;
use alloc::rc::Rc;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use platform::block::{Bufs, Op, SECTOR_BYTES};
use platform::buf::Buf;
use platform::task::JoinHandle;
use smallvec::SmallVec;

/// A piece under way.
enum Reading {
    Done(Result<(), Error>, Buf),
    Disk(Piece, Transfer),
    Slow(JoinHandle<(Result<(), Error>, Buf)>),
}

impl Reading {
    /// Becomes `Done`.
    fn poll(&mut self, device: &Device, cx: &mut Context<'_>) -> Poll<()> {
        let (result, buf) = match self {
            Reading::Done(..) => return Poll::Ready(()),
            Reading::Disk(piece, transfer) => {
                let (result, bufs) = ready!(Pin::new(transfer).poll(cx));
                (result.map_err(device.io_error(piece)), join(bufs))
            }
            Reading::Slow(task) => {
                ready!(Pin::new(task).poll(cx)).unwrap_or_else(|_| (Err(Error::Closed), Buf::empty()))
            }
        };
        *self = Reading::Done(result, buf);
        Poll::Ready(())
    }

    fn done(self) -> (Result<(), Error>, Buf) {
        match self {
            Reading::Done(result, buf) => (result, buf),
            Reading::Disk(..) | Reading::Slow(_) => (Err(Error::Closed), Buf::empty()),
        }
    }
}

impl Thin {
    /// Fills the buffer, of whole sectors, from `sector` on. Unmapped space reads as zeroes, or as the external origin.
    /// On an error the contents are unspecified.
    pub async fn read(&self, sector: u64, mut buf: Buf) -> (Result<(), Error>, Buf) {
        let device = &self.0;
        let sectors = match device.pool.check_working().and_then(|()| range_of(sector, [&buf].into_iter())) {
            Ok(sectors) => sectors,
            Err(error) => return (Err(error), buf),
        };
        let mut readings: SmallVec<[Reading; 1]> = SmallVec::new();
        for piece in pieces(sectors, device.pool.block_sectors) {
            let mine = buf.split_to(piece.sectors as usize * SECTOR_BYTES);
            readings.push(device.start_read(piece, mine));
        }
        all(&mut readings, |reading, cx| reading.poll(device, cx)).await;
        let (mut result, mut whole) = (Ok(()), None::<Buf>);
        for reading in readings {
            let (read, mine) = reading.done();
            result = result.and(read);
            whole = match whole {
                None => Some(mine),
                // Where a disk lost a buffer its read has failed, too.
                Some(mut front) => front.unsplit(mine).map(|()| front).ok(),
            };
        }
        (result, whole.unwrap_or(buf))
    }
}

impl Device {
    fn start_read(self: &Rc<Self>, piece: Piece, buf: Buf) -> Reading {
        match self.try_lookup(piece.block) {
            Some(mapping) => self.read_at(piece, mapping, buf),
            None => Reading::Slow(self.pool.runtime.spawner.spawn(self.clone().read_slowly(piece, buf))),
        }
    }

    /// Starts reading once it is known where from. Plain, so that nothing comes between the lookup and the request.
    fn read_at(self: &Rc<Self>, piece: Piece, mapping: Option<Mapping>, mut buf: Buf) -> Reading {
        match (mapping, &self.origin) {
            (Some(mapping), _) => {
                let sector = self.data_sector(&piece, &mapping);
                Reading::Disk(piece, self.start_mapped(Op::Read, sector, Bufs::from_iter([buf])))
            }
            (None, None) => {
                buf.fill(0);
                Reading::Done(Ok(()), buf)
            }
            (None, Some(_)) => Reading::Slow(self.pool.runtime.spawner.spawn(self.clone().read_origin(piece, buf))),
        }
    }

    /// The slow road: waits for whoever changes the block's mapping, and for metadata to be read.
    async fn read_slowly(self: Rc<Self>, piece: Piece, buf: Buf) -> (Result<(), Error>, Buf) {
        let lock = self.locks.lock(piece.block.0..piece.block.0.saturating_add(1)).await;
        let mapping = match self.pool.metadata.lookup(self.id, piece.block).await {
            Ok(mapping) => mapping,
            Err(error) => return (Err(error.into()), buf),
        };
        let mut reading = self.read_at(piece, mapping, buf);
        drop(lock);
        poll_fn(|cx| reading.poll(&self, cx)).await;
        reading.done()
    }

    /// Reads from the external origin, zeroes beyond its end.
    async fn read_origin(self: Rc<Self>, piece: Piece, mut buf: Buf) -> (Result<(), Error>, Buf) {
        let Some(origin) = &self.origin else { return (Ok(()), buf) };
        let sector = piece.block.0.saturating_mul(self.pool.block_sectors).saturating_add(piece.at);
        let there = origin.size_sectors().saturating_sub(sector).min(piece.sectors);
        let mut rest = buf.split_off(there as usize * SECTOR_BYTES);
        rest.fill(0);
        if there == 0 {
            return (Ok(()), rest);
        }
        let transfer = Transfer::start(origin, &self.pool.runtime.spawner, Op::Read, sector, Bufs::from_iter([buf]));
        let (result, bufs) = transfer.await;
        let mut front = join(bufs);
        let whole = front.unsplit(rest).map(|()| front).unwrap_or_else(|rest| rest);
        (result.map_err(self.io_error(&piece)), whole)
    }
}

/// Puts the parts of one buffer together again; what a disk lost is missing.
fn join(bufs: Bufs) -> Buf {
    let mut bufs = bufs.into_iter();
    let mut whole = bufs.next().unwrap_or_else(Buf::empty);
    for part in bufs {
        if whole.unsplit(part).is_err() {
            break;
        }
    }
    whole
}
