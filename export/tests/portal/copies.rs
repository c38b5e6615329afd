//! EXTENDED COPY and RECEIVE COPY RESULTS, within a unit and between two.

use crate::common::{POOL_BLOCK_BYTES, ThinDisk};
use crate::initiator::{Initiator, Outcome, cdb};
use crate::pipe::duplex;
use crate::sessions::manage;
use core::time::Duration;
use export::iscsi::pdu::opcode;
use export::{Chap, Directory, Peer, Portal, PortalOptions, Refusal, UnitError};
use platform::Runtime;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::Executor;
use std::rc::Rc;

const TARGETS: [&str; 2] = ["iqn.test:a", "iqn.test:b"];
const BLOCKS: u64 = 2048;

/// Two targets. An initiator whose name ends with "first" may use the first only.
struct Pair([Rc<ThinDisk>; 2]);

impl Pair {
    fn admits(&self, index: usize, peer: &Peer) -> bool {
        index == 0 || !peer.initiator.ends_with("first")
    }
}

impl Directory for Pair {
    type Unit = ThinDisk;

    fn targets(&self, peer: &Peer) -> Vec<String> {
        (0..2).filter(|index| self.admits(*index, peer)).map(|index| TARGETS[index].into()).collect()
    }

    fn wanted(&self, _: Option<&str>, _: &Peer) -> Option<Rc<Chap>> {
        None
    }

    fn named(&self, naa: &[u8; 16], peer: &Peer) -> Option<String> {
        let index = self.0.iter().position(|disk| disk.naa.get() == *naa)?;
        self.admits(index, peer).then(|| TARGETS[index].into())
    }

    async fn open(&self, target: &str, peer: &Peer) -> Result<Rc<ThinDisk>, Refusal> {
        let index = TARGETS.iter().position(|name| *name == target).ok_or(Refusal::NotFound)?;
        if self.admits(index, peer) { Ok(self.0[index].clone()) } else { Err(Refusal::Forbidden) }
    }
}

#[derive(Clone)]
struct World {
    runtime: Runtime,
    portal: Portal<Pair>,
    disks: [Rc<ThinDisk>; 2],
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(World) -> F + 'static) {
    simulated::run(&Executor::new(), Rc::new(Seeded::from_u64(1)), 64 << 20, async move |runtime| {
        let disks = [1, 2].map(|last| {
            let disk = ThinDisk::new(BLOCKS * 512, 512, runtime.bufs.clone());
            let mut naa = *b"\x60copied-from-to-";
            naa[15] = last;
            disk.naa.set(naa);
            Rc::new(disk)
        });
        let portal = Portal::new(&runtime, Rc::new(Pair(disks.clone())), PortalOptions::default());
        let world = World { runtime, portal, disks };
        test(world.clone()).await;
        world.portal.shutdown().await;
        assert_eq!(world.runtime.bufs.used_bytes(), 0, "buffers are left behind");
    });
}

impl World {
    async fn login(&self, name: &str, index: usize) -> Initiator {
        let (here, there) = duplex(3260);
        let portal = self.portal.clone();
        self.runtime.spawner.spawn(async move { portal.serve(there).await });
        let mut initiator = Initiator::new(here);
        let keys = [format!("InitiatorName=iqn.test:{name}"), format!("TargetName={}", TARGETS[index])];
        let (response, _) = initiator.login_with(&[&keys[0], &keys[1]]).await;
        assert_eq!((response.status_class, response.status_detail), (0, 0), "login of {name}");
        initiator.command("00", 0).await;
        initiator
    }

    fn naa(&self, index: usize) -> [u8; 16] {
        self.disks[index].naa.get()
    }

    /// A list that names both units.
    fn list(&self, usage: u8, segments: &[Vec<u8>]) -> Vec<u8> {
        list(9, usage, &[cscd(&self.naa(0)), cscd(&self.naa(1))], segments)
    }
}

