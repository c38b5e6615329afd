//! Reservations (SPC-4 section 5.13; RESERVE and RELEASE of SPC-2): who may use a unit. A state machine over
//! initiator ports; it does not touch the unit.

use super::cdb::Access;
use super::sense::Sense;
use alloc::string::String;
use alloc::vec::Vec;

/// Most registrations of a unit.
const REGISTRATIONS_MAX: usize = 128;

/// Bytes of the parameter list of PERSISTENT RESERVE OUT.
pub const PARAMETER_BYTES: usize = 24;

/// Type of a persistent reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The type code.
    code: u8,
    /// Others may not read either.
    exclusive: bool,
    /// Every registered port may do what the holder may.
    registrants: bool,
    /// Every registered port is a holder.
    all: bool,
}

impl Kind {
    fn of(code: u8) -> Option<Kind> {
        let (exclusive, registrants, all) = match code {
            1 => (false, false, false),
            3 => (true, false, false),
            5 => (false, true, false),
            6 => (true, true, false),
            7 => (false, true, true),
            8 => (true, true, true),
            _ => return None,
        };
        Some(Kind { code, exclusive, registrants, all })
    }
}

/// A PERSISTENT RESERVE OUT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Service action.
    pub action: u8,
    /// Scope and type.
    pub scope_and_type: u8,
    /// Reservation key.
    pub key: u64,
    /// Service action reservation key.
    pub action_key: u64,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Check(Sense),
}

/// What a request means for others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Unit attentions for ports.
    pub attentions: Vec<(String, Sense)>,
    /// Ports whose tasks are to be aborted.
    pub aborts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registration {
    port: String,
    key: u64,
}

/// The persistent reservation of a unit and the ports that are registered.
#[derive(Debug, Default)]
pub struct Reservations {
    generation: u32,
    registrations: Vec<Registration>,
    /// The type, and the port that holds it; for types held by all registrants the one that made it.
    reservation: Option<(Kind, String)>,
}

impl Reservations {
    /// Some port is registered.
    pub fn is_used(&self) -> bool {
        !self.registrations.is_empty()
    }

    /// A command that does `access` from `port` conflicts with the reservation.
    pub fn conflicts(&self, port: &str, access: Access) -> bool {
        let Some((kind, _)) = &self.reservation else { return false };
        let allowed = self.holds(port) || (kind.registrants && self.key_of(port).is_some());
        match access {
            Access::None => false,
            Access::Read => kind.exclusive && !allowed,
            Access::Write => !allowed,
        }
    }

    /// Carries out a PERSISTENT RESERVE OUT of `port`.
    pub fn out(&mut self, port: &str, request: &Request) -> Result<Effects, Refused> {
        let mut effects = Effects::default();
        match request.action {
            0 | 6 => return self.register(port, request),
            1..=5 => {}
            _ => return Err(Refused::Check(Sense::cdb_field(1))),
        }
        if self.key_of(port) != Some(request.key) {
            return Err(Refused::Conflict);
        }
        match request.action {
            1 => self.reserve(port, request)?,
            2 => self.release(port, request, &mut effects)?,
            3 => self.clear(port, &mut effects),
            _ => self.preempt(port, request, &mut effects)?,
        }
        Ok(effects)
    }

