//! `cargo xtask fuzz`: coverage-guided fuzzing of what reads metadata and streams, by libFuzzer on stable Rust.
//!
//! The crate `fuzz` has the targets. They are built apart from everything else, with the compiler's coverage counters,
//! under `target/fuzz`, where the corpus is kept as well and the inputs that failed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;

use crate::dice::Dice;
use crate::process;

const USAGE: &str = "\
usage: cargo xtask fuzz [TARGET...] [options]
  --seconds N    so long, all targets together (default 60)
  --runs N       so many executions of each target, however long that takes
  --seed N       of libFuzzer's choices (default: another each time)
  --input FILE   only this input, to one TARGET
Without a TARGET: all of them. The corpus is kept in target/fuzz/corpus, an input that failed in target/fuzz/failed.";

/// What the compiler is told: count edges. (Showing the fuzzer what is compared with what costs more than half of the
/// speed, and finds nothing here: the edits know the layout, and a dictionary has the words.)
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table";

/// With `--target` the flags are for the targets only, not for what runs while they are built.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// One execution that takes longer, by the clock, has lost its way: far more than any takes (milliseconds), because a busy
/// machine may keep the process waiting for 20 s.
const TIMEOUT_SECONDS: u32 = 60;

/// Longest input.
const INPUT_BYTES_MAX: u32 = 2048;

struct Options {
    targets: Vec<String>,
    seconds: u64,
    runs: Option<u64>,
    seed: u64,
    input: Option<PathBuf>,
}

/// What libFuzzer tells of a run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    executions: u64,
    edges_seen: u64,
    edges: u64,
}

impl Figures {
    /// Reads a line of its output.
    fn read(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| words.iter().position(|w| *w == word).and_then(|at| words.get(at + 1)?.parse().ok());
        if let Some(seen) = after("cov:") {
            self.edges_seen = seen;
        }
        if let Some(executions) = after("stat::number_of_executed_units:") {
            self.executions = executions;
        }
        if let Some((before, _)) = line.split_once(" inline 8-bit counters")
            && let Some(edges) = before.rsplit('(').next().and_then(|number| number.trim().parse().ok())
        {
            self.edges = edges;
        }
    }
}

/// Runs the chore; true when nothing failed. Results are told as libtest does.
pub fn run(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    let Some(options) = parse(root, parser)? else { return Ok(true) };
    let programs = build(root)?;
    if let Some(input) = &options.input {
        let [target] = options.targets.as_slice() else { bail!("--input is for one target\n{USAGE}") };
        let (status, _) = execute(process::tied(programs.join(target)).arg(input))?;
        return Ok(status.success());
    }
    let (mut passed, mut failed) = (0, 0);
    for target in &options.targets {
        let mut command = command(root, &programs.join(target), target, &options)?;
        println!("{}", process::describe(&command));
        let (status, figures) = execute(&mut command)?;
        let Figures { executions, edges_seen, edges } = figures;
        println!("fuzz {target}: seed {}, {executions} executions, {edges_seen} of {edges} edges", options.seed);
        // Without counters the fuzzer would be blind.
        if status.success() && executions > 0 && edges_seen > 0 {
            passed += 1;
            println!("test fuzz::{target} ... ok");
        } else {
            failed += 1;
            let failed = folder(root).join("failed");
            println!("its input is in {}: cargo xtask fuzz {target} --input FILE", failed.display());
            println!("test fuzz::{target} ... FAILED ({status})");
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out");
    Ok(failed == 0)
}

fn parse(root: &Path, parser: &mut lexopt::Parser) -> Result<Option<Options>> {
    let mut options =
        Options { targets: Vec::new(), seconds: 60, runs: None, seed: Dice::fresh_seed() >> 32, input: None };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("seconds") => options.seconds = parser.value()?.parse()?,
            Long("runs") => options.runs = Some(parser.value()?.parse()?),
            // libFuzzer takes 32 bits, and 0 for none.
            Long("seed") => options.seed = u64::from(parser.value()?.parse::<u32>()?),
            Long("input") => options.input = Some(PathBuf::from(parser.value()?)),
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            Value(target) => options.targets.push(target.string()?),
            other => bail!("{}\n{USAGE}", other.unexpected()),
        }
    }
    options.seed = options.seed.max(1);
    let known = targets(root)?;
    if let Some(unknown) = options.targets.iter().find(|target| !known.contains(target)) {
        bail!("no target {unknown}; there are {}", known.join(", "));
    }
    if options.targets.is_empty() {
        options.targets = known;
    }
    Ok(Some(options))
}

