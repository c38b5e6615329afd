//! Standard INQUIRY data (SPC-4 section 6.6.2).

use crate::unit::Identity;
use alloc::vec::Vec;

/// Peripheral qualifier and type of a unit that is not there.
pub const NO_UNIT: u8 = 0x7f;

/// Bytes of the standard data.
const LEN: usize = 96;

/// SAM-5, SPC-4, SBC-3, iSCSI.
const VERSIONS: [u16; 4] = [0x00a0, 0x0460, 0x04c0, 0x0960];

/// TPGS: implicit asymmetric access.
const TPGS: u8 = 0x10;
/// 3PC: third-party copies.
const THIRD_PARTY_COPY: u8 = 0x08;
/// MULTIP: more than one port.
const MULTIP: u8 = 0x10;
/// CMDQUE: tasks queue.
const CMDQUE: u8 = 0x02;

/// Standard INQUIRY data; `present` is false on a LUN without a unit.
pub fn standard(identity: &Identity, present: bool, several_ports: bool) -> Vec<u8> {
    let mut data = Vec::with_capacity(LEN);
    let ports = if several_ports { MULTIP } else { 0 };
    // SPC-4; HISUP, response format 2.
    data.extend([
        if present { 0 } else { NO_UNIT },
        0,
        0x06,
        0x12,
        (LEN - 5) as u8,
        TPGS | THIRD_PARTY_COPY,
        ports,
        CMDQUE,
    ]);
    data.extend(ascii::<8>(identity.vendor));
    data.extend(ascii::<16>(identity.product));
    data.extend(ascii::<4>(identity.revision));
    data.resize(58, 0);
    VERSIONS.iter().for_each(|version| data.extend(version.to_be_bytes()));
    data.resize(LEN, 0);
    data
}

/// Text in a field of N printable ASCII bytes, left-aligned.
pub fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (place, byte) in field.iter_mut().zip(text.bytes()) {
        *place = if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'?' };
    }
    field
}
