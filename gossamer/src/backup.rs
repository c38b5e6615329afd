//! `gossamer backup`: a snapshot, streamed into the folder.

use crate::api::{Api, segment};
use crate::calendar;
use crate::durable;
use crate::failure::{Failure, Result};
use crate::manifest::{Backup, Folder, Pending, hex};
use crate::progress::Progress;
use crate::stream::{Found, Piece, Place, Reader, Sink, Writer};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom};
use std::path::Path;
use std::thread;
use std::time::Duration;
use thinp::stream::{Identity, Info, Token};

/// How often a broken transfer goes on by itself without having got further.
const ATTEMPTS: u32 = 5;

/// What makes a chunk of the file.
const WRITE_BYTES: usize = 1 << 20;

/// Finishes a backup that broke off, if there is one, and makes the next; all that were made.
pub fn run(api: &Api, folder: &Path, volume: &str, full: bool, quiet: bool) -> Result<Vec<Backup>> {
    segment(volume)?;
    let mut folder = Folder::open_or_make(folder, volume)?;
    let mut job = Job { api, folder: &mut folder, quiet };
    job.clean()?;
    let mut made = Vec::new();
    if let Some(pending) = job.folder.manifest.pending.clone() {
        made.extend(job.finish(&pending, false)?);
    }
    let pending = job.begin(volume)?;
    let backup = job.finish(&pending, full)?;
    made.push(backup.ok_or_else(|| Failure::Here(format!("snapshot {} was deleted by others", pending.snapshot)))?);
    Ok(made)
}

struct Job<'a> {
    api: &'a Api,
    folder: &'a mut Folder,
    quiet: bool,
}

/// A stream as it was asked for.
struct Wanted<'a> {
    target: Identity,
    base: Option<&'a Backup>,
    snapshot: &'a str,
}

