//! RFC 7143 by its rows: numbering, text, pings, logout, rejects.

use crate::common::TARGET;
use crate::initiator::{Initiator, cdb, cdb_10, run};
use crate::sessions::{managed, request, start_write, text};
use export::iscsi::pdu::{Bhs, CONTINUE, FINAL, LogoutResponse, NopIn, Reject, TextResponse, opcode};
use export::{PortalGroup, PortalOptions};

/// Any request with the next CmdSN.
fn numbered(initiator: &mut Initiator, opcode: u8) -> Bhs {
    let mut bytes = request(opcode, false);
    bytes[20..24].fill(0xff);
    bytes[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    initiator.cmd_sn = initiator.cmd_sn.wrapping_add(1);
    Bhs::from_bytes(bytes)
}

/// The reason of the Reject that comes next, which carries the header that was refused.
async fn refused(initiator: &mut Initiator, sent: Bhs, data: &[u8]) -> u8 {
    initiator.send(sent, data).await;
    let (bhs, header) = initiator.receive().await.unwrap();
    assert_eq!((bhs.operation(), bhs.task_tag.get()), (opcode::REJECT, u32::MAX));
    assert_eq!(header[..4], sent.to_bytes()[..4]);
    assert_eq!(header[16..], sent.to_bytes()[16..]);
    Reject::of(&bhs).reason
}

#[test]
fn command_numbers_go_round() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.connect();
        initiator.cmd_sn = u32::MAX - 1;
        initiator.login_with(&["InitiatorName=iqn.a", &format!("TargetName={TARGET}")]).await;
        assert_eq!(initiator.max_cmd_sn, 125);
        assert_eq!(initiator.command("00", 0).await.sense_code(), (6, 0x29, 0));
        for lba in 0..5 {
            assert_eq!(initiator.write(lba, &[1; 512]).await.status, 0);
        }
        assert_eq!((initiator.cmd_sn, initiator.max_cmd_sn), (4, 131));
    });
}

#[test]
fn a_window_that_is_full_stays_closed_until_a_command_is_done() {
    run(PortalOptions { commands_max: 2, ..PortalOptions::default() }, |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let (first, tag) = start_write(&mut initiator, 0).await;
        start_write(&mut initiator, 8).await;
        assert_eq!(initiator.max_cmd_sn, initiator.cmd_sn - 1, "closed");
        let above = initiator.scsi(0x40, 8, cdb("25"));
        initiator.send(above, &[]).await;
        let mut ping = request(opcode::NOP_OUT, true);
        ping[20..24].fill(0xff);
        initiator.send(Bhs::from_bytes(ping), &[]).await;
        assert_eq!(initiator.receive().await.unwrap().0.operation(), opcode::NOP_IN, "the command was ignored");
        initiator.sequence(first.task_tag.get(), tag, &[5; 4096], 0, 4096, 4096).await;
        assert_eq!(initiator.finish(&[], 0).await.status, 0);
        assert_eq!(initiator.max_cmd_sn, above.sn.get(), "one more");
        initiator.send(above, &[]).await;
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 8);
    });
}

#[test]
fn the_number_of_a_refused_request_is_used_up() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        for opcode in [0x07, 0x1c, 0x1e] {
            let unknown = numbered(&mut initiator, opcode);
            assert_eq!(refused(&mut initiator, unknown, &[]).await, 0x05, "{opcode:02x}");
        }
        assert_eq!(refused(&mut initiator, Bhs::from_bytes(request(opcode::SNACK, false)), &[]).await, 0x03);
        assert_eq!(initiator.command("00", 0).await.status, 0);
        let mut finder = world.connect();
        finder.login_with(&["InitiatorName=iqn.a", "SessionType=Discovery"]).await;
        for opcode in [opcode::SCSI_COMMAND, opcode::TASK_MANAGEMENT_REQUEST] {
            let scsi = numbered(&mut finder, opcode);
            assert_eq!(refused(&mut finder, scsi, &[]).await, 0x04, "{opcode:02x}: a protocol error in discovery");
        }
        let ask = numbered(&mut finder, opcode::TEXT_REQUEST);
        finder.send(ask, b"SendTargets=All\0").await;
        assert!(String::from_utf8(finder.receive().await.unwrap().1).unwrap().starts_with("TargetName=iqn."));
    });
}

