//! The manager: makes, snapshots, resizes and deletes volumes, holds metadata snapshots, grows the pool, and sets right
//! what went wrong. An operation is a line in [`work`] and a function.

use crate::faults;
use crate::http::{Answer, Manager};
use crate::life::Life;
use crate::model::{BLOCK, Presence, UNSET, Volume};
use platform::time::{Duration, Instant};
use serde_json::Value;
use std::collections::BTreeSet;
use std::rc::Rc;

/// In place of the status of a request whose answer did not arrive.
pub const UNANSWERED: u16 = 599;

/// The appliance closes connections that are idle for a minute.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Numbers of devices that are made by messages: greater than those that the appliance gives.
const DEVICES_BY_MESSAGE: u64 = 1000;

/// Makes a pool ready: adopted, with a first volume, which is returned if the pool is new.
pub async fn begin(life: &Rc<Life>) -> Option<String> {
    let mut worker = Worker::new(life.clone());
    // The power failed between the pool's making and that of its records.
    let mut adopted = worker.pool().await.is_some_and(|pool| pool["adopted"] == true);
    if !adopted {
        let answer = worker.ask("POST", "/v1/pool/adopt", None).await;
        worker.expect_reason("adopting", &answer);
        adopted = answer.is_ok();
    }
    let is_new = adopted && !std::mem::replace(&mut life.model.borrow_mut().formatted, adopted);
    worker.recover().await;
    worker.create(life.shape.volume_blocks).await;
    let model = life.model.borrow();
    model.volumes.keys().next().filter(|_| is_new).cloned()
}

