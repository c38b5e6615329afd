//! `gossamer`: manages an appliance from a host, and keeps backups of its volumes in folders (`docs/backup.md`).
//!
//! A backup is a stream of [`thinp::stream`] in a file; what is verified, merged and restored is read from there without
//! the appliance.
#![forbid(unsafe_code)]

mod api;
mod args;
mod backup;
mod calendar;
mod commands;
mod durable;
mod failure;
mod http;
mod image;
mod manifest;
mod merge;
mod progress;
mod prune;
mod restore;
mod show;
mod stream;

#[cfg(test)]
mod tests;

use api::Api;
use args::{Arguments, Command};
use clap::Parser;
use failure::{Failure, Result};
use manifest::{Backup, Folder};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("gossamer: {failure}");
            failure.exit_code()
        }
    }
}

/// Carries out what the command line asks for; false when that failed and was told.
fn run(arguments: &Arguments) -> Result<bool> {
    let (common, json) = (&arguments.common, arguments.common.json);
    let quiet = common.quiet || json;
    match &arguments.command {
        Command::Backup { volume, folder, full } => {
            let made = backup::run(&Api::new(common)?, folder, volume, *full, quiet)?;
            list(&made, json)?;
        }
        Command::List { folder } => list(&Folder::look(folder)?.manifest.backups, json)?,
        Command::Verify { folder } => verify(folder, json, quiet)?,
        Command::Restore(to) => restore(arguments, to, quiet)?,
        Command::Prune(keep) => prune(keep, json, quiet)?,
        Command::Pool(command) => return commands::pool(&Api::new(common)?, command, json),
        Command::Volume(command) => commands::volume(&Api::new(common)?, command, json)?,
        Command::Snapshot(command) => commands::snapshot(&Api::new(common)?, command, json)?,
        Command::Policy(command) => commands::policy(&Api::new(common)?, command, json)?,
        Command::Delta { left, right, format, changed, from, metadata_snapshot } => {
            let same = if *changed { "&same=no" } else { "" };
            let held = if *metadata_snapshot { "&metadata_snapshot=yes" } else { "" };
            commands::delta(&Api::new(common)?, left, right, *format, &format!("{same}{held}&from={from}"))?;
        }
    }
    Ok(true)
}

fn list(backups: &[Backup], json: bool) -> Result<()> {
    if json {
        return show::line(&json!({"backups": backups}).to_string());
    }
    let row = |backup: &Backup| {
        let kind = if backup.base.is_some() { "increment" } else { "full" };
        let (time, volume) = (calendar::rfc3339(backup.time), backup.volume_bytes.to_string());
        [backup.id.to_string(), time, kind.into(), volume, backup.stream_bytes.to_string(), backup.file.clone()]
    };
    show::table(&["ID", "TIME", "KIND", "VOLUME", "STREAM", "FILE"], backups.iter().map(row))
}

fn verify(folder: &Path, json: bool, quiet: bool) -> Result<()> {
    let verdicts = restore::verify(&Folder::look(folder)?, quiet)?;
    if json {
        let each = verdicts.iter().map(|verdict| json!({"id": verdict.id, "damage": verdict.damage}));
        show::line(&json!({"backups": each.collect::<Vec<_>>()}).to_string())?;
    } else {
        for verdict in &verdicts {
            let words = verdict.damage.as_deref().unwrap_or("good");
            show::line(&format!("{}: {words}", verdict.id))?;
        }
    }
    match verdicts.iter().filter(|verdict| verdict.damage.is_some()).count() {
        0 => Ok(()),
        damaged => Err(Failure::Damaged(format!("{damaged} of {} backups are damaged", verdicts.len()))),
    }
}

fn restore(arguments: &Arguments, to: &args::Restore, quiet: bool) -> Result<()> {
    let folder = Folder::look(&to.folder)?;
    let index = folder.find(to.at)?;
    let restored = match (&to.to_file, &to.to_volume) {
        (Some(path), _) => {
            restore::to_file(&folder, index, path, to.force, quiet)?;
            json!({"file": path})
        }
        (None, Some(name)) => restore::to_volume(&Api::new(&arguments.common)?, &folder, index, name, to.force, quiet)?,
        (None, None) => return Err(Failure::Usage("--to-file or --to-volume?".into())),
    };
    if arguments.common.json { show::value(&restored, true) } else { Ok(()) }
}

fn prune(keep: &args::Prune, json: bool, quiet: bool) -> Result<()> {
    let mut folder = Folder::open(&keep.folder)?;
    let plan = prune::plan(&folder.manifest.backups, keep);
    if !keep.dry_run {
        prune::run(&mut folder, &plan, quiet)?;
    }
    if json {
        return show::line(&json!({"gone": plan.gone, "backups": folder.manifest.backups}).to_string());
    }
    let gone: Vec<String> = plan.gone.iter().map(u64::to_string).collect();
    let words = if keep.dry_run { "would go" } else { "gone" };
    if !gone.is_empty() {
        show::line(&format!("{words}: {}", gone.join(", ")))?;
    }
    list(&folder.manifest.backups, false)
}
