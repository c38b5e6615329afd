//! Snapshots of several devices at one instant, and the exchange of trees that a roll-back is made of.

use super::{BLOCK, World, id, run, run_blank};
use crate::control::{DeviceId, Errno};
use crate::metadata::check;
use crate::{Change, Error, Pool, Records, Thin};
use platform::block::Disk;
use platform::mem::MemDisk;
use std::cell::Cell;
use std::rc::Rc;
use std::string::ToString;
use std::vec::Vec;

async fn sound(world: &World) {
    let disk = Disk::new(world.meta.contents());
    let report = check::check(&world.runtime, &disk, 1 << 20).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

/// Device 0 with 20 blocks of 0xAA, its snapshot 1, and 0xBB in some of device 0's blocks since then.
async fn changed_since_its_snapshot(world: &World) -> (Pool, Records, Thin) {
    let pool = world.open().await;
    let records = Records::create(&pool).await.unwrap();
    pool.create_thin(id(0)).await.unwrap();
    let thin = pool.open_thin(id(0), None).await.unwrap();
    world.write(&thin, 0, 20 * BLOCK, 0xAA).await.unwrap();
    records.apply(&[Change::CreateSnap { device: id(1), origin: id(0) }], &[]).await.unwrap();
    world.write(&thin, 5 * BLOCK, 3 * BLOCK, 0xBB).await.unwrap();
    world.write(&thin, 30 * BLOCK, BLOCK, 0xBB).await.unwrap();
    thin.flush().await.unwrap();
    (pool, records, thin)
}

/// What a roll-back of device 0 to its snapshot 1 is: device 2 gets the old tree.
const ROLL_BACK: [Change; 2] = [
    Change::CreateSnap { device: DeviceId::new(2).unwrap(), origin: DeviceId::new(1).unwrap() },
    Change::Exchange(DeviceId::new(0).unwrap(), DeviceId::new(2).unwrap()),
];

async fn is_old(world: &World, thin: &Thin) -> bool {
    let byte = world.read(thin, 5 * BLOCK, 1).await.unwrap()[0];
    let (old, inside) = (byte == 0xAA, if byte == 0xAA { 0xAA } else { 0xBB });
    world.expect(thin, 0, 5 * BLOCK, 0xAA).await;
    world.expect(thin, 5 * BLOCK, 3 * BLOCK, inside).await;
    world.expect(thin, 8 * BLOCK, 12 * BLOCK, 0xAA).await;
    world.expect(thin, 30 * BLOCK, BLOCK, if old { 0 } else { 0xBB }).await;
    old
}

#[test]
fn an_exchange_gives_an_active_device_the_shared_tree_of_a_snapshot() {
    run_blank(1, 200, async |world| {
        let (pool, records, thin) = changed_since_its_snapshot(&world).await;
        records.apply(&ROLL_BACK, &[(0, b"rolled back".to_vec())]).await.unwrap();
        assert_eq!(records.read(0).await.unwrap(), b"rolled back");
        assert_eq!(pool.root(id(0)).await, pool.root(id(1)).await);
        assert!(is_old(&world, &thin).await);
        assert_eq!(thin.status().await.unwrap().to_string(), std::format!("{} {}", 20 * BLOCK, 20 * BLOCK - 1));
        let after = pool.open_thin(id(2), None).await.unwrap();
        assert!(!is_old(&world, &after).await);
        // Both share: neither sees what is written to the other.
        let snapshot = pool.open_thin(id(1), None).await.unwrap();
        let root = pool.root(id(1)).await.unwrap();
        world.write(&thin, 6 * BLOCK, 1, 0xCC).await.unwrap();
        assert_eq!(pool.root(id(1)).await, Ok(root), "a snapshot of it, and writes to that, do not change a device");
        world.write(&snapshot, 7 * BLOCK, 1, 0xDD).await.unwrap();
        assert_ne!(pool.root(id(1)).await, Ok(root));
        world.expect(&snapshot, 6 * BLOCK, BLOCK, 0xAA).await;
        world.expect(&thin, 6 * BLOCK, 1, 0xCC).await;
        world.expect(&thin, 7 * BLOCK, BLOCK, 0xAA).await;
        drop((after, snapshot, thin));
        pool.delete(id(2)).await.unwrap();
        pool.delete(id(1)).await.unwrap();
        assert_eq!(pool.status().data_used_blocks, 20 + 2, "nothing of the old tree is left");
        sound(&world).await;
    });
}

#[test]
fn an_exchange_that_cannot_be_is_undone() {
    run_blank(2, 200, async |world| {
        let (pool, records, thin) = changed_since_its_snapshot(&world).await;
        let before = (pool.root(id(0)).await, pool.root(id(1)).await);
        let refused = [ROLL_BACK[0], ROLL_BACK[1], Change::CreateThin(id(1))];
        assert_eq!(records.apply(&refused, &[]).await.unwrap_err().errno(), Errno::EEXIST);
        assert_eq!(records.apply(&[Change::Exchange(id(0), id(9))], &[]).await.unwrap_err().errno(), Errno::ENODATA);
        let reserved = records.apply(&[Change::Exchange(id(0), records.device())], &[]).await;
        assert_eq!(reserved, Err(Error::Reserved(records.device())));
        assert_eq!((pool.root(id(0)).await, pool.root(id(1)).await), before);
        assert!(!is_old(&world, &thin).await);
        pool.commit().await.unwrap();
        sound(&world).await;
    });
}

/// The power is cut at any moment: all of it has happened, or nothing.
#[test]
fn an_exchange_is_whole_or_not_there_after_a_power_cut() {
    let mut seen = [0; 2];
    for seed in 0..60 {
        let disks = run_blank(seed, 200, async move |world| {
            let (_pool, records, _thin) = changed_since_its_snapshot(&world).await;
            let work = async move { records.apply(&ROLL_BACK, &[(0, b"rolled back".to_vec())]).await };
            let done = world.runtime.spawner.spawn(work);
            for _ in 0..seed * 3 {
                platform::task::yield_now().await;
            }
            world.runtime.timers.sleep(platform::time::Duration::from_micros(world.below(4000))).await;
            drop(done);
            world.cut()
        });
        let old = run(seed, disks.0, disks.1, async |world| {
            sound(&world).await;
            let pool = world.open().await;
            let records = Records::find(&pool).await.unwrap().unwrap();
            let told = records.read(0).await.unwrap() == b"rolled back";
            let thin = pool.open_thin(id(0), None).await.unwrap();
            assert_eq!(is_old(&world, &thin).await, told);
            let devices = pool.devices().await.unwrap().len();
            assert_eq!(devices, if told { 4 } else { 3 });
            told
        });
        seen[usize::from(old)] += 1;
    }
    assert!(seen.iter().all(|times| *times > 3), "{seen:?}");
}

/// A hundred volumes, a counter that is written to one after the other in order, each write after the end of the one before:
/// snapshots of all at one instant have no gap in it.
#[test]
fn a_group_has_no_write_without_those_before_it() {
    const VOLUMES: u64 = 100;
    for seed in 0..6 {
        let meta = MemDisk::new(4096 * 8);
        run(seed, meta, MemDisk::new(4000 * BLOCK), async move |world| {
            let pool = world.open().await;
            let records = Records::create(&pool).await.unwrap();
            let all: Vec<Change> = (0..VOLUMES).map(|n| Change::CreateThin(id(n))).collect();
            records.apply(&all, &[]).await.unwrap();
            let mut volumes = Vec::new();
            for n in 0..VOLUMES {
                volumes.push(pool.open_thin(id(n), None).await.unwrap());
            }
            let (stop, written) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
            let (stopped, count, writer) = (stop.clone(), written.clone(), world.clone());
            let writing = world.runtime.spawner.spawn(async move {
                while !stopped.get() {
                    let next: u64 = count.get() + 1;
                    let mut sector = [0; 512];
                    sector[..8].copy_from_slice(&next.to_le_bytes());
                    let volume = &volumes[(next % VOLUMES) as usize];
                    writer.write_bytes(volume, 0, &sector, false).await.unwrap();
                    count.set(next);
                }
            });
            for group in 1..=3 {
                let before = written.get();
                while written.get() < before + 150 + world.below(100) {
                    world.runtime.timers.sleep(platform::time::Duration::from_micros(100)).await;
                }
                let (commits, least) = (pool.0.metadata.commits(), written.get());
                let snapshot = |n| id(group * 1000 + n);
                let group: Vec<Change> =
                    (0..VOLUMES).map(|n| Change::CreateSnap { device: snapshot(n), origin: id(n) }).collect();
                records.apply(&group, &[(0, b"a group".to_vec())]).await.unwrap();
                assert!(pool.0.metadata.commits() <= commits + 2, "one commit, and one by the period at most");
                let mut counters = Vec::new();
                for n in 0..VOLUMES {
                    let thin = pool.open_thin(snapshot(n), None).await.unwrap();
                    let bytes = world.read(&thin, 0, 1).await.unwrap();
                    counters.push(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
                }
                let last = *counters.iter().max().unwrap();
                assert!(last >= least, "seed {seed}: what was acknowledged before is in");
                for count in last.saturating_sub(VOLUMES - 1).max(1)..=last {
                    assert_eq!(counters[(count % VOLUMES) as usize], count, "seed {seed}: {last} is in without it");
                }
            }
            stop.set(true);
            writing.await.unwrap();
        });
    }
}
