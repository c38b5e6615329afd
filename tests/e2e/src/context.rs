//! Where a test runs: on which backend, with which peers, in which folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use xtask::process;

/// What the appliance is in this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// The Linux process.
    Hosted,
    /// The image in QEMU on this machine profile.
    Image(String),
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Hosted => f.write_str("hosted"),
            Backend::Image(machine) => f.write_str(machine),
        }
    }
}

/// A reason not to run a test here. With `CI=true` the runner makes it a failure.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// What every test is given.
#[derive(Debug, Clone)]
pub struct Context {
    /// The backend under test.
    pub backend: Backend,
    /// The bare-metal image, for [`Backend::Image`].
    pub image: PathBuf,
    /// The hosted appliance, for [`Backend::Hosted`].
    pub hosted: PathBuf,
    /// The host's program.
    pub gossamer: PathBuf,
    /// A folder of this test's own, empty at its start.
    pub scratch: PathBuf,
    /// Seeds every random choice; printed.
    pub seed: u64,
    /// Memory of the machine, in MiB.
    pub memory_mib: u64,
    /// How much longer than in CI the test should go on: 1 there, more in a soak.
    pub effort: u64,
}

impl Context {
    /// The same with a folder within this one's, for another appliance.
    pub fn folder(&self, name: &str) -> Result<Context> {
        let scratch = self.scratch.join(name);
        std::fs::create_dir_all(&scratch)?;
        Ok(Context { scratch, ..self.clone() })
    }

    /// The folder with the peers and the images that Linux made.
    fn shared(&self) -> Result<PathBuf> {
        let folder = xtask::shared();
        match folder.canonicalize() {
            Ok(folder) => Ok(folder),
            Err(_) => Err(Skip(format!("no folder {}", folder.display())).into()),
        }
    }

    /// A program of the lab.
    pub fn lab(&self, program: &str) -> Result<PathBuf> {
        Ok(self.shared()?.join("lab").join(program))
    }

    /// The metadata images that Linux made.
    pub fn golden(&self) -> Result<PathBuf> {
        Ok(self.shared()?.join("golden"))
    }

    /// A command of thin-provisioning-tools 1.x, the stricter judge.
    pub fn thin_tool(&self, tool: &str) -> Result<Command> {
        let folder = process::succeed(&mut Command::new(self.lab("thin-tools")?), Duration::from_secs(300))?;
        Ok(Command::new(Path::new(String::from_utf8(folder.stdout)?.trim()).join(tool)))
    }

    /// thin_check 1.x must find nothing wrong with this metadata.
    pub fn thin_check(&self, meta: &Path) -> Result<()> {
        let mut command = self.thin_tool("thin_check")?;
        process::succeed(command.arg(meta), Duration::from_secs(120)).context("thin_check is not content").map(drop)
    }

    /// What thin_dump 1.x says of this metadata, or with `held` of the metadata snapshot in it.
    pub fn thin_dump(&self, meta: &Path, held: bool) -> Result<String> {
        let mut command = self.thin_tool("thin_dump")?;
        if held {
            command.arg("-m");
        }
        let ended = process::succeed(command.arg(meta), Duration::from_secs(120))?;
        Ok(String::from_utf8(ended.stdout)?)
    }

    /// What thin_delta 1.x says of two devices in the metadata snapshot of this metadata.
    pub fn thin_delta(&self, meta: &Path, (left, right): (u64, u64), verbose: bool) -> Result<String> {
        let mut command = self.thin_tool("thin_delta")?;
        command.args(["-m", "--snap1", &left.to_string(), "--snap2", &right.to_string()]);
        command.args(verbose.then_some("--verbose"));
        let ended = process::succeed(command.arg(meta), Duration::from_secs(120))?;
        Ok(String::from_utf8(ended.stdout)?)
    }
}
