//! Records and devices agree, whatever a failed transaction has left on the disk.

use super::{BLOCK, Disks, World, name, run, run_with};
use mgmt::*;
use platform::block::{Disk, Op, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::Executor;
use std::cell::Cell;
use std::format;
use std::rc::Rc;
use std::vec::Vec;
use thinp::records::Records;

/// The next commit fails with its last flush: it is on the disk, and nobody is told so.
fn fail_the_last_flush(world: &World) {
    let (written, failed) = (Cell::new(false), Cell::new(false));
    world.journal.fail(move |disk, op, sector| {
        written.set(written.get() || disk == 0 && matches!(op, Op::Write { .. }) && sector == 0);
        disk == 0 && op == Op::Flush && written.get() && !failed.replace(true)
    });
}

/// Who changes the records must know them: those of the transaction that failed are not overwritten from an older memory.
#[test]
fn records_that_could_not_be_read_again_are_read_before_the_next_change() {
    run(1, Disks::new(400), async |world| {
        world.create("a", 4).await;
        fail_the_last_flush(&world);
        let lost = world.manager.create_snapshot(&name("a"), NewSnapshot { name: name("b"), read_only: true }).await;
        lost.unwrap_err();
        assert_eq!(world.records(), ["a"]);
        world.journal.fail(|disk, op, _| disk == 1 && op == Op::Read);
        world.manager.clear_needs_check().await.unwrap_err();
        let refused = world.manager.delete_volume(&name("a")).await;
        refused.unwrap_err();
        world.journal.fail_no_more();
        world.create("c", 4).await;
        assert_eq!(world.records(), ["a", "b", "c"]);
        world.sound().await;
    });
}

/// Starts count activations, and policies write down when they took something: what is written by itself always fits.
#[test]
fn an_appliance_whose_own_page_is_full_to_the_byte_goes_on() {
    let sectors = |bytes: u64| bytes / SECTOR_BYTES as u64;
    let disks = Disks { meta: MemDisk::new(sectors(256 * 4096)), data: MemDisk::new(sectors(200 * BLOCK)) };
    const AT: &str = "check.start=no time=20261130t000500z";
    run_with(14, disks.clone(), "check.start=no", async |world| {
        let names: Vec<VolumeName> = (0..40).map(|n| name(&format!("v{n:039}"))).collect();
        for volume in &names {
            world.create(volume.as_str(), 1).await;
        }
        let new = |volumes: &[VolumeName]| NewPolicy {
            volumes: volumes.to_vec(),
            every_minutes: None,
            keep: 0,
            hourly: 0,
            daily: 1,
            weekly: 0,
        };
        let left = || {
            let served = world.manager.service.served().unwrap();
            Records::PAGE_CAPACITY_BYTES - minicbor::to_vec(served.catalog().appliance()).unwrap().len()
        };
        let (mut policies, mut volumes) = (0, names.len());
        while volumes > 0 {
            match world.manager.set_policy(&name(&format!("p{policies}")), new(&names[..volumes])).await {
                Ok(_) => policies += 1,
                Err(_) => volumes /= 2,
            }
        }
        // The rest is filled by the longest name that fits.
        world.create("w", 1).await;
        for len in (1..44).rev() {
            if world.manager.set_policy(&name(&"q".repeat(len)), new(&[name("w")])).await.is_ok() {
                break;
            }
        }
        assert!(left() < 4, "{}", left());
        world.manager.service.close().await;
    });
    for boot in 0..25 {
        run_with(2000 + boot, disks.clone(), AT, async |world| world.manager.service.close().await);
    }
    run_with(15, disks, AT, async |world| {
        for n in 1..40 {
            world.manager.delete_volume(&name(&format!("v{n:039}"))).await.unwrap();
        }
        world.runtime.timers.sleep(platform::time::Duration::from_secs(24 * 3600)).await;
        let taken = world.manager.policies().unwrap().policies;
        assert!(taken.iter().all(|policy| policy.last.as_deref() == Some("20261201t000000z")), "{taken:?}");
    });
}

#[test]
fn a_token_that_was_made_at_the_start_is_good_after_the_adoption() {
    let disks = Disks::new(100);
    let random: Rc<dyn Random> = Rc::new(Seeded::from_u64(9));
    let made = disks.clone();
    simulated::run(&Executor::new(), random, 32 << 20, async move |runtime| {
        let (meta, data) = (Disk::new(made.meta.clone()), Disk::new(made.data.clone()));
        let pool = thinp::Pool::open(&runtime, meta, data, thinp::PoolOptions::default()).await.unwrap();
        pool.create_thin(thinp::control::DeviceId::new(1).unwrap()).await.unwrap();
        pool.close().await.unwrap();
    });
    run(10, disks, async |world| {
        assert!(!world.manager.pool().unwrap().adopted);
        let before = world.manager.tokens();
        assert_eq!(before.len(), 1);
        world.manager.adopt().await.unwrap();
        assert_eq!(world.manager.tokens(), before, "nobody gets in any more");
    });
}
