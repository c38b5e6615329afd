//! What the appliance was told and what it answered: the model that everything found is compared with.
//!
//! Of each sector the model keeps what it may hold: "old or new, nothing else". What a completed flush, FUA write or
//! snapshot covers is new. The same goes for everything that the management interface changes.

mod contents;
mod exchange;
mod moment;
mod reading;
mod reservation;
mod sanitize;
mod writes;

use crate::faults;
use crate::history::{History, Reservation};
use crate::recover::FoundVolume;
use crate::streams::Snapshot;
use contents::{Contents, Known, forget_loss};
pub use exchange::Whole;
use moment::Moment;
use reading::Expected;
pub use reading::Reading;
pub use sanitize::Sanitizing;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
pub use writes::Write;

/// Sectors in a data block of every pool here.
pub const BLOCK: u64 = 128;

/// The size of a volume that has none, for it was made by a message.
pub const UNSET: u64 = 0;

/// What a sector holds: one number, over and over. It tells which write it is from, and for which sector.
pub type Word = u64;

/// No write leaves this: the sector is a mixture.
pub const MIXED: Word = u64::MAX;

/// The word of a sector in write number `write`.
pub fn word(write: u64, sector: u64) -> Word {
    write << 24 | sector
}

/// The number of the write that left this word in a sector; 0 for zeroes, `None` if none did.
pub fn number_of(found: Word, sector: u64) -> Option<u64> {
    let number = found >> 24;
    (found == 0 || number > 0 && found == word(number, sector)).then_some(number)
}

/// The words of a data block.
pub type Words = [Word; BLOCK as usize];

/// A value that may be changing: what it may be after a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maybe<T>(Vec<T>);

impl<T: Clone + PartialEq> Maybe<T> {
    pub fn is(value: T) -> Maybe<T> {
        Maybe(vec![value])
    }

    /// The change to `value` begins.
    pub fn may_become(&mut self, value: T) {
        if !self.0.contains(&value) {
            self.0.push(value);
        }
    }

    /// It is known to be this.
    pub fn settle(&mut self, value: T) {
        self.0 = vec![value];
    }

    pub fn allows(&self, value: &T) -> bool {
        self.0.contains(value)
    }

    /// The value, if there is only one that it can be.
    pub fn known(&self) -> Option<&T> {
        if let [value] = &self.0[..] { Some(value) } else { None }
    }
}

/// Whether a volume is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Being made: it may be there.
    Coming,
    There,
    /// Being deleted: it may be there, whole or in part.
    Going,
}

/// A volume.
pub struct Volume {
    pub presence: Presence,
    pub size_sectors: Maybe<u64>,
    pub exported: Maybe<bool>,
    /// Sessions, logins included.
    pub users: usize,
    /// Sessions that are sure to keep it open.
    sessions: usize,
    /// Blocks that were mapped before the model knew of it.
    pub mapped_before: u64,
    /// Initiators may only read it.
    pub read_only: bool,
    /// It was made as a snapshot of this one.
    pub snapshot_of: Option<String>,
    /// A stream is being received into it, or others copy from it.
    pub busy: bool,
    /// Its number and its identity, once they were told: they stay.
    pub known_as: Option<(u64, String)>,
    contents: Contents,
    /// What it may hold instead, all of it: it is being exchanged.
    other: Option<Whole>,
    /// It got all of what it holds from a stream or a snapshot, once: the appliance may know what that is.
    pub had_known_contents: bool,
    /// When contents were exchanged last.
    exchanged_at: u64,
    /// When zeroes were sent last, or an unmap.
    zeroed_at: u64,
    /// It never shared blocks with others, nor got any of a stream.
    alone: bool,
    pub sanitizing: Sanitizing,
    lost_while_sanitized: bool,
    /// When that was over last.
    sanitized_at: u64,
    /// When it was made, in this life, as what it holds.
    made_at: Option<u64>,
    /// Reads under way.
    readings: Vec<Weak<Expected>>,
    /// It is being made as a snapshot of this one.
    follows: Option<String>,
}

