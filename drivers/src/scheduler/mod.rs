//! The I/O scheduler: the queue above a disk that decides what is sent next (design decision 10).
//!
//! - The disk holds at most `depth` requests; the rest waits here, where it can still be ordered.
//! - Foreground requests go before background ones. Background work has a floor (a sixteenth of the bytes that
//!   pass it by) and a cap (a quarter of the depth), so it neither starves nor crowds.
//! - Within a class volumes share by deficit round-robin, in bytes.
//! - A flush goes to the disk at once, before all that is queued here. It covers what completed before it.
//! - A write (a discard and write-zeroes are writes) that overlaps one under way or queued waits for it, so that
//!   overlapping writes reach the disk one at a time, in the order of their submission.

mod flows;
mod overlap;
#[cfg(test)]
mod tests;

use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use flows::Flows;
use overlap::Writes;
use platform::block::{BlockDevice, Class, Io, Limits, Op, Request, SECTOR_BYTES};

/// The least that a request counts, however short: what it costs beside its bytes.
const COST_BYTES_MIN: u64 = 4096;
/// Background work may have a byte for so many foreground bytes that pass it by.
const FLOOR_SHARE: u64 = 16;
/// More than this background work does not save up while its cap holds it back.
const CREDIT_BYTES_MAX: i64 = 1 << 20;
/// Background work may fill so much of the depth.
const CAP_SHARE: usize = 4;

/// A disk that sends its requests in a good order to another.
#[derive(Clone)]
pub struct Scheduler(Rc<Shared>);

struct Shared {
    device: Rc<dyn BlockDevice>,
    state: RefCell<State>,
    /// Somebody is in [`Shared::pump`]: no need to enter it again.
    pumping: Cell<bool>,
}

struct State {
    depth: usize,
    in_flight: usize,
    background_in_flight: usize,
    foreground: Flows<Job>,
    background: Flows<Job>,
    /// What background work may send before the foreground goes on; negative after it did.
    background_credit_bytes: i64,
    writes: Writes,
    /// Writes that wait for others, and for how many.
    blocked: BTreeMap<u64, (Job, usize)>,
    next_id: u64,
}

/// A request with its number, which is its place in the order of submission.
struct Job {
    id: u64,
    io: Io,
}

/// What is remembered of a request under way.
#[derive(Clone)]
struct Sent {
    id: u64,
    class: Class,
    write: Option<Range<u64>>,
}

impl Scheduler {
    /// Schedules for `device`, which is to have at most `depth` requests (and flushes beside them) at a time.
    pub fn new(device: Rc<dyn BlockDevice>, depth: usize) -> Scheduler {
        let state = State {
            depth: depth.max(1),
            in_flight: 0,
            background_in_flight: 0,
            foreground: Flows::default(),
            background: Flows::default(),
            background_credit_bytes: 0,
            writes: Writes::default(),
            blocked: BTreeMap::new(),
            next_id: 0,
        };
        Scheduler(Rc::new(Shared { device, state: RefCell::new(state), pumping: Cell::new(false) }))
    }
}

impl BlockDevice for Scheduler {
    fn limits(&self) -> Limits {
        self.0.device.limits()
    }

    fn submit(&self, io: Io) {
        if io.request().op == Op::Flush {
            return self.0.device.submit(io);
        }
        self.0.state.borrow_mut().queue(io);
        self.0.pump();
    }
}

impl Shared {
    /// Sends what may be sent.
    fn pump(self: &Rc<Self>) {
        // A device that completes at once calls back from within `submit`: the loop below sees what that frees.
        if self.pumping.replace(true) {
            return;
        }
        loop {
            let job = self.state.borrow_mut().next();
            let Some(job) = job else { break };
            self.send(job);
        }
        self.pumping.set(false);
    }

    fn send(self: &Rc<Self>, job: Job) {
        let (request, reply) = job.io.into_parts();
        let sent = Sent { id: job.id, class: request.flow.class, write: written(&request) };
        let shared = self.clone();
        self.device.submit(Io::with_callback(request, move |done| {
            shared.state.borrow_mut().finished(sent);
            shared.pump();
            reply.send(done);
        }));
    }
}

impl State {
    fn queue(&mut self, io: Io) {
        let job = Job { id: self.next_id, io };
        self.next_id += 1;
        let earlier = written(job.io.request()).map_or(0, |range| self.writes.add(job.id, range));
        match earlier {
            0 => self.ready(job),
            earlier => {
                self.blocked.insert(job.id, (job, earlier));
            }
        }
    }

    /// Nothing but its turn is between `job` and the disk.
    fn ready(&mut self, job: Job) {
        let request = job.io.request();
        let (flow, cost) = (request.flow, cost_bytes(request));
        match flow.class {
            Class::Foreground => self.foreground.push(flow.volume, cost, job),
            Class::Background => self.background.push(flow.volume, cost, job),
        }
    }

    /// Takes the request that is to be sent next, if the disk has room for one.
    fn next(&mut self) -> Option<Job> {
        if self.in_flight >= self.depth {
            return None;
        }
        let background_waits = !self.background.is_empty();
        if !background_waits {
            self.background_credit_bytes = 0;
        }
        let cap = (self.depth / CAP_SHARE).max(1);
        let background_may = background_waits && self.background_in_flight < cap;
        let background_first = background_may && self.background_credit_bytes > 0;
        if !background_first && let Some((job, cost)) = self.foreground.pop() {
            if background_waits {
                let credit = self.background_credit_bytes + (cost / FLOOR_SHARE) as i64;
                self.background_credit_bytes = credit.min(CREDIT_BYTES_MAX);
            }
            self.in_flight += 1;
            return Some(job);
        }
        if !background_may {
            return None;
        }
        let (job, cost) = self.background.pop()?;
        // What it sends while nobody else wants to is not held against it.
        if background_first {
            self.background_credit_bytes -= cost as i64;
        }
        self.in_flight += 1;
        self.background_in_flight += 1;
        Some(job)
    }

    fn finished(&mut self, sent: Sent) {
        self.in_flight -= 1;
        if sent.class == Class::Background {
            self.background_in_flight -= 1;
        }
        let Some(range) = sent.write else { return };
        for id in self.writes.remove(sent.id, range) {
            let Some((_, earlier)) = self.blocked.get_mut(&id) else { continue };
            *earlier -= 1;
            if *earlier == 0
                && let Some((job, _)) = self.blocked.remove(&id)
            {
                self.ready(job);
            }
        }
    }
}

/// The sectors that a request changes, if it changes any.
fn written(request: &Request) -> Option<Range<u64>> {
    let sectors = request.sector..request.sector.saturating_add(request.sectors);
    matches!(request.op, Op::Write { .. } | Op::Discard | Op::WriteZeroes).then_some(sectors)
}

/// What a request takes of its volume's share.
fn cost_bytes(request: &Request) -> u64 {
    match request.op {
        Op::Read | Op::Write { .. } => request.sectors.saturating_mul(SECTOR_BYTES as u64).max(COST_BYTES_MIN),
        // Their length says nothing about their cost.
        Op::Discard | Op::WriteZeroes | Op::Flush => COST_BYTES_MIN,
    }
}
