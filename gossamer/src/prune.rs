//! `gossamer prune`: which backups stay, and how the others go.
//!
//! A backup that goes is merged into the next one of its chain that stays: that one then stands on what the merged one stood
//! on, and holds the changes of both. What stays can be restored as before. A chain of which nothing stays is deleted.

use crate::args;
use crate::calendar::{Period, compact};
use crate::failure::{Failure, Result};
use crate::manifest::{Backup, Folder, hex};
use crate::progress::Progress;
use crate::restore;
use crate::stream::{Found, Place, Writer};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;

/// What becomes of the backups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Those that go, by number.
    pub gone: Vec<u64>,
    /// Places in the list: of each range only the last stays, and the others are merged into it.
    merges: Vec<Range<usize>>,
    /// Places of those that are deleted as they are.
    deleted: Vec<usize>,
}

/// Which backups stay, by place: the newest, and the newest of each period that is wanted.
fn staying(backups: &[Backup], keep: &args::Prune) -> BTreeSet<usize> {
    let mut staying = BTreeSet::new();
    let newest_first = || (0..backups.len()).rev();
    staying.extend(newest_first().take(keep.keep_last.max(1)));
    let periods = [
        (Period::Hour, keep.keep_hourly),
        (Period::Day, keep.keep_daily),
        (Period::Week, keep.keep_weekly),
        (Period::Month, keep.keep_monthly),
        (Period::Year, keep.keep_yearly),
    ];
    for (period, count) in periods {
        let mut last = None;
        let mut left = count;
        for (index, backup) in newest_first().filter_map(|index| Some((index, backups.get(index)?))) {
            let here = period.of(backup.time);
            if left == 0 {
                break;
            }
            if last != Some(here) {
                staying.insert(index);
                last = Some(here);
                left = left.saturating_sub(1);
            }
        }
    }
    staying
}

/// What is to be done.
pub fn plan(backups: &[Backup], keep: &args::Prune) -> Plan {
    let staying = staying(backups, keep);
    let mut plan = Plan::default();
    // Those that go, and wait for one of their chain that stays.
    let mut first = 0;
    for (index, backup) in backups.iter().enumerate() {
        if backup.base.is_none() {
            plan.deleted.extend(first..index);
            first = index;
        }
        if staying.contains(&index) {
            if first < index {
                plan.merges.push(first..index.saturating_add(1));
            }
            first = index.saturating_add(1);
        }
    }
    let gone = backups.iter().enumerate().filter(|(index, _)| !staying.contains(index));
    plan.gone = gone.map(|(_, backup)| backup.id).collect();
    plan
}

/// Carries the plan out, the newest first, so that places stay what they are. Each step leaves the folder whole.
pub fn run(folder: &mut Folder, plan: &Plan, quiet: bool) -> Result<()> {
    folder.clean()?;
    let mut steps: Vec<Range<usize>> = plan.merges.clone();
    steps.extend(plan.deleted.iter().map(|index| *index..index.saturating_add(1)));
    steps.sort_by_key(|step| std::cmp::Reverse(step.start));
    for step in steps {
        let merged = if plan.merges.contains(&step) { Some(merge(folder, step.clone(), quiet)?) } else { None };
        let replaced = folder.manifest.backups.splice(step, merged);
        let files: Vec<String> = replaced.map(|backup| backup.file).collect();
        // The file that was announced is no longer in danger.
        folder.manifest.retired_files.clear();
        folder.manifest.retired_files.extend(files);
        folder.save()?;
        folder.clean()?;
    }
    Ok(())
}

/// Merges these backups into a new file.
fn merge(folder: &mut Folder, places: Range<usize>, quiet: bool) -> Result<Backup> {
    let chain = folder.manifest.backups.get(places).unwrap_or_default().to_vec();
    let (Some(oldest), Some(newest)) = (chain.first(), chain.last()) else {
        return Err(Failure::Here("nothing to merge".into()));
    };
    let file = format!("{:06}-{:06}-{}.stream", oldest.id, newest.id, compact(newest.time));
    folder.manifest.retired_files.push(file.clone());
    folder.save()?;
    let path = folder.file(&file);
    let (merge, info) = restore::open(folder, &chain)?;
    let out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(Failure::file(&path))?);
    let mut writer = Writer::begin(out, &info, Place::file(&path))?;
    let progress = Progress::new(format!("merge into {}", newest.id), info.volume_bytes, quiet);
    merge.run(0, &mut writer, |at| progress.reach(at))?;
    let out = writer.end()?.into_inner().map_err(|error| Failure::file(&path)(error.into_error()))?;
    out.sync_all().map_err(Failure::file(&path))?;
    // The backups that it is made of go for good, so it is read again before.
    let found = Found::read(&path)?.filter(|found| found.complete && found.info == info);
    let found = found.ok_or_else(|| Failure::Damaged(format!("{}: not what was written", path.display())))?;
    Ok(Backup {
        base: oldest.base.clone(),
        file,
        stream_bytes: found.file_bytes,
        data_bytes: found.data_bytes,
        digest: hex(&found.checkpoint.resume.digest),
        ..newest.clone()
    })
}
