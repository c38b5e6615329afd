//! Sessions: logins, numbering, task management, and how they end.

use crate::common::TARGET;
use crate::initiator::{Initiator, World, cdb, cdb_10, run};
use core::time::Duration;
use export::PortalOptions;
use export::iscsi::pdu::{AsyncMessage, Bhs, LogoutResponse, NopOut, R2t, Reject, TaskManagementResponse, opcode};
use std::cell::Cell;
use std::rc::Rc;

pub fn request(opcode: u8, immediate: bool) -> [u8; 48] {
    let mut bytes = [0; 48];
    bytes[0] = opcode | if immediate { 0x40 } else { 0 };
    bytes[1] = 0x80;
    bytes[16..20].copy_from_slice(&0xaaaau32.to_be_bytes());
    bytes
}

pub async fn text(initiator: &mut Initiator, tag: u32, text: &[u8]) -> (Bhs, String) {
    let mut bytes = request(opcode::TEXT_REQUEST, true);
    bytes[20..24].copy_from_slice(&tag.to_be_bytes());
    initiator.send(Bhs::from_bytes(bytes), text).await;
    let (bhs, text) = initiator.receive().await.unwrap();
    (bhs, String::from_utf8_lossy(&text).replace('\0', " "))
}

pub async fn manage(initiator: &mut Initiator, function: u8, task: u32, ref_cmd_sn: u32) {
    let mut bytes = request(opcode::TASK_MANAGEMENT_REQUEST, true);
    bytes[1] |= function;
    bytes[20..24].copy_from_slice(&task.to_be_bytes());
    bytes[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    bytes[32..36].copy_from_slice(&ref_cmd_sn.to_be_bytes());
    initiator.send(Bhs::from_bytes(bytes), &[]).await;
}

pub async fn managed(initiator: &mut Initiator, function: u8, task: u32, ref_cmd_sn: u32) -> u8 {
    manage(initiator, function, task, ref_cmd_sn).await;
    let (bhs, _) = initiator.receive().await.unwrap();
    assert_eq!(bhs.operation(), opcode::TASK_MANAGEMENT_RESPONSE);
    TaskManagementResponse::of(&bhs).response
}

/// A write whose data is asked for and does not come.
pub async fn start_write(initiator: &mut Initiator, lba: u32) -> (Bhs, u32) {
    let bhs = initiator.scsi(0x20, 4096, cdb(&cdb_10(0x2a, lba, 8)));
    initiator.send(bhs, &[]).await;
    let (pdu, _) = initiator.receive().await.unwrap();
    assert_eq!(pdu.operation(), opcode::R2T);
    (bhs, R2t::of(&pdu).transfer_tag.get())
}

#[test]
fn discovery_shows_what_the_initiator_may_use() {
    run(PortalOptions::default(), |world| async move {
        for (name, listed) in [("iqn.friend", true), ("iqn.stranger", false)] {
            let mut initiator = world.connect();
            let (response, _) =
                initiator.login_with(&[&format!("InitiatorName={name}"), "SessionType=Discovery"]).await;
            assert_eq!(response.status_class, 0);
            let (_, reply) = text(&mut initiator, u32::MAX, b"SendTargets=All\0").await;
            let all = format!("TargetName={TARGET} TargetAddress=192.0.2.1:3260,1 ");
            assert_eq!(reply, if listed { all } else { String::new() });
            let command = initiator.scsi(0, 0, [0; 16]);
            initiator.send(command, &[]).await;
            let (reject, _) = initiator.receive().await.unwrap();
            assert_eq!((reject.operation(), Reject::of(&reject).reason), (opcode::REJECT, 4), "no SCSI here");
        }
    });
}

#[test]
fn logins_to_targets_that_cannot_be_had() {
    run(PortalOptions::default(), |world| async move {
        let table = [
            (vec!["InitiatorName=iqn.a", "TargetName=iqn.other"], (2, 3)),
            (vec!["InitiatorName=iqn.stranger", "TargetName=iqn.2026-11.io.gossamer:disk"], (2, 2)),
            (vec!["InitiatorName=iqn.a"], (2, 7)),
        ];
        for (keys, status) in table {
            let mut initiator = world.connect();
            let (response, _) = initiator.login_with(&keys).await;
            assert_eq!((response.status_class, response.status_detail), status, "{keys:?}");
            assert!(initiator.receive().await.is_none(), "the connection is closed");
        }
        assert!(world.portal.sessions().is_empty());
    });
}

#[test]
fn a_login_that_does_not_come_is_dropped() {
    run(PortalOptions::default(), |world| async move {
        let mut silent = world.connect();
        let start = world.runtime.timers.now();
        assert!(silent.receive().await.is_none());
        assert_eq!(world.runtime.timers.now() - start, Duration::from_secs(15));
    });
}

#[test]
fn the_same_initiator_port_reinstates_its_session() {
    run(PortalOptions::default(), |world| async move {
        let mut old = world.login("a", &[]).await;
        start_write(&mut old, 0).await;
        let mut new = world.login("a", &[]).await;
        assert!(old.receive().await.is_none(), "the old session is over");
        assert_eq!(world.portal.sessions().len(), 1);
        assert_eq!(new.write(0, &[1; 4096]).await.status, 0);
        let mut other = world.connect();
        other.isid = 2;
        let (response, _) = other.login_with(&["InitiatorName=iqn.test:a", &format!("TargetName={TARGET}")]).await;
        assert_eq!(response.status_class, 0);
        assert_eq!(world.portal.sessions().len(), 2, "another ISID is another session");
    });
}

#[test]
fn a_login_that_names_a_session() {
    run(PortalOptions::default(), |world| async move {
        let mut old = world.login("a", &["InitialR2T=No", "MaxBurstLength=4096"]).await;
        assert_eq!(old.command("16", 0).await.status, 0, "RESERVE");
        start_write(&mut old, 0).await;
        let tsih = world.portal.sessions()[0].tsih;
        let keys = ["InitiatorName=iqn.test:a".to_owned(), format!("TargetName={TARGET}"), "InitialR2T=Yes".to_owned()];
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let table = [(tsih + 1, 1, 0, 0x020a), (tsih, 2, 0, 0x020a), (tsih, 1, 7, 0x0206)];
        for (tsih, isid, cid, status) in table {
            let mut other = world.connect();
            (other.tsih, other.isid, other.cid) = (tsih, isid, cid);
            assert_eq!(other.login_with(&keys).await.0.status(), status, "{tsih} {isid} {cid}");
        }
        let mut stranger = world.connect();
        stranger.tsih = tsih;
        let of_b = [&["InitiatorName=iqn.test:b"], &keys[1..]].concat();
        assert_eq!(stranger.login_with(&of_b).await.0.status(), 0x020a, "another initiator's");
        assert_eq!(old.command("00", 0).await.status, 0, "none of them ended it");
        let mut new = world.connect();
        (new.tsih, new.cmd_sn) = (tsih, old.cmd_sn);
        let (response, text) = new.login_with(&keys).await;
        assert_eq!((response.status(), response.tsih.get()), (0, tsih));
        assert!(text.contains("InitialR2T=Reject"), "settled by the leading login: {text}");
        assert!(old.receive().await.is_none(), "its connection was reinstated");
        assert_eq!(new.command("00", 0).await.status, 0, "no unit attention: the nexus is the same");
        let outcome = new.command_out(&cdb_10(0x2a, 0, 16), &[7; 8192], 0, 4096, 4096).await;
        assert_eq!((outcome.status, outcome.r2ts), (0, vec![(4096, 4096)]), "the session's parameters hold");
        let mut other = world.login_only("c", &[]).await;
        assert_eq!(other.command("00", 0).await.sense_code(), (6, 0x29, 0));
        assert_eq!(other.write(0, &[1; 512]).await.status, 0x18, "and so does its reservation");
    });
}

#[test]
fn commands_out_of_the_window_are_ignored_and_early_ones_wait() {
    run(PortalOptions { commands_max: 4, ..PortalOptions::default() }, |world| async move {
        let mut initiator = world.login("a", &[]).await;
        assert_eq!(initiator.max_cmd_sn, initiator.cmd_sn + 3);
        let mut above = initiator.scsi(0, 0, [0; 16]);
        above.sn = (initiator.max_cmd_sn + 1).into();
        initiator.cmd_sn -= 1;
        let mut below = above;
        below.sn = (initiator.cmd_sn - 1).into();
        initiator.send(above, &[]).await;
        initiator.send(below, &[]).await;
        let first = initiator.scsi(0x40, 8, cdb("25"));
        let second = initiator.scsi(0x40, 96, cdb("12 00 00 00 60 00"));
        initiator.send(second, &[]).await;
        initiator.send(first, &[]).await;
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 8, "in the order of their numbers");
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 96);
    });
}

