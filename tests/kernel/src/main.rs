//! The thin pool compared with Linux's dm-thin: random histories are carried out by `thinp` in this process and by the
//! kernel of the lab's Linux guest. Answers, status lines, error numbers, what is read, and what the metadata says in the
//! end must be the same, apart from docs/deviations.md. Then each side goes on with the other's pool.
//!
//! `cargo xtask test` runs it. By hand: `cargo run -p kernel-compare -- --seed 7 --histories 1`.
#![forbid(unsafe_code)]

mod compare;
mod disks;
mod dump;
mod guest;
mod history;
mod ours;
mod run;
mod script;

use std::process::ExitCode;

use anyhow::Result;
use xtask::dice::Dice;

use run::Plan;

const USAGE: &str = "\
usage: kernel-compare [options]
  --histories N    histories each way (default 20)
  --operations N   operations in each (default 300)
  --jobs N         Linux guests at a time (default 2)
  --seed N         of the first history, the next has the next (default: another each time)
  --effort N       N times as many histories (default 1)";

fn main() -> ExitCode {
    match plan().and_then(|plan| plan.map_or(Ok(true), run::run)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kernel-compare: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// What the command line asks for; `None` when it was answered already.
fn plan() -> Result<Option<Plan>> {
    use lexopt::prelude::*;
    let mut plan = Plan { histories: 20, operations: 300, jobs: 2, seed: Dice::fresh_seed() >> 32 };
    let mut effort = 1;
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("histories") => plan.histories = parser.value()?.parse()?,
            Long("operations") => plan.operations = parser.value()?.parse()?,
            Long("jobs") => plan.jobs = parser.value()?.parse()?,
            Long("seed") => plan.seed = parser.value()?.parse()?,
            Long("effort") => effort = parser.value()?.parse()?,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => return Err(anyhow::anyhow!("{}\n{USAGE}", other.unexpected())),
        }
    }
    plan.histories *= effort;
    Ok(Some(plan))
}
