//! An answer's bytes.

use crate::error::ControlError;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;
use serde_json::Value;
use thinp::control::Errno;

/// The media type of most bodies.
pub(crate) const JSON: &str = "application/json";

/// The interim answer to Expect: 100-continue.
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Ends a body of chunks.
pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How an answer's body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The status has no body (204).
    None,
    /// Content-Length.
    Length(usize),
    /// Chunks.
    Chunked,
    /// The end of the connection: a stream to a peer that knows no chunks.
    Close,
}

/// A status line and headers, with the empty line behind them. Headers are ours: no peer's bytes are in them.
pub(crate) fn head(status: u16, extent: Extent, close: bool, headers: &[(&str, &str)]) -> String {
    let mut text = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    match extent {
        Extent::None | Extent::Close => {}
        Extent::Length(len) => text.push_str(&format!("Content-Length: {len}\r\n")),
        Extent::Chunked => text.push_str("Transfer-Encoding: chunked\r\n"),
    }
    text.push_str("Cache-Control: no-store\r\n");
    if close {
        text.push_str("Connection: close\r\n");
    }
    text.push_str("\r\n");
    text
}

/// What stands before a chunk's data; a CRLF stands behind it.
pub(crate) fn chunk_head(len: usize) -> String {
    format!("{len:x}\r\n")
}

/// The phrases of RFC 9110 section 15, and of RFC 6585 and RFC 4918.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "",
    }
}

/// A value as JSON, on a line of its own.
pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>, ControlError> {
    let mut bytes = bare_json(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// A value as JSON.
pub(crate) fn bare_json(value: &impl Serialize) -> Result<Vec<u8>, ControlError> {
    serde_json::to_vec(value).map_err(|error| {
        let message = format!("the answer cannot be put into JSON: {error}");
        ControlError::new(Errno::EIO, message, "report this, with the request")
    })
}

/// An error as JSON. Nothing can fail here, for it is made of texts and a number.
pub(crate) fn error_json(error: &ControlError) -> Vec<u8> {
    let errno = error.code.errno().map(|errno| format!("\"errno\":{},", -i32::from(errno.number())));
    let [name, message, hint] = [error.code.name(), &error.message, &error.hint].map(Value::from);
    let errno = errno.unwrap_or_default();
    format!("{{{errno}\"error\":{name},\"message\":{message},\"hint\":{hint}}}\n").into_bytes()
}
