//! A blocking HTTP/1.1 client for the appliance: one request a connection, bodies of any length in both directions.
//!
//! It reads the answer also when a body is refused in the middle: the appliance says then what is wrong with a stream.

use crate::failure::{Failure, Result};
use rustix::net::{RecvFlags, recv};
use std::fmt;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest head of an answer, and most of its fields.
const HEAD_BYTES_MAX: u64 = 64 << 10;
const FIELDS_MAX: usize = 64;

/// Beyond this an answer in JSON is not one of ours.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// Bytes of a chunk that is sent.
const CHUNK_BYTES: usize = 256 << 10;

const CONNECT: Duration = Duration::from_secs(10);

/// The longest silence: the end of a receive is answered when all is durable.
const SILENCE: Duration = Duration::from_secs(120);

/// Where to ask, and as whom.
pub struct Client {
    /// HOST:PORT.
    authority: String,
    token: Option<String>,
}

impl fmt::Debug for Client {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

impl Client {
    /// A client for `http://HOST[:PORT]`.
    pub fn new(url: &str, token: Option<String>) -> Result<Client> {
        let rest = url.strip_prefix("http://").ok_or_else(|| {
            Failure::Usage(format!("{url} does not begin with http://: the appliance has no TLS; use a tunnel"))
        })?;
        let authority = rest.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '@', '?', '#']) || authority.contains(char::is_whitespace) {
            return Err(Failure::Usage(format!("{url} is not http://HOST:PORT")));
        }
        let bare = if authority.starts_with('[') { authority.ends_with(']') } else { !authority.contains(':') };
        let authority = if bare { format!("{authority}:80") } else { authority.to_owned() };
        if token.as_ref().is_some_and(|token| token.is_empty() || token.contains(|c: char| !c.is_ascii_graphic())) {
            return Err(Failure::Usage("the token is empty, or has characters that no token has".into()));
        }
        Ok(Client { authority, token })
    }

    /// A request with a body that is at hand, or none.
    pub fn send(&self, method: &str, path: &str, body: Option<(&str, &[u8])>) -> Result<Answer> {
        let (fields, body) = match body {
            Some((kind, body)) => (format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()), body),
            None => (String::new(), &[][..]),
        };
        let mut stream = self.connect()?;
        let head = self.head(method, path, &fields);
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        self.answer(stream, sent.map_err(|error| self.lost(&error)))
    }

    /// A request whose body is written by `body`, for as long as the appliance takes it.
    pub fn upload(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<Answer> {
        let stream = self.connect()?;
        let fields = format!("Content-Type: {kind}\r\nTransfer-Encoding: chunked\r\n");
        let mut out = &stream;
        let sent = out.write_all(self.head(method, path, &fields).as_bytes()).map_err(|error| self.lost(&error));
        let mut chunks = BufWriter::with_capacity(CHUNK_BYTES, Chunks(&stream));
        let sent = sent.and_then(|()| body(&mut chunks)).and_then(|()| {
            chunks.flush().and_then(|()| out.write_all(b"0\r\n\r\n")).map_err(|error| self.lost(&error))
        });
        // What is left in it belongs to a body that was given up.
        let _ = chunks.into_parts();
        self.answer(stream, sent)
    }

    fn head(&self, method: &str, path: &str, fields: &str) -> String {
        let token = self.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{token}{fields}\r\n", self.authority)
    }

    fn connect(&self) -> Result<TcpStream> {
        let addresses = self.authority.to_socket_addrs().map_err(|error| self.lost(&error))?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
        for address in addresses {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => {
                    let set = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(SILENCE)));
                    set.and_then(|()| stream.set_write_timeout(Some(SILENCE))).map_err(|error| self.lost(&error))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(self.lost(&last))
    }

    /// Reads the answer. If the request was not sent whole, a refusal tells why, and anything else is no answer to it.
    fn answer(&self, stream: TcpStream, sent: Result<()>) -> Result<Answer> {
        let answer = match sent {
            // Our own end of it: the appliance is not to be asked.
            Err(error) if !matches!(error, Failure::Unreachable(_)) => return Err(error),
            Err(lost) => match self.read_answer(stream) {
                Ok(answer) if answer.status >= 400 => answer,
                _ => return Err(lost),
            },
            Ok(()) => self.read_answer(stream)?,
        };
        if answer.status < 400 { Ok(answer) } else { Err(answer.refusal()) }
    }

    fn read_answer(&self, stream: TcpStream) -> Result<Answer> {
        let mut stream = BufReader::with_capacity(CHUNK_BYTES, stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let before = head.len();
            let limit = HEAD_BYTES_MAX.saturating_sub(before as u64);
            (&mut stream).take(limit).read_until(b'\n', &mut head).map_err(|error| self.lost(&error))?;
            if head.len() == before {
                return Err(Failure::Unreachable(format!(
                    "{}: the connection ended without an answer",
                    self.authority
                )));
            }
        }
        let strange = || Failure::Unreachable(format!("{}: the answer is not HTTP", self.authority));
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        parsed.parse(&head).map_err(|_| strange())?;
        let status = parsed.code.ok_or_else(strange)?;
        let field = |name: &str| {
            let found = parsed.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
            found.and_then(|field| std::str::from_utf8(field.value).ok())
        };
        let chunked = field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let left = match field("content-length") {
            _ if chunked => Left::Chunks(0),
            Some(text) => Left::Bytes(text.trim().parse().map_err(|_| strange())?),
            None => Left::Bytes(0),
        };
        Ok(Answer { status, body: Body { stream, left } })
    }

    /// The connection failed.
    pub fn lost(&self, error: &io::Error) -> Failure {
        Failure::Unreachable(format!("{}: {error}", self.authority))
    }
}

