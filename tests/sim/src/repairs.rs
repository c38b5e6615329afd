//! Metadata that was damaged while the power was off is rebuilt onto a third disk, over HTTP; the power may fail meanwhile.
//! The damaged disk stays as it is, and what is on the new one is no pool yet, or a whole one.

use crate::disk::SimDisk;
use crate::events;
use crate::explore::{Seen, Tally};
use crate::faults::{DATA, META};
use crate::http::Manager;
use crate::image::Image;
use crate::judge;
use crate::lies;
use crate::model::BLOCK;
use crate::quick::QuickDisk;
use crate::recover::{BUFS_BYTES, CHECK_BYTES, Remains, Wanted};
use crate::site::{Instance, Site};
use crate::world::{World, mix};
use platform::block::{Disk, SECTOR_BYTES};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use thinp::metadata::check::check;
use xtask::dice::Dice;

/// The name of the new disk in the trace.
const NEW: u64 = 3;

const META_BLOCK: u64 = 8;

/// What was written over a damaged block.
const RUBBISH: u8 = 0x5A;

/// Blocks of the appliance's cache, half of which is the memory that a repair takes: enough for all that there is here.
const CACHE_BLOCKS: usize = 4096;

/// ENOMEM, and that there is no pool.
const UNAVAILABLE: u16 = 503;

/// Power cuts after each request.
const CUTS: usize = 6;

/// Cuts the power during a repair.
struct Cutter {
    source: SimDisk,
    source_hash: u64,
    target: SimDisk,
    dice: RefCell<Dice>,
    seen: Option<Seen>,
    tally: Rc<RefCell<Tally>>,
    completions: Cell<u64>,
}

impl Cutter {
    fn look(&self) {
        let Some(seen) = &self.seen else { return };
        let completions = self.target.completions();
        if self.completions.replace(completions) == completions {
            return;
        }
        assert_eq!(self.source.cut(|_, _| true).hash(), self.source_hash, "a repair changes the damaged disk");
        (0..CUTS).for_each(|_| self.cut(seen));
    }

    fn cut(&self, seen: &Seen) {
        let (unflushed, salt) = (!self.target.outstanding().is_empty(), self.dice.borrow_mut().below(u64::MAX));
        let image = self.target.cut(|request, sector| mix(request ^ salt) & 3 != 0 && mix(sector ^ salt) & 7 != 0);
        let is_new = seen.lock().expect("no thread panics while it holds this").insert(mix(image.hash()));
        if unflushed && is_new {
            self.tally.borrow_mut().in_repairs += 1;
            events::muted(|| expect_none_or_whole(image, salt));
        }
    }
}

fn expect_none_or_whole(image: Image, seed: u64) {
    World::new(seed).run(BUFS_BYTES, async move |runtime| {
        // An error: there is no superblock that can be used.
        if let Ok(report) = check(&runtime, &Disk::new(QuickDisk::new(image)), CHECK_BYTES).await {
            assert!(report.problems.is_empty(), "half a repair looks like a pool: {:?}", report.problems);
        }
    });
}

fn damage(world: &World, meta: &mut Image, block: u64) {
    for sector in block * META_BLOCK..(block + 1) * META_BLOCK {
        if world.once_in(2) || sector == 0 {
            meta.write(sector, &[RUBBISH; SECTOR_BYTES]);
        }
    }
}

/// Damages the superblock and some other blocks, and has the rest rescued.
pub fn repair(world: &World, mut remains: Remains, seen: Option<&Seen>, tally: &Rc<RefCell<Tally>>) {
    let blocks = remains.meta.size_sectors() / META_BLOCK;
    damage(world, &mut remains.meta, 0);
    for _ in 0..world.below(4) {
        let block = world.below(blocks);
        damage(world, &mut remains.meta, block);
    }
    let source = SimDisk::new(world, META, remains.meta.clone());
    let target = SimDisk::new(world, NEW, Image::new(remains.meta.size_sectors()));
    let data = SimDisk::new(world, DATA, remains.data.clone());
    let cutter = Cutter {
        source: source.clone(),
        source_hash: remains.meta.hash(),
        target: target.clone(),
        dice: RefCell::new(Dice::new(world.seed())),
        seen: seen.cloned(),
        tally: tally.clone(),
        completions: Cell::new(0),
    };
    world.watch(move || cutter.look());
    let (inside, new, data_blocks) = (world.clone(), target.clone(), remains.data.size_sectors() / BLOCK);
    let repaired = world.run(BUFS_BYTES * 4, async move |runtime| {
        let disks = [("meta", source), ("data", data), ("meta-new", new)].map(|(name, disk)| (name, Disk::new(disk)));
        let (site, ended) = Site::start(&runtime, &inside, disks, CACHE_BLOCKS, Instance::default());
        site.ready(&runtime).await.expect_err("a pool without a superblock is not served");
        let body = format!(r#"{{"data_block_sectors":{BLOCK},"data_blocks":{data_blocks}}}"#);
        let mut manager = Manager::connect(&site.http).expect("the appliance takes connections");
        let answer = manager.ask("POST", "/v1/pool/repair", Some(&body)).await.expect("an answer");
        assert!(answer.is_ok() || !answer.body["message"].is_null(), "a repair fails and does not say why: {answer:?}");
        assert!(answer.status != UNAVAILABLE, "a repair is not even tried: {answer:?}");
        site.power_off().await;
        ended.await.expect("the appliance ends");
        answer.is_ok()
    });
    world.end();
    world.note(target.cut(|_, _| true).hash());
    if repaired {
        let meta = target.cut(|_, _| false);
        judge::accepts(&meta);
        let seed = world.seed();
        events::muted(|| lies::by_pool(Remains { meta, data: remains.data }, seed, Wanted::default()));
    }
}
