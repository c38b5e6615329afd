//! What a check tells of a pool as a whole.

use super::{commit, device, format, id, map, runtime};
use crate::metadata::check::{Problem, Report, Severity, check};
use crate::metadata::{Details, superblock};
use pdata::block::BLOCK_BYTES;
use pdata::check::MapName;
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;

async fn report(disk: &MemDisk) -> Report {
    check(&runtime(), &Disk::new(disk.clone()), 0).await.unwrap()
}

#[test]
fn the_flag_in_the_superblock_is_told_and_no_problem() {
    block_on_ready(async {
        let (disk, metadata) = format(512, 1000).await;
        device(&metadata, 1, 3).await;
        commit(&metadata).await;
        let sound = Report { devices: 1, mappings: 3, ..Report::default() };
        assert_eq!(report(&disk).await, sound);
        metadata.set_needs_check().await.unwrap();
        let flagged = report(&disk).await;
        assert!(flagged.is_sound());
        assert_eq!(flagged, Report { needs_check: true, ..sound });
    });
}

#[test]
fn a_field_that_nobody_looks_at_is_a_hint() {
    block_on_ready(async {
        let (disk, _) = format(512, 1000).await;
        let mut block: [u8; BLOCK_BYTES] = disk.peek(0, BLOCK_BYTES).try_into().unwrap();
        // The version (reference 1.1).
        block[40] = 3;
        superblock::KIND.seal(&mut block, 0);
        disk.poke(0, &block);
        let report = report(&disk).await;
        assert_eq!(report.problems, [Problem::Field { block: 0, field: "version", found: 3, expected: 2 }]);
        assert!(report.is_sound() && report.worst() == Some(Severity::Hint));
    });
}

#[test]
fn a_structure_s_problem_is_as_bad_as_it_is_there() {
    let severity = |problem: pdata::check::Problem| Problem::from(problem).severity();
    let (map, block) = (MapName::Data, 7);
    assert_eq!(severity(pdata::check::Problem::Allocated { map, stored: 1, counted: 2 }), Severity::Hint);
    assert_eq!(severity(pdata::check::Problem::Count { map, block, stored: 1, counted: 0 }), Severity::Leak);
    assert_eq!(severity(pdata::check::Problem::Count { map, block, stored: 0, counted: 1 }), Severity::Damage);
    assert_eq!(Problem::NoDetails { device: 1 }.severity(), Severity::Damage);
}

#[test]
fn details_that_are_not_those_of_the_mappings_are_told() {
    block_on_ready(async {
        let (disk, metadata) = format(512, 1000).await;
        for n in 1..=4 {
            device(&metadata, n, n).await;
        }
        commit(&metadata).await;
        let core = metadata.core();
        core.superblock.borrow_mut().time.set(6);
        let details = |mapped_blocks, creation_time, snapshotted_time| Details {
            mapped_blocks,
            creation_time,
            snapshotted_time,
            ..Details::default()
        };
        core.set_device_details(id(1), details(1, 6, 6)).await.unwrap();
        core.set_device_details(id(2), details(3, 0, 0)).await.unwrap();
        core.set_device_details(id(3), details(3, 7, 0)).await.unwrap();
        core.set_device_details(id(4), details(4, 1, 9)).await.unwrap();
        commit(&metadata).await;
        let expected = [
            Problem::MappedBlocks { device: 2, stored: 3, counted: 2 },
            Problem::Future { device: 3, time: 7, now: 6 },
            Problem::Future { device: 4, time: 9, now: 6 },
        ];
        let report = report(&disk).await;
        assert_eq!((&report.problems[..], report.is_sound()), (&expected[..], false));
    });
}

#[test]
fn a_mapping_from_the_future_is_told_of_its_leaf() {
    block_on_ready(async {
        let (disk, metadata) = format(512, 1000).await;
        let core = metadata.core();
        let clock = |time| core.superblock.borrow_mut().time.set(time);
        clock(4);
        device(&metadata, 1, 2).await;
        device(&metadata, 2, 2).await;
        clock(5);
        map(&metadata, 2, 1).await.unwrap();
        clock(4);
        commit(&metadata).await;
        let leaf = metadata.root(id(2)).await.unwrap();
        assert_eq!(report(&disk).await.problems, [Problem::FutureMapping { block: leaf, time: 5, now: 4 }]);
    });
}
