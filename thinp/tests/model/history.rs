//! Histories: which pools, how long, and how often things must happen in them.

use crate::driver::{Driver, Shape, id};
use crate::model::Model;
use crate::trees;
use crate::world::{BLOCK, DataDisk, Dice, MetadataDisk, run};
use platform::Runtime;
use platform::block::Disk;
use platform::mem::MemDisk;
use std::cell::Cell;
use thinp::metadata::{Metadata, OpenMode, VirtualBlock};

/// Operations of one history.
const LENGTH: u64 = 12_500;

const SHAPES: [Shape; 6] = [
    // Room for everything.
    Shape { metadata_blocks: 700, data_blocks: 3000, cache_blocks: 200, virtual_blocks: 1200, filled_blocks: 0 },
    // Hardly any data.
    Shape { metadata_blocks: 400, data_blocks: 90, cache_blocks: 16, virtual_blocks: 60, filled_blocks: 0 },
    Shape { metadata_blocks: 500, data_blocks: 700, cache_blocks: 24, virtual_blocks: 900, filled_blocks: 0 },
    // Hardly any metadata.
    Shape { metadata_blocks: 84, data_blocks: 4000, cache_blocks: 32, virtual_blocks: 1500, filled_blocks: 0 },
    Shape { metadata_blocks: 96, data_blocks: 1500, cache_blocks: 16, virtual_blocks: 1500, filled_blocks: 0 },
    // What is free lies on both sides of the border between two bitmaps, of data and of metadata.
    Shape {
        metadata_blocks: 16_500,
        data_blocks: 17_000,
        cache_blocks: 64,
        virtual_blocks: 700,
        filled_blocks: 16_250,
    },
];

/// The device that has data from the start.
const FILLED: u32 = 100;

thread_local! {
    /// The history's seed, and how far it went.
    pub static WHERE: Cell<(u64, u64)> = const { Cell::new((0, 0)) };

    /// It is that of a tree, not of a pool.
    pub static IN_TREE: Cell<bool> = const { Cell::new(false) };
}

/// Runs histories, one of a tree between those of pools, until there were so many operations.
pub fn run_all(seed: u64, operations: u64) {
    let mut done = 0;
    for n in 0.. {
        if done >= operations {
            return;
        }
        let (seed, length) = (seed.wrapping_mul(1_000_003).wrapping_add(n), LENGTH.min(operations - done));
        match SHAPES.get(n as usize % (SHAPES.len() + 1)) {
            Some(shape) => run(seed, async move |runtime| pool(runtime, seed, *shape, length).await),
            None => {
                IN_TREE.set(true);
                trees::history(seed, length);
                IN_TREE.set(false);
            }
        }
        done += length;
    }
}

async fn pool(runtime: Runtime, seed: u64, shape: Shape, length: u64) {
    let dice = Dice::new(seed);
    let (disk, data) = (MemDisk::new(shape.metadata_blocks * 8), DataDisk::new(shape.data_blocks * BLOCK));
    let mut model = Model::default();
    if shape.filled_blocks > 0 {
        fill(&runtime, &disk, &shape, &mut model).await;
    }
    let mut driver = Driver::new(runtime, dice, MetadataDisk::new(disk), data, shape, model).await;
    for step in 0..length {
        WHERE.set((seed, step));
        driver.step().await;
        if driver.dice.chance(if shape.filled_blocks > 0 { 4000 } else { 700 }) {
            driver.verify().await;
        }
    }
    driver.verify().await;
}

/// Makes a pool with a device that has most of the data.
async fn fill(runtime: &Runtime, disk: &MemDisk, shape: &Shape, model: &mut Model) {
    let mode = OpenMode::Format { data_block_sectors: BLOCK as u32, data_blocks: shape.data_blocks };
    let metadata = Metadata::open(runtime, Disk::new(disk.clone()), mode, 1000, false).await.unwrap();
    let device = id(FILLED);
    metadata.create_thin(device).await.unwrap();
    metadata.open_device(device).await.unwrap();
    model.create(FILLED, None);
    for block in 0..shape.filled_blocks {
        let data = metadata.reserve_data_block().await.unwrap();
        metadata.insert(device, VirtualBlock(block), data).await.unwrap();
        let slot = model.new_slot([0; BLOCK as usize]);
        model.map(FILLED, block, slot);
    }
    metadata.commit(async || Ok(())).await.unwrap();
    model.committed();
}

/// How often each thing must happen in a million operations, a fraction of how often it does.
pub const FLOORS: &[(&str, u64)] = &[
    ("leaf split in two", 150),
    ("leaf split, a root", 50),
    ("leaf spread to a sibling", 500),
    ("leaf merged", 20),
    ("leaf filled up from a sibling", 50),
    ("leaf became root", 10),
    ("tree: leaf split, two into three", 2000),
    ("tree: internal node split, a root", 3),
    ("tree: internal node split in two", 20),
    ("tree: internal node split, two into three", 3),
    ("tree: internal node spread to a sibling", 50),
    ("tree: internal node merged", 10),
    ("tree: internal node filled up from a sibling", 20),
    ("tree: internal node became root", 3),
    ("tree: block shadowed again", 2000),
    ("tree: dirty blocks written early", 500),
    ("overflow count inserted", 20_000),
    ("overflow count removed", 20_000),
    ("allocation went on to the next bitmap", 10),
    ("cached block evicted", 50_000),
    ("dirty blocks written early", 5),
    ("out of data space", 200),
    ("out of data space, and back", 200),
    ("out of metadata space", 10),
    ("out of metadata space, and back", 10),
    ("write without data space", 1000),
    ("write without metadata space", 20),
    ("sharing broken with a copy", 3000),
    ("sharing broken without a copy", 300),
    ("written in place", 5000),
    ("block shared", 2000),
    ("copy without metadata space", 20),
    ("discard of shared blocks", 800),
    ("discard of blocks of its own", 500),
    ("release that frees data", 300),
    ("metadata snapshot compared", 100),
    ("delete of what is shared", 200),
    ("delete of what is partly shared", 300),
    ("delete of what is not shared", 200),
    ("transaction aborted", 50),
    ("power cut that loses a transaction", 200),
    ("restart", 300),
    ("data grown", 300),
    ("metadata grown", 100),
    ("message refused, read-only", 200),
    ("message that cannot be", 5000),
    ("malformed message", 3000),
];
