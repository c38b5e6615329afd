//! Persistent reservations (SPC-4 section 5.13): who may use a unit. A state machine over I_T nexuses; it does not
//! touch the unit. Nothing of it is changed by a request that is refused, as long as the caller drops it.

mod parameters;

use super::cdb::Access;
use super::sense::Sense;
use alloc::string::String;
use alloc::vec::Vec;
pub use parameters::{Moved, Request, TransportId};

/// Most registrations of a unit.
const REGISTRATIONS_MAX: usize = 128;

/// Service actions of PERSISTENT RESERVE OUT.
mod action {
    pub const REGISTER: u8 = 0;
    pub const RESERVE: u8 = 1;
    pub const RELEASE: u8 = 2;
    pub const CLEAR: u8 = 3;
    pub const PREEMPT: u8 = 4;
    pub const PREEMPT_AND_ABORT: u8 = 5;
    pub const REGISTER_AND_IGNORE_EXISTING_KEY: u8 = 6;
    pub const REGISTER_AND_MOVE: u8 = 7;
}

/// An I_T nexus by name, which outlives its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Name of the initiator port: `NAME,i,0xISID`.
    pub initiator: String,
    /// Relative identifier of the target port.
    pub target_port: u16,
}

/// The ports that requests may mean without naming them.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Relative identifiers of all target ports.
    pub target_ports: &'a [u16],
    /// Initiator ports that are logged in.
    pub initiators: &'a [String],
}

/// What outlives a restart: nothing, unless it was asked for (APTPL).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Registered nexuses and their keys.
    pub registrations: Vec<(Path, u64)>,
    /// Type code and holder of the reservation.
    pub reservation: Option<(u8, Path)>,
}

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
    /// Unit attentions for nexuses.
    pub attentions: Vec<(Path, Sense)>,
    /// Nexuses whose tasks are to be aborted.
    pub aborts: Vec<Path>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registration {
    path: Path,
    key: u64,
}

/// The persistent reservation of a unit and the nexuses that are registered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reservations {
    generation: u32,
    registrations: Vec<Registration>,
    /// The type, and the nexus that holds it; for types held by all registrants the one that made it.
    reservation: Option<(Kind, Path)>,
    /// APTPL: all of this, but the generation, outlives a restart.
    persists: bool,
}

impl Reservations {
    /// What a restart left. A type that there is not is no reservation.
    pub fn restored(kept: Kept) -> Reservations {
        let registrations: Vec<_> =
            kept.registrations.into_iter().map(|(path, key)| Registration { path, key }).collect();
        let reservation = kept.reservation.and_then(|(code, holder)| Some((Kind::of(code)?, holder)));
        Reservations { generation: 0, persists: !registrations.is_empty(), registrations, reservation }
    }

    /// What a restart must leave.
    pub fn kept(&self) -> Kept {
        if !self.persists {
            return Kept::default();
        }
        let registrations = self.registrations.iter().map(|r| (r.path.clone(), r.key)).collect();
        let reservation = self.reservation.as_ref().map(|(kind, holder)| (kind.code, holder.clone()));
        Kept { registrations, reservation }
    }

    /// Some nexus is registered.
    pub fn is_used(&self) -> bool {
        !self.registrations.is_empty()
    }

    /// A command that does `access` over `path` conflicts with the reservation.
    pub fn conflicts(&self, path: &Path, access: Access) -> bool {
        let Some((kind, _)) = &self.reservation else { return false };
        let allowed = self.holds(path) || (kind.registrants && self.key_of(path).is_some());
        match access {
            Access::None => false,
            Access::Read => kind.exclusive && !allowed,
            Access::Write => !allowed,
        }
    }

    /// Carries out a PERSISTENT RESERVE OUT that came over `from`.
    pub fn out(&mut self, from: &Path, request: &Request, known: Known) -> Result<Effects, Refused> {
        let mut effects = Effects::default();
        match request.action {
            action::REGISTER | action::REGISTER_AND_IGNORE_EXISTING_KEY => {
                self.register(from, request, known, &mut effects)?;
            }
            action::RESERVE..=action::REGISTER_AND_MOVE if self.key_of(from) != Some(request.key) => {
                return Err(Refused::Conflict);
            }
            action::RESERVE => self.reserve(from, request)?,
            action::RELEASE => self.release(from, request, &mut effects)?,
            action::CLEAR => self.clear(from, &mut effects),
            action::PREEMPT | action::PREEMPT_AND_ABORT => self.preempt(from, request, &mut effects)?,
            action::REGISTER_AND_MOVE => self.register_and_move(from, request, known)?,
            _ => return Err(Refused::Check(Sense::cdb_field(1))),
        }
        Ok(effects)
    }

