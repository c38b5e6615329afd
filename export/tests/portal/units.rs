//! SCSI semantics on a thin disk.

use crate::common::{OneTarget, POOL_BLOCK_BYTES};
use crate::initiator::{Initiator, World, cdb, cdb_10, run};
use crate::sessions::managed;
use core::time::Duration;
use export::{Portal, PortalOptions, Space, UnitError};
use std::cell::Cell;
use std::rc::Rc;

async fn out(initiator: &mut Initiator, hex: &str, data: &[u8]) -> (u8, u8, u8) {
    let outcome = initiator.command_out(hex, data, data.len(), data.len(), 8192).await;
    if outcome.status == 0 { (0, 0, 0) } else { outcome.sense_code() }
}

fn unmap_list(extents: &[(u64, u32)]) -> Vec<u8> {
    let mut list = vec![];
    list.extend((6 + 16 * extents.len() as u16).to_be_bytes());
    list.extend((16 * extents.len() as u16).to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in extents {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap_cdb(list: &[u8]) -> String {
    format!("42 00 00 00 00 00 00 {:02x} {:02x} 00", list.len() >> 8, list.len() & 0xff)
}

#[test]
fn what_is_unmapped_reads_as_zero_and_nothing_else_does() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let blocks = (POOL_BLOCK_BYTES / 512) as u32;
        world.disk.contents.poke(0, &vec![0xaa; 4 * POOL_BLOCK_BYTES as usize]);
        assert_eq!(initiator.write(0, &vec![0xaa; 4 * POOL_BLOCK_BYTES as usize]).await.status, 0);
        let list = unmap_list(&[(5, blocks * 2), (u64::from(blocks) * 3, 1), (1 << 17, 0)]);
        assert_eq!(out(&mut initiator, &unmap_cdb(&list), &list).await, (0, 0, 0));
        let bytes = world.disk.contents.peek(0, 4 * POOL_BLOCK_BYTES as usize);
        for (block, data) in bytes.chunks(512).enumerate() {
            let unmapped = (5..5 + blocks as usize * 2).contains(&block) || block == blocks as usize * 3;
            assert_eq!(data, [if unmapped { 0 } else { 0xaa }; 512], "block {block}");
        }
        let status = initiator.command("9e 12 00 00 00 00 00 00 00 00 00 00 00 38", 56).await;
        let run = |at: usize| {
            let field = |from: usize| u32::from_be_bytes(status.data[from..from + 4].try_into().unwrap());
            (field(at + 4), field(at + 8), status.data[at + 12])
        };
        assert_eq!([run(8), run(24), run(40)], [(0, blocks, 0), (blocks, blocks, 1), (2 * blocks, 2 * blocks, 0)]);
    });
}

/// A volume of many pieces is not looked at to its end before there is an answer, nor when nobody waits for one.
#[test]
fn lba_status_looks_at_so_much_only() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let pool_block = POOL_BLOCK_BYTES / 512;
        world.disk.tells_little.set(true);
        for at in [0, 512] {
            let lba: String = (at * pool_block).to_be_bytes().map(|byte| format!("{byte:02x} ")).concat();
            let status = initiator.command(&format!("9e 12 {lba} 00 00 00 38"), 56).await;
            assert_eq!(status.data[..4], [0, 0, 0, 20]);
            assert_eq!(status.data[8..16], (at * pool_block).to_be_bytes());
            assert_eq!(status.data[16..20], (512 * pool_block as u32).to_be_bytes(), "half of the volume");
            assert_eq!(status.data[20], 1, "deallocated");
        }
        world.disk.slow.set(Some(world.runtime.timers.clone()));
        let status = initiator.scsi(0x40, 56, cdb("9e 12 00 00 00 00 00 00 00 00 00 00 00 38"));
        let begun = world.runtime.timers.now();
        initiator.send(status, &[]).await;
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        assert_eq!(managed(&mut initiator, 1, status.task_tag.get(), status.sn.get()).await, 0);
        assert!(world.runtime.timers.now() - begun < Duration::from_millis(2), "it was aborted");
        assert_eq!(initiator.command("00", 0).await.status, 0);
    });
}

