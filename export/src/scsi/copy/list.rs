//! The parameter list of EXTENDED COPY (LID1) (SPC-4 sections 6.4 and 6.4.5; reference section 22): bytes in, typed
//! segments out.

use super::limits;
use crate::scsi::sense::Sense;
use alloc::vec::Vec;

/// Bytes of the list's header.
const HEADER_BYTES: usize = 16;

/// Bytes of each CSCD descriptor.
const CSCD_BYTES: usize = 32;

/// The CSCD descriptor that names a unit by a designator.
const IDENTIFICATION: u8 = 0xe4;

/// Segments that copy from block device to block device.
const BLOCKS: u8 = 0x02;
const BYTES: u8 = 0x0a;

/// Bytes of these segments, and what their length fields say.
const BLOCKS_BYTES: usize = 28;
const BYTES_BYTES: usize = 32;

/// In place of an index: the unit that the command was sent to.
pub const THIS_UNIT: u16 = 0xffff;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct CopyList {
    /// The id by which results are asked for, if they are to be kept.
    pub id: Option<u8>,
    /// The units.
    pub cscds: Vec<Cscd>,
    /// What to copy, in order.
    pub segments: Vec<Segment>,
}

/// A copy source or copy destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cscd {
    /// Its NAA designator of 16 bytes; `None` if it is named in a way that no unit here has.
    pub naa: Option<[u8; 16]>,
    /// It is said to be a disk.
    pub is_disk: bool,
    /// Bytes of its blocks as the initiator has them; 0 if it does not say.
    pub block_bytes: u32,
}

/// One copy from unit to unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where from.
    pub source: Place,
    /// Where to.
    pub target: Place,
    /// How much.
    pub amount: Amount,
}

/// One end of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the unit in the list, or [`THIS_UNIT`].
    pub cscd: u16,
    /// Logical block.
    pub lba: u64,
    /// Byte within the block, or behind it.
    pub offset_bytes: u16,
}

/// How much a segment copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// Blocks of the source.
    SourceBlocks(u16),
    /// Blocks of the target.
    TargetBlocks(u16),
    /// Bytes.
    Bytes(u32),
}

impl CopyList {
    /// Understands a list that is not empty.
    pub fn parse(list: &[u8]) -> Result<CopyList, Sense> {
        let (header, rest) = list.split_first_chunk::<HEADER_BYTES>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let [id, flags, a, b, _, _, _, _, c, d, e, f, inline @ ..] = *header;
        let cscd_bytes = usize::from(u16::from_be_bytes([a, b]));
        let segment_bytes = u32::from_be_bytes([c, d, e, f]) as usize;
        if cscd_bytes.saturating_add(segment_bytes) > limits::DESCRIPTORS_BYTES_MAX {
            return Err(Sense::PARAMETER_LIST_LENGTH);
        }
        let (cscds, rest) = rest.split_at_checked(cscd_bytes).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let (segments, rest) = rest.split_at_checked(segment_bytes).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        match u32::from_be_bytes(inline) {
            0 => {}
            inline_bytes if inline_bytes as usize > rest.len() => return Err(Sense::PARAMETER_LIST_LENGTH),
            _ => return Err(Sense::INLINE_DATA_LENGTH_EXCEEDED),
        }
        let id = match flags >> 3 & 3 {
            0 | 2 => Some(id),
            3 if id == 0 => None,
            3 => return Err(Sense::parameter_field(0)),
            _ => return Err(Sense::parameter_field(1)),
        };
        let first = HEADER_BYTES.saturating_add(cscd_bytes);
        Ok(CopyList { id, cscds: all_cscds(cscds)?, segments: all_segments(segments, first)? })
    }
}

fn all_cscds(list: &[u8]) -> Result<Vec<Cscd>, Sense> {
    let (descriptors, rest) = list.as_chunks::<CSCD_BYTES>();
    if !rest.is_empty() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    if descriptors.len() > usize::from(limits::CSCDS_MAX) {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS);
    }
    descriptors.iter().map(cscd).collect()
}

/// The LU ID TYPE says how a field is read that this kind of descriptor does not have.
fn cscd(bytes: &[u8; CSCD_BYTES]) -> Result<Cscd, Sense> {
    let [kind, flags, _, _, code_set, designator, _, len, naa @ .., _, b, c, d] = *bytes;
    if kind != IDENTIFICATION {
        return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
    }
    // A null descriptor names nothing. Association with a logical unit, binary, NAA.
    let is_null = flags & 0x20 != 0;
    let is_naa = !is_null && code_set & 0x0f == 1 && designator & 0x3f == 3 && len == 16;
    let naa = naa.first_chunk::<16>().copied().filter(|_| is_naa);
    Ok(Cscd { naa, is_disk: flags & 0x1f == 0, block_bytes: u32::from_be_bytes([0, b, c, d]) })
}

