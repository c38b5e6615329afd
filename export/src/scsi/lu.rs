//! What the sessions of one logical unit share, and what each has for itself.

use super::cdb::{Access, Command};
use super::copy::results::Results;
use super::locks::RangeLocks;
use super::reserve::{Path, Reservations};
use super::sense::Sense;
use super::tasks::TaskSet;
use crate::unit::LogicalUnit;
use alloc::collections::VecDeque;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use platform::sync::Semaphore;

/// An exported unit: the disk, and the state that SCSI puts around it.
pub struct Lu<U> {
    /// The disk.
    pub unit: Rc<U>,
    /// iSCSI name of the target.
    pub target: String,
    /// Relative identifiers of the target ports: the tags of their portal groups.
    pub target_ports: Rc<[u16]>,
    /// Commands accepted from all nexuses.
    pub tasks: Rc<TaskSet>,
    /// Ranges in use by commands that run.
    pub locks: RangeLocks,
    /// Mode parameters that MODE SELECT can change.
    pub mode: Cell<ModeState>,
    /// Persistent reservations, which outlive the sessions.
    pub reservations: Rc<RefCell<Reservations>>,
    /// One change of the reservations at a time: a persistent one takes as long as it takes to write it down.
    pub reserving: Semaphore,
    /// The nexus that holds the unit by RESERVE.
    reserved_by: RefCell<Weak<Nexus>>,
    nexuses: RefCell<Vec<Weak<Nexus>>>,
}

/// Changeable mode parameters, not kept over restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeState {
    /// D_SENSE: sense data in descriptor format.
    pub descriptor_sense: bool,
    /// SWP: software write protect.
    pub write_protect: bool,
    /// LBPERE: initiators are told when the space that is left reaches its threshold.
    pub threshold_told: bool,
}

impl Default for ModeState {
    fn default() -> ModeState {
        ModeState { descriptor_sense: false, write_protect: false, threshold_told: true }
    }
}

/// An initiator port, a target port and this unit: one for each session.
pub struct Nexus {
    /// The ports.
    pub path: Path,
    attentions: RefCell<VecDeque<Sense>>,
    /// What became of its copies.
    pub copies: Results,
}

impl<U: LogicalUnit> Lu<U> {
    /// A unit that nobody is logged in to.
    pub fn new(unit: Rc<U>, target: String, target_ports: Rc<[u16]>, reservations: Rc<RefCell<Reservations>>) -> Lu<U> {
        Lu {
            unit,
            target,
            target_ports,
            tasks: Rc::default(),
            locks: RangeLocks::default(),
            mode: Cell::default(),
            reservations,
            reserving: Semaphore::new(1),
            reserved_by: RefCell::default(),
            nexuses: RefCell::default(),
        }
    }

    /// A new nexus, with the unit attention that every new one gets.
    pub fn connect(&self, path: Path) -> Rc<Nexus> {
        let nexus = Rc::new(Nexus { path, attentions: RefCell::default(), copies: Results::default() });
        nexus.attend(Sense::POWER_ON);
        let mut nexuses = self.nexuses.borrow_mut();
        nexuses.retain(|nexus| nexus.strong_count() > 0);
        nexuses.push(Rc::downgrade(&nexus));
        nexus
    }

    /// Raises a unit attention for the nexuses that `chosen` picks.
    pub fn attend(&self, attention: Sense, chosen: impl Fn(&Nexus) -> bool) {
        let nexuses = self.nexuses.borrow();
        nexuses
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|nexus| chosen(nexus))
            .for_each(|nexus| nexus.attend(attention));
    }

    /// Names of the initiator ports that are logged in.
    pub fn initiators(&self) -> Vec<String> {
        self.nexuses.borrow().iter().filter_map(Weak::upgrade).map(|nexus| nexus.path.initiator.clone()).collect()
    }

    /// A command from `nexus` conflicts with a reservation.
    pub fn conflicts(&self, nexus: &Nexus, command: &Command) -> bool {
        let reserved = self.holder().is_some_and(|holder| !holder.is(nexus));
        let tolerated = matches!(
            command,
            Command::Release | Command::ReadCapacity10 | Command::ReadCapacity16 { .. } | Command::ReportOpcodes(_)
        );
        (reserved && !tolerated) || self.reservations.borrow().conflicts(&nexus.path, command.access())
    }

    /// The same of what the unit is to do for an initiator port that is logged in elsewhere, by `nexus`.
    pub fn is_closed_to(&self, nexus: &Nexus, access: Access) -> bool {
        let reserved = self.holder().is_some_and(|holder| holder.path != nexus.path);
        reserved || self.reservations.borrow().conflicts(&nexus.path, access)
    }

    /// The nexus that holds the unit by RESERVE: as long as its session lives.
    pub fn holder(&self) -> Option<Rc<Nexus>> {
        self.reserved_by.borrow().upgrade()
    }

    /// Makes `nexus` the holder of the unit.
    pub fn hold(&self, nexus: &Rc<Nexus>) {
        self.reserved_by.replace(Rc::downgrade(nexus));
    }

    /// Nobody holds the unit any more if `nexus` does.
    pub fn let_go(&self, nexus: &Nexus) {
        if self.holder().is_some_and(|holder| holder.is(nexus)) {
            self.reserved_by.take();
        }
    }

    /// LOGICAL UNIT RESET: all tasks end, mode parameters return to their defaults, every nexus is told.
    pub async fn reset(&self) {
        self.tasks.abort(|_| true).await;
        self.mode.set(ModeState::default());
        self.reserved_by.take();
        self.attend(Sense::DEVICE_RESET, |_| true);
    }
}

impl Nexus {
    /// They are one: of the same session.
    pub fn is(&self, other: &Nexus) -> bool {
        core::ptr::eq(self, other)
    }

    /// Queues a unit attention, once; the resets supersede what was queued before them.
    pub fn attend(&self, attention: Sense) {
        let mut attentions = self.attentions.borrow_mut();
        if matches!(attention, Sense::POWER_ON | Sense::DEVICE_RESET) {
            attentions.clear();
        }
        if !attentions.contains(&attention) {
            attentions.push_back(attention);
        }
    }

    /// Takes the oldest unit attention.
    pub fn take_attention(&self) -> Option<Sense> {
        self.attentions.borrow_mut().pop_front()
    }

    /// A unit attention is queued.
    pub fn has_attention(&self) -> bool {
        !self.attentions.borrow().is_empty()
    }
}
