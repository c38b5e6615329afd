//! Parameter lists of PERSISTENT RESERVE OUT (SPC-4 section 6.16.3), and TransportIDs of iSCSI (section 7.6.4.6).

use super::{Known, Path, REGISTRATIONS_MAX, Refused, action};
use crate::scsi::sense::Sense;
use alloc::string::String;
use alloc::vec::Vec;

/// Bytes of the list without further ports.
const BASIC_BYTES: usize = 24;

/// Where the service action reservation key stands.
pub const ACTION_KEY: u16 = 8;
/// Where SPEC_I_PT, ALL_TG_PT and APTPL stand.
pub const FLAGS: u16 = 20;
/// Where REGISTER AND MOVE has UNREG and APTPL.
const MOVE_FLAGS: u16 = 17;
/// Where REGISTER AND MOVE names the target port.
pub const RELATIVE_PORT: u16 = 18;
/// Where REGISTER AND MOVE names the initiator port.
pub const MOVED_TRANSPORT: u16 = 24;

/// Protocol identifier of iSCSI.
const ISCSI: u8 = 5;

/// A PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Service action.
    pub action: u8,
    /// Scope and type.
    pub scope_and_type: u8,
    /// Reservation key.
    pub key: u64,
    /// Service action reservation key.
    pub action_key: u64,
    /// APTPL: what there is then outlives a restart.
    pub persists: bool,
    /// ALL_TG_PT: for all target ports.
    pub all_target_ports: bool,
    /// SPEC_I_PT: further initiator ports to register.
    pub transports: Vec<TransportId>,
    /// Where REGISTER AND MOVE moves the reservation.
    pub moved: Option<Moved>,
}

/// The rest of a REGISTER AND MOVE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The nexus that gets the reservation.
    pub to: Path,
    /// UNREG: who had it is not registered any more.
    pub unregisters: bool,
}

/// An initiator as a TransportID names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransportId {
    /// All ports of the initiator of this name that are known.
    Device(String),
    /// One port: `NAME,i,0xISID`.
    Port(String),
}

impl Request {
    /// Reads the parameter list. `can_persist`: the unit can keep reservations over a restart.
    pub fn new(action: u8, scope_and_type: u8, list: &[u8], can_persist: bool) -> Result<Request, Sense> {
        let (fields, rest) = list.split_first_chunk::<BASIC_BYTES>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, _, move_flags, port_high, port_low, flags, ..] = *fields;
        let request = Request {
            action,
            scope_and_type,
            key: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            action_key: u64::from_be_bytes([i, j, k, l, m, n, o, p]),
            ..Request::default()
        };
        let (request, place) = if action == action::REGISTER_AND_MOVE {
            let [.., a, b, c, d] = *fields;
            let transport = exactly(rest, u32::from_be_bytes([a, b, c, d]))?;
            let (TransportId::Port(initiator), []) = decode_transport(transport, MOVED_TRANSPORT)? else {
                return Err(Sense::parameter_field(MOVED_TRANSPORT));
            };
            let to = Path { initiator, target_port: u16::from_be_bytes([port_high, port_low]) };
            let moved = Some(Moved { to, unregisters: move_flags & 0x02 != 0 });
            (Request { persists: move_flags & 0x01 != 0, moved, ..request }, MOVE_FLAGS)
        } else {
            let registers = matches!(action, action::REGISTER | action::REGISTER_AND_IGNORE_EXISTING_KEY);
            let transports = match flags & 0x08 != 0 {
                true if registers => transports(rest)?,
                true => return Err(Sense::parameter_field(FLAGS)),
                false => exactly(rest, 0).map(|_| Vec::new())?,
            };
            let all_target_ports = registers && flags & 0x04 != 0;
            (Request { persists: registers && flags & 0x01 != 0, all_target_ports, transports, ..request }, FLAGS)
        };
        if request.persists && !can_persist { Err(Sense::parameter_field(place)) } else { Ok(request) }
    }

    /// The names of the further initiator ports.
    pub fn initiators(&self, known: Known) -> Result<Vec<String>, Refused> {
        let mut ports = Vec::new();
        for transport in &self.transports {
            match transport {
                TransportId::Port(port) => ports.push(port.clone()),
                TransportId::Device(name) => {
                    let of_device = |port: &&String| port.split_once(",i,0x").is_some_and(|(of, _)| of == name);
                    let before = ports.len();
                    ports.extend(known.initiators.iter().filter(of_device).cloned());
                    if ports.len() == before {
                        return Err(Refused::Check(Sense::parameter_field(MOVED_TRANSPORT + 4)));
                    }
                }
            }
        }
        Ok(ports)
    }
}

/// What follows the first fields, if it is as long as they say.
fn exactly(rest: &[u8], told: u32) -> Result<&[u8], Sense> {
    if u32::try_from(rest.len()) == Ok(told) { Ok(rest) } else { Err(Sense::PARAMETER_LIST_LENGTH) }
}

/// The additional parameter data of SPEC_I_PT.
fn transports(rest: &[u8]) -> Result<Vec<TransportId>, Sense> {
    let (len, rest) = rest.split_first_chunk::<4>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let mut rest = exactly(rest, u32::from_be_bytes(*len))?;
    let whole = rest.len();
    let mut transports = Vec::new();
    while !rest.is_empty() {
        if transports.len() >= REGISTRATIONS_MAX {
            return Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES);
        }
        let at = (BASIC_BYTES + 4 + whole - rest.len()) as u16;
        let (transport, left) = decode_transport(rest, at)?;
        transports.push(transport);
        rest = left;
    }
    Ok(transports)
}

/// A TransportID that stands at byte `at` of the list, and what follows it.
fn decode_transport(bytes: &[u8], at: u16) -> Result<(TransportId, &[u8]), Sense> {
    let wrong = Sense::parameter_field(at);
    let (&[format, _, high, low], rest) = bytes.split_first_chunk::<4>().ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let len = usize::from(u16::from_be_bytes([high, low]));
    let (name, rest) = rest.split_at_checked(len).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let end = name.iter().position(|byte| *byte == 0).ok_or(wrong)?;
    let name = name.get(..end).and_then(|name| core::str::from_utf8(name).ok()).ok_or(wrong)?.to_ascii_lowercase();
    let isid = name.split_once(",i,0x").map(|(_, isid)| isid);
    let is_isid = |isid: &str| isid.len() == 12 && isid.bytes().all(|digit| digit.is_ascii_hexdigit());
    match (format & 0x0f, format >> 6, isid) {
        (ISCSI, 0, None) if !name.is_empty() => Ok((TransportId::Device(name), rest)),
        (ISCSI, 1, Some(isid)) if is_isid(isid) => Ok((TransportId::Port(name), rest)),
        _ => Err(wrong),
    }
}

/// The TransportID of an iSCSI initiator port.
pub fn encode_transport(port: &str) -> Vec<u8> {
    let mut name = port.as_bytes().to_vec();
    name.resize((name.len() + 1).next_multiple_of(4).max(20), 0);
    let mut id = alloc::vec![0x40 | ISCSI, 0];
    id.extend((name.len() as u16).to_be_bytes());
    id.extend(name);
    id
}