fn cscd(naa: &[u8; 16]) -> Vec<u8> {
    [&[0xe4, 0, 0, 0, 1, 3, 0, 16][..], naa, &[0, 0, 0, 0, 0, 0, 2, 0]].concat()
}

/// Block to block: source and target index, blocks, LBAs.
fn blocks(from: (u16, u64), to: (u16, u64), blocks: u16) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0x18];
    bytes.extend([from.0.to_be_bytes(), to.0.to_be_bytes()].concat());
    bytes.extend([0, 0]);
    bytes.extend(blocks.to_be_bytes());
    bytes.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
    bytes
}

/// The same by bytes, with offsets within the first block.
fn bytes(from: (u16, u64), to: (u16, u64), len: u32) -> Vec<u8> {
    let mut bytes = vec![10, 0, 0, 0x1c];
    bytes.extend([from.0.to_be_bytes(), to.0.to_be_bytes()].concat());
    bytes.extend(len.to_be_bytes());
    bytes.extend([(from.1 / 512).to_be_bytes(), (to.1 / 512).to_be_bytes()].concat());
    bytes.extend([((from.1 % 512) as u16).to_be_bytes(), ((to.1 % 512) as u16).to_be_bytes()].concat());
    bytes
}

fn list(id: u8, usage: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let mut bytes = vec![id, usage << 3];
    bytes.extend((cscds.len() as u16).to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend((segments.len() as u32).to_be_bytes());
    bytes.extend([0; 4]);
    [bytes, cscds, segments].concat()
}

fn copy_cdb(list: &[u8]) -> String {
    let [a, b, c, d] = (list.len() as u32).to_be_bytes();
    format!("83 00 00 00 00 00 00 00 00 00 {a:02x} {b:02x} {c:02x} {d:02x}")
}

async fn copy(initiator: &mut Initiator, list: &[u8]) -> Outcome {
    if list.is_empty() {
        return initiator.command(&copy_cdb(list), 0).await;
    }
    let immediate = list.len().min(8192);
    initiator.command_out(&copy_cdb(list), list, immediate, immediate, 8192).await
}

/// Sends a copy and does not wait for its end.
async fn start_copy(initiator: &mut Initiator, list: &[u8]) {
    let command = initiator.scsi(0x20, list.len() as u32, cdb(&copy_cdb(list)));
    initiator.send(command, list).await;
}

async fn results(initiator: &mut Initiator, action: u8, id: u8) -> Outcome {
    initiator.command(&format!("84 {action:02x} {id:02x} 00 00 00 00 00 00 00 00 00 04 00"), 1024).await
}

fn seed() -> u64 {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| now() % 1_000_000_007);
    println!("SEED={seed}");
    seed
}

