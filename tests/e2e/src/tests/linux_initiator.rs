//! Linux's own initiator: ext4 on a volume, a snapshot of it while mounted, both hold the right files.

use std::time::Duration;

use anyhow::{Result, ensure};
use xtask::console::Console;
use xtask::process;

use crate::appliance::{IQN, Site};
use crate::context::Context;
use crate::runner::Test;

pub const TESTS: &[Test] =
    &[Test::new("linux_initiator::ext4_and_its_snapshot_hold_the_right_files", ext4_and_its_snapshot)];

/// Booting Linux under emulation and copying a tree takes its time on a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(200);

fn ext4_and_its_snapshot(context: &Context) -> Result<()> {
    let site = Site::new(context, 16 << 20, 512 << 20)?;
    let mut appliance = site.start()?;
    appliance.make_volume("tree", 256 << 20)?;

    let mut guest = start_guest(context, appliance.portal()?.port())?;
    let words = |wanted: &'static str| move |line: &xtask::console::Line| line.text.starts_with(wanted).then_some(());
    guest.wait_for("a copied tree", STEP_LIMIT, words("TREE READY"))?;
    appliance.make_snapshot("tree-then", "tree")?;
    guest.wait_for("the guest's verdict", STEP_LIMIT, words("TREES RIGHT"))?;
    let status = guest.wait_end(STEP_LIMIT)?;
    ensure!(status.success(), "the guest ended with {status}:\n{}", guest.text());

    appliance.check_alive()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

fn start_guest(context: &Context, port: u16) -> Result<Console> {
    let guest = xtask::root().join("tests/e2e/guest");
    let login = format!("{}:usr/sbin/lab-login", context.lab("guest/lab-login")?.display());
    let mut command = process::tied(context.lab("linux-vm")?);
    command.args(["--net", "user", "--modules", "initiator,ext4", "--tools", "iscsi,fs", "--timeout", "280"]);
    command.args(["--file", &login, "--env", &format!("PORT={port}")]);
    command.args(["--env", &format!("VOLUME={IQN}:tree"), "--env", &format!("SNAPSHOT={IQN}:tree-then")]);
    command.arg("--").arg(guest.join("tree.sh"));
    Console::start(&mut command, false)
}
