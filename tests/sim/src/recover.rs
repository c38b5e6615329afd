//! What a power cut left, looked at from outside: by the checker, by a pool opened over it, by a whole appliance.

use crate::contest;
use crate::faults;
use crate::history::{self, EVERYBODY, is_held_by_all};
use crate::http::Manager;
use crate::image::Image;
use crate::initiator::{Command, Outcome, SANITIZE_FAILED, SANITIZING, Session};
use crate::manager;
use crate::model::{BLOCK, MIXED, Model, Presence, Sanitizing, UNSET, Word, Words};
use crate::quick::QuickDisk;
use crate::site::{self, Instance, Site};
use crate::world::World;
use appliance::catalog::{Catalog, Edit, VolumeRecord};
use appliance::reservations::Nexus;
use platform::Runtime;
use platform::block::{Bufs, Disk};
use platform::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use thinp::control::{DeviceId, Mode};
use thinp::metadata::check::check;
use thinp::records::Records;
use thinp::stream::Token;
use thinp::{Error, Pool, PoolOptions, Thin};

/// Buffers of a recovery.
pub const BUFS_BYTES: usize = 6 << 20;

/// Memory of the checker's counts.
pub const CHECK_BYTES: usize = 1 << 20;

/// Longer than an appliance takes to delete what is hidden and not needed.
const CLEARING: Duration = Duration::from_secs(1);

/// In place of the identity of a volume that no record describes.
const UNKNOWN: [u8; 16] = [0; 16];

/// Blocks of what was received that a recovery reads, at most.
const KEPT_BLOCKS: usize = 16;

/// Metadata blocks that a recovery keeps in memory.
pub const CACHE_BLOCKS: usize = 64;

/// What is kept of a transfer that broke off.
pub struct Kept {
    /// The volume that it is for.
    pub name: String,
    /// Where it goes on.
    token: Token,
    /// Some blocks of what was received.
    blocks: Vec<(u64, Words)>,
}

/// What to look at.
#[derive(Default)]
pub struct Wanted {
    /// Some blocks of each volume.
    pub blocks: BTreeMap<String, Vec<u64>>,
    /// Volumes into which a transfer may have broken off.
    pub transfers: Vec<String>,
    /// Hidden volumes may be there.
    pub hidden: bool,
    /// Volumes may be on the way of being sanitized.
    pub sanitizing: bool,
}

/// A volume as it was found.
pub struct FoundVolume {
    /// Its number and identity, if they are written down.
    pub known_as: Option<(u64, String)>,
    pub size_bytes: Option<u64>,
    pub exported: bool,
    /// Its record says that it is being deleted.
    pub deleting: bool,
    pub mapped_blocks: u64,
    /// Its record says that it is being sanitized.
    pub sanitizing: bool,
    /// What was wanted could be read; else the volume cannot be logged in to.
    pub readable: bool,
    pub blocks: Vec<(u64, Words)>,
    /// What is kept of its persistent reservation, if that was looked at.
    kept: Option<history::Kept>,
    /// Whether that keeps strangers from reading, if somebody tried.
    closed: Option<bool>,
}

impl FoundVolume {
    pub fn size_sectors(&self) -> u64 {
        self.size_bytes.map_or(UNSET, |bytes| bytes / 512)
    }
}

/// A pool as it was found.
#[derive(Default)]
pub struct Found {
    /// There is no superblock yet.
    pub blank: bool,
    /// It has records.
    pub adopted: bool,
    pub needs_check: bool,
    pub held: bool,
    pub transaction_id: u64,
    pub data_blocks: u64,
    pub metadata_blocks: u64,
    pub volumes: BTreeMap<String, FoundVolume>,
    /// Of transfers that can be gone on with.
    pub kept: Vec<Kept>,
    /// The appliance could delete what is to be deleted.
    pub clears: bool,
}

