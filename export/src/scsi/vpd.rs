//! Vital product data pages (SPC-4 section 7.8, SBC-3 section 6.5).

use super::alua::TARGET_PORT_GROUP;
use super::cdb::compare_and_write_blocks_max;
use super::copy;
use super::inquiry::ascii;
use crate::unit::{Attributes, Identity};
use alloc::format;
use alloc::vec::Vec;

/// Most blocks of one read or write. They move in chunks: this bounds time, not memory.
pub const TRANSFER_BLOCKS_MAX: u32 = 1 << 16;
/// Most blocks of one UNMAP.
pub const UNMAP_BLOCKS_MAX: u32 = 1 << 20;
/// Most descriptors of one UNMAP.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;
/// Most bytes of one WRITE SAME.
pub const WRITE_SAME_BYTES_MAX: u64 = 1 << 30;

const SUPPORTED: u8 = 0x00;
const SERIAL: u8 = 0x80;
const IDENTIFICATION: u8 = 0x83;
const EXTENDED: u8 = 0x86;
const MODE_POLICY: u8 = 0x87;
const THIRD_PARTY_COPY: u8 = 0x8f;
const LIMITS: u8 = 0xb0;
const CHARACTERISTICS: u8 = 0xb1;
const PROVISIONING: u8 = 0xb2;

const PAGES: [u8; 9] =
    [SUPPORTED, SERIAL, IDENTIFICATION, EXTENDED, MODE_POLICY, THIRD_PARTY_COPY, LIMITS, CHARACTERISTICS, PROVISIONING];

/// What the pages are about.
pub struct Subject<'a> {
    /// Size and abilities of the unit.
    pub attributes: Attributes,
    /// Who it is.
    pub identity: &'a Identity,
    /// Name of the target.
    pub target: &'a str,
    /// Relative identifier of the port over which this is asked: the tag of its portal group.
    pub target_port: u16,
}

/// A page with its header, or `None` if there is no such page.
pub fn page(code: u8, subject: &Subject) -> Option<Vec<u8>> {
    let body = match code {
        SUPPORTED => PAGES.to_vec(),
        SERIAL => subject.identity.serial.bytes().collect(),
        IDENTIFICATION => identification(subject),
        EXTENDED => extended(),
        // One descriptor for all pages and subpages: initiators share them.
        MODE_POLICY => alloc::vec![0x3f, 0xff, 0, 0],
        THIRD_PARTY_COPY => copy::limits::page(),
        LIMITS => limits(&subject.attributes),
        CHARACTERISTICS => characteristics(),
        PROVISIONING => provisioning(&subject.attributes),
        _ => return None,
    };
    let mut page = Vec::with_capacity(4 + body.len());
    page.extend([0, code]);
    page.extend((body.len() as u16).to_be_bytes());
    page.extend(body);
    Some(page)
}

/// Association of a designator.
const UNIT: u8 = 0x00;
const PORT: u8 = 0x10;
const DEVICE: u8 = 0x20;

fn identification(subject: &Subject) -> Vec<u8> {
    let identity = subject.identity;
    let mut t10 = ascii::<8>(identity.vendor).to_vec();
    t10.extend(identity.serial.bytes());
    let mut page = Vec::new();
    designator(&mut page, 1, UNIT | 3, &identity.naa);
    designator(&mut page, 2, UNIT | 1, &t10);
    let [high, low] = subject.target_port.to_be_bytes();
    designator(&mut page, 1, PORT | 4, &[0, 0, high, low]);
    let [high, low] = TARGET_PORT_GROUP.to_be_bytes();
    designator(&mut page, 1, PORT | 5, &[0, 0, high, low]);
    designator(&mut page, 3, PORT | 8, &name_string(&format!("{},t,0x{:04x}", subject.target, subject.target_port)));
    designator(&mut page, 3, DEVICE | 8, &name_string(subject.target));
    page
}

/// A SCSI name string: UTF-8, zero-terminated, padded to a word.
fn name_string(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    bytes
}

fn designator(page: &mut Vec<u8>, code_set: u8, kind: u8, bytes: &[u8]) {
    // Ports and devices are named by protocol: 5 is iSCSI, 80h says that it is valid.
    let (protocol, valid) = if kind & (PORT | DEVICE) != 0 { (0x50, 0x80) } else { (0, 0) };
    page.extend([protocol | code_set, valid | kind, 0, bytes.len() as u8]);
    page.extend(bytes);
}

/// No protection information; SIMPLE, ORDERED and HEAD OF QUEUE tasks; a volatile cache.
fn extended() -> Vec<u8> {
    let mut body = alloc::vec![0, 0x07, 0x01];
    body.resize(60, 0);
    body
}

fn limits(attributes: &Attributes) -> Vec<u8> {
    let block_bytes = attributes.block_bytes.max(1);
    let thin = attributes.is_thin();
    let granularity = if thin { attributes.unmap_granularity_blocks } else { 0 };
    let physical = attributes.physical_block_bytes / block_bytes;
    let mut body = Vec::with_capacity(60);
    // WSNZ: a WRITE SAME says how many blocks it means.
    body.extend([1, compare_and_write_blocks_max(block_bytes)]);
    body.extend((physical as u16).to_be_bytes());
    body.extend(TRANSFER_BLOCKS_MAX.to_be_bytes());
    // No optimal length is told (Linux would take it for a limit), and none of PRE-FETCH.
    body.extend([0; 8]);
    body.extend(if thin { UNMAP_BLOCKS_MAX } else { 0 }.to_be_bytes());
    body.extend(if thin { UNMAP_DESCRIPTORS_MAX } else { 0 }.to_be_bytes());
    body.extend(granularity.to_be_bytes());
    body.extend(if thin { 1u32 << 31 } else { 0 }.to_be_bytes());
    body.extend((WRITE_SAME_BYTES_MAX / u64::from(block_bytes)).to_be_bytes());
    body.resize(60, 0);
    body
}

/// Solid state: no rotation. WABEREQ 1: after a SANITIZE reads succeed.
fn characteristics() -> Vec<u8> {
    let mut body = alloc::vec![0, 1, 0, 0x40];
    body.resize(60, 0);
    body
}

fn provisioning(attributes: &Attributes) -> Vec<u8> {
    // LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned.
    if attributes.is_thin() {
        alloc::vec![attributes.threshold_exponent(), 0xe4, 2, 0]
    } else {
        alloc::vec![0, 0, 0, 0]
    }
}
