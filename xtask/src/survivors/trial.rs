//! The tests of the tree with all changes in it: what each reaches, and whether those that reach a change notice it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process;

/// Of one test without a change.
const LIMIT: Duration = Duration::from_secs(300);

/// Tests that take less share a process.
const SHORT: Duration = Duration::from_millis(100);

/// Tests that take up to so long meet the changes that no faster ones notice, when those are through.
pub const ROUNDS: [Duration; 3] = [SHORT, Duration::from_secs(2), Duration::MAX];

/// A changed test may take so many times as long as the longest that shares its process, and this.
const PATIENCE: u32 = 4;
const GRACE: Duration = Duration::from_secs(2);

/// So often it is looked at the time of the processor that a test uses.
const LOOK: Duration = Duration::from_secs(1);

/// Who uses none at so many looks, and is not kept from it, waits for ever.
const IDLE_LOOKS: u32 = 10;

/// Ticks of a processor's time in a second (`sysconf(_SC_CLK_TCK)` of every Linux).
const TICKS_PER_SECOND: u64 = 100;

/// Without a change nothing is expected to hang: only so much slower can a busy machine be.
const BUSY: u32 = 5;

/// The address space of a process, in KiB.
const SPACE: u64 = 3 << 20;

/// `SIGXCPU`, at the limit of the processor's time.
const OUT_OF_TIME: i32 = 24;

/// Random tests take the same way each time.
const SEED: &str = "1";

/// A test, as it is without a change.
#[derive(Debug, Clone)]
pub struct Test {
    program: PathBuf,
    folder: PathBuf,
    name: String,
    takes: Duration,
    /// The first change of each function that it calls.
    reaches: BTreeSet<u32>,
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// This test failed, or the program broke after it.
    Noticed(String),
    /// The test after this one took far longer than it does.
    Endless(String),
    /// No test noticed; so many reach its function.
    Survived(usize),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Noticed(test) => write!(f, "noticed by {test}"),
            Outcome::Endless(test) => write!(f, "for ever after {test}"),
            Outcome::Survived(reaching) => write!(f, "survived {reaching} tests"),
        }
    }
}

/// All tests that pass without a change, the fastest first.
#[derive(Debug, Clone)]
pub struct Tests {
    tests: Vec<Test>,
    /// Those that fail even without a change.
    pub broken: Vec<String>,
    /// By function: the test that noticed its last change will often notice the next.
    noticed: BTreeMap<u32, String>,
}

impl Tests {
    /// Runs each test of the programs in whose name `text` is, by itself; `scratch` is the name of a file that may be written.
    pub fn find(programs: &[(PathBuf, PathBuf)], text: &str, scratch: &Path) -> Result<Tests> {
        let (mut tests, mut broken) = (Vec::new(), Vec::new());
        for (program, folder) in programs {
            let listed = process::succeed(Command::new(program).args(["--list", "--format", "terse"]), LIMIT)?;
            let listed = String::from_utf8(listed.stdout)?;
            let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
            for name in names.filter(|name| name.contains(text)) {
                let _ = fs::remove_file(scratch);
                let begun = Instant::now();
                let mut command = command(program, folder, [name], LIMIT);
                let ended = process::run(command.env("SURVIVORS_REACHED", scratch), LIMIT * BUSY)?;
                let takes = begun.elapsed();
                if !ended.status.success() {
                    broken.push(name.to_owned());
                    continue;
                }
                let reached = fs::read_to_string(scratch).unwrap_or_default();
                let reaches = reached.lines().map(str::parse).collect::<Result<_, _>>().context("what was reached")?;
                let (program, folder) = (program.clone(), folder.clone());
                tests.push(Test { program, folder, name: name.to_owned(), takes, reaches });
            }
        }
        tests.sort_by_key(|test| test.takes);
        Ok(Tests { tests, broken, noticed: BTreeMap::new() })
    }

    /// How many there are and how long all of them take.
    pub fn extent(&self) -> (usize, Duration) {
        (self.tests.len(), self.tests.iter().map(|test| test.takes).sum())
    }

