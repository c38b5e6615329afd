//! Snapshots of several volumes of one instant: all of them are there or none, and no write is in that was issued after the
//! end of another which is not, on whichever of the volumes the two were.

use super::contents::Version;
use super::{Model, Presence, Volume, Word, Words, Write};
use std::collections::BTreeMap;

/// Such snapshots.
pub(super) struct Moment {
    members: Vec<String>,
    /// When the answer said that they are there. Later writes to them are not of their origins.
    made_at: Option<u64>,
}

/// What a member tells of the instant.
#[derive(Debug, PartialEq, Eq)]
struct Bounds {
    /// When the last write was issued that is in.
    last_in: u64,
    /// When the first was acknowledged that is not.
    first_out: u64,
}

impl Bounds {
    /// Takes in what a sector holds that may have several versions.
    fn add(&mut self, versions: &[Version], made_at: u64, found: Word) {
        let inherited = |version: &&Version| version.begun < made_at;
        let candidates = || versions.iter().filter(|version| version.word == found);
        if !candidates().all(|version| inherited(&version)) {
            return;
        }
        let Some(begun) = candidates().map(|version| version.begun).min() else { return };
        let over = candidates().map(|version| version.ended.unwrap_or(u64::MAX)).max().unwrap_or(u64::MAX);
        self.last_in = self.last_in.max(begun);
        let missing = versions.iter().filter(inherited).filter(|version| version.word != found && version.begun > over);
        self.first_out = missing.filter_map(|version| version.done).fold(self.first_out, u64::min);
    }
}

impl Model {
    /// Snapshots of several volumes are about to be taken, which the model has already.
    pub fn begin_moment(&mut self, members: Vec<String>) {
        self.moments.push(Moment { members, made_at: None });
    }

    /// The snapshots of the last moment are there for good, all of them, or not.
    pub fn moment_over(&mut self, made: bool) {
        let now = self.now();
        if made {
            self.moments.last_mut().expect("a moment was begun").made_at = Some(now);
        } else {
            self.moments.pop();
        }
    }

    /// A write was acknowledged: snapshots that may have it are to know.
    pub(super) fn done_beside_moments(&mut self, write: &Write) {
        let now = self.now();
        for name in self.moments.iter().flat_map(|moment| &moment.members) {
            let follows = |volume: &&mut Volume| volume.snapshot_of.as_ref() == Some(&write.volume);
            let Some(volume) = self.volumes.get_mut(name).filter(follows) else { continue };
            for (_, versions) in volume.contents.doubtful.range_mut(write.sectors.clone()) {
                let same = versions.iter_mut().filter(|version| version.write == write.number);
                same.for_each(|version| version.done = Some(now));
            }
        }
    }

    /// Why no instant explains what was found of snapshots that were taken at one: which are there, and what is in them.
    pub fn objection_to_moments<'f>(&self, found: impl Fn(&str) -> Option<&'f [(u64, Words)]>) -> Option<String> {
        self.moments.iter().find_map(|moment| {
            let coming =
                |name: &&String| self.volumes.get(*name).is_some_and(|volume| volume.presence == Presence::Coming);
            let there: BTreeMap<&String, bool> =
                moment.members.iter().filter(coming).map(|name| (name, found(name).is_some())).collect();
            if there.values().any(|there| *there) && !there.values().all(|there| *there) {
                return Some(format!("of snapshots that were taken at once some are there: {there:?}"));
            }
            let bounds = self.bounds(moment, &found);
            (bounds.last_in >= bounds.first_out).then(|| {
                let members = &moment.members;
                format!("the snapshots {members:?} are not of one instant: {bounds:?}")
            })
        })
    }

    fn bounds<'f>(&self, moment: &Moment, found: impl Fn(&str) -> Option<&'f [(u64, Words)]>) -> Bounds {
        let mut bounds = Bounds { last_in: 0, first_out: u64::MAX };
        for name in &moment.members {
            let Some(volume) = self.volumes.get(name).filter(|volume| volume.other.is_none()) else { continue };
            if volume.exchanged_at > 0 {
                continue;
            }
            for (block, words) in found(name).into_iter().flatten() {
                let first = block * super::BLOCK;
                for (sector, versions) in volume.contents.doubtful.range(first..first + super::BLOCK) {
                    bounds.add(versions, moment.made_at.unwrap_or(u64::MAX), words[(sector - first) as usize]);
                }
            }
        }
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK, word};
    use super::*;

    /// Two volumes and a snapshot of each at one instant; a write to the one, and, when that was done, one to the other.
    fn model() -> (Model, [u64; 2]) {
        let mut model = Model::new(64, 64);
        for name in ["v", "w"] {
            let begun = model.begin_volume(name, 1000, None);
            model.volume_made(name, begun);
        }
        for (snapshot, of) in [("s", "v"), ("t", "w")] {
            model.begin_volume(snapshot, 1000, Some(of));
        }
        model.begin_moment(["s", "t"].map(str::to_owned).to_vec());
        let first = model.begin_write("v", 0..1, false);
        model.write_done(&first, false);
        let second = model.begin_write("w", 0..1, false);
        model.write_done(&second, false);
        (model, [first.number, second.number])
    }

    fn found(number: u64) -> Vec<(u64, Words)> {
        let mut words = [0; BLOCK as usize];
        words[0] = if number == 0 { 0 } else { word(number, 0) };
        vec![(0, words)]
    }

    #[test]
    fn no_write_is_in_without_those_that_were_done_before_it_was_issued() {
        let (model, [first, second]) = model();
        let objection = |one: u64, other: u64| {
            let (one, other) = (found(one), found(other));
            model.objection_to_moments(|name| Some(if name == "s" { &one[..] } else { &other[..] }))
        };
        assert_eq!((objection(0, 0), objection(first, 0), objection(first, second)), (None, None, None));
        assert!(objection(0, second).is_some());
    }

    #[test]
    fn all_are_there_or_none() {
        let (model, _) = model();
        let nothing: &[(u64, Words)] = &[];
        assert_eq!(model.objection_to_moments(|_| None), None);
        assert_eq!(model.objection_to_moments(|_| Some(nothing)), None);
        assert!(model.objection_to_moments(|name| (name == "s").then_some(nothing)).is_some());
    }
}
