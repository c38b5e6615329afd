//! One pool, one owner: a host that finds the pool taken over stops; one that finds it in use elsewhere does not begin.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::crc32c;
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    Test::new("owner::another_host_is_noticed_within_a_second", another_host_is_noticed_within_a_second),
    Test::new("owner::a_pool_in_use_elsewhere_is_not_used", a_pool_in_use_elsewhere_is_not_used),
];

const META_BYTES: u64 = 8 << 20;
const DATA_BYTES: u64 = 64 << 20;
const VOLUME: &str = "kept";

/// The lower byte of the transaction id (dm-thin reference 1.1).
const TRANSACTION_AT: usize = 48;

/// A second, and what a loaded machine takes for the rest.
const NOTICED_LIMIT: Duration = Duration::from_secs(10);

fn made(context: &Context) -> Result<Site> {
    let mut site = Site::new(context, META_BYTES, DATA_BYTES)?;
    site.identity = Some("11".repeat(16));
    let appliance = site.start()?;
    appliance.make_volume(VOLUME, 16 << 20)?;
    appliance.power_off()?;
    Ok(site)
}

fn health(appliance: &Appliance) -> Result<(String, String)> {
    let health = appliance.http.send("GET", "/healthz")?.json()?;
    let word = |key: &str| health[key].as_str().unwrap_or_default().to_owned();
    Ok((word("status"), word("reason")))
}

/// Block 0 changes under the running appliance, as it does when Linux activates the pool and commits.
fn another_host_is_noticed_within_a_second(context: &Context) -> Result<()> {
    let site = made(context)?;
    let appliance = site.start()?;
    let mut session = appliance.login(VOLUME)?;
    session.write(0, &[0x5a; 64 << 10], false)?;
    session.flush()?;

    let file = File::options().read(true).write(true).open(&site.meta)?;
    let mut block = vec![0; crc32c::BLOCK_BYTES];
    file.read_exact_at(&mut block, 0)?;
    block[TRANSACTION_AT] = block[TRANSACTION_AT].wrapping_add(1);
    let sum = crc32c::checksum(&block, crc32c::SUPERBLOCK_XOR);
    block[..4].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&block, 0)?;

    let end = Instant::now() + NOTICED_LIMIT;
    while Instant::now() < end && !health(&appliance)?.1.contains("another host") {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (status, reason) = health(&appliance)?;
    ensure!(status == "degraded" && reason.contains("another host"), "{status}: {reason}");
    ensure!(appliance.console().contains("pool=taken-over"), "the console does not tell\n{}", appliance.console());
    let before = (fs::read(&site.meta)?, fs::read(&site.data)?);
    ensure!(session.write(0, &[0xee; 64 << 10], false).is_err(), "a write in place after the pool was taken over");
    let (errno, _) = appliance.message("create_thin 77")?;
    ensure!(errno == -5, "a message after the pool was taken over: {errno}");
    let pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
    ensure!(pool["mode"] == "fail", "{pool}");
    drop(session);
    appliance.power_off()?;
    ensure!((fs::read(&site.meta)?, fs::read(&site.data)?) == before, "something was written all the same");
    Ok(())
}

/// A crash of one's own is nothing; that of another instance needs somebody's word that it is dead.
fn a_pool_in_use_elsewhere_is_not_used(context: &Context) -> Result<()> {
    let mut site = made(context)?;
    let own = site.identity.clone();
    site.start()?.kill()?;
    site.start().context("after a crash of its own")?.kill()?;

    site.identity = Some("22".repeat(16));
    let before = (fs::read(&site.meta)?, fs::read(&site.data)?);
    let refused = site.start_without_pool()?;
    let (status, reason) = health(&refused)?;
    let by = own.context("it has an identity")?;
    ensure!(status == "unavailable" && reason.contains(&by) && reason.contains("takeover=yes"), "{status}: {reason}");
    refused.power_off()?;
    ensure!((fs::read(&site.meta)?, fs::read(&site.data)?) == before, "a pool in use elsewhere was changed");

    site.settings.push("takeover=yes".into());
    site.start()?.power_off()?;
    site.settings.clear();
    site.identity = Some("33".repeat(16));
    site.start().context("after a clean power-off of another")?.power_off()?;
    context.thin_check(&site.meta)
}
