//! Persistent reservations that outlive a restart (APTPL), as a volume's record has them.

use alloc::string::String;
use alloc::vec::Vec;
use export::{Kept, Path};
use minicbor::{Decode, Encode};

/// What is kept of a volume's persistent reservations.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Reservations {
    /// Registered nexuses and their keys.
    #[n(0)]
    pub registrations: Vec<Registration>,
    /// The reservation.
    #[n(1)]
    pub held: Option<Held>,
}

/// A registration.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Registration {
    /// Who is registered.
    #[n(0)]
    pub nexus: Nexus,
    /// The reservation key.
    #[n(1)]
    pub key: u64,
}

/// A reservation.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Held {
    /// Type code (SPC-4 section 6.15.3).
    #[n(0)]
    pub code: u8,
    /// Who holds it.
    #[n(1)]
    pub holder: Nexus,
}

/// An I_T nexus by name.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Nexus {
    /// The initiator port: `NAME,i,0xISID`.
    #[n(0)]
    pub initiator: String,
    /// Relative identifier of the target port.
    #[n(1)]
    pub target_port: u16,
}

impl From<Path> for Nexus {
    fn from(Path { initiator, target_port }: Path) -> Nexus {
        Nexus { initiator, target_port }
    }
}

impl From<Nexus> for Path {
    fn from(Nexus { initiator, target_port }: Nexus) -> Path {
        Path { initiator, target_port }
    }
}

/// What a volume's record is to say: nothing, if nothing is kept.
pub fn record(kept: Kept) -> Option<Reservations> {
    if kept == Kept::default() {
        return None;
    }
    let registrations = kept.registrations.into_iter().map(|(path, key)| Registration { nexus: path.into(), key });
    let held = kept.reservation.map(|(code, holder)| Held { code, holder: holder.into() });
    Some(Reservations { registrations: registrations.collect(), held })
}

/// What a volume's record says.
pub fn kept(record: Option<Reservations>) -> Kept {
    let Some(Reservations { registrations, held }) = record else { return Kept::default() };
    let registrations = registrations.into_iter().map(|Registration { nexus, key }| (nexus.into(), key)).collect();
    Kept { registrations, reservation: held.map(|held| (held.code, held.holder.into())) }
}
