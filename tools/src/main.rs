//! `gossamer-pool`: check, dump, delta, space accounting, restore and repair of thin-pool metadata on files and block devices.
//!
//! The work is done by [`thinp::metadata`]; here are only the command line, the files and the words of the verdict.
#![forbid(unsafe_code)]

mod args;
mod disk;

use args::{Command, USAGE};
use disk::FileDisk;
use platform::Runtime;
use platform::block::Disk;
use platform::random::Seeded;
use platform::simulated;
use platform::task::block_on_ready;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::check::{Severity, check};
use thinp::metadata::delta;
use thinp::metadata::dump::{self, DumpError, Options};
use thinp::metadata::repair::{self, must_be_blank};
use thinp::metadata::restore::{self, Overrides};
use thinp::metadata::space;

/// Most bytes of I/O buffers.
const BUFFER_BYTES: usize = 4 << 20;

/// What a restore reads of its input at a time.
const INPUT_BYTES: usize = 64 << 10;

/// Most memory of a repair: enough for as many nodes as metadata can have.
const REPAIR_BYTES: usize = 1 << 30;

/// Metadata blocks of 4 KiB that a restore keeps in memory.
const CACHE_BLOCKS: usize = 4096;

/// Files answer at once, and nothing here looks at the time.
fn runtime() -> Runtime {
    simulated::runtime_at_once(Rc::new(Seeded::from_u64(0)), BUFFER_BYTES)
}

fn main() -> ExitCode {
    let command = match args::parse(std::env::args_os().skip(1)) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("gossamer-pool: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let done = match command {
        Command::Help => say(USAGE).map(|()| true),
        Command::Version => say(concat!("gossamer-pool ", env!("CARGO_PKG_VERSION"))).map(|()| true),
        Command::Check { file, quiet, memory_bytes } => run_check(&file, quiet, memory_bytes),
        Command::Dump { file, options, output } => run_dump(&file, &options, output.as_deref()).map(|()| true),
        Command::Delta { file, metadata_snap, options, output } => {
            run_delta(&file, metadata_snap, &options, output.as_deref()).map(|()| true)
        }
        Command::Space { file, delete, memory_bytes } => run_space(&file, &delete, memory_bytes).map(|()| true),
        Command::Restore { input, output, overrides, quiet } => {
            run_restore(&input, &output, &overrides, quiet).map(|()| true)
        }
        Command::Repair { input, output, options, force, quiet } => {
            run_repair(&input, &output, &options, force, quiet).map(|()| true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gossamer-pool: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A line on standard output. Whoever stopped reading has seen enough.
fn say(line: &str) -> Result<(), String> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("standard output: {error}")),
        _ => Ok(()),
    }
}

fn open(path: &Path, read_only: bool) -> Result<Disk, String> {
    Ok(Disk::new(FileDisk::open(path, read_only)?))
}

/// False when something is damaged.
fn run_check(file: &Path, quiet: bool, memory_bytes: usize) -> Result<bool, String> {
    let report = block_on_ready(check(&runtime(), &open(file, true)?, memory_bytes));
    let report = report.map_err(|error| format!("{}: {error}", file.display()))?;
    let good = report.worst().is_none_or(|worst| worst == Severity::Hint) && report.untold == 0;
    if quiet {
        return Ok(good);
    }
    for problem in &report.problems {
        let severity = match problem.severity() {
            Severity::Hint => "hint",
            Severity::Leak => "leak",
            Severity::Damage => "damage",
        };
        say(&format!("{severity}: {problem}"))?;
    }
    if report.untold > 0 {
        say(&format!("and {} more", report.untold))?;
    }
    if report.needs_check {
        say("the superblock says that a check is needed (needs_check)")?;
    }
    let verdict = if good { "good" } else { "DAMAGED" };
    say(&format!("{} devices, {} mappings: {verdict}", report.devices, report.mappings))?;
    Ok(good)
}

fn run_dump(file: &Path, options: &Options, output: Option<&Path>) -> Result<(), String> {
    let (disk, mut out) = (open(file, true)?, create(output)?);
    let dumped = block_on_ready(dump::dump(&runtime(), &disk, options, async |piece: &[u8]| out.write_all(piece)));
    written(dumped.and_then(|()| out.flush().map_err(DumpError::Sink)), file, output)
}

fn run_delta(file: &Path, metadata_snap: bool, options: &delta::Options, output: Option<&Path>) -> Result<(), String> {
    let (disk, mut out) = (open(file, true)?, create(output)?);
    let sink = async |piece: &[u8]| out.write_all(piece);
    let compared = block_on_ready(delta::delta(&runtime(), &disk, metadata_snap, options, sink));
    written(compared.and_then(|()| out.flush().map_err(DumpError::Sink)), file, output)
}

/// Where text goes: standard output if no file is given.
fn create(output: Option<&Path>) -> Result<Box<dyn Write>, String> {
    Ok(match output {
        Some(path) => Box::new(File::create(path).map_err(|error| format!("{}: {error}", path.display()))?),
        None => Box::new(io::stdout()),
    })
}

/// What became of text made from `file`. Whoever stopped reading has seen enough.
fn written(result: Result<(), DumpError<io::Error>>, file: &Path, output: Option<&Path>) -> Result<(), String> {
    match result {
        Err(DumpError::Sink(error)) if output.is_none() && error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| format!("{}: {error}", file.display())),
    }
}

