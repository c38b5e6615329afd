//! Figures, on request: `cargo test --release -p thinp --test metadata speed -- --ignored --nocapture`.

use crate::harness::*;
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::time::Instant;
use thinp::metadata::VirtualBlock;

#[test]
#[ignore = "a measurement"]
fn speed() {
    block_on_ready(async {
        let disk = MemDisk::new(65536 * 8);
        let metadata = format_on(Disk::new(disk.clone()), 4_000_000, 60_000).await;
        let device = id(1);
        metadata.create_thin(device).await.unwrap();
        metadata.open_device(device).await.unwrap();
        let dice = Dice::new(1);
        let mut n = 0u64;
        for size in [10_000u64, 100_000, 1_000_000, 1_200_000] {
            let (start, from) = (Instant::now(), n);
            while n < size {
                let data = metadata.reserve_data_block().await.unwrap();
                metadata.insert(device, VirtualBlock(dice.below(1 << 30)), data).await.unwrap();
                n += 1;
                if n.is_multiple_of(1000) {
                    commit(&metadata).await;
                }
            }
            let insert = start.elapsed().as_nanos() as u64 / (n - from);
            let start = Instant::now();
            let (mut hits, mut blocked) = (0, 0);
            for _ in 0..1_000_000 {
                match metadata.try_lookup(device, VirtualBlock(dice.below(1 << 30))) {
                    Ok(Some(_)) => hits += 1,
                    Ok(None) => {}
                    Err(_) => blocked += 1,
                }
            }
            let lookup = start.elapsed().as_nanos() as u64 / 1_000_000;
            println!(
                "{n} mappings: insert {insert} ns, lookup {lookup} ns (dice included), {hits} hits, {blocked} blocked"
            );
        }
        let start = Instant::now();
        for snap in 2..102 {
            metadata.create_snap(id(snap), device).await.unwrap();
            commit(&metadata).await;
        }
        println!("snapshot and commit: {} ns", start.elapsed().as_nanos() / 100);
        let start = Instant::now();
        check(&disk);
        println!("check: {:?}", start.elapsed());
        let start = Instant::now();
        for snap in 2..102 {
            metadata.delete(id(snap)).await.unwrap();
            commit(&metadata).await;
        }
        metadata.close_device(device);
        metadata.delete(device).await.unwrap();
        commit(&metadata).await;
        println!("delete all: {:?}", start.elapsed());
    });
}
