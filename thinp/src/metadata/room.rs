//! Never out of metadata by surprise: what may begin with how many free blocks, and what it has to leave.
//!
//! With plenty free any change may join the open transaction. With less, a change that might run out half-way gets a
//! transaction of its own ("tight"), so that it can be undone as if it had been refused: because it ran out, or because it
//! left too little for deletes and releases, which only free. What takes blocks stops at the pool's reserve; discards,
//! which may have to copy what they share, go on within it until what they copied has used it up: only a release or a
//! delete of what shares these nodes brings it back. The commit's own needs are left free always.

use super::change::Change;
use super::state::Core;
use super::trees::NODE_ENTRIES;
use super::{Metadata, MetadataError, Result};
use core::cell::Cell;
use pdata::space_map::{ChangeCost, ENTRIES_PER_BITMAP};

/// Blocks that one change takes at most for the ways down three trees, siblings included, but without the counts.
const WAYS: u64 = 24;

/// Counts of data blocks that one change of mappings changes at most: of two leaves that it duplicates, and of what it
/// removes.
const DATA_CHANGES_MAX: u64 = 3 * NODE_ENTRIES;

/// Counts of metadata blocks that it changes at most: of the children of two nodes on each of three levels.
const METADATA_CHANGES_MAX: u64 = 6 * NODE_ENTRIES;

/// Counts of metadata blocks that freeing a leaf changes at most: of its neighbours and those of its parent.
pub(super) const CHANGES_BY_LEAF: u64 = 2 * NODE_ENTRIES;

/// With so many blocks to spare nothing needs to be calculated: one change of mappings, and after it what it has to leave, which
/// is one more of them and a leaf's deletion, however large the pool.
const PLENTY: u64 =
    ChangeCost::BLOCKS_BY_CHANGE * (2 * (DATA_CHANGES_MAX + METADATA_CHANGES_MAX) + NODE_ENTRIES + CHANGES_BY_LEAF);

/// What changes of counts take at most in this pool.
#[derive(Clone, Copy)]
pub(super) struct Costs {
    data: ChangeCost,
    metadata: ChangeCost,
}

impl Costs {
    /// Blocks taken by changing so many counts of data and metadata blocks.
    pub fn blocks(&self, data: u64, metadata: u64) -> u64 {
        self.data.blocks(data).saturating_add(self.metadata.blocks(metadata))
    }

    /// Blocks taken by one change of mappings.
    pub fn change(&self) -> u64 {
        let new = self.data.new_leaves(DATA_CHANGES_MAX).saturating_add(self.metadata.new_leaves(METADATA_CHANGES_MAX));
        self.blocks(DATA_CHANGES_MAX, METADATA_CHANGES_MAX).saturating_add(new)
    }

    /// What a discard leaves: a delete takes it to free a leaf.
    fn left_by_discard(&self) -> u64 {
        self.blocks(NODE_ENTRIES, CHANGES_BY_LEAF)
    }

    /// What everything else leaves: room for a discard, whatever that has to copy.
    fn left_by_others(&self) -> u64 {
        self.change().saturating_add(self.left_by_discard())
    }
}

/// What is known of the free metadata blocks of one [`Metadata`].
#[derive(Default)]
pub(super) struct Room {
    /// What is left for discards and deletes, as last calculated.
    held_back: Cell<u64>,
    /// With so many free blocks a change was undone for want of more: until there are more it is not tried again.
    too_few: Cell<u64>,
    tight: Cell<bool>,
}

/// What a change of mappings has to leave.
pub(super) struct Floor(u64);

impl Metadata {
    /// There is room for a change that takes metadata blocks, and then for the commit, outside the reserve. If not, a commit
    /// may bring some: blocks freed since the last one count only after it.
    pub fn has_room(&self) -> bool {
        let enough = self.core.borrow().tm.free_blocks() > self.room.too_few.get();
        enough && self.spare_blocks() >= self.room.held_back.get().max(WAYS) && self.free_metadata_blocks() > 0
    }

    /// A change of mappings was undone with so many blocks free as there are now.
    pub(super) fn was_too_little(&self) {
        self.room.too_few.set(self.core.borrow().tm.free_blocks());
    }

    /// Forgets that once there are more.
    pub(super) fn look_for_more(&self) {
        if self.core.borrow().tm.free_blocks() > self.room.too_few.get() {
            self.room.too_few.set(0);
        }
    }

    /// Free blocks beyond what the commit takes, and one change besides the counts that it changes.
    pub(super) fn spare_blocks(&self) -> u64 {
        self.core.borrow().tm.free_blocks().saturating_sub(self.commit_blocks().saturating_add(WAYS))
    }

