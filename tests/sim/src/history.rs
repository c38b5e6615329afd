//! Whether what several initiators were answered can be explained by one order of their commands, in which each takes
//! effect at one moment between its being sent and its answer (linearizability). The check is exact: it keeps everything
//! that may be the case.

use std::collections::{BTreeMap, BTreeSet};

/// What commands see and change.
pub trait Object: Clone + Ord {
    type Command;
    type Answer: Clone + Ord;

    /// The command takes effect.
    fn carry_out(&mut self, command: &Self::Command) -> Self::Answer;
}

/// What may be the case: the object, and which of the commands under way took effect, with their answers.
type Case<O> = (O, BTreeMap<u64, <O as Object>::Answer>);

/// The commands on one object.
pub struct History<O: Object> {
    cases: BTreeSet<Case<O>>,
    under_way: BTreeMap<u64, O::Command>,
    sent: u64,
}

impl<O: Object> History<O> {
    /// Nothing was sent yet.
    pub fn new(object: O) -> History<O> {
        History::of_any([object])
    }

    /// Nothing was sent yet, and nobody knows which of these it is.
    pub fn of_any(objects: impl IntoIterator<Item = O>) -> History<O> {
        let cases = objects.into_iter().map(|object| (object, BTreeMap::new())).collect();
        History { cases, under_way: BTreeMap::new(), sent: 0 }
    }

    /// What the object may be now.
    pub fn possible(&mut self) -> BTreeSet<O> {
        self.go_on();
        self.cases.iter().map(|(object, _)| object.clone()).collect()
    }

    /// A command is about to be sent; returns its number.
    pub fn begin(&mut self, command: O::Command) -> u64 {
        self.sent += 1;
        self.under_way.insert(self.sent, command);
        self.sent
    }

    /// A command was answered. False if no order of the commands explains that.
    #[must_use]
    pub fn answered(&mut self, command: u64, answer: &O::Answer) -> bool {
        self.end(command, |took_effect| took_effect == Some(answer))
    }

    /// A command was refused: it never takes effect.
    #[must_use]
    pub fn refused(&mut self, command: u64) -> bool {
        self.end(command, |took_effect| took_effect.is_none())
    }

    /// A command was never answered; if it did not take effect yet it never does.
    #[must_use]
    pub fn lost(&mut self, command: u64) -> bool {
        self.end(command, |_| true)
    }

    fn end(&mut self, command: u64, fits: impl Fn(Option<&O::Answer>) -> bool) -> bool {
        self.go_on();
        self.under_way.remove(&command);
        let cases = std::mem::take(&mut self.cases).into_iter().filter_map(|(object, mut answers)| {
            let took_effect = answers.remove(&command);
            fits(took_effect.as_ref()).then_some((object, answers))
        });
        self.cases = cases.collect();
        !self.cases.is_empty()
    }

    /// Any of the commands under way may take effect, in any order.
    fn go_on(&mut self) {
        let mut new: Vec<Case<O>> = self.cases.iter().cloned().collect();
        while let Some((object, answers)) = new.pop() {
            for (number, command) in self.under_way.iter().filter(|(number, _)| !answers.contains_key(number)) {
                let (mut object, mut answers) = (object.clone(), answers.clone());
                answers.insert(*number, object.carry_out(command));
                let case = (object, answers);
                if self.cases.insert(case.clone()) {
                    new.push(case);
                }
            }
        }
    }
}

/// Some sectors that are always written together: it holds the number of a write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Register(pub u64);

/// A command on a register.
#[derive(Clone, Copy, Debug)]
pub enum Touch {
    Read,
    Write(u64),
    CompareAndWrite { expected: u64, new: u64 },
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    Holds(u64),
    Written,
    /// Nothing was written.
    Differs,
}

impl Object for Register {
    type Command = Touch;
    type Answer = Touched;

    fn carry_out(&mut self, command: &Touch) -> Touched {
        match *command {
            Touch::Read => return Touched::Holds(self.0),
            Touch::Write(new) => self.0 = new,
            Touch::CompareAndWrite { expected, .. } if self.0 != expected => return Touched::Differs,
            Touch::CompareAndWrite { new, .. } => self.0 = new,
        }
        Touched::Written
    }
}

/// Sectors in which bits are set, and none is cleared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits(pub u64);

/// A command on bits: these are set, or, if there are none, it reads.
pub struct Set(pub u64);

impl Object for Bits {
    type Command = Set;
    /// What a read finds.
    type Answer = u64;

    fn carry_out(&mut self, Set(bits): &Set) -> u64 {
        self.0 |= bits;
        if *bits == 0 { self.0 } else { 0 }
    }
}

/// Types of persistent reservations (SPC-4 section 5.13).
pub const RESERVATION_TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

/// The persistent reservation of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    registered: BTreeSet<u64>,
    /// Who holds it, and of which type it is. Where all who are registered hold it, one of them.
    held: Option<(u64, u8)>,
    /// All of this outlives a restart (APTPL).
    persists: bool,
}

