//! Jobs that hold volumes in use while they read, replace or delete them: whoever remembers a volume by its number over an
//! `.await` holds it.

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::RefCell;
use thinp::control::DeviceId;

/// How a volume is held by jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// By none.
    Not,
    /// By so many that read it.
    Shared(usize),
    /// By one that is going to change it: nobody else may use it.
    Alone,
}

/// What jobs hold.
#[derive(Default)]
pub(crate) struct Holds(Rc<RefCell<BTreeMap<DeviceId, Held>>>);

/// A volume is held until this is dropped.
pub(crate) struct Hold {
    holds: Rc<RefCell<BTreeMap<DeviceId, Held>>>,
    device: DeviceId,
}

impl Hold {
    /// The volume's device. While it is held it is not deleted by others, nor is its number given to another.
    pub fn device(&self) -> DeviceId {
        self.device
    }
}

impl Holds {
    /// How a volume is held.
    pub fn of(&self, device: DeviceId) -> Held {
        self.0.borrow().get(&device).copied().unwrap_or(Held::Not)
    }

    /// Holds a volume beside others; nothing if it is held alone.
    pub fn share(&self, device: DeviceId) -> Option<Hold> {
        match self.of(device) {
            Held::Not => Some(self.set(device, Held::Shared(1))),
            Held::Shared(jobs) => Some(self.set(device, Held::Shared(jobs.saturating_add(1)))),
            Held::Alone => None,
        }
    }

    /// Holds a volume alone; nothing if it is held.
    pub fn take(&self, device: DeviceId) -> Option<Hold> {
        (self.of(device) == Held::Not).then(|| self.set(device, Held::Alone))
    }

    fn set(&self, device: DeviceId, held: Held) -> Hold {
        self.0.borrow_mut().insert(device, held);
        Hold { holds: self.0.clone(), device }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut holds = self.holds.borrow_mut();
        match holds.get(&self.device) {
            Some(Held::Shared(jobs @ 2..)) => {
                let jobs = jobs - 1;
                holds.insert(self.device, Held::Shared(jobs));
            }
            _ => {
                holds.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_and_others_are_alone() {
        let (holds, device) = (Holds::default(), DeviceId::MAX);
        let (first, second) = (holds.share(device), holds.share(device));
        assert_eq!(holds.of(device), Held::Shared(2));
        assert!(holds.take(device).is_none());
        drop(first);
        assert_eq!(holds.of(device), Held::Shared(1));
        drop(second);
        let alone = holds.take(device).unwrap();
        assert!(holds.share(device).is_none() && holds.take(device).is_none());
        drop(alone);
        assert_eq!(holds.of(device), Held::Not);
    }
}
