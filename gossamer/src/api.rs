//! What the commands ask of the appliance (`docs/api.md`).

use crate::args::Common;
use crate::failure::{Failure, Result};
use crate::http::{Answer, Client};
use serde::Deserialize;
use serde_json::Value;
use std::env;
use std::fs;

const JSON: &str = "application/json";

/// What a stream is sent as.
pub const STREAM: &str = "application/x-thin-stream";

/// The appliance.
pub struct Api {
    /// The connection.
    pub client: Client,
}

/// A volume, as far as backups care.
#[derive(Debug, Deserialize)]
pub struct Volume {
    /// Bytes that are mapped.
    pub mapped_bytes: u64,
    /// It cannot be written.
    #[serde(default)]
    pub read_only: bool,
    /// It holds still what it held.
    pub intact: Option<bool>,
    /// The identity of what it holds, if that is known.
    pub contents: Option<String>,
}

impl Volume {
    /// What it holds, if that is known and cannot change.
    pub fn base_identity(&self) -> Option<&str> {
        self.contents.as_deref().filter(|_| self.read_only && self.intact == Some(true))
    }
}

impl Api {
    /// The appliance that the command line or the environment names.
    pub fn new(common: &Common) -> Result<Api> {
        let url = common.url.as_deref().ok_or_else(|| {
            Failure::Usage("where is the appliance? Give --url http://HOST:PORT, or set GOSSAMER_URL".into())
        })?;
        let token = match &common.token_file {
            Some(path) => Some(fs::read_to_string(path).map_err(Failure::file(path))?.trim().to_owned()),
            None => env::var("GOSSAMER_TOKEN").ok().map(|token| token.trim().to_owned()),
        };
        Ok(Api { client: Client::new(url, token)? })
    }

    /// Asks, and reads the answer's JSON; null if it has none.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let text = body.map(Value::to_string);
        let answer = self.client.send(method, path, text.as_ref().map(|text| (JSON, text.as_bytes())))?;
        json(answer)
    }

    /// A volume; none if there is no such.
    pub fn volume(&self, name: &str) -> Result<Option<Volume>> {
        match self.call("GET", &format!("/v1/volumes/{}", segment(name)?), None) {
            Ok(json) => Ok(Some(serde_json::from_value(json).map_err(|error| strange(&error))?)),
            Err(Failure::Refused { status: 404, .. }) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Deletes a volume or snapshot, if it is there.
    pub fn delete(&self, name: &str) -> Result<()> {
        match self.call("DELETE", &format!("/v1/volumes/{}", segment(name)?), None) {
            Ok(_) | Err(Failure::Refused { status: 404, .. }) => Ok(()),
            Err(failure) => Err(failure),
        }
    }
}

/// The JSON of an answer.
pub fn json(answer: Answer) -> Result<Value> {
    let text = answer.text()?;
    if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).map_err(|error| strange(&error)) }
}

fn strange(error: &serde_json::Error) -> Failure {
    Failure::Here(format!("the appliance's answer is not understood ({error}): use gossamer of its version"))
}

/// A name as a part of a path: whatever the appliance would not take as a name does not become one.
pub fn segment(name: &str) -> Result<&str> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if begins && name.len() <= 63 && name.chars().all(fits) {
        return Ok(name);
    }
    Err(Failure::Usage(format!("{name:?} is no name of a volume: [a-z0-9][a-z0-9.-]{{0,62}}")))
}