    /// What each takes and reaches, a line each.
    pub fn table(&self) -> String {
        let line =
            |test: &Test| format!("{:>9.3} s {:>5} {}\n", test.takes.as_secs_f64(), test.reaches.len(), test.name);
        self.tests.iter().map(line).collect()
    }

    /// Tries the change of this number, in the function whose first change is `function`, with the tests of one of the [`ROUNDS`].
    pub fn try_change(&mut self, number: u32, function: u32, round: usize) -> Result<Outcome> {
        let reaching = self.tests.iter().filter(|test| test.reaches.contains(&function));
        let reaching: Vec<&Test> =
            reaching.filter(|test| ROUNDS.partition_point(|limit| *limit < test.takes) == round).collect();
        let noticed = self.noticed.get(&function);
        let first = reaching.iter().find(|test| Some(&test.name) == noticed).map(|test| vec![*test]);
        for batch in first.into_iter().chain(batches(&reaching)) {
            let outcome = run(number, &batch, LOOK)?;
            if let Outcome::Noticed(name) = &outcome {
                self.noticed.insert(function, name.clone());
            }
            if !matches!(outcome, Outcome::Survived(_)) {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Survived(reaching.len()))
    }
}

/// Short tests of the same program together, then the others one by one.
fn batches<'a>(tests: &[&'a Test]) -> Vec<Vec<&'a Test>> {
    let (short, long): (Vec<&Test>, Vec<&Test>) = tests.iter().partition(|test| test.takes <= SHORT);
    let mut batches: BTreeMap<&Path, Vec<&Test>> = BTreeMap::new();
    short.into_iter().for_each(|test| batches.entry(&test.program).or_default().push(test));
    batches.into_values().chain(long.into_iter().map(|test| vec![test])).collect()
}

/// A program of tests that runs only these, and may use so much time of the processor.
fn command<'a>(program: &Path, folder: &Path, names: impl IntoIterator<Item = &'a str>, time: Duration) -> Command {
    let mut command = process::tied("sh");
    let limits = format!("ulimit -v {SPACE}; ulimit -S -t {}; exec \"$@\"", time.as_secs() + 1);
    command.args(["-c", &limits, "sh"]).arg(program).args(["--exact", "--test-threads", "1"]).args(names);
    command.current_dir(folder).env("SEED", SEED).env("GOSSAMER_SHARED", crate::shared());
    command.env("RUST_BACKTRACE", "0").env("RUST_MIN_STACK", (16 << 20).to_string());
    command
}

