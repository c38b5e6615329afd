//! The tree with all changes in it: which of them compile, and the programs of the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::PACKAGES;
use super::weave::{Change, weave};
use crate::choice::Woven;
use crate::process;

const BUILD_LIMIT: Duration = Duration::from_secs(3600);

/// What could be built.
#[derive(Debug, Default)]
pub struct Built {
    /// The numbers of the changes that are in.
    viable: BTreeSet<u32>,
    /// Of each of them the first change of its function.
    pub functions: BTreeMap<u32, u32>,
    /// Of those that do not compile: they are no programs.
    pub unviable: BTreeSet<u32>,
    /// Of those that a choice at run time cannot express.
    pub apart: BTreeSet<u32>,
    /// The programs of the tests, with the folder in which each is run.
    pub programs: Vec<(PathBuf, PathBuf)>,
}

/// Weaves the changes into the tree, leaves out what does not compile, and builds the tests.
pub fn build(tree: &Path, target: &Path, changes: &[Change]) -> Result<Built> {
    let mut sources = BTreeMap::new();
    for change in changes {
        if !sources.contains_key(&change.file) {
            let path = tree.join(&change.file);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            sources.insert(change.file.clone(), text);
        }
    }
    put_switch_in(tree)?;
    let mut built = Built { viable: changes.iter().map(|change| change.number).collect(), ..Built::default() };
    let woven = loop {
        let woven = write(tree, &sources, changes, &mut built)?;
        let mut errors = Vec::new();
        for package in PACKAGES {
            errors = messages(tree, target, &["check", "--package", package, "--lib"])?;
            errors.retain(|message| message["message"]["level"] == "error");
            if !errors.is_empty() {
                break;
            }
        }
        if errors.is_empty() {
            break woven;
        }
        leave_out(&errors, &woven, &mut built)?;
    };
    for (_, numbers) in woven.values().flat_map(|file| &file.choices) {
        built.functions.extend(numbers.iter().map(|number| (*number, numbers[0])));
    }
    let mut arguments = vec!["test", "--no-run", "--lib", "--test", "*"];
    arguments.extend(PACKAGES.iter().flat_map(|package| ["--package", package]));
    for message in messages(tree, target, &arguments)? {
        ensure!(message["message"]["level"] != "error", "the tests do not compile: {}", message["message"]["rendered"]);
        if let (Some(program), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str()) {
            let folder = Path::new(manifest).parent().context("a manifest lies in a folder")?;
            built.programs.push((program.into(), folder.into()));
        }
    }
    Ok(built)
}

/// Where a file of the tree finds the switch, which is `pdata`'s.
fn switch(file: &str) -> &'static str {
    if file.starts_with("pdata/") { "crate::switch" } else { "::pdata::switch" }
}

fn put_switch_in(tree: &Path) -> Result<()> {
    let library = tree.join("pdata/src/lib.rs");
    // A function that the compiler may call has a switch, too.
    let text = "#![feature(core_intrinsics, const_eval_select)]\n".to_owned() + &fs::read_to_string(&library)?;
    let text = text + "\npub mod switch;\n";
    fs::write(library, text)?;
    Ok(fs::write(tree.join("pdata/src/switch.rs"), include_str!("switch.rs"))?)
}

/// Writes each file with those of its changes that are in.
fn write(
    tree: &Path,
    sources: &BTreeMap<String, String>,
    changes: &[Change],
    built: &mut Built,
) -> Result<BTreeMap<String, Woven>> {
    let mut files = BTreeMap::new();
    for (file, source) in sources {
        let inside: Vec<&Change> =
            changes.iter().filter(|change| change.file == *file && built.viable.contains(&change.number)).collect();
        let (woven, apart) = weave(source, &inside, switch(file));
        for number in apart {
            built.viable.remove(&number);
            built.apart.insert(number);
        }
        let path = tree.join(file);
        if fs::read_to_string(&path)? != woven.text {
            fs::write(&path, &woven.text)?;
        }
        files.insert(file.clone(), woven);
    }
    Ok(files)
}

/// Leaves out the changes that the compiler's errors point at; of an error in the choice itself, the whole function.
fn leave_out(errors: &[Value], woven: &BTreeMap<String, Woven>, built: &mut Built) -> Result<()> {
    let before = built.viable.len();
    let mut strange = Vec::new();
    for error in errors {
        let places = places(&error["message"]["spans"]);
        let found = |place: &(String, usize)| woven.get(&place.0).map(|file| (file, place.1));
        let change = places.iter().filter_map(found).find_map(|(file, line)| file.change_at(line));
        let function = places.iter().filter_map(found).map(|(file, line)| file.function_at(line));
        if let Some(number) = change {
            built.viable.remove(&number);
            built.unviable.insert(number);
        } else if let Some(numbers) = function.into_iter().find(|numbers| !numbers.is_empty()) {
            for number in numbers {
                built.viable.remove(number);
                built.apart.insert(*number);
            }
        } else {
            strange.push(error["message"]["rendered"].as_str().unwrap_or_default());
        }
    }
    if built.viable.len() == before {
        bail!("errors that are of no change: {}", strange.join("\n"));
    }
    Ok(())
}

/// The file and line of each span, the primary ones first, and of the macros' uses that they are from.
fn places(spans: &Value) -> Vec<(String, usize)> {
    let mut spans: Vec<&Value> = spans.as_array().into_iter().flatten().collect();
    spans.sort_by_key(|span| span["is_primary"] != true);
    let mut places = Vec::new();
    for mut span in spans {
        while let (Some(file), Some(line)) = (span["file_name"].as_str(), span["line_start"].as_u64()) {
            places.push((file.to_owned(), line as usize));
            span = &span["expansion"]["span"];
        }
    }
    places
}

/// What cargo says, a value a line.
fn messages(tree: &Path, target: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).args(["--locked", "--message-format", "json"]).current_dir(tree);
    cargo.env("CARGO_TARGET_DIR", target).env("CARGO_PROFILE_DEV_DEBUG", "false");
    // Changed code earns warnings, of which the house forbids some.
    cargo.env("RUSTFLAGS", "--cap-lints allow").env("RUSTC_BOOTSTRAP", "pdata");
    let ended = process::run(&mut cargo, BUILD_LIMIT)?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let messages: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let told = messages.iter().any(|message| message["message"]["level"] == "error");
    ensure!(ended.status.success() || told, "{}: {}", process::describe(&cargo), ended.text());
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_where_its_primary_span_is_and_a_macro_where_it_is_used() {
        let spans = serde_json::json!([
            {"file_name": "b.rs", "line_start": 7, "is_primary": false, "expansion": null},
            {"file_name": "core.rs", "line_start": 1, "is_primary": true,
             "expansion": {"span": {"file_name": "a.rs", "line_start": 3, "is_primary": false, "expansion": null}}},
        ]);
        let expected = [("core.rs", 1), ("a.rs", 3), ("b.rs", 7)].map(|(file, line)| (file.to_owned(), line));
        assert_eq!(places(&spans), expected);
    }
}
