//! Dumps against those of `thin_dump` 1.x and 0.9, byte by byte: of what Linux made, and of what chance made.

use crate::golden::{image, unpack};
use crate::harness::*;
use crate::hostile::{damage, damageable_pool};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::process::Command;
use thinp::metadata::dump::{self, DumpError, Format, Options};
use thinp::metadata::{MetadataError, Progress, VirtualBlock};

/// More than any dump of a test is long.
const DUMP_BYTES_MAX: usize = 64 << 20;

/// The dump of what is on a disk.
pub fn text(disk: &MemDisk, options: &Options) -> Result<String, DumpError<&'static str>> {
    let mut all = Vec::new();
    let sink = async |piece: &[u8]| {
        all.extend_from_slice(piece);
        if all.len() > DUMP_BYTES_MAX { Err("it has no end") } else { Ok(()) }
    };
    block_on_ready(dump::dump(&runtime(), &Disk::new(disk.clone()), options, sink))?;
    Ok(String::from_utf8(all).unwrap())
}

pub fn xml(disk: &MemDisk, format: Format) -> String {
    text(disk, &Options { format, ..Options::default() }).unwrap()
}

/// What `thin_dump` 0.9 says, if this machine has it.
pub fn thin_dump_09(disk: &MemDisk, args: &[&str]) -> Option<String> {
    let file = temporary_file(disk);
    let ran = Command::new("/usr/sbin/thin_dump").args(args).arg(&file).output();
    std::fs::remove_file(&file).unwrap();
    let Ok(out) = ran else {
        skipped("thin_dump 0.9 (package thin-provisioning-tools)");
        return None;
    };
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap())
}

#[track_caller]
pub fn same(ours: &str, theirs: &str) {
    if ours != theirs {
        let line = ours.lines().zip(theirs.lines()).take_while(|(a, b)| a == b).count();
        let show = |text: &str| text.lines().nth(line).unwrap_or("the end").to_owned();
        panic!("line {}: ours {:?}, theirs {:?}", line + 1, show(ours), show(theirs));
    }
}

/// Every option against both tools.
#[track_caller]
pub fn agrees_with_the_tools(disk: &MemDisk, devices: &[u64]) {
    let tool = |args: &[&str]| run_tool(disk, "thin_dump", args).map(|said| said.unwrap());
    let Some(theirs) = tool(&[]) else { return };
    same(&xml(disk, Format::Xml), &theirs);
    same(
        &text(disk, &Options { skip_mappings: true, ..Options::default() }).unwrap(),
        &tool(&["--skip-mappings"]).unwrap(),
    );
    if let Some(theirs) = thin_dump_09(disk, &[]) {
        same(&xml(disk, Format::Xml09), &theirs);
    }
    if let [one, .., other] = devices {
        let options = Options { devices: vec![id(*one), id(*other)], ..Options::default() };
        let args = ["--dev-id", &one.to_string(), "--dev-id", &other.to_string()];
        same(&text(disk, &options).unwrap(), &tool(&args).unwrap());
    }
    if !theirs.contains("<def") {
        // Where nothing is shared `thin_dump` 1.x writes no definitions into this format either.
        same(&xml(disk, Format::HumanReadable), &tool(&["-f", "human_readable"]).unwrap());
    }
}

fn is_the_stored_one(case: &str) {
    let Some(disk) = image(case) else { return };
    let stored = |name: &str| unpack(name).map(|bytes| String::from_utf8(bytes).unwrap());
    same(&xml(&disk, Format::Xml), &stored(&format!("{case}.xml1")).unwrap());
    same(&xml(&disk, Format::Xml09), &stored(&format!("{case}.xml")).unwrap());
    let held = Options { metadata_snap: true, ..Options::default() };
    if case == "msnap" {
        same(&text(&disk, &held).unwrap(), &stored("msnap.msnap.xml1").unwrap());
        let old = Options { format: Format::Xml09, ..held };
        same(&text(&disk, &old).unwrap(), &stored("msnap.msnap.xml").unwrap());
    } else {
        assert_eq!(text(&disk, &held), Err(DumpError::Metadata(MetadataError::NoSnapshotHeld)));
    }
    agrees_with_the_tools(&disk, &[]);
}

crate::golden::for_each_case!(is_the_stored_one);

