//! Reads while the appliance runs: what one may find that overlaps writes, and what it tells of those.

use super::contents::{Known, Version};
use super::{BLOCK, Model, Volume, Word, Words};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// What a read may find, besides what is there when it ends: what was there when it began, and what was sent meanwhile.
pub(super) struct Expected {
    sectors: Range<u64>,
    words: RefCell<Vec<(u64, Word)>>,
}

/// A read under way.
pub struct Reading {
    begun: u64,
    expected: Rc<Expected>,
}

impl Reading {
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// So many are read.
    pub fn sectors(&self) -> u64 {
        self.expected.sectors.end - self.expected.sectors.start
    }
}

impl Volume {
    /// A write of these words is about to be sent.
    pub(super) fn expect_write(&mut self, words: &[(u64, Word)]) {
        self.readings.retain(|reading| reading.strong_count() > 0);
        for reading in self.readings.iter().filter_map(|reading| reading.upgrade()) {
            let both = words.iter().filter(|(sector, _)| reading.sectors.contains(sector));
            reading.words.borrow_mut().extend(both);
        }
    }

    /// A read that began at `begun` has found this in a sector of which there are several versions: what was over before it
    /// began, and is not what it found, came before that.
    fn learn(&mut self, begun: u64, sector: u64, found: Word) {
        let Some(versions) = self.contents.doubtful.get_mut(&sector) else { return };
        let mut same = versions.iter().filter(|version| version.word == found);
        let (Some(only), None) = (same.next().copied(), same.next()) else { return };
        let made_at = self.made_at.filter(|made_at| *made_at < begun).unwrap_or(0);
        if only.begun < made_at {
            // A snapshot keeps what it has, and all of that is durable.
            versions.retain(|version| version.begun >= made_at || version.write == only.write);
            let own = versions.iter_mut().filter(|version| version.write == only.write);
            own.for_each(|version| version.known = Known::Durable);
            self.contents.durable(sector..sector + 1, |_| false);
        } else if only.is_sure() {
            let over = |version: &&mut Version| version.ended.is_some_and(|ended| ended < begun);
            let others = versions.iter_mut().filter(|version| version.write != only.write).filter(over);
            others.for_each(|version| version.before = Some(only.write));
        }
    }
}

impl Model {
    /// A read is about to be sent.
    pub fn begin_read(&mut self, name: &str, sectors: Range<u64>) -> Reading {
        let begun = self.now();
        let volume = self.volume(name);
        let words = volume.each_contents().flat_map(|contents| {
            sectors.clone().flat_map(|sector| contents.readable(sector).map(move |word| (sector, word)))
        });
        let expected = Rc::new(Expected { words: RefCell::new(words.collect()), sectors });
        volume.readings.push(Rc::downgrade(&expected));
        Reading { begun, expected }
    }

    /// Of what was found in blocks of a volume, that which it got as a snapshot, and has for good since it was made: when that
    /// was, the sectors about which there is doubt and their words.
    pub fn inherited(&self, name: &str, found: &[(u64, Words)]) -> impl Iterator<Item = (u64, u64, Word)> {
        let volume = self.volumes.get(name).filter(|volume| !volume.may_be_exchanged());
        let made = volume.and_then(|volume| Some((volume, volume.made_at?)));
        made.into_iter().flat_map(move |(volume, made_at)| {
            let sectors = found.iter().flat_map(|(block, words)| (block * BLOCK..).zip(words.iter().copied()));
            sectors.filter_map(move |(sector, word)| {
                let versions = volume.contents.doubtful.get(&sector)?;
                versions.iter().all(|version| version.begun < made_at).then_some((made_at, sector, word))
            })
        })
    }

    /// Why a read cannot have found this. What it found is known from now on.
    pub fn end_read(&mut self, name: &str, reading: &Reading, found: impl Iterator<Item = Word>) -> Option<String> {
        // It may have seen what was there before, or what is there instead.
        let volume = &self.volumes[name];
        if volume.is_exchanged_since(reading.begun) {
            return None;
        }
        let steady = !volume.may_be_exchanged();
        for (sector, word) in reading.expected.sectors.clone().zip(found) {
            if !self.may_read(name, sector, word) && !reading.expected.words.borrow().contains(&(sector, word)) {
                return Some(format!("sector {sector} reads as {word:x}, not {}", self.describe(name, sector)));
            }
            if steady {
                self.volume(name).learn(reading.begun, sector, word);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::word;
    use super::*;

    fn model() -> Model {
        let mut model = Model::new(64, 64);
        let begun = model.begin_volume("v", 1000, None);
        model.volume_made("v", begun);
        model
    }

    fn read(model: &mut Model, name: &str, found: Word) -> bool {
        let reading = model.begin_read(name, 0..1);
        model.end_read(name, &reading, [found].into_iter()).is_none()
    }

    #[test]
    fn a_read_may_find_what_was_there_when_it_began_and_what_was_sent_meanwhile() {
        let mut model = model();
        let reading = model.begin_read("v", 0..1);
        let writes = [(); 3].map(|()| {
            let write = model.begin_write("v", 0..1, false);
            model.write_done(&write, true);
            word(write.number, 0)
        });
        for found in [0, writes[0], writes[1], writes[2]] {
            assert_eq!(model.end_read("v", &reading, [found].into_iter()), None);
        }
        assert!(!read(&mut model, "v", writes[1]) && read(&mut model, "v", writes[2]));
        assert!(model.end_read("v", &reading, [word(9, 0)].into_iter()).is_some());
    }

    #[test]
    fn what_was_read_was_the_last_of_writes_at_once() {
        let mut model = model();
        let (one, two) = (model.begin_write("v", 0..1, false), model.begin_write("v", 0..1, false));
        model.write_done(&one, false);
        model.write_done(&two, false);
        let (one, two) = (word(one.number, 0), word(two.number, 0));
        assert!(read(&mut model, "v", one));
        assert!(!read(&mut model, "v", two) && read(&mut model, "v", one));
        let may_remain = |model: &Model, found| model.volumes["v"].contents.objection(0, found).is_none();
        assert!(may_remain(&model, two), "neither was flushed");
        let begun = model.now();
        model.flushed("v", begun);
        assert!(!may_remain(&model, two) && may_remain(&model, one));
    }

    #[test]
    fn a_snapshot_keeps_what_was_read_once() {
        let mut model = model();
        let write = model.begin_write("v", 0..1, false);
        let begun = model.begin_volume("s", 1000, Some("v"));
        model.volume_made("s", begun);
        assert!(read(&mut model, "s", 0));
        model.write_done(&write, true);
        assert!(!read(&mut model, "s", word(write.number, 0)));
        assert!(model.volumes["s"].contents.objection(0, word(write.number, 0)).is_some());
    }
}
