//! A volume that is sanitized: it holds what it held, or nothing; on the way, of which its record tells, anything between.

use super::contents::Contents;
use super::exchange::Whole;
use super::{Model, Volume, Word, Words};
use std::collections::BTreeSet;

/// So many times it is looked whether anything is left of a volume that was sanitized.
const ERASED_LOOKS: u64 = 50;

/// How far a volume is with being sanitized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sanitizing {
    #[default]
    Not,
    /// It was asked for.
    Asked,
    /// It has begun, and ends with nothing left, whatever happens.
    Begun,
}

impl Volume {
    /// It was sanitized since, or that was asked for: what was sent at `begun` may have been refused.
    pub fn may_be_sanitized_since(&self, begun: u64) -> bool {
        self.sanitizing != Sanitizing::Not || begun <= self.sanitized_at
    }

    /// All that it holds is its own, and some of that is there for sure.
    pub fn is_alone(&self) -> bool {
        self.alone && self.contents.sure_words().next().is_some()
    }

    /// It ends as an empty volume, which nobody has seen yet.
    pub fn ends_empty(&self) -> bool {
        self.sanitizing == Sanitizing::Begun && self.exported.known() == Some(&true)
    }

    /// Why a volume whose record says that it is being sanitized cannot have been found like this.
    pub fn objection_on_the_way(&self, blocks: &[(u64, Words)]) -> Option<String> {
        if self.sanitizing == Sanitizing::Not {
            return Some("it is being sanitized, which nobody asked for".to_owned());
        }
        let sectors = blocks.iter().flat_map(|(block, words)| (block * super::BLOCK..).zip(words));
        let mut others = sectors.filter(|(_, word)| **word != 0);
        others.find_map(|(sector, word)| {
            let allowed = self.contents.objection(sector, *word)?;
            Some(format!("sector {sector} holds {word:x} while it is sanitized, not {allowed}, and no zeroes"))
        })
    }

    /// A transaction was lost meanwhile: it may have failed, and fail again with the next start, for others share blocks since.
    pub fn may_fail_to_be_sanitized(&self) -> bool {
        self.sanitizing != Sanitizing::Not && self.lost_while_sanitized
    }

    /// It was found on the way.
    pub(super) fn settle_on_the_way(&mut self, size_sectors: u64, blocks: &[(u64, Words)]) {
        (self.sanitizing, self.other) = (Sanitizing::Begun, Some(Whole::empty(size_sectors)));
        self.contents = Contents::default();
        for (sector, word) in blocks.iter().flat_map(|(block, words)| (block * super::BLOCK..).zip(words)) {
            self.contents.set_base(sector, *word);
        }
    }
}

impl Model {
    /// A volume is about to be sanitized, while sessions are at work on it; false if others change it, too.
    pub fn begin_sanitize(&mut self, name: &str) -> bool {
        let followed = self.volumes.values().any(|other| other.follows(name));
        let volume = self.volume(name);
        if followed || !volume.is_settled() || volume.read_only || volume.mapped_before > 0 {
            return false;
        }
        let mut other = Whole::empty(*volume.size_sectors.known().expect("it is settled"));
        other.take_under_way(&volume.contents);
        (volume.other, volume.busy, volume.sanitizing) = (Some(other), true, Sanitizing::Asked);
        true
    }

    /// It goes on by itself.
    pub fn sanitize_begun(&mut self, name: &str) {
        self.volume(name).sanitizing = Sanitizing::Begun;
    }

    /// Nothing of what the volume held is left.
    pub fn sanitized(&mut self, name: &str) {
        let volume = self.volume(name);
        let erased: BTreeSet<Word> =
            if volume.alone { volume.contents.sure_words().collect() } else { BTreeSet::new() };
        self.streams.sanitized += 1;
        if !erased.is_empty() {
            (self.erased, self.erased_looks) = (erased, ERASED_LOOKS);
        }
        self.exchanged(name);
        self.sanitize_over(name);
    }

    /// It was refused.
    pub fn not_sanitized(&mut self, name: &str) {
        self.not_exchanged(name);
        self.sanitize_over(name);
    }

    fn sanitize_over(&mut self, name: &str) {
        let now = self.now();
        let volume = self.volume(name);
        (volume.busy, volume.sanitizing, volume.sanitized_at) = (false, Sanitizing::Not, now);
        volume.lost_while_sanitized = false;
    }

    /// Of these words, which are on the data disk, one that is to be there no more.
    pub fn not_erased(&mut self, mut found: impl Iterator<Item = Word>) -> Option<Word> {
        self.erased_looks = self.erased_looks.saturating_sub(1);
        if self.erased.is_empty() || self.erased_looks == 0 {
            return None;
        }
        found.find(|word| self.erased.contains(word))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK, word};
    use super::*;

    fn model() -> (Model, u64) {
        let mut model = Model::new(64, 64);
        let begun = model.begin_volume("v", 1000, None);
        model.volume_made("v", begun);
        let write = model.begin_write("v", 0..2, false);
        model.write_done(&write, true);
        (model, write.number)
    }

    fn found(words: [Word; 2]) -> [(u64, Words); 1] {
        let mut all = [0; BLOCK as usize];
        all[..2].copy_from_slice(&words);
        [(0, all)]
    }

    #[test]
    fn a_volume_is_erased_as_a_whole_once_its_record_tells_of_nothing() {
        let (mut model, number) = model();
        let old = [word(number, 0), word(number, 1)];
        let whole = |model: &Model, words: [Word; 2]| {
            let mapped_blocks = u64::from(words != [0, 0]);
            model.volumes["v"].objection(1000, mapped_blocks, &found(words)).is_none()
        };
        let half = |model: &Model, words| model.volumes["v"].objection_on_the_way(&found(words)).is_none();
        assert!(!half(&model, old), "nobody asked for it");
        assert!(model.begin_sanitize("v") && !model.begin_sanitize("v"));
        assert!(whole(&model, old) && whole(&model, [0, 0]) && !whole(&model, [0, old[1]]));
        assert!(half(&model, [0, old[1]]) && !half(&model, [0, old[0]]));
        model.sanitize_begun("v");
        assert!(!whole(&model, old) && whole(&model, [0, 0]) && half(&model, old));
        model.sanitized("v");
        assert!(!whole(&model, old) && whole(&model, [0, 0]) && !half(&model, [0, 0]));
        assert_eq!((model.not_erased(old.into_iter()), model.not_erased([0, 7].into_iter())), (Some(old[0]), None));
    }

    #[test]
    fn what_was_sent_before_the_end_may_come_after_it() {
        let (mut model, _) = model();
        assert!(model.begin_sanitize("v"));
        let write = model.begin_write("v", 0..1, false);
        model.sanitized("v");
        model.write_done(&write, false);
        assert!(model.may_read("v", 0, word(write.number, 0)) && model.may_read("v", 0, 0));
        assert!(model.may_read("v", 1, 0) && !model.may_read("v", 1, word(1, 1)));
    }
}
