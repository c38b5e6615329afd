//! `cargo xtask gossamer`: the host's program, as one file that needs no other.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{image, tools};

/// With `--target` the flags are for the program only, not for what runs while it is built.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds it, optimised, and returns where it is.
pub fn build(root: &Path) -> Result<PathBuf> {
    let target_dir = tools::target(root).join("static");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--package", "gossamer", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Cstrip=symbols")
        .status()
        .context("cargo cannot be started")?;
    ensure!(status.success(), "building gossamer failed");
    let program = target_dir.join(TARGET).join("release/gossamer");
    let bytes = fs::read(&program).with_context(|| format!("{} cannot be read", program.display()))?;
    image::check_static(&bytes).with_context(|| format!("{} is not one static file", program.display()))?;
    Ok(program)
}
