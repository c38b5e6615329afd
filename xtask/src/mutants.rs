//! Products with a fault put in on purpose, for tests that must notice it.
//!
//! A mutant is a patch under `tests/mutants/`. It is applied to a copy of the tree below the target directory, never to the
//! tree itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result};

use crate::{image, process};

/// Listing files and applying a patch take no time.
const GIT_LIMIT: Duration = Duration::from_secs(60);

/// The names of the mutants.
pub fn names(root: &Path) -> Result<Vec<String>> {
    let folder = root.join("tests/mutants");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = files.filter_map(|name| Some(name.strip_suffix(".patch")?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// Builds the image of a mutant and returns its path.
pub fn build_image(root: &Path, name: &str) -> Result<PathBuf> {
    let tree = prepare(root, name)?;
    image::build_into(&tree, &folder(root, name).join("image"))
}

/// Copies the tree and applies the mutant's patch to the copy; returns the copy.
pub fn prepare(root: &Path, name: &str) -> Result<PathBuf> {
    prepare_in(root, name, &folder(root, name).join("tree"))
}

/// As [`prepare`], with the copy in `tree`, where another mutant may have been before.
pub fn prepare_in(root: &Path, name: &str, tree: &Path) -> Result<PathBuf> {
    let patch = patch(root, name);
    copy_tree(root, tree)?;
    let mut apply = Command::new("git");
    // The copy lies inside a repository, which is not the one to patch.
    apply.args(["apply", "--whitespace=nowarn"]).arg(&patch).current_dir(tree).env("GIT_CEILING_DIRECTORIES", tree);
    apply.env("GIT_DIR", tree.join("no-repository"));
    process::succeed(&mut apply, GIT_LIMIT)
        .with_context(|| format!("{} does not fit the tree any more", patch.display()))?;
    Ok(tree.to_path_buf())
}

/// Cargo's target directory of this tree.
pub fn target(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn patch(root: &Path, name: &str) -> PathBuf {
    root.join("tests/mutants").join(format!("{name}.patch"))
}

fn folder(root: &Path, name: &str) -> PathBuf {
    target(root).join("mutants").join(name)
}

/// Makes `tree` hold the files that git knows or would add, and no others. A file that is the same already is left
/// alone, so that cargo does not build it again.
pub fn copy_tree(root: &Path, tree: &Path) -> Result<()> {
    let files = files(root)?;
    remove_others(tree, tree, &files)?;
    for file in &files {
        let (from, to) = (root.join(file), tree.join(file));
        let contents = fs::read(&from).with_context(|| from.display().to_string())?;
        if fs::read(&to).is_ok_and(|old| old == contents) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(tree))?;
        fs::write(&to, contents).with_context(|| to.display().to_string())?;
    }
    Ok(())
}

/// The files that a mutant changes, prepared in `tree`: path, text before, text after. `None` if it adds or removes some.
pub fn changed(root: &Path, name: &str, tree: &Path) -> Result<Option<Vec<(String, String, String)>>> {
    if fs::read_to_string(patch(root, name))?.contains("/dev/null") {
        return Ok(None);
    }
    let mut changed = Vec::new();
    for file in files(root)? {
        let (before, after) = (fs::read(root.join(&file))?, fs::read(tree.join(&file))?);
        if before != after {
            changed.push((file, String::from_utf8(before)?, String::from_utf8(after)?));
        }
    }
    Ok(Some(changed))
}

/// The files of the tree that git knows or would add.
fn files(root: &Path) -> Result<Vec<String>> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let listed = String::from_utf8(process::succeed(&mut list, GIT_LIMIT)?.stdout)?;
    let files = listed.split_terminator('\0').filter(|file| root.join(file).is_file());
    Ok(files.map(str::to_owned).collect())
}

fn remove_others(tree: &Path, folder: &Path, files: &[String]) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(tree, &path, files)?;
        } else if !path.strip_prefix(tree).is_ok_and(|inside| files.iter().any(|file| inside == Path::new(file))) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CI builds only some of them, and a change of the source may move what one of the others changes.
    #[test]
    fn every_mutant_fits_the_tree() {
        let root = crate::root();
        for name in names(&root).unwrap() {
            let mut check = Command::new("git");
            check.args(["apply", "--check", "--whitespace=nowarn"]).current_dir(&root);
            check.arg(patch(&root, &name));
            process::succeed(&mut check, GIT_LIMIT).unwrap();
        }
    }
}
