//! Streams of volumes, sent and received: bytes that are not looked at here.

use crate::api::Api;
use crate::control::{Control, ReceiveError, ReceiveRequest, SendRequest, Volume};
use crate::error::{Code, ControlError};
use crate::http::Failure;
use crate::http::exchange::Exchange;
use crate::http::head::Framing;
use crate::http::out::Out;
use crate::names::{VolumeName, VolumeSize};
use crate::query::Query;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;
use platform::net::Stream;

const STREAM: &str = "application/octet-stream";

impl<C: Control> Api<C> {
    /// `GET /v1/volumes/NAME/stream`. What makes it end early is told by its end alone: its bytes are no text.
    pub(crate) async fn send_stream<S: Stream>(
        &self,
        snapshot: VolumeName,
        exchange: &mut Exchange<'_, S>,
    ) -> Result<(), Failure> {
        let query = Query::parse(exchange.head().query.as_deref(), &["from", "resume"])?;
        let request =
            SendRequest { snapshot, base: query.volume("from")?, resume: query.get("resume").map(ToOwned::to_owned) };
        let mut out = Out::new(exchange)?;
        let sink = async |piece: &[u8]| out.begun(STREAM).await?.write(piece).await;
        let result = self.control.send(&request, sink).await;
        if let Err(error) = &result {
            log::warn!("a stream of {} breaks off: {error}", request.snapshot);
        }
        out.finish(STREAM, |_| Vec::new(), result).await
    }

    /// `PUT /v1/volumes/NAME/stream`. The body is taken as fast as it is written to the pool, and may be of any length.
    pub(crate) async fn receive_stream<S: Stream>(
        &self,
        volume: VolumeName,
        exchange: &mut Exchange<'_, S>,
    ) -> Result<Volume, Failure> {
        let query = Query::parse(exchange.head().query.as_deref(), &["size_bytes", "base", "read_only"])?;
        let size_bytes = query.get("size_bytes").map(size).transpose()?;
        let request = ReceiveRequest {
            volume,
            size_bytes,
            base: query.volume("base")?,
            read_only: query.yes("read_only", false)?,
        };
        if exchange.head().framing == Framing::None {
            let hint = "send the stream as the body, with a Content-Length or in chunks";
            return Err(ControlError::new(Code::LengthRequired, "the request has no body", hint).into());
        }
        let source = async |piece: &mut [u8]| {
            let deadline = exchange.timers().now() + exchange.limits().read_timeout;
            exchange.read(piece, deadline).await
        };
        self.control.receive(&request, source).await.map_err(|error| match error {
            ReceiveError::Refused(error) => error.into(),
            ReceiveError::Source(failure) => failure,
        })
    }
}

fn size(text: &str) -> Result<VolumeSize, ControlError> {
    let hint = "it is the volume's size in bytes, in whole sectors of 512";
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = text.parse().ok().filter(|_| digits);
    let bytes = bytes.ok_or_else(|| ControlError::invalid("size_bytes in the query is no number", hint))?;
    VolumeSize::new(bytes).map_err(|error| ControlError::invalid(format!("{error}"), hint))
}