/// The targets there are: a program each.
pub fn targets(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("fuzz/src/bin");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Where everything of the fuzzer is kept.
fn folder(root: &Path) -> PathBuf {
    root.join("target/fuzz")
}

/// Builds all targets; the folder of their programs.
fn build(root: &Path) -> Result<PathBuf> {
    let folder = folder(root).join("build");
    let mut cargo = process::tied(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--profile", "fuzz", "--locked", "-p", "fuzz", "--target", TRIPLE])
        .arg("--target-dir")
        .arg(&folder);
    let status = cargo.current_dir(root).env("RUSTFLAGS", COVERAGE).status().context("cargo build -p fuzz")?;
    ensure!(status.success(), "cargo build -p fuzz: {status}");
    Ok(folder.join(TRIPLE).join("fuzz"))
}

/// How `target` is run: on the corpus that was found earlier, and on its seeds in the repository if there are any.
fn command(root: &Path, program: &Path, target: &str, options: &Options) -> Result<Command> {
    let folder = folder(root);
    let (corpus, failed) = (folder.join("corpus").join(target), folder.join("failed"));
    for folder in [&corpus, &failed] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let mut command = process::tied(program);
    let limit = match options.runs {
        Some(runs) => format!("-runs={runs}"),
        None => format!("-max_total_time={}", (options.seconds / options.targets.len().max(1) as u64).max(1)),
    };
    command.args([limit, format!("-seed={}", options.seed), format!("-timeout={TIMEOUT_SECONDS}")]);
    // Longer inputs are tried soon: there is no time to wait for them.
    command.args([format!("-max_len={INPUT_BYTES_MAX}"), "-len_control=10".into(), "-print_final_stats=1".into()]);
    command.arg(format!("-artifact_prefix={}/{target}-", failed.display()));
    let seeds = root.join("fuzz/seeds").join(target);
    let words = seeds.with_extension("dict");
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    command.arg(corpus);
    if seeds.exists() {
        command.arg(seeds);
    }
    Ok(command)
}

/// Runs a target and shows what it says, but for the many lines about new inputs.
fn execute(command: &mut Command) -> Result<(ExitStatus, Figures)> {
    let name = process::describe(command);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().with_context(|| name.clone())?;
    let stderr = child.stderr.take().context("no standard error")?;
    let mut figures = Figures::default();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        figures.read(&line);
        let news = ["\tNEW ", "\tREDUCE", "\tRELOAD", "NEW_FUNC"];
        if !news.iter().any(|word| line.contains(word)) {
            println!("{line}");
        }
    }
    Ok((child.wait()?, figures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Loaded 1 modules   (6271 inline 8-bit counters): 6271 [0x5581, 0x5582),",
            "#2\tINITED cov: 3 ft: 4 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#4096\tpulse  cov: 1207 ft: 1310 corp: 40/1Kb exec/s: 2048 rss: 41Mb",
            "#9000\tDONE   cov: 1310 ft: 1500 corp: 44/1Kb exec/s: 2000 rss: 41Mb",
            "stat::number_of_executed_units: 9000",
        ] {
            figures.read(line);
        }
        assert_eq!(figures, Figures { executions: 9000, edges_seen: 1310, edges: 6271 });
    }

    #[test]
    fn the_targets_are_known() {
        assert!(targets(&crate::root()).unwrap().contains(&"open_check".to_owned()));
    }
}
