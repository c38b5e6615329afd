//! The commands that ask the appliance one thing.

use crate::api::{Api, STREAM, json, segment};
use crate::args::{DeltaFormat, Policy, Pool, Snapshot, Volume};
use crate::failure::{Failure, Result};
use crate::show;
use serde_json::{Value, json};
use std::io::{self, Read, Write};

/// What a body is copied through.
const BUFFER_BYTES: usize = 256 << 10;

/// `gossamer pool`; false when the pool says no to a message, which was told.
pub fn pool(api: &Api, command: &Pool, json: bool) -> Result<bool> {
    let call = |method, path: &str, body: Option<Value>| {
        let answer = api.call(method, &format!("/v1/pool{path}"), body.as_ref())?;
        show::value(&answer, json).map(|()| true)
    };
    match command {
        Pool::Show => call("GET", "", None),
        Pool::Status => status(api).map(|()| true),
        Pool::Message { text } => message(api, &text.join(" "), json),
        Pool::Adopt => call("POST", "/adopt", None),
        Pool::Grow => call("POST", "/grow", None),
        Pool::Wait { after } => call("POST", "/wait", Some(json!({"after": after}))),
        Pool::Check => call("POST", "/check", None),
        Pool::CheckStatus => call("GET", "/check", None),
        Pool::ClearNeedsCheck => call("POST", "/clear-needs-check", None),
        Pool::Views => call("GET", "/views", None),
        Pool::Space { delete } if delete.is_empty() => call("GET", "/space", None),
        Pool::Space { delete } => call("POST", "/space", Some(json!({"volumes": delete}))),
        Pool::MetadataSnapshot => call("GET", "/metadata-snapshot", None),
        Pool::TakeMetadataSnapshot => call("POST", "/metadata-snapshot", None),
        Pool::DropMetadataSnapshot => call("DELETE", "/metadata-snapshot", None),
    }
}

/// As `dmsetup status` shows a pool.
fn status(api: &Api) -> Result<()> {
    let pool = api.call("GET", "/v1/pool", None)?;
    let number = |name: &str| pool[name].as_u64().unwrap_or(0);
    let sectors = number("data_total_blocks").saturating_mul(number("data_block_sectors"));
    show::line(&format!("0 {sectors} thin-pool {}", pool["status_line"].as_str().unwrap_or_default()))
}

/// As `dmsetup message` answers.
fn message(api: &Api, text: &str, json: bool) -> Result<bool> {
    let answered = api.client.send("POST", "/v1/pool/message", Some(("text/plain", text.as_bytes())));
    match answered.and_then(self::json) {
        Ok(answer) if json => show::value(&answer, true).map(|()| true),
        Ok(answer) => match answer["answer"].as_str() {
            None | Some("") => Ok(true),
            Some(text) => show::line(text).map(|()| true),
        },
        Err(Failure::Refused { errno: Some(errno), .. }) if json => {
            show::value(&json!({"answer": "", "errno": errno}), true).map(|()| false)
        }
        Err(Failure::Refused { errno: Some(errno), .. }) => {
            let words = io::Error::from_raw_os_error(errno.saturating_neg()).to_string();
            let words = words.split(" (os error").next().unwrap_or_default();
            eprintln!("device-mapper: message ioctl on pool  failed: {words}\nCommand failed.");
            Ok(false)
        }
        Err(failure) => Err(failure),
    }
}

/// `gossamer volume`
pub fn volume(api: &Api, command: &Volume, json: bool) -> Result<()> {
    let call = |method, name: &str, rest: &str, body: Option<Value>| {
        let path = format!("/v1/volumes/{}{rest}", segment(name)?);
        show::value(&api.call(method, &path, body.as_ref())?, json)
    };
    match command {
        Volume::List => show::volumes(&api.call("GET", "/v1/volumes", None)?, json, |_| true),
        Volume::Show { name } => call("GET", name, "", None),
        Volume::Create { name, size } => {
            let body = json!({"name": name, "size_bytes": size});
            show::value(&api.call("POST", "/v1/volumes", Some(&body))?, json)
        }
        Volume::Resize { name, size } => call("PATCH", name, "", Some(json!({"size_bytes": size}))),
        Volume::Delete { name } => call("DELETE", name, "", None),
        Volume::Export { name, initiators } => {
            let all = initiators.iter().any(|name| name == "all");
            let rule = if all { json!("all") } else { json!(initiators) };
            call("PUT", name, "/export", Some(json!({"initiators": rule})))
        }
        Volume::Unexport { name } => call("DELETE", name, "/export", None),
        Volume::RollBack { name, snapshot, force } => {
            call("POST", name, "/roll-back", Some(json!({"to": snapshot, "force": force})))
        }
        Volume::Mappings { name, from } => {
            copy(api, &format!("/v1/volumes/{}/mappings?from={from}", segment(name)?), Tail::Text)
        }
        Volume::Send { name, from } => {
            let from = from.as_deref().map(|from| Ok::<_, Failure>(format!("?from={}", segment(from)?))).transpose()?;
            let path = format!("/v1/volumes/{}/stream{}", segment(name)?, from.unwrap_or_default());
            copy(api, &path, Tail::None)
        }
        Volume::Receive { name, size, base } => receive(api, name, *size, base.as_deref(), json),
    }
}

