//! A small HTTP/1.1 client for the appliance's management interface: one request a connection, bodies in memory.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Beyond this many bytes an answer is not one of ours.
const BODY_BYTES_MAX: u64 = 16 << 20;

/// Where to ask, and as whom.
#[derive(Debug, Clone)]
pub struct Client {
    /// The appliance's HTTP address.
    pub address: SocketAddr,
    /// The bearer token, unless the request goes without.
    pub token: Option<String>,
    /// How long each read or write may take.
    pub timeout: Duration,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header fields as they came, the names in lower case.
    pub fields: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).ok().with_context(|| format!("not JSON: {}", self.text()))
    }

    /// A header field by its name in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// The JSON of a success; an error that shows the answer otherwise.
    pub fn success(&self) -> Result<Value> {
        if !(200..300).contains(&self.status) {
            bail!("HTTP status {}: {}", self.status, self.text());
        }
        if self.body.is_empty() { Ok(Value::Null) } else { self.json() }
    }
}

impl Client {
    /// A client for `address` with a token.
    pub fn new(address: SocketAddr, token: Option<String>) -> Client {
        Client { address, token, timeout: Duration::from_secs(30) }
    }

    /// A request without a body.
    pub fn send(&self, method: &str, path: &str) -> Result<Response> {
        self.request(method, path, "", &[])
    }

    /// A request with a JSON body.
    pub fn send_json(&self, method: &str, path: &str, body: &Value) -> Result<Response> {
        self.request(method, path, "application/json", body.to_string().as_bytes())
    }

    /// A request; no body is sent when `content_type` is empty.
    pub fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Result<Response> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        if let Some(token) = &self.token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        if !content_type.is_empty() {
            head += &format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut message = head.into_bytes();
        message.extend_from_slice(body);
        self.exchange(&message).with_context(|| format!("{method} http://{}{path}", self.address))
    }

    /// Sends these bytes, whatever they are, and reads one answer.
    pub fn exchange(&self, message: &[u8]) -> Result<Response> {
        let mut stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.write_all(message)?;
        read_response(&mut BufReader::new(stream))
    }
}

/// Reads one response.
pub fn read_response(stream: &mut impl BufRead) -> Result<Response> {
    let first = line(stream)?;
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not an HTTP/1.1 status line: {first:?}"))?;
    let mut fields = Vec::new();
    loop {
        let field = line(stream)?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').with_context(|| format!("not a header field: {field:?}"))?;
        fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut response = Response { status, fields, body: Vec::new() };
    if response.field("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        read_chunks(stream, &mut response.body)?;
        return Ok(response);
    }
    let len = match response.field("content-length") {
        Some(text) => Some(text.parse::<u64>().with_context(|| format!("content-length {text:?}"))?),
        None if status == 204 || status == 304 => Some(0),
        None => None,
    };
    stream.take(len.unwrap_or(BODY_BYTES_MAX)).read_to_end(&mut response.body)?;
    if len.is_some_and(|len| len != response.body.len() as u64) {
        bail!("the body ends after {} of {} bytes", response.body.len(), len.unwrap_or_default());
    }
    Ok(response)
}

fn read_chunks(stream: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let head = line(stream)?;
        let len = u64::from_str_radix(head.split(';').next().unwrap_or_default().trim(), 16);
        let len = len.with_context(|| format!("not the size of a chunk: {head:?}"))?;
        let before = body.len() as u64;
        stream.take(len).read_to_end(body)?;
        if body.len() as u64 != before + len || !line(stream)?.is_empty() {
            bail!("a chunk does not have its size, {len} bytes");
        }
        if len == 0 {
            return Ok(());
        }
    }
}

fn line(stream: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        bail!("the connection ended without an answer");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_their_length() {
        let mut bytes =
            &b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"a\": 1} extra"[..];
        let response = read_response(&mut bytes).unwrap();
        assert_eq!((response.status, response.field("content-type")), (201, Some("application/json")));
        assert_eq!(response.success().unwrap()["a"], 1);
        assert_eq!(bytes, b"extra");
    }

    #[test]
    fn chunks_are_joined() {
        let mut bytes = &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"[..];
        assert_eq!(read_response(&mut bytes).unwrap().text(), "abcd");
        let mut bytes = &b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc\r\n"[..];
        assert!(read_response(&mut bytes).is_err());
    }

    #[test]
    fn a_short_body_and_a_foreign_protocol_are_errors() {
        assert!(read_response(&mut &b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"[..]).is_err());
        assert!(read_response(&mut &b"SSH-2.0\r\n\r\n"[..]).is_err());
        assert!(read_response(&mut &b""[..]).is_err());
        let refused = read_response(&mut &b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"[..]).unwrap();
        assert!(refused.success().unwrap_err().to_string().contains("401"));
    }
}
