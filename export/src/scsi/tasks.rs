//! The task set of a logical unit (SAM-5 section 8): the order of its commands, and aborting them.

use super::lu::Nexus;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::pin::pin;
use futures_util::future::select;
use platform::sync::Notify;

/// Task attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// In any order with other simple tasks.
    Simple,
    /// After all before it, before all behind it.
    Ordered,
    /// At once.
    HeadOfQueue,
    /// At once, and nobody waits for it: what a copy that came in at another unit does here.
    Aside,
}

/// One command as others see it: something that can be aborted.
#[derive(Default)]
pub struct TaskControl {
    aborted: Cell<bool>,
    changed: Notify,
}

impl TaskControl {
    /// Asks the task to stop at its next wait. What was started on the medium runs to its end.
    pub fn abort(&self) {
        self.aborted.set(true);
        self.changed.notify_all();
    }

    /// The task is to end without a response.
    pub fn is_aborted(&self) -> bool {
        self.aborted.get()
    }

    /// Resolves when the task is aborted.
    pub async fn aborted(&self) {
        loop {
            let changed = self.changed.notified();
            if self.aborted.get() {
                return;
            }
            changed.await;
        }
    }

    /// Notified when the task is aborted, and by its transport when data has arrived.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }
}

/// Commands that were accepted and are not done with.
#[derive(Default)]
pub struct TaskSet {
    entries: RefCell<BTreeMap<u64, Entry>>,
    next: Cell<u64>,
    ordered: Cell<usize>,
    changed: Notify,
}

struct Entry {
    nexus: Rc<Nexus>,
    attribute: Attribute,
    control: Rc<TaskControl>,
}

/// A command's place in the task set, until dropped.
pub struct Place {
    set: Rc<TaskSet>,
    number: u64,
    attribute: Attribute,
    control: Rc<TaskControl>,
}

impl TaskSet {
    /// Takes in a command; call in the order of arrival.
    pub fn enter(self: &Rc<TaskSet>, nexus: &Rc<Nexus>, attribute: Attribute, control: Rc<TaskControl>) -> Place {
        let number = self.next.get();
        self.next.set(number + 1);
        if attribute == Attribute::Ordered {
            self.ordered.set(self.ordered.get() + 1);
        }
        let entry = Entry { nexus: nexus.clone(), attribute, control: control.clone() };
        self.entries.borrow_mut().insert(number, entry);
        Place { set: self.clone(), number, attribute, control }
    }

    /// Aborts the tasks of the nexuses that `of` picks, and waits until they are gone.
    pub async fn abort(&self, of: impl Fn(&Nexus) -> bool) {
        let chosen = self.mark_aborted(of);
        loop {
            let changed = self.changed.notified();
            if !chosen.iter().any(|number| self.entries.borrow().contains_key(number)) {
                return;
            }
            changed.await;
        }
    }

    fn mark_aborted(&self, of: impl Fn(&Nexus) -> bool) -> Vec<u64> {
        let entries = self.entries.borrow();
        let chosen = entries.iter().filter(|(_, entry)| of(&entry.nexus));
        let marked = chosen.map(|(number, entry)| {
            entry.control.abort();
            *number
        });
        marked.collect()
    }

    /// `nexus` has tasks.
    pub fn has_tasks_of(&self, nexus: &Nexus) -> bool {
        self.entries.borrow().values().any(|entry| entry.nexus.is(nexus))
    }

    /// Nexuses other than `nexus` that have tasks.
    pub fn others(&self, nexus: &Nexus) -> Vec<Rc<Nexus>> {
        let entries = self.entries.borrow();
        entries.values().map(|entry| &entry.nexus).filter(|other| !other.is(nexus)).cloned().collect()
    }
}

impl Place {
    /// Waits until the command may start; returns at once if it was aborted.
    pub async fn turn(&self) {
        loop {
            let changed = self.set.changed.notified();
            if self.control.is_aborted() || self.is_next() {
                return;
            }
            select(pin!(changed), pin!(self.control.aborted())).await;
        }
    }

    /// Resolves when the command is aborted.
    pub async fn aborted(&self) {
        self.control.aborted().await;
    }

    fn is_next(&self) -> bool {
        match self.attribute {
            Attribute::HeadOfQueue | Attribute::Aside => true,
            Attribute::Simple if self.set.ordered.get() == 0 => true,
            Attribute::Simple => {
                let entries = self.set.entries.borrow();
                !entries.range(..self.number).any(|(_, entry)| entry.attribute == Attribute::Ordered)
            }
            Attribute::Ordered => {
                let entries = self.set.entries.borrow();
                !entries.range(..self.number).any(|(_, entry)| entry.attribute != Attribute::Aside)
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.set.entries.borrow_mut().remove(&self.number);
        if self.attribute == Attribute::Ordered {
            self.set.ordered.set(self.set.ordered.get() - 1);
        }
        self.set.changed.notify_all();
    }
}
