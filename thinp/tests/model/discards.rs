//! Discards, and what they may count on with few metadata blocks left.

use crate::count;
use crate::driver::Driver;
use crate::world::BLOCK;
use std::ops::Range;
use thinp::Error;
use thinp::control::{DiscardPolicy, Mode};

impl Driver {
    pub async fn discard(&mut self) {
        let Some(device) = self.any_device() else { return };
        let sector = self.dice.below(self.shape.virtual_blocks * BLOCK);
        let most = [BLOCK, 3 * BLOCK, 40 * BLOCK, self.shape.virtual_blocks * BLOCK][self.dice.below(4) as usize];
        let sectors = if self.dice.chance(20) { self.dice.below(most + 1) } else { self.dice.below(4 * BLOCK) };
        let blocks = sector.div_ceil(BLOCK)..((sector + sectors) / BLOCK).max(sector.div_ceil(BLOCK));
        loop {
            match self.thins[&device].clone().discard(sector, sectors).await {
                Ok(()) => break,
                Err(Error::DiscardsIgnored) => {
                    assert_eq!(self.pool().status().discard, DiscardPolicy::Ignore);
                    return;
                }
                Err(Error::Refused(Mode::OutOfMetadataSpace)) => self.discarded_in_part(device, blocks.clone()).await,
                Err(error) => panic!("{error}"),
            }
        }
        assert_ne!(self.pool().status().discard, DiscardPolicy::Ignore);
        if !self.read_only {
            self.unmap(device, blocks);
        }
    }

    fn unmap(&mut self, device: u32, blocks: Range<u64>) {
        let (unmapped, freed) = self.model.unmap(device, blocks);
        if self.pool().status().discard == DiscardPolicy::Passdown {
            self.to_discard_blocks += freed;
        }
        self.discards += u64::from(unmapped > 0);
        count(match (unmapped, freed) {
            (0, _) => "discard of nothing",
            (unmapped, freed) if unmapped == freed => "discard of blocks of its own",
            _ => "discard of shared blocks",
        });
    }

    /// Earlier discards have used up the reserve, by what they copied of shared trees. What shares them can be released or
    /// deleted, whatever the reserve holds, and when nothing does any more there is room again.
    async fn discarded_in_part(&mut self, device: u32, blocks: Range<u64>) {
        assert!(self.metadata_is_short(), "{}", self.pool().status());
        for block in blocks {
            let mapped = self.model.mapping(device, block).is_some();
            if mapped && !self.thins[&device].mapped_run(block * BLOCK, 1).await.unwrap().0 {
                self.unmap(device, block..block + 1);
            }
        }
        assert!(self.discards > 0, "a discard finds the reserve whole: {}", self.pool().status());
        count("discard that finds the reserve used up");
        if self.model.held.is_some() {
            return self.release().await;
        }
        let other = self.model.devices.keys().copied().find(|other| *other != device);
        let other = other.unwrap_or_else(|| panic!("nothing is shared: {}", self.pool().status()));
        self.delete_device(other).await;
    }
}
