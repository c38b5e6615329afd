//! Runs tests and reports them as libtest does, so that one reader counts both.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::context::{Backend, Context, Skip};
use crate::tests;

/// Where a test makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// On every backend.
    Every,
    /// On the image in QEMU.
    Image,
    /// On the hosted appliance only: what takes long and is decided by code that the image has, too.
    Hosted,
}

/// Which tests are run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// What the appliance must do.
    Acceptance,
    /// That it survives power cuts.
    PowerCuts,
    /// That the power-cut test sees what it should see.
    Canaries,
    /// What libiscsi's tests say of each shape of volume.
    Conformance,
}

impl Group {
    fn name(self) -> &'static str {
        match self {
            Group::Acceptance => "acceptance",
            Group::PowerCuts => "power-cuts",
            Group::Canaries => "canaries",
            Group::Conformance => "conformance",
        }
    }
}

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name, `file::what_holds`.
    pub name: &'static str,
    /// Where it runs.
    pub on: On,
    /// What it belongs to.
    pub group: Group,
    /// Longer than this is a failure (times the effort).
    pub limit: Duration,
    /// The test: an error is a failure, [`Skip`] a skip.
    pub run: fn(&Context) -> Result<()>,
}

impl Test {
    /// An acceptance test for every backend that takes at most five minutes.
    pub const fn new(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
        Test { name, on: On::Every, group: Group::Acceptance, limit: Duration::from_secs(300), run }
    }
}

/// What to run, and on what.
pub struct Plan {
    /// The backend.
    pub backend: Backend,
    /// The image.
    pub image: PathBuf,
    /// The hosted appliance.
    pub hosted: PathBuf,
    /// The host's program.
    pub gossamer: PathBuf,
    /// The folder under which each test has its own.
    pub scratch: PathBuf,
    /// Seed of the run.
    pub seed: u64,
    /// Memory of the machines, in MiB.
    pub memory_mib: u64,
    /// Factor on the length of random tests.
    pub effort: u64,
    /// Tests at a time.
    pub jobs: usize,
    /// Only this group.
    pub group: Option<String>,
    /// Only tests whose name contains one of these.
    pub filters: Vec<String>,
}

enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Plan {
    /// The tests that are to run.
    pub fn tests(&self) -> Vec<Test> {
        let other = if self.backend == Backend::Hosted { On::Image } else { On::Hosted };
        let here = |test: &Test| test.on != other;
        let group = |test: &Test| self.group.as_ref().is_none_or(|group| group == test.group.name());
        let named = |test: &Test| self.filters.is_empty() || self.filters.iter().any(|part| test.name.contains(part));
        tests::ALL.iter().flat_map(|tests| tests.iter()).filter(|t| here(t) && group(t) && named(t)).copied().collect()
    }

    fn context(&self, test: &Test) -> Context {
        let folder = format!("{}-{}-{}", test.name.replace("::", "-"), self.backend, std::process::id());
        Context {
            backend: self.backend.clone(),
            image: self.image.clone(),
            hosted: self.hosted.clone(),
            gossamer: self.gossamer.clone(),
            scratch: self.scratch.join(folder),
            seed: self.seed,
            memory_mib: self.memory_mib,
            effort: self.effort,
        }
    }
}

/// Runs the plan; true when nothing failed.
pub fn run(plan: Plan) -> Result<bool> {
    let tests = plan.tests();
    println!("\nrunning {} end-to-end tests on {} (seed {})", tests.len(), plan.backend, plan.seed);
    let started = Instant::now();
    let queue = Mutex::new(VecDeque::from(tests));
    let outcomes = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            scope.spawn(|| {
                while let Some(test) = next() {
                    let begun = Instant::now();
                    let outcome = strict(run_one(&plan, &test));
                    report(&plan, &test, &outcome, begun.elapsed());
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| wanted(outcome)).count();
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    println!(
        "\ntest result: {}. {} passed; {failed} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.1}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        count(|outcome| matches!(outcome, Outcome::Passed)),
        count(|outcome| matches!(outcome, Outcome::Skipped(_))),
        started.elapsed().as_secs_f64()
    );
    Ok(failed == 0)
}

/// In CI nothing may be skipped: a skipped acceptance test accepts nothing.
fn strict(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Skipped(why) if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            Outcome::Failed(format!("skipped, which CI=true does not allow: {why}"))
        }
        other => other,
    }
}

/// Runs a test in a thread of its own (whose end ends the programs it started), with its time limit.
fn run_one(plan: &Plan, test: &Test) -> Outcome {
    let context = plan.context(test);
    if let Err(error) = std::fs::create_dir_all(&context.scratch) {
        return Outcome::Failed(format!("{}: {error}", context.scratch.display()));
    }
    let (sender, receiver) = mpsc::channel();
    let (function, scratch) = (test.run, context.scratch.clone());
    thread::spawn(move || sender.send(function(&context)));
    let limit = test.limit * plan.effort as u32;
    let outcome = match receiver.recv_timeout(limit) {
        Ok(Ok(())) => Outcome::Passed,
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(skip) => Outcome::Skipped(skip.to_string()),
            None => Outcome::Failed(format!("{error:#}")),
        },
        Err(RecvTimeoutError::Timeout) => Outcome::Failed(format!("not done after {limit:?}")),
        Err(RecvTimeoutError::Disconnected) => Outcome::Failed("it panicked; see above".into()),
    };
    if matches!(outcome, Outcome::Failed(_)) {
        println!("(the disks of {} are left in {})", test.name, scratch.display());
    } else if let Err(error) = std::fs::remove_dir_all(&scratch) {
        println!("({}: {error})", scratch.display());
    }
    outcome
}

fn report(plan: &Plan, test: &Test, outcome: &Outcome, took: Duration) {
    let verdict = match outcome {
        Outcome::Passed => format!("ok ({:.1} s)", took.as_secs_f64()),
        Outcome::Skipped(why) => format!("skipped ({why})"),
        Outcome::Failed(why) => format!("FAILED ({:.1} s)\n{why}\n", took.as_secs_f64()),
    };
    println!("test {}::{} ... {verdict}", plan.backend, test.name);
}
