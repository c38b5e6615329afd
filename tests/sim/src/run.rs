//! Runs: of one seed, of many, against the clock; what is told of them.

use crate::contest::contest;
use crate::disk::SimDisk;
use crate::duel::duel;
use crate::events;
use crate::explore::{Explorer, Seen, Tally, table};
use crate::faults::{self, DATA, META};
use crate::hangs::{self, Watch};
use crate::image::Image;
use crate::life::{Birth, live};
use crate::model::{BLOCK, Model, Streams};
use crate::premade;
use crate::recover::Remains;
use crate::repairs;
use crate::shape::Shape;
use crate::world::World;
use anyhow::{Result, bail, ensure};
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::process::{self, Command};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};
use xtask::dice::Dice;

const USAGE: &str = "\
usage: cargo xtask sim [options]
  --seed S       the run of this seed, and again without power cuts besides its own: the traces must be equal
  --seeds N      the runs of N seeds (default 20)
  --minutes M    so long, however many runs that are
  --points N     until there were so many crash points
  --first S      the first seed (default: another each time)
  --jobs N       threads (default 2)
  --stop         end with the first failure
  --ci           what CI runs: 100,000 crash points, of each kind enough, and 20 runs repeated
  --effort N     with --ci, N times as much
  --verbose      what the appliance logs, too";

/// Crash points of a CI run, which must be reached within [`CI_LIMIT`].
const CI_POINTS: u64 = 100_000;
const CI_LIMIT: Duration = Duration::from_secs(600);

/// Of these, so many must hit each kind of event.
const CI_HITS: u64 = 1000;

/// Runs that are repeated.
const CI_REPEATED: u64 = 20;

/// Seeds that found something, which CI runs before all others. What they found has tests without dice, too: a
/// change of the simulator makes other runs of them.
const FOUND: [u64; 11] = [
    2017,
    107049334274,
    107049557042,
    20003,
    3002,
    107053883109,
    107047175322,
    107055000679,
    107049293955,
    107053380537,
    107047375858,
];

/// Of so many runs one ends with a repair.
const REPAIR_ONE_IN: u64 = 2;

/// Buffers of an appliance.
const BUFS_BYTES: usize = 16 << 20;

/// Characters of what was found that a line shows.
const WHY_CHARS_MAX: usize = 1000;

struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    limit: Option<Duration>,
    points: Option<u64>,
    first: u64,
    jobs: u64,
    stop: bool,
    /// Times as much as CI does.
    ci: Option<u32>,
    verbose: bool,
}

thread_local! {
    /// Why this thread panicked.
    static WHY: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Does what the command line says; false if something was found.
pub fn command() -> Result<bool> {
    let Some(options) = options()? else { return Ok(true) };
    events::listen(options.verbose);
    panic::set_hook(Box::new(|info| {
        // All of a long list of problems says no more than its beginning.
        let why: String = info.to_string().replace('\n', " ").chars().take(WHY_CHARS_MAX).collect();
        WHY.with_borrow_mut(|place| {
            if place.is_empty() {
                *place = why
            }
        });
    }));
    hangs::watch(|seed| {
        println!(
            "{}",
            failed(seed, "a task goes round and round: nothing happens, and the simulated time stands still")
        );
        process::exit(1);
    });
    match options.seed {
        Some(seed) => Ok(one(seed)),
        None => Ok(many(&options)),
    }
}

fn options() -> Result<Option<Options>> {
    use lexopt::prelude::*;
    let mut options = Options {
        seed: None,
        seeds: None,
        limit: None,
        points: None,
        first: Dice::fresh_seed() >> 24,
        jobs: 2,
        stop: false,
        ci: None,
        verbose: false,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seed") => options.seed = Some(parser.value()?.parse()?),
            Long("seeds") => options.seeds = Some(parser.value()?.parse()?),
            Long("minutes") => options.limit = Some(Duration::from_secs_f64(60.0 * parser.value()?.parse::<f64>()?)),
            Long("points") => options.points = Some(parser.value()?.parse()?),
            Long("first") => options.first = parser.value()?.parse()?,
            Long("jobs") => options.jobs = parser.value()?.parse()?,
            Long("stop") => options.stop = true,
            Long("ci") => drop(options.ci.get_or_insert(1)),
            Long("effort") => options.ci = Some(parser.value()?.parse()?),
            Long("verbose") => options.verbose = true,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => bail!("{}\n{USAGE}", other.unexpected()),
        }
    }
    ensure!(options.jobs > 0, "--jobs 0 does nothing");
    if let Some(effort) = options.ci {
        options.points = Some(CI_POINTS * u64::from(effort));
        options.limit = Some(CI_LIMIT * effort);
    }
    if options.limit.is_none() && options.points.is_none() {
        options.seeds.get_or_insert(20);
    }
    Ok(Some(options))
}