    fn register(&mut self, port: &str, request: &Request) -> Result<Effects, Refused> {
        let mut effects = Effects::default();
        let known = self.key_of(port);
        if request.action == 0 && request.key != known.unwrap_or(0) {
            return Err(Refused::Conflict);
        }
        match (known, request.action_key) {
            (None, 0) => {}
            (Some(_), 0) => self.unregister(port, &mut effects),
            (Some(_), key) => {
                self.registrations.iter_mut().filter(|r| r.port == port).for_each(|r| r.key = key);
            }
            (None, _) if self.registrations.len() >= REGISTRATIONS_MAX => {
                return Err(Refused::Check(Sense::INSUFFICIENT_REGISTRATION_RESOURCES));
            }
            (None, key) => self.registrations.push(Registration { port: port.into(), key }),
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }

    /// Removes a registration; with the holder's goes its reservation.
    fn unregister(&mut self, port: &str, effects: &mut Effects) {
        let held = self.holds(port);
        self.registrations.retain(|registration| registration.port != port);
        let Some((kind, holder)) = &mut self.reservation else { return };
        if !held {
            return;
        }
        match self.registrations.first() {
            Some(other) if kind.all => *holder = other.port.clone(),
            _ => {
                let registrants = kind.registrants;
                self.reservation = None;
                if registrants {
                    self.tell_others(port, Sense::RESERVATIONS_RELEASED, effects);
                }
            }
        }
    }

    fn reserve(&mut self, port: &str, request: &Request) -> Result<(), Refused> {
        let kind = kind(request)?;
        match &self.reservation {
            None => self.reservation = Some((kind, port.into())),
            Some((held, _)) if *held == kind && self.holds(port) => {}
            Some(_) => return Err(Refused::Conflict),
        }
        Ok(())
    }

    fn release(&mut self, port: &str, request: &Request, effects: &mut Effects) -> Result<(), Refused> {
        let Some(held) = self.reservation.as_ref().map(|(kind, _)| *kind) else { return Ok(()) };
        if !self.holds(port) {
            return Ok(());
        }
        if kind(request)? != held {
            return Err(Refused::Check(Sense::INVALID_RELEASE));
        }
        self.reservation = None;
        if held.registrants {
            self.tell_others(port, Sense::RESERVATIONS_RELEASED, effects);
        }
        Ok(())
    }

    fn clear(&mut self, port: &str, effects: &mut Effects) {
        self.tell_others(port, Sense::RESERVATIONS_PREEMPTED, effects);
        self.registrations.clear();
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
    }

    /// PREEMPT, and with service action 5 PREEMPT AND ABORT.
    fn preempt(&mut self, port: &str, request: &Request, effects: &mut Effects) -> Result<(), Refused> {
        let new = kind(request)?;
        let victim = request.action_key;
        let held = self.reservation.as_ref().map(|(held, holder)| (*held, self.key_of(holder)));
        let (everybody, takes) = match held {
            Some((held, _)) if held.all && victim == 0 => (true, true),
            Some((held, key)) if !held.all && key == Some(victim) => (false, true),
            _ if victim == 0 => return Err(Refused::Check(Sense::parameter_field(8))),
            _ => (false, false),
        };
        let goes = |r: &Registration| r.port != port && (everybody || r.key == victim);
        let removed: Vec<String> = self.registrations.iter().filter(|r| goes(r)).map(|r| r.port.clone()).collect();
        if removed.is_empty() && !takes {
            return Err(Refused::Conflict);
        }
        self.registrations.retain(|r| !goes(r));
        if let Some((held, holder)) = &mut self.reservation
            && held.all
            && removed.contains(holder)
        {
            *holder = port.into();
        }
        if takes {
            if held.is_some_and(|(held, _)| held != new && held.registrants) {
                self.tell_others(port, Sense::RESERVATIONS_RELEASED, effects);
            }
            self.reservation = Some((new, port.into()));
        }
        effects.attentions.extend(removed.iter().map(|gone| (gone.clone(), Sense::REGISTRATIONS_PREEMPTED)));
        if request.action == 5 {
            effects.aborts = removed;
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn key_of(&self, port: &str) -> Option<u64> {
        self.registrations.iter().find(|registration| registration.port == port).map(|registration| registration.key)
    }

    fn holds(&self, port: &str) -> bool {
        match &self.reservation {
            Some((kind, _)) if kind.all => self.key_of(port).is_some(),
            Some((_, holder)) => holder == port,
            None => false,
        }
    }

    fn tell_others(&self, port: &str, attention: Sense, effects: &mut Effects) {
        let others = self.registrations.iter().filter(|registration| registration.port != port);
        effects.attentions.extend(others.map(|other| (other.port.clone(), attention)));
    }

    /// READ KEYS.
    pub fn keys(&self) -> Vec<u8> {
        let keys: Vec<u8> = self.registrations.iter().flat_map(|registration| registration.key.to_be_bytes()).collect();
        self.with_generation(&keys)
    }

    /// READ RESERVATION.
    pub fn reservation(&self) -> Vec<u8> {
        let Some((kind, holder)) = &self.reservation else { return self.with_generation(&[]) };
        let key = if kind.all { 0 } else { self.key_of(holder).unwrap_or(0) };
        self.with_generation(&[&key.to_be_bytes()[..], &[0, 0, 0, 0, 0, kind.code, 0, 0]].concat())
    }

    /// READ FULL STATUS.
    pub fn full_status(&self, relative_port: u16) -> Vec<u8> {
        let mut list = Vec::new();
        for registration in &self.registrations {
            let held = self.reservation.as_ref().filter(|_| self.holds(&registration.port));
            let transport = transport_id(&registration.port);
            list.extend(registration.key.to_be_bytes());
            list.extend([0, 0, 0, 0, u8::from(held.is_some()), held.map_or(0, |(kind, _)| kind.code), 0, 0, 0, 0]);
            list.extend(relative_port.to_be_bytes());
            list.extend((transport.len() as u32).to_be_bytes());
            list.extend(transport);
        }
        self.with_generation(&list)
    }

    fn with_generation(&self, list: &[u8]) -> Vec<u8> {
        [&self.generation.to_be_bytes()[..], &(list.len() as u32).to_be_bytes(), list].concat()
    }
}

/// REPORT CAPABILITIES: all types, nothing persistent over power loss.
pub fn capabilities() -> Vec<u8> {
    alloc::vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0]
}

/// The TransportID of an iSCSI initiator port: protocol 5, name with ISID.
fn transport_id(port: &str) -> Vec<u8> {
    let mut name = port.as_bytes().to_vec();
    name.resize((name.len() + 1).next_multiple_of(4).max(20), 0);
    let mut id = alloc::vec![0x45, 0];
    id.extend((name.len() as u16).to_be_bytes());
    id.extend(name);
    id
}

/// The type of a request, whose scope must be the logical unit.
fn kind(request: &Request) -> Result<Kind, Refused> {
    let scope = request.scope_and_type >> 4;
    let kind = Kind::of(request.scope_and_type & 0x0f).filter(|_| scope == 0);
    kind.ok_or(Refused::Check(Sense::cdb_field(2)))
}

impl Request {
    /// The parameter list of a PERSISTENT RESERVE OUT. Of its flags none is supported: SPEC_I_PT, ALL_TG_PT, APTPL.
    pub fn new(action: u8, scope_and_type: u8, list: &[u8]) -> Result<Request, Sense> {
        let list: &[u8; PARAMETER_BYTES] = list.try_into().map_err(|_| Sense::PARAMETER_LIST_LENGTH)?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, _, _, _, _, flags, ..] = *list;
        if flags & 0x0d != 0 {
            return Err(Sense::parameter_field(20));
        }
        let key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let action_key = u64::from_be_bytes([i, j, k, l, m, n, o, p]);
        Ok(Request { action, scope_and_type, key, action_key })
    }
}

#[cfg(test)]
mod tests;
