//! Batches of histories, in each of which the guest boots twice: for new pools, and for each other's.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use platform::mem::MemDisk;
use xtask::dice::Dice;

use crate::compare::{self, Side, Tools};
use crate::disks::{origins, patterned};
use crate::guest::{Lab, Pools};
use crate::history::{DATA_SLOT_SECTORS, ORIGIN_SECTORS, Played, Start, play};
use crate::ours::{self, Disks};

/// Histories in one boot: more take more memory.
const BATCH: u64 = 10;

/// What to compare.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Histories each way.
    pub histories: u64,
    /// Operations in each.
    pub operations: usize,
    /// Guests at a time.
    pub jobs: usize,
    /// Seed of the first history.
    pub seed: u64,
}

/// The machine's part in it.
struct Machine {
    lab: Lab,
    tools: Tools,
    scratch: PathBuf,
}

/// How far a run got.
#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    operations: u64,
    ours: Duration,
    linux: Duration,
}

/// Runs the plan and reports as libtest does; true when nothing differed.
pub fn run(plan: Plan) -> Result<bool> {
    let Some(lab) = lab_folder() else { return skipped() };
    println!("\nrunning {} histories each way (seed {})", plan.histories, plan.seed);
    let started = Instant::now();
    let scratch = std::env::temp_dir().join(format!("kernel-compare-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).with_context(|| format!("{}", scratch.display()))?;
    let machine = Machine { tools: Tools::new(&lab)?, lab: Lab::new(lab, &scratch)?, scratch };
    let last = plan.seed + plan.histories;
    let batches = (plan.seed..last).step_by(BATCH as usize).map(|first| first..(first + BATCH).min(last));
    let (queue, tally) = (Mutex::new(batches.collect::<VecDeque<_>>()), Mutex::new(Tally::default()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            scope.spawn(|| {
                while let Some(seeds) = next() {
                    let seeds: Vec<u64> = seeds.collect();
                    if let Err(error) = batch(&machine, &plan, &seeds, &tally) {
                        println!("test kernel::histories_from_{} ... FAILED\n{error:#}\n", seeds[0]);
                        tally.lock().unwrap_or_else(PoisonError::into_inner).failed += 1;
                    }
                }
            });
        }
    });
    std::fs::remove_dir_all(&machine.scratch)?;
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = |time: Duration| time.as_secs_f64() / (2 * plan.histories) as f64;
    println!(
        "\n{} operations; {:.3} s a history on our side, {:.2} s in the guest (with its boot)",
        tally.operations,
        seconds(tally.ours),
        seconds(tally.linux)
    );
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out; finished in {:.1}s\n",
        if tally.failed == 0 { "ok" } else { "FAILED" },
        tally.passed,
        tally.failed,
        started.elapsed().as_secs_f64()
    );
    Ok(tally.failed == 0)
}

fn lab_folder() -> Option<PathBuf> {
    xtask::shared().join("lab").canonicalize().ok()
}

/// In CI nothing may be skipped.
fn skipped() -> Result<bool> {
    let strict = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let (verdict, failed, ignored) = if strict { ("FAILED", 1, 0) } else { ("ok", 0, 1) };
    let outcome = if strict { "FAILED" } else { "skipped" };
    println!("test kernel::histories ... {outcome} (no folder ../shared with the lab; set GOSSAMER_SHARED)");
    println!("\ntest result: {verdict}. 0 passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out\n");
    Ok(!strict)
}

/// A pool that one side made.
struct Made {
    disks: Disks,
    played: Played,
}

fn batch(machine: &Machine, plan: &Plan, seeds: &[u64], tally: &Mutex<Tally>) -> Result<()> {
    let scratch = machine.scratch.join(format!("from-{}", seeds[0]));
    std::fs::create_dir_all(&scratch)?;
    let mut dice: Vec<Dice> = seeds.iter().map(|seed| Dice::new(*seed)).collect();
    let origin = origins(ORIGIN_SECTORS);
    let blank = |dice: &mut Dice| {
        let start = Start::new(dice);
        let disks = new_disks(&start, origin.clone());
        (fork(&disks), disks, start)
    };
    let first: Vec<_> = dice.iter_mut().map(blank).collect();
    let context = Batch { machine, scratch: &scratch, operations: plan.operations, seeds, tally };
    let made = context.compare("new_pool", first, &mut dice)?;
    // Ours goes on with Linux's pool, and Linux with ours. In both ours has first copied blocks by sharing them, of which
    // dm-thin knows nothing but what is on disk.
    let mut copies = 0;
    let mut swap = |((ours, linux), dice): ((Made, Disks), &mut Dice)| {
        let (start, copying, copied) = (Start::after(&ours.played, dice), dice.fork(), dice.chance(60));
        for disks in [&ours.disks, &linux].into_iter().filter(|_| copied) {
            copies += ours::share_some(disks, start.block_sectors, copying.clone())?;
        }
        Ok((linux, ours.disks, start))
    };
    let second = made.into_iter().zip(&mut dice).map(&mut swap).collect::<Result<Vec<_>>>()?;
    ensure!(copies > 0 || seeds.len() < BATCH as usize, "no block was copied");
    context.compare("each_others_pool", second, &mut dice)?;
    std::fs::remove_dir_all(&scratch)?;
    Ok(())
}

