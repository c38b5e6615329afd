//! Repairs: of damaged metadata as much comes back as by `thin_repair` 1.x, and what comes back is sound.

use crate::harness::*;
use crate::image::{self, DETAILS_ROOT, MAPPING_ROOT};
use crate::judge::Judge;
use platform::block::{BlockDevice, Disk};
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::process::Command;
use thinp::metadata::repair::{self, Origin, RepairError, Report, Source};
use thinp::metadata::restore::Overrides;
use thinp::metadata::{Metadata, VirtualBlock};

/// What every pool here has, for when the superblock is lost.
const GIVEN: Overrides = Overrides { transaction_id: None, data_block_sectors: Some(128), data_blocks: None };

const BLOCKS: u64 = 4096;

fn repaired_with(disk: &MemDisk, overrides: &Overrides) -> Result<(MemDisk, Report), RepairError> {
    let before = bytes_of(disk);
    let fresh = MemDisk::new(disk.limits().size_sectors);
    let report =
        block_on_ready(repair::repair(&runtime(), &Disk::new(disk.clone()), &Disk::new(fresh.clone()), 64, overrides));
    assert!(bytes_of(disk) == before, "the only copy was changed");
    report.map(|report| (fresh, report))
}

fn repaired(disk: &MemDisk) -> Result<(MemDisk, Report), RepairError> {
    repaired_with(disk, &GIVEN)
}

/// Mappings that `thin_repair` 1.x recovers, none if it gives up; `None` without the tools.
fn thin_repair(disk: &MemDisk) -> Option<u64> {
    let program = tools()?.join("thin_repair");
    let (input, output) = (temporary_file(disk), temporary_file(&MemDisk::new(disk.limits().size_sectors)));
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
        metadata.delete(id(gone)).await.unwrap();
    }
}

/// Blocks that are not blank, but for the superblock.
fn used(disk: &MemDisk) -> Vec<u64> {
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
    assert!(ours * 10 > there * 7, "of {there} only {ours}");
}
