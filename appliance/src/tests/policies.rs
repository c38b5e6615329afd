//! Snapshot policies, by a clock that goes on.

use super::{BLOCK, Disks, World, errno, name, run_with};
use export::LogicalUnit;
use mgmt::*;
use platform::block::Op;
use platform::time::Duration;
use std::string::String;
use std::vec::Vec;

/// 2026-11-30, a Monday, 00:05:00 UTC.
const AT: &str = "check.start=no time=20261130t000500z";

fn policy(volumes: &[&str]) -> NewPolicy {
    let volumes = volumes.iter().map(|volume| name(volume)).collect();
    NewPolicy { volumes, every_minutes: Some(15), keep: 3, hourly: 2, daily: 2, weekly: 0 }
}

async fn pass(world: &World, minutes: u64) {
    world.runtime.timers.sleep(Duration::from_secs(minutes * 60)).await;
}

/// The latest so many, every quarter of an hour, of `v`.
fn plain(keep: u32) -> NewPolicy {
    NewPolicy { keep, hourly: 0, daily: 0, ..policy(&["v"]) }
}

/// Volumes whose names begin so.
fn of(world: &World, prefix: &str) -> usize {
    world.records().iter().filter(|name| name.starts_with(prefix)).count()
}

/// The times of the snapshots of a volume.
fn times(world: &World, volume: &str) -> Vec<String> {
    let prefix = std::format!("{volume}.p.20261");
    world.records().iter().filter_map(|name| name.strip_prefix(&prefix).map(String::from)).collect()
}

#[test]
fn snapshots_are_taken_by_the_clock_and_kept_as_long_as_they_are_to_be() {
    let disks = Disks::new(200);
    run_with(1, disks.clone(), AT, async |world| {
        for volume in ["a", "b"] {
            world.create(volume, 4).await;
            world.fill(volume, 0, BLOCK, 1).await;
        }
        let made = world.manager.set_policy(&name("p"), policy(&["a", "b"])).await.unwrap();
        assert_eq!(made.next.as_deref(), Some("20261130t001500z"));
        pass(&world, 9).await;
        assert!(times(&world, "a").is_empty());
        pass(&world, 2).await;
        assert_eq!(times(&world, "a"), ["130t001500z"]);
        assert_eq!(times(&world, "a"), times(&world, "b"));
        let snapshot = world.volume("a.p.20261130t001500z").await;
        assert_eq!((snapshot.read_only, snapshot.intact), (true, Some(true)));
        // One in use is not deleted before it is free.
        pass(&world, 15).await;
        let unit = world.login("a.p.20261130t003000z").await.unwrap();
        pass(&world, 45 * 60 + 45).await;
        let kept = ["130t001500z", "201t000000z", "201t210000z", "201t214500z", "201t220000z", "201t221500z"];
        assert_eq!(times(&world, "b"), kept);
        assert_eq!(times(&world, "a"), [&kept[..1], &["130t003000z"], &kept[1..]].concat());
        let listed = world.manager.policies().unwrap();
        assert_eq!((listed.policies.len(), listed.policies[0].snapshots), (1, 13));
        drop(unit);
        pass(&world, 15).await;
        let kept = ["130t001500z", "201t000000z", "201t210000z", "201t220000z", "201t221500z", "201t223000z"];
        assert_eq!(times(&world, "a"), kept);
        world.manager.service.close().await;
    });
    // Three days later: what was missed is taken once.
    run_with(2, disks.clone(), "check.start=no time=20261204t100700z", async |world| {
        pass(&world, 5).await;
        let now = times(&world, "a");
        assert_eq!(now.iter().filter(|time| time.starts_with("204t")).count(), 1, "{now:?}");
        world
            .manager
            .set_policy(&name("p"), NewPolicy { daily: 0, hourly: 0, keep: 1, ..policy(&["a"]) })
            .await
            .unwrap();
        pass(&world, 15).await;
        assert_eq!(times(&world, "a"), ["204t101500z"]);
        assert!(times(&world, "b").len() > 1, "it is nobody's any more");
        world.manager.delete_policy(&name("p")).await.unwrap();
        assert_eq!(errno(world.manager.delete_policy(&name("p")).await), "ENODATA");
        pass(&world, 60).await;
        assert_eq!(times(&world, "a"), ["204t101500z"]);
        world.sound().await;
    });
    // Without a clock nothing is taken, and it is told.
    run_with(3, disks, "check.start=no", async |world| {
        world.manager.set_policy(&name("p"), policy(&["a"])).await.unwrap();
        pass(&world, 600).await;
        assert_eq!(times(&world, "a"), ["204t101500z"]);
        let listed = world.manager.policies().unwrap();
        assert_eq!((listed.time, &listed.policies[0].next), (None, &None));
    });
}

