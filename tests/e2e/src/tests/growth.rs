//! The pool runs low, runs full and is grown while it is in use.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::iscsi::{Error, Sense};
use crate::runner::{On, Test};

pub const TESTS: &[Test] = &[
    Test::new("growth::a_full_pool_is_grown_under_load", a_full_pool_is_grown_under_load),
    Test { on: On::Hosted, ..Test::new("growth::a_full_pool_says_so_and_recovers", a_full_pool_says_so_and_recovers) },
];

const MIB: u64 = 1 << 20;
const META_BYTES: u64 = 2 * MIB;
const DATA_BYTES: u64 = 16 * MIB;
const LOW_WATER_BLOCKS: u64 = 64;
/// Half as much again as there is room for at first.
const WRITTEN_BYTES: u64 = 24 * MIB;
const PIECE_BYTES: u64 = 256 << 10;
const BLOCK_BYTES: u64 = 64 << 10;
/// How long a write may still wait after the answer to the growth; the goal is a second, the machine is shared.
const RESUME_LIMIT: Duration = Duration::from_secs(5);

/// THIN PROVISIONING SOFT THRESHOLD REACHED: the unit attention that comes, once, instead of a command (SBC-3).
const SOFT_THRESHOLD: Sense = Sense { key: 6, asc: 0x38, ascq: 0x07 };

/// SPACE ALLOCATION FAILED WRITE PROTECT: what a write gets that has waited for space in vain (SBC-3).
const NO_SPACE: Sense = Sense { key: 7, asc: 0x27, ascq: 0x07 };
/// So long a write waits for space.
const NO_SPACE_TIMEOUT: Duration = Duration::from_secs(60);
/// How much later its answer may come on a busy machine.
const LATE: Duration = Duration::from_secs(40);

fn piece(number: u64) -> Vec<u8> {
    vec![number as u8 ^ 0x5a; PIECE_BYTES as usize]
}

