//! An initiator: iSCSI over a simulated connection, one command at a time. Every command must be answered once, and only
//! by what the protocol allows.

use crate::net::{Port, SimReader, SimWriter, Wire};
use embedded_io_async::{Read, Write};
use export::iscsi::pdu::{Bhs, DataIn, LoginResponse, R2t, ScsiResponse, opcode, padding};
use platform::net::Stream;
use std::collections::BTreeMap;

/// How a command ended, where it ended well or was answered by an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With its data, if it reads.
    Good(Vec<u8>),
    /// CHECK CONDITION: sense key, additional sense code and qualifier.
    Check(u8, u8, u8),
    /// Another status.
    Status(u8),
}

/// The connection broke before the answer was there.
#[derive(Debug)]
pub struct Broken;

/// Data segments that we take.
const SEGMENT_BYTES: u32 = 256 << 10;

/// What a command is told after a roll-back: MEDIUM MAY HAVE CHANGED, CAPACITY DATA HAS CHANGED.
const EXCHANGED: [Outcome; 2] = [Outcome::Check(6, 0x28, 0), Outcome::Check(6, 0x2a, 9)];

/// A logged-in session.
pub struct Session {
    reader: SimReader,
    writer: SimWriter,
    pub wire: Wire,
    command_sn: u32,
    task_tag: u32,
    /// Longest data segment that the target takes.
    segment_bytes: usize,
}

fn cdb_16(opcode: u8, flags: u8, sector: u64, sectors: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1]) = (opcode, flags);
    cdb[2..10].copy_from_slice(&sector.to_be_bytes());
    cdb[10..14].copy_from_slice(&sectors.to_be_bytes());
    cdb
}

fn write_cdb(sector: u64, data: &[u8], fua: bool) -> [u8; 16] {
    cdb_16(0x8a, if fua { 8 } else { 0 }, sector, (data.len() / 512) as u32)
}

/// UNMAP of one range, with its parameter list.
fn unmap_cdb(sector: u64, sectors: u32) -> ([u8; 16], [u8; 24]) {
    let mut cdb = [0; 16];
    (cdb[0], cdb[8]) = (0x42, 24);
    let mut list = [0; 24];
    (list[1], list[3]) = (22, 16);
    list[8..16].copy_from_slice(&sector.to_be_bytes());
    list[16..20].copy_from_slice(&sectors.to_be_bytes());
    (cdb, list)
}

/// What a SCSI response says of a command that has read this.
fn outcome(bhs: &Bhs, payload: &[u8], read: Vec<u8>) -> Outcome {
    let sense = payload.get(2..).unwrap_or_default();
    match (ScsiResponse::of(bhs).status, sense) {
        (0, _) => Outcome::Good(read),
        (2, sense) if sense.len() > 13 => Outcome::Check(sense[2] & 15, sense[12], sense[13]),
        (status, _) => Outcome::Status(status),
    }
}

