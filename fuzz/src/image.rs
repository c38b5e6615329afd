//! From a fuzzer's bytes to an image: a pool to begin with, and edits.
//!
//! The first byte chooses the pool, the second tells how many edits follow, the rest is for what is done with the
//! image. Any bytes mean something; missing ones are zeroes. An edit knows the layout of a btree node (reference 2), so
//! that one mutation of the fuzzer can swap a pointer, a key or a count.

use crate::disk::{BLOCK_BYTES, BLOCKS, Block, CowDisk};
use crate::runtime;
use pdata::checksum::crc32c_raw;
use platform::block::Disk;
use platform::task::block_on_ready;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, OpenMode, Progress, VirtualBlock};

/// The constants that tell the kinds of block apart (reference 1.2): superblock, node, bitmap, index.
const SALTS: [u32; 4] = [160774, 121107, 240779, 160478];

/// Most edits of one image.
const EDITS_MAX: u8 = 32;

/// Where every kind of block has its own number.
const NUMBER_AT: usize = 8;

/// Offsets in a node (reference 2.1).
const FLAGS_AT: usize = 4;
const ENTRIES_AT: usize = 16;
const CAPACITY_AT: usize = 20;
const VALUE_BYTES_AT: usize = 24;
const KEYS_AT: usize = 32;

/// A fuzzer's bytes, read one after the other.
pub struct Bytes<'b>(&'b [u8]);

impl<'b> Bytes<'b> {
    /// All of them.
    pub fn new(bytes: &'b [u8]) -> Bytes<'b> {
        Bytes(bytes)
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let (taken, rest) = self.0.split_at(N.min(self.0.len()));
        array[..taken.len()].copy_from_slice(taken);
        self.0 = rest;
        array
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next number of 16 bits.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number: most are small, any is possible.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            255 => u64::from_le_bytes(self.array()),
            254 => u64::from(u32::from_le_bytes(self.array())),
            253 => u64::from(self.short()),
            252 => u64::MAX - u64::from(self.byte()),
            small => small.into(),
        }
    }
}

/// A disk as the bytes tell; what is left of them is for the test.
pub fn decode(bytes: &mut Bytes<'_>) -> CowDisk {
    let disk = BASES.with(|bases| CowDisk::new(bases[usize::from(bytes.byte()) % bases.len()].clone()));
    for _ in 0..bytes.byte() % EDITS_MAX {
        edit(&disk, bytes);
    }
    disk
}

/// Makes one change and, in most cases, the block's checksum right again.
fn edit(disk: &CowDisk, bytes: &mut Bytes<'_>) {
    let (what, number) = (bytes.byte(), usize::from(bytes.byte()) % BLOCKS);
    let mut block = disk.block(number);
    let mut salt = salt_of(&block);
    match what % 8 {
        0 => put(&mut block, usize::from(bytes.short()), &[bytes.byte()]),
        1 => put(&mut block, KEYS_AT + 8 * usize::from(bytes.byte()), &bytes.number().to_le_bytes()),
        2 => {
            let at = value_at(&block, usize::from(bytes.byte()));
            put(&mut block, at, &bytes.number().to_le_bytes());
        }
        3 => {
            let at = [FLAGS_AT, ENTRIES_AT, CAPACITY_AT, VALUE_BYTES_AT][usize::from(bytes.byte() % 4)];
            put(&mut block, at, &(bytes.number() as u32).to_le_bytes());
        }
        // A field of the superblock, or entries of a bitmap or an index.
        4 => put(&mut block, 8 * usize::from(bytes.byte()), &bytes.number().to_le_bytes()),
        5 => {
            block = disk.block(usize::from(bytes.byte()));
            salt = salt_of(&block);
        }
        6 => salt = Some(SALTS[usize::from(bytes.byte() % 4)]),
        _ => {
            put(&mut block, usize::from(bytes.short()), &[bytes.byte()]);
            salt = None;
        }
    }
    if let Some(salt) = salt {
        put(&mut block, NUMBER_AT, &(number as u64).to_le_bytes());
        let checksum = crc32c_raw(&block[4..]) ^ salt;
        put(&mut block, 0, &checksum.to_le_bytes());
    }
    disk.change(number, |bytes| *bytes = block);
}

