//! One page of records on disk. All numbers little-endian.
//!
//! | off | size | field |
//! | --- | --- | --- |
//! | 0 | 16 | magic `gossamer-records` |
//! | 16 | 4 | CRC-32C (as [`pdata::checksum`]) of bytes 20 to the end of the payload |
//! | 20 | 4 | format version, 1 |
//! | 24 | 4 | thin id of the device it was written to: a snapshot of the device is no second one |
//! | 28 | 4 | number of the page |
//! | 32 | 8 | sequence: one more than the version before |
//! | 40 | 4 | length of the payload in bytes |
//! | 44 | 20 | zero |
//! | 64 | | payload |

use crate::control::DeviceId;
use pdata::checksum::crc32c_raw;

/// A page on disk: the first 64 KiB of its data block, whatever the size of blocks.
pub(super) const PAGE_BYTES: usize = 64 << 10;
/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 64;

const MAGIC: &[u8; 16] = b"gossamer-records";
const VERSION: u32 = 1;
const CHECKSUM_AT: usize = 16;
const CHECKED_FROM: usize = 20;

/// What a page says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub device: DeviceId,
    pub page: u32,
    pub sequence: u64,
}

/// The bytes carry the mark of a page of this device: enough to call it damaged if the rest is not right.
pub(super) fn is_marked(bytes: &[u8], device: DeviceId) -> bool {
    bytes.starts_with(MAGIC) && word(bytes, 24) == Some(device.get())
}

/// The sequence of a page, whose header is all that was read.
pub(super) fn sequence(bytes: &[u8]) -> Option<u64> {
    let sequence = u64::from_le_bytes(*bytes.get(32..)?.first_chunk()?);
    bytes.starts_with(MAGIC).then_some(sequence)
}

/// Writes a page into `out` and zeroes the rest of it. The payload must fit.
pub(super) fn encode(out: &mut [u8], header: Header, payload: &[u8]) {
    out.fill(0);
    let fields: [(usize, &[u8]); 6] = [
        (0, MAGIC),
        (20, &VERSION.to_le_bytes()),
        (24, &header.device.get().to_le_bytes()),
        (28, &header.page.to_le_bytes()),
        (32, &header.sequence.to_le_bytes()),
        (40, &(payload.len() as u32).to_le_bytes()),
    ];
    for (at, bytes) in fields.into_iter().chain([(HEADER_BYTES, payload)]) {
        if let Some(place) = out.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
    let checksum = crc32c_raw(out.get(CHECKED_FROM..HEADER_BYTES + payload.len()).unwrap_or_default());
    if let Some(place) = out.get_mut(CHECKSUM_AT..CHECKED_FROM) {
        place.copy_from_slice(&checksum.to_le_bytes());
    }
}

/// The payload of the page that should be this one, or what is wrong.
pub(super) fn decode(bytes: &[u8], device: DeviceId, page: u32) -> Result<&[u8], &'static str> {
    if !bytes.starts_with(MAGIC) {
        return Err("it has no magic");
    }
    let length = word(bytes, 40).and_then(|length| usize::try_from(length).ok());
    let checked_end = length.and_then(|length| HEADER_BYTES.checked_add(length));
    let checked = checked_end.and_then(|end| bytes.get(CHECKED_FROM..end)).ok_or("its length is out of range")?;
    if word(bytes, CHECKSUM_AT) != Some(crc32c_raw(checked)) {
        return Err("its checksum is wrong");
    }
    if word(bytes, 20) != Some(VERSION) {
        return Err("its format version is unknown: use a newer version");
    }
    if word(bytes, 24) != Some(device.get()) {
        return Err("it belongs to another device");
    }
    if word(bytes, 28) != Some(page) {
        return Err("it is another page");
    }
    checked.get(HEADER_BYTES - CHECKED_FROM..).ok_or("its length is out of range")
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const DEVICE: DeviceId = DeviceId::MAX;

    #[test]
    fn a_page_reads_back_and_any_flipped_bit_shows() {
        let mut bytes = vec![0xEE; 512];
        encode(&mut bytes, Header { device: DEVICE, page: 3, sequence: 1 << 33 }, b"payload");
        assert_eq!(decode(&bytes, DEVICE, 3), Ok(&b"payload"[..]));
        assert_eq!(sequence(&bytes), Some(1 << 33));
        assert!(is_marked(&bytes, DEVICE));
        for bit in 0..(HEADER_BYTES + 7) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes, DEVICE, 3).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(decode(&bytes, DEVICE, 2).is_err());
        assert!(decode(&bytes, DeviceId::new(1).unwrap(), 3).is_err());
    }

    #[test]
    fn rubbish_is_an_error() {
        for len in [0, 15, 16, 20, 44, 63, 64, 512] {
            let mut bytes = vec![0xFF; len];
            assert!(decode(&bytes, DEVICE, 0).is_err());
            let magic = len.min(16);
            bytes[..magic].copy_from_slice(&MAGIC[..magic]);
            assert!(decode(&bytes, DEVICE, 0).is_err());
        }
    }
}
