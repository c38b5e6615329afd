//! The rules of the house, checked: `cargo xtask tidy`, and an ordinary test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// The dependency table of `docs/design.md`: a crate and the crates of this workspace that it may depend on, each of
/// which stands above it here. So arrows go down only.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("platform", &[]),
    ("pdata", &["platform"]),
    ("thinp", &["pdata", "platform"]),
    ("netstack", &["platform"]),
    ("export", &["platform"]),
    ("mgmt", &["platform", "thinp"]),
    ("appliance", &["platform", "pdata", "thinp", "netstack", "export", "mgmt"]),
    ("drivers", &["platform", "netstack"]),
    ("kernel", &["platform", "netstack", "drivers", "appliance"]),
    ("hosted", &["platform", "appliance"]),
    ("tools", &["platform", "thinp"]),
    ("gossamer", &["thinp"]),
    ("fuzz", &["platform", "pdata", "thinp", "export"]),
    ("xtask", &[]),
    ("e2e", &["xtask"]),
    ("kernel-compare", &["platform", "thinp", "xtask"]),
    ("sim", &["platform", "thinp", "export", "appliance", "xtask"]),
];

/// Crates of the workspace that are no part of the design's house, and where they lie if not in a folder of their name.
const OUTSIDE: &[(&str, &str)] = &[
    ("fuzz", "fuzz"),
    ("xtask", "xtask"),
    ("e2e", "tests/e2e"),
    ("kernel-compare", "tests/kernel"),
    ("sim", "tests/sim"),
];

/// Of these crates only the named modules may be used by the named crate: (user, used, module).
const ONLY_MODULE: &[(&str, &str, &str)] =
    &[("mgmt", "thinp", "control"), ("drivers", "netstack", "device"), ("gossamer", "thinp", "stream")];

/// Crates that run without an operating system.
const NO_STD: &[&str] = &["platform", "pdata", "thinp", "netstack", "export", "mgmt", "appliance", "drivers", "kernel"];

/// Crates that may contain unsafe code anywhere.
const UNSAFE_CRATES: &[&str] = &["drivers", "kernel"];

/// Files that may contain unsafe code besides.
const UNSAFE_FILES: &[&str] = &["platform/src/buf.rs", "platform/src/crc32c.rs"];

/// What brings an operating system into the image. `libc` is not named: rlsf brings its declarations, calls none of
/// them here, and [`crate::image`] refuses an image with an undefined symbol.
const NOT_IN_THE_IMAGE: &[&str] = &["getrandom", "rustix", "mio", "signal-hook"];

/// Beyond this a file holds more than one idea.
const LINES_MAX: usize = 800;

/// Documents that must be there.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "docs/design.md",
    "docs/deviations.md",
    ".ci/run",
];

/// How many decisions `docs/design.md` numbers.
const DECISIONS: usize = 12;

const LIMIT: Duration = Duration::from_secs(120);

/// A crate of the workspace.
struct Member {
    name: String,
    folder: PathBuf,
    /// The crates of this workspace that it depends on, for tests too.
    uses: Vec<String>,
    licence: String,
}

/// What breaks a rule, a line each; empty when the house is tidy.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let members = members(root)?;
    let mut findings = Vec::new();
    check_edges(root, &members, &mut findings)?;
    for member in &members {
        check_manifest(root, member, &mut findings)?;
        check_crate_root(root, member, &mut findings)?;
    }
    for file in sources(root)? {
        check_source(root, &file, &mut findings)?;
    }
    check_image_tree(root, &mut findings)?;
    check_documents(root, &mut findings);
    check_format(root, &mut findings)?;
    Ok(findings)
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<process::Ended> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    process::run(command.args(arguments).current_dir(root), LIMIT)
}

fn members(root: &Path) -> Result<Vec<Member>> {
    let ended = cargo(root, &["metadata", "--format-version", "1", "--no-deps", "--offline"])?;
    let metadata: Value = serde_json::from_slice(&ended.stdout).with_context(|| ended.text())?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let own = |dependency: &&Value| dependency["path"].is_string();
    let member = |package: &Value| Member {
        name: text(&package["name"]),
        folder: Path::new(&text(&package["manifest_path"])).parent().unwrap_or(root).to_owned(),
        uses: package["dependencies"].as_array().into_iter().flatten().filter(own).map(|d| text(&d["name"])).collect(),
        licence: text(&package["license"]),
    };
    Ok(packages.iter().map(member).collect())
}

fn check_edges(root: &Path, members: &[Member], findings: &mut Vec<String>) -> Result<()> {
    let mut above = BTreeSet::new();
    for (name, allowed) in MAY_DEPEND_ON {
        let upwards = allowed.iter().filter(|used| !above.contains(*used));
        findings
            .extend(upwards.map(|used| format!("xtask/src/tidy.rs: the table lets {name} depend upwards on {used}")));
        above.insert(name);
    }
    for member in members {
        let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(name, _)| *name == member.name) else {
            findings.push(format!("crate {} is not in the dependency table", member.name));
            continue;
        };
        let wrong = member.uses.iter().filter(|used| !allowed.contains(&used.as_str()));
        findings.extend(wrong.map(|used| format!("crate {} must not depend on {used}", member.name)));
        for (_, used, module) in ONLY_MODULE.iter().filter(|(user, _, _)| *user == member.name) {
            for file in rust_files(&member.folder.join("src"))? {
                let text = fs::read_to_string(&file)?;
                let (path, allowed) = (format!("{used}::"), format!("{used}::{module}"));
                let foreign = |line: &&str| line.contains(&path) && !line.contains(&allowed) && !is_comment(line);
                let lines = text.lines().filter(foreign);
                findings.extend(
                    lines.map(|line| format!("{}: only {allowed} may be used: {}", show(root, &file), line.trim())),
                );
            }
        }
    }
    let design = fs::read_to_string(root.join("docs/design.md"))?;
    let rows = design.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let in_design: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    let outside = |name: &&str| OUTSIDE.iter().any(|(other, _)| other == name);
    let in_table = MAY_DEPEND_ON.iter().map(|(name, _)| *name).filter(|name| !outside(name)).collect();
    if in_design != in_table {
        findings.push(format!("docs/design.md lists the crates {in_design:?}, xtask/src/tidy.rs {in_table:?}"));
    }
    Ok(())
}

