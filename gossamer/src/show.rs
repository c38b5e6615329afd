//! Answers on standard output: JSON for programs, lines and tables for people.

use crate::failure::{Failure, Result};
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Write};

/// A line. Who stopped reading has seen enough.
pub fn line(text: &str) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::Here(format!("standard output: {error}"))),
        _ => Ok(()),
    }
}

/// An answer of the appliance: as it is, or a line for each field.
pub fn value(value: &Value, json: bool) -> Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::Object(fields) if !json => {
            let width = fields.keys().map(String::len).max().unwrap_or(0);
            fields.iter().try_for_each(|(name, value)| line(&format!("{name:width$}  {}", plain(value))))
        }
        value => line(&value.to_string()),
    }
}

/// Volumes, in a table.
pub fn volumes(answer: &Value, json: bool, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let volumes: Vec<Value> =
        answer["volumes"].as_array().into_iter().flatten().filter(|v| wanted(v)).cloned().collect();
    if json {
        return line(&json!({"volumes": volumes}).to_string());
    }
    let row = |volume: &Value| {
        ["name", "size_bytes", "mapped_bytes", "snapshot_of", "read_only", "in_use"].map(|field| plain(&volume[field]))
    };
    table(&["NAME", "SIZE", "MAPPED", "SNAPSHOT OF", "READ-ONLY", "IN USE"], volumes.iter().map(row))
}

/// Policies, in a table.
pub fn policies(answer: &Value, json: bool) -> Result<()> {
    if json {
        return line(&answer.to_string());
    }
    let row = |policy: &Value| {
        ["name", "every_minutes", "keep", "hourly", "daily", "weekly", "next", "trouble"]
            .map(|field| plain(&policy[field]))
    };
    let policies = answer["policies"].as_array().into_iter().flatten();
    table(&["NAME", "MINUTES", "KEEP", "HOURLY", "DAILY", "WEEKLY", "NEXT", "TROUBLE"], policies.map(row))
}

/// Rows under their titles.
pub fn table<const N: usize>(titles: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> Result<()> {
    let rows: Vec<[String; N]> = std::iter::once(titles.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// A value without quotes; nothing for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
