//! Repairs: of damaged metadata as much comes back as by `thin_repair` 1.x, and what comes back is sound.

use crate::dumps::{same, text, xml};
use crate::golden;
use crate::harness::*;
use crate::hostile::{self, damageable_pool};
use crate::image::{self, DETAILS_ROOT, MAPPING_ROOT};
use crate::judge::Judge;
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::process::Command;
use thinp::metadata::dump::{self, Format};
use thinp::metadata::repair::{self, LostRange, Options, Origin, RepairError, Report, Source};
use thinp::metadata::restore::Overrides;
use thinp::metadata::{Metadata, Progress, VirtualBlock};

/// What every pool here has, for when the superblock is lost.
pub const GIVEN: Options = Options {
    overrides: Overrides { transaction_id: None, data_block_sectors: Some(128), data_blocks: None },
    last_commit: false,
};

pub const BLOCKS: u64 = 4096;

/// So many nodes fit, and caches of 32 blocks.
pub const MEMORY_BYTES: usize = 1 << 20;

pub fn repaired_with(disk: &MemDisk, options: &Options) -> Result<(MemDisk, Report), RepairError> {
    let before = bytes_of(disk);
    let fresh = MemDisk::new(BLOCKS * 8);
    let report = block_on_ready(repair::repair(
        &runtime(),
        &Disk::new(disk.clone()),
        &Disk::new(fresh.clone()),
        MEMORY_BYTES,
        options,
    ));
    assert!(bytes_of(disk) == before, "the only copy was changed");
    report.map(|report| (fresh, report))
}

pub fn repaired(disk: &MemDisk) -> Result<(MemDisk, Report), RepairError> {
    repaired_with(disk, &GIVEN)
}

/// Mappings that `thin_repair` 1.x recovers, none if it gives up; `None` without the tools.
pub fn thin_repair(disk: &MemDisk) -> Option<u64> {
    let program = tools()?.join("thin_repair");
    let (input, output) = (temporary_file(disk), temporary_file(&MemDisk::new(BLOCKS * 8)));
    let mut command = Command::new("timeout");
    command.arg("60").arg(program).arg("--data-block-size").arg("128").arg("-i").arg(&input).arg("-o").arg(&output);
    let out = command.output().unwrap();
    let made = MemDisk::from_bytes(&std::fs::read(&output).unwrap());
    [input, output].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    Some(if out.status.success() { report(&made).map_or(0, |report| report.mappings) } else { 0 })
}

/// A pool with a past: devices that share leaves, some deleted or discarded, written in many transactions; a metadata
/// snapshot in every second.
fn pool_with_a_past(dice: &Dice) -> MemDisk {
    let disk = MemDisk::new(BLOCKS * 8);
    block_on_ready(async {
        let metadata = format(&disk, 100_000).await;
        let mut devices = vec![];
        let held_at = dice.below(24);
        for step in 0..10 + dice.below(10) {
            if step == held_at {
                metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
            }
            a_step(&metadata, &mut devices, step, dice).await;
            if dice.chance(2) {
                commit(&metadata).await;
            }
        }
        commit(&metadata).await;
    });
    disk
}

async fn a_step(metadata: &Metadata, devices: &mut Vec<u64>, step: u64, dice: &Dice) {
    if devices.is_empty() || dice.chance(4) {
        metadata.create_thin(id(step)).await.unwrap();
        devices.push(step);
    } else if dice.chance(3) {
        let origin = devices[dice.below(devices.len() as u64) as usize];
        metadata.create_snap(id(step), id(origin)).await.unwrap();
        devices.push(step);
    }
    let device = id(devices[dice.below(devices.len() as u64) as usize]);
    metadata.open_device(device).await.unwrap();
    let (begin, stride) = (dice.below(3000), 1 + dice.below(3));
    for n in 0..[5, 60, 400, 1500, [900, 9000][usize::from(dice.chance(8))]][dice.below(5) as usize] {
        let block = VirtualBlock(begin + n * stride);
        let mapped = metadata.lookup(device, block).await.unwrap();
        if mapped.is_none_or(|mapping| mapping.shared) {
            provision(metadata, device, block.0).await;
        }
    }
    if dice.chance(4) {
        let end = VirtualBlock(begin + dice.below(800));
        metadata.remove_range(device, VirtualBlock(begin), end, 10_000).await.unwrap();
    }
    metadata.close_device(device);
    if dice.chance(9) && devices.len() > 2 {
        let gone = devices.remove(dice.below(devices.len() as u64) as usize);
        while metadata.delete(id(gone)).await.unwrap() == Progress::Partial {
            commit(metadata).await;
        }
    }
}

