//! What `thin_dump` 1.x says of a pool's metadata.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, bail, ensure};

/// A device's details and mappings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Mapped blocks, transaction id, creation time, snapshotted time.
    pub details: [u64; 4],
    /// Data block and time of each mapped virtual block.
    pub mappings: BTreeMap<u64, (u64, u64)>,
}

/// A pool, or its metadata snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dump {
    /// The pool's time.
    pub time: u64,
    /// The user's transaction id.
    pub transaction_id: u64,
    /// Sectors in a data block.
    pub data_block_sectors: u64,
    /// Data blocks in all; 0 of a metadata snapshot.
    pub data_blocks: u64,
    /// By id.
    pub devices: BTreeMap<u64, Device>,
}

impl Dump {
    /// Reads the XML of thin_dump 1.x, one element a line; shared parts come as `def` and `ref`.
    pub fn parse(xml: &str) -> Result<Dump> {
        let mut dump = Dump::default();
        let mut shared: HashMap<&str, BTreeMap<u64, (u64, u64)>> = HashMap::new();
        let (mut device, mut def) = (None, None);
        for line in xml.lines().map(str::trim) {
            let Some((tag, rest)) = line.strip_prefix('<').and_then(|line| line.split_once([' ', '>'])) else {
                continue;
            };
            let number = |key: &str| attribute(rest, key)?.parse::<u64>().with_context(|| format!("{key} in {line}"));
            let run = |from: &str, to: &str, length: u64| -> Result<BTreeMap<u64, (u64, u64)>> {
                let (from, to, time) = (number(from)?, number(to)?, number("time")?);
                Ok((0..length).map(|i| (from + i, (to + i, time))).collect())
            };
            let mappings = match tag {
                "superblock" => {
                    (dump.time, dump.transaction_id) = (number("time")?, number("transaction")?);
                    (dump.data_block_sectors, dump.data_blocks) =
                        (number("data_block_size")?, number("nr_data_blocks")?);
                    continue;
                }
                "device" => {
                    let keys = ["mapped_blocks", "transaction", "creation_time", "snap_time"];
                    let mut details = [0; 4];
                    for (detail, key) in details.iter_mut().zip(keys) {
                        *detail = number(key)?;
                    }
                    (device, def) = (Some(number("dev_id")?), None);
                    dump.devices.insert(number("dev_id")?, Device { details, mappings: BTreeMap::new() });
                    continue;
                }
                "def" => {
                    (device, def) = (None, Some(attribute(rest, "name")?));
                    // It may be empty: a device without mappings and its snapshot.
                    shared.entry(attribute(rest, "name")?).or_default();
                    continue;
                }
                "ref" => shared.get(attribute(rest, "name")?).cloned().context("a ref to what is not there")?,
                "single_mapping" => run("origin_block", "data_block", 1)?,
                "range_mapping" => run("origin_begin", "data_begin", number("length")?)?,
                _ => continue,
            };
            match (device, def) {
                (Some(id), _) => dump.devices.entry(id).or_default().mappings.extend(mappings),
                (None, Some(name)) => shared.entry(name).or_default().extend(mappings),
                (None, None) => bail!("a mapping of no device: {line}"),
            }
        }
        ensure!(xml.contains("</superblock>"), "the dump is cut short");
        Ok(dump)
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

    const XML: &str = r#"<superblock uuid="" time="1" transaction="4" version="2" data_block_size="128" nr_data_blocks="16">
  <def name="1">
    <single_mapping origin_block="0" data_block="5" time="0"/>
  </def>
  <def name="2">
  </def>
  <device dev_id="7" mapped_blocks="3" transaction="3" creation_time="0" snap_time="1">
    <ref name="1"/>
    <range_mapping origin_begin="2" data_begin="8" length="2" time="1"/>
  </device>
  <device dev_id="9" mapped_blocks="1" transaction="0" creation_time="0" snap_time="0">
    <ref name="1"/>
    <ref name="2"/>
  </device>
</superblock>"#;

    #[test]
    fn dumps_are_read() {
        let dump = Dump::parse(XML).unwrap();
        assert_eq!((dump.time, dump.transaction_id, dump.data_block_sectors, dump.data_blocks), (1, 4, 128, 16));
        assert_eq!(dump.devices[&7].details, [3, 3, 0, 1]);
        assert_eq!(dump.devices[&7].mappings, BTreeMap::from([(0, (5, 0)), (2, (8, 1)), (3, (9, 1))]));
        assert_eq!(dump.devices[&9].mappings, BTreeMap::from([(0, (5, 0))]));
        assert!(Dump::parse("<superblock time=\"1\"").is_err());
        assert!(Dump::parse(&XML.replace("<ref name=\"2\"/>", "<ref name=\"3\"/>")).is_err());
    }
}
