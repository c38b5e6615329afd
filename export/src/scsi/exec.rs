//! Running a command: who may, and those that move no blocks.

use super::block;
use super::cdb::{Command, ModeSense};
use super::copy::{self, Neighbours};
use super::lu::{Lu, Nexus};
use super::reserve::{Known, Refused, Request};
use super::sense::Sense;
use super::{Failure, Status, Transfer, alua, inquiry, log, mode, opcodes, sanitize, vpd};
use crate::unit::LogicalUnit;
use alloc::rc::Rc;
use alloc::vec::Vec;

/// The LUN that every target has.
pub const LUN_0: [u8; 8] = [0; 8];

/// Runs a decoded command that came in over `nexus` for `lun`. GOOD if it returns without failure.
pub async fn execute<U: LogicalUnit, T: Transfer>(
    lu: &Rc<Lu<U>>,
    nexus: &Rc<Nexus>,
    neighbours: &dyn Neighbours<U>,
    lun: [u8; 8],
    command: Result<Command, Sense>,
    transfer: &mut T,
) -> Result<(), Failure> {
    let present = lun == LUN_0;
    match &command {
        // These are answered whatever is wrong with the unit.
        Ok(Command::Inquiry { page, allocation }) => {
            return parameters(transfer, inquire(lu, nexus, present, *page)?, *allocation).await;
        }
        Ok(Command::ReportLuns { select, allocation }) => {
            return parameters(transfer, luns(*select)?, *allocation).await;
        }
        Ok(Command::RequestSense { descriptor, allocation }) => {
            let sense = match present {
                true => nexus.take_attention().or_else(|| sanitize::sense(lu)).unwrap_or(Sense::NO_SENSE),
                false => Sense::LUN_NOT_SUPPORTED,
            };
            return parameters(transfer, sense.encode(*descriptor), *allocation).await;
        }
        _ if !present => return Err(Sense::LUN_NOT_SUPPORTED.into()),
        _ => {}
    }
    if let Some(attention) = nexus.take_attention() {
        return Err(attention.into());
    }
    let command = command?;
    sanitize::check(lu, &command)?;
    if lu.conflicts(nexus, &command) {
        return Err(Failure::Status(Status::ReservationConflict));
    }
    if command.writes() {
        writable(lu)?;
    }
    match command {
        Command::ModeSense(request) => mode_sense(lu, &request, transfer).await,
        Command::LogSense(request) => {
            let data = log::sense(&request, &lu.unit.attributes(), lu.unit.space())?;
            parameters(transfer, data, request.allocation).await
        }
        Command::ModeSelect { long, save, .. } => mode_select(lu, nexus, long, save, transfer).await,
        Command::ReadCapacity10 => parameters(transfer, capacity_10(lu), 8).await,
        Command::ReadCapacity16 { allocation } => parameters(transfer, capacity_16(lu), allocation).await,
        Command::ReportOpcodes(request) => parameters(transfer, opcodes::report(&request)?, request.allocation).await,
        Command::ReportTaskManagement { extended, allocation } => {
            parameters(transfer, task_management(extended), allocation).await
        }
        Command::ReportTargetPortGroups { extended, allocation } => {
            parameters(transfer, alua::report(&lu.target_ports, extended), allocation).await
        }
        Command::ReceiveDiagnosticResults { allocation } => {
            parameters(transfer, alloc::vec![0, 0, 0, 1, 0], allocation).await
        }
        Command::ReadDefectData10 { request, allocation } => {
            parameters(transfer, alloc::vec![0, request & 0x1f, 0, 0], allocation).await
        }
        Command::ReadDefectData12 { request, allocation } => {
            parameters(transfer, alloc::vec![0, request & 0x1f, 0, 0, 0, 0, 0, 0], allocation).await
        }
        Command::PersistentReserveIn { action, allocation } => {
            parameters(transfer, persistent_reserve_in(lu, action)?, allocation).await
        }
        Command::PersistentReserveOut { action, scope_and_type, .. } => {
            persistent_reserve_out(lu, nexus, action, scope_and_type, transfer).await
        }
        Command::ExtendedCopy { list_bytes } if list_bytes > copy::limits::LIST_BYTES_MAX => {
            Err(Sense::PARAMETER_LIST_LENGTH.into())
        }
        Command::ExtendedCopy { .. } => copy::extended_copy(lu, nexus, neighbours, transfer).await,
        Command::CopyOperatingParameters { allocation } => {
            parameters(transfer, copy::limits::operating_parameters(), allocation).await
        }
        Command::CopyStatus { list_id, allocation } => {
            parameters(transfer, nexus.copies.status(list_id).ok_or(Sense::cdb_field(2))?, allocation).await
        }
        Command::CopyFailure { list_id, allocation } => {
            parameters(transfer, nexus.copies.failure(list_id).ok_or(Sense::cdb_field(2))?, allocation).await
        }
        Command::Sanitize { immediate, unrestricted } => {
            sanitize::block_erase(lu, immediate, unrestricted, transfer).await
        }
        Command::ExitSanitizeFailure => sanitize::exit_failure(lu).await,
        Command::Reserve => reserve(lu, nexus).await,
        Command::Release => release(lu, nexus),
        // There is nothing to be stopped, but there may be something to be flushed before.
        Command::TestUnitReady | Command::StartStopUnit { flush: false, .. } | Command::SendDiagnostic => Ok(()),
        command => block::execute(lu, command, transfer).await,
    }
}

