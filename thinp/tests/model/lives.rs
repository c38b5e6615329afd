//! What ends a life of the pool and begins another: restarts, power cuts, lost transactions; and growth.

use crate::count;
use crate::driver::{Driver, random_options};
use crate::world::BLOCK;
use pdata::block::BlockKind;
use platform::block::BlockDevice;
use thinp::control::Mode;

/// The superblock's kind (reference 1.2).
static SUPERBLOCK: BlockKind = BlockKind { name: "superblock", salt: 160774, number_at: 8, check: |_| Ok(()) };

impl Driver {
    /// Closes the pool and opens it again, now and then read-only.
    pub async fn restart(&mut self) {
        self.thins.clear();
        self.pool().close().await.unwrap();
        if !self.read_only {
            self.committed();
        }
        self.clear_needs_check();
        self.reopen(true).await;
        count("restart");
    }

    /// Opens a pool over what the disks hold now.
    async fn reopen(&mut self, may_be_read_only: bool) {
        self.options = random_options(&self.dice, &self.shape);
        self.options.features.read_only = may_be_read_only && self.dice.chance(8);
        self.open_pool().await;
        self.read_only = self.options.features.read_only || self.needs_check;
        self.short_of_data = false;
        // What waited to be passed down may have been.
        let told = self.discarded_sectors..=self.discarded_sectors + self.to_discard_blocks * BLOCK;
        assert!(told.contains(&self.data.discarded_sectors()), "{told:?}");
        (self.discarded_sectors, self.to_discard_blocks) = (self.data.discarded_sectors(), 0);
        self.lost.clear();
        self.mode_seen = self.pool().status().mode;
        self.superblocks_seen = self.meta.superblocks();
        self.open_thins().await;
    }

    pub async fn power_cut(&mut self) {
        self.meta.cut(&self.dice);
        self.data.cut(&self.dice);
        let lost = self.model.any_changes();
        self.model.roll_back();
        self.reopen(false).await;
        for (device, block, slot) in self.model.unsure() {
            let found = self.stamps(&self.thins[&device], block * BLOCK, BLOCK).await;
            self.model.settle(slot, &found);
        }
        count(if lost { "power cut that loses a transaction" } else { "power cut" });
    }

    /// A commit fails: the transaction is aborted, the pool is read-only and needs a check.
    pub async fn lose_transaction(&mut self) {
        if self.read_only {
            return;
        }
        let (lost, any) = (self.model.changed(), self.model.any_changes());
        self.data.fail_flushes(true);
        let result = self.pool().commit().await;
        self.data.fail_flushes(false);
        assert!(result.is_err());
        if !any {
            return;
        }
        assert_eq!((self.pool().status().mode, self.pool().status().needs_check), (Mode::ReadOnly, true));
        self.model.roll_back();
        self.thins.retain(|device, _| self.model.devices.contains_key(device));
        (self.lost, self.read_only, self.needs_check) = (lost, true, true);
        self.short_of_data = false;
        self.superblocks_seen = self.meta.superblocks();
        count("transaction aborted");
    }

    /// Does what an administrator does after a check.
    fn clear_needs_check(&mut self) {
        if std::mem::take(&mut self.needs_check) {
            let mut block: [u8; 4096] = self.meta.contents().peek(0, 4096).try_into().unwrap();
            assert_eq!(block[4] & 1, 1, "needs_check is on disk");
            block[4] &= !1;
            SUPERBLOCK.seal(&mut block, 0);
            self.meta.contents().poke(0, &block);
        }
    }

    /// Both disks grow, or one, or none.
    pub async fn grow(&mut self) {
        if self.shape.data_blocks < self.shape_at_first.data_blocks * 6 / 5 && self.dice.chance(2) {
            let sectors = (self.shape.data_blocks + self.dice.below(8)) * BLOCK + self.dice.below(BLOCK);
            self.data.resize(sectors.max(self.data.limits().size_sectors));
        }
        if self.shape.metadata_blocks < self.shape_at_first.metadata_blocks * 6 / 5 && self.dice.chance(6) {
            let disk = self.meta.contents();
            disk.resize(disk.limits().size_sectors + self.dice.below(4) * 8);
        }
        let result = self.pool().grow().await;
        if self.read_only {
            assert!(result.is_err());
            return;
        }
        let status = self.pool().status();
        let (data, metadata) = (status.data_total_blocks, status.metadata_total_blocks);
        match result {
            Ok(()) => {
                assert_eq!(data, self.data.limits().size_sectors / BLOCK);
                assert_eq!(metadata, self.meta.limits().size_sectors / 8);
                self.committed();
            }
            Err(error) => assert!(self.metadata_is_short(), "{error}"),
        }
        if data > self.shape.data_blocks {
            count("data grown");
        }
        if metadata > self.shape.metadata_blocks {
            count("metadata grown");
        }
        (self.shape.data_blocks, self.shape.metadata_blocks) = (data, metadata);
        if result.is_ok() {
            self.committed();
        }
    }
}
