//! Snapshots of a hundred volumes at one instant, while counters are written in order across them.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::dice::Dice;

use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::iscsi::{BLOCK_BYTES, Session};
use crate::runner::{On, Test};

pub const TESTS: &[Test] = &[Test {
    on: On::Hosted,
    ..Test::new(
        "group::counters_across_a_hundred_volumes_have_no_gap_in_a_snapshot",
        counters_across_a_hundred_volumes_have_no_gap_in_a_snapshot,
    )
}];

const VOLUMES: usize = 100;
const VOLUME_BYTES: u64 = 1 << 20;
/// Snapshots of all of them.
const GROUPS: u64 = 5;
/// Sessions of who writes counters: the image in little memory has no room for one with each volume.
const OPEN_MAX: usize = 40;
/// Volumes that are written to beside the counters.
const LOADED: usize = 8;
/// Counters that are written from one group to the next, at least.
const STRETCH: u64 = 150;

/// Counters that are written one after the other, each to some volume.
struct Counters {
    /// The volume of each, from 1 on; of the last nobody knows whether it is there.
    volumes: Mutex<Vec<usize>>,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

fn counters_across_a_hundred_volumes_have_no_gap_in_a_snapshot(context: &Context) -> Result<()> {
    let site = Site::new(context, 16 << 20, 256 << 20)?;
    let appliance = site.start()?;
    for volume in 0..VOLUMES {
        appliance.make_volume(&format!("v{volume}"), VOLUME_BYTES)?;
    }
    let counters =
        Counters { volumes: Mutex::default(), acknowledged: AtomicU64::new(0), stop: AtomicBool::new(false) };
    thread::scope(|scope| {
        let dice = [Dice::new(context.seed), Dice::new(context.seed ^ 1)];
        let [counting, loading] = dice;
        let count = scope.spawn(|| ending(&counters, count(&appliance, &counters, counting)));
        let load = scope.spawn(|| ending(&counters, load(&appliance, &counters, loading)));
        let taken = (0..GROUPS * context.effort).try_for_each(|number| take(&appliance, &counters, number));
        counters.stop.store(true, Ordering::Relaxed);
        for end in [count.join(), load.join()] {
            end.unwrap_or_else(|_| Err(anyhow::anyhow!("a load panicked")))?;
        }
        taken
    })?;
    let written = counters.acknowledged.load(Ordering::Relaxed);
    println!("({} groups of {VOLUMES} snapshots; {written} counters)", GROUPS * context.effort);
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

/// Who fails ends all.
fn ending(counters: &Counters, end: Result<()>) -> Result<()> {
    counters.stop.store(true, Ordering::Relaxed);
    end
}

/// Writes one counter after the other, each when the one before was acknowledged.
fn count(appliance: &Appliance, counters: &Counters, mut dice: Dice) -> Result<()> {
    let mut open: VecDeque<(usize, Session)> = VecDeque::new();
    for counter in 1.. {
        if counters.stop.load(Ordering::Relaxed) {
            break;
        }
        let volume = dice.below(VOLUMES as u64) as usize;
        let mut session = match open.iter().position(|(of, _)| *of == volume).and_then(|at| open.remove(at)) {
            Some((_, session)) => session,
            None => appliance.login(&format!("v{volume}"))?,
        };
        counters.volumes.lock().expect("nobody panics while it holds this").push(volume);
        session.write(0, &u64::to_le_bytes(counter).repeat(BLOCK_BYTES / 8), dice.chance(3))?;
        counters.acknowledged.store(counter, Ordering::SeqCst);
        open.push_back((volume, session));
        if open.len() > OPEN_MAX {
            open.pop_front().map(|(_, session)| session.logout()).transpose()?;
        }
    }
    open.into_iter().try_for_each(|(_, session)| Ok(session.logout()?))
}

/// Writes here and there behind the counters.
fn load(appliance: &Appliance, counters: &Counters, mut dice: Dice) -> Result<()> {
    let names = (0..LOADED).map(|volume| format!("v{volume}"));
    let mut sessions: Vec<Session> = names.map(|name| appliance.login(&name)).collect::<Result<_>>()?;
    while !counters.stop.load(Ordering::Relaxed) {
        let session = &mut sessions[dice.below(LOADED as u64) as usize];
        let mut bytes = vec![0; BLOCK_BYTES * dice.between(1, 64) as usize];
        dice.fill(&mut bytes);
        session.write(dice.between(1, 900), &bytes, false)?;
        if dice.chance(5) {
            session.flush()?;
        }
    }
    sessions.into_iter().try_for_each(|session| Ok(session.logout()?))
}

/// Takes snapshots of all volumes while counters are written, and looks at the counters in them.
fn take(appliance: &Appliance, counters: &Counters, number: u64) -> Result<()> {
    while counters.acknowledged.load(Ordering::SeqCst) < (number + 1) * STRETCH {
        ensure!(!counters.stop.load(Ordering::Relaxed), "the counters have stopped");
        thread::sleep(Duration::from_millis(10));
    }
    let name = |volume: usize| format!("s{number}-{volume}");
    let members: Vec<Value> =
        (0..VOLUMES).map(|volume| json!({"volume": format!("v{volume}"), "name": name(volume)})).collect();
    let least = counters.acknowledged.load(Ordering::SeqCst);
    appliance.call("POST", "/v1/snapshots", &json!({"snapshots": members, "read_only": true}))?;
    let volumes = counters.volumes.lock().expect("nobody panics while it holds this").clone();
    let mut found = Vec::new();
    for volume in 0..VOLUMES {
        found.push(counter_in(appliance, &name(volume))?);
        appliance.call("DELETE", &format!("/v1/volumes/{}", name(volume)), &Value::Null)?;
    }
    let last = found.iter().copied().max().context("a volume")?;
    let most = volumes.len() as u64;
    ensure!((least..=most).contains(&last), "group {number} ends with counter {last}, of {least} to {most}");
    for (volume, found) in found.into_iter().enumerate() {
        let before = volumes.iter().take(last as usize).rposition(|of| *of == volume);
        let expected = before.map_or(0, |at| at as u64 + 1);
        ensure!(
            found == expected,
            "group {number}: v{volume} holds counter {found}, not {expected}, beside counter {last}"
        );
    }
    Ok(())
}

/// The counter that a snapshot holds.
fn counter_in(appliance: &Appliance, snapshot: &str) -> Result<u64> {
    appliance.export(snapshot)?;
    let mut session = appliance.login(snapshot)?;
    let bytes = session.read(0, 1)?;
    session.logout()?;
    let counter = u64::from_le_bytes(*bytes.first_chunk().context("a sector")?);
    ensure!(bytes == counter.to_le_bytes().repeat(BLOCK_BYTES / 8), "snapshot {snapshot} has a torn counter");
    Ok(counter)
}
