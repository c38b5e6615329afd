//! The host's TCP sockets as listeners and streams.

use crate::reactor::{Direction, Reactor, Registration};
use embedded_io_async::{ErrorType, Read, Write};
use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use platform::Runtime;
use platform::net::{Ends, Listener, NetError, Stream};
use platform::sync::Notify;
use platform::time::Duration;
use rustix::net::sockopt;
use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;

/// A peer silent for so long is asked whether it is still there, and after as long again between questions.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A peer that acknowledges nothing for so long is given up.
const DEAD_AFTER: Duration = Duration::from_secs(60);

/// How long a closed connection goes on delivering what was written.
const LINGER: Duration = Duration::from_secs(20);

/// Pause when the process has no descriptor or memory left for a connection.
const SHORTAGE: Duration = Duration::from_millis(100);

/// The network of the host.
#[derive(Clone)]
pub struct Net(Rc<Shared>);

struct Shared {
    reactor: Rc<Reactor>,
    runtime: Runtime,
    /// Connections that their users have dropped and that are not yet delivered.
    lingering: Cell<usize>,
    delivered: Notify,
}

impl Net {
    /// Sockets watched by `reactor`; closing ones live on as tasks of `runtime`.
    pub fn new(reactor: Rc<Reactor>, runtime: Runtime) -> Net {
        Net(Rc::new(Shared { reactor, runtime, lingering: Cell::new(0), delivered: Notify::new() }))
    }

    /// Listens. Port 0 is any free port.
    pub fn listen(&self, address: SocketAddr) -> io::Result<HostListener> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let source = self.0.reactor.register(listener, Interest::READABLE)?;
        Ok(HostListener { net: self.clone(), source, address })
    }

    /// Waits until every dropped connection has delivered what was written, or was given up: to be called before exit.
    pub async fn settle(&self) {
        loop {
            let delivered = self.0.delivered.notified();
            if self.0.lingering.get() == 0 {
                return;
            }
            delivered.await;
        }
    }
}

/// Accepts connections.
pub struct HostListener {
    net: Net,
    source: Registration<TcpListener>,
    address: SocketAddr,
}

impl HostListener {
    fn adopt(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<HostStream> {
        let local = stream.local_addr()?;
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEP_ALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEP_ALIVE)?;
        sockopt::set_tcp_user_timeout(&stream, DEAD_AFTER.as_millis() as u32)?;
        let source = self.net.0.reactor.register(stream, Interest::READABLE | Interest::WRITABLE)?;
        let connection = Connection { net: self.net.clone(), source: Some(source), ended: Cell::new(false) };
        Ok(HostStream { connection, ends: Ends { local, peer } })
    }
}

impl Listener for HostListener {
    type Stream = HostStream;

    async fn accept(&self) -> Result<HostStream, NetError> {
        loop {
            let accepted = poll_fn(|cx| self.source.poll_io(cx, Direction::Read, |listener| listener.accept())).await;
            match accepted.and_then(|(stream, peer)| self.adopt(stream, peer)) {
                Ok(stream) => return Ok(stream),
                // The peer gave up before we came to it.
                Err(error) if is_reset(&error) => {}
                Err(error) => {
                    log::error!("{}: cannot accept a connection: {error}", self.address);
                    self.net.0.runtime.timers.sleep(SHORTAGE).await;
                }
            }
        }
    }

    fn describe(&self) -> String {
        self.address.to_string()
    }

    fn port(&self) -> u16 {
        self.address.port()
    }
}

/// An accepted connection.
pub struct HostStream {
    connection: Connection,
    ends: Ends,
}

impl Stream for HostStream {
    type Reader = HostReader;
    type Writer = HostWriter;

    fn ends(&self) -> Ends {
        self.ends
    }

    fn split(self) -> (HostReader, HostWriter) {
        let connection = Rc::new(self.connection);
        (HostReader(connection.clone()), HostWriter(connection))
    }
}

/// A socket. Dropping it closes the connection in the background.
struct Connection {
    net: Net,
    /// There until it is dropped.
    source: Option<Registration<TcpStream>>,
    /// The peer has sent everything, or the connection is broken.
    ended: Cell<bool>,
}

impl Connection {
    async fn io(
        &self,
        direction: Direction,
        mut f: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Result<usize, NetError> {
        let Some(source) = &self.source else { return Err(NetError::Closed) };
        poll_fn(|cx| source.poll_io(cx, direction, &mut f)).await.map_err(|error| {
            self.ended.set(true);
            if !is_reset(&error) {
                log::warn!("a connection broke: {error}");
            }
            NetError::Reset
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Closing a socket with unread bytes resets it, and the peer loses what it had not read yet. So unless the peer
        // has ended, it gets an end of stream, and its bytes are read, until it closes, too.
        let Some(source) = self.source.take().filter(|_| !self.ended.get()) else { return };
        if source.source().shutdown(Shutdown::Write).is_err() {
            return;
        }
        let net = self.net.clone();
        net.0.lingering.set(net.0.lingering.get() + 1);
        self.net.0.runtime.spawner.spawn(async move {
            if net.0.runtime.timers.timeout(LINGER, drain(&source)).await.is_err() {
                log::debug!("a peer did not close its side of a connection in time");
            }
            drop(source);
            net.0.lingering.set(net.0.lingering.get() - 1);
            net.0.delivered.notify_all();
        });
    }
}

/// Reads until the peer closes or resets.
async fn drain(source: &Registration<TcpStream>) {
    let mut sink = vec![0; 16 << 10];
    let read = |mut stream: &TcpStream, sink: &mut [u8]| stream.read(sink);
    while let Ok(1..) = poll_fn(|cx| source.poll_io(cx, Direction::Read, |s| read(s, &mut sink))).await {}
}

/// Receives.
pub struct HostReader(Rc<Connection>);

impl ErrorType for HostReader {
    type Error = NetError;
}

impl Read for HostReader {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, NetError> {
        let read = self.0.io(Direction::Read, |mut stream| stream.read(buf)).await?;
        if read == 0 && !buf.is_empty() {
            self.0.ended.set(true);
        }
        Ok(read)
    }
}

/// Sends.
pub struct HostWriter(Rc<Connection>);

impl ErrorType for HostWriter {
    type Error = NetError;
}

impl Write for HostWriter {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, NetError> {
        self.0.io(Direction::Write, |mut stream| stream.write(bytes)).await
    }

    /// The host's kernel has everything already.
    async fn flush(&mut self) -> Result<(), NetError> {
        Ok(())
    }
}

fn is_reset(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut)
}