fn a_full_pool_is_grown_under_load(context: &Context) -> Result<()> {
    let mut site = Site::new(context, META_BYTES, DATA_BYTES)?;
    site.settings.push(format!("low_water={LOW_WATER_BLOCKS}"));
    let appliance = site.start()?;
    appliance.make_volume("v", 64 * MIB)?;
    let mut session = appliance.login("v")?;
    let (progress, pieces) = mpsc::channel();
    let writer = thread::spawn(move || -> Result<_> {
        let mut warned = false;
        for number in 0..WRITTEN_BYTES / PIECE_BYTES {
            let mut write = || session.write(number * PIECE_BYTES / 512, &piece(number), false);
            match write() {
                Err(Error::Check(SOFT_THRESHOLD)) if !warned => {
                    warned = true;
                    write()?;
                }
                result => result?,
            }
            progress.send(number)?;
        }
        ensure!(warned, "the initiator was not warned");
        Ok(session)
    });

    let low = wait_until(&appliance, |pool| free_blocks(pool) <= LOW_WATER_BLOCKS)?;
    ensure!(low["events"].as_u64() > Some(0), "no event of low water: {low}");
    let full = wait_until(&appliance, |pool| pool["mode"] == "out_of_data_space")?;
    ensure!(full["events"].as_u64() > low["events"].as_u64(), "no event of the mode: {full} after {low}");
    ensure!(full["needs_check"] == false && free_blocks(&full) == 0, "{full}");
    ensure!(!writer.is_finished(), "the writer has ended although nothing was free");
    while pieces.try_recv().is_ok() {}

    site.grow_disk("meta", 4 * META_BYTES)?;
    site.grow_disk("data", 4 * DATA_BYTES)?;
    let room = 4 * DATA_BYTES / BLOCK_BYTES;
    let larger = wait_for_disks(&appliance, 4 * META_BYTES / 4096, room)?;
    ensure!(larger["data_total_blocks"] == full["data_total_blocks"], "it grew by itself: {larger}");
    let grown = appliance.call("POST", "/v1/pool/grow", &Value::Null)?;
    let asked = Instant::now();
    ensure!(grown["mode"] == "write" && grown["data_total_blocks"] == room, "{grown}");
    ensure!(grown["metadata_total_blocks"] == 4 * META_BYTES / 4096, "{grown}");
    pieces.recv_timeout(RESUME_LIMIT).context("the writer does not go on")?;
    println!("the first write after the growth was done {} ms after its answer", asked.elapsed().as_millis());

    let mut session = writer.join().expect("the writer does not panic")?;
    for number in 0..WRITTEN_BYTES / PIECE_BYTES {
        let read = session.read(number * PIECE_BYTES / 512, (PIECE_BYTES / 512) as usize)?;
        ensure!(read == piece(number), "piece {number} is not what was written");
    }
    session.logout()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

fn a_full_pool_says_so_and_recovers(context: &Context) -> Result<()> {
    const BLOCK: u64 = BLOCK_BYTES / 512;
    let site = Site::new(context, META_BYTES, DATA_BYTES)?;
    let appliance = site.start()?;
    appliance.make_volume("v", 64 * MIB)?;
    let mut session = appliance.login("v")?;
    let room = free_blocks(&appliance.call("GET", "/v1/pool", &Value::Null)?);
    let data = |number: u64| vec![number as u8 ^ 0x5a; BLOCK_BYTES as usize];
    for number in 0..room {
        session.write(number * BLOCK, &data(number), false)?;
    }
    session.flush()?;
    let full = appliance.call("GET", "/v1/pool", &Value::Null)?;
    ensure!(free_blocks(&full) == 0, "{full}");

    let begun = Instant::now();
    let refused = session.write(room * BLOCK, &data(room), false);
    let waited = begun.elapsed();
    ensure!(matches!(refused, Err(Error::Check(NO_SPACE))), "a write that finds no space: {refused:?}");
    ensure!((NO_SPACE_TIMEOUT..NO_SPACE_TIMEOUT + LATE).contains(&waited), "it waited {waited:?}");
    let begun = Instant::now();
    let refused = session.write(room * BLOCK, &data(room), false);
    ensure!(matches!(refused, Err(Error::Check(NO_SPACE))), "the next one: {refused:?}");
    ensure!(begun.elapsed() < LATE, "it waited {:?}, though nobody waits any more", begun.elapsed());

    // What needs no space goes on.
    session.write(0, &data(99), true)?;
    ensure!(session.read(0, BLOCK as usize)? == data(99), "a mapped block does not read as it was written");
    session.flush()?;
    ensure!(
        session.read(room * BLOCK, BLOCK as usize)? == vec![0; BLOCK_BYTES as usize],
        "the refused write left something"
    );

    // Space comes by UNMAP, and by a larger disk.
    session.unmap(BLOCK, BLOCK as u32)?;
    session.write(room * BLOCK, &data(room), true).context("after an UNMAP")?;
    site.grow_disk("data", 2 * DATA_BYTES)?;
    wait_for_disks(&appliance, META_BYTES / 4096, 2 * DATA_BYTES / BLOCK_BYTES)?;
    appliance.call("POST", "/v1/pool/grow", &Value::Null)?;
    session.write((room + 1) * BLOCK, &data(room + 1), true).context("after the growth")?;
    for number in (2..room + 2).chain([0]) {
        let expected = if number == 0 { data(99) } else { data(number) };
        ensure!(session.read(number * BLOCK, BLOCK as usize)? == expected, "block {number} is not what was written");
    }
    session.logout()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

fn free_blocks(pool: &Value) -> u64 {
    let blocks = |field: &str| pool[field].as_u64().unwrap_or(0);
    blocks("data_total_blocks") - blocks("data_used_blocks")
}

/// Waits for one event after the other until the pool is so.
fn wait_until(appliance: &Appliance, so: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
    for _ in 0..4 {
        if so(&pool) {
            return Ok(pool);
        }
        pool = appliance.call("POST", "/v1/pool/wait", &json!({"after": pool["events"]}))?;
    }
    bail!("after four events the pool is still {pool}")
}

/// The machine tells the appliance of larger disks in its own time.
fn wait_for_disks(appliance: &Appliance, metadata_blocks: u64, data_blocks: u64) -> Result<Value> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
        if pool["metadata_disk_blocks"] == metadata_blocks && pool["data_disk_blocks"] == data_blocks {
            return Ok(pool);
        }
        ensure!(Instant::now() < end, "the larger disks are not noticed: {pool}");
        thread::sleep(Duration::from_millis(20));
    }
}
