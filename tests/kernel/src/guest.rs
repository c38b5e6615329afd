//! The kernel's side: the lab's Linux guest replays histories with `guest/replay.c`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use xtask::process;

use crate::compare::{self, told};
use crate::disks::{Slots, origins};
use crate::history::{DATA_SLOT_SECTORS, META_SLOT_SECTORS, ORIGIN_SECTORS, Played};

/// A guest that takes longer is broken.
const GUEST_LIMIT: Duration = Duration::from_secs(900);
const COMPILER_LIMIT: Duration = Duration::from_secs(120);

/// What the kernel's side needs of this machine.
#[derive(Debug, Clone)]
pub struct Lab {
    /// The folder of the lab.
    pub folder: PathBuf,
    /// The compiled `guest/replay.c`.
    replay: PathBuf,
}

impl Lab {
    /// Compiles the guest's program into `scratch`.
    pub fn new(folder: PathBuf, scratch: &Path) -> Result<Lab> {
        let replay = scratch.join("replay");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"]).arg(&replay);
        process::succeed(gcc.arg(source("replay.c")), COMPILER_LIMIT)?;
        Ok(Lab { folder, replay })
    }

    /// Boots the guest, in which each history is replayed on its slot, and returns its answers, history by history.
    pub fn replay(&self, scratch: &Path, slots: &Pools, histories: &[&Played]) -> Result<Vec<Vec<String>>> {
        let script = scratch.join("histories");
        std::fs::write(&script, script_of(slots, histories)?)?;
        let mut vm = process::tied(self.folder.join("linux-vm"));
        for name in ["meta", "data", "origin"] {
            vm.arg("--disk").arg(format!("{},serial={name},cache=unsafe", scratch.join(name).display()));
        }
        vm.args(["--timeout", &GUEST_LIMIT.as_secs().to_string(), "--file"]).arg(&self.replay);
        vm.arg("--file").arg(&script).arg("--").arg(source("run.sh"));
        let ended = process::run(&mut vm, GUEST_LIMIT)?;
        let text = String::from_utf8_lossy(&ended.stdout);
        let answers = answers_of(&text, histories).with_context(|| tail(&String::from_utf8_lossy(&ended.stderr)))?;
        ensure!(ended.status.success(), "the guest: {}\n{}", ended.status, tail(&ended.text()));
        Ok(answers)
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest").join(name)
}

/// The guest's disks.
pub struct Pools {
    /// Of metadata.
    pub meta: Slots,
    /// Of data.
    pub data: Slots,
}

impl Pools {
    /// Makes blank disks for so many histories, and that of the external origins.
    pub fn create(scratch: &Path, histories: usize) -> Result<Pools> {
        let origin = Slots::create(&scratch.join("origin"), 1, ORIGIN_SECTORS)?;
        origin.put(0, &origins(ORIGIN_SECTORS), ORIGIN_SECTORS)?;
        Ok(Pools {
            meta: Slots::create(&scratch.join("meta"), histories, META_SLOT_SECTORS)?,
            data: Slots::create(&scratch.join("data"), histories, DATA_SLOT_SECTORS)?,
        })
    }
}

fn script_of(pools: &Pools, histories: &[&Played]) -> Result<String> {
    let mut script = String::new();
    for (slot, played) in histories.iter().enumerate() {
        let (start, meta, data) = (&played.start, pools.meta.base(slot), pools.data.base(slot));
        let (meta_sectors, block_sectors, data_blocks) = (start.meta_sectors, start.block_sectors, start.data_blocks);
        writeln!(script, "H {meta} {meta_sectors} {data} {DATA_SLOT_SECTORS} {data_blocks} {block_sectors}")?;
        played.steps.iter().try_for_each(|step| writeln!(script, "{}", step.op))?;
        script += "E\n";
    }
    Ok(script)
}

/// Cuts the guest's output into the histories' answers.
fn answers_of(text: &str, histories: &[&Played]) -> Result<Vec<Vec<String>>> {
    let mut lines = text.lines();
    let mut answers = Vec::new();
    for played in histories {
        let mut mine = Vec::new();
        for step in &played.steps {
            let line = lines.next().with_context(|| format!("the guest did not answer {}", step.op))?;
            if line.starts_with("DIED") {
                let before = compare::answers(played, &mine).err().map_or_else(String::new, |error| error.to_string());
                let told = tail(&told(played, &mine));
                bail!("the guest, at {} (ours: {}): {line}; {before}; before:\n{told}", step.op, step.answer);
            }
            mine.push(line.to_owned());
        }
        answers.push(mine);
    }
    ensure!(lines.next() == Some("END"), "the guest did not come to the end of its script");
    Ok(answers)
}
