//! Volumes that are deleted, and what gets their numbers.

use super::{BLOCK, Disks, World, errno, name, run};
use crate::catalog::{Edit, VolumeRecord};
use mgmt::Control;
use std::rc::Rc;
use std::string::ToString;

/// Three volumes as a power cut leaves them in the middle of their deletions.
fn interrupted(seed: u64) -> Disks {
    let disks = Disks::new(200);
    run(seed, disks.clone(), async |world| {
        for volume in ["v1", "v2", "v3"] {
            world.create(volume, 4).await;
            world.fill(volume, 0, BLOCK, 1).await;
            mark(&world, volume).await;
        }
        world.manager.service.close().await;
    });
    disks
}

/// Writes down that a volume is to be deleted.
async fn mark(world: &World, volume: &str) {
    let served = world.manager.service.served().unwrap();
    let record = served.catalog().named(volume).cloned().unwrap();
    let record = VolumeRecord { deleting: true, export: None, guarded: None, ..record };
    served.change(&[], [Edit::Put(record)].into()).await.unwrap();
}

#[test]
fn a_deletion_that_goes_on_does_not_take_a_volume_made_since() {
    run(2, interrupted(1), async |world| {
        let ask = |of: Rc<World>| async move { of.manager.delete_volume(&name("v3")).await };
        let again = world.runtime.spawner.spawn(ask(world.clone()));
        let make = |of: Rc<World>, volume| async move { of.create(volume, 4).await.id };
        let a = world.runtime.spawner.spawn(make(world.clone(), "a"));
        let b = world.runtime.spawner.spawn(make(world.clone(), "b"));
        assert_eq!(errno(again.await.unwrap()), "EBUSY");
        let (a, b) = (a.await.unwrap(), b.await.unwrap());
        assert!(a.get() > 3 && b.get() > 3, "{a} and {b} are not free yet");
        world.settle().await;
        assert_eq!(world.records(), ["a", "b"]);
        assert_eq!(world.create("c", 4).await.id.get(), 1);
    });
}

#[test]
fn a_deletion_that_failed_is_gone_on_with_by_another() {
    run(3, Disks::new(200), async |world| {
        world.create("v", 4).await;
        mark(&world, "v").await;
        world.manager.delete_volume(&name("v")).await.unwrap();
        assert!(world.records().is_empty());
    });
}

#[test]
fn a_message_does_not_delete_what_is_being_deleted() {
    run(5, interrupted(4), async |world| {
        let ask = |of: Rc<World>| async move { of.manager.message("delete 3").await };
        let message = world.runtime.spawner.spawn(ask(world.clone()));
        let a = world.create("a", 4).await;
        assert_eq!((errno(message.await.unwrap()), a.id.get()), ("EBUSY".to_string(), 4));
        world.settle().await;
        assert_eq!(world.records(), ["a"]);
    });
}
