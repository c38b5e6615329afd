//! One field of a good image altered, its checksum right: what our check says, and what both tools say (reference 9.2).
//! Ours rejects whatever 1.x rejects, and tells of what both look away from; what does no harm is a hint.

use super::image;
use crate::harness::*;
use crate::image::*;
use crate::judge;
use pdata::check::Severity::{self, Damage, Hint, Leak};
use platform::mem::MemDisk;

/// What our check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    Clean,
    Worst(Severity),
    /// There is no superblock to start from.
    Refused,
}

/// What is altered, in which image; whether 0.9 and 1.x accept it; what we say; how it is done.
type Row = (&'static str, &'static str, (bool, bool), Ours, fn(&MemDisk));

const ACCEPT: bool = true;
const REJECT: bool = false;

fn ours(disk: &MemDisk) -> Ours {
    match report(disk) {
        Ok(report) => report.worst().map_or(Ours::Clean, Ours::Worst),
        Err(_) => Ours::Refused,
    }
}

/// Asks everybody about every row.
fn compare(rows: &[Row]) {
    let mut wrong = Vec::new();
    for rows in rows.chunks(12) {
        let mut asked = Vec::new();
        for row in rows {
            let Some(disk) = image(row.1) else { return };
            (row.4)(&disk);
            asked.push((row, ours(&disk), judge::ask(&disk)));
        }
        for ((what, case, tools, expected, _), ours, asked) in asked {
            let verdicts = asked.map(|asked| asked.wait());
            let found = verdicts.as_ref().map(|verdicts| (verdicts.old.is_ok(), verdicts.new.is_ok()));
            let lax = matches!(ours, Ours::Clean | Ours::Worst(Hint)) && found.is_some_and(|(_, new)| new == REJECT);
            let line = format!("{what} ({case}): 0.9 and 1.x accept: {found:?}, ours: {ours:?}");
            println!("{line}");
            if lax || ours != *expected || found.is_some_and(|found| found != *tools) {
                let said = verdicts.map(|verdicts| (verdicts.old.err(), verdicts.new.err()));
                wrong.push(format!("{line}, expected {tools:?} and {expected:?}: {said:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn root(disk: &MemDisk, map: Map) -> u64 {
    word(disk, map as u64 + 16)
}

fn overflow(disk: &MemDisk, map: Map) -> Vec<Entry> {
    entries(disk, word(disk, map as u64 + 24))
}

/// Place of the index entry of the first bitmap.
fn first_index(disk: &MemDisk, map: Map) -> u64 {
    index_entry(disk, map, 0)
}

/// Root of the device tree of the least id.
fn device_root(disk: &MemDisk) -> u64 {
    word(disk, entries(disk, word(disk, MAPPING_ROOT))[0].value_at)
}

/// The mappings of the device with the least id.
fn mappings(disk: &MemDisk) -> Vec<Entry> {
    entries(disk, device_root(disk))
}

/// A data block with this count, mapped by something.
fn mapped(disk: &MemDisk, wanted: u32) -> u64 {
    let blocks = mappings(disk).into_iter().map(|entry| word(disk, entry.value_at) >> 24);
    blocks.into_iter().find(|block| count(disk, Map::Data, *block) == wanted).unwrap()
}

fn free(disk: &MemDisk, map: Map) -> u64 {
    (1..nr_blocks(disk, map)).find(|block| count(disk, map, *block) == 0).unwrap()
}

fn flip(disk: &MemDisk, at_bytes: u64) {
    disk.poke(at_bytes, &[disk.peek(at_bytes, 1)[0] ^ 1]);
}

fn add(disk: &MemDisk, at_bytes: u64, by: i64) {
    put(disk, at_bytes, &word(disk, at_bytes).wrapping_add_signed(by).to_le_bytes());
}

fn add_half(disk: &MemDisk, at_bytes: u64, by: i32) {
    put(disk, at_bytes, &half(disk, at_bytes).wrapping_add_signed(by).to_le_bytes());
}

fn put_half(disk: &MemDisk, at_bytes: u64, value: u32) {
    put(disk, at_bytes, &value.to_le_bytes());
}

/// Changes the blocknr field of a block.
fn misplace(disk: &MemDisk, block: u64) {
    add(disk, block * 4096 + 8, 1);
}

/// Removes the last mappings of a leaf that is no root, counts and all.
fn thin_out(disk: &MemDisk, keep: u64) {
    let leaf = leaves(disk, device_root(disk))[0];
    let gone = node(disk, leaf).split_off(keep as usize);
    for entry in &gone {
        set_count(disk, Map::Data, word(disk, entry.value_at) >> 24, 0);
    }
    put_half(disk, leaf * 4096 + 16, keep as u32);
    let gone = gone.len() as i64;
    add(disk, entries(disk, word(disk, DETAILS_ROOT))[0].value_at, -gone);
    add(disk, Map::Data as u64 + 8, -gone);
    add_half(disk, first_index(disk, Map::Data) + 8, gone as i32);
    put_half(disk, first_index(disk, Map::Data) + 12, 0);
}

const BLOCKS: &[Row] = &[
    ("checksum of a node", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| flip(d, device_root(d) * 4096 + 99)),
    ("checksum of the data bitmap", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        flip(d, word(d, first_index(d, Map::Data)) * 4096 + 99)
    }),
    ("checksum of the index", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        flip(d, root(d, Map::Metadata) * 4096 + 99)
    }),
    ("blocknr of a node", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| misplace(d, device_root(d))),
    ("blocknr of the index", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        misplace(d, root(d, Map::Metadata))
    }),
    ("blocknr of a bitmap", "snaptree", (REJECT, ACCEPT), Ours::Worst(Damage), |d| {
        misplace(d, word(d, first_index(d, Map::Data)))
    }),
    ("keys out of order", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        put(d, mappings(d)[3].key_at, &mappings(d)[1].key.to_le_bytes())
    }),
    ("a key twice", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        put(d, mappings(d)[3].key_at, &mappings(d)[2].key.to_le_bytes())
    }),
    ("max_entries no multiple of 3", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        put_half(d, device_root(d) * 4096 + 20, 251)
    }),
    ("both flags of a node", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        put_half(d, device_root(d) * 4096 + 4, 3)
    }),
    ("parent's key above its child's first", "odd-order", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        add(d, node(d, device_root(d))[1].key_at, 1)
    }),
    ("parent's key below its child's first", "many-thins", (ACCEPT, ACCEPT), Ours::Clean, |d| {
        let children = node(d, word(d, MAPPING_ROOT));
        let first = |child: &Entry| node(d, word(d, child.value_at))[0].key;
        let last = |child: &Entry| node(d, word(d, child.value_at)).last().unwrap().key;
        let gap = children.iter().zip(&children[1..]).find(|(left, right)| last(left) + 1 < first(right));
        add(d, gap.unwrap().1.key_at, -1)
    }),
    ("a mapping leaf of a third", "odd-order", (ACCEPT, ACCEPT), Ours::Clean, |d| thin_out(d, 84)),
    // 1.3 is said to accept this one.
    ("a mapping leaf below a third", "odd-order", (REJECT, REJECT), Ours::Worst(Damage), |d| thin_out(d, 80)),
    ("padding of a node", "snaptree", (ACCEPT, ACCEPT), Ours::Clean, |d| put_half(d, device_root(d) * 4096 + 28, 7)),
    ("unused slots of a node", "snaptree", (ACCEPT, ACCEPT), Ours::Clean, |d| {
        put(d, word(d, MAPPING_ROOT) * 4096 + 32 + 251 * 8, &[0xEE; 8])
    }),
];