#[test]
fn a_tag_in_use_is_rejected() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let (write, tag) = start_write(&mut initiator, 0).await;
        let mut again = initiator.scsi(0, 0, [0; 16]);
        again.task_tag = write.task_tag;
        initiator.send(again, &[]).await;
        let (reject, _) = initiator.receive().await.unwrap();
        assert_eq!((reject.operation(), Reject::of(&reject).reason), (opcode::REJECT, 7));
        initiator.sequence(write.task_tag.get(), tag, &[5; 4096], 0, 4096, 4096).await;
        assert_eq!(initiator.finish(&[], 0).await.status, 0, "the task itself goes on");
        assert_eq!(initiator.command("00", 0).await.status, 0, "the number of the refused command is used up");
    });
}

#[test]
fn abort_task() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let (write, tag) = start_write(&mut initiator, 0).await;
        let number = write.sn.get();
        assert_eq!(managed(&mut initiator, 1, write.task_tag.get(), number).await, 0);
        initiator.sequence(write.task_tag.get(), tag, &[5; 4096], 0, 4096, 4096).await;
        assert_eq!(managed(&mut initiator, 1, write.task_tag.get(), number).await, 1, "there is no such task now");
        assert_eq!(initiator.command("00", 0).await.status, 0, "no response for the aborted task");
        assert_eq!(world.disk.contents.peek(0, 4096), [0; 4096]);
        // A command that has not arrived: its number is used up.
        let lost = initiator.scsi(0, 0, [0; 16]);
        assert_eq!(managed(&mut initiator, 1, lost.task_tag.get(), lost.sn.get()).await, 0);
        assert_eq!(initiator.command("00", 0).await.status, 0);
    });
}

