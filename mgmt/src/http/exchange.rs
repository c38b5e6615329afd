//! One request and its answer. The body is read, and an answer may be written, as a stream.

use super::answer::{self, Extent, JSON, error_json};
use super::body::Decoder;
use super::head::{Framing, Head, Method, bad_request};
use super::wire::{Lost, Wire, timed_out};
use super::{Failure, Limits};
use crate::error::{Code, ControlError};
use alloc::string::ToString;
use alloc::vec::Vec;
use platform::net::{NetError, Stream};
use platform::time::{Instant, Timers};

/// Bytes of a streamed answer that are gathered into one chunk.
const CHUNK_BYTES: usize = 4096;

/// How far the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    None,
    /// The head was sent, the body is not complete.
    Begun(u16),
    Complete(u16),
}

/// One request and its answer.
pub(crate) struct Exchange<'w, S: Stream> {
    wire: &'w mut Wire<S>,
    head: Head,
    decoder: Decoder,
    /// The peer waits for a 100 before it sends the body.
    owes_continue: bool,
    answer: Answer,
    /// The connection ends with this answer.
    close: bool,
}

impl<'w, S: Stream> Exchange<'w, S> {
    pub(crate) fn new(wire: &'w mut Wire<S>, head: Head) -> Exchange<'w, S> {
        let decoder = Decoder::new(head.framing);
        let owes_continue = head.expects_continue && !decoder.is_done();
        Exchange { wire, owes_continue, close: head.close, decoder, head, answer: Answer::None }
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.wire.timers
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.wire.limits
    }

    /// No further request on this connection.
    pub(crate) fn close_after(&mut self) {
        self.close = true;
    }

    /// The next bytes of the body, as many as are there and fit; 0 at its end.
    pub(crate) async fn read(&mut self, out: &mut [u8], deadline: Instant) -> Result<usize, Failure> {
        if core::mem::take(&mut self.owes_continue) {
            self.wire.send(answer::CONTINUE).await?;
            self.wire.flush().await?;
        }
        loop {
            let input = self.wire.unused();
            let piece = self.decoder.decode(input, out.len()).map_err(|error| bad_request(error.to_string()))?;
            let len = piece.data.len();
            if let (Some(to), Some(from)) = (out.get_mut(..len), input.get(piece.data)) {
                to.copy_from_slice(from);
            }
            self.wire.consume(piece.consumed);
            if len > 0 || self.decoder.is_done() || out.is_empty() {
                return Ok(len);
            }
            match self.wire.fill(deadline).await {
                Ok(0) => return Err(Lost::Net(NetError::Closed).into()),
                Ok(_) => {}
                Err(Lost::Stalled) => return Err(timed_out().into()),
                Err(lost) => return Err(lost.into()),
            }
        }
    }

    /// The whole body of a request that must have one, no longer than the limit and not too slow.
    pub(crate) async fn read_whole(&mut self) -> Result<Vec<u8>, Failure> {
        let most = self.limits().body_bytes_max;
        let too_long = || {
            let message = alloc::format!("a body here has at most {most} bytes");
            ControlError::new(Code::BodyTooLarge, message, "send less")
        };
        match self.head.framing {
            Framing::None => {
                let hint = "send a body with a Content-Length";
                return Err(ControlError::new(Code::LengthRequired, "the request has no body", hint).into());
            }
            Framing::Length(len) if len > most as u64 => return Err(too_long().into()),
            Framing::Length(_) | Framing::Chunked => {}
        }
        let deadline = self.timers().now() + self.limits().body_timeout;
        let (mut body, mut piece) = (Vec::new(), [0; 1024]);
        loop {
            let len = self.read(&mut piece, deadline).await?;
            if len == 0 {
                return Ok(body);
            }
            if body.len() + len > most {
                return Err(too_long().into());
            }
            body.extend_from_slice(piece.get(..len).unwrap_or_default());
        }
    }

    /// Answers with a body of known length.
    pub(crate) async fn reply(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Result<(), Lost> {
        let extent = if status == 204 { Extent::None } else { Extent::Length(body.len()) };
        let mut bytes = self.begin(status, extent, headers);
        if self.head.method != Method::Head {
            bytes.extend_from_slice(body);
        }
        self.wire.send(&bytes).await?;
        self.wire.flush().await?;
        self.answer = Answer::Complete(status);
        Ok(())
    }

    /// Answers with an error.
    pub(crate) async fn refuse(&mut self, error: &ControlError, headers: &[(&str, &str)]) -> Result<(), Lost> {
        let mut all = Vec::from([("Content-Type", JSON)]);
        all.extend_from_slice(headers);
        self.close |= closes(error.code);
        self.reply(error.code.status(), &all, &error_json(error)).await
    }

    /// Answers with a body whose length nobody knows yet.
    pub(crate) async fn stream(&mut self, content_type: &str) -> Result<Sink<'_, 'w, S>, Lost> {
        self.close |= self.head.http_1_0;
        let extent = if self.head.http_1_0 { Extent::Close } else { Extent::Chunked };
        let head = self.begin(200, extent, &[("Content-Type", content_type)]);
        self.wire.send(&head).await?;
        Ok(Sink { gathered: Vec::with_capacity(CHUNK_BYTES), chunked: extent == Extent::Chunked, exchange: self })
    }

    /// The head of the answer.
    fn begin(&mut self, status: u16, extent: Extent, headers: &[(&str, &str)]) -> Vec<u8> {
        // A body that is not going to be read ends the connection, or it would be taken for the next request.
        self.close |= self.owes_continue || self.decoder == Decoder::Broken || self.rest_is_long();
        self.answer = Answer::Begun(status);
        answer::head(status, extent, self.close, headers).into_bytes()
    }

    /// After the handler: answers its error if that is still possible. True if another request may follow.
    pub(crate) async fn finish(&mut self, outcome: Result<(), Failure>) -> Result<bool, Lost> {
        match (outcome, self.answer) {
            (Ok(()), Answer::Complete(_)) => {}
            (Err(Failure::Refused(error)), Answer::None) => self.refuse(&error, &[]).await?,
            (Err(Failure::Lost(lost)), _) => return Err(lost),
            // An answer that breaks off can only be told from a complete one by the connection's end.
            (_, Answer::Begun(_) | Answer::Complete(_) | Answer::None) => self.close = true,
        }
        Ok(!self.close && self.drain().await)
    }

    /// The status that was answered, if any.
    pub(crate) fn status(&self) -> Option<u16> {
        match self.answer {
            Answer::None => None,
            Answer::Begun(status) | Answer::Complete(status) => Some(status),
        }
    }

    /// More of the body is to come than is worth taking.
    fn rest_is_long(&self) -> bool {
        matches!(self.decoder, Decoder::Length { left } if left > self.limits().body_bytes_max as u64)
    }

    /// Takes the rest of a body that the handler did not want. False if that is too long or too slow.
    async fn drain(&mut self) -> bool {
        let deadline = self.timers().now() + self.limits().body_timeout;
        let (mut left, mut piece) = (self.limits().body_bytes_max, [0; 256]);
        while !self.decoder.is_done() {
            match self.read(&mut piece, deadline).await {
                Ok(len) if len <= left => left -= len,
                _ => return false,
            }
        }
        true
    }
}

/// A connection is not used again after these: where the next request would begin is unknown.
fn closes(code: Code) -> bool {
    matches!(code, Code::BadRequest | Code::RequestTimeout | Code::BodyTooLarge)
}

/// The body of a streamed answer. Dropped before [`Sink::finish`] it is broken off, visibly to the peer.
pub(crate) struct Sink<'e, 'w, S: Stream> {
    exchange: &'e mut Exchange<'w, S>,
    gathered: Vec<u8>,
    chunked: bool,
}

impl<S: Stream> Sink<'_, '_, S> {
    /// Appends to the body.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        if self.gathered.len() + bytes.len() > CHUNK_BYTES {
            self.send_gathered().await?;
        }
        if bytes.len() >= CHUNK_BYTES {
            return self.send(bytes).await;
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends the body.
    pub(crate) async fn finish(mut self) -> Result<(), Lost> {
        self.send_gathered().await?;
        if self.chunked && self.exchange.head.method != Method::Head {
            self.exchange.wire.send(answer::LAST_CHUNK).await?;
        }
        self.exchange.wire.flush().await?;
        if let Answer::Begun(status) = self.exchange.answer {
            self.exchange.answer = Answer::Complete(status);
        }
        Ok(())
    }

    /// Sends what there is and these bytes, and leaves the body without its end.
    pub(crate) async fn break_off(mut self, last: &[u8]) -> Result<(), Lost> {
        self.write(last).await?;
        self.send_gathered().await?;
        self.exchange.wire.flush().await
    }

    async fn send_gathered(&mut self) -> Result<(), Lost> {
        let gathered = core::mem::take(&mut self.gathered);
        self.send(&gathered).await?;
        self.gathered = gathered;
        self.gathered.clear();
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let wire = &mut *self.exchange.wire;
        if bytes.is_empty() || self.exchange.head.method == Method::Head {
            return Ok(());
        }
        if self.chunked {
            wire.send(answer::chunk_head(bytes.len()).as_bytes()).await?;
        }
        wire.send(bytes).await?;
        if self.chunked {
            wire.send(b"\r\n").await?;
        }
        Ok(())
    }
}
