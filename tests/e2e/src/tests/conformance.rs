//! libiscsi's conformance tests, on volumes of each shape. What does not pass must stand in `docs/conformance.md`.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use xtask::conformance::{self, Verdict};

use crate::appliance::{Appliance, IQN, Site};
use crate::context::Context;
use crate::runner::{Group, On, Test};

const MIB: u64 = 1 << 20;

/// Of the tests on a plain volume at least so many pass.
const PASSED_MIN: usize = 190;

const fn shape(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test { name, on: On::Every, group: Group::Conformance, limit: Duration::from_secs(1200), run }
}

pub const TESTS: &[Test] = &[
    shape("conformance::plain", plain),
    shape("conformance::read_only", read_only),
    shape("conformance::512e", physical_blocks_of_4096),
    shape("conformance::4096", logical_blocks_of_4096),
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
    let appliance = serve(context, "read-only", &json!({}))?;
    appliance.call("PATCH", "/v1/volumes/read-only", &json!({"read_only": true}))?;
    examine(&appliance, "read-only", "").map(drop)?;
    appliance.power_off()
}

/// How many tests pass on a volume that is made so.
fn conform(context: &Context, shape: &str, blocks: &Value) -> Result<usize> {
    let appliance = serve(context, shape, blocks)?;
    let passed = examine(&appliance, shape, "")?;
    appliance.power_off()?;
    Ok(passed)
}

/// An appliance with a volume of 1,000 MiB that has the shape's name.
fn serve(context: &Context, shape: &str, blocks: &Value) -> Result<Appliance> {
    let appliance = Site::new(context, 64 * MIB, 4096 * MIB)?.start()?;
    let mut new = json!({"name": shape, "size_bytes": 1000 * MIB});
    for (key, value) in blocks.as_object().into_iter().flatten() {
        new[key] = value.clone();
    }
    appliance.call("POST", "/v1/volumes", &new)?;
    appliance.export(shape)?;
    Ok(appliance)
}

/// Runs the tests on a volume, prints the table and compares it with what is accounted for.
fn examine(appliance: &Appliance, shape: &str, second: &str) -> Result<usize> {
    let mut urls = vec![appliance.url(&format!("{IQN}:{shape}"))?];
    urls.extend((!second.is_empty()).then(|| second.to_owned()));
    let verdicts = conformance::run(&urls)?;
    println!("{}", conformance::table(shape, &verdicts));
    conformance::check(&xtask::root(), shape, &verdicts)?;
    Ok(verdicts.iter().filter(|verdict| Verdict::counts(verdict)).count())
}
