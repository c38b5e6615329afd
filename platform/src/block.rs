//! The disk seam.
//!
//! A [`Request`] owns its buffers from [`Disk::start`] until its [`Completion`] resolves, so a
//! dropped future never frees memory that a device still writes to. Requests in flight may be
//! reordered in any way; who needs order awaits completion. A flush makes durable at least what
//! completed before it was started. Sizes are in sectors of 512 bytes unless a name says otherwise.

use crate::buf::Buf;
use crate::sync::oneshot;
use alloc::{boxed::Box, rc::Rc};
use core::cell::Cell;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use smallvec::SmallVec;

/// Bytes in a sector, the unit of all addresses of this seam.
pub const SECTOR_BYTES: usize = 512;

/// The buffers of one request, in the order of their sectors.
pub type Bufs = SmallVec<[Buf; 2]>;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fills the buffers.
    Read,
    /// Writes the buffers; with `fua` it completes only when they are durable.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Makes durable what completed before. Has no sectors and no buffers.
    Flush,
    /// The contents are no longer needed; what is read afterwards is unspecified.
    Discard,
    /// The sectors read as zero afterwards.
    WriteZeroes,
}

/// Who goes first (design decision 10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Class {
    /// Somebody waits: commits, misses, the I/O of volumes.
    #[default]
    Foreground,
    /// Checks, deltas, reads of the metadata export, jobs.
    Background,
}

/// The queue in the I/O scheduler that a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Flow {
    /// Urgency.
    pub class: Class,
    /// The volume (thin id) on whose behalf it is done; 0 where there is none.
    pub volume: u32,
}

/// One request to a disk.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// First sector.
    pub sector: u64,
    /// Number of sectors; for reads and writes the length of `bufs` together.
    pub sectors: u64,
    /// Whole sectors each; empty for flush, discard and write-zeroes.
    pub bufs: Bufs,
    /// Whose it is.
    pub flow: Flow,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The request reaches beyond the end of the disk.
    #[error("sectors {sector}+{sectors} lie beyond the end of the disk")]
    OutOfRange {
        /// First sector asked for.
        sector: u64,
        /// Sectors asked for.
        sectors: u64,
    },
    /// The buffers are no whole sectors, or too many or too long for the device.
    #[error("a malformed request for sector {sector}")]
    Malformed {
        /// First sector asked for.
        sector: u64,
    },
    /// The device reported an error.
    #[error("the device failed {op:?} at sector {sector}")]
    Device {
        /// What was asked.
        op: Op,
        /// Where.
        sector: u64,
    },
    /// The device cannot do this.
    #[error("the device does not support {0:?}")]
    Unsupported(Op),
    /// The device refuses writes.
    #[error("the device is read-only")]
    ReadOnly,
    /// The device went away, or the request was dropped unanswered.
    #[error("the device is gone")]
    Gone,
}

/// What a disk can take. May change while running (`size_sectors` grows).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of the disk.
    pub size_sectors: u64,
    /// Smallest addressable unit in bytes, a multiple of 512; requests must be aligned to it.
    pub logical_block_bytes: u32,
    /// Most sectors of one read or write. Callers split.
    pub transfer_sectors_max: u64,
    /// Most buffers of one read or write.
    pub segments_max: usize,
    /// Most sectors of one discard; 0 if the device cannot discard.
    pub discard_sectors_max: u64,
    /// Granularity of discards.
    pub discard_granularity_sectors: u64,
    /// Most sectors of one write-zeroes; 0 if the device cannot.
    pub write_zeroes_sectors_max: u64,
    /// Writes are refused.
    pub read_only: bool,
}

/// A request's result and its buffers, handed back.
#[derive(Debug)]
pub struct Done {
    /// What came of it.
    pub result: Result<(), IoError>,
    /// The buffers of the request, filled if it was a read that succeeded.
    pub bufs: Bufs,
}

enum Completer {
    Future(oneshot::Sender<Done>),
    Callback(Box<dyn FnOnce(Done)>),
}

