//! Writing: in place where the block is ours alone, else into a new block, which is mapped when its contents
//! are there (design decision 7).

use super::transfer::{Filling, Transfer};
use super::{Device, Piece, Thin, all, pieces, range, range_of, take_front};
use crate::error::Error;
use crate::metadata::{DataBlock, Mapping, VirtualBlock};
use crate::pool::Reserved;
use alloc::rc::Rc;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use futures_util::future::join4;
use platform::block::{Bufs, Op};
use platform::task::JoinHandle;
use smallvec::SmallVec;

/// What is written.
enum Payload {
    Data(Bufs),
    Zeroes,
}

/// A piece under way.
enum Writing {
    Done(Result<(), Error>),
    Disk(Piece, Transfer),
    Slow(JoinHandle<Result<(), Error>>),
}

impl Writing {
    /// Becomes `Done`.
    fn poll(&mut self, device: &Device, cx: &mut Context<'_>) -> Poll<()> {
        let result = match self {
            Writing::Done(_) => return Poll::Ready(()),
            Writing::Disk(piece, transfer) => ready!(Pin::new(transfer).poll(cx)).0.map_err(device.io_error(piece)),
            Writing::Slow(task) => ready!(Pin::new(task).poll(cx)).unwrap_or(Err(Error::Closed)),
        };
        *self = Writing::Done(result);
        Poll::Ready(())
    }

    fn done(self) -> Result<(), Error> {
        match self {
            Writing::Done(result) => result,
            Writing::Disk(..) | Writing::Slow(_) => Err(Error::Closed),
        }
    }
}

impl Thin {
    /// Writes the buffers, of whole sectors, from `sector` on. With `fua` it completes when they are durable.
    pub async fn write(&self, sector: u64, mut bufs: Bufs, fua: bool) -> Result<(), Error> {
        let device = &self.0;
        device.check_writable()?;
        let sectors = range_of(sector, bufs.iter())?;
        if fua {
            device.check_nothing_lost()?;
        }
        // Where a commit will be needed anyway it makes the data durable, too.
        let through = fua && !device.pool.metadata.changed(device.id);
        let mut writings: SmallVec<[Writing; 1]> = SmallVec::new();
        for piece in pieces(sectors, device.pool.block_sectors) {
            let mine = take_front(&mut bufs, piece.sectors);
            writings.push(device.start_write(piece, mine, through));
        }
        all(&mut writings, |writing, cx| writing.poll(device, cx)).await;
        writings.into_iter().try_for_each(Writing::done)?;
        match fua {
            false => Ok(()),
            // A transaction may have been lost meanwhile, and with it what a piece had mapped.
            true if through && !device.pool.metadata.changed(device.id) => device.check_nothing_lost(),
            true => self.flush().await,
        }
    }

    /// Makes sectors read as zero. Mapped blocks stay mapped, unmapped ones unmapped where that reads as zero.
    pub async fn write_zeroes(&self, sector: u64, sectors: u64) -> Result<(), Error> {
        let device = &self.0;
        device.pool.check_working()?;
        let (end, block_sectors) = (range(sector, sectors)?.end, device.pool.block_sectors);
        let mut at = sector;
        while at < end {
            if device.origin.is_none() {
                let block = VirtualBlock(at / block_sectors);
                let Some(next) = device.pool.metadata.next_mapped(device.id, block).await? else { break };
                at = at.max(next.0.saturating_mul(block_sectors));
            }
            let Some(piece) = pieces(at..end, block_sectors).next() else { break };
            at += piece.sectors;
            let task = device.clone().write_slowly(piece, Payload::Zeroes, false);
            let written = device.pool.runtime.spawner.spawn(task).await;
            written.unwrap_or(Err(Error::Closed))?;
        }
        Ok(())
    }
}

impl Device {
    fn start_write(self: &Rc<Self>, piece: Piece, bufs: Bufs, fua: bool) -> Writing {
        match self.try_lookup(piece.block) {
            Some(Some(mapping)) if !mapping.shared => {
                let sector = self.data_sector(&piece, &mapping);
                Writing::Disk(piece, self.start_mapped(Op::Write { fua }, sector, bufs))
            }
            _ => {
                let task = self.clone().write_slowly(piece, Payload::Data(bufs), fua);
                Writing::Slow(self.pool.runtime.spawner.spawn(task))
            }
        }
    }

    /// The slow road. Where there is no data space it waits for some without its lock, and begins anew.
    async fn write_slowly(self: Rc<Self>, piece: Piece, payload: Payload, fua: bool) -> Result<(), Error> {
        loop {
            let lock = self.lock(piece.block.0..piece.block.0.saturating_add(1)).await?;
            let mapping = self.pool.metadata.lookup(self.id, piece.block).await?;
            let filling = match mapping {
                Some(mapping) if !mapping.shared => {
                    let writing = self.write_in_place(&piece, &mapping, payload, fua);
                    drop(lock);
                    return writing.await;
                }
                Some(mapping) => Filling::Copy(mapping.block),
                None => self.filling_of_unmapped(&piece),
            };
            match self.pool.reserve().await {
                Ok(reserved) => return self.write_new(&piece, payload, reserved, filling).await,
                Err(Error::NoDataSpace) if self.never_queues.get() => return Err(Error::NoDataSpace),
                Err(Error::NoDataSpace) => {}
                Err(error) => return Err(error),
            }
            drop(lock);
            self.pool.wait_for_data_space().await?;
        }
    }

    /// Starts overwriting a block of ours.
    fn write_in_place(
        self: &Rc<Self>,
        piece: &Piece,
        mapping: &Mapping,
        payload: Payload,
        fua: bool,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let (sector, piece, device) = (self.data_sector(piece, mapping), *piece, self.clone());
        let entered = self.in_flight.enter();
        let transfer = match payload {
            Payload::Data(bufs) => Some(self.start(Op::Write { fua }, sector, bufs)),
            Payload::Zeroes => None,
        };
        async move {
            let result = match transfer {
                Some(transfer) => transfer.await.0,
                None => device.zero(sector, piece.sectors).await?,
            };
            drop(entered);
            result.map_err(device.io_error(&piece))
        }
    }

    /// Writes the payload to a new block and fills the rest of it; when all that is there the block is mapped. The
    /// caller holds the lock on the virtual block.
    async fn write_new(
        self: &Rc<Self>,
        piece: &Piece,
        payload: Payload,
        reserved: Reserved,
        filling: Filling,
    ) -> Result<(), Error> {
        let to = reserved.block();
        let results = join4(
            self.write_payload(to, piece, payload),
            self.fill(to, 0..piece.at, filling, piece),
            self.fill(to, piece.end()..self.pool.block_sectors, filling, piece),
            // Who still reads the old block must be done before somebody else can be given it.
            self.in_flight.drain(),
        )
        .await;
        results.0.and(results.1).and(results.2)?;
        if let Filling::Copy(_) = filling {
            log::trace!("sharing broken");
        }
        self.pool.change(async || self.pool.metadata.insert(self.id, piece.block, to).await).await?;
        reserved.mapped();
        Ok(())
    }

    async fn write_payload(&self, to: DataBlock, piece: &Piece, payload: Payload) -> Result<(), Error> {
        let sector = self.block_sector(to) + piece.at;
        let result = match payload {
            Payload::Data(bufs) => self.start(Op::Write { fua: false }, sector, bufs).await.0,
            Payload::Zeroes => self.zero(sector, piece.sectors).await?,
        };
        result.map_err(self.io_error(piece))
    }
}
