//! Mode parameters (SPC-4 section 7.5, SBC-3 section 6.5): MODE SENSE and MODE SELECT.

use super::cdb::ModeSense;
use super::lu::ModeState;
use super::sense::Sense;
use crate::unit::{Attributes, Space};
use alloc::vec::Vec;

/// A page's code and subpage code.
type Code = (u8, u8);

const ERROR_RECOVERY: Code = (0x01, 0);
const DISCONNECT: Code = (0x02, 0);
const CACHING: Code = (0x08, 0);
const CONTROL: Code = (0x0a, 0);
const CONTROL_EXTENSION: Code = (0x0a, 0x01);
const PORT: Code = (0x19, 0);
const EXCEPTIONS: Code = (0x1c, 0);
const PROVISIONING: Code = (0x1c, 0x02);
const ALL: u8 = 0x3f;
const ALL_SUBPAGES: u8 = 0xff;

const PAGES: [Code; 8] =
    [ERROR_RECOVERY, DISCONNECT, CACHING, CONTROL, CONTROL_EXTENSION, PORT, EXCEPTIONS, PROVISIONING];

/// SPF in the first byte of a page: it has a subpage code, and two bytes of length.
const SPF: u8 = 0x40;

/// LBPERE in byte 7 of the error recovery page.
const LBPERE: u8 = 0x80;
/// WCE in byte 2 of the caching page: a write is durable only after SYNCHRONIZE CACHE or with FUA.
const WCE: u8 = 0x04;
/// D_SENSE in byte 2 of the control page.
const D_SENSE: u8 = 0x04;
/// Queue algorithm modifier 1 in byte 3 of the control page: simple tasks may be reordered without restriction.
const UNRESTRICTED: u8 = 0x10;
/// SWP in byte 4 of the control page.
const SWP: u8 = 0x08;
/// Busy timeout period in bytes 8 and 9 of the control page: there is no limit to how long a unit may be busy.
const UNLIMITED: u8 = 0xff;
/// Protocol identifier of iSCSI.
const ISCSI: u8 = 0x05;
/// In a threshold descriptor: it is enabled; a soft threshold that is armed while space decreases has no other bits.
const ENABLED: u8 = 0x80;
/// The resource of a threshold descriptor: available space, as log page 0Ch counts it.
const AVAILABLE: u8 = 0x01;

/// What the pages tell.
#[derive(Debug, Clone, Copy)]
pub struct Values {
    /// Of the unit.
    pub attributes: Attributes,
    /// Of its pool.
    pub space: Space,
    /// What initiators have chosen.
    pub state: ModeState,
}

