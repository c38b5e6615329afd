//! Metadata that somebody damaged with valid checksums: errors, but no panic, no endless loop, no boundless memory.

use crate::harness::*;
use crate::image::edit;
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use thinp::metadata::check;
use thinp::metadata::{DataBlock, Metadata, MetadataError, OpenMode, Progress, Result, VirtualBlock};

/// Overwrites some bytes of a block and makes its checksum right again.
pub fn damage(disk: &MemDisk, block: u64, dice: &Dice) {
    edit(disk, block, |bytes| {
        for _ in 0..1 + dice.below(3) {
            // Headers, first entries, everything.
            let at = 4 + dice.below([40, 400, 4092][dice.below(3) as usize]) as usize;
            let value = match dice.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ 1 << dice.below(8),
                _ => dice.below(256) as u8,
            };
            let len = if dice.chance(3) { 8 } else { 1 };
            bytes[at..4096.min(at + len)].fill(value);
        }
        if dice.chance(3) {
            // A pointer to some other block.
            let at = 4096 - 8 * (1 + dice.below(505) as usize);
            bytes[at..at + 8].copy_from_slice(&dice.below(200).to_le_bytes());
        }
    });
}

/// Uses a pool in every way; the first error ends it.
pub async fn use_it(disk: &MemDisk, dice: &Dice) -> Result<()> {
    let flush = async || Ok(());
    let device = Disk::new(disk.clone());
    let metadata = Metadata::open(&runtime(), device, OpenMode::Existing, 32, false).await?;
    let devices = metadata.devices().await?;
    for (device, _) in devices.iter().take(5) {
        metadata.open_device(*device).await?;
        metadata.highest_mapped(*device).await?;
        let mut from = VirtualBlock(0);
        while let Some(range) = metadata.mapped_range(*device, from, VirtualBlock(3000)).await? {
            assert!(range.end > from);
            from = range.end;
        }
        for _ in 0..20 {
            let block = VirtualBlock(dice.below(1200));
            metadata.lookup(*device, block).await?;
            match metadata.reserve_data_block().await {
                Ok(data) => metadata.insert(*device, block, data).await?,
                Err(MetadataError::NoDataSpace) => {}
                Err(error) => return Err(error),
            }
        }
        let begin = dice.below(1000);
        metadata.remove_range(*device, VirtualBlock(begin), VirtualBlock(begin + 300), 200).await?;
        metadata.data_block_count(DataBlock(dice.below(metadata.data_blocks().max(1)))).await?;
        metadata.close_device(*device);
    }
    metadata.commit(flush).await?;
    if metadata.held_root().is_some() {
        while metadata.release_metadata_snap(flush).await? == Progress::Partial {}
    }
    for (device, _) in devices.iter().take(5) {
        while metadata.delete(*device).await? == Progress::Partial {}
    }
    metadata.commit(flush).await
}

/// A pool with a bit of everything, in about the first 120 blocks of its disk.
pub async fn damageable_pool() -> MemDisk {
    let disk = MemDisk::new(400 * 8);
    let metadata = format(&disk, 4000).await;
    for device in 0..3 {
        metadata.create_thin(id(device)).await.unwrap();
        metadata.open_device(id(device)).await.unwrap();
        for block in 0..600 {
            provision(&metadata, id(device), block * 2).await;
        }
        for snapshot in 1..4 {
            metadata.create_snap(id(device + 10 * snapshot), id(device)).await.unwrap();
            provision(&metadata, id(device), snapshot * 100).await;
        }
    }
    metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
    metadata.remove_range(id(0), VirtualBlock(0), VirtualBlock(900), 1000).await.unwrap();
    commit(&metadata).await;
    disk
}

#[test]
fn damage_is_an_error_and_nothing_worse() {
    let seed = seed();
    let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(400);
    block_on_ready(async {
        let base = damageable_pool().await;
        let (mut refused, mut noticed) = (0, 0);
        for round in 0..rounds {
            let dice = Dice::new(seed + round);
            let disk = base.fork();
            for _ in 0..1 + dice.below(3) {
                damage(&disk, dice.below(120), &dice);
            }
            let started = std::time::Instant::now();
            let report = check::check(&runtime(), &Disk::new(disk.clone()), 64).await;
            noticed += u64::from(report.is_err() || report.is_ok_and(|report| !report.problems.is_empty()));
            refused += u64::from(use_it(&disk, &dice).await.is_err());
            assert!(started.elapsed().as_secs() < 10, "round {round} of seed {seed} takes for ever");
        }
        println!("{rounds} rounds: {noticed} noticed by the check, {refused} ended by an error");
        assert!(noticed > rounds / 4 && refused > rounds / 10);
    });
}
