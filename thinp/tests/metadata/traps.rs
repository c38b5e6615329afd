//! What re-implementations get wrong (reference 9.1): the traps of the format and of the metadata that no other file has.
//! Each trap that concerns an implementation has a test named after it:
//!
//! | trap | test, or why there is none |
//! | --- | --- |
//! | 1 bit order, 2 checksum | pdata, `space_map/bitmap.rs`, `block.rs` |
//! | 3 counts of leaves, 5 shared in mid-transaction | `facts.rs` |
//! | 4 inc after shadowing what is shared | pdata, `tests/library/traps.rs`, `btree/tests.rs` |
//! | 6 no reuse before commit | here, over whole histories; pdata, `tests/library/maps.rs` |
//! | 7 recursion of the metadata map | pdata, `tests/library/traps.rs` |
//! | 8 held_root in the first flush | here; `crash.rs` for power cuts anywhere |
//! | 9 reserve counts two roots | here |
//! | 10 release deletes the trees | `facts.rs` |
//! | 11 no data size in a snapshot, 12 stale metadata_nr_blocks | here |
//! | 13 nr_free out of 16,320, 14 careless hints | here |
//! | 15 leaks of the two-step data path | `facts.rs`; thinp, `src/tests/writes.rs` |
//! | 16 used includes the reserve | thinp, `src/tests/messages.rs` |
//! | 17 the clock overflows, 20 internal nodes are 252 x 8 | `facts.rs` |
//! | 18 shared is strict and per device | `facts.rs`; thinp, `src/tests/writes.rs` |
//! | 19 both sides get the new time | here |
//! | 21 a parent's key may be smaller | pdata, `tests/library/traps.rs` |
//! | 22 errno | thinp, `src/tests/messages.rs` |
//! | 23 a failed commit is told, 30 the meanings of `ro` | thinp, `src/tests/modes.rs` |
//! | 24 what FLUSH and FUA commit, 25 the data flush comes first | thinp, `src/tests/writes.rs`; `facts.rs` |
//! | 26 partial discards, 27 passdown of shared blocks | thinp, `src/tests/discards.rs` |
//! | 28 reads do not allocate, and hold their block | thinp, `src/tests/writes.rs` |
//! | 29 a zeroed sector is no blank disk | `facts.rs`; thinp, `src/tests/opening.rs` |
//! | 31 what `thin_check` does not see, 32 the held snapshot | `golden/table.rs` |

use crate::facts::{device, lookup, no_flush, pool};
use crate::harness::*;
use crate::image::{self, Map, word};
use crate::judge::Judge;
use crate::model::{Driver, dump};
use pdata::check::Severity;
use platform::block::{BlockDevice, Disk, Op};
use platform::layers::{ShortTransfers, Trace};
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::RefCell;
use std::process::Command;
use std::rc::Rc;
use thinp::metadata::{Details, MetadataError, Progress, VirtualBlock};

/// Whatever happens between two commits, no block of the committed graph is written to: not one that was freed since, nor
/// a bitmap that was replaced.
#[test]
fn trap_6_no_block_of_the_committed_graph_is_written() {
    let seed = seed();
    block_on_ready(async {
        let disk = MemDisk::new(160 * 8);
        drop(format(&disk, 3000).await);
        let used = |disk: &MemDisk| -> Vec<bool> {
            (0..160).map(|block| block > 0 && image::count(disk, Map::Metadata, block) > 0).collect()
        };
        let (committed, writes) = (Rc::new(RefCell::new(used(&disk))), Rc::new(RefCell::new(0)));
        let (in_use, seen, inner) = (committed.clone(), writes.clone(), disk.clone());
        let trace = Trace::new(Rc::new(disk.clone()), move |request, done| match (request.op, done) {
            (Op::Write { .. }, None) => {
                for block in request.sector / 8..(request.sector + request.sectors) / 8 {
                    assert!(!in_use.borrow()[block as usize], "block {block} is in use, and written");
                    *seen.borrow_mut() += 1;
                }
            }
            (Op::Write { .. }, Some(_)) if request.sector == 0 => *in_use.borrow_mut() = used(&inner),
            _ => {}
        });
        let device = Disk::new(trace);
        // So small a cache that much is written long before the commit.
        let metadata = open_on(device.clone(), 16).await;
        let mut driver = Driver::over(disk, device, metadata, seed, 16);
        for _ in 0..2000 {
            driver.step().await;
            if driver.dice.chance(20) {
                driver.commit().await;
            }
        }
        assert!(*writes.borrow() > 1000, "only {} blocks were written", writes.borrow());
    });
}

