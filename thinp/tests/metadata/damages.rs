//! Repairs of one kind of damage after the other: what must come back of each, and never less than with `thin_repair`.

use crate::dumps::{same, xml};
use crate::harness::*;
use crate::image::{self, DETAILS_ROOT, MAPPING_ROOT, Map};
use crate::judge::Judge;
use crate::repairs::{repaired, root_of, thin_repair, two_devices, used};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use thinp::metadata::VirtualBlock;
use thinp::metadata::dump::Format;
use thinp::metadata::repair::{Origin, RepairError, Report};

/// Mappings of [`two_devices`].
const ALL: u64 = 10_001;

/// Repairs; the result is sound, and as good as anybody's.
fn mended(disk: &MemDisk, judge: &Judge, what: &str) -> (MemDisk, Report) {
    let (fresh, report) = repaired(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(check(&fresh).mappings, report.restored.mappings, "{what}");
    judge.must_be_clean(&fresh, what.into());
    let tool = thin_repair(disk);
    println!("{what}: {}, thin_repair {tool:?}", report.restored.mappings);
    assert!(tool.is_none_or(|tool| report.restored.mappings >= tool), "{what}: thin_repair has {tool:?}\n{report}");
    (fresh, report)
}

fn word_put(disk: &MemDisk, at_bytes: u64, value: u64) {
    image::put(disk, at_bytes, &value.to_le_bytes());
}

fn children(disk: &MemDisk, block: u64) -> Vec<u64> {
    image::node(disk, block).iter().map(|entry| image::word(disk, entry.value_at)).collect()
}

/// What is done to a pool.
type Damage = fn(&MemDisk);

/// Trees are whole: nothing may be lost, or said to be.
#[test]
fn space_maps_are_not_needed() {
    let (sound, judge) = (two_devices(), Judge::default());
    let damages: [(&str, Damage); 4] = [
        ("both roots beyond the disk", |disk| {
            [Map::Data, Map::Metadata].into_iter().for_each(|map| word_put(disk, map as u64 + 16, 1 << 50));
        }),
        ("both roots at a leaf of mappings", |disk| {
            let leaf = image::leaves(disk, root_of(disk, 1))[0];
            [Map::Data, Map::Metadata].into_iter().for_each(|map| word_put(disk, map as u64 + 16, leaf));
        }),
        ("the index and a tree of counts overwritten", |disk| {
            for map in [Map::Data, Map::Metadata] {
                let (root, counts) = (image::word(disk, map as u64 + 16), image::word(disk, map as u64 + 24));
                [root, counts].into_iter().for_each(|block| disk.poke(block * 4096, &[0xa5; 4096]));
            }
        }),
        ("all counts zero", |disk| {
            (1..60).for_each(|block| image::set_count(disk, Map::Metadata, block, 0));
        }),
    ];
    for (what, damage) in damages {
        let disk = sound.fork();
        damage(&disk);
        let (fresh, report) = mended(&disk, &judge, what);
        same(&xml(&fresh, Format::Xml09), &xml(&sound, Format::Xml09));
        assert_eq!((report.state.origin, report.damaged.len()), (Origin::Superblock, 0), "{what}: {report}");
    }
    judge.finish();
}

/// One block is gone that all others depend on.
#[test]
fn roots_are_not_needed() {
    let (sound, judge) = (two_devices(), Judge::default());
    for (what, block) in [
        ("superblock", 0),
        ("root of the mapping tree", image::word(&sound, MAPPING_ROOT)),
        ("root of the details", image::word(&sound, DETAILS_ROOT)),
        ("root of two devices", root_of(&sound, 1)),
    ] {
        let disk = sound.fork();
        disk.poke(block * 4096, &[0; 4096]);
        let (_, report) = mended(&disk, &judge, what);
        assert_eq!((report.restored.devices, report.restored.mappings), (3, ALL), "{what}: {report}");
    }
    judge.finish();
}

/// Checksums are right, what they cover is not: it is told, not believed.
#[test]
fn nodes_that_lie_are_not_believed() {
    let (sound, judge) = (two_devices(), Judge::default());
    let leaf = image::node(&sound, image::leaves(&sound, root_of(&sound, 1))[3]).len() as u64;
    let damages: [(&str, Damage, u64); 5] = [
        (
            "two children swapped",
            |disk| {
                let root = image::node(disk, root_of(disk, 1));
                let (second, third) = (image::word(disk, root[1].value_at), image::word(disk, root[2].value_at));
                word_put(disk, root[1].value_at, third);
                word_put(disk, root[2].value_at, second);
            },
            ALL,
        ),
        (
            "a leaf with another's checksum",
            |disk| {
                let leaves = image::leaves(disk, root_of(disk, 1));
                disk.poke(leaves[3] * 4096, &disk.peek(leaves[4] * 4096, 4));
            },
            ALL - 2 * leaf,
        ),
        (
            "a root that is its own child",
            |disk| {
                let root = root_of(disk, 1);
                word_put(disk, image::node(disk, root)[3].value_at, root);
            },
            ALL,
        ),
        (
            "a device whose root is the tree of devices",
            |disk| {
                let top = image::word(disk, MAPPING_ROOT);
                let of_third = image::node(disk, top).iter().find(|entry| entry.key == 3).unwrap().value_at;
                word_put(disk, of_third, top);
            },
            // Its entries pass for mappings; that they are more than the device had is told.
            ALL + 2,
        ),
        (
            "the same child twice",
            |disk| {
                let root = root_of(disk, 1);
                let first = children(disk, root)[0];
                word_put(disk, image::node(disk, root)[1].value_at, first);
            },
            ALL,
        ),
    ];
    for (what, damage, expected) in damages {
        let disk = sound.fork();
        damage(&disk);
        let (_, report) = mended(&disk, &judge, what);
        assert_eq!(report.restored.mappings, expected, "{what}: {report}");
        assert_eq!(report.mappings_lost(), ALL.saturating_sub(expected), "{what}: {report}");
        assert!(!report.damaged.is_empty(), "{what}: {report}");
    }
    judge.finish();
}

/// A block that carries another's number was written for another place. `thin_repair` takes it all the same.
#[test]
fn a_misdirected_leaf_is_not_believed() {
    let disk = two_devices();
    let leaves = image::leaves(&disk, root_of(&disk, 1));
    let lost = image::node(&disk, leaves[3]).len() as u64;
    disk.poke(leaves[3] * 4096, &disk.peek(leaves[4] * 4096, 4096));
    let (fresh, report) = repaired(&disk).unwrap();
    assert_eq!((check(&fresh).mappings, report.mappings_lost()), (ALL - 2 * lost, 2 * lost), "{report}");
}

/// Block 0 is one that the disk should no longer have, as after a lost write. What it leads to is taken while that is whole: what
/// seems to be newer may never have been committed.
#[test]
fn a_superblock_of_long_ago_is_believed_as_long_as_its_trees_are_there() {
    let (disk, judge) = (two_devices(), Judge::default());
    let (old, then) = (disk.peek(0, 4096), xml(&disk, Format::Xml09));
    block_on_ready(async {
        let metadata = open_on(Disk::new(disk.clone()), CACHE).await;
        metadata.open_device(id(3)).await.unwrap();
        for block in 100..600 {
            provision(&metadata, id(3), block).await;
            if block % 20 == 0 {
                commit(&metadata).await;
            }
        }
        commit(&metadata).await;
    });
    disk.poke(0, &old);
    let (fresh, report) = mended(&disk, &judge, "old superblock");
    same(&xml(&fresh, Format::Xml09), &then);
    assert_eq!(report.state.origin, Origin::Superblock);
    disk.poke(image::word(&disk, MAPPING_ROOT) * 4096, &[0; 4096]);
    let (_, report) = mended(&disk, &judge, "old superblock of a tree that is gone");
    assert_eq!((report.state.origin, report.restored.mappings), (Origin::Search, ALL + 500), "{report}");
    judge.finish();
}

/// Without a superblock an earlier state is as whole as the last, and has more mappings.
#[test]
fn of_two_whole_states_the_newer_comes_back() {
    let disk = two_devices();
    block_on_ready(async {
        let metadata = open_on(Disk::new(disk.clone()), CACHE).await;
        metadata.create_snap(id(4), id(3)).await.unwrap();
        metadata.open_device(id(3)).await.unwrap();
        provision(&metadata, id(3), 8).await;
        metadata.open_device(id(1)).await.unwrap();
        metadata.remove_range(id(1), VirtualBlock(0), VirtualBlock(100), 100).await.unwrap();
        commit(&metadata).await;
    });
    let devices = |disk: &MemDisk| xml(disk, Format::Xml09).lines().skip(1).collect::<Vec<_>>().join("\n");
    let last = devices(&disk);
    disk.poke(0, &[0; 4096]);
    let (fresh, report) = repaired(&disk).unwrap();
    check(&fresh);
    same(&devices(&fresh), &last);
    assert_eq!((report.state.origin, report.restored.mappings), (Origin::Search, ALL + 2 - 100), "{report}");
}

/// The device lost its end.
#[test]
fn a_disk_cut_short_gives_what_it_still_has() {
    let (sound, judge) = (two_devices(), Judge::default());
    let used = used(&sound);
    let mut got = 0;
    for lost in [1, 2, 5, used.len() / 2] {
        let behind = used[used.len() - lost];
        let disk = MemDisk::from_bytes(&sound.peek(0, (behind * 4096) as usize));
        match repaired(&disk) {
            Ok(_) => got += mended(&disk, &judge, &format!("cut before block {behind}")).1.restored.mappings,
            Err(error) => {
                println!("cut before block {behind}: {error}");
                assert!(
                    matches!(error, RepairError::NothingFound { .. })
                        && thin_repair(&disk).is_none_or(|tool| tool == 0)
                );
            }
        }
    }
    assert!(got > ALL, "{got}");
    judge.finish();
}