fn all_segments(mut list: &[u8], first: usize) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::new();
    let whole = list.len();
    while let Some(kind) = list.first() {
        if segments.len() >= usize::from(limits::SEGMENTS_MAX) {
            return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        }
        let at = first.saturating_add(whole.saturating_sub(list.len()));
        let (segment, rest) = match *kind {
            BLOCKS => {
                let (bytes, rest) = list.split_first_chunk().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
                (blocks_segment(bytes, at)?, rest)
            }
            BYTES => {
                let (bytes, rest) = list.split_first_chunk().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
                (bytes_segment(bytes, at)?, rest)
            }
            _ => return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR),
        };
        segments.push(segment);
        list = rest;
    }
    Ok(segments)
}

fn blocks_segment(bytes: &[u8; BLOCKS_BYTES], at: usize) -> Result<Segment, Sense> {
    let [_, flags, l, m, s, t, u, v, _, _, n, o, a, b, c, d, e, f, g, h, i, j, k, p, q, r, w, x] = *bytes;
    check_length([l, m], BLOCKS_BYTES, at)?;
    let blocks = u16::from_be_bytes([n, o]);
    let place = |cscd, lba| Place { cscd: u16::from_be_bytes(cscd), lba: u64::from_be_bytes(lba), offset_bytes: 0 };
    Ok(Segment {
        source: place([s, t], [a, b, c, d, e, f, g, h]),
        target: place([u, v], [i, j, k, p, q, r, w, x]),
        // DC: the count is of the destination's blocks.
        amount: if flags & 0x02 != 0 { Amount::TargetBlocks(blocks) } else { Amount::SourceBlocks(blocks) },
    })
}

fn bytes_segment(bytes: &[u8; BYTES_BYTES], at: usize) -> Result<Segment, Sense> {
    let [_, _, l, m, s, t, u, v, n @ .., so1, so2, to1, to2] = *bytes;
    check_length([l, m], BYTES_BYTES, at)?;
    let [n1, n2, n3, n4, a, b, c, d, e, f, g, h, i, j, k, p, q, r, w, x] = n;
    let amount = u32::from_be_bytes([n1, n2, n3, n4]);
    if amount > limits::SEGMENT_BYTES_MAX {
        return Err(field(at, 8));
    }
    let place = |cscd, lba, offset| Place {
        cscd: u16::from_be_bytes(cscd),
        lba: u64::from_be_bytes(lba),
        offset_bytes: u16::from_be_bytes(offset),
    };
    Ok(Segment {
        source: place([s, t], [a, b, c, d, e, f, g, h], [so1, so2]),
        target: place([u, v], [i, j, k, p, q, r, w, x], [to1, to2]),
        amount: Amount::Bytes(amount),
    })
}

/// The length field does not count itself and what is before it.
fn check_length(field_bytes: [u8; 2], whole: usize, at: usize) -> Result<(), Sense> {
    let told = usize::from(u16::from_be_bytes(field_bytes));
    if told.saturating_add(4) == whole { Ok(()) } else { Err(field(at, 2)) }
}