/// After each single write the disk is sound, with a metadata snapshot or without.
#[test]
fn trap_8_held_root_changes_with_the_last_write() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        drop(metadata);
        let states = Rc::new(RefCell::new(Vec::new()));
        let (copies, inner) = (states.clone(), disk.clone());
        let trace = Trace::new(Rc::new(ShortTransfers::new(Rc::new(disk.clone()), 8)), move |request, done| {
            if done.is_some() && matches!(request.op, Op::Write { .. }) {
                copies.borrow_mut().push(inner.fork());
            }
        });
        let metadata = open_on(Disk::new(trace), 64).await;
        device(&metadata, 1).await;
        for block in 0..300 {
            provision(&metadata, id(1), block).await;
        }
        metadata.reserve_metadata_snap(no_flush).await.unwrap();
        provision(&metadata, id(1), 300).await;
        assert_eq!(metadata.release_metadata_snap(no_flush).await, Ok(Progress::Complete));
        let judge = Judge::default();
        let states = states.take();
        let held = |state: &&MemDisk| word(state, image::HELD_ROOT) != 0;
        assert!(states.iter().filter(held).count() > 1 && states.len() > 20, "{} writes", states.len());
        for (n, state) in states.iter().enumerate() {
            check(state);
            judge.must_be_clean(state, format!("after write {n}"));
        }
        judge.finish();
    });
}

#[test]
fn trap_9_reserve_counts_two_committed_roots_and_nothing_else() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        let data = provision(&metadata, id(1), 3).await;
        commit(&metadata).await;
        // Not committed yet: the snapshot must have it nonetheless, from the disk.
        let late = provision(&metadata, id(1), 4).await;
        let held = metadata.reserve_metadata_snap(no_flush).await.unwrap();
        let roots = [image::MAPPING_ROOT, image::DETAILS_ROOT].map(|at| word(&disk, held * 4096 + at));
        assert_eq!(roots, [image::MAPPING_ROOT, image::DETAILS_ROOT].map(|at| word(&disk, at)));
        let counts = |blocks: &[u64]| -> Vec<u32> {
            blocks.iter().map(|block| image::count(&disk, Map::Metadata, *block)).collect()
        };
        let device_root = word(&disk, image::node(&disk, roots[0])[0].value_at);
        assert_eq!(counts(&[roots[0], roots[1], held, device_root, 0]), [2, 2, 1, 1, 1]);
        assert_eq!([data, late].map(|data| image::count(&disk, Map::Data, data.0)), [1, 1]);
        assert_eq!(image::node(&disk, device_root).len(), 2);
        check(&disk);
        thin_check(&disk);
    });
}

/// The copy has no space maps; who needs the size of the data disk asks the live superblock.
#[test]
fn trap_11_a_metadata_snapshot_does_not_know_the_data_size() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        provision(&metadata, id(1), 3).await;
        let held = metadata.reserve_metadata_snap(no_flush).await.unwrap();
        assert_eq!(disk.peek(held * 4096 + 64, 256), [0; 256]);
        if let Some(xml) = run_tool(&disk, "thin_dump", &["-m"]) {
            assert!(xml.unwrap().contains(r#" nr_data_blocks="0""#));
        }
        // The check measures the snapshot's mappings against the pool's size, not against 0.
        check(&disk);
    });
}

#[test]
fn trap_12_metadata_nr_blocks_goes_stale() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        disk.resize(4000 * 8);
        metadata.grow_metadata(4000).await.unwrap();
        commit(&metadata).await;
        // As Linux leaves it.
        assert_eq!((word(&disk, 344), image::nr_blocks(&disk, Map::Metadata)), (2048, 4000));
        image::put(&disk, 344, &u64::MAX.to_le_bytes());
        let metadata = open_on(Disk::new(disk.clone()), 64).await;
        assert_eq!(metadata.metadata_blocks(), 4000);
        // More blocks are taken than the field ever knew of.
        let mut number = 0;
        while metadata.metadata_blocks() - metadata.free_metadata_blocks() < 3000 {
            metadata.create_thin(id(number)).await.unwrap();
            number += 1;
            if number % 200 == 0 {
                commit(&metadata).await;
            }
        }
        commit(&metadata).await;
        assert_eq!(word(&disk, 344), u64::MAX, "nobody's business");
        assert!(number > 2048);
        thin_check(&disk);
    });
}

fn nr_free(disk: &MemDisk, map: Map, k: u64) -> u32 {
    image::half(disk, image::index_entry(disk, map, k) + 8)
}

#[test]
fn trap_13_nr_free_counts_16320_in_the_last_bitmap_too() {
    block_on_ready(async {
        let disk = MemDisk::new(2048 * 8);
        let metadata = format(&disk, 1000).await;
        device(&metadata, 1).await;
        for block in 0..7 {
            provision(&metadata, id(1), block).await;
        }
        commit(&metadata).await;
        assert_eq!(nr_free(&disk, Map::Data, 0), 16320 - 7);
        assert_eq!(u64::from(nr_free(&disk, Map::Metadata, 0)), 16320 - word(&disk, Map::Metadata as u64 + 8));
        // As 0.9 counts: what the map has, not what the bitmap could hold.
        image::put(&disk, image::index_entry(&disk, Map::Data, 0) + 8, &993u32.to_le_bytes());
        let report = report(&disk).unwrap();
        assert_eq!(report.worst(), Some(Severity::Hint), "{:?}", report.problems);
        let metadata = open_on(Disk::new(disk.clone()), 64).await;
        metadata.open_device(id(1)).await.unwrap();
        for size in [1000, 2500] {
            metadata.grow_data(size).await.unwrap();
            let mut block = size * 10;
            let full = loop {
                match metadata.reserve_data_block().await {
                    Ok(data) => metadata.insert(id(1), VirtualBlock(block), data).await.unwrap(),
                    Err(error) => break error,
                }
                block += 1;
            };
            assert_eq!(full, MetadataError::NoDataSpace);
            assert_eq!(metadata.free_data_blocks(), 0, "none lies beyond the end, none is missed");
            commit(&metadata).await;
            thin_check(&disk);
        }
        check(&disk);
    });
}

