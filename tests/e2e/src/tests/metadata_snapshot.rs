//! The metadata of a moment, read with thin_dump from outside while the pool goes on working.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::process;
use xtask::thin_dump::Dump;

use crate::appliance::{Appliance, IQN, METADATA_TARGET, Site};
use crate::context::Context;
use crate::iscsi::{BLOCK_BYTES, Session};
use crate::runner::Test;

pub const TESTS: &[Test] =
    &[Test::new("metadata_snapshot::is_the_metadata_of_that_moment", is_the_metadata_of_that_moment)];

const BLOCK_SECTORS: u64 = 128;
/// More blocks than the writer gets through.
const VOLUME_BLOCKS: u64 = 1 << 20;
const NEW_BLOCKS_BETWEEN: u64 = 1000;
const TIME_BETWEEN: Duration = Duration::from_secs(10);
/// Between two writes, so that the data disk is not full before the test is done.
const PACE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes one sector into each block, in an order that fills no leaf in sequence.
#[derive(Default)]
struct Writer {
    /// Writes begun and writes acknowledged: both count the same sequence of blocks.
    begun: AtomicU64,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

/// The block of the n-th write: an odd factor makes it a permutation.
fn block_of(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b1) % VOLUME_BLOCKS
}

impl Writer {
    fn run(&self, portal: SocketAddr) -> Result<()> {
        let mut session = Session::login(portal, &format!("{IQN}:busy"))?;
        while !self.stop.load(Ordering::SeqCst) {
            let n = self.begun.fetch_add(1, Ordering::SeqCst);
            session.write(block_of(n) * BLOCK_SECTORS, &[0xab; BLOCK_BYTES], false)?;
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
            thread::sleep(PACE);
        }
        session.logout()?;
        Ok(())
    }

    fn wait_acknowledged(&self, count: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.acknowledged.load(Ordering::SeqCst) < count {
            if Instant::now() > end || self.stop.load(Ordering::SeqCst) {
                bail!("only {} of {count} writes were acknowledged", self.acknowledged.load(Ordering::SeqCst));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

fn is_the_metadata_of_that_moment(context: &Context) -> Result<()> {
    // A volume of 64 GiB on a data disk of 8 GiB: room for some hundred thousand blocks.
    let site = Site::new(context, 16 << 20, 8 << 30)?;
    let appliance = site.start()?;
    appliance.make_volume("busy", VOLUME_BLOCKS * BLOCK_SECTORS * BLOCK_BYTES as u64)?;
    appliance.call("PUT", "/v1/pool/metadata-export", &json!({"initiators": "all"}))?;

    let writer = Writer::default();
    let portal = appliance.portal()?;
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let end = writer.run(portal);
            writer.stop.store(true, Ordering::SeqCst);
            end
        });
        let seen = observe(context, &appliance, &writer);
        writer.stop.store(true, Ordering::SeqCst);
        let written = writing.join().unwrap_or_else(|_| bail!("the writer panicked"));
        seen.and(written.context("the writer"))
    })?;

