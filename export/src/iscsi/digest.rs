//! CRC32C, the header and data digest (RFC 7143 section 13.1).

use platform::crc32c;

/// A digest in the making.
#[derive(Debug, Clone, Copy)]
pub struct Digest(u32);

impl Default for Digest {
    fn default() -> Digest {
        Digest::new()
    }
}

impl Digest {
    /// Of no bytes yet.
    pub const fn new() -> Digest {
        Digest(u32::MAX)
    }

    /// Takes in further bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::update(self.0, bytes);
    }

    /// The four bytes as they are sent.
    pub fn finish(self) -> [u8; 4] {
        (!self.0).to_le_bytes()
    }

    /// The digest of all of `bytes`.
    pub fn of(bytes: &[u8]) -> [u8; 4] {
        let mut digest = Digest::new();
        digest.update(bytes);
        digest.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_7143_vectors() {
        let up: [u8; 32] = core::array::from_fn(|i| i as u8);
        let down: [u8; 32] = core::array::from_fn(|i| 31 - i as u8);
        let mut read = [0u8; 48];
        read[0..8].copy_from_slice(&[0x01, 0xc0, 0, 0, 0, 0, 0, 0]);
        read[16..20].copy_from_slice(&[0x14, 0, 0, 0]);
        read[20..24].copy_from_slice(&[0, 0, 4, 0]);
        read[24..28].copy_from_slice(&[0, 0, 0, 0x14]);
        read[28..32].copy_from_slice(&[0, 0, 0, 0x18]);
        read[32..42].copy_from_slice(&[0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0]);
        for (bytes, digest) in [
            (&[0u8; 32][..], [0xaa, 0x36, 0x91, 0x8a]),
            (&[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
            (&up, [0x4e, 0x79, 0xdd, 0x46]),
            (&down, [0x5c, 0xdb, 0x3f, 0x11]),
            (&read, [0x56, 0x3a, 0x96, 0xd9]),
        ] {
            assert_eq!(Digest::of(bytes), digest, "{bytes:02x?}");
        }
    }

    #[test]
    fn pieces_give_the_digest_of_the_whole() {
        let bytes: [u8; 100] = core::array::from_fn(|i| (i * 37) as u8);
        for at in 0..100 {
            let mut digest = Digest::new();
            digest.update(&bytes[..at]);
            digest.update(&bytes[at..]);
            assert_eq!(digest.finish(), Digest::of(&bytes));
        }
    }
}
