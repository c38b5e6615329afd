//! The commands that are supported, with the bits of their CDBs that are looked at (SPC-4 section 6.35).

use super::cdb::ReportOpcodes;
use super::sense::Sense;
use alloc::vec::Vec;

/// A supported command.
struct Entry {
    action: Option<u8>,
    /// CDB usage data; its first byte is the opcode.
    usage: &'static [u8],
}

const fn entry(usage: &'static [u8]) -> Entry {
    Entry { action: None, usage }
}

const fn action(action: u8, usage: &'static [u8]) -> Entry {
    Entry { action: Some(action), usage }
}

const F: u8 = 0xff;

static TABLE: &[Entry] = &[
    entry(&[0x00, 0, 0, 0, 0, 0]),
    entry(&[0x03, 0x01, 0, 0, F, 0]),
    entry(&[0x08, 0x1f, F, F, F, 0]),
    entry(&[0x0a, 0x1f, F, F, F, 0]),
    entry(&[0x12, 0x01, F, F, F, 0]),
    entry(&[0x15, 0x11, 0, 0, F, 0]),
    entry(&[0x16, 0, 0, 0, 0, 0]),
    entry(&[0x17, 0, 0, 0, 0, 0]),
    entry(&[0x1a, 0x08, F, F, F, 0]),
    entry(&[0x1b, 0x01, 0, 0, 0xf7, 0]),
    entry(&[0x1c, 0x01, F, F, F, 0]),
    entry(&[0x1d, 0xf7, 0, F, F, 0]),
    entry(&[0x25, 0, F, F, F, F, 0, 0, 0x01, 0]),
    entry(&[0x28, 0xf8, F, F, F, F, 0, F, F, 0]),
    entry(&[0x2a, 0xf8, F, F, F, F, 0, F, F, 0]),
    entry(&[0x2e, 0xf6, F, F, F, F, 0, F, F, 0]),
    entry(&[0x2f, 0xf6, F, F, F, F, 0, F, F, 0]),
    entry(&[0x34, 0x02, F, F, F, F, 0, F, F, 0]),
    entry(&[0x35, 0x02, F, F, F, F, 0, F, F, 0]),
    entry(&[0x37, 0, 0x1f, 0, 0, 0, 0, F, F, 0]),
    entry(&[0x41, 0xf8, F, F, F, F, 0, F, F, 0]),
    entry(&[0x42, 0x01, 0, 0, 0, 0, 0, F, F, 0]),
    action(0x02, &[0x48, 0xbf, 0, 0, 0, 0, 0, F, F, 0]),
    action(0x1f, &[0x48, 0xbf, 0, 0, 0, 0, 0, F, F, 0]),
    entry(&[0x4d, 0x01, F, F, 0, F, F, F, F, 0]),
    entry(&[0x55, 0x11, 0, 0, 0, 0, 0, F, F, 0]),
    entry(&[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    entry(&[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    entry(&[0x5a, 0x18, F, F, 0, 0, 0, F, F, 0]),
    action(0x00, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    action(0x01, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    action(0x02, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    action(0x03, &[0x5e, 0x1f, 0, 0, 0, 0, 0, F, F, 0]),
    action(0x00, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x01, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x02, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x03, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x04, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x05, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x06, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x07, &[0x5f, 0x1f, F, 0, 0, F, F, F, F, 0]),
    action(0x00, &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0]),
    action(0x00, &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0]),
    action(0x03, &[0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0]),
    action(0x04, &[0x84, 0x1f, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0]),
    entry(&[0x88, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0x89, 0xf8, F, F, F, F, F, F, F, F, 0, 0, 0, F, 0, 0]),
    entry(&[0x8a, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0x8b, 0xf8, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0x8e, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0x8f, 0xf6, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0x90, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0x91, 0x02, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0x93, 0xf9, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    action(0x10, &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0]),
    action(0x12, &[0x9e, 0x1f, F, F, F, F, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0xa0, 0, F, 0, 0, 0, F, F, F, F, 0, 0]),
    action(0x0a, &[0xa3, F, 0, 0, 0, 0, F, F, F, F, 0, 0]),
    action(0x0c, &[0xa3, 0x1f, 0x87, F, F, F, F, F, F, F, 0, 0]),
    action(0x0d, &[0xa3, 0x1f, 0x80, 0, 0, 0, F, F, F, F, 0, 0]),
    entry(&[0xa8, 0xf8, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0xaa, 0xf8, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0xae, 0xf6, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0xaf, 0xf6, F, F, F, F, F, F, F, F, 0, 0]),
    entry(&[0xb7, 0x1f, F, F, F, F, F, F, F, F, 0, 0]),
];

/// No command timeouts are told: a descriptor of zeroes.
const TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Entry {
    fn opcode(&self) -> u8 {
        self.usage.first().copied().unwrap_or(0)
    }
}

/// The answer to REPORT SUPPORTED OPERATION CODES.
pub fn report(request: &ReportOpcodes) -> Result<Vec<u8>, Sense> {
    let mut of_opcode = TABLE.iter().filter(|entry| entry.opcode() == request.opcode).peekable();
    let has_actions = of_opcode.peek().map(|entry| entry.action.is_some());
    let meant = of_opcode.find(|entry| entry.action.is_none_or(|action| u16::from(action) == request.action));
    match (request.option, has_actions) {
        (0, _) => Ok(all(request.timeouts)),
        (1, Some(true)) | (2, Some(false)) => Err(Sense::cdb_field(2)),
        (3, Some(false)) if request.action != 0 => Ok(one(None, request.timeouts)),
        (1..=3, _) => Ok(one(meant, request.timeouts)),
        _ => Err(Sense::cdb_field(2)),
    }
}

fn all(timeouts: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for entry in TABLE {
        let flags = if timeouts { 0x02 } else { 0 } | u8::from(entry.action.is_some());
        list.extend([entry.opcode(), 0, 0, entry.action.unwrap_or(0), 0, flags]);
        list.extend((entry.usage.len() as u16).to_be_bytes());
        if timeouts {
            list.extend(TIMEOUTS);
        }
    }
    let mut data = Vec::with_capacity(4 + list.len());
    data.extend((list.len() as u32).to_be_bytes());
    data.extend(list);
    data
}

fn one(entry: Option<&Entry>, timeouts: bool) -> Vec<u8> {
    let Some(entry) = entry else { return alloc::vec![0, 0x01, 0, 0] };
    let mut data = alloc::vec![0, if timeouts { 0x83 } else { 0x03 }];
    data.extend((entry.usage.len() as u16).to_be_bytes());
    data.extend(entry.usage);
    // Where service actions exist the usage data shows the one that is reported.
    if let (Some(action), Some(byte)) = (entry.action, data.get_mut(5)) {
        *byte = *byte & 0xe0 | action;
    }
    if timeouts {
        data.extend(TIMEOUTS);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::cdb::Command;

    #[test]
    fn the_table_is_what_the_decoder_knows() {
        for entry in TABLE {
            let mut cdb = [0u8; 16];
            cdb[0] = entry.opcode();
            cdb[1] = entry.action.unwrap_or(0);
            let unknown = Command::decode(&cdb) == Err(Sense::INVALID_OPCODE);
            assert!(!unknown, "{:02x} is reported but not decoded", entry.opcode());
        }
        for opcode in 0..=255u8 {
            let mut cdb = [0u8; 16];
            cdb[0] = opcode;
            let known = Command::decode(&cdb) != Err(Sense::INVALID_OPCODE);
            assert_eq!(known, TABLE.iter().any(|entry| entry.opcode() == opcode), "{opcode:02x}");
        }
    }

    #[test]
    fn cdb_lengths_follow_the_group_code() {
        for entry in TABLE {
            let len = match entry.opcode() >> 5 {
                0 => 6,
                1 | 2 => 10,
                4 => 16,
                _ => 12,
            };
            assert_eq!(entry.usage.len(), len, "{:02x}", entry.opcode());
        }
    }

    #[test]
    fn one_command() {
        let ask = |option, opcode, action| {
            report(&ReportOpcodes { timeouts: false, option, opcode, action, allocation: 512 })
        };
        assert_eq!(ask(1, 0x00, 0).unwrap(), [0, 3, 0, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ask(1, 0xff, 0).unwrap(), [0, 1, 0, 0]);
        assert_eq!(ask(1, 0x9e, 0), Err(Sense::cdb_field(2)));
        assert_eq!(ask(2, 0x00, 0), Err(Sense::cdb_field(2)));
        assert_eq!(ask(2, 0x9e, 0x10).unwrap()[..6], [0, 3, 0, 16, 0x9e, 0x10]);
        assert_eq!(ask(2, 0x9e, 0x1e).unwrap(), [0, 1, 0, 0]);
        assert_eq!(ask(2, 0xff, 0).unwrap(), [0, 1, 0, 0]);
        assert_eq!(ask(3, 0x00, 0).unwrap(), [0, 3, 0, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ask(3, 0x00, 1).unwrap(), [0, 1, 0, 0]);
        assert_eq!(ask(3, 0x9e, 0x12).unwrap()[..6], [0, 3, 0, 16, 0x9e, 0x12]);
        assert_eq!(ask(3, 0x9e, 0).unwrap(), [0, 1, 0, 0]);
        assert_eq!(ask(4, 0x00, 0), Err(Sense::cdb_field(2)));
    }
}
