//! What Windows and VMware ESXi send (section 24 of the reference), command by command, and what they need for an answer.
//! Recorded from the reference, not from those systems.

use crate::common::{POOL_BLOCK_BYTES, TARGET};
use crate::initiator::{Initiator, World, cdb_10, run};
use export::{PortalOptions, Space};

/// Parameter list of a PERSISTENT RESERVE OUT.
fn keys(key: u8, action_key: u8, flags: u8) -> Vec<u8> {
    let mut list = vec![0; 24];
    (list[7], list[15], list[20]) = (key, action_key, flags);
    list
}

/// Status, and sense code where there is one.
async fn send(initiator: &mut Initiator, hex: &str, data: &[u8]) -> (u8, (u8, u8, u8)) {
    let outcome = initiator.command_out(hex, data, data.len(), data.len(), 8192).await;
    (outcome.status, if outcome.status == 2 { outcome.sense_code() } else { (0, 0, 0) })
}

const GOOD: (u8, (u8, u8, u8)) = (0, (0, 0, 0));
const CONFLICT: (u8, (u8, u8, u8)) = (0x18, (0, 0, 0));

/// The page that INQUIRY returns, whose length field must be that of the whole page.
async fn vpd(initiator: &mut Initiator, page: u8) -> Vec<u8> {
    let data = initiator.command(&format!("12 01 {page:02x} 00 ff 00"), 255).await.data;
    assert_eq!((data[1], data.len()), (page, 4 + usize::from(u16::from_be_bytes([data[2], data[3]]))));
    data
}

#[test]
fn windows_finds_a_thin_disk() {
    run(PortalOptions::default(), |world| async move {
        let space = Space { available_bytes: 1 << 30, used_bytes: 1 << 30, threshold_bytes: 0 };
        world.disk.space.set(space);
        let mut host = world.login("windows", &[]).await;
        let pages = vpd(&mut host, 0x00).await[4..].to_vec();
        assert!(pages.is_sorted());
        for page in [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2] {
            assert!(pages.contains(&page), "{page:02x}");
            vpd(&mut host, page).await;
        }
        let limits = vpd(&mut host, 0xb0).await;
        let field = |at: usize| u32::from_be_bytes(limits[at..at + 4].try_into().unwrap());
        assert!(field(20) > 0 && field(24) > 0, "UNMAP has a limit that is not 0");
        assert_eq!(u64::from(field(28)) * 512, POOL_BLOCK_BYTES, "granularity");
        let provisioning = vpd(&mut host, 0xb2).await;
        assert_eq!((provisioning[5] & 0x84, provisioning[6]), (0x84, 2), "LBPU, LBPRZ, thin");
        let capacity = host.command("9e 10 00 00 00 00 00 00 00 00 00 00 00 20", 32).await.data;
        assert_eq!(capacity[14] & 0xc0, 0xc0, "LBPME, LBPRZ");
        let log = host.command("4d 00 4c 00 00 00 00 00 ff 00", 255).await.data;
        assert_eq!((log[0], &log[4..8]), (0x0c, &[0, 1, 3, 8][..]));
    });
}

