//! A live target in memory, and initiators that the fuzzer's bytes move: most of what they send is right, so that what is
//! wrong gets far.

use crate::common::{OneTarget, TARGET, ThinDisk};
use crate::image::Bytes;
use crate::pipe::{Duplex, PipeReader, PipeWriter, duplex};
use embedded_io_async::{Read, Write};
use export::iscsi::digest::Digest;
use export::iscsi::pdu::{Bhs, FINAL, NO_TAG, R2t, opcode, padding};
use export::{Chap, Credentials, Portal, PortalOptions};
use platform::Runtime;
use platform::net::Stream;
use platform::random::Seeded;
use platform::secret::Secret;
use platform::simulated;
use platform::sync::Notify;
use platform::task::Executor;
use platform::time::Duration;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use zerocopy::byteorder::big_endian::U32;

/// Actions of one execution.
const ACTIONS_MAX: usize = 64;

/// I/O buffers of the target: few, so that they run out.
const BUFS_BYTES: usize = 4 << 20;

const DISK_BYTES: u64 = 1 << 20;

/// What no initiator here knows the secret of.
const SECRET: &[u8] = b"nobody knows it";

/// What an honest target wants when it wants something.
pub fn secret() -> Rc<Chap> {
    let credentials =
        |name: &str, secret: &[u8]| Credentials { name: name.into(), secret: Secret::new(secret.to_vec()) };
    Rc::new(Chap { initiator: credentials("user", SECRET), target: Some(credentials("target", b"another one")) })
}

/// Plays the bytes against a target. Then an honest initiator must be served, and nothing be left behind.
pub fn play(data: &[u8]) {
    let data = data.to_vec();
    simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(1)), BUFS_BYTES, async move |runtime| {
        let disk = Rc::new(ThinDisk::new(DISK_BYTES, 512, runtime.bufs.clone()));
        disk.slow.set(Some(runtime.timers.clone()));
        let options = PortalOptions { payload_bytes_max: BUFS_BYTES / 2, ..PortalOptions::default() };
        let portal = Portal::new(&runtime, Rc::new(OneTarget(disk.clone())), options);
        let mut bytes = Bytes::new(&data);
        let mut peers = vec![Peer::connect(&runtime, &portal)];
        for _ in 0..ACTIONS_MAX {
            if bytes.is_empty() {
                break;
            }
            match bytes.byte() {
                0..=7 if peers.len() < 4 => peers.push(Peer::connect(&runtime, &portal)),
                8..=11 => drop(peers.remove(0)),
                12..=19 => peers.rotate_left(1),
                20..=23 => {
                    let wanted = disk.chap.borrow().is_none().then(secret);
                    *disk.chap.borrow_mut() = wanted;
                }
                24..=39 => runtime.timers.sleep(Duration::from_millis(1 << (bytes.byte() % 16))).await,
                40 => portal.end_sessions(Some(TARGET), |peer| peer.proven.is_some()).await,
                41 => portal.capacity_changed(TARGET),
                what => {
                    if let Some(peer) = peers.last_mut() {
                        peer.act(what, &mut bytes).await;
                    }
                }
            }
            if peers.is_empty() {
                peers.push(Peer::connect(&runtime, &portal));
            }
        }
        *disk.chap.borrow_mut() = None;
        drop(peers);
        // Long enough for whatever the target waits for.
        runtime.timers.sleep(Duration::from_secs(120)).await;
        assert!(portal.sessions().is_empty(), "sessions of connections that are gone: {:?}", portal.sessions());
        be_served(&runtime, &portal).await;
        portal.shutdown().await;
        runtime.timers.sleep(Duration::from_secs(1)).await;
        assert_eq!(runtime.bufs.used_bytes(), 0, "buffers are left behind");
    });
}

/// A session like any other.
async fn be_served(runtime: &Runtime, portal: &Portal<OneTarget>) {
    let mut peer = Peer::connect(runtime, portal);
    peer.log_in("honest").await;
    for cdb in [&[0x00][..], &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]] {
        let tag = peer.command(0x40, 512, cdb, &[]).await;
        runtime.timers.sleep(Duration::from_secs(1)).await;
        assert_eq!(peer.inbox.borrow().answered.back(), Some(&tag), "the target serves");
    }
}

