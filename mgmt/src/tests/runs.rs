//! Streams of runs: what is asked for, how they end, and how they break off.

use crate::error::Code;
use crate::testing::{Response, Rig, TOKEN};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use platform::time::Duration;
use thinp::control::Errno;

fn rig() -> Rig {
    let rig = Rig::new();
    for name in ["v1", "v2"] {
        rig.json("POST", "/v1/volumes", &format!(r#"{{"name":"{name}","size_bytes":512}}"#));
    }
    rig
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n")
}

#[test]
fn a_query_says_what_is_wanted() {
    let rig = rig();
    let delta = |query: &str| rig.json("GET", &format!("/v1/volumes/v1/delta?{query}"), "");
    let plain = delta("to=v2");
    assert_eq!((plain.status, plain.header("content-type")), (200, Some("application/x-ndjson")));
    let told = |format: &str, same: bool, snapshot: bool, from: u64| {
        format!(
            "DeltaRequest {{ left: VolumeName(\"v1\"), right: VolumeName(\"v2\"), format: {format}, same: {same}, \
             metadata_snapshot: {snapshot}, from_block: {from} }}\n"
        )
    };
    assert_eq!(plain.text(), told("Json", true, false, 0));
    let all = delta("same=no&from=18446744073709551615&format=xml-verbose&to=v2&metadata_snapshot=yes");
    assert_eq!(all.header("content-type"), Some("application/xml"));
    assert_eq!(all.text(), told("XmlVerbose", false, true, u64::MAX));
    assert_eq!(delta("to=v2&format=xml").text(), told("Xml", true, false, 0));

    let mappings = rig.json("GET", "/v1/volumes/v2/mappings?format=xml&from=7", "");
    let told = "MappingsRequest { volume: VolumeName(\"v2\"), format: Xml, metadata_snapshot: false, from_block: 7 }\n";
    assert_eq!((mappings.status, mappings.text()), (200, told));
    assert_eq!(rig.json("GET", "/v1/volumes/v2/mappings", "").header("content-type"), Some("application/x-ndjson"));
    // They would be made to their end, for nobody.
    assert_eq!(rig.json("HEAD", "/v1/volumes/v2/mappings", "").status, 400);
    assert_eq!(rig.json("HEAD", "/v1/volumes/v1/delta?to=v2", "").status, 400);
}

#[test]
fn a_wrong_query_is_refused() {
    let rig = rig();
    for path in [
        "v1/delta",
        "v1/delta?to=",
        "v1/delta?to=V2",
        "v1/delta?to=v2&to=v1",
        "v1/delta?to=v2&colour=red",
        "v1/delta?to=v2&format=csv",
        "v1/delta?to=v2&same=maybe",
        "v1/delta?to=v2&from=-1",
        "v1/delta?to=v2&from=+1",
        "v1/delta?to=v2&from=18446744073709551616",
        "v1/mappings?format=xml-verbose",
        "v1/mappings?to=v2",
    ] {
        rig.json("GET", &format!("/v1/volumes/{path}"), "").assert_error(Code::Errno(Errno::EINVAL));
    }
    for path in ["v1/delta?to=v3", "v3/delta?to=v1", "v3/mappings"] {
        rig.json("GET", &format!("/v1/volumes/{path}"), "").assert_error(Code::Errno(Errno::ENODATA));
    }
}

#[test]
fn what_fails_before_its_first_piece_has_a_status() {
    let rig = rig();
    rig.control.pieces.set(0);
    assert_eq!(rig.json("GET", "/v1/volumes/v1/mappings", "").status, 200);
    rig.control.pieces_end_early.set(true);
    rig.json("GET", "/v1/volumes/v1/delta?to=v2", "").assert_error(Code::Errno(Errno::EBUSY));
}

#[test]
fn what_fails_later_is_broken_off_with_the_reason() {
    let rig = rig();
    rig.control.pieces.set(1000);
    rig.control.pieces_end_early.set(true);
    for (format, last) in [
        (
            "json",
            "{\"errno\":-16,\"error\":\"EBUSY\",\"message\":\"the view -- was ended\",\"hint\":\"ask again\"}\n\r\n",
        ),
        ("xml", "<!-- incomplete: the view - - was ended (EBUSY); ask again -->\n\r\n"),
    ] {
        let answer = rig.talk(get(&format!("/v1/volumes/v1/mappings?format={format}")).as_bytes());
        let text = String::from_utf8(answer).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.contains("chunked"));
        assert_eq!(text.matches("MappingsRequest").count(), 1000);
        // And no last chunk behind it.
        assert!(text.ends_with(last), "{}", &text[text.len() - 200..]);
    }
}

#[test]
fn who_takes_nothing_is_dropped() {
    let rig = rig();
    rig.control.pieces.set(100_000);
    let (client, timers) = (rig.connect(), rig.timers().clone());
    let answer: Vec<u8> = rig.run(async move {
        client.send(get("/v1/volumes/v1/delta?to=v2").as_bytes()).await.unwrap();
        timers.sleep(Duration::from_secs(31)).await;
        client.read_to_end().await
    });
    assert!(answer.starts_with(b"HTTP/1.1 200 OK") && !answer.ends_with(b"0\r\n\r\n"), "it was broken off");
    assert!(answer.len() < 1 << 20, "{} bytes", answer.len());
    assert_eq!(rig.api.counters.connections.get(), 0);
}

#[test]
fn a_stream_is_complete_or_ends_its_connection() {
    let rig = rig();
    rig.control.pieces.set(300);
    let two = get("/v1/volumes/v1/mappings") + &get("/v1/volumes/v1/delta?to=v2");
    let answers = rig.talk(two.as_bytes());
    let (first, rest) = Response::parse(&answers, false);
    let (second, rest) = Response::parse(rest, false);
    assert_eq!((first.text().lines().count(), second.text().lines().count(), rest.len()), (300, 300, 0));
}
