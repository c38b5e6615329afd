//! The network seam: listeners, and connections as two independent halves.

use alloc::string::String;
use core::fmt;
use core::net::SocketAddr;
use embedded_io_async::{ErrorKind, Read, Write};

/// Why a connection or a listener failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The peer reset the connection, or it broke.
    #[error("the connection was reset")]
    Reset,
    /// The peer closed its side while more was expected.
    #[error("the peer closed the connection")]
    Closed,
    /// The network is not there.
    #[error("the network is down")]
    Down,
}

impl embedded_io_async::Error for NetError {
    fn kind(&self) -> ErrorKind {
        match self {
            NetError::Reset => ErrorKind::ConnectionReset,
            NetError::Closed => ErrorKind::ConnectionAborted,
            NetError::Down => ErrorKind::NotConnected,
        }
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Our address, the one that the peer reached us at.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.peer)
    }
}

/// An established connection. Both halves dropped: the connection is closed (what was flushed is still
/// delivered).
pub trait Stream: 'static {
    /// Receives. A read of 0 bytes is the peer's end of stream.
    type Reader: Read<Error = NetError> + 'static;
    /// Sends. `flush` waits until everything written was handed to the network, not until it arrived.
    type Writer: Write<Error = NetError> + 'static;

    /// Who is connected.
    fn ends(&self) -> Ends;

    /// The halves, to be used by different tasks.
    fn split(self) -> (Self::Reader, Self::Writer);
}

/// Accepts connections on one port.
pub trait Listener: 'static {
    /// What is accepted.
    type Stream: Stream;

    /// The next connection.
    fn accept(&self) -> impl Future<Output = Result<Self::Stream, NetError>>;

    /// The address listened on, for messages.
    fn describe(&self) -> String;

    /// The port listened at.
    fn port(&self) -> u16;
}
