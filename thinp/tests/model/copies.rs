//! Copies that share blocks.

use crate::count;
use crate::driver::Driver;
use crate::world::BLOCK;
use thinp::control::{DiscardPolicy, Mode};
use thinp::{CopySource, Error};

impl Driver {
    /// Copies blocks by sharing them, one by one: each is shared or not.
    pub async fn share(&mut self) {
        let (Some(source), Some(device)) = (self.busy_device(), self.busy_device()) else { return };
        let (from, to) = (self.dice.below(self.shape.virtual_blocks), self.dice.below(self.shape.virtual_blocks));
        let to = if self.dice.chance(2) { from } else { to };
        let spare = u64::from(self.dice.chance(20));
        for block in 0..1 + self.dice.below(20) {
            if !self.share_block(source, from + block, device, to + block, spare).await {
                return;
            }
        }
    }

    /// Shares a block, or less if there are sectors to spare; false if that need not be tried again.
    async fn share_block(&mut self, source: u32, from: u64, device: u32, to: u64, spare: u64) -> bool {
        let thins = [device, source].map(|device| self.thins[&device].clone());
        let result = thins[0].share(to * BLOCK, CopySource::new(&thins[1], from * BLOCK), BLOCK - spare).await;
        let origins = [device, source].map(|device| self.model.device(device).origin);
        let possible = spare == 0 && origins == [None, None] && source != device;
        match result {
            // What other leaves refer to is not shared, and what they are the model does not know.
            Err(Error::NotShareable(_)) => assert!(!possible || self.model.mapping(source, from).is_some()),
            Err(Error::Refused(Mode::ReadOnly)) => assert!(self.read_only),
            Err(Error::Refused(Mode::OutOfMetadataSpace)) => {
                assert!(self.metadata_is_short(), "{}", self.pool().status());
                count("copy without metadata space");
            }
            Err(error) => panic!("{error}"),
            Ok(()) => {
                assert!(possible && !self.read_only);
                self.discards = 0;
                let freed = self.model.share(source, from, device, to, 1);
                if self.pool().status().discard == DiscardPolicy::Passdown {
                    self.to_discard_blocks += freed;
                }
                count("block shared");
                return true;
            }
        }
        possible && !self.read_only
    }
}