/// Where the value `index` of a node stands.
fn value_at(block: &Block, index: usize) -> usize {
    let field = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]) as usize;
    let capacity = field(CAPACITY_AT) % BLOCK_BYTES;
    KEYS_AT + 8 * capacity + field(VALUE_BYTES_AT) % BLOCK_BYTES * index
}

fn put(block: &mut Block, at: usize, bytes: &[u8]) {
    let at = at % BLOCK_BYTES;
    let len = bytes.len().min(BLOCK_BYTES - at);
    block[at..at + len].copy_from_slice(&bytes[..len]);
}

/// What kind of block it is, if its checksum is right.
fn salt_of(block: &Block) -> Option<u32> {
    let salt = u32::from_le_bytes([block[0], block[1], block[2], block[3]]) ^ crc32c_raw(&block[4..]);
    SALTS.contains(&salt).then_some(salt)
}

thread_local! {
    static BASES: Vec<Rc<Vec<Block>>> = {
        let made = [|_: &Metadata| {}, one_device, shared_devices].map(|fill| Rc::new(make(fill)));
        // The last one is blank.
        made.into_iter().chain([Rc::default()]).collect()
    };
}

/// Makes the pools to begin with, if that was not done before.
pub fn prepare() {
    BASES.with(|_| ());
}

/// The blocks of a pool that `fill` filled.
fn make(fill: fn(&Metadata)) -> Vec<Block> {
    let disk = CowDisk::new(Rc::default());
    let mode = OpenMode::Format { data_block_sectors: 128, data_blocks: 1000 };
    let (runtime, device) = (runtime(), Disk::new(disk.clone()));
    let metadata = block_on_ready(Metadata::open(&runtime, device, mode, 256, false)).expect("a blank disk");
    fill(&metadata);
    block_on_ready(metadata.commit(async || Ok(()))).expect("a sound disk");
    let last = disk.changed().last().copied().unwrap_or(0);
    (0..=last).map(|number| disk.block(number)).collect()
}

fn id(id: u64) -> DeviceId {
    DeviceId::new(id).expect("24 bits")
}

async fn provision(metadata: &Metadata, device: DeviceId, block: u64) -> thinp::metadata::Result<()> {
    let data = metadata.reserve_data_block().await?;
    metadata.insert(device, VirtualBlock(block), data).await
}

/// A device with a few mappings.
fn one_device(metadata: &Metadata) {
    let filled = block_on_ready(async {
        metadata.create_thin(id(1)).await?;
        metadata.open_device(id(1)).await?;
        for block in [0, 1, 2, 7, 1 << 40] {
            provision(metadata, id(1), block).await?;
        }
        Ok::<(), thinp::metadata::MetadataError>(())
    });
    filled.expect("there is room");
}

/// Trees of two levels, nodes shared by snapshots, counts above 2, and a metadata snapshot.
fn shared_devices(metadata: &Metadata) {
    let filled = block_on_ready(async {
        metadata.create_thin(id(1)).await?;
        metadata.open_device(id(1)).await?;
        // In runs, so that reading them all is quick.
        for block in 0..300 {
            provision(metadata, id(1), block + block / 50).await?;
        }
        for snapshot in 2..6 {
            metadata.create_snap(id(snapshot), id(1)).await?;
            provision(metadata, id(1), snapshot * 30).await?;
        }
        metadata.reserve_metadata_snap(async || Ok(())).await?;
        metadata.remove_range(id(1), VirtualBlock(0), VirtualBlock(200), 1000).await?;
        metadata.delete(id(3)).await
    });
    assert_eq!(filled, Ok(Progress::Complete), "there is room");
}