/// The answer to a MODE SENSE.
pub fn sense(request: &ModeSense, values: &Values) -> Result<Vec<u8>, Sense> {
    let build: &dyn Fn(Code) -> Vec<u8> = match request.control {
        0 => &|code| page(code, values),
        1 => &|code| changeable(code, values),
        2 => &|code| page(code, &Values { state: ModeState::default(), ..*values }),
        _ => return Err(Sense::SAVING_NOT_SUPPORTED),
    };
    let of_page = |code: &&Code| request.page == ALL || request.page == code.0;
    if !PAGES.iter().any(|code| of_page(&code)) {
        return Err(Sense::cdb_field(2));
    }
    let of_subpage = |code: &&Code| request.subpage == ALL_SUBPAGES || request.subpage == code.1;
    let specific = !matches!(request.subpage, 0 | ALL_SUBPAGES);
    let wanted = PAGES.iter().filter(of_page).filter(of_subpage);
    let pages: Vec<u8> = wanted.flat_map(|code| build(*code)).collect();
    if pages.is_empty() || (specific && request.page == ALL) {
        return Err(Sense::cdb_field(3));
    }
    let write_protect = values.attributes.read_only || values.state.write_protect;
    // DPO and FUA are supported.
    let device = if write_protect { 0x90 } else { 0x10 };
    let descriptor = if request.no_descriptors { Vec::new() } else { descriptor(request.long_lba, &values.attributes) };
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
fn page(code: Code, values: &Values) -> Vec<u8> {
    let mut page = blank(code);
    let mut set = |at: usize, bits: u8| page.get_mut(at).map_or((), |byte| *byte |= bits);
    match code {
        ERROR_RECOVERY if values.state.threshold_told => set(7, LBPERE),
        CACHING => set(2, WCE),
        CONTROL => {
            set(2, if values.state.descriptor_sense { D_SENSE } else { 0 });
            set(3, UNRESTRICTED);
            set(4, if values.state.write_protect { SWP } else { 0 });
            set(8, UNLIMITED);
            set(9, UNLIMITED);
        }
        PORT => set(2, ISCSI),
        // One threshold, which the pool's settings tell; every nexus is told (SITUA is 0).
        PROVISIONING if values.attributes.is_thin() => {
            let count = values.attributes.threshold_sets(values.space.threshold_bytes);
            let enabled = if values.space.threshold_bytes > 0 { ENABLED } else { 0 };
            let descriptor = [&[enabled, AVAILABLE, 0, 0][..], &count.to_be_bytes()].concat();
            page.truncate(16);
            page.extend(descriptor);
        }
        _ => {}
    }
    page
}

/// Ones where a bit of a page can be changed.
fn changeable(code: Code, values: &Values) -> Vec<u8> {
    let mut mask = blank(code);
    mask.resize(page(code, values).len(), 0);
    let mut set = |at: usize, bits: u8| mask.get_mut(at).map_or((), |byte| *byte |= bits);
    match code {
        ERROR_RECOVERY => set(7, LBPERE),
        CONTROL => {
            set(2, D_SENSE);
            set(4, SWP);
        }
        _ => {}
    }
    mask
}

/// A page of zeroes behind its header.
fn blank(code: Code) -> Vec<u8> {
    let body_bytes: u8 = match code {
        ERROR_RECOVERY | CONTROL | EXCEPTIONS => 0x0a,
        DISCONNECT => 0x0e,
        CACHING => 0x12,
        PORT => 0x06,
        CONTROL_EXTENSION => 0x1c,
        // Twelve, and a threshold descriptor.
        _ => 0x14,
    };
    let mut page = match code {
        (code, 0) => alloc::vec![code, body_bytes],
        (code, subpage) => alloc::vec![SPF | code, subpage, 0, body_bytes],
    };
    page.resize(page.len() + usize::from(body_bytes), 0);
    page
}

/// The state after a MODE SELECT with this parameter list.
pub fn select(long: bool, list: &[u8], values: &Values) -> Result<ModeState, Sense> {
    if list.is_empty() {
        return Ok(values.state);
    }
    let too_short = Sense::PARAMETER_LIST_LENGTH;
    let (header, descriptor_bytes) = match (long, list) {
        (false, [_, _, _, len, ..]) => (4, usize::from(*len)),
        (true, [_, _, _, _, _, _, high, low, ..]) => (8, usize::from(u16::from_be_bytes([*high, *low]))),
        _ => return Err(too_short),
    };
    let (descriptor, mut pages) =
        list.get(header..).and_then(|rest| rest.split_at_checked(descriptor_bytes)).ok_or(too_short)?;
    check_descriptor(descriptor, header, &values.attributes)?;
    let mut values = *values;
    while !pages.is_empty() {
        let (code, len) = match *pages {
            [first, subpage, high, low, ..] if first & SPF != 0 => {
                ((first & 0x3f, subpage), usize::from(u16::from_be_bytes([high, low])) + 4)
            }
            [first, len, ..] if first & SPF == 0 => ((first & 0x3f, 0), usize::from(len) + 2),
            _ => return Err(too_short),
        };
        let (page, rest) = pages.split_at_checked(len).ok_or(too_short)?;
        let at = (list.len() - pages.len()) as u16;
        values.state = select_page(code, page, at, &values)?;
        pages = rest;
    }
    Ok(values.state)
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
fn select_page(code: Code, new: &[u8], at: u16, values: &Values) -> Result<ModeState, Sense> {
    if !PAGES.contains(&code) {
        return Err(Sense::parameter_field(at));
    }
    let current = page(code, values);
    let mask = changeable(code, values);
    if new.len() != current.len() {
        return Err(Sense::PARAMETER_LIST_LENGTH);
    }
    // Before these are code and length; the PS bit of byte 0 is reserved here.
    let header = if code.1 == 0 { 2 } else { 4 };
    let fields = new.iter().zip(&current).zip(&mask).enumerate().skip(header);
    for (byte, ((new, current), mask)) in fields {
        if (new ^ current) & !mask != 0 {
            return Err(Sense::parameter_field(at.saturating_add(byte as u16)));
        }
    }
    let state = values.state;
    Ok(match (code, new) {
        (CONTROL, [_, _, flags, _, protect, ..]) => {
            ModeState { descriptor_sense: flags & D_SENSE != 0, write_protect: protect & SWP != 0, ..state }
        }
        (ERROR_RECOVERY, [_, _, _, _, _, _, _, flags, ..]) => {
            ModeState { threshold_told: flags & LBPERE != 0, ..state }
        }
        _ => state,
    })
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

    fn values() -> Values {
        let space = Space { available_bytes: 1 << 30, used_bytes: 0, threshold_bytes: 10 << 16 };
        Values { attributes: DISK, space, state: ModeState::default() }
    }

    fn ask(page: u8, control: u8) -> ModeSense {
        ModeSense { long: false, no_descriptors: true, long_lba: false, control, page, subpage: 0, allocation: 255 }
    }

    fn ask_sub(page: u8, subpage: u8) -> ModeSense {
        ModeSense { long: true, subpage, ..ask(page, 0) }
    }

    #[test]
    fn all_pages_with_header_and_descriptor() {
        let request = ModeSense { no_descriptors: false, ..ask(ALL, 0) };
        let data = sense(&request, &values()).unwrap();
        assert_eq!(data.len(), usize::from(data[0]) + 1);
        assert_eq!(data[..12], [data[0], 0, 0x10, 8, 0, 0x20, 0, 0, 0, 0, 2, 0]);
        let read_only = Values { attributes: Attributes { read_only: true, ..DISK }, ..values() };
        assert_eq!(sense(&request, &read_only).unwrap()[2], 0x90);
        let long = ModeSense { long: true, long_lba: true, ..request };
        let data = sense(&long, &values()).unwrap();
        assert_eq!(data.len(), usize::from(u16::from_be_bytes([data[0], data[1]])) + 2);
        assert_eq!(data[4..8], [1, 0, 0, 16]);
    }

    #[test]
    fn the_write_cache_is_on() {
        assert_eq!(sense(&ask(0x08, 0), &values()).unwrap()[4..7], [0x08, 0x12, 0x04]);
    }

    #[test]
    fn subpages_come_when_they_are_asked_for() {
        let plain = sense(&ask_sub(ALL, 0), &values()).unwrap();
        let all = sense(&ask_sub(ALL, ALL_SUBPAGES), &values()).unwrap();
        assert_eq!(all.len(), plain.len() + 32 + 24);
        assert_eq!(sense(&ask_sub(0x0a, ALL_SUBPAGES), &values()).unwrap().len(), 8 + 12 + 32);
        let provisioning = sense(&ask_sub(0x1c, 2), &values()).unwrap();
        assert_eq!(provisioning[8..12], [0x5c, 2, 0, 20]);
        assert_eq!(provisioning[24..], [0x80, 1, 0, 0, 0, 0, 0, 10], "enabled at ten sets of 128 blocks");
        assert_eq!(sense(&ask_sub(0x08, 1), &values()), Err(Sense::cdb_field(3)));
        assert_eq!(sense(&ask_sub(ALL, 1), &values()), Err(Sense::cdb_field(3)));
    }

    #[test]
    fn what_is_not_there() {
        assert_eq!(sense(&ask(0x3e, 0), &values()), Err(Sense::cdb_field(2)));
        assert_eq!(sense(&ask(ALL, 3), &values()), Err(Sense::SAVING_NOT_SUPPORTED));
    }

    #[test]
    fn select_changes_what_is_changeable_only() {
        let mut list = sense(&ask(0x0a, 0), &values()).unwrap();
        list[0] = 0;
        list[4 + 4] |= SWP;
        let state = select(false, &list, &values()).unwrap();
        assert_eq!(state, ModeState { write_protect: true, ..ModeState::default() });
        assert_eq!(sense(&ask(0x0a, 0), &Values { state, ..values() }).unwrap()[2], 0x90);
        list[4 + 3] ^= 0x10;
        assert_eq!(select(false, &list, &values()), Err(Sense::parameter_field(7)));
        for cut in 1..list.len() {
            let cut = select(false, &list[..cut], &values());
            assert!(cut.is_err() || cut == Ok(ModeState::default()));
        }
    }

    /// What MODE SENSE tells of everything can be sent back; and each bit that is changeable can be changed.
    #[test]
    fn all_that_is_sensed_can_be_selected() {
        let mut list = sense(&ask_sub(ALL, ALL_SUBPAGES), &values()).unwrap();
        list[..2].fill(0);
        assert_eq!(select(true, &list, &values()), Ok(ModeState::default()));
        let mask = sense(&ModeSense { control: 1, ..ask_sub(ALL, ALL_SUBPAGES) }, &values()).unwrap();
        assert_eq!(mask.len(), list.len());
        let mut changed = list.clone();
        changed[8 + 7] &= !LBPERE;
        let told = select(true, &changed, &values()).unwrap().threshold_told;
        assert!(!told && mask[8 + 7] == LBPERE);
        let last = list.len() - 1;
        list[last] ^= 1;
        assert_eq!(select(true, &list, &values()), Err(Sense::parameter_field(last as u16)), "the pool's settings");
    }
}
