//! How fast secrets can be guessed: failed authentications by address, and of all addresses together.

use alloc::collections::BTreeMap;
use core::cell::RefCell;
use core::net::{IpAddr, Ipv6Addr};
use platform::time::{Duration, Instant};

/// Failures in a row that an address may have, and how long it then waits for each further one.
const EACH: Rate = Rate { burst: 10, pause: Duration::from_secs(10) };

/// The same for all addresses together from which nobody was authenticated before: whoever has an address of his own
/// loses nothing by the guesses of others.
const ALL: Rate = Rate { burst: 100, pause: Duration::from_secs(1) };

/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 1024;

struct Rate {
    burst: u32,
    pause: Duration,
}

/// Failures that were not yet forgiven: one is after each pause.
#[derive(Clone, Copy)]
struct Failures {
    /// When the last of them is forgiven.
    clear_at: Instant,
}

impl Failures {
    fn may_try(&self, rate: &Rate, now: Instant) -> bool {
        self.clear_at <= now + rate.pause * (rate.burst - 1)
    }

    /// However many there are, the next attempt is a pause away.
    fn add(&mut self, rate: &Rate, now: Instant) {
        self.clear_at = (self.clear_at.max(now) + rate.pause).min(now + rate.pause * rate.burst);
    }
}

struct Known {
    failures: Failures,
    /// Somebody was authenticated from here.
    trusted: bool,
    used: Instant,
}

/// Counts failed authentications.
pub struct Throttle {
    all: RefCell<Failures>,
    by_address: RefCell<BTreeMap<IpAddr, Known>>,
}

impl Throttle {
    /// Nothing has failed yet.
    pub fn new(now: Instant) -> Throttle {
        Throttle { all: RefCell::new(Failures { clear_at: now }), by_address: RefCell::default() }
    }

    /// Whether somebody at this address may try to authenticate now.
    pub fn may_try(&self, address: IpAddr, now: Instant) -> bool {
        match self.by_address.borrow().get(&network(address)) {
            Some(known) if !known.failures.may_try(&EACH, now) => false,
            Some(known) if known.trusted => true,
            _ => self.all.borrow().may_try(&ALL, now),
        }
    }

    /// Somebody at this address was authenticated.
    pub fn succeeded(&self, address: IpAddr, now: Instant) {
        self.note(address, now, |known| known.trusted = true);
    }

    /// Somebody at this address was not.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        self.note(address, now, |known| {
            known.failures.add(&EACH, now);
            if !known.trusted {
                self.all.borrow_mut().add(&ALL, now);
            }
        });
    }

    fn note(&self, address: IpAddr, now: Instant, change: impl FnOnce(&mut Known)) {
        let mut addresses = self.by_address.borrow_mut();
        let address = network(address);
        if addresses.len() >= ADDRESSES_MAX && !addresses.contains_key(&address) {
            let oldest = addresses.iter().min_by_key(|(_, known)| known.used).map(|(address, _)| *address);
            oldest.and_then(|oldest| addresses.remove(&oldest));
        }
        let fresh = Known { failures: Failures { clear_at: now }, trusted: false, used: now };
        let known = addresses.entry(address).or_insert(fresh);
        known.used = now;
        change(known);
    }
}

/// What counts as one address: of IPv6 the network of 64 bits, for a host there has as many addresses as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    fn host(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n))
    }

    #[test]
    fn an_address_waits_after_its_failures_and_others_do_not() {
        let start = Instant { nanos: 5 };
        let throttle = Throttle::new(start);
        for _ in 0..10 {
            assert!(throttle.may_try(host(1), start));
            throttle.failed(host(1), start);
        }
        assert!(!throttle.may_try(host(1), start) && throttle.may_try(host(2), start));
        assert!(!throttle.may_try(host(1), start + Duration::from_millis(9_999)));
        let later = start + Duration::from_secs(10);
        assert!(throttle.may_try(host(1), later), "one is forgiven");
        throttle.failed(host(1), later);
        assert!(!throttle.may_try(host(1), later));
        assert!(throttle.may_try(host(1), later + Duration::from_secs(100)));
    }

    #[test]
    fn more_failures_than_are_allowed_make_nobody_wait_longer() {
        let now = Instant { nanos: 0 };
        let throttle = Throttle::new(now);
        (0..1000).for_each(|_| throttle.failed(host(1), now));
        assert!(throttle.may_try(host(1), now + Duration::from_secs(10)));
        assert!(throttle.may_try(host(2), now + Duration::from_secs(1)));
    }

    #[test]
    fn guesses_from_everywhere_wait_and_who_was_here_before_does_not() {
        let now = Instant { nanos: 0 };
        let throttle = Throttle::new(now);
        throttle.succeeded(host(0), now);
        (1..=100).for_each(|n| throttle.failed(host(n), now));
        assert!(!throttle.may_try(host(5000), now) && throttle.may_try(host(0), now));
        assert!(throttle.may_try(host(5000), now + Duration::from_secs(1)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let throttle = Throttle::new(Instant { nanos: 0 });
        for n in 0..5000 {
            throttle.failed(host(n), Instant { nanos: n.into() });
        }
        assert_eq!(throttle.by_address.borrow().len(), ADDRESSES_MAX);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let now = Instant { nanos: 0 };
        let throttle = Throttle::new(now);
        (0..10u16).for_each(|n| throttle.failed(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, n).into(), now));
        assert!(!throttle.may_try("2001:db8:0:1::ffff".parse().unwrap(), now));
        assert!(throttle.may_try("2001:db8:0:2::ffff".parse().unwrap(), now));
        (0..10).for_each(|_| throttle.failed("::ffff:10.0.0.1".parse().unwrap(), now));
        assert!(!throttle.may_try(host(1), now), "a mapped address is the IPv4 one");
    }
}
