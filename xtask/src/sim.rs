//! `cargo xtask sim`: the simulator; and `cargo xtask mutants --sim`: whether it finds planted bugs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use crate::woven::{self, Weft};
use crate::{mutants, process, survivors};

const USAGE: &str = "\
usage: cargo xtask mutants NAME              build the image of a mutant
       cargo xtask mutants --sim [NAME...]   have the simulator find mutants: these, or all
       cargo xtask mutants --source [TEXT...]  have the tests of pdata and thinp find small changes: all, or those in whose
                                             place or name one of the texts is, such as `pdata/src/btree`
  --some N     only N of the mutants, others from minute to minute
  --part K/N   only the changes of the K-th of N parts of the source; the first is 0
  --jobs N     so many changes of the source at a time (default 2)
  --tests TEXT only the tests in whose name this is";

/// A mutant must be found within a tenth of the crash points of a CI run.
const POINTS: u64 = 10_000;

/// Some are found after 5,000 on the average: one first seed in ten misses them.
const GOES: u32 = 2;

/// Far more than so many crash points take.
const LIMIT: Duration = Duration::from_secs(1800);

/// A build of a whole copy of the tree.
const BUILD_LIMIT: Duration = Duration::from_secs(1800);

/// Builds the simulator of a tree and returns the program.
fn build(tree: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--package", "sim"]).current_dir(tree).env("CARGO_TARGET_DIR", target);
    process::succeed(&mut cargo, BUILD_LIMIT).context("building the simulator")?;
    Ok(target.join("debug/sim"))
}

/// Runs the simulator with these arguments; true if it found nothing.
pub fn run(root: &Path, arguments: impl IntoIterator<Item = OsString>) -> Result<bool> {
    let program = build(root, &mutants::target(root))?;
    let status = Command::new(&program).args(arguments).status().with_context(|| program.display().to_string())?;
    Ok(status.success())
}

/// `cargo xtask mutants`; false if a mutant was not found.
pub fn mutants(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    let (mut hunt, mut source, mut some, mut chosen) = (false, false, None, Vec::new());
    let mut changes = survivors::Chosen::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("sim") => hunt = true,
            Long("some") => some = Some(parser.value()?.parse()?),
            Long("source") => source = true,
            Long("part") => changes.part = Some(parser.value()?.parse_with(survivors::part)?),
            Long("jobs") => changes.jobs = parser.value()?.parse()?,
            Long("tests") => changes.tests = parser.value()?.string()?,
            Value(name) => chosen.push(name.string()?),
            _ => bail!("{USAGE}"),
        }
    }
    if source {
        return survivors::run(root, &survivors::Chosen { texts: chosen, ..changes });
    }
    let known = mutants::names(root)?;
    let unknown = chosen.iter().find(|name| !known.contains(name));
    ensure!(unknown.is_none(), "no mutant {}: there are {}", unknown.map_or("", String::as_str), known.join(", "));
    match (hunt, &chosen[..]) {
        (false, [name]) => {
            println!("{}", mutants::build_image(root, name)?.display());
            Ok(true)
        }
        (false, _) => bail!("{USAGE}\none of {}", known.join(", ")),
        (true, []) => hunt_all(root, &some.map_or(known.clone(), |some| in_turn(known, some))),
        (true, _) => hunt_all(root, &chosen),
    }
}

/// So many of the names, which ones the clock says.
fn in_turn(mut names: Vec<String>, some: usize) -> Vec<String> {
    let minutes = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60;
    let first = (minutes % names.len().max(1) as u64) as usize;
    names.rotate_left(first);
    names.truncate(some);
    names
}

/// Each of the mutants, as a test that passes if the simulator finds it.
fn hunt_all(root: &Path, names: &[String]) -> Result<bool> {
    let mut missed = 0;
    let begun = Instant::now();
    let bred = breed(root, names)?;
    println!("mutants: {} in one build, after {:.0} s", bred.together.len(), begun.elapsed().as_secs_f64());
    for name in names {
        let begun = Instant::now();
        let found = hunt_one(root, name, &bred)?;
        let seconds = begun.elapsed().as_secs_f64();
        match found {
            Some(line) => println!("{line}\ntest mutants::{name} ... ok ({seconds:.0} s)"),
            None => {
                missed += 1;
                println!("test mutants::{name} ... FAILED ({seconds:.0} s): not found in {GOES} goes");
            }
        }
    }
    let (result, passed) = (if missed == 0 { "ok" } else { "FAILED" }, names.len() - missed);
    println!("test result: {result}. {passed} passed; {missed} failed; 0 ignored; 0 measured; 0 filtered out");
    Ok(missed == 0)
}

/// Mutants that are ready to be hunted.
struct Bred {
    program: PathBuf,
    /// The numbers by which the program knows those that are in it.
    together: BTreeMap<String, u32>,
}

/// Builds a simulator with all of the mutants that change nothing but bodies of functions.
fn breed(root: &Path, names: &[String]) -> Result<Bred> {
    let folder = mutants::target(root).join("mutants/sim");
    let tree = folder.join("tree");
    let (mut weft, mut together) = (Weft::default(), BTreeMap::new());
    for (number, name) in (1..).zip(names) {
        mutants::prepare_in(root, name, &tree)?;
        let changed = mutants::changed(root, name, &tree)?;
        if changed.is_some_and(|changed| weft.take(number, &changed)) {
            together.insert(name.clone(), number);
        }
    }
    mutants::copy_tree(root, &tree)?;
    weft.write(&tree)?;
    let program = folder.join("together");
    fs::copy(build(&tree, &folder.join("target"))?, &program)?;
    Ok(Bred { program, together })
}

/// What the simulator says of a mutant; `None` if it finds nothing.
fn hunt_one(root: &Path, name: &str, bred: &Bred) -> Result<Option<String>> {
    let mut simulator = match bred.together.get(name) {
        Some(number) => {
            let mut simulator = Command::new(&bred.program);
            simulator.env(woven::VARIABLE, number.to_string());
            simulator
        }
        None => {
            let folder = mutants::target(root).join("mutants/sim");
            let tree = mutants::prepare_in(root, name, &folder.join("tree"))?;
            Command::new(build(&tree, &folder.join("target"))?)
        }
    };
    simulator.args(["--stop", "--points", &POINTS.to_string()]);
    for _ in 0..GOES {
        let ended = process::run(&mut simulator, LIMIT)?;
        let text = ended.text();
        let line = text.lines().find(|line| line.starts_with("sim: FAILED")).map(str::to_owned);
        ensure!(ended.status.success() || line.is_some(), "the simulator broke: {text}");
        if line.is_some() {
            return Ok(line);
        }
        println!("mutant {name}: not found in {POINTS} crash points");
    }
    Ok(None)
}
