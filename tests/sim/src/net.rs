//! Connections in the simulated network: two bounded pipes whose bytes take some time.

use crate::world::World;
use embedded_io_async::{ErrorType, Read, Write};
use platform::net::{Ends, Listener, NetError, Stream};
use platform::sync::{Notify, Queue};
use platform::time::{Clock, Duration};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes in one direction: on their way, or arrived and not read.
const PIPE_BYTES: usize = 128 << 10;

/// Connections that wait to be accepted.
const BACKLOG: usize = 64;

/// One direction of a connection.
struct Pipe {
    world: World,
    arrived: RefCell<VecDeque<u8>>,
    /// Sent, not arrived.
    flying: Cell<usize>,
    /// When what was sent last arrives: nothing overtakes it.
    last_nanos: Cell<u64>,
    /// The sender is gone, and everything it sent has arrived.
    ended: Cell<bool>,
    /// The connection broke, or its reader is gone.
    broken: Cell<bool>,
    /// Nothing gets through.
    silent: Cell<bool>,
    changed: Notify,
}

impl Pipe {
    fn new(world: &World) -> Rc<Pipe> {
        Rc::new(Pipe {
            world: world.clone(),
            arrived: RefCell::default(),
            flying: Cell::new(0),
            last_nanos: Cell::new(0),
            ended: Cell::new(false),
            broken: Cell::new(false),
            silent: Cell::new(false),
            changed: Notify::new(),
        })
    }

    fn send(self: &Rc<Self>, bytes: &[u8]) -> usize {
        let room = PIPE_BYTES - self.arrived.borrow().len() - self.flying.get();
        let most = if self.world.once_in(8) { 1 + self.world.below(100) as usize } else { PIPE_BYTES };
        let bytes = bytes[..bytes.len().min(room).min(most)].to_vec();
        let len = bytes.len();
        if len > 0 {
            self.flying.set(self.flying.get() + len);
            self.later(move |pipe| {
                pipe.flying.set(pipe.flying.get() - len);
                pipe.arrived.borrow_mut().extend(bytes);
            });
        }
        len
    }

    /// Has something happen at the other end, after everything before.
    fn later(self: &Rc<Self>, what: impl FnOnce(&Pipe) + 'static) {
        let now = self.world.now();
        let after_last = self.last_nanos.get().saturating_sub(now.nanos);
        let delay = Duration::from_nanos(after_last.max((5 + self.world.below(60)) * 1000));
        self.last_nanos.set((now + delay).nanos);
        let pipe = self.clone();
        self.world.after(delay, move || {
            if !pipe.silent.get() {
                what(&pipe);
                pipe.world.note(pipe.arrived.borrow().len() as u64);
                pipe.changed.notify_all();
            }
        });
    }

    fn break_off(&self) {
        self.broken.set(true);
        self.changed.notify_all();
    }
}

/// What the network does to a connection.
#[derive(Clone)]
pub struct Wire {
    pipes: [Rc<Pipe>; 2],
    troubled: Rc<Cell<bool>>,
}

impl Wire {
    /// Both sides see a reset.
    pub fn reset(&self) {
        self.troubled.set(true);
        self.pipes.iter().for_each(|pipe| pipe.break_off());
    }

    /// From now on nothing arrives, and nobody is told.
    pub fn cut(&self) {
        self.troubled.set(true);
        self.pipes.iter().for_each(|pipe| pipe.silent.set(true));
    }

    /// One of these happened to it.
    pub fn is_troubled(&self) -> bool {
        self.troubled.get()
    }
}

/// One side of a connection.
pub struct SimStream {
    reader: SimReader,
    writer: SimWriter,
}

/// The receiving half. Dropping it breaks the direction.
pub struct SimReader(Rc<Pipe>);

/// The sending half. Dropping it ends the stream.
pub struct SimWriter(Rc<Pipe>);

impl Stream for SimStream {
    type Reader = SimReader;
    type Writer = SimWriter;

    fn ends(&self) -> Ends {
        Ends { local: ([192, 0, 2, 1], 3260).into(), peer: ([192, 0, 2, 2], 4000).into() }
    }

    fn split(self) -> (SimReader, SimWriter) {
        (self.reader, self.writer)
    }
}

impl Drop for SimReader {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

impl Drop for SimWriter {
    fn drop(&mut self) {
        self.0.later(|pipe| pipe.ended.set(true));
    }
}

impl ErrorType for SimReader {
    type Error = NetError;
}

impl ErrorType for SimWriter {
    type Error = NetError;
}

impl Read for SimReader {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, NetError> {
        loop {
            let changed = self.0.changed.notified();
            if self.0.broken.get() {
                return Err(NetError::Reset);
            }
            let len = std::io::Read::read(&mut *self.0.arrived.borrow_mut(), buf).expect("a queue in memory");
            if len > 0 {
                self.0.changed.notify_all();
                return Ok(len);
            }
            if self.0.ended.get() || buf.is_empty() {
                return Ok(0);
            }
            changed.await;
        }
    }
}

impl Write for SimWriter {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, NetError> {
        loop {
            let changed = self.0.changed.notified();
            if self.0.broken.get() {
                return Err(NetError::Reset);
            }
            let sent = self.0.send(bytes);
            if sent > 0 || bytes.is_empty() {
                return Ok(sent);
            }
            changed.await;
        }
    }

    async fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

/// A port that clients connect to. Clones are the same port.
#[derive(Clone)]
pub struct Port {
    world: World,
    waiting: Queue<SimStream>,
}

impl Port {
    pub fn new(world: &World) -> Port {
        Port { world: world.clone(), waiting: Queue::new(BACKLOG) }
    }

    /// A connection, and what can be done to it; `None` if too many wait already.
    pub fn connect(&self) -> Option<(SimStream, Wire)> {
        let (there, back) = (Pipe::new(&self.world), Pipe::new(&self.world));
        let ours = SimStream { reader: SimReader(back.clone()), writer: SimWriter(there.clone()) };
        let theirs = SimStream { reader: SimReader(there.clone()), writer: SimWriter(back.clone()) };
        self.waiting.try_push(theirs).ok()?;
        Some((ours, Wire { pipes: [there, back], troubled: Rc::default() }))
    }
}

impl Listener for Port {
    type Stream = SimStream;

    async fn accept(&self) -> Result<SimStream, NetError> {
        self.waiting.pop().await.ok_or(NetError::Down)
    }

    fn describe(&self) -> String {
        "simulated".into()
    }

    fn port(&self) -> u16 {
        3260
    }
}