#[test]
fn unmap_parameters() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let size = 64u64 << 11;
        let table = [
            (unmap_list(&[(size, 0)]), (0, 0, 0)),
            (unmap_list(&[(0, 1), (size - 1, 2)]), (5, 0x21, 0)),
            (unmap_list(&[(u64::MAX, 2)]), (5, 0x21, 0)),
            (unmap_list(&[(0, 1 << 20), (0, 1)]), (5, 0x26, 0)),
            (unmap_list(&vec![(0, 1); 257]), (5, 0x26, 0)),
            (vec![0; 7], (5, 0x1a, 0)),
            (vec![0; 8], (0, 0, 0)),
            (vec![], (0, 0, 0)),
        ];
        world.disk.contents.poke(0, &[0xaa; 512]);
        assert_eq!(initiator.write(0, &[0xaa; 512]).await.status, 0);
        for (list, sense) in table {
            assert_eq!(out(&mut initiator, &unmap_cdb(&list), &list).await, sense, "{} bytes", list.len());
            assert_eq!(world.disk.contents.peek(0, 512), [0xaa; 512], "nothing is unmapped unless all can be");
        }
    });
}

#[test]
fn write_same() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        assert_eq!(out(&mut initiator, &cdb_10(0x41, 1, 700), &[0x55; 512]).await, (0, 0, 0));
        assert_eq!(world.disk.contents.peek(0, 512), [0; 512]);
        assert_eq!(world.disk.contents.peek(512, 700 * 512), vec![0x55; 700 * 512]);
        assert_eq!(world.disk.contents.peek(701 * 512, 512), [0; 512]);
        // UNMAP with data that unmapped blocks would not read as: the data is written.
        assert_eq!(out(&mut initiator, "41 08 00 00 00 01 00 00 02 00", &[0x66; 512]).await, (0, 0, 0));
        assert_eq!(world.disk.contents.peek(512, 1024), [0x66; 1024]);
        // NDOB: zeroes without data.
        assert_eq!(initiator.command("93 01 00 00 00 00 00 00 00 01 00 00 00 01", 0).await.status, 0);
        assert_eq!(world.disk.contents.peek(512, 1024), [[0; 512], [0x66; 512]].concat());
        for data in [0, 256, 1024] {
            assert_eq!(out(&mut initiator, &cdb_10(0x41, 0, 1), &vec![1; data]).await, (5, 0x24, 0), "{data} bytes");
        }
        assert_eq!(out(&mut initiator, &cdb_10(0x41, 0, 0), &[1; 512]).await, (5, 0x24, 0), "WSNZ");
        assert_eq!(out(&mut initiator, "41 10 00 00 00 00 00 00 01 00", &[1; 512]).await, (5, 0x24, 0), "ANCHOR");
    });
}

#[test]
fn verify_compares() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        world.disk.contents.poke(0, &[7; 2048]);
        let mut data = vec![7; 2048];
        assert_eq!(out(&mut initiator, "2f 02 00 00 00 00 00 00 04 00", &data).await, (0, 0, 0));
        assert_eq!(initiator.command("2f 00 00 00 00 00 00 00 04 00", 0).await.status, 0);
        assert_eq!(out(&mut initiator, "2f 06 00 00 00 00 00 00 04 00", &[7; 512]).await, (0, 0, 0));
        data[1030] = 8;
        let outcome = initiator.command_out("2f 02 00 00 00 00 00 00 04 00", &data, 2048, 2048, 512).await;
        assert_eq!(outcome.sense_code(), (0x0e, 0x1d, 0));
        assert_eq!(outcome.sense[..7], [0xf0, 0, 0x0e, 0, 0, 4, 6], "the place of the first difference");
        world.disk.contents.poke(1999, &[1]);
        assert_eq!(out(&mut initiator, "2f 06 00 00 00 00 00 00 04 00", &[7; 512]).await, (0x0e, 0x1d, 0));
        assert_eq!(out(&mut initiator, "2e 02 00 00 00 00 00 00 04 00", &data).await, (0, 0, 0));
        assert_eq!(world.disk.contents.peek(0, 2048), data);
    });
}