/// A request under way, held by the device until it calls [`Io::complete`].
/// Dropping it completes it with [`IoError::Gone`].
pub struct Io {
    request: Option<Request>,
    completer: Option<Completer>,
}

impl Io {
    /// A request whose completion runs `done`: for layers that watch the result.
    pub fn with_callback(request: Request, done: impl FnOnce(Done) + 'static) -> Io {
        Io { request: Some(request), completer: Some(Completer::Callback(Box::new(done))) }
    }

    /// The request. There until the completion.
    pub fn request(&self) -> &Request {
        self.request.as_ref().expect("an Io holds its request until it completes")
    }

    /// The request, for the device to fill its buffers.
    pub fn request_mut(&mut self) -> &mut Request {
        self.request.as_mut().expect("an Io holds its request until it completes")
    }

    /// Answers the request.
    pub fn complete(mut self, result: Result<(), IoError>) {
        self.finish(result);
    }

    /// Takes the request and its completion apart, for a layer that passes on another request in its place.
    pub fn into_parts(mut self) -> (Request, Reply) {
        let request = self.request.take().expect("an Io holds its request until it completes");
        (request, Reply(Io { request: None, completer: self.completer.take() }))
    }

    fn finish(&mut self, result: Result<(), IoError>) {
        let bufs = self.request.take().map(|r| r.bufs).unwrap_or_default();
        self.answer(Done { result, bufs });
    }

    fn answer(&mut self, done: Done) {
        match self.completer.take() {
            Some(Completer::Future(sender)) => sender.send(done),
            Some(Completer::Callback(callback)) => callback(done),
            None => {}
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.finish(Err(IoError::Gone));
    }
}

/// The completion half of a request taken apart by [`Io::into_parts`].
pub struct Reply(Io);

impl Reply {
    /// Answers the original request.
    pub fn send(mut self, done: Done) {
        self.0.answer(done);
    }
}

/// Implemented by drivers, layers, files and simulated disks.
pub trait BlockDevice {
    /// What the device can take now.
    fn limits(&self) -> Limits;

    /// Starts a request that [`Disk::start`] found well-formed. Must not block; may complete at once.
    fn submit(&self, io: Io);
}

/// A disk as its users hold it: any device, and the flow its requests belong to.
#[derive(Clone)]
pub struct Disk {
    device: Rc<dyn BlockDevice>,
    flow: Flow,
    /// No writes any more; shared by clones.
    locked: Rc<Cell<bool>>,
}

impl Disk {
    /// A disk over a device.
    pub fn new(device: impl BlockDevice + 'static) -> Disk {
        Disk::from_rc(Rc::new(device))
    }

    /// A disk over a shared device.
    pub fn from_rc(device: Rc<dyn BlockDevice>) -> Disk {
        Disk { device, flow: Flow::default(), locked: Rc::default() }
    }

    /// The same disk, its requests in another flow.
    pub fn with_flow(&self, flow: Flow) -> Disk {
        Disk { flow, ..self.clone() }
    }

    /// The same disk with a lock of its own, open: [`Disk::lock`] of this one does not lock the other.
    pub fn lockable(&self) -> Disk {
        Disk { locked: Rc::default(), ..self.clone() }
    }

    /// From now on this disk and its clones refuse everything but reads and flushes.
    pub fn lock(&self) {
        self.locked.set(true);
    }

    /// What the disk can take now.
    pub fn limits(&self) -> Limits {
        let limits = self.device.limits();
        Limits { read_only: limits.read_only || self.locked.get(), ..limits }
    }

    /// Size of the disk now.
    pub fn size_sectors(&self) -> u64 {
        self.limits().size_sectors
    }

    /// Starts a request. Malformed ones complete with an error and never reach the device.
    pub fn start(&self, op: Op, sector: u64, sectors: u64, bufs: Bufs) -> Completion {
        let (sender, receiver) = oneshot::channel();
        let request = Request { op, sector, sectors, bufs, flow: self.flow };
        let verdict = check(&request, &self.limits());
        let io = Io { request: Some(request), completer: Some(Completer::Future(sender)) };
        match verdict {
            Ok(()) => self.device.submit(io),
            Err(error) => io.complete(Err(error)),
        }
        Completion(receiver)
    }

