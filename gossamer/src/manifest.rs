//! A folder of backups of one volume: stream files, and a manifest that tells what is in them.
//!
//! A file counts only if the manifest names it, and the manifest is replaced as a whole: written beside the old one, flushed, renamed.
//! What a command is about to make or to take away is noted first, so that the next one finishes it if the power fails.

use crate::durable;
use crate::failure::{Failure, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use thinp::stream::Identity;

const MANIFEST: &str = "manifest.json";
const NEW_MANIFEST: &str = "manifest.json.new";
const LOCK: &str = "lock";

/// The version of the manifest that is written and understood.
const VERSION: u32 = 1;

/// What the manifest holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    /// The volume whose backups these are.
    pub volume: String,
    /// The number of the next backup.
    pub next_id: u64,
    /// The backups, the oldest first. An increment stands on the one before it.
    pub backups: Vec<Backup>,
    /// A backup that was begun.
    pub pending: Option<Pending>,
    /// Snapshots in the appliance that nobody needs any more.
    pub retired_snapshots: Vec<String>,
    /// Files that nobody needs any more.
    pub retired_files: Vec<String>,
}

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// Its number; it keeps it.
    pub id: u64,
    /// When its snapshot was taken: seconds since 1970, UTC.
    pub time: i64,
    /// Its stream.
    pub file: String,
    /// Its snapshot in the appliance, which is there as long as it is the newest.
    pub snapshot: String,
    /// What the volume held.
    pub identity: String,
    /// The backup on which this one stands; none for a full one.
    pub base: Option<String>,
    /// Size of the volume.
    pub volume_bytes: u64,
    /// Size of the file.
    pub stream_bytes: u64,
    /// Payload of it.
    pub data_bytes: u64,
    /// The last digest of the stream, which covers all of it.
    pub digest: String,
}

/// A backup that was begun and is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// When its snapshot was taken.
    pub time: i64,
    /// The snapshot, if it was taken already.
    pub snapshot: String,
    /// The file, as far as it was written.
    pub file: String,
}

impl Manifest {
    fn new(volume: &str) -> Manifest {
        Manifest {
            version: VERSION,
            volume: volume.to_owned(),
            next_id: 1,
            backups: Vec::new(),
            pending: None,
            retired_snapshots: Vec::new(),
            retired_files: Vec::new(),
        }
    }
}

impl Backup {
    /// What the volume held.
    pub fn target(&self) -> Result<Identity> {
        identity(&self.identity)
    }

    /// On what it stands.
    pub fn base(&self) -> Result<Option<Identity>> {
        self.base.as_deref().map(identity).transpose()
    }
}

fn identity(text: &str) -> Result<Identity> {
    text.parse().map_err(|error| Failure::Damaged(format!("{text:?} in the manifest: {error}")))
}

/// Bytes as the manifest writes them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder, held by this run.
pub struct Folder {
    path: PathBuf,
    _lock: Option<File>,
    /// What is in it.
    pub manifest: Manifest,
}

impl Folder {
    /// Opens a folder to change it.
    pub fn open(path: &Path) -> Result<Folder> {
        let lock = lock(path)?;
        Ok(Folder { manifest: read(path)?, path: path.to_owned(), _lock: Some(lock) })
    }

    /// Opens the folder for backups of `volume`, and makes it if there is none.
    pub fn open_or_make(path: &Path, volume: &str) -> Result<Folder> {
        fs::create_dir_all(path).map_err(Failure::file(path))?;
        let lock = lock(path)?;
        if !path.join(MANIFEST).exists() {
            let entries = fs::read_dir(path).map_err(Failure::file(path))?.filter_map(std::result::Result::ok);
            let strange = entries.map(|entry| entry.file_name()).find(|name| name != LOCK && name != NEW_MANIFEST);
            if let Some(name) = strange {
                let (path, name) = (path.display(), name.display());
                return Err(Failure::Usage(format!("{path} has no manifest, but {name}: give an empty folder")));
            }
            Folder { path: path.to_owned(), _lock: None, manifest: Manifest::new(volume) }.save()?;
        }
        let folder = Folder { manifest: read(path)?, path: path.to_owned(), _lock: Some(lock) };
        if folder.manifest.volume != volume {
            let (path, other) = (path.display(), &folder.manifest.volume);
            return Err(Failure::Usage(format!("{path} has the backups of {other}: give each volume a folder")));
        }
        Ok(folder)
    }