impl Session {
    /// Logs in to a volume. The error is the target's status class and detail.
    pub async fn login(port: &Port, name: &str, isid: u8, volume: &str) -> Result<Result<Session, (u8, u8)>, Broken> {
        let (stream, wire) = port.connect().ok_or(Broken)?;
        let (reader, writer) = stream.split();
        let mut session = Session { reader, writer, wire, command_sn: 1, task_tag: 1, segment_bytes: 8192 };
        let keys = format!(
            "InitiatorName=iqn.sim:{name}\0TargetName=iqn.2026-11.io.gossamer:{volume}\0MaxRecvDataSegmentLength={SEGMENT_BYTES}\0"
        );
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&[0x40 | opcode::LOGIN_REQUEST, 0x87]);
        bytes[8] = 0x80;
        bytes[13] = isid;
        bytes[24..28].copy_from_slice(&session.command_sn.to_be_bytes());
        session.send(Bhs::from_bytes(bytes), keys.as_bytes()).await?;
        let (bhs, text) = session.receive().await?;
        assert_eq!(bhs.operation(), opcode::LOGIN_RESPONSE, "a login is answered by a login response");
        let response = LoginResponse::of(&bhs);
        if response.status_class != 0 {
            return Ok(Err((response.status_class, response.status_detail)));
        }
        let text = String::from_utf8(text).expect("login keys are text");
        let segment = text.split('\0').find_map(|pair| pair.strip_prefix("MaxRecvDataSegmentLength="));
        if let Some(segment) = segment {
            session.segment_bytes = segment.parse().expect("a number of bytes");
        }
        // The first command of a session is told that there was a power-on.
        let first = session.command([0; 16], &[], 0).await?;
        assert_eq!(first, Outcome::Check(6, 0x29, 0), "the first command of a session");
        Ok(Ok(session))
    }

    pub async fn read(&mut self, sector: u64, sectors: u32) -> Result<Outcome, Broken> {
        self.command(cdb_16(0x88, 0, sector, sectors), &[], sectors * 512).await
    }

    pub async fn write(&mut self, sector: u64, data: &[u8], fua: bool) -> Result<Outcome, Broken> {
        self.command(write_cdb(sector, data, fua), data, 0).await
    }

    pub async fn flush(&mut self) -> Result<Outcome, Broken> {
        self.command(cdb_16(0x91, 0, 0, 0), &[], 0).await
    }

    pub async fn unmap(&mut self, sector: u64, sectors: u32) -> Result<Outcome, Broken> {
        let (cdb, list) = unmap_cdb(sector, sectors);
        self.command(cdb, &list, 0).await
    }

    /// Writes the second half of `data` where the first is.
    pub async fn compare_and_write(&mut self, sector: u64, data: &[u8]) -> Result<Outcome, Broken> {
        let mut cdb = cdb_16(0x89, 0, sector, 0);
        cdb[13] = (data.len() / 1024) as u8;
        self.command(cdb, data, 0).await
    }

    /// PERSISTENT RESERVE OUT of this service action and reservation type.
    pub async fn persistent_reserve_out(
        &mut self,
        action: u8,
        kind: u8,
        key: u64,
        action_key: u64,
    ) -> Result<Outcome, Broken> {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, kind, 24);
        let list = [&key.to_be_bytes()[..], &action_key.to_be_bytes(), &[0; 8]].concat();
        self.command(cdb, &list, 0).await
    }

    /// WRITE SAME(16) of zeroes.
    pub async fn write_zeroes(&mut self, sector: u64, sectors: u32) -> Result<Outcome, Broken> {
        self.command(cdb_16(0x93, 0, sector, sectors), &[0; 512], 0).await
    }

    /// Ends the session in order.
    pub async fn logout(mut self) -> Result<(), Broken> {
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&[0x40 | opcode::LOGOUT_REQUEST, 0x80]);
        bytes[16..20].copy_from_slice(&self.task_tag.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.command_sn.to_be_bytes());
        self.send(Bhs::from_bytes(bytes), &[]).await?;
        let (bhs, _) = self.receive().await?;
        assert_eq!(bhs.operation(), opcode::LOGOUT_RESPONSE, "a logout is answered by a logout response");
        Ok(())
    }

    /// Sends a write of little and an unmap, and then waits for the answers to both.
    pub async fn write_and_unmap(
        &mut self,
        sector: u64,
        data: &[u8],
        first: u64,
        sectors: u32,
    ) -> Result<(Outcome, Outcome), Broken> {
        let write = self.send_command(write_cdb(sector, data, false), data, 0).await?;
        let (cdb, list) = unmap_cdb(first, sectors);
        let unmap = self.send_command(cdb, &list, 0).await?;
        let mut outcomes = BTreeMap::new();
        while outcomes.len() < 2 {
            let (bhs, payload) = self.receive().await?;
            let tag = bhs.task_tag.get();
            assert!(tag == write || tag == unmap, "an answer to a command that is not under way: {bhs:?}");
            assert_eq!(bhs.operation(), opcode::SCSI_RESPONSE, "all data was sent with the command");
            let before = outcomes.insert(tag, outcome(&bhs, &payload, Vec::new()));
            assert_eq!(before, None, "two answers to one command");
        }
        let mut answer = |tag| outcomes.remove(&tag).expect("both were answered");
        let (mut written, mut unmapped) = (answer(write), answer(unmap));
        if EXCHANGED.contains(&written) {
            written = self.write(sector, data, false).await?;
        }
        if EXCHANGED.contains(&unmapped) {
            unmapped = self.unmap(first, sectors).await?;
        }
        Ok((written, unmapped))
    }

    /// Carries out a command. One that is told that all of the volume was exchanged was not carried out, and is sent again.
    async fn command(&mut self, cdb: [u8; 16], data: &[u8], read_bytes: u32) -> Result<Outcome, Broken> {
        loop {
            let outcome = self.try_command(cdb, data, read_bytes).await?;
            if !EXCHANGED.contains(&outcome) {
                return Ok(outcome);
            }
        }
    }

    async fn try_command(&mut self, cdb: [u8; 16], data: &[u8], read_bytes: u32) -> Result<Outcome, Broken> {
        let tag = self.send_command(cdb, data, read_bytes).await?;
        let mut read = Vec::new();
        loop {
            let (bhs, payload) = self.receive().await?;
            assert_eq!(bhs.task_tag.get(), tag, "an answer to a command that is not under way: {bhs:?}");
            match bhs.operation() {
                opcode::R2T => {
                    let r2t = R2t::of(&bhs);
                    let from = r2t.offset_bytes.get() as usize;
                    let asked =
                        data.get(from..from + r2t.desired_bytes.get() as usize).expect("an R2T for what we have");
                    self.send_data(tag, r2t.transfer_tag.get(), from, asked).await?;
                }
                opcode::DATA_IN => {
                    let pdu = DataIn::of(&bhs);
                    assert_eq!(pdu.offset_bytes.get() as usize, read.len(), "Data-In in order");
                    read.extend(payload);
                    if pdu.flags & 1 != 0 {
                        let good = pdu.status == 0;
                        return Ok(if good { Outcome::Good(read) } else { Outcome::Status(pdu.status) });
                    }
                }
                opcode::SCSI_RESPONSE => return Ok(outcome(&bhs, &payload, read)),
                other => panic!("opcode {other:#04x} answers a command"),
            }
        }
    }

    /// Sends a command with as much of its data as may go with it; returns its tag.
    async fn send_command(&mut self, cdb: [u8; 16], data: &[u8], read_bytes: u32) -> Result<u32, Broken> {
        let direction = if read_bytes > 0 {
            0x40
        } else if data.is_empty() {
            0
        } else {
            0x20
        };
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&[opcode::SCSI_COMMAND, 0x81 | direction]);
        bytes[16..20].copy_from_slice(&self.task_tag.to_be_bytes());
        bytes[20..24].copy_from_slice(&read_bytes.max(data.len() as u32).to_be_bytes());
        bytes[24..28].copy_from_slice(&self.command_sn.to_be_bytes());
        bytes[32..].copy_from_slice(&cdb);
        let tag = self.task_tag;
        self.task_tag += 1;
        self.command_sn = self.command_sn.wrapping_add(1);
        let immediate = data.len().min(self.segment_bytes).min(8192);
        self.send(Bhs::from_bytes(bytes), &data[..immediate]).await?;
        Ok(tag)
    }

    async fn send_data(&mut self, tag: u32, transfer_tag: u32, from: usize, data: &[u8]) -> Result<(), Broken> {
        let mut offset = from;
        let pieces = data.chunks(self.segment_bytes).count();
        for (number, piece) in data.chunks(self.segment_bytes).enumerate() {
            let mut bytes = [0; 48];
            bytes[..2].copy_from_slice(&[opcode::DATA_OUT, if number + 1 == pieces { 0x80 } else { 0 }]);
            bytes[16..20].copy_from_slice(&tag.to_be_bytes());
            bytes[20..24].copy_from_slice(&transfer_tag.to_be_bytes());
            bytes[36..40].copy_from_slice(&(number as u32).to_be_bytes());
            bytes[40..44].copy_from_slice(&(offset as u32).to_be_bytes());
            self.send(Bhs::from_bytes(bytes), piece).await?;
            offset += piece.len();
        }
        Ok(())
    }

    async fn send(&mut self, mut bhs: Bhs, data: &[u8]) -> Result<(), Broken> {
        bhs.set_data_len(data.len());
        let bytes = [&bhs.to_bytes()[..], data, &[0; 3][..padding(data.len())]].concat();
        self.writer.write_all(&bytes).await.map_err(|_| Broken)
    }

    /// The next PDU that is not a ping.
    async fn receive(&mut self) -> Result<(Bhs, Vec<u8>), Broken> {
        loop {
            let mut header = [0; 48];
            self.reader.read_exact(&mut header).await.map_err(|_| Broken)?;
            let bhs = Bhs::from_bytes(header);
            let mut data = vec![0; bhs.data_len() + padding(bhs.data_len())];
            self.reader.read_exact(&mut data).await.map_err(|_| Broken)?;
            data.truncate(bhs.data_len());
            match bhs.operation() {
                opcode::NOP_IN => self.pong(&bhs).await?,
                // The session is being ended from the other side.
                opcode::ASYNC => return Err(Broken),
                _ => return Ok((bhs, data)),
            }
        }
    }

    async fn pong(&mut self, ping: &Bhs) -> Result<(), Broken> {
        if ping.specific_20 == [0xff; 4] {
            return Ok(());
        }
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&[0x40 | opcode::NOP_OUT, 0x80]);
        bytes[16..20].fill(0xff);
        bytes[20..24].copy_from_slice(&ping.specific_20);
        bytes[24..28].copy_from_slice(&self.command_sn.to_be_bytes());
        self.send(Bhs::from_bytes(bytes), &[]).await
    }
}
