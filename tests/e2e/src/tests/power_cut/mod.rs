//! Power cuts under a mixed load, on disks that lose what was not flushed.
//!
//! The disks are served to QEMU by [`xtask::nbd`]; its fault model stands in `xtask/src/nbd/cache.rs`. Fifty times
//! the power goes at a random request. Then thin_check looks at what the metadata disk holds, the pool must open, and
//! every volume and snapshot is read whole: a sector must hold the last write that an acknowledged flush or FUA
//! covered, or one that came after it.
//!
//! Two canaries show that the test sees: with a flush that does nothing, and with a superblock that is written before
//! the metadata it points to is durable, it must fail.

mod exchanges;
mod model;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use xtask::dice::Dice;
use xtask::mutants;
use xtask::nbd::{Count, DiskIndex, Flush, Server, Supply};

use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::iscsi::BLOCK_BYTES;
use crate::runner::{Group, On, Test};
use model::{Load, Model};

pub const TESTS: &[Test] = &[
    test("power_cut::what_was_flushed_survives", Group::PowerCuts, what_was_flushed_survives),
    test("power_cut::exchanges_are_whole_or_undone", Group::PowerCuts, exchanges::exchanges_are_whole_or_undone),
    test("power_cut::canary_a_flush_that_does_nothing_is_noticed", Group::Canaries, a_lying_flush_is_noticed),
    test("power_cut::canary_a_superblock_written_early_is_noticed", Group::Canaries, an_early_superblock_is_noticed),
];

const fn test(name: &'static str, group: Group, run: fn(&Context) -> Result<()>) -> Test {
    Test { name, on: On::Image, group, limit: Duration::from_secs(900), run }
}

const CUTS: u64 = 50;
/// A canary ends with the first damage. That came after 5 cuts on the average; so many without one show blindness and not
/// bad luck.
const CANARY_CUTS: u64 = 4 * CUTS;
const META_BYTES: u64 = 8 << 20;
const DATA_BYTES: u64 = 128 << 20;
const VOLUME_BYTES: u64 = 8 << 20;
const VOLUMES: [&str; 2] = ["a", "b"];
/// Snapshots of one volume at a time.
const SNAPSHOTS_MAX: usize = 2;
/// Commands between two looks at whether a snapshot is due.
const STRETCH: u64 = 40;
/// The armed cut comes within this, for the load makes requests all the time.
const CUT_LIMIT: Duration = Duration::from_secs(120);

fn what_was_flushed_survives(context: &Context) -> Result<()> {
    let mut run = Run::new(context, Flush::Honest)?;
    match run.cuts(CUTS * context.effort)? {
        None => {
            run.report();
            Ok(())
        }
        Some(damage) => bail!("seed {}: {damage}", context.seed),
    }
}

fn a_lying_flush_is_noticed(context: &Context) -> Result<()> {
    noticed(Run::new(context, Flush::Ignored)?)
}

fn an_early_superblock_is_noticed(context: &Context) -> Result<()> {
    let image = mutants::build_image(&xtask::root(), "superblock-early")?;
    noticed(Run::new(&Context { image, ..context.clone() }, Flush::Honest)?)
}

/// The canary's verdict: the very same test must find damage.
fn noticed(mut run: Run) -> Result<()> {
    match run.cuts(CANARY_CUTS)? {
        Some(damage) => {
            println!("(noticed after {} cuts: {})", run.done, damage.lines().next().unwrap_or_default());
            Ok(())
        }
        None => bail!("{CANARY_CUTS} power cuts, and nothing was noticed: the test sees too little"),
    }
}

/// Volumes and their snapshots, as they may be.
struct Family {
    volume: Model,
    snapshots: Vec<Model>,
    /// A snapshot asked for or being deleted when the power went: it may be there or not.
    uncertain: Option<Model>,
    dice: Dice,
    taken: u64,
}

struct Run {
    context: Context,
    flush: Flush,
    supply: Supply,
    /// The metadata disk.
    meta: DiskIndex,
    site: Site,
    families: Vec<Family>,
    dice: Dice,
    versions: AtomicU64,
    done: u64,
    /// Sectors that could have held several things, and those that did not keep the newest.
    open: usize,
    older: usize,
}

