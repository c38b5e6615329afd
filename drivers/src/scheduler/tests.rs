use super::*;
use alloc::vec;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use platform::block::{Bufs, Completion, Disk, Flow};
use platform::buf::BufPool;
use platform::mem::MemDisk;
use proptest::prelude::*;

/// A disk that does nothing until it is told to complete one of the requests that it holds.
struct Slow {
    disk: MemDisk,
    held: RefCell<Vec<Io>>,
    most: Cell<usize>,
}

impl BlockDevice for Slow {
    fn limits(&self) -> Limits {
        self.disk.limits()
    }

    fn submit(&self, io: Io) {
        let mut held = self.held.borrow_mut();
        held.push(io);
        self.most.set(self.most.get().max(held.len()));
    }
}

const SECTORS: u64 = 64;

struct Bench {
    slow: Rc<Slow>,
    disk: Disk,
    pool: BufPool,
}

impl Bench {
    fn new(depth: usize) -> Bench {
        let disk = MemDisk::new(SECTORS * 1024);
        let slow = Rc::new(Slow { disk, held: RefCell::default(), most: Cell::new(0) });
        let disk = Disk::new(Scheduler::new(slow.clone(), depth));
        Bench { slow, disk, pool: BufPool::new(64 << 20) }
    }

    fn flow(&self, class: Class, volume: u32) -> Disk {
        self.disk.with_flow(Flow { class, volume })
    }

    fn write(&self, disk: &Disk, sector: u64, sectors: u64, fill: u8) -> Completion {
        let mut buf = self.pool.alloc(sectors as usize * SECTOR_BYTES).unwrap();
        buf.fill(fill);
        disk.start(Op::Write { fua: false }, sector, sectors, Bufs::from_iter([buf]))
    }

    /// The disk does the `n`th request that it holds.
    fn complete(&self, n: usize) {
        let io = self.slow.held.borrow_mut().remove(n);
        self.slow.disk.submit(io);
    }

    fn held(&self) -> Vec<(Op, u64)> {
        self.slow.held.borrow().iter().map(|io| (io.request().op, io.request().sector)).collect()
    }

    fn held_volumes(&self) -> Vec<u32> {
        self.slow.held.borrow().iter().map(|io| io.request().flow.volume).collect()
    }
}

fn is_done(completion: &mut Completion) -> bool {
    matches!(Pin::new(completion).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(done) if done.result.is_ok())
}

