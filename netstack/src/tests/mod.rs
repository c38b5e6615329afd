//! A world of virtual time: stacks joined by a cable that delays, loses and reorders.

mod client;
mod dhcp;
mod load;
mod tcp;

use crate::device::{ETHERNET_HEADER_BYTES, FrameDevice, Link, TCP_CHECKSUM_AT_BYTES, TcpOffload};
use crate::{Address, ListenOptions, Stack, TcpListener};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::num::NonZeroUsize;
use core::task::Waker;
use platform::Runtime;
use platform::buf::BufPool;
use platform::random::{Random, Seeded};
use platform::task::{Executor, Machine};
use platform::time::{Clock, Duration, Instant, Timers};

pub const SERVER: [u8; 4] = [10, 0, 0, 1];

/// How bad the cable is.
#[derive(Clone, Copy)]
pub struct Quality {
    pub delay: Duration,
    /// Up to so much is added to the delay of each frame: frames overtake each other.
    pub jitter: Duration,
    /// Of a thousand frames so many are lost.
    pub lost_permille: u32,
}

pub const GOOD: Quality = Quality { delay: Duration::from_micros(50), jitter: Duration::ZERO, lost_permille: 0 };
pub const BAD: Quality =
    Quality { delay: Duration::from_micros(200), jitter: Duration::from_micros(300), lost_permille: 20 };

/// A card's ring has room for so many frames that have not arrived yet.
const RING: usize = 16;

/// A frame and the end that it goes to.
type Sent = (usize, Vec<u8>);

pub struct World {
    now: Cell<u64>,
    /// Frames under way, by the time of their arrival and the order in which they were sent.
    wire: RefCell<BTreeMap<(u64, u64), Sent>>,
    next: Cell<u64>,
    ends: [Rc<Port>; 2],
    pub quality: Cell<Quality>,
    pub frames_sent: Cell<u64>,
    random: Seeded,
}

#[derive(Default)]
struct Port {
    inbox: RefCell<VecDeque<Vec<u8>>>,
    in_flight: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl Port {
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

impl World {
    pub fn new(seed: u64, quality: Quality) -> Rc<World> {
        std::println!("seed {seed}");
        Rc::new(World {
            now: Cell::new(1_000_000_000),
            wire: RefCell::default(),
            next: Cell::new(0),
            ends: [Rc::default(), Rc::default()],
            quality: Cell::new(quality),
            frames_sent: Cell::new(0),
            random: Seeded::from_u64(seed),
        })
    }

    /// Runs `main` on an executor of its own, in this world's time. Ends after ten virtual minutes at most.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(self: &Rc<World>, main: impl FnOnce(Runtime) -> F) -> T {
        let executor = Executor::new();
        let timers = Timers::new(self.clone());
        let runtime = Runtime {
            spawner: executor.spawner(),
            timers: timers.clone(),
            random: Rc::new(Seeded::from_u64(self.below(u32::MAX).into())),
            bufs: BufPool::new(0),
        };
        executor.run(&timers, self.as_ref(), main(runtime))
    }

    pub fn below(&self, n: u32) -> u32 {
        let mut bytes = [0; 4];
        self.random.fill(&mut bytes);
        u32::from_le_bytes(bytes) % n.max(1)
    }

    fn send(&self, to: usize, frame: Vec<u8>) {
        let quality = self.quality.get();
        if self.below(1000) < quality.lost_permille {
            return;
        }
        let jitter = u64::from(self.below(quality.jitter.as_nanos() as u32));
        let at = self.now.get() + quality.delay.as_nanos() as u64 + jitter;
        self.next.set(self.next.get() + 1);
        let sender = &self.ends[1 - to];
        sender.in_flight.set(sender.in_flight.get() + 1);
        self.wire.borrow_mut().insert((at, self.next.get()), (to, frame));
    }
}

impl Clock for World {
    fn now(&self) -> Instant {
        Instant { nanos: self.now.get() }
    }
}

impl Machine for World {
    fn poll(&self) -> bool {
        let mut wire = self.wire.borrow_mut();
        let mut moved = false;
        while let Some(arrived) = wire.first_entry().filter(|e| e.key().0 <= self.now.get()) {
            let (to, frame) = arrived.remove();
            self.ends[to].inbox.borrow_mut().push_back(frame);
            self.ends[to].wake();
            let sender = &self.ends[1 - to];
            sender.in_flight.set(sender.in_flight.get() - 1);
            sender.wake();
            moved = true;
        }
        moved
    }

