//! Data transfer: immediate, unsolicited and solicited data, Data-In, digests, residuals.

use crate::initiator::{cdb_10, data_out, run};
use export::PortalOptions;
use export::iscsi::pdu::{R2t, Reject, opcode};
use proptest::prelude::*;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 7 + i * 13) as u8 | 1).collect()
}

#[test]
fn a_write_by_immediate_data_alone() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let data = pattern(8192);
        let outcome = initiator.command_out(&cdb_10(0x2a, 3, 16), &data, 8192, 8192, 8192).await;
        assert_eq!((outcome.status, outcome.r2ts.len(), outcome.residual), (0, 0, (0, 0)));
        assert_eq!(world.disk.contents.peek(3 * 512, 8192), data);
        assert_eq!(initiator.read(3, 16).await.data, data);
    });
}

#[test]
fn r2ts_are_bounded_by_burst_and_number() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &["MaxBurstLength=4096", "MaxOutstandingR2T=3", "ImmediateData=No"]).await;
        let bhs = initiator.scsi(0x20, 20480, crate::initiator::cdb(&cdb_10(0x2a, 0, 40)));
        initiator.send(bhs, &[]).await;
        let mut tags = Vec::new();
        for sn in 0..3u32 {
            let (pdu, _) = initiator.receive().await.unwrap();
            let r2t = R2t::of(&pdu);
            assert_eq!((pdu.operation(), r2t.r2t_sn.get()), (opcode::R2T, sn));
            assert_eq!((r2t.offset_bytes.get(), r2t.desired_bytes.get()), (sn * 4096, 4096));
            tags.push(r2t.transfer_tag.get());
        }
        let data = pattern(20480);
        for (tag, from) in tags.iter().zip([0, 4096, 8192]) {
            initiator.sequence(bhs.task_tag.get(), *tag, &data, from, from + 4096, 4096).await;
        }
        let outcome = initiator.finish(&data, 4096).await;
        assert_eq!((outcome.status, outcome.r2ts), (0, vec![(12288, 4096), (16384, 4096)]));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever was negotiated and however an initiator cuts its data, what it writes is on the disk, and it reads
    /// the same.
    #[test]
    fn any_cut_of_the_data_arrives(
        blocks in 1u16..1200,
        lba in 0u32..500,
        initial_r2t: bool,
        immediate_data: bool,
        digests: bool,
        max_burst in 512u32..300_000,
        first_burst in 512u32..100_000,
        outstanding in 1u32..6,
        receive in prop_oneof![512u32..5000, Just(65_536)],
        segment in 1usize..70_000,
        immediate in 0usize..70_000,
        unsolicited in 0usize..70_000,
    ) {
        // A read of few bytes in tiny segments is enough.
        let blocks = if segment < 512 { blocks.min(64) } else { blocks };
        run(PortalOptions::default(), move |world| async move {
            let yes_no = |b: bool| if b { "Yes" } else { "No" };
            let first_burst = first_burst.min(max_burst);
            let keys = [
                format!("InitialR2T={}", yes_no(initial_r2t)),
                format!("ImmediateData={}", yes_no(immediate_data)),
                format!("HeaderDigest={}", if digests { "CRC32C" } else { "None" }),
                format!("DataDigest={}", if digests { "CRC32C" } else { "None" }),
                format!("MaxBurstLength={max_burst}"),
                format!("FirstBurstLength={first_burst}"),
                format!("MaxOutstandingR2T={outstanding}"),
                format!("MaxRecvDataSegmentLength={receive}"),
            ];
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let mut initiator = world.login("a", &keys).await;
            let data = pattern(usize::from(blocks) * 512);
            let first = (first_burst.min(65_536) as usize).min(data.len());
            let immediate = if immediate_data { immediate.min(first) } else { 0 };
            let unsolicited = if initial_r2t { immediate } else { unsolicited.clamp(immediate, first) };
            let outcome = initiator.command_out(&cdb_10(0x2a, lba, blocks), &data, immediate, unsolicited, segment).await;
            assert_eq!((outcome.status, outcome.residual), (0, (0, 0)), "{:02x?}", outcome.sense);
            let bursts_fit = outcome.r2ts.iter().all(|(_, len)| *len <= max_burst);
            assert!(bursts_fit, "{:?}", outcome.r2ts);
            assert!(world.disk.contents.peek(u64::from(lba) * 512, data.len()) == data);
            let read = initiator.read(lba, blocks).await;
            assert_eq!((read.status, read.residual), (0, (0, 0)));
            assert!(read.data == data);
        });
    }
}

