//! A manager: HTTP requests over a simulated connection.

use crate::net::{Port, SimReader, SimWriter, Wire};
use embedded_io_async::{Read, Write};
use platform::net::Stream;
use serde_json::Value;

/// The token that managers and appliance share.
pub const TOKEN: &str = "simulated-token-0123";

/// The connection broke before the answer was there.
#[derive(Debug)]
pub struct Broken;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// `Null` without a body.
    pub body: Value,
}

impl Answer {
    fn of(status: u16, body: &[u8]) -> Answer {
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(body).expect("JSON") };
        Answer { status, body }
    }

    pub fn is_ok(&self) -> bool {
        self.status < 300
    }
}

/// A connection to the management interface.
pub struct Manager {
    reader: SimReader,
    writer: SimWriter,
    pub wire: Wire,
}

impl Manager {
    /// `None` if nobody takes connections any more.
    pub fn connect(port: &Port) -> Option<Manager> {
        let (stream, wire) = port.connect()?;
        let (reader, writer) = stream.split();
        Some(Manager { reader, writer, wire })
    }

    /// The bytes of a stream, or why it is refused.
    pub async fn fetch(&mut self, path: &str) -> Result<Result<Vec<u8>, Answer>, Broken> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        self.upload(head.as_bytes()).await?;
        let (status, body) = self.response().await?;
        Ok(if status == 200 { Ok(body) } else { Err(Answer::of(status, &body)) })
    }

    /// Begins to send a stream of so many bytes, which [`Manager::upload`] sends and [`Manager::answer`] answers.
    pub async fn begin_upload(&mut self, path: &str, bytes: usize) -> Result<(), Broken> {
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {bytes}\r\n\r\n"
        );
        self.upload(head.as_bytes()).await
    }

    pub async fn upload(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.writer.write_all(bytes).await.map_err(|_| Broken)
    }

    /// One request. A body is JSON, or text for a message.
    pub async fn ask(&mut self, method: &str, path: &str, body: Option<&str>) -> Result<Answer, Broken> {
        let kind = if path.ends_with("/message") { "text/plain" } else { "application/json" };
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {TOKEN}\r\n");
        if let Some(body) = body {
            head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        }
        let request = head + "\r\n" + body.unwrap_or_default();
        self.writer.write_all(request.as_bytes()).await.map_err(|_| Broken)?;
        self.answer().await
    }

    pub async fn answer(&mut self) -> Result<Answer, Broken> {
        let (status, body) = self.response().await?;
        Ok(Answer::of(status, &body))
    }

    async fn response(&mut self) -> Result<(u16, Vec<u8>), Broken> {
        let head = self.head().await?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {head}"));
        let field = |name: &str| {
            let found =
                head.split("\r\n").filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_owned())
        };
        let mut body = Vec::new();
        if let Some(len) = field("content-length") {
            body = vec![0; len.parse().expect("a length")];
            self.reader.read_exact(&mut body).await.map_err(|_| Broken)?;
        } else if field("transfer-encoding").is_some() {
            body = self.chunks().await?;
        }
        Ok((status, body))
    }

    async fn head(&mut self) -> Result<String, Broken> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.byte().await?);
        }
        Ok(String::from_utf8(head).expect("text"))
    }

    async fn byte(&mut self) -> Result<u8, Broken> {
        let mut byte = [0];
        match self.reader.read(&mut byte).await {
            Ok(1) => Ok(byte[0]),
            _ => Err(Broken),
        }
    }

    async fn chunks(&mut self) -> Result<Vec<u8>, Broken> {
        let mut body = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.push(self.byte().await?);
            }
            let digits = std::str::from_utf8(&line).expect("text").trim();
            let len = usize::from_str_radix(digits, 16).expect("the length of a chunk");
            let mut chunk = vec![0; len + 2];
            self.reader.read_exact(&mut chunk).await.map_err(|_| Broken)?;
            body.extend_from_slice(&chunk[..len]);
            if len == 0 {
                return Ok(body);
            }
        }
    }
}