const SUPERBLOCK: &[Row] = &[
    ("its checksum", "snaptree", (REJECT, REJECT), Ours::Refused, |d| flip(d, 99)),
    ("magic", "snaptree", (ACCEPT, ACCEPT), Ours::Refused, |d| add(d, 32, 1)),
    ("blocknr", "snaptree", (ACCEPT, ACCEPT), Ours::Refused, |d| add(d, 8, 1)),
    ("incompat flags", "snaptree", (ACCEPT, ACCEPT), Ours::Refused, |d| put_half(d, 360, 1)),
    ("data_block_size", "snaptree", (ACCEPT, ACCEPT), Ours::Refused, |d| put_half(d, 336, 100)),
    ("version", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| put_half(d, 40, 7)),
    ("uuid", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| put(d, 16, &[7; 16])),
    ("unknown flags", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| put_half(d, 4, 0xF0)),
    ("metadata_block_size", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| put_half(d, 340, 16)),
    ("metadata_nr_blocks", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| add(d, 344, 1)),
    ("a mapping's time", "odd-order", (ACCEPT, ACCEPT), Ours::Worst(Damage), |d| add(d, mappings(d)[5].value_at, 100)),
    ("needs_check", "snaptree", (ACCEPT, ACCEPT), Ours::Clean, |d| put_half(d, 4, 1)),
    ("time", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Damage), |d| put_half(d, TIME, 1)),
    ("a device's time", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Damage), |d| {
        put_half(d, entries(d, word(d, DETAILS_ROOT))[0].value_at + 20, 1000)
    }),
];

