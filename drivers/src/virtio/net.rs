//! The network device (virtio 1.2, section 5.1), as netstack's frame device.
//!
//! Every buffer belongs to its place in one of the two queues for ever, so nothing is allocated or copied here:
//! netstack reads a received frame where the device put it, and writes a frame to send where the device takes it.

use super::dma::Shared;
use super::queue::{Full, Queue, Segment};
use super::{Broken, EVENT_INDEX, Polled, VirtioError, negotiate, queue_features, reset};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::num::NonZeroUsize;
use core::task::Waker;
use netstack::device::{ETHERNET_HEADER_BYTES, FrameDevice, Link, TCP_CHECKSUM_AT_BYTES, TcpOffload};
use virtio_drivers::transport::Transport;

const CSUM: u64 = 1 << 0;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const HOST_TSO4: u64 = 1 << 11;
/// GUEST_CSUM is left out: with it the device may hand over frames that nobody has verified.
const WANTED: u64 = CSUM | MTU | MAC | HOST_TSO4 | EVENT_INDEX;

const MAC_AT: usize = 0;
const MTU_AT: usize = 10;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const RECEIVE_FRAMES: u16 = 256;
/// Frames of one segment, and such that the device cuts: the memory for each kind is about the same.
const TRANSMIT_FRAMES: u16 = 256;
const TRANSMIT_LONG_FRAMES: u16 = 32;

const MTU_BYTES: usize = 1500;
/// The longest IP packet.
const LONG_BYTES: usize = 65_535;

/// `virtio_net_hdr`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Header {
    flags: u8,
    segmentation: u8,
    header_bytes: u16,
    segment_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
    buffers: u16,
}
const HEADER_BYTES: usize = size_of::<Header>();
const NEEDS_CHECKSUM: u8 = 1;
const SEGMENTATION_NONE: u8 = 0;
const SEGMENTATION_TCP4: u8 = 1;

/// A virtio network device.
pub struct Net<T> {
    // Dropped first: that resets the device, which so lets go of the buffers below.
    shared: RefCell<Common<T>>,
    receive: RefCell<Half>,
    transmit: RefCell<Half>,
    link: Link,
}

struct Common<T> {
    transport: T,
    waker: Option<Waker>,
    /// The stack found no room to send and wants to be woken.
    starved: bool,
    broken: bool,
}

/// One direction: a queue and a buffer for each place in it.
struct Half {
    queue: Queue,
    buffers: Shared,
    buffer_bytes: usize,
    /// Buffers that the device does not have.
    free: Vec<u16>,
    /// Which buffer a head in flight has.
    buffer_of: Vec<u16>,
}

impl<T: Transport> Net<T> {
    /// Brings the device up.
    pub fn new(mut transport: T) -> Result<Net<T>, VirtioError> {
        let features = negotiate(&mut transport, WANTED)?;
        let link = read_link(&transport, features)?;
        let wire_bytes = HEADER_BYTES + ETHERNET_HEADER_BYTES + link.mtu_bytes;
        let (transmit_bytes, transmit_frames) = match link.segments_tcp4_bytes {
            Some(most) => (HEADER_BYTES + most.get(), TRANSMIT_LONG_FRAMES),
            None => (wire_bytes, TRANSMIT_FRAMES),
        };
        let mut half = |index, frames, bytes| Half::new(&mut transport, index, frames, bytes, features);
        let mut receive = half(RECEIVE, RECEIVE_FRAMES, wire_bytes)?;
        let transmit = half(TRANSMIT, transmit_frames, transmit_bytes)?;
        transport.finish_init();
        receive.give_all();
        receive.queue.kick(&mut transport);
        let shared = Common { transport, waker: None, starved: false, broken: false };
        Ok(Net { shared: RefCell::new(shared), receive: RefCell::new(receive), transmit: RefCell::new(transmit), link })
    }

    /// The device cannot be believed any more.
    fn give_up(&self, error: Broken) {
        log::error!("the network device is given up: {error}");
        let mut shared = self.shared.borrow_mut();
        shared.broken = true;
        // Whether or not it lets go, the buffers stay where they are.
        reset(&mut shared.transport);
    }

