//! Disks that cannot be served: the appliance says which disk and which block, serves nothing from them and changes
//! nothing on them; HTTP still answers with the reason.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::process;
use xtask::thin_dump::Dump;

use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::crc32c;
use crate::iscsi::Session;
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    Test::new("bad_disks::metadata_disk_too_small", metadata_disk_too_small),
    Test::new("bad_disks::data_disk_too_small", data_disk_too_small),
    Test::new("bad_disks::the_two_disks_swapped", the_two_disks_swapped),
    Test::new("bad_disks::data_disk_smaller_than_the_pool_says", data_disk_smaller_than_the_pool_says),
    Test::new("bad_disks::superblock_with_a_bad_checksum", superblock_with_a_bad_checksum),
    Test::new("bad_disks::tree_root_with_a_bad_checksum", tree_root_with_a_bad_checksum),
    Test::new("bad_disks::damaged_metadata_is_repaired", damaged_metadata_is_repaired),
    Test::new("bad_disks::an_incompatible_flag", an_incompatible_flag),
    Test::new("bad_disks::blank_metadata_beside_used_data", blank_metadata_beside_used_data),
    Test::new("bad_disks::damaged_records", damaged_records),
    Test::new("bad_disks::a_larger_data_disk_changes_nothing", a_larger_data_disk_changes_nothing),
];

const META_BYTES: u64 = 8 << 20;
const DATA_BYTES: u64 = 64 << 20;

// Offsets in the superblock (dm-thin reference 1.1).
const MAPPING_ROOT_AT: usize = 320;
const INCOMPAT_FLAGS_AT: usize = 360;

fn metadata_disk_too_small(context: &Context) -> Result<()> {
    refused(&Site::new(context, 16 << 10, DATA_BYTES)?, &["meta"])
}

fn data_disk_too_small(context: &Context) -> Result<()> {
    refused(&Site::new(context, META_BYTES, 32 << 10)?, &["data"])
}

fn the_two_disks_swapped(context: &Context) -> Result<()> {
    let mut site = used_pool(context)?;
    std::mem::swap(&mut site.meta, &mut site.data);
    refused(&site, &["meta", "block 0"])
}

fn data_disk_smaller_than_the_pool_says(context: &Context) -> Result<()> {
    let site = used_pool(context)?;
    File::options().write(true).open(&site.data)?.set_len(DATA_BYTES / 2)?;
    refused(&site, &["data"])
}

fn superblock_with_a_bad_checksum(context: &Context) -> Result<()> {
    let site = used_pool(context)?;
    change_block(&site, 0, false, |block| block[48] ^= 1)?;
    refused(&site, &["meta", "block 0"])
}

fn tree_root_with_a_bad_checksum(context: &Context) -> Result<()> {
    let site = used_pool(context)?;
    let superblock = read_block(&site, 0)?;
    let root = u64::from_le_bytes(superblock[MAPPING_ROOT_AT..MAPPING_ROOT_AT + 8].try_into()?);
    change_block(&site, root, false, |block| block[100] ^= 0x10)?;
    refused(&site, &["meta", &format!("block {root}")])
}

/// The pool cannot be opened; the metadata is rebuilt on another disk, and with that as `meta` everything is there.
fn damaged_metadata_is_repaired(context: &Context) -> Result<()> {
    let mut site = used_pool(context)?;
    let fresh = context.scratch.join("meta-new.img");
    process::sparse_file(&fresh, META_BYTES)?;
    change_block(&site, 0, false, |block| block[48] ^= 1)?;
    let damaged = fs::read(&site.meta)?;

    site.meta_new = None;
    let without = site.start_without_pool()?;
    ensure!(without.console().contains("meta-new"), "the console does not tell the way\n{}", without.console());
    let answer = without.answer("POST", "/v1/pool/repair", &json!({}))?;
    ensure!(answer.status == 404 && answer.text().contains("meta-new"), "{} {}", answer.status, answer.text());
    without.power_off()?;

    site.meta_new = Some(fresh.clone());
    let appliance = site.start_without_pool()?;
    let unknown = appliance.answer("POST", "/v1/pool/repair", &json!({}))?;
    ensure!(unknown.status == 400, "the block size is lost: {} {}", unknown.status, unknown.text());
    let asked = json!({ "data_block_sectors": 128 });
    let report = appliance.call("POST", "/v1/pool/repair", &asked)?;
    ensure!(report["mappings"].as_u64() >= Some(2) && report["mappings_lost"] == 0, "{report}");
    let again = appliance.answer("POST", "/v1/pool/repair", &asked)?;
    ensure!(again.status == 409, "the new disk is not blank any more: {} {}", again.status, again.text());
    appliance.power_off()?;
    ensure!(fs::read(&site.meta)? == damaged, "the only copy was changed");

    context.thin_check(&fresh)?;
    (site.meta, site.meta_new) = (fresh, None);
    let appliance = site.start()?;
    check_volume(&appliance)?;
    let refused = appliance.answer("POST", "/v1/pool/repair", &asked)?;
    ensure!(refused.status == 409, "a pool in use: {} {}", refused.status, refused.text());
    appliance.power_off()
}

