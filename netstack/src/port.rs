//! A listening port: the backlog that smoltcp does not have, and the connections until they are gone.
//!
//! A smoltcp socket listens for one connection and then *is* that connection. So a [`Port`] looks after every received
//! frame whether its listening socket still listens, and puts a fresh one in its place before the next frame is read:
//! no SYN finds the port closed while the port is below its limit.

use alloc::rc::Rc;
use alloc::vec::Vec;
use alloc::{collections::VecDeque, vec};
use platform::sync::Notify;
use platform::time::{Duration, Instant};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::wire::IpEndpoint;

/// How long a peer may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long an aborted socket waits for room to send its reset.
const RESET: Duration = Duration::from_secs(1);

/// How long an acknowledgement may wait for an answer to ride on. Answers from the page cache take less.
const ACK_DELAY: Duration = Duration::from_millis(2);

/// The limits of one listener and the habits of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenOptions {
    /// Most connections at a time, half-open and closing ones included.
    pub connections_max: usize,
    /// Bytes of each connection's receive buffer, which is the largest window offered.
    pub receive_bytes: usize,
    /// Bytes of each connection's send buffer.
    pub send_bytes: usize,
    /// A peer silent for so long is asked whether it is still there.
    pub keep_alive: Duration,
    /// A peer silent for so long is given up.
    pub dead_after: Duration,
    /// How long a closed connection goes on delivering what was written before it is reset.
    pub linger: Duration,
}

impl ListenOptions {
    /// Most bytes of memory that the listener's connections take.
    pub fn memory_bytes(&self) -> usize {
        self.receive_bytes.saturating_add(self.send_bytes).saturating_mul(self.connections_max)
    }
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            connections_max: 64,
            receive_bytes: 256 << 10,
            send_bytes: 256 << 10,
            keep_alive: Duration::from_secs(15),
            dead_after: Duration::from_secs(60),
            linger: Duration::from_secs(20),
        }
    }
}

/// A connection that its user has dropped.
struct Closing {
    handle: SocketHandle,
    deadline: Instant,
    aborted: bool,
}

/// One port number and all sockets on it.
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) options: ListenOptions,
    /// Notified when a connection may be accepted.
    pub(crate) arrived: Rc<Notify>,
    /// Its listener is gone: no further connections.
    pub(crate) closed: bool,
    listening: Option<SocketHandle>,
    half_open: Vec<SocketHandle>,
    established: VecDeque<SocketHandle>,
    accepted: usize,
    closing: Vec<Closing>,
}

impl Port {
    pub(crate) fn new(number: u16, options: ListenOptions) -> Port {
        Port {
            number,
            options,
            arrived: Rc::default(),
            closed: false,
            listening: None,
            half_open: Vec::new(),
            established: VecDeque::new(),
            accepted: 0,
            closing: Vec::new(),
        }
    }

    /// Nothing is left of it.
    pub(crate) fn is_gone(&self) -> bool {
        self.closed && self.accepted == 0 && self.closing.is_empty()
    }

    /// The user of some connection is gone, and the peer has not yet acknowledged everything up to the end of stream.
    pub(crate) fn has_undelivered(&self, sockets: &SocketSet<'static>) -> bool {
        self.closing.iter().any(|c| {
            let socket = sockets.get::<tcp::Socket>(c.handle);
            !matches!(socket.state(), State::FinWait2 | State::TimeWait) && !is_over(socket)
        })
    }

    /// Follows what a received frame did to the sockets that nobody has accepted yet, and listens again.
    pub(crate) fn advance(&mut self, sockets: &mut SocketSet<'static>) {
        if let Some(handle) = self.listening
            && sockets.get::<tcp::Socket>(handle).state() != State::Listen
        {
            self.half_open.push(handle);
            self.listening = None;
        }
        self.sort_half_open(sockets);
        self.established.retain(|handle| {
            let over = is_over(sockets.get(*handle));
            if over {
                sockets.remove(*handle);
            }
            !over
        });
        if self.listening.is_none() && !self.closed {
            self.listen(sockets);
        }
    }

    fn sort_half_open(&mut self, sockets: &mut SocketSet<'static>) {
        let (established, options) = (&mut self.established, &self.options);
        let before = established.len();
        self.half_open.retain(|handle| {
            let socket = sockets.get_mut::<tcp::Socket>(*handle);
            match socket.state() {
                State::SynReceived => true,
                // Reset during the handshake, or out of time with its reset sent: smoltcp listens again, but we do too.
                State::Listen => {
                    sockets.remove(*handle);
                    false
                }
                State::Closed => {
                    let over = is_over(socket);
                    if over {
                        sockets.remove(*handle);
                    }
                    !over
                }
                _ => {
                    socket.set_timeout(Some(micros(options.dead_after)));
                    established.push_back(*handle);
                    false
                }
            }
        });
        if established.len() != before {
            self.arrived.notify_all();
        }
    }

