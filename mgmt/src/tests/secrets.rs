//! Nothing secret is ever logged.

use crate::control::HealthState;
use crate::testing::{Rig, TOKEN, WRONG};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use std::sync::Mutex;

struct Recorder(Mutex<Vec<String>>);

static RECORDER: Recorder = Recorder(Mutex::new(Vec::new()));

impl log::Log for Recorder {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn the_log_tells_what_happened_and_no_token() {
    log::set_logger(&RECORDER).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let rig = Rig::new();
    rig.json("POST", "/v1/volumes", r#"{"name":"v1","size_bytes":512}"#);
    rig.json("GET", "/v1/volumes/v1", "");
    rig.json("DELETE", "/v1/volumes/v1", "");
    rig.control.health.borrow_mut().state = HealthState::Degraded;
    for token in [TOKEN, WRONG] {
        let low = token.to_lowercase();
        for request in [
            format!("GET /v1/pool HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"),
            format!("GET /v1/pool HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {token}\r\n\r\n"),
            format!("GET /{token} HTTP/1.1\r\nHost: {token}\r\nAuthorization: Bearer {token}\r\n\r\n"),
            format!("GET /healthz?token={token} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET /v1/volumes/{token} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"),
            format!("GET /v1/volumes/{low} HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("{token} / HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET / HTTP/1.1\r\n{token}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nAuthorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n\r\n"),
            format!("GET /healthz HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}"),
        ] {
            rig.talk(request.as_bytes());
        }
        rig.json("POST", "/v1/volumes", &format!(r#"{{"name":"{token}","size_bytes":512}}"#));
        rig.ask("POST", "/v1/pool/message", "text/plain", token);
        let account = format!(r#"{{"user":"u","secret":"{token}"}}"#);
        for (path, body) in [
            ("/v1/volumes/v2/export", format!(r#"{{"initiators":"all","chap":{account}}}"#)),
            ("/v1/volumes/v2/export", format!(r#"{{"initiators":"all","mutual":{account}}}"#)),
            ("/v1/pool/metadata-export", format!(r#"{{"initiators":"all","chap":{account}}}"#)),
            ("/v1/pool/discovery-auth", format!(r#"{{"chap":{account},"mutual":{account}}}"#)),
            ("/v1/pool/discovery-auth", format!(r#"{{"chap":{account}}}"#)),
        ] {
            let answer = rig.json("PUT", path, &body);
            assert!(!format!("{}", answer.value()).contains(token), "{path} {}", answer.value());
        }
    }
    let lines = RECORDER.0.lock().unwrap().clone();
    for expected in [
        "INFO http 192.0.2.2:4000 POST /v1/volumes 201",
        "DEBUG http 192.0.2.2:4000 GET /v1/volumes/v1 200",
        "INFO http 192.0.2.2:4000 DELETE /v1/volumes/v1 204",
        "WARN http 192.0.2.2:4000 401",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected} is not in {lines:#?}");
    }
    for line in &lines {
        for token in [TOKEN, WRONG] {
            // Not even a part of it.
            let secret = token[4..16].to_lowercase();
            assert!(!line.to_lowercase().contains(&secret), "{line}");
        }
    }
    assert!(lines.len() > 20, "{}", lines.len());
}
