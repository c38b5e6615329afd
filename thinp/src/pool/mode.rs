//! Modes, their transitions, and who is told (reference 7.4, 7.5).

use super::Inner;
use crate::control::Mode;
use crate::error::Error;
use crate::metadata::{self, DataBlock, DataRun, MetadataError};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use platform::sync::Notify;
use platform::time::{Duration, Instant};

/// What the pool can do at the moment.
pub(crate) struct State {
    mode: Cell<Mode>,
    /// Out of data space, writes fail at once: by option, or since the time-out.
    error_if_no_space: Cell<bool>,
    /// When data space ran out, while it is.
    no_space_since: Cell<Option<Instant>>,
    /// A task watches how long that lasts.
    no_space_watched: Cell<bool>,
    /// Devices write nothing any more.
    io_ended: Cell<bool>,
    closed: Cell<bool>,
    taken_over: Cell<bool>,
    data_is_low: Cell<bool>,
    metadata_is_low: Cell<bool>,
    events: Cell<u64>,
    /// Notified by every event and by closing.
    changed: Notify,
}

impl State {
    pub(crate) fn new(mode: Mode, error_if_no_space: bool) -> State {
        State {
            mode: Cell::new(mode),
            error_if_no_space: Cell::new(error_if_no_space),
            no_space_since: Cell::new(None),
            no_space_watched: Cell::new(false),
            io_ended: Cell::new(false),
            closed: Cell::new(false),
            taken_over: Cell::new(false),
            data_is_low: Cell::new(false),
            metadata_is_low: Cell::new(false),
            events: Cell::new(0),
            changed: Notify::new(),
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode.get()
    }

    pub(crate) fn error_if_no_space(&self) -> bool {
        self.error_if_no_space.get()
    }

    pub(crate) fn events(&self) -> u64 {
        self.events.get()
    }

    pub(crate) async fn event_after(&self, seen: u64) -> u64 {
        loop {
            let changed = self.changed.notified();
            if self.events.get() != seen || self.closed.get() {
                return self.events.get();
            }
            changed.await;
        }
    }

    pub(crate) fn end_io(&self) {
        self.io_ended.set(true);
    }

    pub(crate) fn io_ended(&self) -> bool {
        self.io_ended.get()
    }

    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.changed.notify_all();
    }

    pub(crate) fn closed(&self) -> bool {
        self.closed.get()
    }

    /// Another host has the pool.
    pub(crate) fn take_over(&self) {
        self.taken_over.set(true);
        self.enter(Mode::Fail);
        self.event();
    }

    /// The time-out ends with the mode that it is of.
    fn enter(&self, mode: Mode) {
        self.mode.set(mode);
        self.no_space_since.set(None);
    }

    pub(crate) fn is_taken_over(&self) -> bool {
        self.taken_over.get()
    }

    /// What is answered to what the mode does not allow.
    pub(crate) fn refusal(&self) -> Error {
        if self.is_taken_over() { Error::TakenOver } else { Error::Refused(self.mode()) }
    }

    fn event(&self) {
        self.events.set(self.events.get() + 1);
        self.changed.notify_all();
    }
}

/// A data block that is ours until it is mapped or this is dropped.
pub(crate) struct Reserved {
    pool: Rc<Inner>,
    block: Option<DataBlock>,
}

impl Reserved {
    /// The block.
    pub(crate) fn block(&self) -> DataBlock {
        self.block.expect("a reservation has its block until it is mapped, which consumes it")
    }

    /// The mapping has taken the block over.
    pub(crate) fn mapped(mut self) {
        self.block = None;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(block) = self.block {
            self.pool.metadata.unreserve_data_block(block);
            self.pool.look_at_space();
        }
    }
}

impl Inner {
    pub(crate) fn mode(&self) -> Mode {
        self.state.mode()
    }

    /// Enters a mode; a change is an event.
    pub(crate) fn set_mode(self: &Rc<Self>, mode: Mode) {
        let before = self.mode();
        if before == mode {
            return;
        }
        log::warn!("pool: {mode} mode after {before} mode");
        self.state.enter(mode);
        match mode {
            Mode::Write => self.state.error_if_no_space.set(self.options.features.error_if_no_space),
            Mode::OutOfDataSpace => {
                self.state.no_space_since.set(Some(self.runtime.timers.now()));
                self.watch_no_space();
            }
            Mode::OutOfMetadataSpace | Mode::ReadOnly | Mode::Fail => {}
        }
        self.state.event();
    }

