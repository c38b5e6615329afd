//! `thin_check` 1.x of the lab, asked now and then whether it accepts what a power cut left.

use crate::events;
use crate::image::Image;
use crate::quick::QuickDisk;
use crate::recover::BUFS_BYTES;
use crate::world::World;
use platform::block::Disk;
use std::convert::Infallible;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thinp::metadata::dump::{Options, dump};
use xtask::process;

/// A small image takes milliseconds.
const LIMIT: Duration = Duration::from_secs(120);

/// The program, if the folder beside the repository has it.
fn program() -> Option<&'static PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let told = process::succeed(&mut Command::new(xtask::shared().join("lab/thin-tools")), LIMIT).ok()?;
        let folder = PathBuf::from(String::from_utf8(told.stdout).ok()?.trim());
        Some(folder.join("thin_check")).filter(|program| program.is_file())
    };
    PROGRAM.get_or_init(find).as_ref()
}

/// Looks at a copy of the metadata that was made while the pool was used: its metadata snapshot is whole. `thin_check` is
/// asked, too, if that is wanted.
pub fn accepts_snapshot(copy: &Image, ask: bool) {
    let copied = copy.clone();
    let dumped = events::muted(|| {
        World::new(0).run(BUFS_BYTES, async move |runtime| {
            let options = Options { metadata_snap: true, ..Options::default() };
            let disk = Disk::new(QuickDisk::new(copied));
            dump(&runtime, &disk, &options, async |_| Ok::<(), Infallible>(())).await
        })
    });
    assert!(dumped.is_ok(), "the metadata snapshot that is read from outside: {dumped:?}");
    if ask {
        accepts_with(copy, &["-q", "-m"]);
    }
}

/// Asks it; true if it is there. It must have no objection.
pub fn accepts(metadata: &Image) -> bool {
    accepts_with(metadata, &["-q"])
}

fn accepts_with(metadata: &Image, options: &[&str]) -> bool {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let Some(program) = program() else { return false };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = env::temp_dir().join(format!("gossamer-sim-{}-{number}", std::process::id()));
    fs::write(&file, metadata.to_bytes()).expect("a temporary file can be written");
    let ended = process::run(Command::new(program).args(options).arg(&file), LIMIT);
    fs::remove_file(&file).expect("the temporary file is ours");
    let ended = ended.expect("thin_check runs");
    assert!(ended.status.success(), "thin_check 1.x {options:?} does not accept the metadata: {}", ended.text());
    true
}
