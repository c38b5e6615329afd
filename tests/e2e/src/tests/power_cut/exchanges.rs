//! Power cuts while all that volumes hold is exchanged at once: a stream is received, a volume is rolled back, snapshots of
//! several volumes are taken. Each has happened whole afterwards, or not at all, and in the end nothing hidden is left.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::dice::Dice;
use xtask::nbd::{Count, Flush, Supply};

use super::{DATA_BYTES, META_BYTES, supplied};
use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::iscsi::BLOCK_BYTES;

/// In CI; a soak has more.
const CUTS: u64 = 3;
const VOLUME_BYTES: u64 = 4 << 20;
const BLOCKS: usize = (VOLUME_BYTES / BLOCK_BYTES as u64) as usize;
/// Volumes that are written to, and of which snapshots are taken at once.
const WRITTEN: [&str; 3] = ["v", "w", "x"];

/// What is under way when the power goes.
enum Deed {
    /// The volume `copy` gets what the snapshot of this number holds.
    Receive(usize),
    /// The volume `v` gets what its snapshot of this number holds.
    RollBack(usize),
    /// Snapshots of all volumes, of this number.
    Group(u64),
}

struct Run {
    site: Site,
    supply: Supply,
    dice: Dice,
    /// What the two snapshots of `v` hold, from which `copy` is fed.
    snapshots: [Vec<u8>; 2],
    /// The stream of each, whole and on top of the other.
    streams: [[Vec<u8>; 2]; 2],
    /// Which of them `copy` holds.
    copy: usize,
    /// What `v` holds.
    v: Vec<u8>,
    groups: u64,
    names: BTreeSet<String>,
    /// Exchanges that were done, and those that a cut hit and that had been done, or not.
    done: u64,
    hit: [u64; 2],
}

pub(super) fn exchanges_are_whole_or_undone(context: &Context) -> Result<()> {
    let (site, supply, _) = supplied(context, META_BYTES, DATA_BYTES)?;
    supply.set_flush(Flush::Honest);
    let mut run = Run::prepare(context, site, supply)?;
    for cut in 1..=CUTS * context.effort {
        run.one(cut).with_context(|| format!("seed {}, cut {cut}", context.seed))?;
        context.thin_check(&run.site.meta).with_context(|| format!("seed {}, after cut {cut}", context.seed))?;
    }
    run.supply.power_on();
    let appliance = run.site.start()?;
    let kept = appliance.answer("DELETE", "/v1/volumes/copy/receive", &Value::Null)?;
    ensure!(matches!(kept.status, 204 | 404), "giving up what broke off: {}", kept.text());
    appliance.power_off()?;
    // What is deleted beside everything else may have been cut short by the power-off; a start goes on with it.
    let appliance = run.site.start()?;
    let volumes = appliance.volumes()?;
    appliance.power_off()?;
    run.supply.cut()?;
    context.thin_check(&run.site.meta)?;
    let dump = context.thin_dump(&run.site.meta, false)?;
    let devices = dump.matches("<device ").count();
    ensure!(devices == volumes.len() + 1, "{devices} devices for {volumes:?} and the records");
    let [whole, undone] = run.hit;
    println!("({} cuts: {whole} exchanges were whole, {undone} undone; {} were not hit)", whole + undone, run.done);
    Ok(())
}

impl Run {
    fn prepare(context: &Context, site: Site, supply: Supply) -> Result<Run> {
        let mut dice = Dice::new(context.seed);
        let appliance = site.start()?;
        for name in WRITTEN {
            appliance.make_volume(name, VOLUME_BYTES)?;
        }
        let mut snapshots = [Vec::new(), Vec::new()];
        for (number, contents) in snapshots.iter_mut().enumerate() {
            scribble(&appliance, &mut dice, 12)?;
            *contents = read(&appliance, "v")?;
            let body = json!({"name": format!("s{number}"), "read_only": true});
            appliance.call("POST", "/v1/volumes/v/snapshots", &body)?;
        }
        let stream = |path: &str| -> Result<Vec<u8>> {
            let answer = appliance.http.send("GET", path)?;
            ensure!(answer.status == 200, "{path}: {}", answer.text());
            Ok(answer.body)
        };
        let streams = [
            [stream("/v1/volumes/s0/stream")?, stream("/v1/volumes/s0/stream?from=s1")?],
            [stream("/v1/volumes/s1/stream")?, stream("/v1/volumes/s1/stream?from=s0")?],
        ];
        put(&appliance, "?read_only=yes", &streams[0][0])?;
        appliance.export("copy")?;
        let v = read(&appliance, "v")?;
        appliance.power_off()?;
        let names = WRITTEN.iter().chain(&["s0", "s1", "copy"]).map(|name| name.to_string()).collect();
        Ok(Run { site, supply, dice, snapshots, streams, copy: 0, v, groups: 0, names, done: 0, hit: [0; 2] })
    }

    /// Exchanges until the power goes, and looks at what it left.
    fn one(&mut self, cut: u64) -> Result<()> {
        self.supply.power_on();
        let appliance = self.site.start()?;
        let (deed, acknowledged) = self.until_the_power_goes(&appliance, cut)?;
        appliance.kill()?;
        self.supply.power_on();
        let appliance = self.site.start()?;
        let whole = self.is_whole(&appliance, &deed)?;
        ensure!(whole || !acknowledged, "what was acknowledged is undone");
        if whole {
            self.enter(&deed);
        }
        self.hit[usize::from(!whole)] += 1;
        self.look(&appliance)?;
        appliance.power_off()?;
        Ok(self.supply.cut().map(drop)?)
    }