impl Job<'_> {
    /// Takes away what earlier runs left: snapshots that are no base any more, and files.
    fn clean(&mut self) -> Result<()> {
        let mut stay = Vec::new();
        for name in std::mem::take(&mut self.folder.manifest.retired_snapshots) {
            match self.api.delete(&name) {
                Err(refused @ Failure::Refused { status: 409, .. }) => {
                    eprintln!("gossamer: snapshot {name} stays until the next run: {refused}");
                    stay.push(name);
                }
                deleted => deleted?,
            }
        }
        self.folder.manifest.retired_snapshots = stay;
        self.folder.clean()
    }

    /// Takes the snapshot. That it will be there is noted first.
    fn begin(&mut self, volume: &str) -> Result<Pending> {
        let (id, time) = (self.folder.manifest.next_id, calendar::now());
        let stamp = calendar::compact(time);
        let mut random = [0; 4];
        let source = Path::new("/dev/urandom");
        File::open(source).and_then(|mut file| file.read_exact(&mut random)).map_err(Failure::file(source))?;
        let pending = Pending {
            time,
            snapshot: format!("backup-{stamp}-{}", hex(&random)),
            file: format!("{id:06}-{stamp}.stream"),
        };
        self.folder.manifest.pending = Some(pending.clone());
        self.folder.save()?;
        let taken = json!({"name": pending.snapshot, "read_only": true});
        match self.api.call("POST", &format!("/v1/volumes/{volume}/snapshots"), Some(&taken)) {
            Ok(_) => Ok(pending),
            Err(refused @ Failure::Refused { .. }) => {
                self.folder.manifest.pending = None;
                self.folder.save()?;
                Err(refused)
            }
            // It may have been taken or not: the next run sees.
            Err(failure) => Err(failure),
        }
    }

    /// Completes the pending backup; none if its snapshot is gone, and with it the backup.
    fn finish(&mut self, pending: &Pending, full: bool) -> Result<Option<Backup>> {
        let volume = self.api.volume(&pending.snapshot)?;
        let Some(target) = volume.as_ref().and_then(|volume| volume.base_identity()) else {
            self.retire(pending, volume.is_some())?;
            return Ok(None);
        };
        let target: Identity = target.parse().map_err(|error| Failure::Here(format!("{target:?}: {error}")))?;
        let last = self.folder.manifest.backups.last().cloned();
        let base = match last {
            Some(last) if !full && self.is_base(&last)? => Some(last),
            _ => None,
        };
        let wanted = Wanted { target, base: base.as_ref(), snapshot: &pending.snapshot };
        let path = self.folder.file(&pending.file);
        let bytes = match wanted.base {
            Some(base) if !self.quiet => self.changed_bytes(base, &pending.snapshot)?,
            _ => volume.map_or(0, |volume| volume.mapped_bytes),
        };
        let progress = Progress::new(pending.snapshot.clone(), bytes, self.quiet);
        let mut attempt = 0;
        let mut found = wanted.found(&path)?;
        loop {
            let reached = found.as_ref().map_or(0, |found| found.file_bytes);
            match found {
                Some(found) if found.complete => return self.record(pending, &wanted, &found).map(Some),
                _ => {}
            }
            match self.transfer(&path, &wanted, found.as_ref(), &progress) {
                // What the link lost or damaged is sent again, from the last digest on.
                Err(Failure::Unreachable(_) | Failure::Damaged(_)) if attempt < ATTEMPTS => {
                    thread::sleep(Duration::from_secs(1 << attempt));
                }
                ended => ended?,
            }
            found = wanted.found(&path)?;
            let further = found.as_ref().is_some_and(|found| found.file_bytes > reached);
            attempt = if further { 0 } else { attempt + 1 };
        }
    }

    /// The backup did not come to be.
    fn retire(&mut self, pending: &Pending, snapshot: bool) -> Result<()> {
        let manifest = &mut self.folder.manifest;
        manifest.pending = None;
        manifest.retired_files.push(pending.file.clone());
        manifest.retired_snapshots.extend(snapshot.then(|| pending.snapshot.clone()));
        self.folder.save()?;
        self.clean()
    }

    /// Whether the appliance has still what this backup holds.
    fn is_base(&self, last: &Backup) -> Result<bool> {
        let volume = self.api.volume(&last.snapshot)?;
        Ok(volume.is_some_and(|volume| volume.base_identity() == Some(&last.identity)))
    }

    /// What an increment will bring, for who looks on.
    fn changed_bytes(&self, base: &Backup, snapshot: &str) -> Result<u64> {
        let sectors = self.api.call("GET", "/v1/pool", None)?["data_block_sectors"].as_u64().unwrap_or(0);
        let path = format!("/v1/volumes/{}/delta?to={snapshot}&same=no", segment(&base.snapshot)?);
        let mut blocks: u64 = 0;
        for line in BufReader::new(self.api.client.send("GET", &path, None)?.body).lines() {
            let line = line.map_err(|error| self.api.client.lost(&error))?;
            let run: Value = serde_json::from_str(&line).unwrap_or_default();
            if run["kind"] == "different" || run["kind"] == "right_only" {
                blocks = blocks.saturating_add(run["length"].as_u64().unwrap_or(0));
            }
        }
        Ok(blocks.saturating_mul(sectors).saturating_mul(512))
    }

    /// Streams into the file, behind what is there.
    fn transfer(&self, path: &Path, wanted: &Wanted<'_>, found: Option<&Found>, progress: &Progress) -> Result<()> {
        let mut query = Vec::new();
        if let Some(base) = wanted.base {
            query.push(format!("from={}", segment(&base.snapshot)?));
        }
        let token = found.map(|found| Token::new(&found.info, found.checkpoint.resume));
        query.extend(token.map(|token| format!("resume={token}")));
        let url = format!("/v1/volumes/{}/stream?{}", segment(wanted.snapshot)?, query.join("&"));
        let answer = self.api.client.send("GET", url.trim_end_matches('?'), None)?;
        let mut reader = Reader::new(answer.body, Place::appliance("the appliance's stream"));
        reader.next()?;
        let info = reader.info()?.clone();
        let failed = Failure::file(path);
        let mut file = File::options().create(true).truncate(false).write(true).open(path).map_err(&failed)?;
        file.set_len(found.map_or(0, |found| found.file_bytes)).map_err(&failed)?;
        file.seek(SeekFrom::End(0)).map_err(&failed)?;
        let out = BufWriter::with_capacity(WRITE_BYTES, file);
        let mut writer = match (found, token) {
            (Some(found), Some(token)) if token.fits(&info) => {
                Writer::behind(out, &found.info, &found.checkpoint, Place::file(path))
            }
            (None, None) if wanted.is(&info) && info.resume.is_none() => Writer::begin(out, &info, Place::file(path))?,
            _ => return Err(reader.damaged(&"the appliance sends another stream than it was asked for")),
        };
        progress.reach(found.map_or(0, |found| found.data_bytes));
        // What was received up to the last digest stays, whatever happened then.
        let (out, copied) = match copy(&mut reader, &mut writer, progress) {
            Ok(()) => (writer.end()?, Ok(())),
            broken => (writer.into_out(), broken),
        };
        out.into_inner().map_err(|error| failed(error.into_error()))?;
        copied
    }

    /// The backup is complete: it is made durable, whichever run wrote it, the manifest takes it up, and the snapshot
    /// before it goes.
    fn record(&mut self, pending: &Pending, wanted: &Wanted<'_>, found: &Found) -> Result<Backup> {
        let path = self.folder.file(&pending.file);
        if let Err(failure) = durable::sync(&path) {
            // What could not be written reads whole all the same, as long as it is in memory.
            fs::remove_file(&path).map_err(Failure::file(&path))?;
            return Err(failure);
        }
        let manifest = &mut self.folder.manifest;
        let backup = Backup {
            id: manifest.next_id,
            time: pending.time,
            file: pending.file.clone(),
            snapshot: pending.snapshot.clone(),
            identity: found.info.target.to_string(),
            base: wanted.base.map(|base| base.identity.clone()),
            volume_bytes: found.info.volume_bytes,
            stream_bytes: found.file_bytes,
            data_bytes: found.data_bytes,
            digest: hex(&found.checkpoint.resume.digest),
        };
        manifest.next_id = manifest.next_id.saturating_add(1);
        manifest.pending = None;
        manifest.retired_snapshots.extend(manifest.backups.last().map(|last| last.snapshot.clone()));
        manifest.backups.push(backup.clone());
        self.folder.save()?;
        self.clean()?;
        Ok(backup)
    }
}

impl Wanted<'_> {
    fn is(&self, info: &Info) -> bool {
        let base = self.base.map(|base| base.identity.clone());
        info.target == self.target && info.base.map(|base| base.to_string()) == base
    }

    /// What of it is in the file. A stream of something else, or the rest of one, is nothing.
    fn found(&self, path: &Path) -> Result<Option<Found>> {
        Ok(Found::read(path)?.filter(|found| self.is(&found.info) && found.info.resume.is_none()))
    }
}

/// Passes a stream on to the file, digests at the same places.
fn copy<R: Read>(reader: &mut Reader<R>, writer: &mut Writer<BufWriter<File>>, progress: &Progress) -> Result<()> {
    while let Some(piece) = reader.next()? {
        match piece {
            Piece::Data { offset, length } => writer.data(offset, length)?,
            Piece::Payload(range) => {
                writer.payload(reader.bytes(range.clone()))?;
                progress.add(range.len() as u64);
            }
            Piece::Unmap { offset, length } => writer.unmap(offset, length)?,
            Piece::Digest(_) => writer.digest()?,
            Piece::Info | Piece::End => {}
        }
    }
    Ok(())
}