    fn listen(&mut self, sockets: &mut SocketSet<'static>) {
        let open = self.half_open.len() + self.established.len() + self.accepted + self.closing.len();
        if open >= self.options.connections_max && !self.drop_time_wait(sockets) {
            return;
        }
        let (Some(receive), Some(send)) = (zeroes(self.options.receive_bytes), zeroes(self.options.send_bytes)) else {
            log::warn!("port {}: no memory for another connection, {open} are open", self.number);
            return;
        };
        let mut socket = tcp::Socket::new(tcp::SocketBuffer::new(receive), tcp::SocketBuffer::new(send));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(micros(ACK_DELAY)));
        socket.set_keep_alive(Some(micros(self.options.keep_alive)));
        socket.set_timeout(Some(micros(HANDSHAKE)));
        socket.set_congestion_control(CongestionControl::Reno);
        match socket.listen(self.number) {
            Ok(()) => self.listening = Some(sockets.add(socket)),
            Err(error) => log::error!("port {}: cannot listen: {error}", self.number),
        }
    }

    /// A connection that waits only for stray segments makes room for a new one.
    fn drop_time_wait(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let is_waiting = |c: &Closing| sockets.get::<tcp::Socket>(c.handle).state() == State::TimeWait;
        let Some(at) = self.closing.iter().position(is_waiting) else { return false };
        sockets.remove(self.closing.remove(at).handle);
        true
    }

    /// The connection that waited longest, with its local and its remote end.
    pub(crate) fn accept(
        &mut self,
        sockets: &mut SocketSet<'static>,
    ) -> Option<(SocketHandle, IpEndpoint, IpEndpoint)> {
        let handle = *self.established.front()?;
        let socket = sockets.get::<tcp::Socket>(handle);
        // `advance` has sorted out those that were reset while they waited: all that are left have ends.
        let (local, peer) = (socket.local_endpoint()?, socket.remote_endpoint()?);
        self.established.pop_front();
        self.accepted += 1;
        Some((handle, local, peer))
    }

    /// The user of an accepted connection is gone: sends what was written and an end of stream.
    pub(crate) fn release(&mut self, handle: SocketHandle, sockets: &mut SocketSet<'static>, now: Instant) {
        sockets.get_mut::<tcp::Socket>(handle).close();
        self.accepted -= 1;
        self.closing.push(Closing { handle, deadline: now + self.options.linger, aborted: false });
    }

    /// The listener is gone: resets whom it did not accept.
    pub(crate) fn close(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        self.closed = true;
        let unaccepted =
            self.listening.take().into_iter().chain(self.half_open.drain(..)).chain(self.established.drain(..));
        for handle in unaccepted {
            sockets.get_mut::<tcp::Socket>(handle).abort();
            self.closing.push(Closing { handle, deadline: now + RESET, aborted: true });
        }
    }

    /// Brings closing connections to their end. Returns when the next of them runs out of time.
    pub(crate) fn reap(&mut self, sockets: &mut SocketSet<'static>, now: Instant) -> Option<Instant> {
        self.closing.retain_mut(|closing| {
            let socket = sockets.get_mut::<tcp::Socket>(closing.handle);
            let expired = closing.deadline <= now;
            if is_over(socket) || (expired && closing.aborted) {
                sockets.remove(closing.handle);
                return false;
            }
            if expired {
                socket.abort();
                *closing = Closing { deadline: now + RESET, aborted: true, ..*closing };
            }
            // Nobody reads: the window must stay open for the peer's end of stream to arrive.
            while socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|read| read > 0) {}
            true
        });
        self.closing.iter().map(|c| c.deadline).min()
    }
}

/// The socket is closed and owes its peer no reset, either.
fn is_over(socket: &tcp::Socket<'_>) -> bool {
    socket.state() == State::Closed && socket.remote_endpoint().is_none()
}

/// A buffer of zeroes, if there is memory.
fn zeroes(len_bytes: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![];
    bytes.try_reserve_exact(len_bytes).ok()?;
    bytes.resize(len_bytes, 0);
    Some(bytes)
}

fn micros(duration: Duration) -> smoltcp::time::Duration {
    smoltcp::time::Duration::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
