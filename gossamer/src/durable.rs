//! What outlives a power cut.

use crate::failure::{Failure, Result};
use std::fs::{self, File};
use std::path::Path;

/// Makes a file durable, or the names in a folder.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Failure::file(path))
}

/// Gives a file its name, in the same folder, for good.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Failure::file(to))?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync(folder.unwrap_or(Path::new(".")))
}
