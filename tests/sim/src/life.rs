//! One life of the appliance: clients work on it until it is powered off, or until the power fails.

use crate::clients::Client;
use crate::disk::SimDisk;
use crate::explore::Explorer;
use crate::manager;
use crate::model::Model;
use crate::net::Wire;
use crate::premade;
use crate::readers;
use crate::shape::{Faults, LieKind, Shape};
use crate::site::{self, Instance, Site};
use crate::transfers;
use crate::world::World;
use platform::Runtime;
use platform::block::Disk;
use platform::sync::Notify;
use platform::time::{Duration, Instant};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What everybody in a life shares.
pub struct Life {
    pub world: World,
    pub runtime: Runtime,
    pub model: Rc<RefCell<Model>>,
    pub meta: SimDisk,
    pub data: SimDisk,
    pub site: Site,
    pub shape: Shape,
    /// Requests until it ends.
    left: Cell<u64>,
    over: Notify,
    /// A transaction was lost, or something else is wrong that explains errors.
    pub troubled: Cell<bool>,
    /// Somebody reads the metadata snapshot.
    pub reading: Cell<bool>,
    /// The manager is to take a read-only snapshot.
    pub snapshot_wanted: Cell<bool>,
    /// The manager is to have a transaction fail.
    pub failure_wanted: Cell<bool>,
    /// Until then nobody asks for anything new.
    rests_until: Cell<Instant>,
}

impl Life {
    /// The life of the appliance `site`.
    pub fn new(birth: &Birth, runtime: Runtime, site: Site) -> Life {
        let Birth { world, model, meta, data, shape, .. } = birth;
        Life {
            world: world.clone(),
            runtime,
            model: model.clone(),
            meta: meta.clone(),
            data: data.clone(),
            site,
            shape: *shape,
            left: Cell::new(shape.requests),
            over: Notify::new(),
            troubled: Cell::new(shape.tight || shape.faults.disks() || shape.faults.network),
            reading: Cell::default(),
            snapshot_wanted: Cell::default(),
            failure_wanted: Cell::default(),
            rests_until: Cell::default(),
        }
    }

    /// Has everybody rest for a while.
    pub async fn rest(&self, time: Duration) {
        let timers = &self.runtime.timers;
        self.rests_until.set(timers.now() + time);
        timers.sleep(time).await;
    }

    /// Waits while everybody is to rest, and counts a request; false if the life is over.
    pub async fn goes_on(&self) -> bool {
        self.runtime.timers.sleep_until(self.rests_until.get()).await;
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        if left == 1 {
            self.over.notify_all();
        }
        left > 0
    }

    /// Waits until the life is over.
    pub fn over(&self) -> impl Future<Output = ()> {
        self.over.notified()
    }

    /// Waits for an answer, but not for ever: `None` if the network lost it.
    pub async fn patiently<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        self.runtime.timers.timeout(PATIENCE, answer).await.ok()
    }

    /// Where networks are bad: something may happen to this connection soon.
    pub fn trouble_a_wire(&self, wire: &Wire) {
        if self.shape.faults.network && self.world.once_in(50) {
            let (wire, silently) = (wire.clone(), self.world.once_in(2));
            let delay = Duration::from_micros(self.world.below(2000));
            self.world.after(delay, move || if silently { wire.cut() } else { wire.reset() });
        }
    }
}

/// Longer than any answer takes: writes wait a minute for space, and each of several requests may hang for half of one.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// Has things go wrong from now on.
pub fn set_faults(world: &World, meta: &SimDisk, data: &SimDisk, faults: &Faults) {
    for disk in [meta, data].into_iter().filter(|_| faults.errors) {
        disk.set_faults(|f| {
            (f.failed_reads, f.failed_writes, f.failed_flushes) = (400, 600, 300);
            (f.slow, f.hung, f.sectors_going_bad) = (30, 2000, 1500);
        });
    }
    if faults.flips {
        meta.set_faults(|f| (f.flipped_reads, f.flipped_sectors) = (60, 200));
    }
    if faults.slow {
        data.set_faults(|f| f.slow = 7);
        meta.set_faults(|f| f.slow = 50);
    }
    for disk in [meta, data].into_iter().filter(|_| faults.full) {
        disk.set_faults(|f| f.full_after = Some(1 + world.below(400)));
    }
    let Some(lie) = faults.lie else { return };
    for disk in [(meta, lie.meta), (data, lie.data)].into_iter().filter(|(_, lies)| *lies).map(|(disk, _)| disk) {
        disk.set_faults(|f| match lie.kind {
            LieKind::LostFlushes => f.lost_flushes = 8,
            LieKind::LostWrites => f.lost_writes = 100,
            LieKind::MisdirectedWrites => f.misdirected_writes = 100,
        });
    }
}

/// What a life begins with.
pub struct Birth {
    pub world: World,
    pub model: Rc<RefCell<Model>>,
    pub meta: SimDisk,
    pub data: SimDisk,
    pub shape: Shape,
    pub explorer: Rc<Explorer>,
    /// It is powered off in the end; else it ends in the middle of everything.
    pub clean: bool,
}

impl Birth {
    /// Has the power cut between any two events from now on.
    pub fn watch(&self) {
        let explorer = self.explorer.clone();
        self.world.watch(move || explorer.look());
    }
}

/// Lives until the requests are used up.
pub async fn live(birth: Birth, runtime: Runtime) {
    let Birth { world, model, meta, data, shape, clean, .. } = &birth;
    // Adopting a pool takes several transactions.
    let adopts = shape.premade && !model.borrow().formatted;
    if !adopts {
        birth.watch();
    }
    let disks = (Disk::new(meta.clone()), Disk::new(data.clone()));
    let (site, ended) =
        Site::start(&runtime, world, site::pool(disks.0, disks.1), shape.cache_blocks, Instance::default());
    set_faults(world, meta, data, &shape.faults);
    if let Err(why) = site.ready(&runtime).await {
        assert!(shape.faults.disks(), "the appliance does not serve the pool: {why}");
        return;
    }
    let life = Rc::new(Life::new(&birth, runtime, site));
    if let Some(first) = manager::begin(&life).await {
        life.world.look_away();
        if adopts {
            manager::take_over(&life, premade::NAME, premade::MAPPINGS).await;
        }
        Client::new(life.clone(), shape.clients).fill(&first).await;
        manager::snapshots(&life, shape.filled_blocks / 60).await;
        birth.watch();
    }
    let over = life.over();
    let mut tasks = vec![
        life.runtime.spawner.spawn(manager::work(life.clone())),
        life.runtime.spawner.spawn(readers::work(life.clone())),
        life.runtime.spawner.spawn(transfers::work(life.clone())),
    ];
    for number in 0..shape.clients {
        tasks.push(life.runtime.spawner.spawn(Client::new(life.clone(), number).work()));
    }
    if !*clean {
        return over.await;
    }
    for task in tasks {
        task.await.expect("clients end");
    }
    readers::finish(&life).await;
    life.site.power_off().await;
    ended.await.expect("the appliance ends");
}
