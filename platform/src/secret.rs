//! Secrets: hidden from logs, compared in constant time, wiped when they are dropped.

use alloc::vec::Vec;
use core::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes that nobody else may learn. Its `Debug` shows nothing, and it has no `Display`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(bytes)
    }

    /// The bytes themselves.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn secrets_are_compared_and_not_shown() {
        let secret = |text: &str| Secret::new(text.into());
        assert_eq!(secret("twelve bytes"), secret("twelve bytes"));
        assert!(secret("twelve bytes") != secret("twelve bytez") && secret("twelve bytes") != secret("twelve"));
        assert_eq!(format!("{:?}", secret("twelve bytes")), "Secret(..)");
    }
}
