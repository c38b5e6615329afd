//! Connections that are not logged in yet. They cost memory, and anybody can open them: so there is room for some, and when
//! it is used up the address that takes most of it loses its oldest.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::net::IpAddr;
use platform::sync::Notify;

/// Those that are logging in.
pub struct Entrance {
    places: usize,
    next: Cell<u64>,
    visitors: RefCell<BTreeMap<u64, Rc<Visitor>>>,
}

struct Visitor {
    address: IpAddr,
    is_turned_out: Cell<bool>,
    turned_out: Notify,
}

/// A connection's place in the entrance, until dropped.
pub struct Visit {
    entrance: Rc<Entrance>,
    number: u64,
    visitor: Rc<Visitor>,
}

impl Entrance {
    /// Room for so many.
    pub fn new(places: usize) -> Rc<Entrance> {
        Rc::new(Entrance { places, next: Cell::new(0), visitors: RefCell::default() })
    }

    /// Lets in a connection from this address.
    pub fn enter(self: &Rc<Entrance>, address: IpAddr) -> Visit {
        let number = self.next.get();
        self.next.set(number + 1);
        let visitor = Rc::new(Visitor { address, is_turned_out: Cell::new(false), turned_out: Notify::new() });
        self.visitors.borrow_mut().insert(number, visitor.clone());
        if self.visitors.borrow().len() > self.places {
            self.turn_out();
        }
        Visit { entrance: self.clone(), number, visitor }
    }

    fn turn_out(&self) {
        let mut visitors = self.visitors.borrow_mut();
        let mut by_address: BTreeMap<IpAddr, usize> = BTreeMap::new();
        visitors.values().for_each(|visitor| *by_address.entry(visitor.address).or_default() += 1);
        let most = by_address.iter().max_by_key(|(_, count)| **count).map(|(address, _)| *address);
        let oldest = visitors.iter().find(|(_, visitor)| Some(visitor.address) == most).map(|(number, _)| *number);
        if let Some(visitor) = oldest.and_then(|number| visitors.remove(&number)) {
            visitor.is_turned_out.set(true);
            visitor.turned_out.notify_all();
        }
    }
}

impl Visit {
    /// Resolves when the connection has to leave to make room.
    pub async fn turned_out(&self) {
        loop {
            let turned_out = self.visitor.turned_out.notified();
            if self.visitor.is_turned_out.get() {
                return;
            }
            turned_out.await;
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.entrance.visitors.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    #[test]
    fn who_takes_most_of_the_room_loses_his_oldest() {
        let entrance = Entrance::new(4);
        let enter = |host: u32| entrance.enter(IpAddr::V4(Ipv4Addr::from_bits(host)));
        let greedy = [enter(1), enter(1), enter(1)];
        let modest = enter(2);
        let third = enter(3);
        let out = |visit: &Visit| visit.visitor.is_turned_out.get();
        assert_eq!((out(&greedy[0]), out(&greedy[1]), out(&modest), out(&third)), (true, false, false, false));
        drop(third);
        let fourth = enter(4);
        assert!(!out(&greedy[1]) && !out(&fourth), "there is room again");
        drop((greedy, modest, fourth));
        assert!(entrance.visitors.borrow().is_empty());
    }
}
