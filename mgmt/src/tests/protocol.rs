//! Traces: bytes in, bytes out.

use crate::http::Limits;
use crate::testing::{Response, Rig, TOKEN};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const OK: &str = "HTTP/1.1 200 OK
Content-Type: application/json
Content-Length: 30
Cache-Control: no-store

{\"status\":\"ok\",\"reason\":null}
";

/// Checks the bytes that come back for the bytes sent: all at once, and byte by byte. Lines end in CRLF in heads.
fn trace(request: &str, expected: &str) {
    for read_max in [usize::MAX, 1] {
        let mut rig = Rig::new();
        rig.read_max = read_max;
        let answer = rig.talk(request.replace('\n', "\r\n").as_bytes());
        let answer = String::from_utf8(answer).unwrap().replace("\r\n", "\n");
        assert_eq!(answer, expected, "to {request}");
    }
}

/// Like `trace`, but only the statuses.
fn statuses(rig: &Rig, bytes: &[u8]) -> Vec<u16> {
    let (answers, mut found) = (rig.talk(bytes), Vec::new());
    let mut rest = answers.as_slice();
    while !rest.is_empty() {
        let (response, behind) = Response::parse(rest, false);
        found.push(response.status);
        rest = behind;
    }
    found
}

#[test]
fn a_request_is_answered() {
    trace("GET /healthz HTTP/1.1\nHost: a\n\n", OK);
    trace("GET http://a.example/healthz HTTP/1.1\nHost: a.example\n\n", OK);
    trace("\n\nGET /healthz HTTP/1.1\nhost:a\n\n", OK);
}

#[test]
fn requests_in_one_packet_are_answered_in_order() {
    let missing = "HTTP/1.1 401 Unauthorized
Content-Type: application/json
WWW-Authenticate: Bearer realm=\"gossamer\"
Content-Length: 164
Cache-Control: no-store

{\"error\":\"unauthorized\",\"message\":\"a valid token is needed\",\
\"hint\":\"send the header `Authorization: Bearer TOKEN`; the console showed the token at the first boot\"}
";
    trace(
        "GET /healthz HTTP/1.1\nHost: a\n\nPOST /v1/volumes HTTP/1.1\nHost: a\nContent-Length: 3\n\nxyz\
         GET /healthz HTTP/1.1\nHost: a\nConnection: close\n\nGET /healthz HTTP/1.1\nHost: a\n\n",
        &format!("{OK}{missing}{}", OK.replace("no-store\n", "no-store\nConnection: close\n")),
    );
}

#[test]
fn http_1_0_gets_no_chunks_and_no_second_request() {
    let closed = OK.replace("no-store\n", "no-store\nConnection: close\n");
    trace("GET /healthz HTTP/1.0\n\nGET /healthz HTTP/1.0\n\n", &closed);
    let list = "HTTP/1.1 200 OK
Content-Type: application/json
Cache-Control: no-store
Connection: close

{\"volumes\":[
]}
";
    trace(&format!("GET /v1/volumes HTTP/1.0\nAuthorization: bearer {TOKEN}\n\n"), list);
}

#[test]
fn a_list_goes_out_in_chunks() {
    let list = "HTTP/1.1 200 OK
Content-Type: application/json
Transfer-Encoding: chunked
Cache-Control: no-store

10
{\"volumes\":[
]}

0

";
    let request = format!("GET /v1/volumes HTTP/1.1\nHost: a\nAuthorization: Bearer {TOKEN}\n\n");
    trace(&request, list);
    trace(&request.replace("GET", "HEAD"), list.split_inclusive("\n\n").next().unwrap());
}

#[test]
fn a_body_may_come_in_chunks() {
    let rig = Rig::new();
    let request = format!(
        "POST /v1/pool/message HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: text/plain\r\n\
         Transfer-Encoding: Chunked\r\n\r\n7;a=\"b\"\r\ncreate_\r\n06 \r\nthin 7\r\n0\r\nX: y\r\n\r\n"
    );
    let twice = format!("{request}{request}");
    assert_eq!(statuses(&rig, twice.as_bytes()), [200, 200]);
    assert_eq!(*rig.control.messages.borrow(), ["create_thin 7", "create_thin 7"]);
}

#[test]
fn a_peer_that_asks_is_told_to_go_on() {
    let rig = Rig::new();
    let head = |token: &str| {
        format!(
            "POST /v1/pool/message HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: text/plain\r\n\
             Expect: 100-continue\r\nContent-Length: 13\r\n\r\n"
        )
    };
    let client = rig.connect();
    let good = head(TOKEN);
    let answer = rig.run(async move {
        client.send(good.as_bytes()).await.unwrap();
        assert_eq!(client.read().await, b"HTTP/1.1 100 Continue\r\n\r\n");
        client.send(b"create_thin 7").await.unwrap();
        client.read().await
    });
    assert_eq!(Response::parse(&answer, false).0.status, 200);

    // Refused without the body: whether it comes nobody knows, so the connection ends.
    let answer = rig.talk(head(crate::testing::WRONG).as_bytes());
    let (response, rest) = Response::parse(&answer, false);
    assert_eq!((response.status, response.header("connection"), rest.len()), (401, Some("close"), 0));
    let to_1_0 = good_1_0(&head(TOKEN));
    assert_eq!(statuses(&rig, to_1_0.as_bytes()), [200], "HTTP/1.0 knows no 100");
}

