//! SCSI: a direct-access block device with thin provisioning (SPC-4, SBC-3), for any transport.
//!
//! [`cdb`] decodes a command, [`exec`] runs it against a [`LogicalUnit`](crate::LogicalUnit) and moves its data
//! through a [`Transfer`].

pub mod alua;
pub mod block;
pub mod cdb;
pub mod copy;
pub mod exec;
pub mod inquiry;
pub mod locks;
pub mod log;
pub mod lu;
pub mod mode;
pub mod opcodes;
pub mod reserve;
pub mod sanitize;
pub mod sense;
pub mod tasks;
pub mod vpd;

use crate::budget::Chunk;
use crate::unit::UnitError;
use alloc::vec::Vec;
use platform::buf::NoBuffers;
use sense::Sense;

/// A command's status, if it is not CHECK CONDITION (SAM-5 section 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// No resources now: try again.
    Busy = 0x08,
    /// Another initiator has reserved the unit.
    ReservationConflict = 0x18,
    /// It was aborted by another initiator.
    TaskAborted = 0x40,
}

/// Status code of a command that ended with sense data.
pub const CHECK_CONDITION: u8 = 0x02;

/// Why a command did not end with GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// CHECK CONDITION with this sense data.
    Check(Sense),
    /// Another status.
    Status(Status),
    /// It was aborted: there is no response.
    Aborted,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Failure {
        Failure::Check(sense)
    }
}

impl From<NoBuffers> for Failure {
    fn from(_: NoBuffers) -> Failure {
        Failure::Status(Status::Busy)
    }
}

impl Failure {
    /// The answer to a command that the unit failed.
    pub fn of_unit(error: UnitError, writing: bool, block_bytes: u32) -> Failure {
        match error {
            UnitError::Busy => Failure::Status(Status::Busy),
            error => Failure::Check(Sense::of_unit(error, writing, block_bytes)),
        }
    }
}

/// How a command's data gets from and to the initiator. Each call may find that the command was aborted.
#[expect(async_fn_in_trait, reason = "one thread, static dispatch")]
pub trait Transfer {
    /// Announces how many bytes the command returns; answers how many of them the initiator will take.
    fn announce(&mut self, bytes: u64) -> u64;

    /// Memory for data to send or to work with. Waits for it, so the caller must hold none.
    async fn buffer(&self, len_bytes: usize) -> Result<Chunk, Failure>;

    /// Memory for a caller that holds some already: there is some at once, or the command ends with BUSY.
    fn spare(&self, len_bytes: usize) -> Result<Chunk, Failure>;

    /// Waits for something, unless the command is aborted meanwhile.
    async fn unless_aborted<O>(&self, work: impl Future<Output = O>) -> Result<O, Failure>;

    /// Sends the next data of the command. When all that was announced is sent the command has succeeded.
    async fn send(&mut self, chunk: Chunk) -> Result<(), Failure>;

    /// Sends parameter data, all of it at once.
    async fn send_parameters(&mut self, bytes: Vec<u8>) -> Result<(), Failure>;

    /// Bytes of data that the initiator has for the command.
    fn offered(&self) -> u64;

    /// The next data of the command, in order; `None` when all that will come was received.
    async fn receive(&mut self) -> Result<Option<Chunk>, Failure>;
}