#[test]
fn policies_that_make_no_sense_are_refused() {
    run_with(4, Disks::new(100), AT, async |world| {
        let long = "v".repeat(45);
        for volume in ["v", &long] {
            world.create(volume, 1).await;
        }
        let good = policy(&["v"]);
        for bad in [
            policy(&[]),
            policy(&["v", "v"]),
            policy(&[&long]),
            NewPolicy { every_minutes: None, ..good.clone() },
            NewPolicy { every_minutes: Some(7), ..good.clone() },
            NewPolicy { keep: 0, ..good.clone() },
            NewPolicy { every_minutes: None, keep: 0, hourly: 0, daily: 0, ..good.clone() },
        ] {
            assert_eq!(errno(world.manager.set_policy(&name("p"), bad).await), "EINVAL");
        }
        assert_eq!(errno(world.manager.set_policy(&name("p"), policy(&["other"])).await), "ENODATA");
        world.manager.set_policy(&name("p"), good).await.unwrap();
        assert_eq!(world.manager.policies().unwrap().policies.len(), 1);
    });
}

/// The time is in the names of what it takes: what has one that is still to come takes nobody's place, and is not old either.
#[test]
fn what_a_policy_takes_is_kept_though_the_clock_was_ahead_once() {
    let disks = Disks::new(200);
    run_with(5, disks.clone(), "check.start=no time=20271130t000500z", async move |world| {
        world.create("v", 4).await;
        world.manager.set_policy(&name("p"), plain(3)).await.unwrap();
        pass(&world, 60).await;
        assert_eq!(of(&world, "v.p.2027"), 3);
        world.manager.service.close().await;
    });
    run_with(6, disks, AT, async |world| {
        pass(&world, 75).await;
        assert_eq!((of(&world, "v.p.2026"), of(&world, "v.p.2027")), (3, 3), "{:?}", world.records());
        world.sound().await;
    });
}

#[test]
fn a_policy_that_was_replaced_is_carried_out_as_it_is_now() {
    run_with(13, Disks::new(200), AT, async |world| {
        world.create("v", 1).await;
        for policy in ["p1", "p2", "p3"] {
            world.manager.set_policy(&name(policy), plain(3)).await.unwrap();
        }
        pass(&world, 45).await;
        // A mistake, which is put right before it was carried out.
        for policy in ["p2", "p3"] {
            world.manager.set_policy(&name(policy), plain(1)).await.unwrap();
        }
        let busy = world.manager.service.changes().await;
        pass(&world, 16).await;
        let manager = world.manager.clone();
        let righted = world.runtime.spawner.spawn(async move {
            manager.set_policy(&name("p2"), plain(3)).await.unwrap();
            manager.delete_policy(&name("p3")).await.unwrap();
        });
        platform::task::yield_now().await;
        drop(busy);
        righted.await.unwrap();
        world.settle().await;
        assert_eq!(["v.p1.", "v.p2.", "v.p3."].map(|prefix| of(&world, prefix)), [3; 3], "{:?}", world.records());
    });
}

/// One that is replaced while its snapshots are being deleted.
#[test]
fn a_policy_that_is_replaced_deletes_nothing_more() {
    run_with(14, Disks::new(200), AT, async |world| {
        world.create("v", 1).await;
        world.manager.set_policy(&name("p"), plain(6)).await.unwrap();
        pass(&world, 90).await;
        assert_eq!(of(&world, "v.p."), 6);
        world.manager.set_policy(&name("p"), plain(1)).await.unwrap();
        pass(&world, 10).await;
        while of(&world, "v.p.") != 5 {
            platform::task::yield_now().await;
        }
        world.manager.set_policy(&name("p"), plain(6)).await.unwrap();
        let left = of(&world, "v.p.");
        assert!(left > 1, "it was too late");
        world.settle().await;
        assert_eq!(of(&world, "v.p."), left, "{:?}", world.records());
    });
}

#[test]
fn a_policy_that_takes_nothing_says_why() {
    run_with(16, Disks::new(200), AT, async |world| {
        for volume in ["a", "b"] {
            world.create(volume, 4).await;
            world.fill(volume, 0, BLOCK, 1).await;
        }
        world.manager.set_policy(&name("p"), policy(&["a", "b"])).await.unwrap();
        let unit = world.login("b").await.unwrap();
        unit.begin_sanitize(false).await.unwrap();
        world.journal.fail(|disk, op, _| disk == 1 && matches!(op, Op::Write { .. }));
        unit.sanitized().await.unwrap_err();
        world.journal.fail_no_more();
        drop(unit);
        pass(&world, 30).await;
        let told = || world.manager.policies().unwrap().policies.remove(0);
        assert!(times(&world, "a").is_empty());
        assert_eq!(
            (told().last.as_deref(), told().trouble.as_deref()),
            (Some("20261130t000500z"), Some("volume b is in use"))
        );
        world.manager.delete_volume(&name("b")).await.unwrap();
        pass(&world, 2).await;
        assert_eq!((times(&world, "a").len(), told().trouble), (1, None));
    });
}
