//! What is managed over HTTP, and what of it is seen over iSCSI and after a restart.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::http::Client;

use crate::appliance::{Appliance, IQN, METADATA_TARGET, Site};
use crate::context::Context;
use crate::iscsi::{Error, INITIATOR, Session};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    Test::new("api::nothing_is_open_without_the_token", nothing_is_open_without_the_token),
    Test::new("api::a_token_made_at_the_first_boot", a_token_made_at_the_first_boot),
    Test::new("api::volumes_and_snapshots", volumes_and_snapshots),
    Test::new("api::an_export_is_for_whom_it_names", an_export_is_for_whom_it_names),
    Test::new("api::pool_messages", pool_messages),
    Test::new("api::everything_is_there_after_a_restart", everything_is_there_after_a_restart),
];

const META_BYTES: u64 = 8 << 20;
const DATA_BYTES: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// Initiator errors of a login (RFC 7143, 11.13.5): status class 2.
const FORBIDDEN: u8 = 2;
const NOT_FOUND: u8 = 3;

fn expect(appliance: &Appliance, method: &str, path: &str, body: Value, status: u16) -> Result<Value> {
    let answer = appliance.answer(method, path, &body)?;
    ensure!(
        answer.status == status,
        "{method} {path} {body}: {} instead of {status}: {}",
        answer.status,
        answer.text()
    );
    if status >= 400 {
        let error = answer.json()?;
        for field in ["error", "message", "hint"] {
            let text = error[field].as_str().unwrap_or_default();
            ensure!(!text.is_empty(), "{method} {path}: no {field} in {error}");
        }
        return Ok(error);
    }
    if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
}

fn nothing_is_open_without_the_token(context: &Context) -> Result<()> {
    let appliance = Site::new(context, META_BYTES, DATA_BYTES)?.start()?;
    let health = Client { token: None, ..appliance.http.clone() }.send("GET", "/healthz")?;
    ensure!(health.status == 200 && health.json()?["status"] == "ok", "{} {}", health.status, health.text());
    for token in [None, Some(String::new()), Some("e2e".into()), Some(format!("{}x", crate::appliance::TOKEN))] {
        let stranger = Client { token: token.clone(), ..appliance.http.clone() };
        for (method, path) in [
            ("GET", "/v1/pool"),
            ("GET", "/v1/volumes"),
            ("POST", "/v1/volumes"),
            ("POST", "/v1/pool/message"),
            ("POST", "/v1/power-off"),
            ("GET", "/metrics"),
            ("GET", "/nothing/here"),
        ] {
            let answer = stranger.send(method, path)?;
            ensure!(answer.status == 401, "{method} {path} with token {token:?}: {}", answer.status);
            ensure!(answer.field("www-authenticate").is_some(), "{method} {path}: no WWW-Authenticate");
        }
    }
    expect(&appliance, "GET", "/nothing/here", Value::Null, 404)?;
    let wrong = appliance.answer("DELETE", "/v1/volumes", &Value::Null)?;
    ensure!(wrong.status == 405, "DELETE /v1/volumes: {}", wrong.status);
    let allow = wrong.field("allow").context("no Allow")?;
    ensure!(allow.contains("GET") && allow.contains("POST"), "Allow: {allow}");
    appliance.power_off()
}

fn a_token_made_at_the_first_boot(context: &Context) -> Result<()> {
    let mut site = Site::new(context, META_BYTES, DATA_BYTES)?;
    site.token = None;
    let appliance = site.start()?;
    let token = appliance.token_made().context("no token on the console")?;
    ensure!(token.starts_with("gsm-") && token.len() >= 24, "the token {token} is too easy");
    let with = |appliance: &Appliance, token: &str| Client { token: Some(token.to_owned()), ..appliance.http.clone() };
    ensure!(with(&appliance, &token).send("GET", "/v1/pool")?.status == 200, "the token does not open");
    ensure!(with(&appliance, "gsm-0").send("GET", "/v1/pool")?.status == 401, "another token opens");
    let mut first = appliance;
    first.http.token = Some(token.clone());
    first.power_off()?;

    for file in [&site.meta, &site.data] {
        let bytes = std::fs::read(file)?;
        let found = bytes.windows(token.len()).any(|window| window == token.as_bytes());
        ensure!(!found, "the token stands in the clear on {}", file.display());
    }
    let mut second = site.start()?;
    ensure!(second.token_made().is_none(), "another token was made at the second boot");
    ensure!(!second.console().contains(&token), "the token is printed again");
    second.http.token = Some(token);
    second.call("GET", "/v1/pool", &Value::Null)?;
    second.power_off()
}

