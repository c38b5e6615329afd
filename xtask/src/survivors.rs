//! `cargo xtask mutants --source`: cargo-mutants over `pdata` and `thinp`. It changes the source in a copy of the tree, one
//! small thing at a time, and runs their tests; a change that they do not notice is a test that is missing, or is listed with
//! the reason in `tests/mutants/survivors.txt`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{mutants, process};

/// Other versions make other changes.
const VERSION: &str = "27.1.0";

const INSTALL_LIMIT: Duration = Duration::from_secs(1800);

/// The tests of both crates take less than half of it on a busy machine.
const TEST_SECONDS: &str = "900";

const PACKAGES: [&str; 2] = ["pdata", "thinp"];

/// Tries the `part`-th of `parts` of all changes; each that survives without a reason fails.
pub fn run(root: &Path, part: u32, parts: u32) -> Result<bool> {
    ensure!(part < parts, "part {part} of {parts}: the first is 0");
    let folder = mutants::target(root).join("mutants/source");
    let tree = folder.join("tree");
    mutants::copy_tree(root, &tree)?;
    let mut command = process::tied(program(&folder)?);
    command.args(["mutants", "--in-place", "--baseline", "skip", "--cap-lints", "true", "--timeout", TEST_SECONDS]);
    command.args([
        "--test-package",
        &PACKAGES.join(","),
        "--shard",
        &format!("{part}/{parts}"),
        "--sharding",
        "round-robin",
    ]);
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package])).arg("--output").arg(&folder);
    command.current_dir(&tree).env("CARGO_TARGET_DIR", folder.join("target")).env("GOSSAMER_SHARED", crate::shared());
    // 2: some were missed, 3: some took too long; what matters is which.
    let status = command.status().context("cargo-mutants")?;
    ensure!(matches!(status.code(), Some(0 | 2 | 3)), "cargo-mutants: {status}");
    let outcome = |name: &str| lines(&folder.join("mutants.out").join(name));
    let (caught, missed, endless) = (outcome("caught.txt")?, outcome("missed.txt")?, outcome("timeout.txt")?);
    let list = fs::read_to_string(root.join("tests/mutants/survivors.txt"))?;
    let explained = explained(&list)?;
    let unexplained: Vec<&String> = missed.iter().filter(|line| !explained.contains_key(nameless(line))).collect();
    for line in &unexplained {
        println!("test survivors::{} ... FAILED", line.replace(' ', "_"));
    }
    let (passed, failed) = (caught.len() + missed.len() + endless.len() - unexplained.len(), unexplained.len());
    println!(
        "survivors: part {part} of {parts}: {} noticed, {} ran for ever, {} of {} that survived are explained",
        caught.len(),
        endless.len(),
        missed.len() - failed,
        missed.len()
    );
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    Ok(failed == 0)
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

fn lines(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// A change without its place in the file, which other changes to the file move: `FILE:LINE:COLUMN: CHANGE` is `CHANGE`.
fn nameless(line: &str) -> &str {
    line.splitn(2, ": ").nth(1).unwrap_or(line)
}

/// The changes that may survive, each with the reason: `CHANGE  # REASON`.
fn explained(text: &str) -> Result<BTreeMap<&str, &str>> {
    let mut explained = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (change, reason) =
            line.split_once("  # ").with_context(|| format!("no reason in survivors.txt: {line}"))?;
        explained.insert(change, reason);
    }
    Ok(explained)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_survivor_is_known_wherever_it_moves() {
        let listed = explained("# why\n\nreplace < with <= in pick  # the same\n").unwrap();
        assert!(listed.contains_key(nameless("pdata/src/btree/insert.rs:233:9: replace < with <= in pick")));
        assert!(!listed.contains_key(nameless("pdata/src/btree/insert.rs:233:9: replace < with == in pick")));
        assert!(explained("replace < with <= in pick").is_err());
    }

    #[test]
    fn every_survivor_in_the_list_has_a_reason() {
        explained(&fs::read_to_string(crate::root().join("tests/mutants/survivors.txt")).unwrap()).unwrap();
    }
}