fn new_disks(start: &Start, origin: MemDisk) -> Disks {
    let sectors = start.data_blocks * start.block_sectors;
    let data = start.dirty_seed.map_or_else(|| MemDisk::new(sectors), |seed| patterned(sectors, seed));
    Disks { meta: MemDisk::new(start.meta_sectors), data, origin }
}

fn fork(disks: &Disks) -> Disks {
    Disks { meta: disks.meta.fork(), data: disks.data.fork(), origin: disks.origin.clone() }
}

struct Batch<'a> {
    machine: &'a Machine,
    scratch: &'a Path,
    operations: usize,
    seeds: &'a [u64],
    tally: &'a Mutex<Tally>,
}

impl Batch<'_> {
    /// Carries one history out for each seed, ours on the first disks, Linux on the second, and returns both pools of
    /// those that are the same.
    fn compare(&self, name: &str, starts: Vec<(Disks, Disks, Start)>, dice: &mut [Dice]) -> Result<Vec<(Made, Disks)>> {
        let begun = Instant::now();
        let pools = Pools::create(self.scratch, starts.len())?;
        let mut made = Vec::new();
        for (slot, ((ours, linux, start), dice)) in starts.into_iter().zip(dice).enumerate() {
            pools.meta.put(slot, &linux.meta, start.meta_sectors)?;
            pools.data.put(slot, &linux.data, start.data_blocks * start.block_sectors)?;
            let (dice, operations, disks) = (dice.fork(), self.operations, ours.clone());
            let block_sectors = start.block_sectors;
            let played = ours::run(ours, block_sectors, async move |ours| play(ours, start, dice, operations).await);
            made.push(Made { disks, played });
        }
        let ours_took = begun.elapsed();
        let histories: Vec<&Played> = made.iter().map(|made| &made.played).collect();
        let begun = Instant::now();
        let answers = self.machine.lab.replay(self.scratch, &pools, &histories)?;
        let linux_took = begun.elapsed();
        let mut same = Vec::new();
        for (slot, (made, answers)) in made.into_iter().zip(answers).enumerate() {
            let begun = Instant::now();
            let linux = Disks {
                meta: pools.meta.get(slot, made.played.meta_sectors)?,
                data: pools.data.get(slot, DATA_SLOT_SECTORS)?,
                origin: made.disks.origin.clone(),
            };
            linux.data.resize(made.played.data_blocks * made.played.start.block_sectors);
            let ours = Side { name: "ours", meta: &made.disks.meta, data: &made.disks.data };
            let theirs = Side { name: "Linux", meta: &linux.meta, data: &linux.data };
            let disks = compare::disks(&self.machine.tools, self.scratch, &made.played, &ours, &theirs);
            let verdict = match (compare::answers(&made.played, &answers), disks) {
                (Err(answers), Err(disks)) => Err(answers.context(format!("the disks differ, too: {disks:#}"))),
                (answers, disks) => answers.and(disks),
            };
            let test = format!("kernel::{name}::seed_{}", self.seeds[slot]);
            if verdict.is_err() {
                let file = std::env::temp_dir().join(format!("{}.txt", test.replace("::", "-")));
                std::fs::write(&file, compare::told(&made.played, &answers))?;
                println!("(both sides' answers to {test} are in {})", file.display());
            }
            self.report(&test, &made.played, verdict, begun.elapsed());
            same.push((made, linux));
        }
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.ours += ours_took;
        tally.linux += linux_took;
        Ok(same)
    }

    fn report(&self, test: &str, played: &Played, verdict: Result<()>, took: Duration) {
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.operations += played.steps.len() as u64;
        match verdict {
            Ok(()) => {
                tally.passed += 1;
                println!("test {test} ... ok ({:.1} s)", took.as_secs_f64());
            }
            Err(error) => {
                tally.failed += 1;
                println!("test {test} ... FAILED\n{:?}\n{error:#}\n", played.start);
            }
        }
    }
}
