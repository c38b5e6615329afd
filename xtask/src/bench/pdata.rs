//! `cargo xtask bench pdata`: how fast the metadata library is, and how little heap it needs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;

use crate::tools;

const USAGE: &str = "\
usage: cargo xtask bench pdata [options]
  --quick    a tenth of the mappings, and no picture";

/// Where the costs are drawn.
const PICTURE: &str = "docs/pdata-costs.svg";

/// Measures and prints; true when every floor is kept.
pub fn run(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    let mut quick = false;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("quick") => quick = true,
            _ => bail!("{USAGE}"),
        }
    }
    // All run in any case.
    let costs = costs(root, quick)?;
    let heap = heap(root, quick)?;
    let tools = tools::bench(root, &crate::shared())?;
    Ok(costs && heap && tools)
}

/// What operations cost on a disk without latency.
fn costs(root: &Path, quick: bool) -> Result<bool> {
    let mut command = cargo(root);
    command.args(["bench", "--quiet", "--package", "thinp", "--bench", "pdata", "--"]);
    // The image maps its memory with large pages; here the C library has to be asked for them.
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    if quick {
        command.arg("--quick");
    } else {
        command.arg("--svg").arg(root.join(PICTURE));
    }
    succeeds(&mut command)
}

/// The heap that a pool of 16 TiB needs.
fn heap(root: &Path, quick: bool) -> Result<bool> {
    let mut command = cargo(root);
    command.args(["test", "--quiet", "--release", "--package", "thinp", "--test", "heap", "--", "--nocapture"]);
    command.env("HEAP_MAPPINGS", if quick { "1000000" } else { "10000000" });
    let kept = succeeds(&mut command)?;
    println!("at most 64 MiB of heap: {}", if kept { "floor kept" } else { "FLOOR MISSED" });
    Ok(kept)
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Runs a program that says by its exit status whether the floors are kept.
fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("{command:?} does not start"))?;
    Ok(status.success())
}
