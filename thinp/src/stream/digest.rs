//! The digest that covers a stream from its beginning.

use blake3::Hasher;

/// A digest: BLAKE3 of the digest before it (zeroes for the first) and of every byte of the stream since then, the digest
/// chunks themselves left out.
pub(super) type Digest = [u8; 32];

/// Digests of a stream, each on top of the one before.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    hasher: Hasher,
    /// Something was taken in since the last digest.
    open: bool,
}

impl Chain {
    /// Goes on behind `last`.
    pub fn after(last: Digest) -> Chain {
        let mut hasher = Hasher::new();
        hasher.update(&last);
        Chain { hasher, open: false }
    }

    /// Whether bytes were taken in since then.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Takes in the next bytes of the stream.
    pub fn take(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.open = true;
    }

    /// The digest of all so far.
    pub fn close(&mut self) -> Digest {
        let digest = *self.hasher.finalize().as_bytes();
        *self = Chain::after(digest);
        digest
    }
}
