//! Pools made by Linux open here, pools made here open in Linux, and both read the same.
//!
//! Every 512 bytes of the data disk hold their own sector number; so what is read tells which sector it came from,
//! and thin_dump's mappings tell which sector it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::dice::Dice;
use xtask::process;
use xtask::thin_dump::{Device, Dump};

use crate::appliance::{Appliance, Site};
use crate::context::{Backend, Context};
use crate::iscsi::{BLOCK_BYTES, Session};
use crate::runner::Test;

macro_rules! golden_tests {
    ($($function:ident: $case:literal;)*) => {
        $(fn $function(context: &Context) -> Result<()> { golden(context, $case) })*

        pub const TESTS: &[Test] = &[
            $(Test::new(concat!("linux_pools::golden_", $case), $function),)*
            Test::new("linux_pools::golden_full", golden_full),
            Test::new("linux_pools::golden_needs-check", golden_needs_check),
            Test::new("linux_pools::every_golden_pool_is_tried", every_golden_pool_is_tried),
            Test::new("linux_pools::linux_reads_a_pool_made_here", linux_reads_a_pool_made_here),
        ];
    };
}

golden_tests! {
    golden_big: "big";
    golden_crashed: "crashed";
    golden_discards: "discards";
    golden_empty: "empty";
    golden_many_thins: "many-thins";
    golden_maxid: "maxid";
    golden_msnap: "msnap";
    golden_odd_order: "odd-order";
    golden_refcounts: "refcounts";
    golden_resized: "resized";
    golden_snaptree: "snaptree";
}

/// A data disk up to this size is stamped whole; of a larger one what will be read.
const STAMP_WHOLE_BYTES_MAX: u64 = 1 << 30;
/// Read from one device.
const READ_BYTES_MAX: u64 = 256 << 20;
/// The same from an image under emulation.
const READ_BYTES_MAX_EMULATED: u64 = 24 << 20;
/// Unmapped blocks looked at in each device.
const HOLES: usize = 8;
/// New writes in all.
const WRITES: u64 = 120;
/// Devices that get new writes.
const WRITTEN_DEVICES: usize = 3;
const LIMIT: Duration = Duration::from_secs(240);

/// A golden pool on its stamped data disk.
struct Golden {
    site: Site,
    pool: Dump,
    /// Virtual blocks that will be read, by device.
    chosen: BTreeMap<u64, Vec<u64>>,
    dice: Dice,
}

impl Golden {
    fn new(context: &Context, case: &str) -> Result<Golden> {
        let folder = context.golden()?;
        let meta = context.scratch.join("meta.img");
        unpack(&folder.join(format!("{case}.meta.zst")), &meta)?;
        let pool = Dump::parse(&context.thin_dump(&meta, false)?)?;
        let mut dice = Dice::new(context.seed);
        let emulated = context.backend != Backend::Hosted;
        let read_bytes_max = if emulated { READ_BYTES_MAX_EMULATED } else { READ_BYTES_MAX };
        let blocks_max = read_bytes_max * context.effort / (pool.data_block_sectors * BLOCK_BYTES as u64);
        let choose = |(id, device): (&u64, &Device)| {
            let mut blocks: Vec<u64> = device.mappings.keys().copied().collect();
            while blocks.len() as u64 > blocks_max {
                blocks.swap_remove(dice.below(blocks.len() as u64) as usize);
            }
            blocks.sort_unstable();
            (*id, blocks)
        };
        let chosen: BTreeMap<u64, Vec<u64>> = pool.devices.iter().map(choose).collect();
        let data = context.scratch.join("data.img");
        stamp(&data, &pool, &chosen)?;
        Ok(Golden { site: Site::over(context, meta, data), pool, chosen, dice })
    }

    /// What is found in one virtual block before anything is written.
    fn expected(&self, id: u64, block: u64) -> Vec<u8> {
        let sectors = self.pool.data_block_sectors;
        match self.pool.devices[&id].mappings.get(&block) {
            Some((data_block, _)) => stamps(data_block * sectors..(data_block + 1) * sectors),
            None => vec![0; sectors as usize * BLOCK_BYTES],
        }
    }

    /// Sizes and exports the device, and logs in to it.
    fn attach(&self, appliance: &Appliance, id: u64) -> Result<Session> {
        let name = format!("thin-{id}");
        let blocks = self.pool.devices[&id].mappings.keys().last().map_or(0, |last| last + 1) + HOLES as u64;
        let size_bytes = blocks * self.pool.data_block_sectors * BLOCK_BYTES as u64;
        appliance.call("PATCH", &format!("/v1/volumes/{name}"), &json!({ "size_bytes": size_bytes }))?;
        appliance.export(&name)?;
        appliance.login(&name)
    }

