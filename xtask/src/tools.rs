//! `cargo xtask pool …`: the host's tools for metadata images; and what they cost beside those of Linux.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::dice::Dice;
use crate::process;

/// What the bench's image holds, and how large its data disk is: 2 TiB.
const MAPPINGS: u64 = 10_000_000;
const DATA_BLOCKS: u64 = 32 << 20;
const DEVICES: u64 = 8;
const IMAGE_BYTES: u64 = 400 << 20;

/// Data blocks that are handed out together.
const EXTENT_BLOCKS: u64 = 8;

/// The most memory that a tool may take.
const MEMORY_FLOOR_KIB: u64 = 64 << 10;

/// Rounds of each tool; the best counts.
const ROUNDS: usize = 5;

const LIMIT: Duration = Duration::from_secs(600);

/// Builds `gossamer-pool`, optimised, and returns where it is.
pub fn build(root: &Path) -> Result<PathBuf> {
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--package", "tools"])
        .current_dir(root)
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "building gossamer-pool failed");
    Ok(target(root).join("release/gossamer-pool"))
}

/// The folder of thin-provisioning-tools 1.x.
pub fn thin_tools(shared: &Path) -> Result<PathBuf> {
    let folder = process::succeed(&mut Command::new(shared.join("lab/thin-tools")), LIMIT)?;
    Ok(PathBuf::from(String::from_utf8_lossy(&folder.stdout).trim()))
}

/// Where cargo puts what it builds.
pub fn target(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Runs `gossamer-pool` with these arguments; true if it ended well.
pub fn run(root: &Path, arguments: impl IntoIterator<Item = OsString>) -> Result<bool> {
    let program = build(root)?;
    let status = Command::new(&program).args(arguments).status().with_context(|| program.display().to_string())?;
    Ok(status.success())
}

/// What one run of a tool took.
#[derive(Clone, Copy)]
pub struct Cost {
    /// Processor time, of the program and of the system on its behalf.
    pub seconds: f64,
    memory_kib: u64,
}

/// Measures check, dump and space accounting of ten million mappings beside `thin_check`, `thin_dump` and `thin_ls` 1.x, each in turn on one core. True
/// if ours are as fast and stay within their memory.
pub fn bench(root: &Path, shared: &Path) -> Result<bool> {
    let ours = build(root)?;
    let theirs = thin_tools(shared)?;
    let image = image(&target(root), &ours)?;
    println!("{MAPPINGS} mappings, processor time on one core (best of {ROUNDS}) and memory:");
    let check = compare("check", &theirs.join("thin_check"), &["-q"], &ours, &["check", "-q"], &image)?;
    let null = ["-o", "/dev/null"];
    let dump = compare("dump", &theirs.join("thin_dump"), &null, &ours, &["dump", "-o", "/dev/null"], &image)?;
    let fields = ["-o", "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS"];
    let space = compare("space", &theirs.join("thin_ls"), &fields, &ours, &["space"], &image)?;
    Ok(check && dump && space)
}

fn compare(
    what: &str,
    theirs: &Path,
    their_arguments: &[&str],
    ours: &Path,
    our_arguments: &[&str],
    image: &Path,
) -> Result<bool> {
    let (mut their_best, mut our_best) =
        (measure(theirs, their_arguments, image)?, measure(ours, our_arguments, image)?);
    for _ in 1..ROUNDS {
        their_best = their_best.better(measure(theirs, their_arguments, image)?);
        our_best = our_best.better(measure(ours, our_arguments, image)?);
    }
    let kept = our_best.seconds <= their_best.seconds && our_best.memory_kib <= MEMORY_FLOOR_KIB;
    println!(
        "{what}: ours {:.2} s and {} MiB, 1.x {:.2} s and {} MiB: {:.1} times as fast: {}",
        our_best.seconds,
        our_best.memory_kib / 1024,
        their_best.seconds,
        their_best.memory_kib / 1024,
        their_best.seconds / our_best.seconds.max(0.001),
        if kept { "floor kept" } else { "FLOOR MISSED" }
    );
    Ok(kept)
}

impl Cost {
    /// The least time, and the most memory.
    pub fn better(self, other: Cost) -> Cost {
        let memory_kib = self.memory_kib.max(other.memory_kib);
        Cost { seconds: self.seconds.min(other.seconds), memory_kib }
    }
}

/// Runs a tool on one core. Python asks the system for processor time and peak memory, which the standard library cannot.
pub fn measure(program: &Path, arguments: &[&str], image: &Path) -> Result<Cost> {
    const SCRIPT: &str = "\
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
out = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=out)
_, status, used = os.wait4(pid, 0)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))";
    let mut command = process::tied("python3");
    command.arg("-c").arg(SCRIPT).arg(program).args(arguments).arg(image);
    let text = process::succeed(&mut command, LIMIT)?.text();
    let (seconds, memory_kib) = text.trim().split_once(' ').with_context(|| text.clone())?;
    Ok(Cost { seconds: seconds.parse()?, memory_kib: memory_kib.parse()? })
}

/// The image, made by our own restore the first time.
fn image(target: &Path, ours: &Path) -> Result<PathBuf> {
    let image = target.join("bench-metadata.img");
    if image.exists() {
        return Ok(image);
    }
    println!("making {}", image.display());
    let (dump, unfinished) = (target.join("bench-metadata.xml"), target.join("bench-metadata.tmp"));
    write_dump(&dump).with_context(|| dump.display().to_string())?;
    File::create(&unfinished)?.set_len(IMAGE_BYTES)?;
    process::succeed(Command::new(ours).arg("restore").arg("-i").arg(&dump).arg("-o").arg(&unfinished), LIMIT)?;
    fs::remove_file(dump)?;
    fs::rename(unfinished, &image)?;
    Ok(image)
}

/// A pool as years of use leave it: short runs with gaps between them, scattered over the data disk.
fn write_dump(path: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut dice = Dice::new(5);
    let mut extents: Vec<u32> = (0..(DATA_BLOCKS / EXTENT_BLOCKS) as u32).collect();
    for last in (1..extents.len()).rev() {
        extents.swap(last, dice.between(0, last as u64) as usize);
    }
    writeln!(
        out,
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"{DATA_BLOCKS}\">"
    )?;
    let mut extents = extents.into_iter();
    for device in 0..DEVICES {
        let mut left = MAPPINGS / DEVICES;
        writeln!(
            out,
            "<device dev_id=\"{device}\" mapped_blocks=\"{left}\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">"
        )?;
        let mut next = 0;
        while left > 0 {
            let blocks = left.min(dice.between(1, EXTENT_BLOCKS));
            let extent = extents.next().context("the data disk is too small for the bench")?;
            let data = u64::from(extent) * EXTENT_BLOCKS;
            writeln!(
                out,
                "<range_mapping origin_begin=\"{next}\" data_begin=\"{data}\" length=\"{blocks}\" time=\"0\"/>"
            )?;
            next += blocks + dice.between(0, 2);
            left -= blocks;
        }
        writeln!(out, "</device>")?;
    }
    writeln!(out, "</superblock>")?;
    Ok(out.flush()?)
}
