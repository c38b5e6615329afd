//! `gossamer`, as its users run it: backups of a volume that fio writes to and others discard from, and what comes out of them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::dice::Dice;
use xtask::process;

use crate::appliance::{Appliance, IQN, Site};
use crate::context::Context;
use crate::fio::Fio;
use crate::iscsi::{BLOCK_BYTES, Session};
use crate::runner::Test;

pub const TESTS: &[Test] =
    &[Test::new("backup::each_point_is_what_the_snapshot_held", each_point_is_what_the_snapshot_held)];

/// No whole number of the pool's blocks.
const VOLUME_SECTORS: u64 = (16 << 20) / 512 + 24;
/// One full backup, and ten increments.
const BACKUPS: usize = 11;
/// Sectors that the load writes or discards at most at a time.
const SPAN_SECTORS: u64 = 600;
const OPERATIONS_BETWEEN: u64 = 30;
const LIMIT: Duration = Duration::from_secs(120);

/// Runs the host's program against the appliance, and gives its JSON.
pub fn gossamer(context: &Context, appliance: &Appliance, arguments: &[&str]) -> Result<Value> {
    let mut command = command(context, appliance);
    let ended = process::succeed(command.arg("--json").args(arguments), LIMIT)?;
    serde_json::from_slice(&ended.stdout).with_context(|| ended.text())
}

/// The host's program, told where the appliance is.
pub fn command(context: &Context, appliance: &Appliance) -> Command {
    let mut command = process::tied(&context.gossamer);
    command.env("GOSSAMER_URL", format!("http://{}", appliance.http.address));
    command.env("GOSSAMER_TOKEN", appliance.http.token.as_deref().unwrap_or_default());
    command
}

/// Writes and discards anywhere, without pause.
#[derive(Default)]
struct Load {
    operations: AtomicU64,
    stop: AtomicBool,
}

impl Load {
    fn run(&self, portal: SocketAddr, mut dice: Dice) -> Result<()> {
        let mut session = Session::login(portal, &format!("{IQN}:v1"))?;
        while !self.stop.load(Ordering::SeqCst) {
            let sectors = dice.between(1, SPAN_SECTORS);
            let at = dice.below(VOLUME_SECTORS - sectors + 1);
            if dice.chance(20) {
                session.unmap(at, sectors as u32)?;
            } else {
                let mut data = vec![0; sectors as usize * BLOCK_BYTES];
                dice.fill(&mut data);
                session.write(at, &data, false)?;
            }
            self.operations.fetch_add(1, Ordering::SeqCst);
        }
        session.logout()?;
        Ok(())
    }

    /// Lets some operations pass.
    fn go_on(&self) -> Result<()> {
        let enough = self.operations.load(Ordering::SeqCst) + OPERATIONS_BETWEEN;
        while self.operations.load(Ordering::SeqCst) < enough {
            ensure!(!self.stop.load(Ordering::SeqCst), "the load has ended");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

fn each_point_is_what_the_snapshot_held(context: &Context) -> Result<()> {
    let site = Site::new(context, 8 << 20, 256 << 20)?;
    let appliance = site.start()?;
    appliance.make_volume("v1", VOLUME_SECTORS * BLOCK_BYTES as u64)?;
    let (load, portal) = (Load::default(), appliance.portal()?);
    let mut dice = Dice::new(context.seed);
    let folder = context.scratch.join("backups");
    let fio = Fio::start(&context.scratch, &appliance.url(&format!("{IQN}:v1"))?, dice.below(1 << 32))?;
    let held = thread::scope(|scope| {
        let writer = dice.fork();
        let writing = scope.spawn(|| {
            let end = load.run(portal, writer);
            load.stop.store(true, Ordering::SeqCst);
            end
        });
        let held = back_up(context, &appliance, &folder, &load);
        load.stop.store(true, Ordering::SeqCst);
        let written = writing.join().unwrap_or_else(|_| bail!("the load panicked"));
        written.context("the load").and(held)
    })?;
    let writes = fio.stop()?;
    ensure!(writes >= BACKUPS as u64, "{writes} writes by fio are no load");
    restore_each(context, &appliance, &folder, held.iter())?;

    let keep = dice.between(2, BACKUPS as u64 - 1) as usize;
    let folder_argument = folder.to_string_lossy();
    gossamer(context, &appliance, &["prune", &folder_argument, "--keep-last", &keep.to_string()])?;
    println!(
        "({} operations of the load, {writes} writes by fio, {keep} of {BACKUPS} backups kept)",
        load.operations.load(Ordering::SeqCst)
    );
    restore_each(context, &appliance, &folder, held.iter().rev().take(keep))?;

    // And back into a volume, while the newest snapshot is still the only one.
    let (id, contents) = held.last().context("no backup")?;
    gossamer(context, &appliance, &["restore", &folder_argument, "--at", &id.to_string(), "--to-volume", "v2"])?;
    ensure!(read(&appliance, "v2")? == *contents, "the volume that was restored is another");
    ensure!(appliance.volumes()?.len() == 3, "snapshots are left behind: {:?}", appliance.volumes()?);
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

/// Makes the backups, and reads from each one's snapshot what it holds.
fn back_up(context: &Context, appliance: &Appliance, folder: &Path, load: &Load) -> Result<Vec<(u64, Vec<u8>)>> {
    let folder = folder.to_string_lossy();
    let mut held = Vec::new();
    for n in 0..BACKUPS {
        load.go_on()?;
        let made = gossamer(context, appliance, &["backup", "v1", &folder])?;
        let backup = &made["backups"][0];
        ensure!(made["backups"].as_array().is_some_and(|list| list.len() == 1), "{made}");
        ensure!(backup["base"].is_null() == (n == 0), "backup {n} of {made}: only the first is full");
        let (id, snapshot) = (backup["id"].as_u64().context("no id")?, backup["snapshot"].as_str().context("no name")?);
        held.push((id, read(appliance, snapshot)?));
    }
    Ok(held)
}

/// All that a volume holds.
pub fn read(appliance: &Appliance, name: &str) -> Result<Vec<u8>> {
    appliance.export(name)?;
    let mut session = appliance.login(name)?;
    let sectors = session.capacity_blocks()?;
    let contents = session.read(0, sectors as usize)?;
    session.logout()?;
    appliance.call("DELETE", &format!("/v1/volumes/{name}/export"), &Value::Null)?;
    Ok(contents)
}

fn restore_each<'a>(
    context: &Context,
    appliance: &Appliance,
    folder: &Path,
    held: impl Iterator<Item = &'a (u64, Vec<u8>)>,
) -> Result<()> {
    let (into, folder) = (context.scratch.join("restored.img"), folder.to_string_lossy());
    let verdicts = gossamer(context, appliance, &["verify", &folder])?;
    let mut whole: Vec<Value> = Vec::new();
    for (id, contents) in held {
        let arguments = ["restore", &folder, "--at", &id.to_string(), "--force", "--to-file", &into.to_string_lossy()];
        gossamer(context, appliance, &arguments)?;
        ensure!(std::fs::read(&into)? == *contents, "backup {id} is not what its snapshot held");
        whole.push(json!({"id": id, "damage": null}));
    }
    whole.sort_by_key(|verdict| verdict["id"].as_u64());
    ensure!(verdicts["backups"] == json!(whole), "verify says {verdicts}");
    Ok(())
}
