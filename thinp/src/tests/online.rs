//! Checking while serving: what the foreground notices of it, in simulated time.

use super::{BLOCK, World, id, run};
use crate::{Pool, PoolOptions, Thin};
use alloc::collections::VecDeque;
use platform::block::{BlockDevice, Class, Disk, Io, Limits, Op};
use platform::mem::MemDisk;
use platform::task::Spawner;
use platform::time::{Duration, Timers};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::vec::Vec;

/// A disk that serves one request at a time, in the order of their arrival: 50 us each, and 1 us for each sector. No
/// scheduler is between it and the pool, so whatever is in front of a request is waited for.
#[derive(Clone)]
struct Queue {
    inner: Rc<dyn BlockDevice>,
    waiting: Rc<RefCell<VecDeque<Io>>>,
    serving: Rc<Cell<bool>>,
    background_bytes: Rc<Cell<u64>>,
    spawner: Spawner,
    timers: Timers,
}

impl Queue {
    fn new(world: &World, inner: impl BlockDevice + 'static) -> Queue {
        Queue {
            inner: Rc::new(inner),
            waiting: Rc::default(),
            serving: Rc::default(),
            background_bytes: Rc::default(),
            spawner: world.runtime.spawner.clone(),
            timers: world.runtime.timers.clone(),
        }
    }

    async fn serve(self) {
        loop {
            let Some(io) = self.waiting.borrow_mut().pop_front() else { break };
            let (op, sectors, flow) = (io.request().op, io.request().sectors, io.request().flow);
            if flow.class == Class::Background {
                assert_eq!(op, Op::Read);
                self.background_bytes.set(self.background_bytes.get() + sectors * 512);
            }
            self.timers.sleep(Duration::from_micros(50 + sectors)).await;
            self.inner.submit(io);
        }
        self.serving.set(false);
    }
}

impl BlockDevice for Queue {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        self.waiting.borrow_mut().push_back(io);
        if !self.serving.replace(true) {
            self.spawner.spawn(self.clone().serve());
        }
    }
}

const MAPPED: u64 = 6000;

/// Writes with a flush now and then, reads, new blocks: how long each took, in nanoseconds.
async fn foreground(world: &World, thin: &Thin, operations: u64) -> Vec<u64> {
    let mut took = Vec::new();
    for n in 0..operations {
        let begun = world.runtime.timers.now();
        let block = world.below(MAPPED);
        match world.below(10) {
            0..=4 => drop(world.read(thin, block * BLOCK, 8).await.unwrap()),
            5..=7 => world.write(thin, block * BLOCK, 8, 1).await.unwrap(),
            8 => world.write(thin, (MAPPED + n) * BLOCK, 8, 2).await.unwrap(),
            _ => thin.flush().await.unwrap(),
        }
        took.push((world.runtime.timers.now() - begun).as_nanos() as u64);
        world.runtime.timers.sleep(Duration::from_micros(200)).await;
    }
    took
}

fn p99(mut took: Vec<u64>) -> u64 {
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

/// The 99th percentile alone and beside checks, and how fast those read.
fn percentiles(seed: u64, bytes_per_second: Option<u64>) -> (u64, u64, u64) {
    let blocks = 2 * MAPPED + 4000;
    run(seed, MemDisk::new(2048 * 8), MemDisk::new(blocks * BLOCK), async move |world| {
        let meta = Queue::new(&world, world.meta.clone());
        let data = Disk::new(Queue::new(&world, world.data.clone()));
        let options = PoolOptions { cache_blocks: 2048, ..PoolOptions::default() };
        let pool = Pool::open(&world.runtime, Disk::new(meta.clone()), data, options).await.unwrap();
        pool.create_thin(id(0)).await.unwrap();
        let thin = pool.open_thin(id(0), None).await.unwrap();
        for block in 0..MAPPED {
            world.write(&thin, block * BLOCK, 8, 3).await.unwrap();
        }
        thin.flush().await.unwrap();
        let alone = p99(foreground(&world, &thin, 2000).await);
        let done = Rc::new(Cell::new(false));
        let (checking, until) = (pool.clone(), done.clone());
        let checks = world.runtime.spawner.spawn(async move {
            let mut checks = 0;
            while !until.get() {
                let view = checking.open_view("test", bytes_per_second).await.unwrap();
                let report = checking.check_view(&view).await.unwrap();
                assert!(report.problems.is_empty(), "{:?}", report.problems);
                checks += 1;
            }
            checks
        });
        let begun = world.runtime.timers.now();
        meta.background_bytes.set(0);
        let beside = p99(foreground(&world, &thin, 2000).await);
        let took = world.runtime.timers.now() - begun;
        let rate = (meta.background_bytes.get() as f64 / took.as_secs_f64()) as u64;
        done.set(true);
        assert!(checks.await.unwrap() > 0);
        (alone, beside, rate)
    })
}

/// The rate that the appliance checks at if it is not told another.
const RATE: u64 = 4 << 20;

#[test]
fn a_check_raises_the_foregrounds_p99_by_a_tenth_at_most() {
    for seed in 1..3 {
        let (alone, beside, rate) = percentiles(seed, Some(RATE));
        std::println!("p99 alone {alone} ns, beside a check {beside} ns, which reads {rate} B/s");
        assert!(beside * 10 <= alone * 11, "seed {seed}: p99 rose from {alone} to {beside} ns");
        assert!((RATE / 5..=RATE * 11 / 10).contains(&rate), "seed {seed}: {rate} B/s");
    }
    // So it is the pace that does it.
    let (alone, beside, _) = percentiles(1, None);
    assert!(beside * 10 > alone * 11, "without a pace p99 rose from {alone} to {beside} ns only");
}