#[test]
fn residuals() {
    // CDB blocks, expected bytes, then: status, bytes moved, O or U, count.
    let table: [(u16, u32, usize, (u8, u32)); 6] = [
        (2, 1024, 1024, (0, 0)),
        (2, 4096, 1024, (2, 3072)),
        (2, 512, 512, (4, 512)),
        (2, 700, 700, (4, 324)),
        (2, 0, 0, (4, 1024)),
        (0, 512, 0, (2, 512)),
    ];
    run(PortalOptions::default(), move |world| async move {
        let mut initiator = world.login("a", &[]).await;
        world.disk.contents.poke(0, &pattern(4096));
        for (blocks, expected, moved, residual) in table {
            let read = initiator.command(&cdb_10(0x28, 0, blocks), expected).await;
            assert_eq!((read.status, read.data.len(), read.residual), (0, moved, residual), "read {blocks} {expected}");
            assert_eq!(read.data, pattern(4096)[..moved]);
        }
        for (blocks, expected, moved, residual) in table {
            world.disk.contents.poke(0, &[0; 4096]);
            let data = pattern(expected as usize);
            let immediate = data.len();
            let write = initiator.command_out(&cdb_10(0x2a, 0, blocks), &data, immediate, immediate, 512).await;
            assert_eq!((write.status, write.residual), (0, residual), "write {blocks} {expected}");
            let whole = moved - moved % 512;
            assert_eq!(world.disk.contents.peek(0, whole), pattern(4096)[..whole]);
            assert_eq!(
                world.disk.contents.peek(whole as u64, 4096 - whole),
                vec![0; 4096 - whole],
                "no more is written"
            );
        }
    });
}

#[test]
fn data_out_that_breaks_the_rules_fails_its_command_only() {
    // DataSN, offset, bytes, and the sense code to come of it.
    let table = [
        (1, 0, 4096, (0x0b, 0x4b, 0x00)),
        (u32::MAX, 0, 4096, (0x0b, 0x4b, 0x00)),
        (0, 512, 4096, (0x0b, 0x4b, 0x00)),
        (0, 0, 8192, (0x0b, 0x4b, 0x00)),
        (0, 0, 512, (0x0b, 0x0c, 0x0d)),
    ];
    run(PortalOptions::default(), move |world| async move {
        let mut initiator = world.login("a", &[]).await;
        for (data_sn, offset, len, sense) in table {
            let bhs = initiator.scsi(0x20, 4096, crate::initiator::cdb(&cdb_10(0x2a, 0, 8)));
            initiator.send(bhs, &[]).await;
            let (pdu, _) = initiator.receive().await.unwrap();
            let tag = R2t::of(&pdu).transfer_tag.get();
            let spoilt = data_out(bhs.task_tag.get(), tag, data_sn, offset, true);
            initiator.send(spoilt, &pattern(len)).await;
            let outcome = initiator.finish(&[], 0).await;
            assert_eq!(outcome.sense_code(), sense, "{data_sn} {offset} {len}");
            assert_eq!(world.disk.contents.peek(0, 4096), [0; 4096], "nothing is written");
        }
        assert_eq!(initiator.write(0, &pattern(4096)).await.status, 0, "the session goes on");
    });
}

#[test]
fn unsolicited_data_beyond_what_was_agreed() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &["ImmediateData=No"]).await;
        let outcome = initiator.command_out(&cdb_10(0x2a, 0, 1), &pattern(512), 512, 512, 512).await;
        assert_eq!(outcome.sense_code(), (0x0b, 0x0c, 0x0c));
        let mut initiator = world.login("b", &["FirstBurstLength=1024"]).await;
        let outcome = initiator.command_out(&cdb_10(0x2a, 0, 4), &pattern(2048), 2048, 2048, 512).await;
        assert_eq!(outcome.sense_code(), (0x0b, 0x0c, 0x0c));
        assert_eq!(world.disk.contents.peek(0, 2048), [0; 2048]);
    });
}

#[test]
fn a_wrong_data_digest_is_rejected_and_fails_the_command() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &["HeaderDigest=None", "DataDigest=CRC32C"]).await;
        let bhs = initiator.scsi(0x20, 512, crate::initiator::cdb(&cdb_10(0x2a, 0, 1)));
        let mut bytes = initiator.encode(bhs, &pattern(512));
        bytes[48 + 9] ^= 1;
        embedded_io_async::Write::write_all(&mut initiator.writer, &bytes).await.unwrap();
        let (reject, header) = initiator.receive().await.unwrap();
        assert_eq!((reject.operation(), Reject::of(&reject).reason), (opcode::REJECT, 0x02));
        assert_eq!(header[..20], bytes[..20], "the header of the refused PDU");
        assert_eq!(initiator.finish(&[], 0).await.sense_code(), (0x0b, 0x47, 0x05));
        assert_eq!(world.disk.contents.peek(0, 512), [0; 512]);
        assert_eq!(initiator.write(0, &pattern(512)).await.status, 0);
    });
}

#[test]
fn a_wrong_header_digest_ends_the_connection() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &["HeaderDigest=CRC32C"]).await;
        let bhs = initiator.scsi(0, 0, [0; 16]);
        let mut bytes = initiator.encode(bhs, &[]);
        bytes[5] ^= 1;
        embedded_io_async::Write::write_all(&mut initiator.writer, &bytes).await.unwrap();
        assert!(initiator.receive().await.is_none());
        assert!(world.portal.sessions().is_empty());
    });
}
