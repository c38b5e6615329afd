//! A request's head: bytes in, [`Head`] out.

use crate::error::{Code, ControlError};
use crate::token::Token;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;

/// Most header fields of a request.
const HEADERS_MAX: usize = 64;

/// The methods that the interface uses, and one for the rest of RFC 9110's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    /// Known, but allowed nowhere.
    Other,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Other => "OTHER",
        })
    }
}

/// How a request's body is delimited (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Neither header: no body.
    None,
    /// Content-Length.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
}

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub method: Method,
    /// The target without scheme, authority and query.
    pub path: String,
    /// What follows the `?`, if anything.
    pub query: Option<String>,
    /// HTTP/1.0: no chunks, no interim answers, no second request.
    pub http_1_0: bool,
    /// The peer wants the connection closed after the answer.
    pub close: bool,
    pub framing: Framing,
    /// Expect: 100-continue.
    pub expects_continue: bool,
    pub bearer: Option<Token>,
    /// The media type, in lower case, without parameters.
    pub content_type: Option<String>,
}

/// Reads a head from the start of `bytes`: the head and its length, or `None` if more is needed.
///
/// # Errors
/// What must be answered before the connection is closed, since its framing is unknown from here on.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, ControlError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(syntax_error(error, bytes)),
    };
    let fields = Fields(request.headers);
    let http_1_0 = request.version == Some(0);
    check_host(&fields, http_1_0)?;
    let (path, query) = target(request.path.unwrap_or_default())?;
    let head = Head {
        method: method(request.method.unwrap_or_default())?,
        path,
        query,
        http_1_0,
        close: http_1_0 || fields.list("connection").any(|token| token.eq_ignore_ascii_case(b"close")),
        framing: framing(&fields, http_1_0)?,
        expects_continue: expectation(&fields, http_1_0)?,
        bearer: bearer(&fields)?,
        content_type: content_type(&fields)?,
    };
    Ok(Some((head, len)))
}

/// The header fields of a request, by name.
struct Fields<'h, 'b>(&'h [httparse::Header<'b>]);

impl<'b> Fields<'_, 'b> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'b [u8]> {
        self.0.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value.trim_ascii())
    }

    /// The members of a comma-separated list, however many lines it was sent in.
    fn list(&self, name: &'static str) -> impl Iterator<Item = &'b [u8]> {
        let members = self.all(name).flat_map(|value| value.split(|c| *c == b','));
        members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
    }

    /// The value of a field that may be there once.
    fn one(&self, name: &'static str) -> Result<Option<&'b [u8]>, ControlError> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(bad_request(format!("more than one {name} header"))),
        }
    }
}

pub(crate) fn bad_request(message: impl Into<String>) -> ControlError {
    ControlError::new(Code::BadRequest, message, "send a well-formed HTTP/1.1 request (RFC 9112)")
}

fn syntax_error(error: httparse::Error, bytes: &[u8]) -> ControlError {
    match error {
        httparse::Error::TooManyHeaders => too_large(),
        httparse::Error::Version if names_a_version(bytes) => {
            ControlError::new(Code::VersionNotSupported, "this HTTP version is not spoken here", "use HTTP/1.1")
        }
        error => bad_request(format!("malformed request: {error}")),
    }
}

/// The error for a head that does not fit.
pub(crate) fn too_large() -> ControlError {
    ControlError::new(Code::HeadTooLarge, "request line and headers are too long or too many", "send fewer headers")
}

/// The first line's third word is something like `HTTP/2.0`.
fn names_a_version(bytes: &[u8]) -> bool {
    let word = bytes.trim_ascii_start().splitn(3, |c| *c == b' ').nth(2).unwrap_or_default();
    word.strip_prefix(b"HTTP/").is_some_and(|version| version.first().is_some_and(u8::is_ascii_digit))
}

fn method(name: &str) -> Result<Method, ControlError> {
    match name {
        "GET" => Ok(Method::Get),
        "HEAD" => Ok(Method::Head),
        "POST" => Ok(Method::Post),
        "PUT" => Ok(Method::Put),
        "PATCH" => Ok(Method::Patch),
        "DELETE" => Ok(Method::Delete),
        "OPTIONS" | "TRACE" | "CONNECT" => Ok(Method::Other),
        _ => Err(ControlError::new(Code::NotImplemented, "an unknown method", "use GET, POST, PUT, PATCH or DELETE")),
    }
}

/// Takes the origin form and the absolute form (RFC 9112 section 3.2).
fn target(target: &str) -> Result<(String, Option<String>), ControlError> {
    let local = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    if !(local.starts_with('/') || local == "*") || local.contains('#') {
        return Err(bad_request("the request target is no path"));
    }
    Ok(match local.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (local.to_owned(), None),
    })
}

/// RFC 9112 section 3.2: exactly one Host in HTTP/1.1.
fn check_host(fields: &Fields<'_, '_>, http_1_0: bool) -> Result<(), ControlError> {
    match fields.one("host")? {
        None if !http_1_0 => Err(bad_request("no Host header")),
        _ => Ok(()),
    }
}

/// Anything that two readers could understand differently is refused: that is how requests are smuggled.
fn framing(fields: &Fields<'_, '_>, http_1_0: bool) -> Result<Framing, ControlError> {
    let length = fields.one("content-length")?;
    let mut codings = fields.all("transfer-encoding").peekable();
    if codings.peek().is_some() {
        if length.is_some() || http_1_0 {
            return Err(bad_request("Transfer-Encoding beside Content-Length or in HTTP/1.0"));
        }
        return match (codings.next(), codings.next()) {
            (Some(coding), None) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
            _ => Err(ControlError::new(Code::NotImplemented, "an unknown transfer coding", "use chunked alone")),
        };
    }
    let Some(length) = length else { return Ok(Framing::None) };
    // `parse` alone would take a sign.
    let digits = length.iter().all(u8::is_ascii_digit);
    let length = core::str::from_utf8(length).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    length.map(Framing::Length).ok_or_else(|| bad_request("Content-Length is no number of bytes"))
}

fn expectation(fields: &Fields<'_, '_>, http_1_0: bool) -> Result<bool, ControlError> {
    match fields.one("expect")? {
        // RFC 9110 section 10.1.1: to be ignored in HTTP/1.0.
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => Ok(!http_1_0),
        Some(_) => {
            Err(ControlError::new(Code::ExpectationFailed, "an unknown expectation", "expect 100-continue or nothing"))
        }
        None => Ok(false),
    }
}

/// The token of RFC 6750 section 2.1. Other schemes count as none.
fn bearer(fields: &Fields<'_, '_>) -> Result<Option<Token>, ControlError> {
    let text = fields.one("authorization")?.and_then(|value| core::str::from_utf8(value).ok());
    let credentials = text.and_then(|text| text.split_once(' '));
    let token = credentials.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Ok(token.and_then(|(_, token)| Token::parse(token.trim()).ok()))
}

fn content_type(fields: &Fields<'_, '_>) -> Result<Option<String>, ControlError> {
    let value = fields.one("content-type")?.and_then(|value| core::str::from_utf8(value).ok());
    let media_type = value.map(|value| value.split(';').next().unwrap_or_default());
    Ok(media_type.map(|media_type| media_type.trim().to_ascii_lowercase()))
}
