//! A client with copies of snapshots: it fetches them as streams, and sends them into volumes, whole, as increments, in
//! part, damaged; what broke off it goes on with, also after a power cut, or gives up.

use crate::events::{self, Event};
use crate::faults;
use crate::http::{Answer, Broken, Manager};
use crate::life::Life;
use crate::manager::{UNANSWERED, Worker};
use crate::model::{BLOCK, Presence, Transfer, Volume, Whole};
use crate::streams::Snapshot;
use platform::time::Duration;
use std::rc::Rc;
use thinp::stream::{Identity, Token};

/// Snapshots that it keeps, the last ones.
const KEPT: usize = 6;

/// Larger ones are left to others: they take too long here.
const MAPPED_MAX: u64 = 48;

/// The appliance makes no two checkpoints of a transfer within a second.
const CHECKPOINT_PERIOD: Duration = Duration::from_millis(1100);

/// The manager has had a transaction fail by then, unless its life is over.
const FAILURE_MILLIS: u64 = 100;

/// A stream to be sent.
struct Parcel {
    name: String,
    /// There is no volume of that name.
    is_new: bool,
    snapshot: Snapshot,
    is_increment: bool,
    /// It is the rest of one that broke off.
    is_rest: bool,
    bytes: Vec<u8>,
    /// A new volume is to be read-only.
    read_only: bool,
    /// It can be received: nothing of it is damaged, and its base is what the volume holds.
    good: bool,
    /// The link is cut after so many bytes.
    cut: Option<usize>,
}

/// Works until the life is over.
pub async fn work(life: Rc<Life>) {
    let mut worker = Worker::new(life.clone());
    while life.goes_on().await {
        match life.world.below(10) {
            0..3 => worker.keep().await,
            3 => worker.fetch_increment().await,
            4..6 => worker.go_on().await,
            _ => worker.send_in().await,
        }
        let micros = life.world.below(4000);
        life.runtime.timers.sleep(Duration::from_micros(micros)).await;
    }
}

impl Worker {
    /// Fetches a snapshot; if there is none the manager is to take one.
    async fn keep(&mut self) {
        let Some(name) = self.any_snapshot() else { return self.life.snapshot_wanted.set(true) };
        let Some(bytes) = self.fetch(&name, "").await else { return };
        let snapshot = match Snapshot::decode(&name, None, &bytes) {
            Ok(snapshot) => snapshot.expect("a whole stream has no base"),
            Err(error) => return assert!(faults::lied(), "the stream of {name} is none: {error}"),
        };
        self.compare(&snapshot);
        let mut model = self.life.model.borrow_mut();
        model.library.retain(|known| known.identity != snapshot.identity);
        model.library.push(snapshot);
        let many = model.library.len().saturating_sub(KEPT);
        model.library.drain(..many);
    }

