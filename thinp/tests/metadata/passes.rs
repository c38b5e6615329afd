//! A check that has no memory for the counts of all data blocks reads the leaves again for the rest, and finds the same.

use crate::harness::{bytes_of, runtime};
use crate::image::{Map, count, set_count};
use crate::restores::restored;
use platform::block::Disk;
use platform::layers::Stats;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::fmt::Write;
use std::rc::Rc;
use thinp::metadata::check::{Report, check};

/// Data blocks between two mappings: more than are counted together.
const STRETCH: u64 = 70_000;
const MAPPINGS: u64 = 1_500;

/// A mapping in each stretch of a data disk of 6.4 TB.
fn scattered() -> String {
    let mut xml = format!(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"{}\">\n\
         <device dev_id=\"1\" mapped_blocks=\"{MAPPINGS}\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">\n",
        MAPPINGS * STRETCH
    );
    for n in 0..MAPPINGS {
        writeln!(xml, "<single_mapping origin_block=\"{n}\" data_block=\"{}\" time=\"0\"/>", n * STRETCH).unwrap();
    }
    xml + "</device>\n</superblock>\n"
}

/// The report, and how many requests it took.
fn checked(disk: &MemDisk, memory_bytes: usize) -> (Report, u64) {
    let stats = Stats::new(Rc::new(disk.clone()));
    let counters = stats.counters();
    let report = block_on_ready(check(&runtime(), &Disk::new(stats), memory_bytes)).unwrap();
    (report, counters.reads.get())
}

#[test]
fn with_little_memory_a_check_finds_the_same() {
    let (disk, _) = restored(&scattered(), 12_000).unwrap();
    let before = bytes_of(&disk);
    let (sound, few) = checked(&disk, 64 << 20);
    let (again, many) = checked(&disk, 0);
    assert!(sound.problems.is_empty(), "{:?}", sound.problems);
    assert_eq!((again.problems, again.mappings), (sound.problems, MAPPINGS));
    assert!(many > few, "{many} reads, {few} at once: there was no second pass");
    assert!(bytes_of(&disk) == before, "a check changes nothing");
    for n in [0, 1, MAPPINGS / 2, MAPPINGS - 1] {
        let disk = disk.fork();
        let (lost, leaked) = (n * STRETCH, n * STRETCH + 9);
        assert_eq!(count(&disk, Map::Data, lost), 1);
        set_count(&disk, Map::Data, lost, 0);
        set_count(&disk, Map::Data, leaked, 2);
        let (at_once, _) = checked(&disk, 64 << 20);
        let (in_passes, _) = checked(&disk, 0);
        assert_eq!(in_passes.problems, at_once.problems);
        let told: Vec<String> = at_once.problems.iter().map(ToString::to_string).collect();
        for block in [lost, leaked] {
            assert!(told.iter().any(|problem| problem.contains(&block.to_string())), "{block} is not in {told:?}");
        }
    }
}
