//! A raw file or block device that a backup is restored into.

use crate::durable;
use crate::failure::{Failure, Result};
use crate::stream::Sink;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The file or device while it is written.
pub struct Image {
    file: File,
    path: PathBuf,
    /// A file gets its name when it is complete.
    written_as: Option<PathBuf>,
    at: u64,
}

impl Image {
    /// Opens a device, or makes a file, for a volume of this size; it reads as zeroes. What is there already is overwritten with
    /// `force` only.
    pub fn create(path: &Path, volume_bytes: u64, force: bool) -> Result<Image> {
        let failed = Failure::file(path);
        let kind = fs::metadata(path).map(|metadata| metadata.file_type()).ok();
        if kind.is_some() && !force {
            return Err(Failure::Usage(format!("{} is there already: --force overwrites it", path.display())));
        }
        match kind {
            Some(kind) if kind.is_block_device() => {
                let mut file = File::options().read(true).write(true).open(path).map_err(&failed)?;
                let bytes = file.seek(SeekFrom::End(0)).map_err(&failed)?;
                if bytes < volume_bytes {
                    let path = path.display();
                    return Err(Failure::Here(format!("{path} has {bytes} bytes, but the volume {volume_bytes}")));
                }
                let mut image = Image { file, path: path.to_owned(), written_as: None, at: 0 };
                image.unmap(0, volume_bytes)?;
                Ok(image)
            }
            Some(kind) if !kind.is_file() => {
                Err(Failure::Usage(format!("{} is neither a file nor a block device", path.display())))
            }
            _ => {
                let mut name = path.file_name().unwrap_or_default().to_owned();
                name.push(".restoring");
                let new = path.with_file_name(name);
                let file = File::create(&new).map_err(Failure::file(&new))?;
                file.set_len(volume_bytes).map_err(Failure::file(&new))?;
                Ok(Image { file, path: path.to_owned(), written_as: Some(new), at: 0 })
            }
        }
    }

    /// All is written: it is made durable, and a file gets its name.
    pub fn finish(mut self) -> Result<()> {
        self.file.sync_all().map_err(Failure::file(&self.path))?;
        match self.written_as.take() {
            Some(new) => durable::rename(&new, &self.path),
            None => Ok(()),
        }
    }
}

impl Drop for Image {
    /// A file that did not become complete is taken away; a half-written device is told by the error that led here.
    fn drop(&mut self) {
        if let Some(new) = &self.written_as {
            let _ = fs::remove_file(new);
        }
    }
}

impl Sink for Image {
    fn data(&mut self, offset: u64, _length: u64) -> Result<()> {
        self.at = offset;
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.at).map_err(Failure::file(&self.path))?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// A hole if there can be one; or zeroes, by the device or by hand.
    fn unmap(&mut self, offset: u64, length: u64) -> Result<()> {
        for flags in [FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE] {
            match fallocate(&self.file, flags, offset, length) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {}
                done => return done.map_err(|errno| Failure::file(&self.path)(errno.into())),
            }
        }
        let end = offset.saturating_add(length);
        let mut at = offset;
        while at < end {
            let len = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(ZEROES.len());
            let zeroes = ZEROES.get(..len).unwrap_or_default();
            self.file.write_all_at(zeroes, at).map_err(Failure::file(&self.path))?;
            at = at.saturating_add(len as u64);
        }
        Ok(())
    }
}
