//! Linux's own initiator and its tools: space that comes back, the commands of sg3_utils, two portal groups under dm-multipath
//! with fio.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use xtask::console::Console;
use xtask::process;

use crate::appliance::{Appliance, IQN, Site, TOKEN};
use crate::context::Context;
use crate::runner::Test;

pub const TESTS: &[Test] = &[Test {
    limit: Duration::from_secs(420),
    ..Test::new("linux_commands::tools_and_two_portals", tools_and_two_portals)
}];

/// Booting Linux under emulation takes its time on a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(180);

/// What fio writes, times the effort: seconds in CI.
const FIO_MIB: u64 = 8;

fn tools_and_two_portals(context: &Context) -> Result<()> {
    let mut site = Site::new(context, 16 << 20, 512 << 20)?;
    site.portals = 2;
    let mut appliance = site.start()?;
    for name in ["v", "copy"] {
        appliance.make_volume(name, 128 << 20)?;
    }
    let mut guest = start_guest(context, &appliance)?;
    for stage in ["SPACE", "WRITES", "RESERVATIONS", "COPIED", "ALL RIGHT"] {
        let limit = if stage == "ALL RIGHT" { STEP_LIMIT * context.effort.max(1) as u32 } else { STEP_LIMIT };
        guest.wait_for(stage, limit, |line| line.text.starts_with(stage).then_some(()))?;
    }
    let status = guest.wait_end(STEP_LIMIT)?;
    ensure!(status.success(), "the guest ended with {status}:\n{}", guest.text());
    let used = appliance.call("GET", "/v1/volumes/copy", &json!(null))?["mapped_bytes"].as_u64();
    ensure!(used == Some(4 << 20), "the copy maps {used:?} bytes");
    appliance.check_alive()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

fn start_guest(context: &Context, appliance: &Appliance) -> Result<Console> {
    let script = xtask::root().join("tests/e2e/guest/commands.sh");
    let mut command = process::tied(context.lab("linux-vm")?);
    let modules = "initiator,ext4,dm-multipath,dm-round-robin";
    command.args(["--net", "user", "--modules", modules, "--tools", "iscsi,fs,sg,fio"]);
    command.args(["--timeout", &(400 * context.effort.max(1)).to_string()]);
    let [first, second] = appliance.portals() else { bail!("{} portals", appliance.portals().len()) };
    let values = [
        ("PORT", first.port().to_string()),
        ("SECOND_PORT", second.port().to_string()),
        ("HTTP_PORT", appliance.http.address.port().to_string()),
        ("FIO_MIB", (FIO_MIB * context.effort.max(1)).to_string()),
    ];
    for (name, value) in values {
        command.args(["--env", &format!("{name}={value}")]);
    }
    for (name, value) in [("TOKEN", TOKEN), ("VOLUME", "v"), ("COPY", "copy"), ("IQN", IQN)] {
        command.args(["--env", &format!("{name}={value}")]);
    }
    command.arg("--").arg(script);
    Console::start(&mut command, false)
}
