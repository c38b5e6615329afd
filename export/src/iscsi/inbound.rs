//! Data from the initiator for one command: what it may send, what has come, where it goes.
//!
//! Data is in order (DataPDUInOrder and DataSequenceInOrder are Yes), so a command's data is one run of bytes
//! that arrives from offset 0 on; chunks of memory are provided for it from offset 0 on, too. The initiator is
//! allowed to send by the login (immediate and unsolicited data) and by R2Ts, never more than there is memory for.

use super::pdu::{DataOut, NO_TAG};
use crate::budget::Chunk;
use crate::scsi::Failure;
use crate::scsi::sense::Sense;
use alloc::collections::VecDeque;

/// The state of a command's data.
#[derive(Default)]
pub struct Inbound {
    /// Bytes that the command uses: the least of what its CDB says and what the initiator has.
    wanted: u32,
    /// End of what the initiator was allowed to send.
    granted: u32,
    /// End of the memory provided.
    provided: u32,
    /// End of the data handed to the command.
    taken: u32,
    chunks: VecDeque<Filling>,
    unsolicited: Option<Sequence>,
    solicited: VecDeque<Sequence>,
    r2t_sn: u32,
    fault: Option<Failure>,
    /// The command is over: what still comes is thrown away.
    discards: bool,
}

struct Filling {
    /// `None` while lent to the receiver.
    chunk: Option<Chunk>,
    filled: usize,
    len: usize,
}

/// Bytes that the initiator was allowed to send and that end with the F bit.
struct Sequence {
    tag: u32,
    next: u32,
    end: u32,
    data_sn: u32,
}

/// A chunk on loan to be filled, from `filled` on.
pub struct Lent {
    /// The memory.
    pub chunk: Chunk,
    /// Bytes of it that are filled.
    pub filled: usize,
}

/// What an R2T asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicit {
    /// R2TSN.
    pub r2t_sn: u32,
    /// Buffer offset.
    pub offset_bytes: u32,
    /// Desired data transfer length.
    pub len_bytes: u32,
}

/// No data was asked for under this tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownTag;

impl Inbound {
    /// A command that uses `wanted` bytes, of which the initiator sends `unasked` by itself: some with the
    /// command (`immediate`), the rest in a sequence of Data-Out PDUs.
    pub fn new(wanted: u32, immediate: u32, unasked: u32) -> Inbound {
        let unsolicited =
            (unasked > immediate).then_some(Sequence { tag: NO_TAG, next: immediate, end: unasked, data_sn: 0 });
        Inbound { wanted, granted: unasked, unsolicited, ..Inbound::default() }
    }

    /// Bytes for which memory must be there before the data that comes unasked is received.
    pub fn owed(&self) -> u32 {
        self.granted.min(self.wanted)
    }

    /// Bytes of the command's data for which no memory is provided yet.
    pub fn missing(&self) -> u32 {
        self.wanted - self.provided
    }

    /// Provides memory for the next bytes.
    pub fn provide(&mut self, chunk: Chunk) {
        let len = chunk.buf.len();
        self.provided = self.provided.saturating_add(len as u32);
        self.chunks.push_back(Filling { chunk: Some(chunk), filled: 0, len });
    }

    /// Checks a Data-Out PDU with `len` bytes of data against what was allowed. What is wrong with it becomes
    /// the command's [fault](Inbound::fault).
    pub fn begin(&mut self, pdu: &DataOut, len: u32) -> Result<(), UnknownTag> {
        let tag = pdu.transfer_tag.get();
        let sequence = if tag == NO_TAG { self.unsolicited.as_mut() } else { self.solicited.front_mut() };
        let sequence = sequence.filter(|sequence| sequence.tag == tag).ok_or(UnknownTag)?;
        let in_order = pdu.data_sn.get() == sequence.data_sn && pdu.offset_bytes.get() == sequence.next;
        let excess = len > sequence.end - sequence.next;
        sequence.data_sn = sequence.data_sn.wrapping_add(1);
        sequence.next += len.min(sequence.end - sequence.next);
        if excess && tag == NO_TAG {
            self.fail(Sense::UNEXPECTED_UNSOLICITED_DATA);
        } else if excess || !in_order {
            self.fail(Sense::DATA_PHASE_ERROR);
        }
        Ok(())
    }

