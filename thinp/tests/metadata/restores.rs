//! Restores: back and forth with `thin_restore`, onto disks that are too small, and of dumps that somebody spoilt.

use crate::dumps::{shared_pool, text, thin_dump_09, xml};
use crate::golden::image;
use crate::harness::*;
use crate::judge::Judge;
use platform::block::{BlockDevice, Disk, IoError, Op};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;
use thinp::metadata::dump::{Format, Options};
use thinp::metadata::restore::{self, Overrides, RestoreError, Restored};

type Result<T> = std::result::Result<T, RestoreError<&'static str>>;

/// Restores `dump` in pieces of `piece` bytes.
fn onto(disk: &MemDisk, dump: &[u8], overrides: &Overrides, piece: usize) -> Result<Restored> {
    onto_device(Disk::new(disk.clone()), dump, overrides, piece)
}

fn onto_device(disk: Disk, dump: &[u8], overrides: &Overrides, piece: usize) -> Result<Restored> {
    let mut pieces = dump.chunks(piece);
    let source = async |out: &mut Vec<u8>| {
        out.extend_from_slice(pieces.next().unwrap_or_default());
        Ok::<(), &str>(())
    };
    block_on_ready(restore::restore(&runtime(), &disk, 64, overrides, source))
}

pub fn restored(dump: &str, blocks: u64) -> Result<(MemDisk, Restored)> {
    let disk = MemDisk::new(blocks * 8);
    // What was there must not shine through.
    disk.poke(0, &[0xa5; 200 * 4096]);
    let restored = onto(&disk, dump.as_bytes(), &Overrides::default(), 1000)?;
    Ok((disk, restored))
}

/// What `thin_restore` 1.x makes of a dump, if this machine has it.
fn thin_restore(dump: &str, blocks: u64) -> Option<MemDisk> {
    let program = tools()?.join("thin_restore");
    let (input, output) = (temporary_file(&MemDisk::new(8)), temporary_file(&MemDisk::new(blocks * 8)));
    std::fs::write(&input, dump).unwrap();
    let out = Command::new(program).arg("-q").arg("-i").arg(&input).arg("-o").arg(&output).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let disk = MemDisk::from_bytes(&std::fs::read(&output).unwrap());
    [input, output].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    Some(disk)
}

/// All mappings of all devices. A restored pool is clean.
fn contents(disk: &MemDisk) -> String {
    xml(disk, Format::Xml09).replace(" flags=\"1\"", " flags=\"0\"")
}

/// Each way of there and back is the identity, and what we restore is sound.
fn there_and_back(disk: &MemDisk, judge: &Judge) {
    let (blocks, before) = (disk.limits().size_sectors / 8, contents(disk));
    let mut dumps = vec![xml(disk, Format::Xml), xml(disk, Format::Xml09)];
    dumps.extend(run_tool(disk, "thin_dump", &[]).map(|said| said.unwrap()));
    for dump in dumps {
        let (ours, restored) = restored(&dump, blocks).unwrap();
        assert_eq!(contents(&ours), before);
        if let Some(theirs) = thin_dump_09(&ours, &[]) {
            assert_eq!(theirs, before);
        }
        let report = check(&ours);
        assert_eq!((report.devices, report.mappings), (restored.devices, restored.mappings));
        judge.must_be_clean(&ours, "our restore".into());
        let Some(theirs) = thin_restore(&dump, blocks) else { continue };
        assert_eq!(contents(&theirs), before);
        // What it makes of such a dump is as good as what we make of it.
        assert!(report.devices == 0 || report_of(&theirs).mappings == report.mappings);
    }
}

fn report_of(disk: &MemDisk) -> thinp::metadata::check::Report {
    report(disk).unwrap()
}

fn is_the_same_after_restoring(case: &str) {
    let Some(disk) = image(case) else { return };
    let judge = Judge::default();
    there_and_back(&disk, &judge);
    judge.finish();
}

crate::golden::for_each_case!(is_the_same_after_restoring);

