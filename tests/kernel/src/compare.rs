//! Are both sides the same? What docs/deviations.md lists may differ, and nothing else.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use platform::block::SECTOR_BYTES;
use platform::mem::MemDisk;
use thinp::control::Mode;
use xtask::process;
use xtask::thin_dump::Dump;

use crate::disks::first_difference;
use crate::dump::{Names, metadata_counts};
use crate::history::Played;
use crate::ours::data_counts;
use crate::script::{Op, Step};

const TOOL_LIMIT: Duration = Duration::from_secs(120);

/// The checkers: the packaged thin-provisioning-tools, and the stricter 1.x.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The folder of 1.x.
    folder: PathBuf,
}

impl Tools {
    /// Those of the lab.
    pub fn new(lab: &Path) -> Result<Tools> {
        let ended = process::succeed(&mut Command::new(lab.join("thin-tools")), TOOL_LIMIT)?;
        Ok(Tools { folder: PathBuf::from(String::from_utf8(ended.stdout)?.trim()) })
    }

    /// Both checkers must find nothing wrong.
    fn check(&self, meta: &Path) -> Result<()> {
        let old = process::find("thin_check").context("no thin_check; it comes with thin-provisioning-tools")?;
        for program in [self.folder.join("thin_check"), old] {
            process::succeed(Command::new(program).arg(meta), TOOL_LIMIT).context("the metadata is not sound")?;
        }
        Ok(())
    }

    fn dump(&self, meta: &Path, held: bool) -> Result<Dump> {
        let mut command = Command::new(self.folder.join("thin_dump"));
        if held {
            command.arg("-m");
        }
        Dump::parse(&String::from_utf8(process::succeed(command.arg(meta), TOOL_LIMIT)?.stdout)?)
    }
}

/// Compares the answers to a history.
pub fn answers(played: &Played, kernel: &[String]) -> Result<()> {
    let mut deviations = Deviations::default();
    for (number, (step, theirs)) in played.steps.iter().zip(kernel).enumerate() {
        let Step { op, answer, .. } = step;
        deviations.see(step);
        if answer == theirs || deviations.allow(step, theirs) {
            continue;
        }
        bail!("operation {number}, {op}: ours answers {answer:?}, Linux {theirs:?}");
    }
    Ok(())
}

/// Both sides' answers, a line each, those marked that are not literally the same.
pub fn told(played: &Played, kernel: &[String]) -> String {
    let line = |(Step { op, answer, .. }, theirs): (&Step, &String)| match answer == theirs {
        true => format!("  {op} -> {answer}\n"),
        false => format!("* {op} -> ours {answer} | Linux {theirs}\n"),
    };
    played.steps.iter().zip(kernel).map(line).collect()
}

/// What docs/deviations.md allows, which depends on what came before.
#[derive(Default)]
struct Deviations {
    /// Sectors of the active devices' external origins.
    origins: HashMap<u64, u64>,
}

impl Deviations {
    fn see(&mut self, step: &Step) {
        if let Op::OpenThin { id, origin, .. } = &step.op {
            self.origins.remove(id);
            self.origins.extend(origin.map(|sectors| (*id, sectors)));
        }
    }

    fn allow(&self, Step { op, mode, answer }: &Step, theirs: &str) -> bool {
        match op {
            // 11: FLUSH in other modes than write.
            Op::Flush(_) => match mode {
                Mode::OutOfDataSpace => answer == "ok" && theirs == "E28",
                mode => *mode >= Mode::ReadOnly && answer == "ok" && theirs == "E5",
            },
            // 14: beyond the end of the external origin in other modes than write.
            Op::Read { id, at } => {
                let beyond = self.origins.get(id).is_some_and(|origin| at.sector + at.sectors > *origin);
                *mode > Mode::Write && beyond && !answer.starts_with('E') && theirs == "E5"
            }
            // 15: where the metadata snapshot is.
            Op::Status => without_held_root(answer) == without_held_root(theirs),
            _ => false,
        }
    }
}

/// A pool's status line without the block of the metadata snapshot, but with whether there is one.
fn without_held_root(status: &str) -> Vec<&str> {
    let mut words: Vec<&str> = status.split(' ').collect();
    if let Some(held) = words.get_mut(3)
        && *held != "-"
        && held.parse::<u64>().is_ok()
    {
        *held = "held";
    }
    words
}

/// A side's disks after a history.
pub struct Side<'a> {
    /// For messages.
    pub name: &'static str,
    /// Of metadata.
    pub meta: &'a MemDisk,
    /// Of data.
    pub data: &'a MemDisk,
}