    /// Enters a mode that ends when there is space, unless the pool is in a worse one meanwhile: space does not end that.
    fn space_lacks(self: &Rc<Self>, mode: Mode) {
        if self.mode() < mode {
            self.set_mode(mode);
        }
    }

    /// After the time-out, writes that wait for space fail, and later ones do at once.
    fn watch_no_space(self: &Rc<Self>) {
        let Some(timeout) = self.options.no_space_timeout else { return };
        if self.state.error_if_no_space() || self.state.no_space_watched.replace(true) {
            return;
        }
        let (weak, timers) = (Rc::downgrade(self), self.runtime.timers.clone());
        self.runtime.spawner.spawn(async move {
            while let Some(deadline) = weak.upgrade().and_then(|pool| pool.no_space_deadline(timeout)) {
                timers.sleep_until(deadline).await;
            }
        });
    }

    /// When to look again; `None` ends the watch.
    fn no_space_deadline(&self, timeout: Duration) -> Option<Instant> {
        let deadline = self.state.no_space_since.get().map(|since| since + timeout);
        if deadline.is_some_and(|deadline| deadline > self.runtime.timers.now()) {
            return deadline;
        }
        self.state.no_space_watched.set(false);
        if deadline.is_some() {
            log::warn!("pool: no data space for {} s, writes fail from now on", timeout.as_secs());
            self.state.error_if_no_space.set(true);
            self.state.event();
        }
        None
    }

    /// Changes of mappings are possible, or will be once there is space.
    pub(crate) fn check_changeable(&self) -> Result<(), Error> {
        if self.state.closed() {
            return Err(Error::Closed);
        }
        match self.mode() {
            Mode::Write | Mode::OutOfDataSpace => Ok(()),
            _ => Err(self.state.refusal()),
        }
    }

    /// Waits out of data space for space, if the pool is to queue; else says why not.
    pub(crate) async fn wait_for_data_space(&self) -> Result<(), Error> {
        loop {
            let changed = self.state.changed.notified();
            self.check_changeable()?;
            if self.mode() == Mode::Write {
                return Ok(());
            }
            if self.state.error_if_no_space() {
                return Err(Error::NoDataSpace);
            }
            changed.await;
        }
    }