impl Wanted {
    fn of(&self, name: &str) -> &[u64] {
        self.blocks.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The disks that a power cut left.
#[derive(Clone)]
pub struct Remains {
    pub meta: Image,
    pub data: Image,
}

/// The word that fills each sector.
pub fn words_of(bytes: &[u8]) -> impl Iterator<Item = Word> {
    bytes.chunks_exact(512).map(|sector| {
        // The same word over and over: the sector is equal to itself a word further.
        let same = sector[8..] == sector[..sector.len() - 8];
        if same { Word::from_le_bytes(*sector.first_chunk().expect("a sector")) } else { MIXED }
    })
}

/// Opens a pool over the remains, checks all of its metadata, and reads what is wanted. With `use_it` the pool is used
/// afterwards, and checked again.
pub fn by_pool(remains: Remains, seed: u64, wanted: Wanted, use_it: bool) -> Found {
    World::new(seed).run(BUFS_BYTES, async move |runtime| {
        let (meta, data) = (QuickDisk::new(remains.meta), QuickDisk::new(remains.data));
        let (meta, data) = (Disk::new(meta), Disk::new(data));
        let mut found = Found { blank: is_blank(&runtime, &meta).await, ..Found::default() };
        if !found.blank {
            expect_sound(&runtime, &meta).await;
        }
        let options = PoolOptions { cache_blocks: CACHE_BLOCKS, ..PoolOptions::default() };
        let pool = Pool::open(&runtime, meta.clone(), data, options).await.expect("the pool opens");
        if found.blank {
            return found;
        }
        look_at_pool(&runtime, &pool, &wanted, &mut found).await;
        if use_it && pool.status().mode == Mode::Write {
            use_pool(&runtime, &pool).await.expect("the pool can be used");
            pool.close().await.expect("the pool closes");
            expect_sound(&runtime, &meta).await;
        }
        found
    })
}

/// There is no superblock yet.
pub async fn is_blank(runtime: &Runtime, meta: &Disk) -> bool {
    let (read, page) = meta.read(0, runtime.bufs.alloc(4096).expect("buffers")).await;
    read.expect("a disk without faults");
    page.iter().all(|byte| *byte == 0)
}

/// All of the metadata is as it should be: every tree, every count of both space maps, every total.
/// Returns how many devices there are.
pub async fn expect_sound(runtime: &Runtime, meta: &Disk) -> u64 {
    let report = check(runtime, meta, CHECK_BYTES).await.expect("there is a superblock");
    let problems: Vec<String> = report.problems.iter().map(ToString::to_string).collect();
    assert!(problems.is_empty(), "the metadata is not sound: {}", problems.join("; "));
    report.devices
}

async fn look_at_pool(runtime: &Runtime, pool: &Pool, wanted: &Wanted, found: &mut Found) {
    let status = pool.status();
    (found.needs_check, found.held) = (status.needs_check, status.held_root.is_some());
    (found.data_blocks, found.metadata_blocks) = (status.data_total_blocks, status.metadata_total_blocks);
    found.transaction_id = status.transaction_id;
    let devices = pool.devices().await.expect("devices");
    let Some(records) = Records::find(pool).await.expect("the records can be read") else {
        assert!(devices.is_empty(), "devices without records: {devices:?}");
        return;
    };
    found.adopted = true;
    let mut pages = Vec::new();
    for page in 0..records.pages() {
        pages.push(records.read(page).await.expect("the records can be read"));
    }
    let catalog = Catalog::decode(&pages, Records::PAGE_CAPACITY_BYTES).expect("the records make sense");
    let ids: BTreeSet<DeviceId> = devices.iter().map(|(id, _)| *id).filter(|id| *id != records.device()).collect();
    // What a message made has no record before the next start; whether that may be is for the model to say.
    let mut records: BTreeMap<u32, VolumeRecord> = BTreeMap::new();
    records.extend(catalog.volumes().map(|record| (record.device, record.clone())));
    for difference in catalog.reconcile(&ids, |_| UNKNOWN) {
        match difference {
            Edit::Put(record) => records.insert(record.device, record),
            other => panic!("records and devices do not agree: {other:?}"),
        };
    }
    for (id, details) in devices.into_iter().filter(|(id, _)| ids.contains(id)) {
        let record = &records[&id.get()];
        if record.is_hidden() {
            if !record.deleting {
                found.kept.push(read_kept(runtime, pool, id, record).await);
            }
            continue;
        }
        let blocks =
            if record.deleting { Vec::new() } else { read_blocks(runtime, pool, id, wanted.of(&record.name)).await };
        found.volumes.insert(record.name.clone(), found_volume(record, details.mapped_blocks, blocks));
    }
}

fn found_volume(record: &VolumeRecord, mapped_blocks: u64, blocks: Vec<(u64, Words)>) -> FoundVolume {
    let (size_bytes, exported, deleting) = (record.size_bytes, record.export.is_some(), record.deleting);
    let identity = record.identity.iter().map(|byte| format!("{byte:02x}")).collect();
    let known_as = (record.identity != UNKNOWN).then(|| (record.device.into(), identity));
    let (kept, closed) = (Some(kept_of(record)), None);
    FoundVolume {
        known_as,
        size_bytes,
        exported,
        deleting,
        mapped_blocks,
        sanitizing: record.sanitize.is_some(),
        readable: true,
        blocks,
        kept,
        closed,
    }
}

/// The persistent reservation in a record.
fn kept_of(record: &VolumeRecord) -> history::Kept {
    let Some(kept) = &record.reservations else { return history::Kept::default() };
    let number = |nexus: &Nexus| contest::number_of(&nexus.initiator);
    let registered = kept.registrations.iter().map(|registration| number(&registration.nexus));
    let held = kept.held.as_ref().map(|held| {
        let holder = if is_held_by_all(held.code) { EVERYBODY } else { number(&held.holder) };
        (holder, held.code)
    });
    (registered.collect(), held)
}

async fn read_kept(runtime: &Runtime, pool: &Pool, id: DeviceId, record: &VolumeRecord) -> Kept {
    let name = record.name.strip_prefix(".verified-");
    let token: Option<Token> = record.resume.as_deref().and_then(|text| text.parse().ok());
    let (Some(name), Some(token)) = (name, token) else { panic!("who needs {record:?}?") };
    let end = token.resume.offset / (BLOCK * 512);
    let some: Vec<u64> = (0..end).step_by((end as usize).div_ceil(KEPT_BLOCKS).max(1)).collect();
    Kept { name: name.to_owned(), token, blocks: read_blocks(runtime, pool, id, &some).await }
}

async fn read_blocks(runtime: &Runtime, pool: &Pool, id: DeviceId, wanted: &[u64]) -> Vec<(u64, Words)> {
    let thin = pool.open_thin(id, None).await.expect("the device opens");
    let mut blocks = Vec::new();
    for block in wanted {
        let buf = runtime.bufs.alloc(BLOCK as usize * 512).expect("buffers");
        let (read, buf) = thin.read(block * BLOCK, buf).await;
        read.expect("a mapped block can be read");
        blocks.push((*block, words(&buf)));
    }
    blocks
}

/// The words of a block.
pub fn words(bytes: &[u8]) -> Words {
    let mut words = [0; BLOCK as usize];
    words.iter_mut().zip(words_of(bytes)).for_each(|(place, word)| *place = word);
    words
}

/// What an appliance would do next. It may run out of space; it must not break anything.
pub async fn use_pool(runtime: &Runtime, pool: &Pool) -> Result<(), Error> {
    let id = |n: u64| DeviceId::new(n).expect("a small id");
    let taken: BTreeSet<DeviceId> = pool.devices().await?.into_iter().map(|(device, _)| device).collect();
    let mut free = (100..).map(id).filter(|id| !taken.contains(id));
    let (new, copy) = (free.next().expect("an id"), free.next().expect("an id"));
    if pool.create_thin(new).await.is_err() {
        return Ok(());
    }
    let thin = pool.open_thin(new, None).await?;
    write_some(runtime, &thin, 3).await?;
    if pool.create_snap(copy, new).await.is_ok() {
        write_some(runtime, &thin, 1).await?;
    }
    drop(thin);
    pool.delete(new).await
}

/// Writes a little, or nothing if there is no space: then writes fail after a minute, which costs nothing here.
async fn write_some(runtime: &Runtime, thin: &Thin, blocks: u64) -> Result<(), Error> {
    for block in 0..blocks {
        let mut buf = runtime.bufs.alloc(512).expect("buffers");
        buf.fill(1);
        if thin.write(block * BLOCK, Bufs::from_iter([buf]), false).await.is_err() {
            return Ok(());
        }
    }
    thin.flush().await
}

/// Starts an appliance over the remains, looks at everything that managers and initiators can see, and powers it off.
pub fn by_appliance(remains: Remains, seed: u64, wanted: Wanted) -> Found {
    let world = World::new(seed);
    let inside = world.clone();
    let found = world.run(BUFS_BYTES * 4, async move |runtime| {
        let mut found = Found::default();
        if wanted.sanitizing {
            let (meta, data) = (QuickDisk::new(remains.meta.clone()), QuickDisk::new(remains.data.clone()));
            let pool = Pool::open(&runtime, Disk::new(meta), Disk::new(data), PoolOptions::default()).await;
            look_at_pool(&runtime, &pool.expect("the pool opens"), &Wanted::default(), &mut found).await;
        }
        let on_the_way = found.volumes.into_iter().filter(|(_, volume)| volume.sanitizing).map(|(name, _)| name);
        let on_the_way: BTreeSet<String> = on_the_way.collect();
        let (meta, data) = (Disk::new(QuickDisk::new(remains.meta)), Disk::new(QuickDisk::new(remains.data)));
        let mut found = Found { blank: is_blank(&runtime, &meta).await, ..Found::default() };
        // Whoever had the pool is dead.
        let instance = Instance { takes_over: true, ..Instance::default() };
        let (site, ended) = Site::start(&runtime, &inside, site::pool(meta.clone(), data), CACHE_BLOCKS, instance);
        site.ready(&runtime).await.expect("the appliance serves the pool");
        if !found.blank {
            look_at_appliance(&runtime, &site, &wanted, &mut found).await;
            for name in &on_the_way {
                let left = found.volumes[name].blocks.iter().any(|(_, words)| words.iter().any(|word| *word != 0));
                assert!(!left, "volume {name} was to be sanitized, and is served with what it held");
            }
        }
        if wanted.hidden {
            // Time is not what it lacks: nothing waits for a disk.
            runtime.timers.sleep(CLEARING).await;
        }
        site.power_off().await;
        ended.await.expect("the appliance ends");
        let devices = expect_sound(&runtime, &meta).await;
        let known = 1 + found.volumes.len() + found.kept.len();
        assert!(
            !wanted.hidden || !found.clears || devices <= known as u64,
            "{devices} thin devices are left for {} volumes, {} transfers and the records",
            found.volumes.len(),
            found.kept.len()
        );
        found
    });
    world.end();
    found
}

async fn look_at_appliance(runtime: &Runtime, site: &Site, wanted: &Wanted, found: &mut Found) {
    let mut manager = Manager::connect(&site.http).expect("the appliance takes connections");
    let pool = manager.ask("GET", "/v1/pool", None).await.expect("an answer").body;
    let number = |name: &str| pool[name].as_u64().unwrap_or_else(|| panic!("{name} in {pool}"));
    found.adopted = pool["adopted"] == true;
    found.needs_check = pool["needs_check"] == true;
    found.held = !pool["held_root"].is_null();
    found.transaction_id = number("transaction_id");
    (found.data_blocks, found.metadata_blocks) = (number("data_total_blocks"), number("metadata_total_blocks"));
    found.clears = pool["mode"] == "rw";
    for name in &wanted.transfers {
        let path = format!("/v1/volumes/{name}/receive");
        let state = manager.ask("GET", &path, None).await.expect("an answer");
        let token = state.body["resume"].as_str().and_then(|text| text.parse().ok());
        assert!(!state.is_ok() || token.is_some(), "what is there to go on with? {state:?}");
        found.kept.extend(token.map(|token| Kept { name: name.clone(), token, blocks: Vec::new() }));
    }
    let volumes = manager.ask("GET", "/v1/volumes", None).await.expect("an answer").body;
    for volume in volumes["volumes"].as_array().expect("a list of volumes") {
        let name = volume["name"].as_str().expect("a name").to_owned();
        let exported = !volume["export"].is_null();
        let (size_bytes, mapped_bytes) = (volume["size_bytes"].as_u64(), volume["mapped_bytes"].as_u64());
        // Where it is smaller than it may have been nothing can be read.
        let end = size_bytes.unwrap_or_default() / (BLOCK * 512);
        let blocks: Vec<u64> = wanted.of(&name).iter().copied().filter(|block| *block < end).collect();
        let (read, closed) =
            if exported { read_over_network(runtime, site, &name, &blocks).await } else { (Some(Vec::new()), None) };
        let mapped_blocks = mapped_bytes.expect("mapped_bytes") / (BLOCK * 512);
        // A volume that was being deleted is shown until that is done, and cannot be logged in to.
        let (readable, blocks) = (read.is_some(), read.unwrap_or_default());
        let known_as = manager::known_as(volume);
        assert!(known_as.is_some(), "who {volume} is");
        let (deleting, kept) = (false, None);
        let volume = FoundVolume {
            known_as,
            size_bytes,
            exported,
            deleting,
            mapped_blocks,
            sanitizing: false,
            readable,
            blocks,
            kept,
            closed,
        };
        found.volumes.insert(name, volume);
    }
}

/// What some blocks hold, and whether a reservation had to be ended to read them; nothing if nobody can log in.
async fn read_over_network(
    runtime: &Runtime,
    site: &Site,
    name: &str,
    wanted: &[u64],
) -> (Option<Vec<(u64, Words)>>, Option<bool>) {
    let login = Session::login(&site.iscsi, "recovery", 1, name).await.expect("a network that works");
    let Ok(mut session) = login else { return (None, None) };
    // The start goes on with what was being sanitized.
    while session.command(Command::test_unit_ready()).await.expect("a network that works") == SANITIZING {
        runtime.timers.sleep(Duration::from_millis(1)).await;
    }
    let (mut blocks, mut closed) = (Vec::new(), None);
    for block in wanted {
        let mut outcome = session.read(block * BLOCK, BLOCK as u32).await.expect("a network that works");
        let conflicts = outcome == contest::CONFLICT;
        if *closed.get_or_insert(conflicts) && conflicts {
            contest::end_reservation(&mut session).await;
            outcome = session.read(block * BLOCK, BLOCK as u32).await.expect("a network that works");
        }
        match outcome {
            Outcome::Good(bytes) => blocks.push((*block, words(&bytes))),
            // It is for the model to say whether it was to be sanitized.
            SANITIZE_FAILED => return (None, closed),
            other => panic!("block {block} of {name} cannot be read: {other:?}"),
        }
    }
    session.logout().await.expect("a network that works");
    (Some(blocks), closed)
}

/// What was found is what the model allows.
pub fn judge(model: &Model, found: &Found) {
    if found.blank {
        assert!(!model.formatted, "the superblock is gone");
        return;
    }
    assert!(found.adopted || !model.formatted, "the records are gone");
    assert!(model.held.allows(&found.held), "a metadata snapshot is held: {}, not {:?}", found.held, model.held);
    assert!(
        model.transaction_id.allows(&found.transaction_id),
        "transaction id {}, not {:?}",
        found.transaction_id,
        model.transaction_id
    );
    assert!(
        model.needs_check.allows(&found.needs_check),
        "needs_check: {}, not {:?}",
        found.needs_check,
        model.needs_check
    );
    for (what, allowed, blocks) in
        [("data", &model.data_blocks, found.data_blocks), ("metadata", &model.metadata_blocks, found.metadata_blocks)]
    {
        assert!(allowed.allows(&blocks), "{blocks} blocks of {what}, not {allowed:?}");
    }
    for name in found.volumes.keys() {
        assert!(model.volumes.contains_key(name), "volume {name} is there, which was deleted or never made");
    }
    for (name, volume) in &model.volumes {
        let Some(seen) = found.volumes.get(name) else {
            // What a message made gets its record from a start that can write one, and is shown to nobody before.
            let without_record = found.needs_check && volume.known_as.is_none();
            assert!(volume.presence != Presence::There || without_record, "volume {name} is gone");
            continue;
        };
        let partly = seen.deleting || !seen.readable;
        if volume.presence == Presence::Going && partly {
            continue;
        }
        let sanitizing = volume.sanitizing != Sanitizing::Not;
        if sanitizing && (seen.sanitizing || !seen.readable) {
            let may_fail = found.needs_check || volume.may_fail_to_be_sanitized() || faults::harmed();
            assert!(
                seen.readable || may_fail,
                "volume {name} was being sanitized, and the start did not go on with that"
            );
            let objection = volume.objection_on_the_way(&seen.blocks);
            assert!(objection.is_none(), "volume {name}: {}", objection.unwrap_or_default());
            continue;
        }
        assert!(!seen.sanitizing, "volume {name} is being sanitized, which nobody asked for");
        // That a volume with known contents is used from now on cannot be written down in a read-only pool.
        if found.needs_check && !seen.readable && (volume.had_known_contents || volume.may_be_exchanged()) {
            continue;
        }
        assert!(!partly, "volume {name} is not served, or being deleted, which nobody asked for");
        judge_volume(model, name, seen);
    }
    let blocks = |name: &str| found.volumes.get(name).map(|seen| &seen.blocks[..]);
    if let Some(objection) = model.objection_to_moments(blocks) {
        panic!("{objection}");
    }
    judge_transfers(model, &found.kept);
}

/// What was received before and verified can be gone on with, and nothing else is kept.
fn judge_transfers(model: &Model, kept: &[Kept]) {
    for Kept { name, token, blocks } in kept {
        assert!(model.transfers.contains_key(name), "what was received for {name} is kept, and nobody needs it");
        let snapshot = model.library.iter().find(|snapshot| snapshot.identity == token.target);
        for (block, words) in blocks {
            let same = snapshot.is_none_or(|snapshot| snapshot.block(*block) == *words);
            assert!(same, "block {block} of what was received for {name} differs, and it goes on behind that");
        }
    }
    let mut sure = model.transfers.iter().filter(|(_, transfer)| transfer.sure).map(|(name, _)| name);
    let lost = sure.find(|name| kept.iter().all(|kept| kept.name != **name));
    assert!(lost.is_none(), "what was received for {lost:?} could be gone on with, and is gone");
}

fn judge_volume(model: &Model, name: &str, seen: &FoundVolume) {
    let volume = &model.volumes[name];
    assert!(volume.exported.allows(&seen.exported), "volume {name} is exported: {}", seen.exported);
    let same = volume.known_as.is_none() || seen.known_as.is_none() || volume.known_as == seen.known_as;
    assert!(same, "volume {name} is {:?}, which was {:?}", seen.known_as, volume.known_as);
    let reservation = model.objection_to_reservation(name, seen.kept.as_ref(), seen.closed);
    assert!(reservation.is_none(), "the reservation of volume {name}: {}", reservation.unwrap_or_default());
    if let Some(objection) = volume.objection(seen.size_sectors(), seen.mapped_blocks, &seen.blocks) {
        panic!("volume {name}: {objection}");
    }
}
