//! CHAP (RFC 7143 sections 9.2.1 and 12.1.3, RFC 1994), the target's side: keys in, keys out.
//!
//! A challenge is used once, and no other side's challenge that equals one of ours is answered: who sends it has it
//! from us, and would use our answer to prove itself to us.

use super::login::Status;
use super::text::{TextWriter, number};
use crate::unit::Chap;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use core::cell::RefCell;
use md5::Md5;
use platform::random::Random;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;
use subtle::ConstantTimeEq;

/// Longest challenge (RFC 7143 section 12.1.3).
const CHALLENGE_BYTES_MAX: usize = 1024;

/// Hash functions by their numbers in IANA's list of PPP authentication algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3 = 8,
}

impl Algorithm {
    fn of(number: u32) -> Option<Algorithm> {
        [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha3].into_iter().find(|a| *a as u32 == number)
    }

    /// The first of the initiator's list that there is.
    fn choose(list: &str) -> Option<Algorithm> {
        list.split(',').find_map(|name| number(name).and_then(Algorithm::of))
    }

    fn hash_bytes(self) -> usize {
        match self {
            Algorithm::Md5 => 16,
            Algorithm::Sha1 => 20,
            Algorithm::Sha256 | Algorithm::Sha3 => 32,
        }
    }

    fn response(self, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        fn hash<D: Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        let id = [id];
        let parts = [&id[..], secret, challenge];
        match self {
            Algorithm::Md5 => hash::<Md5>(parts),
            Algorithm::Sha1 => hash::<Sha1>(parts),
            Algorithm::Sha256 => hash::<Sha256>(parts),
            Algorithm::Sha3 => hash::<Sha3_256>(parts),
        }
    }
}

/// The challenges of all logins under way, and the dice that make them.
pub struct Challenges {
    random: Rc<dyn Random>,
    outstanding: RefCell<BTreeSet<Vec<u8>>>,
}

impl Challenges {
    /// None yet. `random` has to be good enough for secrets.
    pub fn new(random: Rc<dyn Random>) -> Rc<Challenges> {
        Rc::new(Challenges { random, outstanding: RefCell::default() })
    }

    fn issue(self: &Rc<Challenges>, algorithm: Algorithm) -> Challenge {
        let mut id = [0];
        self.random.fill(&mut id);
        let mut bytes = alloc::vec![0; algorithm.hash_bytes()];
        self.random.fill(&mut bytes);
        self.outstanding.borrow_mut().insert(bytes.clone());
        let [id] = id;
        Challenge { algorithm, id, bytes, all: self.clone() }
    }
}

/// A challenge that waits for its response; forgotten when dropped.
struct Challenge {
    algorithm: Algorithm,
    id: u8,
    bytes: Vec<u8>,
    all: Rc<Challenges>,
}

impl Drop for Challenge {
    fn drop(&mut self) {
        self.all.outstanding.borrow_mut().remove(&self.bytes);
    }
}

/// The CHAP keys of one text.
#[derive(Debug, Default, Clone, Copy)]
pub struct Keys<'a> {
    algorithms: Option<&'a str>,
    name: Option<&'a str>,
    response: Option<&'a str>,
    id: Option<&'a str>,
    challenge: Option<&'a str>,
}

impl<'a> Keys<'a> {
    /// Takes a key, if it is one of CHAP's.
    pub fn take(&mut self, key: &str, value: &'a str) -> bool {
        let place = match key {
            "CHAP_A" => &mut self.algorithms,
            "CHAP_N" => &mut self.name,
            "CHAP_R" => &mut self.response,
            "CHAP_I" => &mut self.id,
            "CHAP_C" => &mut self.challenge,
            _ => return false,
        };
        *place = Some(value);
        true
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        [self.algorithms, self.name, self.response, self.id, self.challenge].iter().all(Option::is_none)
    }

    /// The initiator tries to prove who it is.
    pub fn has_response(&self) -> bool {
        self.response.is_some()
    }
}

/// How far a login's CHAP has come.
enum State {
    /// The initiator has to offer algorithms.
    Offer,
    /// It has to answer our challenge.
    Challenged(Challenge),
    /// It knows the secret.
    Proven,
}

