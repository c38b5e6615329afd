//! The block device (virtio 1.2, section 5.2).
//!
//! The whole queue is kept in flight; what does not fit waits in order. Nothing is allocated for a request:
//! header, status and descriptor tables exist once for each place in the queue.

use super::dma::Shared;
use super::queue::{Full, Queue, Segment};
use super::{EVENT_INDEX, INDIRECT_DESCRIPTORS, Polled, VirtioError, negotiate, queue_features, reset};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt::Display;
use core::mem;
use core::ptr::NonNull;
use platform::block::{BlockDevice, Io, IoError, Limits, Op, Request, SECTOR_BYTES};
use platform::buf::Buf;
use platform::sync::oneshot;
use smallvec::SmallVec;
use virtio_drivers::transport::{DeviceStatus, InterruptStatus, Transport};

const SIZE_MAX: u64 = 1 << 1;
const SEGMENTS_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const WANTED: u64 = SIZE_MAX
    | SEGMENTS_MAX
    | READ_ONLY
    | BLOCK_SIZE
    | FLUSH
    | DISCARD
    | WRITE_ZEROES
    | INDIRECT_DESCRIPTORS
    | EVENT_INDEX;

/// Offsets of the configuration's fields.
mod field {
    pub const CAPACITY: usize = 0;
    pub const SIZE_MAX: usize = 8;
    pub const SEGMENTS_MAX: usize = 12;
    pub const BLOCK_SIZE: usize = 20;
    pub const DISCARD_SECTORS_MAX: usize = 36;
    pub const DISCARD_ALIGNMENT: usize = 44;
    pub const WRITE_ZEROES_SECTORS_MAX: usize = 48;
}

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_UNSUPPORTED: u8 = 2;
/// What the status byte holds until the device has written it.
const STATUS_NONE: u8 = 0xff;

const QUEUE: u16 = 0;
const QUEUE_SIZE_MAX: u16 = 256;
/// Header and status.
const EXTRA_SEGMENTS: usize = 2;
/// Buffers of one request: more than one transfer of 1 MiB is ever cut into, and at most 256 KiB of tables a disk.
const BUFS_MAX: usize = 62;
const TRANSFER_SECTORS_MAX: u64 = 8192;
const SERIAL_BYTES: usize = 20;
/// The configuration is read again after so many polls without an idle spell, which would tell of a change.
const POLLS_BETWEEN_LOOKS: u32 = 4096;

/// What a place in the queue shares with the device, besides the buffers.
#[repr(C)]
struct Place {
    kind: u32,
    reserved: u32,
    sector: u64,
    /// A discard's or write-zeroes' segment, or the serial.
    data: [u8; 32],
    status: u8,
}
const PLACE_BYTES: usize = size_of::<Place>();
const HEADER_BYTES: usize = mem::offset_of!(Place, data);
const RANGE_BYTES: u32 = 16;

/// What is asked of the device.
enum Job {
    Io(Io),
    /// The second half of a write with force unit access: the data is written, now it is made durable.
    FlushAfter(Io),
    Serial(oneshot::Sender<Option<[u8; SERIAL_BYTES]>>),
}

/// A virtio block device.
pub struct Blk<T> {
    inner: RefCell<Inner<T>>,
    limits: Cell<Limits>,
    polls: Cell<u32>,
}

struct Inner<T> {
    // Dropped first: that resets the device, which so lets go of the memory below.
    transport: T,
    queue: Queue,
    places: Shared,
    /// By head descriptor.
    jobs: Vec<Option<Job>>,
    waiting: VecDeque<Job>,
    finished: Vec<(Job, Result<(), IoError>)>,
    /// The device has a volatile cache. Without one, what was written is durable.
    has_cache: bool,
    broken: bool,
}

