//! SANITIZE by block erase.

use crate::initiator::{Initiator, run};
use crate::sessions::managed;
use export::{PortalOptions, Sanitize};

const BLOCK_ERASE: &str = "48 02 00 00 00 00 00 00 00 00";
const BLOCK_ERASE_AT_ONCE: &str = "48 82 00 00 00 00 00 00 00 00";
const BLOCK_ERASE_UNRESTRICTED: &str = "48 a2 00 00 00 00 00 00 00 00";
const EXIT_FAILURE_MODE: &str = "48 1f 00 00 00 00 00 00 00 00";
const GOOD: (u8, u8, u8) = (0xff, 0, 0);
const IN_PROGRESS: (u8, u8, u8) = (2, 4, 0x1b);
const FAILED: (u8, u8, u8) = (3, 0x31, 3);
const INVALID_FIELD: (u8, u8, u8) = (5, 0x24, 0);

async fn told(initiator: &mut Initiator, hex: &str) -> (u8, u8, u8) {
    initiator.command(hex, 0).await.sense_code()
}

#[test]
fn everything_is_unmapped() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        for lba in [0, (64 << 11) - 16] {
            assert_eq!(initiator.write(lba, &[0xaa; 8192]).await.status, 0);
        }
        assert_eq!(told(&mut initiator, BLOCK_ERASE).await, GOOD);
        assert_eq!(initiator.read((64 << 11) - 16, 16).await.data, [0; 8192]);
        let status = initiator.command("9e 12 00 00 00 00 00 00 00 00 00 00 00 38", 56).await;
        assert_eq!(status.data[8..], [&[0; 8][..], &(64u32 << 11).to_be_bytes(), &[1, 0, 0, 0]].concat());
        // WABEREQ, and what is told of the command.
        assert_eq!(initiator.command("12 01 b1 00 40 00", 64).await.data[7], 0x40);
        let one = |action: u8| format!("a3 0c 02 48 00 {action:02x} 00 00 00 40 00 00");
        assert_eq!(initiator.command(&one(2), 64).await.data, [0, 3, 0, 10, 0x48, 0xa2, 0, 0, 0, 0, 0, 0xff, 0xff, 0]);
        assert_eq!(initiator.command(&one(1), 64).await.data, [0, 1, 0, 0], "no overwriting");
    });
}

#[test]
fn what_is_refused() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        assert_eq!(initiator.write(0, &[0xaa; 512]).await.status, 0);
        for action in (0..0x20).filter(|action| ![2, 0x1f].contains(action)) {
            assert_eq!(told(&mut initiator, &format!("48 {action:02x}")).await, INVALID_FIELD, "{action:02x}");
        }
        for byte in 2..9 {
            let reserved = format!("48 02 {}01", "00 ".repeat(byte - 2));
            assert_eq!(told(&mut initiator, &reserved).await, INVALID_FIELD, "byte {byte}");
        }
        assert_eq!(told(&mut initiator, "48 42").await, INVALID_FIELD, "there are no zones");
        world.disk.shares.set(true);
        assert_eq!(told(&mut initiator, BLOCK_ERASE).await, (5, 0x2c, 0), "others would lose what they share");
        world.disk.shares.set(false);
        world.disk.read_only.set(true);
        assert_eq!(told(&mut initiator, BLOCK_ERASE).await, (7, 0x27, 0));
        world.disk.read_only.set(false);
        let mut other = world.login("b", &[]).await;
        assert_eq!(told(&mut other, "16").await, GOOD);
        assert_eq!(told(&mut initiator, BLOCK_ERASE).await, (0xff, 0x18, 0), "reserved");
        assert_eq!(told(&mut other, "17").await, GOOD);
        assert_eq!(told(&mut initiator, EXIT_FAILURE_MODE).await, GOOD, "nothing failed");
        assert_eq!(initiator.read(0, 1).await.data, [0xaa; 512], "nothing was destroyed");
    });
}

