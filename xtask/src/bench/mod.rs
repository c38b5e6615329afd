//! `cargo xtask bench WHAT`: measures, and says whether the floors are kept.

mod boot;
mod delta;
mod pdata;
mod streams;

use std::path::Path;

use anyhow::{Result, bail};
use lexopt::prelude::*;

const USAGE: &str = "usage: cargo xtask bench boot|delta|pdata|streams [options]";

/// Measures and prints; true when every floor is kept.
pub fn run(root: &Path, parser: &mut lexopt::Parser) -> Result<bool> {
    match parser.next()? {
        Some(Value(what)) if what == "boot" => boot::run(root, parser),
        Some(Value(what)) if what == "delta" => delta::run(root, parser),
        Some(Value(what)) if what == "pdata" => pdata::run(root, parser),
        Some(Value(what)) if what == "streams" => streams::run(root, parser),
        _ => bail!("{USAGE}"),
    }
}
