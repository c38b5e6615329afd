//! Who may change the metadata, and who may look at it meanwhile.
//!
//! Changes take turns. While one is between its first and its last step in an open device's tree, lookups wait.
//! A change that ends in between, by an error or because its future was dropped, spoils the transaction.

use super::state::Core;
use super::{Metadata, MetadataError, Result};
use alloc::rc::Rc;
use core::cell::Cell;
use platform::sync::{Notify, Permit, Semaphore};

/// The turnstile of one [`Metadata`].
pub(super) struct Turns {
    semaphore: Semaphore,
    /// Trees are in pieces.
    in_pieces: Cell<bool>,
    spoilt: Cell<bool>,
    /// What spoilt the transaction was the only change in it.
    spoilt_alone: Cell<bool>,
    /// Changes that ended: a lookup that waited for a block in between starts again.
    ended: Cell<u64>,
    end: Notify,
}

impl Turns {
    pub const fn new() -> Turns {
        Turns {
            semaphore: Semaphore::new(1),
            in_pieces: Cell::new(false),
            spoilt: Cell::new(false),
            spoilt_alone: Cell::new(false),
            ended: Cell::new(0),
            end: Notify::new(),
        }
    }

    /// Trees can be read now.
    pub fn readable(&self) -> bool {
        !self.in_pieces.get() && !self.spoilt.get()
    }

    /// The transaction is spoilt for good: whoever waits for a way out is told that there is none.
    pub fn give_up(&self) {
        self.spoilt.set(true);
        self.spoilt_alone.set(false);
        self.end.notify_all();
    }

    /// The transaction is spoilt, and there was nothing else in it.
    pub fn spoilt_alone(&self) -> bool {
        self.spoilt.get() && self.spoilt_alone.get()
    }

    /// How many changes have ended.
    pub fn ended(&self) -> u64 {
        self.ended.get()
    }

    /// Waits until trees can be read; an error if they cannot until an abort.
    pub async fn wait_readable(&self) -> Result<()> {
        loop {
            let end = self.end.notified();
            if self.readable() {
                return Ok(());
            }
            // What was alone is undone before the next change.
            if self.spoilt.get() && !self.spoilt_alone() {
                return Err(MetadataError::Spoilt);
            }
            end.await;
        }
    }
}

/// What a change is doing.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// Nothing yet.
    Looking,
    /// Changing what lookups do not use.
    Apart,
    /// Changing the tree of an open device.
    InPieces,
}

/// A turn: nobody else changes anything until it is dropped.
pub(super) struct Change<'a> {
    pub core: Rc<Core>,
    turns: &'a Turns,
    stage: Cell<Stage>,
    /// There was no other change in the transaction before.
    pub alone: bool,
    _permit: Permit<'a>,
}

impl Change<'_> {
    /// From here until [`Change::done`] the tree of an open device is in pieces: lookups wait.
    pub fn begin(&self) {
        self.stage.set(Stage::InPieces);
        self.turns.in_pieces.set(true);
    }

    /// From here until [`Change::done`] a failure spoils the transaction, but no open device's tree is touched: lookups go
    /// on.
    pub fn begin_apart(&self) {
        self.stage.set(Stage::Apart);
    }

    /// Everything is whole again.
    pub fn done(&self) {
        let was = self.stage.replace(Stage::Looking);
        if was == Stage::InPieces {
            self.turns.in_pieces.set(false);
            self.turns.ended.set(self.turns.ended.get().wrapping_add(1));
            self.turns.end.notify_all();
        }
    }

    /// The transaction is gone, and with it what spoilt it.
    pub fn restored(&self) {
        self.turns.spoilt.set(false);
        self.begin();
        self.done();
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.stage.get() != Stage::Looking {
            self.turns.spoilt.set(true);
            self.turns.spoilt_alone.set(self.alone);
            // Who waits for the end of this change is told that it was the end of all.
            self.begin();
        }
        self.done();
    }
}

impl Metadata {
    /// Waits for a turn to look at what only changes in turns.
    pub(super) async fn look(&self) -> Result<Change<'_>> {
        let mut turn = self.turn().await;
        if self.turns.spoilt_alone() {
            self.undo(&mut turn).await?;
        }
        if self.turns.spoilt.get() { Err(MetadataError::Spoilt) } else { Ok(turn) }
    }

    /// Waits for a turn to change something.
    pub(super) async fn change(&self) -> Result<Change<'_>> {
        let change = self.look().await?;
        if self.read_only.get() {
            return Err(MetadataError::ReadOnly);
        }
        self.end_views_for_room().await;
        Ok(change)
    }

    /// As [`Metadata::change`], for what frees blocks in the end but needs some on the way.
    pub(super) async fn change_to_free(&self) -> Result<Change<'_>> {
        let change = self.change().await?;
        if self.spare_blocks() > 0 { Ok(change) } else { Err(MetadataError::NoMetadataSpace) }
    }

    /// As [`Metadata::change`], for what takes metadata blocks: refused while only the reserve is left, in which what
    /// frees blocks still works.
    pub(super) async fn change_with_room(&self) -> Result<Change<'_>> {
        let change = self.change().await?;
        if self.has_room() { Ok(change) } else { Err(MetadataError::NoMetadataSpace) }
    }

    /// Waits for a turn, whatever state things are in.
    pub(super) async fn turn(&self) -> Change<'_> {
        let permit = self.turns.semaphore.acquire(1).await;
        let alone = !self.any_changes();
        Change { core: self.core(), turns: &self.turns, stage: Cell::new(Stage::Looking), alone, _permit: permit }
    }
}