/// The run of a seed. Power is cut between its events if what that leaves is to be `seen`; how the run goes on does not
/// depend on it.
fn run(seed: u64, seen: Option<&Seen>) -> (u64, Tally) {
    let world = World::new(seed);
    let shape = Shape::of(&world, seed);
    let model = Rc::new(RefCell::new(Model::new(shape.metadata_blocks, shape.data_blocks)));
    let tally = Rc::new(RefCell::new(Tally::default()));
    let meta = if shape.premade { premade::metadata(&shape) } else { Image::new(shape.metadata_blocks * 8) };
    let mut remains = Remains { meta, data: Image::new(shape.data_blocks * BLOCK) };
    for life in 1..=shape.lives {
        let clean = life == shape.lives || world.once_in(4);
        let (meta, data) = (SimDisk::new(&world, META, remains.meta), SimDisk::new(&world, DATA, remains.data));
        events::committed();
        meta.when_first_sector_durable(events::committed);
        let lost = model.clone();
        events::when_aborted(Some(Rc::new(move || lost.borrow_mut().transaction_lost())));
        let explorer = Rc::new(Explorer::new(&meta, &data, &model, world.seed(), seen, &tally));
        let (inside, known, looking) = (world.clone(), model.clone(), explorer.clone());
        let birth = Birth { world: inside, model: known, meta, data, shape, explorer: looking, clean };
        world.run(BUFS_BYTES, async move |runtime| match shape {
            Shape { rivals: true, .. } => duel(birth, runtime).await,
            Shape { contest: true, .. } => contest(birth, runtime).await,
            _ => live(birth, runtime).await,
        });
        let left = explorer.cut_for_good(world.seed());
        world.end();
        let Some(left) = left else { break };
        remains = left;
        world.note(remains.meta.hash());
        world.note(remains.data.hash());
        if life == shape.lives && model.borrow().formatted && world.once_in(REPAIR_ONE_IN) {
            repairs::repair(&world, remains.clone(), seen, &tally);
        }
    }
    events::when_aborted(None);
    let tally = Tally { deeds: faults::done(), streams: model.borrow().streams, ..*tally.borrow() };
    (world.trace(), tally)
}

/// The run of a seed, or why it failed.
fn try_run(seed: u64, seen: Option<&Seen>) -> Result<(u64, Tally), String> {
    WHY.take();
    faults::forget();
    let _watch = Watch::begin(seed);
    panic::catch_unwind(AssertUnwindSafe(|| run(seed, seen))).map_err(|_| {
        let done = faults::tell(&faults::done());
        WHY.take() + &if done.is_empty() { done } else { format!(", after {done}") }
    })
}

/// As [`try_run`], and again, to see that nothing but the seed decides what happens.
fn try_twice(seed: u64, seen: &Seen) -> Result<Tally, String> {
    let (trace, tally) = try_run(seed, Some(seen))?;
    let (again, _) = try_run(seed, None)?;
    if trace == again { Ok(tally) } else { Err(format!("two runs of one seed differ: {trace:016x}, {again:016x}")) }
}

/// One line: the seed, the commit, what was found, how to see it again.
fn failed(seed: u64, why: &str) -> String {
    let mut git = Command::new("git");
    let asked = git.args(["rev-parse", "--short=12", "HEAD"]).current_dir(xtask::root()).output();
    let commit = asked.ok().filter(|asked| asked.status.success()).map(|asked| asked.stdout).unwrap_or_default();
    let commit = String::from_utf8_lossy(&commit);
    format!("sim: FAILED seed {seed} commit {}: {why}; again: cargo xtask sim --seed {seed}", commit.trim())
}

fn one(seed: u64) -> bool {
    println!("sim: seed {seed}: {:?}", Shape::of(&World::new(seed), seed));
    match try_twice(seed, &Seen::default()) {
        Ok(tally) => println!("sim: seed {seed} is fine: {} crash points, and the same again", tally.points),
        Err(ref why) => {
            println!("{}", failed(seed, why));
            return false;
        }
    }
    true
}

/// What all threads add to.
#[derive(Default)]
struct Sum {
    tally: Tally,
    runs: u64,
    failures: Vec<String>,
}

impl Sum {
    /// Each kind of event was hit as often as CI wants it.
    fn has_hit_all(&self, ci: Option<u32>) -> bool {
        let wanted = CI_HITS * u64::from(ci.unwrap_or(0));
        self.tally.in_repairs >= wanted && table(&self.tally).all(|(_, hit)| hit >= wanted)
    }