/// REGISTER AND IGNORE EXISTING KEY, RESERVE of type 5, PREEMPT, READ KEYS, READ RESERVATION, CLEAR; a node takes the disk
/// over from one that is gone.
#[test]
fn windows_clusters_over_reservations() {
    run(PortalOptions::default(), |world| async move {
        let (register, reserve) = ("5f 06 00 00 00 00 00 00 18", "5f 01 05 00 00 00 00 00 18");
        let mut owner = world.login("node1", &[]).await;
        let mut other = world.login("node2", &[]).await;
        assert_eq!(send(&mut owner, register, &keys(0, 1, 1)).await, GOOD);
        assert_eq!(send(&mut owner, reserve, &keys(1, 0, 0)).await, GOOD);
        assert_eq!(send(&mut other, register, &keys(0, 2, 1)).await, GOOD);
        assert_eq!(send(&mut other, reserve, &keys(2, 0, 0)).await, CONFLICT, "it has an owner");
        let read_keys = other.command("5e 00 00 00 00 00 00 00 18", 24).await.data;
        assert_eq!(read_keys, [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        let held = other.command("5e 01 00 00 00 00 00 00 18", 24).await.data;
        assert_eq!(held[4..], [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 5, 0, 0]);
        assert_eq!(other.write(0, &[1; 512]).await.status, 0, "registrants write");
        assert_eq!(send(&mut other, "5f 04 05 00 00 00 00 00 18", &keys(2, 1, 0)).await, GOOD, "PREEMPT");
        assert_eq!(owner.write(0, &[1; 512]).await.sense_code(), (6, 0x2a, 5), "registrations preempted");
        assert_eq!(owner.write(0, &[1; 512]).await.status, 0x18);
        let kept = world.disk.kept.borrow().clone().unwrap();
        assert_eq!((kept.registrations.len(), kept.reservation.map(|(code, _)| code)), (1, Some(5)), "APTPL");
        assert_eq!(send(&mut other, "5f 03 00 00 00 00 00 00 18", &keys(2, 0, 0)).await, GOOD, "CLEAR");
        assert_eq!(owner.write(0, &[1; 512]).await.status, 0);
    });
}

/// Heartbeats and locks by COMPARE AND WRITE: the loser gets MISCOMPARE with the place, and nothing is written.
#[test]
fn esxi_locks_by_compare_and_write() {
    run(PortalOptions::default(), |world| async move {
        let mut one = world.login("esx1", &[]).await;
        let mut two = world.login("esx2", &[]).await;
        let lock = "89 00 00 00 00 00 00 00 08 00 00 00 00 01 00 00";
        let (free, held) = ([0; 512], [1; 512]);
        assert_eq!(send(&mut one, lock, &[free, held].concat()).await, GOOD);
        let outcome = two.command_out(lock, &[free, [2; 512]].concat(), 1024, 1024, 8192).await;
        assert_eq!((outcome.status, outcome.sense_code()), (2, (0x0e, 0x1d, 0)));
        assert_eq!(outcome.sense[0] & 0x80, 0x80, "with the place of the difference");
        assert_eq!(two.read(0x800, 1).await.data, held);
        assert_eq!(send(&mut one, lock, &[held, free].concat()).await, GOOD);
        assert_eq!(two.command("16 00 00 00 00 00", 0).await.status, 0, "RESERVE(6), the old way");
        assert_eq!(one.write(0, &[1; 512]).await.status, 0x18);
        assert_eq!(two.command("17 00 00 00 00 00", 0).await.status, 0);
    });
}

/// Zeroing, reclaiming at a granularity of at most 1 MiB, the warning and the shortage.
#[test]
fn esxi_lives_with_thin_provisioning() {
    run(PortalOptions::default(), |world| async move {
        let mut host = world.login("esx", &[]).await;
        let naa = vpd(&mut host, 0x83).await;
        assert_eq!(naa[4..8], [1, 3, 0, 16], "the NAA designator comes first");
        assert_eq!(naa[8] >> 4, 6, "IEEE registered extended");
        const { assert!(POOL_BLOCK_BYTES <= 1 << 20) };
        let blocks = (POOL_BLOCK_BYTES / 512) as u16;
        assert_eq!(host.write(0, &vec![7; POOL_BLOCK_BYTES as usize]).await.status, 0);
        let same = format!("93 00 00 00 00 00 00 00 00 00 00 00 {:02x} {:02x} 00 00", blocks >> 8, blocks & 0xff);
        assert_eq!(send(&mut host, &same, &[0; 512]).await, GOOD, "WRITE SAME(16)");
        let unmap = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0; 8], &u32::from(blocks).to_be_bytes(), &[0; 4]].concat();
        assert_eq!(send(&mut host, "42 00 00 00 00 00 00 00 18 00", &unmap).await, GOOD);
        world.portal.threshold_reached();
        assert_eq!(host.command("00", 0).await.sense_code(), (6, 0x38, 7), "a warning");
        world.disk.full.set(true);
        assert_eq!(host.write(0, &[1; 512]).await.sense_code(), (7, 0x27, 7), "the guest is stunned by this one");
        assert_eq!(host.read(0, 1).await.data, [0; 512]);
        world.disk.full.set(false);
        assert_eq!(host.write(0, &[1; 512]).await.status, 0, "and goes on");
        let short = host.command(&cdb_10(0x28, 0, 1), 4096).await;
        assert_eq!(short.residual, (2, 4096 - 512), "underflow, to the byte");
    });
}

/// Linux multipath: what is told over a path agrees with what the group says.
#[test]
fn multipath_recognises_its_paths() {
    run(PortalOptions::default(), |world: World| async move {
        let mut host = world.login("linux", &[]).await;
        let page = vpd(&mut host, 0x83).await;
        let mut designators = Vec::new();
        let mut rest = &page[4..];
        while let [codes, kind, _, len, ..] = *rest {
            let (designator, after) = rest[4..].split_at(usize::from(len));
            designators.push((codes & 0x0f, kind & 0x3f, designator.to_vec()));
            rest = after;
        }
        let of = |kind: u8| designators.iter().find(|d| d.1 == kind).map(|d| d.2.clone()).unwrap();
        let (relative_port, group) = (of(0x14), of(0x15));
        let report = host.command("a3 0a 00 00 00 00 00 00 00 40 00 00", 64).await.data;
        assert_eq!(report[..4], [0, 0, 0, 12]);
        assert_eq!((report[4] & 0x0f, report[5] & 0x01), (0, 1), "active/optimized");
        assert_eq!((&report[6..8], &report[12..16]), (&group[2..], &relative_port[..]));
        let name = String::from_utf8(of(0x18)).unwrap();
        assert_eq!(name.trim_end_matches('\0'), format!("{TARGET},t,0x0001"));
        assert_eq!(host.command("12 00 00 00 60 00", 96).await.data[5] & 0x30, 0x10, "TPGS: implicit");
    });
}