fn volumes_and_snapshots(context: &Context) -> Result<()> {
    let site = Site::new(context, META_BYTES, DATA_BYTES)?;
    let appliance = site.start()?;
    let made = expect(&appliance, "POST", "/v1/volumes", json!({"name": "v1", "size_bytes": 64 * MIB}), 201)?;
    ensure!(made["name"] == "v1" && made["size_bytes"] == 64 * MIB && made["export"].is_null(), "{made}");
    expect(&appliance, "POST", "/v1/volumes", json!({"name": "v1", "size_bytes": MIB}), 409)?;
    for name in ["", "-a", "A", "a b", "a/b", "../x", &"n".repeat(64)] {
        expect(&appliance, "POST", "/v1/volumes", json!({"name": name, "size_bytes": MIB}), 400)?;
    }
    for size in [json!(0), json!(-1), json!(513), json!("1G"), json!(u64::MAX)] {
        expect(&appliance, "POST", "/v1/volumes", json!({"name": "bad", "size_bytes": size}), 400)?;
    }
    expect(&appliance, "GET", "/v1/volumes/none", Value::Null, 404)?;
    expect(&appliance, "DELETE", "/v1/volumes/none", Value::Null, 404)?;
    expect(&appliance, "POST", "/v1/volumes/none/snapshots", json!({"name": "s"}), 404)?;

    appliance.export("v1")?;
    let mut session = appliance.login("v1")?;
    ensure!(session.capacity_blocks()? == 64 * MIB / 512, "the capacity is not the size");
    session.write(0, &[1; 4096], false)?;
    expect(&appliance, "POST", "/v1/volumes/v1/snapshots", json!({"name": "s1"}), 201)?;
    expect(&appliance, "POST", "/v1/volumes/v1/snapshots", json!({"name": "s1"}), 409)?;
    session.write(0, &[2; 4096], false)?;
    let snapshot = expect(&appliance, "GET", "/v1/volumes/s1", Value::Null, 200)?;
    ensure!(snapshot["snapshot_of"] == "v1" && snapshot["size_bytes"] == 64 * MIB, "{snapshot}");
    ensure!(snapshot["mapped_bytes"] == 64 << 10 && snapshot["in_use"] == false, "{snapshot}");
    appliance.export("s1")?;
    let mut then = appliance.login("s1")?;
    ensure!(then.read(0, 8)? == [1; 4096], "the snapshot does not hold what was there when it was taken");
    ensure!(session.read(0, 8)? == [2; 4096], "the volume does not hold what was written last");
    then.write(8, &[3; 4096], false)?;
    ensure!(session.read(8, 8)? == [0; 4096], "a write to the snapshot is seen in the volume");

    let busy = expect(&appliance, "DELETE", "/v1/volumes/v1", Value::Null, 409)?;
    ensure!(busy["error"] == "EBUSY", "{busy}");
    ensure!(expect(&appliance, "GET", "/v1/volumes/v1", Value::Null, 200)?["in_use"] == true, "not in use");
    session.unmap(0, 128)?;
    ensure!(session.read(0, 128)? == vec![0; 64 << 10], "unmapped space does not read as zero");
    ensure!(then.read(0, 8)? == [1; 4096], "unmapping the volume reached into the snapshot");
    session.logout()?;
    then.logout()?;
    expect(&appliance, "PATCH", "/v1/volumes/v1", json!({"size_bytes": 96 * MIB}), 200)?;
    ensure!(appliance.login("v1")?.capacity_blocks()? == 96 * MIB / 512, "the new size is not seen");
    delete_when_free(&appliance, "v1")?;
    ensure!(appliance.volumes()? == ["s1"], "{:?}", appliance.volumes()?);
    let orphan = expect(&appliance, "GET", "/v1/volumes/s1", Value::Null, 200)?;
    ensure!(orphan["snapshot_of"].is_null(), "it is a snapshot of what is gone: {orphan}");
    let mut then = appliance.login("s1")?;
    ensure!(then.read(0, 8)? == [1; 4096], "deleting the volume reached into the snapshot");
    then.logout()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

/// A connection that was dropped without a logout is noticed a little later.
fn delete_when_free(appliance: &Appliance, name: &str) -> Result<()> {
    for _ in 0..100 {
        let answer = appliance.answer("DELETE", &format!("/v1/volumes/{name}"), &Value::Null)?;
        match answer.status {
            204 => return Ok(()),
            409 => std::thread::sleep(std::time::Duration::from_millis(50)),
            status => bail!("DELETE {name}: {status} {}", answer.text()),
        }
    }
    bail!("{name} stays in use after its last connection was closed")
}

fn an_export_is_for_whom_it_names(context: &Context) -> Result<()> {
    let appliance = Site::new(context, META_BYTES, DATA_BYTES)?.start()?;
    let portal = appliance.portal()?;
    let target = |name: &str| format!("{IQN}:{name}");
    let refused =
        |initiator: &str, name: &str, expected: u8| match Session::login_as(portal, initiator, Some(&target(name))) {
            Err(Error::Login { class: 2, detail }) if detail == expected => Ok(()),
            Err(error) => bail!("{initiator} at {name}: {error} instead of 02{expected:02x}"),
            Ok(_) => bail!("{initiator} may use {name}"),
        };
    for name in ["mine", "yours", "nobodys"] {
        appliance.call("POST", "/v1/volumes", &json!({"name": name, "size_bytes": MIB}))?;
    }
    let other = "iqn.2026-11.io.gossamer:other";
    appliance.call("PUT", "/v1/volumes/mine/export", &json!({"initiators": [INITIATOR]}))?;
    appliance.call("PUT", "/v1/volumes/yours/export", &json!({"initiators": [other]}))?;
    expect(&appliance, "PUT", "/v1/volumes/mine/export", json!({"initiators": "everyone"}), 400)?;
    expect(&appliance, "PUT", "/v1/volumes/mine/export", json!({}), 400)?;

    appliance.login("mine")?.logout()?;
    refused(INITIATOR, "yours", FORBIDDEN)?;
    refused(other, "mine", FORBIDDEN)?;
    refused(INITIATOR, "nothing", NOT_FOUND)?;
    // What is not exported is not there, nor is the metadata.
    for name in ["nobodys", "pool:metadata"] {
        ensure!(Session::login_as(portal, INITIATOR, Some(&target(name))).is_err(), "{name} is open");
    }
    let seen = |initiator: &str| -> Result<Vec<String>> {
        let mut session = Session::login_as(portal, initiator, None)?;
        let targets = session.send_targets()?;
        session.logout()?;
        Ok(targets)
    };
    ensure!(seen(INITIATOR)? == [target("mine")], "{INITIATOR} sees {:?}", seen(INITIATOR)?);
    ensure!(seen(other)? == [target("yours")], "{other} sees {:?}", seen(other)?);
    ensure!(seen("iqn.2026-11.io.gossamer:third")?.is_empty(), "a third sees something");

    // Ending an export ends its sessions.
    let mut session = appliance.login("mine")?;
    appliance.call("DELETE", "/v1/volumes/mine/export", &Value::Null)?;
    ensure!(session.read(0, 1).is_err(), "a session goes on after the export's end");
    ensure!(appliance.login("mine").is_err(), "a login after the export's end");

    appliance.call("PUT", "/v1/pool/metadata-export", &json!({"initiators": [INITIATOR]}))?;
    let mut metadata = Session::login(portal, METADATA_TARGET)?;
    ensure!(metadata.capacity_blocks()? == META_BYTES / 512, "the metadata export has another size than its disk");
    match metadata.write(0, &[0; 4096], false) {
        Err(Error::Check(sense)) if sense.key == 7 => {}
        other => bail!("writing to the metadata export: {other:?}"),
    }
    ensure!(metadata.read(0, 8)?[32..36] == [0xba, 0x52, 0x9c, 0x01], "no superblock in the metadata export");
    metadata.logout()?;
    appliance.power_off()
}

fn pool_messages(context: &Context) -> Result<()> {
    let site = Site::new(context, META_BYTES, DATA_BYTES)?;
    let appliance = site.start()?;
    for (message, errno) in [
        ("create_thin 7", 0),
        ("create_thin 7", -17),
        ("create_thin 16777216", -22),
        ("create_thin", -22),
        ("create_thin seven", -22),
        ("create_snap 8 7", 0),
        ("create_snap 9 4711", -61),
        ("delete 4711", -61),
        ("delete 8", 0),
        ("set_transaction_id 5 6", -22),
        ("set_transaction_id 0 6", 0),
        ("reserve_metadata_snap", 0),
        ("reserve_metadata_snap", -16),
        ("release_metadata_snap", 0),
        ("release_metadata_snap", -22),
        ("dance", -22),
    ] {
        let (found, _) = appliance.message(message)?;
        ensure!(found == errno, "`{message}`: errno {found} instead of {errno}");
    }
    ensure!(appliance.volumes()? == ["thin-7"], "{:?}", appliance.volumes()?);
    let pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
    let line = pool["status_line"].as_str().context("no status line")?;
    ensure!(pool["transaction_id"] == 6 && line.starts_with("6 "), "{pool}");
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words[3..5] == ["-", "rw"] && words[7] == "-", "the status line is `{line}`");

    // The device that keeps the records is not for messages.
    let reserved = 0xff_ffff;
    for message in [format!("delete {reserved}"), format!("create_snap 9 {reserved}")] {
        let (found, _) = appliance.message(&message)?;
        ensure!(found == -16, "`{message}`: errno {found} instead of -EBUSY");
    }
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

fn everything_is_there_after_a_restart(context: &Context) -> Result<()> {
    let site = Site::new(context, META_BYTES, DATA_BYTES)?;
    let appliance = site.start()?;
    appliance.make_volume("a", 8 * MIB)?;
    appliance.call("POST", "/v1/volumes", &json!({"name": "b", "size_bytes": 16 * MIB}))?;
    appliance.call("PUT", "/v1/volumes/b/export", &json!({"initiators": [INITIATOR]}))?;
    appliance.make_snapshot("a-then", "a")?;
    appliance.call("PUT", "/v1/pool/metadata-export", &json!({"initiators": [INITIATOR]}))?;
    let mut session = appliance.login("b")?;
    session.write(100, &[0xcd; 512], false)?;
    let serial = session.inquiry(Some(0x80))?;
    session.logout()?;
    let list = |appliance: &Appliance| appliance.call("GET", "/v1/volumes", &Value::Null);
    let before = (list(&appliance)?, appliance.call("GET", "/v1/pool/metadata-export", &Value::Null)?);
    appliance.power_off()?;

    let appliance = site.start()?;
    let after = (list(&appliance)?, appliance.call("GET", "/v1/pool/metadata-export", &Value::Null)?);
    ensure!(before == after, "before the restart:\n{before:?}\nafter it:\n{after:?}");
    let mut session = appliance.login("b")?;
    ensure!(session.read(100, 1)? == [0xcd; 512], "the volume does not hold what was written");
    ensure!(session.inquiry(Some(0x80))? == serial, "the serial number changed");
    session.logout()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}
