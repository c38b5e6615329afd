//! Linux's own initiator in trouble: CHAP both ways and digests, a connection that is cut and an appliance that is started
//! anew under a load of writes, a disk that grows, two paths. The file system notices nothing but the time.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use xtask::console::Console;
use xtask::process;

use crate::appliance::{IQN, Site};
use crate::context::Context;
use crate::relay::Relay;
use crate::runner::Test;

pub const TESTS: &[Test] = &[Test {
    limit: Duration::from_secs(420),
    ..Test::new("linux_faults::a_file_system_survives_cuts_and_a_restart", survives)
}];

/// Booting Linux under emulation, and finding a target again, take their time on a busy machine.
const STEP_LIMIT: Duration = Duration::from_secs(180);

const VOLUME_BYTES: u64 = 128 << 20;
const GROWN_BYTES: u64 = 192 << 20;

const SECRET: &str = "of the host 7 only";
const OWN_SECRET: &str = "of the appliance";
const FINDER_SECRET: &str = "to be told the list";

fn survives(context: &Context) -> Result<()> {
    let listener = Relay::listener()?;
    let mut site = Site::new(context, 16 << 20, 512 << 20)?;
    site.settings.push(format!("iscsi.portal=10.0.2.2:{}", listener.local_addr()?.port()));
    let mut appliance = site.start()?;
    let mutual = json!({"user": "gossamer", "secret": OWN_SECRET});
    appliance.call("POST", "/v1/volumes", &json!({"name": "v", "size_bytes": VOLUME_BYTES}))?;
    let rule = json!({"initiators": "all", "addresses": ["0.0.0.0/0"],
        "chap": {"user": "host-7", "secret": SECRET}, "mutual": mutual});
    appliance.call("PUT", "/v1/volumes/v/export", &rule)?;
    let finder = json!({"chap": {"user": "finder", "secret": FINDER_SECRET}});
    appliance.call("PUT", "/v1/pool/discovery-auth", &finder)?;

    let without = appliance.login("v").map(drop).map_err(|error| format!("{error:#}"));
    ensure!(matches!(&without, Err(why) if why.contains("status 0201")), "a login without a secret: {without:?}");

    let relay = Relay::start(listener, appliance.portal()?)?;
    let mut guest = start_guest(context, relay.port)?;
    guest.wait_for("the refused logins", STEP_LIMIT, |line| line.text.starts_with("REFUSED").then_some(()))?;
    wait_for_rounds(&guest, 3)?;
    ensure!(relay.cut() > 0, "there was no connection to cut");
    wait_for_rounds(&guest, 3)?;

    appliance.power_off()?;
    appliance = site.start()?;
    relay.turn_to(appliance.portal()?);
    wait_for_rounds(&guest, 3)?;

    appliance.call("PATCH", "/v1/volumes/v", &json!({"size_bytes": GROWN_BYTES}))?;
    guest.wait_for("the guest's verdict", STEP_LIMIT, |line| line.text.starts_with("ALL RIGHT").then_some(()))?;
    let status = guest.wait_end(STEP_LIMIT)?;
    ensure!(status.success(), "the guest ended with {status}:\n{}", guest.text());
    let shown = appliance.call("GET", "/v1/volumes/v", &json!(null))?.to_string() + &appliance.console();
    for secret in [SECRET, OWN_SECRET, FINDER_SECRET] {
        ensure!(!shown.contains(secret), "a secret is shown:\n{shown}");
    }
    appliance.check_alive()?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

/// Waits until the load has got so many rounds further.
fn wait_for_rounds(guest: &Console, more: usize) -> Result<()> {
    let wanted = guest.text().lines().filter(|line| line.starts_with("ROUND")).count() + more;
    let mut seen = 0;
    guest.wait_for(&format!("round {wanted} of the load"), STEP_LIMIT, |line| {
        seen += usize::from(line.text.starts_with("ROUND"));
        (seen >= wanted).then_some(())
    })
}

fn start_guest(context: &Context, port: u16) -> Result<Console> {
    let script = xtask::root().join("tests/e2e/guest/faults.sh");
    let mut command = process::tied(context.lab("linux-vm")?);
    let modules = "initiator,ext4,dm-multipath,dm-round-robin";
    command.args(["--net", "user", "--modules", modules, "--tools", "iscsi,fs", "--timeout", "400"]);
    for (name, value) in [("SECRET", SECRET), ("OWN_SECRET", OWN_SECRET), ("FINDER_SECRET", FINDER_SECRET)] {
        command.args(["--env", &format!("{name}={value}")]);
    }
    command.args(["--env", &format!("PORT={port}"), "--env", &format!("VOLUME={IQN}:v")]);
    command.args(["--env", &format!("GROWN_SECTORS={}", GROWN_BYTES / 512)]);
    command.arg("--").arg(script);
    Console::start(&mut command, false)
}
