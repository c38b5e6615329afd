//! An answer that begins with its first piece, so that what fails before has a status of its own.

use super::Failure;
use super::exchange::{Exchange, Sink};
use super::head::Method;
use super::wire::Lost;
use crate::error::ControlError;
use crate::runs::RunsError;
use alloc::vec::Vec;
use platform::net::Stream;

/// Where a streamed answer goes.
pub(crate) enum Out<'e, 'w, S: Stream> {
    Waiting(&'e mut Exchange<'w, S>),
    Begun(Sink<'e, 'w, S>),
    Lost,
}

impl<'e, 'w, S: Stream> Out<'e, 'w, S> {
    /// Nothing was answered yet.
    pub(crate) fn new(exchange: &'e mut Exchange<'w, S>) -> Result<Self, ControlError> {
        if exchange.head().method == Method::Head {
            // It would have to be made to its end, for nobody.
            return Err(ControlError::invalid("what is made while it is sent has no head of its own", "GET it"));
        }
        Ok(Out::Waiting(exchange))
    }

    /// The answer's body.
    pub(crate) async fn begun(&mut self, content_type: &str) -> Result<&mut Sink<'e, 'w, S>, Lost> {
        *self = match core::mem::replace(self, Out::Lost) {
            Out::Waiting(exchange) => Out::Begun(exchange.stream(content_type).await?),
            other => other,
        };
        match self {
            Out::Begun(sink) => Ok(sink),
            _ => Err(Lost::Stalled),
        }
    }

    /// Ends the answer, or breaks it off, with the reason at the end of its body if `last_words` has one.
    pub(crate) async fn finish(
        self,
        content_type: &str,
        last_words: impl Fn(&ControlError) -> Vec<u8>,
        result: Result<(), RunsError<Lost>>,
    ) -> Result<(), Failure> {
        match (result, self) {
            (Ok(()), mut out) => {
                out.begun(content_type).await?;
                if let Out::Begun(sink) = out { Ok(sink.finish().await?) } else { Ok(()) }
            }
            (Err(RunsError::Refused(error)), Out::Begun(sink)) => {
                sink.break_off(&last_words(&error)).await?;
                Err(error.into())
            }
            (Err(RunsError::Refused(error)), _) => Err(error.into()),
            (Err(RunsError::Sink(lost)), _) => Err(lost.into()),
        }
    }
}
