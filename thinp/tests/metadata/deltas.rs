//! Deltas against `thin_delta` 1.x byte by byte, and against models, while the pool goes on.

use crate::dumps::shared_pool;
use crate::harness::*;
use crate::hostile::{damage, damageable_pool};
use crate::model::{Driver, Mappings};
use platform::block::Disk;
use platform::layers::Stats;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use thinp::control::DeviceId;
use thinp::metadata::delta::{Format, Found, Options, Run, delta};
use thinp::metadata::dump::DumpError;
use thinp::metadata::view::View;
use thinp::metadata::{DataBlock, MetadataError, VirtualBlock};

/// More than any delta of a test is long.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// Random histories in CI; with EFFORT 10 it is all 500.
const HISTORIES: u64 = 50;

/// Devices whose pairs are compared, at least.
const DEVICES_MIN: usize = 6;

fn options(left: DeviceId, right: DeviceId, format: Format) -> Options {
    Options { left, right, format, same: true, from: VirtualBlock(0) }
}

/// The delta of what is on a disk.
fn text(disk: &Disk, metadata_snap: bool, options: &Options) -> Result<String, DumpError<&'static str>> {
    let mut all = Vec::new();
    let sink = async |piece: &[u8]| {
        all.extend_from_slice(piece);
        if all.len() > TEXT_BYTES_MAX { Err("it has no end") } else { Ok(()) }
    };
    block_on_ready(delta(&runtime(), disk, metadata_snap, options, sink))?;
    Ok(String::from_utf8(all).unwrap())
}

/// What `thin_delta` 1.x says of a file.
fn thin_delta(file: &Path, (left, right): (DeviceId, DeviceId), more: &[&str]) -> Option<Result<String, String>> {
    let (left, right) = (left.to_string(), right.to_string());
    let args: Vec<&str> = ["--snap1", &left, "--snap2", &right].into_iter().chain(more.iter().copied()).collect();
    run_tool_on(file, "thin_delta", &args)
}

/// Both forms of `thin_delta` are ours.
#[track_caller]
fn same_texts(disk: &Disk, file: &Path, (left, right): (DeviceId, DeviceId), metadata_snap: bool) {
    for (format, verbose) in [(Format::Xml, None), (Format::XmlVerbose, Some("--verbose"))] {
        let args: Vec<&str> = verbose.into_iter().chain(metadata_snap.then_some("-m")).collect();
        let Some(theirs) = thin_delta(file, (left, right), &args) else { return };
        let ours = text(disk, metadata_snap, &options(left, right, format)).unwrap();
        assert_eq!(ours, theirs.unwrap(), "{left} and {right}, {format:?}");
    }
}

/// Every block of one side or the other, by the model.
fn expected(left: &BTreeMap<u64, u64>, right: &BTreeMap<u64, u64>) -> BTreeMap<u64, Found> {
    let found = |block: &u64| match (left.get(block), right.get(block)) {
        (Some(a), Some(b)) if a == b => Found::Same(DataBlock(*a)),
        (Some(a), Some(b)) => Found::Different { left: DataBlock(*a), right: DataBlock(*b) },
        (Some(a), None) => Found::LeftOnly(DataBlock(*a)),
        (None, Some(b)) => Found::RightOnly(DataBlock(*b)),
        (None, None) => unreachable!("{block} is of neither"),
    };
    left.keys().chain(right.keys()).map(|block| (*block, found(block))).collect()
}

/// The blocks of a run, of which all data blocks are told.
fn blocks(run: &Run) -> impl Iterator<Item = (u64, Found)> {
    let run = *run;
    (0..run.blocks).map(move |n| {
        let data = |data: DataBlock| DataBlock(data.0 + n);
        let found = match run.found {
            Found::Same(a) => Found::Same(data(a)),
            Found::Different { left, right } => Found::Different { left: data(left), right: data(right) },
            Found::LeftOnly(a) => Found::LeftOnly(data(a)),
            Found::RightOnly(a) => Found::RightOnly(data(a)),
        };
        (run.begin.0 + n, found)
    })
}

/// The runs of a view's delta; between them the pool is changed. False if it needed the view's
/// blocks, or was opened again.
async fn runs(view: &View, options: &Options, mut between: impl AsyncFnMut()) -> (Vec<Run>, bool) {
    let mut all = Vec::new();
    let walk = async {
        let mut runs = view.delta_runs(options).await?;
        while let Some(run) = runs.next().await? {
            all.push(run);
            between().await;
        }
        Ok::<(), MetadataError>(())
    };
    match walk.await {
        Ok(()) => (all, true),
        Err(error) => {
            assert_eq!(error, MetadataError::Storage(pdata::Error::Ended));
            (all, false)
        }
    }
}

