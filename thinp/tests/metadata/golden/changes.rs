//! Each image is changed at random; after each commit both generations of `thin_check`, and our own check, are content.

use super::{Watched, image, stored_xml, xml};
use crate::harness::*;
use crate::image::{HELD_ROOT, word};
use crate::judge::Judge;
use crate::model::{Driver, dump};
use platform::mem::MemDisk;
use thinp::metadata::MetadataError;

/// Random operations on an image in CI. The larger ones take longer.
fn steps(case: &str) -> u64 {
    effort() * if case == "big" { 40 } else { 200 }
}

async fn driver(case: &str, seed: u64) -> Option<(Driver, Watched)> {
    let disk = image(case)?;
    let watched = Watched::new(&disk);
    let metadata = open_on(watched.device.clone(), 200).await;
    let mappings = dump(&disk).await;
    let mut driver = Driver::over(disk, watched.device.clone(), metadata, seed, 200);
    driver.now = mappings.clone();
    driver.committed = mappings;
    if case == "msnap" {
        driver.held = Some(xml::parse(&stored_xml("msnap.msnap")?));
    }
    driver.open_devices().await;
    Some((driver, watched))
}

/// What the model's driver does not do: the transaction id, and growth of the metadata disk.
async fn set_id_or_grow(driver: &Driver) {
    let metadata = &driver.metadata;
    if driver.dice.chance(2) {
        let id = metadata.transaction_id();
        metadata.set_transaction_id(id, driver.dice.below(u64::MAX)).await.unwrap();
    } else {
        let blocks = metadata.metadata_blocks() + driver.dice.below(300);
        driver.disk.resize(blocks * 8);
        match metadata.grow_metadata(blocks).await {
            Ok(()) => assert_eq!(metadata.metadata_blocks(), blocks),
            Err(error) => assert_eq!((error, metadata.needs_check()), (MetadataError::NeedsCheck, true)),
        }
    }
}

/// Our dump is that of `thin_dump` 1.x; of the metadata snapshot, too, where one is held.
async fn same_dump(disk: &MemDisk, what: &str) {
    let held = word(disk, HELD_ROOT) != 0;
    for (args, metadata_snap) in [(&[][..], false), (&["-m"], true)].into_iter().take(1 + usize::from(held)) {
        if let Some(theirs) = run_tool(disk, "thin_dump", args) {
            assert!(theirs.unwrap() == our_xml(disk, metadata_snap).await, "{what}: another dump, {args:?}");
        }
    }
}

async fn change(case: &str, seed: u64) {
    let Some((mut driver, watched)) = driver(case, seed).await else { return };
    let judge = Judge::default();
    let mut commits = 0;
    for step in 0..steps(case) {
        driver.step().await;
        if step == 3 || driver.dice.chance(20) {
            set_id_or_grow(&driver).await;
        }
        if step == 5 || driver.dice.chance(15) {
            driver.commit().await;
        }
        for left in watched.take() {
            commits += 1;
            check(&left);
            if commits % 4 == 1 {
                same_dump(&left, &format!("{case}, SEED={seed}, step {step}")).await;
            }
            judge.must_be_clean(&left, format!("{case}, SEED={seed}, step {step}"));
        }
    }
    driver.compare().await;
    println!("{case}: {commits} commits, {} of them judged by both tools; {:?}", judge.finish(), driver.tally);
    assert!(commits > 0);
}

fn changed_at_random(case: &str) {
    platform::task::block_on_ready(change(case, seed()));
}

super::for_each_case!(changed_at_random);
