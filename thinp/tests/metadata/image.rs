//! Looking at images, and altering them, by the reference alone: nothing here uses the code that is tested but for the
//! checksum.

use platform::mem::MemDisk;

/// What tells the kinds of block apart (reference 1.2): superblock, node, bitmap, index.
const SALTS: [u32; 4] = [160774, 121107, 240779, 160478];

/// Entries of a bitmap.
pub const ENTRIES: u64 = 16320;

/// Places in block 0 (reference 1.1).
pub const TIME: u64 = 44;
pub const HELD_ROOT: u64 = 56;
pub const MAPPING_ROOT: u64 = 320;
pub const DETAILS_ROOT: u64 = 328;

/// A space map, by the place of its root in block 0.
#[derive(Clone, Copy)]
pub enum Map {
    Data = 64,
    Metadata = 192,
}

pub fn word(disk: &MemDisk, at_bytes: u64) -> u64 {
    u64::from_le_bytes(disk.peek(at_bytes, 8).try_into().unwrap())
}

pub fn half(disk: &MemDisk, at_bytes: u64) -> u32 {
    u32::from_le_bytes(disk.peek(at_bytes, 4).try_into().unwrap())
}

/// Changes a block and makes its checksum right again. False, and nothing done, if it was not right before.
pub fn edit(disk: &MemDisk, block: u64, change: impl FnOnce(&mut [u8])) -> bool {
    let mut bytes = disk.peek(block * 4096, 4096);
    let stored = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    let Some(salt) = SALTS.into_iter().find(|salt| pdata::checksum::crc32c_raw(&bytes[4..]) ^ salt == stored) else {
        return false;
    };
    change(&mut bytes);
    let checksum = pdata::checksum::crc32c_raw(&bytes[4..]) ^ salt;
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    disk.poke(block * 4096, &bytes);
    true
}

/// Overwrites a field, given its place on the disk, and makes the checksum right again.
#[track_caller]
pub fn put(disk: &MemDisk, at_bytes: u64, field: &[u8]) {
    let at = (at_bytes % 4096) as usize;
    assert!(edit(disk, at_bytes / 4096, |bytes| bytes[at..at + field.len()].copy_from_slice(field)));
}

/// An entry of a tree's leaf: its key, and the places of key and value on the disk.
#[derive(Clone, Copy)]
pub struct Entry {
    pub key: u64,
    pub key_at: u64,
    pub value_at: u64,
}

/// The entries of a node, leaf or internal (reference 2.1).
pub fn node(disk: &MemDisk, block: u64) -> Vec<Entry> {
    let at = block * 4096;
    let (entries, max) = (u64::from(half(disk, at + 16)), u64::from(half(disk, at + 20)));
    let value_bytes = u64::from(half(disk, at + 24));
    let entry = |n| {
        let key_at = at + 32 + 8 * n;
        Entry { key: word(disk, key_at), key_at, value_at: at + 32 + 8 * max + value_bytes * n }
    };
    (0..entries).map(entry).collect()
}

pub fn is_internal(disk: &MemDisk, block: u64) -> bool {
    half(disk, block * 4096 + 4) == 1
}

/// Blocks of the leaves of a tree, in the order of their keys.
pub fn leaves(disk: &MemDisk, root: u64) -> Vec<u64> {
    if !is_internal(disk, root) {
        return vec![root];
    }
    node(disk, root).iter().flat_map(|child| leaves(disk, word(disk, child.value_at))).collect()
}

/// All entries of a tree.
pub fn entries(disk: &MemDisk, root: u64) -> Vec<Entry> {
    leaves(disk, root).into_iter().flat_map(|leaf| node(disk, leaf)).collect()
}

/// Place of the index entry of bitmap `k` (reference 2.3).
pub fn index_entry(disk: &MemDisk, map: Map, k: u64) -> u64 {
    let root = word(disk, map as u64 + 16);
    match map {
        Map::Metadata => root * 4096 + 16 + 16 * k,
        Map::Data => entries(disk, root).iter().find(|entry| entry.key == k).unwrap().value_at,
    }
}

/// The two bits of a block: 0 to 3 (reference 2.2).
pub fn count(disk: &MemDisk, map: Map, block: u64) -> u32 {
    let (at, shift) = pair(disk, map, block);
    let pair = disk.peek(at, 1)[0] >> shift & 3;
    u32::from((pair & 1) << 1 | pair >> 1)
}

/// Sets them.
pub fn set_count(disk: &MemDisk, map: Map, block: u64, count: u8) {
    let (at, shift) = pair(disk, map, block);
    let pair = (count & 1) << 1 | count >> 1;
    put(disk, at, &[disk.peek(at, 1)[0] & !(3 << shift) | pair << shift]);
}

/// Where the two bits are: place of their byte, and shift.
fn pair(disk: &MemDisk, map: Map, block: u64) -> (u64, u64) {
    let bitmap = word(disk, index_entry(disk, map, block / ENTRIES));
    let index = block % ENTRIES;
    (bitmap * 4096 + 16 + index / 4, index % 4 * 2)
}

/// Blocks that the map counts.
pub fn nr_blocks(disk: &MemDisk, map: Map) -> u64 {
    word(disk, map as u64)
}
