//! The limits, and that nobody loses anything by those who reach them.

use crate::common::TARGET;
use crate::initiator::{Initiator, World, cdb, cdb_10, run};
use crate::sessions::{managed, request, start_write, text};
use core::time::Duration;
use embedded_io_async::Write;
use export::PortalOptions;
use export::iscsi::pdu::{Bhs, Reject, opcode};
use platform::random::{Random, Seeded};
use std::cell::Cell;
use std::rc::Rc;

async fn status_of_login(world: &World, name: &str) -> u16 {
    let mut initiator = world.connect();
    initiator.login_with(&[&format!("InitiatorName={name}"), &format!("TargetName={TARGET}")]).await.0.status()
}

#[test]
fn sessions() {
    run(PortalOptions { sessions_max: 2, ..PortalOptions::default() }, |world| async move {
        let mut first = world.login("a", &[]).await;
        let _second = world.login("b", &[]).await;
        assert_eq!(status_of_login(&world, "iqn.test:c").await, 0x0302);
        let _again = world.login("b", &[]).await;
        assert_eq!(first.write(0, &[1; 512]).await.status, 0, "who is in stays in");
        drop(first);
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        assert_eq!(status_of_login(&world, "iqn.test:c").await, 0, "there is room again");
    });
}

#[test]
fn discovery_sessions() {
    run(PortalOptions { discoveries_max: 3, sessions_max: 1, ..PortalOptions::default() }, |world| async move {
        let _normal = world.login("a", &[]).await;
        let mut all: Vec<Initiator> = Vec::new();
        for n in 0..5 {
            let mut finder = world.connect();
            let name = format!("InitiatorName=iqn.finder{n}");
            assert_eq!(finder.login_with(&[&name, "SessionType=Discovery"]).await.0.status(), 0);
            all.push(finder);
            world.runtime.timers.sleep(Duration::from_millis(1)).await;
        }
        for (n, finder) in all.iter_mut().enumerate() {
            if n < 2 {
                assert!(finder.receive().await.is_none(), "the oldest made room");
            } else {
                assert!(text(finder, u32::MAX, b"SendTargets=All\0").await.1.contains(TARGET));
            }
        }
    });
}

/// Connections that say nothing, or only begin a login, do not keep others from logging in.
#[test]
fn logins() {
    run(PortalOptions { logins_max: 4, ..PortalOptions::default() }, |world| async move {
        let mut silent: Vec<Initiator> = (0..10).map(|_| world.connect()).collect();
        let start = world.runtime.timers.now();
        let mut slow = world.connect();
        slow.login_step(0x00, &["InitiatorName=iqn.slow", &format!("TargetName={TARGET}")]).await;
        let mut good = world.login("good", &[]).await;
        assert_eq!(good.write(0, &[1; 512]).await.status, 0);
        for turned_out in &mut silent[..8] {
            assert!(turned_out.receive().await.is_none());
        }
        assert!(world.runtime.timers.now() - start < Duration::from_secs(1), "long before their time is up");
        assert_eq!(slow.login_step(0x83, &[]).await.0.status(), 0, "the newest stayed");
    });
}

#[test]
fn commands_of_all_sessions() {
    run(PortalOptions { commands_in_all_max: 3, ..PortalOptions::default() }, |world| async move {
        let mut greedy = world.login("a", &[]).await;
        let mut waiting = Vec::new();
        for lba in 0..3 {
            waiting.push(start_write(&mut greedy, lba * 8).await);
        }
        let mut other = world.login_only("b", &[]).await;
        assert_eq!(other.read(0, 1).await.status, 0x08, "BUSY");
        let (write, tag) = waiting[0];
        greedy.sequence(write.task_tag.get(), tag, &[5; 4096], 0, 4096, 4096).await;
        assert_eq!(greedy.finish(&[], 0).await.status, 0);
        assert_eq!(other.command("00", 0).await.sense_code(), (6, 0x29, 0), "there is room again");
    });
}

#[test]
fn immediate_commands_and_task_management() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        for n in 0..17 {
            let mut write = initiator.scsi(0x20, 512, cdb(&cdb_10(0x2a, n, 1)));
            write.opcode |= 0x40;
            initiator.cmd_sn -= 1;
            initiator.send(write, &[]).await;
            let (bhs, _) = initiator.receive().await.unwrap();
            match bhs.operation() {
                opcode::R2T => assert!(n < 16),
                opcode::REJECT => assert_eq!((n, Reject::of(&bhs).reason), (16, 0x06)),
                other => panic!("{other:02x}"),
            }
        }
        assert_eq!(managed(&mut initiator, 2, 0, 0).await, 0, "ABORT TASK SET");
        // Task management waits for what is on its way to the medium.
        world.disk.slow.set(Some(world.runtime.timers.clone()));
        world.disk.hangs.set(true);
        let stuck = initiator.scsi(0x20, 512, cdb(&cdb_10(0x2a, 0, 1)));
        initiator.send(stuck, &[7; 512]).await;
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        for _ in 0..17 {
            crate::sessions::manage(&mut initiator, 2, 0, 0).await;
        }
        let (bhs, _) = initiator.receive().await.unwrap();
        assert_eq!((bhs.operation(), Reject::of(&bhs).reason), (opcode::REJECT, 0x06));
        world.disk.hangs.set(false);
        for _ in 0..16 {
            assert_eq!(initiator.receive().await.unwrap().0.operation(), opcode::TASK_MANAGEMENT_RESPONSE);
        }
        assert_eq!(managed(&mut initiator, 2, 0, 0).await, 0);
    });
}

