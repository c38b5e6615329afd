//! The full-feature phase of a connection: requests in, tasks started, responses queued.

use super::inbound::{Inbound, Lent};
use super::link::{Link, Numbered};
use super::pdu::{
    Bhs, DataOut, FINAL, LogoutRequest, LogoutResponse, NO_TAG, NopIn, NopOut, RejectReason, ScsiCommand, TextRequest,
    TextResponse, opcode,
};
use super::send::{Outgoing, Payload};
use super::task::{Mover, Task};
use super::text_phase::{self, Exchange, Listed, Step};
use super::window::Turn;
use super::wire::{ReceiveError, Receiver};
use crate::budget::Chunk;
use crate::scsi::block::CHUNK_BYTES;
use crate::scsi::cdb::{Command, DataOut as Wanted};
use crate::scsi::copy::Neighbours;
use crate::scsi::lu::{Lu, Nexus};
use crate::scsi::sense::Sense;
use crate::scsi::tasks::{Attribute, Place, TaskControl};
use crate::scsi::{Failure, Status, exec};
use crate::session::Session;
use crate::unit::LogicalUnit;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use embedded_io_async::Read;
use platform::net::NetError;
use platform::time::Duration;
use zerocopy::byteorder::big_endian::U32;

/// How long receiving may wait for memory. Pings must be answered meanwhile, so then commands end with BUSY.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(1);

/// The bit of opcodes that only a target sends.
const FROM_TARGET: u8 = 0x20;

/// Why the receiving side stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The initiator closed the connection, or logged out.
    #[error("the initiator left")]
    Left,
    /// The connection broke, or a header digest was wrong.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The initiator broke the protocol in a way that error recovery level 0 does not mend.
    #[error("the initiator broke the protocol: {0}")]
    Protocol(&'static str),
}

/// The SCSI side of a normal session.
pub struct Scsi<U> {
    /// The unit.
    pub lu: Rc<Lu<U>>,
    /// This session's nexus with it.
    pub nexus: Rc<Nexus>,
    /// The other units that its initiator may use.
    pub neighbours: Rc<dyn Neighbours<U>>,
}

impl<U> Clone for Scsi<U> {
    fn clone(&self) -> Self {
        Scsi { lu: self.lu.clone(), nexus: self.nexus.clone(), neighbours: self.neighbours.clone() }
    }
}

/// What SendTargets lists for a value; `None` if this session may not ask for it.
pub type Lister = dyn Fn(&str) -> Option<Vec<Listed>>;

/// The receiving side of a connection in the full-feature phase.
pub struct Connection<R, U> {
    /// What it shares with its tasks.
    pub link: Rc<Link>,
    /// Its session.
    pub session: Rc<Session>,
    /// `None` in a discovery session.
    pub scsi: Option<Scsi<U>>,
    /// Answers SendTargets.
    pub lister: alloc::boxed::Box<Lister>,
    /// The stream.
    pub receiver: Receiver<R>,
    /// The text exchange under way.
    pub exchange: Exchange,
    /// Waiting for memory was in vain; until there is some again nothing waits for it.
    pub starved: bool,
}