impl Volume {
    /// It is there for sure, and nobody knows of a change of its size or of all that it holds.
    pub fn is_settled(&self) -> bool {
        let sized = self.size_sectors.known().is_some_and(|size| *size != UNSET);
        self.presence == Presence::There && sized && self.other.is_none() && !self.busy
    }

    /// It is being made as a snapshot of that one.
    pub fn follows(&self, name: &str) -> bool {
        self.follows.as_deref() == Some(name)
    }

    /// A write that was sent at `begun` may have met what was exchanged since.
    pub fn is_exchanged_since(&self, begun: u64) -> bool {
        begun <= self.exchanged_at
    }

    /// Blocks may have been unmapped since, and mapped again.
    pub fn is_zeroed_since(&self, begun: u64) -> bool {
        begun <= self.zeroed_at
    }

    /// It came to be since, or is about to: before, another may have had its name.
    pub fn is_made_since(&self, begun: u64) -> bool {
        self.presence == Presence::Coming || self.made_at.is_some_and(|at| begun <= at)
    }

    /// It can be logged in to.
    pub fn is_usable(&self) -> bool {
        self.is_settled() && self.exported.known() == Some(&true)
    }
}

/// What became of streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    pub received: u64,
    /// Of these, increments.
    pub increments: u64,
    /// Of these, the rest of one that broke off.
    pub resumed: u64,
    pub not_received: u64,
    /// Volumes sanitized.
    pub sanitized: u64,
}

/// A transfer that may have broken off and can be gone on with then.
pub struct Transfer {
    /// It can be for sure: the appliance said so, and nothing was done to it since.
    pub sure: bool,
}

/// Everything that is known of a pool.
pub struct Model {
    pub volumes: BTreeMap<String, Volume>,
    /// A metadata snapshot is held.
    pub held: Maybe<bool>,
    pub transaction_id: Maybe<u64>,
    pub data_blocks: Maybe<u64>,
    pub metadata_blocks: Maybe<u64>,
    pub needs_check: Maybe<bool>,
    /// The pool was served once, so it exists.
    pub formatted: bool,
    /// What a client keeps of snapshots.
    pub library: Vec<Snapshot>,
    /// Transfers that may have broken off, by the volume that they are for.
    pub transfers: BTreeMap<String, Transfer>,
    /// Hidden volumes may be there.
    pub hidden: bool,
    pub streams: Streams,
    /// When volumes that were there went.
    gone: BTreeMap<String, u64>,
    writes: u64,
    clock: u64,
    /// The last loss of a transaction.
    lost_at: u64,
    /// Snapshots of several volumes.
    moments: Vec<Moment>,
    /// Words that no sector of the data disk may hold any more: a volume that was alone had them, and was sanitized.
    erased: BTreeSet<Word>,
    erased_looks: u64,
    /// Who has reserved a volume, by its name.
    reservations: BTreeMap<String, Rc<RefCell<History<Reservation>>>>,
}

impl Model {
    pub fn new(metadata_blocks: u64, data_blocks: u64) -> Model {
        Model {
            volumes: BTreeMap::new(),
            held: Maybe::is(false),
            transaction_id: Maybe::is(0),
            data_blocks: Maybe::is(data_blocks),
            metadata_blocks: Maybe::is(metadata_blocks),
            needs_check: Maybe::is(false),
            formatted: false,
            library: Vec::new(),
            transfers: BTreeMap::new(),
            hidden: false,
            streams: Streams::default(),
            gone: BTreeMap::new(),
            writes: 0,
            clock: 0,
            lost_at: 0,
            moments: Vec::new(),
            erased: BTreeSet::new(),
            erased_looks: 0,
            reservations: BTreeMap::new(),
        }
    }

    pub fn volume(&mut self, name: &str) -> &mut Volume {
        self.volumes.get_mut(name).expect("who names a volume knows that it is in the model")
    }

    /// A moment later than all before.
    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A flush that was sent at `begun` was acknowledged: no transaction that was lost had anything that it promises.
    pub fn flushed(&mut self, name: &str, begun: u64) {
        self.volume(name).contents.durable(0..u64::MAX, |version| {
            version.known != Known::Sent && version.ended.is_some_and(|ended| ended <= begun)
        });
    }