/// Every segment does what a copy in memory does, whatever of it is shared.
#[test]
fn random_segments_agree_with_memory() {
    let seed = seed();
    run(move |world| async move {
        let dice = Seeded::from_u64(seed);
        let below = |limit: u64| {
            let mut bytes = [0; 8];
            dice.fill(&mut bytes);
            u64::from_le_bytes(bytes) % limit
        };
        let mut initiator = world.login("host", 0).await;
        let size = BLOCKS * 512;
        let mut model = [0, 1].map(|index: u64| (0..size).map(|at| (at / 7 * (index + 3)) as u8).collect::<Vec<u8>>());
        for (disk, bytes) in world.disks.iter().zip(&model) {
            disk.contents.poke(0, bytes);
        }
        let pool_block = POOL_BLOCK_BYTES;
        for _ in 0..300 {
            let mut segments = Vec::new();
            for _ in 0..1 + below(3) {
                let (source, target) = (below(2), below(2));
                // Of blocks of the pool, of logical blocks, or of bytes.
                let unit = [pool_block, 512, 1][below(3) as usize];
                let any = |limit: u64| below(limit / unit) * unit;
                let from = any(size);
                // Aligned alike, near by, or anywhere.
                let to = match below(3) {
                    0 => (from % pool_block + below(size / pool_block) * pool_block).min(size - 1),
                    1 => (from + any(4 * pool_block)).saturating_sub(2 * pool_block).min(size - 1),
                    _ => any(size),
                };
                let len = (unit + any(6 * pool_block)).min(size - from.max(to));
                let (from, to, len) = (from / unit * unit, to / unit * unit, len / unit * unit);
                let (s, t) = (source as u16, target as u16);
                segments.push(match unit {
                    1 => bytes((s, from), (t, to), len as u32),
                    _ => blocks((s, from / 512), (t, to / 512), (len / 512) as u16),
                });
                let part = model[source as usize][from as usize..(from + len) as usize].to_vec();
                model[target as usize][to as usize..(to + len) as usize].copy_from_slice(&part);
            }
            let outcome = copy(&mut initiator, &world.list(2, &segments)).await;
            assert_eq!(outcome.status, 0, "{:x?}", outcome.sense);
            for (index, bytes) in model.iter().enumerate() {
                let found = world.disks[index].contents.peek(0, size as usize);
                let wrong = found.iter().zip(bytes).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "unit {index} after {segments:x?}");
            }
        }
        let shared = world.disks.iter().map(|disk| disk.shared_bytes.get()).sum::<u64>();
        assert!(shared > 100 * pool_block, "{shared} bytes were shared");
    });
}

#[test]
fn whole_blocks_are_shared_and_the_rest_is_copied() {
    run(|world| async move {
        let mut initiator = world.login("host", 0).await;
        let pool_block = POOL_BLOCK_BYTES / 512;
        assert_eq!(initiator.write(0, &vec![0xaa; 4 * POOL_BLOCK_BYTES as usize]).await.status, 0);
        let [_, target] = &world.disks;
        // From the last logical block of the first pool block to the first of the fourth.
        let segment = blocks((0, pool_block - 1), (1, 3 * pool_block - 1), 2 * pool_block as u16 + 2);
        assert_eq!(copy(&mut initiator, &world.list(0, &[segment])).await.status, 0);
        assert_eq!(target.shared_bytes.get(), 2 * POOL_BLOCK_BYTES);
        let expected = [vec![0; (3 * pool_block as usize - 1) * 512], vec![0xaa; (2 * pool_block as usize + 2) * 512]];
        let found = target.contents.peek(0, (BLOCKS * 512) as usize);
        assert_eq!(found[..expected.concat().len()], expected.concat());
        assert!(found[expected.concat().len()..].iter().all(|byte| *byte == 0));
        let status = results(&mut initiator, 0, 9).await;
        assert_eq!(status.data[..8], [0, 0, 0, 8, 1, 0, 1, 0]);
        assert_eq!(status.data[8..], ((2 * pool_block as u32 + 2) * 512).to_be_bytes());
        assert_eq!(results(&mut initiator, 4, 9).await.sense_code(), (5, 0x24, 0), "it did not fail");
        assert_eq!(results(&mut initiator, 0, 10).await.sense_code(), (5, 0x24, 0), "there was no such copy");
    });
}

