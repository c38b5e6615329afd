//! Every row of the table of errors, from the outside.

use crate::error::{Code, ControlError};
use crate::http::Limits;
use crate::testing::{Response, Rig, TOKEN};
use alloc::format;
use alloc::string::String;
use platform::time::Duration;
use thinp::control::Errno;

/// A request that meets this error.
fn provoke(code: Code) -> String {
    let authorized = format!("Host: a\r\nAuthorization: Bearer {TOKEN}\r\n");
    let message = format!("POST /v1/pool/message HTTP/1.1\r\n{authorized}Content-Type: text/plain\r\n");
    match code {
        Code::Errno(_) | Code::NoPool => format!("GET /v1/pool HTTP/1.1\r\n{authorized}\r\n"),
        Code::BadRequest => "GET\r\n\r\n".into(),
        Code::Unauthorized => "GET /v1/pool HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        Code::NoSuchPath => format!("GET /v2 HTTP/1.1\r\n{authorized}\r\n"),
        Code::MethodNotAllowed => format!("PUT /v1/volumes HTTP/1.1\r\n{authorized}\r\n"),
        Code::RequestTimeout => format!("{message}Content-Length: 9\r\n\r\ncrea"),
        Code::LengthRequired => format!("{message}\r\n"),
        Code::BodyTooLarge => format!("{message}Content-Length: 65537\r\n\r\n"),
        Code::UnsupportedMediaType => format!("POST /v1/volumes HTTP/1.1\r\n{authorized}\r\n"),
        Code::ExpectationFailed => format!("GET /v1/pool HTTP/1.1\r\n{authorized}Expect: more\r\n\r\n"),
        Code::HeadTooLarge => format!("GET /v1/pool HTTP/1.1\r\nCookie: {}\r\n\r\n", "c".repeat(9000)),
        Code::NotImplemented => format!("LIST /v1/volumes HTTP/1.1\r\n{authorized}\r\n"),
        Code::TooManyConnections => "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".into(),
        Code::VersionNotSupported => "GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n".into(),
    }
}

#[test]
fn every_error_reaches_the_peer() {
    for code in Code::ALL {
        let connections_max = if *code == Code::TooManyConnections { 0 } else { 1 };
        let rig = Rig::with_limits(Limits { connections_max, ..Limits::default() });
        if code.errno().is_some() || *code == Code::NoPool {
            *rig.control.fails.borrow_mut() = Some(ControlError::new(*code, "disk meta, block 5", "replace it"));
        }
        let (client, request) = (rig.connect(), provoke(*code));
        let answer = rig.run(async move {
            client.send(request.as_bytes()).await.unwrap();
            client.read().await
        });
        let (response, rest) = Response::parse(&answer, false);
        response.assert_error(*code);
        assert!(rest.is_empty());
        let header = |name| response.header(name).is_some();
        assert_eq!(header("allow"), *code == Code::MethodNotAllowed, "{code}");
        assert_eq!(header("www-authenticate"), *code == Code::Unauthorized, "{code}");
    }
}

#[test]
fn names_are_unique_and_statuses_are_errors() {
    for (at, code) in Code::ALL.iter().enumerate() {
        assert!((400..600).contains(&code.status()), "{code}");
        assert!(Code::ALL[..at].iter().all(|earlier| earlier.name() != code.name()), "{code}");
    }
    assert_eq!(Code::from(Errno::ENOSPC).status(), 507);
}

#[test]
fn what_a_path_takes_is_told() {
    let rig = Rig::new();
    assert_eq!(rig.json("POST", "/v1/volumes/v1", "").header("allow"), Some("GET, HEAD, PATCH, DELETE"));
    assert_eq!(rig.json("OPTIONS", "/v1/pool/adopt", "").header("allow"), Some("POST"));
    rig.json("GET", "/v1/volumes?limit=3", "").assert_error(Code::Errno(Errno::EINVAL));
    rig.json("GET", "/v1/volumes/no_name", "").assert_error(Code::Errno(Errno::EINVAL));
    rig.ask("POST", "/v1/volumes", "text/plain", "{}").assert_error(Code::UnsupportedMediaType);
}

#[test]
fn a_wrong_token_is_refused_slowly_one_after_the_other() {
    let rig = Rig::new();
    let request =
        format!("GET /nowhere HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", crate::testing::WRONG);
    let clients = [rig.connect(), rig.connect(), rig.connect()];
    rig.run(async move {
        for client in &clients {
            client.send(request.as_bytes()).await.unwrap();
        }
        for client in &clients {
            Response::parse(&client.read().await, false).0.assert_error(Code::Unauthorized);
        }
    });
    assert_eq!(rig.elapsed(), 3 * Limits::default().refusal_delay);
}

#[test]
fn a_right_token_does_not_wait_behind_wrong_ones() {
    let rig = Rig::new();
    let wrong = format!("GET /v1/pool HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", crate::testing::WRONG);
    let right = format!("GET /v1/pool HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    let (guesser, user) = (rig.connect(), rig.connect());
    rig.run(async move {
        guesser.send(wrong.as_bytes()).await.unwrap();
        user.send(right.as_bytes()).await.unwrap();
        assert_eq!(Response::parse(&user.read().await, false).0.status, 200);
    });
    assert_eq!(rig.elapsed(), Duration::ZERO);
}
