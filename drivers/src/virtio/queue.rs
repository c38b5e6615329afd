//! A split virtqueue (virtio 1.2, section 2.7), the driver's side.
//!
//! What the device writes is believed only after it was checked: a used index or id that cannot be ends the
//! queue with [`Broken`], and the owner resets the device. What we need to remember of our descriptors is kept
//! apart from the memory that the device can write.

use super::VirtioError;
use super::dma::Shared;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering, fence};
use virtio_drivers::transport::Transport;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// In the available ring: no interrupts, please.
const NO_INTERRUPT: u16 = 1;
/// In the used ring: no notifications, please.
const NO_NOTIFY: u16 = 1;

const DESCRIPTOR_BYTES: usize = size_of::<Descriptor>();
const RING_HEADER_BYTES: usize = 4;
const USED_ENTRY_BYTES: usize = size_of::<UsedEntry>();

#[derive(Clone, Copy)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len_bytes: u32,
    flags: u16,
    next: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct UsedEntry {
    id: u32,
    len_bytes: u32,
}

/// A piece of memory to show to the device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) len_bytes: u32,
    pub(crate) device_writes: bool,
}

/// What was negotiated that concerns queues.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueFeatures {
    pub(crate) indirect: bool,
    pub(crate) event_index: bool,
}

/// Every descriptor is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// The device used what it was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device returned descriptor {id} at used index {used_index}, which is not in flight")]
pub struct Broken {
    /// The id in the used ring.
    pub id: u32,
    /// The device's index.
    pub used_index: u16,
}

/// A request that the device is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    /// What [`Queue::add`] returned.
    pub(crate) head: u16,
    /// What the device says that it wrote; not checked.
    pub(crate) len_bytes: u32,
}

pub(crate) struct Queue {
    index: u16,
    size: u16,
    event_index: bool,
    /// Descriptors, available ring, used ring.
    rings: Shared,
    available_at: usize,
    used_at: usize,
    /// One table for each descriptor, if the device takes indirect ones.
    tables: Option<Shared>,
    segments_max: usize,
    free: Vec<u16>,
    /// For each head in flight, its chain; empty otherwise.
    chains: Vec<Vec<u16>>,
    in_flight: u16,
    available: u16,
    kicked: u16,
    seen: u16,
}

impl Queue {
    /// Sets up queue `index` of a device whose features are negotiated, for requests of at most `segments_max`
    /// segments, with at most `size_max` descriptors.
    pub(crate) fn new(
        transport: &mut impl Transport,
        index: u16,
        size_max: u16,
        segments_max: usize,
        features: QueueFeatures,
    ) -> Result<Queue, VirtioError> {
        let offered = transport.max_queue_size(index).min(u32::from(size_max)) as u16;
        // A split queue's size is a power of two.
        let size = if offered == 0 { 0 } else { 1 << offered.ilog2() };
        let indirect = features.indirect && segments_max > 1;
        if size == 0 || (!indirect && segments_max > usize::from(size)) {
            return Err(VirtioError::Queue { queue: index, size });
        }
        let available_at = usize::from(size) * DESCRIPTOR_BYTES;
        let used_at = (available_at + RING_HEADER_BYTES + 2 * usize::from(size) + 2).next_multiple_of(4);
        let rings = Shared::new(used_at + RING_HEADER_BYTES + USED_ENTRY_BYTES * usize::from(size) + 2);
        let tables = indirect.then(|| Shared::new(usize::from(size) * segments_max * DESCRIPTOR_BYTES));
        let at = |offset: usize| rings.address() + offset as u64;
        transport.queue_set(index, u32::from(size), at(0), at(available_at), at(used_at));
        let mut queue = Queue {
            index,
            size,
            event_index: features.event_index,
            rings,
            available_at,
            used_at,
            tables,
            segments_max,
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            in_flight: 0,
            available: 0,
            kicked: 0,
            seen: 0,
        };
        queue.mute();
        Ok(queue)
    }