/// Only a number below the request's own is used up (RFC 7143 section 11.6.1); those above are still to be sent.
#[test]
fn a_command_yet_to_be_sent_is_no_task() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        for ahead in 0..3 {
            let number = initiator.cmd_sn + ahead;
            assert_eq!(managed(&mut initiator, 1, 999, number).await, 1, "task does not exist");
        }
        for _ in 0..3 {
            let answered = world.runtime.timers.timeout(Duration::from_secs(20), initiator.command("00", 0)).await;
            assert_eq!(answered.map(|outcome| outcome.status).ok(), Some(0), "its number was used up");
        }
    });
}

/// No unit, no task of it: nothing is used up.
#[test]
fn abort_task_at_a_unit_that_is_not_there() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let late = initiator.scsi(0, 0, [0; 16]);
        let mut abort = request(opcode::TASK_MANAGEMENT_REQUEST, true);
        (abort[1], abort[9]) = (0x81, 1);
        abort[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
        abort[32..36].copy_from_slice(&late.sn.get().to_be_bytes());
        initiator.send(Bhs::from_bytes(abort), &[]).await;
        let (answer, _) = initiator.receive().await.unwrap();
        assert_eq!(TaskManagementResponse::of(&answer).response, 2, "LUN does not exist");
        initiator.send(late, &[]).await;
        let answered = world.runtime.timers.timeout(Duration::from_secs(20), initiator.finish(&[], 0)).await;
        assert_eq!(answered.map(|outcome| outcome.status).ok(), Some(0));
    });
}

