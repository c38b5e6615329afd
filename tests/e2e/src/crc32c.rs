//! The checksum of metadata blocks (dm-thin reference 1.2), to make damage that only a deeper look finds.

/// Bytes in a metadata block.
pub const BLOCK_BYTES: usize = 4096;
/// What a superblock's checksum is mixed with.
pub const SUPERBLOCK_XOR: u32 = 160_774;

/// The checksum that belongs into the first four bytes of a metadata block.
pub fn checksum(block: &[u8], xor: u32) -> u32 {
    let crc = block[4..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    });
    crc ^ xor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_vector() {
        assert_eq!(checksum(b"....123456789", 0), 0x1cf9_6d7c);
    }
}
