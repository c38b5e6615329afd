//! A fake initiator that speaks real PDUs, and a world for it to live in: one thread, its own time.

use crate::common::{OneTarget, TARGET, ThinDisk};
use crate::pipe::{Duplex, PipeReader, PipeWriter, duplex};
use embedded_io_async::{Read, Write};
use export::iscsi::digest::Digest;
use export::iscsi::pdu::{Bhs, DataIn, LoginResponse, R2t, ScsiResponse, opcode, padding};
use export::{Portal, PortalOptions};
use platform::Runtime;
use platform::net::Stream;
use platform::random::Seeded;
use platform::simulated;
use platform::task::Executor;
use std::rc::Rc;

/// Everything that a test talks to.
#[derive(Clone)]
pub struct World {
    pub runtime: Runtime,
    pub portal: Portal<OneTarget>,
    pub disk: Rc<ThinDisk>,
    /// Where connections go.
    pub port: u16,
}

/// Runs a test in a world of its own.
pub fn run<F: Future<Output = ()> + 'static>(options: PortalOptions, test: impl FnOnce(World) -> F + 'static) {
    simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(1)), 64 << 20, async move |runtime| {
        let disk = Rc::new(ThinDisk::new(64 << 20, 512, runtime.bufs.clone()));
        let portal = Portal::new(&runtime, Rc::new(OneTarget(disk.clone())), options);
        let bufs = runtime.bufs.clone();
        let world = World { runtime, portal, disk, port: 3260 };
        test(world.clone()).await;
        world.portal.shutdown().await;
        assert_eq!(bufs.used_bytes(), 0, "buffers are left behind");
    });
}

impl World {
    /// A connection on which nothing was sent.
    pub fn connect(&self) -> Initiator {
        let (here, there) = duplex(self.port);
        let portal = self.portal.clone();
        self.runtime.spawner.spawn(async move { portal.serve(there).await });
        Initiator::new(here)
    }

    /// A session with these operational keys, its first unit attention taken.
    pub async fn login(&self, name: &str, keys: &[&str]) -> Initiator {
        let mut initiator = self.login_only(name, keys).await;
        let first = initiator.command("00", 0).await;
        assert_eq!(first.sense_code(), (6, 0x29, 0), "the first command of a session");
        initiator
    }

    /// A session with these operational keys.
    pub async fn login_only(&self, name: &str, keys: &[&str]) -> Initiator {
        let mut initiator = self.connect();
        let identity = [format!("InitiatorName=iqn.test:{name}"), format!("TargetName={TARGET}")];
        let all: Vec<&str> = identity.iter().map(String::as_str).chain(keys.iter().copied()).collect();
        let (response, _) = initiator.login_with(&all).await;
        assert_eq!((response.status_class, response.status_detail), (0, 0), "login of {name}");
        initiator
    }
}

/// An initiator's side of a connection.
pub struct Initiator {
    reader: PipeReader,
    pub writer: PipeWriter,
    pub cmd_sn: u32,
    pub next_tag: u32,
    pub isid: u8,
    /// 0 for a new session.
    pub tsih: u16,
    pub cid: u16,
    header_digest: bool,
    data_digest: bool,
    /// Of the last PDU received.
    pub max_cmd_sn: u32,
}

/// A PDU received.
pub type Pdu = (Bhs, Vec<u8>);

/// How a command ended.
#[derive(Debug, Default)]
pub struct Outcome {
    pub status: u8,
    pub data: Vec<u8>,
    pub sense: Vec<u8>,
    /// O and U flags and the residual count.
    pub residual: (u8, u32),
    pub r2ts: Vec<(u32, u32)>,
}

impl Outcome {
    /// Key, ASC, ASCQ of fixed-format sense data.
    pub fn sense_code(&self) -> (u8, u8, u8) {
        if self.status != 2 {
            return (0xff, self.status, 0);
        }
        (self.sense[2], self.sense[12], self.sense[13])
    }
}

/// A CDB in hexadecimal.
pub fn cdb(hex: &str) -> [u8; 16] {
    let mut cdb = [0; 16];
    for (place, byte) in cdb.iter_mut().zip(hex.split_whitespace()) {
        *place = u8::from_str_radix(byte, 16).unwrap();
    }
    cdb
}

/// READ(10) and WRITE(10).
pub fn cdb_10(opcode: u8, lba: u32, blocks: u16) -> String {
    let mut bytes = vec![opcode, 0];
    bytes.extend(lba.to_be_bytes());
    bytes.push(0);
    bytes.extend(blocks.to_be_bytes());
    bytes.iter().map(|byte| format!("{byte:02x} ")).collect()
}