#[test]
fn shared_leaves_stay_shared() {
    let (seed, judge) = (seed(), Judge::default());
    let mut definitions = (0, 0);
    for round in 0..8 * effort() {
        let (disk, _) = shared_pool(&Dice::new(seed + round));
        there_and_back(&disk, &judge);
        let dump = xml(&disk, Format::Xml);
        let (ours, restored) = restored(&dump, 4096).unwrap();
        definitions.0 += dump.matches("<def").count();
        definitions.1 += xml(&ours, Format::Xml).matches("<def").count();
        // Each definition, and each run of a device's own mappings between references, may end in a leaf that is not full,
        // and a device of two such leaves has a root above them. Beyond that sharing never costs.
        let (_, expanded) = self::restored(&xml(&disk, Format::Xml09), 4096).unwrap();
        let runs = (dump.matches("<def").count() + dump.matches("<ref").count()) as u64 + restored.devices;
        let most = expanded.metadata_blocks_used + runs + restored.devices;
        assert!(restored.metadata_blocks_used <= most, "{} blocks, {most} at most", restored.metadata_blocks_used);
    }
    let (before, after) = definitions;
    println!("{} images; of {before} definitions {after} are found again", judge.finish());
    assert!(definitions.1 * 2 > definitions.0 && definitions.0 > 10, "{definitions:?}");
}

/// However many snapshots there are, the mappings that they share are restored once.
#[test]
fn snapshots_cost_no_leaves() {
    const MAPPINGS: u64 = 10_000;
    let disk = MemDisk::new(4096 * 8);
    let restore_with = |snapshots: u64| {
        block_on_ready(async {
            let metadata = format(&disk, 2 * MAPPINGS).await;
            metadata.create_thin(id(0)).await.unwrap();
            metadata.open_device(id(0)).await.unwrap();
            for block in 0..MAPPINGS {
                provision(&metadata, id(0), block).await;
            }
            metadata.close_device(id(0));
            for snapshot in 1..=snapshots {
                metadata.create_snap(id(snapshot), id(0)).await.unwrap();
            }
            commit(&metadata).await;
        });
        let used = |format| restored(&xml(&disk, format), 4096).unwrap().1.metadata_blocks_used;
        (used(Format::Xml), used(Format::Xml09))
    };
    let leaves = MAPPINGS.div_ceil(252);
    let (alone, _) = restore_with(0);
    let (shared, expanded) = restore_with(5);
    // Each device has a root of its own.
    assert!(shared <= alone + 5, "{shared} blocks, {alone} without snapshots");
    assert!(expanded >= alone + 5 * leaves, "{expanded} blocks written out for every device");
}

#[test]
fn a_disk_that_fails_holds_no_half_of_a_pool() {
    let dump = xml(&shared_pool(&Dice::new(seed())).0, Format::Xml);
    let (mut blank, mut whole) = (0, 0);
    for failing in 0.. {
        let disk = MemDisk::new(4096 * 8);
        disk.poke(0, &[0xa5; 200 * 4096]);
        let left = Cell::new(failing);
        let fails = Fault::new(Rc::new(disk.clone()), move |request| {
            if left.get() > 0 || !matches!(request.op, Op::Write { .. } | Op::Flush) {
                left.set(left.get() - i32::from(matches!(request.op, Op::Write { .. } | Op::Flush)));
                return None;
            }
            Some(IoError::Device { op: request.op, sector: request.sector })
        });
        match onto_device(Disk::new(fails), dump.as_bytes(), &Overrides::default(), 4096) {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, RestoreError::Metadata(_)), "{error:?}"),
        }
        if report(&disk).is_err() {
            blank += 1;
        } else {
            check(&disk);
            assert_eq!(xml(&disk, Format::Xml), xml(&restored(&dump, 4096).unwrap().0, Format::Xml));
            whole += 1;
        }
    }
    // Only the last flush, of the superblock, fails with a pool on the disk.
    println!("{blank} failures left no pool, {whole} a whole one");
    assert!(blank > 2 && whole <= 1, "{blank}, {whole}");
}

