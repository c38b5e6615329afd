//! An image file or a block device of the host as a disk that completes every request at once.

use platform::block::{BlockDevice, Io, IoError, Limits, Op, Request, SECTOR_BYTES};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

/// Most sectors of one read or write: 4 MiB.
const TRANSFER_SECTORS_MAX: u64 = 8192;

/// The disk.
pub struct FileDisk {
    name: String,
    file: File,
    size_sectors: u64,
    read_only: bool,
}

/// Two paths lead to the same file or block device.
pub fn are_the_same(one: &Path, other: &Path) -> Result<bool, String> {
    let identity = |path: &Path| {
        let metadata = path.metadata().map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        let device = metadata.file_type().is_block_device();
        Ok::<_, String>(if device { (true, metadata.rdev(), 0) } else { (false, metadata.dev(), metadata.ino()) })
    };
    Ok(identity(one)? == identity(other)?)
}

impl FileDisk {
    /// Opens a file or block device. For writing it is locked, so that nobody else's tool changes it at the same time.
    pub fn open(path: &Path, read_only: bool) -> Result<FileDisk, String> {
        let failed = |error: io::Error| format!("cannot open {}: {error}", path.display());
        let mut file = File::options().read(true).write(!read_only).open(path).map_err(failed)?;
        if !read_only {
            file.try_lock().map_err(|_| format!("{} is in use by another process", path.display()))?;
        }
        // By seeking, which tells the size of block devices, too.
        let size_sectors = file.seek(SeekFrom::End(0)).map_err(failed)? / SECTOR_BYTES as u64;
        Ok(FileDisk { name: path.display().to_string(), file, size_sectors, read_only })
    }

    fn serve(&self, request: &mut Request) -> io::Result<()> {
        let mut at_bytes = request.sector.saturating_mul(SECTOR_BYTES as u64);
        match request.op {
            Op::Read => {
                for buf in &mut request.bufs {
                    self.file.read_exact_at(buf, at_bytes)?;
                    at_bytes += buf.len() as u64;
                }
            }
            Op::Write { .. } => {
                for buf in &request.bufs {
                    self.file.write_all_at(buf, at_bytes)?;
                    at_bytes += buf.len() as u64;
                }
            }
            Op::Flush => self.file.sync_data()?,
            // Never reach a device whose limits do not offer them.
            Op::Discard | Op::WriteZeroes => return Err(io::ErrorKind::Unsupported.into()),
        }
        if request.op == (Op::Write { fua: true }) {
            self.file.sync_data()?;
        }
        Ok(())
    }
}

impl BlockDevice for FileDisk {
    fn limits(&self) -> Limits {
        Limits {
            size_sectors: self.size_sectors,
            logical_block_bytes: SECTOR_BYTES as u32,
            transfer_sectors_max: TRANSFER_SECTORS_MAX,
            segments_max: 1024,
            discard_sectors_max: 0,
            discard_granularity_sectors: 1,
            write_zeroes_sectors_max: 0,
            read_only: self.read_only,
        }
    }

    fn submit(&self, mut io: Io) {
        let (op, sector) = (io.request().op, io.request().sector);
        let result = self.serve(io.request_mut()).map_err(|error| {
            // The error that goes up has no room for the system's own words.
            eprintln!("{}: {op:?} at sector {sector}: {error}", self.name);
            IoError::Device { op, sector }
        });
        io.complete(result);
    }
}
