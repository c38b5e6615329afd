//! Pools that Linux made: each opens, holds what `thin_dump` says, and stays sound when we change it.

use crate::harness::*;
use crate::model::{Driver, Mappings, dump, mappings_of};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const FOLDER: &str = "/work/shared/golden";

fn unpack(name: &str) -> Option<Vec<u8>> {
    let path = Path::new(FOLDER).join(format!("{name}.zst"));
    if !path.exists() {
        assert!(std::env::var_os("CI").is_none(), "CI needs {}", path.display());
        println!("skipped: no {}", path.display());
        return None;
    }
    let out = Command::new("zstd").arg("-dcq").arg(&path).output().unwrap();
    assert!(out.status.success(), "zstd {}", path.display());
    Some(out.stdout)
}

/// The attributes of one XML element on a line of its own.
fn attributes(line: &str) -> BTreeMap<&str, &str> {
    let parts: Vec<&str> = line.split('"').collect();
    parts.chunks_exact(2).map(|pair| (pair[0].trim_end_matches('=').rsplit(' ').next().unwrap(), pair[1])).collect()
}

/// The mappings in what `thin_dump` 1.x prints: `def` is a named run of mappings, `ref` stands for one.
fn parse(xml: &str) -> Mappings {
    let (mut all, mut named) = (Mappings::new(), BTreeMap::<String, BTreeMap<u64, u64>>::new());
    let (mut current, mut name, mut device) = (BTreeMap::new(), String::new(), None);
    for line in xml.lines().map(str::trim) {
        let attributes = attributes(line);
        let number = |name: &str| attributes[name].parse::<u64>().unwrap();
        match line.split([' ', '>', '/']).find(|word| !word.trim_start_matches('<').is_empty()).unwrap_or("") {
            "<def" => name = attributes["name"].into(),
            "<device" => device = Some(id(number("dev_id"))),
            "<ref" => current.extend(&named[attributes["name"]]),
            "<single_mapping" => drop(current.insert(number("origin_block"), number("data_block"))),
            "<range_mapping" => {
                let blocks = number("origin_begin")..number("origin_begin") + number("length");
                current.extend(blocks.zip(number("data_begin")..));
            }
            _ => {}
        }
        if line == "</def>" {
            named.insert(std::mem::take(&mut name), std::mem::take(&mut current));
        } else if line == "</device>" || line.starts_with("<device") && line.ends_with("/>") {
            all.insert(device.take().unwrap(), std::mem::take(&mut current));
        }
    }
    all
}

fn golden(case: &str, steps: u64) {
    let (Some(image), Some(xml)) = (unpack(&format!("{case}.meta")), unpack(&format!("{case}.xml1"))) else { return };
    let disk = MemDisk::from_bytes(&image);
    let seed = seed();
    block_on_ready(async {
        let report = check(&disk);
        let mappings = dump(&disk).await;
        assert_eq!(mappings, parse(std::str::from_utf8(&xml).unwrap()));
        assert_eq!(report.mappings, mappings.values().map(|m| m.len() as u64).sum());
        let metadata = open_on(Disk::new(disk.clone()), 200).await;
        assert_eq!(metadata.needs_check(), case == "needs-check");
        assert_eq!(metadata.held_root().is_some(), case == "msnap");
        let mut driver = Driver::over(disk.clone(), Disk::new(disk.clone()), metadata, seed, 200);
        driver.now = mappings.clone();
        driver.committed = mappings;
        if case == "msnap" {
            let held = unpack("msnap.msnap.xml1").unwrap();
            driver.held = Some(parse(std::str::from_utf8(&held).unwrap()));
        }
        driver.open_devices().await;
        for step in 0..steps {
            driver.step().await;
            if driver.dice.chance(20) || step == 0 {
                driver.commit().await;
                check(&disk);
                thin_check(&disk);
            }
        }
        for (device, mappings) in &driver.now {
            assert_eq!(mappings_of(&driver.metadata, *device).await, *mappings);
        }
        println!("{case}: {:?}", driver.tally);
    });
}

macro_rules! cases {
    ($($name:ident $case:literal $steps:literal,)*) => { $(#[test] fn $name() { golden($case, $steps); })* };
}

cases! {
    empty "empty" 200,
    odd_order "odd-order" 200,
    snaptree "snaptree" 200,
    msnap "msnap" 200,
    discards "discards" 200,
    big "big" 20,
    needs_check "needs-check" 200,
    resized "resized" 200,
    maxid "maxid" 200,
    many_thins "many-thins" 200,
    refcounts "refcounts" 200,
    full "full" 200,
    crashed "crashed" 200,
}
