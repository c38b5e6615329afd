//! The rules of access: who may use an export, from where, and what he has to prove by CHAP.

use crate::names::Initiators;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;
use ipnet::IpNet;
use platform::secret::Secret;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// Most networks in one rule.
const ADDRESSES_MAX: usize = 32;
/// Longest name for CHAP.
const USER_BYTES_MAX: usize = 128;
/// Shortest and longest secret: 96 bits at least (RFC 7143 section 9.2.1), and what fits into a record.
const SECRET_BYTES: core::ops::RangeInclusive<usize> = 12..=128;

/// A rule that exports a volume, or the metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Export {
    /// Who may log in.
    pub initiators: Initiators,
    /// From where; empty for anywhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// What has to be proven.
    #[serde(flatten)]
    pub authentication: Option<Authentication>,
}

/// What a login has to prove by CHAP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Authentication {
    /// As whom the initiator proves itself.
    pub chap: Account,
    /// As whom the appliance does, if the initiator asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mutual: Option<Account>,
}

/// A name and its secret, which is never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Account {
    /// The name.
    pub user: String,
    /// The secret.
    #[serde(skip)]
    pub secret: Secret,
}

/// The authentication of discovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiscoveryAuth {
    /// What has to be proven; `null` if nothing.
    pub authentication: Option<Authentication>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportBody {
    initiators: Initiators,
    #[serde(default)]
    addresses: Vec<String>,
    chap: Option<Account>,
    mutual: Option<Account>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthenticationBody {
    chap: Account,
    mutual: Option<Account>,
}

impl<'de> Deserialize<'de> for Export {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Export, D::Error> {
        let ExportBody { initiators, addresses, chap, mutual } = ExportBody::deserialize(deserializer)?;
        if addresses.len() > ADDRESSES_MAX {
            return Err(D::Error::custom(format!("a rule has at most {ADDRESSES_MAX} addresses")));
        }
        let addresses =
            addresses.iter().map(|text| network(text).map_err(D::Error::custom)).collect::<Result<_, _>>()?;
        let authentication = match (chap, mutual) {
            (Some(chap), mutual) => Some(Authentication::new(chap, mutual).map_err(D::Error::custom)?),
            (None, None) => None,
            (None, Some(_)) => return Err(D::Error::custom("`mutual` needs `chap` beside it")),
        };
        Ok(Export { initiators, addresses, authentication })
    }
}

impl<'de> Deserialize<'de> for Authentication {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Authentication, D::Error> {
        let AuthenticationBody { chap, mutual } = AuthenticationBody::deserialize(deserializer)?;
        Authentication::new(chap, mutual).map_err(D::Error::custom)
    }
}

impl Authentication {
    /// With one secret for both directions whoever is asked for the one could have the other side tell it.
    fn new(chap: Account, mutual: Option<Account>) -> Result<Authentication, &'static str> {
        match &mutual {
            Some(mutual) if mutual.secret == chap.secret => Err("the secrets of `chap` and `mutual` must differ"),
            _ => Ok(Authentication { chap, mutual }),
        }
    }
}

impl<'de> Deserialize<'de> for Account {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Account, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Body {
            user: String,
            secret: String,
        }
        let Body { user, secret } = Body::deserialize(deserializer)?;
        // Taken over at once, so that it is wiped on every way out.
        let secret = Secret::new(secret.into_bytes());
        let printable = |bytes: &[u8]| bytes.iter().all(|byte| (b' '..=b'~').contains(byte));
        if !(1..=USER_BYTES_MAX).contains(&user.len()) || !printable(user.as_bytes()) {
            return Err(D::Error::custom(format!("a user is 1 to {USER_BYTES_MAX} printable ASCII characters")));
        }
        if !SECRET_BYTES.contains(&secret.reveal().len()) || !printable(secret.reveal()) {
            let (least, most) = SECRET_BYTES.into_inner();
            return Err(D::Error::custom(format!("a secret is {least} to {most} printable ASCII characters")));
        }
        Ok(Account { user, secret })
    }
}