/// What a peer was told.
#[derive(Default)]
struct Inbox {
    /// R2Ts that were not answered: task, transfer tag, offset, length.
    asked: VecDeque<(u32, u32, u32, u32)>,
    /// Tasks that were answered.
    answered: VecDeque<u32>,
    /// Transfer tag of the last text response.
    text_tag: u32,
}

/// An initiator's side of a connection.
struct Peer {
    writer: PipeWriter,
    inbox: Rc<RefCell<Inbox>>,
    cmd_sn: u32,
    next_tag: u32,
    /// Digests, header's and data's, that are added to what is sent.
    digests: (bool, bool),
    gate: Rc<Gate>,
}

/// Keeps a peer from reading.
#[derive(Default)]
struct Gate {
    shut: Cell<bool>,
    opened: Notify,
}

impl Gate {
    fn set(&self, shut: bool) {
        self.shut.set(shut);
        self.opened.notify_all();
    }

    async fn pass(&self) {
        while self.shut.get() {
            self.opened.notified().await;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.gate.set(false);
    }
}

impl Peer {
    fn connect(runtime: &Runtime, portal: &Portal<OneTarget>) -> Peer {
        let (here, there): (Duplex, Duplex) = duplex(3260);
        let portal = portal.clone();
        runtime.spawner.spawn(async move { portal.serve(there).await });
        let (reader, writer) = here.split();
        let (inbox, gate) = (Rc::<RefCell<Inbox>>::default(), Rc::<Gate>::default());
        runtime.spawner.spawn(listen(reader, inbox.clone(), gate.clone()));
        Peer { writer, inbox, cmd_sn: 1, next_tag: 1, digests: (false, false), gate }
    }

    async fn log_in(&mut self, name: &str) {
        let text = format!("InitiatorName=iqn.fuzz:{name}\0TargetName={TARGET}\0InitialR2T=No\0");
        self.login(0x87, text.as_bytes()).await;
    }

    async fn login(&mut self, flags: u8, text: &[u8]) {
        let mut bhs = self.header(0x40 | opcode::LOGIN_REQUEST, flags, 0);
        bhs.lun[5] = 1;
        bhs.specific_20 = [0; 4];
        self.send(bhs, text).await;
    }

    /// A header with the next task tag and the present CmdSN.
    fn header(&mut self, opcode: u8, flags: u8, tag: u32) -> Bhs {
        let mut bhs = Bhs::from_bytes([0; 48]);
        (bhs.opcode, bhs.flags, bhs.task_tag, bhs.sn) = (opcode, flags, U32::new(tag), U32::new(self.cmd_sn));
        bhs.specific_20 = [0xff; 4];
        bhs
    }

    async fn command(&mut self, flags: u8, expected: u32, cdb: &[u8], data: &[u8]) -> u32 {
        let tag = self.next_tag;
        let mut bhs = self.header(opcode::SCSI_COMMAND, FINAL | flags | 1, tag);
        bhs.specific_20 = expected.to_be_bytes();
        let mut bytes = bhs.to_bytes();
        bytes[32..32 + cdb.len()].copy_from_slice(cdb);
        self.send(Bhs::from_bytes(bytes), data).await;
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.next_tag += 1;
        tag
    }

    async fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs.set_data_len(data.len());
        let mut pdu = bhs.to_bytes().to_vec();
        if self.digests.0 {
            pdu.extend(Digest::of(&pdu));
        }
        if !data.is_empty() {
            let padded = [data, &[0; 3][..padding(data.len())]].concat();
            pdu.extend(&padded);
            if self.digests.1 {
                pdu.extend(Digest::of(&padded));
            }
        }
        self.raw(&pdu).await;
    }