/// Writes are taken.
pub fn writable<U: LogicalUnit>(lu: &Lu<U>) -> Result<(), Sense> {
    if lu.unit.attributes().read_only {
        return Err(Sense::WRITE_PROTECTED);
    }
    if lu.mode.get().write_protect { Err(Sense::SOFTWARE_WRITE_PROTECTED) } else { Ok(()) }
}

/// Sends parameter data, cut to the allocation length.
pub async fn parameters<T: Transfer>(transfer: &mut T, mut data: Vec<u8>, allocation: u32) -> Result<(), Failure> {
    data.truncate(usize::try_from(allocation).unwrap_or(usize::MAX));
    transfer.announce(data.len() as u64);
    transfer.send_parameters(data).await
}

/// Receives all of a parameter list.
pub async fn parameter_list<T: Transfer>(transfer: &mut T) -> Result<Vec<u8>, Failure> {
    let mut list = Vec::new();
    while let Some(chunk) = transfer.receive().await? {
        list.extend_from_slice(&chunk.buf);
    }
    Ok(list)
}

fn inquire<U: LogicalUnit>(lu: &Lu<U>, nexus: &Nexus, present: bool, page: Option<u8>) -> Result<Vec<u8>, Sense> {
    let identity = lu.unit.identity();
    let Some(code) = page else { return Ok(inquiry::standard(&identity, present, lu.target_ports.len() > 1)) };
    if !present {
        return Err(Sense::LUN_NOT_SUPPORTED);
    }
    let attributes = lu.unit.attributes();
    let target_port = nexus.path.target_port;
    let subject = vpd::Subject { attributes, identity: &identity, target: &lu.target, target_port };
    vpd::page(code, &subject).ok_or(Sense::cdb_field(2))
}

/// LUN 0 is the only one, and there are no well-known or administrative units.
fn luns(select: u8) -> Result<Vec<u8>, Sense> {
    match select {
        0x00 | 0x02 | 0x11 => Ok([[0, 0, 0, 8, 0, 0, 0, 0], LUN_0].concat()),
        0x01 | 0x10 | 0x12 => Ok(alloc::vec![0; 8]),
        _ => Err(Sense::cdb_field(2)),
    }
}

fn mode_values<U: LogicalUnit>(lu: &Lu<U>) -> mode::Values {
    mode::Values { attributes: lu.unit.attributes(), space: lu.unit.space(), state: lu.mode.get() }
}

async fn mode_sense<U: LogicalUnit, T: Transfer>(
    lu: &Lu<U>,
    request: &ModeSense,
    transfer: &mut T,
) -> Result<(), Failure> {
    let data = mode::sense(request, &mode_values(lu))?;
    parameters(transfer, data, request.allocation).await
}

async fn mode_select<U: LogicalUnit, T: Transfer>(
    lu: &Lu<U>,
    nexus: &Nexus,
    long: bool,
    save: bool,
    transfer: &mut T,
) -> Result<(), Failure> {
    if save {
        return Err(Sense::cdb_field(1).into());
    }
    let list = parameter_list(transfer).await?;
    let before = mode_values(lu);
    let after = mode::select(long, &list, &before)?;
    if after != before.state {
        lu.mode.set(after);
        lu.attend(Sense::MODE_PARAMETERS_CHANGED, |other| !other.is(nexus));
    }
    Ok(())
}

