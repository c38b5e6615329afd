//! Task management (RFC 7143 section 11.5, SAM-5 section 7).

use super::connection::Scsi;
use super::link::Link;
use super::pdu::{Bhs, FINAL, TaskManagementRequest, TaskManagementResponse};
use super::send::{Outgoing, Payload};
use crate::scsi::exec::LUN_0;
use crate::scsi::sense::Sense;
use crate::session::Session;
use crate::unit::LogicalUnit;
use alloc::rc::Rc;

const ABORT_TASK: u8 = 1;
const ABORT_TASK_SET: u8 = 2;
const CLEAR_TASK_SET: u8 = 4;
const LOGICAL_UNIT_RESET: u8 = 5;
const TARGET_WARM_RESET: u8 = 6;
const TARGET_COLD_RESET: u8 = 7;
const TASK_REASSIGN: u8 = 8;
const QUERY_TASK: u8 = 9;
const QUERY_TASK_SET: u8 = 10;
const I_T_NEXUS_RESET: u8 = 11;
const QUERY_ASYNCHRONOUS_EVENT: u8 = 12;

/// Responses (RFC 7143 section 11.6.1, RFC 7144).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Response {
    Complete = 0,
    NoTask = 1,
    NoUnit = 2,
    NoReassignment = 4,
    NotSupported = 5,
    Succeeded = 7,
}

/// Starts a task management function, which was [begun](Link::begin_management). It runs beside the commands, whose data
/// must go on arriving. It may make it the turn of requests that arrived early.
pub fn start<U: LogicalUnit>(link: Rc<Link>, session: Rc<Session>, scsi: Scsi<U>, bhs: &Bhs) {
    let request = *TaskManagementRequest::of(bhs);
    let skipped = skip(&link, &request);
    link.runtime.clone().spawner.spawn(async move {
        let response = if skipped { Response::Complete } else { run(&link, &scsi, &request).await };
        log::debug!("iscsi: task management function {} ended with {response:?}", request.function & !FINAL);
        let answer = TaskManagementResponse {
            response: response as u8,
            task_tag: request.task_tag,
            ..TaskManagementResponse::new()
        };
        link.send(Outgoing::status(answer.into_bhs(), Payload::None)).await;
        link.end_management();
        if request.function & !FINAL == TARGET_COLD_RESET {
            session.close_target();
        }
    });
}

/// A command to be aborted that was sent before the request and has not arrived will never run: its number is used up. One
/// that is still to be sent may have any number from the request's own on.
fn skip(link: &Link, request: &TaskManagementRequest) -> bool {
    let number = request.ref_cmd_sn.get();
    let is_before = number.wrapping_sub(request.cmd_sn.get()) > u32::MAX / 2;
    request.function & !FINAL == ABORT_TASK
        && request.lun == LUN_0
        && is_before
        && link.task(request.referenced_task_tag.get()).is_none()
        && link.skip(number)
}

async fn run<U: LogicalUnit>(link: &Rc<Link>, scsi: &Scsi<U>, request: &TaskManagementRequest) -> Response {
    let Scsi { lu, nexus, .. } = scsi;
    let function = request.function & !FINAL;
    let whole_target = matches!(function, TARGET_WARM_RESET | TARGET_COLD_RESET | I_T_NEXUS_RESET);
    if request.lun != LUN_0 && !whole_target {
        return Response::NoUnit;
    }
    if function > TASK_REASSIGN && link.params().protocol_level < 2 {
        return Response::NotSupported;
    }
    match function {
        ABORT_TASK => return abort_task(link, request).await,
        ABORT_TASK_SET => lu.tasks.abort(|other| other.is(nexus)).await,
        CLEAR_TASK_SET => {
            let others = lu.tasks.others(nexus);
            lu.tasks.abort(|_| true).await;
            lu.attend(Sense::COMMANDS_CLEARED, |other| others.iter().any(|cleared| cleared.is(other)));
        }
        LOGICAL_UNIT_RESET | TARGET_WARM_RESET | TARGET_COLD_RESET => lu.reset().await,
        TASK_REASSIGN => return Response::NoReassignment,
        QUERY_TASK if link.task(request.referenced_task_tag.get()).is_some() => return Response::Succeeded,
        QUERY_TASK_SET if lu.tasks.has_tasks_of(nexus) => return Response::Succeeded,
        QUERY_ASYNCHRONOUS_EVENT if nexus.has_attention() => return Response::Succeeded,
        QUERY_TASK | QUERY_TASK_SET | QUERY_ASYNCHRONOUS_EVENT => {}
        I_T_NEXUS_RESET => {
            lu.tasks.abort(|other| other.is(nexus)).await;
            lu.let_go(nexus);
            nexus.attend(Sense::NEXUS_LOSS);
        }
        _ => return Response::NotSupported,
    }
    Response::Complete
}

async fn abort_task(link: &Rc<Link>, request: &TaskManagementRequest) -> Response {
    let Some(task) = link.task(request.referenced_task_tag.get()) else { return Response::NoTask };
    task.control.abort();
    link.task_ended(&task).await;
    Response::Complete
}
