//! A disk image written with qemu-img is found again, identical, after a restart.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use xtask::dice::Dice;
use xtask::process;

use crate::appliance::Site;
use crate::context::Context;
use crate::runner::Test;

pub const TESTS: &[Test] = &[Test::new("image_copy::survives_a_restart", survives_a_restart)];

const IMAGE_BYTES: u64 = 64 << 20;
const LIMIT: Duration = Duration::from_secs(240);

fn survives_a_restart(context: &Context) -> Result<()> {
    let source = context.scratch.join("source.raw");
    make_image(&source, &mut Dice::new(context.seed))?;
    let site = Site::new(context, 8 << 20, 256 << 20)?;

    let appliance = site.start()?;
    appliance.make_volume("image", IMAGE_BYTES)?;
    let url = appliance.url("iqn.2026-11.io.gossamer:image")?;
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-n", "-f", "raw", "-O", "raw"]).arg(&source).arg(&url);
    process::succeed(&mut convert, LIMIT)?;
    appliance.power_off()?;

    let appliance = site.start()?;
    let url = appliance.url("iqn.2026-11.io.gossamer:image")?;
    let mut compare = Command::new("qemu-img");
    compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(&source).arg(&url);
    let same = process::succeed(&mut compare, LIMIT).context("the volume differs from the image")?;
    anyhow::ensure!(same.text().contains("identical"), "qemu-img says {:?}", same.text());
    appliance.power_off()?;
    context.thin_check(&site.meta)
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