/// What a restart must leave of a reservation: who is registered, who holds it, or [`EVERYBODY`], and its type.
pub type Kept = (BTreeSet<u64>, Option<(u64, u8)>);

/// All who are registered.
pub const EVERYBODY: u64 = u64::MAX;

/// What an initiator asks that has a key of its own.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// To read or write.
    Read,
    Write,
    /// REGISTER AND IGNORE EXISTING KEY, its key or none.
    Register {
        persists: bool,
    },
    Unregister {
        persists: bool,
    },
    /// A reservation of this type.
    Reserve(u8),
    Release(u8),
    Clear,
    /// The victim loses its registration; if it holds the reservation there is one of this type instead.
    Preempt {
        victim: u64,
        kind: u8,
    },
    /// READ KEYS, READ RESERVATION.
    Keys,
    Holder,
}

/// What is said to that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    Allowed,
    /// RESERVATION CONFLICT.
    Conflict,
    /// INVALID RELEASE OF PERSISTENT RESERVATION: it is of another type.
    OtherType,
    Keys(BTreeSet<u64>),
    /// By whom, and the type. Of what all hold who are registered nobody's key is told.
    Held(Option<(u64, u8)>),
}

/// All who are registered hold a reservation of this type.
pub fn is_held_by_all(kind: u8) -> bool {
    matches!(kind, 7 | 8)
}

impl Reservation {
    /// As a restart finds it.
    pub fn restarted(&self) -> Reservation {
        let left = if self.persists { self.clone() } else { Reservation::default() };
        Reservation { persists: !left.registered.is_empty(), ..left }
    }

    /// Somebody is registered.
    pub fn is_used(&self) -> bool {
        !self.registered.is_empty()
    }

    /// What outlives a restart.
    pub fn kept(&self) -> Kept {
        if self.persists { (self.registered.clone(), self.told()) } else { Kept::default() }
    }

    /// Who is not registered may not read.
    pub fn is_closed_to_strangers(&self) -> bool {
        !self.allows(EVERYBODY, false)
    }

    fn told(&self) -> Option<(u64, u8)> {
        self.held.map(|(holder, kind)| (if is_held_by_all(kind) { EVERYBODY } else { holder }, kind))
    }

    fn holds(&self, initiator: u64) -> bool {
        match self.held {
            Some((_, kind)) if is_held_by_all(kind) => self.registered.contains(&initiator),
            held => held.is_some_and(|(holder, _)| holder == initiator),
        }
    }

    fn allows(&self, initiator: u64, writes: bool) -> bool {
        let Some((_, kind)) = self.held else { return true };
        let registrants = kind >= 5 && self.registered.contains(&initiator);
        let reads_freely = matches!(kind, 1 | 5 | 7);
        self.holds(initiator) || registrants || !writes && reads_freely
    }

    fn unregister(&mut self, initiator: u64) {
        let held = self.holds(initiator);
        self.registered.remove(&initiator);
        if held {
            let other = self.registered.first().copied();
            let by_all = self.held.filter(|(_, kind)| is_held_by_all(*kind));
            self.held = by_all.and_then(|(_, kind)| Some((other?, kind)));
        }
    }

    fn release(&mut self, initiator: u64, kind: u8) -> Said {
        match self.held {
            Some((_, held)) if self.holds(initiator) && held != kind => return Said::OtherType,
            Some(_) if self.holds(initiator) => self.held = None,
            _ => {}
        }
        Said::Allowed
    }

    fn preempt(&mut self, initiator: u64, victim: u64, kind: u8) -> Said {
        if !self.registered.remove(&victim) {
            return Said::Conflict;
        }
        self.held = self.held.map(|(holder, held)| match holder == victim {
            true => (initiator, if is_held_by_all(held) { held } else { kind }),
            false => (holder, held),
        });
        Said::Allowed
    }
}

impl Object for Reservation {
    /// From whom, and what.
    type Command = (u64, Ask);
    type Answer = Said;

