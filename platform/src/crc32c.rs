//! CRC-32C (Castagnoli): the checksum of metadata blocks and of iSCSI digests.
//!
//! By the processor's own instruction where it has one, otherwise by tables.

// Calling what was compiled for an instruction that not every processor has.
#![allow(unsafe_code)]

/// The polynomial, bit-reversed.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// `TABLES[n][b]` is the register after byte `b` and then `n` zero bytes, from a register of 0.
static TABLES: [[u32; 256]; 16] = tables();

const fn tables() -> [[u32; 256]; 16] {
    let mut tables = [[0; 256]; 16];
    let mut byte = 0;
    while byte < 256 {
        let mut register = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            register = if register & 1 == 1 { (register >> 1) ^ POLYNOMIAL } else { register >> 1 };
            bit += 1;
        }
        tables[0][byte] = register;
        byte += 1;
    }
    let mut n = 1;
    while n < 16 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[n - 1][byte];
            tables[n][byte] = (before >> 8) ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

/// The register after `bytes`. A whole checksum starts with all ones; whether it ends with a complement is for its user
/// to know.
///
/// ```
/// assert_eq!(!platform::crc32c::update(!0, b"123456789"), 0xE3069283);
/// ```
pub fn update(register: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(register) = x86::update(register, bytes) {
        return register;
    }
    by_tables(register, bytes)
}

fn by_tables(mut register: u32, bytes: &[u8]) -> u32 {
    let (chunks, rest) = bytes.as_chunks::<16>();
    for chunk in chunks {
        let mut chunk = *chunk;
        for (byte, r) in chunk.iter_mut().zip(register.to_le_bytes()) {
            *byte ^= r;
        }
        // The first byte has fifteen more behind it, the last none.
        register = chunk.iter().zip(TABLES.iter().rev()).fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)]);
    }
    for byte in rest {
        register = (register >> 8) ^ TABLES[0][usize::from(*byte ^ register as u8)];
    }
    register
}

/// SSE 4.2 has an instruction that takes three cycles and can start anew in each: three lanes keep it busy.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::TABLES;
    use core::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};

    cpufeatures::new!(sse42, "sse4.2");

    /// Bytes in a lane. Four times three of them are nearly all of a metadata block.
    const LANE_BYTES: usize = 336;

    /// `SHIFT[n][b]` is the register after [`LANE_BYTES`] zero bytes, from a register of `b << 8 * n`.
    static SHIFT: [[u32; 256]; 4] = shift_tables();

    const fn shift_tables() -> [[u32; 256]; 4] {
        let mut shifted = [0; 32];
        let mut bit = 0;
        while bit < 32 {
            let mut register = 1u32 << bit;
            let mut zeroes = 0;
            while zeroes < LANE_BYTES {
                register = (register >> 8) ^ TABLES[0][(register & 0xFF) as usize];
                zeroes += 1;
            }
            shifted[bit] = register;
            bit += 1;
        }
        let mut tables = [[0; 256]; 4];
        let mut at = 0;
        while at < 4 * 256 {
            let (n, byte) = (at / 256, at % 256);
            let mut bit = 0;
            while bit < 8 {
                if byte >> bit & 1 == 1 {
                    tables[n][byte] ^= shifted[n * 8 + bit];
                }
                bit += 1;
            }
            at += 1;
        }
        tables
    }

    fn shift(register: u64) -> u64 {
        let [a, b, c, d, ..] = register.to_le_bytes().map(usize::from);
        u64::from(SHIFT[0][a] ^ SHIFT[1][b] ^ SHIFT[2][c] ^ SHIFT[3][d])
    }

    /// None if the processor lacks the instruction.
    pub fn update(register: u32, bytes: &[u8]) -> Option<u32> {
        // SAFETY: the processor has the instructions that the function was compiled for.
        sse42::get().then(|| unsafe { by_instruction(register, bytes) })
    }

    #[target_feature(enable = "sse4.2")]
    fn by_instruction(register: u32, bytes: &[u8]) -> u32 {
        let (threes, rest) = bytes.as_chunks::<{ 3 * LANE_BYTES }>();
        let mut register = u64::from(register);
        for three in threes {
            let (words, _) = three.as_chunks::<8>();
            let (first, others) = words.split_at(LANE_BYTES / 8);
            let (second, third) = others.split_at(LANE_BYTES / 8);
            let (mut a, mut b, mut c) = (register, 0, 0);
            for ((x, y), z) in first.iter().zip(second).zip(third) {
                a = _mm_crc32_u64(a, u64::from_le_bytes(*x));
                b = _mm_crc32_u64(b, u64::from_le_bytes(*y));
                c = _mm_crc32_u64(c, u64::from_le_bytes(*z));
            }
            register = shift(shift(a) ^ b) ^ c;
        }
        let (words, rest) = rest.as_chunks::<8>();
        for word in words {
            register = _mm_crc32_u64(register, u64::from_le_bytes(*word));
        }
        rest.iter().fold(register as u32, |register, byte| _mm_crc32_u8(register, *byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// Bit by bit, as the definition says.
    fn slow(register: u32, bytes: &[u8]) -> u32 {
        bytes.iter().fold(register, |register, byte| {
            (0..8).fold(register ^ u32::from(*byte), |r, _| if r & 1 == 1 { (r >> 1) ^ POLYNOMIAL } else { r >> 1 })
        })
    }

    #[test]
    fn every_length_agrees_with_the_definition() {
        let bytes: Vec<u8> = (0..2100u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        for len in (0..100).chain(1000..1030).chain(2000..bytes.len()) {
            let expected = slow(0x1234_5678, &bytes[..len]);
            assert_eq!(by_tables(0x1234_5678, &bytes[..len]), expected, "tables, length {len}");
            assert_eq!(update(0x1234_5678, &bytes[..len]), expected, "this processor, length {len}");
        }
    }

    #[test]
    fn pieces_give_the_checksum_of_the_whole() {
        let bytes: Vec<u8> = (0..1500u32).map(|i| (i * 37) as u8).collect();
        for at in (0..bytes.len()).step_by(13) {
            assert_eq!(update(update(!0, &bytes[..at]), &bytes[at..]), slow(!0, &bytes), "cut at {at}");
        }
    }
}
