//! Who may use an export, as the records keep it.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use export::{Chap, Credentials, Peer};
use ipnet::IpNet;
use mgmt::{Account, Authentication, Export, InitiatorName, Initiators};
use minicbor::{Decode, Encode};
use platform::secret::Secret;

/// Who may log in to an export, by name.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Access {
    /// Everybody, because somebody said so in so many words.
    #[n(0)]
    All,
    /// These initiators.
    #[n(1)]
    Initiators(#[n(0)] Vec<String>),
}

impl Access {
    /// Whether this initiator may.
    pub fn admits(&self, initiator: &str) -> bool {
        match self {
            Access::All => true,
            Access::Initiators(names) => names.iter().any(|name| name.eq_ignore_ascii_case(initiator)),
        }
    }
}

/// The whole rule of an export.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Rule {
    /// Who may log in, by name.
    #[n(0)]
    pub initiators: Access,
    /// From which networks; empty for any.
    #[cbor(n(1), with = "networks")]
    pub addresses: Vec<IpNet>,
    /// What has to be proven.
    #[n(2)]
    pub proof: Option<Proof>,
}

/// What a login has to prove by CHAP.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Proof {
    /// As whom the initiator proves itself.
    #[n(0)]
    pub initiator: Login,
    /// As whom the appliance does, if the initiator asks.
    #[n(1)]
    pub target: Option<Login>,
}

/// A name and its secret.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Login {
    /// The name.
    #[n(0)]
    pub user: String,
    /// The secret.
    #[cbor(n(1), with = "secret")]
    pub secret: Secret,
}

impl Rule {
    /// By name alone.
    pub fn of(initiators: Access) -> Rule {
        Rule { initiators, addresses: Vec::new(), proof: None }
    }

    /// A peer of this name and address may use the export, if need be with a secret that it has yet to prove.
    pub fn knows(&self, peer: &Peer) -> bool {
        let near = self.addresses.is_empty() || self.addresses.iter().any(|network| network.contains(&peer.address));
        near && self.initiators.admits(&peer.initiator)
    }

    /// The peer may use the export: what it has proven is what the rule wants now.
    pub fn admits(&self, peer: &Peer) -> bool {
        self.knows(peer) && is_proven(self.proof.as_ref(), peer)
    }
}

/// The peer has proven just this.
pub fn is_proven(wanted: Option<&Proof>, peer: &Peer) -> bool {
    wanted.map(Proof::chap) == peer.proven.as_deref().cloned()
}

impl Proof {
    /// In the words of the export.
    pub fn chap(&self) -> Chap {
        let credentials = |login: &Login| Credentials { name: login.user.clone(), secret: login.secret.clone() };
        Chap { initiator: credentials(&self.initiator), target: self.target.as_ref().map(credentials) }
    }
}

/// A rule as a record keeps it. One that earlier versions understand is where they look for it, any other where they do
/// not: they know nothing of secrets and addresses, and then export nothing.
pub fn split(rule: Option<Rule>) -> (Option<Access>, Option<Rule>) {
    match rule {
        Some(Rule { initiators, addresses, proof: None }) if addresses.is_empty() => (Some(initiators), None),
        rule => (None, rule),
    }
}

/// The rule that [`split`] took apart.
pub fn join(by_name: Option<&Access>, guarded: Option<&Rule>) -> Option<Rule> {
    guarded.cloned().or_else(|| by_name.cloned().map(Rule::of))
}

impl From<Export> for Rule {
    fn from(rule: Export) -> Rule {
        let initiators = match rule.initiators {
            Initiators::All => Access::All,
            Initiators::Only(names) => Access::Initiators(names.iter().map(|name| name.as_str().to_string()).collect()),
        };
        Rule { initiators, addresses: rule.addresses, proof: rule.authentication.map(Proof::from) }
    }
}

impl From<Rule> for Export {
    fn from(rule: Rule) -> Export {
        let initiators = match rule.initiators {
            Access::All => Initiators::All,
            Access::Initiators(names) => {
                Initiators::Only(names.iter().filter_map(|name| InitiatorName::parse(name).ok()).collect())
            }
        };
        Export { initiators, addresses: rule.addresses, authentication: rule.proof.map(Authentication::from) }
    }
}

impl From<Authentication> for Proof {
    fn from(authentication: Authentication) -> Proof {
        let login = |account: Account| Login { user: account.user, secret: account.secret };
        Proof { initiator: login(authentication.chap), target: authentication.mutual.map(login) }
    }
}