#[test]
fn lists_that_cannot_be() {
    run(|world| async move {
        let mut initiator = world.login("host", 0).await;
        assert_eq!(copy(&mut initiator, &[]).await.status, 0, "no list, no copy");
        assert_eq!(copy(&mut initiator, &world.list(0, &[])).await.status, 0, "no segment");
        let one = |from, to| blocks(from, to, 1);
        let table = [
            (world.list(0, &[one((0, BLOCKS), (1, 0))]), (0x0a, 0, 0), [2u8, 5, 0x21]),
            (world.list(0, &[one((0, 0), (1, BLOCKS))]), (0x0a, 0, 0), [2, 5, 0x21]),
            (world.list(0, &[one((0, u64::MAX), (1, 0))]), (0x0a, 0, 0), [2, 5, 0x21]),
            (world.list(0, &[one((2, 0), (1, 0))]), (0x0a, 0x0d, 2), [0; 3]),
            (world.list(0, &[one((0, 0), (7, 0))]), (0x0a, 0x0d, 2), [0; 3]),
            (world.list(1, &[one((0, 0), (1, 0))]), (5, 0x26, 0), [0; 3]),
            (world.list(3, &[one((0, 0), (1, 0))]), (5, 0x26, 0), [0; 3]),
            (list(0, 0, &[cscd(b"\x60nobody-has-this")], &[one((0, 0), (0xffff, 0))]), (0x0a, 0x0d, 2), [0; 3]),
            (vec![0; 15], (5, 0x1a, 0), [0; 3]),
        ];
        for (list, expected, cause) in table {
            let outcome = copy(&mut initiator, &list).await;
            assert_eq!(outcome.sense_code(), expected, "{list:x?}");
            if expected.0 == 0x0a {
                assert_eq!(outcome.sense[..7], [0xf0, 0, 0x0a, 0, 0, 0, 0], "the number of the segment");
            }
            if cause[0] > 0 {
                let at = usize::from(outcome.sense[8].max(outcome.sense[9]));
                assert_eq!([outcome.sense[at], outcome.sense[at + 3], outcome.sense[at + 13]], cause);
            }
        }
        let mut wrong_block = cscd(&world.naa(0));
        wrong_block[30] = 16;
        let outcome = copy(&mut initiator, &list(0, 0, &[wrong_block], &[one((0, 0), (0xffff, 0))])).await;
        assert_eq!(outcome.sense_code(), (5, 0x26, 0), "other blocks than the unit has");
        let mut tape = cscd(&world.naa(0));
        tape[1] = 1;
        let outcome = copy(&mut initiator, &list(0, 0, &[tape], &[one((0, 0), (0xffff, 0))])).await;
        assert_eq!(outcome.sense_code(), (0x0a, 0x0d, 3));
        assert!(world.disks.iter().all(|disk| disk.contents.peek(0, 4096).iter().all(|byte| *byte == 0)));
    });
}

/// What was copied before the failure stays, and it is told how far it went and why it ended.
#[test]
fn a_failure_half_way() {
    run(|world| async move {
        let mut initiator = world.login("host", 0).await;
        assert_eq!(initiator.write(0, &[0xaa; 1024]).await.status, 0);
        let fine = blocks((0, 0), (0xffff, 100), 2);
        let fails = blocks((0, 0), (1, 0), 2);
        world.disks[1].fails.set(Some(UnitError::NoSpace));
        let outcome = copy(&mut initiator, &world.list(0, &[fine, fails])).await;
        assert_eq!(outcome.sense_code(), (0x0a, 0x0d, 1));
        assert_eq!(outcome.sense[3..7], [0, 0, 0, 1], "the second segment");
        assert_eq!([outcome.sense[8], outcome.sense[9]], [0, 18], "the destination failed");
        assert_eq!([outcome.sense[18], outcome.sense[21], outcome.sense[31], outcome.sense[32]], [2, 7, 0x27, 7]);
        assert_eq!(world.disks[0].contents.peek(100 * 512, 1024), [0xaa; 1024]);
        let status = results(&mut initiator, 0, 9).await;
        assert_eq!(status.data, [0, 0, 0, 8, 2, 0, 1, 0, 0, 0, 4, 0]);
        let details = results(&mut initiator, 4, 9).await.data;
        assert_eq!(details[56..60], [2, 0, 0, 37]);
        assert_eq!(details[60..], outcome.sense);
        world.disks[1].fails.set(None);
        world.disks[1].read_only.set(true);
        let outcome = copy(&mut initiator, &world.list(2, &[blocks((0, 0), (1, 0), 1)])).await;
        assert_eq!((outcome.sense_code(), outcome.sense[31]), ((0x0a, 0x0d, 1), 0x27));
    });
}

