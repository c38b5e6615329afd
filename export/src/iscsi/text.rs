//! `key=value` text, as login and text PDUs carry it (RFC 7143 section 6.1).

use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

/// Longest key name in bytes.
const KEY_BYTES_MAX: usize = 63;

/// Most bytes of text that are collected over PDUs with the continue bit.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Most keys of a negotiation: more than there are. So all answers fit into one PDU.
const KEYS_MAX: usize = 64;

/// The text is no list of `key=value` pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed key=value text")]
pub struct Malformed;

/// The pairs of a complete text, in order.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = Result<(&str, &str), Malformed>> {
    text.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()).map(|pair| {
        let pair = core::str::from_utf8(pair).map_err(|_| Malformed)?;
        let (key, value) = pair.split_once('=').ok_or(Malformed)?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX { Err(Malformed) } else { Ok((key, value)) }
    })
}

/// The keys of a negotiation, each of which comes once.
#[derive(Debug, Default)]
pub struct SentKeys(BTreeSet<String>);

impl SentKeys {
    /// Notes that `key` was sent. Wrong if it was before, or if there are too many.
    pub fn note(&mut self, key: &str) -> Result<(), Malformed> {
        let fits = self.0.len() < KEYS_MAX;
        if fits && self.0.insert(key.into()) { Ok(()) } else { Err(Malformed) }
    }
}

/// A text under construction.
#[derive(Debug, Default, Clone)]
pub struct TextWriter(Vec<u8>);

impl TextWriter {
    /// Appends `key=value`.
    pub fn put(&mut self, key: &str, value: impl fmt::Display) {
        // Writing to a Vec cannot fail.
        let _ = write!(self, "{key}={value}\0");
    }

    /// The bytes of the text.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl Write for TextWriter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// A number, decimal or `0x` hexadecimal (RFC 7143 section 6.1).
pub fn number(value: &str) -> Option<u32> {
    let hex = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"));
    match hex {
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if value.starts_with('+') => None,
        None => value.parse().ok(),
    }
}

/// `Yes` or `No`.
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// The words of a boolean.
pub fn yes_no(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// An iSCSI name in the form in which names are compared: lower case. `None` if it cannot be a name.
pub fn normalise_name(name: &str) -> Option<String> {
    let fits = !name.is_empty() && name.len() <= 223;
    let clean = name.chars().all(|c| !c.is_whitespace() && !c.is_control());
    (fits && clean).then(|| name.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_a_text() {
        let list: Vec<_> = pairs(b"A=1\0B=x=y\0\0C=\0").map(Result::unwrap).collect();
        assert_eq!(list, [("A", "1"), ("B", "x=y"), ("C", "")]);
        assert!(pairs(b"A\0").any(|p| p.is_err()));
        assert!(pairs(b"=1\0").any(|p| p.is_err()));
        assert!(pairs(b"\xff=1\0").any(|p| p.is_err()));
        let long = [b"k".repeat(64), b"=1".to_vec()].concat();
        assert!(pairs(&long).any(|p| p.is_err()));
    }

    #[test]
    fn numbers_in_both_forms() {
        let table = [("0", Some(0)), ("262144", Some(262144)), ("0x1F", Some(31)), ("0XfF", Some(255)), ("-1", None)];
        for (text, value) in table {
            assert_eq!(number(text), value, "{text}");
        }
        for bad in ["", "0x", "4294967296", "12k", "+5", "0x+5", " 1"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