/// Takes every data block there is and maps it; returns how many that was.
async fn fill(disk: &MemDisk) -> u64 {
    let metadata = open_on(Disk::new(disk.clone()), 64).await;
    metadata.open_device(id(1)).await.unwrap();
    let mut taken = 0;
    while let Ok(data) = metadata.reserve_data_block().await {
        metadata.insert(id(1), VirtualBlock(10_000 + taken), data).await.unwrap();
        taken += 1;
    }
    commit(&metadata).await;
    thin_check(disk);
    taken
}

/// None free, says the hint, or none below; more are in use than there are, says the total.
#[test]
fn trap_14_careless_hints_hide_no_block() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        provision(&metadata, id(1), 0).await;
        commit(&metadata).await;
        let entry = image::index_entry(&disk, Map::Data, 0);
        for (at, hint) in [(entry + 8, &[0; 4][..]), (entry + 12, &500u32.to_le_bytes()), (72, &2u64.to_le_bytes())] {
            let disk = disk.fork();
            image::put(&disk, at, hint);
            assert_eq!(fill(&disk).await, 1023, "with {hint:?} at {at}");
        }
    });
}

/// What `thin_restore` 0.9 makes of a pool.
fn restored_by_0_9(disk: &MemDisk) -> Option<MemDisk> {
    let [dump, restore] = ["/usr/sbin/thin_dump", "/usr/sbin/thin_restore"].map(std::path::Path::new);
    if !restore.exists() {
        skipped("thin_restore 0.9 (package thin-provisioning-tools)");
        return None;
    }
    let (from, to) = (temporary_file(disk), temporary_file(&MemDisk::new(disk.limits().size_sectors)));
    let xml = from.with_extension("xml");
    for (tool, from, to) in [(dump, &from, &xml), (restore, &xml, &to)] {
        let (from_option, to_option) = if tool == dump { (None, "-o") } else { (Some("-i"), "-o") };
        let out = Command::new(tool).args(from_option).arg(from).arg(to_option).arg(to).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let restored = MemDisk::from_bytes(&std::fs::read(&to).unwrap());
    [from, xml, to].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    Some(restored)
}

/// The same of what 0.9 really writes, of a pool with room and of a full one.
#[test]
fn trap_14_an_image_of_thin_restore_0_9_is_usable_to_the_last_block() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        for block in 0..100 {
            provision(&metadata, id(1), block * 2).await;
        }
        metadata.create_snap(id(2), id(1)).await.unwrap();
        commit(&metadata).await;
        let full = disk.fork();
        for (disk, free) in [(&disk, 924), (&full, 0)] {
            if free == 0 {
                fill(disk).await;
            }
            let Some(restored) = restored_by_0_9(disk) else { return };
            let worst = || {
                let report = report(&restored).unwrap();
                (report.worst(), report.problems)
            };
            let (found, why) = worst();
            assert_eq!(found, Some(Severity::Hint), "careless, not damaged: {why:?}");
            assert_eq!(dump(&restored).await, dump(disk).await);
            assert_eq!(fill(&restored).await, free);
            let (found, why) = worst();
            assert!(found <= Some(Severity::Hint), "{why:?}");
        }
    });
}

#[test]
fn trap_19_both_sides_of_a_snapshot_get_the_new_time() {
    block_on_ready(async {
        let (disk, metadata) = pool().await;
        device(&metadata, 1).await;
        provision(&metadata, id(1), 0).await;
        metadata.set_transaction_id(0, 7).await.unwrap();
        for copy in [2, 3] {
            metadata.create_snap(id(copy), id(1)).await.unwrap();
        }
        commit(&metadata).await;
        let metadata = open_on(Disk::new(disk.clone()), 64).await;
        let details = |transaction_id, creation_time, snapshotted_time| Details {
            mapped_blocks: 1,
            transaction_id,
            creation_time,
            snapshotted_time,
        };
        let expected = [(id(1), details(0, 0, 2)), (id(2), details(7, 1, 1)), (id(3), details(7, 2, 2))];
        assert_eq!(metadata.devices().await.unwrap(), expected);
        assert_eq!(image::half(&disk, image::TIME), 2);
        for device in 1..4 {
            metadata.open_device(id(device)).await.unwrap();
            assert!(lookup(&metadata, device, 0).await.unwrap().shared, "of {device}");
        }
    });
}