    fn any_snapshot(&self) -> Option<String> {
        let model = self.life.model.borrow();
        let small = |name: &str| model.most_mapped(name) <= MAPPED_MAX;
        let fits = |(name, volume): &(&String, &Volume)| volume.is_settled() && volume.read_only && small(name);
        let names: Vec<&String> = model.volumes.iter().filter(fits).map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| names[self.life.world.below(names.len() as u64) as usize].clone())
    }

    /// The stream of a snapshot; `None` if something explains that there is none.
    async fn fetch(&mut self, name: &str, query: &str) -> Option<Vec<u8>> {
        let mut line = Manager::connect(&self.life.site.http).expect("the appliance takes connections");
        let wire = line.wire.clone();
        self.life.trouble_a_wire(&wire);
        let path = format!("/v1/volumes/{name}/stream{query}");
        let troubled = || self.life.troubled.get();
        match self.life.patiently(line.fetch(&path)).await {
            Some(Ok(Ok(bytes))) => Some(bytes),
            Some(Ok(Err(answer))) => {
                let model = self.life.model.borrow();
                let there = model.volumes.get(name).is_some_and(Volume::is_settled) && query.is_empty();
                assert!(!there || troubled(), "{path} is refused for no reason: {answer:?}");
                None
            }
            _ => {
                assert!(wire.is_troubled() || troubled(), "{path} ends too early");
                None
            }
        }
    }

    /// A snapshot holds what the model knows of it, and what it held before.
    fn compare(&self, snapshot: &Snapshot) {
        let model = self.life.model.borrow();
        if faults::lied() || !model.volumes.contains_key(&snapshot.name) {
            return;
        }
        let known = model.library.iter().find(|known| known.identity == snapshot.identity);
        let same = known.is_none_or(|known| known.blocks == snapshot.blocks);
        assert!(same, "snapshot {} of {:?} is not what it was", snapshot.identity, snapshot.name);
        for (block, words) in &snapshot.blocks {
            for (sector, word) in (block * BLOCK..).zip(words.iter()) {
                let may = model.may_read(&snapshot.name, sector, *word);
                let name = &snapshot.name;
                assert!(may, "sector {sector} of {name} is sent as {word:x}, not {}", model.describe(name, sector));
            }
        }
    }

    /// Fetches what makes one snapshot into another, both of which are kept.
    async fn fetch_increment(&mut self) {
        let (Some(base), Some(snapshot)) = (self.any_kept(), self.any_kept()) else { return };
        let Some(bytes) = self.fetch(&snapshot.name, &format!("?from={}", base.name)).await else { return };
        let made = Snapshot::decode(&snapshot.name, Some(&base), &bytes);
        // By these names there may be something else by now.
        let other = |made: &Option<Snapshot>| made.as_ref().is_none_or(|made| made.identity != snapshot.identity);
        let same = made.is_ok_and(|made| other(&made) || made.is_some_and(|made| made.blocks == snapshot.blocks));
        assert!(same || faults::lied(), "the increment from {} to {} makes something else", base.name, snapshot.name);
    }

    fn any_kept(&self) -> Option<Snapshot> {
        let model = self.life.model.borrow();
        let kept = &model.library;
        (!kept.is_empty()).then(|| kept[self.life.world.below(kept.len() as u64) as usize].clone())
    }

    fn kept(&self, identity: Identity) -> Option<Snapshot> {
        self.life.model.borrow().library.iter().find(|kept| kept.identity == identity).cloned()
    }

    /// Sends a snapshot into a new volume or in the place of what one holds.
    async fn send_in(&mut self) {
        let Some(snapshot) = self.any_kept() else { return };
        let new = self.new_name().filter(|_| self.life.world.once_in(2));
        let existing = if new.is_none() { self.take_target() } else { None };
        let is_new = new.is_some();
        let Some(name) = new.or(existing) else { return };
        let Some(held) = self.holds(&name, is_new).await else { return };
        let known = held.and_then(|held| self.kept(held));
        let base = match self.life.world.below(8) {
            0..2 => None,
            2 => self.any_kept(),
            _ if is_new => self.any_kept().filter(|base| self.is_there(&base.name)),
            _ => known,
        };
        let fits = base.as_ref().is_none_or(|base| is_new || held == Some(base.identity));
        let bytes = snapshot.encode(base.as_ref(), None, || self.life.world.once_in(3));
        let (is_increment, is_rest) = (base.is_some(), false);
        let read_only = is_new && self.life.world.once_in(2);
        let (good, cut) = (fits, None);
        let parcel = Parcel { name, is_new, snapshot, is_increment, is_rest, bytes, read_only, good, cut };
        self.spoil_and_put(parcel).await;
    }

    /// A volume that nobody uses: it is used from now on.
    fn take_target(&self) -> Option<String> {
        let name = {
            let model = self.life.model.borrow();
            let fits = |name: &str, volume: &Volume| {
                let followed = model.volumes.values().any(|other| other.follows(name));
                volume.is_settled() && volume.users == 0 && volume.mapped_before == 0 && !followed
            };
            // What was received before is where an increment goes.
            let copies = |name: &str, volume: &Volume| fits(name, volume) && volume.read_only;
            self.any_volume_by(copies).filter(|_| self.life.world.once_in(2)).or_else(|| self.any_volume_by(fits))?
        };
        self.life.model.borrow_mut().volume(&name).busy = true;
        Some(name)
    }

    /// The identity of what a volume that is taken holds, if that is known; a new one holds nothing. `None` if it is not told:
    /// the volume is given back.
    async fn holds(&mut self, name: &str, is_new: bool) -> Option<Option<Identity>> {
        if is_new {
            return Some(None);
        }
        let told = self.volume(name).await;
        if told.is_none() {
            self.life.model.borrow_mut().volume(name).busy = false;
        }
        told.map(|volume| volume?["contents"].as_str()?.parse().ok())
    }

    fn is_there(&self, name: &str) -> bool {
        self.life.model.borrow().volumes.get(name).is_some_and(Volume::is_settled)
    }

    /// Goes on with a transfer that broke off, or gives it up.
    async fn go_on(&mut self) {
        let names: Vec<String> = self.life.model.borrow().transfers.keys().cloned().collect();
        let Some(name) = names.get(self.life.world.below(names.len().max(1) as u64) as usize) else { return };
        let Some(token) = self.token(name).await else { return };
        if self.life.world.once_in(4) {
            return self.give_up(name).await;
        }
        let base = match token.base.map(|base| self.kept(base)) {
            Some(None) => return self.give_up(name).await,
            base => base.flatten(),
        };
        let Some(snapshot) = self.kept(token.target) else { return self.give_up(name).await };
        let is_new = !self.life.model.borrow().volumes.contains_key(name);
        if !is_new && !self.take(name) {
            return;
        }
        let Some(held) = self.holds(name, is_new).await else { return };
        let good = is_new || token.base.is_none() || held == token.base;
        let bytes = match self.rest_from_appliance(&snapshot, base.as_ref(), token).await {
            Some(bytes) => bytes,
            None => snapshot.encode(base.as_ref(), Some(token.resume), || self.life.world.once_in(3)),
        };
        let (name, is_increment, is_rest) = (name.clone(), base.is_some(), true);
        let (read_only, cut) = (is_new && self.life.world.once_in(2), None);
        let parcel = Parcel { name, is_new, snapshot, is_increment, is_rest, bytes, read_only, good, cut };
        self.spoil_and_put(parcel).await;
    }

    fn take(&self, name: &str) -> bool {
        let mut model = self.life.model.borrow_mut();
        let followed = model.volumes.values().any(|other| other.follows(name));
        let volume = model.volume(name);
        let free = volume.is_settled() && volume.users == 0 && !followed;
        volume.busy |= free;
        free
    }

    /// The rest of a stream, if its snapshots are still here.
    async fn rest_from_appliance(
        &mut self,
        snapshot: &Snapshot,
        base: Option<&Snapshot>,
        token: Token,
    ) -> Option<Vec<u8>> {
        let there = self.is_there(&snapshot.name) && base.is_none_or(|base| self.is_there(&base.name));
        if !there || self.life.world.once_in(2) {
            return None;
        }
        let from = base.map_or(String::new(), |base| format!("&from={}", base.name));
        self.fetch(&snapshot.name, &format!("?resume={token}{from}")).await
    }

    /// What a transfer that broke off can be gone on with. Waits until it is over.
    async fn token(&mut self, name: &str) -> Option<Token> {
        loop {
            let answer = self.ask("GET", &format!("/v1/volumes/{name}/receive"), None).await;
            if answer.status == 404 {
                // A failed request may have left what the appliance finds at its next start only.
                if !self.life.shape.faults.disks() {
                    self.life.model.borrow_mut().transfers.remove(name);
                }
                return None;
            }
            if !answer.is_ok() {
                assert!(self.life.troubled.get(), "a transfer's state is not told: {answer:?}");
                return None;
            }
            if answer.body["running"] == true {
                self.life.runtime.timers.sleep(Duration::from_millis(500)).await;
                continue;
            }
            let token = answer.body["resume"].as_str().and_then(|text| text.parse().ok());
            if !faults::lied() {
                let mut model = self.life.model.borrow_mut();
                // All was sent, and nobody knows yet whether the volume has it: then there is nothing to go on with.
                let decided = |volume: &Volume| volume.presence == Presence::There && !volume.may_be_exchanged();
                // A commit that failed at its end may be on the disk, and the appliance tells what was before it.
                let committed = model.needs_check.known() == Some(&false);
                let sure = token.is_some() && committed && model.volumes.get(name).is_none_or(decided);
                model.transfers.insert(name.to_owned(), Transfer { sure });
            }
            return token;
        }
    }

    async fn give_up(&mut self, name: &str) {
        self.doubt(name);
        let answer = self.ask("DELETE", &format!("/v1/volumes/{name}/receive"), None).await;
        self.expect_reason("giving up a transfer", &answer);
        if answer.is_ok() {
            self.life.model.borrow_mut().transfers.remove(name);
        }
    }

    /// What is kept of a transfer into the volume may change.
    fn doubt(&self, name: &str) {
        let mut model = self.life.model.borrow_mut();
        model.hidden = true;
        model.transfers.insert(name.to_owned(), Transfer { sure: false });
    }

    /// Sends a stream, now and then with damage, or only a part.
    async fn spoil_and_put(&mut self, mut parcel: Parcel) {
        let world = &self.life.world;
        let len = parcel.bytes.len() as u64;
        match world.below(10) {
            0..5 => {}
            5 => {
                let at = world.below(len) as usize;
                parcel.bytes[at] ^= 1 << world.below(8);
                parcel.good = false;
            }
            6 => {
                parcel.bytes.truncate(1 + world.below(len - 1) as usize);
                parcel.good = false;
            }
            _ => parcel.cut = Some(world.below(len) as usize),
        }
        self.put(parcel).await;
    }

    async fn put(&mut self, parcel: Parcel) {
        self.doubt(&parcel.name);
        let _asked = events::asked(Event::Receive);
        let mut line = Manager::connect(&self.life.site.http).expect("the appliance takes connections");
        let wire = line.wire.clone();
        self.life.trouble_a_wire(&wire);
        let (most, last) = parcel.bytes.split_at(parcel.bytes.len() - 1);
        let most = &most[..parcel.cut.unwrap_or(usize::MAX).min(most.len())];
        let sent = matches!(self.life.patiently(self.upload(&mut line, &parcel, most)).await, Some(Ok(())));
        let (mut begun, mut answer) = (0, None);
        if sent && parcel.cut.is_some() {
            if self.life.world.once_in(8) { wire.cut() } else { wire.reset() }
        } else {
            let _asked = sent.then(|| events::asked(Event::EndOfReceive));
            if sent {
                begun = if parcel.good { self.may_be_received(&parcel) } else { 0 };
                // Who is refused before the end may be gone already.
                let _ = self.life.patiently(line.upload(last)).await;
            }
            answer = self.life.patiently(line.answer()).await.and_then(Result::ok);
        }
        assert!(answer.is_some() || wire.is_troubled(), "a stream is not answered");
        let answer = answer.unwrap_or(Answer { status: UNANSWERED, body: serde_json::Value::Null });
        let may = sent && parcel.cut.is_none() && parcel.good;
        self.received(&parcel, begun, may, &answer).await;
    }

    async fn upload(&self, line: &mut Manager, parcel: &Parcel, bytes: &[u8]) -> Result<(), Broken> {
        let query = if parcel.read_only { "?read_only=yes" } else { "" };
        line.begin_upload(&format!("/v1/volumes/{}/stream{query}", parcel.name), parcel.bytes.len()).await?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at((1 + self.life.world.below(200_000) as usize).min(rest.len()));
            line.upload(now).await?;
            rest = later;
            if self.life.shape.aborts && self.life.world.once_in(4) {
                // What was received may be lost before it is verified.
                self.life.failure_wanted.set(true);
                for _ in 0..FAILURE_MILLIS {
                    if self.life.failure_wanted.get() {
                        self.life.runtime.timers.sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            // Between two checkpoints there is a second.
            if self.life.world.once_in(8) {
                self.life.rest(CHECKPOINT_PERIOD).await;
            } else {
                let micros = self.life.world.below(1500);
                self.life.runtime.timers.sleep(Duration::from_micros(micros)).await;
            }
        }
        Ok(())
    }

    /// From now on the volume may hold it.
    fn may_be_received(&self, parcel: &Parcel) -> u64 {
        let mut model = self.life.model.borrow_mut();
        let whole = Whole::known(parcel.snapshot.size_sectors, &parcel.snapshot.blocks);
        if parcel.is_new {
            let begun = model.begin_received(&parcel.name, whole);
            model.volume(&parcel.name).read_only = parcel.read_only;
            return begun;
        }
        model.begin_exchange(&parcel.name, whole);
        0
    }

    /// Finds out what came of a stream that may have been received, or not.
    async fn received(&mut self, parcel: &Parcel, begun: u64, may: bool, answer: &Answer) {
        let name = &parcel.name;
        assert!(!answer.is_ok() || may || faults::lied(), "a stream is taken that is none, or for something else");
        let refused = matches!(answer.status, 400 | 404 | 409);
        let explained = answer.is_ok() || refused || answer.status == UNANSWERED || self.life.troubled.get();
        assert!(explained, "a stream is not taken for no reason: {answer:?}");
        if answer.is_ok() {
            self.life.model.borrow_mut().transfers.remove(name);
        } else {
            self.token(name).await;
        }
        let taken = match answer.is_ok() {
            true => true,
            false if self.life.shape.faults.disks() => return,
            false => match self.volume(name).await {
                None => return,
                Some(found) => found.is_some_and(|found| found["contents"] == parcel.snapshot.identity.to_string()),
            },
        };
        self.settle_received(parcel, begun, may, taken, answer).await;
    }

    async fn settle_received(&mut self, parcel: &Parcel, begun: u64, may: bool, taken: bool, answer: &Answer) {
        let name = &parcel.name;
        {
            let streams = &mut self.life.model.borrow_mut().streams;
            streams.received += u64::from(may && taken);
            streams.increments += u64::from(may && taken && parcel.is_increment);
            streams.resumed += u64::from(may && taken && parcel.is_rest);
            streams.not_received += u64::from(!may || !taken);
        }
        if parcel.is_new {
            assert!(may || !taken || faults::lied(), "{name} is there, of which not all was sent");
            match (may, taken) {
                (true, true) => {
                    self.made(name, begun, answer).await;
                    self.life.model.borrow_mut().volume(name).busy = false;
                }
                (true, false) => self.life.model.borrow_mut().volume_gone(name),
                (false, _) => {}
            }
            return;
        }
        let mut model = self.life.model.borrow_mut();
        match (may, taken) {
            (true, true) => model.exchanged(name),
            (true, false) => model.not_exchanged(name),
            (false, _) => {}
        }
        model.volume(name).busy = false;
    }
}