/// The CHAP of one login.
pub struct Exchange {
    wanted: Rc<Chap>,
    challenges: Rc<Challenges>,
    state: State,
}

impl Exchange {
    /// A login that has to prove that it knows the secret of `wanted`.
    pub fn new(wanted: Rc<Chap>, challenges: Rc<Challenges>) -> Exchange {
        Exchange { wanted, challenges, state: State::Offer }
    }

    /// What was proven.
    pub fn proven(&self) -> Option<&Rc<Chap>> {
        matches!(self.state, State::Proven).then_some(&self.wanted)
    }

    /// Takes the keys of a text and appends the answer to them.
    pub fn step(&mut self, keys: &Keys<'_>, reply: &mut TextWriter) -> Result<(), Status> {
        if keys.is_empty() {
            return Ok(());
        }
        self.state = match (&self.state, keys) {
            (State::Offer, Keys { algorithms: Some(list), name: None, response: None, id: None, challenge: None }) => {
                let algorithm = Algorithm::choose(list).ok_or(Status::AuthenticationFailure)?;
                let challenge = self.challenges.issue(algorithm);
                reply.put("CHAP_A", algorithm as u8);
                reply.put("CHAP_I", challenge.id);
                reply.put("CHAP_C", hex(&challenge.bytes));
                State::Challenged(challenge)
            }
            (State::Challenged(ours), Keys { algorithms: None, name: Some(name), response: Some(response), .. }) => {
                self.verify(ours, name, response)?;
                match (keys.id, keys.challenge) {
                    (Some(id), Some(challenge)) => self.answer(ours, id, challenge, reply)?,
                    (None, None) => {}
                    _ => return Err(Status::AuthenticationFailure),
                }
                State::Proven
            }
            // Any other order is not CHAP's.
            _ => return Err(Status::InitiatorError),
        };
        Ok(())
    }

    /// The name and the response are looked at in full whichever of them is wrong.
    fn verify(&self, ours: &Challenge, name: &str, response: &str) -> Result<(), Status> {
        let right = &self.wanted.initiator;
        let expected = ours.algorithm.response(ours.id, right.secret.reveal(), &ours.bytes);
        let given = binary(response).unwrap_or_default();
        let matches = expected.ct_eq(&given) & right.name.as_bytes().ct_eq(name.as_bytes());
        if matches.into() { Ok(()) } else { Err(Status::AuthenticationFailure) }
    }

    /// Proves to the initiator who we are.
    fn answer(&self, ours: &Challenge, id: &str, challenge: &str, reply: &mut TextWriter) -> Result<(), Status> {
        let failed = Status::AuthenticationFailure;
        let own = self.wanted.target.as_ref().ok_or(failed)?;
        let id = number(id).and_then(|id| u8::try_from(id).ok()).ok_or(failed)?;
        let challenge =
            binary(challenge).filter(|bytes| (1..=CHALLENGE_BYTES_MAX).contains(&bytes.len())).ok_or(failed)?;
        if self.challenges.outstanding.borrow().contains(&challenge) {
            log::warn!("iscsi: an initiator sent our own challenge back");
            return Err(failed);
        }
        reply.put("CHAP_N", &own.name);
        reply.put("CHAP_R", hex(&ours.algorithm.response(id, own.secret.reveal(), &challenge)));
        Ok(())
    }
}

impl core::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Exchange(..)")
    }
}

/// A binary value in hexadecimal or base64 (RFC 7143 section 6.1).
fn binary(value: &str) -> Option<Vec<u8>> {
    let (form, digits) = value.split_at_checked(2)?;
    match form {
        "0x" | "0X" => {
            let nibbles: Option<Vec<u8>> = digits.chars().map(|c| c.to_digit(16).map(|n| n as u8)).collect();
            let nibbles = nibbles.filter(|nibbles| nibbles.len().is_multiple_of(2))?;
            Some(nibbles.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, nibble| byte << 4 | nibble)).collect())
        }
        "0b" | "0B" => BASE64_STANDARD.decode(digits).ok(),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    core::iter::once(String::from("0x")).chain(bytes.iter().map(|byte| format!("{byte:02x}"))).collect()
}

#[cfg(test)]
mod tests;