/// Volumes are sound although their names are lost: the appliance serves what it can and says what is wrong.
fn damaged_records(context: &Context) -> Result<()> {
    const RESERVED: u64 = (1 << 24) - 1;
    let site = used_pool(context)?;
    let pool = Dump::parse(&context.thin_dump(&site.meta, false)?)?;
    let (page, _) =
        pool.devices.get(&RESERVED).and_then(|device| device.mappings.get(&0)).context("no reserved device")?;
    let data = File::options().read(true).write(true).open(&site.data)?;
    let at = page * pool.data_block_sectors * 512 + 70;
    let mut byte = [0];
    data.read_exact_at(&mut byte, at)?;
    data.write_all_at(&[!byte[0]], at)?;
    let appliance = site.start_in_any_state()?;
    let health = appliance.call("GET", "/healthz", &Value::Null)?;
    let reason = health["reason"].as_str().unwrap_or_default();
    ensure!(health["status"] == "degraded", "{health}");
    ensure!(reason.contains("page 0") && reason.contains(&RESERVED.to_string()), "{health}");
    let found = appliance.volumes()?;
    ensure!(found.iter().any(|name| name == "thin-1"), "volumes are {found:?}");
    appliance.power_off()
}

fn an_incompatible_flag(context: &Context) -> Result<()> {
    let site = used_pool(context)?;
    change_block(&site, 0, true, |block| block[INCOMPAT_FLAGS_AT] = 1)?;
    refused(&site, &["meta", "block 0"])
}

fn blank_metadata_beside_used_data(context: &Context) -> Result<()> {
    let site = used_pool(context)?;
    fs::remove_file(&site.meta)?;
    process::sparse_file(&site.meta, META_BYTES)?;
    // What the volume's first block held is somewhere near the start of the data disk.
    refused(&site, &["data"])
}

fn a_larger_data_disk_changes_nothing(context: &Context) -> Result<()> {
    let site = used_pool(context)?;
    let blocks = Dump::parse(&context.thin_dump(&site.meta, false)?)?.data_blocks;
    File::options().write(true).open(&site.data)?.set_len(DATA_BYTES * 2)?;
    let appliance = site.start()?;
    let pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
    ensure!(pool["data_total_blocks"] == blocks, "the pool had {blocks} blocks, now it says {pool}");
    check_volume(&appliance)?;
    appliance.power_off()?;
    let after = Dump::parse(&context.thin_dump(&site.meta, false)?)?.data_blocks;
    ensure!(after == blocks, "opening a pool on a larger data disk grew it to {after} blocks");
    Ok(())
}

/// A pool with a volume, made in order and closed in order.
fn used_pool(context: &Context) -> Result<Site> {
    let site = Site::new(context, META_BYTES, DATA_BYTES)?;
    let appliance = site.start()?;
    appliance.make_volume("kept", 16 << 20)?;
    let mut session = appliance.login("kept")?;
    session.write(0, &[0x5a; 128 << 10], false)?;
    session.flush()?;
    session.logout()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)?;
    Ok(site)
}

fn check_volume(appliance: &Appliance) -> Result<()> {
    let mut session = appliance.login("kept")?;
    let data = session.read(0, 256)?;
    ensure!(data == [0x5a; 128 << 10], "the volume does not hold what was written to it");
    session.logout()?;
    Ok(())
}

/// The appliance does not serve these disks, says why in these words, and leaves them as they are.
fn refused(site: &Site, words: &[&str]) -> Result<()> {
    let before = (fs::read(&site.meta)?, fs::read(&site.data)?);
    let appliance = site.start_without_pool()?;
    ensure!(appliance.said("pool") == Some("unavailable"), "{}", appliance.console());

    let health = appliance.http.send("GET", "/healthz")?.json()?;
    let reason = health["reason"].as_str().with_context(|| format!("no reason in {health}"))?;
    for word in words {
        ensure!(reason.contains(word), "the reason does not name `{word}`: {reason}");
    }
    ensure!(health["status"] != "ok", "the health is {health}");
    ensure!(appliance.console().contains(reason), "the console does not tell: {reason}\n{}", appliance.console());

    for (method, path) in [("GET", "/v1/pool"), ("GET", "/v1/volumes"), ("POST", "/v1/pool/metadata-snapshot")] {
        let answer = appliance.answer(method, path, &Value::Null)?;
        ensure!(answer.status == 503, "{method} {path}: {} {}", answer.status, answer.text());
    }
    let made = appliance.answer("POST", "/v1/volumes", &json!({"name": "new", "size_bytes": 1 << 20}))?;
    ensure!(made.status == 503, "a volume without a pool: {} {}", made.status, made.text());
    if let Ok(portal) = appliance.portal() {
        ensure!(Session::login(portal, "iqn.2026-11.io.gossamer:kept").is_err(), "a volume of this pool is served");
    }
    appliance.power_off()?;
    ensure!((fs::read(&site.meta)?, fs::read(&site.data)?) == before, "a disk was changed");
    Ok(())
}

fn read_block(site: &Site, block: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; crc32c::BLOCK_BYTES];
    File::open(&site.meta)?.read_exact_at(&mut bytes, block * crc32c::BLOCK_BYTES as u64)?;
    Ok(bytes)
}

/// Changes a metadata block; with `sealed` its checksum fits again (for a superblock).
fn change_block(site: &Site, block: u64, sealed: bool, change: impl FnOnce(&mut [u8])) -> Result<()> {
    let mut bytes = read_block(site, block)?;
    change(&mut bytes);
    if sealed {
        let sum = crc32c::checksum(&bytes, crc32c::SUPERBLOCK_XOR);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
    }
    File::options().write(true).open(&site.meta)?.write_all_at(&bytes, block * crc32c::BLOCK_BYTES as u64)?;
    Ok(())
}
