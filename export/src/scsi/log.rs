//! Log pages (SPC-4 section 7.3, SBC-3 section 6.4): LOG SENSE.

use super::cdb::LogSense;
use super::sense::Sense;
use crate::unit::{Attributes, Space};
use alloc::vec::Vec;

const SUPPORTED: u8 = 0x00;
const PROVISIONING: u8 = 0x0c;
const ALL_SUBPAGES: u8 = 0xff;

/// Parameters of the logical block provisioning page.
const AVAILABLE: u16 = 0x0001;
const USED: u16 = 0x0002;
const AVAILABLE_PERCENTAGE: u16 = 0x0003;

/// SCOPE: not for this unit alone.
const SHARED: u8 = 0x02;

/// The answer to a LOG SENSE.
pub fn sense(request: &LogSense, attributes: &Attributes, space: Space) -> Result<Vec<u8>, Sense> {
    let thin = attributes.is_thin();
    let codes = if thin { &[SUPPORTED, PROVISIONING][..] } else { &[SUPPORTED] };
    let body = match (request.page, request.subpage) {
        (SUPPORTED, 0) => codes.to_vec(),
        // The list with subpages has itself, too.
        (SUPPORTED, ALL_SUBPAGES) => {
            let pages = codes.iter().flat_map(|code| [*code, 0]);
            [&[SUPPORTED, 0, SUPPORTED, ALL_SUBPAGES][..], &pages.skip(2).collect::<Vec<_>>()].concat()
        }
        (PROVISIONING, 0) if thin => provisioning(request.pointer, attributes, space)?,
        (SUPPORTED, _) => return Err(Sense::cdb_field(3)),
        (PROVISIONING, _) if thin => return Err(Sense::cdb_field(3)),
        _ => return Err(Sense::cdb_field(2)),
    };
    // SPF: a page with a subpage code.
    let format = if request.subpage == 0 { 0 } else { 0x40 };
    let mut page = alloc::vec![format | request.page, request.subpage];
    page.extend((body.len() as u16).to_be_bytes());
    page.extend(body);
    Ok(page)
}

/// The parameters from a code on.
fn provisioning(pointer: u16, attributes: &Attributes, space: Space) -> Result<Vec<u8>, Sense> {
    let all_bytes = space.available_bytes.saturating_add(space.used_bytes);
    let percentage = u128::from(space.available_bytes) * 100 / u128::from(all_bytes.max(1));
    let [high, low] = (percentage as u16).to_be_bytes();
    let parameters = [
        (AVAILABLE, attributes.threshold_sets(space.available_bytes).to_be_bytes()),
        (USED, attributes.threshold_sets(space.used_bytes).to_be_bytes()),
        (AVAILABLE_PERCENTAGE, [high, low, 0, 0]),
    ];
    let mut body = Vec::new();
    for (code, count) in parameters.iter().filter(|(code, _)| *code >= pointer) {
        body.extend(code.to_be_bytes());
        // Binary list parameters, of 8 bytes.
        body.extend([0x03, 0x08]);
        body.extend(count);
        body.extend([SHARED, 0, 0, 0]);
    }
    if body.is_empty() { Err(Sense::cdb_field(5)) } else { Ok(body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIN: Attributes = Attributes {
        blocks: 1 << 21,
        block_bytes: 512,
        physical_block_bytes: 512,
        unmap_granularity_blocks: 384,
        read_only: false,
    };
    const SPACE: Space = Space { available_bytes: 75 << 20, used_bytes: 225 << 20, threshold_bytes: 0 };

    fn ask(page: u8, subpage: u8, pointer: u16, attributes: &Attributes) -> Result<Vec<u8>, Sense> {
        sense(&LogSense { page, subpage, pointer, allocation: 255 }, attributes, SPACE)
    }

    #[test]
    fn the_space_of_the_pool_in_sets_of_blocks() {
        let page = ask(PROVISIONING, 0, 0, &THIN).unwrap();
        assert_eq!(page[..4], [0x0c, 0, 0, 36]);
        // 384 blocks are 3 sets of 128, which have 64 KiB.
        assert_eq!(THIN.threshold_exponent(), 7);
        assert_eq!(page[4..16], [0, 1, 3, 8, 0, 0, 0x04, 0xb0, 2, 0, 0, 0]);
        assert_eq!(page[16..28], [0, 2, 3, 8, 0, 0, 0x0e, 0x10, 2, 0, 0, 0]);
        assert_eq!(page[28..], [0, 3, 3, 8, 0, 25, 0, 0, 2, 0, 0, 0]);
        assert_eq!(ask(PROVISIONING, 0, 3, &THIN).unwrap()[2..6], [0, 12, 0, 3], "from parameter 3 on");
        assert_eq!(ask(PROVISIONING, 0, 4, &THIN), Err(Sense::cdb_field(5)));
    }

    #[test]
    fn which_pages_there_are() {
        assert_eq!(ask(0, 0, 0, &THIN).unwrap(), [0, 0, 0, 2, 0, 0x0c]);
        assert_eq!(ask(0, 0xff, 0, &THIN).unwrap(), [0x40, 0xff, 0, 6, 0, 0, 0, 0xff, 0x0c, 0]);
        let thick = Attributes { unmap_granularity_blocks: 0, ..THIN };
        assert_eq!(ask(0, 0, 0, &thick).unwrap(), [0, 0, 0, 1, 0]);
        assert_eq!(ask(PROVISIONING, 0, 0, &thick), Err(Sense::cdb_field(2)));
        assert_eq!(ask(PROVISIONING, 1, 0, &THIN), Err(Sense::cdb_field(3)));
        assert_eq!(ask(0x2f, 0, 0, &THIN), Err(Sense::cdb_field(2)));
    }
}
