//! `cargo xtask test` and `soak`: every test there is, stage by stage, counted.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use crate::machine::MACHINES;
use crate::{fuzz, gossamer, image, packages, process};

const USAGE: &str = "\
usage: cargo xtask test|soak [options]
  --no-install   install nothing: say what is missing, and end
  --jobs N       end-to-end tests at a time (default 2)
  --only STAGE   only the stages whose name contains this
  --effort N     soak only: go on N times as long as test does (default 10)";

/// A stage that takes longer is broken, times the effort. All of them together fit into 40 minutes on two cores.
const STAGE_LIMIT: Duration = Duration::from_secs(1500);

/// What reads an initiator's bytes: two targets one after the other, the pairs beside each other and beside all other targets.
const FUZZED_PAIRS: [[&str; 2]; 2] = [["iscsi_login", "iscsi_session"], ["iscsi_wire", "scsi"]];

/// For a pair, a minute each, and for all others together, times the effort.
const FUZZ_SECONDS: u64 = 120;

/// What became of tests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many passed.
    pub passed: u64,
    /// How many failed.
    pub failed: u64,
    /// How many were not run.
    pub skipped: u64,
    /// The lines that name a failure.
    pub failures: Vec<String>,
}

impl Tally {
    /// Reads a line of libtest's output, or of the end-to-end runner's, which is the same.
    fn read(&mut self, line: &str) {
        if line.starts_with("test ") && line.contains(" ... FAILED") {
            self.failures.push(line.to_owned());
        }
        let Some(counts) = line.strip_prefix("test result: ") else { return };
        let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
        for part in counts.split("; ") {
            match part.split_once(' ').map(|(number, what)| (number.parse().unwrap_or(0), what)) {
                Some((number, "passed")) => self.passed += number,
                Some((number, "failed")) => self.failed += number,
                Some((number, "ignored")) => self.skipped += number,
                _ => {}
            }
        }
    }

    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }

    /// A stage that broke counts as one failed test, so that it can never pass for a good one.
    fn broken(what: String) -> Tally {
        Tally { failed: 1, failures: vec![what], ..Tally::default() }
    }
}

/// What to run.
struct Options {
    install: bool,
    jobs: String,
    only: Option<String>,
    effort: u64,
}

/// A stage: one command, or several at the same time.
struct Stage {
    name: String,
    commands: Vec<Command>,
}

/// Runs everything; true when nothing failed. The last line printed is the count.
pub fn run(root: &Path, parser: &mut lexopt::Parser, soak: bool) -> Result<bool> {
    let mut options = Options { install: true, jobs: "2".into(), only: None, effort: if soak { 10 } else { 1 } };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("no-install") => options.install = false,
            Long("jobs") => options.jobs = parser.value()?.string()?,
            Long("only") => options.only = Some(parser.value()?.string()?),
            Long("effort") if soak => options.effort = parser.value()?.parse()?,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(true);
            }
            other => bail!("{}\n{USAGE}", other.unexpected()),
        }
    }
    let started = Instant::now();
    let mut times = Vec::new();
    let mut total = Tally::default();

    packages::ensure(packages::TEST, options.install)?;
    times.push(("packages".to_owned(), started.elapsed()));
    let cargo = || {
        let mut command = process::tied(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(root);
        command
    };
    let mut build = cargo();
    build.args(["build", "--locked"]);
    let building = Instant::now();
    let built = build.status().context("cargo build")?;
    if !built.success() {
        total.add(Tally::broken(format!("cargo build: {built}")));
    }
    times.push(("build".to_owned(), building.elapsed()));
    let building = Instant::now();
    let image = image::build(root).unwrap_or_else(|error| {
        total.add(Tally::broken(format!("the image cannot be built: {error:#}")));
        PathBuf::new()
    });
    times.push(("image".to_owned(), building.elapsed()));
    let building = Instant::now();
    let program = gossamer::build(root).unwrap_or_else(|error| {
        total.add(Tally::broken(format!("gossamer cannot be built: {error:#}")));
        PathBuf::new()
    });
    times.push(("gossamer".to_owned(), building.elapsed()));

    let mut test = cargo();
    test.args(["test", "--locked", "--no-fail-fast"]).env("EFFORT", options.effort.to_string());
    let mut stages = vec![Stage { name: "unit, property and tidy".into(), commands: vec![test] }];
    stages.push(kernel_comparison(&options)?);
    stages.extend(simulator(&options, soak)?);
    if soak {
        stages.push(survivors()?);
    }
    stages.push(fuzzer(root, &options)?);
    stages.extend(end_to_end(&options, &image, &program)?);
    let limit = STAGE_LIMIT.saturating_mul(u32::try_from(options.effort).unwrap_or(u32::MAX));
    if let Some(part) = &options.only {
        let names: Vec<String> = stages.iter().map(|stage| stage.name.clone()).collect();
        stages.retain(|stage| stage.name.contains(part.as_str()));
        ensure!(!stages.is_empty(), "no stage is named {part}: there are {}", names.join("; "));
    }
    for stage in stages {
        println!("\n===== {} =====", stage.name);
        let begun = Instant::now();
        total.add(run_stage(&stage.name, stage.commands, limit));
        times.push((stage.name, begun.elapsed()));
    }
    report(&times, started.elapsed(), &total);
    Ok(total.failed == 0)
}

/// The same random histories on our pool and on Linux's.
fn kernel_comparison(options: &Options) -> Result<Stage> {
    let mut command = process::tied(std::env::current_exe()?.with_file_name("kernel-compare"));
    command.args(["--jobs", &options.jobs, "--effort", &options.effort.to_string()]);
    Ok(Stage { name: "kernel comparison".into(), commands: vec![command] })
}

