//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed on this host, 2 usage, 3 a backup or stream is damaged, 4 the appliance refused,
5 the appliance cannot be reached, 6 another gossamer has the folder.";

/// Manages a Gossamer appliance, and keeps backups of its volumes.
#[derive(Debug, Parser)]
#[command(name = "gossamer", version, after_help = EXIT_CODES)]
pub struct Arguments {
    /// Where the appliance is and what to say of it.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What all commands take.
#[derive(Debug, Args)]
pub struct Common {
    /// The appliance, http://HOST:PORT
    #[arg(long, env = "GOSSAMER_URL", global = true)]
    pub url: Option<String>,
    /// A file with the appliance's token (or the variable GOSSAMER_TOKEN has the token itself)
    #[arg(long, env = "GOSSAMER_TOKEN_FILE", global = true)]
    pub token_file: Option<PathBuf>,
    /// Answer in JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress bar
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Back up a volume into a folder: all of it, or what changed since the last time
    Backup {
        /// The volume
        volume: String,
        /// The folder; made if there is none. A folder for each volume
        folder: PathBuf,
        /// All of it in any case
        #[arg(long)]
        full: bool,
    },
    /// List the backups in a folder
    List {
        /// The folder
        folder: PathBuf,
    },
    /// Check the backups in a folder, without the appliance
    Verify {
        /// The folder
        folder: PathBuf,
    },
    /// Restore a backup into a file, a block device or a volume
    Restore(Restore),
    /// Thin out the backups in a folder; what stays can be restored as before
    Prune(Prune),
    /// The pool
    #[command(subcommand)]
    Pool(Pool),
    /// Volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Snapshots
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Schedules of snapshots
    #[command(subcommand)]
    Policy(Policy),
    /// In which blocks two volumes differ
    Delta {
        /// The left volume
        left: String,
        /// The right volume
        right: String,
        /// The form
        #[arg(long, default_value = "json")]
        format: DeltaFormat,
        /// Leave out what is the same in both
        #[arg(long)]
        changed: bool,
        /// Begin with this block
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// As the metadata snapshot has it
        #[arg(long)]
        metadata_snapshot: bool,
    },
}

/// Where a backup goes.
#[derive(Debug, Args)]
pub struct Restore {
    /// The folder
    pub folder: PathBuf,
    /// The number of the backup (default: the newest)
    #[arg(long, value_name = "ID")]
    pub at: Option<u64>,
    /// Into this file or block device
    #[arg(long, value_name = "PATH", conflicts_with = "to_volume", required_unless_present = "to_volume")]
    pub to_file: Option<PathBuf>,
    /// Into this volume of the appliance; made if there is none
    #[arg(long, value_name = "NAME")]
    pub to_volume: Option<String>,
    /// Overwrite what is there
    #[arg(long)]
    pub force: bool,
}

/// What stays. A backup stays if any of these wants it; the newest stays always.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("keep").required(true).multiple(true)))]
pub struct Prune {
    /// The folder
    pub folder: PathBuf,
    /// The last N
    #[arg(long, value_name = "N", default_value_t = 0, group = "keep", hide_default_value = true)]
    pub keep_last: usize,
    /// The last of each of the last N hours that have one
    #[arg(long, value_name = "N", default_value_t = 0, group = "keep", hide_default_value = true)]
    pub keep_hourly: usize,
    /// The same for days
    #[arg(long, value_name = "N", default_value_t = 0, group = "keep", hide_default_value = true)]
    pub keep_daily: usize,
    /// The same for weeks
    #[arg(long, value_name = "N", default_value_t = 0, group = "keep", hide_default_value = true)]
    pub keep_weekly: usize,
    /// The same for months
    #[arg(long, value_name = "N", default_value_t = 0, group = "keep", hide_default_value = true)]
    pub keep_monthly: usize,
    /// The same for years
    #[arg(long, value_name = "N", default_value_t = 0, group = "keep", hide_default_value = true)]
    pub keep_yearly: usize,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// `gossamer pool`
#[derive(Debug, Subcommand)]
pub enum Pool {
    /// What is known of it
    Show,
    /// The status line, as dmsetup status prints it
    Status,
    /// Send a message, as dmsetup message does
    Message {
        /// Its words, such as create_thin 7
        #[arg(required = true)]
        text: Vec<String>,
    },
    /// Make the reserved device in a pool that was made elsewhere
    Adopt,
    /// Grow it to the sizes of its disks
    Grow,
    /// Wait for an event after this one
    Wait {
        /// The number of events that were seen
        after: u64,
    },
    /// Begin to check the metadata
    Check,
    /// The check under way and the last one
    CheckStatus,
    /// Check the metadata, and take needs_check away if all is well
    ClearNeedsCheck,
    /// Who reads a former moment of the metadata
    Views,
    /// What each volume maps, alone and shared; or what deleting these would free
    Space {
        /// Volumes to delete
        #[arg(long)]
        delete: Vec<String>,
    },
    /// The block of the metadata snapshot
    MetadataSnapshot,
    /// Take the metadata snapshot
    TakeMetadataSnapshot,
    /// Drop the metadata snapshot
    DropMetadataSnapshot,
}

/// `gossamer volume`
#[derive(Debug, Subcommand)]
pub enum Volume {
    /// All volumes
    List,
    /// One of them
    Show {
        /// Its name
        name: String,
    },
    /// Make one
    Create {
        /// Its name
        name: String,
        /// Its size, such as 10G
        #[arg(value_parser = size)]
        size: u64,
    },
    /// Change its size
    Resize {
        /// Its name
        name: String,
        /// Its new size
        #[arg(value_parser = size)]
        size: u64,
    },
    /// Delete it and its data
    Delete {
        /// Its name
        name: String,
    },
    /// Export it to these initiators, or to `all`
    Export {
        /// Its name
        name: String,
        /// Names of initiators, or all
        #[arg(required = true)]
        initiators: Vec<String>,
    },
    /// End its export
    Unexport {
        /// Its name
        name: String,
    },
    /// Give it what one of its snapshots holds
    RollBack {
        /// Its name
        name: String,
        /// The snapshot
        snapshot: String,
        /// Even while initiators are logged in
        #[arg(long)]
        force: bool,
    },
    /// Where its data is
    Mappings {
        /// Its name
        name: String,
        /// Begin with this block
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Write the stream of a read-only snapshot to standard output
    Send {
        /// The snapshot
        name: String,
        /// Only what changed since this one
        #[arg(long)]
        from: Option<String>,
    },
    /// Receive a stream from standard input
    Receive {
        /// The volume; made if there is none
        name: String,
        /// Size of a new volume, if the stream does not say it
        #[arg(long, value_parser = size)]
        size: Option<u64>,
        /// A stream of thin_send is an increment on what this volume holds
        #[arg(long)]
        base: Option<String>,
    },
}

/// `gossamer snapshot`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// All snapshots
    List,
    /// Take one, or several of different volumes at one instant
    Create {
        /// VOLUME=NAME, once or more
        #[arg(required = true, value_parser = pair)]
        snapshots: Vec<(String, String)>,
        /// Make it a base for streams
        #[arg(long)]
        read_only: bool,
    },
    /// Delete one
    Delete {
        /// Its name
        name: String,
    },
}

/// `gossamer policy`
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// All policies, and the appliance's clock
    List,
    /// Make a policy, or change it
    Set {
        /// Its name
        name: String,
        /// The volumes whose snapshots are taken at one instant
        #[arg(required = true)]
        volumes: Vec<String>,
        /// Every so many minutes, a divisor of 60
        #[arg(long, requires = "keep")]
        every_minutes: Option<u32>,
        /// Keep the latest so many of those
        #[arg(long, requires = "every_minutes")]
        keep: Option<u32>,
        /// Keep one of each of the last so many hours
        #[arg(long)]
        hourly: Option<u32>,
        /// The same for days
        #[arg(long)]
        daily: Option<u32>,
        /// The same for weeks
        #[arg(long)]
        weekly: Option<u32>,
    },
    /// End a policy; its snapshots stay
    Delete {
        /// Its name
        name: String,
    },
}

/// Forms of a delta.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DeltaFormat {
    /// A line for each run
    Json,
    /// As thin_delta prints it
    Xml,
    /// As thin_delta --verbose prints it
    XmlVerbose,
}

/// Bytes, with K, M, G, T or P for powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..).unwrap_or_default() {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        "P" | "p" | "PiB" => 50,
        unit => return Err(format!("{unit:?} is no unit: K, M, G, T or P")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes, such as 10G".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too much".to_owned())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (volume, name) = text.split_once('=').ok_or_else(|| "not VOLUME=NAME".to_owned())?;
    Ok((volume.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("10G"), Ok(10 << 30));
        assert!(size("10X").is_err() && size("G").is_err() && size("-1").is_err() && size("16777216T").is_err());
    }

    #[test]
    fn what_stays_has_to_be_said() {
        assert!(Arguments::try_parse_from(["gossamer", "prune", "folder"]).is_err());
        assert!(Arguments::try_parse_from(["gossamer", "prune", "folder", "--keep-daily", "7"]).is_ok());
        assert!(Arguments::try_parse_from(["gossamer", "restore", "folder"]).is_err());
    }
}
