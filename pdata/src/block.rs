//! A metadata block, and the kinds of block that tell themselves apart by their checksum (reference 1.2, 2).

use crate::checksum::crc32c_raw;
use crate::{Error, Result};

/// Bytes in a metadata block.
pub const BLOCK_BYTES: usize = 4096;

/// Sectors of 512 bytes in a metadata block.
pub const BLOCK_SECTORS: u64 = 8;

/// The bytes of one metadata block.
pub type Block = [u8; BLOCK_BYTES];

/// A kind of block: how its checksum is salted, where it says where it lives, and what else must hold.
#[derive(Debug)]
pub struct BlockKind {
    /// For messages: "btree node".
    pub name: &'static str,
    /// XORed with the CRC. Tells the kinds apart.
    pub salt: u32,
    /// Offset in bytes of the 64-bit field that holds the block's own number.
    pub number_at: usize,
    /// Checks the contents once checksum and number are right; says what is wrong.
    pub check: fn(&Block) -> core::result::Result<(), &'static str>,
}

impl PartialEq for BlockKind {
    fn eq(&self, other: &BlockKind) -> bool {
        self.salt == other.salt
    }
}

impl BlockKind {
    /// The checksum that these bytes should carry.
    pub fn checksum(&self, block: &Block) -> u32 {
        let [_, _, _, _, covered @ ..] = block;
        crc32c_raw(covered) ^ self.salt
    }

    /// The checksum that they do carry.
    pub fn stored_checksum(block: &Block) -> u32 {
        let [a, b, c, d, ..] = *block;
        u32::from_le_bytes([a, b, c, d])
    }

    /// Checks a block as it was read from place `number`.
    pub fn verify(&self, block: &Block, number: u64) -> Result<()> {
        let damaged = |what| Error::Damaged { block: number, kind: self.name, what };
        let field = block.get(self.number_at..).and_then(|tail| tail.first_chunk());
        if field.map(|bytes| u64::from_le_bytes(*bytes)) != Some(number) {
            return Err(damaged("it carries another block's number"));
        }
        if self.checksum(block) != BlockKind::stored_checksum(block) {
            return Err(damaged("its checksum is wrong"));
        }
        (self.check)(block).map_err(damaged)
    }

    /// Fills in number and checksum before the block is written to place `number`.
    pub fn seal(&self, block: &mut Block, number: u64) {
        if let Some(field) = block.get_mut(self.number_at..).and_then(|tail| tail.first_chunk_mut()) {
            *field = number.to_le_bytes();
        }
        let checksum = self.checksum(block);
        if let Some(field) = block.first_chunk_mut() {
            *field = checksum.to_le_bytes();
        }
    }
}
