//! Deltas of two snapshots with five million mappings each: makes the images, and counts the blocks that are read and the
//! memory that is taken. `cargo xtask bench delta` runs it and then measures the time beside `thin_delta`.
//!
//! `cargo bench -p thinp --bench delta -- --folder FOLDER`

use cap::Cap;
use platform::Runtime;
use platform::block::{BlockDevice, Disk, Io, Limits};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::block_on_ready;
use std::alloc::System;
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::delta::{Format, Options, delta};
use thinp::metadata::restore::{Overrides, restore};
use thinp::metadata::{Metadata, OpenMode, VirtualBlock};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const MAPPINGS: u64 = 5_000_000;
const DATA_BLOCKS: u64 = 8 << 20;
const METADATA_SECTORS: u64 = 1 << 20;
const CACHE_BLOCKS: usize = 16_384;

/// Data blocks that are handed out together.
const EXTENT_BLOCKS: u64 = 8;

/// Blocks that are written one after the other where changes come in clusters.
const CLUSTER_BLOCKS: u64 = 1000;

/// Blocks between two commits.
const COMMIT_BLOCKS: u64 = 100_000;

/// The floors.
const ONE_BLOCK_READS_MAX: u64 = 16;
const MEMORY_BYTES_MAX: usize = 1 << 20;

/// What is written after the snapshot was taken.
const CASES: [&str; 3] = ["one", "clusters", "random"];

struct Dice(Seeded);

impl Dice {
    fn below(&self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % limit
    }
}

fn runtime() -> Runtime {
    simulated::runtime_at_once(Rc::new(Seeded::from_u64(1)), 4 << 20)
}

fn id(id: u64) -> DeviceId {
    DeviceId::new(id).unwrap()
}

/// The dump of one device without holes, whose extents lie all over the data disk, line by line.
fn dump(dice: &Dice) -> impl Iterator<Item = String> + use<> {
    let mut extents: Vec<u64> = (0..MAPPINGS / EXTENT_BLOCKS).collect();
    for last in (1..extents.len()).rev() {
        extents.swap(last, dice.below(last as u64 + 1) as usize);
    }
    let head = format!(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"{DATA_BLOCKS}\">\
         <device dev_id=\"1\" mapped_blocks=\"{MAPPINGS}\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\">"
    );
    let range = |(n, extent): (usize, u64)| {
        let (begin, data) = (n as u64 * EXTENT_BLOCKS, extent * EXTENT_BLOCKS);
        format!("<range_mapping origin_begin=\"{begin}\" data_begin=\"{data}\" length=\"{EXTENT_BLOCKS}\" time=\"0\"/>")
    };
    let ranges = extents.into_iter().enumerate().map(range);
    std::iter::once(head).chain(ranges).chain(["</device></superblock>".to_string()])
}

/// Device 1 with all mappings, and its snapshot 2.
async fn snapshot() -> MemDisk {
    let disk = MemDisk::new(METADATA_SECTORS);
    let mut lines = dump(&Dice(Seeded::from_u64(5)));
    let source = async |piece: &mut Vec<u8>| {
        piece.extend(lines.by_ref().take(500).flat_map(String::into_bytes));
        Ok::<(), std::convert::Infallible>(())
    };
    let device = Disk::new(disk.clone());
    restore(&runtime(), &device, CACHE_BLOCKS, &Overrides::default(), source).await.unwrap();
    let metadata = open(&disk).await;
    metadata.create_snap(id(2), id(1)).await.unwrap();
    metadata.commit(async || Ok(())).await.unwrap();
    disk
}

async fn open(disk: &MemDisk) -> Metadata {
    let device = Disk::new(disk.clone());
    Metadata::open(&runtime(), device, OpenMode::Existing, CACHE_BLOCKS, false).await.unwrap()
}