/// Invalid field, `byte` bytes behind `at` in the list.
fn field(at: usize, byte: usize) -> Sense {
    Sense::parameter_field(u16::try_from(at.saturating_add(byte)).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn cscd_bytes(naa: &[u8; 16]) -> Vec<u8> {
        let mut bytes = vec![IDENTIFICATION, 0, 0, 0, 1, 3, 0, 16];
        bytes.extend(naa);
        bytes.extend([0, 0, 0, 0, 0, 0, 2, 0]);
        bytes
    }

    fn segment_bytes(kind: u8) -> Vec<u8> {
        let mut bytes = vec![kind, 2, 0, if kind == BLOCKS { 0x18 } else { 0x1c }, 0, 1, 0, 2];
        bytes.extend([0, 0, 1, 4]);
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(9u64.to_be_bytes());
        if kind == BYTES {
            bytes.extend([0, 3, 0, 5]);
        }
        bytes
    }

    fn list(usage: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
        let (cscds, segments) = (cscds.concat(), segments.concat());
        let mut bytes = vec![5, usage << 3];
        bytes.extend((cscds.len() as u16).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend((segments.len() as u32).to_be_bytes());
        bytes.extend([0; 4]);
        [bytes, cscds, segments].concat()
    }

    #[test]
    fn a_list_is_understood() {
        let naa = *b"\x60123456789abcdef";
        let bytes = list(0, &[cscd_bytes(&naa)], &[segment_bytes(BLOCKS), segment_bytes(BYTES)]);
        let place = |cscd, lba, offset_bytes| Place { cscd, lba, offset_bytes };
        let expected = CopyList {
            id: Some(5),
            cscds: vec![Cscd { naa: Some(naa), is_disk: true, block_bytes: 512 }],
            segments: vec![
                Segment { source: place(1, 7, 0), target: place(2, 9, 0), amount: Amount::TargetBlocks(0x104) },
                Segment { source: place(1, 7, 3), target: place(2, 9, 5), amount: Amount::Bytes(0x104) },
            ],
        };
        assert_eq!(CopyList::parse(&bytes), Ok(expected));
    }

    #[test]
    fn every_shorter_list_is_refused() {
        let bytes =
            list(2, &[cscd_bytes(&[0; 16]), cscd_bytes(&[1; 16])], &[segment_bytes(BLOCKS), segment_bytes(BYTES)]);
        for len in 0..bytes.len() {
            assert_eq!(CopyList::parse(&bytes[..len]), Err(Sense::PARAMETER_LIST_LENGTH), "{len} bytes");
        }
        assert!(CopyList::parse(&bytes).is_ok());
        assert!(CopyList::parse(&[&bytes[..], &[0; 9]].concat()).is_ok(), "what is behind the list is not looked at");
    }

    #[test]
    fn what_is_wrong_is_told() {
        let naa = [0; 16];
        let parsed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = list(0, &[cscd_bytes(&naa)], &[segment_bytes(BLOCKS)]);
            change(&mut bytes);
            CopyList::parse(&bytes)
        };
        let wrong = |at: usize, byte: u8| parsed(&|bytes| bytes[at] = byte).unwrap_err();
        assert_eq!(wrong(1, 1 << 3), Sense::parameter_field(1), "a reserved usage");
        assert_eq!(wrong(1, 3 << 3), Sense::parameter_field(0), "an id where there is to be none");
        assert_eq!(wrong(15, 1), Sense::PARAMETER_LIST_LENGTH, "inline data that is not there");
        assert_eq!(wrong(3, 31), Sense::PARAMETER_LIST_LENGTH);
        assert_eq!(wrong(16, 0xe5), Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
        assert_eq!(wrong(48, 0x03), Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR);
        assert_eq!(wrong(51, 0x17), Sense::parameter_field(50), "the segment's length");
        let inline = parsed(&|bytes| {
            bytes[15] = 4;
            bytes.extend([0; 4]);
        });
        assert_eq!(inline, Err(Sense::INLINE_DATA_LENGTH_EXCEEDED));
        let of_a_name = parsed(&|bytes| bytes[21] = 8).unwrap();
        assert_eq!(of_a_name.cscds[0].naa, None, "no NAA designator");
        let null = parsed(&|bytes| bytes[17] = 0x20).unwrap();
        assert_eq!(null.cscds[0].naa, None, "a null descriptor");
    }

    #[test]
    fn there_are_limits() {
        let cscds = |n: u16| vec![cscd_bytes(&[0; 16]); usize::from(n)];
        let segments = |n: u16| vec![segment_bytes(BLOCKS); usize::from(n)];
        let (cscds_max, segments_max) = (limits::CSCDS_MAX, limits::SEGMENTS_MAX);
        assert!(CopyList::parse(&list(0, &cscds(cscds_max), &segments(segments_max))).is_ok());
        let too_many = CopyList::parse(&list(0, &cscds(cscds_max + 1), &segments(1)));
        assert_eq!(too_many, Err(Sense::TOO_MANY_TARGET_DESCRIPTORS));
        let too_many = CopyList::parse(&list(0, &cscds(1), &segments(segments_max + 1)));
        assert_eq!(too_many, Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS));
        let mut huge = list(0, &[], &[]);
        huge.resize(limits::DESCRIPTORS_BYTES_MAX + 100, 0);
        huge[8..12].copy_from_slice(&(limits::DESCRIPTORS_BYTES_MAX as u32 + 1).to_be_bytes());
        assert_eq!(CopyList::parse(&huge), Err(Sense::PARAMETER_LIST_LENGTH));
        let mut bytes = segment_bytes(BYTES);
        bytes[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(CopyList::parse(&list(0, &[], &[bytes])), Err(Sense::parameter_field(24)));
    }
}