#[test]
fn task_sets_and_resets() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        let mut b = world.login("b", &[]).await;
        start_write(&mut a, 0).await;
        start_write(&mut b, 8).await;
        assert_eq!(managed(&mut a, 2, 0, 0).await, 0, "ABORT TASK SET ends a's");
        assert_eq!(managed(&mut a, 4, 0, 0).await, 0, "CLEAR TASK SET ends b's");
        assert_eq!(b.command("00", 0).await.sense_code(), (6, 0x2f, 0));
        assert_eq!(a.command("00", 0).await.status, 0);
        start_write(&mut b, 8).await;
        assert_eq!(managed(&mut a, 5, 0, 0).await, 0, "LOGICAL UNIT RESET");
        for initiator in [&mut a, &mut b] {
            assert_eq!(initiator.command("00", 0).await.sense_code(), (6, 0x29, 3));
            assert_eq!(initiator.command("00", 0).await.status, 0);
        }
        assert_eq!(managed(&mut a, 8, 0, 0).await, 4, "TASK REASSIGN");
        assert_eq!(managed(&mut a, 3, 0, 0).await, 5, "CLEAR ACA");
        assert_eq!(managed(&mut a, 9, 0, 0).await, 5, "QUERY TASK is of protocol level 2");
        manage(&mut a, 7, 0, 0).await;
        assert_eq!(a.receive().await.unwrap().0.operation(), opcode::TASK_MANAGEMENT_RESPONSE);
        assert!(a.receive().await.is_none() && b.receive().await.is_none(), "TARGET COLD RESET drops all");
    });
}

#[test]
fn queries_of_protocol_level_2() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &["iSCSIProtocolLevel=2"]).await;
        assert_eq!(managed(&mut initiator, 10, 0, 0).await, 0);
        let (write, _) = start_write(&mut initiator, 0).await;
        assert_eq!(managed(&mut initiator, 9, write.task_tag.get(), 0).await, 7);
        assert_eq!(managed(&mut initiator, 10, 0, 0).await, 7);
        assert_eq!(managed(&mut initiator, 12, 0, 0).await, 0);
        assert_eq!(managed(&mut initiator, 11, 0, 0).await, 0, "I_T NEXUS RESET");
        assert_eq!(managed(&mut initiator, 12, 0, 0).await, 7);
        assert_eq!(initiator.command("00", 0).await.sense_code(), (6, 0x29, 7));
    });
}

#[test]
fn ordered_commands_wait_for_those_before_them() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let (write, tag) = start_write(&mut initiator, 0).await;
        let mut ordered = initiator.scsi(0x40, 4096, cdb(&cdb_10(0x28, 0, 8)));
        ordered.flags = ordered.flags & !7 | 2;
        initiator.send(ordered, &[]).await;
        let behind = initiator.scsi(0x40, 96, cdb("12 00 00 00 60 00"));
        initiator.send(behind, &[]).await;
        let mut waiting = initiator.scsi(0x40, 512, cdb(&cdb_10(0x28, 0, 1)));
        waiting.flags = waiting.flags & !7 | 2;
        initiator.send(waiting, &[]).await;
        assert_eq!(
            managed(&mut initiator, 1, waiting.task_tag.get(), waiting.sn.get()).await,
            0,
            "aborted while waiting"
        );
        let mut head = initiator.scsi(0x40, 8, cdb("25"));
        head.flags = head.flags & !7 | 3;
        initiator.send(head, &[]).await;
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 8, "head of queue overtakes");
        initiator.sequence(write.task_tag.get(), tag, &[5; 4096], 0, 4096, 4096).await;
        assert_eq!(initiator.finish(&[], 0).await.status, 0);
        assert_eq!(initiator.finish(&[], 0).await.data, [5; 4096], "the ordered read sees the write");
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 96);
    });
}