/// What is verified is on the medium, and a unit that is stopped has nothing left to write.
#[test]
fn what_is_durable_without_a_synchronize() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let mut made_durable = async |hex: &str, data: &[u8]| {
            let before = world.disk.flushes.get();
            assert_eq!(out(&mut initiator, hex, data).await, (0, 0, 0), "{hex}");
            world.disk.flushes.get() > before
        };
        let block = [7; 512];
        assert!(!made_durable("2a 00 00 00 00 00 00 00 01", &block).await, "WRITE");
        assert!(made_durable("2a 08 00 00 00 00 00 00 01", &block).await, "with FUA");
        assert!(made_durable("2e 00 00 00 00 00 00 00 01", &block).await, "WRITE AND VERIFY");
        assert!(made_durable("2e 02 00 00 00 00 00 00 01", &block).await, "which compares");
        assert!(!made_durable("1b 00 00 00 01", &[]).await, "START");
        assert!(made_durable("1b 00 00 00 00", &[]).await, "STOP");
        assert!(!made_durable("1b 00 00 00 04", &[]).await, "NO_FLUSH");
    });
}

#[test]
fn compare_and_write() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let caw = "89 00 00 00 00 00 00 00 00 02 00 00 00 01";
        let data = [[0u8; 512], [9; 512]].concat();
        assert_eq!(out(&mut initiator, caw, &data).await, (0, 0, 0));
        assert_eq!(world.disk.contents.peek(1024, 512), [9; 512]);
        assert_eq!(out(&mut initiator, caw, &data).await, (0x0e, 0x1d, 0));
        assert_eq!(world.disk.contents.peek(1024, 512), [9; 512]);
        for len in [512, 1536, 2048] {
            assert_eq!(out(&mut initiator, caw, &vec![9; len]).await, (5, 0x24, 0), "{len} bytes");
        }
        assert_eq!(initiator.command("89 00 00 00 00 00 00 00 00 02 00 00 00 00", 0).await.status, 0);
        assert_eq!(initiator.command("8b 00 00 00 00 00 00 00 00 02 00 00 00 00", 0).await.status, 0);
        assert_eq!(out(&mut initiator, "8b 00 00 00 00 00 00 00 00 02 00 00 00 01", &[6; 512]).await, (0, 0, 0));
        assert_eq!(world.disk.contents.peek(1024, 512), [15; 512]);
    });
}

/// Sessions that count in one block by COMPARE AND WRITE lose no increment.
#[test]
fn compare_and_write_is_atomic() {
    const SESSIONS: u32 = 4;
    const EACH: u32 = 25;
    run(PortalOptions::default(), |world| async move {
        world.disk.slow.set(Some(world.runtime.timers.clone()));
        let done = Rc::new(Cell::new(0));
        for session in 0..SESSIONS {
            let (world, done) = (world.clone(), done.clone());
            world.runtime.spawner.clone().spawn(async move {
                let mut initiator = world.login(&format!("counter{session}"), &[]).await;
                let mut counted = 0;
                while counted < EACH {
                    let old = initiator.read(0, 1).await.data;
                    let count = u32::from_le_bytes(old[..4].try_into().unwrap()) + 1;
                    let new = [&count.to_le_bytes()[..], &old[4..]].concat();
                    let data = [old, new].concat();
                    match out(&mut initiator, "89 00 00 00 00 00 00 00 00 00 00 00 00 01", &data).await {
                        (0, 0, 0) => counted += 1,
                        sense => assert_eq!(sense, (0x0e, 0x1d, 0)),
                    }
                }
                done.set(done.get() + 1);
            });
        }
        while done.get() < SESSIONS {
            world.runtime.timers.sleep(core::time::Duration::from_millis(1)).await;
        }
        world.disk.slow.set(None);
        assert_eq!(world.disk.contents.peek(0, 4), (SESSIONS * EACH).to_le_bytes());
    });
}