/// Uses a device of the pool that was made elsewhere.
pub async fn take_over(life: &Rc<Life>, name: &str, mapped_blocks: u64) {
    let mut worker = Worker::new(life.clone());
    let size_sectors = mapped_blocks * BLOCK;
    let begun = life.model.borrow_mut().begin_volume(name, size_sectors, None);
    life.model.borrow_mut().volume(name).mapped_before = mapped_blocks;
    let body = format!(r#"{{"size_bytes":{}}}"#, size_sectors * 512);
    let sized = worker.ask("PATCH", &format!("/v1/volumes/{name}"), Some(&body)).await;
    worker.made(name, begun, &sized).await;
}

/// Which volume this is: its number and its identity.
pub fn known_as(volume: &Value) -> Option<(u64, String)> {
    Some((volume["id"].as_u64()?, volume["identity"].as_str()?.to_owned()))
}

/// Takes some snapshots.
pub async fn snapshots(life: &Rc<Life>, count: u64) {
    let mut worker = Worker::new(life.clone());
    for _ in 0..count {
        worker.snapshot(false).await;
    }
}

/// Manages until the life is over.
pub async fn work(life: Rc<Life>) {
    let mut worker = Worker::new(life.clone());
    while life.goes_on().await {
        let in_doubt = life.model.borrow().needs_check.known() != Some(&false);
        if in_doubt && life.world.once_in(3) {
            worker.recover().await;
        }
        // A long delete is what such a pool is for.
        if life.shape.premade && life.world.once_in(4) {
            worker.delete().await;
        }
        if life.snapshot_wanted.take() {
            worker.snapshot(true).await;
        }
        if life.failure_wanted.get() {
            worker.lose_transaction().await;
            life.failure_wanted.set(false);
        }
        match life.world.below(116) {
            0..12 => worker.create(life.shape.volume_blocks - life.world.below(life.shape.volume_blocks / 2)).await,
            12..22 => worker.snapshot(life.world.once_in(4)).await,
            22..38 => worker.snapshots_by_message().await,
            38..54 => worker.delete().await,
            54..60 => worker.resize().await,
            60..66 => worker.reserve().await,
            66..72 => worker.release().await,
            72..75 => worker.set_transaction_id().await,
            75..80 => worker.grow().await,
            80..83 => worker.export().await,
            83..87 => worker.look().await,
            87..91 => worker.spoil(),
            91..94 => worker.lose_transaction().await,
            94..107 => worker.snapshots_at_once().await,
            _ => worker.roll_back().await,
        }
        let micros = life.world.below(3000);
        life.runtime.timers.sleep(Duration::from_micros(micros)).await;
    }
}

/// Asks on one connection, and judges what comes back.
pub struct Worker {
    pub life: Rc<Life>,
    manager: Manager,
    /// When it last asked for something.
    asked_at: Instant,
}

impl Worker {
    pub fn new(life: Rc<Life>) -> Worker {
        let manager = Manager::connect(&life.site.http).expect("the appliance takes connections");
        let asked_at = life.runtime.timers.now();
        Worker { life, manager, asked_at }
    }

    /// One request. An answer that the network lost has the status [`UNANSWERED`].
    pub async fn ask(&mut self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let now = self.life.runtime.timers.now();
        if now - std::mem::replace(&mut self.asked_at, now) > IDLE_MAX {
            self.manager = Manager::connect(&self.life.site.http).expect("the appliance takes connections");
        }
        self.life.trouble_a_wire(&self.manager.wire);
        match self.life.patiently(self.manager.ask(method, path, body)).await {
            Some(Ok(answer)) => answer,
            // Nobody knows whether it was done.
            _ => {
                assert!(self.manager.wire.is_troubled(), "an answer is missing: {method} {path}");
                self.manager = Manager::connect(&self.life.site.http).expect("the appliance takes connections");
                Answer { status: UNANSWERED, body: Value::Null }
            }
        }
    }

    async fn pool(&mut self) -> Option<Value> {
        let answer = self.ask("GET", "/v1/pool", None).await;
        assert!(answer.is_ok() || self.life.troubled.get(), "the pool's state is not told: {answer:?}");
        answer.is_ok().then_some(answer.body)
    }

    /// What a failed request left is to be seen at once: nothing is wrong with the disks, and it is not under way any more.
    pub fn can_be_seen(&self, answer: &Answer) -> bool {
        answer.status != UNANSWERED && !self.life.shape.faults.disks()
    }

    /// The volume as the appliance has it, or that it has none of that name; `None` if it does not tell.
    pub async fn volume(&mut self, name: &str) -> Option<Option<Value>> {
        let answer = self.ask("GET", &format!("/v1/volumes/{name}"), None).await;
        match answer.status {
            200 => {
                self.life.model.borrow_mut().identify(name, known_as(&answer.body));
                Some(Some(answer.body))
            }
            404 => Some(None),
            other => {
                assert!(self.life.troubled.get(), "GET of volume {name} ends with {other}: {}", answer.body);
                None
            }
        }
    }

    /// One of the volumes that are there and fit.
    pub fn any_volume(&self, fits: impl Fn(&Volume) -> bool) -> Option<String> {
        self.any_volume_by(|_, volume| fits(volume))
    }

    /// As [`Worker::any_volume`], by its name, too.
    pub fn any_volume_by(&self, fits: impl Fn(&str, &Volume) -> bool) -> Option<String> {
        let model = self.life.model.borrow();
        let names: Vec<&String> =
            model.volumes.iter().filter(|(name, volume)| fits(name, volume)).map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| names[self.life.world.below(names.len() as u64) as usize].clone())
    }

    /// A number that no volume has in its name; `None` if there are enough.
    fn new_number(&self) -> Option<u64> {
        let mut model = self.life.model.borrow_mut();
        let room = model.volumes.len() < self.life.shape.volumes;
        room.then(|| model.now())
    }

    pub fn new_name(&self) -> Option<String> {
        self.new_number().map(|number| format!("v{number}"))
    }

    async fn create(&mut self, blocks: u64) {
        let Some(name) = self.new_name() else { return };
        let size_sectors = blocks * BLOCK;
        let body = format!(r#"{{"name":"{name}","size_bytes":{}}}"#, size_sectors * 512);
        let begun = self.life.model.borrow_mut().begin_volume(&name, size_sectors, None);
        let answer = self.ask("POST", "/v1/volumes", Some(&body)).await;
        self.made(&name, begun, &answer).await;
    }

    /// Takes a snapshot of some volume.
    async fn snapshot(&mut self, read_only: bool) {
        let Some(origin) = self.any_volume(Volume::is_settled) else { return };
        let Some(name) = self.new_name() else { return };
        let begun = {
            let mut model = self.life.model.borrow_mut();
            let size_sectors = *model.volume(&origin).size_sectors.known().expect("nobody else resizes");
            let begun = model.begin_volume(&name, size_sectors, Some(&origin));
            model.volume(&name).read_only = read_only;
            begun
        };
        let body = format!(r#"{{"name":"{name}","read_only":{read_only}}}"#);
        let answer = self.ask("POST", &format!("/v1/volumes/{origin}/snapshots"), Some(&body)).await;
        self.made(&name, begun, &answer).await;
    }

    /// As Linux's tools do it: snapshots of a device by its number, while the origin is written. The volumes have neither a
    /// size nor an export yet.
    async fn snapshots_by_message(&mut self) {
        let used = self.any_volume(|volume| volume.is_settled() && volume.users > 0);
        let Some(origin) = used.or_else(|| self.any_volume(Volume::is_settled)) else { return };
        let Some(device) = self.volume(&origin).await.flatten().and_then(|volume| volume["id"].as_u64()) else {
            return;
        };
        let mut made = Vec::new();
        for _ in 0..1 + self.life.world.below(3) {
            made.extend(self.snapshot_by_message(&origin, device).await);
        }
        for (name, size_sectors) in made {
            self.set_size(&name, size_sectors).await;
            if self.life.model.borrow_mut().volume(&name).is_settled() {
                self.set_export(&name, true).await;
            }
        }
    }

    /// The name of the snapshot and its origin's size, if it was made.
    async fn snapshot_by_message(&mut self, origin: &str, device: u64) -> Option<(String, u64)> {
        if !self.life.model.borrow().volumes.get(origin).is_some_and(Volume::is_settled) {
            return None;
        }
        let new = DEVICES_BY_MESSAGE + self.new_number()?;
        let name = format!("thin-{new}");
        let begun = {
            let mut model = self.life.model.borrow_mut();
            let begun = model.begin_volume(&name, UNSET, Some(origin));
            // Nobody wrote down whose snapshot it is.
            model.volume(&name).snapshot_of = None;
            begun
        };
        let answer = self.ask("POST", "/v1/pool/message", Some(&format!("create_snap {new} {device}"))).await;
        self.expect_reason("a message", &answer);
        if !answer.is_ok() {
            // A device that was made nevertheless gets its record with the next start.
            return None;
        }
        let mut model = self.life.model.borrow_mut();
        model.volume_made(&name, begun);
        let size_sectors = *model.volume(origin).size_sectors.known().expect("nobody else resizes");
        Some((name, size_sectors))
    }

    /// A volume was made, or not.
    pub async fn made(&mut self, name: &str, begun: u64, answer: &Answer) {
        self.expect_reason("making a volume", answer);
        if !answer.is_ok() {
            // If it can be seen it was made; if nobody can tell, it may be there after the next power cut.
            match self.volume(name).await.filter(|_| self.can_be_seen(answer)) {
                Some(Some(_)) => {}
                Some(None) => return self.life.model.borrow_mut().volume_gone(name),
                None => return,
            }
        }
        {
            let mut model = self.life.model.borrow_mut();
            model.volume_made(name, begun);
            model.identify(name, known_as(&answer.body));
        }
        self.set_export(name, true).await;
    }

    /// An error must have a reason.
    pub fn expect_reason(&self, what: &str, answer: &Answer) {
        assert!(answer.is_ok() || self.life.troubled.get(), "{what} fails for no reason: {answer:?}");
    }

    pub async fn set_export(&mut self, name: &str, exported: bool) {
        self.life.model.borrow_mut().volume(name).exported.may_become(exported);
        let path = format!("/v1/volumes/{name}/export");
        let answer = match exported {
            true => self.ask("PUT", &path, Some(r#"{"initiators":"all"}"#)).await,
            false => self.ask("DELETE", &path, None).await,
        };
        self.expect_reason("an export", &answer);
        if answer.is_ok() {
            self.life.model.borrow_mut().volume(name).exported.settle(exported);
        } else if let Some(Some(volume)) = self.volume(name).await.filter(|_| self.can_be_seen(&answer)) {
            self.life.model.borrow_mut().volume(name).exported.settle(!volume["export"].is_null());
        }
    }

    async fn export(&mut self) {
        let Some(name) = self.any_volume(|volume| volume.is_settled() && volume.users == 0) else {
            return;
        };
        let exported = self.life.model.borrow_mut().volume(&name).exported.known() == Some(&true);
        self.set_export(&name, !exported).await;
    }

    async fn delete(&mut self) {
        let idle = |volume: &Volume| volume.users == 0 && volume.presence != Presence::Coming && !volume.busy;
        // A large one, of which a delete is long, before others.
        let large = self.any_volume(|volume| idle(volume) && volume.mapped_before > 0);
        if let Some(name) = large.or_else(|| self.any_volume(idle)) {
            self.delete_volume(&name).await;
        }
    }

    async fn delete_volume(&mut self, name: &str) {
        self.life.model.borrow_mut().volume(name).presence = Presence::Going;
        let answer = self.ask("DELETE", &format!("/v1/volumes/{name}"), None).await;
        // A device whose record the start could not write, for a disk failed, is shown to nobody until the next start.
        let hidden = answer.status == 404 && self.life.shape.faults.disks();
        if answer.is_ok() || answer.status == 404 && !hidden {
            return self.life.model.borrow_mut().volume_gone(name);
        }
        // A deletion that a power cut interrupted goes on by itself, and is EBUSY meanwhile.
        assert!(hidden || answer.status == 409 || self.life.troubled.get(), "a delete fails for no reason: {answer:?}");
        if self.volume(name).await == Some(None) && self.can_be_seen(&answer) {
            self.life.model.borrow_mut().volume_gone(name);
        }
    }

    async fn resize(&mut self) {
        let fits = |volume: &Volume| volume.is_settled() && volume.users == 0 && !volume.read_only;
        let Some(name) = self.any_volume(fits) else { return };
        let size_sectors =
            *self.life.model.borrow_mut().volume(&name).size_sectors.known().expect("nobody else resizes");
        self.set_size(&name, size_sectors + (1 + self.life.world.below(4)) * BLOCK).await;
    }

    /// Enlarges a volume that nobody uses.
    async fn set_size(&mut self, name: &str, size_sectors: u64) {
        {
            let mut model = self.life.model.borrow_mut();
            model.volume(name).size_sectors.may_become(size_sectors);
            // Nobody else may use it meanwhile.
            model.volume(name).users += 1;
        }
        let body = format!(r#"{{"size_bytes":{}}}"#, size_sectors * 512);
        let answer = self.ask("PATCH", &format!("/v1/volumes/{name}"), Some(&body)).await;
        self.expect_reason("a resize", &answer);
        let mut size_bytes = answer.is_ok().then_some(size_sectors * 512);
        if !answer.is_ok() && self.can_be_seen(&answer) {
            let seen = self.volume(name).await.flatten();
            size_bytes = seen.map(|volume| volume["size_bytes"].as_u64().unwrap_or(UNSET));
        }
        let mut model = self.life.model.borrow_mut();
        model.volume(name).users -= 1;
        if let Some(bytes) = size_bytes {
            model.volume(name).size_sectors.settle(bytes / 512);
        }
    }

    async fn reserve(&mut self) {
        if self.life.reading.get() {
            return;
        }
        self.life.model.borrow_mut().held.may_become(true);
        let answer = self.ask("POST", "/v1/pool/metadata-snapshot", None).await;
        self.settle_held(&answer).await;
    }

    async fn release(&mut self) {
        if self.life.reading.get() {
            return;
        }
        self.life.model.borrow_mut().held.may_become(false);
        let answer = self.ask("DELETE", "/v1/pool/metadata-snapshot", None).await;
        self.settle_held(&answer).await;
    }

    async fn settle_held(&mut self, answer: &Answer) {
        // Holding twice and releasing nothing are errors that are to be expected.
        let expected = matches!(answer.status, 201 | 204 | 400 | 409);
        assert!(expected || self.life.troubled.get(), "a metadata snapshot fails for no reason: {answer:?}");
        if !answer.is_ok() && !self.can_be_seen(answer) {
            return;
        }
        let Some(pool) = self.pool().await else { return };
        let held = !pool["held_root"].is_null();
        let mut model = self.life.model.borrow_mut();
        assert!(
            model.held.allows(&held) || faults::lied(),
            "a metadata snapshot is held: {held}, not {:?}",
            model.held
        );
        model.held.settle(held);
    }

    async fn set_transaction_id(&mut self) {
        let Some(current) = self.life.model.borrow().transaction_id.known().copied() else { return };
        let new = current + 1 + self.life.world.below(9);
        self.life.model.borrow_mut().transaction_id.may_become(new);
        let answer = self.ask("POST", "/v1/pool/message", Some(&format!("set_transaction_id {current} {new}"))).await;
        self.expect_reason("a message", &answer);
        if !answer.is_ok() && !self.can_be_seen(&answer) {
            return;
        }
        let Some(pool) = self.pool().await else { return };
        let found = pool["transaction_id"].as_u64().expect("a number");
        assert!(
            !answer.is_ok() || found == new || faults::lied(),
            "the transaction id is {found} after it was set to {new}"
        );
        self.life.model.borrow_mut().transaction_id.settle(found);
    }

    async fn grow(&mut self) {
        let (metadata, data) = {
            let mut model = self.life.model.borrow_mut();
            // The disks may have grown before a power cut, and the pool not.
            let metadata = self.life.meta.size_sectors() / 8 + self.life.world.below(3);
            let data = self.life.data.size_sectors() / BLOCK + self.life.world.below(4);
            if data > self.life.shape.data_blocks * 2 || metadata > self.life.shape.metadata_blocks * 3 / 2 {
                return;
            }
            model.metadata_blocks.may_become(metadata);
            model.data_blocks.may_become(data);
            (metadata, data)
        };
        self.life.meta.grow(metadata * 8);
        self.life.data.grow(data * BLOCK);
        let answer = self.ask("POST", "/v1/pool/grow", None).await;
        self.expect_reason("growing", &answer);
        if !answer.is_ok() && !self.can_be_seen(&answer) {
            return;
        }
        let Some(pool) = self.pool().await else { return };
        let number = |name: &str| pool[name].as_u64().expect("a number");
        let mut model = self.life.model.borrow_mut();
        let found = (number("metadata_total_blocks"), number("data_total_blocks"));
        let grown = found == (metadata, data) || faults::lied();
        assert!(!answer.is_ok() || grown, "grown to {found:?}, not {:?}", (metadata, data));
        model.metadata_blocks.settle(found.0);
        model.data_blocks.settle(found.1);
    }

    /// What the appliance tells of its volumes is so.
    async fn look(&mut self) {
        let is_there = |volume: &Volume| volume.presence == Presence::There;
        let (begun, before): (u64, BTreeSet<String>) = {
            let mut model = self.life.model.borrow_mut();
            let there = model.volumes.iter().filter(|(_, volume)| is_there(volume));
            let there = there.map(|(name, _)| name.clone()).collect();
            (model.now(), there)
        };
        let answer = self.ask("GET", "/v1/volumes", None).await;
        assert!(answer.is_ok() || self.life.troubled.get(), "a list of volumes fails for no reason: {answer:?}");
        let Some(volumes) = answer.body["volumes"].as_array().filter(|_| !faults::lied()) else { return };
        let names: Vec<&str> = volumes.iter().filter_map(|volume| volume["name"].as_str()).collect();
        let model = self.life.model.borrow();
        assert!(
            names.iter().all(|name| model.was_there_since(name, begun)),
            "the appliance has {names:?}, the model {:?}",
            model.volumes.keys()
        );
        for (name, volume) in model.volumes.iter().filter(|(name, _)| before.contains(*name)) {
            let listed = names.contains(&name.as_str());
            // What a message made has no record while none can be written, and is shown to nobody.
            let without_record = volume.known_as.is_none() && self.life.troubled.get();
            assert!(listed || without_record || !is_there(volume), "volume {name} is not listed");
        }
    }

    /// Has the next flush of the data disk fail, which may well be that of a commit.
    fn spoil(&mut self) {
        if self.life.shape.aborts {
            self.life.troubled.set(true);
            self.life.data.set_faults(|faults| faults.failing_flush = Some(0));
        }
    }

    /// The same, commits, and gives the pool back to use at once: who has lost something may not have noticed.
    async fn lose_transaction(&mut self) {
        if self.life.shape.aborts {
            self.spoil();
            self.set_transaction_id().await;
            self.recover().await;
        }
    }

    /// Does what an administrator does after a lost transaction.
    async fn recover(&mut self) {
        if self.pool().await.is_none_or(|pool| pool["needs_check"] != true) {
            return;
        }
        self.life.troubled.set(true);
        let before = self.life.model.borrow().last_loss();
        self.life.model.borrow_mut().needs_check.may_become(false);
        let answer = self.ask("POST", "/v1/pool/clear-needs-check", None).await;
        if !answer.is_ok() && !self.can_be_seen(&answer) {
            return;
        }
        let Some(pool) = self.pool().await else { return };
        let needs_check = pool["needs_check"] == true;
        let mut model = self.life.model.borrow_mut();
        let again = model.last_loss() > before;
        let explained = !answer.is_ok() || !needs_check || again || faults::lied();
        assert!(explained, "needs_check is there after it was cleared");
        if again {
            // What that leaves may not be on the disk yet.
            model.needs_check.may_become(needs_check);
        } else {
            model.needs_check.settle(needs_check);
        }
    }
}
