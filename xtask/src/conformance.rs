//! libiscsi's conformance tests (`iscsi-test-cu`) against a target, counted test by test.
//!
//! Each suite runs in a process of its own. A test that does not come out well there runs once more alone, for some depend
//! on what the one before them left; it has passed if it passes either way. A test that passes and says that it skipped
//! something (`[SKIPPED]`) counts as skipped, however much of it ran.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use crate::process;

/// The program.
const PROGRAM: &str = "iscsi-test-cu";

/// A suite that takes longer hangs.
const SUITE_LIMIT: Duration = Duration::from_secs(120);

const USAGE: &str = "\
usage: cargo xtask conformance [options]
  --shape NAME   plain, read-only, 512e, 4096, two-portals, chap (default: all of them)
  --on WHERE     hosted, q35 or microvm (default hosted)
Prints what became of each test of iscsi-test-cu, and checks it against docs/conformance.md.";

/// What became of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// All of it passed.
    Passed,
    /// What ran of it passed, and it left something out without saying `[SKIPPED]`.
    Partly,
    /// It skipped something.
    Skipped,
    /// It failed, crashed or hung.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Passed => "passed",
            Outcome::Partly => "partly",
            Outcome::Skipped => "skipped",
            Outcome::Failed => "failed",
        })
    }
}

/// A test and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// `SUITE.TEST`.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What it said of it.
    pub said: String,
}

impl Verdict {
    /// It counts as passed.
    pub fn counts(&self) -> bool {
        matches!(self.outcome, Outcome::Passed | Outcome::Partly)
    }
}

/// Runs all tests. The first URL is the unit under test, whose contents are lost; a second one is another way to it.
pub fn run(urls: &[String]) -> Result<Vec<Verdict>> {
    let listed = process::succeed(Command::new(PROGRAM).arg("--list"), SUITE_LIMIT).context("libiscsi-bin")?;
    let mut suites: Vec<(String, Vec<String>)> = Vec::new();
    for name in listed.text().split_whitespace().filter_map(|word| word.strip_prefix("ALL.")) {
        let Some((suite, _)) = name.split_once('.') else { continue };
        match suites.last_mut() {
            Some((last, tests)) if last == suite => tests.push(name.to_owned()),
            _ => suites.push((suite.to_owned(), vec![name.to_owned()])),
        }
    }
    ensure!(!suites.is_empty(), "{PROGRAM} --list names no tests");
    let mut verdicts = Vec::new();
    for (suite, tests) in suites {
        let mut of_suite = judge(&suite, &output(&suite, urls)?);
        for name in tests {
            let verdict = of_suite.remove(&name).filter(|verdict| verdict.outcome != Outcome::Failed);
            verdicts.push(match verdict {
                Some(verdict) => verdict,
                None => alone(&suite, name, urls)?,
            });
        }
    }
    Ok(verdicts)
}

/// The verdict on a test that runs alone.
fn alone(suite: &str, name: String, urls: &[String]) -> Result<Verdict> {
    let text = output(&name, urls)?;
    let said = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned();
    let verdict = judge(suite, &text).remove(&name);
    Ok(verdict.unwrap_or(Verdict { name, outcome: Outcome::Failed, said }))
}

/// What the program says of a suite or a test. One that hangs or crashes is no error here: what it said is.
fn output(name: &str, urls: &[String]) -> Result<String> {
    let mut command = process::tied(PROGRAM);
    command.args(["--dataloss", "--allow-sanitize", "--verbose", "--test", &format!("ALL.{name}")]).args(urls);
    match process::run(&mut command, SUITE_LIMIT) {
        Ok(ended) => Ok(ended.text()),
        Err(error) => Ok(format!("{error:#}")),
    }
}

/// Reads what the program said of the tests of a suite. A test whose end is missing has failed.
fn judge(suite: &str, text: &str) -> BTreeMap<String, Verdict> {
    let mut verdicts = BTreeMap::new();
    for part in text.split("\n  Test: ").skip(1) {
        let Some((test, said)) = part.split_once(" ...") else { continue };
        let line = |word| said.lines().find(|line| line.contains(word));
        let (outcome, line) = if !said.lines().any(|line| line.starts_with("passed")) {
            let complaint = line("[FAILED]").or_else(|| line(" 1. "));
            (Outcome::Failed, complaint.unwrap_or("it did not end"))
        } else if let Some(line) = line("[SKIPPED]") {
            (Outcome::Skipped, line)
        } else {
            line("does not support").map_or((Outcome::Passed, ""), |line| (Outcome::Partly, line))
        };
        let name = format!("{suite}.{test}");
        verdicts.insert(name.clone(), Verdict { name, outcome, said: line.trim().to_owned() });
    }
    verdicts
}

/// The table of a shape: suite by suite, then what did not pass.
pub fn table(shape: &str, verdicts: &[Verdict]) -> String {
    let count = |of: &[&Verdict]| {
        let [failed, skipped] = [Outcome::Failed, Outcome::Skipped]
            .map(|outcome| of.iter().filter(|verdict| verdict.outcome == outcome).count());
        format!("{}/{failed}/{skipped}", of.iter().filter(|verdict| verdict.counts()).count())
    };
    let mut suites: Vec<(&str, Vec<&Verdict>)> = Vec::new();
    for verdict in verdicts {
        let suite = verdict.name.split('.').next().unwrap_or_default();
        match suites.last_mut() {
            Some((last, of)) if *last == suite => of.push(verdict),
            _ => suites.push((suite, vec![verdict])),
        }
    }
    suites.push(("**total**", verdicts.iter().collect()));
    let mut text = format!("| suite | {shape} |\n| --- | --- |\n");
    for (suite, of) in suites {
        let _ = writeln!(text, "| {suite} | {} |", count(&of));
    }
    for verdict in verdicts.iter().filter(|verdict| verdict.outcome != Outcome::Passed) {
        let _ = writeln!(text, "{}: {}: {}", verdict.outcome, verdict.name, verdict.said);
    }
    text
}