impl<R: Read<Error = NetError>, U: LogicalUnit> Connection<R, U> {
    /// Serves requests until the connection ends.
    pub async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.request().await {
                return end;
            }
        }
    }

    async fn request(&mut self) -> Result<(), End> {
        let bhs = self.receiver.header().await?.ok_or(End::Left)?;
        self.link.hear();
        if bhs.data_len() > self.link.params().target_segment_bytes as usize {
            self.link.reject(RejectReason::Protocol, &bhs).await;
            return Err(End::Protocol("a data segment is longer than declared"));
        }
        let known = match bhs.operation() {
            opcode::SCSI_COMMAND | opcode::TASK_MANAGEMENT_REQUEST | opcode::DATA_OUT => self.scsi.is_some(),
            opcode::NOP_OUT | opcode::TEXT_REQUEST | opcode::LOGOUT_REQUEST => true,
            _ => false,
        };
        match bhs.operation() {
            opcode::SCSI_COMMAND if known => self.command(&bhs).await,
            opcode::DATA_OUT if known => self.data_out(&bhs).await,
            opcode::LOGIN_REQUEST => {
                self.link.reject(RejectReason::Protocol, &bhs).await;
                Err(End::Protocol("a login in the full-feature phase"))
            }
            _ if known => self.other(&bhs).await,
            opcode::SNACK => self.reject_unnumbered(RejectReason::Snack, &bhs).await,
            opcode::DATA_OUT => self.reject_unnumbered(RejectReason::Protocol, &bhs).await,
            opcode::SCSI_COMMAND | opcode::TASK_MANAGEMENT_REQUEST => self.refuse(RejectReason::Protocol, &bhs).await,
            operation if operation & FROM_TARGET == 0 => self.refuse(RejectReason::Unsupported, &bhs).await,
            _ => self.reject_unnumbered(RejectReason::Unsupported, &bhs).await,
        }
    }

    /// A SCSI command: memory for its unasked data, the data, its turn.
    async fn command(&mut self, bhs: &Bhs) -> Result<(), End> {
        let pdu = *ScsiCommand::of(bhs);
        let number = pdu.cmd_sn.get();
        if self.link.task(pdu.task_tag.get()).is_some() {
            return self.refuse(RejectReason::TaskInProgress, bhs).await;
        }
        if bhs.is_immediate() && self.link.has_all_immediate() {
            return self.refuse(RejectReason::TooManyImmediate, bhs).await;
        }
        if !bhs.is_immediate() && !self.link.awaits(number) {
            self.receiver.end().await?;
            return Ok(());
        }
        let Some(task) = self.new_task(bhs, &pdu).await? else { return Ok(()) };
        self.link.add_task(task.clone());
        if bhs.is_immediate() {
            self.start(task);
        } else {
            self.numbered(number, Numbered::Command(task)).await?;
        }
        Ok(())
    }

    /// Refuses a PDU that is otherwise in order; its number, if it has one, is used up.
    async fn refuse(&mut self, reason: RejectReason, bhs: &Bhs) -> Result<(), End> {
        self.receiver.end().await?;
        self.link.reject(reason, bhs).await;
        if !bhs.is_immediate() {
            self.link.skip(bhs.sn.get());
            self.turns().await?;
        }
        Ok(())
    }

    /// The task of a command, with its immediate data; `None` if that was spoilt and the PDU refused.
    async fn new_task(&mut self, bhs: &Bhs, pdu: &ScsiCommand) -> Result<Option<Rc<Task>>, End> {
        let expected = pdu.expected_transfer_bytes.get();
        let command = Command::decode(&pdu.cdb);
        let wanted = self.wanted(&command);
        let usable = if pdu.writes() { wanted.bytes().min(u64::from(expected)) as u32 } else { 0 };
        let (immediate, unasked, fault) = self.unasked(bhs, pdu)?;
        let mut inbound = Inbound::new(usable, immediate, unasked);
        if let Some(fault) = fault {
            inbound.fail(fault);
        } else if self.link.has_all_commands() {
            inbound.fail(Failure::Status(Status::Busy));
        } else if !pdu.writes() && expected > 0 && wanted != Wanted::None {
            // The initiator wants data from a command that takes some.
            inbound.fail(Sense::INVALID_FIELD_IN_CDB);
        }
        if inbound.owed() > 0 && inbound.fault().is_none() {
            self.provide(&mut inbound, matches!(wanted, Wanted::Whole(_))).await;
        }
        let task = Rc::new(Task {
            tag: pdu.task_tag.get(),
            lun: pdu.lun,
            attribute: pdu.attribute(),
            is_immediate: bhs.is_immediate(),
            expected_bytes: expected,
            reads: pdu.reads(),
            writes: pdu.writes(),
            command,
            wanted,
            control: Rc::new(TaskControl::default()),
            inbound: RefCell::new(inbound),
        });
        self.fill(&task).await?;
        if !self.receiver.end().await? {
            self.link.reject(RejectReason::DataDigest, bhs).await;
            task.inbound.borrow_mut().fail(Sense::CRC_ERROR);
        }
        Ok(Some(task))
    }

    /// The data that a command takes.
    fn wanted(&self, command: &Result<Command, Sense>) -> Wanted {
        match (&self.scsi, command) {
            (Some(scsi), Ok(command)) => command.data_out(scsi.lu.unit.attributes().block_bytes),
            _ => Wanted::None,
        }
    }

    /// Bytes that come with a command, bytes that come unasked in all, and what is wrong with them.
    fn unasked(&self, bhs: &Bhs, pdu: &ScsiCommand) -> Result<(u32, u32, Option<Sense>), End> {
        let params = self.link.params();
        let immediate = bhs.data_len() as u32;
        let expected = pdu.expected_transfer_bytes.get();
        let limit = if pdu.writes() { params.first_burst_bytes.min(expected) } else { 0 };
        let more = pdu.flags & FINAL == 0;
        let fault = (immediate > limit || (immediate > 0 && !params.immediate_data) || (more && params.initial_r2t))
            .then_some(Sense::UNEXPECTED_UNSOLICITED_DATA);
        let unasked = if more && !params.initial_r2t { limit.max(immediate) } else { immediate };
        Ok((immediate, unasked, fault))
    }

    /// Memory for the data that comes unasked: for a whole chunk of the command's data if it can be had.
    async fn provide(&mut self, inbound: &mut Inbound, whole: bool) {
        let all = inbound.missing().min(CHUNK_BYTES) as usize;
        let least = if whole { all } else { (inbound.owed() as usize).next_multiple_of(4096).min(all) };
        let chunk = match self.link.unasked.try_chunk(all) {
            Some(chunk) => Some(chunk),
            None => self.unasked_chunk(least).await,
        };
        match chunk {
            Some(chunk) => inbound.provide(chunk),
            None => inbound.fail(Failure::Status(Status::Busy)),
        }
    }

    /// Memory for data that comes unasked, if there is some in time.
    async fn unasked_chunk(&mut self, len_bytes: usize) -> Option<Chunk> {
        let account = &self.link.unasked;
        let chunk = match self.starved {
            true => account.try_chunk(len_bytes),
            false => {
                let chunk = self.link.runtime.timers.timeout(MEMORY_TIMEOUT, account.chunk(len_bytes)).await;
                chunk.ok().and_then(Result::ok)
            }
        };
        if self.starved != chunk.is_none() {
            self.starved = chunk.is_none();
            log::info!("iscsi: there is {} memory for unsolicited data", if self.starved { "no" } else { "again" });
        }
        chunk
    }

    /// Receives the data segment into the memory of a task's command.
    async fn fill(&mut self, task: &Task) -> Result<(), End> {
        while self.receiver.left() > 0 {
            let lent = task.inbound.borrow_mut().lend();
            let Some(Lent { mut chunk, filled }) = lent else { return Ok(()) };
            let len = self.receiver.data(chunk.buf.get_mut(filled..).unwrap_or_default()).await?;
            self.link.hear();
            task.inbound.borrow_mut().give_back(Lent { chunk, filled: filled + len });
        }
        Ok(())
    }

    async fn data_out(&mut self, bhs: &Bhs) -> Result<(), End> {
        let pdu = *DataOut::of(bhs);
        let task = self.link.task(bhs.task_tag.get());
        // Data of a task that was aborted, or of a command that was ignored: nobody wants it.
        let Some(task) = task else {
            self.receiver.end().await?;
            return Ok(());
        };
        if task.inbound.borrow_mut().begin(&pdu, bhs.data_len() as u32).is_err() {
            task.inbound.borrow_mut().fail(Sense::DATA_PHASE_ERROR);
            task.control.changed().notify_all();
            return self.reject_unnumbered(RejectReason::InvalidField, bhs).await;
        }
        self.fill(&task).await?;
        if !self.receiver.end().await? {
            self.link.reject(RejectReason::DataDigest, bhs).await;
            task.inbound.borrow_mut().fail(Sense::CRC_ERROR);
        }
        task.inbound.borrow_mut().end(pdu.transfer_tag.get(), bhs.is_final());
        task.control.changed().notify_all();
        Ok(())
    }

    /// Refuses a PDU that takes no part in command numbering.
    async fn reject_unnumbered(&mut self, reason: RejectReason, bhs: &Bhs) -> Result<(), End> {
        self.receiver.end().await?;
        self.link.reject(reason, bhs).await;
        Ok(())
    }

    /// Any other request, with its data segment.
    async fn other(&mut self, bhs: &Bhs) -> Result<(), End> {
        let data = match bhs.data_len() {
            0 => None,
            len => match self.unasked_chunk(len).await {
                Some(mut chunk) => {
                    self.receiver.data(&mut chunk.buf).await?;
                    Some(chunk)
                }
                None => return self.refuse(RejectReason::OutOfResources, bhs).await,
            },
        };
        if !self.receiver.end().await? {
            return self.refuse(RejectReason::DataDigest, bhs).await;
        }
        if bhs.is_immediate() {
            self.serve(bhs, data).await?;
            return self.turns().await;
        }
        self.numbered(bhs.sn.get(), Numbered::Other(*bhs, data)).await
    }

    async fn numbered(&mut self, number: u32, request: Numbered) -> Result<(), End> {
        match self.link.arrive(number, request) {
            Turn::Now(request) => {
                self.turn(request).await?;
                self.turns().await
            }
            Turn::Later | Turn::Ignored => Ok(()),
        }
    }

    /// Serves the requests that arrived early and whose turn has come.
    async fn turns(&mut self) -> Result<(), End> {
        while let Some(request) = self.link.next_in_turn() {
            self.turn(request).await?;
        }
        Ok(())
    }

    async fn turn(&mut self, request: Numbered) -> Result<(), End> {
        match request {
            Numbered::Command(task) => {
                self.start(task);
                Ok(())
            }
            Numbered::Other(bhs, data) => {
                self.link.release();
                self.serve(&bhs, data).await
            }
        }
    }

    /// Starts a command whose turn has come.
    fn start(&self, task: Rc<Task>) {
        let Some(scsi) = self.scsi.clone() else { return };
        let attribute = match task.attribute {
            2 => Attribute::Ordered,
            3 => Attribute::HeadOfQueue,
            _ => Attribute::Simple,
        };
        let place = scsi.lu.tasks.enter(&scsi.nexus, attribute, task.control.clone());
        self.link.runtime.spawner.spawn(run_command(self.link.clone(), scsi, task, place));
    }

    /// Serves a request that is neither command nor data.
    async fn serve(&mut self, bhs: &Bhs, data: Option<Chunk>) -> Result<(), End> {
        match bhs.operation() {
            opcode::NOP_OUT => self.nop_out(bhs, data).await,
            opcode::TEXT_REQUEST => self.text(bhs, data.as_ref().map_or(&[], |chunk| &chunk.buf)).await,
            opcode::LOGOUT_REQUEST => self.logout(bhs).await,
            _ if !self.link.begin_management() => {
                self.link.reject(RejectReason::TooManyImmediate, bhs).await;
                Ok(())
            }
            _ => {
                if let Some(scsi) = &self.scsi {
                    super::tmf::start(self.link.clone(), self.session.clone(), scsi.clone(), bhs);
                }
                Ok(())
            }
        }
    }

    async fn nop_out(&mut self, bhs: &Bhs, data: Option<Chunk>) -> Result<(), End> {
        // The answer to our own ping needs none.
        if bhs.task_tag.get() == NO_TAG {
            return Ok(());
        }
        let answer =
            NopIn { lun: NopOut::of(bhs).lun, task_tag: bhs.task_tag, transfer_tag: U32::new(NO_TAG), ..NopIn::new() };
        let payload = match data {
            None => Payload::None,
            Some(Chunk { mut buf, claim }) => {
                buf.truncate(self.link.params().initiator_segment_bytes as usize);
                Payload::Part(buf, Rc::new(claim))
            }
        };
        self.link.send(Outgoing::status(answer.into_bhs(), payload)).await;
        Ok(())
    }

    async fn text(&mut self, bhs: &Bhs, text: &[u8]) -> Result<(), End> {
        let tag = TextRequest::of(bhs).transfer_tag.get();
        let tag = (tag != NO_TAG).then_some(tag);
        if bhs.continues() && bhs.is_final() {
            return self.reject_text(bhs).await;
        }
        match self.exchange.request(tag, bhs.continues(), text) {
            Step::Refuse => return self.reject_text(bhs).await,
            Step::Go => {}
            Step::Answer(text) => match text_phase::answer(&text, &self.lister) {
                Err(_) => return self.reject_text(bhs).await,
                Ok((answer, changes)) => {
                    self.exchange.answer(answer);
                    if let Some(bytes) = changes.initiator_segment_bytes {
                        self.link.set_initiator_segment_bytes(bytes);
                    }
                }
            },
        }
        let most = self.link.params().initiator_segment_bytes as usize;
        let tag = self.link.new_tag();
        let part = self.exchange.next(bhs.is_final(), most, tag);
        let response = TextResponse {
            flags: if part.last { FINAL } else { 0 } | if part.continues { super::pdu::CONTINUE } else { 0 },
            task_tag: bhs.task_tag,
            transfer_tag: U32::new(if part.last { NO_TAG } else { tag }),
            ..TextResponse::new()
        };
        self.link.send(Outgoing::status(response.into_bhs(), Payload::Bytes(part.text))).await;
        Ok(())
    }

    async fn reject_text(&mut self, bhs: &Bhs) -> Result<(), End> {
        self.exchange = Exchange::default();
        self.link.reject(RejectReason::Protocol, bhs).await;
        Ok(())
    }

    /// Logout: 0 closes the session, 1 the connection, which is all of it; 2 asks for recovery.
    async fn logout(&mut self, bhs: &Bhs) -> Result<(), End> {
        let request = LogoutRequest::of(bhs);
        let (response, leaves) = match request.reason & !FINAL {
            0 => (0, true),
            1 if request.cid.get() == self.session.cid => (0, true),
            1 => (1, false),
            2 => (2, false),
            _ => {
                self.link.reject(RejectReason::InvalidField, bhs).await;
                return Ok(());
            }
        };
        if leaves {
            self.link.abort_tasks();
            self.link.tasks_ended().await;
        }
        let answer = LogoutResponse { response, task_tag: bhs.task_tag, ..LogoutResponse::new() };
        self.link.send(Outgoing::status(answer.into_bhs(), Payload::None)).await;
        if leaves { Err(End::Left) } else { Ok(()) }
    }
}

/// One SCSI command from its turn to its response.
async fn run_command<U: LogicalUnit>(link: Rc<Link>, scsi: Scsi<U>, task: Rc<Task>, place: Place) {
    let mut mover = Mover::new(&link, &task);
    place.turn().await;
    let no_room = Failure::Status(Status::Busy);
    let result = match task.control.is_aborted() {
        true => Err(Failure::Aborted),
        // What it would have to be told besides waits for a command that there is room for.
        false if task.inbound.borrow().fault() == Some(no_room) => Err(no_room),
        false => exec::execute(&scsi.lu, &scsi.nexus, &*scsi.neighbours, task.lun, task.command, &mut mover).await,
    };
    let result = mover.settle().await.and(result);
    let response = mover.response(result, scsi.lu.mode.get().descriptor_sense);
    // The tag is free and the window open before the initiator can know of the response.
    link.remove_task(&task);
    if !task.is_immediate {
        link.release();
    }
    if let Some(response) = response {
        link.send(response).await;
    }
    // Task management waits for this, so its response follows ours.
    drop(place);
}
