//! A small iSCSI initiator (RFC 7143), for loads and checks that need to know what was acknowledged and when:
//! one connection, no digests, any number of commands in flight.

mod pdu;
mod scsi;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use pdu::Pdu;
pub use scsi::{BLOCK_BYTES, Sense};

/// The initiator's name unless a test says otherwise.
pub const INITIATOR: &str = "iqn.2026-11.io.gossamer:e2e";

/// The longest data segment this side takes.
const RECEIVE_BYTES_MAX: u32 = 256 << 10;

/// The sense key of "something changed since you asked last".
const UNIT_ATTENTION: u8 = 6;

/// No answer for this long is an error.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why something did not work.
#[derive(Debug)]
pub enum Error {
    /// The target refused the login: status class and detail (RFC 7143, 11.13.5).
    Login {
        /// 2 is the initiator's fault, 3 the target's.
        class: u8,
        /// Which one.
        detail: u8,
    },
    /// CHECK CONDITION.
    Check(Sense),
    /// Another SCSI status than GOOD.
    Status(u8),
    /// The target rejected a PDU: the reason (RFC 7143, 11.17.1).
    Reject(u8),
    /// The connection broke or the target asked for its end.
    Closed(String),
    /// The target broke the protocol.
    Protocol(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Login { class, detail } => write!(f, "login refused: status {class:02x}{detail:02x}"),
            Error::Check(sense) => write!(f, "check condition: {sense}"),
            Error::Status(status) => write!(f, "SCSI status {status:#04x}"),
            Error::Reject(reason) => write!(f, "rejected: reason {reason:#04x}"),
            Error::Closed(why) => write!(f, "connection closed: {why}"),
            Error::Protocol(what) => write!(f, "protocol broken: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::Closed(error.to_string())
    }
}

/// The data that goes with a command.
#[derive(Debug)]
pub enum Transfer {
    /// None.
    None,
    /// At most so many bytes from the target.
    In(u32),
    /// These bytes to the target.
    Out(Vec<u8>),
}

/// A command that came to its end.
#[derive(Debug)]
pub struct Completion {
    /// What [`Session::submit`] returned.
    pub tag: u32,
    /// The data read, or why it failed.
    pub result: Result<Vec<u8>, Error>,
}

/// What both sides agreed on.
#[derive(Debug, Clone)]
struct Parameters {
    send_bytes_max: u32,
    first_burst_bytes: u32,
    immediate_data: bool,
    initial_r2t: bool,
}

/// A command under way.
struct Pending {
    out: Vec<u8>,
    data: Vec<u8>,
}

/// A session of one connection.
pub struct Session {
    reader: BufReader<TcpStream>,
    parameters: Parameters,
    /// The target's answers to what was proposed at login.
    keys: HashMap<String, String>,
    next_tag: u32,
    cmd_sn: u32,
    max_cmd_sn: u32,
    exp_stat_sn: u32,
    pending: HashMap<u32, Pending>,
    done: VecDeque<Completion>,
}

impl Session {
    /// Logs in to a target as [`INITIATOR`], and takes the unit attention that a new session may find.
    pub fn login(portal: SocketAddr, target: &str) -> Result<Session, Error> {
        let mut session = Session::login_as(portal, INITIATOR, Some(target))?;
        match session.test_unit_ready() {
            Err(Error::Check(Sense { key: UNIT_ATTENTION, .. })) => session.test_unit_ready()?,
            other => other?,
        }
        Ok(session)
    }