    fn is_broken(&self) -> bool {
        self.shared.borrow().broken
    }

    /// Takes sent frames' buffers back.
    fn reclaim(&self) {
        if self.is_broken() {
            return;
        }
        let mut transmit = self.transmit.borrow_mut();
        loop {
            match transmit.take() {
                Ok(Some((buffer, _))) => transmit.free.push(buffer),
                Ok(None) => return,
                Err(error) => {
                    drop(transmit);
                    return self.give_up(error);
                }
            }
        }
    }
}

impl<T: Transport> FrameDevice for Net<T> {
    fn link(&self) -> Link {
        self.link
    }

    fn can_receive(&self) -> bool {
        self.receive.borrow().queue.has_used() && !self.is_broken()
    }

    fn receive(&self, take: &mut dyn FnMut(&[u8])) {
        if self.is_broken() {
            return;
        }
        let mut receive = self.receive.borrow_mut();
        match receive.take() {
            Ok(Some((buffer, len_bytes))) => {
                if let Some(frame) = receive.buffer(buffer).get(HEADER_BYTES..len_bytes as usize) {
                    take(frame);
                }
                receive.free.push(buffer);
                receive.give_all();
            }
            Ok(None) => {}
            Err(error) => {
                drop(receive);
                self.give_up(error);
            }
        }
    }

    fn can_transmit(&self) -> bool {
        if self.transmit.borrow().free.is_empty() {
            self.reclaim();
        }
        let room = !self.transmit.borrow().free.is_empty() && !self.is_broken();
        self.shared.borrow_mut().starved = !room;
        room
    }

    fn transmit(&self, len_bytes: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<TcpOffload>) {
        let mut transmit = self.transmit.borrow_mut();
        let Some(buffer) = transmit.free.pop() else { return };
        let bytes = transmit.buffer_mut(buffer).get_mut(..HEADER_BYTES.saturating_add(len_bytes));
        let Some((header, frame)) = bytes.and_then(|bytes| bytes.split_at_mut_checked(HEADER_BYTES)) else {
            return transmit.free.push(buffer);
        };
        let offload = fill(frame).map_or(Header::default(), |offload| Header::new(len_bytes, offload));
        header.copy_from_slice(&offload.bytes());
        transmit.give(buffer, HEADER_BYTES + len_bytes);
    }

    fn kick(&self) {
        let mut shared = self.shared.borrow_mut();
        if !shared.broken {
            self.transmit.borrow_mut().queue.kick(&mut shared.transport);
            self.receive.borrow_mut().queue.kick(&mut shared.transport);
        }
    }

    fn register(&self, waker: &Waker) {
        self.shared.borrow_mut().waker = Some(waker.clone());
    }
}

impl<T: Transport> Polled for Net<T> {
    fn poll(&self) -> bool {
        let starved = self.shared.borrow().starved;
        let woken = self.can_receive() || (starved && self.can_transmit());
        // The waker is used up: the stack registers again when it has looked.
        let waker = if woken { self.shared.borrow_mut().waker.take() } else { None };
        waker.map(Waker::wake).is_some()
    }

    fn listen(&self) {
        self.receive.borrow_mut().queue.listen();
        let mut shared = self.shared.borrow_mut();
        if shared.starved {
            self.transmit.borrow_mut().queue.listen();
        }
        shared.transport.ack_interrupt();
    }

    fn mute(&self) {
        self.receive.borrow_mut().queue.mute();
        self.transmit.borrow_mut().queue.mute();
    }
}

impl Half {
    fn new(
        transport: &mut impl Transport,
        index: u16,
        frames: u16,
        buffer_bytes: usize,
        features: u64,
    ) -> Result<Half, VirtioError> {
        let queue = Queue::new(transport, index, frames, 1, queue_features(features))?;
        let size = queue.size();
        // Frames start at multiples of 64, so that headers share no cache line.
        let buffer_bytes = buffer_bytes.next_multiple_of(64);
        let buffers = Shared::new(usize::from(size) * buffer_bytes);
        let buffer_of = (0..size).collect();
        Ok(Half { queue, buffers, buffer_bytes, free: (0..size).collect(), buffer_of })
    }

