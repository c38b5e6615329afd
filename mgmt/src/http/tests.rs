//! The parsers by themselves.

use super::body::{Decoder, Piece};
use super::head::{Framing, Method, parse};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use proptest::prelude::*;

#[test]
fn a_head_is_taken_apart() {
    let text = b"PATCH http://h:80/v1/volumes/v1?a=b HTTP/1.1\r\nHost: h\r\n\
        Authorization:  BEARER 0123456789abcdef \r\n\
        Content-Type: Application/JSON ; charset=utf-8\r\nConnection: keep-alive, Close\r\n\
        Content-Length: 007\r\n\r\nrest";
    let (head, len) = parse(text).unwrap().unwrap();
    assert_eq!(&text[len..], b"rest");
    assert_eq!(
        (head.method, head.path.as_str(), head.query.as_deref()),
        (Method::Patch, "/v1/volumes/v1", Some("a=b"))
    );
    assert_eq!((head.framing, head.close, head.http_1_0), (Framing::Length(7), true, false));
    assert_eq!(head.content_type.as_deref(), Some("application/json"));
    assert_eq!(head.bearer.unwrap().reveal(), "0123456789abcdef");
}

#[test]
fn a_head_is_complete_only_at_its_end() {
    let text = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    for len in 0..text.len() {
        assert_eq!(parse(&text[..len]), Ok(None), "{len}");
    }
}

#[test]
fn credentials_of_other_kinds_are_none() {
    for value in
        ["", "Bearer", "Bearer short", "Basic MDEyMzQ1Njc4OWFiY2RlZg==", "Bearer 0123456789 abcdef", "Bearer é"]
    {
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\nAuthorization: {value}\r\n\r\n");
        let (head, _) = parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(head.bearer, None, "{value}");
    }
}

/// Decodes `input`, of which `step` bytes at a time are there, into at most `data_max` bytes at a time.
fn decode(framing: Framing, input: &[u8], step: usize, data_max: usize) -> (Vec<u8>, usize, Decoder) {
    let (mut decoder, mut body, mut at, mut there) = (Decoder::new(framing), Vec::new(), 0, 0);
    while !decoder.is_done() {
        let Ok(Piece { data, consumed }) = decoder.decode(&input[at..there], data_max) else { break };
        body.extend_from_slice(&input[at..there][data]);
        at += consumed;
        if consumed == 0 {
            if there == input.len() {
                break;
            }
            there = input.len().min(there + step);
        }
    }
    (body, at, decoder)
}

proptest! {
    #[test]
    fn chunks_are_put_together(
        chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), "(;[a-z=\"]{0,9})?"), 0..9),
        trailers in "([A-Z]{1,5}: [a-z]{0,9}\r\n){0,3}",
        (step, data_max) in (1usize..50, 1usize..50),
    ) {
        let mut input = Vec::new();
        for (data, extension) in &chunks {
            input.extend(format!("{:X}{extension}\r\n", data.len()).into_bytes());
            input.extend(data);
            input.extend(b"\r\n");
        }
        input.extend(format!("000\r\n{trailers}\r\n").into_bytes());
        let len = input.len();
        input.extend(b"GET / HTTP/1.1");
        let expected: Vec<u8> = chunks.into_iter().flat_map(|(data, _)| data).collect();
        let (body, consumed, decoder) = decode(Framing::Chunked, &input, step, data_max);
        prop_assert_eq!((body, consumed, decoder), (expected, len, Decoder::Done));
    }

    #[test]
    fn a_known_length_is_kept(
        input in prop::collection::vec(any::<u8>(), 0..99),
        (len, step) in (0usize..99, 1usize..9),
    ) {
        let (body, consumed, decoder) = decode(Framing::Length(len as u64), &input, step, 7);
        prop_assert_eq!(&body, &input[..len.min(input.len())]);
        prop_assert_eq!(consumed, body.len());
        prop_assert_eq!(decoder.is_done(), input.len() >= len);
    }

    #[test]
    fn no_bytes_upset_the_parsers(input in prop::collection::vec(any::<u8>(), 0..300), text in "[ -~\r\n]{0,300}") {
        for bytes in [&input, text.as_bytes()] {
            let _ = parse(bytes);
            let (cut, whole) = (decode(Framing::Chunked, bytes, 3, 5), decode(Framing::Chunked, bytes, 300, 5));
            prop_assert_eq!((cut.0, cut.2), (whole.0, whole.2), "however it is cut");
        }
    }
}

#[test]
fn a_broken_decoder_stays_broken() {
    let mut decoder = Decoder::new(Framing::Chunked);
    assert!(decoder.decode(b"g\r\n", 9).is_err());
    let text: String = format!("{:?}", decoder.decode(b"1\r\na\r\n0\r\n\r\n", 9).unwrap_err());
    assert!(text.contains("before"), "{text}");
    assert_eq!(decoder, Decoder::Broken);
}