/// An address, or a network as `192.0.2.0/24`.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|error| text.parse::<IpAddr>().map(IpNet::from).map_err(|_| error));
    match network {
        Ok(network) => Ok(network.trunc()),
        Err(_) => Err(format!("`{text}` is no address, nor a network as 192.0.2.0/24")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_str, to_string};

    #[test]
    fn rules_are_read_and_shown_without_their_secrets() {
        let table = [
            (r#"{"initiators":"all"}"#, r#"{"initiators":"all"}"#),
            (
                r#"{"initiators":["iqn.A"],"addresses":["10.1.2.3","192.0.2.77/24","2001:DB8::1/64"]}"#,
                r#"{"initiators":["iqn.a"],"addresses":["10.1.2.3/32","192.0.2.0/24","2001:db8::/64"]}"#,
            ),
            (
                r#"{"initiators":"all","chap":{"user":"host","secret":"twelve bytes"}}"#,
                r#"{"initiators":"all","chap":{"user":"host"}}"#,
            ),
            (
                r#"{"mutual":{"secret":"thirteen byte","user":"us"},"initiators":"all","chap":{"user":"h","secret":"twelve bytes"}}"#,
                r#"{"initiators":"all","chap":{"user":"h"},"mutual":{"user":"us"}}"#,
            ),
        ];
        for (given, shown) in table {
            let rule: Export = from_str(given).unwrap();
            assert_eq!(to_string(&rule).unwrap(), shown);
            assert!(!format!("{rule:?}").contains("byte"), "{rule:?}");
        }
        let rule: Export = from_str(table[3].0).unwrap();
        let authentication = rule.authentication.unwrap();
        assert_eq!(authentication.chap.secret.reveal(), b"twelve bytes");
        assert_eq!(authentication.mutual.unwrap().secret.reveal(), b"thirteen byte");
    }

    #[test]
    fn rules_that_make_no_sense() {
        let many = format!(r#"{{"initiators":"all","addresses":[{}]}}"#, [r#""::1""#; 33].join(","));
        let long = format!(r#"{{"initiators":"all","chap":{{"user":"h","secret":"{}"}}}}"#, "x".repeat(129));
        let user = format!(r#"{{"initiators":"all","chap":{{"user":"{}","secret":"twelve bytes"}}}}"#, "u".repeat(129));
        let table = [
            (r#"{}"#, "initiators"),
            (r#"{"initiators":"all","adresses":[]}"#, "unknown field"),
            (r#"{"initiators":"all","addresses":["host"]}"#, "`host` is no address"),
            (r#"{"initiators":"all","addresses":["10.0.0.0/33"]}"#, "no address"),
            (many.as_str(), "at most 32"),
            (r#"{"initiators":"all","chap":{"user":"h"}}"#, "missing field `secret`"),
            (r#"{"initiators":"all","chap":{"user":"h","secret":"eleven byte"}}"#, "12 to 128 printable"),
            (long.as_str(), "12 to 128 printable"),
            (r#"{"initiators":"all","chap":{"user":"h","secret":"twelve bytes\u0000"}}"#, "printable"),
            (r#"{"initiators":"all","chap":{"user":"","secret":"twelve bytes"}}"#, "1 to 128 printable"),
            (user.as_str(), "1 to 128 printable"),
            (r#"{"initiators":"all","mutual":{"user":"h","secret":"twelve bytes"}}"#, "needs `chap`"),
            (
                r#"{"initiators":"all","chap":{"user":"h","secret":"twelve bytes"},"mutual":{"user":"x","secret":"twelve bytes"}}"#,
                "must differ",
            ),
        ];
        for (rule, says) in table {
            let error = format!("{}", from_str::<Export>(rule).unwrap_err());
            assert!(error.contains(says), "{rule}: {error}");
            assert!(!error.contains("twelve"), "{error}");
        }
    }
}