    /// The memory for the next bytes; `None` if they are to be thrown away.
    pub fn lend(&mut self) -> Option<Lent> {
        if self.discards || self.fault.is_some() {
            return None;
        }
        let filling = self.chunks.iter_mut().find(|filling| filling.filled < filling.len)?;
        filling.chunk.take().map(|chunk| Lent { chunk, filled: filling.filled })
    }

    /// Takes back memory that was lent; `filled` bytes of it are filled now.
    pub fn give_back(&mut self, lent: Lent) {
        if let Some(filling) = self.chunks.iter_mut().find(|filling| filling.chunk.is_none()) {
            filling.filled = lent.filled;
            filling.chunk = Some(lent.chunk);
        }
    }

    /// A Data-Out PDU with this tag was received to its end; with `last` it ends its sequence.
    pub fn end(&mut self, tag: u32, last: bool) {
        let sequence = if tag == NO_TAG { self.unsolicited.as_ref() } else { self.solicited.front() };
        let Some(sequence) = sequence else { return };
        let (next, complete) = (sequence.next, sequence.next == sequence.end);
        match (last, complete, tag == NO_TAG) {
            (false, false, _) => return,
            (true, true, _) => {}
            // An initiator may send less unasked than it could: the rest is asked for.
            (true, false, true) => self.granted = next,
            (true, false, false) => self.fail(Sense::NOT_ENOUGH_UNSOLICITED_DATA),
            (false, true, _) => self.fail(Sense::DATA_PHASE_ERROR),
        }
        if tag == NO_TAG {
            self.unsolicited = None;
        } else {
            self.solicited.pop_front();
        }
    }

    /// The command cannot succeed any more. The first fault counts.
    pub fn fail(&mut self, fault: impl Into<Failure>) {
        self.fault.get_or_insert(fault.into());
    }

    /// Why the command cannot succeed.
    pub fn fault(&self) -> Option<Failure> {
        self.fault
    }

    /// Nobody wants the data any more.
    pub fn discard(&mut self) {
        self.discards = true;
        self.chunks.clear();
    }

    /// Nothing that the initiator was allowed to send is outstanding.
    pub fn is_settled(&self) -> bool {
        self.unsolicited.is_none() && self.solicited.is_empty()
    }

    /// All data was handed to the command.
    pub fn is_exhausted(&self) -> bool {
        self.taken >= self.wanted
    }

    /// Bytes handed to the command.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// R2Ts sent so far.
    pub fn r2ts(&self) -> u32 {
        self.r2t_sn
    }

    /// The next chunk, if it is full.
    pub fn take(&mut self) -> Option<Chunk> {
        self.chunks.front().filter(|filling| filling.filled == filling.len && filling.chunk.is_some())?;
        let chunk = self.chunks.pop_front()?.chunk?;
        self.taken = self.taken.saturating_add(chunk.buf.len() as u32);
        Some(chunk)
    }

    /// A further R2T may be sent once there is memory.
    pub fn may_solicit(&self, outstanding_max: u32) -> bool {
        let outstanding = self.solicited.len() as u64;
        self.unsolicited.is_none() && outstanding < u64::from(outstanding_max) && self.granted < self.wanted
    }

    /// Some memory that was provided has not been asked to be filled.
    pub fn has_room(&self) -> bool {
        self.granted < self.provided
    }

    /// Nothing is to come for which memory is held.
    pub fn is_idle(&self) -> bool {
        self.is_settled() && self.chunks.is_empty()
    }

    /// Asks for the next bytes: the R2T to send under `tag`.
    pub fn solicit(&mut self, tag: u32, burst_bytes_max: u32) -> Solicit {
        let offset_bytes = self.granted;
        let len_bytes = self.provided.saturating_sub(offset_bytes).min(burst_bytes_max);
        let r2t_sn = self.r2t_sn;
        self.granted += len_bytes;
        self.r2t_sn += 1;
        self.solicited.push_back(Sequence { tag, next: offset_bytes, end: self.granted, data_sn: 0 });
        Solicit { r2t_sn, offset_bytes, len_bytes }
    }
}