    /// Every block that was chosen, and some that are not mapped, hold what they should.
    fn check_reads(&mut self, appliance: &Appliance, id: u64) -> Result<()> {
        let mut session = self.attach(appliance, id)?;
        let map = &self.pool.devices[&id].mappings;
        let end = map.keys().last().map_or(0, |last| last + 1) + HOLES as u64;
        let mut blocks = self.chosen[&id].clone();
        blocks.extend((0..HOLES).map(|_| self.dice.below(end)).filter(|block| !map.contains_key(block)));
        for block in blocks {
            self.check_block(&mut session, id, block)?;
        }
        session.logout()?;
        Ok(())
    }

    fn check_block(&self, session: &mut Session, id: u64, block: u64) -> Result<()> {
        let sectors = self.pool.data_block_sectors;
        let found = session.read(block * sectors, sectors as usize)?;
        let expected = self.expected(id, block);
        if let Some(at) = (0..sectors as usize).find(|at| found[at * 512..][..512] != expected[at * 512..][..512]) {
            anyhow::bail!(
                "device {id}, block {block}, sector {at} in it: found {:x?}, expected {:x?} (data block {:?})",
                &found[at * 512..][..16],
                &expected[at * 512..][..16],
                self.pool.devices[&id].mappings.get(&block)
            );
        }
        Ok(())
    }

    /// One device gets a few sectors written into each of several blocks; the rest of each block stays as it was.
    fn write_into(&mut self, appliance: &Appliance, id: u64) -> Result<()> {
        let mut session = self.attach(appliance, id)?;
        let sectors = self.pool.data_block_sectors;
        let end = self.pool.devices[&id].mappings.keys().last().map_or(0, |last| last + 1) + HOLES as u64;
        let mut written = BTreeMap::new();
        for _ in 0..WRITES / WRITTEN_DEVICES as u64 {
            let chosen = &self.chosen[&id];
            let block = match chosen.len() as u64 {
                0 => self.dice.below(end),
                _ if self.dice.chance(40) => self.dice.below(end),
                count => chosen[self.dice.below(count) as usize],
            };
            // Of a large data disk only the chosen blocks are stamped.
            if self.pool.devices[&id].mappings.contains_key(&block) && chosen.binary_search(&block).is_err() {
                continue;
            }
            let len = self.dice.between(1, 8);
            let at = self.dice.below(sectors - len);
            let mut bytes = vec![0; len as usize * BLOCK_BYTES];
            self.dice.fill(&mut bytes);
            session.write(block * sectors + at, &bytes, self.dice.chance(20))?;
            let content = written.entry(block).or_insert_with(|| self.expected(id, block));
            content[at as usize * BLOCK_BYTES..][..bytes.len()].copy_from_slice(&bytes);
        }
        session.flush()?;
        for (block, content) in written {
            let found = session.read(block * sectors, sectors as usize)?;
            ensure!(found == content, "device {id}, block {block}: not what was written into what was there");
        }
        session.logout()?;
        Ok(())
    }
}

/// Opens, adopts, reads, writes, and looks at what is on the disk afterwards.
fn golden(context: &Context, case: &str) -> Result<()> {
    let mut golden = Golden::new(context, case)?;
    let held = context.thin_dump(&golden.site.meta, true).ok();
    let appliance = golden.site.start()?;
    check_status(context, &appliance, case)?;
    appliance.call("POST", "/v1/pool/adopt", &Value::Null)?;
    check_names(&appliance, &golden.pool)?;
    let mapped: Vec<u64> =
        golden.pool.devices.iter().filter(|(_, device)| !device.mappings.is_empty()).map(|(id, _)| *id).collect();
    for id in &mapped {
        golden.check_reads(&appliance, *id)?;
    }
    let written: Vec<u64> = mapped.iter().copied().take(WRITTEN_DEVICES).collect();
    for id in &written {
        golden.write_into(&appliance, *id)?;
    }
    appliance.power_off()?;

    context.thin_check(&golden.site.meta)?;
    let after = Dump::parse(&context.thin_dump(&golden.site.meta, false)?)?;
    for (id, device) in golden.pool.devices.iter().filter(|(id, _)| !written.contains(id)) {
        ensure!(
            after.devices.get(id).map(|after| &after.mappings) == Some(&device.mappings),
            "device {id}, which was only read, is mapped otherwise now"
        );
    }
    ensure!(
        context.thin_dump(&golden.site.meta, true).ok() == held,
        "the metadata snapshot that Linux took is not what it was"
    );
    Ok(())
}

