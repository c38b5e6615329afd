//! Why a command fails, and what the program ends with.

use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Result of everything that a command does.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something on this host.
    #[error("{0}")]
    Here(String),
    /// The command line asks for what makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A backup is not what it was.
    #[error("{0}")]
    Damaged(String),
    /// The appliance says no.
    #[error("{message} ({error}, HTTP status {status}){hint}", hint = .hint.as_ref().map(|hint| format!(": {hint}")).unwrap_or_default())]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The word for it, as in `docs/api.md`.
        error: String,
        /// What `dmsetup` would have shown.
        errno: Option<i32>,
        /// What happened.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The appliance cannot be reached, or no longer.
    #[error("{0}; see to the network, and run the same command again")]
    Unreachable(String),
    /// Another run has the folder.
    #[error("{0} is in use by another gossamer: wait for its end")]
    Locked(String),
}

impl Failure {
    /// What went wrong with a file.
    pub fn file(path: &Path) -> impl Fn(io::Error) -> Failure {
        move |error| Failure::Here(format!("{}: {error}", path.display()))
    }

    /// What the program ends with, for scripts.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Failure::Here(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Damaged(_) => 3,
            Failure::Refused { .. } => 4,
            Failure::Unreachable(_) => 5,
            Failure::Locked(_) => 6,
        })
    }
}