#[test]
fn meanwhile_there_is_nothing_but_progress() {
    run(PortalOptions::default(), |world| async move {
        world.disk.sanitizes_long.set(true);
        let mut initiator = world.login("a", &[]).await;
        let mut other = world.login("b", &[]).await;
        assert_eq!(told(&mut initiator, BLOCK_ERASE_AT_ONCE).await, GOOD);
        for who in [&mut initiator, &mut other] {
            for hex in ["00", "1b 00 00 00 01", "28 00 00 00 00 00 00 00 01", "25", BLOCK_ERASE, EXIT_FAILURE_MODE] {
                let outcome = who.command(hex, 0).await;
                assert_eq!(
                    (outcome.sense_code(), &outcome.sense[15..18]),
                    (IN_PROGRESS, &[0x80, 0x40, 0][..]),
                    "{hex}"
                );
            }
            assert_eq!(
                who.command("03 00 00 00 12", 18).await.data[2..18],
                [2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 4, 0x1b, 0, 0x80, 0x40, 0]
            );
            assert_eq!(who.command("12 00 00 00 24", 36).await.data.len(), 36);
            assert_eq!(who.command("a0 00 00 00 00 00 00 00 00 10", 16).await.data.len(), 16);
        }
        // A session that begins now is told of itself first.
        let mut late = world.login_only("c", &[]).await;
        assert_eq!(told(&mut late, "00").await, (6, 0x29, 0));
        assert_eq!(told(&mut late, "00").await, IN_PROGRESS);
        world.disk.end_sanitize(None);
        assert_eq!(told(&mut late, "00").await, GOOD);
        assert_eq!(late.command("03 00 00 00 12", 18).await.data[2], 0);
    });
}

/// The command ends with its operation; task management ends the command, and the operation goes on.
#[test]
fn a_command_that_waits() {
    run(PortalOptions::default(), |world| async move {
        world.disk.sanitizes_long.set(true);
        let mut initiator = world.login("a", &[]).await;
        let begin = initiator.scsi(0, 0, crate::initiator::cdb(BLOCK_ERASE));
        initiator.send(begin, &[]).await;
        let mut other = world.login("b", &[]).await;
        assert_eq!(told(&mut other, "00").await, IN_PROGRESS);
        world.disk.end_sanitize(None);
        assert_eq!(initiator.finish(&[], 0).await.status, 0);

        let begin = initiator.scsi(0, 0, crate::initiator::cdb(BLOCK_ERASE));
        initiator.send(begin, &[]).await;
        assert_eq!(told(&mut other, "00").await, IN_PROGRESS);
        assert_eq!(managed(&mut other, 5, u32::MAX, 0).await, 0, "LOGICAL UNIT RESET");
        for who in [&mut initiator, &mut other] {
            assert_eq!(told(who, "00").await, (6, 0x29, 3));
            assert_eq!(told(who, "00").await, IN_PROGRESS);
        }
        world.disk.end_sanitize(None);
        assert_eq!(told(&mut initiator, "00").await, GOOD);
    });
}

#[test]
fn one_that_failed() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        for unrestricted in [false, true] {
            world.disk.sanitizes_long.set(true);
            let begin = initiator.scsi(0, 0, crate::initiator::cdb(BLOCK_ERASE));
            initiator.send(begin, &[]).await;
            let mut other = world.login("b", &[]).await;
            assert_eq!(told(&mut other, "00").await, IN_PROGRESS);
            world.disk.end_sanitize(Some(Sanitize::Failed { unrestricted }));
            assert_eq!(initiator.finish(&[], 0).await.sense_code(), FAILED);
            assert_eq!(told(&mut other, "28 00 00 00 00 00 00 00 01").await, FAILED);
            assert_eq!(other.command("03 00 00 00 12", 18).await.data[12..14], [0x31, 3]);
            world.disk.sanitizes_long.set(false);
            if unrestricted {
                assert_eq!(told(&mut other, EXIT_FAILURE_MODE).await, GOOD);
            } else {
                assert_eq!(told(&mut other, EXIT_FAILURE_MODE).await, INVALID_FIELD);
                assert_eq!(told(&mut other, BLOCK_ERASE_UNRESTRICTED).await, INVALID_FIELD);
                assert_eq!(told(&mut other, "00").await, FAILED);
                assert_eq!(told(&mut other, BLOCK_ERASE).await, GOOD);
            }
            assert_eq!(told(&mut other, "00").await, GOOD);
        }
    });
}
