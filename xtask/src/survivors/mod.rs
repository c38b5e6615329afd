//! `cargo xtask mutants --source`: cargo-mutants' changes to `pdata` and `thinp`, one small thing each, which their tests must
//! notice. A change that they do not notice is a test that is missing, or is listed with the reason in
//! `tests/mutants/survivors.txt`.
//!
//! cargo-mutants itself builds and tests every change, which takes days. Here it only lists them: [`weave`] puts all into one copy of
//! the source, [`build`] builds that once, and [`trial`] runs for each change the tests that reach it.

mod build;
mod trial;
mod weave;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{mutants, process};
use build::Built;
use trial::{Outcome, ROUNDS, Tests};
use weave::Change;

/// Other versions make other changes.
const VERSION: &str = "27.1.0";

const INSTALL_LIMIT: Duration = Duration::from_secs(1800);
const LIST_LIMIT: Duration = Duration::from_secs(300);

const PACKAGES: [&str; 2] = ["pdata", "thinp"];

/// Which changes to try.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Only the functions of this part of so many.
    pub part: Option<(usize, usize)>,
    /// Only changes whose place and name contain one of these, if there are any.
    pub texts: Vec<String>,
    /// Only tests whose name contains this.
    pub tests: String,
    /// So many at a time.
    pub jobs: usize,
}

impl Default for Chosen {
    fn default() -> Chosen {
        Chosen { part: None, texts: Vec::new(), tests: String::new(), jobs: 2 }
    }
}

impl Chosen {
    fn of(&self, changes: Vec<Change>) -> Vec<Change> {
        let mut functions: Vec<_> = changes.iter().map(Change::function).collect();
        functions.sort();
        functions.dedup();
        let number = |change: &Change| functions.partition_point(|function| *function < change.function());
        let keeps: Vec<bool> = changes
            .iter()
            .map(|change| {
                self.part.is_none_or(|(part, parts)| number(change) % parts == part)
                    && (self.texts.is_empty() || self.texts.iter().any(|text| change.place.contains(text)))
            })
            .collect();
        changes.into_iter().zip(keeps).filter_map(|(change, keeps)| keeps.then_some(change)).collect()
    }
}

/// Reads `K/N`.
pub fn part(text: &str) -> Result<(usize, usize)> {
    let (part, parts) = text.split_once('/').context("not K/N")?;
    let (part, parts) = (part.parse()?, parts.parse()?);
    ensure!(part < parts, "part {part} of {parts}: the first is 0");
    Ok((part, parts))
}

/// Tries the chosen changes; each that survives without a reason fails.
pub fn run(root: &Path, chosen: &Chosen) -> Result<bool> {
    let begun = Instant::now();
    let folder = mutants::target(root).join("mutants/source");
    let tree = folder.join("tree");
    mutants::copy_tree(root, &tree)?;
    let reasons = fs::read_to_string(root.join("tests/mutants/survivors.txt"))?;
    let (known, changes) = split(list(&program(&folder)?, &tree)?, &explained(&reasons)?, chosen)?;
    println!("survivors: {} changes, {} more are explained", changes.len(), known.len());
    let built = build::build(&tree, &folder.join("target"), &changes)?;
    println!(
        "survivors: built after {:.0} s: {} do not compile, {} cannot be chosen at run time",
        begun.elapsed().as_secs_f64(),
        built.unviable.len(),
        built.apart.len()
    );
    let tests = Tests::find(&built.programs, &chosen.tests, &folder.join("reached.txt"))?;
    fs::write(folder.join("tests.txt"), tests.table())?;
    let (count, time) = tests.extent();
    ensure!(count > 0, "no test passes");
    println!(
        "survivors: {count} tests take {:.0} s; left out, for they fail so: {:?}",
        time.as_secs_f64(),
        tests.broken
    );
    let mut outcomes = fs::File::create(folder.join("outcomes.txt"))?;
    for change in changes.iter().filter(|change| built.apart.contains(&change.number)) {
        writeln!(outcomes, "not tried\t{}\t{}", change.place, change.name)?;
    }
    let tally = try_all(&changes, &built, &tests, outcomes, chosen.jobs)?;
    let Tally { noticed, endless, survived } = tally;
    println!(
        "survivors: {noticed} noticed, {endless} ran for ever, {survived} survived, {} explained; {} do not compile, {} not tried; {:.0} s",
        known.len(),
        built.unviable.len(),
        built.apart.len(),
        begun.elapsed().as_secs_f64()
    );
    let (result, passed) = (if survived == 0 { "ok" } else { "FAILED" }, noticed + endless + known.len());
    println!("test result: {result}. {passed} passed; {survived} failed; 0 ignored; 0 measured; 0 filtered out");
    Ok(survived == 0)
}