fn run_space(file: &Path, delete: &[DeviceId], memory_bytes: usize) -> Result<(), String> {
    let (disk, failed) = (open(file, true)?, |error| format!("{}: {error}", file.display()));
    if !delete.is_empty() {
        let freed = block_on_ready(space::freed_by(&runtime(), &disk, delete, memory_bytes)).map_err(failed)?;
        return say(&freed.to_string());
    }
    say("DEV MAPPED EXCLUSIVE SHARED")?;
    for found in block_on_ready(space::of_devices(&runtime(), &disk, memory_bytes)).map_err(failed)? {
        let (mapped, exclusive) = (found.mapped_blocks, found.exclusive_blocks);
        say(&format!("{} {mapped} {exclusive} {}", found.device, found.shared_blocks()))?;
    }
    Ok(())
}

fn run_restore(input: &PathBuf, output: &Path, overrides: &Overrides, quiet: bool) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", input.display());
    let mut source: Box<dyn Read> = match input.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(input).map_err(|error| failed(&error))?),
    };
    let disk = open(output, false)?;
    let mut buffer = vec![0; INPUT_BYTES];
    let read = async |piece: &mut Vec<u8>| {
        let len = source.read(&mut buffer)?;
        piece.extend_from_slice(&buffer[..len]);
        Ok::<(), io::Error>(())
    };
    let restored = block_on_ready(restore::restore(&runtime(), &disk, CACHE_BLOCKS, overrides, read));
    let restored = restored.map_err(|error| failed(&error))?;
    if !quiet {
        say(&format!(
            "{}: {} devices, {} mappings, {} of {} metadata blocks used",
            output.display(),
            restored.devices,
            restored.mappings,
            restored.metadata_blocks_used,
            restored.metadata_blocks
        ))?;
    }
    Ok(())
}

fn run_repair(input: &Path, output: &Path, options: &repair::Options, force: bool, quiet: bool) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", input.display());
    if disk::are_the_same(input, output)? {
        return Err(format!("{} is the damaged metadata itself: give another file or device", output.display()));
    }
    let (runtime, from, to) = (runtime(), open(input, true)?, open(output, false)?);
    let repaired = block_on_ready(async {
        if !force {
            must_be_blank(&runtime, &to).await?;
        }
        repair::repair(&runtime, &from, &to, REPAIR_BYTES, options).await
    });
    let report = repaired.map_err(|error| failed(&error))?;
    if quiet { Ok(()) } else { say(&report.to_string()) }
}