    /// The most blocks that a commit of what was changed so far takes.
    fn commit_blocks(&self) -> u64 {
        let core = self.core.borrow();
        let metadata_bitmaps = core.tm.nr_blocks().div_ceil(ENTRIES_PER_BITMAP);
        // A leaf for each device changed, the index of the data map, the metadata map itself, and the ways to these.
        let leaves = self.devices_changed.get().saturating_add(core.data.close_blocks());
        leaves.saturating_add(metadata_bitmaps).saturating_add(16)
    }

    /// What changes of counts take now.
    pub(super) async fn costs(&self, core: &Core) -> Result<Costs> {
        let data = core.data.change_cost(core.tm.blocks()).await?;
        let costs = Costs { data, metadata: core.tm.change_cost().await? };
        self.room.held_back.set(costs.left_by_others());
        Ok(costs)
    }

    /// Before mappings of a device that is being deleted are removed with too little room for a whole leaf.
    pub(super) fn check_room_to_delete(&self, change: &Change<'_>) -> Result<Floor> {
        self.room.tight.set(true);
        if change.alone { Ok(Floor(0)) } else { Err(MetadataError::NoMetadataSpace) }
    }

    /// Before mappings are added or replaced.
    pub(super) async fn check_room_to_map(&self, change: &Change<'_>) -> Result<Floor> {
        self.check_room(change, 1, Costs::left_by_others).await
    }

    /// Before mappings are added or replaced in two places.
    pub(super) async fn check_room_to_share(&self, change: &Change<'_>) -> Result<Floor> {
        self.check_room(change, 2, Costs::left_by_others).await
    }

    /// Before mappings are removed.
    pub(super) async fn check_room_to_unmap(&self, change: &Change<'_>) -> Result<Floor> {
        self.check_room(change, 1, Costs::left_by_discard).await
    }

    /// Before the data map grows by so many metadata blocks.
    pub(super) fn check_room_to_grow(&self, growth: u64) -> Result<()> {
        // What is left for a change and for a discard grows by as many each, at most.
        let needed = self.room.held_back.get().max(WAYS).saturating_add(growth.saturating_mul(3));
        if self.spare_blocks() >= needed { Ok(()) } else { Err(MetadataError::NoMetadataSpace) }
    }

    /// A change, or as many as are made in one go, that would be tight in a transaction with others is refused: a commit
    /// makes room.
    async fn check_room(&self, change: &Change<'_>, changes: u64, floor: fn(&Costs) -> u64) -> Result<Floor> {
        self.room.tight.set(false);
        if self.spare_blocks() >= PLENTY.saturating_mul(changes) {
            return Ok(Floor(0));
        }
        let costs = self.costs(&change.core).await?;
        let floor = floor(&costs);
        let enough = || self.spare_blocks() >= floor.saturating_add(costs.change().saturating_mul(changes));
        self.end_views_until(enough).await;
        if enough() {
            return Ok(Floor(0));
        }
        self.room.tight.set(true);
        if change.alone { Ok(Floor(floor)) } else { Err(MetadataError::NoMetadataSpace) }
    }

    /// After the change: fails, for it to be undone, if too little will be left once it is committed.
    pub(super) async fn check_left(&self, core: &Core, floor: &Floor) -> Result<()> {
        if floor.0 == 0 {
            return Ok(());
        }
        core.tm.settle().await?;
        let commit = self.commit_blocks();
        let left = core.tm.free_blocks_after_commit().saturating_sub(commit.saturating_add(WAYS));
        if core.tm.free_blocks() >= commit && left >= floor.0 { Ok(()) } else { Err(pdata::Error::NoSpace.into()) }
    }

    /// The last change of mappings is not to share its transaction with the next: commit it.
    pub fn is_tight(&self) -> bool {
        self.room.tight.get()
    }

    /// A change found too few metadata blocks half-way, with nothing else in the transaction: [`Metadata::roll_back`].
    pub fn ran_out_alone(&self) -> bool {
        self.turns.spoilt_alone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves and internal nodes have 252 entries (reference 2.1). A change touches three leaves and six nodes, a delete a leaf,
    /// its neighbour, and those of its parent.
    #[test]
    fn with_plenty_there_is_enough_however_large_the_pool() {
        let (change, delete) = (3 * 252 + 6 * 252, 252 + 2 * 252);
        let enough = (change + change + delete) * ChangeCost::BLOCKS_BY_CHANGE;
        assert!(PLENTY >= enough, "{PLENTY} of {enough}");
    }
}
