//! The sessions of a portal, each of which is one connection.

use crate::iscsi::link::Link;
use crate::iscsi::login::Status;
use crate::scsi::lu::Nexus;
use crate::unit::Peer;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use platform::sync::Notify;

/// A session as told to the outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// iSCSI name of the initiator.
    pub initiator: String,
    /// Where it connects from.
    pub peer: SocketAddr,
    /// The target; `None` in a discovery session.
    pub target: Option<String>,
    /// The target's part of the session id.
    pub tsih: u16,
}

/// A session, which is one connection.
pub struct Session {
    /// What is told of it.
    pub info: SessionInfo,
    /// Who is at the other end.
    pub peer: Peer,
    /// The initiator's part of the session id.
    pub isid: [u8; 6],
    /// Tag of the portal group that it came in at.
    pub group: u16,
    /// Connection id.
    pub cid: u16,
    /// The connection.
    pub link: Rc<Link>,
    /// Its nexus with the unit; `None` in a discovery session.
    pub nexus: Option<Rc<Nexus>>,
    /// Where it is one of.
    pub sessions: Weak<Sessions>,
}

impl Session {
    /// It is between this initiator port and this target port: the portal group of the target.
    pub fn is_between(&self, initiator: &str, isid: [u8; 6], target: Option<&str>, group: u16) -> bool {
        let ports = self.isid == isid && self.group == group;
        ports && self.info.initiator == initiator && self.info.target.as_deref() == target
    }

    /// Closes all sessions of this session's target.
    pub fn close_target(&self) {
        let Some(sessions) = self.sessions.upgrade() else { return };
        sessions.close(|other| other.info.target == self.info.target);
    }
}

/// All sessions, by TSIH.
#[derive(Default)]
pub struct Sessions {
    by_tsih: RefCell<BTreeMap<u16, Rc<Session>>>,
    last_tsih: Cell<u16>,
    changed: Notify,
}

impl Sessions {
    /// What is told of each.
    pub fn infos(&self) -> Vec<SessionInfo> {
        self.by_tsih.borrow().values().map(|session| session.info.clone()).collect()
    }

    /// The first that `wanted` picks.
    pub fn find(&self, wanted: impl Fn(&Session) -> bool) -> Option<Rc<Session>> {
        self.by_tsih.borrow().values().find(|session| wanted(session)).cloned()
    }

    /// All that `chosen` picks.
    pub fn all(&self, chosen: impl Fn(&Session) -> bool) -> Vec<Rc<Session>> {
        self.by_tsih.borrow().values().filter(|session| chosen(session)).cloned().collect()
    }

    /// The session that a login with this TSIH names: it reinstates the session's connection, which is its only one.
    pub fn reinstated(
        &self,
        tsih: u16,
        cid: u16,
        between: impl Fn(&Session) -> bool,
    ) -> Result<Option<Rc<Session>>, Status> {
        if tsih == 0 {
            return Ok(None);
        }
        match self.find(|session| session.info.tsih == tsih && between(session)) {
            None => Err(Status::SessionDoesNotExist),
            Some(session) if session.cid != cid => Err(Status::TooManyConnections),
            session => Ok(session),
        }
    }

    /// Begins to close sessions.
    pub fn close(&self, chosen: impl Fn(&Session) -> bool) {
        self.all(chosen).iter().for_each(|session| session.link.close());
    }

    /// Waits until no session is left that `chosen` picks.
    pub async fn gone(&self, chosen: impl Fn(&Session) -> bool) {
        loop {
            let changed = self.changed.notified();
            if self.find(&chosen).is_none() {
                return;
            }
            changed.await;
        }
    }

    /// Closes sessions, and waits until no session is left that `chosen` picks.
    pub async fn end(&self, chosen: impl Fn(&Session) -> bool) {
        self.gone(|session| {
            let ends = chosen(session);
            if ends {
                session.link.close();
            }
            ends
        })
        .await;
    }

    /// A TSIH that no session has: never 0.
    pub fn new_tsih(&self) -> Option<u16> {
        let taken = self.by_tsih.borrow();
        let last = self.last_tsih.get();
        let tsih = (1..=u16::MAX).map(|step| last.wrapping_add(step)).find(|t| *t != 0 && !taken.contains_key(t))?;
        self.last_tsih.set(tsih);
        Some(tsih)
    }

    /// Enters a session; it ends when what is returned is dropped.
    pub fn enter(self: &Rc<Sessions>, session: Rc<Session>) -> Entered {
        self.by_tsih.borrow_mut().insert(session.info.tsih, session.clone());
        Entered { session, sessions: self.clone() }
    }
}

/// A session that was let in.
pub struct Entered {
    /// The session.
    pub session: Rc<Session>,
    sessions: Rc<Sessions>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.sessions.by_tsih.borrow_mut().remove(&self.session.info.tsih);
        self.sessions.changed.notify_all();
    }
}