    /// Descriptors in the queue; with indirect ones, requests.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// The head that the next request will get; `None` if there is no room at all.
    pub(crate) fn next_head(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Puts a request into the available ring. The device hears of it by [`Queue::kick`].
    ///
    /// # Safety
    /// The memory of the segments stays valid, and unused but by the device, until [`Queue::take`] returns the
    /// head or the device was reset.
    pub(crate) unsafe fn add(&mut self, segments: &[Segment]) -> Result<u16, Full> {
        assert!(!segments.is_empty() && segments.len() <= self.segments_max, "the descriptor table has no room");
        let ring_descriptors = if self.tables.is_some() { 1 } else { segments.len() };
        let first = self.free.len().checked_sub(ring_descriptors).ok_or(Full)?;
        let head = self.next_head().ok_or(Full)?;
        let chain = &mut self.chains[usize::from(head)];
        chain.extend(self.free.drain(first..).rev());
        match &self.tables {
            Some(tables) => {
                let table_at = usize::from(head) * self.segments_max * DESCRIPTOR_BYTES;
                for (n, segment) in segments.iter().enumerate() {
                    let next = (n + 1 < segments.len()).then_some(n as u16 + 1);
                    write_descriptor(tables, table_at + n * DESCRIPTOR_BYTES, segment, next);
                }
                let len_bytes = (segments.len() * DESCRIPTOR_BYTES) as u32;
                let table =
                    Descriptor { address: tables.address() + table_at as u64, len_bytes, flags: INDIRECT, next: 0 };
                // SAFETY: a descriptor that is not in flight: the device does not look at it.
                unsafe { self.rings.at(usize::from(head) * DESCRIPTOR_BYTES).write_volatile(table) };
            }
            None => {
                for (n, (segment, at)) in segments.iter().zip(chain.iter()).enumerate() {
                    let next = chain.get(n + 1).copied();
                    write_descriptor(&self.rings, usize::from(*at) * DESCRIPTOR_BYTES, segment, next);
                }
            }
        }
        self.publish(head);
        Ok(head)
    }

    fn publish(&mut self, head: u16) {
        let slot = self.available_at + RING_HEADER_BYTES + 2 * usize::from(self.available % self.size);
        // SAFETY: the slot is ours until the index says otherwise.
        unsafe { self.rings.at::<u16>(slot).write_volatile(head) };
        self.available = self.available.wrapping_add(1);
        // Release: the descriptors are written before the index is.
        self.cell(self.available_at + 2).store(self.available, Ordering::Release);
        self.in_flight += 1;
    }

    /// Tells the device of what was added since the last call, if it wants to be told.
    pub(crate) fn kick(&mut self, transport: &mut impl Transport) {
        if self.kicked == self.available {
            return;
        }
        // The index must be visible before the device's wishes are read.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self.cell(self.used_at + RING_HEADER_BYTES + USED_ENTRY_BYTES * usize::from(self.size));
            // Section 2.7.10: modulo 2^16, so that it holds across the wrap.
            let since_event = self.available.wrapping_sub(event.load(Ordering::Relaxed)).wrapping_sub(1);
            since_event < self.available.wrapping_sub(self.kicked)
        } else {
            self.cell(self.used_at).load(Ordering::Relaxed) & NO_NOTIFY == 0
        };
        self.kicked = self.available;
        if wanted {
            transport.notify(self.index);
        }
    }

    /// The device is done with something.
    pub(crate) fn has_used(&self) -> bool {
        self.used_index() != self.seen
    }

    /// Takes back the next request that the device is done with.
    pub(crate) fn take(&mut self) -> Result<Option<Used>, Broken> {
        let used_index = self.used_index();
        let waiting = used_index.wrapping_sub(self.seen);
        if waiting == 0 {
            return Ok(None);
        }
        let slot = self.used_at + RING_HEADER_BYTES + USED_ENTRY_BYTES * usize::from(self.seen % self.size);
        // SAFETY: the slot lies within the ring; the device may change it, so it is read once.
        let entry = unsafe { self.rings.at::<UsedEntry>(slot).read_volatile() };
        let broken = Broken { id: entry.id, used_index };
        let head = u16::try_from(entry.id).map_err(|_| broken)?;
        let chain = self.chains.get_mut(usize::from(head)).filter(|chain| !chain.is_empty()).ok_or(broken)?;
        if waiting > self.in_flight {
            return Err(broken);
        }
        self.free.extend(chain.drain(..).rev());
        self.in_flight -= 1;
        self.seen = self.seen.wrapping_add(1);
        Ok(Some(Used { head, len_bytes: entry.len_bytes }))
    }

    /// Asks for an interrupt at the next use. Look for completions once more afterwards.
    pub(crate) fn listen(&mut self) {
        if self.event_index {
            self.cell(self.available_at + RING_HEADER_BYTES + 2 * usize::from(self.size))
                .store(self.seen, Ordering::Relaxed);
        } else {
            self.cell(self.available_at).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks for no interrupts. With event indices nothing needs to be done: the one asked for is behind us.
    pub(crate) fn mute(&mut self) {
        if !self.event_index {
            self.cell(self.available_at).store(NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    fn used_index(&self) -> u16 {
        // Acquire: the entry, and what the device wrote to the buffers, is read after the index.
        self.cell(self.used_at + 2).load(Ordering::Acquire)
    }

    fn cell(&self, offset_bytes: usize) -> &AtomicU16 {
        // SAFETY: 16 aligned bits within memory that lives as long as `self`; all other accesses to the ring
        // headers are atomic, too, or the device's.
        unsafe { self.rings.at::<AtomicU16>(offset_bytes).as_ref() }
    }
}

fn write_descriptor(memory: &Shared, at: usize, segment: &Segment, next: Option<u16>) {
    let flags = if segment.device_writes { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
    let Segment { address, len_bytes, .. } = *segment;
    let descriptor = Descriptor { address, len_bytes, flags, next: next.unwrap_or(0) };
    let place: NonNull<Descriptor> = memory.at(at);
    // SAFETY: `at` checked the place; the descriptor is not in flight, so the device does not look at it.
    unsafe { place.write_volatile(descriptor) };
}