#[test]
fn logout() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let ask = async |initiator: &mut Initiator, reason: u8, cid: u8| {
            let mut bytes = request(opcode::LOGOUT_REQUEST, true);
            bytes[1] |= reason;
            bytes[21] = cid;
            initiator.send(Bhs::from_bytes(bytes), &[]).await;
            let (bhs, _) = initiator.receive().await.unwrap();
            assert_eq!(bhs.operation(), opcode::LOGOUT_RESPONSE);
            LogoutResponse::of(&bhs).response
        };
        start_write(&mut initiator, 0).await;
        assert_eq!(ask(&mut initiator, 1, 9).await, 1, "no such connection");
        assert_eq!(ask(&mut initiator, 2, 0).await, 2, "no recovery");
        assert_eq!(ask(&mut initiator, 0, 0).await, 0, "answered though a write is outstanding");
        assert!(initiator.receive().await.is_none());
        assert!(world.portal.sessions().is_empty());
    });
}

#[test]
fn pings_both_ways() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let mut ping = request(opcode::NOP_OUT, true);
        ping[20..24].fill(0xff);
        initiator.send(Bhs::from_bytes(ping), b"hello").await;
        let (bhs, data) = initiator.receive().await.unwrap();
        assert_eq!((bhs.operation(), bhs.task_tag.get(), data.as_slice()), (opcode::NOP_IN, 0xaaaa, &b"hello"[..]));
        let start = world.runtime.timers.now();
        for _ in 0..3 {
            let (asked, _) = initiator.receive().await.unwrap();
            assert_eq!((asked.operation(), asked.task_tag.get()), (opcode::NOP_IN, u32::MAX));
            let mut answer = request(opcode::NOP_OUT, true);
            answer[16..20].fill(0xff);
            answer[20..24].copy_from_slice(&NopOut::of(&asked).transfer_tag.get().to_be_bytes());
            initiator.send(Bhs::from_bytes(answer), &[]).await;
        }
        while initiator.receive().await.is_some() {}
        let silent = world.runtime.timers.now() - start;
        assert!(silent >= Duration::from_secs(4 * 30) && silent <= Duration::from_secs(6 * 30), "{silent:?}");
        assert!(world.portal.sessions().is_empty(), "one that does not answer is gone");
    });
}

#[test]
fn text_in_the_full_feature_phase() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &["MaxRecvDataSegmentLength=512"]).await;
        let own = format!("TargetName={TARGET} TargetAddress=192.0.2.1:3260,1 ");
        assert_eq!(text(&mut initiator, u32::MAX, b"SendTargets=\0").await.1, own);
        assert_eq!(text(&mut initiator, u32::MAX, b"SendTargets=iqn.x\0X-y=1\0").await.1, "X-y=NotUnderstood ");
        let (bhs, _) = text(&mut initiator, 77, b"SendTargets=\0").await;
        assert_eq!((bhs.operation(), Reject::of(&bhs).reason), (opcode::REJECT, 4), "no exchange has this tag");
    });
}

#[test]
fn the_portal_ends_sessions() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        start_write(&mut a, 0).await;
        assert_eq!(world.portal.sessions()[0].target.as_deref(), Some(TARGET));
        world.portal.end_sessions(Some(TARGET), |_| false).await;
        assert_eq!(farewell(&mut a).await, [(1, 2), (3, 0)]);
        assert!(world.portal.sessions().is_empty());
        let mut b = world.login("b", &[]).await;
        let start = world.runtime.timers.now();
        world.portal.shutdown().await;
        assert_eq!(world.runtime.timers.now() - start, Duration::from_secs(2), "so long it may log out");
        assert_eq!(farewell(&mut b).await, [(1, 2), (3, 0)]);
        let mut late = world.connect();
        let (response, _) = late.login_with(&["InitiatorName=iqn.c", &format!("TargetName={TARGET}")]).await;
        assert_eq!((response.status_class, response.status_detail), (3, 1));
    });
}

/// The asynchronous messages until the end of the stream: event and parameter 3.
async fn farewell(initiator: &mut Initiator) -> Vec<(u8, u16)> {
    let mut told = Vec::new();
    while let Some((bhs, _)) = initiator.receive().await {
        assert_eq!((bhs.operation(), bhs.task_tag.get()), (opcode::ASYNC, u32::MAX));
        let message = AsyncMessage::of(&bhs);
        told.push((message.event, message.parameter_3.get()));
    }
    told
}