/// One random history. All pairs of its devices as `thin_delta` has them, and some of them from a view, with bursts of
/// changes during the walk. Returns how many walks of views came to their end.
async fn compare(seed: u64) -> usize {
    let disk = MemDisk::new(4096 * 8);
    let mut driver = Driver::new(disk.clone(), Disk::new(disk.clone()), seed, 20_000, 1000).await;
    let steps = 40 + driver.dice.below(200);
    for step in 0.. {
        driver.step().await;
        if step >= steps && driver.now.len() >= DEVICES_MIN {
            break;
        }
    }
    let view = driver.metadata.open_view("delta", None, async || Ok(())).await.unwrap();
    let (moment, mappings, held_then) = (disk.fork(), driver.now.clone(), driver.held.clone());
    driver.committed = mappings.clone();
    let file = temporary_file(&moment);
    let devices: Vec<DeviceId> = mappings.keys().copied().collect();
    let mut ended = 0;
    let pairs = devices.iter().enumerate().flat_map(|(n, left)| devices[n..].iter().map(move |right| (*left, *right)));
    for (left, right) in pairs {
        let pair = if driver.dice.chance(2) { (left, right) } else { (right, left) };
        same_texts(&Disk::new(moment.clone()), &file, pair, false);
        if !driver.dice.chance(5) {
            continue;
        }
        let expected = expected(&mappings[&pair.0], &mappings[&pair.1]);
        ended += of_view(&mut driver, &view, pair, &expected).await;
    }
    std::fs::remove_file(&file).unwrap();
    held(&moment, &held_then).await;
    ended
}

/// What a view tells of a pair, from anywhere on, with what is the same and without.
async fn of_view(
    driver: &mut Driver,
    view: &View,
    (left, right): (DeviceId, DeviceId),
    expected: &BTreeMap<u64, Found>,
) -> usize {
    let mut ended = 0;
    let from = if driver.dice.chance(2) { 0 } else { driver.dice.below(1600) };
    for same in [true, false] {
        let options = Options { left, right, format: Format::Json, same, from: VirtualBlock(from) };
        let mut told = 0_u64;
        let mut found = Vec::new();
        let burst = async || {
            told += 1;
            if told.is_multiple_of(16) {
                driver.step().await;
            }
            if told.is_multiple_of(64) {
                driver.commit().await;
            }
        };
        let (all, complete) = runs(view, &options, burst).await;
        ended += usize::from(complete);
        all.iter().for_each(|run| found.extend(blocks(run)));
        // What is not told is the same, or in neither.
        let expected = expected.range(from..).map(|(block, found)| (*block, *found));
        let mut expected: Vec<_> = expected.filter(|(_, found)| same || !matches!(found, Found::Same(_))).collect();
        if !complete {
            expected.truncate(found.len());
        }
        assert_eq!(found, expected, "{left} and {right} from {from}, {same}");
        // Runs are as long as can be.
        let joined = all.windows(2).find(|pair| {
            let next = blocks(&Run { blocks: pair[0].blocks + 1, ..pair[0] }).last();
            next == blocks(&pair[1]).next()
        });
        assert_eq!(joined, None);
    }
    ended
}

