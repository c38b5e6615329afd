//! Runs: of one seed, of many, against the clock; what is told of them.

use crate::disk::SimDisk;
use crate::events;
use crate::explore::{Explorer, Seen, Tally, table};
use crate::image::Image;
use crate::life::live;
use crate::model::{BLOCK, Model};
use crate::recover::Remains;
use crate::shape::Shape;
use crate::world::World;
use anyhow::{Result, bail, ensure};
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use xtask::dice::Dice;

const USAGE: &str = "\
usage: cargo xtask sim [options]
  --seed S       the run of this seed, twice: the traces must be equal
  --seeds N      the runs of N seeds (default 20)
  --minutes M    so long, however many runs that are
  --points N     until there were so many crash points
  --first S      the first seed (default: another each time)
  --jobs N       threads (default 2)
  --verbose      what the appliance logs, too";

/// Buffers of an appliance.
const BUFS_BYTES: usize = 16 << 20;

struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    limit: Option<Duration>,
    points: Option<u64>,
    first: u64,
    jobs: u64,
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
        let why = info.to_string().replace('\n', " ");
        WHY.with_borrow_mut(|place| if place.is_empty() { *place = why });
    }));
    match options.seed {
        Some(seed) => Ok(one(seed)),
        None => many(&options),
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
            Long("verbose") => options.verbose = true,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => bail!("{}\n{USAGE}", other.unexpected()),
        }
    }
    ensure!(options.jobs > 0, "--jobs 0 does nothing");
    if options.limit.is_none() && options.points.is_none() {
        options.seeds.get_or_insert(20);
    }
    Ok(Some(options))
}

/// The run of a seed.
fn run(seed: u64, seen: &Seen) -> (u64, Tally) {
    let world = World::new(seed);
    let shape = Shape::of(&world);
    let model = Rc::new(RefCell::new(Model::new(shape.metadata_blocks, shape.data_blocks)));
    let tally = Rc::new(RefCell::new(Tally::default()));
    let mut remains =
        Remains { meta: Image::new(shape.metadata_blocks * 8), data: Image::new(shape.data_blocks * BLOCK) };
    for life in 1..=shape.lives {
        let clean = life == shape.lives || world.once_in(4);
        let (meta, data) = (SimDisk::new(&world, 1, remains.meta), SimDisk::new(&world, 2, remains.data));
        events::committed();
        meta.when_first_sector_durable(events::committed);
        let lost = model.clone();
        events::when_aborted(Some(Rc::new(move || lost.borrow_mut().transaction_lost())));
        let explorer = Rc::new(Explorer::new(&meta, &data, &model, world.seed(), seen, &tally));
        let (inside, known, looking) = (world.clone(), model.clone(), explorer.clone());
        world.run(BUFS_BYTES, async move |runtime| {
            live(inside, runtime, known, meta, data, shape, looking, clean).await;
        });
        remains = explorer.cut_for_good();
        world.note(remains.meta.hash());
        world.note(remains.data.hash());
        world.end();
    }
    events::when_aborted(None);
    let tally = *tally.borrow();
    (world.trace(), tally)
}

/// The run of a seed, or why it failed.
fn try_run(seed: u64, seen: &Seen) -> Result<(u64, Tally), String> {
    WHY.take();
    panic::catch_unwind(AssertUnwindSafe(|| run(seed, seen))).map_err(|_| WHY.take())
}

/// One line: the seed, the commit, what was found, how to see it again.
fn failed(seed: u64, why: &str) -> String {
    let commit = option_env!("GOSSAMER_COMMIT").unwrap_or("unknown");
    format!("sim: FAILED seed {seed} commit {commit}: {why}; again: cargo xtask sim --seed {seed}")
}

fn one(seed: u64) -> bool {
    let mut traces = Vec::new();
    for _ in 0..2 {
        match try_run(seed, &Seen::default()) {
            Ok((trace, tally)) => {
                println!("seed {seed}: trace {trace:016x}, {} crash points", tally.points);
                traces.push(trace);
            }
            Err(why) => {
                println!("{}", failed(seed, &why));
                return false;
            }
        }
    }
    let same = traces[0] == traces[1];
    if !same {
        println!("{}", failed(seed, "the two runs of the seed differ"));
    }
    same
}

/// What all threads add to.
#[derive(Default)]
struct Sum {
    tally: Tally,
    runs: u64,
    failed: u64,
}

fn many(options: &Options) -> Result<bool> {
    let begun = Instant::now();
    let (seen, sum, next) = (Seen::default(), Mutex::new(Sum::default()), AtomicU64::new(0));
    println!("sim: seeds from {}", options.first);
    thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let enough = options.seeds.is_some_and(|seeds| number >= seeds)
                        || options.limit.is_some_and(|limit| begun.elapsed() > limit)
                        || options.points.is_some_and(|points| sum.lock().expect("nobody panics").tally.points >= points);
                    if enough {
                        return;
                    }
                    let seed = options.first.wrapping_add(number);
                    let result = try_run(seed, &seen);
                    let mut sum = sum.lock().expect("nobody panics");
                    sum.runs += 1;
                    match result {
                        Ok((_, tally)) => sum.tally.add(&tally),
                        Err(why) => {
                            sum.failed += 1;
                            println!("{}", failed(seed, &why));
                        }
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().expect("nobody panics");
    tell(&sum, begun.elapsed());
    Ok(sum.failed == 0)
}

fn tell(sum: &Sum, time: Duration) {
    println!("crash points that hit");
    for (name, hit) in table(&sum.tally) {
        println!("{hit:>9} {name}");
    }
    let Tally { points, by_appliance, .. } = sum.tally;
    let seconds = time.as_secs_f64();
    println!("sim: {} runs, {points} crash points, {by_appliance} of them recovered by a whole appliance, in {seconds:.1} s", sum.runs);
}