/// The chosen changes that are explained, and the others.
fn split(all: Vec<Change>, explained: &BTreeMap<&str, &str>, chosen: &Chosen) -> Result<(Vec<Change>, Vec<Change>)> {
    let nothing = explained.keys().find(|name| !all.iter().any(|change| change.name == **name));
    ensure!(nothing.is_none(), "survivors.txt explains what is no change any more: {}", nothing.unwrap_or(&""));
    Ok(chosen.of(all).into_iter().partition(|change| explained.contains_key(change.name.as_str())))
}

/// Tries what was built, so many changes at a time, and tells what survives and, in a file, what became of each.
fn try_all(changes: &[Change], built: &Built, tests: &Tests, outcomes: fs::File, jobs: usize) -> Result<Tally> {
    let book = Mutex::new((Tally::default(), outcomes));
    let mut left: Vec<(&Change, usize)> = changes.iter().map(|change| (change, 0)).collect();
    for round in 0..ROUNDS.len() {
        let (queue, again) = (Mutex::new(std::mem::take(&mut left).into_iter()), Mutex::new(Vec::new()));
        let work = |mut tests: Tests| -> Result<()> {
            loop {
                let Some((change, reached)) = taken(&queue).next() else { return Ok(()) };
                let Some(function) = built.functions.get(&change.number) else { continue };
                let outcome = tests.try_change(change.number, *function, round)?;
                let (tally, outcomes) = &mut *taken(&book);
                match outcome {
                    Outcome::Noticed(_) => tally.noticed += 1,
                    Outcome::Endless(_) => tally.endless += 1,
                    Outcome::Survived(reaching) if round + 1 == ROUNDS.len() => {
                        let (place, reaching) = (change.place.replace(' ', "_"), reached + reaching);
                        println!("test survivors::{place} ... FAILED: {reaching} tests call its function");
                        tally.survived += 1;
                    }
                    Outcome::Survived(reaching) => taken(&again).push((change, reached + reaching)),
                }
                writeln!(outcomes, "{outcome}\t{}\t{}", change.place, change.name)?;
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(|| work(tests.clone()))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        left = again.into_inner().unwrap_or_else(PoisonError::into_inner);
    }
    Ok(book.into_inner().unwrap_or_else(PoisonError::into_inner).0)
}

fn taken<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many changes came to which end.
#[derive(Default)]
struct Tally {
    noticed: usize,
    endless: usize,
    survived: usize,
}

/// All changes that cargo-mutants can make to the tree.
fn list(program: &Path, tree: &Path) -> Result<Vec<Change>> {
    let mut list = Command::new(program);
    list.args(["mutants", "--list", "--json"]).args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let listed = process::succeed(list.current_dir(tree), LIST_LIMIT)?;
    weave::changes(&String::from_utf8(listed.stdout)?, |file| {
        fs::read_to_string(tree.join(file)).with_context(|| file.to_owned())
    })
}

/// Installs cargo-mutants below the target directory, if it is not there.
fn program(folder: &Path) -> Result<PathBuf> {
    let program = folder.join("bin/cargo-mutants");
    if !program.is_file() {
        let mut install = Command::new("cargo");
        install.args(["install", "--quiet", "--locked", "--version", VERSION, "cargo-mutants", "--root"]).arg(folder);
        install.env("CARGO_TARGET_DIR", folder.join("build"));
        process::succeed(&mut install, INSTALL_LIMIT)?;
    }
    Ok(program)
}

/// The changes that may survive, each with the reason: `FILE: CHANGE  # REASON`.
fn explained(text: &str) -> Result<BTreeMap<&str, &str>> {
    let mut explained = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (change, reason) =
            line.split_once("  # ").with_context(|| format!("no reason in survivors.txt: {line}"))?;
        ensure!(explained.insert(change, reason).is_none(), "twice in survivors.txt: {change}");
    }
    Ok(explained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survivor_in_the_list_has_a_reason() {
        let listed = explained("# why\n\na.rs: replace < with <= in pick (2)  # the same\n").unwrap();
        assert_eq!(listed.get("a.rs: replace < with <= in pick (2)"), Some(&"the same"));
        assert!(explained("a.rs: replace < with <= in pick").is_err());
        assert!(explained("a  # b\na  # c").is_err());
    }

    #[test]
    fn a_part_is_one_of_so_many() {
        assert_eq!(part("0/3").unwrap(), (0, 3));
        assert!(["3/3", "1", "a/b", "0/0"].iter().all(|text| part(text).is_err()));
    }

    #[test]
    fn every_survivor_in_the_list_has_a_reason() {
        explained(&fs::read_to_string(crate::root().join("tests/mutants/survivors.txt")).unwrap()).unwrap();
    }
}