impl<T: Transport> Blk<T> {
    /// Brings the device up.
    pub fn new(mut transport: T) -> Result<Blk<T>, VirtioError> {
        let features = negotiate(&mut transport, WANTED)?;
        let limits = read_limits(&transport, features)?;
        let segments_max = limits.segments_max + EXTRA_SEGMENTS;
        let queue = Queue::new(&mut transport, QUEUE, QUEUE_SIZE_MAX, segments_max, queue_features(features))?;
        let places = Shared::new(usize::from(queue.size()) * PLACE_BYTES);
        let jobs = (0..queue.size()).map(|_| None).collect();
        transport.finish_init();
        let (waiting, finished, has_cache) = (VecDeque::new(), Vec::new(), features & FLUSH != 0);
        let inner = Inner { transport, queue, places, jobs, waiting, finished, has_cache, broken: false };
        Ok(Blk { inner: RefCell::new(inner), limits: Cell::new(limits), polls: Cell::new(0) })
    }

    /// Requests that the device takes at a time.
    pub fn depth(&self) -> usize {
        usize::from(self.inner.borrow().queue.size())
    }

    /// The serial that the host gave the disk; `None` if it cannot be had.
    pub async fn serial(&self) -> Option<[u8; SERIAL_BYTES]> {
        let (sender, receiver) = oneshot::channel();
        self.enqueue(Job::Serial(sender));
        receiver.await.ok().flatten()
    }

    fn enqueue(&self, job: Job) {
        let mut inner = self.inner.borrow_mut();
        if inner.broken {
            drop(inner);
            return job.complete(Err(IoError::Gone));
        }
        inner.waiting.push_back(job);
        inner.send_waiting();
    }

    /// Reads the size again, and whether the device still works.
    fn look_at_configuration(&self) {
        let mut inner = self.inner.borrow_mut();
        if !inner.broken && inner.transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET) {
            return inner.give_up(&"it needs a reset");
        }
        let before = self.limits.get();
        match read_capacity(&inner.transport) {
            Ok(size_sectors) if size_sectors != before.size_sectors => {
                log::info!("a disk of {} sectors has {size_sectors} now", before.size_sectors);
                self.limits.set(Limits { size_sectors, ..before });
            }
            Ok(_) => {}
            Err(error) => log::warn!("the size of a disk of {} sectors: {error}", before.size_sectors),
        }
    }
}

impl<T: Transport> BlockDevice for Blk<T> {
    fn limits(&self) -> Limits {
        self.limits.get()
    }

    fn submit(&self, io: Io) {
        let Request { op, sector, ref bufs, .. } = *io.request();
        if op == Op::Flush && !self.inner.borrow().has_cache {
            return io.complete(Ok(()));
        }
        if bufs.len() > self.limits.get().segments_max {
            return io.complete(Err(IoError::Malformed { sector }));
        }
        self.enqueue(Job::Io(io));
    }
}

impl<T: Transport> Polled for Blk<T> {
    fn poll(&self) -> bool {
        let mut finished = {
            let mut inner = self.inner.borrow_mut();
            inner.take_finished();
            mem::take(&mut inner.finished)
        };
        let moved = !finished.is_empty();
        for (job, result) in finished.drain(..) {
            job.complete(result);
        }
        let mut inner = self.inner.borrow_mut();
        inner.finished = finished;
        inner.send_waiting();
        inner.kick();
        drop(inner);
        self.polls.set(self.polls.get() + 1);
        if self.polls.get() >= POLLS_BETWEEN_LOOKS {
            self.polls.set(0);
            self.look_at_configuration();
        }
        moved
    }

    fn listen(&self) {
        let interrupt = {
            let mut inner = self.inner.borrow_mut();
            inner.queue.listen();
            inner.transport.ack_interrupt()
        };
        if interrupt.contains(InterruptStatus::DEVICE_CONFIGURATION_INTERRUPT) {
            self.look_at_configuration();
        }
    }

    fn mute(&self) {
        self.inner.borrow_mut().queue.mute();
    }
}