impl Initiator {
    pub fn new(stream: Duplex) -> Initiator {
        let (reader, writer) = stream.split();
        Initiator {
            reader,
            writer,
            cmd_sn: 1,
            next_tag: 1,
            isid: 1,
            tsih: 0,
            cid: 0,
            header_digest: false,
            data_digest: false,
            max_cmd_sn: 0,
        }
    }

    /// Logs in by one request in the operational stage.
    pub async fn login_with(&mut self, keys: &[&str]) -> (LoginResponse, String) {
        let answer = self.login_step(0x87, keys).await;
        self.header_digest = keys.contains(&"HeaderDigest=CRC32C");
        self.data_digest = keys.contains(&"DataDigest=CRC32C");
        answer
    }

    /// One login request with these flags (T, C, CSG, NSG).
    pub async fn login_step(&mut self, flags: u8, keys: &[&str]) -> (LoginResponse, String) {
        let mut bytes = [0; 48];
        bytes[0] = 0x40 | opcode::LOGIN_REQUEST;
        bytes[1] = flags;
        bytes[13] = self.isid;
        bytes[14..16].copy_from_slice(&self.tsih.to_be_bytes());
        bytes[20..22].copy_from_slice(&self.cid.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        let text: Vec<u8> = keys.iter().flat_map(|key| key.bytes().chain([0])).collect();
        self.send(Bhs::from_bytes(bytes), &text).await;
        let (bhs, text) = self.receive().await.expect("a login response");
        assert_eq!(bhs.operation(), opcode::LOGIN_RESPONSE);
        (*LoginResponse::of(&bhs), String::from_utf8(text).unwrap().replace('\0', " "))
    }

    pub async fn send(&mut self, bhs: Bhs, data: &[u8]) {
        let bytes = self.encode(bhs, data);
        self.writer.write_all(&bytes).await.expect("the target takes PDUs");
    }

    /// A PDU as it goes over the wire.
    pub fn encode(&self, mut bhs: Bhs, data: &[u8]) -> Vec<u8> {
        bhs.set_data_len(data.len());
        let mut bytes = bhs.to_bytes().to_vec();
        if self.header_digest {
            bytes.extend(Digest::of(&bhs.to_bytes()));
        }
        if !data.is_empty() {
            let padded = [data, &[0; 3][..padding(data.len())]].concat();
            bytes.extend(&padded);
            if self.data_digest {
                bytes.extend(Digest::of(&padded));
            }
        }
        bytes
    }

    /// The next PDU, its digests checked; `None` at the end of the stream.
    pub async fn receive(&mut self) -> Option<Pdu> {
        let mut header = [0; 48];
        self.reader.read_exact(&mut header).await.ok()?;
        let bhs = Bhs::from_bytes(header);
        if self.header_digest {
            assert_eq!(self.digest().await, Digest::of(&header));
        }
        let mut data = vec![0; bhs.data_len() + padding(bhs.data_len())];
        self.reader.read_exact(&mut data).await.ok()?;
        if self.data_digest && !data.is_empty() {
            assert_eq!(self.digest().await, Digest::of(&data));
        }
        data.truncate(bhs.data_len());
        self.max_cmd_sn = bhs.max_cmd_sn.get();
        Some((bhs, data))
    }

    async fn digest(&mut self) -> [u8; 4] {
        let mut digest = [0; 4];
        self.reader.read_exact(&mut digest).await.unwrap();
        digest
    }

    /// The header of a SCSI command: flags without F, expected length, CDB.
    pub fn scsi(&mut self, flags: u8, expected_bytes: u32, cdb: [u8; 16]) -> Bhs {
        let mut bytes = [0; 48];
        bytes[0] = opcode::SCSI_COMMAND;
        bytes[1] = 0x80 | flags | 1;
        bytes[16..20].copy_from_slice(&self.next_tag.to_be_bytes());
        bytes[20..24].copy_from_slice(&expected_bytes.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bytes[32..48].copy_from_slice(&cdb);
        self.next_tag += 1;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        Bhs::from_bytes(bytes)
    }

    /// A command that returns at most `expected_bytes`.
    pub async fn command(&mut self, hex: &str, expected_bytes: u32) -> Outcome {
        let flags = if expected_bytes > 0 { 0x40 } else { 0 };
        let bhs = self.scsi(flags, expected_bytes, cdb(hex));
        self.send(bhs, &[]).await;
        self.finish(&[], 0).await
    }

    /// A command with data: `immediate` bytes with the command, up to `unsolicited` bytes in all unasked, the rest
    /// as it is asked for, in segments of `segment` bytes.
    pub async fn command_out(
        &mut self,
        hex: &str,
        data: &[u8],
        immediate: usize,
        unsolicited: usize,
        segment: usize,
    ) -> Outcome {
        let mut bhs = self.scsi(0x20, data.len() as u32, cdb(hex));
        if unsolicited > immediate {
            bhs.flags &= 0x7f;
        }
        self.send(bhs, &data[..immediate]).await;
        if unsolicited > immediate {
            self.sequence(bhs.task_tag.get(), u32::MAX, data, immediate, unsolicited, segment).await;
        }
        self.finish(data, segment).await
    }

    /// A sequence of Data-Out PDUs.
    pub async fn sequence(&mut self, task: u32, tag: u32, data: &[u8], from: usize, to: usize, segment: usize) {
        let mut at = from;
        for data_sn in 0u32.. {
            let end = (at + segment).min(to);
            let bhs = data_out(task, tag, data_sn, at as u32, end == to);
            self.send(bhs, &data[at..end]).await;
            at = end;
            if at == to {
                return;
            }
        }
    }

    /// Answers R2Ts and collects Data-In until the response to the one command under way.
    pub async fn finish(&mut self, data: &[u8], segment: usize) -> Outcome {
        let mut outcome = Outcome::default();
        let mut next_r2t = None;
        loop {
            let (bhs, payload) = self.receive().await.expect("a response");
            match bhs.operation() {
                opcode::R2T => {
                    let r2t = R2t::of(&bhs);
                    let (from, len) = (r2t.offset_bytes.get(), r2t.desired_bytes.get());
                    let sn = r2t.r2t_sn.get();
                    assert_eq!(sn, *next_r2t.get_or_insert(sn), "R2TSN");
                    next_r2t = Some(sn + 1);
                    outcome.r2ts.push((from, len));
                    let (from, to) = (from as usize, (from + len) as usize);
                    self.sequence(bhs.task_tag.get(), r2t.transfer_tag.get(), data, from, to, segment).await;
                }
                opcode::DATA_IN => {
                    let pdu = DataIn::of(&bhs);
                    assert_eq!(pdu.offset_bytes.get() as usize, outcome.data.len(), "Data-In in order");
                    outcome.data.extend(payload);
                    if pdu.flags & 1 != 0 {
                        assert_eq!(pdu.flags & 0x80, 0x80);
                        outcome.status = pdu.status;
                        outcome.residual = (pdu.flags & 6, pdu.residual.get());
                        return outcome;
                    }
                }
                opcode::SCSI_RESPONSE => {
                    let pdu = ScsiResponse::of(&bhs);
                    outcome.status = pdu.status;
                    outcome.residual = (pdu.flags & 6, pdu.residual.get());
                    outcome.sense = payload.get(2..).unwrap_or_default().to_vec();
                    return outcome;
                }
                other => panic!("unexpected PDU {other:02x}"),
            }
        }
    }

    /// Writes blocks in the simplest way.
    pub async fn write(&mut self, lba: u32, data: &[u8]) -> Outcome {
        let blocks = (data.len() / 512) as u16;
        let immediate = data.len().min(8192);
        self.command_out(&cdb_10(0x2a, lba, blocks), data, immediate, immediate, 65_536).await
    }

    /// Reads blocks.
    pub async fn read(&mut self, lba: u32, blocks: u16) -> Outcome {
        self.command(&cdb_10(0x28, lba, blocks), u32::from(blocks) * 512).await
    }
}

/// A Data-Out header.
pub fn data_out(task: u32, tag: u32, data_sn: u32, offset: u32, last: bool) -> Bhs {
    let mut bytes = [0; 48];
    bytes[0] = opcode::DATA_OUT;
    bytes[1] = if last { 0x80 } else { 0 };
    bytes[16..20].copy_from_slice(&task.to_be_bytes());
    bytes[20..24].copy_from_slice(&tag.to_be_bytes());
    bytes[36..40].copy_from_slice(&data_sn.to_be_bytes());
    bytes[40..44].copy_from_slice(&offset.to_be_bytes());
    Bhs::from_bytes(bytes)
}