#[test]
fn the_depth_holds_and_completions_make_room() {
    let bench = Bench::new(2);
    let mut all: Vec<_> = (0..4).map(|n| bench.write(&bench.disk, n, 1, 1)).collect();
    assert_eq!(bench.held().len(), 2);
    bench.complete(1);
    assert!(is_done(&mut all[1]) && !is_done(&mut all[0]));
    assert_eq!(bench.held().iter().map(|(_, sector)| *sector).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn a_flush_overtakes_what_is_queued() {
    let bench = Bench::new(1);
    let _writes: Vec<_> = (0..3).map(|n| bench.write(&bench.disk, n, 1, 1)).collect();
    let mut flush = bench.disk.start(Op::Flush, 0, 0, Bufs::new());
    assert_eq!(bench.held(), [(Op::Write { fua: false }, 0), (Op::Flush, 0)]);
    bench.complete(1);
    assert!(is_done(&mut flush));
    assert_eq!(bench.held().len(), 1, "a flush takes nobody's room, nor makes any");
}

#[test]
fn overlapping_writes_go_one_at_a_time_in_order() {
    let bench = Bench::new(8);
    let _first = bench.write(&bench.disk, 0, 4, 1);
    let _second = bench.write(&bench.disk, 2, 4, 2);
    let _third = bench.write(&bench.disk, 5, 1, 3);
    let _discard = bench.disk.start(Op::WriteZeroes, 0, SECTORS * 512, Bufs::new());
    let _read = bench.disk.start(Op::Read, 2, 1, Bufs::from_iter([bench.pool.alloc(512).unwrap()]));
    let _apart = bench.write(&bench.disk, SECTORS * 512, 1, 4);
    let write = Op::Write { fua: false };
    assert_eq!(bench.held(), [(write, 0), (Op::Read, 2), (write, SECTORS * 512)]);
    bench.complete(0);
    assert_eq!(bench.held()[2..], [(write, 2)]);
    bench.complete(2);
    assert_eq!(bench.held()[2..], [(write, 5)]);
    bench.complete(2);
    assert_eq!(bench.held()[2..], [(Op::WriteZeroes, 0)]);
}

#[test]
fn a_failed_write_lets_the_next_one_go() {
    let bench = Bench::new(8);
    let mut first = bench.write(&bench.disk, 0, 1, 1);
    let _second = bench.write(&bench.disk, 0, 1, 2);
    let io = bench.slow.held.borrow_mut().remove(0);
    io.complete(Err(platform::block::IoError::Gone));
    assert!(!is_done(&mut first));
    assert_eq!(bench.held().len(), 1);
}

#[test]
fn the_foreground_goes_first_but_the_background_gets_its_floor() {
    let bench = Bench::new(1);
    let (front, back) = (bench.flow(Class::Foreground, 1), bench.flow(Class::Background, 2));
    let mut writes = vec![bench.write(&front, 0, 8, 1)];
    writes.extend((0..8).map(|n| bench.write(&back, 1000 + n * 8, 8, 2)));
    writes.extend((1..100).map(|n| bench.write(&front, n * 8, 8, 1)));
    let mut order = Vec::new();
    for _ in 0..100 {
        order.push(bench.held_volumes()[0]);
        bench.complete(0);
    }
    assert_eq!(order[..2], [1, 1], "the foreground goes first, though it came later");
    let of_background = order.iter().filter(|volume| **volume == 2).count();
    assert!((5..=7).contains(&of_background), "a sixteenth of 100 requests, not {of_background}");
}

#[test]
fn the_background_never_fills_the_disk() {
    let bench = Bench::new(8);
    let back = bench.flow(Class::Background, 2);
    let _writes: Vec<_> = (0..8).map(|n| bench.write(&back, n, 1, 2)).collect();
    assert_eq!(bench.held().len(), 2);
    let _front: Vec<_> = (0..8).map(|n| bench.write(&bench.disk, 100 + n, 1, 2)).collect();
    assert_eq!(bench.held().len(), 8, "the rest is the foreground's");
    bench.complete(0);
    assert_eq!(bench.held().len(), 8);
}

#[test]
fn volumes_share_by_bytes_not_by_requests() {
    let bench = Bench::new(1);
    let (long, short) = (bench.flow(Class::Foreground, 1), bench.flow(Class::Foreground, 2));
    let mut writes: Vec<_> = (0..40).map(|n| bench.write(&long, n * 512, 512, 1)).collect();
    writes.extend((0..640).map(|n| bench.write(&short, 30_000 + n * 8, 8, 2)));
    let mut bytes = [0u64; 3];
    for _ in 0..400 {
        let (volume, sectors) = {
            let held = bench.slow.held.borrow();
            (held[0].request().flow.volume, held[0].request().sectors)
        };
        bytes[volume as usize] += sectors * 512;
        bench.complete(0);
    }
    let (long, short) = (bytes[1] as f64, bytes[2] as f64);
    assert!((0.6..1.6).contains(&(long / short)), "{long} bytes against {short}");
}

#[test]
fn a_disk_that_completes_at_once_does_not_nest() {
    let disk = Disk::new(Scheduler::new(Rc::new(MemDisk::new(1 << 20)), 1));
    let pool = BufPool::new(1 << 20);
    platform::task::block_on_ready(async {
        for n in 0..100_000 {
            disk.write(n, pool.alloc(512).unwrap(), false).await.0.unwrap();
        }
    });
}

#[derive(Debug, Clone)]
enum Step {
    Write { sector: u64, sectors: u64, class: Class, volume: u32 },
    Zero { sector: u64, sectors: u64 },
    Flush,
    Complete { which: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let class = prop_oneof![Just(Class::Foreground), Just(Class::Background)];
    let step = prop_oneof![
        4 => (0..SECTORS - 8, 1..=8u64, class, 0..4u32)
            .prop_map(|(sector, sectors, class, volume)| Step::Write { sector, sectors, class, volume }),
        1 => (0..SECTORS - 8, 1..=8u64).prop_map(|(sector, sectors)| Step::Zero { sector, sectors }),
        1 => Just(Step::Flush),
        4 => any::<usize>().prop_map(|which| Step::Complete { which }),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #[test]
    fn the_disk_ends_as_if_writes_were_done_in_order(steps in steps(), depth in 1..20usize) {
        let bench = Bench::new(depth);
        let mut model = vec![0u8; SECTORS as usize];
        let mut pending = Vec::new();
        let mut flushes = 0;
        for (n, step) in steps.into_iter().enumerate() {
            let fill = n as u8 | 1;
            let range = |sector, sectors| sector as usize..(sector + sectors) as usize;
            match step {
                Step::Write { sector, sectors, class, volume } => {
                    pending.push(bench.write(&bench.flow(class, volume), sector, sectors, fill));
                    model[range(sector, sectors)].fill(fill);
                }
                Step::Zero { sector, sectors } => {
                    pending.push(bench.disk.start(Op::WriteZeroes, sector, sectors, Bufs::new()));
                    model[range(sector, sectors)].fill(0);
                }
                Step::Flush => {
                    pending.push(bench.disk.start(Op::Flush, 0, 0, Bufs::new()));
                    flushes += 1;
                }
                Step::Complete { which } => {
                    let held = bench.held().len();
                    if held > 0 {
                        bench.complete(which % held);
                    }
                }
            }
        }
        // The last come first: as bad as reordering gets.
        while let Some(last) = bench.held().len().checked_sub(1) {
            bench.complete(last);
        }
        prop_assert!(bench.slow.most.get() <= depth + flushes);
        prop_assert!(pending.iter_mut().all(is_done), "every request is answered");
        let sectors: Vec<u8> = (0..SECTORS).map(|sector| bench.slow.disk.peek(sector * 512, 1)[0]).collect();
        prop_assert_eq!(sectors, model);
    }
}
