//! A disk that answers at once and loses nothing: for what is done with what a power cut left.

use crate::disk::NONSENSE;
use crate::image::Image;
use platform::block::{BlockDevice, Io, Limits, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use std::cell::RefCell;
use std::rc::Rc;

/// What both kinds of disk can take.
pub fn limits(size_sectors: u64) -> Limits {
    Limits { size_sectors, ..MemDisk::new(0).limits() }
}

/// A disk. Clones are the same disk.
#[derive(Clone)]
pub struct QuickDisk(Rc<RefCell<Image>>);

impl QuickDisk {
    /// A disk that holds `image`.
    pub fn new(image: Image) -> QuickDisk {
        QuickDisk(Rc::new(RefCell::new(image)))
    }

    /// What it holds now.
    pub fn image(&self) -> Image {
        self.0.borrow().clone()
    }
}

impl BlockDevice for QuickDisk {
    fn limits(&self) -> Limits {
        limits(self.0.borrow().size_sectors())
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        let mut image = self.0.borrow_mut();
        let mut at = request.sector;
        match request.op {
            Op::Read => {
                for buf in &mut request.bufs {
                    image.read(at, buf);
                    at += (buf.len() / SECTOR_BYTES) as u64;
                }
            }
            Op::Write { .. } => {
                for bytes in request.bufs.iter().flat_map(|buf| buf.chunks_exact(SECTOR_BYTES)) {
                    image.write(at, bytes.first_chunk().expect("a whole sector"));
                    at += 1;
                }
            }
            Op::Discard => (at..at + request.sectors).for_each(|at| image.write(at, &[NONSENSE; SECTOR_BYTES])),
            Op::WriteZeroes => (at..at + request.sectors).for_each(|at| image.write(at, &[0; SECTOR_BYTES])),
            Op::Flush => {}
        }
        drop(image);
        io.complete(Ok(()));
    }
}