/// Who waits for a 100 does not send the body when the answer is there: what comes next would be taken for it.
#[test]
fn a_streamed_answer_to_who_waits_for_a_100_ends_the_connection() {
    let rig = Rig::new();
    let head = format!(
        "GET /v1/volumes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\
         Expect: 100-continue\r\nContent-Length: 47\r\n\r\n"
    );
    let answer = String::from_utf8(rig.talk(head.as_bytes())).unwrap();
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
}

fn good_1_0(head: &str) -> String {
    format!("{}create_thin 7", head.replace("HTTP/1.1", "HTTP/1.0"))
}

#[test]
fn malformed_requests_end_their_connection_and_no_other() {
    let rig = Rig::new();
    let post = "POST /v1/pool/message HTTP/1.1\r\nHost: a\r\n";
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
    let long_line = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(9000));
    let cases: &[(&str, u16)] = &[
        ("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03", 400),
        ("GET  /healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\x00\r\n\r\n", 400),
        ("GET healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ftp://a/healthz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz XTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /healthz HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (&format!("{post}Content-Length: 1\r\nContent-Length: 1\r\n\r\n"), 400),
        (&format!("{post}Content-Length: 1, 1\r\n\r\n"), 400),
        (&format!("{post}Content-Length: +1\r\n\r\n"), 400),
        (&format!("{post}Content-Length: -1\r\n\r\n"), 400),
        (&format!("{post}Content-Length: 0x1\r\n\r\n"), 400),
        (&format!("{post}Content-Length: \r\n\r\n"), 400),
        (&format!("{post}Content-Length: 18446744073709551616\r\n\r\n"), 400),
        (&format!("{post}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
        (&format!("{post}Transfer-Encoding: gzip\r\n\r\n"), 501),
        (&format!("{post}Transfer-Encoding: gzip, chunked\r\n\r\n"), 501),
        (&format!("{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"), 501),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (&format!("{post}Expect: gold\r\n\r\n"), 417),
        (&format!("{post}Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n"), 400),
        (&many_headers, 431),
        (&long_line, 431),
    ];
    let other = rig.connect();
    for (request, status) in cases {
        let bytes = format!("{request}GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(statuses(&rig, bytes.as_bytes()), [*status], "{request}");
    }
    let still = rig.run(async move {
        other.send(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        other.read().await
    });
    assert_eq!(Response::parse(&still, false).0.status, 200);
}

#[test]
fn malformed_chunks_end_their_connection() {
    let rig = Rig::new();
    let head = format!(
        "POST /v1/pool/message HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: text/plain\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let endless = format!("1;{}", "a".repeat(1000));
    let trailers = format!("1\r\na\r\n0\r\n{}", "a: b\r\n".repeat(200));
    for chunks in [
        "x\r\n",
        "\r\n",
        "-1\r\n",
        "1\na\r\n0\r\n\r\n",
        "1\r\nab\r\n",
        "1000000000000000\r\n",
        "1;\n",
        &endless,
        &trailers,
    ] {
        let bytes = format!("{head}{chunks}\r\nGET /healthz HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(statuses(&rig, bytes.as_bytes()), [400], "{chunks}");
    }
    assert!(rig.control.messages.borrow().is_empty());
}

#[test]
fn too_long_bodies_are_refused_unread() {
    let limits = Limits { body_bytes_max: 100, ..Limits::default() };
    let rig = Rig::with_limits(limits);
    let head = format!(
        "POST /v1/pool/message HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: text/plain\r\n"
    );
    let next = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let (fits, long) = ("a".repeat(100), "a".repeat(101));
    assert_eq!(statuses(&rig, format!("{head}Content-Length: 100\r\n\r\n{fits}{next}").as_bytes()), [200, 200]);
    assert_eq!(statuses(&rig, format!("{head}Content-Length: 101\r\n\r\n{long}{next}").as_bytes()), [413]);
    assert_eq!(statuses(&rig, format!("{head}Content-Length: 18446744073709551615\r\n\r\n").as_bytes()), [413]);
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n65\r\n{long}\r\n0\r\n\r\n{next}");
    assert_eq!(statuses(&rig, chunked.as_bytes()), [413]);
}

#[test]
fn a_body_that_nobody_wants_is_skipped_if_it_is_short() {
    let rig = Rig::with_limits(Limits { body_bytes_max: 100, ..Limits::default() });
    let next = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    for (framing, body, expected) in [
        ("Content-Length: 100", "a".repeat(100), &[200u16, 200][..]),
        ("Content-Length: 101", "a".repeat(101), &[200]),
        ("Transfer-Encoding: chunked", format!("64\r\n{}\r\n0\r\n\r\n", "a".repeat(100)), &[200, 200]),
        ("Transfer-Encoding: chunked", format!("65\r\n{}\r\n0\r\n\r\n", "a".repeat(101)), &[200]),
        ("Transfer-Encoding: chunked", String::from("zz\r\n"), &[200]),
    ] {
        let bytes = format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}{next}");
        assert_eq!(statuses(&rig, bytes.as_bytes()), expected, "{framing}");
    }
}

#[test]
fn connections_beyond_the_limit_are_turned_away() {
    let rig = Rig::with_limits(Limits { connections_max: 2, ..Limits::default() });
    let request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let (first, second) = (rig.connect(), rig.connect());
    let idle = rig.run(async move {
        first.send(request).await.unwrap();
        assert!(!first.read().await.is_empty());
        first
    });
    assert_eq!(statuses(&rig, request), [503]);
    drop(idle);
    assert_eq!(statuses(&rig, request), [200]);
    drop(second);
}
