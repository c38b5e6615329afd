//! A disk over an image that several disks share: each keeps only the blocks that were written.

use platform::block::{BlockDevice, Io, IoError, Limits, Op, SECTOR_BYTES};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes of a metadata block.
pub const BLOCK_BYTES: usize = 4096;

/// Metadata blocks of every disk here: few, so that it is soon full.
pub const BLOCKS: usize = 128;

const SECTORS_PER_BLOCK: usize = BLOCK_BYTES / SECTOR_BYTES;

/// A block.
pub type Block = [u8; BLOCK_BYTES];

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct CowDisk {
    base: Rc<Vec<Block>>,
    written: Rc<RefCell<BTreeMap<usize, Box<Block>>>>,
}

impl CowDisk {
    /// A disk that holds `base`, and zeroes behind it.
    pub fn new(base: Rc<Vec<Block>>) -> CowDisk {
        CowDisk { base, written: Rc::default() }
    }

    /// A block's bytes.
    pub fn block(&self, number: usize) -> Block {
        let written = self.written.borrow();
        match (written.get(&number), self.base.get(number)) {
            (Some(block), _) => **block,
            (None, Some(block)) => *block,
            (None, None) => [0; BLOCK_BYTES],
        }
    }

    /// Changes a block's bytes.
    pub fn change<T>(&self, number: usize, change: impl FnOnce(&mut Block) -> T) -> T {
        let before = || Box::new(self.base.get(number).copied().unwrap_or([0; BLOCK_BYTES]));
        change(self.written.borrow_mut().entry(number).or_insert_with(before))
    }

    /// The blocks that were written.
    pub fn changed(&self) -> Vec<usize> {
        self.written.borrow().keys().copied().collect()
    }
}

impl BlockDevice for CowDisk {
    fn limits(&self) -> Limits {
        Limits {
            size_sectors: (BLOCKS * SECTORS_PER_BLOCK) as u64,
            logical_block_bytes: SECTOR_BYTES as u32,
            transfer_sectors_max: 8192,
            segments_max: 254,
            discard_sectors_max: 0,
            discard_granularity_sectors: 1,
            write_zeroes_sectors_max: 0,
            read_only: false,
        }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        let mut sector = request.sector as usize;
        match request.op {
            Op::Read => {
                for sectors in request.bufs.iter_mut().flat_map(|buf| buf.chunks_mut(SECTOR_BYTES)) {
                    let (block, at) = place(sector);
                    sectors.copy_from_slice(&self.block(block)[at..at + SECTOR_BYTES]);
                    sector += 1;
                }
            }
            Op::Write { .. } => {
                for sectors in request.bufs.iter().flat_map(|buf| buf.chunks(SECTOR_BYTES)) {
                    let (block, at) = place(sector);
                    self.change(block, |block| block[at..at + SECTOR_BYTES].copy_from_slice(sectors));
                    sector += 1;
                }
            }
            Op::Flush => {}
            op @ (Op::Discard | Op::WriteZeroes) => return io.complete(Err(IoError::Unsupported(op))),
        }
        io.complete(Ok(()));
    }
}

/// Block and offset of a sector.
fn place(sector: usize) -> (usize, usize) {
    (sector / SECTORS_PER_BLOCK, sector % SECTORS_PER_BLOCK * SECTOR_BYTES)
}