    /// Reads into one buffer.
    pub async fn read(&self, sector: u64, buf: Buf) -> (Result<(), IoError>, Buf) {
        self.one(Op::Read, sector, buf).await
    }

    /// Writes one buffer.
    pub async fn write(&self, sector: u64, buf: Buf, fua: bool) -> (Result<(), IoError>, Buf) {
        self.one(Op::Write { fua }, sector, buf).await
    }

    /// Makes durable what completed before.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.start(Op::Flush, 0, 0, Bufs::new()).await.result
    }

    /// Discards sectors, in as many requests as the device's limits ask for.
    pub async fn discard(&self, sector: u64, sectors: u64) -> Result<(), IoError> {
        self.pieces(Op::Discard, sector, sectors, self.limits().discard_sectors_max).await
    }

    /// Makes sectors read as zero with the device's own command, in as many requests as its limits ask for.
    pub async fn write_zeroes(&self, sector: u64, sectors: u64) -> Result<(), IoError> {
        self.pieces(Op::WriteZeroes, sector, sectors, self.limits().write_zeroes_sectors_max).await
    }

    async fn one(&self, op: Op, sector: u64, buf: Buf) -> (Result<(), IoError>, Buf) {
        let sectors = (buf.len() / SECTOR_BYTES) as u64;
        let mut done = self.start(op, sector, sectors, Bufs::from_iter([buf])).await;
        let buf = done.bufs.pop().unwrap_or_else(Buf::empty);
        (done.result, buf)
    }

    async fn pieces(&self, op: Op, mut sector: u64, mut sectors: u64, most: u64) -> Result<(), IoError> {
        if most == 0 {
            return Err(IoError::Unsupported(op));
        }
        while sectors > 0 {
            let piece = sectors.min(most);
            self.start(op, sector, piece, Bufs::new()).await.result?;
            sector = sector.saturating_add(piece);
            sectors -= piece;
        }
        Ok(())
    }
}

fn check(request: &Request, limits: &Limits) -> Result<(), IoError> {
    let Request { op, sector, sectors, .. } = *request;
    if op == Op::Flush {
        return Ok(());
    }
    let end = sector.checked_add(sectors);
    if end.is_none_or(|end| end > limits.size_sectors) {
        return Err(IoError::OutOfRange { sector, sectors });
    }
    if op != Op::Read && limits.read_only {
        return Err(IoError::ReadOnly);
    }
    let unit_sectors = u64::from(limits.logical_block_bytes) / SECTOR_BYTES as u64;
    let aligned = sector.is_multiple_of(unit_sectors) && sectors.is_multiple_of(unit_sectors) && sectors > 0;
    let fits = match op {
        Op::Read | Op::Write { .. } => {
            let bytes: usize = request.bufs.iter().map(|b| b.len()).sum();
            bytes as u64 == sectors * SECTOR_BYTES as u64
                && request.bufs.iter().all(|b| b.len().is_multiple_of(SECTOR_BYTES) && !b.is_empty())
                && request.bufs.len() <= limits.segments_max
                && sectors <= limits.transfer_sectors_max
        }
        Op::Discard if limits.discard_sectors_max == 0 => return Err(IoError::Unsupported(op)),
        Op::Discard => sectors <= limits.discard_sectors_max,
        Op::WriteZeroes if limits.write_zeroes_sectors_max == 0 => return Err(IoError::Unsupported(op)),
        Op::WriteZeroes => sectors <= limits.write_zeroes_sectors_max,
        Op::Flush => true,
    };
    if aligned && fits { Ok(()) } else { Err(IoError::Malformed { sector }) }
}

/// Resolves when the device has answered. Dropping it abandons the answer, not the request.
pub struct Completion(oneshot::Receiver<Done>);

impl Future for Completion {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let gone = || Done { result: Err(IoError::Gone), bufs: Bufs::new() };
        Pin::new(&mut self.0).poll(cx).map(|done| done.unwrap_or_else(|_| gone()))
    }
}
