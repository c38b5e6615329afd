//! What is on the metadata disk after a commit: sound by the checker's recount, and the model's.

use crate::count;
use crate::driver::Driver;
use crate::model::{Device, Slot};
use pdata::block_manager::BlockManager;
use pdata::btree::{BTree, Plain, Value};
use platform::block::Disk;
use platform::time::Duration;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use thinp::metadata::check::check;
use zerocopy::little_endian::U64;

/// Offsets in the superblock (reference 1.1).
const TIME: usize = 44;
const TRANSACTION_ID: usize = 48;
const HELD_ROOT: usize = 56;
const METADATA_MAP: usize = 192;
const MAPPING_ROOT: usize = 320;
const DETAILS_ROOT: usize = 328;

fn field(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*block[at..].first_chunk().unwrap())
}

/// Data blocks and what the model calls them: a bijection.
#[derive(Default)]
struct Names {
    slots: HashMap<u64, Slot>,
    blocks: HashMap<Slot, u64>,
}

impl Names {
    fn meet(&mut self, block: u64, slot: Slot) {
        let (known_slot, known_block) =
            (*self.slots.entry(block).or_insert(slot), *self.blocks.entry(slot).or_insert(block));
        assert_eq!((known_slot, known_block), (slot, block), "a data block is mapped in place of another");
    }
}

impl Driver {
    /// Commits, and compares everything on the disks with the model.
    pub async fn verify(&mut self) {
        if !self.read_only {
            self.pool().commit().await.unwrap();
            self.committed();
            // What discards freed is on its way to the data disk.
            self.runtime.timers.sleep(Duration::from_micros(1)).await;
            assert_eq!(self.data.discarded_sectors(), self.discarded_sectors, "passed down");
        }
        let disk = Disk::new(self.meta.contents().clone());
        let report = check(&self.runtime, &disk, 1 << 20).await.unwrap();
        assert!(report.problems.is_empty(), "{:#?}", report.problems);
        let superblock = self.meta.contents().peek(0, 4096);
        assert_eq!(field(&superblock, TIME) as u32, self.model.time);
        assert_eq!(field(&superblock, TRANSACTION_ID), self.model.transaction_id);
        self.check_metadata_used(&superblock);
        let blocks = BlockManager::new(disk, self.runtime.bufs.clone(), 512);
        let mut names = Names::default();
        compare(&blocks, &superblock, &self.model.devices, &mut names).await;
        let held_root = field(&superblock, HELD_ROOT);
        assert_eq!(held_root > 0, self.model.held.is_some());
        if let Some(held) = &self.model.held {
            let copy = self.meta.contents().peek(held_root * 4096, 4096);
            compare(&blocks, &copy, held, &mut names).await;
            count("metadata snapshot compared");
        }
        assert_eq!(names.blocks.len() as u64, self.model.used);
        count("metadata checked and compared");
    }

    /// The status line tells what the metadata space map on disk counts, and the reserve (reference 3.3).
    fn check_metadata_used(&self, superblock: &[u8]) {
        let (blocks, allocated) = (field(superblock, METADATA_MAP), field(superblock, METADATA_MAP + 8));
        let status = self.pool().status();
        assert_eq!(status.metadata_total_blocks, blocks);
        let free = (blocks - allocated).saturating_sub((blocks / 10).min(4096));
        assert_eq!(status.metadata_used_blocks, blocks - free);
    }
}

/// The trees of a superblock, or of the copy that a metadata snapshot is, are the model's.
async fn compare(blocks: &BlockManager, superblock: &[u8], devices: &BTreeMap<u32, Device>, names: &mut Names) {
    let roots = entries::<U64>(blocks, field(superblock, MAPPING_ROOT)).await;
    let details = entries::<[U64; 3]>(blocks, field(superblock, DETAILS_ROOT)).await;
    let expected: Vec<(u64, [u64; 3])> = devices
        .iter()
        .map(|(id, device)| {
            let times = u64::from(device.creation_time) | u64::from(device.snapshotted_time) << 32;
            (u64::from(*id), [device.mappings.len() as u64, device.transaction_id, times])
        })
        .collect();
    let found: Vec<(u64, [u64; 3])> = details.into_iter().map(|(id, fields)| (id, fields.map(U64::get))).collect();
    assert_eq!(found, expected, "details");
    assert!(roots.iter().map(|(id, _)| *id).eq(devices.keys().map(|id| u64::from(*id))));
    for ((id, root), device) in roots.into_iter().zip(devices.values()) {
        let mappings = entries::<U64>(blocks, root.get()).await;
        assert!(mappings.iter().map(|(block, _)| block).eq(device.mappings.keys()), "mapped blocks of device {id}");
        for ((block, packed), mapping) in mappings.into_iter().zip(device.mappings.values()) {
            let time = (packed.get() & 0xFF_FFFF) as u32;
            assert_eq!(time, mapping.time, "time of block {block} of device {id}");
            names.meet(packed.get() >> 24, mapping.slot);
        }
    }
}

async fn entries<T: Value>(blocks: &BlockManager, root: u64) -> Vec<(u64, T)> {
    let tree = BTree::<Plain<T>>::plain();
    let (mut entries, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let scan = |blocks: &BlockManager| {
            tree.try_scan(blocks, root, from, |key, value| {
                entries.push((key, value));
                ControlFlow::Continue(())
            })
        };
        next = blocks.look(scan).await.unwrap();
    }
    entries
}
