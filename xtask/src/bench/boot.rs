//! `cargo xtask bench boot`: how fast the image boots, how big it is, how little memory it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use serde_json::json;

use crate::http::Client;
use crate::machine::{Accelerator, Disk, MACHINES, Machine, Profile, Ready};
use crate::{image, packages, process};

const USAGE: &str = "\
usage: cargo xtask bench boot [options]
  --reps N         boots of each machine (default 7)
  --shared FOLDER  where lab/time-to-login is (default ../shared)
  --no-memory      do not look for the least memory, which takes minutes
  --no-install     install nothing";

/// Floors under TCG: slower or bigger than this is not good enough.
const READY_FLOOR: Duration = Duration::from_millis(500);
const IMAGE_FLOOR_BYTES: u64 = 4 << 20;
const MEMORY_FLOOR_MIB: u64 = 64;

/// Memory sizes to try, in MiB.
const MEMORY_MIB: &[u64] = &[16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 256, 512];

const TOKEN: &str = "bench-0123456789abcdef0123456789abcdef";
const LIMIT: Duration = Duration::from_secs(60);
const TEST_LIMIT: Duration = Duration::from_secs(600);

/// What one boot took, from QEMU's start.
struct Boot {
    first_line: Duration,
    ready: Duration,
}

/// Measures and prints; true when every floor is kept.
pub fn run(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    let (mut reps, mut shared, mut memory, mut install) = (7, crate::shared(), true, true);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("reps") => reps = parser.value()?.parse()?,
            Long("shared") => shared = PathBuf::from(parser.value()?),
            Long("no-memory") => memory = false,
            Long("no-install") => install = false,
            _ => bail!("{USAGE}"),
        }
    }
    ensure!(reps > 0, "--reps 0 measures nothing");
    packages::ensure(if memory { packages::TEST } else { packages::RUN }, install)?;
    let image = image::build(root)?;
    let folder = scratch()?;
    let mut kept = true;

    println!("\nUnder TCG, {reps} boots each, median (least); `guest entry` is the image's first line.");
    println!("| machine | QEMU start to guest entry | to the ready line | guest entry to ready | to the first login |");
    println!("| --- | --- | --- | --- | --- |");
    for name in MACHINES {
        let machine = prepare(root, name, &image, &folder)?;
        let boots = (0..reps).map(|_| boot(&machine)).collect::<Result<Vec<Boot>>>()?;
        let of = |what: fn(&Boot) -> Duration| spread(boots.iter().map(what).collect());
        let (first, ready) = (of(|boot| boot.first_line), of(|boot| boot.ready));
        let between = of(|boot| boot.ready - boot.first_line);
        let login = time_to_login(&shared.join("lab/time-to-login"), &machine, reps)?;
        println!("| {name} | {} | {} | {} | {login} |", show(first), show(ready), show(between));
        kept &= floor(&format!("{name}: ready after {}", show(ready)), ready.0 <= READY_FLOOR);
    }
    let size = fs::metadata(&image)?.len();
    let text = format!("image: {size} bytes, {:.2} MiB", size as f64 / (1 << 20) as f64);
    kept &= floor(&text, size < IMAGE_FLOOR_BYTES);
    if memory {
        for name in MACHINES {
            let least = least_memory_mib(name, &image)?;
            let text = format!(
                "{name}: Linux's ext4 and snapshot test passes with {least} MiB, the least that does of those tried"
            );
            kept &= floor(&text, least <= MEMORY_FLOOR_MIB);
        }
    }
    fs::remove_dir_all(folder)?;
    Ok(kept)
}

fn floor(text: &str, kept: bool) -> bool {
    println!("{text}: {}", if kept { "floor kept" } else { "FLOOR MISSED" });
    kept
}

