//! Mode parameters (SPC-4 section 7.5, SBC-3 section 6.4): MODE SENSE and MODE SELECT.

use super::cdb::ModeSense;
use super::lu::ModeState;
use super::sense::Sense;
use crate::unit::Attributes;
use alloc::vec::Vec;

const ERROR_RECOVERY: u8 = 0x01;
const DISCONNECT: u8 = 0x02;
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const EXCEPTIONS: u8 = 0x1c;
const ALL: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

const PAGES: [u8; 5] = [ERROR_RECOVERY, DISCONNECT, CACHING, CONTROL, EXCEPTIONS];

/// D_SENSE in byte 2 of the control page.
const D_SENSE: u8 = 0x04;
/// SWP in byte 4 of the control page.
const SWP: u8 = 0x08;

/// Which values of a page are meant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current(ModeState),
    /// Ones where a bit can be changed.
    Changeable,
}

/// The answer to a MODE SENSE.
pub fn sense(request: &ModeSense, attributes: &Attributes, state: ModeState) -> Result<Vec<u8>, Sense> {
    let values = match request.control {
        0 => Values::Current(state),
        1 => Values::Changeable,
        2 => Values::Current(ModeState::default()),
        _ => return Err(Sense::SAVING_NOT_SUPPORTED),
    };
    if request.subpage != 0 && request.subpage != ALL_SUBPAGES {
        return Err(Sense::cdb_field(3));
    }
    let mut pages = Vec::new();
    for code in PAGES.iter().filter(|code| request.page == ALL || request.page == **code) {
        pages.extend(page(*code, values));
    }
    if pages.is_empty() {
        return Err(Sense::cdb_field(2));
    }
    let write_protect = attributes.read_only || state.write_protect;
    // DPO and FUA are supported.
    let device = if write_protect { 0x90 } else { 0x10 };
    let descriptor = if request.no_descriptors { Vec::new() } else { descriptor(request.long_lba, attributes) };
    Ok(assemble(request, device, &descriptor, &pages))
}

fn assemble(request: &ModeSense, device: u8, descriptor: &[u8], pages: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    let total = descriptor.len() + pages.len();
    if request.long {
        let long_lba = u8::from(request.long_lba && !descriptor.is_empty());
        data.extend(((total + 6) as u16).to_be_bytes());
        data.extend([0, device, long_lba, 0]);
        data.extend((descriptor.len() as u16).to_be_bytes());
    } else {
        data.extend([(total + 3) as u8, 0, device, descriptor.len() as u8]);
    }
    data.extend(descriptor);
    data.extend(pages);
    data
}

fn descriptor(long_lba: bool, attributes: &Attributes) -> Vec<u8> {
    let mut data = Vec::new();
    if long_lba {
        data.extend(attributes.blocks.to_be_bytes());
        data.extend([0; 4]);
    } else {
        data.extend(u32::try_from(attributes.blocks).unwrap_or(u32::MAX).to_be_bytes());
    }
    data.extend(attributes.block_bytes.to_be_bytes());
    data
}

/// One mode page with its header.
fn page(code: u8, values: Values) -> Vec<u8> {
    let mut page = alloc::vec![code, if matches!(code, ERROR_RECOVERY | CONTROL | EXCEPTIONS) { 0x0a } else { 0x0e }];
    match (code, values) {
        // WCE: a write is durable only after SYNCHRONIZE CACHE or with FUA.
        (CACHING, Values::Current(_)) => page = alloc::vec![code, 0x12, 0x04],
        (CACHING, Values::Changeable) => page = alloc::vec![code, 0x12, 0],
        (CONTROL, Values::Current(state)) => {
            let d_sense = if state.descriptor_sense { D_SENSE } else { 0 };
            let swp = if state.write_protect { SWP } else { 0 };
            // QAM 1: simple tasks may be reordered without restriction.
            page.extend([d_sense, 0x10, swp]);
        }
        (CONTROL, Values::Changeable) => page.extend([D_SENSE, 0, SWP]),
        _ => {}
    }
    let len = page.get(1).map_or(0, |len| usize::from(*len) + 2);
    page.resize(len, 0);
    page
}

/// The state after a MODE SELECT with this parameter list.
pub fn select(long: bool, list: &[u8], attributes: &Attributes, state: ModeState) -> Result<ModeState, Sense> {
    if list.is_empty() {
        return Ok(state);
    }
    let too_short = Sense::PARAMETER_LIST_LENGTH;
    let (header, descriptor_bytes) = match (long, list) {
        (false, [_, _, _, len, ..]) => (4, usize::from(*len)),
        (true, [_, _, _, _, _, _, high, low, ..]) => (8, usize::from(u16::from_be_bytes([*high, *low]))),
        _ => return Err(too_short),
    };
    let (descriptor, mut pages) =
        list.get(header..).and_then(|rest| rest.split_at_checked(descriptor_bytes)).ok_or(too_short)?;
    check_descriptor(descriptor, header, attributes)?;
    let mut state = state;
    while let [first, len, ..] = pages {
        let (page, rest) = pages.split_at_checked(usize::from(*len) + 2).ok_or(too_short)?;
        let at = (list.len() - pages.len()) as u16;
        state = select_page(first & 0x3f, page, at, state)?;
        pages = rest;
    }
    if pages.is_empty() { Ok(state) } else { Err(too_short) }
}