#[test]
fn a_disk_too_small_stays_blank() {
    let (disk, _) = shared_pool(&Dice::new(3));
    let dump = xml(&disk, Format::Xml);
    let used = restored(&dump, 4096).unwrap().1.metadata_blocks_used;
    for blocks in [64, used - 1] {
        let small = MemDisk::new(blocks * 8);
        small.poke(0, &[1; 4096]);
        let result = onto(&small, dump.as_bytes(), &Overrides::default(), 4096);
        assert_eq!(result, Err(RestoreError::TooSmall { blocks }));
        assert_eq!(small.peek(0, 4096), [0; 4096], "no superblock, and not what was there");
    }
    check(&restored(&dump, used + 8).unwrap().0);
    let tiny = onto(&MemDisk::new(63 * 8), dump.as_bytes(), &Overrides::default(), 4096);
    assert!(tiny.unwrap_err().to_string().contains("needs at least 64"));
}

const SMALL: &str = "\
<superblock uuid=\"\" time=\"3\" transaction=\"7\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"100\">
  <def name=\"a b\">
    <range_mapping origin_begin=\"0\" data_begin=\"10\" length=\"5\" time=\"0\"/>
  </def>
  <device dev_id=\"2\" mapped_blocks=\"6\" transaction=\"0\" creation_time=\"1\" snap_time=\"3\">
    <ref name=\"a b\"/>
    <single_mapping origin_block=\"5\" data_block=\"99\" time=\"3\"/>
  </device>
  <device dev_id=\"1\" mapped_blocks=\"0\" transaction=\"0\" creation_time=\"0\" snap_time=\"0\"/>
</superblock>
";

#[test]
fn what_is_wrong_with_a_dump_is_told_with_its_line() {
    let (disk, counts) = restored(SMALL, 64).unwrap();
    assert_eq!((counts.devices, counts.mappings), (2, 6));
    check(&disk);
    let cases = [
        ("<superblock", "<pool", 1, "<pool> where <superblock> is due"),
        ("time=\"3\" trans", "time=\"16777216\" trans", 1, "later than any clock"),
        (" transaction=\"7\"", "", 1, "<superblock> lacks attribute \"transaction\""),
        ("version", "colour=\"red\" version", 1, "unknown attribute \"colour\""),
        ("nr_data_blocks=\"100\"", "nr_data_blocks=\"+100\"", 1, "is no number that fits"),
        ("<def name=\"a b\">", "<def>", 2, "<def> lacks attribute \"name\""),
        ("length=\"5\"", "length=\"0\"", 3, "a range of 0 blocks"),
        ("length=\"5\"", "length=\"91\"", 3, "data block 100 lies beyond nr_data_blocks, which is 100"),
        ("origin_begin=\"0\"", "origin_begin=\"18446744073709551615\"", 3, "a range of 5 blocks cannot be"),
        ("</def>", "</device>", 4, "</device> where </def> is due"),
        ("dev_id=\"2\"", "dev_id=\"16777216\"", 5, "more than 16777215"),
        ("snap_time=\"3\"", "snap_time=\"4\"", 5, "time 4 of device 2 is later than the superblock's, 3"),
        ("mapped_blocks=\"6\"", "mapped_blocks=\"7\"", 5, "device 2 has 6 mappings, its mapped_blocks says 7"),
        ("<ref name=\"a b\"/>", "<ref name=\"c\"/>", 6, "\"c\" is not defined"),
        ("<ref name=\"a b\"/>", "<ref name=\"a b\">", 6, "<ref> must be empty"),
        ("origin_block=\"5\"", "origin_block=\"4\"", 7, "virtual block 4 comes after 4"),
        ("data_block=\"99\" time=\"3\"", "data_block=\"99\" time=\"4\"", 7, "time 4 is later than the superblock's, 3"),
        ("<single_mapping", "<mapping", 7, "<mapping> is unknown within <device>"),
        ("dev_id=\"1\"", "dev_id=\"2\"", 9, "device 2 comes twice"),
        ("</superblock>", "", 9, "the dump ends within <superblock>"),
        ("</superblock>", "</superblock>\n<superblock>", 11, "behind the end"),
    ];
    for (from, to, line, what) in cases {
        let error = restored(&SMALL.replacen(from, to, 1), 64).map(|_| ()).unwrap_err();
        let told = matches!(&error, RestoreError::Wrong { line: at, what: told } if *at == line && told.contains(what));
        assert!(told, "{from} -> {to}: {error}");
    }
    let error = restored(&SMALL.replace("\"128\"", "\"100\""), 64).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("64 KiB to 1 GiB"), "{error}");
}