#[test]
fn text_of_a_request() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        let mut tag = u32::MAX;
        let mut sent = 0;
        loop {
            let mut part = request(opcode::TEXT_REQUEST, true);
            part[1] = 0x40;
            part[20..24].copy_from_slice(&tag.to_be_bytes());
            initiator.send(Bhs::from_bytes(part), &[b'x'; 8192]).await;
            let (bhs, _) = initiator.receive().await.unwrap();
            if bhs.operation() == opcode::REJECT {
                break;
            }
            sent += 8192;
            tag = u32::from_be_bytes(bhs.specific_20);
        }
        assert_eq!(sent, 64 << 10);
        assert_eq!(text(&mut initiator, u32::MAX, b"X-a=1\0").await.1, "X-a=NotUnderstood ");
    });
}

/// Commands that wait for an ordered one hold memory, and it needs some: it gets it.
#[test]
fn an_ordered_command_gets_memory() {
    for opcode_and_flags in [(0x28, 0x40), (0x2a, 0x20)] {
        run(PortalOptions { payload_bytes_max: 1 << 20, ..PortalOptions::default() }, move |world| async move {
            let mut initiator = world.login("a", &["FirstBurstLength=65536"]).await;
            let (write, tag) = start_write(&mut initiator, 0).await;
            let (code, flags) = opcode_and_flags;
            let mut ordered = initiator.scsi(flags, 65_536, cdb(&cdb_10(code, 0, 128)));
            ordered.flags = ordered.flags & !7 | 2;
            initiator.send(ordered, &[]).await;
            for n in 1..11 {
                let behind = initiator.scsi(0x20, 65_536, cdb(&cdb_10(0x2a, n * 128, 128)));
                initiator.send(behind, &[7; 65_536]).await;
            }
            initiator.sequence(write.task_tag.get(), tag, &[5; 4096], 0, 4096, 4096).await;
            assert_eq!(initiator.finish(&[], 0).await.status, 0);
            let next = world.runtime.timers.timeout(Duration::from_secs(25), initiator.receive()).await;
            let expected = if code == 0x28 { opcode::DATA_IN } else { opcode::R2T };
            assert_eq!(next.ok().flatten().map(|(bhs, _)| bhs.operation()), Some(expected), "{code:02x}");
        });
    }
}

/// Commands behind one that does not come hold memory: others have some all the same, and it is not for ever.
#[test]
fn a_missing_command_does_not_keep_memory_from_others() {
    run(PortalOptions { payload_bytes_max: 1 << 20, ..PortalOptions::default() }, |world| async move {
        let mut greedy = world.login("a", &[]).await;
        greedy.cmd_sn += 1;
        for n in 0..16 {
            let early = greedy.scsi(0x20, 65_536, cdb(&cdb_10(0x2a, n * 128, 128)));
            greedy.send(early, &[7; 65_536]).await;
        }
        let start = world.runtime.timers.now();
        let mut other = world.login("b", &[]).await;
        assert_eq!(other.read(0, 128).await.data.len(), 65_536);
        assert_eq!(other.write(0, &[5; 65_536]).await.status, 0);
        assert!(world.runtime.timers.now() - start < Duration::from_secs(2));
        // One that is alive otherwise.
        let mut ping = request(opcode::NOP_OUT, true);
        ping[20..24].fill(0xff);
        for _ in 0..5 {
            world.runtime.timers.sleep(Duration::from_secs(10)).await;
            if greedy.writer.write_all(&greedy.encode(Bhs::from_bytes(ping), &[])).await.is_err() {
                break;
            }
        }
        world.runtime.timers.sleep(Duration::from_secs(15)).await;
        assert!(world.portal.sessions().iter().all(|session| session.initiator != "iqn.test:a"), "its session ended");
    });
}

