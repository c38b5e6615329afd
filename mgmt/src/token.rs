//! Bearer tokens. The appliance keeps their SHA-256 hashes only; a token itself is shown once.

use alloc::string::{String, ToString};
use core::fmt;
use platform::random::Random;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Random bytes in a generated token: 160 bits.
const TOKEN_BYTES: usize = 20;
/// What a generated token starts with, so that a secret scanner can find one that leaked.
const PREFIX: &str = "gsm-";
/// RFC 4648 section 6.
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Fewest characters of a token that somebody chose.
const LEN_MIN: usize = 16;
/// Most characters of a token.
const LEN_MAX: usize = 256;

/// A secret that opens the interface. Its `Debug` shows nothing, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is {LEN_MIN} to {LEN_MAX} characters out of A-Z a-z 0-9 - . _ ~ + / =")]
pub struct TokenError;

impl Token {
    /// A new token from `random`: `gsm-` and 20 random bytes in base32.
    pub fn generate(random: &dyn Random) -> Token {
        let mut bytes = [0; TOKEN_BYTES];
        random.fill(&mut bytes);
        let mut text = String::from(PREFIX);
        // 5 bytes are 8 digits of 5 bits; 20 bytes come out even.
        for group in bytes.chunks_exact(5) {
            let bits = group.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
            text.extend((0..8).rev().map(|digit| char::from(BASE32[(bits >> (5 * digit)) as usize & 31])));
        }
        Token(text)
    }

    /// A token that somebody chose.
    ///
    /// # Errors
    /// Too short, too long, or with a character that RFC 6750 does not allow in a bearer token.
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || b"-._~+/=".contains(&c);
        if (LEN_MIN..=LEN_MAX).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Token(text.to_string()))
        } else {
            Err(TokenError)
        }
    }

    /// What is kept of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The secret itself: for the one console line that shows a token just made.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The SHA-256 hash of a [`Token`].
#[derive(Clone, Copy)]
pub struct TokenHash(
    /// The 32 bytes.
    pub [u8; 32],
);

impl PartialEq for TokenHash {
    fn eq(&self, other: &TokenHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// Whether `presented` is one of `accepted`. Takes the same time wherever they differ.
pub(crate) fn is_accepted(presented: &TokenHash, accepted: &[TokenHash]) -> bool {
    let found = accepted.iter().fold(Choice::from(0), |found, hash| found | hash.0.ct_eq(&presented.0));
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use platform::random::Seeded;

    struct Fixed([u8; TOKEN_BYTES]);

    impl Random for Fixed {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0);
        }
    }

    #[test]
    fn a_generated_token_is_base32_of_its_bytes() {
        // `printf 'gossamer gossamer go' | base32`
        let token = Token::generate(&Fixed(*b"gossamer gossamer go"));
        assert_eq!(token.reveal(), "gsm-M5XXG43BNVSXEIDHN5ZXGYLNMVZCAZ3P");
        assert_eq!(Token::parse(token.reveal()), Ok(token));
    }

    #[test]
    fn tokens_differ_and_debug_hides_them() {
        let random = Seeded::from_u64(1);
        let (a, b) = (Token::generate(&random), Token::generate(&random));
        assert_ne!(a, b);
        assert_eq!(format!("{a:?} {:?}", a.hash()), "Token(..) TokenHash(..)");
        assert!(is_accepted(&a.hash(), &[b.hash(), a.hash()]));
        assert!(!is_accepted(&a.hash(), &[b.hash()]));
        assert!(!is_accepted(&a.hash(), &[]));
    }

    #[test]
    fn the_hash_is_sha256() {
        // `printf 0123456789abcdef | sha256sum`
        let hash = Token::parse("0123456789abcdef").unwrap().hash();
        assert_eq!(hash.0[..4], [0x9f, 0x9f, 0x51, 0x11]);
    }

    #[test]
    fn chosen_tokens_are_checked() {
        let longest = "x".repeat(LEN_MAX);
        for good in ["0123456789abcdef", "AZaz09-._~+/====", longest.as_str()] {
            assert!(Token::parse(good).is_ok(), "{good}");
        }
        let too_long = "x".repeat(LEN_MAX + 1);
        for bad in ["", "0123456789abcde", "0123456789 abcdef", "0123456789abcdef\n", "0123456789abcdé", &too_long] {
            assert_eq!(Token::parse(bad), Err(TokenError), "{bad}");
        }
    }
}