#[test]
fn who_logs_out_when_asked_to_is_not_waited_for() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        let other = world.login("b", &[]).await;
        let portal = world.portal.clone();
        let ended = Rc::new(Cell::new(false));
        let told = ended.clone();
        world.runtime.spawner.spawn(async move {
            portal.end_sessions(Some(TARGET), |peer| peer.initiator.ends_with('b')).await;
            told.set(true);
        });
        let (asked, _) = a.receive().await.unwrap();
        assert_eq!((AsyncMessage::of(&asked).event, AsyncMessage::of(&asked).parameter_3.get()), (1, 2));
        assert_eq!(a.write(0, &[1; 512]).await.status, 0, "it is still served");
        let start = world.runtime.timers.now();
        a.send(Bhs::from_bytes(request(opcode::LOGOUT_REQUEST, true)), &[]).await;
        assert_eq!(a.receive().await.unwrap().0.operation(), opcode::LOGOUT_RESPONSE);
        assert!(a.receive().await.is_none());
        while !ended.get() {
            world.runtime.timers.sleep(Duration::from_millis(1)).await;
        }
        assert!(world.runtime.timers.now() - start < Duration::from_millis(100));
        assert_eq!(world.portal.sessions().len(), 1, "the other is admitted still");
        drop(other);
    });
}

/// One initiator asks for much and takes none of it; another is served all the same.
#[test]
fn one_that_does_not_read_costs_the_others_nothing() {
    let options = PortalOptions { payload_bytes_max: 2 << 20, ..PortalOptions::default() };
    run(options, |world: World| async move {
        let mut stalled = world.login("stalled", &[]).await;
        let mut writing = world.login("writing", &[]).await;
        for _ in 0..60 {
            let read = stalled.scsi(0x40, 1 << 20, cdb(&cdb_10(0x28, 0, 2048)));
            stalled.send(read, &[]).await;
            let write = writing.scsi(0x20, 1 << 20, cdb(&cdb_10(0x2a, 0, 2048)));
            writing.send(write, &[]).await;
        }
        let start = world.runtime.timers.now();
        let mut good = world.login("good", &[]).await;
        for lba in 0..50 {
            assert_eq!(good.write(lba * 128, &[lba as u8; 65_536]).await.status, 0);
            assert_eq!(good.read(lba * 128, 128).await.data, [lba as u8; 65_536]);
        }
        assert_eq!(world.runtime.timers.now(), start, "without waiting for anybody's timeout");
    });
}

/// The disk hangs, and writes hold all memory: pings are answered, writes end with BUSY, and all is well afterwards.
#[test]
fn without_memory_commands_are_refused_and_pings_answered() {
    let options = PortalOptions { payload_bytes_max: 512 << 10, ..PortalOptions::default() };
    run(options, |world: World| async move {
        let mut initiator = world.login("a", &["InitialR2T=No"]).await;
        world.disk.slow.set(Some(world.runtime.timers.clone()));
        world.disk.hangs.set(true);
        for lba in 0..8u32 {
            let write = initiator.scsi(0x20, 65_536, cdb(&cdb_10(0x2a, lba * 128, 128)));
            initiator.send(write, &[7; 65_536]).await;
        }
        let mut ping = request(opcode::NOP_OUT, true);
        ping[20..24].fill(0xff);
        initiator.send(Bhs::from_bytes(ping), &[]).await;
        let start = world.runtime.timers.now();
        let mut answers = Vec::new();
        for _ in 0..5 {
            let (bhs, _) = initiator.receive().await.unwrap();
            answers.push((bhs.operation(), bhs.specific[1]));
        }
        answers.sort();
        assert_eq!(answers, [(opcode::NOP_IN, 0), (0x21, 8), (0x21, 8), (0x21, 8), (0x21, 8)], "BUSY");
        assert!(world.runtime.timers.now() - start <= Duration::from_secs(2));
        world.disk.hangs.set(false);
        for _ in 0..4 {
            assert_eq!(initiator.finish(&[], 0).await.status, 0);
        }
        assert_eq!(initiator.write(0, &[9; 65_536]).await.status, 0);
    });
}
