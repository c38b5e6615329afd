//! Finds out which Debian packages are missing and installs them, or says how.
//!
//! QEMU must be 10 or newer, which the tests were made on; on Debian 12 that comes from `bookworm-backports`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process;

/// What `cargo xtask run` needs.
pub const RUN: &[&str] = &["qemu-system-x86"];

/// What `cargo xtask test` needs besides: the peers, and what the Linux guest is made of.
pub const TEST: &[&str] = &[
    "qemu-system-x86",
    "qemu-utils",
    "qemu-block-extra",
    "linux-image-amd64",
    "busybox-static",
    "binutils",
    "dmsetup",
    "e2fsprogs",
    "fio",
    "g++",
    "gcc",
    "kmod",
    "libc6-dev",
    "libiscsi-bin",
    "open-iscsi",
    "python3",
    "sg3-utils",
    "thin-provisioning-tools",
    "xz-utils",
    "zstd",
];

/// Packages that Debian 12 has only too old; taken from its backports.
const FROM_BACKPORTS: &[&str] = &["qemu-system-x86", "qemu-utils", "qemu-block-extra", "linux-image-amd64"];

/// The oldest QEMU that will do.
const QEMU_MAJOR_MIN: u32 = 10;

/// Downloading and unpacking all of it takes minutes, not more.
const INSTALL_LIMIT: Duration = Duration::from_secs(1200);

const BACKPORTS_SOURCE: &str = "/etc/apt/sources.list.d/gossamer-backports.sources";

/// Makes sure that these packages are there. With `install` false, or where it cannot be done, it is an error that
/// tells the command.
pub fn ensure(packages: &[&str], install: bool) -> Result<()> {
    let release = Release::read();
    if !release.is_debian_like() {
        return ensure_programs(packages);
    }
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let backports = release.codename == "bookworm" && missing.iter().any(|name| FROM_BACKPORTS.contains(name));
    let add_source = backports && !has_backports()?;
    let commands = commands(&missing, backports, add_source);
    let shown = commands.iter().map(|command| format!("    {}\n", process::describe(command))).collect::<String>();
    let source =
        if add_source { format!("    (write {BACKPORTS_SOURCE}: {})\n", backports_hint()) } else { String::new() };
    if !install {
        bail!("missing: {}. As root:\n{source}{shown}", missing.join(" "));
    }
    if !is_root()? {
        bail!("missing: {}. Only root can install them:\n{source}{shown}", missing.join(" "));
    }
    println!("Installing what is missing: {}\n{source}{shown}", missing.join(" "));
    if add_source {
        std::fs::write(BACKPORTS_SOURCE, backports_source())
            .with_context(|| format!("cannot write {BACKPORTS_SOURCE}"))?;
    }
    for mut command in commands {
        command.env("DEBIAN_FRONTEND", "noninteractive");
        process::succeed(&mut command, INSTALL_LIMIT)?;
    }
    let still = self::missing(packages)?;
    if !still.is_empty() {
        bail!("apt-get ended well, but these are still missing or too old: {}", still.join(" "));
    }
    Ok(())
}

fn commands(packages: &[&str], backports: bool, update: bool) -> Vec<Command> {
    let mut commands = Vec::new();
    let apt = || {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
        command
    };
    if update || !lists_are_fresh() {
        let mut command = apt();
        command.arg("update");
        commands.push(command);
    }
    let mut install = |names: Vec<&str>, backports: bool| {
        if names.is_empty() {
            return;
        }
        let mut command = apt();
        command.args(["install", "-y", "--no-install-recommends"]);
        if backports {
            command.args(["-t", "bookworm-backports"]);
        }
        command.args(names);
        commands.push(command);
    };
    let (new, stable): (Vec<&str>, Vec<&str>) =
        packages.iter().partition(|name| backports && FROM_BACKPORTS.contains(name));
    install(new, true);
    install(stable, false);
    commands
}

/// The packages among these that are not installed, or are QEMU and too old.
fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f=${db:Status-Status} ${Package}\n"]).args(packages);
    // Its status is 1 when it does not know one of them; the others are listed all the same.
    let ended = process::run(&mut query, Duration::from_secs(60))?;
    let listed = String::from_utf8_lossy(&ended.stdout).into_owned();
    let installed = |name: &str| listed.lines().any(|line| line.strip_prefix("installed ") == Some(name));
    let old = |name: &str| name == "qemu-system-x86" && qemu_major() < Some(QEMU_MAJOR_MIN);
    Ok(packages.iter().copied().filter(|name| !installed(name) || old(name)).collect())
}

