//! How much a copy may be, and where that is told: the operating parameters (SPC-4 section 6.18.4) and the VPD page of
//! third-party copies (SPC-4 section 7.8.17).

use alloc::vec::Vec;

/// Most CSCD descriptors of a list.
pub const CSCDS_MAX: u16 = 16;

/// Most segments of a list.
pub const SEGMENTS_MAX: u16 = 128;

/// Most bytes of all descriptors of a list.
pub const DESCRIPTORS_BYTES_MAX: usize = 8192;

/// Most bytes of a list, with its header.
pub const LIST_BYTES_MAX: u32 = 16 + DESCRIPTORS_BYTES_MAX as u32;

/// Most bytes that one segment copies.
pub const SEGMENT_BYTES_MAX: u32 = 1 << 30;

/// Copies whose results are kept for one nexus.
pub const RESULTS_MAX: u8 = 8;

/// Copies at a time, of one nexus with a list id.
const CONCURRENT_MAX: u8 = RESULTS_MAX;

/// Segment and CSCD descriptors, ascending.
const DESCRIPTORS: [u8; 3] = [0x02, 0x0a, 0xe4];

/// The answer to RECEIVE COPY OPERATING PARAMETERS.
pub fn operating_parameters() -> Vec<u8> {
    let mut data = Vec::with_capacity(48);
    // SNLID: a list may have no id.
    data.extend([1, 0, 0, 0]);
    data.extend(CSCDS_MAX.to_be_bytes());
    data.extend(SEGMENTS_MAX.to_be_bytes());
    data.extend((DESCRIPTORS_BYTES_MAX as u32).to_be_bytes());
    data.extend(SEGMENT_BYTES_MAX.to_be_bytes());
    // No inline data, no held data, no stream devices.
    data.extend([0; 12]);
    data.extend([0; 2]);
    data.extend(u16::from(CONCURRENT_MAX).to_be_bytes());
    // Granularities of segments, inline and held data: a byte.
    data.extend([CONCURRENT_MAX, 0, 0, 0]);
    data.extend([0, 0, 0, DESCRIPTORS.len() as u8]);
    data.extend(DESCRIPTORS);
    [&(data.len() as u32).to_be_bytes()[..], &data].concat()
}

/// The third-party copy page's descriptors.
pub fn page() -> Vec<u8> {
    let mut page = Vec::new();
    // Supported commands: EXTENDED COPY (LID1); RECEIVE COPY STATUS, OPERATING PARAMETERS, FAILED SEGMENT DETAILS.
    descriptor(&mut page, 0x0001, &[8, 0x83, 1, 0x00, 0x84, 3, 0x00, 0x03, 0x04]);
    let mut parameters = [0; 4].to_vec();
    parameters.extend(CSCDS_MAX.to_be_bytes());
    parameters.extend(SEGMENTS_MAX.to_be_bytes());
    parameters.extend((DESCRIPTORS_BYTES_MAX as u32).to_be_bytes());
    parameters.resize(28, 0);
    descriptor(&mut page, 0x0004, &parameters);
    descriptor(&mut page, 0x0008, &[&[DESCRIPTORS.len() as u8], &DESCRIPTORS[..]].concat());
    // The only id that is no index: the unit itself.
    descriptor(&mut page, 0x000c, &[0, 2, 0xff, 0xff]);
    let mut operations = u32::from(CONCURRENT_MAX).to_be_bytes().to_vec();
    operations.extend(u32::from(CONCURRENT_MAX).to_be_bytes());
    operations.extend(SEGMENT_BYTES_MAX.to_be_bytes());
    operations.resize(32, 0);
    descriptor(&mut page, 0x8001, &operations);
    page
}

/// Appends a descriptor, padded to a word.
fn descriptor(page: &mut Vec<u8>, kind: u16, data: &[u8]) {
    let len = data.len().next_multiple_of(4);
    page.extend(kind.to_be_bytes());
    page.extend((len as u16).to_be_bytes());
    page.extend(data);
    page.resize(page.len() + len - data.len(), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operating_parameters_lie_where_the_reference_says() {
        let data = operating_parameters();
        let be16 = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
        let be32 = |at: usize| u32::from_be_bytes(*data[at..].first_chunk().unwrap());
        assert_eq!(be32(0) as usize, data.len() - 4);
        assert_eq!((be16(8), be16(10), be32(12), be32(16)), (CSCDS_MAX, SEGMENTS_MAX, 8192, SEGMENT_BYTES_MAX));
        assert_eq!((be32(20), be32(24), be16(34), data[36], data[37]), (0, 0, 8, 8, 0));
        assert_eq!(data[43..], [3, 0x02, 0x0a, 0xe4]);
    }

    #[test]
    fn descriptors_of_the_page_are_words() {
        let page = page();
        let (mut rest, mut kinds) = (&page[..], Vec::new());
        while let Some(([a, b, c, d], more)) = rest.split_first_chunk() {
            kinds.push(u16::from_be_bytes([*a, *b]));
            let len = usize::from(u16::from_be_bytes([*c, *d]));
            assert!(len.is_multiple_of(4));
            rest = &more[len..];
        }
        assert_eq!(kinds, [0x0001, 0x0004, 0x0008, 0x000c, 0x8001]);
    }
}