    /// Reserves a data block; commits if that may bring one back, and declares the pool out of space if not.
    pub(crate) async fn reserve(self: &Rc<Self>) -> Result<Reserved, Error> {
        self.check_changeable()?;
        if !self.metadata.has_room() {
            self.commit().await?;
            self.check_changeable()?;
        }
        if self.mode() == Mode::OutOfDataSpace {
            return Err(Error::NoDataSpace);
        }
        self.look_at_low_water();
        let mut reserved = self.metadata.reserve_data_block().await;
        if reserved == Err(MetadataError::NoDataSpace) {
            // What was freed before a metadata snapshot's commits may still wait to be passed down.
            if self.metadata.any_changes() || !self.passdown.is_empty() {
                self.commit().await?;
            }
            self.passdown.ended().await;
            reserved = self.metadata.reserve_data_block().await;
        }
        match reserved {
            Ok(block) => Ok(Reserved { pool: self.clone(), block: Some(block) }),
            Err(MetadataError::NoDataSpace) => {
                self.space_lacks(Mode::OutOfDataSpace);
                Err(Error::NoDataSpace)
            }
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// Transitions between the modes that lack of space decides.
    pub(crate) fn look_at_space(self: &Rc<Self>) {
        let room = self.metadata.has_room();
        match self.mode() {
            Mode::Write | Mode::OutOfDataSpace if !room && !self.metadata.any_changes() => {
                self.set_mode(Mode::OutOfMetadataSpace);
            }
            Mode::OutOfMetadataSpace if room => self.set_mode(Mode::Write),
            Mode::OutOfDataSpace if self.metadata.free_data_blocks() > 0 => self.set_mode(Mode::Write),
            _ => {}
        }
        self.look_at_low_water();
    }

    /// One event when a watermark is reached, armed again above it.
    pub(crate) fn look_at_low_water(&self) {
        let data = self.metadata.free_data_blocks() <= self.options.low_water_blocks;
        let metadata = self.metadata.free_metadata_blocks() <= self.metadata.metadata_low_water_blocks();
        let data_came = data && !self.state.data_is_low.replace(data);
        let metadata_came = metadata && !self.state.metadata_is_low.replace(metadata);
        if data_came || metadata_came {
            log::warn!("pool: low water, data {data}, metadata {metadata}");
            self.state.event();
        }
        self.state.data_is_low.set(data);
        self.state.metadata_is_low.set(metadata);
    }

    /// Makes one change of the metadata: what every change goes through. Where only uncommitted frees lack, or the change is
    /// to have a transaction of its own, commits and tries again.
    pub(crate) async fn change<T>(
        self: &Rc<Self>,
        operation: impl AsyncFn() -> metadata::Result<T>,
    ) -> Result<T, Error> {
        let result = self.make_change(operation).await?;
        self.commit_if_tight().await?;
        Ok(result)
    }

    /// As [`Inner::change`], of what frees blocks: nobody is given them, nor comes a commit, before they are held until the
    /// data disk was told.
    pub(crate) async fn change_freeing<T>(
        self: &Rc<Self>,
        operation: impl AsyncFn() -> metadata::Result<T>,
        freed: impl FnOnce(&mut T) -> &mut Vec<DataRun>,
    ) -> Result<T, Error> {
        let mut result = self.make_change(operation).await?;
        self.pass_down_later(core::mem::take(freed(&mut result)));
        self.commit_if_tight().await?;
        Ok(result)
    }

    async fn make_change<T>(self: &Rc<Self>, operation: impl AsyncFn() -> metadata::Result<T>) -> Result<T, Error> {
        loop {
            match operation().await {
                Err(MetadataError::NoMetadataSpace) if self.metadata.any_changes() => self.commit().await?,
                Err(error) if error.is_no_metadata_space() => return self.ran_out(error).await,
                result => return self.changed(result).await,
            }
        }
    }

    async fn commit_if_tight(self: &Rc<Self>) -> Result<(), Error> {
        if self.metadata.is_tight() { self.commit().await } else { Ok(()) }
    }

    /// A change found too few metadata blocks: it is refused, if need be after it was undone.
    async fn ran_out<T>(self: &Rc<Self>, error: MetadataError) -> Result<T, Error> {
        if error.spoils() {
            if !self.metadata.ran_out_alone() {
                return Err(self.abort(error).await);
            }
            if let Err(error) = self.metadata.roll_back().await {
                return Err(self.abort(error).await);
            }
        }
        self.space_lacks(Mode::OutOfMetadataSpace);
        Err(self.state.refusal())
    }

    /// Takes the result of a change into account.
    pub(crate) async fn changed<T>(self: &Rc<Self>, result: metadata::Result<T>) -> Result<T, Error> {
        match result {
            // Made, but into a transaction that is being aborted.
            Ok(_) if self.mode() >= Mode::ReadOnly => Err(self.state.refusal()),
            Ok(value) => {
                self.commits.wake_periodic();
                self.look_at_low_water();
                Ok(value)
            }
            Err(error) => Err(self.failed(error).await),
        }
    }

    /// After a failed change or commit. If it spoilt the transaction, that is aborted.
    pub(crate) async fn failed(self: &Rc<Self>, error: MetadataError) -> Error {
        if error.spoils() { self.abort(error).await } else { Error::Metadata(error) }
    }

    /// Aborts the transaction; the pool changes nothing any more.
    pub(crate) async fn abort(self: &Rc<Self>, error: MetadataError) -> Error {
        if error == MetadataError::TakenOver || self.state.is_taken_over() {
            return self.taken_over();
        }
        if self.mode() < Mode::ReadOnly {
            log::error!("pool: {error}; the transaction is aborted");
            self.state.enter(Mode::ReadOnly);
            log::trace!("transaction aborted");
            self.keep(self.passdown.take());
            match self.metadata.abort().await {
                Ok(()) => {
                    log::trace!("transaction aborted, and forgotten");
                    self.metadata.set_read_only(true);
                }
                Err(MetadataError::TakenOver) => return self.taken_over(),
                Err(error) => {
                    log::error!("pool: the abort failed, too: {error}");
                    self.state.enter(Mode::Fail);
                }
            }
            self.state.event();
        }
        Error::Metadata(error)
    }
}