/// Disks whose power can be cut; which of them is the metadata disk.
fn supplied(context: &Context, meta_bytes: u64, data_bytes: u64) -> Result<(Site, Supply, DiskIndex)> {
    let mut site = Site::new(context, meta_bytes, data_bytes)?;
    let supply = Supply::new(context.seed);
    let add = |path: &Path| supply.add(File::options().read(true).write(true).open(path)?);
    let (meta, data) = (add(&site.meta)?, add(&site.data)?);
    let mut server = Server::new(supply.clone());
    server.export("meta", meta);
    server.export("data", data);
    let socket = context.scratch.join("nbd");
    server.listen_unix(&socket)?;
    site.nbd = Some(socket);
    Ok((site, supply, meta))
}

impl Run {
    fn new(context: &Context, flush: Flush) -> Result<Run> {
        let mut dice = Dice::new(context.seed);
        let (site, supply, meta) = supplied(context, META_BYTES, DATA_BYTES)?;
        let family = |name: &str| Family {
            volume: Model::new(name, VOLUME_BYTES / BLOCK_BYTES as u64),
            snapshots: Vec::new(),
            uncertain: None,
            dice: dice.fork(),
            taken: 0,
        };
        let families = VOLUMES.map(family).into();
        let versions = AtomicU64::new(1);
        let context = context.clone();
        Ok(Run { context, flush, supply, meta, site, families, dice, versions, done: 0, open: 0, older: 0 })
    }

    /// Cuts the power so many times and looks after each; the first damage that is found.
    fn cuts(&mut self, count: u64) -> Result<Option<String>> {
        let appliance = self.site.start()?;
        for name in VOLUMES {
            appliance.make_volume(name, VOLUME_BYTES)?;
        }
        // Only now: that a pool is lost whose making was never durable is no more than expected.
        self.supply.set_flush(self.flush);
        let mut appliance = Some(appliance);
        while self.done < count {
            let running = match appliance.take() {
                Some(running) => running,
                None => match self.reopen()? {
                    Ok(running) => running,
                    Err(damage) => return Ok(Some(damage)),
                },
            };
            self.cut_under_load(running)?;
            self.done += 1;
            if let Err(error) = self.context.thin_check(&self.site.meta) {
                return Ok(Some(format!("after cut {}: {error:#}", self.done)));
            }
        }
        match self.reopen()? {
            Ok(appliance) => appliance.power_off()?,
            Err(damage) => return Ok(Some(damage)),
        }
        self.supply.cut()?;
        Ok(self.context.thin_check(&self.site.meta).err().map(|error| format!("after power-off: {error:#}")))
    }