    fn carry_out(&mut self, &(initiator, ask): &(u64, Ask)) -> Said {
        let said = |allowed| if allowed { Said::Allowed } else { Said::Conflict };
        match ask {
            Ask::Read => return said(self.allows(initiator, false)),
            Ask::Write => return said(self.allows(initiator, true)),
            Ask::Keys => return Said::Keys(self.registered.clone()),
            Ask::Holder => return Said::Held(self.told()),
            Ask::Register { persists } => {
                self.registered.insert(initiator);
                self.persists = persists;
            }
            Ask::Unregister { persists } => {
                self.unregister(initiator);
                self.persists = persists;
            }
            _ if !self.registered.contains(&initiator) => return Said::Conflict,
            Ask::Reserve(kind) => match self.held {
                None => self.held = Some((initiator, kind)),
                Some((_, held)) => return said(self.holds(initiator) && held == kind),
            },
            Ask::Release(kind) => return self.release(initiator, kind),
            Ask::Clear => (self.registered, self.held) = (BTreeSet::new(), None),
            Ask::Preempt { victim, kind } => return self.preempt(initiator, victim, kind),
        }
        Said::Allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWAP: Touch = Touch::CompareAndWrite { expected: 0, new: 7 };

    #[test]
    fn a_read_during_a_write_finds_old_or_new_and_none_goes_back() {
        let mut history = History::new(Register(0));
        let write = history.begin(Touch::Write(5));
        let read = history.begin(Touch::Read);
        assert!(history.answered(read, &Touched::Holds(5)));
        let read = history.begin(Touch::Read);
        assert!(!history.answered(read, &Touched::Holds(0)), "it was there before");
        let mut history = History::new(Register(0));
        let _ = (write, history.begin(Touch::Write(5)));
        let read = history.begin(Touch::Read);
        assert!(history.answered(read, &Touched::Holds(0)));
        let read = history.begin(Touch::Read);
        assert!(history.answered(read, &Touched::Holds(5)));
    }

    #[test]
    fn of_two_that_compare_with_the_same_one_writes() {
        let mut history = History::new(Register(0));
        let (one, two) = (history.begin(SWAP), history.begin(Touch::CompareAndWrite { expected: 0, new: 8 }));
        assert!(history.answered(one, &Touched::Written));
        assert!(!history.answered(two, &Touched::Written));
    }

    #[test]
    fn what_was_refused_did_nothing_and_what_was_lost_may_have_done_it() {
        let mut history = History::new(Register(0));
        let (refused, lost) = (history.begin(Touch::Write(5)), history.begin(Touch::Write(6)));
        assert!(history.refused(refused) && history.lost(lost));
        for found in [5, 0, 6] {
            let mut later = History { cases: history.cases.clone(), under_way: BTreeMap::new(), sent: 9 };
            let read = later.begin(Touch::Read);
            assert_eq!(later.answered(read, &Touched::Holds(found)), found != 5);
        }
        let read = history.begin(Touch::Read);
        assert!(history.answered(read, &Touched::Holds(0)));
        let read = history.begin(Touch::Read);
        assert!(!history.answered(read, &Touched::Holds(6)), "it comes too late");
    }

    #[test]
    fn bits_that_were_set_stay() {
        let mut history = History::new(Bits(1));
        let (one, two) = (history.begin(Set(2)), history.begin(Set(4)));
        assert!(history.answered(one, &0) && history.answered(two, &0));
        let read = history.begin(Set(0));
        assert!(!history.answered(read, &5), "one of them is lost");
    }

    #[test]
    fn a_reservation_keeps_others_out_until_it_is_taken_over() {
        let mut unit = Reservation::default();
        let register = Ask::Register { persists: true };
        let all = [
            ((1, Ask::Reserve(1)), Said::Conflict),
            ((1, register), Said::Allowed),
            ((1, Ask::Reserve(1)), Said::Allowed),
            ((1, Ask::Reserve(3)), Said::Conflict),
            ((1, Ask::Release(3)), Said::OtherType),
            ((2, Ask::Write), Said::Conflict),
            ((2, Ask::Read), Said::Allowed),
            ((2, register), Said::Allowed),
            ((2, Ask::Reserve(1)), Said::Conflict),
            ((2, Ask::Preempt { victim: 1, kind: 3 }), Said::Allowed),
            ((1, Ask::Read), Said::Conflict),
            ((1, Ask::Release(3)), Said::Conflict),
            ((2, Ask::Write), Said::Allowed),
        ];
        for (command, says) in all {
            assert_eq!(unit.carry_out(&command), says, "{command:?}");
        }
        assert_eq!(unit.carry_out(&(1, Ask::Keys)), Said::Keys([2].into()));
        assert_eq!(unit.kept(), ([2].into(), Some((2, 3))));
        assert_eq!(unit.carry_out(&(2, Ask::Unregister { persists: false })), Said::Allowed);
        assert_eq!((unit.carry_out(&(1, Ask::Write)), unit.kept()), (Said::Allowed, Kept::default()));
    }

    #[test]
    fn who_is_registered_holds_what_all_hold() {
        let mut unit = Reservation::default();
        for initiator in [1, 2, 3] {
            unit.carry_out(&(initiator, Ask::Register { persists: false }));
        }
        unit.carry_out(&(1, Ask::Reserve(8)));
        assert_eq!(unit.carry_out(&(4, Ask::Read)), Said::Conflict);
        unit.carry_out(&(1, Ask::Unregister { persists: false }));
        assert_eq!(unit.carry_out(&(4, Ask::Read)), Said::Conflict, "others hold it still");
        unit.carry_out(&(2, Ask::Preempt { victim: 3, kind: 1 }));
        assert_eq!(unit.carry_out(&(1, Ask::Holder)), Said::Held(Some((EVERYBODY, 8))));
        unit.carry_out(&(2, Ask::Unregister { persists: false }));
        assert_eq!(unit.carry_out(&(4, Ask::Read)), Said::Allowed);
    }
}