#[test]
fn places_outside_the_unit() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let size = 64u32 << 11;
        for opcode in [0x28, 0x2f, 0x34, 0x35] {
            assert_eq!(initiator.command(&cdb_10(opcode, size, 0), 0).await.status, 0, "{opcode:02x}");
            for (lba, blocks) in [(size, 1), (size - 1, 2), (u32::MAX, 1), (size + 1, 0)] {
                let outcome = initiator.command(&cdb_10(opcode, lba, blocks), 512).await;
                assert_eq!(outcome.sense_code(), (5, 0x21, 0), "{opcode:02x} {lba} {blocks}");
                assert_eq!(outcome.residual, (2, 512));
            }
        }
        for opcode in [0x2a, 0x2e, 0x41] {
            assert_eq!(out(&mut initiator, &cdb_10(opcode, size, 1), &[1; 512]).await, (5, 0x21, 0), "{opcode:02x}");
        }
        let beyond = "88 00 ff ff ff ff ff ff ff ff 00 00 00 01";
        assert_eq!(initiator.command(beyond, 512).await.sense_code(), (5, 0x21, 0));
    });
}

#[test]
fn a_unit_that_takes_no_writes() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        assert_eq!(initiator.write(0, &[1; 512]).await.status, 0);
        world.disk.full.set(true);
        assert_eq!(initiator.write(0, &[2; 512]).await.status, 0, "mapped blocks can be written");
        assert_eq!(initiator.write(1 << 10, &[2; 512]).await.sense_code(), (7, 0x27, 7));
        world.disk.full.set(false);
        assert_eq!(initiator.write(1 << 10, &[2; 512]).await.status, 0, "space came back");
        world.disk.read_only.set(true);
        assert_eq!(initiator.write(0, &[3; 512]).await.sense_code(), (7, 0x27, 0));
        assert_eq!(initiator.command("1a 00 3f 00 ff 00", 255).await.data[2], 0x90, "WP and DPOFUA");
        assert_eq!(initiator.read(0, 1).await.data, [2; 512]);
    });
}

#[test]
fn luns_and_inquiry() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let luns = initiator.command("a0 00 00 00 00 00 00 00 01 00", 256).await;
        assert_eq!(
            (luns.data.as_slice(), luns.residual),
            (&[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], (2, 240))
        );
        let cut = initiator.command("12 01 83 00 08 00", 255).await;
        assert_eq!((cut.data.len(), cut.residual), (8, (2, 247)));
        let pages = initiator.command("12 01 00 00 ff 00", 255).await.data;
        for page in &pages[4..] {
            let data = initiator.command(&format!("12 01 {page:02x} 02 00 00"), 512).await.data;
            assert_eq!(data[1], *page);
            assert_eq!(data.len(), usize::from(u16::from_be_bytes([data[2], data[3]])) + 4);
        }
        assert_eq!(initiator.command("12 01 c0 00 ff 00", 255).await.sense_code(), (5, 0x24, 0));
        let mut elsewhere = initiator.scsi(0x40, 96, crate::initiator::cdb("12 00 00 00 60 00"));
        elsewhere.lun[1] = 1;
        initiator.send(elsewhere, &[]).await;
        assert_eq!(initiator.finish(&[], 0).await.data[0], 0x7f, "no unit there");
        let mut elsewhere = initiator.scsi(0, 0, [0; 16]);
        elsewhere.lun[1] = 1;
        initiator.send(elsewhere, &[]).await;
        assert_eq!(initiator.finish(&[], 0).await.sense_code(), (5, 0x25, 0));
    });
}