/// The dump of a metadata snapshot does not know the size of the data disk: it is given.
#[test]
fn what_the_dump_does_not_know_can_be_given() {
    let Some(disk) = image("msnap") else { return };
    let held = text(&disk, &Options { metadata_snap: true, ..Options::default() }).unwrap();
    let target = MemDisk::new(1024 * 8);
    let error = onto(&target, held.as_bytes(), &Overrides::default(), 100).unwrap_err();
    assert!(error.to_string().contains("beyond nr_data_blocks, which is 0"), "{error}");
    let overrides = Overrides { transaction_id: Some(77), data_block_sectors: Some(256), data_blocks: Some(5000) };
    onto(&target, held.as_bytes(), &overrides, 100).unwrap();
    check(&target);
    let dump = xml(&target, Format::Xml);
    let first = dump.lines().next().unwrap();
    assert!(first.contains("transaction=\"77\""), "{first}");
    assert!(first.ends_with("data_block_size=\"256\" nr_data_blocks=\"5000\">"), "{first}");
}

/// Any bytes: an error, or a pool that is sound.
#[test]
fn spoilt_dumps_make_errors_or_sound_pools() {
    let seed = seed();
    let (disk, _) = shared_pool(&Dice::new(5));
    let dumps = [SMALL.as_bytes().to_vec(), xml(&disk, Format::Xml).into_bytes()];
    let (mut refused, mut taken) = (0, 0);
    for round in 0..400 * effort() {
        let dice = Dice::new(seed + round);
        let mut dump = dumps[usize::from(dice.chance(10))].clone();
        if dice.chance(2) {
            // Another number, which may well be as good.
            let digits: Vec<usize> = (0..dump.len()).filter(|at| dump[*at].is_ascii_digit()).collect();
            dump[digits[dice.below(digits.len() as u64) as usize]] = b'0' + dice.below(10) as u8;
        }
        for _ in 0..dice.below(4) {
            let at = dice.below(dump.len() as u64) as usize;
            match dice.below(5) {
                0 => dump.truncate(at),
                1 => dump[at] = b"0123456789\"<>/= \0\xff"[dice.below(18) as usize],
                2 => drop(dump.remove(at)),
                3 => dump.insert(at, b"0123456789\"<>/="[dice.below(15) as usize]),
                _ => {
                    // A line twice, or elsewhere.
                    let line = dump.split_inclusive(|byte| *byte == b'\n').nth(dice.below(8) as usize);
                    let line = line.unwrap_or_default().to_vec();
                    dump.splice(at..at, line);
                }
            }
            if dump.is_empty() {
                break;
            }
        }
        let target = MemDisk::new(4096 * 8);
        match onto(&target, &dump, &Overrides::default(), 1 + dice.below(5000) as usize) {
            Ok(_) => {
                let report = report(&target).unwrap();
                assert!(report.problems.is_empty(), "round {round} of seed {seed}: {:?}", report.problems);
                taken += 1;
            }
            Err(_) => refused += 1,
        }
    }
    println!("{refused} refused, {taken} taken");
    assert!(refused > 100 && taken > 0, "{refused} refused, {taken} taken");
}
