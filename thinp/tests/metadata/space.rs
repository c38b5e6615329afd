//! Space accounting against `thin_ls` 1.x, and against the model for sets of devices.

use crate::harness::*;
use crate::model::{Driver, Mappings};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::{BTreeMap, BTreeSet};
use thinp::control::DeviceId;
use thinp::metadata::space::{DeviceSpace, freed_by, of_devices};
use thinp::metadata::{MetadataError, Result};

/// So little that it takes windows of the least size, 4,096 data blocks.
const MEMORY_BYTES: usize = 0;

/// Random pools that are compared in CI; with EFFORT 4 or more it is all 200.
const POOLS: u64 = 50;

async fn space(disk: &MemDisk) -> Result<Vec<DeviceSpace>> {
    of_devices(&runtime(), &Disk::new(disk.clone()), MEMORY_BYTES).await
}

async fn freed(disk: &MemDisk, devices: &[DeviceId]) -> Result<u64> {
    freed_by(&runtime(), &Disk::new(disk.clone()), devices, MEMORY_BYTES).await
}

/// What `thin_ls` 1.x says: mapped, exclusive and shared blocks by device.
fn thin_ls(disk: &MemDisk) -> Option<Vec<[u64; 4]>> {
    let fields = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS";
    let text = run_tool(disk, "thin_ls", &["--no-headers", "-o", fields])?.unwrap();
    let numbers = |line: &str| line.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<u64>>();
    Some(text.lines().map(|line| numbers(line).try_into().unwrap()).collect())
}

/// As numbers, in the order of the tool's columns.
fn columns(space: &[DeviceSpace]) -> Vec<[u64; 4]> {
    let row = |s: &DeviceSpace| [s.device.get().into(), s.mapped_blocks, s.exclusive_blocks, s.shared_blocks()];
    space.iter().map(row).collect()
}

/// By the model: blocks of `chosen` that nothing else leads to.
fn expected_freed(live: &Mappings, held: Option<&Mappings>, chosen: &[DeviceId]) -> u64 {
    let others = live.iter().filter(|(id, _)| !chosen.contains(id)).map(|(_, mappings)| mappings);
    let held = held.into_iter().flat_map(|held| held.values());
    let kept: BTreeSet<u64> = others.chain(held).flat_map(|mappings| mappings.values().copied()).collect();
    let theirs: BTreeSet<u64> = chosen.iter().flat_map(|id| live[id].values().copied()).collect();
    theirs.difference(&kept).count() as u64
}

/// By the model: mapped and exclusive blocks of each device.
fn expected_space(live: &Mappings) -> Vec<[u64; 4]> {
    let mut users = BTreeMap::<u64, u64>::new();
    live.values().flat_map(|mappings| mappings.values()).for_each(|data| *users.entry(*data).or_default() += 1);
    let row = |(id, mappings): (&DeviceId, &BTreeMap<u64, u64>)| {
        let exclusive = mappings.values().filter(|data| users[*data] == 1).count() as u64;
        [id.get().into(), mappings.len() as u64, exclusive, mappings.len() as u64 - exclusive]
    };
    live.iter().map(row).collect()
}

/// One random pool.
async fn compare(seed: u64) {
    let disk = MemDisk::new(1024 * 8);
    let mut driver = Driver::new(disk.clone(), Disk::new(disk.clone()), seed, 8000, 1000).await;
    for _ in 0..60 + driver.dice.below(300) {
        driver.step().await;
    }
    driver.commit().await;
    let found = columns(&space(&disk).await.unwrap());
    assert_eq!(found, expected_space(&driver.committed), "seed {seed}");
    if let Some(theirs) = thin_ls(&disk) {
        assert_eq!(found, theirs, "seed {seed}");
    }
    for _ in 0..4 {
        let chosen: Vec<DeviceId> = driver.committed.keys().copied().filter(|_| driver.dice.chance(2)).collect();
        let expected = expected_freed(&driver.committed, driver.held.as_ref(), &chosen);
        assert_eq!(freed(&disk, &chosen).await, Ok(expected), "seed {seed}, {chosen:?}");
        let view = driver.metadata.open_view("test", None, async || Ok(())).await.unwrap();
        assert_eq!(view.freed_by(&chosen, MEMORY_BYTES).await, Ok(expected));
        assert_eq!(columns(&view.space(MEMORY_BYTES).await.unwrap()), found);
    }
}

#[test]
fn random_pools_are_accounted_for_as_by_thin_ls() {
    let seed = seed();
    for n in 0..(POOLS * effort()).min(200) {
        block_on_ready(compare(seed.wrapping_add(n)));
    }
}

#[test]
fn linuxs_pools_are_accounted_for_as_by_thin_ls() {
    for case in ["big", "many-thins", "maxid", "msnap", "refcounts", "snaptree", "empty"] {
        let Some(disk) = crate::golden::image(case) else { return };
        let found = columns(&block_on_ready(space(&disk)).unwrap());
        if let Some(theirs) = thin_ls(&disk) {
            assert_eq!(found, theirs, "{case}");
        }
        let all: Vec<DeviceId> = found.iter().map(|row| id(row[0])).collect();
        let freed_one_by_one = found.iter().map(|row| block_on_ready(freed(&disk, &[id(row[0])])).unwrap());
        if case != "msnap" {
            assert!(freed_one_by_one.eq(found.iter().map(|row| row[2])), "{case}");
        }
        assert!(block_on_ready(freed(&disk, &all)).unwrap() >= found.iter().map(|row| row[2]).sum() || case == "msnap");
    }
}

#[test]
fn several_windows_of_data_blocks_are_as_good_as_one() {
    block_on_ready(async {
        let disk = MemDisk::new(8 * 4000);
        let metadata = format(&disk, 20_000).await;
        metadata.create_thin(id(1)).await.unwrap();
        metadata.open_device(id(1)).await.unwrap();
        for block in 0..9000 {
            provision(&metadata, id(1), block).await;
        }
        metadata.create_snap(id(2), id(1)).await.unwrap();
        metadata.open_device(id(2)).await.unwrap();
        for block in 0..100 {
            provision(&metadata, id(2), block * 90).await;
        }
        commit(&metadata).await;
        let one = of_devices(&runtime(), &Disk::new(disk.clone()), 1 << 20).await.unwrap();
        assert_eq!(columns(&one), [[1, 9000, 100, 8900], [2, 9000, 100, 8900]]);
        assert_eq!(space(&disk).await.unwrap(), one);
        assert_eq!(freed(&disk, &[id(2)]).await, Ok(100));
        assert_eq!(freed(&disk, &[id(1), id(2)]).await, Ok(9100));
        assert_eq!(freed(&disk, &[id(1), id(3)]).await, Err(MetadataError::NoDevice(id(3))));
        assert_eq!(freed(&disk, &[]).await, Ok(0));
    });
}