fn check_manifest(root: &Path, member: &Member, findings: &mut Vec<String>) -> Result<()> {
    let path = member.folder.join("Cargo.toml");
    let manifest: Value = basic_toml::from_str(&fs::read_to_string(&path)?).with_context(|| show(root, &path))?;
    let mut want = |holds: bool, what: &str| {
        if !holds {
            findings.push(format!("{}: {what}", show(root, &path)));
        }
    };
    want(manifest["lints"]["workspace"] == true, "the workspace's lints are not inherited ([lints] workspace = true)");
    want(member.licence == "Apache-2.0 OR MIT", "the licence is not Apache-2.0 OR MIT");
    want(manifest["package"]["license"]["workspace"] == true, "the licence is not the workspace's");
    want(manifest["package"]["version"]["workspace"] == true, "the version is not the workspace's");
    Ok(())
}

fn check_crate_root(root: &Path, member: &Member, findings: &mut Vec<String>) -> Result<()> {
    for name in ["src/lib.rs", "src/main.rs"] {
        let path = member.folder.join(name);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let shown = show(root, &path);
        if !text.starts_with("//!") {
            findings.push(format!("{shown}: does not say at its top what the crate is"));
        }
        if NO_STD.contains(&member.name.as_str()) && !text.contains("no_std") {
            findings.push(format!("{shown}: is not no_std"));
        }
        let expected = match member.name.as_str() {
            "platform" => "#![deny(unsafe_code)]",
            name if UNSAFE_CRATES.contains(&name) => continue,
            _ => "#![forbid(unsafe_code)]",
        };
        if !text.contains(expected) {
            findings.push(format!("{shown}: no {expected}"));
        }
    }
    Ok(())
}

fn check_source(root: &Path, file: &Path, findings: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let shown = show(root, file);
    let lines = text.lines().count();
    if lines > LINES_MAX {
        findings.push(format!("{shown}: {lines} lines; more than {LINES_MAX} are more than one idea"));
    }
    let may_be_unsafe = UNSAFE_FILES.contains(&shown.as_str())
        || UNSAFE_CRATES.iter().any(|name| shown.starts_with(&format!("{name}/")));
    // Put together here so that this file does not find itself.
    let unfinished = ["to\u{64}o!(", "unimplemen\u{74}ed!(", "db\u{67}!(", "TO\u{44}O", "FIX\u{4d}E", "#[igno\u{72}e"];
    let silenced = ["allow(dead_c\u{6f}de", "allow(unu\u{73}ed"];
    for (number, line) in (1..).zip(text.lines()) {
        if !may_be_unsafe && line.contains("allow(unsafe_c\u{6f}de") {
            findings.push(format!("{shown}:{number}: unsafe code does not belong here"));
        }
        let silenced = silenced.iter().filter(|_| !line.contains("reason = "));
        for word in unfinished.iter().chain(silenced) {
            if line.contains(word) {
                findings.push(format!("{shown}:{number}: {}", line.trim()));
            }
        }
    }
    Ok(())
}

/// What the image is made of.
fn check_image_tree(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let ended = cargo(
        root,
        &["tree", "--offline", "-p", "kernel", "-e", "normal,no-proc-macro", "--prefix", "none", "--format", "{p}"],
    )?;
    if !ended.status.success() {
        findings.push(format!("cargo tree -p kernel: {}", ended.text()));
    }
    let tree = ended.text();
    let inside: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let wrong = NOT_IN_THE_IMAGE.iter().filter(|name| inside.contains(**name));
    findings.extend(wrong.map(|name| format!("the image depends on {name}, which needs an operating system")));
    Ok(())
}

fn check_documents(root: &Path, findings: &mut Vec<String>) {
    let missing = DOCUMENTS.iter().filter(|name| !root.join(name).is_file());
    findings.extend(missing.map(|name| format!("{name} is missing")));
    let design = fs::read_to_string(root.join("docs/design.md")).unwrap_or_default();
    let gone = (1..=DECISIONS).filter(|number| !design.contains(&format!("\n{number}. **")));
    findings.extend(gone.map(|number| format!("docs/design.md: decision {number} is gone")));
}

fn check_format(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    if process::find("rustfmt").is_none() {
        println!("tidy: rustfmt is not installed, so the format is not checked");
        return Ok(());
    }
    let ended = cargo(root, &["fmt", "--all", "--check", "--", "-l"])?;
    findings.extend(ended.text().lines().map(|file| format!("{file}: not formatted (cargo fmt)")));
    Ok(())
}

/// Every Rust file of the workspace.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (name, _) in MAY_DEPEND_ON {
        let folder = OUTSIDE.iter().find(|(other, _)| other == name).map_or(*name, |(_, folder)| folder);
        files.extend(rust_files(&root.join(folder))?);
    }
    Ok(files)
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn show(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