    /// Sends bytes. The target may have closed the connection.
    async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.writer.write_all(bytes).await;
    }

    /// Does one thing that the bytes tell.
    async fn act(&mut self, what: u8, bytes: &mut Bytes<'_>) {
        match what {
            42..=59 => self.log_in(["a", "b", "a"][usize::from(what % 3)]).await,
            60..=89 => self.login_by_bytes(bytes).await,
            90..=95 => self.digests = (what & 1 != 0, what & 2 != 0),
            96..=98 => self.gate.set(!self.gate.shut.get()),
            99..=149 => self.command_by_bytes(bytes).await,
            150..=179 => self.answer_r2t(bytes).await,
            180..=219 => self.other_by_bytes(what, bytes).await,
            _ => {
                let noise: Vec<u8> = (0..bytes.byte() % 64).map(|_| bytes.byte()).collect();
                self.raw(&noise).await;
            }
        }
    }

    async fn login_by_bytes(&mut self, bytes: &mut Bytes<'_>) {
        let flags = bytes.byte();
        let mut text = Vec::new();
        for _ in 0..bytes.byte() % 8 {
            text.extend(word(bytes).as_bytes());
        }
        self.login(flags, &text).await;
    }

    /// A command of a kind that there is, on a place that there may be, some of its bytes as they come.
    async fn command_by_bytes(&mut self, bytes: &mut Bytes<'_>) {
        const OPCODES: [u8; 24] = [
            0x00, 0x12, 0x28, 0x2a, 0x88, 0x8a, 0x41, 0x93, 0x42, 0x89, 0x8b, 0x2f, 0x2e, 0x35, 0x34, 0x1a, 0x15, 0x5e,
            0x5f, 0x9e, 0xa0, 0xa3, 0x25, 0x4d,
        ];
        let mut cdb = [0; 16];
        cdb[0] = OPCODES[usize::from(bytes.byte()) % OPCODES.len()];
        let long = cdb[0] >= 0x80;
        let (lba, blocks) = (bytes.byte(), bytes.byte());
        cdb[if long { 9 } else { 5 }] = lba;
        cdb[if long { 13 } else { 8 }] = blocks;
        for _ in 0..bytes.byte() % 4 {
            cdb[usize::from(bytes.byte() % 16)] = bytes.byte();
        }
        let flags = bytes.byte() & 0xe7;
        let more = if flags & 1 == 0 { 0 } else { bytes.number() as u32 };
        let expected = (u32::from(blocks) * 512).wrapping_add(more);
        let data = vec![bytes.byte(); usize::from(bytes.short() % 4096)];
        let tag = self.command(flags & 0x67, expected, &cdb, &data).await;
        if flags & 0x80 != 0 {
            // Unsolicited data, which F has not announced.
            self.data_out(tag, NO_TAG, bytes.byte().into(), data.len() as u32, 512, true).await;
        }
    }

    async fn answer_r2t(&mut self, bytes: &mut Bytes<'_>) {
        let Some((task, tag, offset, len)) = self.inbox.borrow_mut().asked.pop_front() else { return };
        match bytes.byte() {
            0..=199 => {
                let mut at = 0;
                for data_sn in 0.. {
                    let part = (len - at).min(16 << 10);
                    self.data_out(task, tag, data_sn, offset + at, part, at + part == len).await;
                    at += part;
                    if at == len {
                        return;
                    }
                }
            }
            200..=219 => self.data_out(task, tag, bytes.byte().into(), offset, len.min(8192), true).await,
            _ => {
                let (offset, len) = (bytes.number() as u32, bytes.short());
                self.data_out(task, tag, 0, offset, len.into(), bytes.byte() & 1 != 0).await;
            }
        }
    }

    async fn data_out(&mut self, task: u32, tag: u32, data_sn: u32, offset: u32, len: u32, last: bool) {
        let mut bhs = self.header(opcode::DATA_OUT, if last { FINAL } else { 0 }, task);
        bhs.specific_20 = tag.to_be_bytes();
        bhs.specific_36[..4].copy_from_slice(&data_sn.to_be_bytes());
        bhs.specific_36[4..8].copy_from_slice(&offset.to_be_bytes());
        self.send(bhs, &vec![0x5a; len.min(64 << 10) as usize]).await;
    }

    /// NOP-Out, text, task management, logout, or any opcode; fields as the bytes tell.
    async fn other_by_bytes(&mut self, what: u8, bytes: &mut Bytes<'_>) {
        let opcode = match what % 8 {
            0 | 1 => opcode::NOP_OUT,
            2 | 3 => opcode::TEXT_REQUEST,
            4 | 5 => opcode::TASK_MANAGEMENT_REQUEST,
            6 => opcode::LOGOUT_REQUEST,
            _ => bytes.byte(),
        };
        let immediate = bytes.byte();
        let mut bhs = self.header(opcode | if immediate & 1 == 0 { 0x40 } else { 0 }, FINAL, 0xaaaa);
        if opcode == opcode::TEXT_REQUEST && immediate & 2 != 0 {
            bhs.specific_20 = self.inbox.borrow().text_tag.to_be_bytes();
        }
        if opcode == opcode::TASK_MANAGEMENT_REQUEST {
            bhs.flags |= bytes.byte() % 16;
            bhs.specific_20 = self.next_tag.wrapping_sub(u32::from(bytes.byte() % 4)).to_be_bytes();
        }
        let mut header = bhs.to_bytes();
        for _ in 0..bytes.byte() % 3 {
            header[usize::from(bytes.byte() % 48)] = bytes.byte();
        }
        let text: String = (0..bytes.byte() % 4).map(|_| word(bytes)).collect();
        self.send(Bhs::from_bytes(header), text.as_bytes()).await;
        self.cmd_sn = self.cmd_sn.wrapping_add(u32::from(immediate & 1));
    }
}

