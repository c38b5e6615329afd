//! The drivers against a device that does what a test says.

use super::fake::{Chain, FakeDevice, FakeTransport};
use super::queue::{Queue, QueueFeatures, Segment, Used};
use super::*;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::Future;
use core::num::NonZeroU16;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use netstack::device::{FrameDevice, TcpOffload};
use platform::block::{BlockDevice, Bufs, Completion, Disk, Done, IoError, Op};
use platform::buf::BufPool;

const BLK_FEATURES: u64 = INDIRECT_DESCRIPTORS | EVENT_INDEX | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14;

fn blk_configuration(sectors: u64) -> Vec<u8> {
    let mut bytes = vec![0; 60];
    bytes[..8].copy_from_slice(&sectors.to_le_bytes());
    for (at, value) in [(12, 254u32), (20, 512), (36, 1000), (44, 8), (48, 2000)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

struct Bench {
    device: FakeDevice,
    blk: Rc<Blk<FakeTransport>>,
    disk: Disk,
    pool: BufPool,
}

impl Bench {
    fn new(features: u64, queue_size: u16) -> Bench {
        let device = FakeDevice::new(DeviceType::Block, features, queue_size, &blk_configuration(10_000));
        let blk = Rc::new(Blk::new(device.transport()).unwrap());
        Bench { device, disk: Disk::from_rc(blk.clone()), blk, pool: BufPool::new(16 << 20) }
    }

    fn read(&self, sector: u64) -> Completion {
        self.disk.start(Op::Read, sector, 1, Bufs::from_iter([self.pool.zeroed(512).unwrap()]))
    }

    fn next(&self) -> Chain {
        self.device.next(0).expect("the driver asked for something")
    }

    /// Answers with a status behind `data`.
    fn answer(&self, chain: &Chain, data: &[u8], status: u8) {
        let mut bytes = vec![0; chain.writable_bytes() - 1];
        bytes[..data.len()].copy_from_slice(data);
        bytes.push(status);
        chain.write(&bytes);
        self.device.done(0, chain.head.into(), bytes.len() as u32);
    }
}

fn now<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn result(completion: &mut Completion) -> Option<Result<(), IoError>> {
    now(completion).map(|done: Done| done.result)
}

fn header(chain: &Chain) -> (u32, u64) {
    let shown = chain.read();
    (u32::from_le_bytes(shown[..4].try_into().unwrap()), u64::from_le_bytes(shown[8..16].try_into().unwrap()))
}

#[test]
fn a_disk_tells_its_limits_and_its_serial() {
    let bench = Bench::new(BLK_FEATURES | 1 << 5, 64);
    assert!(bench.device.is_running());
    assert_eq!(bench.device.accepted(), BLK_FEATURES | 1 << 5 | VERSION_1);
    let limits = bench.blk.limits();
    assert_eq!((limits.size_sectors, limits.logical_block_bytes, limits.read_only), (10_000, 512, true));
    assert_eq!((limits.discard_sectors_max, limits.write_zeroes_sectors_max), (1000, 2000));
    assert_eq!(limits.discard_granularity_sectors, 8);
    assert_eq!(bench.blk.depth(), 64);
    let mut serial = pin!(bench.blk.serial());
    let mut cx = Context::from_waker(Waker::noop());
    assert!(serial.as_mut().poll(&mut cx).is_pending());
    let chain = bench.next();
    assert_eq!(header(&chain).0, 8);
    bench.answer(&chain, b"meta", 0);
    bench.blk.poll();
    assert_eq!(serial.as_mut().poll(&mut cx), Poll::Ready(Some(*b"meta\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")));
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    for (at, value) in [(20, 0u32), (20, 513), (20, 256), (12, 0)] {
        let mut configuration = blk_configuration(8);
        configuration[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let device = FakeDevice::new(DeviceType::Block, BLK_FEATURES, 64, &configuration);
        let refused = Blk::new(device.transport()).err();
        assert!(matches!(refused, Some(VirtioError::Configuration { .. })), "{value} at {at}: {refused:?}");
    }
    let device = FakeDevice::new(DeviceType::Block, BLK_FEATURES, 64, &[0; 4]);
    assert!(Blk::new(device.transport()).is_err());
    let device = FakeDevice::new(DeviceType::Block, BLK_FEATURES, 0, &blk_configuration(8));
    assert_eq!(Blk::new(device.transport()).err(), Some(VirtioError::Queue { queue: 0, size: 0 }));
}

#[test]
fn reads_and_writes_carry_their_buffers() {
    for features in [BLK_FEATURES, BLK_FEATURES & !INDIRECT_DESCRIPTORS] {
        let bench = Bench::new(features, 128);
        let mut bufs = Bufs::new();
        for fill in [1, 2, 3] {
            let mut buf = bench.pool.alloc(1024).unwrap();
            buf.fill(fill);
            bufs.push(buf);
        }
        let mut write = bench.disk.start(Op::Write { fua: false }, 77, 6, bufs);
        let mut read = bench.read(99);
        let (first, second) = (bench.next(), bench.next());
        assert_eq!(first.indirect, features & INDIRECT_DESCRIPTORS != 0);
        assert_eq!((header(&first), header(&second)), ((1, 77), (0, 99)));
        assert_eq!(first.read()[16..], [[1; 1024], [2; 1024], [3; 1024]].concat());
        bench.answer(&second, &[9; 512], 0);
        assert!(bench.blk.poll());
        let done = now(&mut read).unwrap();
        assert_eq!((done.result, &done.bufs[0][..]), (Ok(()), &[9; 512][..]));
        assert_eq!(result(&mut write), None, "completions may come in any order");
        bench.answer(&first, &[], 0);
        bench.blk.poll();
        assert_eq!(result(&mut write), Some(Ok(())));
    }
}

#[test]
fn a_status_becomes_an_error() {
    let bench = Bench::new(BLK_FEATURES, 64);
    let device = IoError::Device { op: Op::Read, sector: 5 };
    for (status, error) in [(1, device), (2, IoError::Unsupported(Op::Read)), (0xff, device), (77, device)] {
        let mut read = bench.read(5);
        bench.answer(&bench.next(), &[], status);
        bench.blk.poll();
        assert_eq!(result(&mut read), Some(Err(error)));
    }
}

#[test]
fn discards_and_zeroes_name_their_range() {
    let bench = Bench::new(BLK_FEATURES, 64);
    for (op, kind) in [(Op::Discard, 11), (Op::WriteZeroes, 13)] {
        let _pending = bench.disk.start(op, 40, 16, Bufs::new());
        let chain = bench.next();
        assert_eq!(header(&chain).0, kind);
        let range = &chain.read()[16..];
        assert_eq!(range, [&40u64.to_le_bytes()[..], &16u32.to_le_bytes(), &[0; 4]].concat());
    }
}

#[test]
fn a_durable_write_is_followed_by_a_flush() {
    let bench = Bench::new(BLK_FEATURES, 64);
    let buf = || Bufs::from_iter([bench.pool.zeroed(512).unwrap()]);
    let mut write = bench.disk.start(Op::Write { fua: true }, 3, 1, buf());
    bench.answer(&bench.next(), &[], 0);
    bench.blk.poll();
    assert_eq!(result(&mut write), None);
    let flush = bench.next();
    assert_eq!(header(&flush).0, 4);
    bench.answer(&flush, &[], 1);
    bench.blk.poll();
    assert!(result(&mut write).unwrap().is_err(), "a write whose flush failed is not durable");
    // A disk without a cache needs no flush.
    let bench = Bench::new(BLK_FEATURES & !(1 << 9), 64);
    let mut write = bench.disk.start(Op::Write { fua: true }, 3, 1, buf());
    bench.answer(&bench.next(), &[], 0);
    bench.blk.poll();
    assert_eq!(result(&mut write), Some(Ok(())));
    assert_eq!(now(bench.disk.flush()), Some(Ok(())));
    assert!(bench.device.next(0).is_none());
}

#[test]
fn what_does_not_fit_waits_in_order_and_one_kick_serves_many() {
    let bench = Bench::new(BLK_FEATURES, 8);
    let mut reads: Vec<_> = (0..20).map(|sector| bench.read(sector)).collect();
    assert_eq!(bench.device.notified(), 0, "the kick comes with the poll");
    let mut sectors = Vec::new();
    let mut polls = 0;
    while reads.iter_mut().any(|read| result(read).is_none()) && polls < 20 {
        bench.blk.poll();
        polls += 1;
        while let Some(chain) = bench.device.next(0) {
            sectors.push(header(&chain).1);
            bench.answer(&chain, &[], 0);
        }
        bench.device.want_notification(0, sectors.len() as u16);
        reads.retain_mut(|read| result(read).is_none());
    }
    assert_eq!(sectors, (0..20).collect::<Vec<_>>());
    assert_eq!(bench.device.notified(), 3, "one for each eight");
}

#[test]
fn growth_is_seen_before_sleeping() {
    let bench = Bench::new(BLK_FEATURES, 8);
    bench.device.configure(0, &20_000u64.to_le_bytes());
    assert_eq!(bench.disk.size_sectors(), 10_000);
    bench.blk.listen();
    assert_eq!(bench.disk.size_sectors(), 20_000);
}

#[test]
fn a_device_that_returns_nonsense_is_given_up() {
    type Nonsense = fn(&FakeDevice);
    let cases: [Nonsense; 4] = [
        |device| device.done(0, 5, 1),
        |device| device.done(0, 8, 1),
        |device| device.done(0, u32::MAX, 1),
        |device| device.skip_used(0, 3),
    ];
    for nonsense in cases {
        let bench = Bench::new(BLK_FEATURES, 8);
        let mut reads = [bench.read(0), bench.read(1)];
        let _ = (bench.next(), bench.next());
        nonsense(&bench.device);
        bench.blk.poll();
        assert!(reads.iter_mut().all(|read| result(read) == Some(Err(IoError::Gone))));
        assert!(!bench.device.is_running(), "it was reset");
        assert_eq!(bench.pool.used_bytes(), 0, "the buffers came back");
        assert_eq!(result(&mut bench.read(0)), Some(Err(IoError::Gone)));
    }
}

/// A durable write of which the first half was done, as the device is given up, has no second half.
#[test]
fn a_durable_write_fails_with_its_device() {
    let bench = Bench::new(BLK_FEATURES, 8);
    let buf = Bufs::from_iter([bench.pool.zeroed(512).unwrap()]);
    let mut write = bench.disk.start(Op::Write { fua: true }, 3, 1, buf);
    let mut read = bench.read(0);
    bench.answer(&bench.next(), &[], 0);
    bench.device.done(0, 7777, 0);
    bench.blk.poll();
    assert_eq!([result(&mut write), result(&mut read)], [Some(Err(IoError::Gone)); 2]);
}

#[test]
fn a_device_that_needs_a_reset_is_given_up() {
    let bench = Bench::new(BLK_FEATURES, 8);
    let mut read = bench.read(0);
    let _ = bench.next();
    bench.device.need_reset();
    bench.blk.listen();
    bench.blk.poll();
    assert_eq!(result(&mut read), Some(Err(IoError::Gone)));
    assert!(!bench.device.is_running(), "it was reset");
}

#[test]
fn using_a_request_twice_is_nonsense() {
    let bench = Bench::new(BLK_FEATURES, 8);
    let mut reads = [bench.read(0), bench.read(1)];
    let first = bench.next();
    bench.answer(&first, &[], 0);
    bench.device.done(0, first.head.into(), 1);
    bench.blk.poll();
    assert_eq!(result(&mut reads[0]), Some(Ok(())));
    assert_eq!(result(&mut reads[1]), Some(Err(IoError::Gone)));
}

#[test]
fn a_device_that_does_not_let_go_keeps_the_buffers() {
    let bench = Bench::new(BLK_FEATURES, 8);
    let mut read = bench.read(0);
    let chain = bench.next();
    bench.device.ignore_resets();
    bench.device.done(0, 7777, 0);
    bench.blk.poll();
    assert_eq!(result(&mut read), Some(Err(IoError::Gone)));
    assert_eq!(bench.pool.used_bytes(), 4096);
    chain.write(&[1; 513]); // it still may
}

/// More requests than 16 bits count, kicked in batches: indices wrap, and no notification is lost.
#[test]
fn indices_wrap() {
    let device = FakeDevice::new(DeviceType::Block, EVENT_INDEX, 16, &[]);
    let mut transport = device.transport();
    let features = QueueFeatures { indirect: false, event_index: true };
    let mut queue = Queue::new(&mut transport, 0, 16, 1, features).unwrap();
    let byte = 0u8;
    let segment = Segment { address: &raw const byte as u64, len_bytes: 1, device_writes: false };
    let (mut count, mut batches) = (0u32, 0);
    while count < 200_000 {
        let batch = 1 + count % 7;
        // SAFETY: the fake device reads nothing, and `byte` outlives the queue.
        let heads: Vec<u16> = (0..batch).map(|_| unsafe { queue.add(&[segment]) }.unwrap()).collect();
        queue.kick(&mut transport);
        batches += 1;
        assert_eq!(device.notified(), batches, "one notification for each batch");
        for head in heads {
            assert_eq!(device.next(0).unwrap().head, head);
            device.done(0, head.into(), 3);
            assert_eq!(queue.take(), Ok(Some(Used { head, len_bytes: 3 })));
        }
        count += batch;
        queue.listen();
        assert_eq!(device.wanted_interrupt(0), count as u16);
        device.want_notification(0, count as u16);
    }
}

const NET_FEATURES: u64 = EVENT_INDEX | 1 << 5;

fn net(features: u64) -> (FakeDevice, Net<FakeTransport>) {
    let device = FakeDevice::new(DeviceType::Network, features, 256, &[2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0xdc, 0x05]);
    let net = Net::new(device.transport()).unwrap();
    (device, net)
}

#[test]
fn frames_come_in_where_the_device_put_them() {
    let (device, net) = net(NET_FEATURES);
    assert_eq!((net.link().mac, net.link().mtu_bytes), ([2, 3, 4, 5, 6, 7], 1500));
    let chain = device.next(0).unwrap();
    assert!(chain.writable_bytes() >= 12 + 1514);
    assert!(!net.can_receive());
    chain.write(&[&[0; 12][..], b"frame"].concat());
    device.done(0, chain.head.into(), 12 + 5);
    assert!(net.can_receive());
    let mut seen = Vec::new();
    net.receive(&mut |frame| seen.push(frame.to_vec()));
    assert_eq!(seen, [b"frame".to_vec()]);
    assert!(!net.can_receive());
    let all = core::iter::from_fn(|| device.next(0)).count();
    assert_eq!(all, 256, "the buffer was lent again");
}

#[test]
fn lengths_that_cannot_be_lose_the_frame_only() {
    let (device, net) = net(NET_FEATURES);
    for len_bytes in [0, 11, 5000, u32::MAX] {
        let chain = device.next(0).unwrap();
        device.done(0, chain.head.into(), len_bytes);
        net.receive(&mut |_| panic!("a frame of {len_bytes} bytes"));
    }
    device.done(0, 300, 20);
    net.receive(&mut |_| panic!("a frame of nobody"));
    assert!(!net.can_receive() && !net.can_transmit() && !device.is_running());
}

#[test]
fn frames_go_out_until_there_is_no_room_and_then_wake_the_sender() {
    let (device, net) = net(NET_FEATURES);
    let mut sent = 0;
    while net.can_transmit() {
        net.transmit(3, &mut |frame| {
            frame.copy_from_slice(b"out");
            None
        });
        sent += 1;
    }
    assert_eq!(sent, 256);
    net.kick();
    let chain = device.next(1).unwrap();
    assert_eq!(chain.read(), [&[0; 12][..], b"out"].concat());
    assert!(!net.poll());
    net.register(Waker::noop());
    device.done(1, chain.head.into(), 0);
    assert!(net.poll(), "there is room again");
    assert!(net.can_transmit());
    net.transmit(5000, &mut |_| panic!("longer than the link allows"));
    assert!(net.can_transmit(), "and so nothing was sent");
}

#[test]
fn what_is_left_to_the_card_stands_in_the_header() {
    let (device, net) = net(NET_FEATURES | 1 << 0 | 1 << 11);
    let link = net.link();
    assert!(link.finishes_tcp_checksums && !link.verifies_tcp_checksums);
    assert_eq!(link.segments_tcp4_bytes.map(|most| most.get()), Some(65_549));
    let offload = TcpOffload { tcp_at_bytes: 34, header_bytes: 54, segment_bytes: NonZeroU16::new(1460) };
    for (len_bytes, segmentation, segment_bytes) in [(60_000, 1, 1460u16), (54 + 1460, 0, 0)] {
        net.transmit(len_bytes, &mut |_| Some(offload));
        let shown = device.next(1).unwrap().read();
        assert_eq!(shown.len(), 12 + len_bytes);
        let [low, high] = segment_bytes.to_le_bytes();
        assert_eq!(shown[..12], [1, segmentation, 54, 0, low, high, 34, 0, 16, 0, 0, 0]);
    }
}

#[test]
fn a_legacy_or_refusing_device_is_not_used() {
    let device = FakeDevice::new(DeviceType::Block, 0, 8, &blk_configuration(8));
    device.ignore_resets();
    assert_eq!(Blk::new(device.transport()).err(), Some(VirtioError::Features(VERSION_1)));
}
