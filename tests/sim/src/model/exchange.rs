//! All of what a volume holds exchanged at once, by a roll-back or a stream that was received: before it is known what came of
//! that, the volume is wholly the one or wholly the other.

use super::contents::{Contents, Known};
use super::{Maybe, Model, Sanitizing, Volume, Words};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a volume holds, as a whole.
pub struct Whole {
    pub(super) contents: Contents,
    pub(super) size_sectors: u64,
    /// Blocks that were mapped before the model knew of it.
    mapped_before: u64,
    /// What is written to this one meanwhile may be in, too.
    pub(super) follows: Option<String>,
}

impl Whole {
    /// What is known to the last sector: blocks, all others hold zeroes.
    pub fn known(size_sectors: u64, blocks: &BTreeMap<u64, Rc<Words>>) -> Whole {
        let contents = Contents { base: blocks.clone(), ..Contents::default() };
        Whole { contents, size_sectors, mapped_before: 0, follows: None }
    }

    /// Zeroes only.
    pub(super) fn empty(size_sectors: u64) -> Whole {
        Whole::known(size_sectors, &BTreeMap::new())
    }

    /// What is under way in the contents before may come after it.
    pub(super) fn take_under_way(&mut self, before: &Contents) {
        for (sector, versions) in &before.doubtful {
            for version in versions.iter().filter(|version| version.ended.is_none()) {
                self.contents.push(*sector, *version);
            }
        }
    }

    pub(super) fn most_mapped(&self) -> u64 {
        self.contents.most_mapped() + self.mapped_before
    }

    /// What is written meanwhile may have met what was there before.
    pub(super) fn never_sure(&mut self) {
        let others = self.contents.versions().filter(|version| version.known != Known::Durable);
        others.for_each(|version| version.known = Known::Sent);
    }
}

impl Volume {
    /// What it may hold: one of these.
    pub(super) fn each_contents(&self) -> impl Iterator<Item = &Contents> {
        [&self.contents].into_iter().chain(self.other.as_ref().map(|other| &other.contents))
    }

    pub(super) fn all_contents(&mut self) -> impl Iterator<Item = &mut Contents> {
        [&mut self.contents].into_iter().chain(self.other.as_mut().map(|other| &mut other.contents))
    }

    /// All that it holds is being exchanged.
    pub fn may_be_exchanged(&self) -> bool {
        self.other.is_some()
    }

    /// Why it cannot have been found like this: of this size, with so many mapped blocks and these contents of some.
    pub fn objection(&self, size_sectors: u64, mapped_blocks: u64, blocks: &[(u64, Words)]) -> Option<String> {
        let found = (size_sectors, mapped_blocks, blocks);
        let before = match self.sanitizing {
            Sanitizing::Begun => "it is being sanitized".to_owned(),
            _ => objection(&self.contents, &self.size_sectors, self.mapped_before, found)?,
        };
        let Some(other) = &self.other else { return Some(before) };
        let after = objection(&other.contents, &Maybe::is(other.size_sectors), other.mapped_before, found)?;
        Some(format!("{before}; or, if all of it was exchanged, {after}"))
    }

    fn exchange(&mut self, other: Whole, at: u64) {
        self.size_sectors.settle(other.size_sectors);
        (self.contents, self.mapped_before) = (other.contents, other.mapped_before);
        (self.exchanged_at, self.had_known_contents, self.made_at) = (at, true, None);
    }

    /// What was found after a power cut is one or the other.
    pub(super) fn settle_exchange(&mut self, size_sectors: u64, mapped_blocks: u64, blocks: &[(u64, Words)]) {
        let Some(other) = self.other.take() else { return };
        if self.objection(size_sectors, mapped_blocks, blocks).is_some() {
            self.exchange(other, 0);
        }
    }
}

fn objection(
    contents: &Contents,
    size: &Maybe<u64>,
    mapped_before: u64,
    (size_sectors, mapped_blocks, blocks): (u64, u64, &[(u64, Words)]),
) -> Option<String> {
    if !size.allows(&size_sectors) {
        return Some(format!("it has {size_sectors} sectors, not {size:?}"));
    }
    let (touched, most) = (contents.most_mapped(), contents.most_mapped() + mapped_before);
    if mapped_blocks > most {
        return Some(format!("it has {mapped_blocks} mapped blocks, at most {most} were written"));
    }
    if mapped_blocks + touched < mapped_before {
        return Some(format!(
            "it has {mapped_blocks} mapped blocks of {mapped_before}, and {touched} were unmapped at most"
        ));
    }
    blocks.iter().find_map(|(block, words)| {
        let (sector, allowed) = contents.objection_to_block(*block, words)?;
        let word = words[(sector % super::BLOCK) as usize];
        Some(format!("sector {sector} holds {word:x} after a power cut, not {allowed}"))
    })
}

