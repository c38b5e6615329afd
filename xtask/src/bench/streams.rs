//! `cargo xtask bench streams`: how much a stream carries beside what changed, and how fast it goes, beside reading the disk.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::console::Console;
use crate::dice::Dice;
use crate::machine::Ready;
use crate::{gossamer, process, tools};

const USAGE: &str = "usage: cargo xtask bench streams";

const BLOCK_BYTES: u64 = 64 << 10;
/// The volume is mapped whole.
const BLOCKS: u64 = 8192;
const DATA_BYTES: u64 = 2 << 30;
const META_BYTES: u64 = 16 << 20;

/// Blocks that an increment brings: one, and 5 % at random.
const CHANGES: [u64; 2] = [1, BLOCKS / 20];

/// The most bytes of stream for each byte of changed blocks.
const WIRE_MOST: f64 = 1.05;

/// Rounds of sending and reading; the best counts.
const ROUNDS: usize = 3;

const TOKEN: &str = "bench-0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(600);

/// Measures and prints; true when the floor is kept.
pub fn run(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    if parser.next()?.is_some() {
        bail!("{USAGE}");
    }
    let gossamer = gossamer::build(root)?;
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "--package", "hosted"])
        .current_dir(root)
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "building hosted failed");
    let folder = tools::target(root).join("bench-streams");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let (meta, data) = (folder.join("meta.img"), folder.join("data.img"));
    process::sparse_file(&meta, META_BYTES)?;
    process::sparse_file(&data, DATA_BYTES)?;
    let mut hosted = process::tied(tools::target(root).join("release/hosted"));
    hosted.arg("--meta").arg(&meta).arg("--data").arg(&data).args(["--iscsi", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let console = Console::start(hosted.args(["--token", TOKEN]), false)?;
    let ready = console.wait_for("a ready line", LIMIT, |line| Ready::parse(&line.text))?;
    let url = format!("http://{}", ready.get("http").context("no http= in the ready line")?);
    measure(&Bench { gossamer: &gossamer, url, folder: &folder }, &data)
}

struct Bench<'a> {
    gossamer: &'a Path,
    url: String,
    folder: &'a Path,
}

fn measure(bench: &Bench<'_>, data: &Path) -> Result<bool> {
    let mut dice = Dice::new(1);
    let stream = bench.folder.join("made.stream");
    make(&stream, (0..BLOCKS).collect(), &mut dice)?;
    let size = (BLOCKS * BLOCK_BYTES).to_string();
    let took = bench.run(&["volume", "receive", "v1", "--size", &size], Some(&stream), None)?;
    println!("receive: {:.0} MB/s", rate(BLOCKS * BLOCK_BYTES, took));
    bench.run(&["snapshot", "create", "v1=s0", "--read-only"], None, None)?;
    let mut kept = true;
    for (n, changed) in CHANGES.into_iter().enumerate() {
        let mut blocks = Vec::new();
        while (blocks.len() as u64) < changed {
            blocks.push(dice.below(BLOCKS));
            blocks.sort_unstable();
            blocks.dedup();
        }
        make(&stream, blocks, &mut dice)?;
        bench.run(&["volume", "receive", "v1", "--base", "v1"], Some(&stream), None)?;
        let (before, now) = (format!("s{n}"), format!("s{}", n + 1));
        bench.run(&["snapshot", "create", &format!("v1={now}"), "--read-only"], None, None)?;
        let sent = bench.folder.join("sent.stream");
        bench.run(&["volume", "send", &now, "--from", &before], None, Some(&sent))?;
        let part = fs::metadata(&sent)?.len() as f64 / (changed * BLOCK_BYTES) as f64;
        kept &= part <= WIRE_MOST;
        println!("{changed} of {BLOCKS} blocks changed: {part:.4} of them on the wire (at most {WIRE_MOST})");
    }
    // Neither reads what the other has left in memory.
    let cold = || dd(&[&format!("if={}", data.display()), "of=/dev/null", "iflag=nocache", "count=0"]);
    let send = || cold().and_then(|_| bench.run(&["volume", "send", "s0"], None, None));
    let count = format!("count={}", (BLOCKS * BLOCK_BYTES) >> 20);
    let read = || {
        cold().and_then(|_| dd(&[&format!("if={}", data.display()), "of=/dev/null", "iflag=direct", "bs=1M", &count]))
    };
    let best = |run: &dyn Fn() -> Result<Duration>| -> Result<f64> {
        let times = (0..ROUNDS).map(|_| run()).collect::<Result<Vec<_>>>()?;
        Ok(times.into_iter().map(|took| rate(BLOCKS * BLOCK_BYTES, took)).fold(0.0, f64::max))
    };
    let (sent, raw) = (best(&send)?, best(&read)?);
    println!("send: {sent:.0} MB/s; the disk, read by dd: {raw:.0} MB/s; {:.2} of it", sent / raw);
    Ok(kept)
}

impl Bench<'_> {
    /// Runs the host's program; how long it took.
    fn run(&self, arguments: &[&str], input: Option<&Path>, output: Option<&Path>) -> Result<Duration> {
        let mut command = process::tied(self.gossamer);
        command.args(arguments).env("GOSSAMER_URL", &self.url).env("GOSSAMER_TOKEN", TOKEN);
        let input = input.map(File::open).transpose()?.map_or_else(Stdio::null, Stdio::from);
        let output = output.map(File::create).transpose()?.map_or_else(Stdio::null, Stdio::from);
        let begun = Instant::now();
        let status = command.stdin(input).stdout(output).status().context("gossamer")?;
        ensure!(status.success(), "gossamer {}: {status}", arguments.join(" "));
        Ok(begun.elapsed())
    }
}

fn dd(arguments: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    process::succeed(Command::new("dd").args(arguments), LIMIT).map(|_| begun.elapsed())
}

fn rate(bytes: u64, took: Duration) -> f64 {
    bytes as f64 / took.as_secs_f64() / 1e6
}

/// A foreign stream of random data for these blocks, which ascend.
fn make(path: &Path, blocks: Vec<u64>, dice: &mut Dice) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut chunk = |command: u32, offset: u64, length: u64, body: &[u8]| -> Result<()> {
        out.write_all(&0x24C4_F02A_AE2E_4FA9_u64.to_be_bytes())?;
        out.write_all(&[offset, length].map(u64::to_be_bytes).concat())?;
        out.write_all(&command.to_be_bytes())?;
        Ok(out.write_all(body)?)
    };
    chunk(2, 0, 0, &[])?;
    let mut payload = vec![0; BLOCK_BYTES as usize];
    for block in &blocks {
        dice.fill(&mut payload);
        chunk(0, block * BLOCK_BYTES, BLOCK_BYTES, &payload)?;
    }
    let count = blocks.len() as u64;
    chunk(3, 0, 24, &[count + 2, count, 0].map(u64::to_be_bytes).concat())?;
    Ok(out.flush()?)
}