impl<T: Transport> Inner<T> {
    /// Hands jobs to the device in order, until one does not fit.
    fn send_waiting(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            match self.send(&job) {
                Ok(head) => self.jobs[usize::from(head)] = Some(job),
                Err(Full) => return self.waiting.push_front(job),
            }
        }
    }

    /// Puts a job into the queue; the head that it got names its place.
    fn send(&mut self, job: &Job) -> Result<u16, Full> {
        let head = self.queue.next_head().ok_or(Full)?;
        let place_at = usize::from(head) * PLACE_BYTES;
        let place = self.places.address() + place_at as u64;
        let ours = |offset: usize, len_bytes: u32, device_writes| Segment {
            address: place + offset as u64,
            len_bytes,
            device_writes,
        };
        let data = mem::offset_of!(Place, data);
        let mut segments: SmallVec<[Segment; BUFS_MAX + EXTRA_SEGMENTS]> = SmallVec::new();
        segments.push(ours(0, HEADER_BYTES as u32, false));
        let (kind, sector, range) = match job {
            Job::Serial(_) => {
                segments.push(ours(data, SERIAL_BYTES as u32, true));
                (TYPE_GET_ID, 0, None)
            }
            Job::FlushAfter(_) => (TYPE_FLUSH, 0, None),
            Job::Io(io) => {
                let request = io.request();
                let device_writes = request.op == Op::Read;
                let buf =
                    |buf: &Buf| Segment { address: buf.addr() as u64, len_bytes: buf.len() as u32, device_writes };
                segments.extend(request.bufs.iter().map(buf));
                let range = (request.sector, request.sectors as u32);
                match request.op {
                    Op::Read => (TYPE_IN, request.sector, None),
                    Op::Write { .. } => (TYPE_OUT, request.sector, None),
                    Op::Flush => (TYPE_FLUSH, 0, None),
                    Op::Discard => (TYPE_DISCARD, 0, Some(range)),
                    Op::WriteZeroes => (TYPE_WRITE_ZEROES, 0, Some(range)),
                }
            }
        };
        if range.is_some() {
            segments.push(ours(data, RANGE_BYTES, false));
        }
        segments.push(ours(mem::offset_of!(Place, status), 1, true));
        let mut contents = Place { kind, reserved: 0, sector, data: [0; 32], status: STATUS_NONE };
        if let Some((first, sectors)) = range {
            // Sector, sectors, flags: 0 keeps zeroed blocks allocated.
            contents.data[..8].copy_from_slice(&first.to_le_bytes());
            contents.data[8..12].copy_from_slice(&sectors.to_le_bytes());
        }
        // SAFETY: the place belongs to `head`, which is not in flight.
        unsafe { self.places.at::<Place>(place_at).write_volatile(contents) };
        // SAFETY: places live as long as the queue, and buffers as long as their Io, which `jobs` holds until the
        // device is done with it or was reset.
        unsafe { self.queue.add(&segments) }
    }

    fn kick(&mut self) {
        if !self.broken {
            self.queue.kick(&mut self.transport);
        }
    }

    /// Moves what the device is done with to `finished`.
    fn take_finished(&mut self) {
        while !self.broken {
            let used = match self.queue.take() {
                Ok(Some(used)) => used,
                Ok(None) => return,
                Err(error) => return self.give_up(&error),
            };
            let place: NonNull<Place> = self.places.at(usize::from(used.head) * PLACE_BYTES);
            // SAFETY: the device is done with the place.
            let place = unsafe { place.read_volatile() };
            match self.jobs.get_mut(usize::from(used.head)).and_then(Option::take) {
                Some(Job::Serial(sender)) => sender.send(place.serial()),
                Some(Job::Io(io)) => {
                    let result = result(io.request(), place.status);
                    if result.is_ok() && io.request().op == (Op::Write { fua: true }) && self.has_cache {
                        self.waiting.push_front(Job::FlushAfter(io));
                    } else {
                        self.finished.push((Job::Io(io), result));
                    }
                }
                Some(Job::FlushAfter(io)) => {
                    let result = result(io.request(), place.status);
                    self.finished.push((Job::FlushAfter(io), result));
                }
                None => {}
            }
        }
    }

    /// The device cannot be believed any more: reset it and fail everything.
    fn give_up(&mut self, why: &dyn Display) {
        log::error!("a disk is given up: {why}");
        self.broken = true;
        let let_go = reset(&mut self.transport);
        let in_flight = self.jobs.iter_mut().filter_map(Option::take);
        for mut job in in_flight.chain(self.waiting.drain(..)) {
            if let (false, Job::Io(io)) = (let_go, &mut job) {
                // The device may still write to the buffers: they stay its own for ever.
                mem::forget(mem::take(&mut io.request_mut().bufs));
            }
            self.finished.push((job, Err(IoError::Gone)));
        }
    }
}

