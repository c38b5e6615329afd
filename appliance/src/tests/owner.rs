//! One pool, one owner: hosts that reach the same disks, each with an identity of its own.

use super::{BLOCK, Disks, NoClock};
use crate::catalog::{Activation, Edit};
use crate::service::{Served, Service};
use crate::settings::Settings;
use crate::{Secrets, owner, startup};
use pdata::block::BlockKind;
use platform::Runtime;
use platform::block::{Disk, SECTOR_BYTES};
use platform::mem::MemDisk;
use platform::random::{Random, Seeded};
use platform::simulated;
use platform::task::Executor;
use std::rc::Rc;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};
use thinp::Error;
use thinp::control::Mode;

/// What a block of metadata takes on its disk.
const METADATA_BLOCK_SECTORS: u64 = 8;

fn simulate<T: 'static>(seed: u64, test: impl AsyncFnOnce(Runtime) -> T + 'static) -> T {
    let random: Rc<dyn Random> = Rc::new(Seeded::from_u64(seed));
    simulated::run(&Executor::new(), random, 32 << 20, test)
}

fn small() -> Disks {
    let data = MemDisk::new(400 * BLOCK / SECTOR_BYTES as u64);
    Disks { meta: MemDisk::new(160 * METADATA_BLOCK_SECTORS), data }
}

/// Starts the host of which the identity is this digit.
async fn start(runtime: &Runtime, disks: &Disks, digit: &str, settings: &str) -> Result<Rc<Service>, String> {
    let both =
        vec![("meta".to_string(), Disk::new(disks.meta.clone())), ("data".to_string(), Disk::new(disks.data.clone()))];
    let (settings, _) = Settings::parse(&format!("check.start=no {settings}"));
    let secrets = Secrets { token: None, identity: Some(digit.repeat(32)) };
    let service = Service::new(runtime, settings, &secrets, Rc::new(NoClock));
    let served = startup::open(runtime, &both, &service, 256, &|_| ()).await?;
    service.serve(served);
    Ok(service)
}

fn mode(service: &Service) -> Mode {
    service.pool().unwrap().status().mode
}

/// Who signed the last activation, by its digits, and whether that is open.
fn signed(service: &Service) -> (u8, bool) {
    let last = service.served().unwrap().catalog().appliance().activation.unwrap();
    (last.instance[0], last.open)
}

async fn sign(served: &Served, activation: Activation) {
    let mut record = served.catalog().appliance().clone();
    record.activation = Some(activation);
    served.change(&[], [Edit::Appliance(record)].into()).await.unwrap();
}

async fn fill_metadata(service: &Service) {
    let pool = service.pool().unwrap();
    let mut made = 0;
    while mode(service) == Mode::Write {
        made += 1;
        let _ = pool.message(&format!("create_thin {made}")).await;
    }
    assert_eq!(mode(service), Mode::OutOfMetadataSpace);
}

/// What frees blocks works there, and then everything does.
#[test]
fn a_pool_without_metadata_room_has_one_owner_too() {
    simulate(1, async |runtime| {
        let disks = small();
        let a = start(&runtime, &disks, "a", "").await.unwrap();
        fill_metadata(&a).await;
        let refused = start(&runtime, &disks, "b", "").await.err().unwrap();
        assert!(refused.contains("takeover=yes"), "{refused}");
        let b = start(&runtime, &disks, "b", "takeover=yes").await.unwrap();
        assert_eq!((mode(&b), signed(&b)), (Mode::OutOfMetadataSpace, (0xbb, true)));
        for n in 1..=3 {
            b.pool().unwrap().message(&format!("delete {n}")).await.unwrap();
        }
        assert_eq!(mode(&b), Mode::Write);
        assert_eq!(a.pool().unwrap().message("delete 4").await, Err(Error::TakenOver));
        a.close().await;
        assert!(start(&runtime, &disks, "c", "").await.is_err(), "b has it");
        fill_metadata(&b).await;
        b.close().await;
        let c = start(&runtime, &disks, "c", "").await.unwrap();
        assert_eq!((mode(&c), signed(&c)), (Mode::OutOfMetadataSpace, (0xcc, true)));
    });
}

#[test]
fn nobody_closes_the_activation_of_another() {
    simulate(2, async |runtime| {
        let disks = small();
        let b = start(&runtime, &disks, "b", "").await.unwrap();
        let another = Activation { epoch: 7, instance: [0xaa; 16], open: true };
        sign(&b.served().unwrap(), another).await;
        b.close().await;
        let refused = start(&runtime, &disks, "b", "").await.err().unwrap();
        assert!(refused.contains("activation 7"), "{refused}");
    });
}

/// Another implementation fills the metadata to the last block. Nothing can be changed then, not even the records, before there
/// is a larger disk.
#[test]
fn a_pool_without_a_single_block_is_signed_when_it_has_grown() {
    simulate(3, async |runtime| {
        let disks = small();
        let a = start(&runtime, &disks, "a", "").await.unwrap();
        a.pool().unwrap().message("create_thin 1").await.unwrap();
        a.close().await;
        fill_to_the_last_block(&disks.meta);
        let b = start(&runtime, &disks, "b", "").await.unwrap();
        assert_eq!((mode(&b), signed(&b)), (Mode::OutOfMetadataSpace, (0xaa, false)));
        assert!(!b.pool().unwrap().status().needs_check);
        disks.meta.resize(400 * METADATA_BLOCK_SECTORS);
        b.pool().unwrap().grow().await.unwrap();
        for _ in 0..2 {
            owner::grown(&b).await.unwrap();
            assert_eq!(b.served().unwrap().catalog().appliance().activation.unwrap().epoch, 2);
        }
        assert_eq!((mode(&b), signed(&b)), (Mode::Write, (0xbb, true)));
    });
}

/// Counts all metadata blocks as used but the first five that are free.
fn fill_to_the_last_block(meta: &MemDisk) {
    const BLOCK_BYTES: u64 = SECTOR_BYTES as u64 * METADATA_BLOCK_SECTORS;
    // In the superblock: how many blocks the metadata's own space map counts, how many of them it has allocated, its index.
    let [nr_blocks_at, nr_allocated_at, index_at] = [192, 200, 208];
    let number = |at| u64::from_le_bytes(meta.peek(at, 8).try_into().unwrap());
    let index = number(index_at) * BLOCK_BYTES;
    // In the index's only entry: its bitmap, how many of that are free, and below which none is.
    let (bitmap_at, nr_free_at, none_free_before_at) = (index + 16, index + 24, index + 28);
    let bitmap = number(bitmap_at) * BLOCK_BYTES;
    let free: Vec<u64> = (0..number(nr_blocks_at))
        .filter(|block| meta.peek(bitmap + 16 + block / 4, 1)[0] >> (block % 4 * 2) & 3 == 0)
        .collect();
    for block in &free[5..] {
        let at = bitmap + 16 + block / 4;
        meta.poke(at, &[meta.peek(at, 1)[0] | 2 << (block % 4 * 2)]);
    }
    meta.poke(nr_allocated_at, &(number(nr_blocks_at) - 5).to_le_bytes());
    meta.poke(nr_free_at, &5u32.to_le_bytes());
    meta.poke(none_free_before_at, &0u32.to_le_bytes());
    for (at, salt) in [(0, 160_774), (index, 160_478), (bitmap, 240_779)] {
        let kind = BlockKind { name: "filled", salt, number_at: 8, check: |_| Ok(()) };
        let mut block = meta.peek(at, BLOCK_BYTES as usize).try_into().unwrap();
        kind.seal(&mut block, at / BLOCK_BYTES);
        meta.poke(at, &block);
    }
}
