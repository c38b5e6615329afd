//! What metadata operations cost on a disk without latency: `cargo xtask bench pdata` runs this.
//!
//! Times are the thread's processor time: other processes take none of it. The disk takes what is written without a copy,
//! as a device does that fetches it itself. Of it only block 0 can be read, which each commit compares: all else is the
//! cache's. `--svg FILE` draws the costs for 10^3 to 10^7 mappings, `--quick` stops at 10^6. Exits with 1 if a floor is missed.
//! `cargo test` runs it with the fewest mappings, so that it does not break unseen.

mod picture;

use pdata::block::{BLOCK_BYTES, BLOCK_SECTORS};
use picture::{Curve, Point};
use platform::block::{BlockDevice, Disk, Io, IoError, Limits, Op};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::block_on_ready;
use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::process::ExitCode;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::{Metadata, MetadataError, OpenMode, Progress, VirtualBlock};

/// Random inserts a second at 10^6 mappings, with a commit every [`INSERTS_A_COMMIT`].
const INSERTS_FLOOR: u64 = 300_000;
/// Nanoseconds of a lookup at 10^5 mappings.
const LOOKUP_FLOOR_NS: u64 = 200;

const INSERTS_A_COMMIT: u64 = 1_000;
const LOOKUPS: usize = 1_000_000;
const SNAPSHOTS: usize = 50;
const VIRTUAL_BLOCKS: u64 = 1 << 30;
const SIZES: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// Windows of inserts of which the median counts.
const WINDOWS: usize = 9;

/// A disk without latency. All that is ever read but block 0 is the cache's.
struct NoDisk {
    size_sectors: u64,
    block0: Cell<[u8; BLOCK_BYTES]>,
}

impl BlockDevice for NoDisk {
    fn limits(&self) -> Limits {
        Limits { size_sectors: self.size_sectors, ..MemDisk::new(0).limits() }
    }

    fn submit(&self, mut io: Io) {
        let request = io.request_mut();
        let block0 = request.bufs.first_mut().and_then(|buf| buf.first_chunk_mut()).filter(|_| request.sector == 0);
        let result = match (request.op, block0) {
            (Op::Write { .. }, Some(block0)) => {
                self.block0.set(*block0);
                Ok(())
            }
            (Op::Read, Some(block0)) => {
                *block0 = self.block0.get();
                Ok(())
            }
            (Op::Write { .. } | Op::Flush, _) => Ok(()),
            (op, _) => Err(IoError::Unsupported(op)),
        };
        io.complete(result);
    }
}

/// Nanoseconds that this thread has run.
fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn id(number: u64) -> DeviceId {
    DeviceId::new(number).expect("a small number")
}

/// A pool in memory with one open volume.
struct Bench {
    metadata: Metadata,
    volume: DeviceId,
    dice: Rc<Seeded>,
    /// Mapped, in order of insertion.
    mapped: Vec<VirtualBlock>,
}

impl Bench {
    /// A pool whose metadata stays in the cache with `mappings` of them.
    async fn new(mappings: u64) -> Result<Bench, MetadataError> {
        let dice = Rc::new(Seeded::from_u64(1));
        let runtime = simulated::runtime_at_once(dice.clone(), 8 << 20);
        let data_blocks = mappings * 2 + 100_000;
        // Leaves two thirds full and the nodes above them, as often again for what a transaction writes, and the maps.
        let tree_blocks = mappings / 160 + 200;
        let blocks = tree_blocks * 2 + data_blocks / 8_000 + 8_000;
        let disk = Disk::new(NoDisk { size_sectors: blocks * BLOCK_SECTORS, block0: Cell::new([0; BLOCK_BYTES]) });
        let format = OpenMode::Format { data_block_sectors: 128, data_blocks };
        let metadata = Metadata::open(&runtime, disk, format, blocks as usize, false).await?;
        let volume = id(1);
        metadata.create_thin(volume).await?;
        metadata.open_device(volume).await?;
        Ok(Bench { metadata, volume, dice, mapped: Vec::new() })
    }

