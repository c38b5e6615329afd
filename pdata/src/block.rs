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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::ARRAY;
    use crate::btree::NODE;
    use crate::space_map::{BITMAP, INDEX};

    fn vector(kind: &BlockKind, number: u64, fields: &[(usize, &[u8])]) -> u32 {
        let mut block = [0; BLOCK_BYTES];
        for (at, bytes) in fields {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        kind.seal(&mut block, number);
        kind.verify(&block, number).unwrap();
        assert_eq!(&block[8..16], number.to_le_bytes());
        BlockKind::stored_checksum(&block)
    }

    /// Reference 1.2 and 2.5: blocks of a pool that Linux formatted.
    #[test]
    fn trap_2_checksums_are_linux_s() {
        let leaf = |number, max: u16, value_size: u8| {
            vector(&NODE, number, &[(4, &[2]), (20, &max.to_le_bytes()), (24, &[value_size])])
        };
        assert_eq!(leaf(2, 336, 4), 0xC360E452);
        assert_eq!(leaf(5, 336, 4), 0x41BFAA04);
        assert_eq!(leaf(6, 252, 8), 0xCB3DDA35);
        assert_eq!(leaf(7, 126, 24), 0xB1C81346);
        assert_eq!(vector(&BITMAP, 8, &[]), 0x58BB3366);
        assert_eq!(vector(&BITMAP, 9, &[(16, &[0x22, 0xa8, 0xaa])]), 0xE3CD2EC7);
        let entry = [9, 0, 0, 0, 0, 0, 0, 0, 0xb7, 0x3f, 0, 0, 1];
        assert_eq!(vector(&INDEX, 11, &[(16, &entry)]), 0xA1012EE6);
        let entry = [8, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0x3f];
        let index: [(usize, &[u8]); 5] = [(4, &[2]), (16, &[1]), (20, &[168]), (24, &[16]), (32 + 168 * 8, &entry)];
        assert_eq!(vector(&NODE, 10, &index), 0xB7AF1487);
    }

    /// What is wrong with block 3 of these fields.
    fn wrong<'a>(kind: &BlockKind, fields: impl IntoIterator<Item = &'a (usize, &'a [u8])>) -> &'static str {
        let mut block = [0; BLOCK_BYTES];
        for (at, bytes) in fields {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        kind.seal(&mut block, 3);
        match kind.verify(&block, 3) {
            Ok(()) => "nothing",
            Err(Error::Damaged { block: 3, what, .. }) => what,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_node_is_checked_when_it_is_read() {
        let wrong = |fields: &[(usize, &[u8])]| {
            let sound = [(4, &[2u8] as &[u8]), (16, &[2]), (20, &[252]), (24, &[8]), (40, &[1])];
            wrong(&NODE, sound.iter().chain(fields))
        };
        assert_eq!(wrong(&[]), "nothing");
        assert_eq!(wrong(&[(40, &[0])]), "its keys are out of order");
        assert_eq!(wrong(&[(4, &[3])]), "it is neither internal node nor leaf");
        assert_eq!(wrong(&[(4, &[1]), (16, &[0])]), "an internal node has no children");
        assert_eq!(wrong(&[(4, &[1]), (24, &[24]), (20, &[126])]), "an internal node's values are not 8 bytes long");
        assert_eq!(wrong(&[(20, &[251])]), "its capacity does not fit its value size");
        assert_eq!(wrong(&[(24, &[0])]), "its capacity does not fit its value size");
        // What would fit if values of such a size were any.
        assert_eq!(wrong(&[(24, &[0]), (20, &[251, 1])]), "its capacity does not fit its value size");
        assert_eq!(wrong(&[(27, &[255]), (20, &[0]), (16, &[0])]), "its capacity does not fit its value size");
        assert_eq!(wrong(&[(16, &[253])]), "it has more entries than it can hold");
        assert_eq!(wrong(&[(27, &[255])]), "its capacity does not fit its value size");
    }

    #[test]
    fn an_array_block_is_checked_when_it_is_read() {
        let wrong = |value_bytes: u32, max: u32, len: u32| {
            let [value_bytes, max, len] = [value_bytes, max, len].map(u32::to_le_bytes);
            wrong(&ARRAY, &[(4, &max as &[u8]), (8, &len), (12, &value_bytes)])
        };
        assert_eq!([wrong(8, 509, 0), wrong(8, 509, 509), wrong(4072, 1, 1)], ["nothing"; 3]);
        assert_eq!(wrong(8, 509, 510), "it has more values than it can hold");
        for (value_bytes, max) in [(8, 508), (8, 0), (0, 509), (0, 0), (4073, 0), (u32::MAX, 0)] {
            assert_eq!(wrong(value_bytes, max, 0), "its capacity does not fit its value size");
        }
    }
}