/// The block length cannot be changed; the number of blocks is not used.
fn check_descriptor(descriptor: &[u8], at: usize, attributes: &Attributes) -> Result<(), Sense> {
    let len = descriptor.len();
    let block_bytes = match descriptor.last_chunk::<4>() {
        None if len == 0 => return Ok(()),
        Some(bytes) if len == 8 || len == 16 => u32::from_be_bytes(*bytes),
        _ => return Err(Sense::parameter_field(at as u16)),
    };
    let block_bytes = if len == 8 { block_bytes & 0x00ff_ffff } else { block_bytes };
    if block_bytes == 0 || block_bytes == attributes.block_bytes {
        Ok(())
    } else {
        Err(Sense::parameter_field((at + len - 3) as u16))
    }
}

/// Takes over one page, of which nothing but the changeable bits may differ.
fn select_page(code: u8, new: &[u8], at: u16, state: ModeState) -> Result<ModeState, Sense> {
    if !PAGES.contains(&code) {
        return Err(Sense::parameter_field(at));
    }
    let current = page(code, Values::Current(state));
    let mask = page(code, Values::Changeable);
    if new.len() != current.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    // Bytes 0 and 1 are code and length; the PS bit of byte 0 is reserved here.
    let fields = new.iter().zip(&current).zip(&mask).enumerate().skip(2);
    for (byte, ((new, current), mask)) in fields {
        if (new ^ current) & !mask != 0 {
            return Err(Sense::parameter_field(at.saturating_add(byte as u16)));
        }
    }
    match (code, new) {
        (CONTROL, [_, _, flags, _, protect, ..]) => {
            Ok(ModeState { descriptor_sense: flags & D_SENSE != 0, write_protect: protect & SWP != 0 })
        }
        _ => Ok(state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Attributes = Attributes {
        blocks: 1 << 21,
        block_bytes: 512,
        physical_block_bytes: 512,
        unmap_granularity_blocks: 128,
        read_only: false,
    };

    fn ask(page: u8, control: u8) -> ModeSense {
        ModeSense { long: false, no_descriptors: true, long_lba: false, control, page, subpage: 0, allocation: 255 }
    }

    #[test]
    fn all_pages_with_header_and_descriptor() {
        let request = ModeSense { no_descriptors: false, ..ask(ALL, 0) };
        let data = sense(&request, &DISK, ModeState::default()).unwrap();
        assert_eq!(data.len(), usize::from(data[0]) + 1);
        assert_eq!(data[..12], [data[0], 0, 0x10, 8, 0, 0x20, 0, 0, 0, 0, 2, 0]);
        let read_only = Attributes { read_only: true, ..DISK };
        assert_eq!(sense(&request, &read_only, ModeState::default()).unwrap()[2], 0x90);
        let long = ModeSense { long: true, long_lba: true, ..request };
        let data = sense(&long, &DISK, ModeState::default()).unwrap();
        assert_eq!(data.len(), usize::from(u16::from_be_bytes([data[0], data[1]])) + 2);
        assert_eq!(data[4..8], [1, 0, 0, 16]);
    }

    #[test]
    fn the_write_cache_is_on() {
        assert_eq!(sense(&ask(CACHING, 0), &DISK, ModeState::default()).unwrap()[4..7], [CACHING, 0x12, 0x04]);
    }

    #[test]
    fn what_is_not_there() {
        assert_eq!(sense(&ask(0x3e, 0), &DISK, ModeState::default()), Err(Sense::cdb_field(2)));
        assert_eq!(sense(&ask(ALL, 3), &DISK, ModeState::default()), Err(Sense::SAVING_NOT_SUPPORTED));
    }

    #[test]
    fn select_changes_what_is_changeable_only() {
        let mut list = sense(&ask(CONTROL, 0), &DISK, ModeState::default()).unwrap();
        list[0] = 0;
        list[4 + 4] |= SWP;
        let state = select(false, &list, &DISK, ModeState::default()).unwrap();
        assert_eq!(state, ModeState { write_protect: true, descriptor_sense: false });
        assert_eq!(sense(&ask(CONTROL, 0), &DISK, state).unwrap()[2], 0x90);
        list[4 + 3] ^= 0x10;
        assert_eq!(select(false, &list, &DISK, ModeState::default()), Err(Sense::parameter_field(7)));
        for cut in 1..list.len() {
            let cut = select(false, &list[..cut], &DISK, ModeState::default());
            assert!(cut.is_err() || cut == Ok(ModeState::default()));
        }
    }
}