/// A copy gets an initiator nothing that it has no right to.
#[test]
fn rights_and_reservations_hold_for_both_units() {
    run(|world| async move {
        let mut stranger = world.login("first", 0).await;
        let to_second = world.list(0, &[blocks((0, 0), (1, 0), 1)]);
        let from_second = world.list(0, &[blocks((1, 0), (0, 0), 1)]);
        for list in [&to_second, &from_second] {
            assert_eq!(copy(&mut stranger, list).await.sense_code(), (0x0a, 0x0d, 2), "it may not use the second");
        }
        let (mut host, mut other) = (world.login("host", 0).await, world.login("other", 1).await);
        let reserve = |key: u64, action: u64| [key.to_be_bytes(), action.to_be_bytes(), [0; 8]].concat();
        let register = other.command_out("5f 00 00 00 00 00 00 00 18", &reserve(0, 1), 24, 24, 24).await;
        assert_eq!(register.status, 0);
        let exclusive = other.command_out("5f 01 01 00 00 00 00 00 18", &reserve(1, 0), 24, 24, 24).await;
        assert_eq!(exclusive.status, 0, "write exclusive");
        let outcome = copy(&mut host, &to_second).await;
        assert_eq!((outcome.sense_code(), outcome.sense[18]), ((0x0a, 0x0d, 1), 0x18), "RESERVATION CONFLICT");
        assert_eq!(copy(&mut host, &from_second).await.status, 0, "reading is allowed");
        assert_eq!(other.command_out("5f 03 00 00 00 00 00 00 18", &reserve(1, 0), 24, 24, 24).await.status, 0);
        assert_eq!(other.command("16", 0).await.status, 0, "RESERVE");
        let outcome = copy(&mut host, &from_second).await;
        assert_eq!((outcome.sense_code(), outcome.sense[18]), ((0x0a, 0x0d, 1), 0x18));
    });
}

fn key_list(key: u64, action_key: u64) -> Vec<u8> {
    [key.to_be_bytes(), action_key.to_be_bytes(), [0; 8]].concat()
}

/// Begins a copy from the first unit to the second that finds the second slow; returns the initiator that asked for it.
async fn slow_copy(world: &World) -> Initiator {
    let mut host = world.login("host", 0).await;
    assert_eq!(host.write(0, &vec![0xaa; 1 << 19]).await.status, 0);
    world.disks[1].slow.set(Some(world.runtime.timers.clone()));
    world.disks[1].hangs.set(true);
    // Not aligned alike: it is read and written.
    start_copy(&mut host, &world.list(0, &[blocks((0, 0), (1, 1), 1024)])).await;
    world.runtime.timers.sleep(Duration::from_millis(2)).await;
    host
}

/// Nothing is written to the second unit any more, and the copy is told why.
async fn is_fenced(world: &World, mut host: Initiator) {
    let held = || world.disks[1].contents.peek(0, 1 << 20);
    let before = held();
    let outcome = host.finish(&[], 0).await;
    assert!(before == held(), "it was written to after its commands had ended");
    assert!(before.ends_with(&[0; 512]), "the copy did not come to its end");
    assert_eq!((outcome.sense_code(), outcome.sense[18]), ((0x0a, 0x0d, 1), 0x40), "TASK ABORTED");
    assert_eq!(host.command("00", 0).await.status, 0);
}

