//! A disk in memory, sparse, which completes at once: for tests and examples.

use crate::block::{BlockDevice, Io, IoError, Limits, Op, SECTOR_BYTES};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

const PAGE_BYTES: usize = 4096;

/// The disk. Clones are the same disk, so that a test can look at what was written.
#[derive(Clone)]
pub struct MemDisk(Rc<Contents>);

struct Contents {
    pages: RefCell<BTreeMap<u64, Box<[u8; PAGE_BYTES]>>>,
    size_sectors: Cell<u64>,
}

impl MemDisk {
    /// A disk of zeroes.
    pub fn new(size_sectors: u64) -> MemDisk {
        MemDisk(Rc::new(Contents { pages: RefCell::default(), size_sectors: Cell::new(size_sectors) }))
    }

    /// A disk that holds `bytes`, rounded up to whole sectors.
    pub fn from_bytes(bytes: &[u8]) -> MemDisk {
        let disk = MemDisk::new(bytes.len().div_ceil(SECTOR_BYTES) as u64);
        disk.poke(0, bytes);
        disk
    }

    /// Another disk with the same contents: a power cut leaves such a copy behind.
    pub fn fork(&self) -> MemDisk {
        let pages = self.0.pages.borrow().clone();
        MemDisk(Rc::new(Contents { pages: RefCell::new(pages), size_sectors: self.0.size_sectors.clone() }))
    }

    /// Changes the size, as a hypervisor does while the disk is in use.
    pub fn resize(&self, size_sectors: u64) {
        self.0.size_sectors.set(size_sectors);
    }

    /// The bytes at `at_bytes`, behind the back of the device's users.
    pub fn peek(&self, at_bytes: u64, len_bytes: usize) -> Vec<u8> {
        let mut out = vec![0; len_bytes];
        self.read(at_bytes, &mut out);
        out
    }

    /// Overwrites bytes, behind the back of the device's users.
    pub fn poke(&self, at_bytes: u64, bytes: &[u8]) {
        let mut pages = self.0.pages.borrow_mut();
        for_pages(at_bytes, bytes.len(), |page, offset, range| {
            let page = pages.entry(page).or_insert_with(|| Box::new([0; PAGE_BYTES]));
            page[offset..offset + range.len()].copy_from_slice(&bytes[range]);
        });
    }

    fn read(&self, at_bytes: u64, out: &mut [u8]) {
        let pages = self.0.pages.borrow();
        for_pages(at_bytes, out.len(), |page, offset, range| match pages.get(&page) {
            Some(page) => {
                let len = range.len();
                out[range].copy_from_slice(&page[offset..offset + len]);
            }
            None => out[range].fill(0),
        });
    }

    fn zero(&self, at_bytes: u64, len_bytes: u64) {
        let end = at_bytes + len_bytes;
        let (first, last) = (at_bytes.div_ceil(PAGE_BYTES as u64), end / PAGE_BYTES as u64);
        if first >= last {
            return self.poke(at_bytes, &vec![0; len_bytes as usize]);
        }
        self.poke(at_bytes, &vec![0; (first * PAGE_BYTES as u64 - at_bytes) as usize]);
        self.poke(last * PAGE_BYTES as u64, &vec![0; (end - last * PAGE_BYTES as u64) as usize]);
        self.0.pages.borrow_mut().retain(|page, _| *page < first || *page >= last);
    }
}

/// Calls `f(page, offset in page, range of the buffer)` for each page that the bytes touch.
fn for_pages(at_bytes: u64, len: usize, mut f: impl FnMut(u64, usize, core::ops::Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = at_bytes + done as u64;
        let offset = (at % PAGE_BYTES as u64) as usize;
        let piece = (PAGE_BYTES - offset).min(len - done);
        f(at / PAGE_BYTES as u64, offset, done..done + piece);
        done += piece;
    }
}

impl BlockDevice for MemDisk {
    fn limits(&self) -> Limits {
        Limits {
            size_sectors: self.0.size_sectors.get(),
            logical_block_bytes: SECTOR_BYTES as u32,
            transfer_sectors_max: 8192,
            segments_max: 254,
            discard_sectors_max: 1 << 22,
            discard_granularity_sectors: 1,
            write_zeroes_sectors_max: 1 << 22,
            read_only: false,
        }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        if request.op != Op::Flush && request.sector + request.sectors > self.0.size_sectors.get() {
            let error = IoError::OutOfRange { sector: request.sector, sectors: request.sectors };
            return io.complete(Err(error));
        }
        let mut at_bytes = request.sector * SECTOR_BYTES as u64;
        match request.op {
            Op::Read => {
                for buf in &mut request.bufs {
                    self.read(at_bytes, buf);
                    at_bytes += buf.len() as u64;
                }
            }
            Op::Write { .. } => {
                for buf in &request.bufs {
                    self.poke(at_bytes, buf);
                    at_bytes += buf.len() as u64;
                }
            }
            Op::Discard | Op::WriteZeroes => self.zero(at_bytes, request.sectors * SECTOR_BYTES as u64),
            Op::Flush => {}
        }
        io.complete(Ok(()));
    }
}
