//! A SCSI command on its way: its task, and its data over iSCSI.

use super::inbound::Inbound;
use super::link::Link;
use super::pdu::{DataIn, FINAL, NO_TAG, R2t, ScsiResponse};
use super::send::{Outgoing, Payload};
use crate::budget::Chunk;
use crate::scsi::block::CHUNK_BYTES;
use crate::scsi::cdb::{Command, DataOut};
use crate::scsi::sense::Sense;
use crate::scsi::tasks::TaskControl;
use crate::scsi::{CHECK_CONDITION, Failure, Status, Transfer};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::pin::pin;
use futures_util::future::{Either, select};
use platform::buf::Buf;
use platform::sync::Notified;
use platform::time::Duration;
use zerocopy::byteorder::big_endian::U32;

/// How long an initiator may take to send data that it was asked for.
const DATA_TIMEOUT: Duration = Duration::from_secs(30);

/// Data-In and SCSI Response flags: residual overflow and underflow, status in a Data-In.
const OVERFLOW: u8 = 0x04;
const UNDERFLOW: u8 = 0x02;
const HAS_STATUS: u8 = 0x01;

/// A SCSI command that was accepted.
pub struct Task {
    /// Initiator task tag.
    pub tag: u32,
    /// Logical unit.
    pub lun: [u8; 8],
    /// Task attribute as sent.
    pub attribute: u8,
    /// It was sent outside the command numbering.
    pub is_immediate: bool,
    /// Expected data transfer length.
    pub expected_bytes: u32,
    /// The initiator expects data.
    pub reads: bool,
    /// The initiator has data.
    pub writes: bool,
    /// What to do, or the sense data to answer with.
    pub command: Result<Command, Sense>,
    /// The data that it takes.
    pub wanted: DataOut,
    /// Aborting it.
    pub control: Rc<TaskControl>,
    /// Data from the initiator.
    pub inbound: RefCell<Inbound>,
}

/// The data of a running command.
pub struct Mover<'a> {
    link: &'a Link,
    task: &'a Task,
    /// Bytes that the command returns, and how many of these the initiator takes.
    announced: u64,
    taken: u32,
    sent: u32,
    data_sn: u32,
    /// The last Data-In, kept back to carry the status.
    last: Option<(DataIn, Payload)>,
}

impl<'a> Mover<'a> {
    /// Of a command that has moved nothing yet.
    pub fn new(link: &'a Link, task: &'a Task) -> Mover<'a> {
        Mover { link, task, announced: 0, taken: 0, sent: 0, data_sn: 0, last: None }
    }

    /// Waits until everything that the initiator was allowed to send has come, so that nothing of it follows the
    /// response.
    pub async fn settle(&self) -> Result<(), Failure> {
        self.task.inbound.borrow_mut().discard();
        loop {
            let changed = self.task.control.changed().notified();
            self.check_aborted()?;
            if self.task.inbound.borrow().is_settled() {
                return Ok(());
            }
            self.wait(changed).await?;
        }
    }

    /// The response to the command, after its result.
    pub fn response(mut self, result: Result<(), Failure>, descriptor_sense: bool) -> Option<Outgoing> {
        let (status, sense) = match result {
            Ok(()) => (Status::Good as u8, Vec::new()),
            Err(Failure::Status(status)) => (status as u8, Vec::new()),
            Err(Failure::Check(sense)) => (CHECK_CONDITION, sense.encode(descriptor_sense)),
            Err(Failure::Aborted) => return None,
        };
        let inbound = self.task.inbound.borrow();
        let moved = match result {
            Ok(()) => self.announced.max(self.task.wanted.bytes()),
            Err(_) => u64::from(self.sent) + u64::from(inbound.taken()),
        };
        // What is expected of one direction is nothing to the other.
        let expected = if self.announced > 0 && !self.task.reads { 0 } else { self.task.expected_bytes };
        let (flags, residual) = residual(expected, moved);
        let pdus = self.data_sn.wrapping_add(inbound.r2ts());
        drop(inbound);
        if let (Ok(()), Some((data, payload))) = (result, self.last.take()) {
            let data = DataIn { flags: data.flags | flags | HAS_STATUS, residual: U32::new(residual), status, ..data };
            return Some(Outgoing::status(data.into_bhs(), payload));
        }
        let response = ScsiResponse {
            flags: FINAL | flags,
            status,
            task_tag: U32::new(self.task.tag),
            exp_data_sn: U32::new(pdus),
            residual: U32::new(residual),
            ..ScsiResponse::new()
        };
        let payload = match sense.len() {
            0 => Payload::None,
            len => Payload::Bytes([&(len as u16).to_be_bytes()[..], &sense].concat()),
        };
        Some(Outgoing::status(response.into_bhs(), payload))
    }

    fn check_aborted(&self) -> Result<(), Failure> {
        if self.task.control.is_aborted() { Err(Failure::Aborted) } else { Ok(()) }
    }

    /// Waits for data from the initiator. One that takes too long loses its connection.
    async fn wait(&self, changed: Notified<'_>) -> Result<(), Failure> {
        if self.link.runtime.timers.timeout(DATA_TIMEOUT, changed).await.is_err() {
            log::warn!("iscsi: data for a command did not come in {DATA_TIMEOUT:?}, closing the connection");
            self.link.close();
            return Err(Failure::Aborted);
        }
        Ok(())
    }

    /// Sends the R2Ts that may be outstanding and for which there is memory. Waits for memory only if it
    /// `may_wait`, because the command holds none.
    async fn solicit(&self, may_wait: bool) -> Result<(), Failure> {
        let (outstanding_max, burst_max) = {
            let params = self.link.params();
            (params.max_outstanding_r2t, params.max_burst_bytes)
        };
        loop {
            let (missing, has_room, is_idle) = {
                let inbound = self.task.inbound.borrow();
                if !inbound.may_solicit(outstanding_max) {
                    return Ok(());
                }
                (inbound.missing().min(CHUNK_BYTES) as usize, inbound.has_room(), inbound.is_idle())
            };
            if !has_room {
                let chunk = match may_wait && is_idle {
                    true => self.buffer(missing).await?,
                    false => match self.link.asked.try_chunk(missing) {
                        Some(chunk) => chunk,
                        None => return Ok(()),
                    },
                };
                self.task.inbound.borrow_mut().provide(chunk);
            }
            let tag = self.link.new_tag();
            let solicit = self.task.inbound.borrow_mut().solicit(tag, burst_max);
            let r2t = R2t {
                lun: self.task.lun,
                task_tag: U32::new(self.task.tag),
                transfer_tag: U32::new(tag),
                r2t_sn: U32::new(solicit.r2t_sn),
                offset_bytes: U32::new(solicit.offset_bytes),
                desired_bytes: U32::new(solicit.len_bytes),
                ..R2t::new()
            };
            self.link.send(Outgoing::unnumbered(r2t.into_bhs(), Payload::None)).await;
        }
    }

    /// Sends one data segment; the last of all is kept back.
    async fn send_segment(&mut self, payload: Payload, len_bytes: u32, burst_max: u32) {
        let offset = self.sent;
        self.sent += len_bytes;
        let all = self.sent == self.taken;
        let ends_burst = self.sent.is_multiple_of(burst_max);
        let data = DataIn {
            flags: if all || ends_burst { FINAL } else { 0 },
            task_tag: U32::new(self.task.tag),
            data_sn: U32::new(self.data_sn),
            offset_bytes: U32::new(offset),
            transfer_tag: U32::new(NO_TAG),
            ..DataIn::new()
        };
        self.data_sn += 1;
        if all {
            self.last = Some((data, payload));
        } else {
            self.link.send(Outgoing::unnumbered(data.into_bhs(), payload)).await;
        }
    }

    /// Bytes that fit into the next Data-In: its sequence ends with the burst.
    fn segment_bytes(&self, left: usize) -> (usize, u32) {
        let params = self.link.params();
        let burst_left = params.max_burst_bytes - self.sent % params.max_burst_bytes;
        let most = params.initiator_segment_bytes.min(burst_left).min(self.taken - self.sent);
        (left.min(most as usize), params.max_burst_bytes)
    }
}

