//! The SCSI commands that the tests use (SBC-4, SPC-5), and sense data.

use std::fmt;

use super::{Error, Session, Transfer};

/// Bytes in a logical block of every export.
pub const BLOCK_BYTES: usize = 512;

/// Blocks moved by one command of [`Session::read`] and [`Session::write`]: 256 KiB.
const TRANSFER_BLOCKS_MAX: usize = 512;

/// Why a command ended with CHECK CONDITION.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
}

impl Sense {
    /// From fixed or descriptor format; all zero when there is none.
    pub fn parse(bytes: &[u8]) -> Sense {
        let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
        match at(0) & 0x7f {
            0x72 | 0x73 => Sense { key: at(1) & 15, asc: at(2), ascq: at(3) },
            _ => Sense { key: at(2) & 15, asc: at(12), ascq: at(13) },
        }
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sense key {:x}, code {:02x}/{:02x}", self.key, self.asc, self.ascq)
    }
}

/// READ(16), WRITE(16) and their kind.
fn cdb16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[1] = flags;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

impl Session {
    /// READ(16) of any length, in pieces.
    pub fn read(&mut self, lba: u64, blocks: usize) -> Result<Vec<u8>, Error> {
        let mut data = Vec::with_capacity(blocks * BLOCK_BYTES);
        while data.len() < blocks * BLOCK_BYTES {
            let done = data.len() / BLOCK_BYTES;
            let piece = (blocks - done).min(TRANSFER_BLOCKS_MAX);
            let cdb = cdb16(0x88, 0, lba + done as u64, piece as u32);
            let bytes = self.run(&cdb, Transfer::In((piece * BLOCK_BYTES) as u32))?;
            if bytes.len() != piece * BLOCK_BYTES {
                return Err(Error::Protocol(format!("{} bytes read instead of {}", bytes.len(), piece * BLOCK_BYTES)));
            }
            data.extend_from_slice(&bytes);
        }
        Ok(data)
    }

    /// WRITE(16) of whole blocks of any length, in pieces.
    pub fn write(&mut self, lba: u64, data: &[u8], fua: bool) -> Result<(), Error> {
        let mut at = lba;
        for piece in data.chunks(TRANSFER_BLOCKS_MAX * BLOCK_BYTES) {
            let tag = self.submit_write(at, piece.to_vec(), fua)?;
            self.wait(tag)?;
            at += (piece.len() / BLOCK_BYTES) as u64;
        }
        Ok(())
    }

    /// Sends a WRITE(16) of at most 256 KiB without waiting for its end.
    pub fn submit_write(&mut self, lba: u64, data: Vec<u8>, fua: bool) -> Result<u32, Error> {
        let blocks = (data.len() / BLOCK_BYTES) as u32;
        self.submit(&cdb16(0x8a, if fua { 8 } else { 0 }, lba, blocks), Transfer::Out(data))
    }

    /// Sends a SYNCHRONIZE CACHE(10) of the whole unit without waiting for its end.
    pub fn submit_flush(&mut self) -> Result<u32, Error> {
        let mut cdb = [0; 10];
        cdb[0] = 0x35;
        self.submit(&cdb, Transfer::None)
    }

    /// SYNCHRONIZE CACHE(10) of the whole unit.
    pub fn flush(&mut self) -> Result<(), Error> {
        let tag = self.submit_flush()?;
        self.wait(tag).map(drop)
    }

    /// Sends an UNMAP of one range without waiting for its end.
    pub fn submit_unmap(&mut self, lba: u64, blocks: u32) -> Result<u32, Error> {
        let mut cdb = [0; 10];
        cdb[0] = 0x42;
        cdb[8] = 24;
        let mut list = vec![0; 24];
        list[1] = 22;
        list[3] = 16;
        list[8..16].copy_from_slice(&lba.to_be_bytes());
        list[16..20].copy_from_slice(&blocks.to_be_bytes());
        self.submit(&cdb, Transfer::Out(list))
    }

    /// UNMAP of one range.
    pub fn unmap(&mut self, lba: u64, blocks: u32) -> Result<(), Error> {
        let tag = self.submit_unmap(lba, blocks)?;
        self.wait(tag).map(drop)
    }

    /// READ CAPACITY(16): the number of blocks.
    pub fn capacity_blocks(&mut self) -> Result<u64, Error> {
        let mut cdb = [0; 16];
        cdb[0] = 0x9e;
        cdb[1] = 0x10;
        cdb[13] = 32;
        let data = self.run(&cdb, Transfer::In(32))?;
        let field = |from: usize, to: usize| {
            data.get(from..to).map(|bytes| bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
        };
        match (field(0, 8), field(8, 12)) {
            (Some(last), Some(block_bytes)) if block_bytes == BLOCK_BYTES as u64 => Ok(last + 1),
            other => Err(Error::Protocol(format!("READ CAPACITY answers {other:?}"))),
        }
    }

    /// INQUIRY: standard data, or a page of vital product data.
    pub fn inquiry(&mut self, page: Option<u8>) -> Result<Vec<u8>, Error> {
        self.run(&[0x12, u8::from(page.is_some()), page.unwrap_or(0), 0, 252, 0], Transfer::In(252))
    }

    /// TEST UNIT READY.
    pub fn test_unit_ready(&mut self) -> Result<(), Error> {
        self.run(&[0; 6], Transfer::None).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sense_of_both_formats() {
        let mut fixed = [0; 18];
        (fixed[0], fixed[2], fixed[12], fixed[13]) = (0x70, 7, 0x27, 1);
        let want = Sense { key: 7, asc: 0x27, ascq: 1 };
        assert_eq!(Sense::parse(&fixed), want);
        assert_eq!(Sense::parse(&[0x72, 7, 0x27, 1]), want);
        assert_eq!(Sense::parse(&[]), Sense { key: 0, asc: 0, ascq: 0 });
    }
}
