//! `gossamer restore` and `gossamer verify`: the streams of a chain, read together.

use crate::api::{Api, STREAM, json, segment};
use crate::failure::{Failure, Result};
use crate::image::Image;
use crate::manifest::{Backup, Folder};
use crate::merge::{Expected, Merge};
use crate::progress::Progress;
use crate::stream::{Place, Sink, Writer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use thinp::stream::{Info, Token};

/// The streams of these backups, as the one that they make together.
pub fn open(folder: &Folder, chain: &[Backup]) -> Result<(Merge, Info)> {
    let paths: Vec<PathBuf> = chain.iter().map(|backup| folder.file(&backup.file)).collect();
    let expected = chain.iter().zip(&paths).map(|(backup, path)| {
        Ok(Expected { path, target: backup.target()?, base: backup.base()?, digest: &backup.digest })
    });
    let merge = Merge::open(&expected.collect::<Result<Vec<_>>>()?)?;
    let info = merge.info().ok_or_else(|| Failure::Damaged("a chain without backups".into()))?;
    Ok((merge, info))
}

/// Into a file or block device.
pub fn to_file(folder: &Folder, index: usize, path: &Path, force: bool, quiet: bool) -> Result<()> {
    let (merge, info) = open(folder, folder.chain(index)?)?;
    if let Some(origin) = &info.origin {
        return Err(Failure::Usage(format!(
            "what the volume does not map is in its external origin {origin}: restore it into an appliance that has that"
        )));
    }
    let mut image = Image::create(path, info.volume_bytes, force)?;
    let progress = Progress::new(path.display().to_string(), info.volume_bytes, quiet);
    merge.run(0, &mut image, |at| progress.reach(at))?;
    image.finish()
}

/// Into a volume: one full stream, which goes on where an earlier one of the same broke off. The volume's JSON.
pub fn to_volume(api: &Api, folder: &Folder, index: usize, name: &str, force: bool, quiet: bool) -> Result<Value> {
    let (merge, mut info) = open(folder, folder.chain(index)?)?;
    let path = format!("/v1/volumes/{}", segment(name)?);
    if api.volume(name)?.is_some() && !force {
        return Err(Failure::Usage(format!("volume {name} is there already: --force overwrites it")));
    }
    info.resume = resumable(api, &path, &info)?.map(|token| token.resume);
    let from = info.resume.map_or(0, |resume| resume.offset);
    let progress = Progress::new(name.to_owned(), info.volume_bytes, quiet);
    let answer = api.client.upload("PUT", &format!("{path}/stream"), STREAM, |out| {
        let mut writer = Writer::begin(out, &info, Place::appliance("the appliance"))?;
        merge.run(from, &mut writer, |at| progress.reach(at))?;
        writer.end().map(drop)
    })?;
    json(answer)
}

/// The token of a transfer of the same into this volume that broke off.
fn resumable(api: &Api, path: &str, info: &Info) -> Result<Option<Token>> {
    let receive = match api.call("GET", &format!("{path}/receive"), None) {
        Err(Failure::Refused { status: 404, .. }) => return Ok(None),
        receive => receive?,
    };
    let token = receive["resume"].as_str().and_then(|text| text.parse::<Token>().ok());
    Ok(token.filter(|token| (token.target, token.base) == (info.target, info.base)))
}

/// What a check found of one backup.
pub struct Verdict {
    /// Its number.
    pub id: u64,
    /// What is wrong with it.
    pub damage: Option<String>,
}

/// Reads every backup, the oldest first.
pub fn verify(folder: &Folder, quiet: bool) -> Result<Vec<Verdict>> {
    let backups = &folder.manifest.backups;
    let bytes = backups.iter().fold(0, |bytes: u64, backup| bytes.saturating_add(backup.stream_bytes));
    let progress = Progress::new("verify".into(), bytes, quiet);
    let mut verdicts = Vec::new();
    let mut before: Option<&Backup> = None;
    for backup in backups {
        let damage = match verify_one(folder, backup, before) {
            Ok(()) => None,
            Err(failure @ (Failure::Damaged(_) | Failure::Here(_))) => Some(failure.to_string()),
            Err(failure) => return Err(failure),
        };
        // What a prune has taken away meanwhile is not damaged.
        if damage.is_none() || folder.has_still(backup)? {
            verdicts.push(Verdict { id: backup.id, damage });
        }
        progress.add(backup.stream_bytes);
        before = Some(backup);
    }
    Ok(verdicts)
}

fn verify_one(folder: &Folder, backup: &Backup, before: Option<&Backup>) -> Result<()> {
    if backup.base.is_some() && backup.base.as_ref() != before.map(|before| &before.identity) {
        return Err(Failure::Damaged(format!("{}: the backup that it stands on is not there", backup.file)));
    }
    let (merge, info) = open(folder, std::slice::from_ref(backup))?;
    if info.volume_bytes != backup.volume_bytes {
        return Err(Failure::Damaged(format!("{}: a volume of another size than the manifest says", backup.file)));
    }
    merge.run(0, &mut Nowhere, |_| ())
}

/// Takes everything, and keeps nothing.
struct Nowhere;

impl Sink for Nowhere {
    fn data(&mut self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }

    fn payload(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn unmap(&mut self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }
}