/// RESERVE of SPC-2, which does not mix with persistent reservations.
async fn reserve<U: LogicalUnit>(lu: &Lu<U>, nexus: &Rc<Nexus>) -> Result<(), Failure> {
    let _alone = lu.reserving.acquire(1).await;
    // Things may have changed meanwhile.
    if lu.reservations.borrow().is_used() || lu.conflicts(nexus, &Command::Reserve) {
        return Err(Failure::Status(Status::ReservationConflict));
    }
    lu.hold(nexus);
    Ok(())
}

/// RELEASE of SPC-2. Where there are registrations it conflicts, as RESERVE does (CRH is 0).
fn release<U: LogicalUnit>(lu: &Lu<U>, nexus: &Nexus) -> Result<(), Failure> {
    if lu.reservations.borrow().is_used() {
        return Err(Failure::Status(Status::ReservationConflict));
    }
    lu.let_go(nexus);
    Ok(())
}

/// A unit that is reserved by RESERVE takes no persistent reservations, not even from who reserved it.
fn not_reserved<U: LogicalUnit>(lu: &Lu<U>) -> Result<(), Failure> {
    if lu.holder().is_some() { Err(Failure::Status(Status::ReservationConflict)) } else { Ok(()) }
}

fn persistent_reserve_in<U: LogicalUnit>(lu: &Lu<U>, action: u8) -> Result<Vec<u8>, Failure> {
    not_reserved(lu)?;
    let reservations = lu.reservations.borrow();
    Ok(match action {
        0 => reservations.keys(),
        1 => reservations.reservation(),
        2 => reservations.capabilities(lu.unit.kept_reservations().is_some()),
        _ => reservations.full_status(),
    })
}

async fn persistent_reserve_out<U: LogicalUnit, T: Transfer>(
    lu: &Lu<U>,
    nexus: &Nexus,
    action: u8,
    scope_and_type: u8,
    transfer: &mut T,
) -> Result<(), Failure> {
    let list = transfer.receive().await?;
    let effects = {
        let _alone = lu.reserving.acquire(1).await;
        not_reserved(lu)?;
        // Not before: who waits has the list only, in memory that is counted.
        let parameters = list.as_ref().map_or(&[][..], |chunk| &chunk.buf);
        let request = Request::new(action, scope_and_type, parameters, lu.unit.kept_reservations().is_some())?;
        drop(list);
        let before = lu.reservations.borrow().clone();
        let mut after = before.clone();
        let known = Known { target_ports: &lu.target_ports, initiators: &lu.initiators() };
        let effects = after.out(&nexus.path, &request, known).map_err(|refused| match refused {
            Refused::Conflict => Failure::Status(Status::ReservationConflict),
            Refused::Check(sense) => sense.into(),
        })?;
        if after.kept() != before.kept() {
            // What is to outlive a power cut does before anybody knows of it.
            lu.unit.keep_reservations(after.kept()).await.map_err(|e| Failure::of_unit(e, true, 1))?;
        }
        *lu.reservations.borrow_mut() = after;
        effects
    };
    for (path, attention) in &effects.attentions {
        lu.attend(*attention, |other| other.path == *path);
    }
    lu.tasks.abort(|other| effects.aborts.contains(&other.path)).await;
    Ok(())
}

fn capacity_10<U: LogicalUnit>(lu: &Lu<U>) -> Vec<u8> {
    let attributes = lu.unit.attributes();
    let last = u32::try_from(attributes.blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), attributes.block_bytes.to_be_bytes()].concat()
}

fn capacity_16<U: LogicalUnit>(lu: &Lu<U>) -> Vec<u8> {
    let attributes = lu.unit.attributes();
    let mut data = Vec::with_capacity(32);
    data.extend(attributes.blocks.saturating_sub(1).to_be_bytes());
    data.extend(attributes.block_bytes.to_be_bytes());
    let per_physical = (attributes.physical_block_bytes / attributes.block_bytes.max(1)).max(1);
    // LBPME and LBPRZ.
    data.extend([0, per_physical.ilog2() as u8, if attributes.is_thin() { 0xc0 } else { 0 }, 0]);
    data.resize(32, 0);
    data
}

/// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK, TARGET RESET; of the second
/// byte I_T NEXUS RESET, QUERY TASK SET and QUERY ASYNCHRONOUS EVENT.
fn task_management(extended: bool) -> Vec<u8> {
    let mut data = alloc::vec![0xde, 0x07, 0, 0];
    if extended {
        data.extend([0; 12]);
        if let Some(additional) = data.get_mut(3) {
            *additional = 0x0c;
        }
    }
    data
}