/// A key and a value that there are, or letters of the bytes.
pub fn word(bytes: &mut Bytes<'_>) -> String {
    const WORDS: [&str; 32] = [
        "InitiatorName=iqn.fuzz:a\0",
        "TargetName=iqn.2026-11.io.gossamer:disk\0",
        "SessionType=Discovery\0",
        "SessionType=Normal\0",
        "AuthMethod=CHAP,None\0",
        "AuthMethod=None\0",
        "CHAP_A=7,5\0",
        "CHAP_N=user\0",
        "CHAP_R=0x00\0",
        "CHAP_I=1\0",
        "CHAP_C=0b0000\0",
        "HeaderDigest=CRC32C,None\0",
        "DataDigest=CRC32C,None\0",
        "InitialR2T=No\0",
        "ImmediateData=No\0",
        "MaxBurstLength=512\0",
        "FirstBurstLength=512\0",
        "MaxRecvDataSegmentLength=512\0",
        "MaxOutstandingR2T=8\0",
        "ErrorRecoveryLevel=2\0",
        "iSCSIProtocolLevel=2\0",
        "SendTargets=All\0",
        "SendTargets=\0",
        "MaxConnections=0x2\0",
        "X-none=1\0",
        "=",
        "\0",
        "Yes",
        "0x",
        "0b",
        "TaskReporting=FastAbort\0",
        "OFMarkInt=1~2\0",
    ];
    match bytes.byte() {
        letter @ 128.. => char::from(letter & 0x7f).into(),
        word => WORDS[usize::from(word) % WORDS.len()].into(),
    }
}

/// Takes in what the target sends, until the end of the stream.
async fn listen(mut reader: PipeReader, inbox: Rc<RefCell<Inbox>>, gate: Rc<Gate>) {
    let mut header = [0; 48];
    loop {
        gate.pass().await;
        if reader.read_exact(&mut header).await.is_err() {
            return;
        }
        let bhs = Bhs::from_bytes(header);
        let mut data = vec![0; bhs.data_len() + padding(bhs.data_len())];
        if reader.read_exact(&mut data).await.is_err() {
            return;
        }
        let mut inbox = inbox.borrow_mut();
        match bhs.operation() {
            opcode::R2T => {
                let r2t = R2t::of(&bhs);
                let task = bhs.task_tag.get();
                inbox.asked.push_back((task, r2t.transfer_tag.get(), r2t.offset_bytes.get(), r2t.desired_bytes.get()));
            }
            opcode::SCSI_RESPONSE => inbox.answered.push_back(bhs.task_tag.get()),
            opcode::DATA_IN if bhs.flags & 1 != 0 => inbox.answered.push_back(bhs.task_tag.get()),
            opcode::TEXT_RESPONSE => inbox.text_tag = u32::from_be_bytes(bhs.specific_20),
            _ => {}
        }
    }
}