    fn register(&mut self, from: &Path, request: &Request, known: Known, effects: &mut Effects) -> Result<(), Refused> {
        let mine = self.key_of(from);
        let ignores = request.action == action::REGISTER_AND_IGNORE_EXISTING_KEY;
        if !ignores && request.key != mine.unwrap_or(0) {
            return Err(Refused::Conflict);
        }
        let names_others = !request.transports.is_empty();
        if names_others && (ignores || mine.is_some()) {
            return Err(Refused::Check(Sense::parameter_field(parameters::FLAGS)));
        }
        let target_ports = if request.all_target_ports { known.target_ports } else { &[from.target_port][..] };
        for target_port in target_ports {
            let path = Path { initiator: from.initiator.clone(), target_port: *target_port };
            let agrees = ignores || self.key_of(&path).is_none_or(|key| key == request.key);
            if !agrees {
                return Err(Refused::Conflict);
            }
            self.enter(path, request.action_key, effects)?;
        }
        for initiator in request.initiators(known)? {
            for target_port in target_ports {
                let path = Path { initiator: initiator.clone(), target_port: *target_port };
                if path.initiator != from.initiator && self.key_of(&path).is_some() {
                    return Err(Refused::Conflict);
                }
                self.enter(path, request.action_key, effects)?;
            }
        }
        self.persists = request.persists;
        self.count();
        Ok(())
    }