/// A pool without a free data block cannot be adopted until something is deleted.
fn golden_full(context: &Context) -> Result<()> {
    let mut golden = Golden::new(context, "full")?;
    let appliance = golden.site.start_in_any_state()?;
    check_status(context, &appliance, "full")?;
    let refused = appliance.answer("POST", "/v1/pool/adopt", &Value::Null)?;
    ensure!(refused.status == 507, "adopting a full pool: {} {}", refused.status, refused.text());
    let ids: Vec<u64> = golden.pool.devices.keys().copied().collect();
    let (deleted, kept) = ids.split_first().context("no devices")?;
    let (errno, _) = appliance.message(&format!("delete {deleted}"))?;
    ensure!(errno == 0, "delete {deleted}: errno {errno}");
    appliance.call("POST", "/v1/pool/adopt", &Value::Null)?;
    for id in kept {
        golden.check_reads(&appliance, *id)?;
        golden.write_into(&appliance, *id)?;
    }
    appliance.power_off()?;
    context.thin_check(&golden.site.meta)
}

/// A pool that needs a check is shown and not changed.
fn golden_needs_check(context: &Context) -> Result<()> {
    let golden = Golden::new(context, "needs-check")?;
    let before = std::fs::read(&golden.site.meta)?;
    let appliance = golden.site.start_in_any_state()?;
    check_status(context, &appliance, "needs-check")?;
    let pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
    ensure!(pool["needs_check"] == true && pool["mode"] == "read_only", "{pool}");
    let refused = appliance.answer("POST", "/v1/pool/adopt", &Value::Null)?;
    ensure!(refused.status >= 400, "a pool that needs a check was adopted: {}", refused.text());
    let (errno, _) = appliance.message("create_thin 4711")?;
    ensure!(errno < 0, "create_thin in a read-only pool: errno {errno}");
    check_names(&appliance, &golden.pool)?;
    appliance.power_off()?;
    ensure!(std::fs::read(&golden.site.meta)? == before, "the metadata disk was changed");
    Ok(())
}

fn every_golden_pool_is_tried(context: &Context) -> Result<()> {
    let cases = std::fs::read_dir(context.golden()?)?;
    let names = cases.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let cases: BTreeSet<String> = names.filter_map(|name| Some(name.strip_suffix(".meta.zst")?.to_owned())).collect();
    let tested = TESTS.iter().filter_map(|test| test.name.strip_prefix("linux_pools::golden_"));
    let tested: BTreeSet<String> = tested.map(str::to_owned).collect();
    ensure!(cases == tested, "there are {cases:?}, tested are {tested:?}");
    Ok(())
}

/// The numbers that the kernel showed last are the ones shown here.
fn check_status(context: &Context, appliance: &Appliance, case: &str) -> Result<()> {
    let text = std::fs::read_to_string(context.golden()?.join(format!("{case}.status")))?;
    let line = text.lines().find_map(|line| line.split_once("thin-pool ")).context("no status line")?.1;
    let pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
    let ours = pool["status_line"].as_str().context("no status line in the answer")?;
    // Transaction id, metadata and data in use, held root, mode. A crash may leave less in use than was shown, and
    // that a pool is full is found out by the first write that needs a block.
    let count = match case {
        "crashed" => 1,
        "full" => 4,
        _ => 5,
    };
    let words = |line: &str| line.split(' ').take(count).map(str::to_owned).collect::<Vec<_>>();
    ensure!(words(ours) == words(line), "Linux showed `{line}`, here it is `{ours}`");
    Ok(())
}

/// Devices without a record are found under their ids.
fn check_names(appliance: &Appliance, pool: &Dump) -> Result<()> {
    let found: BTreeSet<String> = appliance.volumes()?.into_iter().collect();
    let expected: BTreeSet<String> = pool.devices.keys().map(|id| format!("thin-{id}")).collect();
    ensure!(found == expected, "volumes are {found:?}, devices are {expected:?}");
    Ok(())
}