impl Job {
    fn complete(self, result: Result<(), IoError>) {
        match self {
            Job::Io(io) | Job::FlushAfter(io) => io.complete(result),
            Job::Serial(sender) => sender.send(None),
        }
    }
}

impl Place {
    fn serial(&self) -> Option<[u8; SERIAL_BYTES]> {
        let serial = self.data.first_chunk().copied();
        serial.filter(|_| self.status == STATUS_OK)
    }
}

fn result(request: &Request, status: u8) -> Result<(), IoError> {
    match status {
        STATUS_OK => Ok(()),
        STATUS_UNSUPPORTED => Err(IoError::Unsupported(request.op)),
        _ => Err(IoError::Device { op: request.op, sector: request.sector }),
    }
}

fn read_capacity(transport: &impl Transport) -> Result<u64, VirtioError> {
    let unreadable = |_| VirtioError::Configuration { offset: field::CAPACITY };
    // Two reads, since the transports align to 32 bits: valid if the generation did not change in between.
    let [low, high] =
        transport.read_consistent(|| transport.read_config_space::<[u32; 2]>(field::CAPACITY)).map_err(unreadable)?;
    Ok(u64::from(low) | u64::from(high) << 32)
}

fn read_limits(transport: &impl Transport, features: u64) -> Result<Limits, VirtioError> {
    let read = |offset| transport.read_config_space::<u32>(offset).map_err(|_| VirtioError::Configuration { offset });
    let optional = |feature, offset, otherwise| if features & feature != 0 { read(offset) } else { Ok(otherwise) };
    let logical_block_bytes = optional(BLOCK_SIZE, field::BLOCK_SIZE, SECTOR_BYTES as u32)?;
    if !logical_block_bytes.is_power_of_two() || logical_block_bytes < SECTOR_BYTES as u32 {
        return Err(VirtioError::Configuration { offset: field::BLOCK_SIZE });
    }
    let block_sectors = u64::from(logical_block_bytes) / SECTOR_BYTES as u64;
    // A request no longer than the longest segment needs no cutting.
    let segment_sectors = u64::from(optional(SIZE_MAX, field::SIZE_MAX, u32::MAX)?) / SECTOR_BYTES as u64;
    let transfer_sectors_max = segment_sectors.min(TRANSFER_SECTORS_MAX) / block_sectors * block_sectors;
    let segments_max = (optional(SEGMENTS_MAX, field::SEGMENTS_MAX, 1)? as usize).min(BUFS_MAX);
    if transfer_sectors_max == 0 || segments_max == 0 {
        return Err(VirtioError::Configuration { offset: field::SIZE_MAX });
    }
    Ok(Limits {
        size_sectors: read_capacity(transport)?,
        logical_block_bytes,
        transfer_sectors_max,
        segments_max,
        discard_sectors_max: optional(DISCARD, field::DISCARD_SECTORS_MAX, 0)?.into(),
        discard_granularity_sectors: optional(DISCARD, field::DISCARD_ALIGNMENT, 1)?.max(1).into(),
        write_zeroes_sectors_max: optional(WRITE_ZEROES, field::WRITE_ZEROES_SECTORS_MAX, 0)?.into(),
        read_only: features & READ_ONLY != 0,
    })
}
