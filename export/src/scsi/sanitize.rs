//! SANITIZE by block erase, and what else can be done meanwhile (SBC-4 sections 4.11 and 5.30).

use super::cdb::Command;
use super::lu::Lu;
use super::sense::Sense;
use super::{Failure, Transfer};
use crate::unit::{LogicalUnit, Sanitize, UnitError};

/// What REQUEST SENSE tells of an operation, and what ends other commands.
pub fn sense<U: LogicalUnit>(lu: &Lu<U>) -> Option<Sense> {
    lu.unit.sanitize().map(|sanitize| match sanitize {
        Sanitize::Running { progress } => Sense::sanitize_in_progress(progress),
        Sanitize::Failed { .. } => Sense::SANITIZE_FAILED,
    })
}

/// A failed operation leaves nothing to do but to sanitize again, or to leave it at that.
pub fn check<U: LogicalUnit>(lu: &Lu<U>, command: &Command) -> Result<(), Sense> {
    match (lu.unit.sanitize(), command) {
        (Some(Sanitize::Failed { .. }), Command::Sanitize { .. } | Command::ExitSanitizeFailure) => Ok(()),
        _ => sense(lu).map_or(Ok(()), Err),
    }
}

/// SANITIZE with BLOCK ERASE.
pub async fn block_erase<U: LogicalUnit, T: Transfer>(
    lu: &Lu<U>,
    immediate: bool,
    unrestricted: bool,
    transfer: &mut T,
) -> Result<(), Failure> {
    // Who may not leave a failed operation at that cannot allow it to himself by another.
    if unrestricted && lu.unit.sanitize() == Some(Sanitize::Failed { unrestricted: false }) {
        return Err(Sense::cdb_field(1).into());
    }
    lu.unit.begin_sanitize(unrestricted).await.map_err(failed)?;
    if immediate {
        return Ok(());
    }
    let ended = transfer.unless_aborted(lu.unit.sanitized()).await?;
    ended.map_err(|_| Sense::SANITIZE_FAILED.into())
}

/// SANITIZE with EXIT FAILURE MODE.
pub async fn exit_failure<U: LogicalUnit>(lu: &Lu<U>) -> Result<(), Failure> {
    match lu.unit.sanitize() {
        Some(Sanitize::Failed { unrestricted: true }) => lu.unit.leave_sanitize().await.map_err(failed),
        Some(_) => Err(Sense::cdb_field(1).into()),
        None => Ok(()),
    }
}

fn failed(error: UnitError) -> Failure {
    Failure::of_unit(error, true, 1)
}
