//! Streams from one appliance to another: full and incremental, cut off and gone on with.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::dice::Dice;

use crate::appliance::{Appliance, Site, TOKEN};
use crate::context::Context;
use crate::runner::Test;

pub const TESTS: &[Test] =
    &[Test::new("streams::a_volume_goes_to_another_appliance", a_volume_goes_to_another_appliance)];

const VOLUME_BYTES: u64 = 16 << 20;
const BLOCK: u64 = 64 << 10;

fn a_volume_goes_to_another_appliance(context: &Context) -> Result<()> {
    let mut dice = Dice::new(context.seed);
    let here = Site::new(&context.folder("here")?, 8 << 20, 128 << 20)?;
    let there = Site::new(&context.folder("there")?, 8 << 20, 128 << 20)?;
    let from = here.start()?;
    from.make_volume("v", VOLUME_BYTES)?;
    for snapshot in ["s1", "s2"] {
        scribble(&from, &mut dice)?;
        from.call("POST", "/v1/volumes/v/snapshots", &json!({"name": snapshot, "read_only": true}))?;
        from.export(snapshot)?;
    }
    let full = stream(&from, "/v1/volumes/s1/stream")?;
    let increment = stream(&from, "/v1/volumes/s2/stream?from=s1")?;
    let whole = stream(&from, "/v1/volumes/s2/stream")?;
    ensure!(increment.len() < whole.len(), "an increment of {} bytes of {}", increment.len(), whole.len());

    let to = there.start()?;
    let refused = to.http.request("PUT", "/v1/volumes/v/stream", "application/octet-stream", &increment)?;
    ensure!(refused.status == 400, "an increment on nothing: {}", refused.text());
    put(&to, &full)?;
    same(&from, "s1", &to)?;

    // The link is cut in the middle, then the power: the volume is as it was, and the rest is sent again.
    cut_off(&to, &increment)?;
    same(&from, "s1", &to)?;
    to.kill()?;
    let to = there.start()?;
    same(&from, "s1", &to)?;
    put(&to, &increment)?;
    same(&from, "s2", &to)?;
    let volume = to.call("GET", "/v1/volumes/v", &Value::Null)?;
    let snapshot = from.call("GET", "/v1/volumes/s2", &Value::Null)?;
    ensure!(volume["serial"] != snapshot["serial"], "it is another volume");

    // And back in time, over there.
    to.call("POST", "/v1/volumes/v/snapshots", &json!({"name": "kept"}))?;
    put(&to, &full)?;
    same(&from, "s1", &to)?;
    to.call("POST", "/v1/volumes/v/roll-back", &json!({"to": "kept"}))?;
    same(&from, "s2", &to)?;
    from.power_off()?;
    to.power_off()?;
    context.thin_check(&here.meta)?;
    context.thin_check(&there.meta)
}

/// Writes and unmaps here and there.
fn scribble(appliance: &Appliance, dice: &mut Dice) -> Result<()> {
    let mut session = appliance.login("v")?;
    for _ in 0..12 {
        let mut bytes = vec![0; (BLOCK * dice.between(1, 5)) as usize];
        dice.fill(&mut bytes);
        session.write(dice.below(VOLUME_BYTES / BLOCK - 6) * BLOCK / 512, &bytes, false)?;
    }
    session.unmap(dice.below(VOLUME_BYTES / BLOCK - 8) * BLOCK / 512, (8 * BLOCK / 512) as u32)?;
    session.flush()?;
    Ok(session.logout()?)
}

fn stream(appliance: &Appliance, path: &str) -> Result<Vec<u8>> {
    let answer = appliance.http.send("GET", path)?;
    ensure!(answer.status == 200, "{path}: {}", answer.text());
    Ok(answer.body)
}

fn put(appliance: &Appliance, stream: &[u8]) -> Result<()> {
    let answer = appliance.http.request("PUT", "/v1/volumes/v/stream", "application/octet-stream", stream)?;
    answer.success().map(drop).context("PUT /v1/volumes/v/stream")
}

/// Sends half of a stream and hangs up.
fn cut_off(appliance: &Appliance, stream: &[u8]) -> Result<()> {
    let mut peer = TcpStream::connect(appliance.http.address)?;
    let head = format!(
        "PUT /v1/volumes/v/stream HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n\r\n",
        stream.len()
    );
    peer.write_all(head.as_bytes())?;
    peer.write_all(&stream[..stream.len() / 2])?;
    peer.shutdown(std::net::Shutdown::Write)?;
    let _ = peer.read(&mut [0; 1])?;
    let end = Instant::now() + Duration::from_secs(20);
    while appliance.call("GET", "/v1/volumes/v", &Value::Null)?["in_use"] == true {
        ensure!(Instant::now() < end, "a peer that has gone still holds the volume");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The volume over there reads as the snapshot here.
fn same(from: &Appliance, snapshot: &str, to: &Appliance) -> Result<()> {
    // A session that may write would end the volume's being known to hold it.
    to.call("POST", "/v1/volumes/v/snapshots", &json!({"name": "look", "read_only": true}))?;
    to.export("look")?;
    let (mut here, mut there) = (from.login(snapshot)?, to.login("look")?);
    ensure!(here.capacity_blocks()? == there.capacity_blocks()?, "of other sizes");
    const STEP: u64 = 1 << 20;
    for at in (0..VOLUME_BYTES).step_by(STEP as usize) {
        let blocks = (STEP / 512) as usize;
        ensure!(here.read(at / 512, blocks)? == there.read(at / 512, blocks)?, "{snapshot} differs in the MiB at {at}");
    }
    here.logout()?;
    there.logout()?;
    to.call("DELETE", "/v1/volumes/look", &Value::Null).map(drop)
}
