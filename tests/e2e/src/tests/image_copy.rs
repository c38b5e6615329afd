//! A disk image written with qemu-img is found again, identical, after a restart; a copy that the appliance makes of it
//! for qemu-img takes no data.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::dice::Dice;
use xtask::process;

use crate::appliance::{Appliance, IQN, Site};
use crate::context::Context;
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    Test::new("image_copy::survives_a_restart", survives_a_restart),
    Test::new("image_copy::between_volumes_moves_no_data", between_volumes_moves_no_data),
];

const IMAGE_BYTES: u64 = 64 << 20;
/// A data block of the pool.
const BLOCK_BYTES: u64 = 64 << 10;
const LIMIT: Duration = Duration::from_secs(240);

fn survives_a_restart(context: &Context) -> Result<()> {
    let source = context.scratch.join("source.raw");
    make_image(&source, &mut Dice::new(context.seed))?;
    let site = Site::new(context, 8 << 20, 256 << 20)?;

    let appliance = site.start()?;
    appliance.make_volume("image", IMAGE_BYTES)?;
    convert(&[], &source, appliance.url(&format!("{IQN}:image"))?)?;
    appliance.power_off()?;

    let appliance = site.start()?;
    compare(&source, appliance.url(&format!("{IQN}:image"))?).context("the volume differs from the image")?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

/// qemu-img has the appliance copy with EXTENDED COPY: afterwards two volumes have the data of one.
fn between_volumes_moves_no_data(context: &Context) -> Result<()> {
    let source = context.scratch.join("source.raw");
    make_image(&source, &mut Dice::new(context.seed))?;
    let site = Site::new(context, 8 << 20, 256 << 20)?;
    let appliance = site.start()?;
    for name in ["image", "copy"] {
        appliance.make_volume(name, IMAGE_BYTES)?;
    }
    let [image, copy] = [appliance.url(&format!("{IQN}:image"))?, appliance.url(&format!("{IQN}:copy"))?];
    convert(&[], &source, &image)?;
    let used = used_blocks(&appliance)?;
    ensure!(used > IMAGE_BYTES / BLOCK_BYTES / 8, "the image has hardly any data");
    convert(&["-C"], &image, &copy)?;
    compare(&image, &copy).context("the copy differs")?;
    ensure!(used_blocks(&appliance)? == used, "the copy took data: {} blocks were used before", used);
    // What is written to one afterwards the other does not get.
    let mut session = appliance.login("image")?;
    for lba in (0..IMAGE_BYTES / 512).step_by(4096) {
        session.write(lba, &[0x5a; 512], false)?;
    }
    session.flush()?;
    session.logout()?;
    compare(&source, &copy).context("the copy changed with what it is of")?;
    appliance.power_off()?;

    let appliance = site.start()?;
    compare(&source, appliance.url(&format!("{IQN}:copy"))?).context("the copy differs after a restart")?;
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

/// Data blocks in use.
fn used_blocks(appliance: &Appliance) -> Result<u64> {
    let pool = appliance.call("GET", "/v1/pool", &Value::Null)?;
    pool["data_used_blocks"].as_u64().with_context(|| format!("no data_used_blocks in {pool}"))
}

fn convert(options: &[&str], from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-n", "-f", "raw", "-O", "raw"]).args(options).arg(from).arg(to);
    process::succeed(&mut convert, LIMIT).map(drop)
}

fn compare(a: impl AsRef<OsStr>, b: impl AsRef<OsStr>) -> Result<()> {
    let mut compare = Command::new("qemu-img");
    let same = process::succeed(compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(a).arg(b), LIMIT)?;
    ensure!(same.text().contains("identical"), "qemu-img says {:?}", same.text());
    Ok(())
}

/// An image with data, zeroes and holes in pieces of all sizes.
fn make_image(path: &std::path::Path, dice: &mut Dice) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(IMAGE_BYTES)?;
    let mut at = 0;
    while at < IMAGE_BYTES {
        let sectors_max = 1 << dice.below(12);
        let len = (512 * dice.between(1, sectors_max)).min(IMAGE_BYTES - at);
        if dice.chance(50) {
            let mut piece = vec![0; len as usize];
            if dice.chance(90) {
                dice.fill(&mut piece);
            }
            file.write_all_at(&piece, at)?;
        }
        at += len;
    }
    Ok(())
}
