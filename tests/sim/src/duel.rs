//! Two appliances on one pair of disks, each with a clock of its own: the second is told that the first is dead, which is
//! not so. The first must notice within a second, write nothing any more and say so; what either acknowledged is there
//! (docs/owner.md). Only writes in place are under way in the first: what else it may do in that second is the window
//! that the document leaves.

use crate::clients::Client;
use crate::disk::SimDisk;
use crate::http::Manager;
use crate::initiator::Outcome;
use crate::life::{Birth, Life};
use crate::manager;
use crate::readers;
use crate::site::{self, Instance, Site};
use crate::world::World;
use platform::Runtime;
use platform::block::{BlockDevice, Disk, Io, Limits, Op};
use platform::task::JoinHandle;
use platform::time::{Clock, Duration, Instant};
use std::cell::Cell;
use std::rc::Rc;

const FIRST: Instance = Instance { identity: Some("11111111111111111111111111111111"), takes_over: false };
const SECOND: Instance = Instance { identity: Some("22222222222222222222222222222222"), takes_over: true };

/// Within this, on its own clock, an appliance notices that another has the pool.
const NOTICED: Duration = Duration::from_secs(1);

/// Writes that take longer than all of it, about half a minute with the pauses between them.
const WRITES: u64 = 3000;

/// What initiators are told then: hardware error, internal target failure.
const TAKEN_OVER: Outcome = Outcome::Check(4, 0x44, 0);

/// A disk as one appliance reaches it.
#[derive(Clone)]
struct Tap {
    disk: SimDisk,
    world: World,
    /// When it was last told to change something.
    changed: Rc<Cell<Instant>>,
}

impl BlockDevice for Tap {
    fn limits(&self) -> Limits {
        self.disk.limits()
    }

    fn submit(&self, io: Io) {
        if !matches!(io.request().op, Op::Read | Op::Flush) {
            self.changed.set(self.world.now());
        }
        self.disk.submit(io);
    }
}

/// Has the one take the pool from the other.
pub async fn duel(birth: Birth, runtime: Runtime) {
    let world = birth.world.clone();
    let changed = Rc::new(Cell::new(Instant::default()));
    let tap = |disk: &SimDisk| Tap { disk: disk.clone(), world: world.clone(), changed: changed.clone() };
    let rate = 950 + world.below(101);
    let machine = world.other_machine(&runtime, rate);
    let (taps, cache_blocks) = ((tap(&birth.meta), tap(&birth.data)), birth.shape.cache_blocks);
    let (site, first_ended) =
        Site::start(&machine, &world, site::pool(Disk::new(taps.0), Disk::new(taps.1)), cache_blocks, FIRST);
    site.ready(&runtime).await.expect("a new pool is served");
    let first = Rc::new(Life::new(&birth, runtime.clone(), site));
    let old = manager::begin(&first).await.expect("the pool is new");
    Client::new(first.clone(), 0).fill(&old).await;
    birth.watch();
    let writers: Vec<_> = (1..=2).map(|number| spawn_writer(&runtime, &first, &old, number)).collect();
    runtime.timers.sleep(Duration::from_millis(world.below(1500))).await;

    first.troubled.set(true);
    let disks = (Disk::new(birth.meta.clone()), Disk::new(birth.data.clone()));
    let machine = world.other_machine(&runtime, 950 + world.below(101));
    let (site, second_ended) = Site::start(&machine, &world, site::pool(disks.0, disks.1), cache_blocks, SECOND);
    site.ready(&runtime).await.expect("the pool is taken over");
    let latest = world.now() + NOTICED * 1000 / rate as u32;
    let second = Rc::new(Life::new(&birth, runtime.clone(), site));
    manager::begin(&second).await;
    let newest = || second.model.borrow().volumes.keys().find(|name| **name != old).cloned();
    let new = newest().expect("the second has made a volume");
    Client::new(second.clone(), 3).fill(&new).await;
    let ended = Client::new(second.clone(), 3).overwrite(&new, 20 + world.below(100)).await;
    assert_eq!(ended, None, "the winner's writes fail");
    for writer in writers {
        let ended = writer.await.expect("writers end");
        assert_eq!(ended, Some(TAKEN_OVER), "what a write is told after the pool was taken over");
    }
    assert!(changed.get() <= latest, "the first writes at {:?}, after {latest:?}", changed.get());
    expect_given_up(&first.site).await;
    readers::finish(&second).await;
    second.site.power_off().await;
    second_ended.await.expect("the appliance ends");
    first.site.power_off().await;
    first_ended.await.expect("the appliance ends");
    assert!(changed.get() <= latest, "the first writes at {:?}, after {latest:?}", changed.get());
}

fn spawn_writer(runtime: &Runtime, life: &Rc<Life>, volume: &str, number: u64) -> JoinHandle<Option<Outcome>> {
    let (client, volume) = (Client::new(life.clone(), number), volume.to_owned());
    runtime.spawner.spawn(async move { client.overwrite(&volume, WRITES).await })
}

/// It says what happened, and does nothing any more.
async fn expect_given_up(site: &Site) {
    let mut manager = Manager::connect(&site.http).expect("the appliance takes connections");
    let health = manager.ask("GET", "/healthz", None).await.expect("an answer").body;
    assert!(health["reason"].as_str().is_some_and(|why| why.contains("another host")), "{health}");
    let made = manager.ask("POST", "/v1/volumes", Some(r#"{"name":"late","size_bytes":1048576}"#)).await;
    let made = made.expect("an answer");
    assert!(
        made.status >= 500 && made.body["error"] == "EIO",
        "a volume is made in a pool that was taken over: {made:?}"
    );
}
