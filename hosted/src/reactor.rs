//! Waits for sockets, signals and helper threads: the executor's view of epoll.
//!
//! Everything is edge-triggered: who uses a source tries first, and only when it would block leaves a waker. Readiness is
//! looked at between tasks only, so none is lost in between.

use mio::event::Source;
use mio::{Events, Interest, Poll as Epoll, Registry, Token};
use platform::time::{Duration, Instant};
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;

/// The token of the bell that helper threads ring; sources have those above.
const BELL: Token = Token(0);

/// Who waits on what.
pub struct Reactor {
    epoll: RefCell<Epoll>,
    events: RefCell<Events>,
    registry: Registry,
    bell: Arc<mio::Waker>,
    waiting: RefCell<Vec<Option<Waiting>>>,
}

#[derive(Default)]
struct Waiting {
    read: Option<Waker>,
    write: Option<Waker>,
}

/// What somebody wants to do with a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Read or accept.
    Read,
    /// Write.
    Write,
}

impl Reactor {
    /// A reactor without sources.
    pub fn new() -> io::Result<Rc<Reactor>> {
        let epoll = Epoll::new()?;
        let registry = epoll.registry().try_clone()?;
        let bell = Arc::new(mio::Waker::new(&registry, BELL)?);
        Ok(Rc::new(Reactor {
            epoll: RefCell::new(epoll),
            events: RefCell::new(Events::with_capacity(EVENTS)),
            registry,
            bell,
            waiting: RefCell::default(),
        }))
    }

    /// What a helper thread rings to end [`Reactor::wait`].
    pub fn bell(&self) -> Arc<mio::Waker> {
        self.bell.clone()
    }

    /// Watches a source, which must not block, until the registration is dropped.
    pub fn register<S: Source>(self: &Rc<Self>, mut source: S, interest: Interest) -> io::Result<Registration<S>> {
        let mut waiting = self.waiting.borrow_mut();
        let index = waiting.iter().position(Option::is_none).unwrap_or(waiting.len());
        self.registry.register(&mut source, token(index), interest)?;
        match waiting.get_mut(index) {
            Some(place) => *place = Some(Waiting::default()),
            None => waiting.push(Some(Waiting::default())),
        }
        Ok(Registration { reactor: self.clone(), index, source })
    }

    /// Wakes whose sources are ready, without waiting; true if there were any.
    pub fn look(&self) -> io::Result<bool> {
        self.take_events(Some(Duration::ZERO))
    }

    /// Waits for a ready source, for the bell, or until `deadline`, which is `now` or later.
    pub fn wait(&self, now: Instant, deadline: Option<Instant>) -> io::Result<()> {
        self.take_events(deadline.map(|deadline| deadline - now)).map(|_| ())
    }

    fn take_events(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let mut events = self.events.borrow_mut();
        match self.epoll.borrow_mut().poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            result => result?,
        }
        let mut waiting = self.waiting.borrow_mut();
        for event in events.iter() {
            let Some(Some(who)) = event.token().0.checked_sub(1).and_then(|index| waiting.get_mut(index)) else {
                continue;
            };
            let broken = event.is_error();
            let read = who.read.take_if(|_| broken || event.is_readable() || event.is_read_closed());
            let write = who.write.take_if(|_| broken || event.is_writable() || event.is_write_closed());
            read.into_iter().chain(write).for_each(Waker::wake);
        }
        Ok(!events.is_empty())
    }
}

fn token(index: usize) -> Token {
    Token(index + 1)
}

/// A source that is watched.
pub struct Registration<S: Source> {
    reactor: Rc<Reactor>,
    index: usize,
    source: S,
}

impl<S: Source> Registration<S> {
    /// The source.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Tries `f`, and again whenever the source is ready for it while it would block. One task a direction.
    pub fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut f: impl FnMut(&S) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            match f(&self.source) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => return Poll::Ready(result),
            }
        }
        if let Some(Some(who)) = self.reactor.waiting.borrow_mut().get_mut(self.index) {
            let waker = Some(cx.waker().clone());
            match direction {
                Direction::Read => who.read = waker,
                Direction::Write => who.write = waker,
            }
        }
        Poll::Pending
    }
}

impl<S: Source> Drop for Registration<S> {
    fn drop(&mut self) {
        if let Err(error) = self.reactor.registry.deregister(&mut self.source) {
            log::error!("cannot stop watching a source: {error}");
        }
        if let Some(place) = self.reactor.waiting.borrow_mut().get_mut(self.index) {
            *place = None;
        }
    }
}