/// Whose registration was preempted, and whose tasks were aborted, writes no more: not by a copy either.
#[test]
fn preempt_and_abort_ends_copies_from_other_units() {
    run(|world| async move {
        let (mut there, mut other) = (world.login("host", 1).await, world.login("other", 1).await);
        let hex = |action: u8, kind: u8| format!("5f {action:02x} {kind:02x} 00 00 00 00 00 18");
        for (initiator, key) in [(&mut there, 1), (&mut other, 2)] {
            assert_eq!(initiator.command_out(&hex(0, 0), &key_list(0, key), 24, 24, 24).await.status, 0);
        }
        assert_eq!(there.command_out(&hex(1, 5), &key_list(1, 0), 24, 24, 24).await.status, 0);
        let host = slow_copy(&world).await;
        let preempt = other.scsi(0x20, 24, cdb(&hex(5, 5)));
        other.send(preempt, &key_list(2, 1)).await;
        world.runtime.timers.sleep(Duration::from_millis(2)).await;
        world.disks[1].hangs.set(false);
        assert_eq!(other.finish(&[], 0).await.status, 0, "PREEMPT AND ABORT");
        is_fenced(&world, host).await;
    });
}

/// CLEAR TASK SET and LOGICAL UNIT RESET.
#[test]
fn task_management_ends_copies_from_other_units() {
    for function in [4, 5] {
        run(move |world| async move {
            let mut other = world.login("other", 1).await;
            let host = slow_copy(&world).await;
            manage(&mut other, function, 0, 0).await;
            world.runtime.timers.sleep(Duration::from_millis(2)).await;
            world.disks[1].hangs.set(false);
            let (answer, _) = other.receive().await.unwrap();
            assert_eq!(answer.operation(), opcode::TASK_MANAGEMENT_RESPONSE);
            is_fenced(&world, host).await;
        });
    }
}

/// Who may not use a unit any more does not write to it by a copy that began before.
#[test]
fn a_change_of_rights_ends_copies_from_other_units() {
    run(|world| async move {
        let mut bystander = world.login("bystander", 0).await;
        let host = slow_copy(&world).await;
        world.disks[1].hangs.set(false);
        world.portal.end_sessions(Some(TARGETS[1]), |peer| !peer.initiator.ends_with("host")).await;
        is_fenced(&world, host).await;
        assert_eq!(bystander.command("00", 0).await.status, 0);
    });
}

/// An ordered command does not wait for the copies of others, which know nothing of it.
#[test]
fn copies_from_other_units_take_no_part_in_the_order() {
    run(|world| async move {
        let mut other = world.login("other", 1).await;
        let mut host = slow_copy(&world).await;
        let mut ordered = other.scsi(0, 0, [0; 16]);
        ordered.flags = ordered.flags & !7 | 2;
        other.send(ordered, &[]).await;
        assert_eq!(other.finish(&[], 0).await.status, 0);
        world.disks[1].hangs.set(false);
        assert_eq!(host.finish(&[], 0).await.status, 0);
    });
}

/// Initiators send again by themselves what ended with BUSY. A copy that has overwritten what it reads is not such a one.
#[test]
fn a_copy_that_has_begun_does_not_end_with_busy() {
    run(|world| async move {
        let mut host = world.login("host", 0).await;
        let disk = &world.disks[0];
        let data: Vec<u8> = (0..1u32 << 17).flat_map(u32::to_be_bytes).collect();
        disk.contents.poke(0, &data);
        // 512 KiB are moved up by 128 KiB, from the end.
        let list = world.list(0, &[blocks((0, 0), (0, 256), 1024)]);
        disk.fails.set(Some(UnitError::Busy));
        assert_eq!(copy(&mut host, &list).await.status, 0x08, "nothing was written");
        disk.fails.set(None);
        disk.slow.set(Some(world.runtime.timers.clone()));
        start_copy(&mut host, &list).await;
        let (last, end) = (data.last_chunk::<512>().unwrap(), (5 << 17) - 512);
        while disk.contents.peek(end, 512) != last {
            world.runtime.timers.sleep(Duration::from_micros(1)).await;
        }
        disk.fails.set(Some(UnitError::Busy));
        let outcome = host.finish(&[], 0).await;
        assert_eq!(outcome.sense_code(), (0x0a, 0x0d, 1));
        assert_eq!(outcome.sense[18], 0x08, "BUSY is why");
        assert_ne!(disk.contents.peek(1 << 17, data.len()), data);
    });
}