    /// Logs in under a name; without a target to a discovery session.
    pub fn login_as(portal: SocketAddr, initiator: &str, target: Option<&str>) -> Result<Session, Error> {
        let stream = TcpStream::connect_timeout(&portal, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let mut session = Session {
            reader: BufReader::with_capacity(1 << 20, stream),
            parameters: Parameters {
                send_bytes_max: 8192,
                first_burst_bytes: 65_536,
                immediate_data: true,
                initial_r2t: true,
            },
            keys: HashMap::new(),
            next_tag: 1,
            cmd_sn: 1,
            max_cmd_sn: 1,
            exp_stat_sn: 0,
            pending: HashMap::new(),
            done: VecDeque::new(),
        };
        session.negotiate(initiator, target)?;
        Ok(session)
    }

    fn negotiate(&mut self, initiator: &str, target: Option<&str>) -> Result<(), Error> {
        let isid = next_isid();
        let mut security = format!("InitiatorName={initiator}\0");
        match target {
            Some(target) => security += &format!("SessionType=Normal\0TargetName={target}\0"),
            None => security += "SessionType=Discovery\0",
        }
        security += "AuthMethod=None\0";
        let mut operational = format!(
            "HeaderDigest=None\0DataDigest=None\0MaxRecvDataSegmentLength={RECEIVE_BYTES_MAX}\0\
             DefaultTime2Wait=2\0DefaultTime2Retain=0\0ErrorRecoveryLevel=0\0"
        );
        if target.is_some() {
            operational += "InitialR2T=No\0ImmediateData=Yes\0MaxBurstLength=262144\0FirstBurstLength=65536\0\
                            MaxOutstandingR2T=1\0MaxConnections=1\0DataPDUInOrder=Yes\0DataSequenceInOrder=Yes\0";
        }
        // T bit, current and next stage: security to operational, operational to full feature.
        for (stages, text) in [(0x81, security), (0x87, operational)] {
            let mut pdu = Pdu::new(0x43);
            pdu.bhs[1] = stages;
            pdu.bhs[8..14].copy_from_slice(&isid);
            pdu.set_u32(16, 0);
            pdu.set_u32(24, self.cmd_sn);
            pdu.set_u32(28, self.exp_stat_sn);
            pdu.data = text.into_bytes();
            self.send(&pdu)?;
            let answer = Pdu::read(&mut self.reader)?;
            if answer.opcode() != 0x23 {
                return Err(Error::Protocol(format!("opcode {:#04x} answers a login", answer.opcode())));
            }
            if answer.bhs[36] != 0 {
                return Err(Error::Login { class: answer.bhs[36], detail: answer.bhs[37] });
            }
            self.exp_stat_sn = answer.u32(24).wrapping_add(1);
            self.max_cmd_sn = answer.u32(32);
            self.keys.extend(answer.keys());
            if answer.bhs[1] & 0x80 == 0 {
                return Err(Error::Protocol("the target wants to go on talking before the next stage".into()));
            }
            if answer.bhs[1] & 3 == 3 {
                break;
            }
        }
        self.agree()
    }

    fn agree(&mut self) -> Result<(), Error> {
        let number = |key: &str, default: u32| match self.keys.get(key) {
            Some(text) => text.parse().map_err(|_| Error::Protocol(format!("{key}={text}"))),
            None => Ok(default),
        };
        self.parameters = Parameters {
            send_bytes_max: number("MaxRecvDataSegmentLength", 8192)?,
            first_burst_bytes: number("FirstBurstLength", 65_536)?,
            immediate_data: self.keys.get("ImmediateData").is_none_or(|value| value == "Yes"),
            initial_r2t: self.keys.get("InitialR2T").is_none_or(|value| value == "Yes"),
        };
        Ok(())
    }

    /// The connection, for tests that misuse it.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// Sends a command to LUN 0; waits only while the target's command window is closed.
    pub fn submit(&mut self, cdb: &[u8], transfer: Transfer) -> Result<u32, Error> {
        while (self.max_cmd_sn.wrapping_sub(self.cmd_sn) as i32) < 0 {
            self.receive()?;
        }
        let tag = self.next_tag;
        self.next_tag = self.next_tag.wrapping_add(1) & 0x7fff_ffff;
        let mut pdu = Pdu::new(0x01);
        pdu.bhs[1] = 0x80 | 1;
        let mut out = Vec::new();
        match transfer {
            Transfer::None => {}
            Transfer::In(len) => {
                pdu.bhs[1] |= 0x40;
                pdu.set_u32(20, len);
            }
            Transfer::Out(data) => {
                pdu.bhs[1] |= 0x20;
                pdu.set_u32(20, data.len() as u32);
                out = data;
            }
        }
        pdu.set_u32(16, tag);
        pdu.set_u32(24, self.cmd_sn);
        pdu.set_u32(28, self.exp_stat_sn);
        pdu.bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let Parameters { send_bytes_max, first_burst_bytes, immediate_data, initial_r2t } = self.parameters;
        let immediate = if immediate_data { out.len().min(send_bytes_max.min(first_burst_bytes) as usize) } else { 0 };
        let unsolicited = if initial_r2t { immediate } else { out.len().min(first_burst_bytes as usize) };
        pdu.data = out[..immediate].to_vec();
        if immediate < unsolicited {
            pdu.bhs[1] &= !0x80;
        }
        self.send(&pdu)?;
        if immediate < unsolicited {
            self.send_data(tag, u32::MAX, &out, immediate, unsolicited)?;
        }
        self.pending.insert(tag, Pending { out, data: Vec::new() });
        Ok(tag)
    }

    /// Waits for the next command to end.
    pub fn complete(&mut self) -> Result<Completion, Error> {
        loop {
            if let Some(completion) = self.done.pop_front() {
                return Ok(completion);
            }
            self.receive()?;
        }
    }

    /// A command from its beginning to its end; others may be in flight.
    pub fn run(&mut self, cdb: &[u8], transfer: Transfer) -> Result<Vec<u8>, Error> {
        let tag = self.submit(cdb, transfer)?;
        self.wait(tag)
    }

    /// Waits for one command; the results of others stay for [`Session::complete`].
    pub fn wait(&mut self, tag: u32) -> Result<Vec<u8>, Error> {
        loop {
            if let Some(at) = self.done.iter().position(|completion| completion.tag == tag) {
                return self.done.remove(at).map_or(Ok(Vec::new()), |completion| completion.result);
            }
            self.receive()?;
        }
    }

    /// The targets that discovery tells, each with its portals.
    pub fn send_targets(&mut self) -> Result<Vec<String>, Error> {
        let mut pdu = Pdu::new(0x04);
        pdu.bhs[1] = 0x80;
        pdu.set_u32(16, self.next_tag);
        pdu.set_u32(20, u32::MAX);
        pdu.set_u32(24, self.cmd_sn);
        pdu.set_u32(28, self.exp_stat_sn);
        pdu.data = b"SendTargets=All\0".to_vec();
        self.next_tag += 1;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.send(&pdu)?;
        let mut text = Vec::new();
        loop {
            let answer = self.next()?;
            if answer.opcode() != 0x24 {
                return Err(Error::Protocol(format!("opcode {:#04x} answers SendTargets", answer.opcode())));
            }
            text.extend_from_slice(&answer.data);
            if answer.bhs[1] & 0x80 != 0 {
                break;
            }
            let mut more = Pdu::new(0x04);
            more.bhs[1] = 0x80;
            more.bhs[16..24].copy_from_slice(&answer.bhs[16..24]);
            more.set_u32(24, self.cmd_sn);
            more.set_u32(28, self.exp_stat_sn);
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
            self.send(&more)?;
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(text.split('\0').filter_map(|line| line.strip_prefix("TargetName=")).map(str::to_owned).collect())
    }

    /// An echo; what comes back must be what was sent.
    pub fn ping(&mut self) -> Result<(), Error> {
        let mut pdu = Pdu::new(0x40);
        pdu.bhs[1] = 0x80;
        pdu.set_u32(16, 0x7fff_fff0);
        pdu.set_u32(20, u32::MAX);
        pdu.set_u32(24, self.cmd_sn);
        pdu.set_u32(28, self.exp_stat_sn);
        pdu.data = b"are you there".to_vec();
        self.send(&pdu)?;
        let answer = self.next()?;
        if answer.opcode() != 0x20 || answer.data != pdu.data {
            return Err(Error::Protocol(format!("opcode {:#04x} answers a ping", answer.opcode())));
        }
        Ok(())
    }

    /// Ends the session in order.
    pub fn logout(mut self) -> Result<(), Error> {
        let mut pdu = Pdu::new(0x46);
        pdu.bhs[1] = 0x80;
        pdu.set_u32(16, 0x7fff_fff1);
        pdu.set_u32(24, self.cmd_sn);
        pdu.set_u32(28, self.exp_stat_sn);
        self.send(&pdu)?;
        let answer = self.next()?;
        if answer.opcode() != 0x26 || answer.bhs[2] != 0 {
            return Err(Error::Protocol(format!("opcode {:#04x} answers a logout", answer.opcode())));
        }
        Ok(())
    }

    fn send(&mut self, pdu: &Pdu) -> Result<(), Error> {
        self.reader.get_mut().write_all(&pdu.to_bytes())?;
        Ok(())
    }

    /// Sends `out[from..to]` as Data-Out PDUs.
    fn send_data(&mut self, tag: u32, transfer_tag: u32, out: &[u8], from: usize, to: usize) -> Result<(), Error> {
        let range =
            out.get(from..to).ok_or_else(|| Error::Protocol(format!("R2T for {from}..{to} of {}", out.len())))?;
        let mut offset = from;
        for (data_sn, piece) in range.chunks(self.parameters.send_bytes_max as usize).enumerate() {
            let mut pdu = Pdu::new(0x05);
            pdu.bhs[1] = if offset + piece.len() == to { 0x80 } else { 0 };
            pdu.set_u32(16, tag);
            pdu.set_u32(20, transfer_tag);
            pdu.set_u32(28, self.exp_stat_sn);
            pdu.set_u32(36, data_sn as u32);
            pdu.set_u32(40, offset as u32);
            pdu.data = piece.to_vec();
            self.send(&pdu)?;
            offset += piece.len();
        }
        Ok(())
    }

    /// The next PDU that is neither a ping from the target nor about SCSI commands in flight.
    fn next(&mut self) -> Result<Pdu, Error> {
        let pdu = Pdu::read(&mut self.reader)?;
        let opcode = pdu.opcode();
        self.max_cmd_sn = pdu.u32(32);
        // A ping from the target and R2T do not consume a StatSN; a Data-In does when it carries the status.
        let has_status = match opcode {
            0x20 => pdu.u32(16) != u32::MAX,
            0x25 => pdu.bhs[1] & 1 != 0,
            0x31 => false,
            _ => true,
        };
        if has_status {
            if pdu.u32(24) != self.exp_stat_sn {
                return Err(Error::Protocol(format!("StatSN {} instead of {}", pdu.u32(24), self.exp_stat_sn)));
            }
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        match opcode {
            0x3f => Err(Error::Reject(pdu.bhs[2])),
            0x32 => Err(Error::Closed(format!("asynchronous event {}", pdu.bhs[36]))),
            _ => Ok(pdu),
        }
    }

    /// Takes in one PDU about commands in flight.
    fn receive(&mut self) -> Result<(), Error> {
        let pdu = self.next()?;
        let tag = pdu.u32(16);
        match pdu.opcode() {
            0x20 if tag == u32::MAX => self.answer_ping(&pdu),
            0x21 => {
                let result = match pdu.bhs[3] {
                    0 if pdu.bhs[2] == 0 => Ok(self.pending(tag)?.data.split_off(0)),
                    2 => Err(Error::Check(Sense::parse(pdu.data.get(2..).unwrap_or_default()))),
                    status => Err(Error::Status(status)),
                };
                self.finish(tag, result)
            }
            0x25 => {
                let offset = pdu.u32(40) as usize;
                let pending = self.pending(tag)?;
                if offset != pending.data.len() {
                    return Err(Error::Protocol(format!("Data-In at {offset} after {}", pending.data.len())));
                }
                pending.data.extend_from_slice(&pdu.data);
                if pdu.bhs[1] & 1 == 0 {
                    return Ok(());
                }
                let data = pending.data.split_off(0);
                self.finish(tag, if pdu.bhs[3] == 0 { Ok(data) } else { Err(Error::Status(pdu.bhs[3])) })
            }
            0x31 => {
                let (from, len) = (pdu.u32(40) as usize, pdu.u32(44) as usize);
                let out = std::mem::take(&mut self.pending(tag)?.out);
                self.send_data(tag, pdu.u32(20), &out, from, from.saturating_add(len))?;
                self.pending(tag)?.out = out;
                Ok(())
            }
            opcode => Err(Error::Protocol(format!("unexpected opcode {opcode:#04x}"))),
        }
    }

    fn answer_ping(&mut self, ping: &Pdu) -> Result<(), Error> {
        if ping.u32(20) == u32::MAX {
            return Ok(());
        }
        let mut pdu = Pdu::new(0x40);
        pdu.bhs[1] = 0x80;
        pdu.set_u32(16, u32::MAX);
        pdu.bhs[20..24].copy_from_slice(&ping.bhs[20..24]);
        pdu.set_u32(24, self.cmd_sn);
        pdu.set_u32(28, self.exp_stat_sn);
        self.send(&pdu)
    }

    fn pending(&mut self, tag: u32) -> Result<&mut Pending, Error> {
        self.pending.get_mut(&tag).ok_or_else(|| Error::Protocol(format!("an answer to tag {tag}, which is not open")))
    }

    fn finish(&mut self, tag: u32, result: Result<Vec<u8>, Error>) -> Result<(), Error> {
        self.pending(tag)?;
        self.pending.remove(&tag);
        self.done.push_back(Completion { tag, result });
        Ok(())
    }
}

/// An initiator session id of the random kind, different for each session of this process and its neighbours.
fn next_isid() -> [u8; 6] {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id().to_be_bytes();
    let count = (NEXT.fetch_add(1, Ordering::Relaxed) as u16).to_be_bytes();
    [0x80, pid[1], pid[2], pid[3], count[0], count[1]]
}
