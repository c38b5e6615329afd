//! Randomness: one generator for the whole appliance, seeded by the composition root.

use core::cell::RefCell;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

/// A source of random bytes, good enough for secrets when it was seeded from hardware.
pub trait Random {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// ChaCha20 from a 256-bit seed.
pub struct Seeded(RefCell<ChaCha20Rng>);

impl Seeded {
    /// The generator of this seed.
    pub fn new(seed: [u8; 32]) -> Seeded {
        Seeded(RefCell::new(ChaCha20Rng::from_seed(seed)))
    }

    /// The generator of a short seed: for tests and the simulator, never for secrets.
    pub fn from_u64(seed: u64) -> Seeded {
        Seeded(RefCell::new(ChaCha20Rng::seed_from_u64(seed)))
    }
}

impl Random for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.borrow_mut().fill_bytes(bytes);
    }
}