impl Transfer for Mover<'_> {
    fn announce(&mut self, bytes: u64) -> u64 {
        self.announced = bytes;
        let limit = if self.task.reads { self.task.expected_bytes } else { 0 };
        self.taken = u32::try_from(bytes).unwrap_or(u32::MAX).min(limit);
        u64::from(self.taken)
    }

    async fn buffer(&self, len_bytes: usize) -> Result<Chunk, Failure> {
        Ok(self.unless_aborted(self.link.asked.chunk(len_bytes)).await??)
    }

    fn spare(&self, len_bytes: usize) -> Result<Chunk, Failure> {
        self.check_aborted()?;
        Ok(self.link.asked.spare(len_bytes)?)
    }

    async fn unless_aborted<O>(&self, work: impl Future<Output = O>) -> Result<O, Failure> {
        match select(pin!(self.task.control.aborted()), pin!(work)).await {
            Either::Left(_) => Err(Failure::Aborted),
            Either::Right((outcome, _)) => Ok(outcome),
        }
    }

    async fn send(&mut self, chunk: Chunk) -> Result<(), Failure> {
        let mut buf: Buf = chunk.buf;
        let claim = Rc::new(chunk.claim);
        while self.sent < self.taken && !buf.is_empty() {
            self.check_aborted()?;
            let (len, burst_max) = self.segment_bytes(buf.len());
            let part = buf.split_to(len);
            self.send_segment(Payload::Part(part, claim.clone()), len as u32, burst_max).await;
        }
        Ok(())
    }

    async fn send_parameters(&mut self, bytes: Vec<u8>) -> Result<(), Failure> {
        let mut bytes = &bytes[..];
        while self.sent < self.taken && !bytes.is_empty() {
            let (len, burst_max) = self.segment_bytes(bytes.len());
            let Some((part, rest)) = bytes.split_at_checked(len) else { break };
            self.send_segment(Payload::Bytes(part.to_vec()), len as u32, burst_max).await;
            bytes = rest;
        }
        Ok(())
    }

    fn offered(&self) -> u64 {
        if self.task.writes { u64::from(self.task.expected_bytes) } else { 0 }
    }

    async fn receive(&mut self) -> Result<Option<Chunk>, Failure> {
        loop {
            let changed = self.task.control.changed().notified();
            self.check_aborted()?;
            let chunk = {
                let mut inbound = self.task.inbound.borrow_mut();
                if let Some(fault) = inbound.fault() {
                    return Err(fault);
                }
                if inbound.is_exhausted() {
                    return Ok(None);
                }
                inbound.take()
            };
            // Ask for what follows before working on what is here.
            self.solicit(chunk.is_none()).await?;
            if chunk.is_some() {
                return Ok(chunk);
            }
            self.wait(changed).await?;
        }
    }
}

/// The residual of a command that moved, or would have moved, `moved` bytes (RFC 7143 section 11.4.5).
fn residual(expected: u32, moved: u64) -> (u8, u32) {
    let expected = u64::from(expected);
    let clip = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    match moved.cmp(&expected) {
        core::cmp::Ordering::Less => (UNDERFLOW, clip(expected - moved)),
        core::cmp::Ordering::Equal => (0, 0),
        core::cmp::Ordering::Greater => (OVERFLOW, clip(moved - expected)),
    }
}