    /// A session keeps the volume open, until [`Model::session_over`].
    pub fn session_begun(&mut self, name: &str) {
        self.volume(name).sessions += 1;
    }

    /// A session is about to end. With the last of a volume it is forgotten whether flushes must fail, for changes were lost
    /// (reference 6.6).
    pub fn session_over(&mut self, name: &str) {
        let volume = self.volume(name);
        volume.sessions -= 1;
        if volume.sessions == 0 {
            volume.contents.versions().for_each(forget_loss);
        }
    }

    /// When a transaction was last lost.
    pub fn last_loss(&self) -> u64 {
        self.lost_at
    }

    /// The pool lost what was not committed.
    pub fn transaction_lost(&mut self) {
        self.lost_at = self.now();
        self.needs_check.may_become(true);
        for volume in self.volumes.values_mut() {
            volume.lost_while_sanitized |= volume.sanitizing != Sanitizing::Not;
            volume.contents.versions().for_each(|version| version.done = None);
            for version in volume.contents.versions().filter(|version| version.known == Known::Done) {
                version.known = Known::Shaken(self.lost_at);
                if volume.sessions == 0 {
                    forget_loss(version);
                }
            }
        }
    }

    /// A volume is about to be made.
    pub fn begin_volume(&mut self, name: &str, size_sectors: u64, of: Option<&str>) -> u64 {
        let begun = self.now();
        let contents = of.map_or_else(Contents::default, |of| self.volume(of).contents.of_snapshot(begun));
        let volume = Volume {
            presence: Presence::Coming,
            size_sectors: Maybe::is(size_sectors),
            exported: Maybe::is(false),
            users: 0,
            sessions: 0,
            mapped_before: of.map_or(0, |of| self.volume(of).mapped_before),
            read_only: false,
            snapshot_of: of.map(str::to_owned),
            busy: false,
            known_as: None,
            contents,
            other: None,
            had_known_contents: false,
            exchanged_at: 0,
            zeroed_at: 0,
            alone: of.is_none(),
            sanitizing: Sanitizing::Not,
            lost_while_sanitized: false,
            sanitized_at: 0,
            made_at: None,
            readings: Vec::new(),
            follows: of.map(str::to_owned),
        };
        self.volumes.insert(name.to_owned(), volume);
        if let Some(origin) = of.and_then(|of| self.volumes.get_mut(of)) {
            origin.alone = false;
        }
        begun
    }

    /// It is there for good. A snapshot made durable what its origin had been told at `begun`.
    pub fn volume_made(&mut self, name: &str, begun: u64) {
        let now = self.now();
        let volume = self.volume(name);
        (volume.presence, volume.made_at) = (Presence::There, Some(now));
        volume.contents.versions().for_each(|version| version.ended = Some(version.ended.unwrap_or(now)));
        if let Some(origin) = volume.follows.take() {
            self.volume(&origin).contents.committed(begun);
        }
    }

    /// Which volume it is was told: its number and identity, which stay.
    pub fn identify(&mut self, name: &str, told: Option<(u64, String)>) {
        let Some(volume) = self.volumes.get_mut(name) else { return };
        let same = volume.known_as.is_none() || told.is_none() || volume.known_as == told;
        assert!(same || faults::lied(), "volume {name} is {told:?}, which was {:?}", volume.known_as);
        volume.known_as = told.or(volume.known_as.take());
    }

    /// The NAA designator of a volume whose identity was told: its last bytes, behind a company id (`appliance::units`).
    pub fn naa(&self, name: &str) -> [u8; 16] {
        let (_, identity) = self.volumes[name].known_as.as_ref().expect("its identity was told");
        let own = u128::from_str_radix(identity, 16).expect("32 hexadecimal digits") & (u128::MAX >> 28);
        (0x602_4753 << 100 | own).to_be_bytes()
    }

    /// It is not there. One that gets its name later is another.
    pub fn volume_gone(&mut self, name: &str) {
        self.volumes.remove(name);
        let now = self.now();
        self.gone.insert(name.to_owned(), now);
        let orphans = self.volumes.values_mut().filter(|volume| volume.snapshot_of.as_deref() == Some(name));
        orphans.for_each(|volume| volume.snapshot_of = None);
    }