/// What does not pass in a shape and is accounted for: the rows `| TESTS | SHAPES | OUTCOME | WHY |` of
/// `docs/conformance.md`, where TESTS and SHAPES are names with commas, SHAPES also `all`.
pub fn accounted(root: &Path, shape: &str) -> Result<BTreeMap<String, String>> {
    let path = root.join("docs/conformance.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut rows = BTreeMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, shapes, outcome, why] = cells[..] else { continue };
        let here = shapes == "all" || shapes.split(',').any(|word| word.trim() == shape);
        if !here || !["partly", "skipped", "failed"].contains(&outcome) {
            continue;
        }
        ensure!(!why.is_empty(), "{}: {names} has no reason", path.display());
        for name in names.split(',').map(|name| name.trim().trim_matches('`')) {
            let twice = rows.insert(name.to_owned(), outcome.to_owned());
            ensure!(twice.is_none(), "{}: {name} stands there twice for {shape}", path.display());
        }
    }
    Ok(rows)
}

/// An error that names each test that did not pass and is not accounted for, and each that is and passed.
pub fn check(root: &Path, shape: &str, verdicts: &[Verdict]) -> Result<()> {
    let mut rows = accounted(root, shape)?;
    let mut wrong = Vec::new();
    for Verdict { name, outcome, said } in verdicts {
        let expected = rows.remove(name).unwrap_or_else(|| Outcome::Passed.to_string());
        if expected != outcome.to_string() {
            wrong.push(format!("{name} {outcome}, docs/conformance.md has {expected}: {said}"));
        }
    }
    wrong.extend(rows.into_keys().map(|name| format!("{name} is in docs/conformance.md and nowhere else")));
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// `cargo xtask conformance`: the end-to-end tests of that group.
pub fn chore(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    let (mut on, mut shape) = ("hosted".to_owned(), String::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("shape") => shape = parser.value()?.string()?,
            Long("on") => on = parser.value()?.string()?,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(true);
            }
            other => bail!("{}\n{USAGE}", other.unexpected()),
        }
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = process::tied(&cargo).current_dir(root).args(["build", "--locked", "-p", "hosted"]).status()?;
    ensure!(built.success(), "cargo build -p hosted: {built}");
    let mut tests = process::tied(cargo);
    tests.current_dir(root).args(["run", "--locked", "-p", "e2e", "--", "--group", "conformance", "--on", &on]);
    tests.args((!shape.is_empty()).then(|| format!("conformance::{}", shape.replace('-', "_"))));
    Ok(tests.status().context("cargo run -p e2e")?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "
Suite: Unmap
  Test: Simple ...passed
  Test: VPD ...    [SKIPPED] WRITE is not there
passed
  Test: UnmapUntilEnd ...    WRITESAME10 does not support 0-blocks.WSNZ == 1
passed
  Test: ZeroBlocks ...    [FAILED] UNMAP failed
FAILED
    1. test_unmap_0blocks.c:44  - CU_ASSERT_EQUAL(ret,0)
  Test: Crashes ...";

    #[test]
    fn outcomes_are_read() {
        let verdicts = judge("Unmap", SAID);
        let of = |name: &str| {
            let verdict = &verdicts[&format!("Unmap.{name}")];
            (verdict.outcome, verdict.said.as_str())
        };
        assert_eq!(of("Simple"), (Outcome::Passed, ""));
        assert_eq!(of("VPD"), (Outcome::Skipped, "[SKIPPED] WRITE is not there"));
        assert_eq!(of("UnmapUntilEnd").0, Outcome::Partly);
        assert_eq!(of("ZeroBlocks"), (Outcome::Failed, "[FAILED] UNMAP failed"));
        assert_eq!(of("Crashes"), (Outcome::Failed, "it did not end"));
    }

    #[test]
    fn what_does_not_pass_is_accounted_for() {
        let root = crate::root();
        let rows = accounted(&root, "plain").unwrap();
        let verdict = |(name, outcome): (&String, &String)| {
            let all = [Outcome::Partly, Outcome::Skipped, Outcome::Failed];
            let outcome = all.into_iter().find(|known| known.to_string() == *outcome).unwrap();
            Verdict { name: name.clone(), outcome, said: String::new() }
        };
        let mut verdicts: Vec<_> = rows.iter().map(verdict).collect();
        check(&root, "plain", &verdicts).unwrap();
        verdicts[0].outcome = Outcome::Passed;
        verdicts.push(Verdict { name: "Read10.Simple".into(), outcome: Outcome::Skipped, said: "?".into() });
        let told = check(&root, "plain", &verdicts).unwrap_err().to_string();
        assert_eq!(told.lines().count(), 2, "{told}");
        assert!(told.contains("Read10.Simple skipped, docs/conformance.md has passed: ?"), "{told}");
    }
}