const COUNTS: &[Row] = &[
    ("nr_allocated, data", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| add(d, 72, 1)),
    ("nr_allocated, metadata", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| add(d, 200, -1)),
    ("nr_free", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| add_half(d, first_index(d, Map::Data) + 8, -1)),
    ("nr_free 0", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| put_half(d, first_index(d, Map::Data) + 8, 0)),
    ("nr_free, metadata", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| {
        add_half(d, first_index(d, Map::Metadata) + 8, 1)
    }),
    ("none_free_before", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Hint), |d| {
        put_half(d, first_index(d, Map::Data) + 12, 16000)
    }),
    ("metadata count too low", "snaptree", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Metadata, device_root(d), 0)
    }),
    ("metadata count too high", "odd-order", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Metadata, device_root(d), 2)
    }),
    ("metadata leak", "snaptree", (REJECT, REJECT), Ours::Worst(Leak), |d| {
        set_count(d, Map::Metadata, free(d, Map::Metadata), 1)
    }),
    ("data count too low", "snaptree", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Data, mapped(d, 1), 0)
    }),
    ("data count too high", "snaptree", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Data, mapped(d, 1), 2)
    }),
    ("data leak", "snaptree", (ACCEPT, REJECT), Ours::Worst(Leak), |d| set_count(d, Map::Data, free(d, Map::Data), 1)),
    ("3 without overflow entry", "snaptree", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Data, mapped(d, 1), 3)
    }),
    ("overflow count", "refcounts", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        add_half(d, overflow(d, Map::Data)[7].value_at, 1)
    }),
    ("overflow entry of a small count", "refcounts", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Data, overflow(d, Map::Data)[7].key, 2)
    }),
    ("bit beyond nr_blocks, data", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Data, nr_blocks(d, Map::Data) + 5, 1)
    }),
    ("bit beyond nr_blocks, metadata", "snaptree", (ACCEPT, ACCEPT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Metadata, nr_blocks(d, Map::Metadata) + 5, 1)
    }),
    ("mapped_blocks", "snaptree", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        add(d, entries(d, word(d, DETAILS_ROOT))[0].value_at, 1)
    }),
    ("ids differ", "snaptree", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        add(d, entries(d, word(d, DETAILS_ROOT)).last().unwrap().key_at, 1)
    }),
    ("mapping beyond the data disk", "snaptree", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        add(d, mappings(d)[5].value_at, (nr_blocks(d, Map::Data) << 24) as i64)
    }),
];

const SNAPSHOT: &[Row] = &[
    ("held_root beyond the disk", "msnap", (REJECT, REJECT), Ours::Worst(Damage), |d| add(d, HELD_ROOT, 1 << 20)),
    ("held_root no superblock", "msnap", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        put(d, HELD_ROOT, &word(d, MAPPING_ROOT).to_le_bytes())
    }),
    ("held_root 0, and yet counted", "msnap", (REJECT, REJECT), Ours::Worst(Damage), |d| put(d, HELD_ROOT, &[0; 8])),
    ("the snapshot's ids differ", "msnap", (ACCEPT, REJECT), Ours::Worst(Damage), |d| {
        let details = word(d, word(d, HELD_ROOT) * 4096 + DETAILS_ROOT);
        add(d, entries(d, details).last().unwrap().key_at, 1)
    }),
    ("a count of the snapshot", "msnap", (REJECT, REJECT), Ours::Worst(Damage), |d| {
        set_count(d, Map::Metadata, word(d, word(d, HELD_ROOT) * 4096 + DETAILS_ROOT), 0)
    }),
];

#[test]
fn trap_31_our_check_tells_of_damaged_blocks() {
    compare(BLOCKS);
}

#[test]
fn trap_31_our_check_looks_at_the_superblock() {
    compare(SUPERBLOCK);
}

#[test]
fn trap_31_our_check_recounts_everything() {
    compare(COUNTS);
}

#[test]
fn trap_32_the_held_snapshot_is_checked_too() {
    compare(SNAPSHOT);
}