#[test]
fn a_change_of_size_is_told() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        world.disk.contents.resize(1 << 18);
        world.portal.capacity_changed(crate::common::TARGET);
        world.portal.capacity_changed(crate::common::TARGET);
        assert_eq!(initiator.command("12 00 00 00 60 00", 96).await.status, 0, "INQUIRY does not report it");
        assert_eq!(initiator.command("00", 0).await.sense_code(), (6, 0x2a, 9));
        assert_eq!(initiator.command("00", 0).await.status, 0, "once");
        let capacity = initiator.command("25", 8).await.data;
        assert_eq!(capacity, [0, 3, 0xff, 0xff, 0, 0, 2, 0]);
    });
}

#[test]
fn a_change_of_contents_is_told_to_all() {
    run(PortalOptions::default(), |world| async move {
        let (mut a, mut b) = (world.login("a", &[]).await, world.login("b", &[]).await);
        world.portal.contents_changed(crate::common::TARGET);
        world.portal.capacity_changed(crate::common::TARGET);
        for initiator in [&mut a, &mut b] {
            assert_eq!(initiator.read(0, 1).await.sense_code(), (6, 0x28, 0));
            assert_eq!(initiator.read(0, 1).await.sense_code(), (6, 0x2a, 9));
            assert_eq!(initiator.read(0, 1).await.status, 0);
        }
    });
}

#[test]
fn mode_select_reaches_the_others() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        let mut b = world.login("b", &[]).await;
        let mut list = vec![0, 0, 0, 0, 0x0a, 0x0a, 0x04, 0x10, 0x08, 0, 0, 0, 0xff, 0xff, 0, 0];
        assert_eq!(out(&mut a, "15 10 00 00 10 00", &list).await, (0, 0, 0));
        assert_eq!(b.command("00", 0).await.sense[..4], [0x72, 6, 0x2a, 1], "in descriptor format now");
        let refused = b.write(0, &[1; 512]).await;
        assert_eq!(refused.sense[..4], [0x72, 7, 0x27, 2]);
        list[6] = 0;
        list[8] = 0;
        assert_eq!(out(&mut a, "15 10 00 00 10 00", &list).await, (0, 0, 0));
        assert_eq!(b.command("00", 0).await.sense_code(), (6, 0x2a, 1));
        assert_eq!(b.write(0, &[1; 512]).await.status, 0);
    });
}

#[test]
fn reserve_ends_with_its_session() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        let mut b = world.login("b", &[]).await;
        assert_eq!(a.command("16", 0).await.status, 0);
        assert_eq!(b.write(0, &[1; 512]).await.status, 0x18);
        assert_eq!(b.command("12 00 00 00 60 00", 96).await.status, 0);
        assert_eq!(b.command("17", 0).await.status, 0, "RELEASE of another does nothing");
        assert_eq!(b.read(0, 1).await.status, 0x18);
        assert_eq!(a.write(0, &[1; 512]).await.status, 0);
        drop(a);
        while world.portal.sessions().len() > 1 {
            world.runtime.timers.sleep(core::time::Duration::from_millis(1)).await;
        }
        assert_eq!(b.write(0, &[1; 512]).await.status, 0);
    });
}

#[test]
fn reserve_ends_with_a_reset_of_its_nexus() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &["iSCSIProtocolLevel=2"]).await;
        let mut b = world.login("b", &["iSCSIProtocolLevel=2"]).await;
        assert_eq!(a.command("16", 0).await.status, 0);
        assert_eq!(managed(&mut b, 11, 0, 0).await, 0, "I_T NEXUS RESET of another");
        assert_eq!(b.command("00", 0).await.sense_code(), (6, 0x29, 7));
        assert_eq!(b.write(0, &[1; 512]).await.status, 0x18);
        assert_eq!(managed(&mut a, 11, 0, 0).await, 0, "and of the holder");
        assert_eq!(b.write(0, &[1; 512]).await.status, 0);
    });
}