/// What is compared of a side's metadata.
struct Facts {
    names: Names,
    live: Dump,
    held: Option<Dump>,
    metadata_counts: [u64; 3],
}

/// Compares the disks of both sides.
pub fn disks(tools: &Tools, scratch: &Path, played: &Played, ours: &Side, linux: &Side) -> Result<()> {
    let mut a = facts(tools, scratch, played, ours).context(ours.name)?;
    let mut b = facts(tools, scratch, played, linux).context(linux.name)?;
    ensure!(a.held.is_some() == b.held.is_some(), "only one side holds a metadata snapshot");
    if played.start.strict {
        dumps(&a.live, &b.live)?;
    }
    dumps(&a.names.rename(a.live), &b.names.rename(b.live))?;
    if let (Some(a_held), Some(b_held)) = (a.held, b.held) {
        dumps(&a.names.rename(a_held), &b.names.rename(b_held)).context("the metadata snapshots")?;
    }
    let (a_counts, b_counts) = (a.names.counts(), b.names.counts());
    ensure!(a_counts == b_counts, "reference counts of data blocks: ours {a_counts:?}, Linux {b_counts:?}");
    let (a_counts, b_counts) = (a.metadata_counts, b.metadata_counts);
    ensure!(a_counts == b_counts, "metadata blocks with counts 1, 2, more: ours {a_counts:?}, Linux {b_counts:?}");
    // Deviation 10: what a metadata snapshot holds we do not discard.
    let snapshots = played.steps.iter().any(|step| step.answer == "ok" && is_reserve(&step.op));
    if played.start.strict && !snapshots {
        let sectors = played.data_blocks * played.start.block_sectors;
        if let Some(byte) = first_difference(ours.data, linux.data, sectors) {
            let block = byte / (played.start.block_sectors * SECTOR_BYTES as u64);
            bail!("the data disks differ in data block {block}, byte {byte} of the disk");
        }
    }
    Ok(())
}

fn is_reserve(op: &Op) -> bool {
    matches!(op, Op::Message(text) if text.eq_ignore_ascii_case("reserve_metadata_snap"))
}

fn facts(tools: &Tools, scratch: &Path, played: &Played, side: &Side) -> Result<Facts> {
    let bytes = side.meta.peek(0, played.meta_sectors as usize * SECTOR_BYTES);
    let file = scratch.join("compared");
    std::fs::write(&file, &bytes)?;
    tools.check(&file)?;
    let held_root = bytes.get(56..64).context("no superblock")?;
    let held = held_root.iter().any(|byte| *byte != 0).then(|| tools.dump(&file, true)).transpose()?;
    Ok(Facts {
        names: Names::new(data_counts(side.meta.fork(), played.data_blocks)?),
        live: tools.dump(&file, false)?,
        held,
        metadata_counts: metadata_counts(&bytes)?,
    })
}

/// Compares what two pools say, and tells the first difference.
fn dumps(ours: &Dump, linux: &Dump) -> Result<()> {
    let pool = |dump: &Dump| [dump.time, dump.transaction_id, dump.data_block_sectors, dump.data_blocks];
    let (a, b) = (pool(ours), pool(linux));
    ensure!(a == b, "time, transaction id, block size, data blocks: ours {a:?}, Linux {b:?}");
    let ids = |dump: &Dump| dump.devices.keys().copied().collect::<Vec<_>>();
    ensure!(ids(ours) == ids(linux), "devices: ours {:?}, Linux {:?}", ids(ours), ids(linux));
    for ((id, a), b) in ours.devices.iter().zip(linux.devices.values()) {
        let (x, y) = (a.details, b.details);
        ensure!(x == y, "device {id}, mapped blocks, transaction, creation, snapshot: ours {x:?}, Linux {y:?}");
        let blocks = a.mappings.keys().chain(b.mappings.keys());
        for block in blocks {
            let (x, y) = (a.mappings.get(block), b.mappings.get(block));
            ensure!(x == y, "device {id}, block {block}, data block and time: ours {x:?}, Linux {y:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_differs_in_anything_but_the_place_of_the_snapshot() {
        let line = "5 216/2048 13/1024 36 rw discard_passdown queue_if_no_space - 512 ";
        assert_eq!(without_held_root(line), without_held_root(&line.replace("36", "40")));
        assert_ne!(without_held_root(line), without_held_root(&line.replace("36", "-")));
        assert_ne!(without_held_root(line), without_held_root(&line.replace("216", "217")));
        assert_ne!(without_held_root(line), without_held_root(line.trim_end()));
    }
}