/// The metadata snapshot's devices, if one is held.
async fn held(disk: &MemDisk, held: &Option<Mappings>) {
    let Some(held) = held else { return };
    let file = temporary_file(disk);
    for pair in held.keys().zip(held.keys().skip(1)) {
        same_texts(&Disk::new(disk.clone()), &file, (*pair.0, *pair.1), true);
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn random_histories_differ_as_by_thin_delta() {
    let (seed, mut ended) = (seed(), 0);
    let histories = (HISTORIES * effort()).min(500);
    for n in 0..histories {
        println!("history SEED={}", seed.wrapping_add(n));
        ended += block_on_ready(compare(seed.wrapping_add(n)));
    }
    println!("{ended} walks of views came to their end");
    assert!(ended as u64 > histories);
}

/// Larger trees, of devices that share leaves in every way.
#[test]
fn devices_that_share_leaves_differ_as_by_thin_delta() {
    let seed = seed();
    for round in 0..4 * effort() {
        let (disk, devices) = shared_pool(&Dice::new(seed + round));
        let file = temporary_file(&disk);
        for (left, right) in devices.iter().zip(devices.iter().skip(1)).chain(devices.first().zip(devices.last())) {
            same_texts(&Disk::new(disk.clone()), &file, (id(*left), id(*right)), false);
        }
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn linuxs_pools_differ_as_by_thin_delta() {
    for case in ["big", "many-thins", "maxid", "msnap", "refcounts", "snaptree", "needs-check", "discards"] {
        let Some(disk) = crate::golden::image(case) else { return };
        let (pool, file) = (Disk::new(disk.clone()), temporary_file(&disk));
        let devices: Vec<DeviceId> = block_on_ready(crate::model::dump(&disk)).into_keys().collect();
        for (n, left) in devices.iter().enumerate().take(4) {
            let right = devices[(n + 1) % devices.len()];
            same_texts(&pool, &file, (*left, right), false);
            if case == "msnap" && text(&pool, true, &options(*left, right, Format::Xml)).is_ok() {
                same_texts(&pool, &file, (*left, right), true);
            }
        }
        std::fs::remove_file(&file).unwrap();
    }
}

/// A device against itself, against an empty one, and against one that is not there.
#[test]
fn odd_pairs() {
    block_on_ready(async {
        let disk = MemDisk::new(400 * 8);
        let metadata = format(&disk, 1000).await;
        for device in 1..4 {
            metadata.create_thin(id(device)).await.unwrap();
            metadata.open_device(id(device)).await.unwrap();
        }
        for block in [0, 1, 5, (1 << 48) - 1] {
            provision(&metadata, id(1), block).await;
        }
        commit(&metadata).await;
        let (pool, file) = (Disk::new(disk.clone()), temporary_file(&disk));
        for (left, right) in [(1, 1), (1, 2), (2, 1), (2, 3), (2, 2)] {
            same_texts(&pool, &file, (id(left), id(right)), false);
        }
        for (left, right) in [(1, 9), (9, 1)] {
            let ours = text(&pool, false, &options(id(left), id(right), Format::Xml));
            assert_eq!(ours, Err(DumpError::Metadata(MetadataError::NoDevice(id(9)))));
            assert!(thin_delta(&file, (id(left), id(right)), &[]).is_none_or(|theirs| theirs.is_err()));
        }
        let held = text(&pool, true, &options(id(1), id(2), Format::Xml));
        assert_eq!(held, Err(DumpError::Metadata(MetadataError::NoSnapshotHeld)));
        std::fs::remove_file(&file).unwrap();
        let json = text(&pool, false, &options(id(1), id(2), Format::Json)).unwrap();
        let lines = [
            "{\"kind\":\"left_only\",\"begin\":0,\"length\":2,\"data_begin\":0}\n",
            "{\"kind\":\"left_only\",\"begin\":5,\"length\":1,\"data_begin\":2}\n",
            "{\"kind\":\"left_only\",\"begin\":281474976710655,\"length\":1,\"data_begin\":3}\n",
        ];
        assert_eq!(json, lines.concat());
    });
}

/// Where one block of many differs, and what is the same is left out, few blocks are read.
#[test]
fn what_is_shared_is_not_read() {
    block_on_ready(async {
        let disk = MemDisk::new(4096 * 8);
        let metadata = format(&disk, 150_000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        for block in 0..70_000 {
            provision(&metadata, id(1), block).await;
        }
        metadata.create_snap(id(2), id(1)).await.unwrap();
        metadata.open_device(id(2)).await.unwrap();
        provision(&metadata, id(2), 43_210).await;
        commit(&metadata).await;
        let stats = Stats::new(Rc::new(disk.clone()));
        let counters = stats.counters();
        let changes = Options { same: false, ..options(id(1), id(2), Format::Json) };
        let told = text(&Disk::new(stats), false, &changes).unwrap();
        let one = "{\"kind\":\"different\",\"begin\":43210,\"length\":1,\"left_data_begin\":43210,\"right_data_begin\":70000}\n";
        assert_eq!(told, one);
        let read = counters.read_sectors.get() / 8;
        assert!(read <= 12, "{read} blocks read");
    });
}

/// Whatever is on the disk, a delta ends, with an error or without.
#[test]
fn a_delta_of_damaged_metadata_ends() {
    let seed = seed();
    let base = block_on_ready(damageable_pool());
    let mut failed = 0;
    for round in 0..300 * effort() {
        let dice = Dice::new(seed + round);
        let disk = base.fork();
        for _ in 0..1 + dice.below(3) {
            damage(&disk, dice.below(120), &dice);
        }
        let pick = || id(dice.below(3) + 10 * dice.below(4));
        let format = [Format::Xml, Format::XmlVerbose, Format::Json][dice.below(3) as usize];
        let options = Options { same: dice.chance(2), ..options(pick(), pick(), format) };
        let result = text(&Disk::new(disk), dice.chance(3), &options);
        assert!(!matches!(result, Err(DumpError::Sink(_))), "round {round} of seed {seed}");
        failed += u64::from(result.is_err());
    }
    println!("{failed} failed");
    assert!(failed > 10, "{failed}");
}