#[test]
fn persistent_reservations_outlive_sessions() {
    run(PortalOptions::default(), |world| async move {
        let list = |key: u8, action_key: u8| {
            let mut list = vec![0; 24];
            list[7] = key;
            list[15] = action_key;
            list
        };
        let mut a = world.login("a", &[]).await;
        assert_eq!(out(&mut a, "5f 00 00 00 00 00 00 00 18", &list(0, 1)).await, (0, 0, 0), "REGISTER");
        assert_eq!(out(&mut a, "5f 01 01 00 00 00 00 00 18", &list(1, 0)).await, (0, 0, 0), "RESERVE write exclusive");
        drop(a);
        while !world.portal.sessions().is_empty() {
            world.runtime.timers.sleep(core::time::Duration::from_millis(1)).await;
        }
        let mut b = world.login("b", &[]).await;
        assert_eq!(b.write(0, &[1; 512]).await.status, 0x18);
        assert_eq!(b.read(0, 1).await.status, 0);
        assert_eq!(out(&mut b, "5f 00 00 00 00 00 00 00 18", &list(0, 2)).await, (0, 0, 0));
        let mut a = world.login("a", &[]).await;
        assert_eq!(a.write(0, &[1; 512]).await.status, 0, "the same port holds it still");
        assert_eq!(out(&mut b, "5f 04 01 00 00 00 00 00 18", &list(2, 1)).await, (0, 0, 0), "PREEMPT");
        assert_eq!(a.command("00", 0).await.sense_code(), (6, 0x2a, 5));
        assert_eq!(a.write(0, &[1; 512]).await.status, 0x18);
        assert_eq!(b.write(0, &[1; 512]).await.status, 0);
    });
}

#[test]
fn reservations_are_kept_before_anybody_knows_of_them() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        let register = |key: u8, action_key: u8, flags: u8| {
            let mut list = vec![0; 24];
            (list[7], list[15], list[20]) = (key, action_key, flags);
            list
        };
        let (cdb, exclusive) = ("5f 00 00 00 00 00 00 00 18", "5f 01 03 00 00 00 00 00 18");
        world.disk.fails.set(Some(UnitError::RecordsFull));
        assert_eq!(out(&mut a, cdb, &register(0, 1, 1)).await, (5, 0x55, 4), "no room to write it down");
        world.disk.fails.set(None);
        assert_eq!(a.command("5e 00 00 00 00 00 00 00 10", 16).await.data[4..8], [0; 4], "nothing is registered");
        assert_eq!(out(&mut a, cdb, &register(0, 1, 1)).await, (0, 0, 0));
        assert_eq!(out(&mut a, exclusive, &register(1, 0, 0)).await, (0, 0, 0));
        let kept = world.disk.kept.borrow().clone().unwrap();
        assert_eq!(kept.reservation.as_ref().map(|(code, _)| *code), Some(3));
        assert_eq!(kept.registrations, [(kept.reservation.clone().unwrap().1, 1)]);

        // Another portal to the same disk knows nothing but what was kept: a restart.
        let restarted = World {
            portal: Portal::new(&world.runtime, Rc::new(OneTarget(world.disk.clone())), PortalOptions::default()),
            ..world.clone()
        };
        let mut b = restarted.login("b", &[]).await;
        assert_eq!(b.read(0, 1).await.status, 0x18);
        let mut a = restarted.login("a", &[]).await;
        assert_eq!(a.write(0, &[1; 512]).await.status, 0, "the holder is the same");
        let capabilities = a.command("5e 02 00 00 00 00 00 00 08", 8).await.data;
        assert_eq!(capabilities, [0, 8, 0x0d, 0x81, 0xea, 1, 0, 0]);
        assert_eq!(out(&mut a, "5f 06 00 00 00 00 00 00 18", &register(0, 1, 0)).await, (0, 0, 0), "without APTPL");
        assert_eq!(*world.disk.kept.borrow(), Some(Default::default()));
        world.disk.kept.replace(None);
        assert_eq!(out(&mut a, "5f 06 00 00 00 00 00 00 18", &register(0, 1, 1)).await, (5, 0x26, 0));
        assert_eq!(a.command("5e 02 00 00 00 00 00 00 08", 8).await.data[2..4], [0x0c, 0x80]);
        restarted.portal.shutdown().await;
    });
}