    fn is_enough(&self, options: &Options, begun: Instant) -> bool {
        options.seeds.is_some_and(|seeds| self.runs >= seeds)
            || options.limit.is_some_and(|limit| begun.elapsed() > limit)
            || options.points.is_some_and(|points| self.tally.points >= points && self.has_hit_all(options.ci))
            || options.stop && !self.failures.is_empty()
    }
}

fn many(options: &Options) -> bool {
    println!("sim: seeds from {}", options.first);
    let runs = Runs {
        options,
        begun: Instant::now(),
        seen: Seen::default(),
        sum: Mutex::new(Sum::default()),
        next: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| runs.work());
        }
    });
    let time = runs.begun.elapsed();
    let sum = runs.sum.into_inner().expect("no thread panics while it holds this");
    tell(&sum, time);
    if let Some(effort) = options.ci { judge(&sum, effort.into()) } else { sum.failures.is_empty() }
}

/// What all threads share.
struct Runs<'a> {
    options: &'a Options,
    begun: Instant,
    seen: Seen,
    sum: Mutex<Sum>,
    /// The number of the next run.
    next: AtomicU64,
}

impl Runs<'_> {
    /// One run after the other, until there were enough.
    fn work(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let over = self.options.seeds.is_some_and(|seeds| number >= seeds);
            if over || lock(&self.sum).is_enough(self.options, self.begun) {
                return;
            }
            let ci = self.options.ci.is_some();
            let found = FOUND.get(number as usize).filter(|_| ci);
            let seed = found.copied().unwrap_or(self.options.first.wrapping_add(number));
            let result = match ci && number < CI_REPEATED {
                true => try_twice(seed, &self.seen),
                false => try_run(seed, Some(&self.seen)).map(|(_, tally)| tally),
            };
            self.enter(seed, result);
        }
    }

    fn enter(&self, seed: u64, result: Result<Tally, String>) {
        let mut sum = lock(&self.sum);
        sum.runs += 1;
        match result {
            Ok(tally) => sum.tally.add(&tally),
            Err(why) => {
                let cuts = self.seen.lock().expect("no thread panics while it holds this").len();
                let line = failed(seed, &format!("{why}; after {cuts} power cuts of all runs"));
                println!("{line}");
                sum.failures.push(line);
            }
        }
    }
}

fn lock(sum: &Mutex<Sum>) -> MutexGuard<'_, Sum> {
    sum.lock().expect("no thread panics while it holds this")
}

fn tell(sum: &Sum, time: Duration) {
    println!("crash points that hit");
    for (name, hit) in table(&sum.tally) {
        println!("{hit:>9} {name}");
    }
    let Tally { points, by_appliance, thin_checked, after_lies, in_repairs, ref deeds, .. } = sum.tally;
    println!("{in_repairs:>9} power cuts during repairs");
    let Streams { received, increments, resumed, not_received, sanitized } = sum.tally.streams;
    println!(
        "{received:>9} streams received, {increments} of them increments, {resumed} gone on with after they had broken off; \
         {not_received} not received"
    );
    println!("{sanitized:>9} volumes sanitized");
    println!("{after_lies:>9} power cuts after a disk lied; done to disks: {}", faults::tell(deeds));
    let (runs, seconds) = (sum.runs, time.as_secs_f64());
    println!(
        "sim: {runs} runs, {points} crash points ({by_appliance} recovered by a whole appliance, {thin_checked} accepted by \
         thin_check 1.x) in {seconds:.1} s"
    );
}

/// The figures of CI, as tests that passed or failed.
fn judge(sum: &Sum, effort: u64) -> bool {
    let mut tests = vec![
        ("every_run_is_as_the_model_has_it", sum.failures.is_empty()),
        ("a_seed_decides_everything", sum.runs >= CI_REPEATED),
        ("there_are_enough_crash_points", sum.tally.points >= CI_POINTS * effort),
    ];
    tests.push(("power cuts during repairs", sum.tally.in_repairs >= CI_HITS * effort));
    tests.extend(table(&sum.tally).map(|(name, hit)| (name, hit >= CI_HITS * effort)));
    for (name, good) in &tests {
        println!("test sim::{} ... {}", name.replace(' ', "_"), if *good { "ok" } else { "FAILED" });
    }
    let failed = tests.iter().filter(|(_, good)| !good).count();
    let (result, passed) = (if failed == 0 { "ok" } else { "FAILED" }, tests.len() - failed);
    println!("test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    failed == 0
}