/// A pool of devices that share leaves in every way: snapshots of snapshots, written to here and there, some deleted.
pub fn shared_pool(dice: &Dice) -> (MemDisk, Vec<u64>) {
    let disk = MemDisk::new(4096 * 8);
    let mut devices: Vec<u64> = Vec::new();
    block_on_ready(async {
        let metadata = format(&disk, 60_000).await;
        for next in 0..6 + dice.below(12) {
            if devices.is_empty() || dice.chance(4) {
                metadata.create_thin(id(next)).await.unwrap();
            } else {
                let origin = devices[dice.below(devices.len() as u64) as usize];
                metadata.create_snap(id(next), id(origin)).await.unwrap();
            }
            devices.push(next);
            let device = devices[dice.below(devices.len() as u64) as usize];
            metadata.open_device(id(device)).await.unwrap();
            for _ in 0..dice.below(4) {
                let (begin, step) = (dice.below(4000), 1 + dice.below(3));
                for n in 0..[0, 1, 30, 300, 1500][dice.below(5) as usize] {
                    provision(&metadata, id(device), begin + n * step).await;
                }
                if dice.chance(5) {
                    let (begin, end) = (VirtualBlock(begin), VirtualBlock(begin + dice.below(800)));
                    metadata.remove_range(id(device), begin, end, 10_000).await.unwrap();
                }
            }
            metadata.close_device(id(device));
            if dice.chance(8) && devices.len() > 2 {
                let gone = devices.remove(dice.below(devices.len() as u64) as usize);
                assert_eq!(metadata.delete(id(gone)).await, Ok(Progress::Complete));
            }
            if dice.chance(3) {
                commit(&metadata).await;
            }
        }
        commit(&metadata).await;
    });
    (disk, devices)
}

#[test]
fn what_devices_share_is_defined_as_by_thin_dump() {
    let seed = seed();
    let mut definitions = 0;
    for round in 0..12 * effort() {
        let (disk, devices) = shared_pool(&Dice::new(seed + round));
        definitions += xml(&disk, Format::Xml).matches("<def").count();
        agrees_with_the_tools(&disk, &devices);
    }
    println!("{definitions} definitions");
    assert!(definitions > 20);
}

#[test]
fn an_unknown_device_is_an_error() {
    let (disk, _) = shared_pool(&Dice::new(1));
    let options = Options { devices: vec![id(999)], ..Options::default() };
    assert_eq!(text(&disk, &options), Err(DumpError::Metadata(MetadataError::NoDevice(id(999)))));
}

/// Whatever is on the disk, a dump ends, with an error or without.
#[test]
fn a_dump_of_damaged_metadata_ends() {
    let seed = seed();
    let base = block_on_ready(damageable_pool());
    let mut failed = 0;
    for round in 0..300 * effort() {
        let dice = Dice::new(seed + round);
        let disk = base.fork();
        for _ in 0..1 + dice.below(3) {
            damage(&disk, dice.below(120), &dice);
        }
        for format in [Format::Xml, Format::Xml09] {
            let options = Options { format, metadata_snap: dice.chance(2), ..Options::default() };
            let result = text(&disk, &options);
            assert!(!matches!(result, Err(DumpError::Sink(_))), "round {round} of seed {seed}");
            failed += u64::from(result.is_err());
        }
    }
    assert!(failed > 10, "{failed}");
}

/// The mappings of one device, out of a view, are those of the dump; as JSON they can begin anywhere.
#[test]
fn one_device_of_a_view_is_dumped_as_from_the_disk() {
    let seed = seed();
    let dice = Dice::new(seed);
    let (disk, devices) = shared_pool(&dice);
    block_on_ready(async {
        let metadata = open_on(Disk::new(disk.clone()), CACHE).await;
        let view = metadata.open_view("dump", None, async || Ok(())).await.unwrap();
        let dump_device = async |device: u64, from: u64, format: Format| {
            let mut all = Vec::new();
            let sink = async |piece: &[u8]| {
                all.extend_from_slice(piece);
                Ok::<(), &'static str>(())
            };
            let done = view.dump_device(id(device), VirtualBlock(from), format, sink).await;
            done.map(|()| String::from_utf8(all).unwrap())
        };
        for device in devices {
            let options = Options { devices: vec![id(device)], ..Options::default() };
            same(&dump_device(device, 0, Format::Xml).await.unwrap(), &text(&disk, &options).unwrap());
            let mut iter = view.mappings(id(device)).await.unwrap();
            let (mut expected, from) = (Vec::new(), dice.below(5000));
            while let Some((block, data)) = iter.next().await.unwrap() {
                expected.extend((block.0 >= from).then_some((block.0, data.0)));
            }
            let mut found = Vec::new();
            for line in dump_device(device, from, Format::Json).await.unwrap().lines() {
                let numbers: Vec<u64> =
                    line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
                let [of, begin, length, data, time] = numbers[..] else { panic!("{line}") };
                let words = format!(
                    "{{\"device\":{of},\"begin\":{begin},\"length\":{length},\"data_begin\":{data},\"time\":{time}}}"
                );
                assert_eq!((line, of), (&*words, device));
                found.extend((begin..begin + length).zip(data..));
            }
            assert_eq!(found, expected, "device {device} from {from}, seed {seed}");
        }
        let missing = dump_device(999, 0, Format::Json).await;
        assert_eq!(missing, Err(DumpError::Metadata(MetadataError::NoDevice(id(999)))));
    });
}
