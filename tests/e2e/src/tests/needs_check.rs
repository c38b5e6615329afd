//! A pool that needs a check is read-only until it was checked by request.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::crc32c;
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    Test::new("needs_check::cleared_by_request_after_a_clean_check", cleared_by_request_after_a_clean_check),
    Test::new("needs_check::damage_keeps_it", damage_keeps_it),
];

const META_BYTES: u64 = 8 << 20;
const DATA_BYTES: u64 = 64 << 20;

/// A check of so little metadata ends before.
const CHECK_TIME: Duration = Duration::from_secs(60);

// Offsets in the superblock (dm-thin reference 1.1).
const FLAGS_AT: usize = 4;
const MAPPING_ROOT_AT: usize = 320;

fn cleared_by_request_after_a_clean_check(context: &Context) -> Result<()> {
    let site = pool_in_need(context)?;
    let appliance = site.start_in_any_state()?;
    let before = pool(&appliance)?;
    ensure!(
        before["mode"] == "read_only" && before["needs_check"] == true && before["state"] == "degraded",
        "{before}"
    );
    let refused = appliance.message("create_thin 77")?;
    ensure!(refused.0 == -95, "a message to a pool in need of a check: {refused:?}");
    let checked = checked(&appliance)?;
    ensure!(checked["damage"] == 0 && checked["leaks"] == 0 && checked["mappings"].as_u64() >= Some(2), "{checked}");
    ensure!(pool(&appliance)?["needs_check"] == true, "a check alone cleared it");
    let cleared = appliance.call("POST", "/v1/pool/clear-needs-check", &Value::Null)?;
    ensure!(cleared == checked, "{cleared} is not {checked}");
    let after = pool(&appliance)?;
    ensure!(after["mode"] == "write" && after["needs_check"] == false && after["state"] == "ok", "{after}");
    let again = appliance.answer("POST", "/v1/pool/clear-needs-check", &Value::Null)?;
    ensure!(again.status == 400, "a second time: {} {}", again.status, again.text());
    appliance.make_volume("new", 1 << 20)?;
    appliance.power_off()?;
    context.thin_check(&site.meta)?;
    let appliance = site.start()?;
    ensure!(appliance.volumes()?.iter().any(|name| name == "new"), "{:?}", appliance.volumes()?);
    appliance.power_off()
}

fn damage_keeps_it(context: &Context) -> Result<()> {
    let site = pool_in_need(context)?;
    let meta = File::options().read(true).write(true).open(&site.meta)?;
    let mut root = [0; 8];
    meta.read_exact_at(&mut root, MAPPING_ROOT_AT as u64)?;
    // A value of a node that is not read to open the pool would do, too; the records are read from this tree.
    let mut tail = [0; 8];
    let at = (u64::from_le_bytes(root) + 1) * crc32c::BLOCK_BYTES as u64 - 8;
    meta.read_exact_at(&mut tail, at)?;
    meta.write_all_at(&tail.map(|byte| !byte), at)?;
    let appliance = site.start_in_any_state()?;
    let answer = appliance.answer("POST", "/v1/pool/clear-needs-check", &Value::Null)?;
    ensure!(answer.status >= 500, "{} {}", answer.status, answer.text());
    appliance.power_off()?;
    let mut flags = [0];
    meta.read_exact_at(&mut flags, FLAGS_AT as u64)?;
    ensure!(flags[0] & 1 == 1, "needs_check was cleared on a damaged pool");
    Ok(())
}

/// What a check finds that runs beside everything else.
fn checked(appliance: &Appliance) -> Result<Value> {
    appliance.call("POST", "/v1/pool/check", &Value::Null)?;
    let begun = Instant::now();
    loop {
        let state = appliance.call("GET", "/v1/pool/check", &Value::Null)?;
        if state["running"].is_null() {
            return Ok(state["last"]["report"].clone());
        }
        ensure!(begun.elapsed() < CHECK_TIME, "the check does not end: {state}");
        sleep(Duration::from_millis(50));
    }
}

fn pool(appliance: &Appliance) -> Result<Value> {
    appliance.call("GET", "/v1/pool", &Value::Null)
}

/// A pool with a volume, whose superblock says that it needs a check.
fn pool_in_need(context: &Context) -> Result<Site> {
    let site = Site::new(context, META_BYTES, DATA_BYTES)?;
    let appliance = site.start()?;
    appliance.make_volume("v", 16 << 20)?;
    let mut session = appliance.login("v")?;
    session.write(0, &[0x5a; 128 << 10], false)?;
    session.logout()?;
    appliance.power_off()?;
    let meta = File::options().read(true).write(true).open(&site.meta)?;
    let mut superblock = vec![0; crc32c::BLOCK_BYTES];
    meta.read_exact_at(&mut superblock, 0)?;
    superblock[FLAGS_AT] |= 1;
    let sum = crc32c::checksum(&superblock, crc32c::SUPERBLOCK_XOR);
    superblock[..4].copy_from_slice(&sum.to_le_bytes());
    meta.write_all_at(&superblock, 0)?;
    Ok(site)
}
