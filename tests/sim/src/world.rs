//! The world of one run: time, what will happen when, and dice. One seed decides all of it.
//!
//! Time stands still while tasks run, and jumps to the next event or timer when all of them wait. Everything that disks
//! and networks do is an event; so between two events the power can be cut.

use crate::hangs;
use platform::Runtime;
use platform::buf::BufPool;
use platform::random::Seeded;
use platform::task::{Executor, Machine};
use platform::time::{Clock, Duration, Instant, Timers};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use xtask::dice::Dice;

/// Nothing may take longer than this: a run that gets here hangs. Clients wait for a quarter of an hour whenever the network
/// loses something, one after the other.
const LIMIT: Duration = Duration::from_secs(24 * 3600);

type Event = Box<dyn FnOnce()>;

/// Clones are the same world.
#[derive(Clone)]
pub struct World(Rc<Shared>);

struct Shared {
    now_nanos: Cell<u64>,
    events: RefCell<BTreeMap<(u64, u64), Event>>,
    /// Events so far, for the order of those at the same time.
    count: Cell<u64>,
    dice: RefCell<Dice>,
    trace: Cell<u64>,
    /// Called between two events.
    between: RefCell<Option<Rc<dyn Fn()>>>,
    /// Timers of machines with clocks of their own.
    others: RefCell<Vec<(Timers, Rc<OtherClock>)>>,
}

/// A clock that began at another time than the world's and is slower or faster.
struct OtherClock {
    world: World,
    began_nanos: u64,
    /// Of a thousand ticks of the world's.
    rate: u64,
}

impl OtherClock {
    /// When, in the world's time, this clock shows `there`.
    fn world_nanos(&self, there: Instant) -> u64 {
        (there.nanos.saturating_sub(self.began_nanos) as u128 * 1000).div_ceil(self.rate.into()) as u64
    }
}

impl Clock for OtherClock {
    fn now(&self) -> Instant {
        let since = u128::from(self.world.now().nanos) * u128::from(self.rate) / 1000;
        Instant { nanos: self.began_nanos + since as u64 }
    }
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64) -> World {
        World(Rc::new(Shared {
            now_nanos: Cell::new(0),
            events: RefCell::default(),
            count: Cell::new(0),
            dice: RefCell::new(Dice::new(seed)),
            trace: Cell::new(seed),
            between: RefCell::default(),
            others: RefCell::default(),
        }))
    }

    /// A number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        self.0.dice.borrow_mut().below(limit)
    }

    /// True once in `one_in` times.
    pub fn once_in(&self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// A seed for something of its own.
    pub fn seed(&self) -> u64 {
        self.below(u64::MAX)
    }

    /// Has something happen after a while.
    pub fn after(&self, delay: Duration, event: impl FnOnce() + 'static) {
        let count = self.0.count.get();
        self.0.count.set(count + 1);
        let at = self.now() + delay;
        self.0.events.borrow_mut().insert((at.nanos, count), Box::new(event));
    }

    /// Has `between` called between any two events from now on.
    pub fn watch(&self, between: impl Fn() + 'static) {
        *self.0.between.borrow_mut() = Some(Rc::new(between));
    }

    /// Undoes [`World::watch`].
    pub fn look_away(&self) {
        self.0.between.take();
    }

    /// Lets go of everything that refers to what lives in this world.
    pub fn end(&self) {
        self.look_away();
        drop(self.0.events.take());
        drop(self.0.others.take());
    }

    /// The runtime of another machine in this world, with a clock of its own: it shows `rate` while the world's shows 1000.
    pub fn other_machine(&self, runtime: &Runtime, rate: u64) -> Runtime {
        let clock = Rc::new(OtherClock { world: self.clone(), began_nanos: self.below(1 << 50), rate });
        let timers = Timers::new(clock.clone());
        self.0.others.borrow_mut().push((timers.clone(), clock));
        Runtime { timers, ..runtime.clone() }
    }

    /// Enters something that happened into the trace.
    pub fn note(&self, what: u64) {
        self.0.trace.set(mix(self.0.trace.get() ^ what).wrapping_add(self.0.now_nanos.get()));
    }

    /// A hash of everything that happened so far.
    pub fn trace(&self) -> u64 {
        self.0.trace.get()
    }

    /// Runs `main` in this world, in an order of tasks that the seed decides, and everything that it started until it ends.
    pub fn run<T: 'static>(&self, bufs_bytes: usize, main: impl AsyncFnOnce(Runtime) -> T + 'static) -> T {
        let chooser = self.clone();
        let executor = Executor::with_chooser(move |ready| {
            // Mostly in the order in which they were woken: some neighbours change places.
            let chosen = if chooser.once_in(4) { chooser.below(ready as u64) } else { 0 };
            chooser.note(chosen);
            chosen as usize
        });
        let timers = Timers::new(Rc::new(self.clone()));
        let random = Rc::new(Seeded::from_u64(self.seed()));
        let bufs = BufPool::new(bufs_bytes);
        let runtime = Runtime { spawner: executor.spawner(), timers: timers.clone(), random, bufs };
        executor.run(&timers, self, async move { main(runtime).await })
    }
}

impl Clock for World {
    fn now(&self) -> Instant {
        Instant { nanos: self.0.now_nanos.get() }
    }
}

impl Machine for World {
    fn poll(&self) -> bool {
        let others: Vec<Timers> = self.0.others.borrow().iter().map(|(timers, _)| timers.clone()).collect();
        let fired = others.iter().fold(false, |fired, timers| timers.fire() | fired);
        let due = {
            let mut events = self.0.events.borrow_mut();
            match events.first_entry() {
                Some(first) if first.key().0 <= self.0.now_nanos.get() => first.remove(),
                _ => return fired,
            }
        };
        due();
        hangs::beat();
        let between = self.0.between.borrow().clone();
        if let Some(between) = between {
            between();
        }
        true
    }

    fn park(&self, deadline: Option<Instant>) {
        let event = self.0.events.borrow().keys().next().map(|(at, _)| *at);
        let timer = deadline.map(|deadline| deadline.nanos);
        let others = self.0.others.borrow();
        let others = others.iter().filter_map(|(timers, clock)| Some(clock.world_nanos(timers.next_deadline()?)));
        let next =
            event.into_iter().chain(timer).chain(others).min().expect("everybody waits, and nothing will ever happen");
        assert!(u128::from(next) < LIMIT.as_nanos(), "something hangs: a day has gone by");
        self.0.now_nanos.set(next.max(self.0.now_nanos.get()));
        hangs::beat();
    }
}

/// Scatters the bits of a number.
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
