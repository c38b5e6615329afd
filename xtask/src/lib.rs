//! Every chore of the project, as a library: the command line (`cargo xtask …`) and the end-to-end tests share it.
//!
//! - [`image`] builds the bare-metal image; [`machine`] puts QEMU's command line together from the profiles under
//!   `qemu/`; [`console`] runs it and watches its serial console.
//! - [`qmp`] speaks to a running QEMU.
//! - [`nbd`] serves disks with a volatile cache that a simulated power cut loses; [`http`] is a small client.
//! - [`thin_dump`] reads what the tool of that name says.
//! - [`mutants`] builds products with a fault put in, which the tests must notice.
//! - [`packages`] installs what is missing; [`process`] runs other programs so that none is left behind.
//! - [`run`], [`suite`], [`fuzz`], [`bench`], [`tidy`] and [`tools`] are the chores themselves.
//!
//! Nothing of the product depends on this crate.
//!
//! ```
//! let profile = xtask::machine::Profile::load(&xtask::root(), "microvm").unwrap();
//! assert_eq!(profile.block_device, "virtio-blk-device");
//! ```
#![forbid(unsafe_code)]

pub mod bench;
mod choice;
pub mod conformance;
pub mod console;
pub mod dice;
pub mod fuzz;
pub mod gossamer;
pub mod http;
pub mod image;
pub mod machine;
pub mod mutants;
pub mod nbd;
pub mod packages;
pub mod process;
pub mod qmp;
pub mod run;
pub mod sim;
pub mod suite;
pub mod survivors;
pub mod thin_dump;
pub mod tidy;
pub mod tools;
mod woven;

use std::env;
use std::path::{Path, PathBuf};

/// The top of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_path_buf()
}

/// The folder with the peers and with what they made: beside the repository, or where GOSSAMER_SHARED says. It may not be
/// there.
pub fn shared() -> PathBuf {
    env::var_os("GOSSAMER_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from)
}