/// Elsewhere than on Debian: are the programs there?
fn ensure_programs(packages: &[&str]) -> Result<()> {
    let programs = [
        ("qemu-system-x86", "qemu-system-x86_64"),
        ("qemu-utils", "qemu-img"),
        ("busybox-static", "busybox"),
        ("dmsetup", "dmsetup"),
        ("e2fsprogs", "mkfs.ext4"),
        ("gcc", "gcc"),
        ("kmod", "modprobe"),
        ("libiscsi-bin", "iscsi-ls"),
        ("open-iscsi", "iscsiadm"),
        ("python3", "python3"),
        ("thin-provisioning-tools", "thin_check"),
        ("zstd", "zstd"),
    ];
    let wanted = programs.iter().filter(|(package, _)| packages.contains(package));
    let missing: Vec<&str> = wanted.map(|(_, program)| *program).filter(|name| process::find(name).is_none()).collect();
    if !missing.is_empty() {
        bail!(
            "missing programs: {}. This is not Debian; on Debian they come with\n    apt-get install -y \
             --no-install-recommends {}",
            missing.join(" "),
            packages.join(" ")
        );
    }
    match qemu_major() {
        Some(major) if major >= QEMU_MAJOR_MIN => Ok(()),
        found => bail!("QEMU {QEMU_MAJOR_MIN} or newer is needed, this is {found:?}"),
    }
}

/// The major number of the installed QEMU.
fn qemu_major() -> Option<u32> {
    process::find("qemu-system-x86_64")?;
    let ended = process::run(Command::new("qemu-system-x86_64").arg("--version"), Duration::from_secs(20)).ok()?;
    let text = ended.text();
    text.split_once("version ")?.1.split('.').next()?.parse().ok()
}

/// What `/etc/os-release` says.
struct Release {
    ids: String,
    codename: String,
}

impl Release {
    fn read() -> Release {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        Release { ids: format!("{} {}", value("ID"), value("ID_LIKE")), codename: value("VERSION_CODENAME") }
    }

    fn is_debian_like(&self) -> bool {
        self.ids.split_whitespace().any(|id| id == "debian") && process::find("apt-get").is_some()
    }
}

fn is_root() -> Result<bool> {
    let ended = process::succeed(Command::new("id").arg("-u"), Duration::from_secs(20))?;
    Ok(ended.stdout.trim_ascii() == b"0")
}

fn has_backports() -> Result<bool> {
    let ended = process::succeed(Command::new("apt-cache").arg("policy"), Duration::from_secs(60))?;
    Ok(ended.text().contains("bookworm-backports"))
}

/// Package lists from the last day are good enough; a fresh container has none at all.
fn lists_are_fresh() -> bool {
    let Ok(folder) = std::fs::read_dir("/var/lib/apt/lists") else { return false };
    let age = |entry: std::fs::DirEntry| entry.metadata().ok()?.modified().ok()?.elapsed().ok();
    let lists = folder.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"));
    lists.filter_map(age).any(|age| age < Duration::from_secs(86_400))
}

/// The archive this machine already uses.
fn archive() -> String {
    let folder = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = folder.chain([Path::new("/etc/apt/sources.list").to_path_buf()]);
    let texts = files.filter_map(|path| std::fs::read_to_string(path).ok()).collect::<Vec<_>>().join("\n");
    let words = texts.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
    let uris = words.flat_map(str::split_whitespace).filter(|word| word.contains("://"));
    let debian = uris.map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"));
    debian.unwrap_or("http://deb.debian.org/debian").to_owned()
}

fn backports_source() -> String {
    format!(
        "# For a QEMU and a kernel as new as Gossamer's tests want; added by `cargo xtask`.\nTypes: deb\nURIs: {}\n\
         Suites: bookworm-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        archive()
    )
}

fn backports_hint() -> String {
    backports_source().lines().skip(1).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_take_new_packages_from_backports_only() {
        let commands = commands(&["qemu-system-x86", "zstd"], true, true);
        let lines: Vec<String> = commands.iter().map(process::describe).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].ends_with(" update"));
        assert!(lines[1].ends_with("install -y --no-install-recommends -t bookworm-backports qemu-system-x86"));
        assert!(lines[2].ends_with("install -y --no-install-recommends zstd"));
    }

    #[test]
    fn the_source_is_complete() {
        let source = backports_source();
        for key in ["Types: deb", "URIs: http", "Suites: bookworm-backports", "Components: main", "Signed-By: "] {
            assert!(source.contains(key), "{key}");
        }
    }
}
