//! What several initiators do to a volume that only they can judge: bits that are set, and the persistent reservation.

use super::Model;
use crate::history::{History, Kept, Reservation};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

impl Model {
    /// What is in these sectors is for others to judge.
    pub fn give_up(&mut self, name: &str, sectors: Range<u64>) {
        self.volume(name).all_contents().for_each(|contents| contents.unknown = Some(sectors.clone()));
    }

    /// A volume is reserved like this.
    pub fn reserve(&mut self, name: &str, reservation: Rc<RefCell<History<Reservation>>>) {
        self.reservations.insert(name.to_owned(), reservation);
    }

    /// What a restart may leave of the reservation of a volume; nothing if it never was reserved.
    pub fn reservations_of(&self, name: &str) -> BTreeSet<Reservation> {
        let Some(reservation) = self.reservations.get(name) else { return BTreeSet::new() };
        reservation.borrow_mut().possible().iter().map(Reservation::restarted).collect()
    }

    /// Why this cannot be what is kept of the reservation of a volume, or whether it keeps strangers from reading.
    pub fn objection_to_reservation(&self, name: &str, kept: Option<&Kept>, closed: Option<bool>) -> Option<String> {
        let possible = self.reservations_of(name);
        let explains = |reservation: &Reservation| {
            kept.is_none_or(|kept| reservation.kept() == *kept)
                && closed.is_none_or(|closed| reservation.is_closed_to_strangers() == closed)
        };
        let explained = possible.is_empty() && closed != Some(true) || possible.iter().any(explains);
        (!explained).then(|| format!("of who is registered and who holds it {kept:?}, closed {closed:?}; {possible:?}"))
    }
}