fn scratch() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).context("this program lies nowhere")?;
    let folder = target.join(format!("bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A machine whose pool has a volume exported to all.
fn prepare(root: &Path, name: &str, image: &Path, folder: &Path) -> Result<Machine> {
    let disk = |what: &str, size_bytes: u64| -> Result<Disk> {
        let path = folder.join(format!("{name}-{what}.img"));
        process::sparse_file(&path, size_bytes)?;
        Ok(Disk::file(what, &path))
    };
    let token = folder.join("token");
    fs::write(&token, TOKEN)?;
    let machine = Machine {
        profile: Profile::load(root, name)?,
        accelerator: Accelerator::Tcg,
        memory_mib: MEMORY_FLOOR_MIB,
        image: image.to_owned(),
        settings: vec!["net=10.0.2.15/24,10.0.2.2".into(), "token=given".into()],
        token: Some(token),
        identity: None,
        disks: vec![disk("meta", 16 << 20)?, disk("data", 1 << 30)?],
        qmp: None,
        iscsi_port: process::free_port()?,
        more_iscsi_ports: Vec::new(),
        http_port: process::free_port()?,
    };
    let mut console = machine.start(false)?;
    console.wait_for("the ready line", LIMIT, |line| Ready::parse(&line.text))?;
    let client = Client::new(([127, 0, 0, 1], machine.http_port).into(), Some(TOKEN.into()));
    client.send_json("POST", "/v1/volumes", &json!({"name": "v", "size_bytes": 1 << 30}))?.success()?;
    client.send_json("PUT", "/v1/volumes/v/export", &json!({"initiators": "all"}))?.success()?;
    client.send("POST", "/v1/power-off")?.success()?;
    console.wait_end(LIMIT)?;
    Ok(machine)
}

fn boot(machine: &Machine) -> Result<Boot> {
    let console = machine.start(false)?;
    let ready = console.wait_for("the ready line", LIMIT, |line| Ready::parse(&line.text).map(|_| line.at))?;
    // QEMU's own complaints have no time in brackets before them.
    let first = console.wait_for("a line", LIMIT, |line| line.text.starts_with('[').then_some(line.at))?;
    Ok(Boot { first_line: first - console.started(), ready: ready - console.started() })
}

/// What the lab's own stopwatch says.
fn time_to_login(program: &Path, machine: &Machine, reps: usize) -> Result<String> {
    if !program.exists() {
        return Ok(format!("not measured: no {}", program.display()));
    }
    let mut command = Command::new(program);
    command.args(["--reps", &reps.to_string(), &format!("127.0.0.1:{}", machine.iscsi_port)]);
    command.args(["iqn.2026-11.io.gossamer:v", "--", "qemu-system-x86_64"]).args(machine.arguments());
    let text = process::succeed(&mut command, LIMIT * reps as u32)?.text();
    let median = text.lines().find_map(|line| line.strip_prefix("median "));
    median.map(str::to_owned).with_context(|| format!("no median in {text}"))
}

/// The least memory with which the Linux initiator's test passes.
fn least_memory_mib(name: &str, image: &Path) -> Result<u64> {
    let program = std::env::current_exe()?.with_file_name("e2e");
    ensure!(program.exists(), "{} is not there; `cargo build` makes it", program.display());
    let passes = |memory_mib: u64| -> Result<bool> {
        let mut command = process::tied(&program);
        command.args(["--on", name, "--memory", &memory_mib.to_string(), "linux_initiator"]).arg("--image").arg(image);
        let ended = process::run(&mut command, TEST_LIMIT)?;
        let passed = ended.status.success() && ended.text().contains("1 passed");
        println!("{name} with {memory_mib} MiB: {}", if passed { "passes" } else { "fails" });
        Ok(passed)
    };
    // Below `low` it fails, at `high` it passes.
    let (mut low, mut high) = (0, MEMORY_MIB.len());
    while low < high {
        let middle = (low + high) / 2;
        if passes(MEMORY_MIB[middle])? { high = middle } else { low = middle + 1 }
    }
    MEMORY_MIB.get(high).copied().context("the test passes with no memory size at all")
}

/// The median and the least.
fn spread(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[0])
}

fn show((median, least): (Duration, Duration)) -> String {
    format!("{} ms ({})", median.as_millis(), least.as_millis())
}
