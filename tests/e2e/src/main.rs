//! The end-to-end tests: written once against an address, run against the hosted appliance and against the image in
//! QEMU, with the real peers (Linux, QEMU, libiscsi, thin-provisioning-tools) at the other end.
//!
//! `cargo xtask test` runs all of them. By hand: `cargo run -p e2e -- --on q35 power_cut`.
#![forbid(unsafe_code)]

mod appliance;
mod context;
mod crc32c;
mod fio;
mod iscsi;
mod relay;
mod runner;
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use xtask::dice::Dice;

use context::Backend;
use runner::Plan;

const USAGE: &str = "\
usage: e2e --on hosted|q35|microvm [options] [FILTER...]
  --list          only list the tests
  --group NAME    only the tests of a group (acceptance, power-cuts, canaries, conformance)
  --image FILE    the image (default: built now)
  --hosted FILE   the hosted appliance (default: beside this program)
  --gossamer FILE the host's program (default: beside this program)
  --jobs N        tests at a time (default 1)
  --effort N      go on N times as long (default 1)
  --memory MIB    memory of the machines (default 64)
  --seed N        of the random choices (default: another each time)
A FILTER is a part of a test's name.";

fn main() -> ExitCode {
    match plan().and_then(|plan| plan.map_or(Ok(true), runner::run)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What the command line asks for; `None` when it was answered already.
fn plan() -> Result<Option<Plan>> {
    use lexopt::prelude::*;
    let program = std::env::current_exe()?;
    let built = program.parent().context("this program lies nowhere")?;
    let (mut on, mut image, mut list) = (None, None, false);
    let mut plan = Plan {
        backend: Backend::Hosted,
        image: PathBuf::new(),
        hosted: built.join("hosted"),
        gossamer: built.join("gossamer"),
        scratch: built.parent().context("no folder for scratch files")?.join("e2e"),
        seed: Dice::fresh_seed(),
        memory_mib: 64,
        effort: 1,
        jobs: 1,
        group: None,
        filters: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("on") => on = Some(parser.value()?.string()?),
            Long("image") => image = Some(PathBuf::from(parser.value()?)),
            Long("hosted") => plan.hosted = PathBuf::from(parser.value()?),
            Long("gossamer") => plan.gossamer = PathBuf::from(parser.value()?),
            Long("group") => plan.group = Some(parser.value()?.string()?),
            Long("jobs") => plan.jobs = parser.value()?.parse()?,
            Long("effort") => plan.effort = parser.value()?.parse()?,
            Long("memory") => plan.memory_mib = parser.value()?.parse()?,
            Long("seed") => plan.seed = parser.value()?.parse()?,
            Long("list") => list = true,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            Value(filter) => plan.filters.push(filter.string()?),
            other => return Err(anyhow::anyhow!("{}\n{USAGE}", other.unexpected())),
        }
    }
    plan.backend = match on.context(USAGE)?.as_str() {
        "hosted" => Backend::Hosted,
        machine => Backend::Image(machine.to_owned()),
    };
    if list {
        plan.tests().iter().for_each(|test| println!("{}", test.name));
        return Ok(None);
    }
    if let (Backend::Image(_), image) = (&plan.backend, image) {
        plan.image = image.map_or_else(|| xtask::image::build(&xtask::root()), Ok)?;
    }
    Ok(Some(plan))
}