    /// Registers a nexus, changes its key, or with key 0 ends its registration.
    fn enter(&mut self, path: Path, key: u64, effects: &mut Effects) -> Result<(), Refused> {
        let full = self.registrations.len() >= REGISTRATIONS_MAX;
        match self.registrations.iter_mut().find(|registration| registration.path == path) {
            None if key == 0 => {}
            Some(_) if key == 0 => self.unregister(&path, effects),
            Some(registration) => registration.key = key,
            None if full => return Err(Refused::Check(Sense::INSUFFICIENT_REGISTRATION_RESOURCES)),
            None => self.registrations.push(Registration { path, key }),
        }
        Ok(())
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Removes a registration; with the holder's goes its reservation.
    fn unregister(&mut self, path: &Path, effects: &mut Effects) {
        let held = self.holds(path);
        self.registrations.retain(|registration| registration.path != *path);
        let Some((kind, holder)) = &mut self.reservation else { return };
        if !held {
            return;
        }
        match self.registrations.first() {
            Some(other) if kind.all => *holder = other.path.clone(),
            _ => {
                let registrants = kind.registrants;
                self.reservation = None;
                if registrants {
                    self.tell_others(path, Sense::RESERVATIONS_RELEASED, effects);
                }
            }
        }
    }

    fn reserve(&mut self, path: &Path, request: &Request) -> Result<(), Refused> {
        let kind = kind(request)?;
        match &self.reservation {
            None => self.reservation = Some((kind, path.clone())),
            Some((held, _)) if *held == kind && self.holds(path) => {}
            Some(_) => return Err(Refused::Conflict),
        }
        Ok(())
    }

    fn release(&mut self, path: &Path, request: &Request, effects: &mut Effects) -> Result<(), Refused> {
        let Some(held) = self.reservation.as_ref().map(|(kind, _)| *kind) else { return Ok(()) };
        if !self.holds(path) {
            return Ok(());
        }
        if kind(request)? != held {
            return Err(Refused::Check(Sense::INVALID_RELEASE));
        }
        self.reservation = None;
        if held.registrants {
            self.tell_others(path, Sense::RESERVATIONS_RELEASED, effects);
        }
        Ok(())
    }

    fn clear(&mut self, path: &Path, effects: &mut Effects) {
        self.tell_others(path, Sense::RESERVATIONS_PREEMPTED, effects);
        self.registrations.clear();
        self.reservation = None;
        self.count();
    }

    /// PREEMPT, and with service action 5 PREEMPT AND ABORT.
    fn preempt(&mut self, path: &Path, request: &Request, effects: &mut Effects) -> Result<(), Refused> {
        let new = kind(request)?;
        let victim = request.action_key;
        let held = self.reservation.as_ref().map(|(held, holder)| (*held, self.key_of(holder)));
        let (everybody, takes) = match held {
            Some((held, _)) if held.all && victim == 0 => (true, true),
            Some((held, key)) if !held.all && key == Some(victim) => (false, true),
            _ if victim == 0 => return Err(Refused::Check(Sense::parameter_field(8))),
            _ => (false, false),
        };
        let goes = |r: &Registration| r.path != *path && (everybody || r.key == victim);
        let removed: Vec<Path> = self.registrations.iter().filter(|r| goes(r)).map(|r| r.path.clone()).collect();
        if removed.is_empty() && !takes {
            return Err(Refused::Conflict);
        }
        self.registrations.retain(|r| !goes(r));
        if let Some((held, holder)) = &mut self.reservation
            && held.all
            && removed.contains(holder)
        {
            *holder = path.clone();
        }
        if takes {
            if held.is_some_and(|(held, _)| held != new) {
                self.tell_others(path, Sense::RESERVATIONS_RELEASED, effects);
            }
            self.reservation = Some((new, path.clone()));
        }
        effects.attentions.extend(removed.iter().map(|gone| (gone.clone(), Sense::REGISTRATIONS_PREEMPTED)));
        if request.action == action::PREEMPT_AND_ABORT {
            effects.aborts = removed;
        }
        self.count();
        Ok(())
    }

    /// Gives the reservation, and a registration, to another nexus.
    fn register_and_move(&mut self, path: &Path, request: &Request, known: Known) -> Result<(), Refused> {
        let invalid = |sense| Err(Refused::Check(sense));
        let Some(kind) = self.reservation.as_ref().map(|(kind, _)| *kind) else { return invalid(Sense::cdb_field(1)) };
        if kind.all {
            return Err(Refused::Conflict);
        }
        if !self.holds(path) {
            return invalid(Sense::cdb_field(1));
        }
        if request.action_key == 0 {
            return invalid(Sense::parameter_field(parameters::ACTION_KEY));
        }
        let Some(moved) = &request.moved else { return invalid(Sense::PARAMETER_LIST_LENGTH) };
        if !known.target_ports.contains(&moved.to.target_port) {
            return invalid(Sense::parameter_field(parameters::RELATIVE_PORT));
        }
        if moved.to == *path {
            return invalid(Sense::parameter_field(parameters::MOVED_TRANSPORT));
        }
        // The key is not 0: nobody is unregistered by this, and nobody is told.
        self.enter(moved.to.clone(), request.action_key, &mut Effects::default())?;
        self.reservation = Some((kind, moved.to.clone()));
        if moved.unregisters {
            self.registrations.retain(|registration| registration.path != *path);
        }
        self.persists = request.persists;
        self.count();
        Ok(())
    }

    fn key_of(&self, path: &Path) -> Option<u64> {
        self.registrations.iter().find(|registration| registration.path == *path).map(|registration| registration.key)
    }

    fn holds(&self, path: &Path) -> bool {
        match &self.reservation {
            Some((kind, _)) if kind.all => self.key_of(path).is_some(),
            Some((_, holder)) => holder == path,
            None => false,
        }
    }

    fn tell_others(&self, path: &Path, attention: Sense, effects: &mut Effects) {
        let others = self.registrations.iter().filter(|registration| registration.path != *path);
        effects.attentions.extend(others.map(|other| (other.path.clone(), attention)));
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
    pub fn full_status(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for registration in &self.registrations {
            let held = self.reservation.as_ref().filter(|_| self.holds(&registration.path));
            let transport = parameters::encode_transport(&registration.path.initiator);
            list.extend(registration.key.to_be_bytes());
            list.extend([0, 0, 0, 0, u8::from(held.is_some()), held.map_or(0, |(kind, _)| kind.code), 0, 0, 0, 0]);
            list.extend(registration.path.target_port.to_be_bytes());
            list.extend((transport.len() as u32).to_be_bytes());
            list.extend(transport);
        }
        self.with_generation(&list)
    }

    /// REPORT CAPABILITIES: all types, several ports at a time (SIP_C, ATP_C); over a restart (PTPL_C) where the unit
    /// `can_persist`, and now (PTPL_A) if so asked.
    pub fn capabilities(&self, can_persist: bool) -> Vec<u8> {
        alloc::vec![0, 8, 0x0c | u8::from(can_persist), 0x80 | u8::from(self.persists), 0xea, 0x01, 0, 0]
    }

    fn with_generation(&self, list: &[u8]) -> Vec<u8> {
        [&self.generation.to_be_bytes()[..], &(list.len() as u32).to_be_bytes(), list].concat()
    }
}

/// The type of a request, whose scope must be the logical unit.
fn kind(request: &Request) -> Result<Kind, Refused> {
    let scope = request.scope_and_type >> 4;
    let kind = Kind::of(request.scope_and_type & 0x0f).filter(|_| scope == 0);
    kind.ok_or(Refused::Check(Sense::cdb_field(2)))
}

#[cfg(test)]
mod tests;
