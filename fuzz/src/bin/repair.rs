//! Repairs an arbitrary image onto a fresh disk; what is there then must be sound, and the image as it was.
#![no_main]

use fuzz::disk::{BLOCKS, CowDisk};
use fuzz::image::{Bytes, decode};
use fuzz::{BUDGET_BYTES, run, runtime};
use platform::block::Disk;
use std::rc::Rc;
use thinp::metadata::check;
use thinp::metadata::repair::{Options, repair};
use thinp::metadata::restore::Overrides;

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let mut bytes = Bytes::new(data);
    let (damaged, fresh) = (decode(&mut bytes), CowDisk::new(Rc::default()));
    let form = bytes.byte();
    let data_block_sectors = (form & 1 != 0).then_some(128);
    let overrides = Overrides { data_block_sectors, ..Overrides::default() };
    let options = Options { overrides, last_commit: form & 2 != 0 };
    let before: Vec<_> = (0..BLOCKS).map(|number| damaged.block(number)).collect();
    let (from, to) = (Disk::new(damaged.clone()), Disk::new(fresh));
    if let Ok(report) = repair(&runtime(), &from, &to, BUDGET_BYTES / 4, &options).await {
        let found = check::check(&runtime(), &to, BUDGET_BYTES / 4).await.expect("a superblock was written");
        assert!(found.is_sound(), "what was repaired is not sound: {:?}", found.problems);
        assert_eq!((found.devices, found.mappings), (report.restored.devices, report.restored.mappings));
    }
    assert!((0..BLOCKS).all(|number| damaged.block(number) == before[number]), "the only copy was changed");
}));
