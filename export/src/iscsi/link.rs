//! What the tasks of one connection share: its numbers, its queue to the sender, its tasks, its end.

use super::params::Params;
use super::pdu::{Bhs, NO_TAG, Reject, RejectReason};
use super::send::{Outgoing, Payload};
use super::task::Task;
use super::window::{Turn, Window};
use crate::budget::{Account, Budget, Chunk};
use crate::scsi::block::CHUNK_BYTES;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, Ref, RefCell};
use platform::Runtime;
use platform::sync::{Notify, Queue};
use platform::time::{Duration, Instant};

/// PDUs that may wait to be sent.
const QUEUE_MAX: usize = 256;

/// Immediate commands that are executed at a time.
const IMMEDIATE_MAX: usize = 16;

/// Task management functions that run at a time.
const MANAGEMENT_MAX: usize = 16;

/// After so long a command that others wait for is said to be missing; after as long again it will not come.
const MISSING_TIME: Duration = Duration::from_secs(30);

/// How many commands may be outstanding.
pub struct Limits {
    /// Of this connection.
    pub window: u32,
    /// Of all connections together.
    pub in_all: usize,
    /// Those of all connections that are.
    pub all: Rc<Cell<usize>>,
}

/// A request that takes part in command numbering.
pub enum Numbered {
    /// A SCSI command.
    Command(Rc<Task>),
    /// Any other, with its data segment.
    Other(Bhs, Option<Chunk>),
}

/// A connection in the full-feature phase, which is all of its session.
pub struct Link {
    /// Tasks, time, buffers.
    pub runtime: Runtime,
    /// What its commands may hold of the export's memory once it is their turn.
    pub asked: Rc<Account>,
    /// What it may hold for data that comes unasked. A chunk is left for who has to ask.
    pub unasked: Rc<Account>,
    /// To the sender. Closed when nothing more is to be sent.
    pub queue: Queue<Outgoing>,
    params: RefCell<Params>,
    window: RefCell<Window<Numbered>>,
    tasks: RefCell<BTreeMap<u32, Rc<Task>>>,
    next_tag: Cell<u32>,
    limits: Limits,
    management: Cell<usize>,
    started: Instant,
    heard: Cell<Instant>,
    closing: Cell<bool>,
    abandoned: Cell<bool>,
    changed: Notify,
}

impl Link {
    /// A connection whose first command has number `cmd_sn`.
    pub fn new(runtime: Runtime, budget: &Rc<Budget>, params: Params, cmd_sn: u32, limits: Limits) -> Link {
        let started = runtime.timers.now();
        Link {
            runtime,
            asked: Account::new(budget.clone()),
            unasked: Account::unasked(budget.clone(), CHUNK_BYTES as usize),
            queue: Queue::new(QUEUE_MAX),
            params: RefCell::new(params),
            window: RefCell::new(Window::new(cmd_sn, limits.window)),
            tasks: RefCell::default(),
            next_tag: Cell::new(0),
            limits,
            management: Cell::new(0),
            started,
            heard: Cell::new(started),
            closing: Cell::new(false),
            abandoned: Cell::new(false),
            changed: Notify::new(),
        }
    }

