//! Every endpoint, by what it answers and what it did.

use crate::control::HealthState;
use crate::error::{Code, ControlError};
use crate::http::Limits;
use crate::names::VolumeName;
use crate::testing::{Response, Rig};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use platform::time::Duration;
use serde_json::{Value, json};
use thinp::control::{DiskBlocks, Errno, Mode};

fn expect(response: Response, status: u16, value: Value) {
    assert_eq!((response.status, response.value()), (status, value));
}

fn expect_empty(response: Response) {
    assert_eq!((response.status, response.body.len(), response.header("content-length")), (204, 0, None));
}

fn volume(name: &str, id: u32) -> Value {
    json!({
        "name": name, "id": id, "size_bytes": 1u64 << 30, "mapped_bytes": 0, "snapshot_of": null, "read_only": false,
        "intact": null, "identity": format!("identity{id}"), "contents": null, "block_bytes": 512,
        "physical_block_bytes": 512, "serial": format!("serial{id}"), "export": null, "target": null, "in_use": false
    })
}

#[test]
fn health_needs_no_token_and_says_why() {
    let rig = Rig::new();
    let ask = |rig: &Rig| {
        let bytes = rig.talk(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        Response::parse(&bytes, false).0
    };
    expect(ask(&rig), 200, json!({"status": "ok", "reason": null}));
    rig.control.health.borrow_mut().state = HealthState::Unavailable;
    rig.control.health.borrow_mut().reason = Some("metadata disk, block 0: bad checksum".to_string());
    expect(ask(&rig), 200, json!({"status": "unavailable", "reason": "metadata disk, block 0: bad checksum"}));
}

#[test]
fn the_pool_shows_itself() {
    let rig = Rig::new();
    let expected = json!({
        "state": "ok", "reason": null,
        "status_line": "3 21/1024 40/16384 - rw discard_passdown queue_if_no_space - 256 ",
        "adopted": false, "mode": "write", "needs_check": false, "transaction_id": 3,
        "metadata_used_blocks": 21, "metadata_total_blocks": 1024, "metadata_low_water_blocks": 256,
        "data_used_blocks": 40, "data_total_blocks": 16384, "data_block_sectors": 128,
        "metadata_disk_blocks": 1024, "data_disk_blocks": 16384, "held_root": null,
        "discard": "passdown", "error_if_no_space": false, "events": 7
    });
    expect(rig.json("GET", "/v1/pool", ""), 200, expected);
    for (mode, word) in [
        (Mode::OutOfDataSpace, "out_of_data_space"),
        (Mode::OutOfMetadataSpace, "out_of_metadata_space"),
        (Mode::ReadOnly, "read_only"),
        (Mode::Fail, "fail"),
    ] {
        rig.control.pool.borrow_mut().as_mut().unwrap().status.mode = mode;
        assert_eq!(rig.json("GET", "/v1/pool", "").value()["mode"], word);
    }
}

#[test]
fn without_a_pool_the_reason_is_told() {
    let rig = Rig::new();
    let error = ControlError::new(Code::NoPool, "data disk: 4 blocks, the pool says 9", "attach the right disk");
    *rig.control.pool.borrow_mut() = Err(error);
    let response = rig.json("GET", "/v1/pool", "");
    let expected = json!({
        "error": "no-pool", "message": "data disk: 4 blocks, the pool says 9", "hint": "attach the right disk"
    });
    expect(response, 503, expected);
}

#[test]
fn a_pool_is_adopted() {
    let rig = Rig::new();
    let response = rig.json("POST", "/v1/pool/adopt", "");
    assert_eq!((response.status, &response.value()["adopted"]), (200, &json!(true)));
}

#[test]
fn a_pool_grows_to_its_disks() {
    let rig = Rig::new();
    rig.control.pool.borrow_mut().as_mut().unwrap().disk_blocks = DiskBlocks { metadata: 2048, data: 32768 };
    let before = rig.json("GET", "/v1/pool", "").value();
    assert_eq!((&before["data_disk_blocks"], &before["data_total_blocks"]), (&json!(32768), &json!(16384)));
    let after = rig.json("POST", "/v1/pool/grow", "");
    let totals = (&after.value()["metadata_total_blocks"], &after.value()["data_total_blocks"]);
    assert_eq!((after.status, totals), (200, (&json!(2048), &json!(32768))));
}

#[test]
fn an_event_is_waited_for() {
    let rig = Rig::new();
    let wait = |after: u64| rig.json("POST", "/v1/pool/wait", &json!({"after": after}).to_string());
    assert_eq!((wait(6).value()["events"].clone(), rig.elapsed()), (json!(7), Duration::ZERO));
    let (control, timers) = (rig.control.clone(), rig.timers().clone());
    rig.spawn(async move {
        timers.sleep(Duration::from_secs(3)).await;
        control.raise_event();
    });
    assert_eq!((wait(7).value()["events"].clone(), rig.elapsed()), (json!(8), Duration::from_secs(3)));
    // Nothing happens: the answer comes nevertheless, and tells so.
    let longest = Limits::default().event_timeout;
    assert_eq!((wait(8).value()["events"].clone(), rig.elapsed()), (json!(8), Duration::from_secs(3) + longest));
    rig.json("POST", "/v1/pool/wait", "{}").assert_error(Code::Errno(Errno::EINVAL));
}

#[test]
fn a_wait_ends_with_the_interface() {
    let rig = Rig::new();
    let (api, timers) = (rig.api.clone(), rig.timers().clone());
    rig.spawn(async move {
        timers.sleep(Duration::from_secs(1)).await;
        api.shutdown().await;
    });
    assert_eq!(rig.json("POST", "/v1/pool/wait", r#"{"after":7}"#).status, 200);
    assert_eq!(rig.elapsed(), Duration::from_secs(1));
}

#[test]
fn the_metadata_is_checked() {
    let rig = Rig::new();
    let running = json!({"seconds": 0, "blocks_read": 0, "blocks_in_use": 21});
    expect(rig.json("POST", "/v1/pool/check", ""), 202, json!({"running": running, "last": null}));
    let report = json!({
        "clean": false, "damage": 1, "leaks": 0, "hints": 0, "untold": 0, "devices": 2, "mappings": 40,
        "problems": ["btree node 9 has too few entries"]
    });
    let last = json!({"seconds_ago": 60, "took_seconds": 2, "transaction_id": 3, "report": report, "error": null});
    expect(rig.json("GET", "/v1/pool/check", ""), 200, json!({"running": null, "last": last}));
    let view = json!({
        "holder": "check", "seconds": 12, "state": "ending", "ending_seconds": 3, "held_back_blocks": 5
    });
    let views = json!({"views": [view], "views_max": 16, "held_back_blocks": 5});
    expect(rig.json("GET", "/v1/pool/views", ""), 200, views);
    let metrics = rig.json("GET", "/metrics", "").text().to_string();
    for line in ["gossamer_pool_views 1", "gossamer_pool_views_held_back_blocks 5", "gossamer_pool_check_problems 1"] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
    rig.control.pool.borrow_mut().as_mut().unwrap().status.needs_check = true;
    let cleared = rig.json("POST", "/v1/pool/clear-needs-check", "");
    assert_eq!((cleared.status, &cleared.value()["clean"]), (200, &json!(true)));
    assert_eq!(rig.json("GET", "/v1/pool", "").value()["needs_check"], json!(false));
}

#[test]
fn space_is_told_for_each_volume_and_for_several_together() {
    let rig = Rig::new();
    for name in ["v1", "v2"] {
        rig.json("POST", "/v1/volumes", &format!(r#"{{"name":"{name}","size_bytes":1073741824}}"#));
    }
    let space = |name, id| json!({"name": name, "id": id, "mapped_bytes": 196608, "exclusive_bytes": 65536, "shared_bytes": 131072});
    expect(rig.json("GET", "/v1/pool/space", ""), 200, json!({"volumes": [space("v1", 0), space("v2", 1)]}));
    expect(rig.json("POST", "/v1/pool/space", r#"{"volumes":["v1","v2"]}"#), 200, json!({"freed_bytes": 131072}));
    rig.json("POST", "/v1/pool/space", r#"{"volumes":["v3"]}"#).assert_error(Code::Errno(Errno::ENODATA));
    rig.json("POST", "/v1/pool/space", r#"{"volume":"v1"}"#).assert_error(Code::Errno(Errno::EINVAL));
}

#[test]
fn metadata_is_repaired_as_asked_for() {
    let rig = Rig::new();
    let asked = r#"{"data_block_sectors":128,"force":true}"#;
    let wanted = "Repair { force: true, last_commit: false, transaction_id: None, data_block_sectors: Some(128), \
                  data_blocks: None }";
    let report = json!({
        "devices": 2, "mappings": 40, "mappings_lost": 3, "damaged_devices": 1, "report": [wanted],
        "next": "swap the disks"
    });
    expect(rig.json("POST", "/v1/pool/repair", asked), 200, report);
    assert_eq!(rig.json("POST", "/v1/pool/repair", "{}").status, 200);
    rig.json("POST", "/v1/pool/repair", r#"{"blocks":1}"#).assert_error(Code::Errno(Errno::EINVAL));
}

#[test]
fn messages_pass_word_for_word() {
    let rig = Rig::new();
    let response = rig.ask("POST", "/v1/pool/message", "text/plain; charset=utf-8", "create_thin 7\n");
    expect(response, 200, json!({"errno": 0, "answer": ""}));
    assert_eq!(*rig.control.messages.borrow(), ["create_thin 7"]);
    *rig.control.fails.borrow_mut() = Some(ControlError::new(Errno::EEXIST, "device 7 exists", "take another id"));
    let expected = json!({"errno": -17, "error": "EEXIST", "message": "device 7 exists", "hint": "take another id"});
    expect(rig.ask("POST", "/v1/pool/message", "text/plain", "create_thin 7"), 409, expected);
    for bad in ["", " \n", "create_thin 7\ndelete 7", "delete\x007"] {
        rig.ask("POST", "/v1/pool/message", "text/plain", bad).assert_error(Code::Errno(Errno::EINVAL));
    }
    assert_eq!(rig.control.messages.borrow().len(), 1, "no bad message reached the pool");
}

#[test]
fn a_metadata_snapshot_comes_and_goes() {
    let (rig, path) = (Rig::new(), "/v1/pool/metadata-snapshot");
    expect(rig.json("GET", path, ""), 200, json!({"root": null}));
    expect(rig.json("POST", path, ""), 201, json!({"root": 17}));
    expect(rig.json("GET", path, ""), 200, json!({"root": 17}));
    expect_empty(rig.json("DELETE", path, ""));
    expect(rig.json("GET", path, ""), 200, json!({"root": null}));
}

#[test]
fn the_metadata_is_exported_by_rule() {
    let (rig, path) = (Rig::new(), "/v1/pool/metadata-export");
    let nothing = json!({"export": null, "target": null});
    expect(rig.json("GET", path, ""), 200, nothing.clone());
    let rule = json!({"initiators": ["iqn.1993-08.org.debian:01:a"]});
    let exported = json!({"export": rule, "target": "iqn.2026-11.io.gossamer:pool:metadata"});
    expect(rig.json("PUT", path, &rule.to_string()), 200, exported.clone());
    expect(rig.json("GET", path, ""), 200, exported);
    expect_empty(rig.json("DELETE", path, ""));
    expect(rig.json("GET", path, ""), 200, nothing);
}

#[test]
fn discovery_is_authenticated_by_rule_and_secrets_are_not_shown() {
    let (rig, path) = (Rig::new(), "/v1/pool/discovery-auth");
    let nothing = json!({"authentication": null});
    expect(rig.json("GET", path, ""), 200, nothing.clone());
    let wanted = r#"{"chap":{"user":"a","secret":"twelve bytes"},"mutual":{"user":"b","secret":"thirteen byte"}}"#;
    let shown = json!({"authentication": {"chap": {"user": "a"}, "mutual": {"user": "b"}}});
    expect(rig.json("PUT", path, wanted), 200, shown.clone());
    expect(rig.json("GET", path, ""), 200, shown);
    assert!(rig.control.discovery_auth.borrow().as_ref().unwrap().chap.secret.reveal() == b"twelve bytes");
    rig.json("PUT", path, r#"{"chap":{"user":"a"}}"#).assert_error(Code::Errno(Errno::EINVAL));
    expect_empty(rig.json("DELETE", path, ""));
    expect(rig.json("GET", path, ""), 200, nothing);
}

#[test]
fn a_volume_lives_and_dies() {
    let rig = Rig::new();
    let new = r#"{"name":"v1","size_bytes":1073741824}"#;
    let response = rig.json("POST", "/v1/volumes", new);
    assert_eq!(response.header("location"), Some("/v1/volumes/v1"));
    expect(response, 201, volume("v1", 0));
    rig.json("POST", "/v1/volumes", new).assert_error(Code::Errno(Errno::EEXIST));
    expect(rig.json("GET", "/v1/volumes/v1", ""), 200, volume("v1", 0));
    rig.json("GET", "/v1/volumes/v2", "").assert_error(Code::Errno(Errno::ENODATA));

    let resized = rig.json("PATCH", "/v1/volumes/v1", r#"{"size_bytes":512}"#);
    assert_eq!((resized.status, &resized.value()["size_bytes"]), (200, &json!(512)));

    let snapshot = rig.json("POST", "/v1/volumes/v1/snapshots", r#"{"name":"s1"}"#);
    assert_eq!(snapshot.header("location"), Some("/v1/volumes/s1"));
    assert_eq!((snapshot.status, &snapshot.value()["snapshot_of"]), (201, &json!("v1")));

    let exported = rig.json("PUT", "/v1/volumes/v1/export", r#"{"initiators":"all"}"#);
    assert_eq!((exported.status, &exported.value()["export"]), (200, &json!({"initiators": "all"})));
    assert_eq!(exported.value()["target"], "iqn.2026-11.io.gossamer:v1");
    expect_empty(rig.json("DELETE", "/v1/volumes/v1/export", ""));
    assert_eq!(rig.json("GET", "/v1/volumes/v1", "").value()["export"], Value::Null);

    let name = VolumeName::parse("v1").unwrap();
    rig.control.volumes.borrow_mut().get_mut(&name).unwrap().in_use = true;
    rig.json("DELETE", "/v1/volumes/v1", "").assert_error(Code::Errno(Errno::EBUSY));
    rig.control.volumes.borrow_mut().get_mut(&name).unwrap().in_use = false;
    expect_empty(rig.json("DELETE", "/v1/volumes/v1", ""));
    assert!(!rig.control.volumes.borrow().contains_key(&name));
}

#[test]
fn snapshots_are_bases_and_ways_back() {
    let rig = Rig::new();
    for name in ["v1", "v2"] {
        rig.json("POST", "/v1/volumes", &format!(r#"{{"name":"{name}","size_bytes":1073741824}}"#));
    }
    let base = rig.json("POST", "/v1/volumes/v1/snapshots", r#"{"name":"s1","read_only":true}"#).value();
    assert_eq!(
        (&base["read_only"], &base["intact"], &base["contents"]),
        (&json!(true), &json!(true), &base["identity"])
    );
    let writable = rig.json("PATCH", "/v1/volumes/s1", r#"{"read_only":false}"#);
    assert_eq!((writable.status, &writable.value()["intact"]), (200, &Value::Null));
    for bad in ["{}", r#"{"read_only":1}"#, r#"{"read_only":true,"size_bytes":512}"#, r#"{"name":"v3"}"#] {
        rig.json("PATCH", "/v1/volumes/v1", bad).assert_error(Code::Errno(Errno::EINVAL));
    }
    let group = r#"{"snapshots":[{"volume":"v1","name":"a1"},{"volume":"v2","name":"a2"}],"read_only":true}"#;
    let taken = rig.json("POST", "/v1/snapshots", group);
    let names: Vec<Value> = taken.value()["volumes"].as_array().unwrap().iter().map(|v| v["name"].clone()).collect();
    assert_eq!((taken.status, names), (201, [json!("a1"), json!("a2")].into()));
    rig.json("POST", "/v1/snapshots", r#"{"snapshots":[{"volume":"v9","name":"a9"}]}"#)
        .assert_error(Code::Errno(Errno::ENODATA));
    rig.json("PATCH", "/v1/volumes/v1", r#"{"size_bytes":2147483648}"#);
    let path = "/v1/volumes/v1/roll-back";
    let back = rig.json("POST", path, r#"{"to":"a1"}"#);
    assert_eq!((back.status, &back.value()["size_bytes"]), (200, &json!(1u64 << 30)));
    rig.control.volumes.borrow_mut().get_mut(&VolumeName::parse("v1").unwrap()).unwrap().in_use = true;
    rig.json("POST", path, r#"{"to":"a1"}"#).assert_error(Code::Errno(Errno::EBUSY));
    assert_eq!(rig.json("POST", path, r#"{"to":"a1","force":true}"#).status, 200);
    rig.json("POST", path, r#"{"to":"a1","now":true}"#).assert_error(Code::Errno(Errno::EINVAL));
}

#[test]
fn policies_come_and_go() {
    let rig = Rig::new();
    let nothing = json!({"time": "20261129t100000z", "policies": []});
    expect(rig.json("GET", "/v1/policies", ""), 200, nothing.clone());
    let policy = json!({
        "name": "p", "volumes": ["v1"], "every_minutes": 15, "keep": 4, "hourly": 0, "daily": 7, "weekly": 0,
        "last": null, "next": null, "trouble": null, "snapshots": 0
    });
    let body = r#"{"volumes":["v1"],"every_minutes":15,"keep":4,"daily":7}"#;
    expect(rig.json("PUT", "/v1/policies/p", body), 200, policy.clone());
    expect(rig.json("GET", "/v1/policies", ""), 200, json!({"time": "20261129t100000z", "policies": [policy]}));
    for bad in ["{}", r#"{"volumes":["V"]}"#, r#"{"volumes":["v1"],"daily":-1}"#, r#"{"volumes":["v1"],"yearly":1}"#] {
        rig.json("PUT", "/v1/policies/p", bad).assert_error(Code::Errno(Errno::EINVAL));
    }
    expect_empty(rig.json("DELETE", "/v1/policies/p", ""));
    rig.json("DELETE", "/v1/policies/p", "").assert_error(Code::Errno(Errno::ENODATA));
    expect(rig.json("GET", "/v1/policies", ""), 200, nothing);
}

#[test]
fn bad_bodies_change_nothing() {
    let rig = Rig::new();
    let long_name = format!(r#"{{"name":"{}","size_bytes":512}}"#, "a".repeat(64));
    let deep = "[".repeat(10_000);
    for bad in [
        "",
        "{",
        "null",
        "[]",
        "\u{feff}{}",
        r#"{"name":"v1"}"#,
        r#"{"name":"v1","size_bytes":0}"#,
        r#"{"name":"v1","size_bytes":513}"#,
        r#"{"name":"v1","size_bytes":-512}"#,
        r#"{"name":"v1","size_bytes":512.0}"#,
        r#"{"name":"v1","size_bytes":"512"}"#,
        r#"{"name":"v1","size_bytes":9223372036854776320}"#,
        r#"{"name":"v1","size_bytes":99999999999999999999999}"#,
        r#"{"name":"V1","size_bytes":512}"#,
        r#"{"name":"pool:metadata","size_bytes":512}"#,
        r#"{"name":"v1","size_bytes":512,"size":1}"#,
        r#"{"name":"v1","name":"v2","size_bytes":512}"#,
        r#"{"name":"v1","size_bytes":512} x"#,
        &long_name,
        &deep,
    ] {
        rig.json("POST", "/v1/volumes", bad).assert_error(Code::Errno(Errno::EINVAL));
    }
    assert!(rig.control.volumes.borrow().is_empty());
    let says = rig.json("POST", "/v1/volumes", r#"{"name":"v1","size_bytes":513}"#);
    assert!(says.text().contains("513 bytes are no whole sectors; 1024 bytes are"), "{}", says.text());
    assert!(says.text().contains(r#"send {\"name\":\"v1\",\"size_bytes\":1073741824}"#), "{}", says.text());
}

/// More volumes than one page, and more bytes than one chunk.
fn many(rig: &Rig) -> Vec<String> {
    let names: Vec<String> = (0..600).map(|n| format!("v{n:03}")).collect();
    for name in &names {
        rig.json("POST", "/v1/volumes", &json!({"name": name, "size_bytes": 512}).to_string());
    }
    names
}

#[test]
fn a_list_of_any_length_is_streamed() {
    let rig = Rig::new();
    expect(rig.json("GET", "/v1/volumes", ""), 200, json!({"volumes": []}));
    let names = many(&rig);
    let response = rig.json("GET", "/v1/volumes", "");
    assert_eq!(response.header("transfer-encoding"), Some("chunked"));
    let value = response.value();
    let listed: Vec<&str> = value["volumes"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(listed, names);
}

#[test]
fn a_list_that_breaks_off_cannot_be_taken_for_whole() {
    let rig = Rig::new();
    many(&rig);
    rig.control.page_fails.set(Some(0));
    rig.json("GET", "/v1/volumes", "").assert_error(Code::Errno(Errno::EIO));
    rig.control.page_fails.set(Some(2));
    let token = crate::testing::TOKEN;
    let request = format!("GET /v1/volumes HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
    let bytes = rig.talk(request.as_bytes());
    assert!(bytes.starts_with(b"HTTP/1.1 200 OK\r\n") && !bytes.ends_with(b"0\r\n\r\n"));
}

#[test]
fn metrics_are_in_prometheus_text_format() {
    let rig = Rig::new();
    rig.json("POST", "/v1/volumes", r#"{"name":"v1","size_bytes":1073741824}"#);
    rig.json("GET", "/nowhere", "");
    let response = rig.json("GET", "/metrics", "");
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = response.text();
    for line in [
        "gossamer_pool_available 1",
        "gossamer_sessions 2",
        "gossamer_http_connections 1",
        "gossamer_http_answers_total{status=\"2xx\"} 1",
        "gossamer_http_answers_total{status=\"4xx\"} 1",
        "gossamer_pool_data_block_bytes 65536",
        "gossamer_pool_data_used_blocks 40",
        "gossamer_pool_data_disk_blocks 16384",
        "gossamer_pool_metadata_disk_blocks 1024",
        "gossamer_pool_metadata_low_water_blocks 256",
        "gossamer_pool_events_total 7",
        "gossamer_pool_mode{mode=\"write\"} 1",
        "gossamer_pool_mode{mode=\"fail\"} 0",
        "gossamer_pool_needs_check 0",
        "gossamer_volume_mapped_bytes{volume=\"v1\"} 0",
        "gossamer_volume_size_bytes{volume=\"v1\"} 1073741824",
        "gossamer_volume_in_use{volume=\"v1\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert_families(text);
    *rig.control.pool.borrow_mut() = Err(ControlError::new(Code::NoPool, "no disk", "attach one"));
    let text = rig.json("GET", "/metrics", "").text().to_string();
    assert!(text.contains("\ngossamer_pool_available 0\n") && !text.contains("gossamer_pool_data"), "{text}");
}

/// Each metric is declared once, before its samples, which stand together.
fn assert_families(text: &str) {
    let mut declared: Vec<&str> = Vec::new();
    for line in text.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            let name = declaration.split(' ').next().unwrap();
            assert!(!declared.contains(&name), "{name} is declared twice");
            declared.push(name);
        } else if !line.starts_with('#') {
            let name = line.split([' ', '{']).next().unwrap();
            assert_eq!(declared.last(), Some(&name), "{line}");
        }
    }
}

#[test]
fn power_off_is_answered_first() {
    let rig = Rig::new();
    let response = rig.json("POST", "/v1/power-off", "");
    assert_eq!(response.header("connection"), Some("close"));
    expect(response, 202, json!({"status": "powering off"}));
    assert!(rig.control.powered_off.get());
}

#[test]
fn head_answers_as_get_without_the_body() {
    let rig = Rig::new();
    rig.json("POST", "/v1/volumes", r#"{"name":"v1","size_bytes":512}"#);
    for path in ["/healthz", "/v1/pool", "/v1/volumes", "/v1/volumes/v1", "/v1/volumes/v2", "/metrics"] {
        let (get, head) = (rig.json("GET", path, ""), rig.json("HEAD", path, ""));
        assert_eq!((get.status, &get.headers), (head.status, &head.headers), "{path}");
        assert!(head.body.is_empty() && !get.body.is_empty());
    }
}