    fn park(&self, deadline: Option<Instant>) {
        let arrival = self.wire.borrow().keys().next().map(|key| key.0);
        let next = [arrival, deadline.map(|d| d.nanos)].into_iter().flatten().min().expect("everybody waits for ever");
        self.now.set(next.max(self.now.get()));
        assert!(self.now.get() < 600_000_000_000, "ten minutes have passed");
    }
}

/// One end of the cable as a card. `offloads`: it finishes checksums and cuts segments, as virtio-net does.
pub struct Card {
    world: Rc<World>,
    end: usize,
    offloads: bool,
}

impl Card {
    pub fn server(world: &Rc<World>, offloads: bool) -> Rc<Card> {
        Rc::new(Card { world: world.clone(), end: 0, offloads })
    }

    pub fn client(world: &Rc<World>) -> Rc<Card> {
        Rc::new(Card { world: world.clone(), end: 1, offloads: false })
    }

    fn port(&self) -> &Port {
        &self.world.ends[self.end]
    }
}

impl FrameDevice for Card {
    fn link(&self) -> Link {
        Link {
            mac: [2, 0, 0, 0, 0, self.end as u8 + 1],
            mtu_bytes: 1500,
            finishes_tcp_checksums: self.offloads,
            verifies_tcp_checksums: false,
            segments_tcp4_bytes: NonZeroUsize::new(1 << 20).filter(|_| self.offloads),
        }
    }

    fn can_receive(&self) -> bool {
        !self.port().inbox.borrow().is_empty()
    }

    fn receive(&self, take: &mut dyn FnMut(&[u8])) {
        let frame = self.port().inbox.borrow_mut().pop_front();
        if let Some(frame) = frame {
            take(&frame);
        }
    }

    fn can_transmit(&self) -> bool {
        self.port().in_flight.get() < RING
    }

    fn transmit(&self, len_bytes: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<TcpOffload>) {
        let mut frame = vec![0xa5; len_bytes];
        let frames = match fill(&mut frame) {
            Some(offload) => cut(&frame, offload),
            None => vec![frame],
        };
        self.world.frames_sent.set(self.world.frames_sent.get() + 1);
        for frame in frames {
            assert!(frame.len() <= 1500 + ETHERNET_HEADER_BYTES, "{} bytes on the wire", frame.len());
            self.world.send(1 - self.end, frame);
        }
    }

    fn kick(&self) {}

    fn register(&self, waker: &Waker) {
        *self.port().waker.borrow_mut() = Some(waker.clone());
    }
}

/// What a card does with a [`TcpOffload`]: segments, each with its own lengths, sequence number and checksums.
fn cut(frame: &[u8], offload: TcpOffload) -> Vec<Vec<u8>> {
    let (tcp, header) = (usize::from(offload.tcp_at_bytes), usize::from(offload.header_bytes));
    let most = offload.segment_bytes.map_or(usize::MAX, |b| b.get().into());
    let payload = &frame[header..];
    let whole_tcp_bytes = (frame.len() - tcp) as u16;
    let mut segments = Vec::new();
    let mut at = 0;
    while at < payload.len() || segments.is_empty() {
        let piece = &payload[at..payload.len().min(at.saturating_add(most))];
        let mut segment = frame[..header].to_vec();
        segment.extend_from_slice(piece);
        set(&mut segment, 16, (header - ETHERNET_HEADER_BYTES + piece.len()) as u16);
        set(&mut segment, 24, 0);
        let ip_sum = !sum(&segment[ETHERNET_HEADER_BYTES..tcp]);
        set(&mut segment, 24, ip_sum);
        let sequence = u32::from_be_bytes(segment[tcp + 4..tcp + 8].try_into().unwrap()).wrapping_add(at as u32);
        segment[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
        if at + piece.len() < payload.len() {
            segment[tcp + 13] &= !0b1001; // FIN and PSH belong to the last segment.
        }
        // The pseudo header's sum was made for the whole: take its length out and put the segment's in.
        let field = tcp + usize::from(TCP_CHECKSUM_AT_BYTES);
        let pseudo = u16::from_be_bytes([frame[field], frame[field + 1]]);
        let tcp_bytes = (header - tcp + piece.len()) as u16;
        let partial = fold(u32::from(pseudo) + u32::from(!whole_tcp_bytes) + u32::from(tcp_bytes));
        set(&mut segment, field, partial);
        let tcp_sum = !sum(&segment[tcp..]);
        set(&mut segment, field, tcp_sum);
        segments.push(segment);
        at += piece.len();
    }
    segments
}

fn set(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    fold(bytes.chunks(2).map(word).sum())
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A server with a fixed address, listening on port 3260.
pub fn serve(world: &Rc<World>, runtime: &Runtime, offloads: bool, options: ListenOptions) -> (Stack, TcpListener) {
    let address = Address::Static { address: SERVER.into(), prefix_bits: 24, gateway: None };
    let stack = Stack::start(runtime, Card::server(world, offloads), address);
    let listener = stack.listen(3260, options).unwrap();
    (stack, listener)
}

/// Bytes that tell their place.
pub fn pattern(at: usize, len: usize) -> Vec<u8> {
    (at..at + len).map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8).collect()
}
