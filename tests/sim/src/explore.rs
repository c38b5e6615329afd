//! Power cuts: at moments between two events of a run, what the disks might hold is taken apart from it, recovered, and
//! compared with the model. The run itself notices nothing.

use crate::disk::{Outstanding, SimDisk};
use crate::events::{self, Counts, EVENTS, Event};
use crate::faults;
use crate::judge;
use crate::lies;
use crate::model::{Model, Sanitizing, Streams, Word};
use crate::recover::{self, Found, Remains, Wanted};
use crate::world::mix;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use xtask::dice::Dice;

/// Durable states seen, by all threads.
pub type Seen = Arc<Mutex<HashSet<u64>>>;

/// Of so many crash points one is recovered by a whole appliance, the others by a pool.
const APPLIANCE_ONE_IN: u64 = 8;

/// After so many recoveries by a pool one uses it, too.
const USE_ONE_IN: u64 = 8;

/// After so many recoveries `thin_check` is asked, too.
const THIN_CHECK_ONE_IN: u64 = 300;

/// Blocks of a volume, beyond those in doubt, that a recovery reads.
const SURE_BLOCKS: usize = 6;

/// Crash points of one run that hit an event, before that event stops being sought.
const SOUGHT: u64 = 10;

/// The same of those that happen in few runs.
const SOUGHT_RARE: u64 = 48;

/// Of so many moments in which nothing is sought the power fails at one.
const OTHERS_ONE_IN: u64 = 24;

/// What came of exploring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Crash points: something was unflushed, and the durable state was not seen before.
    pub points: u64,
    /// Of these, recovered by a whole appliance.
    pub by_appliance: u64,
    /// Of these, accepted by `thin_check`, where it is there.
    pub thin_checked: u64,
    /// Of these, with so much of each in the open transaction.
    pub hit: Counts,
    /// Power cuts after a disk lied: no crash points, for nobody knows what must be there.
    pub after_lies: u64,
    /// Power cuts during repairs.
    pub in_repairs: u64,
    /// What was done to the disks.
    pub deeds: faults::Counts,
    pub streams: Streams,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.points += other.points;
        self.by_appliance += other.by_appliance;
        self.thin_checked += other.thin_checked;
        self.after_lies += other.after_lies;
        self.in_repairs += other.in_repairs;
        faults::add(&mut self.deeds, &other.deeds);
        self.streams.received += other.streams.received;
        self.streams.increments += other.streams.increments;
        self.streams.resumed += other.streams.resumed;
        self.streams.not_received += other.streams.not_received;
        self.streams.sanitized += other.streams.sanitized;
        self.hit.iter_mut().zip(other.hit).for_each(|(mine, other)| *mine += other);
    }
}

/// Takes runs apart.
pub struct Explorer {
    meta: SimDisk,
    data: SimDisk,
    model: Rc<RefCell<Model>>,
    dice: RefCell<Dice>,
    /// `None`: it only cuts the power for good.
    seen: Option<Seen>,
    tally: Rc<RefCell<Tally>>,
    completions: Cell<u64>,
    /// What was found in snapshots that were there for good, by their names and when they were made.
    snapshots: RefCell<BTreeMap<(String, u64), BTreeMap<u64, Word>>>,
}

/// Which unflushed writes a power cut keeps.
enum Fate {
    All,
    None,
    /// Those of one disk.
    Meta,
    Data,
    /// Those up to some moment, or from it on.
    Before(u64),
    After(u64),
    /// Each request whole or not at all.
    Whole,
    /// Sector by sector.
    Torn,
    /// All but one.
    AllBut,
    Only,
}

impl Explorer {
    pub fn new(
        meta: &SimDisk,
        data: &SimDisk,
        model: &Rc<RefCell<Model>>,
        seed: u64,
        seen: Option<&Seen>,
        tally: &Rc<RefCell<Tally>>,
    ) -> Explorer {
        Explorer {
            meta: meta.clone(),
            data: data.clone(),
            model: model.clone(),
            dice: RefCell::new(Dice::new(seed)),
            seen: seen.cloned(),
            tally: tally.clone(),
            completions: Cell::new(0),
            snapshots: RefCell::default(),
        }
    }

