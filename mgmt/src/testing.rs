//! What the tests stand on: a network in memory, a clock that jumps, an appliance that is none.

mod duplex;
mod fake;

pub(crate) use duplex::{Client, Duplex, connect};
pub(crate) use fake::Fake;

use crate::api::Api;
use crate::error::Code;
use crate::http::Limits;
use crate::token::Token;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;
use platform::Runtime;
use platform::buf::BufPool;
use platform::random::Seeded;
use platform::simulated::StillClock;
use platform::task::Executor;
use platform::time::{Clock, Duration, Instant, Timers};

/// The token that the fake appliance takes.
pub(crate) const TOKEN: &str = "gsm-AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHH";
/// Another.
pub(crate) const WRONG: &str = "gsm-22223333444455556666777722223333";

/// An interface with its surroundings.
pub(crate) struct Rig {
    executor: Executor,
    clock: Rc<StillClock>,
    runtime: Runtime,
    pub control: Rc<Fake>,
    pub api: Rc<Api<Fake>>,
    /// Most bytes that one read of the server yields.
    pub read_max: usize,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Rig {
        let clock = Rc::new(StillClock::default());
        let executor = Executor::new();
        let runtime = Runtime {
            spawner: executor.spawner(),
            timers: Timers::new(clock.clone()),
            random: Rc::new(Seeded::from_u64(1)),
            bufs: BufPool::new(0),
        };
        let control = Rc::new(Fake::new(Token::parse(TOKEN).unwrap().hash()));
        let api = Rc::new(Api::new(&runtime, control.clone(), limits));
        Rig { executor, clock, runtime, control, api, read_max: usize::MAX }
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.runtime.timers
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.now() - Instant::default()
    }

    /// Opens a connection that the interface serves.
    pub(crate) fn connect(&self) -> Client {
        let (client, server) = connect(self.read_max);
        let api = self.api.clone();
        self.runtime.spawner.spawn(async move { api.serve::<Duplex>(server).await });
        client
    }

    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        drop(self.runtime.spawner.spawn(future));
    }

    pub(crate) fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        self.executor.run(&self.runtime.timers, &*self.clock, future)
    }

    /// Sends bytes, ends the sending side, and returns everything that comes back until the server closes.
    pub(crate) fn talk(&self, bytes: &[u8]) -> Vec<u8> {
        let (client, bytes) = (self.connect(), bytes.to_vec());
        self.run(async move {
            let _ = client.send(&bytes).await;
            client.end();
            client.read_to_end().await
        })
    }

    /// One request with the token, and its answer.
    pub(crate) fn ask(&self, method: &str, path: &str, content_type: &str, body: &str) -> Response {
        let len = body.len();
        let request = alloc::format!(
            "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Type: {content_type}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
        );
        let answer = self.talk(request.as_bytes());
        let (response, rest) = Response::parse(&answer, method == "HEAD");
        assert!(rest.is_empty(), "one answer to one request");
        response
    }

    /// One request with JSON.
    pub(crate) fn json(&self, method: &str, path: &str, body: &str) -> Response {
        self.ask(method, path, "application/json", body)
    }
}

/// An answer, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Takes one answer off the start of `bytes`; what remains is returned.
    ///
    /// # Panics
    /// If it is none.
    pub(crate) fn parse(bytes: &[u8], to_head: bool) -> (Response, &[u8]) {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut parsed = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(len) = parsed.parse(bytes).expect("an answer") else {
            panic!("an incomplete answer: {:?}", String::from_utf8_lossy(bytes));
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = parsed.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect();
        let mut response = Response { status: parsed.code.unwrap(), headers, body: Vec::new() };
        let mut rest = &bytes[len..];
        if to_head {
            return (response, rest);
        }
        if let Some(len) = response.header("content-length") {
            let (body, behind) = rest.split_at(len.parse().unwrap());
            response.body = body.to_vec();
            rest = behind;
        } else if response.header("transfer-encoding") == Some("chunked") {
            rest = response.unchunk(rest);
        }
        (response, rest)
    }

    /// Reads chunks without the code under test.
    fn unchunk<'b>(&mut self, mut bytes: &'b [u8]) -> &'b [u8] {
        loop {
            let line = bytes.windows(2).position(|w| w == b"\r\n").expect("a chunk's size");
            let size = usize::from_str_radix(core::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
            let data = &bytes[line + 2..];
            self.body.extend_from_slice(&data[..size]);
            assert_eq!(&data[size..size + 2], b"\r\n");
            bytes = &data[size + 2..];
            if size == 0 {
                return bytes;
            }
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        core::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn value(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Checks that it is this error, whole.
    pub(crate) fn assert_error(&self, code: Code) {
        assert_eq!(self.status, code.status(), "{}", self.text());
        let value = self.value();
        assert_eq!(value["error"], code.name(), "{value}");
        assert_eq!(value["errno"].as_i64(), code.errno().map(|errno| -i64::from(errno.number())), "{value}");
        for field in ["message", "hint"] {
            assert!(!value[field].as_str().unwrap().is_empty(), "{value}");
        }
    }
}
