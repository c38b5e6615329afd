//! A connection's bytes, with a limit on the time that each wait takes.

use super::answer::{self, Extent, JSON, error_json};
use super::head::{self, Head};
use super::{Failure, Limits};
use crate::error::{Code, ControlError};
use alloc::vec::Vec;
use core::future::Future;
use core::ops::Range;
use core::pin::pin;
use embedded_io_async::{Read, Write};
use futures_util::future::{Either, select};
use platform::net::{NetError, Stream};
use platform::time::{Duration, Instant, Timers};

/// How long, and how many bytes of, an unwanted request are taken so that the peer can read its refusal.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// The peer is gone or does not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lost {
    /// The connection failed.
    #[error("{0}")]
    Net(#[from] NetError),
    /// The peer sends nothing, or takes nothing.
    #[error("the peer stalled")]
    Stalled,
}

/// Both halves of a connection, and what was received and not yet used.
pub(crate) struct Wire<S: Stream> {
    reader: S::Reader,
    writer: S::Writer,
    pub(crate) timers: Timers,
    pub(crate) limits: Limits,
    /// Never longer than `head_bytes_max`.
    input: Vec<u8>,
    /// Bytes of `input` in use.
    received: Range<usize>,
}

impl<S: Stream> Wire<S> {
    pub(crate) fn new(stream: S, timers: Timers, limits: Limits) -> Wire<S> {
        let (reader, writer) = stream.split();
        let input = alloc::vec![0; limits.head_bytes_max];
        Wire { reader, writer, timers, limits, input, received: 0..0 }
    }

    /// The next request's head; `None` if the peer closed, stayed idle for too long, or `stop` resolved before
    /// a request began.
    pub(crate) async fn next_head(&mut self, stop: impl Future<Output = ()>) -> Result<Option<Head>, Failure> {
        let mut deadline = None;
        if self.received.is_empty() {
            let idle_end = self.timers.now() + self.limits.idle_timeout;
            match select(pin!(self.fill(idle_end)), pin!(stop)).await {
                Either::Left((Ok(1..), _)) => {}
                _ => return Ok(None),
            }
        }
        loop {
            if let Some((head, len)) = head::parse(self.unused())? {
                self.consume(len);
                return Ok(Some(head));
            }
            if self.received.len() == self.input.len() {
                return Err(head::too_large().into());
            }
            let deadline = *deadline.get_or_insert(self.timers.now() + self.limits.head_timeout);
            match self.fill(deadline).await {
                Ok(0) => return Err(NetError::Closed).map_err(|error| Lost::from(error).into()),
                Ok(_) => {}
                Err(Lost::Stalled) => return Err(timed_out().into()),
                Err(lost) => return Err(lost.into()),
            }
        }
    }

    /// Bytes received and not yet used.
    pub(crate) fn unused(&self) -> &[u8] {
        self.input.get(self.received.clone()).unwrap_or_default()
    }

    /// Marks bytes as used.
    pub(crate) fn consume(&mut self, len: usize) {
        self.received.start = self.received.end.min(self.received.start.saturating_add(len));
    }

    /// Receives more; 0 at the end of the stream.
    pub(crate) async fn fill(&mut self, deadline: Instant) -> Result<usize, Lost> {
        self.input.copy_within(self.received.clone(), 0);
        self.received = 0..self.received.len();
        let room = self.input.get_mut(self.received.end..).unwrap_or_default();
        let wait = deadline - self.timers.now();
        let len = self.timers.timeout(wait, self.reader.read(room)).await.map_err(|_| Lost::Stalled)??;
        self.received.end += len;
        Ok(len)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let wait = self.limits.write_timeout;
        Ok(self.timers.timeout(wait, self.writer.write_all(bytes)).await.map_err(|_| Lost::Stalled)??)
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Lost> {
        let wait = self.limits.write_timeout;
        Ok(self.timers.timeout(wait, self.writer.flush()).await.map_err(|_| Lost::Stalled)??)
    }

    /// Answers with an error where there is no request to answer; the connection is to be closed.
    pub(crate) async fn refuse(&mut self, error: &ControlError) -> Result<(), Lost> {
        let body = error_json(error);
        let head = answer::head(error.code.status(), Extent::Length(body.len()), true, &[("Content-Type", JSON)]);
        self.send(head.as_bytes()).await?;
        self.send(&body).await?;
        self.flush().await
    }

    /// Before a connection is closed on a peer that may still be sending: takes what it sends, for a moment.
    /// Closed with bytes unread, TCP would reset the connection and take the answer with it.
    pub(crate) async fn linger(mut self) {
        let deadline = self.timers.now() + LINGER;
        let mut taken = 0;
        while taken < LINGER_BYTES {
            self.received = 0..0;
            match self.fill(deadline).await {
                Ok(len @ 1..) => taken += len,
                _ => return,
            }
        }
    }
}

/// The error for a request that stopped in its middle.
pub(crate) fn timed_out() -> ControlError {
    ControlError::new(Code::RequestTimeout, "the request did not arrive in time", "send the whole request at once")
}
