//! Names and sizes as they may be, checked once where they come in.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A volume's name: `[a-z0-9][a-z0-9.-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct VolumeName(String);

/// Not a volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a volume's name is a-z or 0-9, then at most 62 more of a-z 0-9 . -")]
pub struct NameError;

impl VolumeName {
    /// Most bytes of a name.
    pub const LEN_MAX: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    /// Empty, too long, or with a character that names do not have.
    pub fn parse(name: &str) -> Result<VolumeName, NameError> {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let (first, rest) = name.as_bytes().split_first().ok_or(NameError)?;
        let good = plain(*first) && rest.iter().all(|c| plain(*c) || b".-".contains(c)) && name.len() <= Self::LEN_MAX;
        if good { Ok(VolumeName(name.to_owned())) } else { Err(NameError) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = NameError;

    fn try_from(name: String) -> Result<VolumeName, NameError> {
        VolumeName::parse(&name)
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A volume's size in bytes: whole sectors of 512, more than 0, at most 2^63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "u64")]
pub struct VolumeSize(u64);

/// Not a volume's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not whole sectors.
    #[error("{size_bytes} bytes are no whole sectors; {} bytes are", size_bytes.div_ceil(512) * 512)]
    Unaligned {
        /// What was asked for.
        size_bytes: u64,
    },
    /// Nothing, or more than there can be.
    #[error("a volume's size is 512 to {} bytes, and {size_bytes} is not", VolumeSize::MAX_BYTES)]
    OutOfRange {
        /// What was asked for.
        size_bytes: u64,
    },
}

impl VolumeSize {
    /// The greatest size in bytes.
    pub const MAX_BYTES: u64 = 1 << 63;

    /// Checks a size in bytes.
    ///
    /// # Errors
    /// Zero, too large, or not a multiple of 512.
    pub fn new(size_bytes: u64) -> Result<VolumeSize, SizeError> {
        if size_bytes == 0 || size_bytes > Self::MAX_BYTES {
            return Err(SizeError::OutOfRange { size_bytes });
        }
        if !size_bytes.is_multiple_of(512) {
            return Err(SizeError::Unaligned { size_bytes });
        }
        Ok(VolumeSize(size_bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for VolumeSize {
    type Error = SizeError;

    fn try_from(size_bytes: u64) -> Result<VolumeSize, SizeError> {
        VolumeSize::new(size_bytes)
    }
}

/// An iSCSI initiator's name (RFC 7143 section 4.2.7), in lower case: `iqn.`, `eui.` or `naa.` and at most
/// 223 bytes in all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct InitiatorName(String);

/// Not an initiator's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an initiator's name starts with iqn. eui. or naa. and has at most 223 of a-z 0-9 . : -")]
pub struct InitiatorError;

impl InitiatorName {
    /// Most bytes of a name.
    pub const LEN_MAX: usize = 223;

    /// Checks a name. Names that differ in case only are the same name, so it is kept in lower case.
    ///
    /// # Errors
    /// Another type of name, too long, or with a character that names do not have.
    pub fn parse(name: &str) -> Result<InitiatorName, InitiatorError> {
        let name = name.to_ascii_lowercase();
        let kind = ["iqn.", "eui.", "naa."].iter().any(|kind| name.starts_with(kind) && name.len() > kind.len());
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".:-".contains(&c);
        let good = kind && name.len() <= Self::LEN_MAX && name.bytes().all(plain);
        if good { Ok(InitiatorName(name)) } else { Err(InitiatorError) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InitiatorName {
    type Error = InitiatorError;

    fn try_from(name: String) -> Result<InitiatorName, InitiatorError> {
        InitiatorName::parse(&name)
    }
}

/// Who may use an export. In JSON the word `"all"` or a list of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Initiators {
    /// Whoever reaches the portal.
    All,
    /// These.
    Only(Vec<InitiatorName>),
}

impl Initiators {
    /// Most names in one rule.
    pub const COUNT_MAX: usize = 32;
}

impl Serialize for Initiators {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Initiators::All => serializer.serialize_str("all"),
            Initiators::Only(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Initiators {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Initiators, D::Error> {
        struct Rule;

        impl<'de> Visitor<'de> for Rule {
            type Value = Initiators;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "\"all\" or a list of 1 to {} initiator names", Initiators::COUNT_MAX)
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Initiators, E> {
                match word {
                    "all" => Ok(Initiators::All),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Initiators, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = seq.next_element()? {
                    if names.len() == Initiators::COUNT_MAX {
                        return Err(serde::de::Error::invalid_length(names.len() + 1, &self));
                    }
                    names.push(name);
                }
                if names.is_empty() {
                    return Err(serde::de::Error::invalid_length(0, &self));
                }
                Ok(Initiators::Only(names))
            }
        }

        deserializer.deserialize_any(Rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::ToString;

    #[test]
    fn volume_names() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "v1", "thin-7", "a.b-c.", "0--", &longest] {
            assert_eq!(VolumeName::parse(good).unwrap().as_str(), good);
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", ".a", "A", "a_b", "a/b", "a b", "a%2D", "ä", "pool:metadata", "a\n", &too_long] {
            assert_eq!(VolumeName::parse(bad), Err(NameError), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for good in [512, 1 << 30, 1 << 63] {
            assert_eq!(VolumeSize::new(good).unwrap().bytes(), good);
        }
        for (bad, says) in [
            (0, "a volume's size is 512 to 9223372036854775808 bytes, and 0 is not"),
            (1, "1 bytes are no whole sectors; 512 bytes are"),
            (513, "513 bytes are no whole sectors; 1024 bytes are"),
            ((1 << 63) + 512, "and 9223372036854776320 is not"),
            (u64::MAX, "and 18446744073709551615 is not"),
        ] {
            let error = VolumeSize::new(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn initiators() {
        let rule: Initiators =
            serde_json::from_str(r#"["iqn.1993-08.org.Debian:01:ab", "eui.02004567A425678D"]"#).unwrap();
        assert_eq!(serde_json::to_string(&rule).unwrap(), r#"["iqn.1993-08.org.debian:01:ab","eui.02004567a425678d"]"#);
        let all: Initiators = serde_json::from_str(r#""all""#).unwrap();
        assert_eq!((&all, serde_json::to_string(&all).unwrap().as_str()), (&Initiators::All, r#""all""#));
        let many = format!("[{}]", ["\"iqn.x\""; 33].join(","));
        for bad in ["[]", "\"none\"", "{}", "null", "[1]", "[\"iqn.\"]", "[\"host\"]", "[\"iqn.a b\"]", &many] {
            assert!(serde_json::from_str::<Initiators>(bad).is_err(), "{bad}");
        }
    }
}
