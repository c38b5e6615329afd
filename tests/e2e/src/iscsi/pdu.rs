//! Protocol data units: a 48-byte basic header segment and a data segment (RFC 7143, 11.1 and 11.2).

use std::io::Read;

use super::Error;

/// Longer data segments were not agreed on.
const DATA_BYTES_MAX: u32 = 1 << 20;

/// A PDU without digests or additional header segments.
#[derive(Debug, Clone)]
pub struct Pdu {
    /// The basic header segment; its data segment length is filled in on sending.
    pub bhs: [u8; 48],
    /// The data segment without padding.
    pub data: Vec<u8>,
}

impl Pdu {
    /// An empty PDU of this opcode (with the immediate bit, 0x40).
    pub fn new(opcode: u8) -> Pdu {
        let mut bhs = [0; 48];
        bhs[0] = opcode;
        Pdu { bhs, data: Vec::new() }
    }

    /// The opcode without the immediate bit.
    pub fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    /// A header field of four bytes.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bhs[at], self.bhs[at + 1], self.bhs[at + 2], self.bhs[at + 3]])
    }

    /// Sets a header field of four bytes.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// The `key=value` pairs of a login or text PDU.
    pub fn keys(&self) -> Vec<(String, String)> {
        let text = String::from_utf8_lossy(&self.data).into_owned();
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// As it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.bhs.to_vec();
        bytes[5..8].copy_from_slice(&(self.data.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&self.data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// Reads one.
    pub fn read(stream: &mut impl Read) -> Result<Pdu, Error> {
        let mut pdu = Pdu::new(0);
        stream.read_exact(&mut pdu.bhs)?;
        let len = pdu.u32(4) & 0xff_ffff;
        if pdu.bhs[4] != 0 || len > DATA_BYTES_MAX {
            return Err(Error::Protocol(format!("AHS of {} words, data segment of {len} bytes", pdu.bhs[4])));
        }
        pdu.data = vec![0; len.next_multiple_of(4) as usize];
        stream.read_exact(&mut pdu.data)?;
        pdu.data.truncate(len as usize);
        Ok(pdu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pdu_survives_the_wire() {
        let mut pdu = Pdu::new(0x43);
        pdu.set_u32(16, 0xdead_beef);
        pdu.data = b"InitiatorName=iqn.x\0AuthMethod=None\0x".to_vec();
        let bytes = pdu.to_bytes();
        assert_eq!(bytes.len() % 4, 0);
        let back = Pdu::read(&mut &bytes[..]).unwrap();
        assert_eq!((back.opcode(), back.u32(16), &back.data), (3, 0xdead_beef, &pdu.data));
        assert_eq!(back.keys()[1], ("AuthMethod".to_owned(), "None".to_owned()));
        assert!(Pdu::read(&mut &bytes[..50]).is_err());
    }
}
