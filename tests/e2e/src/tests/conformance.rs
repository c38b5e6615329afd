//! libiscsi's conformance tests, on volumes of each shape. What does not pass must stand in `docs/conformance.md`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::conformance::{self, Verdict};

use crate::appliance::{Appliance, IQN, Site};
use crate::context::Context;
use crate::runner::{Group, On, Test};

const MIB: u64 = 1 << 20;

/// Of the tests on a plain volume at least so many pass.
const PASSED_MIN: usize = 190;

/// Of the shape `chap`; at least 12 bytes, as the RFC wants.
const SECRET: &str = "of-the-host-7-only";

const fn shape(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test { name, on: On::Every, group: Group::Conformance, limit: Duration::from_secs(1200), run }
}

pub const TESTS: &[Test] = &[
    shape("conformance::plain", plain),
    shape("conformance::read_only", read_only),
    shape("conformance::512e", physical_blocks_of_4096),
    shape("conformance::4096", logical_blocks_of_4096),
    shape("conformance::two_portals", two_portals),
    shape("conformance::chap", chap),
];

fn plain(context: &Context) -> Result<()> {
    let passed = conform(context, "plain", &json!({}))?;
    ensure!(passed >= PASSED_MIN, "{passed} tests passed; it must be {PASSED_MIN}");
    Ok(())
}

fn physical_blocks_of_4096(context: &Context) -> Result<()> {
    conform(context, "512e", &json!({"physical_block_bytes": 4096})).map(drop)
}

fn logical_blocks_of_4096(context: &Context) -> Result<()> {
    conform(context, "4096", &json!({"block_bytes": 4096})).map(drop)
}

fn read_only(context: &Context) -> Result<()> {
    let appliance = serve(&site(context)?, "read-only", &json!({}))?;
    appliance.call("PATCH", "/v1/volumes/read-only", &json!({"read_only": true}))?;
    examine(&appliance, "read-only", "", None)?;
    appliance.power_off()
}

/// The tests of several paths go over both portal groups.
fn two_portals(context: &Context) -> Result<()> {
    let mut site = site(context)?;
    site.portals = 2;
    let appliance = serve(&site, "two-portals", &json!({}))?;
    let second = appliance.portals().get(1).context("there is no second portal")?;
    examine(&appliance, "two-portals", "", Some(format!("iscsi://{second}/{IQN}:two-portals/0")))?;
    appliance.power_off()
}

/// One-way CHAP: mutual CHAP is what Linux's initiator is there for.
fn chap(context: &Context) -> Result<()> {
    let appliance = serve(&site(context)?, "chap", &json!({}))?;
    let rule = json!({"initiators": "all", "chap": {"user": "host-7", "secret": SECRET}});
    appliance.call("PUT", "/v1/volumes/chap/export", &rule)?;
    examine(&appliance, "chap", &format!("host-7%{SECRET}@"), None)?;
    appliance.power_off()
}

/// How many tests pass on a volume that is made so.
fn conform(context: &Context, shape: &str, blocks: &Value) -> Result<usize> {
    let appliance = serve(&site(context)?, shape, blocks)?;
    let passed = examine(&appliance, shape, "", None)?;
    appliance.power_off()?;
    Ok(passed)
}

fn site(context: &Context) -> Result<Site> {
    Site::new(context, 64 * MIB, 4096 * MIB)
}

/// An appliance with a volume of 1,000 MiB that has the shape's name.
fn serve(site: &Site, shape: &str, blocks: &Value) -> Result<Appliance> {
    let appliance = site.start()?;
    let mut new = json!({"name": shape, "size_bytes": 1000 * MIB});
    for (key, value) in blocks.as_object().into_iter().flatten() {
        new[key] = value.clone();
    }
    appliance.call("POST", "/v1/volumes", &new)?;
    appliance.export(shape)?;
    Ok(appliance)
}

/// Runs the tests on a volume, to which `login` (`USER%SECRET@`) opens the way and perhaps a second one leads, prints the table
/// and compares it with what is accounted for. How many passed.
fn examine(appliance: &Appliance, shape: &str, login: &str, second: Option<String>) -> Result<usize> {
    let first = format!("iscsi://{login}{}/{IQN}:{shape}/0", appliance.portal()?);
    let urls: Vec<String> = [first].into_iter().chain(second).collect();
    let verdicts = conformance::run(&urls)?;
    println!("{}", conformance::table(shape, &verdicts));
    conformance::check(&xtask::root(), shape, &verdicts)?;
    Ok(verdicts.iter().filter(|verdict| Verdict::counts(verdict)).count())
}
