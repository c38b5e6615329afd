//! Snapshots of several volumes at one instant, and the way back of a volume to one of its snapshots.

use crate::events::{self, Event};
use crate::http::Answer;
use crate::manager::{Worker, known_as};
use crate::model::Volume;
use serde_json::json;

/// Members of a group, at most.
const MEMBERS_MAX: u64 = 6;

/// EBUSY: a session that the network broke still has the volume, or it is being deleted.
const BUSY: u16 = 409;

impl Worker {
    /// Takes snapshots of some volumes at one instant.
    pub async fn snapshots_at_once(&mut self) {
        let read_only = self.life.world.once_in(3);
        let (begun, pairs) = self.begin_members(read_only);
        let names: Vec<String> = pairs.iter().map(|(_, name)| name.clone()).collect();
        if names.len() < 2 {
            names.iter().for_each(|name| self.life.model.borrow_mut().volume_gone(name));
            return;
        }
        self.life.model.borrow_mut().begin_moment(names.clone());
        let members: Vec<_> = pairs.iter().map(|(volume, name)| json!({ "volume": volume, "name": name })).collect();
        let body = json!({ "snapshots": members, "read_only": read_only }).to_string();
        let asked = events::asked(Event::Moment);
        let answer = self.ask("POST", "/v1/snapshots", Some(&body)).await;
        drop(asked);
        self.expect_reason("snapshots of several volumes", &answer);
        let Some(made) = self.are_made(&names, &answer).await else { return };
        {
            let mut model = self.life.model.borrow_mut();
            model.moment_over(made);
            let settle = |name| if made { model.volume_made(name, begun) } else { model.volume_gone(name) };
            names.iter().map(String::as_str).for_each(settle);
        }
        for name in names.iter().filter(|_| made) {
            self.set_export(name, true).await;
        }
    }

    /// Chooses volumes and new names for snapshots of them, of which the model knows from now on.
    fn begin_members(&mut self, read_only: bool) -> (u64, Vec<(String, String)>) {
        let (mut begun, mut pairs) = (0, Vec::new());
        for _ in 0..2 + self.life.world.below(MEMBERS_MAX - 1) {
            let is_new = |name: &str| pairs.iter().all(|(origin, _)| origin != name);
            // What is written is where order matters.
            let used = self.any_volume_by(|name, volume| is_new(name) && volume.is_settled() && volume.users > 0);
            let origin = used.or_else(|| self.any_volume_by(|name, volume| is_new(name) && volume.is_settled()));
            let Some((origin, name)) = origin.and_then(|origin| Some((origin, self.new_name()?))) else { break };
            let mut model = self.life.model.borrow_mut();
            let size_sectors = *model.volume(&origin).size_sectors.known().expect("nobody else resizes");
            begun = model.begin_volume(&name, size_sectors, Some(&origin));
            model.volume(&name).read_only = read_only;
            drop(model);
            pairs.push((origin, name));
        }
        (begun, pairs)
    }

    /// Whether all members of a group are there, or none; `None` if nobody can tell.
    async fn are_made(&mut self, names: &[String], answer: &Answer) -> Option<bool> {
        if answer.is_ok() {
            return Some(true);
        }
        if !self.can_be_seen(answer) {
            return None;
        }
        let mut there = 0;
        for name in names {
            there += usize::from(self.volume(name).await?.is_some());
        }
        assert!(there == 0 || there == names.len(), "{there} of {names:?} are there after {answer:?}");
        Some(there > 0)
    }

    /// Takes a volume back to one of its snapshots, also while it is used.
    pub async fn roll_back(&mut self) {
        let force = !self.life.shape.contest && self.life.world.once_in(2);
        let Some((name, to)) = self.any_way_back(force) else { return };
        let begun = self.life.model.borrow_mut().begin_roll_back(&name, &to);
        let body = json!({ "to": to, "force": force }).to_string();
        let asked = events::asked(Event::RollBack);
        let answer = self.ask("POST", &format!("/v1/volumes/{name}/roll-back"), Some(&body)).await;
        drop(asked);
        assert!(answer.is_ok() || answer.status == BUSY || self.life.troubled.get(), "a roll-back fails: {answer:?}");
        if answer.is_ok() {
            let mut model = self.life.model.borrow_mut();
            model.rolled_back(&name, &to, begun);
            model.identify(&name, known_as(&answer.body));
        } else if answer.status == BUSY {
            self.life.model.borrow_mut().not_exchanged(&name);
        }
    }

    /// A volume and one of its snapshots. Where sessions are at work the sizes are the same: they do not expect another.
    fn any_way_back(&self, force: bool) -> Option<(String, String)> {
        let model = self.life.model.borrow();
        let mut pairs = Vec::new();
        for (to, snapshot) in model.volumes.iter().filter(|(_, snapshot)| snapshot.is_settled()) {
            let Some(name) = &snapshot.snapshot_of else { continue };
            let fits = |volume: &&Volume| {
                let used = volume.users > 0;
                let whole = volume.is_settled() && !volume.read_only && volume.mapped_before == 0;
                whole && (!used || force && volume.size_sectors == snapshot.size_sectors)
            };
            pairs.extend(model.volumes.get(name).filter(fits).map(|_| (name.clone(), to.clone())));
        }
        (!pairs.is_empty()).then(|| pairs[self.life.world.below(pairs.len() as u64) as usize].clone())
    }
}