    fn roll(&self) -> u64 {
        let mut bytes = [0; 8];
        self.dice.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    async fn commit(&self) -> Result<(), MetadataError> {
        self.metadata.commit(async || Ok(())).await
    }

    /// Inserts random mappings as the pool does; nanoseconds of each, commits included.
    async fn insert(&mut self, count: u64) -> Result<u64, MetadataError> {
        let first = self.mapped.len();
        let fresh: Vec<_> = (0..count).map(|_| VirtualBlock(self.roll() % VIRTUAL_BLOCKS)).collect();
        self.mapped.extend(fresh);
        let start = now_ns();
        for (n, block) in (1..).zip(&self.mapped[first..]) {
            let data = self.metadata.reserve_data_block().await?;
            self.metadata.insert(self.volume, *block, data).await?;
            if u64::is_multiple_of(n, INSERTS_A_COMMIT) {
                self.commit().await?;
            }
        }
        self.commit().await?;
        Ok((now_ns() - start) / count)
    }

    /// Looks random mapped blocks up; nanoseconds of each.
    fn lookup(&self) -> u64 {
        let blocks: Vec<_> =
            (0..LOOKUPS).map(|_| self.mapped[(self.roll() % self.mapped.len() as u64) as usize]).collect();
        let start = now_ns();
        let found = blocks.iter().filter(|block| matches!(self.metadata.try_lookup(self.volume, **block), Ok(Some(_))));
        assert_eq!(found.count(), LOOKUPS, "a mapping is lost or not in the cache");
        (now_ns() - start) / LOOKUPS as u64
    }

    /// Makes and deletes snapshots that share everything; nanoseconds of each, a commit included.
    async fn snapshots(&self) -> Result<(u64, u64), MetadataError> {
        let (mut created, mut deleted) = (Vec::new(), Vec::new());
        for snapshot in (2..).take(SNAPSHOTS).map(id) {
            let start = now_ns();
            self.metadata.create_snap(snapshot, self.volume).await?;
            self.commit().await?;
            let middle = now_ns();
            let progress = self.metadata.delete(snapshot).await?;
            assert_eq!(progress, Progress::Complete, "it shares all that it has, and takes one step");
            self.commit().await?;
            created.push(middle - start);
            deleted.push(now_ns() - middle);
        }
        Ok((median(created), median(deleted)))
    }

    /// Deletes the volume with all its mappings; nanoseconds of each of them.
    async fn delete(self) -> Result<u64, MetadataError> {
        self.metadata.close_device(self.volume);
        let start = now_ns();
        while self.metadata.delete(self.volume).await? == Progress::Partial {
            self.commit().await?;
        }
        self.commit().await?;
        Ok((now_ns() - start) / self.mapped.len() as u64)
    }
}

fn median(mut costs: Vec<u64>) -> u64 {
    costs.sort_unstable();
    costs[costs.len() / 2]
}

/// What operations cost with so many mappings, in nanoseconds.
struct Costs {
    mappings: u64,
    insert: u64,
    lookup: u64,
    create_snapshot: u64,
    delete_snapshot: u64,
    delete_mapping: u64,
}

async fn measure(mappings: u64) -> Result<Costs, MetadataError> {
    let mut bench = Bench::new(mappings).await?;
    bench.insert(mappings).await?;
    let lookup = bench.lookup();
    let mut windows = Vec::new();
    for _ in 0..WINDOWS {
        windows.push(bench.insert((mappings / 100).max(INSERTS_A_COMMIT)).await?);
    }
    let (create_snapshot, delete_snapshot) = bench.snapshots().await?;
    let delete_mapping = bench.delete().await?;
    Ok(Costs { mappings, insert: median(windows), lookup, create_snapshot, delete_snapshot, delete_mapping })
}

fn floor(text: &str, kept: bool) -> bool {
    println!("{text}: {}", if kept { "floor kept" } else { "FLOOR MISSED" });
    kept
}

async fn run(largest: u64) -> Result<(Vec<Costs>, bool), MetadataError> {
    let (mut all, mut kept) = (Vec::new(), true);
    println!("| mappings | lookup | insert | create a snapshot | delete a snapshot | delete, each mapping |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for mappings in SIZES.into_iter().filter(|size| *size <= largest) {
        let costs = measure(mappings).await?;
        let Costs { lookup, insert, create_snapshot, delete_snapshot, delete_mapping, .. } = costs;
        println!(
            "| {mappings} | {lookup} ns | {insert} ns | {create_snapshot} ns | {delete_snapshot} ns | {delete_mapping} ns |"
        );
        all.push(costs);
    }
    for costs in &all {
        if costs.mappings == 1_000_000 {
            let rate = 1_000_000_000 / costs.insert.max(1);
            let text = format!("random inserts at 10^6 mappings, a commit every {INSERTS_A_COMMIT}: {rate} a second");
            kept &= floor(&text, rate > INSERTS_FLOOR);
        }
        if costs.mappings == 100_000 {
            kept &= floor(&format!("lookup at 10^5 mappings: {} ns", costs.lookup), costs.lookup < LOOKUP_FLOOR_NS);
        }
    }
    Ok((all, kept))
}

fn draw(all: &[Costs]) -> String {
    let curve = |name, cost: fn(&Costs) -> u64| Curve {
        name,
        points: all.iter().map(|costs| Point { mappings: costs.mappings, cost_ns: cost(costs) }).collect(),
    };
    picture::draw(&[
        curve("create a snapshot, commit included", |costs| costs.create_snapshot),
        curve("delete a snapshot, commit included", |costs| costs.delete_snapshot),
        curve("insert, 1/1000 of a commit included", |costs| costs.insert),
        curve("lookup", |costs| costs.lookup),
        curve("delete a volume, for each mapping", |costs| costs.delete_mapping),
    ])
}

fn main() -> ExitCode {
    let (mut svg, mut largest, mut is_test) = (None, u64::MAX, true);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--svg" => svg = Some(arguments.next().expect("--svg FILE")),
            "--quick" => largest = 1_000_000,
            // Cargo says so to every benchmark that is not run as a test.
            "--bench" => is_test = false,
            other => panic!("{other}? [--svg FILE] [--quick]"),
        }
    }
    if is_test {
        largest = SIZES[0];
    }
    let (all, kept) = block_on_ready(run(largest)).expect("nothing is read that was not in the cache");
    if let Some(path) = svg {
        std::fs::write(&path, draw(&all)).expect("the picture can be written");
    }
    if is_test {
        println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