/// An answer, whose body is read as it comes.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Body,
}

impl Answer {
    /// The whole body as text.
    pub fn text(self) -> Result<String> {
        let mut text = String::new();
        let read = self.body.take(JSON_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| Failure::Unreachable(format!("the answer: {error}")))?;
        Ok(text)
    }

    fn refusal(self) -> Failure {
        let status = self.status;
        let text = self.text().unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let word = |name: &str| json[name].as_str().map(str::to_owned);
        Failure::Refused {
            status,
            error: word("error").unwrap_or_else(|| "refused".into()),
            errno: json["errno"].as_i64().and_then(|errno| i32::try_from(errno).ok()),
            message: word("message").unwrap_or_else(|| "the appliance refuses it".into()),
            hint: word("hint"),
        }
    }
}

/// What is still to come of a body.
#[derive(Debug)]
enum Left {
    /// So many bytes.
    Bytes(u64),
    /// So many of this chunk, and further chunks.
    Chunks(u64),
}

/// The body of an answer. That it ends too early is an error.
#[derive(Debug)]
pub struct Body {
    stream: BufReader<TcpStream>,
    left: Left,
}

impl Body {
    /// The size of the next chunk.
    fn chunk(&mut self) -> io::Result<u64> {
        let mut line = String::new();
        (&mut self.stream).take(256).read_line(&mut line)?;
        let size = line.trim_end().split(';').next().unwrap_or_default();
        u64::from_str_radix(size, 16).map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, "it broke off"))
    }

    fn line_end(&mut self) -> io::Result<()> {
        let mut end = [0; 2];
        self.stream.read_exact(&mut end)?;
        if end == *b"\r\n" { Ok(()) } else { Err(io::Error::other("a chunk has not the size that it says")) }
    }
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if let Left::Chunks(0) = self.left {
            let size = self.chunk()?;
            if size == 0 {
                self.line_end()?;
                self.left = Left::Bytes(0);
            } else {
                self.left = Left::Chunks(size);
            }
        }
        let (Left::Bytes(left) | Left::Chunks(left)) = self.left;
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.stream.read(out.get_mut(..most).unwrap_or_default())?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection broke off"));
        }
        let left = left.saturating_sub(read as u64);
        self.left = match self.left {
            Left::Bytes(_) => Left::Bytes(left),
            Left::Chunks(_) => Left::Chunks(left),
        };
        if let Left::Chunks(0) = self.left {
            self.line_end()?;
        }
        Ok(read)
    }
}

/// Sends each write as a chunk, unless the appliance has answered: then it will take no more.
struct Chunks<'s>(&'s TcpStream);

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if recv(self.0, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it was answered before its end"));
        }
        if !bytes.is_empty() {
            self.0.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
            self.0.write_all(bytes)?;
            self.0.write_all(b"\r\n")?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
