//! Pools that Linux made (`../shared/golden`): each opens, is judged as `thin_check` judges it, holds what `thin_dump`
//! says, and stays sound whatever we do to it.

mod changes;
mod damage;
mod pool;
mod table;

mod xml;

use crate::harness::*;
use crate::judge;
use crate::model::dump;
use platform::block::{Disk, Op};
use platform::layers::Trace;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::{Cell, RefCell};
use std::process::Command;
use std::rc::Rc;

/// A file of the collection, unpacked.
pub fn unpack(name: &str) -> Option<Vec<u8>> {
    let path = shared().join(format!("golden/{name}.zst"));
    if !path.exists() {
        skipped(&path.display().to_string());
        return None;
    }
    let out = Command::new("zstd").arg("-dcq").arg(&path).output().unwrap();
    assert!(out.status.success(), "zstd {}", path.display());
    Some(out.stdout)
}

/// The metadata disk of a case.
pub fn image(case: &str) -> Option<MemDisk> {
    let bytes = unpack(&format!("{case}.meta"))?;
    let disk = MemDisk::new(bytes.len() as u64 / 512);
    for (block, bytes) in (0..).zip(bytes.chunks(4096)).filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
        disk.poke(block * 4096, bytes);
    }
    Some(disk)
}

/// What `thin_dump` 1.x printed of a case, or with `-m` of its metadata snapshot.
fn stored_xml(name: &str) -> Option<String> {
    unpack(&format!("{name}.xml1")).map(|bytes| String::from_utf8(bytes).unwrap())
}

/// A metadata disk, and copies of it as each commit leaves it.
struct Watched {
    device: Disk,
    commits: Rc<RefCell<Vec<MemDisk>>>,
}

impl Watched {
    fn new(disk: &MemDisk) -> Watched {
        let commits = Rc::new(RefCell::new(Vec::new()));
        let (superblock_written, copies, inner) = (Cell::new(false), commits.clone(), disk.clone());
        let trace = Trace::new(Rc::new(disk.clone()), move |request, done| match (request.op, done) {
            (Op::Write { .. }, None) if request.sector == 0 => superblock_written.set(true),
            (Op::Flush, Some(_)) if superblock_written.take() => copies.borrow_mut().push(inner.fork()),
            _ => {}
        });
        Watched { device: Disk::new(trace), commits }
    }

    /// Copies of the disk as the commits since the last call left it.
    fn take(&self) -> Vec<MemDisk> {
        self.commits.take()
    }
}

/// Our verdict is that of both tools: nothing is wrong. And the mappings are those that `thin_dump` found.
fn opens_and_is_sound(case: &str) {
    let (Some(disk), Some(xml)) = (image(case), stored_xml(case)) else { return };
    let report = check(&disk);
    let mappings = block_on_ready(dump(&disk));
    assert_eq!(mappings, xml::parse(&xml));
    assert_eq!(block_on_ready(our_xml(&disk, false)), xml);
    if let Some(xml) = Some(case).filter(|case| *case == "msnap").and_then(|_| stored_xml("msnap.msnap")) {
        assert_eq!(block_on_ready(our_xml(&disk, true)), xml);
    }
    assert_eq!(report.mappings, mappings.values().map(|m| m.len() as u64).sum());
    assert_eq!(report.devices, mappings.len() as u64);
    let metadata = block_on_ready(open_on(Disk::new(disk.clone()), 200));
    assert_eq!(metadata.needs_check(), case == "needs-check");
    assert_eq!(metadata.held_root().is_some(), case == "msnap");
    if let Some(verdicts) = judge::ask(&disk).map(|asked| asked.wait()) {
        assert_eq!((verdicts.old, verdicts.new), (Ok(()), Ok(())));
    }
}

macro_rules! cases {
    ($test:path, $($name:ident $case:literal,)*) => {
        $(#[test] fn $name() { $test($case); })*

        #[test]
        fn no_case_is_forgotten() {
            crate::golden::are_all_there_are(&[$($case),*]);
        }
    };
}

/// One test for each case.
macro_rules! for_each_case {
    ($test:path) => {
        crate::golden::cases! { $test,
            big "big",
            crashed "crashed",
            discards "discards",
            empty "empty",
            full "full",
            many_thins "many-thins",
            maxid "maxid",
            msnap "msnap",
            needs_check "needs-check",
            odd_order "odd-order",
            refcounts "refcounts",
            resized "resized",
            snaptree "snaptree",
        }
    };
}

pub(crate) use {cases, for_each_case};

for_each_case!(opens_and_is_sound);

pub fn are_all_there_are(cases: &[&str]) {
    let Ok(folder) = std::fs::read_dir(shared().join("golden")) else {
        return skipped("golden images (shared/golden)");
    };
    let names = folder.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> = names.filter_map(|name| Some(name.strip_suffix(".meta.zst")?.into())).collect();
    found.sort();
    assert_eq!(found, cases);
}