/// Blocks that are not blank, but for the superblock.
pub fn used(disk: &MemDisk) -> Vec<u64> {
    (1..BLOCKS).filter(|block| disk.peek(block * 4096, 4096).iter().any(|byte| *byte != 0)).collect()
}

fn spoil(disk: &MemDisk, block: u64, dice: &Dice) {
    let at = block * 4096;
    match dice.below(3) {
        0 => disk.poke(at, &[0; 4096]),
        1 => {
            let at = at + dice.below(4096);
            let bit = 1 << dice.below(8);
            disk.poke(at, &[disk.peek(at, 1)[0] ^ bit]);
        }
        _ => {
            let noise: Vec<u8> = (0..512).flat_map(|_| dice.below(u64::MAX).to_le_bytes()).collect();
            disk.poke(at, &noise);
        }
    }
}

/// Internal nodes of the live trees.
fn internal_nodes(disk: &MemDisk) -> Vec<u64> {
    let mut found = vec![];
    let roots = image::entries(disk, image::word(disk, MAPPING_ROOT));
    let mut pending: Vec<u64> = roots.iter().map(|root| image::word(disk, root.value_at)).collect();
    pending.push(image::word(disk, MAPPING_ROOT));
    while let Some(block) = pending.pop() {
        if image::is_internal(disk, block) {
            found.push(block);
            pending.extend(image::node(disk, block).iter().map(|child| image::word(disk, child.value_at)));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Damages a pool in one of many ways; says in which.
fn damage(disk: &MemDisk, dice: &Dice) -> String {
    let (mapping_root, details_root) = (image::word(disk, MAPPING_ROOT), image::word(disk, DETAILS_ROOT));
    let (internal, used) = (internal_nodes(disk), used(disk));
    let some = |from: &[u64], most: u64| -> Vec<u64> {
        if from.is_empty() {
            return vec![];
        }
        (0..1 + dice.below(most)).map(|_| from[dice.below(from.len() as u64) as usize]).collect()
    };
    let (what, blocks) = match dice.below(10) {
        0 => ("superblock", vec![0]),
        1 => ("details tree", vec![details_root]),
        2 => ("top level", vec![mapping_root]),
        3 => ("internal nodes", some(&internal, 4)),
        4 => ("superblock and some", [vec![0], some(&used, 6)].concat()),
        5 => ("superblock and top level", vec![0, mapping_root]),
        6 => ("superblock and details tree", vec![0, details_root]),
        7 => ("superblock and internal nodes", [vec![0], some(&internal, 3)].concat()),
        8 => ("many", some(&used, 40)),
        _ => ("some", some(&used, 8)),
    };
    blocks.iter().for_each(|block| spoil(disk, *block, dice));
    format!("{what} {blocks:?}")
}

/// The dump of one device, without its details.
fn device(disk: &MemDisk, device: u64) -> String {
    let options = dump::Options { format: Format::Xml09, devices: vec![id(device)], ..dump::Options::default() };
    let all = text(disk, &options).unwrap();
    all.lines().filter(|line| line.contains("mapping ")).collect::<Vec<_>>().join("\n")
}

fn devices(disk: &MemDisk) -> Vec<u64> {
    block_on_ready(async {
        let metadata = open_read_only(disk).await;
        metadata.devices().await.unwrap().into_iter().map(|(id, _)| id.get().into()).collect()
    })
}

/// Of the state of the last commit every device is as it was unless the report names it.
fn only_reported_devices_differ(before: &MemDisk, after: &MemDisk, report: &Report) {
    let named: Vec<u64> = report.damaged.iter().map(|device| device.device.get().into()).collect();
    let left = devices(after);
    for number in devices(before) {
        if !named.contains(&number) {
            assert!(left.contains(&number) || report.devices_missing, "device {number} is gone unnoticed");
        }
        if left.contains(&number) && !named.contains(&number) {
            same(&device(after, number), &device(before, number));
        }
    }
}

#[test]
fn at_least_what_thin_repair_recovers() {
    let (seed, judge) = (seed(), Judge::default());
    let (mut ours, mut theirs, mut there, mut more) = (0, 0, 0, 0);
    let rounds = 20 * effort();
    for round in 0..rounds {
        let dice = Dice::new(seed + round);
        let disk = pool_with_a_past(&dice);
        let mappings = report(&disk).unwrap().mappings;
        let damaged = disk.fork();
        let what = damage(&damaged, &dice);
        let tool = thin_repair(&damaged);
        let said = format!("round {round} of seed {seed}: {what}");
        let got = match repaired(&damaged) {
            Ok((fresh, repaired)) => {
                let found = check(&fresh);
                assert_eq!(found.mappings, repaired.restored.mappings, "{said}");
                judge.must_be_clean(&fresh, said.clone());
                if repaired.state.origin == Origin::Superblock {
                    only_reported_devices_differ(&disk, &fresh, &repaired);
                }
                found.mappings
            }
            Err(error) => {
                assert!(matches!(error, RepairError::NothingFound { .. }), "{said}: {error}");
                0
            }
        };
        println!("{said}: there were {mappings}; {got}, thin_repair {tool:?}");
        assert!(tool.is_none_or(|tool| got >= tool), "{said}: {got}, thin_repair {tool:?}");
        there += mappings;
        ours += got;
        theirs += tool.unwrap_or(0);
        more += u64::from(tool.is_some_and(|tool| got > tool));
    }
    let judged = judge.finish();
    println!(
        "{rounds} damages: of {there} mappings {ours}; thin_repair {theirs}; more in {more}; {judged} judged clean"
    );
    assert!(ours * 2 > there, "of {there} only {ours}");
}

fn is_as_it_was_after_a_repair(case: &str) {
    let Some(disk) = golden::image(case) else { return };
    let judge = Judge::default();
    let (fresh, report) = repaired_with(&disk, &Options::default()).unwrap();
    let clean = |disk: &MemDisk| xml(disk, Format::Xml09).replace(" flags=\"1\"", " flags=\"0\"");
    same(&clean(&fresh), &clean(&disk));
    assert_eq!((report.damaged.len(), report.state.origin), (0, Origin::Superblock));
    assert!(report.to_string().ends_with("nothing of this state was lost"), "{report}");
    judge.must_be_clean(&fresh, case.into());
    judge.finish();
}

crate::golden::for_each_case!(is_as_it_was_after_a_repair);

/// A device of many leaves under one internal node, and a snapshot that shares them.
pub fn two_devices() -> MemDisk {
    let disk = MemDisk::new(BLOCKS * 8);
    block_on_ready(async {
        let metadata = format(&disk, 60_000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        for block in 0..5000 {
            provision(&metadata, id(1), block).await;
        }
        metadata.create_thin(id(3)).await.unwrap();
        metadata.open_device(id(3)).await.unwrap();
        provision(&metadata, id(3), 7).await;
        metadata.create_snap(id(2), id(1)).await.unwrap();
        metadata.set_transaction_id(0, 77).await.unwrap();
        commit(&metadata).await;
    });
    disk
}

pub fn root_of(disk: &MemDisk, device: u64) -> u64 {
    let roots = image::entries(disk, image::word(disk, MAPPING_ROOT));
    image::word(disk, roots.iter().find(|entry| entry.key == device).unwrap().value_at)
}

#[test]
fn leaves_that_lost_their_parent_come_back() {
    let disk = two_devices();
    let before = xml(&disk, Format::Xml09);
    let damaged = disk.fork();
    damaged.poke(root_of(&disk, 1) * 4096, &[0; 4096]);
    let (fresh, report) = repaired(&damaged).unwrap();
    same(&xml(&fresh, Format::Xml09), &before);
    let told: Vec<_> = report.damaged.iter().map(|device| (device.device, device.mappings, device.assumed)).collect();
    assert_eq!(told, [(id(1), 5000, 5000), (id(2), 5000, 5000)]);
    assert_eq!(report.mappings_lost(), 0);
}

#[test]
fn a_lost_leaf_is_told_and_nothing_is_put_in_its_place() {
    let disk = two_devices();
    let leaf = image::leaves(&disk, root_of(&disk, 1))[3];
    let entries = image::node(&disk, leaf);
    let (first, behind) = (entries[0].key, entries[0].key + entries.len() as u64);
    let damaged = disk.fork();
    damaged.poke(leaf * 4096 + 100, &[0x5a]);
    let (fresh, report) = repaired(&damaged).unwrap();
    check(&fresh);
    let lost: Vec<_> = report.damaged.iter().map(|device| (device.device, device.ranges.clone())).collect();
    let range = vec![LostRange { first, last: behind - 1 }];
    assert_eq!(lost, [(id(1), range.clone()), (id(2), range)]);
    assert_eq!(report.mappings_lost(), 2 * entries.len() as u64);
    let told = format!(
        "device 1: {} mappings of 5000; parts may be missing in virtual blocks {first}..",
        5000 - entries.len()
    );
    assert!(report.to_string().contains(&told), "{report}");
}

#[test]
fn what_was_lost_with_the_superblock_is_given_or_inferred() {
    let disk = two_devices();
    disk.poke(0, &[0xff; 4096]);
    assert_eq!(repaired_with(&disk, &Options::default()).map(|_| ()), Err(RepairError::BlockSizeUnknown));
    let (fresh, report) = repaired(&disk).unwrap();
    let told =
        [report.transaction_id, report.data_block_sectors, report.data_blocks].map(|told| (told.value, told.source));
    assert_eq!(told, [(1, Source::Inferred), (128, Source::Given), (5001, Source::Inferred)]);
    assert!(report.to_string().contains("transaction id: 1, inferred from what was found"), "{report}");
    assert_eq!(report.restored.mappings, 10_001);
    check(&fresh);
    let overrides = Overrides { transaction_id: Some(77), data_block_sectors: Some(128), data_blocks: Some(60_000) };
    let (fresh, _) = repaired_with(&disk, &Options { overrides, last_commit: false }).unwrap();
    let whole = two_devices();
    // Snapshots advance the clock, and only devices tell of it.
    same(&xml(&fresh, Format::Xml09), &xml(&whole, Format::Xml09));
}

#[test]
fn a_metadata_snapshot_tells_what_the_superblock_knew() {
    let disk = two_devices();
    block_on_ready(async {
        let metadata = open_on(Disk::new(disk.clone()), CACHE).await;
        metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
        metadata.open_device(id(3)).await.unwrap();
        provision(&metadata, id(3), 8).await;
        commit(&metadata).await;
    });
    disk.poke(0, &[0; 4096]);
    let (fresh, report) = repaired_with(&disk, &Options::default()).unwrap();
    check(&fresh);
    assert!(matches!(report.data_block_sectors.source, Source::Copy(_)), "{report}");
    assert_eq!((report.transaction_id.value, report.restored.mappings), (77, 10_002));
}

/// Without its details a device must not overwrite what a snapshot may have, too.
#[test]
fn a_device_without_details_shares_everything() {
    let disk = two_devices();
    disk.poke(image::word(&disk, DETAILS_ROOT) * 4096, &[0; 4096]);
    let (fresh, report) = repaired_with(&disk, &Options { last_commit: true, ..GIVEN }).unwrap();
    check(&fresh);
    assert!(report.damaged.iter().all(|device| device.details_lost) && report.damaged.len() == 3, "{report}");
    block_on_ready(async {
        let metadata = open_on(Disk::new(fresh), CACHE).await;
        for device in [1, 2, 3] {
            metadata.open_device(id(device)).await.unwrap();
            assert!(metadata.lookup(id(device), VirtualBlock(7)).await.unwrap().unwrap().shared);
        }
    });
}

#[test]
fn disks_that_will_not_do_are_refused() {
    let noise = MemDisk::new(BLOCKS * 8);
    noise.poke(4096, &[0xa5; 100 * 4096]);
    assert_eq!(repaired(&noise).map(|_| ()), Err(RepairError::NothingFound { blocks: BLOCKS }));
    let disk = two_devices();
    let (from, to) = (Disk::new(disk.clone()), MemDisk::new(BLOCKS * 8));
    let little = block_on_ready(repair::repair(&runtime(), &from, &Disk::new(to.clone()), 4 << 10, &GIVEN));
    // All nodes of this disk are among the blocks that are read first.
    assert_eq!(little, Err(RepairError::TooManyNodes { nodes: 27, mebibytes: 0 }));
    assert_eq!(bytes_of(&to), vec![0; (BLOCKS * 4096) as usize]);
    let small = MemDisk::new(64 * 8);
    let onto = |target: &MemDisk| {
        block_on_ready(repair::repair(
            &runtime(),
            &Disk::new(disk.clone()),
            &Disk::new(target.clone()),
            MEMORY_BYTES,
            &GIVEN,
        ))
    };
    assert_eq!(onto(&small).map(|_| ()), Ok(()));
    block_on_ready(async {
        let big = open_on(Disk::new(disk.clone()), CACHE).await;
        big.open_device(id(3)).await.unwrap();
        for block in 100..20_000 {
            provision(&big, id(3), block * 2).await;
        }
        commit(&big).await;
    });
    assert_eq!(onto(&small).map(|_| ()), Err(RepairError::TooSmall { blocks: 64, enough: BLOCKS }));
    assert_eq!(small.peek(0, 4096), [0; 4096]);
    let blank = |disk: &MemDisk| block_on_ready(repair::must_be_blank(&runtime(), &Disk::new(disk.clone())));
    assert_eq!(blank(&MemDisk::new(BLOCKS * 8)), Ok(()));
    let used = MemDisk::new(BLOCKS * 8);
    used.poke(BLOCKS * 4096 - 700, &[1]);
    assert_eq!(blank(&used), Err(RepairError::NotBlank { sector: BLOCKS * 8 - 2 }));
}

/// Damage with valid checksums: whatever comes back is sound, and it ends.
#[test]
fn hostile_metadata_is_repaired_or_refused() {
    let seed = seed();
    let base = block_on_ready(damageable_pool());
    let mut made = 0;
    let rounds = 150 * effort();
    for round in 0..rounds {
        let dice = Dice::new(seed + round);
        let disk = base.fork();
        for _ in 0..1 + dice.below(6) {
            hostile::damage(&disk, dice.below(120), &dice);
        }
        if dice.chance(3) {
            disk.poke(0, &[0; 4096]);
        }
        let started = std::time::Instant::now();
        if let Ok((fresh, report)) = repaired(&disk) {
            let found = report_of(&fresh);
            assert!(found.problems.is_empty(), "round {round} of seed {seed}: {:?}", found.problems);
            assert_eq!(found.mappings, report.restored.mappings);
            made += 1;
        }
        assert!(started.elapsed().as_secs() < 20, "round {round} of seed {seed} takes for ever");
    }
    println!("{made} of {rounds} repaired");
    assert!(made > rounds / 2);
}

fn report_of(disk: &MemDisk) -> thinp::metadata::check::Report {
    report(disk).unwrap()
}
