//! Writes, and what becomes of them: also copies of what another volume holds.

use super::contents::{Known, Version};
use super::{Model, Volume, Word, word};
use std::ops::Range;

/// A write under way.
pub struct Write {
    pub volume: String,
    pub sectors: Range<u64>,
    pub number: u64,
    pub begun: u64,
}

impl Volume {
    /// Nobody changes it, and all that it holds is known, and who it is: it can be copied from.
    pub fn is_quiet(&self) -> bool {
        let known = self.mapped_before == 0 && self.contents.unknown.is_none() && self.known_as.is_some();
        self.is_usable() && self.users == 0 && self.sessions == 0 && known
    }
}

impl Model {
    /// A write of words of its own, or of zeroes, is about to be sent.
    pub fn begin_write(&mut self, name: &str, sectors: Range<u64>, zeroes: bool) -> Write {
        let number = self.writes + 1;
        let words = sectors.clone().map(|sector| (sector, if zeroes { 0 } else { word(number, sector) }));
        let words = words.collect::<Vec<_>>();
        self.begin(name, sectors, &words, zeroes)
    }

    /// A copy of the same sectors of `source`, which is quiet, is about to be asked for; it stays so until [`Model::copied`].
    pub fn begin_copy(&mut self, name: &str, source: &str, sectors: Range<u64>) -> Write {
        let from = self.volume(source);
        (from.busy, from.alone) = (true, false);
        let words = sectors.clone().flat_map(|sector| from.contents.readable(sector).map(move |word| (sector, word)));
        let words = words.collect::<Vec<_>>();
        self.volume(name).alone = false;
        // What the source has not mapped is unmapped.
        self.begin(name, sectors, &words, true)
    }

    /// Nobody copies from it any more.
    pub fn copied(&mut self, source: &str) {
        self.volume(source).busy = false;
    }

    /// A write is about to be sent, after which each sector holds one of its words.
    fn begin(&mut self, name: &str, sectors: Range<u64>, words: &[(u64, Word)], unmaps: bool) -> Write {
        self.writes += 1;
        let (number, begun) = (self.writes, self.now());
        for (own, volume) in &mut self.volumes {
            // A snapshot on its way may have it or not, and so has a volume that is exchanged while it is used.
            let (own, follows) = (own == name, |follows: &Option<String>| follows.as_deref() == Some(name));
            if own {
                volume.zeroed_at = if unmaps { begun } else { volume.zeroed_at };
                volume.expect_write(words);
            }
            let contents = (own || follows(&volume.follows)).then_some(&mut volume.contents);
            let other = volume.other.as_mut().filter(|other| own || follows(&other.follows));
            for contents in contents.into_iter().chain(other.map(|other| &mut other.contents)) {
                for (sector, word) in words {
                    let (ended, done, known, before) = (None, None, Known::Sent, None);
                    contents.push(*sector, Version { word: *word, write: number, begun, ended, done, known, before });
                }
            }
        }
        Write { volume: name.to_owned(), sectors, number, begun }
    }

    /// A write was acknowledged.
    pub fn write_done(&mut self, write: &Write, durable: bool) {
        let exchanged = self.volume(&write.volume).is_exchanged_since(write.begun);
        // Done while a transaction was lost: nobody knows whether it was in that.
        let known = match (write.begun <= self.lost_at, self.volume(&write.volume).sessions) {
            _ if exchanged => Known::Sent,
            (false, _) => Known::Done,
            (true, 0) => Known::Sent,
            (true, _) => Known::Shaken(self.lost_at),
        };
        self.write_ended(write, known);
        if known == Known::Done {
            self.done_beside_moments(write);
        }
        if durable && !exchanged {
            let contents = &mut self.volume(&write.volume).contents;
            contents.durable(write.sectors.clone(), |version| version.write == write.number);
        }
    }

    /// A write was answered by an error.
    pub fn write_failed(&mut self, write: &Write) {
        self.write_ended(write, Known::Sent);
    }

    /// A write was refused: nothing of it is anywhere.
    pub fn write_refused(&mut self, write: &Write) {
        for volume in self.volumes.values_mut() {
            for contents in volume.all_contents() {
                for (_, versions) in contents.doubtful.range_mut(write.sectors.clone()) {
                    versions.retain(|version| version.write != write.number);
                }
            }
        }
        // What is left may be beyond doubt.
        self.volume(&write.volume).contents.durable(write.sectors.clone(), |_| false);
    }

    fn write_ended(&mut self, write: &Write, known: Known) {
        let now = self.now();
        for contents in self.volume(&write.volume).all_contents() {
            for (_, versions) in contents.doubtful.range_mut(write.sectors.clone()) {
                for version in versions.iter_mut().filter(|version| version.write == write.number) {
                    (version.ended, version.known) = (Some(now), known);
                }
            }
        }
        if let Some(other) = &mut self.volume(&write.volume).other {
            other.never_sure();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MIXED;
    use super::*;

    fn read(model: &mut Model, name: &str, found: Word) -> bool {
        let reading = model.begin_read(name, 0..1);
        model.end_read(name, &reading, [found].into_iter()).is_none()
    }

    #[test]
    fn a_copy_has_what_its_source_may_hold() {
        let mut model = Model::new(64, 64);
        for name in ["from", "to"] {
            let begun = model.begin_volume(name, 1000, None);
            model.volume_made(name, begun);
        }
        let [one, two, other] = ["from", "from", "to"].map(|name| {
            let write = model.begin_write(name, 0..1, false);
            word(write.number, 0)
        });
        let copy = model.begin_copy("to", "from", 0..1);
        assert!(model.volumes["from"].busy && [0, one, two, other].iter().all(|word| model.may_read("to", 0, *word)));
        model.write_done(&copy, true);
        model.copied("from");
        assert!(!model.volumes["from"].busy && read(&mut model, "to", other), "that write has not ended");
        assert!([0, one, two].iter().all(|word| model.may_read("to", 0, *word)) && !model.may_read("to", 0, MIXED));
        let later = model.begin_write("from", 0..1, false);
        assert!(!model.may_read("to", 0, word(later.number, 0)));
    }
}