impl From<Proof> for Authentication {
    fn from(proof: Proof) -> Authentication {
        let account = |login: Login| Account { user: login.user, secret: login.secret };
        Authentication { chap: account(proof.initiator), mutual: proof.target.map(account) }
    }
}

/// What is shared by all who have to prove it.
pub(crate) fn shared(proof: Option<&Proof>) -> Option<Rc<Chap>> {
    proof.map(|proof| Rc::new(proof.chap()))
}

/// Secrets as byte strings.
mod secret {
    use minicbor::decode::{Decoder, Error};
    use minicbor::encode::{self, Encoder, Write};
    use platform::secret::Secret;

    pub fn encode<C, W: Write>(secret: &Secret, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(secret.reveal())?.ok()
    }

    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Secret, Error> {
        Ok(Secret::new(d.bytes()?.to_vec()))
    }
}

/// Networks as text.
mod networks {
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use ipnet::IpNet;
    use minicbor::decode::{Decoder, Error};
    use minicbor::encode::{self, Encoder, Write};

    pub fn encode<C, W: Write>(list: &[IpNet], e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(list.len() as u64)?;
        list.iter().try_for_each(|network| e.str(&network.to_string())?.ok())
    }

    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<IpNet>, Error> {
        let parse = |text: Result<&str, Error>| text?.parse().map_err(|_| Error::message("no network"));
        d.array_iter::<&str>()?.map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn rule(text: &str) -> Rule {
        serde_json::from_str::<Export>(text).unwrap().into()
    }

    fn peer(initiator: &str, address: &str, proven: Option<&Proof>) -> Peer {
        Peer { initiator: initiator.into(), address: address.parse().unwrap(), proven: shared(proven) }
    }

    #[test]
    fn a_rule_admits_by_name_address_and_secret() {
        let plain = rule(r#"{"initiators":["iqn.a"],"addresses":["192.0.2.0/24","2001:db8::/32"]}"#);
        let guarded =
            rule(r#"{"initiators":"all","addresses":["10.0.0.1"],"chap":{"user":"u","secret":"twelve bytes"}}"#);
        let other = rule(r#"{"initiators":"all","chap":{"user":"u","secret":"twelve bytez"}}"#);
        let table = [
            (&plain, peer("iqn.A", "192.0.2.200", None), true, true),
            (&plain, peer("iqn.a", "2001:db8:1::1", None), true, true),
            (&plain, peer("iqn.a", "192.0.3.1", None), false, false),
            (&plain, peer("iqn.b", "192.0.2.1", None), false, false),
            (&plain, peer("iqn.a", "192.0.2.1", other.proof.as_ref()), true, false),
            (&guarded, peer("iqn.b", "10.0.0.1", None), true, false),
            (&guarded, peer("iqn.b", "10.0.0.1", other.proof.as_ref()), true, false),
            (&guarded, peer("iqn.b", "10.0.0.1", guarded.proof.as_ref()), true, true),
            (&guarded, peer("iqn.b", "10.0.0.2", guarded.proof.as_ref()), false, false),
        ];
        for (rule, peer, knows, admits) in table {
            assert_eq!((rule.knows(&peer), rule.admits(&peer)), (knows, admits), "{rule:?} {peer:?}");
        }
    }

    #[test]
    fn what_earlier_versions_do_not_understand_they_do_not_see() {
        let plain = Rule::of(Access::Initiators(vec!["iqn.a".into()]));
        assert_eq!(split(Some(plain.clone())), (Some(plain.initiators.clone()), None));
        for text in [
            r#"{"initiators":"all","addresses":["10.0.0.1"]}"#,
            r#"{"initiators":"all","chap":{"user":"u","secret":"twelve bytes"},"mutual":{"user":"t","secret":"thirteen byte"}}"#,
        ] {
            let rule = rule(text);
            let (by_name, guarded) = split(Some(rule.clone()));
            assert_eq!((by_name.as_ref(), guarded.as_ref()), (None, Some(&rule)));
            assert_eq!(join(None, guarded.as_ref()), Some(rule.clone()));
            let read: Rule = minicbor::decode(&minicbor::to_vec(&rule).unwrap()).unwrap();
            assert_eq!(read, rule);
            assert_eq!(Rule::from(Export::from(rule.clone())), rule);
        }
        assert_eq!(join(Some(&plain.initiators), None), Some(plain));
        assert_eq!((split(None), join(None, None)), ((None, None), None));
    }
}