impl Model {
    /// A volume is about to go back to one of its snapshots, whose size it gets; sessions may be at work on both.
    pub fn begin_roll_back(&mut self, name: &str, to: &str) -> u64 {
        let begun = self.now();
        let snapshot = &self.volumes[to];
        let mut other = Whole {
            contents: snapshot.contents.of_snapshot(begun),
            size_sectors: *snapshot.size_sectors.known().expect("nobody else resizes"),
            mapped_before: snapshot.mapped_before,
            follows: Some(to.to_owned()),
        };
        let volume = self.volume(name);
        other.take_under_way(&volume.contents);
        volume.alone = false;
        volume.other = Some(other);
        self.hidden = true;
        begun
    }

    /// It went back to its snapshot, in a commit.
    pub fn rolled_back(&mut self, name: &str, to: &str, begun: u64) {
        self.exchanged(name);
        self.volume(to).contents.committed(begun);
    }

    /// All that a volume holds may be this from now on.
    pub fn begin_exchange(&mut self, name: &str, other: Whole) {
        self.hidden = true;
        self.volume(name).alone = false;
        self.volume(name).other = Some(other);
    }

    /// It holds what it was to get.
    pub fn exchanged(&mut self, name: &str) {
        let now = self.now();
        let volume = self.volume(name);
        let other = volume.other.take().expect("an exchange was begun");
        volume.exchange(other, now);
    }

    /// A volume is about to be made that holds this.
    pub fn begin_received(&mut self, name: &str, whole: Whole) -> u64 {
        let begun = self.begin_volume(name, whole.size_sectors, None);
        let volume = self.volume(name);
        (volume.contents, volume.busy, volume.had_known_contents) = (whole.contents, true, true);
        volume.alone = false;
        begun
    }

    /// It holds what it held before.
    pub fn not_exchanged(&mut self, name: &str) {
        self.volume(name).other = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BLOCK, word};
    use super::*;

    fn rolled() -> (Model, [u64; 2]) {
        let mut model = Model::new(64, 64);
        let begun = model.begin_volume("v", 1000, None);
        model.volume_made("v", begun);
        let mut numbers = [0; 2];
        for (at, number) in numbers.iter_mut().enumerate() {
            let write = model.begin_write("v", 0..2, false);
            model.write_done(&write, true);
            *number = write.number;
            if at == 0 {
                let begun = model.begin_volume("s", 1000, Some("v"));
                model.volume_made("s", begun);
            }
        }
        model.begin_roll_back("v", "s");
        (model, numbers)
    }

    fn found(numbers: [u64; 2]) -> [(u64, Words); 1] {
        let mut words = [0; BLOCK as usize];
        numbers.iter().enumerate().for_each(|(sector, number)| words[sector] = word(*number, sector as u64));
        [(0, words)]
    }

    #[test]
    fn a_roll_back_is_whole_or_not_there() {
        let (model, [old, new]) = rolled();
        let objection = |numbers| model.volumes["v"].objection(1000, 1, &found(numbers));
        assert_eq!((objection([old, old]), objection([new, new])), (None, None));
        assert!(objection([old, new]).is_some() && objection([new, old]).is_some());
    }

    #[test]
    fn what_was_sent_before_the_answer_to_a_roll_back_may_be_gone() {
        let (mut model, [old, _]) = rolled();
        let write = model.begin_write("v", 0..1, false);
        model.rolled_back("v", "s", 0);
        model.write_done(&write, true);
        let objection = |model: &Model, numbers| model.volumes["v"].objection(1000, 1, &found(numbers));
        assert_eq!(objection(&model, [old, old]), None);
        assert_eq!(objection(&model, [write.number, old]), None);
        let later = model.begin_write("v", 0..1, false);
        model.write_done(&later, true);
        assert!(objection(&model, [old, old]).is_some());
        assert_eq!(objection(&model, [later.number, old]), None);
    }
}