    /// Opens a folder to read it; others may change it meanwhile.
    pub fn look(path: &Path) -> Result<Folder> {
        Ok(Folder { manifest: read(path)?, path: path.to_owned(), _lock: None })
    }

    /// Whether the folder's manifest names this backup, as it is, now.
    pub fn has_still(&self, backup: &Backup) -> Result<bool> {
        Ok(read(&self.path)?.backups.contains(backup))
    }

    /// Makes what the manifest says durable.
    pub fn save(&self) -> Result<()> {
        let (new, place) = (self.path.join(NEW_MANIFEST), self.path.join(MANIFEST));
        let mut text = serde_json::to_vec_pretty(&self.manifest).map_err(|error| Failure::Here(error.to_string()))?;
        text.push(b'\n');
        let mut file = File::create(&new).map_err(Failure::file(&new))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(Failure::file(&new))?;
        durable::rename(&new, &place)
    }

    /// Where a file of it lies.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes files away that nobody needs.
    pub fn clean(&mut self) -> Result<()> {
        for name in std::mem::take(&mut self.manifest.retired_files) {
            let path = self.file(&name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Failure::file(&path)(error)),
                _ => {}
            }
        }
        self.save()
    }

    /// The place in the list of the backup `at`, or of the newest.
    pub fn find(&self, at: Option<u64>) -> Result<usize> {
        let backups = &self.manifest.backups;
        let found = match at {
            Some(id) => backups.iter().position(|backup| backup.id == id),
            None => backups.len().checked_sub(1),
        };
        found.ok_or_else(|| Failure::Usage(format!("{} has no such backup: see gossamer list", self.path.display())))
    }

    /// The backups from the last full one to the one at this place.
    pub fn chain(&self, index: usize) -> Result<&[Backup]> {
        let upto = self.manifest.backups.get(..=index).unwrap_or_default();
        let full = upto.iter().rposition(|backup| backup.base.is_none());
        let chain = full.and_then(|full| upto.get(full..));
        chain.ok_or_else(|| Failure::Damaged("the manifest has increments without a full backup before them".into()))
    }
}

/// Keeps other runs out until it is closed.
fn lock(path: &Path) -> Result<File> {
    let lock = File::create(path.join(LOCK)).map_err(Failure::file(path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Failure::Locked(path.display().to_string())),
        Err(TryLockError::Error(error)) => Err(Failure::file(path)(error)),
    }
}

fn read(path: &Path) -> Result<Manifest> {
    let place = path.join(MANIFEST);
    let text = fs::read(&place).map_err(Failure::file(&place))?;
    let damaged = |what: String| Failure::Damaged(format!("{}: {what}", place.display()));
    let version: Version = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if version.version != VERSION {
        return Err(Failure::Usage(format!("{}: version {}: upgrade gossamer", place.display(), version.version)));
    }
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    let files = manifest.backups.iter().map(|backup| &backup.file);
    let files = files.chain(&manifest.retired_files).chain(manifest.pending.iter().map(|pending| &pending.file));
    for name in files {
        if name.is_empty() || name.starts_with('.') || name.contains('/') || [MANIFEST, LOCK].contains(&name.as_str()) {
            return Err(damaged(format!("{name:?} is not the name of a stream file")));
        }
    }
    Ok(manifest)
}

/// What every version has.
#[derive(Deserialize)]
struct Version {
    version: u32,
}