#[test]
fn pings_of_the_initiator() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &["MaxRecvDataSegmentLength=512"]).await;
        let numbered = numbered(&mut initiator, opcode::NOP_OUT);
        initiator.send(numbered, &[0x5a; 600]).await;
        let (bhs, data) = initiator.receive().await.unwrap();
        assert_eq!((bhs.operation(), bhs.task_tag.get(), NopIn::of(&bhs).transfer_tag.get()), (0x20, 0xaaaa, u32::MAX));
        assert_eq!(data, [0x5a; 512], "as much as it takes");
        let mut answer = request(opcode::NOP_OUT, true);
        answer[16..20].fill(0xff);
        answer[23] = 77;
        initiator.send(Bhs::from_bytes(answer), &[]).await;
        assert_eq!(initiator.command("00", 0).await.status, 0, "an answer that nobody waits for has none");
    });
}

#[test]
fn logouts() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let logout = |reason: u8, cid: u16| {
            let mut bytes = request(opcode::LOGOUT_REQUEST, true);
            bytes[1] |= reason;
            bytes[20..22].copy_from_slice(&cid.to_be_bytes());
            Bhs::from_bytes(bytes)
        };
        for reason in [3, 0x7f] {
            assert_eq!(refused(&mut initiator, logout(reason, 0), &[]).await, 0x09, "reason {reason}");
        }
        initiator.send(logout(1, 0), &[]).await;
        let (bhs, _) = initiator.receive().await.unwrap();
        assert_eq!((bhs.operation(), LogoutResponse::of(&bhs).response), (opcode::LOGOUT_RESPONSE, 0));
        assert!(initiator.receive().await.is_none(), "its only connection was the session");
        assert!(world.portal.sessions().is_empty());
    });
}

#[test]
fn send_targets_in_both_kinds_of_session() {
    run(PortalOptions::default(), |world| async move {
        let here = format!("TargetName={TARGET} TargetAddress=192.0.2.1:3260,1 ");
        let mut finder = world.connect();
        finder.login_with(&["InitiatorName=iqn.a", "SessionType=Discovery"]).await;
        let mut normal = world.login("a", &[]).await;
        let named = format!("SendTargets={}\0", TARGET.to_uppercase().replace("IQN.", "iqn."));
        let table: [(&[u8], &str, &str); 5] = [
            (b"SendTargets=All\0", &here, &here),
            (named.as_bytes(), &here, &here),
            (b"SendTargets=\0", "SendTargets=Reject ", &here),
            (b"SendTargets=iqn.other\0", "", ""),
            (
                b"X-a=1\0TargetAlias=x\0",
                "X-a=NotUnderstood TargetAlias=Reject ",
                "X-a=NotUnderstood TargetAlias=Reject ",
            ),
        ];
        for (asked, found, own) in table {
            assert_eq!(text(&mut finder, u32::MAX, asked).await.1, found, "{asked:?}");
            assert_eq!(text(&mut normal, u32::MAX, asked).await.1, own, "{asked:?}");
        }
    });
}

