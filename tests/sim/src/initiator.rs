//! An initiator: iSCSI over a simulated connection. Every command must be answered once, and only by what the protocol
//! allows.

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

/// What a command that asks for parameters takes of them.
const PARAMETERS_BYTES: u32 = 1024;

/// "Force unit access".
const FUA: u8 = 8;

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

/// A command with the data that it takes.
#[derive(Clone)]
pub struct Command {
    cdb: [u8; 16],
    data: Vec<u8>,
    /// Bytes that it reads.
    read_bytes: u32,
}

impl Command {
    fn of(cdb: [u8; 16], data: &[u8]) -> Command {
        Command { cdb, data: data.to_vec(), read_bytes: 0 }
    }

    pub fn read(sector: u64, sectors: u32) -> Command {
        Command { cdb: cdb_16(0x88, 0, sector, sectors), data: Vec::new(), read_bytes: sectors * 512 }
    }

    pub fn write(sector: u64, data: &[u8], fua: bool) -> Command {
        Command::of(cdb_16(0x8a, if fua { FUA } else { 0 }, sector, (data.len() / 512) as u32), data)
    }

    /// SYNCHRONIZE CACHE of all.
    pub fn flush() -> Command {
        Command::of(cdb_16(0x91, 0, 0, 0), &[])
    }

    /// UNMAP of one range.
    pub fn unmap(sector: u64, sectors: u32) -> Command {
        let mut cdb = [0; 16];
        (cdb[0], cdb[8]) = (0x42, 24);
        let mut list = [0; 24];
        (list[1], list[3]) = (22, 16);
        list[8..16].copy_from_slice(&sector.to_be_bytes());
        list[16..20].copy_from_slice(&sectors.to_be_bytes());
        Command::of(cdb, &list)
    }

    /// ORWRITE.
    pub fn or_write(sector: u64, data: &[u8], fua: bool) -> Command {
        Command::of(cdb_16(0x8b, if fua { FUA } else { 0 }, sector, (data.len() / 512) as u32), data)
    }

    /// COMPARE AND WRITE: the second half of `data` where the first is.
    pub fn compare_and_write(sector: u64, data: &[u8], fua: bool) -> Command {
        let mut cdb = cdb_16(0x89, if fua { FUA } else { 0 }, sector, 0);
        cdb[13] = (data.len() / 1024) as u8;
        Command::of(cdb, data)
    }

    /// PERSISTENT RESERVE OUT of this service action and reservation type; with `persists` a registration outlives restarts.
    pub fn persistent_reserve_out(action: u8, kind: u8, keys: [u64; 2], persists: bool) -> Command {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, kind, 24);
        let list = [&keys[0].to_be_bytes()[..], &keys[1].to_be_bytes(), &[0, 0, 0, 0, u8::from(persists), 0, 0, 0]];
        Command::of(cdb, &list.concat())
    }

    /// PERSISTENT RESERVE IN of this service action.
    pub fn persistent_reserve_in(action: u8) -> Command {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[7]) = (0x5e, action, (PARAMETERS_BYTES >> 8) as u8);
        Command { cdb, data: Vec::new(), read_bytes: PARAMETERS_BYTES }
    }

    /// EXTENDED COPY of sectors to the same place, from the unit with this NAA designator.
    pub fn copy(naa: &[u8; 16], sector: u64, sectors: u16) -> Command {
        let (len, mut source, mut segment) = ([0, 0, 0, 76], [0; 32], [0; 28]);
        let mut cdb = [0; 16];
        cdb[0] = 0x83;
        cdb[10..14].copy_from_slice(&len);
        // No results are kept; a descriptor of a unit and one of a segment.
        let mut header = [0; 16];
        (header[1], header[3], header[11]) = (0x18, source.len() as u8, segment.len() as u8);
        (source[0], source[4], source[5], source[7]) = (0xe4, 1, 3, 16);
        source[8..24].copy_from_slice(naa);
        source[29..].copy_from_slice(&[0, 2, 0]);
        (segment[0], segment[3]) = (0x02, 24);
        // From the unit that is described to the one that the command is for.
        segment[6..8].copy_from_slice(&[0xff; 2]);
        segment[10..12].copy_from_slice(&sectors.to_be_bytes());
        segment[12..20].copy_from_slice(&sector.to_be_bytes());
        segment[20..].copy_from_slice(&sector.to_be_bytes());
        Command::of(cdb, &[&header[..], &source, &segment].concat())
    }

    /// SANITIZE with BLOCK ERASE; `immediate` is answered once it has begun.
    pub fn sanitize(immediate: bool) -> Command {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (0x48, if immediate { 0x82 } else { 0x02 });
        Command::of(cdb, &[])
    }

    pub fn test_unit_ready() -> Command {
        Command::of([0; 16], &[])
    }

    /// WRITE SAME of a sector.
    pub fn write_same(sector: u64, sectors: u32, data: &[u8]) -> Command {
        Command::of(cdb_16(0x93, 0, sector, sectors), data)
    }
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

/// What a command is told of a volume that is being sanitized.
pub const SANITIZING: Outcome = Outcome::Check(2, 4, 0x1b);

