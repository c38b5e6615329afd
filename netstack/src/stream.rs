//! Listeners and streams: what users hold.

use crate::stack::Shared;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::future::poll_fn;
use core::net::{Ipv4Addr, SocketAddr};
use core::task::{Context, Poll};
use embedded_io_async::{ErrorType, Read, Write};
use platform::net::{Ends, Listener, NetError, Stream};
use platform::sync::Notify;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::IpEndpoint;

/// Accepts connections on a port. Dropping it resets whom it has not accepted yet; accepted connections go on.
pub struct TcpListener {
    pub(crate) shared: Rc<Shared>,
    pub(crate) port: u16,
    pub(crate) arrived: Rc<Notify>,
}

impl TcpListener {
    fn try_accept(&self) -> Option<TcpStream> {
        let mut inner = self.shared.inner.borrow_mut();
        let (port, sockets) = inner.port(self.port)?;
        let (handle, local, peer) = port.accept(sockets)?;
        let ends = Ends { local: socket_address(local), peer: socket_address(peer) };
        let connection = Connection { shared: self.shared.clone(), handle, port: self.port };
        Some(TcpStream { connection, ends })
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> Result<TcpStream, NetError> {
        loop {
            let arrived = self.arrived.notified();
            if let Some(stream) = self.try_accept() {
                return Ok(stream);
            }
            arrived.await;
        }
    }

    fn describe(&self) -> String {
        let address = self.shared.inner.borrow().address().unwrap_or(Ipv4Addr::UNSPECIFIED);
        format!("{address}:{}", self.port)
    }

    fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let now = self.shared.timers.now();
        if let Some((port, sockets)) = self.shared.inner.borrow_mut().port(self.port) {
            port.close(sockets, now);
        }
        self.shared.wake();
    }
}

/// An accepted connection.
pub struct TcpStream {
    connection: Connection,
    ends: Ends,
}

impl Stream for TcpStream {
    type Reader = TcpReader;
    type Writer = TcpWriter;

    fn ends(&self) -> Ends {
        self.ends
    }

    fn split(self) -> (TcpReader, TcpWriter) {
        let connection = Rc::new(self.connection);
        (TcpReader(connection.clone()), TcpWriter(connection))
    }
}

/// The claim to a socket. Dropping it closes the connection in the background.
struct Connection {
    shared: Rc<Shared>,
    handle: SocketHandle,
    port: u16,
}

impl Connection {
    fn with<T>(&self, f: impl FnOnce(&mut tcp::Socket<'static>) -> T) -> T {
        f(self.shared.inner.borrow_mut().sockets.get_mut(self.handle))
    }

    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<Result<usize, NetError>> {
        let read = self.with(|socket| match socket.recv_slice(buf) {
            Ok(0) if !buf.is_empty() => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
            Ok(read) => Poll::Ready(Ok(read)),
            Err(tcp::RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(tcp::RecvError::InvalidState) => Poll::Ready(Err(NetError::Reset)),
        });
        if matches!(read, Poll::Ready(Ok(1..))) {
            // The window has grown: the peer may have to be told.
            self.shared.wake();
        }
        read
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, NetError>> {
        let written = self.with(|socket| match socket.send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                socket.register_send_waker(cx.waker());
                Poll::Pending
            }
            Ok(written) => Poll::Ready(Ok(written)),
            Err(tcp::SendError::InvalidState) => Poll::Ready(Err(NetError::Reset)),
        });
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.shared.wake();
        }
        written
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = self.shared.timers.now();
        if let Some((port, sockets)) = self.shared.inner.borrow_mut().port(self.port) {
            port.release(self.handle, sockets, now);
        }
        self.shared.wake();
    }
}

/// Receives: bytes are copied once, from the connection's ring into the caller's buffer.
pub struct TcpReader(Rc<Connection>);

impl ErrorType for TcpReader {
    type Error = NetError;
}

impl Read for TcpReader {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, NetError> {
        poll_fn(|cx| self.0.poll_read(cx, buf)).await
    }
}

/// Sends. What was written is the stack's to deliver, also after the writer is dropped.
pub struct TcpWriter(Rc<Connection>);

impl ErrorType for TcpWriter {
    type Error = NetError;
}

impl Write for TcpWriter {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, NetError> {
        poll_fn(|cx| self.0.poll_write(cx, bytes)).await
    }

    /// Everything written already belongs to the stack; this only tells a broken connection from a sound one.
    async fn flush(&mut self) -> Result<(), NetError> {
        if self.0.with(|socket| socket.may_send()) { Ok(()) } else { Err(NetError::Reset) }
    }
}

fn socket_address(end: IpEndpoint) -> SocketAddr {
    SocketAddr::new(end.addr.into(), end.port)
}