    let (errno, _) = appliance.message("release_metadata_snap")?;
    ensure!(errno == -22, "releasing it twice gives {errno} instead of -EINVAL");
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

fn observe(context: &Context, appliance: &Appliance, writer: &Writer) -> Result<()> {
    writer.wait_acknowledged(200)?;
    appliance.call("POST", "/v1/volumes/busy/snapshots", &json!({"name": "busy-before"}))?;
    writer.wait_acknowledged(500)?;
    let before = writer.acknowledged.load(Ordering::SeqCst);
    let root = appliance.call("POST", "/v1/pool/metadata-snapshot", &Value::Null)?["root"].as_u64();
    let after = writer.begun.load(Ordering::SeqCst);
    let root = root.context("no root in the answer")?;

    let first = dump(context, appliance, "first")?;
    check_dump(&first, before, after)?;
    let (deadline, enough) = (Instant::now() + TIME_BETWEEN, after + NEW_BLOCKS_BETWEEN);
    writer.wait_acknowledged(enough)?;
    thread::sleep(deadline.saturating_duration_since(Instant::now()));
    let shown = appliance.call("GET", "/v1/pool/metadata-snapshot", &Value::Null)?["root"].as_u64();
    ensure!(shown == Some(root), "the root is {shown:?}, it was {root}");
    let second = dump(context, appliance, "second")?;
    ensure!(first == second, "the metadata snapshot changed while it was held");
    check_delta(context, appliance)?;
    let now = writer.acknowledged.load(Ordering::SeqCst);
    println!("({before} blocks before the request, {after} begun at the answer, {now} at the second dump)");

    appliance.call("DELETE", "/v1/pool/metadata-snapshot", &Value::Null)?;
    let shown = appliance.call("GET", "/v1/pool/metadata-snapshot", &Value::Null)?;
    ensure!(shown["root"].is_null(), "after the release: {shown}");
    Ok(())
}

/// Copies the metadata export, as a Linux host would see the disk, and dumps the snapshot in it.
fn dump(context: &Context, appliance: &Appliance, name: &str) -> Result<String> {
    let copy = context.scratch.join(format!("{name}.meta"));
    copy_export(appliance, &copy)?;
    context.thin_dump(&copy, true)
}

fn copy_export(appliance: &Appliance, to: &Path) -> Result<PathBuf> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "raw", &appliance.url(METADATA_TARGET)?]).arg(to);
    process::succeed(&mut convert, PATIENCE)?;
    Ok(to.to_owned())
}

/// The appliance says of the metadata snapshot what thin_delta says, and of now, as JSON, that much was written since.
fn check_delta(context: &Context, appliance: &Appliance) -> Result<()> {
    let id = |name: &str| {
        let volume = appliance.call("GET", &format!("/v1/volumes/{name}"), &Value::Null)?;
        volume["id"].as_u64().context("no id in the volume")
    };
    let devices = (id("busy-before")?, id("busy")?);
    let delta = |query: &str| -> Result<String> {
        let path = format!("/v1/volumes/busy-before/delta?to=busy&{query}");
        let answer = appliance.answer("GET", &path, &Value::Null)?;
        ensure!(answer.status == 200, "{path}: {}", answer.text());
        Ok(answer.text())
    };
    for (format, verbose) in [("xml", false), ("xml-verbose", true)] {
        let ours = delta(&format!("metadata_snapshot=yes&format={format}"))?;
        let theirs = context.thin_delta(&context.scratch.join("second.meta"), devices, verbose)?;
        ensure!(ours == theirs, "the delta is\n{ours}\nthat of thin_delta is\n{theirs}");
    }
    let mut blocks = 0;
    for line in delta("same=no")?.lines() {
        let run: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(run["kind"] == "right_only", "nothing but new blocks was written: {line}");
        blocks += run["length"].as_u64().context("no length")?;
    }
    ensure!(blocks >= NEW_BLOCKS_BETWEEN, "the delta has {blocks} blocks only");
    Ok(())
}

fn check_dump(xml: &str, before: u64, after: u64) -> Result<()> {
    let pool = Dump::parse(xml)?;
    // The reserved device's mappings are in it too; the volume is the device with blocks of the writer's order.
    let mut volumes = pool.devices.values().map(|device| &device.mappings);
    let mapped = volumes.find(|mappings| mappings.contains_key(&block_of(0))).context("no volume in the dump")?;
    let missing = (0..before).filter(|n| !mapped.contains_key(&block_of(*n))).count();
    ensure!(missing == 0, "{missing} of {before} blocks acknowledged before the request are not in the dump");
    let writes_begun = after as usize;
    ensure!(
        mapped.len() <= writes_begun && (after..after + 5000).all(|n| !mapped.contains_key(&block_of(n))),
        "the dump has {} blocks, some first written after the answer ({writes_begun} were begun by then)",
        mapped.len()
    );
    Ok(())
}
