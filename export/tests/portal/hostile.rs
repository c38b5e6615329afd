//! Peers that break the protocol: their connection ends, nobody else's does.

use crate::initiator::{World, run};
use embedded_io_async::Write;
use export::PortalOptions;
use export::iscsi::pdu::{Reject, opcode};
use proptest::prelude::*;

/// A session that notices if the portal suffers.
async fn still_well(world: &World) {
    let mut well = world.login("well", &[]).await;
    assert_eq!(well.write(64, &[3; 512]).await.status, 0);
    assert_eq!(well.read(64, 1).await.data, [3; 512]);
}

#[test]
fn requests_out_of_place() {
    run(PortalOptions::default(), |world| async move {
        for opcode in (0..=0x3f).filter(|opcode| *opcode != opcode::LOGIN_REQUEST) {
            let mut early = world.connect();
            let mut bytes = [0; 48];
            bytes[0] = opcode;
            early.writer.write_all(&bytes).await.unwrap();
            assert!(early.receive().await.is_none(), "opcode {opcode:02x} before the login");
        }
        let mut initiator = world.login("a", &[]).await;
        for (opcode, reason) in [(opcode::SNACK, 3), (0x1c, 5), (0x3f, 5), (0x07, 5)] {
            let mut bytes = [0; 48];
            bytes[0] = 0x40 | opcode;
            initiator.writer.write_all(&bytes).await.unwrap();
            let (reject, header) = initiator.receive().await.unwrap();
            assert_eq!((reject.operation(), Reject::of(&reject).reason), (opcode::REJECT, reason), "{opcode:02x}");
            assert_eq!(header, bytes);
        }
        let mut bytes = [0; 48];
        bytes[0] = 0x40 | opcode::LOGIN_REQUEST;
        initiator.writer.write_all(&bytes).await.unwrap();
        let (reject, _) = initiator.receive().await.unwrap();
        assert_eq!(Reject::of(&reject).reason, 4, "a second login");
        assert!(initiator.receive().await.is_none());
        still_well(&world).await;
    });
}

#[test]
fn a_segment_longer_than_declared() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let mut bytes = [0; 48];
        bytes[0] = 0x40;
        bytes[5] = 0xff;
        initiator.writer.write_all(&bytes).await.unwrap();
        let (reject, _) = initiator.receive().await.unwrap();
        assert_eq!(Reject::of(&reject).reason, 4);
        assert!(initiator.receive().await.is_none());
        let mut early = world.connect();
        bytes[0] = 0x43;
        early.writer.write_all(&bytes).await.unwrap();
        assert!(early.receive().await.is_none());
        still_well(&world).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_before_the_login(bytes in proptest::collection::vec(0u8.., 0..400)) {
        run(PortalOptions::default(), |world| async move {
            let mut initiator = world.connect();
            // The connection may be closed while we are sending.
            let _ = initiator.writer.write_all(&bytes).await;
            drop(initiator);
            still_well(&world).await;
        });
    }

    /// Whole PDUs with any headers, so that everything behind the framing is reached.
    #[test]
    fn any_pdus_after_the_login(
        pdus in proptest::collection::vec(
            (
                prop_oneof![Just(0x00u8), Just(0x01), Just(0x41), Just(0x42), Just(0x44), Just(0x05), Just(0x46), 0u8..],
                0u8..,
                proptest::array::uniform32(prop_oneof![Just(0u8), Just(0xff), Just(1), 0u8..]),
                0usize..1500,
                0u32..5,
                any::<bool>(),
            ),
            1..12,
        )
    ) {
        run(PortalOptions::default(), |world| async move {
            let mut initiator = world.login("a", &["InitialR2T=No"]).await;
            for (opcode, flags, rest, len, ahead, plausible) in pdus {
                let mut bytes = [0; 48];
                bytes[0] = opcode;
                bytes[1] = flags;
                bytes[16..48].copy_from_slice(&rest);
                if plausible {
                    let number = initiator.cmd_sn.wrapping_add(ahead);
                    bytes[24..28].copy_from_slice(&number.to_be_bytes());
                    bytes[16..23].fill(0);
                    initiator.cmd_sn = initiator.cmd_sn.wrapping_add(1);
                }
                let pdu = initiator.encode(export::iscsi::pdu::Bhs::from_bytes(bytes), &vec![0x5a; len]);
                if initiator.writer.write_all(&pdu).await.is_err() {
                    break;
                }
            }
            world.runtime.timers.sleep(core::time::Duration::from_secs(1)).await;
            drop(initiator);
            still_well(&world).await;
        });
    }
}
