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
        History { cases: BTreeSet::from([(object, BTreeMap::new())]), under_way: BTreeMap::new(), sent: 0 }
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

/// Types of persistent reservations (SPC-4 section 5.13): "write exclusive", "exclusive access" and "write exclusive,
/// registrants only".
pub const RESERVATION_TYPES: [u8; 3] = [1, 3, 5];

/// The persistent reservation of a unit, of one type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    kind: u8,
    registered: BTreeSet<u64>,
    holder: Option<u64>,
}

/// What an initiator asks that has a key of its own.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// To read or write.
    Read,
    Write,
    /// REGISTER AND IGNORE EXISTING KEY, its key or none.
    Register,
    Unregister,
    Reserve,
    Release,
    Clear,
    /// The initiator whose key is given loses its registration, and the reservation if it has it.
    Preempt(u64),
}

impl Reservation {
    /// Nobody is registered.
    pub fn new(kind: u8) -> Reservation {
        Reservation { kind, registered: BTreeSet::new(), holder: None }
    }
}

impl Object for Reservation {
    /// From whom, and what.
    type Command = (u64, Ask);
    /// False is RESERVATION CONFLICT.
    type Answer = bool;

    fn carry_out(&mut self, &(initiator, ask): &(u64, Ask)) -> bool {
        let registered = self.registered.contains(&initiator);
        let holds = self.holder == Some(initiator);
        let may_write = self.holder.is_none() || holds || self.kind == 5 && registered;
        match ask {
            Ask::Read => return may_write || self.kind != 3,
            Ask::Write => return may_write,
            Ask::Register => drop(self.registered.insert(initiator)),
            Ask::Unregister => {
                self.registered.remove(&initiator);
                self.holder = self.holder.filter(|_| !holds);
            }
            _ if !registered => return false,
            Ask::Reserve if self.holder.is_some() => return holds,
            Ask::Reserve => self.holder = Some(initiator),
            Ask::Release => self.holder = self.holder.filter(|_| !holds),
            Ask::Clear => (self.registered, self.holder) = (BTreeSet::new(), None),
            Ask::Preempt(victim) => {
                if !self.registered.remove(&victim) {
                    return false;
                }
                self.holder = self.holder.map(|holder| if holder == victim { initiator } else { holder });
            }
        }
        true
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
    fn a_reservation_keeps_others_out_until_it_is_taken_over() {
        let mut unit = Reservation::new(1);
        let all = [
            ((1, Ask::Reserve), false),
            ((1, Ask::Register), true),
            ((1, Ask::Reserve), true),
            ((2, Ask::Write), false),
            ((2, Ask::Read), true),
            ((2, Ask::Register), true),
            ((2, Ask::Reserve), false),
            ((2, Ask::Preempt(1)), true),
            ((1, Ask::Write), false),
            ((1, Ask::Release), false),
            ((2, Ask::Write), true),
            ((2, Ask::Unregister), true),
            ((1, Ask::Write), true),
        ];
        for (command, answer) in all {
            assert_eq!(unit.carry_out(&command), answer, "{command:?}");
        }
    }
}
