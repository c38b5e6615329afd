//! Hostile bytes. A failure prints its seed; `GOSSAMER_SEED=N` runs that one, `GOSSAMER_ROUNDS=N` that many.

use crate::testing::{Response, Rig, TOKEN};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use platform::random::{Random, Seeded};
use std::println;

/// Runs `round` for many seeds.
fn rounds(default: u64, round: impl Fn(&Dice)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seeds = match number("GOSSAMER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("GOSSAMER_ROUNDS").unwrap_or(default),
    };
    for seed in seeds {
        println!("GOSSAMER_SEED={seed}");
        round(&Dice(Seeded::from_u64(seed)));
    }
}

struct Dice(Seeded);

impl Dice {
    /// Below `n`.
    fn below(&self, n: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % n as u64) as usize
    }

    fn bytes(&self, most: usize) -> Vec<u8> {
        let mut bytes = alloc::vec![0; self.below(most)];
        self.0.fill(&mut bytes);
        bytes
    }

    fn pick<'a>(&self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }

    /// Something that looks like a request, now and then right.
    fn request(&self) -> String {
        let method = self.pick(&["GET", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "FOO"]);
        let path = self.pick(&["/healthz", "/v1/pool", "/v1/volumes", "/v1/volumes/v1", "/v1/pool/message", "/x", "*"]);
        let version = self.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0"]);
        let mut text = format!("{method} {path} {version}\r\nHost: a\r\n");
        if self.below(2) == 0 {
            text += &format!("Authorization: Bearer {TOKEN}\r\n");
        }
        text += self.pick(&["", "Content-Type: application/json\r\n", "Content-Type: text/plain\r\n"]);
        text += self.pick(&["", "", "Expect: 100-continue\r\n", "Connection: close\r\n"]);
        let body =
            self.pick(&["", "{}", "create_thin 7", r#"{"name":"v1","size_bytes":512}"#, "{\"initiators\":\"all\"}"]);
        match self.below(4) {
            0 => text + "\r\n",
            1 => text + &format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            2 => text + &format!("Content-Length: {}\r\n\r\n{body}", self.below(40)),
            _ => text + &format!("Content-Length: {}\r\n\r\n{body}", body.len()),
        }
    }
}

/// What comes back is answers, and nothing else.
fn assert_answers(sent: &[u8], answers: &[u8]) {
    let mut rest = answers;
    while !rest.is_empty() {
        // A HEAD's answer has no body; whether this one is such is seen by what follows.
        let (head_only, behind_head) = Response::parse(rest, true);
        let bodiless = behind_head.is_empty() || behind_head.starts_with(b"HTTP/1.1 ");
        let to_head = bodiless && sent.windows(5).any(|w| w == b"HEAD ");
        if head_only.status == 100 || to_head {
            rest = behind_head;
            continue;
        }
        let unsized_stream = head_only.header("content-length").is_none() && head_only.status == 200;
        let (response, behind) = Response::parse(rest, false);
        if response.status >= 400 {
            assert!(response.value()["error"].is_string());
        }
        if unsized_stream && head_only.header("transfer-encoding").is_none() {
            return; // To HTTP/1.0, ended by the connection.
        }
        rest = behind;
    }
}

#[test]
fn random_bytes_get_answers_or_nothing() {
    rounds(10_000, |dice| {
        let rig = Rig::new();
        let bytes = dice.bytes(600);
        assert_answers(&bytes, &rig.talk(&bytes));
        assert_eq!(rig.api.counters.connections.get(), 0);
    });
}

#[test]
fn damaged_requests_get_answers_however_they_are_cut() {
    rounds(10_000, |dice| {
        let mut bytes: Vec<u8> = (0..1 + dice.below(4)).flat_map(|_| dice.request().into_bytes()).collect();
        for _ in 0..dice.below(4) {
            let at = dice.below(bytes.len());
            match dice.below(3) {
                0 => bytes[at] = dice.below(256) as u8,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, dice.below(256) as u8),
            }
        }
        let whole = Rig::new();
        let answers = whole.talk(&bytes);
        assert_answers(&bytes, &answers);
        let mut cut = Rig::new();
        cut.read_max = 1 + dice.below(7);
        let cut_answers = cut.talk(&bytes);
        assert!(answers == cut_answers, "{:?}", String::from_utf8_lossy(&bytes));
        assert_eq!(whole.control.volumes.borrow().len(), cut.control.volumes.borrow().len());
    });
}