    /// The last exchange, and whether it was acknowledged before the power went.
    fn until_the_power_goes(&mut self, appliance: &Appliance, cut: u64) -> Result<(Deed, bool)> {
        let mut last = None;
        loop {
            // Not while the next is made ready.
            self.supply.arm(Count::Changes, u64::MAX);
            if let Some(deed) = last.take_if(|_| !self.supply.is_on()) {
                return Ok((deed, true));
            }
            let deed = match cut % 3 {
                0 => Deed::Group(self.groups),
                1 => Deed::Receive(1 - self.copy),
                _ => {
                    // What is written before a roll-back must be gone afterwards.
                    scribble(appliance, &mut self.dice, 3)?;
                    self.v = read(appliance, "v")?;
                    Deed::RollBack(self.dice.below(2) as usize)
                }
            };
            match self.dice.chance(50) {
                true => self.supply.arm(Count::Flushes, self.dice.between(1, 12)),
                false => self.supply.arm(Count::Changes, self.dice.between(1, 60)),
            }
            let end = self.exchange(appliance, &deed);
            if !self.supply.is_on() {
                return Ok((deed, end.is_ok()));
            }
            end?;
            self.enter(&deed);
            self.done += 1;
            last = Some(deed);
        }
    }

    fn exchange(&self, appliance: &Appliance, deed: &Deed) -> Result<()> {
        match deed {
            Deed::Receive(to) => put(appliance, "", &self.streams[*to][(self.done % 2) as usize]),
            Deed::RollBack(to) => {
                let body = json!({"to": format!("s{to}"), "force": true});
                appliance.call("POST", "/v1/volumes/v/roll-back", &body).map(drop)
            }
            Deed::Group(number) => {
                let member = |volume: &&str| json!({"volume": volume, "name": group_name(volume, *number)});
                let members: Vec<Value> = WRITTEN.iter().map(member).collect();
                appliance.call("POST", "/v1/snapshots", &json!({ "snapshots": members })).map(drop)
            }
        }
    }

    /// An exchange was made.
    fn enter(&mut self, deed: &Deed) {
        match deed {
            Deed::Receive(to) => self.copy = *to,
            Deed::RollBack(to) => self.v = self.snapshots[*to].clone(),
            Deed::Group(number) => {
                self.names.extend(WRITTEN.iter().map(|volume| group_name(volume, *number)));
                self.groups = number + 1;
            }
        }
    }

    /// Whether the exchange that the cut hit was made, all of it.
    fn is_whole(&mut self, appliance: &Appliance, deed: &Deed) -> Result<bool> {
        match deed {
            Deed::Receive(to) => Ok(read(appliance, "copy")? == self.snapshots[*to]),
            Deed::RollBack(to) => Ok(read(appliance, "v")? == self.snapshots[*to]),
            Deed::Group(number) => {
                let there = appliance.volumes()?;
                let found = WRITTEN.iter().filter(|volume| there.contains(&group_name(volume, *number))).count();
                ensure!(found == 0 || found == WRITTEN.len(), "of a group of {} there are {found}", WRITTEN.len());
                // A number is used once.
                self.groups = number + 1;
                Ok(found > 0)
            }
        }
    }

    /// Everything is as it was, or as it was to be.
    fn look(&self, appliance: &Appliance) -> Result<()> {
        let there: BTreeSet<String> = appliance.volumes()?.into_iter().collect();
        ensure!(there == self.names, "there are {there:?}, not {:?}", self.names);
        ensure!(read(appliance, "copy")? == self.snapshots[self.copy], "copy holds neither the old nor the new");
        ensure!(read(appliance, "v")? == self.v, "v holds neither the old nor the new");
        let copy = appliance.call("GET", "/v1/volumes/copy", &Value::Null)?;
        let snapshot = appliance.call("GET", &format!("/v1/volumes/s{}", self.copy), &Value::Null)?;
        ensure!(copy["contents"] == snapshot["contents"] && copy["intact"] == true, "{copy} beside {snapshot}");
        Ok(())
    }
}

fn group_name(volume: &str, number: u64) -> String {
    format!("g{number}-{volume}")
}

/// Writes to `v` here and there.
fn scribble(appliance: &Appliance, dice: &mut Dice, writes: u64) -> Result<()> {
    let mut session = appliance.login("v")?;
    for _ in 0..writes {
        let mut bytes = vec![0; BLOCK_BYTES * dice.between(1, 128) as usize];
        dice.fill(&mut bytes);
        session.write(dice.below(BLOCKS as u64 - 128), &bytes, false)?;
    }
    session.flush()?;
    Ok(session.logout()?)
}

fn read(appliance: &Appliance, volume: &str) -> Result<Vec<u8>> {
    let mut session = appliance.login(volume)?;
    let bytes = session.read(0, BLOCKS)?;
    session.logout()?;
    Ok(bytes)
}

fn put(appliance: &Appliance, query: &str, stream: &[u8]) -> Result<()> {
    let path = format!("/v1/volumes/copy/stream{query}");
    let answer = appliance.http.request("PUT", &path, "application/octet-stream", stream)?;
    answer.success().map(drop).with_context(|| format!("PUT {path}"))
}
