//! A file, or a block device of the host, as a disk.
//!
//! Reads and writes go to the page cache, at once, on the executor's thread: they seldom wait, and so buffers never leave
//! it. What does wait (making durable, giving space back) is done by one helper thread a disk, which knows the file only.

use platform::block::{BlockDevice, Io, IoError, Limits, Op, SECTOR_BYTES};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::{Errno, retry_on_intr};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

/// Most sectors of one read or write: 4 MiB.
const TRANSFER_SECTORS_MAX: u64 = 8192;

/// Most sectors given back or zeroed by one request: 2 GiB.
const PUNCH_SECTORS_MAX: u64 = 1 << 22;

/// Sectors in a block of most filesystems.
const FILESYSTEM_BLOCK_SECTORS: u64 = 8;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be opened for reading and writing, or its size cannot be told.
    #[error("cannot open the disk {}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Somebody holds it.
    #[error("the disk {} is in use, by another process or as another disk", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// The disk. Clones are the same one.
#[derive(Clone)]
pub struct FileDisk(Rc<Shared>);

struct Shared {
    path: PathBuf,
    file: Arc<File>,
    helper: mpsc::Sender<Job>,
    finished: Arc<Finished>,
    /// What the helper works on.
    under_way: RefCell<HashMap<u64, Io>>,
    next_id: Cell<u64>,
    /// The filesystem can punch holes.
    punches: Cell<bool>,
}

/// Work for the helper.
struct Job {
    id: u64,
    work: Work,
}

#[derive(Clone, Copy, PartialEq)]
enum Work {
    /// Make durable what was written.
    Sync,
    /// Make a range read as zero and take no space.
    Punch { at_bytes: u64, len_bytes: u64 },
}

/// What the helper has done.
struct Finished {
    results: Mutex<Vec<(u64, Result<(), Errno>)>>,
    bell: Arc<mio::Waker>,
}

impl FileDisk {
    /// Opens and locks a file. The helper thread rings `bell` when [`FileDisk::poll`] has something to do.
    pub fn open(path: &Path, bell: Arc<mio::Waker>) -> Result<FileDisk, OpenError> {
        let failed = |error| OpenError::Io { path: path.to_owned(), error };
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        size_sectors(&file).map_err(failed)?;
        let file = Arc::new(file);
        let finished = Arc::new(Finished { results: Mutex::default(), bell });
        let (helper, jobs) = mpsc::channel();
        let (its_file, its_finished) = (file.clone(), finished.clone());
        thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || help(&its_file, &jobs, &its_finished))
            .map_err(failed)?;
        Ok(FileDisk(Rc::new(Shared {
            path: path.to_owned(),
            file,
            helper,
            finished,
            under_way: RefCell::default(),
            next_id: Cell::new(0),
            punches: Cell::new(true),
        })))
    }

    /// Completes what the helper has done; true if there was any.
    pub fn poll(&self) -> bool {
        let results = std::mem::take(&mut *self.0.finished.results.lock().unwrap_or_else(PoisonError::into_inner));
        let any = !results.is_empty();
        for (id, result) in results {
            let io = self.0.under_way.borrow_mut().remove(&id);
            if let Some(io) = io {
                self.complete(io, result.map_err(io::Error::from));
            }
        }
        any
    }

    fn complete(&self, io: Io, result: io::Result<()>) {
        let (op, sector) = (io.request().op, io.request().sector);
        io.complete(result.map_err(|error| {
            if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) {
                self.0.punches.set(false);
                return IoError::Unsupported(op);
            }
            log::error!("{}: {op:?} at sector {sector}: {error}", self.0.path.display());
            IoError::Device { op, sector }
        }));
    }

    fn hand_over(&self, io: Io, work: Work) {
        let id = self.0.next_id.get();
        self.0.next_id.set(id + 1);
        self.0.under_way.borrow_mut().insert(id, io);
        if self.0.helper.send(Job { id, work }).is_err() {
            // The helper is gone, which only a panic there can do: the request is answered as it is dropped.
            self.0.under_way.borrow_mut().remove(&id);
        }
    }
}

impl Shared {
    fn read(&self, io: &mut Io) -> io::Result<()> {
        let request = io.request_mut();
        let mut at_bytes = bytes(request.sector);
        for buf in &mut request.bufs {
            self.file.read_exact_at(buf, at_bytes)?;
            at_bytes += buf.len() as u64;
        }
        Ok(())
    }

    fn write(&self, io: &Io) -> io::Result<()> {
        let request = io.request();
        let mut at_bytes = bytes(request.sector);
        for buf in &request.bufs {
            self.file.write_all_at(buf, at_bytes)?;
            at_bytes += buf.len() as u64;
        }
        Ok(())
    }
}

impl BlockDevice for FileDisk {
    fn limits(&self) -> Limits {
        let punch = if self.0.punches.get() { PUNCH_SECTORS_MAX } else { 0 };
        // Asked for at every request, so that growth is seen; a file that cannot be asked has no sectors.
        let size_sectors = size_sectors(&self.0.file).unwrap_or_else(|error| {
            log::error!("{}: cannot tell the size: {error}", self.0.path.display());
            0
        });
        Limits {
            size_sectors,
            logical_block_bytes: SECTOR_BYTES as u32,
            transfer_sectors_max: TRANSFER_SECTORS_MAX,
            segments_max: 1024,
            discard_sectors_max: punch,
            discard_granularity_sectors: FILESYSTEM_BLOCK_SECTORS,
            write_zeroes_sectors_max: punch,
            read_only: false,
        }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request();
        let (at_bytes, len_bytes) = (bytes(request.sector), bytes(request.sectors));
        match request.op {
            Op::Read => {
                let result = self.0.read(&mut io);
                self.complete(io, result);
            }
            Op::Write { fua } => match self.0.write(&io) {
                Ok(()) if fua => self.hand_over(io, Work::Sync),
                result => self.complete(io, result),
            },
            Op::Flush => self.hand_over(io, Work::Sync),
            Op::Discard | Op::WriteZeroes => self.hand_over(io, Work::Punch { at_bytes, len_bytes }),
        }
    }
}

fn bytes(sectors: u64) -> u64 {
    sectors.saturating_mul(SECTOR_BYTES as u64)
}

/// By seeking, which tells the size of block devices, too.
fn size_sectors(mut file: &File) -> io::Result<u64> {
    Ok(file.seek(SeekFrom::End(0))? / SECTOR_BYTES as u64)
}

/// The helper thread: ends with the disk.
fn help(file: &File, jobs: &mpsc::Receiver<Job>, finished: &Finished) {
    let mut sync_failed = None;
    while let Ok(first) = jobs.recv() {
        let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).collect();
        let mut results = Vec::with_capacity(batch.len());
        for job in &batch {
            if let Work::Punch { at_bytes, len_bytes } = job.work {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                results.push((job.id, retry_on_intr(|| fallocate(file, flags, at_bytes, len_bytes))));
            }
        }
        let mut waiting = batch.iter().filter(|job| job.work == Work::Sync).peekable();
        if waiting.peek().is_some() {
            // One call answers all flushes that wait. After a failed one Linux forgets the error and the pages that it
            // could not write, and the next call would succeed: so there is no next one.
            let result = sync_failed.map_or_else(|| retry_on_intr(|| fdatasync(file)), Err);
            sync_failed = result.err();
            results.extend(waiting.map(|job| (job.id, result)));
        }
        finished.results.lock().unwrap_or_else(PoisonError::into_inner).append(&mut results);
        if let Err(error) = finished.bell.wake() {
            log::error!("cannot wake the executor: {error}");
        }
    }
}