fn linux_reads_a_pool_made_here(context: &Context) -> Result<()> {
    let site = Site::new(context, 8 << 20, 256 << 20)?;
    let mut dice = Dice::new(context.seed);
    let appliance = site.start()?;
    appliance.make_volume("one", 64 << 20)?;
    appliance.make_volume("two", 1 << 40)?;
    fill(&appliance, "one", 64 << 20, &mut dice)?;
    fill(&appliance, "two", 64 << 20, &mut dice)?;
    appliance.make_snapshot("one-then", "one")?;
    fill(&appliance, "one", 64 << 20, &mut dice)?;
    fill(&appliance, "one-then", 64 << 20, &mut dice)?;
    let (errno, _) = appliance.message("reserve_metadata_snap")?;
    ensure!(errno == 0, "reserve_metadata_snap: errno {errno}");
    fill(&appliance, "two", 64 << 20, &mut dice)?;
    let mut contents = BTreeMap::new();
    for name in ["one", "two", "one-then"] {
        let id =
            appliance.call("GET", &format!("/v1/volumes/{name}"), &Value::Null)?["id"].as_u64().context("no id")?;
        let mut session = appliance.login(name)?;
        contents.insert(id, session.read(0, (64 << 20) / BLOCK_BYTES)?);
        session.logout()?;
    }
    appliance.power_off()?;
    context.thin_check(&site.meta)?;

    // What was read here is what the mappings say, and what the mappings say is what Linux reads.
    let pool = Dump::parse(&context.thin_dump(&site.meta, false)?)?;
    let data = File::open(&site.data)?;
    for (id, content) in &contents {
        let block_bytes = pool.data_block_sectors as usize * BLOCK_BYTES;
        for (block, found) in (0u64..).zip(content.chunks(block_bytes)) {
            let mut expected = vec![0; block_bytes];
            if let Some((at, _)) = pool.devices[id].mappings.get(&block) {
                data.read_exact_at(&mut expected, at * block_bytes as u64)?;
            }
            ensure!(found == expected, "device {id}, block {block}: read otherwise than it is mapped");
        }
    }
    let mut judge = Command::new(context.lab("kernel-read-pool")?);
    let ended = process::succeed(judge.arg(&site.meta).arg(&site.data), LIMIT)?;
    for id in contents.keys() {
        let line = format!("thin {id}: {} blocks, same", pool.devices[id].mappings.len());
        ensure!(ended.text().contains(&line), "no line `{line}` in:\n{}", ended.text());
    }
    Ok(())
}

/// Random writes, discards and a flush within the first `bytes` of a volume.
fn fill(appliance: &Appliance, name: &str, bytes: u64, dice: &mut Dice) -> Result<()> {
    let mut session = appliance.login(name)?;
    let sectors = bytes / BLOCK_BYTES as u64;
    for _ in 0..80 {
        let len = dice.between(1, 300);
        let at = dice.below(sectors - len);
        if dice.chance(15) {
            session.unmap(at, len as u32)?;
        } else {
            let mut data = vec![0; len as usize * BLOCK_BYTES];
            dice.fill(&mut data);
            session.write(at, &data, dice.chance(10))?;
        }
    }
    session.flush()?;
    session.logout()?;
    Ok(())
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    process::succeed(Command::new("zstd").args(["-q", "-d", "-f"]).arg(from).arg("-o").arg(to), LIMIT).map(drop)
}

/// Sectors that hold their own numbers.
fn stamps(sectors: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (sectors.end - sectors.start) as usize * BLOCK_BYTES];
    for (number, sector) in sectors.zip(bytes.as_chunks_mut::<BLOCK_BYTES>().0) {
        sector.as_chunks_mut::<8>().0.fill(number.to_le_bytes());
    }
    bytes
}

fn stamp(path: &Path, pool: &Dump, chosen: &BTreeMap<u64, Vec<u64>>) -> Result<()> {
    let file = File::create(path)?;
    let block_bytes = pool.data_block_sectors * BLOCK_BYTES as u64;
    file.set_len(pool.data_blocks * block_bytes)?;
    let whole = pool.data_blocks * block_bytes <= STAMP_WHOLE_BYTES_MAX;
    let read = || chosen.iter().flat_map(|(id, blocks)| blocks.iter().map(|block| pool.devices[id].mappings[block].0));
    let blocks: BTreeSet<u64> = if whole { (0..pool.data_blocks).collect() } else { read().collect() };
    for block in blocks {
        let sectors = block * pool.data_block_sectors..(block + 1) * pool.data_block_sectors;
        file.write_all_at(&stamps(sectors), block * block_bytes)?;
    }
    Ok(())
}