/// What is missing comes in time, again and again: nothing is wrong with that.
#[test]
fn a_command_may_come_late() {
    run(PortalOptions::default(), |world| async move {
        let mut initiator = world.login("a", &[]).await;
        for _ in 0..4 {
            let missing = initiator.scsi(0x40, 8, cdb("25"));
            let behind = initiator.scsi(0x40, 512, cdb(&cdb_10(0x28, 0, 1)));
            initiator.send(behind, &[]).await;
            world.runtime.timers.sleep(Duration::from_secs(29)).await;
            initiator.send(missing, &[]).await;
            assert_eq!(initiator.finish(&[], 0).await.data.len(), 8);
            assert_eq!(initiator.finish(&[], 0).await.data.len(), 512);
        }
    });
}

/// A parameter list that waits for another to be done with is payload like any other.
#[test]
fn parameter_lists_are_counted() {
    run(PortalOptions::default(), |world| async move {
        let mut first = world.login("a", &[]).await;
        let mut second = world.login("b", &[]).await;
        world.disk.slow.set(Some(world.runtime.timers.clone()));
        world.disk.hangs.set(true);
        let mut list = vec![0; 60_000];
        (list[15], list[20]) = (1, 1);
        let register = first.scsi(0x20, 24, cdb("5f 00 00 00 00 00 00 00 18"));
        first.send(register, &list[..24]).await;
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        let register = second.scsi(0x20, 60_000, cdb("5f 00 00 00 00 00 00 ea 60"));
        second.send(register, &list).await;
        world.runtime.timers.sleep(Duration::from_millis(1)).await;
        assert!(world.runtime.bufs.used_bytes() >= 60_000);
        world.disk.hangs.set(false);
        assert_eq!(first.finish(&[], 0).await.status, 0);
        assert_eq!(second.finish(&[], 0).await.sense_code(), (5, 0x1a, 0), "it says that less follows");
        let too_long = second.scsi(0x20, 65_537, cdb("5f 00 00 00 00 00 01 00 01"));
        second.send(too_long, &[]).await;
        let outcome = second.finish(&[], 0).await;
        assert_eq!((outcome.sense_code(), outcome.r2ts.len()), ((5, 0x1a, 0), 0));
    });
}

/// Dice of a seed that is told.
struct Dice(Seeded);

impl Dice {
    fn below(&self, n: u32) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes) % n
    }
}

/// One connection's life: a login, some writes of what is then read again, a decent or a sudden end.
async fn live(world: &World, dice: &Dice, initiator: u32, session: u32) {
    let mut connection = world.connect();
    connection.isid = session as u8;
    if dice.below(8) == 0 {
        // One that never logs in.
        return world.runtime.timers.sleep(Duration::from_secs(dice.below(20).into())).await;
    }
    let name = format!("InitiatorName=iqn.test:load{initiator}");
    let (response, _) = connection.login_with(&[&name, &format!("TargetName={TARGET}"), "InitialR2T=No"]).await;
    assert_eq!(response.status(), 0, "nobody is refused");
    assert_eq!(connection.command("00", 0).await.sense_code(), (6, 0x29, 0));
    let place = (initiator * 8 + session) * 256;
    for round in 0..dice.below(12) {
        let data = vec![(place / 256 + round) as u8 | 1; 512 * (1 + dice.below(255)) as usize];
        assert_eq!(connection.write(place, &data).await.status, 0);
        assert!(connection.read(place, (data.len() / 512) as u16).await.data == data);
        world.runtime.timers.sleep(Duration::from_millis(dice.below(30).into())).await;
    }
    match dice.below(3) {
        // In the middle of a write, whose data will not come.
        0 => drop(start_write(&mut connection, place).await),
        1 => {
            connection.send(Bhs::from_bytes(request(opcode::LOGOUT_REQUEST, true)), &[]).await;
            assert_eq!(connection.receive().await.unwrap().0.operation(), opcode::LOGOUT_RESPONSE);
        }
        _ => {}
    }
}

/// 64 sessions of 8 initiators, whose connections come and go. A failure prints its seed; `GOSSAMER_SEED=N` runs that one.
#[test]
fn many_sessions_come_and_go() {
    let seed = std::env::var("GOSSAMER_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("GOSSAMER_SEED={seed}");
    run(PortalOptions::default(), move |world| async move {
        world.disk.slow.set(Some(world.runtime.timers.clone()));
        let dice = Rc::new(Dice(Seeded::from_u64(seed)));
        let (lives, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for n in 0..64 {
            let (world, dice, lives, most) = (world.clone(), dice.clone(), lives.clone(), most.clone());
            world.runtime.spawner.clone().spawn(async move {
                for _ in 0..8 {
                    live(&world, &dice, n / 8, n % 8).await;
                    most.set(most.get().max(world.portal.sessions().len()));
                    lives.set(lives.get() + 1);
                }
            });
        }
        while lives.get() < 64 * 8 {
            world.runtime.timers.sleep(Duration::from_millis(10)).await;
        }
        assert!(most.get() > 32, "{} at a time", most.get());
        world.runtime.timers.sleep(Duration::from_secs(1)).await;
        assert!(world.portal.sessions().is_empty(), "{:?}", world.portal.sessions());
    });
}