/// What it is told when that has failed.
pub const SANITIZE_FAILED: Outcome = Outcome::Check(3, 0x31, 3);

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
        let first = session.command(Command::test_unit_ready()).await?;
        assert_eq!(first, Outcome::Check(6, 0x29, 0), "the first command of a session");
        Ok(Ok(session))
    }

    pub async fn read(&mut self, sector: u64, sectors: u32) -> Result<Outcome, Broken> {
        self.command(Command::read(sector, sectors)).await
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

    /// Carries out a command.
    pub async fn command(&mut self, command: Command) -> Result<Outcome, Broken> {
        let mut ended = None;
        self.all(&[command], |_, outcome| ended = Some(outcome)).await?;
        Ok(ended.expect("it was answered"))
    }

    /// Carries out commands at once; the number and the outcome of each is told when its answer comes. One that is told that
    /// all of the volume was exchanged was not carried out, and is sent again.
    pub async fn all(&mut self, commands: &[Command], mut ended: impl FnMut(usize, Outcome)) -> Result<(), Broken> {
        let mut under_way = BTreeMap::new();
        for (number, command) in commands.iter().enumerate() {
            under_way.insert(self.send_command(command).await?, (number, Vec::new()));
        }
        while !under_way.is_empty() {
            let (tag, outcome) = self.next_outcome(commands, &mut under_way).await?;
            let (number, _) = under_way.remove(&tag).expect("an answer to a command that is under way");
            if EXCHANGED.contains(&outcome) {
                under_way.insert(self.send_command(&commands[number]).await?, (number, Vec::new()));
            } else {
                ended(number, outcome);
            }
        }
        Ok(())
    }

    /// Moves data until one of the commands under way, each with what it has read, has ended: its tag and how it ended.
    async fn next_outcome(
        &mut self,
        commands: &[Command],
        under_way: &mut BTreeMap<u32, (usize, Vec<u8>)>,
    ) -> Result<(u32, Outcome), Broken> {
        loop {
            let (bhs, payload) = self.receive().await?;
            let tag = bhs.task_tag.get();
            let Some((number, read)) = under_way.get_mut(&tag) else {
                panic!("an answer to a command that is not under way: {bhs:?}")
            };
            match bhs.operation() {
                opcode::R2T => {
                    let r2t = R2t::of(&bhs);
                    let from = r2t.offset_bytes.get() as usize;
                    let to = from + r2t.desired_bytes.get() as usize;
                    let asked = commands[*number].data.get(from..to).expect("an R2T for what we have");
                    self.send_data(tag, r2t.transfer_tag.get(), from, asked).await?;
                }
                opcode::DATA_IN => {
                    let pdu = DataIn::of(&bhs);
                    assert_eq!(pdu.offset_bytes.get() as usize, read.len(), "Data-In in order");
                    read.extend(payload);
                    if pdu.flags & 1 != 0 {
                        let read = std::mem::take(read);
                        let good = pdu.status == 0;
                        return Ok((tag, if good { Outcome::Good(read) } else { Outcome::Status(pdu.status) }));
                    }
                }
                opcode::SCSI_RESPONSE => return Ok((tag, outcome(&bhs, &payload, std::mem::take(read)))),
                other => panic!("opcode {other:#04x} answers a command"),
            }
        }
    }

    /// Sends a command with as much of its data as may go with it; returns its tag.
    async fn send_command(&mut self, command: &Command) -> Result<u32, Broken> {
        let Command { cdb, data, read_bytes } = command;
        let direction = if *read_bytes > 0 {
            0x40
        } else if data.is_empty() {
            0
        } else {
            0x20
        };
        let mut bytes = [0; 48];
        bytes[..2].copy_from_slice(&[opcode::SCSI_COMMAND, 0x81 | direction]);
        bytes[16..20].copy_from_slice(&self.task_tag.to_be_bytes());
        bytes[20..24].copy_from_slice(&(*read_bytes).max(data.len() as u32).to_be_bytes());
        bytes[24..28].copy_from_slice(&self.command_sn.to_be_bytes());
        bytes[32..].copy_from_slice(cdb);
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
                // Who hears nothing any more may have answered before: what is left to be read tells.
                opcode::NOP_IN => drop(self.pong(&bhs).await),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use export::iscsi::pdu::NopIn;
    use platform::net::Listener as _;

    /// A target answers the logout, and is gone before its ping is answered.
    #[test]
    fn who_was_let_go_needs_no_answer_to_a_ping() {
        let world = World::new(1);
        let port = Port::new(&world);
        world.clone().run(1 << 20, async move |runtime| {
            let (stream, wire) = port.connect().unwrap();
            let (reader, writer) = stream.split();
            let session = Session { reader, writer, wire, command_sn: 1, task_tag: 1, segment_bytes: 8192 };
            let leaving = runtime.spawner.spawn(session.logout());
            let (mut reader, mut writer) = port.accept().await.unwrap().split();
            reader.read_exact(&mut [0; 48]).await.unwrap();
            drop(reader);
            let mut left = [0; 48];
            left[0] = opcode::LOGOUT_RESPONSE;
            writer.write_all(&[NopIn::new().into_bhs().to_bytes(), left].concat()).await.unwrap();
            drop(writer);
            leaving.await.unwrap().unwrap();
        });
    }
}