    /// Runs the load until the power goes at a random request.
    fn cut_under_load(&mut self, appliance: Appliance) -> Result<()> {
        let (count, most) = match self.dice.below(3) {
            0 => (Count::Changes, 1500),
            1 => (Count::Flushes, 40),
            _ => (Count::FlushesOf(self.meta), 20),
        };
        self.supply.arm(count, self.dice.between(1, most));
        let (versions, supply) = (&self.versions, &self.supply);
        let next_version = || versions.fetch_add(1, Ordering::Relaxed);
        let errors: Vec<String> = thread::scope(|scope| {
            let start = |family| scope.spawn(|| drive(&appliance, family, &mut next_version.clone(), supply));
            let loads: Vec<_> = self.families.iter_mut().map(start).collect();
            let ends =
                loads.into_iter().map(|load| load.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a load panicked"))));
            ends.filter_map(|end| Some(format!("{:#}", end.err()?))).collect()
        });
        if !errors.is_empty() {
            bail!("seed {}: before the power went: {}\n{}", self.context.seed, errors.join("; "), appliance.console());
        }
        if self.supply.wait_cut(CUT_LIMIT).is_none() {
            bail!("seed {}: the armed cut did not come; the load has stopped", self.context.seed);
        }
        appliance.kill()
    }

    /// Gives the power back, starts the appliance, and reads everything.
    fn reopen(&mut self) -> Result<Result<Appliance, String>> {
        self.supply.power_on();
        let appliance = match self.site.start_in_any_state() {
            Ok(appliance) => appliance,
            Err(error) => return Ok(Err(format!("after cut {}: the appliance does not start: {error:#}", self.done))),
        };
        if appliance.said("pool") != Some("write") {
            return Ok(Err(format!("after cut {}: the pool does not open:\n{}", self.done, appliance.console())));
        }
        match self.look(&appliance)? {
            None => Ok(Ok(appliance)),
            Some(damage) => Ok(Err(format!("after cut {}: {damage}", self.done))),
        }
    }

    fn look(&mut self, appliance: &Appliance) -> Result<Option<String>> {
        let mut present = appliance.volumes()?;
        for family in &mut self.families {
            if let Some(snapshot) = family.uncertain.take()
                && present.contains(&snapshot.name)
            {
                // The power may have gone between its making and its export.
                appliance.export(&snapshot.name)?;
                family.snapshots.push(snapshot);
            }
            for model in std::iter::once(&mut family.volume).chain(&mut family.snapshots) {
                let Some(at) = present.iter().position(|name| *name == model.name) else {
                    return Ok(Some(format!("volume {} is gone", model.name)));
                };
                present.swap_remove(at);
                let mut session = match appliance.login(&model.name) {
                    Ok(session) => session,
                    Err(error) => return Ok(Some(format!("{error:#}"))),
                };
                let verdict = model.verify(&mut session).with_context(|| format!("reading volume {}", model.name))?;
                if !verdict.wrong.is_empty() {
                    let shown: Vec<_> = verdict.wrong.iter().take(10).map(String::as_str).collect();
                    return Ok(Some(format!("{} wrong sectors:\n  {}", verdict.wrong.len(), shown.join("\n  "))));
                }
                self.open += verdict.open;
                self.older += verdict.older;
                session.logout()?;
            }
        }
        if !present.is_empty() {
            return Ok(Some(format!("volumes that nobody made: {}", present.join(" "))));
        }
        Ok(None)
    }

    fn report(&self) {
        println!(
            "({} cuts; {} sectors were open at a cut, {} of them did not keep the newest write)",
            self.done, self.open, self.older
        );
    }
}

/// The load on one volume and its snapshots until the power goes. An error is one from before that.
fn drive(
    appliance: &Appliance,
    family: &mut Family,
    next_version: &mut dyn FnMut() -> u64,
    supply: &Supply,
) -> Result<()> {
    loop {
        let end = stretch(appliance, family, next_version);
        if !supply.is_on() {
            return Ok(());
        }
        end?;
    }
}

fn stretch(appliance: &Appliance, family: &mut Family, next_version: &mut dyn FnMut() -> u64) -> Result<()> {
    let mut session = appliance.login(&family.volume.name)?;
    for _ in 0..4 {
        Load::new(&mut session, &mut family.volume, &mut family.dice, next_version).run(STRETCH)?;
        if family.dice.chance(30) {
            change_snapshots(appliance, family)?;
        }
    }
    session.logout()?;
    Ok(())
}

/// Takes a snapshot, or deletes the oldest when there are enough.
fn change_snapshots(appliance: &Appliance, family: &mut Family) -> Result<()> {
    if family.snapshots.len() >= SNAPSHOTS_MAX {
        let oldest = family.snapshots.remove(0);
        let path = format!("/v1/volumes/{}", oldest.name);
        family.uncertain = Some(oldest);
        appliance.call("DELETE", &path, &Value::Null)?;
        family.uncertain = None;
        return Ok(());
    }
    family.taken += 1;
    let name = format!("{}-{}", family.volume.name, family.taken);
    family.uncertain = Some(family.volume.snapshot(&name));
    let path = format!("/v1/volumes/{}/snapshots", family.volume.name);
    appliance.call("POST", &path, &json!({ "name": name }))?;
    appliance.export(&name)?;
    family.snapshots.extend(family.uncertain.take());
    Ok(())
}
