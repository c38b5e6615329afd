//! CRC-32C as the persistent-data format uses it (reference 1.2).

/// The Castagnoli polynomial, bit-reversed.
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

/// The register after `bytes`, from all ones and without a final complement.
///
/// ```
/// assert_eq!(pdata::checksum::crc32c_raw(b"123456789"), 0x1CF96D7C);
/// ```
pub fn crc32c_raw(bytes: &[u8]) -> u32 {
    let mut register = !0u32;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, as the definition says.
    fn slow(bytes: &[u8]) -> u32 {
        bytes.iter().fold(!0u32, |register, byte| {
            (0..8).fold(register ^ u32::from(*byte), |r, _| if r & 1 == 1 { (r >> 1) ^ POLYNOMIAL } else { r >> 1 })
        })
    }

    #[test]
    fn the_vectors_of_the_reference() {
        assert_eq!(crc32c_raw(b"123456789"), 0x1CF96D7C);
        assert_eq!(crc32c_raw(&[0; 4092]), 0x58CDA791);
    }

    #[test]
    fn every_length_agrees_with_the_definition() {
        let bytes: alloc::vec::Vec<u8> = (0..100u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        for len in 0..=bytes.len() {
            assert_eq!(crc32c_raw(&bytes[..len]), slow(&bytes[..len]), "length {len}");
        }
    }
}
