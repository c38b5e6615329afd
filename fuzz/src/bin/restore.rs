//! Restores arbitrary text as if it were a dump; what was restored must be sound.
#![no_main]

use fuzz::disk::CowDisk;
use fuzz::{BUDGET_BYTES, CACHE_BLOCKS, run, runtime};
use platform::block::Disk;
use std::convert::Infallible;
use std::rc::Rc;
use thinp::metadata::check;
use thinp::metadata::restore::{Overrides, RestoreError, restore};

/// Bytes of the text that are handed over at a time: few, so that tags are cut in two.
const PIECE_BYTES: usize = 61;

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let disk = Disk::new(CowDisk::new(Rc::default()));
    let mut pieces = data.chunks(PIECE_BYTES);
    let source = async |text: &mut Vec<u8>| {
        text.extend(pieces.next().unwrap_or_default());
        Ok(())
    };
    let restored: Result<_, RestoreError<Infallible>> =
        restore(&runtime(), &disk, CACHE_BLOCKS, &Overrides::default(), source).await;
    if let Ok(restored) = restored {
        let report = check::check(&runtime(), &disk, BUDGET_BYTES / 4).await.expect("a superblock was written");
        assert!(report.is_sound(), "what was restored is not sound: {:?}", report.problems);
        assert_eq!((report.devices, report.mappings), (restored.devices, restored.mappings));
    }
}));