#[test]
fn text_goes_on_over_several_pdus() {
    let addresses = (0..40).map(|n| format!("192.0.2.{n}:3260")).collect();
    let groups = vec![PortalGroup { port: 3260, addresses }];
    run(PortalOptions { groups, ..PortalOptions::default() }, |world| async move {
        let mut initiator = world.login("a", &["MaxRecvDataSegmentLength=512"]).await;
        // The request in two parts.
        let mut part = request(opcode::TEXT_REQUEST, true);
        part[1] = CONTINUE;
        part[20..24].fill(0xff);
        initiator.send(Bhs::from_bytes(part), b"SendTar").await;
        let (bhs, empty) = initiator.receive().await.unwrap();
        let tag = TextResponse::of(&bhs).transfer_tag.get();
        assert_eq!((bhs.operation(), bhs.flags, empty.len(), tag != u32::MAX), (opcode::TEXT_RESPONSE, 0, 0, true));
        // The answer in as many as it takes.
        let (mut bhs, mut all) = text(&mut initiator, tag, b"gets=All\0").await;
        let mut parts = 1;
        while bhs.flags & FINAL == 0 {
            assert_eq!((bhs.flags, bhs.data_len()), (CONTINUE, 512));
            let (next, more) = text(&mut initiator, TextResponse::of(&bhs).transfer_tag.get(), b"").await;
            all += &more;
            (bhs, parts) = (next, parts + 1);
        }
        assert_eq!((parts, TextResponse::of(&bhs).transfer_tag.get()), (3, u32::MAX));
        let expected: String = (0..40).map(|n| format!("TargetAddress=192.0.2.{n}:3260,1 ")).collect();
        assert_eq!(all, format!("TargetName={TARGET} {expected}"));
        // A request that the initiator has not finished, and a new exchange that drops the old.
        let mut open = request(opcode::TEXT_REQUEST, true);
        open[1] = 0;
        open[20..24].fill(0xff);
        initiator.send(Bhs::from_bytes(open), b"X-a=1\0").await;
        let (bhs, answer) = initiator.receive().await.unwrap();
        let old = TextResponse::of(&bhs).transfer_tag.get();
        assert_eq!((bhs.flags, answer.as_slice()), (0, &b"X-a=NotUnderstood\0"[..]));
        assert_eq!(text(&mut initiator, u32::MAX, b"X-b=1\0").await.1, "X-b=NotUnderstood ");
        let (late, _) = text(&mut initiator, old, b"").await;
        assert_eq!((late.operation(), Reject::of(&late).reason), (opcode::REJECT, 4));
        let both = Bhs { flags: FINAL | CONTINUE, ..Bhs::from_bytes(request(opcode::TEXT_REQUEST, true)) };
        assert_eq!(refused(&mut initiator, both, b"").await, 4, "F and C together");
        let nonsense = Bhs { specific_20: [0xff; 4], ..Bhs::from_bytes(request(opcode::TEXT_REQUEST, true)) };
        assert_eq!(refused(&mut initiator, nonsense, b"no key\0").await, 4);
    });
}

#[test]
fn task_management_of_units_and_targets() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        let mut b = world.login("b", &[]).await;
        for (function, response) in [(1, 2), (2, 2), (4, 2), (5, 2), (6, 0)] {
            let mut bytes = request(opcode::TASK_MANAGEMENT_REQUEST, true);
            bytes[1] |= function;
            bytes[9] = 1;
            bytes[24..28].copy_from_slice(&a.cmd_sn.to_be_bytes());
            a.send(Bhs::from_bytes(bytes), &[]).await;
            let (bhs, _) = a.receive().await.unwrap();
            assert_eq!((bhs.operation(), bhs.specific[0]), (0x22, response), "function {function} for LUN 1");
        }
        for initiator in [&mut a, &mut b] {
            assert_eq!(initiator.command("00", 0).await.sense_code(), (6, 0x29, 3), "TARGET WARM RESET");
        }
        start_write(&mut b, 0).await;
        assert_eq!(managed(&mut a, 6, 0, 0).await, 0);
        assert_eq!(b.command("00", 0).await.sense_code(), (6, 0x29, 3), "the session stays, its task does not");
        for function in [0, 13, 0x7f] {
            assert_eq!(managed(&mut a, function, 0, 0).await, 5, "function {function}");
        }
    });
}

/// What was immediate takes no number, and does not wait for its turn.
#[test]
fn an_immediate_command_overtakes_one_that_is_missing() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let missing = initiator.scsi(0x40, 8, cdb("25"));
        let behind = initiator.scsi(0x40, 512, cdb(&cdb_10(0x28, 0, 1)));
        initiator.send(behind, &[]).await;
        let mut at_once = initiator.scsi(0x40, 96, cdb("12 00 00 00 60 00"));
        at_once.opcode |= 0x40;
        initiator.cmd_sn -= 1;
        initiator.send(at_once, &[]).await;
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 96);
        initiator.send(missing, &[]).await;
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 8);
        assert_eq!(initiator.finish(&[], 0).await.data.len(), 512);
    });
}
