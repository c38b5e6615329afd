//! `cargo xtask bench delta`: what a delta costs beside `thin_delta` 1.x on the same image.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::process;
use crate::tools::{self, Cost};

const USAGE: &str = "usage: cargo xtask bench delta";

/// Rounds of each tool; the best counts.
const ROUNDS: usize = 5;

const LIMIT: Duration = Duration::from_secs(600);

/// Two snapshots with five million mappings each. What was written to one, and the most that ours may take of the time of
/// `thin_delta`.
const CASES: [(&str, &str, f64); 3] = [
    ("one", "one block differs", 0.01),
    ("clusters", "5 % differ in clusters", 0.1),
    ("random", "5 % differ at random", 0.65),
];

/// Measures and prints; true when every floor is kept.
pub fn run(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    if parser.next()?.is_some() {
        bail!("{USAGE}");
    }
    let ours = tools::build(root)?;
    let theirs = tools::thin_tools(&crate::shared())?.join("thin_delta");
    let folder = tools::target(root).join("bench-delta");
    std::fs::create_dir_all(&folder)?;
    // Makes the images, counts blocks and looks at the heap.
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["bench", "--quiet", "--package", "thinp", "--bench", "delta", "--", "--folder"]);
    let mut kept = command.arg(&folder).status()?.success();
    println!("processor time on one core, best of {ROUNDS}:");
    for (case, what, most) in CASES {
        kept &= compare(&ours, &theirs, &folder.join(format!("delta-{case}.img")), what, most)?;
    }
    Ok(kept)
}

fn compare(ours: &Path, theirs: &Path, image: &Path, what: &str, most: f64) -> Result<bool> {
    let devices = ["--snap1", "1", "--snap2", "2"];
    let changes = ["delta", "--changes", "--snap1", "1", "--snap2", "2"];
    let (_, all) = changes.split_at(2);
    let all: Vec<&str> = ["delta"].into_iter().chain(all.iter().copied()).collect();
    let text = |program: &Path, arguments: &[&str]| {
        process::succeed(Command::new(program).args(arguments).arg(image), LIMIT).map(|ended| ended.stdout)
    };
    ensure!(text(ours, &all)? == text(theirs, &devices)?, "{what}: thin_delta says something else");
    let best = |program: &Path, arguments: &[&str]| {
        (0..ROUNDS).map(|_| tools::measure(program, arguments, image)).reduce(|a, b| Ok(a?.better(b?)))
    };
    let [Some(theirs), Some(ours), Some(with_same)] = [best(theirs, &devices), best(ours, &changes), best(ours, &all)]
    else {
        bail!("no rounds");
    };
    let (theirs, ours, with_same): (Cost, Cost, Cost) = (theirs?, ours?, with_same?);
    let part = ours.seconds / theirs.seconds;
    let kept = part <= most;
    println!(
        "{what}: ours {:.4} s, with what is the same {:.3} s; thin_delta 1.x {:.3} s: {part:.4} of its time, at most {most}: {}",
        ours.seconds,
        with_same.seconds,
        theirs.seconds,
        if kept { "floor kept" } else { "FLOOR MISSED" }
    );
    Ok(kept)
}