fn receive(api: &Api, name: &str, size: Option<u64>, base: Option<&str>, json: bool) -> Result<()> {
    let mut query: Vec<String> = size.iter().map(|size| format!("size_bytes={size}")).collect();
    if let Some(base) = base {
        query.push(format!("base={}", segment(base)?));
    }
    let path = format!("/v1/volumes/{}/stream?{}", segment(name)?, query.join("&"));
    let answer = api.client.upload("PUT", path.trim_end_matches('?'), STREAM, |out| {
        pump(
            io::stdin().lock(),
            |error| Failure::Here(format!("standard input: {error}")),
            |bytes| out.write_all(bytes).map_err(|error| api.client.lost(&error)),
        )
    })?;
    show::value(&self::json(answer)?, json)
}

/// `gossamer snapshot`
pub fn snapshot(api: &Api, command: &Snapshot, json: bool) -> Result<()> {
    match command {
        Snapshot::List => {
            let is_snapshot = |volume: &Value| !volume["snapshot_of"].is_null();
            show::volumes(&api.call("GET", "/v1/volumes", None)?, json, is_snapshot)
        }
        Snapshot::Create { snapshots, read_only } => {
            if let [(volume, name)] = snapshots.as_slice() {
                let body = json!({"name": name, "read_only": read_only});
                let path = format!("/v1/volumes/{}/snapshots", segment(volume)?);
                return show::value(&api.call("POST", &path, Some(&body))?, json);
            }
            let each = |(volume, name): &(String, String)| json!({"volume": volume, "name": name});
            let list: Vec<Value> = snapshots.iter().map(each).collect();
            let body = json!({"snapshots": list, "read_only": read_only});
            show::volumes(&api.call("POST", "/v1/snapshots", Some(&body))?, json, |_| true)
        }
        Snapshot::Delete { name } => api.call("DELETE", &format!("/v1/volumes/{}", segment(name)?), None).map(drop),
    }
}

/// `gossamer policy`
pub fn policy(api: &Api, command: &Policy, json: bool) -> Result<()> {
    match command {
        Policy::List => show::policies(&api.call("GET", "/v1/policies", None)?, json),
        Policy::Set { name, volumes, every_minutes, keep, hourly, daily, weekly } => {
            let mut body = json!({"volumes": volumes});
            let counts = [("every_minutes", every_minutes), ("keep", keep), ("hourly", hourly)];
            for (field, count) in counts.into_iter().chain([("daily", daily), ("weekly", weekly)]) {
                if let Some(count) = count {
                    body[field] = json!(count);
                }
            }
            show::value(&api.call("PUT", &format!("/v1/policies/{}", segment(name)?), Some(&body))?, json)
        }
        Policy::Delete { name } => api.call("DELETE", &format!("/v1/policies/{}", segment(name)?), None).map(drop),
    }
}

/// `gossamer delta`
pub fn delta(api: &Api, left: &str, right: &str, format: DeltaFormat, query: &str) -> Result<()> {
    let format = match format {
        DeltaFormat::Json => "json",
        DeltaFormat::Xml => "xml",
        DeltaFormat::XmlVerbose => "xml-verbose",
    };
    let (left, right) = (segment(left)?, segment(right)?);
    copy(api, &format!("/v1/volumes/{left}/delta?to={right}&format={format}{query}"), Tail::Text)
}

/// How a body tells that it ended too early.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// By its end.
    None,
    /// By its last line: an error, or in XML a comment.
    Text,
}

/// Copies a body to standard output.
fn copy(api: &Api, path: &str, tail: Tail) -> Result<()> {
    let body = api.client.send("GET", path, None)?.body;
    let mut out = io::stdout().lock();
    let mut last = Vec::new();
    pump(
        body,
        |error| api.client.lost(&error),
        |bytes| {
            // The last line, as long as it is a short one.
            let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            if let Some(at) = line.iter().rposition(|byte| *byte == b'\n') {
                last = line.get(at.saturating_add(1)..).unwrap_or_default().to_vec();
            } else if last.len() < BUFFER_BYTES {
                last.extend_from_slice(line);
            }
            out.write_all(bytes).map_err(|error| Failure::Here(format!("standard output: {error}")))
        },
    )?;
    out.flush().map_err(|error| Failure::Here(format!("standard output: {error}")))?;
    let error = serde_json::from_slice::<Value>(&last).is_ok_and(|line| line["error"].is_string());
    if tail == Tail::Text && (error || last.starts_with(b"<!--")) {
        return Err(Failure::Unreachable(format!("it ended early: {}", String::from_utf8_lossy(&last))));
    }
    Ok(())
}

fn pump(
    mut from: impl Read,
    unreadable: impl Fn(io::Error) -> Failure,
    mut to: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).map_err(&unreadable)?;
        if read == 0 {
            return Ok(());
        }
        to(buffer.get(..read).unwrap_or_default())?;
    }
}