/// Runs tests of one program with a change, to the first that fails; `look` as [`LOOK`].
fn run(number: u32, tests: &[&Test], look: Duration) -> Result<Outcome> {
    let takes: Duration = tests.iter().map(|test| test.takes).sum();
    let limit = takes * PATIENCE + GRACE;
    let longest = tests.iter().map(|test| test.takes).max().unwrap_or_default() * PATIENCE + GRACE;
    let most_ticks = longest.as_millis() as u64 * TICKS_PER_SECOND / 1000;
    let names = tests.iter().map(|test| test.name.as_str());
    let mut command = command(&tests[0].program, &tests[0].folder, names, limit);
    command.env("SURVIVORS_CHANGE", number.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| process::describe(&command))?;
    let said = BufReader::new(child.stdout.take().context("no output")?);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || said.split(b'\n').map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let (mut at_last, mut used, mut idle, mut last) = (0, 0, 0, "the start".to_owned());
    loop {
        match told.recv_timeout(look) {
            Ok(line) => {
                at_last = ticks(child.id()).unwrap_or(at_last);
                let line = String::from_utf8_lossy(&line).into_owned();
                let Some((name, result)) = line.strip_prefix("test ").and_then(|test| test.split_once(" ... ")) else {
                    continue;
                };
                last = name.trim_end_matches(" - should panic").to_owned();
                if result == "FAILED" {
                    process::end(&mut child)?;
                    return Ok(Outcome::Noticed(last));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = ticks(child.id()).unwrap_or(used);
                idle = if now == used && waits(child.id()) { idle + 1 } else { 0 };
                used = now;
                if idle >= IDLE_LOOKS || used.saturating_sub(at_last) > most_ticks {
                    process::end(&mut child)?;
                    return Ok(Outcome::Endless(last));
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait()?;
    ensure!(status.code() != Some(126) && status.code() != Some(127), "{}: {status}", process::describe(&command));
    Ok(match status.signal() {
        Some(OUT_OF_TIME) => Outcome::Endless(last),
        _ if status.success() => Outcome::Survived(tests.len()),
        _ => Outcome::Noticed(last),
    })
}

/// The time of the processor that a process has used; none if it has just ended.
fn ticks(id: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    state_and_ticks(&stat).map(|(_, ticks)| ticks)
}

/// No thread of a process was stopped, or waits for its turn.
fn waits(id: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{id}/task")) else { return false };
    let stats = tasks.map(|task| fs::read_to_string(task?.path().join("stat")));
    stats.flatten().all(|stat| state_and_ticks(&stat).is_some_and(|(state, _)| state == "S"))
}

/// The state of a process and the time that it has used, from its line in `/proc`: behind its name, which may hold spaces.
fn state_and_ticks(stat: &str) -> Option<(&str, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((fields.first()?, ticks(11)? + ticks(12)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_has_used_stands_behind_its_name() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194560 2000 0 0 0 15 7 0 0 20 0 2 0 100 1 2 3";
        assert_eq!(state_and_ticks(stat), Some(("S", 22)));
        assert_eq!(state_and_ticks("42 (a"), None);
    }

    /// A program that says what a program of tests does.
    fn program(name: &str, script: &str) -> Test {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("survivors-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (name, takes) = (name.to_owned(), Duration::ZERO);
        Test { program, folder, name, takes, reaches: BTreeSet::from([7]) }
    }

    #[test]
    fn what_becomes_of_a_change() {
        let ok = program("ok", r#"echo "test ok ... ok""#);
        let fails = program("fails", r#"[ $SURVIVORS_CHANGE = 8 ] || echo "test fails ... FAILED"; exec sleep 60"#);
        let breaks = program("breaks", r#"echo "test a ... ok"; kill -ABRT $$"#);
        let sleeps = program("sleeps", "exec sleep 100");
        let spins = program("spins", "while :; do :; done");
        assert_eq!(run(9, &[&ok], LOOK / 10).unwrap(), Outcome::Survived(1));
        assert_eq!(run(9, &[&fails], LOOK / 10).unwrap(), Outcome::Noticed("fails".into()));
        assert_eq!(run(9, &[&breaks], LOOK / 10).unwrap(), Outcome::Noticed("a".into()));
        assert_eq!(run(9, &[&spins], LOOK / 10).unwrap(), Outcome::Endless("the start".into()));
        assert_eq!(run(9, &[&sleeps], LOOK / 10).unwrap(), Outcome::Endless("the start".into()));
        let tests = vec![ok, fails];
        let mut tests = Tests { tests, broken: Vec::new(), noticed: BTreeMap::new() };
        assert_eq!(tests.try_change(9, 7, 0).unwrap(), Outcome::Noticed("fails".into()));
        assert_eq!(tests.noticed[&7], "fails");
        assert_eq!(tests.try_change(9, 7, 1).unwrap(), Outcome::Survived(0), "none takes longer");
        assert_eq!(tests.try_change(9, 6, 0).unwrap(), Outcome::Survived(0), "nothing reaches it");
    }

    #[test]
    fn short_tests_share_a_process() {
        let test = |program: &str, name: &str, takes| Test {
            program: program.into(),
            folder: PathBuf::new(),
            name: name.into(),
            takes: Duration::from_millis(takes),
            reaches: BTreeSet::new(),
        };
        let tests = [test("a", "1", 1), test("b", "2", 2), test("a", "3", 3), test("a", "4", 200), test("a", "5", 300)];
        let batches = batches(&tests.iter().collect::<Vec<_>>());
        let names: Vec<Vec<&str>> =
            batches.iter().map(|batch| batch.iter().map(|test| test.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["1", "3"], vec!["2"], vec!["4"], vec!["5"]]);
    }
}
