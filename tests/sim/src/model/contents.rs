//! What the sectors of a volume may hold: of each the last write about which there is no doubt, and those that may have come
//! after it.

use super::{BLOCK, Word, Words};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

/// What a write left in a sector, or may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub word: Word,
    pub write: u64,
    pub begun: u64,
    /// When the initiator had its answer.
    pub ended: Option<u64>,
    /// When that said that it is done, of one that came while snapshots of several volumes were taken.
    pub done: Option<u64>,
    pub known: Known,
    /// This write came into the sector after it: somebody has read so.
    pub before: Option<u64>,
}

/// What is known of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It was sent; that may be all that was done with it.
    Sent,
    /// The initiator was told that it is done.
    Done,
    /// It was done, but a transaction was lost at this moment, and it may be gone. A flush that succeeds says that it is not.
    Shaken(u64),
    Durable,
}

impl Version {
    /// Whether there is no doubt that it came into the sector.
    pub fn is_sure(&self) -> bool {
        matches!(self.known, Known::Done | Known::Durable)
    }

    /// What was there before a write began that is sure.
    fn is_over(&self, sure_begun: u64) -> bool {
        self.ended.is_some_and(|ended| ended < sure_begun)
    }
}

/// Which of the versions may be there, if those that are `sure` came into the sector.
fn left(versions: &[Version], sure: impl Fn(&Version) -> bool) -> impl Iterator<Item = &Version> {
    let last_begun = versions.iter().filter(|version| sure(version)).map(|version| version.begun).max().unwrap_or(0);
    versions.iter().filter(move |version| {
        let later = || versions.iter().any(|later| Some(later.write) == version.before && sure(later));
        !(version.is_over(last_begun) || version.before.is_some() && later())
    })
}

/// The contents of a volume.
#[derive(Clone, Default)]
pub(super) struct Contents {
    /// By block, of all sectors about which there is no doubt; zeroes where there is nothing.
    pub base: BTreeMap<u64, Rc<Words>>,
    /// By sector, what it may hold; of writes that were under way at once, in any order.
    pub doubtful: BTreeMap<u64, Vec<Version>>,
    /// Sectors that others know of.
    pub unknown: Option<Range<u64>>,
}

impl Contents {
    pub fn base(&self, sector: u64) -> Word {
        self.base.get(&(sector / BLOCK)).map_or(0, |words| words[(sector % BLOCK) as usize])
    }

    pub fn set_base(&mut self, sector: u64, word: Word) {
        let words = self.base.entry(sector / BLOCK).or_insert_with(|| Rc::new([0; BLOCK as usize]));
        Rc::make_mut(words)[(sector % BLOCK) as usize] = word;
    }

    pub fn push(&mut self, sector: u64, version: Version) {
        let (word, known) = (self.base(sector), Known::Durable);
        let base = Version { word, write: 0, begun: 0, ended: Some(0), done: None, known, before: None };
        self.doubtful.entry(sector).or_insert_with(|| vec![base]).push(version);
    }

    /// All versions about which there is doubt.
    pub fn versions(&mut self) -> impl Iterator<Item = &mut Version> {
        self.doubtful.values_mut().flatten()
    }

    /// What a sector may hold after a power cut, for people; nothing if it may hold this.
    pub fn objection(&self, sector: u64, found: Word) -> Option<String> {
        if self.unknown.as_ref().is_some_and(|unknown| unknown.contains(&sector)) {
            return None;
        }
        match self.doubtful.get(&sector) {
            Some(versions) if versions.iter().any(|version| version.word == found) => None,
            Some(versions) => Some(format!("{versions:x?}")),
            None if self.base(sector) == found => None,
            None => Some(format!("{:x}", self.base(sector))),
        }
    }

    /// The first sector of a block that may not hold this after a power cut, and what it may hold, for people.
    pub fn objection_to_block(&self, block: u64, found: &Words) -> Option<(u64, String)> {
        let first = block * BLOCK;
        let base = self.base.get(&block).map_or(&[0; BLOCK as usize], |words| &**words);
        let mut doubtful = self.doubtful.range(first..first + BLOCK).peekable();
        (first..).zip(base.iter().zip(found)).find_map(|(sector, (base, word))| {
            let versions = doubtful.next_if(|(at, _)| **at == sector).map(|(_, versions)| versions);
            let allowed =
                versions.map_or(base == word, |versions| versions.iter().any(|version| version.word == *word));
            if allowed { None } else { self.objection(sector, *word).map(|objection| (sector, objection)) }
        })
    }

