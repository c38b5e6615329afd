//! What the tests share: a runtime, disks, dice, and Linux's `thin_check` as judge.

use platform::Runtime;
use platform::block::{BlockDevice, Disk};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::block_on_ready;
use std::cell::Cell;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::OnceLock;
use thinp::control::DeviceId;
use thinp::metadata::check::{self, Report};
use thinp::metadata::dump;
use thinp::metadata::{DataBlock, Metadata, OpenMode, VirtualBlock};

pub fn runtime() -> Runtime {
    simulated::runtime_at_once(Rc::new(Seeded::from_u64(1)), 1 << 20)
}

pub const CACHE: usize = 1024;

pub async fn format(disk: &MemDisk, data_blocks: u64) -> Metadata {
    format_on(Disk::new(disk.clone()), data_blocks, CACHE).await
}

pub async fn format_on(device: Disk, data_blocks: u64, cache_blocks: usize) -> Metadata {
    let mode = OpenMode::Format { data_block_sectors: 128, data_blocks };
    Metadata::open(&runtime(), device, mode, cache_blocks, false).await.unwrap()
}

pub async fn open_on(device: Disk, cache_blocks: usize) -> Metadata {
    Metadata::open(&runtime(), device, OpenMode::Existing, cache_blocks, false).await.unwrap()
}

pub async fn open_read_only(disk: &MemDisk) -> Metadata {
    Metadata::open(&runtime(), Disk::new(disk.clone()), OpenMode::Existing, CACHE, true).await.unwrap()
}

pub fn id(id: u64) -> DeviceId {
    DeviceId::new(id).unwrap()
}

/// Maps a virtual block to a new data block.
pub async fn provision(metadata: &Metadata, device: DeviceId, block: u64) -> DataBlock {
    let data = metadata.reserve_data_block().await.unwrap();
    metadata.insert(device, VirtualBlock(block), data).await.unwrap();
    data
}

pub async fn commit(metadata: &Metadata) {
    metadata.commit(async || Ok(())).await.unwrap();
}

/// Numbers from a seed.
pub struct Dice(Seeded, Cell<u64>);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(Seeded::from_u64(seed), Cell::new(0))
    }

    pub fn below(&self, limit: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        self.1.set(self.1.get() + 1);
        u64::from_le_bytes(bytes) % limit
    }

    pub fn chance(&self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// The seed of this run: `SEED=n` repeats one.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 % 1_000_000_007
    });
    println!("SEED={seed}");
    seed
}

pub fn bytes_of(disk: &MemDisk) -> Vec<u8> {
    disk.peek(0, disk.limits().size_sectors as usize * 512)
}

/// How much more than in CI the random tests do (`cargo xtask soak` sets it).
pub fn effort() -> u64 {
    std::env::var("EFFORT").ok().and_then(|effort| effort.parse().ok()).unwrap_or(1)
}

/// A test leaves something out because of what this machine lacks, which CI must not.
pub fn skipped(lacks: &str) {
    assert!(std::env::var_os("CI").is_none(), "CI needs {lacks}");
    println!("skipped: no {lacks}");
}

/// The folder with the peers and with what they made: beside the repository, or where GOSSAMER_SHARED says.
pub fn shared() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    std::env::var_os("GOSSAMER_SHARED").map_or_else(beside, PathBuf::from)
}

/// The folder with the tools 1.x, if this machine has them.
pub fn tools() -> Option<&'static PathBuf> {
    static TOOLS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let out = Command::new(shared().join("lab/thin-tools")).output().ok().filter(|out| out.status.success())?;
        Some(PathBuf::from(String::from_utf8(out.stdout).ok()?.trim()))
    };
    let found = TOOLS.get_or_init(find).as_ref();
    if found.is_none() {
        skipped("thin-provisioning-tools 1.x (shared/lab/thin-tools)");
    }
    found
}

/// Runs one of the tools on a disk; its output if it is content.
pub fn run_tool(disk: &MemDisk, tool: &str, args: &[&str]) -> Option<Result<String, String>> {
    tools()?;
    let file = temporary_file(disk);
    let said = run_tool_on(&file, tool, args);
    std::fs::remove_file(&file).unwrap();
    said
}

/// Runs one of the tools on a file; its output if it is content.
pub fn run_tool_on(file: &Path, tool: &str, args: &[&str]) -> Option<Result<String, String>> {
    let out = Command::new(tools()?.join(tool)).args(args).arg(file).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Some(if out.status.success() { Ok(text(out.stdout)) } else { Err(text(out.stdout) + &text(out.stderr)) })
}

/// The disk as a sparse file.
pub fn temporary_file(disk: &MemDisk) -> PathBuf {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("gossamer-{}-{n}.meta", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    let bytes = bytes_of(disk);
    file.set_len(bytes.len() as u64).unwrap();
    for (block, bytes) in (0..).zip(bytes.chunks(4096)).filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
        file.write_all_at(bytes, block * 4096).unwrap();
    }
    path
}

/// `thin_check` 1.x is content.
#[track_caller]
pub fn thin_check(disk: &MemDisk) {
    if let Some(Err(why)) = run_tool(disk, "thin_check", &[]) {
        panic!("thin_check: {why}");
    }
}

/// What our check may take for counts of data blocks.
const COUNTS_BYTES: usize = 1 << 20;

/// What `thin_dump` 1.x would print, by our own code; with `metadata_snap` of the metadata snapshot.
pub async fn our_xml(disk: &MemDisk, metadata_snap: bool) -> String {
    let options = dump::Options { metadata_snap, ..dump::Options::default() };
    let mut xml = Vec::new();
    let sink = async |piece: &[u8]| {
        xml.extend_from_slice(piece);
        Ok::<(), std::convert::Infallible>(())
    };
    dump::dump(&runtime(), &Disk::new(disk.clone()), &options, sink).await.unwrap();
    String::from_utf8(xml).unwrap()
}

/// What our own check finds.
pub fn report(disk: &MemDisk) -> thinp::metadata::Result<Report> {
    block_on_ready(check::check(&runtime(), &Disk::new(disk.clone()), COUNTS_BYTES))
}

/// Our own check finds nothing at all, not even a careless hint.
#[track_caller]
pub fn check(disk: &MemDisk) -> Report {
    let report = report(disk).unwrap();
    let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "{problems:#?}");
    report
}