/// Of RESERVE and a registration there is one, and of two RESERVEs, whichever waits until a registration is written down.
#[test]
fn reserve_waits_for_a_registration() {
    for refused in [false, true] {
        run(PortalOptions::default(), move |world| async move {
            let [mut a, mut b, mut c] =
                [world.login("a", &[]).await, world.login("b", &[]).await, world.login("c", &[]).await];
            world.disk.slow.set(Some(world.runtime.timers.clone()));
            world.disk.hangs.set(true);
            let mut list = [0; 24];
            (list[15], list[20]) = (1, 1);
            let register = a.scsi(0x20, 24, cdb("5f 00 00 00 00 00 00 00 18"));
            a.send(register, &list).await;
            world.runtime.timers.sleep(Duration::from_millis(1)).await;
            for initiator in [&mut b, &mut c] {
                let reserve = initiator.scsi(0, 0, cdb("16"));
                initiator.send(reserve, &[]).await;
            }
            world.runtime.timers.sleep(Duration::from_millis(1)).await;
            world.disk.fails.set(refused.then_some(UnitError::RecordsFull));
            world.disk.hangs.set(false);
            let registered = a.finish(&[], 0).await.status == 0;
            let reserved = [b.finish(&[], 0).await.status == 0, c.finish(&[], 0).await.status == 0];
            assert_eq!([registered, reserved[0], reserved[1]], [!refused, refused, false]);
        });
    }
}