    fn below(&self, limit: u64) -> u64 {
        self.dice.borrow_mut().below(limit)
    }

    /// Between two events of the run.
    pub fn look(&self) {
        let Some(seen) = &self.seen else { return };
        let completions = self.meta.completions() + self.data.completions();
        if self.completions.replace(completions) == completions {
            return;
        }
        let (open, hit) = (events::open(), self.tally.borrow().hit);
        let rare = EVENTS.iter().any(|(event, _)| {
            let sought = if matches!(event, Event::Split | Event::DeleteStep) { SOUGHT_RARE } else { SOUGHT };
            open[*event as usize] && hit[*event as usize] < sought
        });
        let times = match rare {
            true if open[Event::DeleteStep as usize] => 60 + self.below(60),
            true if open[Event::Abort as usize] => 20 + self.below(20),
            true if [Event::Split, Event::Merge, Event::Moment].iter().any(|event| open[*event as usize]) => {
                4 + self.below(8)
            }
            true => 1 + self.below(6),
            false => u64::from(self.below(OTHERS_ONE_IN) == 0),
        };
        for _ in 0..times {
            self.cut_here(seen);
        }
    }

    fn cut_here(&self, seen: &Seen) {
        let (unflushed, remains) = self.cut();
        let state = mix(remains.meta.hash()) ^ remains.data.hash();
        let is_new = seen.lock().expect("no thread panics while it holds this").insert(state);
        if !unflushed || !is_new {
            return;
        }
        let appliance = self.below(APPLIANCE_ONE_IN) == 0;
        if faults::lied() {
            self.tally.borrow_mut().after_lies += 1;
            return self.recover_after_lies(remains, appliance);
        }
        {
            let mut tally = self.tally.borrow_mut();
            tally.points += 1;
            tally.by_appliance += u64::from(appliance);
            let open = events::open();
            tally.hit.iter_mut().zip(open).for_each(|(count, open)| *count += u64::from(open));
        }
        let (seed, wanted) = (self.below(u64::MAX), self.wanted(SURE_BLOCKS));
        let use_it = self.below(USE_ONE_IN) == 0;
        let left = self.model.borrow_mut().not_erased(remains.data.first_words());
        assert!(left.is_none(), "a volume was sanitized, and {left:x?} is on the data disk still");
        let metadata = (self.below(THIN_CHECK_ONE_IN) == 0).then(|| remains.meta.clone());
        let found = events::muted(|| {
            if appliance {
                recover::by_appliance(remains, seed, wanted)
            } else {
                recover::by_pool(remains, seed, wanted, use_it)
            }
        });
        recover::judge(&self.model.borrow(), &found);
        self.compare_snapshots(&found);
        let asked = metadata.filter(|_| !found.blank).is_some_and(|metadata| judge::accepts(&metadata));
        self.tally.borrow_mut().thin_checked += u64::from(asked);
    }

    /// What a snapshot got from its origin is the same after every power cut. Nobody but the explorer learns it: the run must
    /// not depend on that.
    fn compare_snapshots(&self, found: &Found) {
        let (model, mut known) = (self.model.borrow(), self.snapshots.borrow_mut());
        for (name, volume) in &found.volumes {
            for (made_at, sector, word) in model.inherited(name, &volume.blocks) {
                let before = *known.entry((name.clone(), made_at)).or_default().entry(sector).or_insert(word);
                assert_eq!(before, word, "sector {sector} of snapshot {name} is not always the same");
            }
        }
    }

    fn recover_after_lies(&self, remains: Remains, appliance: bool) {
        let (seed, wanted) = (self.below(u64::MAX), self.wanted(SURE_BLOCKS));
        events::muted(|| {
            if appliance {
                lies::by_appliance(remains, seed, wanted);
            } else {
                lies::by_pool(remains, seed, wanted);
            }
        });
    }

    /// The life ends with a power cut, and the next begins with what it left; `None` if there is none, for a disk lied.
    /// Whatever was explored before, the cut is the one that this seed decides.
    pub fn cut_for_good(&self, seed: u64) -> Option<Remains> {
        self.dice.replace(Dice::new(seed));
        let (_, remains) = self.cut();
        if faults::lied() {
            self.recover_after_lies(remains, false);
            return None;
        }
        let wanted = self.wanted(usize::MAX);
        let found = events::muted(|| recover::by_pool(remains.clone(), self.below(u64::MAX), wanted, false));
        let mut model = self.model.borrow_mut();
        recover::judge(&model, &found);
        settle(&mut model, &found);
        Some(remains)
    }