    /// What a sector may hold while the appliance runs.
    pub fn may_read(&self, sector: u64, found: Word) -> bool {
        if self.unknown.as_ref().is_some_and(|unknown| unknown.contains(&sector)) {
            return true;
        }
        let Some(versions) = self.doubtful.get(&sector) else { return self.base(sector) == found };
        left(versions, Version::is_sure).any(|version| version.word == found)
    }

    /// All that a sector may hold while the appliance runs.
    pub fn readable(&self, sector: u64) -> impl Iterator<Item = Word> {
        let doubtful = self.doubtful.get(&sector).map_or(&[][..], Vec::as_slice);
        let base = doubtful.is_empty().then(|| self.base(sector));
        left(doubtful, Version::is_sure).map(|version| version.word).chain(base)
    }

    /// Blocks with sectors in doubt, and those without that may hold something.
    pub fn blocks(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let doubtful: BTreeSet<u64> = self.doubtful.keys().map(|sector| sector / BLOCK).collect();
        let sure = self.base.keys().filter(|block| !doubtful.contains(block)).copied().collect();
        (doubtful, sure)
    }

    /// Blocks that are mapped for sure: something that is not zero is durable in them.
    pub fn surely_mapped(&self) -> BTreeSet<u64> {
        let (_, sure) = self.blocks();
        sure.into_iter().filter(|block| self.base[block].iter().any(|word| *word != 0)).collect()
    }

    /// What is in the sectors about which there is no doubt, other than zeroes.
    pub fn sure_words(&self) -> impl Iterator<Item = Word> {
        let sectors = self.base.iter().flat_map(|(block, words)| (block * BLOCK..).zip(words.iter().copied()));
        sectors.filter(|(sector, word)| *word != 0 && !self.doubtful.contains_key(sector)).map(|(_, word)| word)
    }

    /// Blocks that can be mapped, at most.
    pub fn most_mapped(&self) -> u64 {
        let (doubtful, sure) = self.blocks();
        (doubtful.len() + sure.len()) as u64
    }

    /// What a snapshot that is begun at this moment has.
    pub fn of_snapshot(&self, begun: u64) -> Contents {
        let mut contents = self.clone();
        contents.committed(begun);
        // What was not done yet may come into it for a while, and never becomes sure.
        let others = contents.versions().filter(|version| version.known != Known::Durable);
        others.for_each(|version| version.known = Known::Sent);
        contents.versions().for_each(|version| version.done = None);
        contents
    }

    /// The versions that are `covered` are durable.
    pub fn durable(&mut self, sectors: Range<u64>, covered: impl Fn(&Version) -> bool) {
        let mut settled = Vec::new();
        for (sector, versions) in self.doubtful.range_mut(sectors) {
            versions.iter_mut().filter(|version| covered(version)).for_each(|version| version.known = Known::Durable);
            let sure = |version: &Version| version.known == Known::Durable;
            if left(versions, sure).count() < versions.len() {
                *versions = left(versions, sure).copied().collect();
            }
            if let [only] = versions[..] {
                settled.push((*sector, only.word));
            }
        }
        for (sector, word) in settled {
            self.doubtful.remove(&sector);
            self.set_base(sector, word);
        }
    }

    /// What was done by `at` is durable; what a lost transaction may have taken is not, but if that was later.
    pub fn committed(&mut self, at: u64) {
        self.durable(0..u64::MAX, |version| {
            version.ended.is_some_and(|ended| ended <= at)
                && match version.known {
                    Known::Sent | Known::Durable => false,
                    Known::Done => true,
                    Known::Shaken(lost_at) => lost_at > at,
                }
        });
    }
}

/// Whether a version is there that a lost transaction may have taken nobody will ever say.
pub(super) fn forget_loss(version: &mut Version) {
    if let Known::Shaken(_) = version.known {
        version.known = Known::Sent;
    }
}