/// Looks for input that upsets what reads it.
fn fuzzer(root: &Path, options: &Options) -> Result<Stage> {
    let pairs = FUZZED_PAIRS.map(|pair| pair.map(str::to_owned).to_vec());
    let others =
        fuzz::targets(root)?.into_iter().filter(|target| !pairs.iter().flatten().any(|paired| paired == target));
    let groups = pairs.iter().cloned().chain([others.collect()]);
    // By its name: the build has replaced the file that this program was started from.
    let program = std::env::current_exe()?.with_file_name("xtask");
    let command = |targets: Vec<String>| {
        let mut fuzz = process::tied(&program);
        fuzz.arg("fuzz").args(targets).args(["--seconds", &(FUZZ_SECONDS * options.effort).to_string()]);
        fuzz
    };
    Ok(Stage { name: "fuzz".into(), commands: groups.map(command).collect() })
}

/// The simulator's crash points, and whether it finds planted bugs: six of them in turn, or all.
fn simulator(options: &Options, soak: bool) -> Result<[Stage; 2]> {
    let mut crashes = process::tied(std::env::current_exe()?.with_file_name("sim"));
    crashes.args(["--ci", "--jobs", &options.jobs, "--effort", &options.effort.to_string()]);
    let mut mutants = process::tied(std::env::current_exe()?.with_file_name("xtask"));
    mutants.args(["mutants", "--sim"]);
    if !soak {
        mutants.args(["--some", "6"]);
    }
    Ok([("simulator", crashes), ("mutants", mutants)]
        .map(|(name, command)| Stage { name: name.into(), commands: vec![command] }))
}

/// Small changes to the source that no test notices: one part of all that can be made, another from hour to hour.
fn survivors() -> Result<Stage> {
    const PARTS: u64 = 12;
    let hours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 3600;
    let mut command = process::tied(std::env::current_exe()?.with_file_name("xtask"));
    command.args(["mutants", "--source", "--part", &format!("{}/{PARTS}", hours % PARTS)]);
    Ok(Stage { name: "survivors".into(), commands: vec![command] })
}

fn end_to_end(options: &Options, image: &Path, gossamer: &Path) -> Result<Vec<Stage>> {
    let program = std::env::current_exe()?.with_file_name("e2e");
    let command = |on: &str, group: &str, jobs: &str| {
        let mut command = process::tied(&program);
        command.args(["--on", on, "--group", group, "--jobs", jobs, "--effort", &options.effort.to_string()]);
        command.arg("--image").arg(image).arg("--gossamer").arg(gossamer);
        command
    };
    let mut stages = Vec::new();
    for on in ["hosted"].iter().chain(&MACHINES) {
        let commands = vec![command(on, "acceptance", &options.jobs)];
        stages.push(Stage { name: format!("end to end, {on}"), commands });
    }
    let mut conformance = command("hosted", "conformance", "1");
    conformance.arg("conformance::plain");
    stages.push(Stage { name: "conformance".into(), commands: vec![conformance] });
    let commands = MACHINES.map(|machine| command(machine, "power-cuts", "1")).into();
    stages.push(Stage { name: "power cuts".into(), commands });
    stages.push(Stage { name: "canaries".into(), commands: vec![command("q35", "canaries", "2")] });
    Ok(stages)
}

/// Runs a stage's commands at the same time and counts what they report.
fn run_stage(name: &str, commands: Vec<Command>, limit: Duration) -> Tally {
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let runs: Vec<_> =
            commands.into_iter().map(|command| scope.spawn(move || run_counted(command, limit))).collect();
        for run in runs {
            let counted = run.join().unwrap_or_else(|_| bail!("its reader panicked"));
            tally.add(counted.unwrap_or_else(|error| Tally::broken(format!("{name}: {error:#}"))));
        }
    });
    tally
}

/// Runs a command, shows its output and counts its results.
fn run_counted(mut command: Command, limit: Duration) -> Result<Tally> {
    let name = process::describe(&command);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| name.clone())?;
    let stdout = child.stdout.take().context("no standard output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + limit;
    let mut tally = Tally::default();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("{line}");
        tally.read(&line);
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let Some(status) = process::wait(&mut child, left)? else {
        process::end(&mut child)?;
        tally.add(Tally::broken(format!("{name}: not done after {limit:?}")));
        return Ok(tally);
    };
    // A test program that crashed has printed no result.
    if !status.success() && tally.failed == 0 {
        tally.add(Tally::broken(format!("{name}: {status}")));
    }
    Ok(tally)
}

fn report(times: &[(String, Duration)], whole: Duration, total: &Tally) {
    println!("\n===== time =====");
    for (name, time) in times {
        println!("{:>8.1} s  {name}", time.as_secs_f64());
    }
    println!("{:>8.1} s  in all", whole.as_secs_f64());
    if !total.failures.is_empty() {
        println!("\n===== failed =====\n{}", total.failures.join("\n"));
    }
    println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_up() {
        let mut tally = Tally::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test q35::power_cut::x ... FAILED (1.0 s)",
            "test result: FAILED. 2 passed; 1 failed; 4 ignored; 0 measured; 7 filtered out; finished in 0.00s",
            "test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 5.00s",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.skipped, tally.failures.len()), (12, 1, 4, 1));
    }

    #[test]
    fn a_crash_is_a_failure() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            run_counted(command, STAGE_LIMIT).unwrap()
        };
        assert_eq!(sh("exit 101").failed, 1);
        assert_eq!(sh("echo 'test result: FAILED. 0 passed; 2 failed; 0 ignored'; exit 101").failed, 2);
        assert_eq!(
            sh("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'"),
            Tally { passed: 3, ..Tally::default() }
        );
    }
}
