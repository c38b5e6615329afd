//! Disks that wrap a disk: each watches or spoils one thing and passes the rest on.

use crate::block::{BlockDevice, Done, Io, IoError, Limits, Op, Request};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};

/// Counts what passes.
#[derive(Clone)]
pub struct Stats {
    inner: Rc<dyn BlockDevice>,
    counters: Rc<Counters>,
}

/// What [`Stats`] counted.
#[derive(Default, Debug)]
pub struct Counters {
    /// Reads started.
    pub reads: Cell<u64>,
    /// Sectors of those.
    pub read_sectors: Cell<u64>,
    /// Writes started.
    pub writes: Cell<u64>,
    /// Sectors of those.
    pub written_sectors: Cell<u64>,
    /// Flushes started.
    pub flushes: Cell<u64>,
    /// Discards started.
    pub discards: Cell<u64>,
    /// Requests that failed.
    pub errors: Cell<u64>,
    /// Requests under way.
    pub in_flight: Cell<u64>,
}

fn add(cell: &Cell<u64>, n: u64) {
    cell.set(cell.get().wrapping_add(n));
}

impl Stats {
    /// Counts the requests to `inner`.
    pub fn new(inner: Rc<dyn BlockDevice>) -> Stats {
        Stats { inner, counters: Rc::default() }
    }

    /// The counters, live.
    pub fn counters(&self) -> Rc<Counters> {
        self.counters.clone()
    }
}

impl BlockDevice for Stats {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        let (request, reply) = io.into_parts();
        let counters = self.counters.clone();
        match request.op {
            Op::Read => {
                add(&counters.reads, 1);
                add(&counters.read_sectors, request.sectors);
            }
            Op::Write { .. } | Op::WriteZeroes => {
                add(&counters.writes, 1);
                add(&counters.written_sectors, request.sectors);
            }
            Op::Flush => add(&counters.flushes, 1),
            Op::Discard => add(&counters.discards, 1),
        }
        add(&counters.in_flight, 1);
        self.inner.submit(Io::with_callback(request, move |done| {
            counters.in_flight.set(counters.in_flight.get() - 1);
            if done.result.is_err() {
                add(&counters.errors, 1);
            }
            reply.send(done);
        }));
    }
}

/// Names the error that a request fails with, if any.
type Rule = dyn FnMut(&Request) -> Option<IoError>;

/// Fails the requests that its rule picks, without passing them on.
#[derive(Clone)]
pub struct Fault {
    inner: Rc<dyn BlockDevice>,
    rule: Rc<RefCell<Rule>>,
}

impl Fault {
    /// `rule` sees each request and names the error it fails with, if any.
    pub fn new(inner: Rc<dyn BlockDevice>, rule: impl FnMut(&Request) -> Option<IoError> + 'static) -> Fault {
        Fault { inner, rule: Rc::new(RefCell::new(rule)) }
    }
}

impl BlockDevice for Fault {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        let verdict = (self.rule.borrow_mut())(io.request());
        match verdict {
            Some(error) => io.complete(Err(error)),
            None => self.inner.submit(io),
        }
    }
}

/// Takes fewer sectors in one request than the disk would.
#[derive(Clone)]
pub struct ShortTransfers {
    inner: Rc<dyn BlockDevice>,
    transfer_sectors_max: u64,
}

impl ShortTransfers {
    /// At most `transfer_sectors_max` sectors in one request to `inner`.
    pub fn new(inner: Rc<dyn BlockDevice>, transfer_sectors_max: u64) -> ShortTransfers {
        ShortTransfers { inner, transfer_sectors_max }
    }
}

impl BlockDevice for ShortTransfers {
    fn limits(&self) -> Limits {
        let limits = self.inner.limits();
        Limits { transfer_sectors_max: limits.transfer_sectors_max.min(self.transfer_sectors_max), ..limits }
    }

    fn submit(&self, io: Io) {
        self.inner.submit(io);
    }
}

/// Shows each request and its result to a function.
#[derive(Clone)]
pub struct Trace {
    inner: Rc<dyn BlockDevice>,
    #[expect(clippy::type_complexity, reason = "a function of the two things that are traced")]
    see: Rc<dyn Fn(&Request, Option<&Done>)>,
}

impl Trace {
    /// `see(request, None)` runs at submission. Completions are shown with an empty request of the same op and place.
    pub fn new(inner: Rc<dyn BlockDevice>, see: impl Fn(&Request, Option<&Done>) + 'static) -> Trace {
        Trace { inner, see: Rc::new(see) }
    }
}

impl BlockDevice for Trace {
    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn submit(&self, io: Io) {
        (self.see)(io.request(), None);
        let (request, reply) = io.into_parts();
        let shape = Request { bufs: Default::default(), ..request_shape(&request) };
        let see = self.see.clone();
        self.inner.submit(Io::with_callback(request, move |done| {
            see(&shape, Some(&done));
            reply.send(done);
        }));
    }
}

fn request_shape(request: &Request) -> Request {
    Request {
        op: request.op,
        sector: request.sector,
        sectors: request.sectors,
        bufs: Default::default(),
        flow: request.flow,
    }
}