/// Writes to the snapshot as the case says.
async fn write(disk: &MemDisk, case: &str) {
    let dice = Dice(Seeded::from_u64(6));
    let blocks: Vec<u64> = match case {
        "one" => vec![MAPPINGS / 3],
        "clusters" => (0..MAPPINGS / 20 / CLUSTER_BLOCKS)
            .flat_map(|n| {
                let stretch = 20 * CLUSTER_BLOCKS;
                let begin = n * stretch + dice.below(stretch - CLUSTER_BLOCKS);
                begin..begin + CLUSTER_BLOCKS
            })
            .collect(),
        _ => (0..MAPPINGS / 20).map(|_| dice.below(MAPPINGS)).collect(),
    };
    let metadata = open(disk).await;
    metadata.open_device(id(2)).await.unwrap();
    for (n, block) in (1..).zip(blocks) {
        let data = metadata.reserve_data_block().await.unwrap();
        metadata.insert(id(2), VirtualBlock(block), data).await.unwrap();
        if u64::is_multiple_of(n, COMMIT_BLOCKS) {
            metadata.commit(async || Ok(())).await.unwrap();
        }
    }
    metadata.commit(async || Ok(())).await.unwrap();
}

/// What a delta cost.
struct Cost {
    blocks_read: u64,
    memory_bytes: usize,
    text_bytes: usize,
}

/// Counts what is read, and looks at the heap whenever something is.
#[derive(Clone)]
struct Watched {
    disk: MemDisk,
    blocks_read: Rc<Cell<u64>>,
    heap_max: Rc<Cell<usize>>,
}

impl BlockDevice for Watched {
    fn limits(&self) -> Limits {
        self.disk.limits()
    }

    fn submit(&self, mut io: Io) {
        self.blocks_read.set(self.blocks_read.get() + io.request_mut().sectors / 8);
        self.heap_max.set(self.heap_max.get().max(HEAP.allocated()));
        self.disk.submit(io);
    }
}

async fn measure(disk: &MemDisk, same: bool) -> Cost {
    let watched = Watched { disk: disk.clone(), blocks_read: Rc::default(), heap_max: Rc::default() };
    let (runtime, device) = (runtime(), Disk::new(watched.clone()));
    let options = Options { left: id(1), right: id(2), format: Format::Xml, same, from: VirtualBlock(0) };
    let (before, mut text_bytes) = (HEAP.allocated(), 0);
    let sink = async |piece: &[u8]| {
        text_bytes += piece.len();
        Ok::<(), std::convert::Infallible>(())
    };
    delta(&runtime, &device, false, &options, sink).await.unwrap();
    let memory_bytes = watched.heap_max.get().saturating_sub(before);
    Cost { blocks_read: watched.blocks_read.get(), memory_bytes, text_bytes }
}

/// Writes what is not zero.
fn save(disk: &MemDisk, path: &Path) {
    let unfinished = path.with_extension("tmp");
    let file = File::create(&unfinished).unwrap();
    let bytes = disk.limits().size_sectors * 512;
    file.set_len(bytes).unwrap();
    for at in (0..bytes).step_by(1 << 20) {
        let piece = disk.peek(at, 1 << 20);
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece, at).unwrap();
        }
    }
    std::fs::rename(unfinished, path).unwrap();
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--folder").skip(1);
    let Some(folder) = arguments.next() else {
        eprintln!("--folder FOLDER says where the images go");
        return ExitCode::from(2);
    };
    let base = block_on_ready(snapshot());
    let mut kept = true;
    for case in CASES {
        let disk = base.fork();
        block_on_ready(write(&disk, case));
        save(&disk, &Path::new(&folder).join(format!("delta-{case}.img")));
        for same in [false, true] {
            let cost = block_on_ready(measure(&disk, same));
            let what = if same { "all" } else { "changes" };
            println!(
                "{case}, {what}: {} metadata blocks read, {} KiB of heap, {} KiB of text",
                cost.blocks_read,
                cost.memory_bytes >> 10,
                cost.text_bytes >> 10
            );
            kept &= cost.memory_bytes <= MEMORY_BYTES_MAX;
            kept &= case != "one" || same || cost.blocks_read <= ONE_BLOCK_READS_MAX;
        }
    }
    println!(
        "one block: at most {ONE_BLOCK_READS_MAX} blocks; memory: at most {} KiB: {}",
        MEMORY_BYTES_MAX >> 10,
        if kept { "floors kept" } else { "FLOOR MISSED" }
    );
    std::io::stdout().flush().unwrap();
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
