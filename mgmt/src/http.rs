//! HTTP/1.1 (RFC 9110, RFC 9112): parsers without I/O, and the shell that moves their bytes.
//!
//! [`head`] reads a request's head, [`body`] takes its framing off, [`answer`] writes what goes back;
//! [`wire`] is a connection's bytes with time limits, and [`exchange`] one request with its answer.

pub(crate) mod answer;
pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod head;
pub(crate) mod out;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

use crate::error::ControlError;
use platform::time::Duration;
use wire::Lost;

/// What one connection, and all of them, may take. The memory of a connection is about
/// `head_bytes_max` + `body_bytes_max` at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; one more is answered 503.
    pub connections_max: usize,
    /// Bytes of request line and headers.
    pub head_bytes_max: usize,
    /// Bytes of a body that is taken whole (JSON, a message).
    pub body_bytes_max: usize,
    /// From the answer to the next request's first byte.
    pub idle_timeout: Duration,
    /// From a head's first byte to its last.
    pub head_timeout: Duration,
    /// From the start to the end of a body that is taken whole.
    pub body_timeout: Duration,
    /// Longest wait for an event of the pool.
    pub event_timeout: Duration,
    /// For each piece of a body that is taken as it comes.
    pub read_timeout: Duration,
    /// For each write to the peer.
    pub write_timeout: Duration,
    /// A wrong token costs this long, one after the other whatever the number of connections.
    pub refusal_delay: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 32,
            head_bytes_max: 8 << 10,
            body_bytes_max: 64 << 10,
            idle_timeout: Duration::from_secs(60),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            event_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            refusal_delay: Duration::from_millis(100),
        }
    }
}

/// Why an exchange did not go as planned.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The peer gets this error as its answer.
    Refused(ControlError),
    /// Nobody is there to be answered.
    Lost(Lost),
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Failure {
        Failure::Refused(error)
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Failure {
        Failure::Lost(lost)
    }
}
