//! What thin_dump says: which data block holds which block of which device.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};

/// The mappings of a pool.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Sectors in a data block.
    pub block_sectors: u64,
    /// Data blocks in all.
    pub data_blocks: u64,
    /// Each device's mappings, virtual block to data block.
    pub devices: BTreeMap<u64, BTreeMap<u64, u64>>,
}

impl Pool {
    /// Reads the XML of thin_dump 1.x, one element a line; shared parts come as `def` and `ref`.
    pub fn parse(xml: &str) -> Result<Pool> {
        let mut pool = Pool::default();
        let mut shared: HashMap<&str, BTreeMap<u64, u64>> = HashMap::new();
        // What the mappings on the following lines belong to.
        let mut device = None;
        let mut def = None;
        for line in xml.lines() {
            let line = line.trim();
            let Some((tag, rest)) = line.strip_prefix('<').and_then(|line| line.split_once([' ', '>'])) else {
                continue;
            };
            let number = |key: &str| attribute(rest, key)?.parse::<u64>().with_context(|| format!("{key} in {line}"));
            let runs: Vec<(u64, u64)> = match tag {
                "superblock" => {
                    pool.block_sectors = number("data_block_size")?;
                    pool.data_blocks = number("nr_data_blocks")?;
                    continue;
                }
                "device" => {
                    (device, def) = (Some(number("dev_id")?), None);
                    pool.devices.entry(number("dev_id")?).or_default();
                    continue;
                }
                "def" => {
                    (device, def) = (None, Some(attribute(rest, "name")?));
                    // It may be empty: a device without mappings and its snapshot.
                    shared.entry(attribute(rest, "name")?).or_default();
                    continue;
                }
                "ref" => {
                    let name = attribute(rest, "name")?;
                    let mappings = shared.get(name).with_context(|| format!("a ref to {name}, which is not there"))?;
                    mappings.iter().map(|(from, to)| (*from, *to)).collect()
                }
                "single_mapping" => vec![(number("origin_block")?, number("data_block")?)],
                "range_mapping" => {
                    let (from, to) = (number("origin_begin")?, number("data_begin")?);
                    (0..number("length")?).map(|i| (from + i, to + i)).collect()
                }
                _ => continue,
            };
            let mappings = match (device, def) {
                (Some(id), _) => pool.devices.entry(id).or_default(),
                (None, Some(name)) => shared.entry(name).or_default(),
                (None, None) => anyhow::bail!("a mapping of no device: {line}"),
            };
            mappings.extend(runs);
        }
        Ok(pool)
    }
}

fn attribute<'a>(text: &'a str, key: &str) -> Result<&'a str> {
    let start = format!("{key}=\"");
    let at = text.find(&start).with_context(|| format!("no {key} in {text}"))? + start.len();
    text[at..].split('"').next().with_context(|| format!("no end of {key} in {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_of_devices_and_of_shared_parts() {
        let xml = r#"<superblock uuid="" time="1" transaction="0" version="2" data_block_size="128" nr_data_blocks="16">
  <def name="1">
    <single_mapping origin_block="0" data_block="5" time="0"/>
  </def>
  <device dev_id="7" mapped_blocks="3" transaction="0" creation_time="0" snap_time="1">
    <ref name="1"/>
    <range_mapping origin_begin="2" data_begin="8" length="2" time="1"/>
  </device>
  <device dev_id="9" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0">
  </device>
</superblock>"#;
        let pool = Pool::parse(xml).unwrap();
        assert_eq!((pool.block_sectors, pool.data_blocks), (128, 16));
        assert_eq!(pool.devices[&7], BTreeMap::from([(0, 5), (2, 8), (3, 9)]));
        assert_eq!(pool.devices[&9], BTreeMap::new());
    }
}