    /// Lends every free buffer to the device, to be written to.
    fn give_all(&mut self) {
        while let Some(buffer) = self.free.pop() {
            self.add(buffer, self.buffer_bytes, true);
        }
    }

    /// Lends a buffer to the device, to be read.
    fn give(&mut self, buffer: u16, len_bytes: usize) {
        self.add(buffer, len_bytes, false);
    }

    fn add(&mut self, buffer: u16, len_bytes: usize, device_writes: bool) {
        let address = self.buffers.address() + (usize::from(buffer) * self.buffer_bytes) as u64;
        // SAFETY: the buffer belongs to this queue for ever and is in no list until `take` returns it.
        match unsafe { self.queue.add(&[Segment { address, len_bytes: len_bytes as u32, device_writes }]) } {
            Ok(head) => self.buffer_of[usize::from(head)] = buffer,
            // There are as many buffers as descriptors, so this cannot be; a frame is lost, then.
            Err(Full) => log::error!("a network queue has fewer places than buffers"),
        }
    }

    /// The next buffer that the device is done with, and how much it says it wrote.
    fn take(&mut self) -> Result<Option<(u16, u32)>, Broken> {
        let used = self.queue.take()?;
        Ok(used.map(|used| (self.buffer_of[usize::from(used.head)], used.len_bytes)))
    }

    /// A buffer that the device does not have.
    fn buffer(&self, buffer: u16) -> &[u8] {
        let bytes = self.buffers.slice(usize::from(buffer) * self.buffer_bytes, self.buffer_bytes);
        // SAFETY: initialised when allocated; the device is done with it.
        unsafe { bytes.as_ref() }
    }

    fn buffer_mut(&mut self, buffer: u16) -> &mut [u8] {
        let mut bytes = self.buffers.slice(usize::from(buffer) * self.buffer_bytes, self.buffer_bytes);
        // SAFETY: as for `buffer`; `&mut self` makes it exclusive.
        unsafe { bytes.as_mut() }
    }
}

impl Header {
    fn new(frame_bytes: usize, offload: TcpOffload) -> Header {
        let TcpOffload { tcp_at_bytes, header_bytes, segment_bytes } = offload;
        let one_segment = |most: u16| frame_bytes <= usize::from(header_bytes) + usize::from(most);
        let (segmentation, segment_bytes) =
            match segment_bytes.map(|most| most.get()).filter(|most| !one_segment(*most)) {
                Some(most) => (SEGMENTATION_TCP4, most),
                None => (SEGMENTATION_NONE, 0),
            };
        Header {
            flags: NEEDS_CHECKSUM,
            segmentation,
            header_bytes,
            segment_bytes,
            checksum_start: tcp_at_bytes,
            checksum_offset: TCP_CHECKSUM_AT_BYTES,
            buffers: 0,
        }
    }

    fn bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.segmentation;
        let fields = [self.header_bytes, self.segment_bytes, self.checksum_start, self.checksum_offset, self.buffers];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

fn read_link(transport: &impl Transport, features: u64) -> Result<Link, VirtioError> {
    let unreadable = |offset| move |_| VirtioError::Configuration { offset };
    if features & MAC == 0 {
        return Err(VirtioError::Configuration { offset: MAC_AT });
    }
    let mac = transport.read_config_space::<[u8; 6]>(MAC_AT).map_err(unreadable(MAC_AT))?;
    let mtu_bytes = match features & MTU {
        0 => MTU_BYTES,
        _ => usize::from(transport.read_config_space::<u16>(MTU_AT).map_err(unreadable(MTU_AT))?),
    };
    // IPv4 asks for 576 (RFC 791); our buffers are for Ethernet, jumbo frames included.
    if !(576..=9216).contains(&mtu_bytes) {
        return Err(VirtioError::Configuration { offset: MTU_AT });
    }
    let cuts = features & (CSUM | HOST_TSO4) == CSUM | HOST_TSO4;
    Ok(Link {
        mac,
        mtu_bytes,
        finishes_tcp_checksums: features & CSUM != 0,
        verifies_tcp_checksums: false,
        segments_tcp4_bytes: if cuts { NonZeroUsize::new(ETHERNET_HEADER_BYTES + LONG_BYTES) } else { None },
    })
}