    /// What a power cut might leave now, and whether it decides anything.
    fn cut(&self) -> (bool, Remains) {
        let (meta, data) = (self.meta.outstanding(), self.data.outstanding());
        let fate = self.fate();
        let salt = self.below(u64::MAX);
        let some = |seed: u64| mix(seed ^ salt) & 1 == 0;
        let all = meta.len() + data.len();
        let chosen = self.below(all.max(1) as u64) as usize;
        let keeps = |mine: &[Outstanding], first: usize, is_meta: bool, request: u64, sector: u64| {
            let number = || first + mine.iter().position(|other| other.request == request).unwrap_or(0);
            match fate {
                Fate::All => true,
                Fate::None => false,
                Fate::Meta => is_meta,
                Fate::Data => !is_meta,
                Fate::Before(part) => mine.first().is_some_and(|oldest| request < oldest.request + part),
                Fate::After(part) => mine.first().is_some_and(|oldest| request >= oldest.request + part),
                Fate::Whole => some(request << 1 | u64::from(is_meta)),
                Fate::Torn => some(request << 1 | u64::from(is_meta)) && some(sector) || some(!sector),
                Fate::AllBut => number() != chosen,
                Fate::Only => number() == chosen,
            }
        };
        let remains = Remains {
            meta: self.meta.cut(|request, sector| keeps(&meta, 0, true, request, sector)),
            data: self.data.cut(|request, sector| keeps(&data, meta.len(), false, request, sector)),
        };
        (all > 0, remains)
    }

    fn fate(&self) -> Fate {
        match self.below(16) {
            0 => Fate::All,
            1 => Fate::None,
            2 | 3 => Fate::Meta,
            4 => Fate::Data,
            5 => Fate::Before(self.below(20)),
            6 => Fate::After(self.below(20)),
            7 => Fate::AllBut,
            8 => Fate::Only,
            9..12 => Fate::Torn,
            _ => Fate::Whole,
        }
    }

    /// The blocks to look at: those in doubt, and some others.
    fn wanted(&self, sure_blocks: usize) -> Wanted {
        let model = self.model.borrow();
        let wanted = model.volumes.keys().map(|name| {
            let (doubtful, sure) = model.blocks(name);
            let (mut blocks, sure) = (doubtful, Vec::from_iter(sure));
            if sure.len() <= sure_blocks {
                blocks.extend(sure);
            } else {
                blocks.extend((0..sure_blocks).map(|_| sure[self.below(sure.len() as u64) as usize]));
            }
            (name.clone(), blocks.into_iter().collect())
        });
        let blocks = wanted.collect::<BTreeMap<_, _>>();
        let sanitizing = model.volumes.values().any(|volume| volume.sanitizing != Sanitizing::Not);
        Wanted { blocks, transfers: model.transfers.keys().cloned().collect(), hidden: model.hidden, sanitizing }
    }
}

/// What was found after a power cut is what there is from now on.
fn settle(model: &mut Model, found: &Found) {
    model.restarted();
    model.formatted |= found.adopted;
    model.held.settle(found.held);
    model.needs_check.settle(found.needs_check);
    if !found.blank {
        model.transaction_id.settle(found.transaction_id);
        model.data_blocks.settle(found.data_blocks);
        model.metadata_blocks.settle(found.metadata_blocks);
    }
    model.volumes.retain(|name, _| found.volumes.contains_key(name));
    model.transfers.retain(|name, _| found.kept.iter().any(|kept| kept.name == *name));
    model.transfers.values_mut().for_each(|transfer| transfer.sure = true);
    for (name, seen) in &found.volumes {
        model.settle_volume(name, seen);
        for (block, words) in &seen.blocks {
            model.settle_block(name, *block, words);
        }
    }
}

/// The events' names, and how often each was hit.
pub fn table(tally: &Tally) -> impl Iterator<Item = (&'static str, u64)> {
    EVENTS.iter().zip(tally.hit).map(|((_, name), hit)| (*name, hit))
}
