//! CRC-32C as the persistent-data format uses it (reference 1.2).

/// The register after `bytes`, from all ones and without a final complement.
///
/// ```
/// assert_eq!(pdata::checksum::crc32c_raw(b"123456789"), 0x1CF96D7C);
/// ```
pub fn crc32c_raw(bytes: &[u8]) -> u32 {
    platform::crc32c::update(!0, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_reference() {
        assert_eq!(crc32c_raw(b"123456789"), 0x1CF96D7C);
        assert_eq!(crc32c_raw(&[0; 4092]), 0x58CDA791);
    }
}