/// Section 20 of the reference, and SBC-3 table 13: what goes on over a nexus that is not registered.
#[test]
fn what_reservations_allow() {
    // Under Write Exclusive, Exclusive Access, and RESERVE of another.
    const ALLOWED: [(&str, bool, bool, bool); 34] = [
        ("12 00 00 00 60 00", true, true, true),
        ("a0 00 00 00 00 00 00 00 00 10 00 00", true, true, true),
        ("03 00 00 00 12 00", true, true, true),
        ("00 00 00 00 00 00", true, true, false),
        ("25 00 00 00 00 00 00 00 00 00", true, true, true),
        ("9e 10 00 00 00 00 00 00 00 00 00 00 00 20", true, true, true),
        ("5e 00 00 00 00 00 00 00 10", true, true, false),
        ("5e 03 00 00 00 00 00 00 10", true, true, false),
        ("a3 0a 00 00 00 00 00 00 00 10 00 00", true, true, false),
        ("a3 0c 00 00 00 00 00 00 10 00 00 00", true, true, true),
        ("4d 00 4c 00 00 00 00 00 40 00", true, true, false),
        ("1b 00 00 00 01 00", true, true, false),
        ("1b 00 00 00 00 00", false, false, false),
        ("1a 00 08 00 20 00", false, false, false),
        ("15 10 00 00 00 00", false, false, false),
        ("1d 04 00 00 00 00", false, false, false),
        ("1c 01 00 00 08 00", false, false, false),
        ("16 00 00 00 00 00", false, false, false),
        ("17 00 00 00 00 00", false, false, true),
        ("28 00 00 00 00 00 00 00 01 00", true, false, false),
        ("2f 00 00 00 00 00 00 00 01 00", true, false, false),
        ("34 00 00 00 00 00 00 00 01 00", true, false, false),
        ("37 00 00 00 00 00 00 00 04 00", true, false, false),
        ("9e 12 00 00 00 00 00 00 00 00 00 00 00 18", true, false, false),
        ("08 00 00 00 01 00", true, false, false),
        ("35 00 00 00 00 00 00 00 00 00", false, false, false),
        ("0a 00 00 00 01 00", false, false, false),
        ("2a 00 00 00 00 00 00 00 01 00", false, false, false),
        ("2e 00 00 00 00 00 00 00 01 00", false, false, false),
        ("41 00 00 00 00 00 00 00 01 00", false, false, false),
        ("42 00 00 00 00 00 00 00 00 00", false, false, false),
        ("89 00 00 00 00 00 00 00 00 00 00 00 00 00", false, false, false),
        ("8b 00 00 00 00 00 00 00 00 00 00 00 00 00", false, false, false),
        ("5f 01 01 00 00 00 00 00 18 00", false, false, false),
    ];
    run(PortalOptions::default(), |world| async move {
        let mut holder = world.login("holder", &[]).await;
        let mut other = world.login("other", &[]).await;
        let list = |key: u8, action_key: u8| {
            let mut list = vec![0; 24];
            (list[7], list[15]) = (key, action_key);
            list
        };
        let register = "5f 06 00 00 00 00 00 00 18";
        let kinds = ["5f 01 01 00 00 00 00 00 18", "5f 01 03 00 00 00 00 00 18"];
        for round in 0..3 {
            match kinds.get(round) {
                Some(reserve) => {
                    assert_eq!(out(&mut holder, register, &list(0, 1)).await, (0, 0, 0));
                    assert_eq!(out(&mut holder, reserve, &list(1, 0)).await, (0, 0, 0));
                }
                None => assert_eq!(holder.command("16", 0).await.status, 0),
            }
            for (cdb, exclusive_write, exclusive_access, reserved) in ALLOWED {
                let allowed = [exclusive_write, exclusive_access, reserved][round];
                let data = if cdb.starts_with("5f") { list(9, 0) } else { vec![0; 512] };
                let reads = ["12", "a0", "03", "25", "9e", "5e", "a3", "4d", "1a", "1c", "28", "37", "08"];
                let outcome = match reads.iter().any(|opcode| cdb.starts_with(opcode)) {
                    true => other.command(cdb, 512).await,
                    false if matches!(&cdb[..2], "0a" | "2a" | "2e" | "41" | "5f") => {
                        other.command_out(cdb, &data, data.len(), data.len(), 512).await
                    }
                    false => other.command(cdb, 0).await,
                };
                assert_eq!(outcome.status, if allowed { 0 } else { 0x18 }, "round {round}: {cdb}");
            }
            match round {
                0 | 1 => assert_eq!(out(&mut holder, "5f 03 00 00 00 00 00 00 18", &list(1, 0)).await, (0, 0, 0)),
                _ => {
                    let own = holder.command("5e 00 00 00 00 00 00 00 10", 16).await.status;
                    assert_eq!(own, 0x18, "RESERVE and persistent reservations exclude each other");
                    assert_eq!(holder.command("17", 0).await.status, 0);
                }
            }
        }
        assert_eq!(other.write(0, &[1; 512]).await.status, 0);
    });
}

#[test]
fn the_pool_s_space_is_told() {
    run(PortalOptions::default(), |world| async move {
        let mut a = world.login("a", &[]).await;
        let mut b = world.login("b", &[]).await;
        let space = |available_bytes| Space { available_bytes, used_bytes: 9 << 20, threshold_bytes: 1 << 20 };
        world.disk.space.set(space(1 << 20));
        let page = a.command("4d 00 4c 00 00 00 00 00 40 00", 64).await.data;
        assert_eq!(page[..16], [0x0c, 0, 0, 36, 0, 1, 3, 8, 0, 0, 0, 16, 2, 0, 0, 0]);
        assert_eq!((page[23], page[33]), (144, 10), "used, in 64 KiB, and 10 % available");
        world.portal.threshold_reached();
        for initiator in [&mut a, &mut b] {
            assert_eq!(initiator.command("00", 0).await.sense_code(), (6, 0x38, 7));
            assert_eq!(initiator.command("00", 0).await.status, 0, "once");
        }
        // LBPERE off: nobody wants to know.
        let list = [0, 0, 0, 0, 1, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(out(&mut a, "15 10 00 00 10 00", &list).await, (0, 0, 0));
        assert_eq!(b.command("00", 0).await.sense_code(), (6, 0x2a, 1));
        world.portal.threshold_reached();
        assert_eq!(b.command("00", 0).await.status, 0);
    });
}