    /// The parameters in force. Not to be held over an await.
    pub fn params(&self) -> Ref<'_, Params> {
        self.params.borrow()
    }

    /// The initiator declared another longest data segment.
    pub fn set_initiator_segment_bytes(&self, bytes: u32) {
        self.params.borrow_mut().initiator_segment_bytes = bytes;
    }

    /// ExpCmdSN and MaxCmdSN.
    pub fn numbers(&self) -> (u32, u32) {
        let window = self.window.borrow();
        (window.expected(), window.max())
    }

    /// A numbered request arrived.
    pub fn arrive(&self, number: u32, request: Numbered) -> Turn<Numbered> {
        self.window.borrow_mut().arrive(number, request)
    }

    /// A request with this number could still be accepted.
    pub fn awaits(&self, number: u32) -> bool {
        self.window.borrow().awaits(number)
    }

    /// Uses up the number of a request that has not arrived.
    pub fn skip(&self, number: u32) -> bool {
        self.window.borrow_mut().skip(number)
    }

    /// The next request that arrived early and whose turn has come.
    pub fn next_in_turn(&self) -> Option<Numbered> {
        self.window.borrow_mut().next_in_turn()
    }

    /// A numbered request is done with.
    pub fn release(&self) {
        self.window.borrow_mut().release();
    }

    /// A target transfer tag that is not in use.
    pub fn new_tag(&self) -> u32 {
        let tag = self.next_tag.get();
        let next = tag.wrapping_add(1);
        self.next_tag.set(if next == NO_TAG { 0 } else { next });
        tag
    }

    /// The task with this initiator task tag.
    pub fn task(&self, tag: u32) -> Option<Rc<Task>> {
        self.tasks.borrow().get(&tag).cloned()
    }

    /// Adds a task. Its tag was seen to be free.
    pub fn add_task(&self, task: Rc<Task>) {
        self.tasks.borrow_mut().insert(task.tag, task);
        self.limits.all.set(self.limits.all.get() + 1);
    }

    /// All connections together have as many commands as are allowed.
    pub fn has_all_commands(&self) -> bool {
        self.limits.all.get() >= self.limits.in_all
    }

    /// The task is over: its tag is free.
    pub fn remove_task(&self, task: &Rc<Task>) {
        if self.tasks.borrow_mut().remove(&task.tag).is_some() {
            self.limits.all.set(self.limits.all.get() - 1);
        }
        self.changed.notify_all();
    }

    /// As many immediate commands run as are allowed.
    pub fn has_all_immediate(&self) -> bool {
        self.tasks.borrow().values().filter(|task| task.is_immediate).count() >= IMMEDIATE_MAX
    }

    /// A task management function begins, if not too many run.
    pub fn begin_management(&self) -> bool {
        let running = self.management.get();
        let begins = running < MANAGEMENT_MAX;
        self.management.set(running + usize::from(begins));
        begins
    }

    /// A task management function is over.
    pub fn end_management(&self) {
        self.management.set(self.management.get() - 1);
    }

    /// Aborts every task, and drops what waits for its turn.
    pub fn abort_tasks(&self) {
        let early: Vec<_> = self.window.borrow_mut().give_up().collect();
        for request in early {
            if let Numbered::Command(task) = request {
                self.remove_task(&task);
            }
        }
        let tasks: Vec<_> = self.tasks.borrow().values().cloned().collect();
        tasks.iter().for_each(|task| task.control.abort());
    }

    /// Waits until no task of this connection runs.
    pub async fn tasks_ended(&self) {
        loop {
            let changed = self.changed.notified();
            if self.tasks.borrow().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Waits until this task is over.
    pub async fn task_ended(&self, task: &Rc<Task>) {
        loop {
            let changed = self.changed.notified();
            if !self.task(task.tag).is_some_and(|current| Rc::ptr_eq(&current, task)) {
                return;
            }
            changed.await;
        }
    }

    /// Queues a PDU; it is dropped if the connection is closing.
    pub async fn send(&self, pdu: Outgoing) {
        if self.queue.push(pdu).await.is_err() {
            log::trace!("iscsi: a response was dropped, its connection is closing");
        }
    }

    /// Refuses a PDU.
    pub async fn reject(&self, reason: RejectReason, refused: &Bhs) {
        log::debug!("iscsi: reject {reason:?} of opcode {:02x}h", refused.operation());
        let reject = Reject { reason: reason as u8, ..Reject::new() };
        self.send(Outgoing::status(reject.into_bhs(), Payload::Bytes(refused.to_bytes().to_vec()))).await;
    }

    /// Something was received.
    pub fn hear(&self) {
        self.heard.set(self.runtime.timers.now());
    }

    /// When the session began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// When something was last received.
    pub fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// Ends the connection: what is queued is still sent.
    pub fn close(&self) {
        self.closing.set(true);
        self.changed.notify_all();
    }

    /// Resolves when the connection is to end.
    pub async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            if self.closing.get() {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when commands wait for one that does not come: on one connection it will not any more.
    pub async fn gapped(&self) {
        let mut missed = None;
        loop {
            self.runtime.timers.sleep(MISSING_TIME).await;
            let missing = self.window.borrow().missing();
            if missing.is_some() && missing == missed {
                return;
            }
            missed = missing;
        }
    }

    /// Gives up what is queued: the initiator does not take it.
    pub fn abandon(&self) {
        self.abandoned.set(true);
        self.changed.notify_all();
    }

    /// Resolves when what is queued was given up.
    pub async fn abandoned(&self) {
        loop {
            let changed = self.changed.notified();
            if self.abandoned.get() {
                return;
            }
            changed.await;
        }
    }
}