    /// It is there, or went after `begun`: who was asked then may tell of it.
    pub fn was_there_since(&self, name: &str, begun: u64) -> bool {
        self.volumes.contains_key(name) || self.gone.get(name).is_some_and(|gone| *gone >= begun)
    }

    /// Blocks about which there is doubt.
    pub fn doubtful_blocks(&self, name: &str) -> Vec<u64> {
        self.volumes[name].contents.blocks().0.into_iter().collect()
    }

    /// The volume of these that was made last, in this life.
    pub fn youngest<'n>(&self, names: &[&'n String]) -> Option<&'n String> {
        let made = names.iter().filter_map(|name| Some((self.volumes[*name].made_at?, *name)));
        made.max().map(|(_, name)| name)
    }

    /// What a sector may hold while the appliance runs.
    pub fn may_read(&self, name: &str, sector: u64, found: Word) -> bool {
        self.volumes[name].each_contents().any(|contents| contents.may_read(sector, found))
    }

    /// What it may hold after a power cut, for people.
    pub fn describe(&self, name: &str, sector: u64) -> String {
        let contents = &self.volumes[name].contents;
        contents.objection(sector, MIXED).unwrap_or_else(|| "anything".to_owned())
    }

    /// Blocks with sectors in doubt, and those without that may hold something.
    pub fn blocks(&self, name: &str) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let mut all = (BTreeSet::new(), BTreeSet::new());
        for (doubtful, sure) in self.volumes[name].each_contents().map(Contents::blocks) {
            all.0.extend(doubtful);
            all.1.extend(sure);
        }
        all.1.retain(|block| !all.0.contains(block));
        all
    }

    /// Blocks that are mapped for sure.
    pub fn surely_mapped(&self, name: &str) -> BTreeSet<u64> {
        let mapped = self.volumes[name].each_contents().map(Contents::surely_mapped);
        mapped.reduce(|one, other| &one & &other).expect("a volume holds something")
    }

    /// Blocks that it can have mapped, at most.
    pub fn most_mapped(&self, name: &str) -> u64 {
        let volume = &self.volumes[name];
        let other = volume.other.as_ref().map_or(0, Whole::most_mapped);
        (volume.contents.most_mapped() + volume.mapped_before).max(other)
    }

    /// Takes over what was found of a volume after a power cut.
    pub fn settle_volume(&mut self, name: &str, seen: &FoundVolume) {
        let volume = self.volume(name);
        volume.presence = if seen.deleting { Presence::Going } else { Presence::There };
        if seen.sanitizing {
            volume.settle_on_the_way(seen.size_sectors(), &seen.blocks);
        } else {
            volume.settle_exchange(seen.size_sectors(), seen.mapped_blocks, &seen.blocks);
            (volume.sanitizing, volume.busy) = (Sanitizing::Not, false);
        }
        volume.size_sectors.settle(seen.size_sectors());
        volume.exported.settle(seen.exported);
        volume.known_as = seen.known_as.clone().or(volume.known_as.take());
    }

    /// Takes over what was found in a block after a power cut.
    pub fn settle_block(&mut self, name: &str, block: u64, words: &Words) {
        let contents = &mut self.volume(name).contents;
        for (sector, word) in (block * BLOCK..).zip(words) {
            if contents.doubtful.remove(&sector).is_some() {
                contents.set_base(sector, *word);
            }
        }
    }

    /// A new life of the appliance: nobody works on anything.
    pub fn restarted(&mut self) {
        for volume in self.volumes.values_mut() {
            (volume.users, volume.sessions, volume.follows) = (0, 0, None);
            volume.busy &= volume.sanitizing != Sanitizing::Not;
            volume.made_at = None;
        }
        self.moments.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Model {
        fn may_remain(&self, name: &str, sector: u64, found: Word) -> bool {
            self.volumes[name].contents.objection(sector, found).is_none()
        }
    }

    fn model() -> Model {
        let mut model = Model::new(64, 64);
        let begun = model.begin_volume("v", 1000, None);
        model.volume_made("v", begun);
        model
    }

    #[test]
    fn a_write_is_old_or_new_until_it_is_flushed() {
        let mut model = model();
        let write = model.begin_write("v", 5..6, false);
        let new = word(write.number, 5);
        assert!(model.may_read("v", 5, 0) && model.may_read("v", 5, new) && !model.may_read("v", 5, MIXED));
        model.write_done(&write, false);
        assert!(!model.may_read("v", 5, 0) && model.may_remain("v", 5, 0) && model.may_remain("v", 5, new));
        let begun = model.now();
        model.flushed("v", begun);
        assert!(!model.may_remain("v", 5, 0) && model.may_remain("v", 5, new));
    }

    #[test]
    fn a_flush_does_not_cover_what_was_done_after_it_began() {
        let mut model = model();
        let begun = model.now();
        let write = model.begin_write("v", 5..6, false);
        model.write_done(&write, false);
        model.flushed("v", begun);
        assert!(model.may_remain("v", 5, 0));
    }

    #[test]
    fn a_snapshot_has_what_was_done_and_may_have_what_is_under_way() {
        let mut model = model();
        let first = model.begin_write("v", 0..1, false);
        model.write_done(&first, false);
        let second = model.begin_write("v", 1..2, false);
        let begun = model.begin_volume("s", 1000, Some("v"));
        let third = model.begin_write("v", 2..3, false);
        model.volume_made("s", begun);
        for (write, sector, old) in [(&first, 0, false), (&second, 1, true), (&third, 2, true)] {
            assert_eq!(model.may_remain("s", sector, 0), old);
            assert!(model.may_remain("s", sector, word(write.number, sector)));
        }
        let later = model.begin_write("v", 0..1, false);
        assert!(!model.may_read("s", 0, word(later.number, 0)));
        assert!(!model.may_remain("v", 0, 0), "the snapshot made it durable");
    }

    #[test]
    fn a_lost_transaction_puts_what_was_done_in_doubt_until_a_flush_says_that_it_is_there() {
        let mut model = model();
        model.session_begun("v");
        let done = model.begin_write("v", 0..1, false);
        model.write_done(&done, false);
        let under_way = model.begin_write("v", 1..2, false);
        model.transaction_lost();
        model.write_done(&under_way, false);
        assert!(model.may_read("v", 0, 0) && model.may_read("v", 1, 0));
        let begun = model.now();
        model.flushed("v", begun);
        assert!(!model.may_remain("v", 0, 0) && !model.may_remain("v", 1, 0));
    }

    #[test]
    fn what_a_flush_covered_stays_whatever_transaction_is_lost() {
        let mut model = model();
        let write = model.begin_write("v", 0..1, false);
        model.write_done(&write, false);
        let begun = model.now();
        model.flushed("v", begun);
        model.transaction_lost();
        assert!(!model.may_read("v", 0, 0) && !model.may_remain("v", 0, 0));
    }

    #[test]
    fn a_volume_that_nobody_has_open_forgets_that_changes_were_lost() {
        let mut model = model();
        model.session_begun("v");
        let write = model.begin_write("v", 0..1, false);
        model.write_done(&write, false);
        model.transaction_lost();
        model.session_over("v");
        let begun = model.now();
        model.flushed("v", begun);
        assert!(model.may_remain("v", 0, 0) && model.may_remain("v", 0, word(write.number, 0)));
    }

    #[test]
    fn of_writes_at_once_either_may_have_been_the_last() {
        let mut model = model();
        let (one, two) = (model.begin_write("v", 0..1, false), model.begin_write("v", 0..1, false));
        model.write_done(&two, true);
        model.write_done(&one, true);
        for write in [&one, &two] {
            assert!(model.may_read("v", 0, word(write.number, 0)) && model.may_remain("v", 0, word(write.number, 0)));
        }
        assert!(!model.may_remain("v", 0, 0));
        let later = model.begin_write("v", 0..1, false);
        model.write_done(&later, false);
        assert!(!model.may_read("v", 0, word(one.number, 0)) && model.may_remain("v", 0, word(one.number, 0)));
    }
}
