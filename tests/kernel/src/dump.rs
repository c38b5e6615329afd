//! What two pools hold, without regard to where things happen to lie.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use xtask::thin_dump::Dump;

/// Calls data blocks by the order in which one meets them, so that pools that were given other blocks for the same
/// contents are the same, and the stored count of each with it.
#[derive(Debug, Default)]
pub struct Names {
    names: HashMap<u64, u64>,
    counts: Vec<u32>,
}

impl Names {
    /// Names for the data blocks with these counts.
    pub fn new(counts: Vec<u32>) -> Names {
        Names { names: HashMap::new(), counts }
    }

    /// The same dump with names in place of block numbers.
    pub fn rename(&mut self, mut dump: Dump) -> Dump {
        for (block, _) in dump.devices.values_mut().flat_map(|device| device.mappings.values_mut()) {
            let next = self.names.len() as u64;
            *block = *self.names.entry(*block).or_insert(next);
        }
        dump
    }

    /// The counts by name, and those of blocks without one.
    pub fn counts(&self) -> (BTreeMap<u64, u32>, Vec<u32>) {
        let (mut named, mut nameless) = (BTreeMap::new(), Vec::new());
        for (block, count) in (0..).zip(&self.counts) {
            match self.names.get(&block) {
                Some(name) => {
                    named.insert(*name, *count);
                }
                None if *count > 0 => nameless.push(*count),
                None => {}
            }
        }
        (named, nameless)
    }
}

/// How many metadata blocks have a reference count of 1, of 2, and of more, by the bitmaps (reference 1.3, 2.2, 2.3).
pub fn metadata_counts(meta: &[u8]) -> Result<[u64; 3]> {
    const BLOCK: usize = 4096;
    const ENTRIES: u64 = 16_320;
    let word = |at: usize| -> Result<u64> {
        let bytes = meta.get(at..at + 8).context("the metadata ends too early")?;
        Ok(u64::from_le_bytes(bytes.try_into()?))
    };
    let (nr_blocks, index) = (word(192)?, word(192 + 16)? as usize);
    let mut histogram = [0; 3];
    for block in 0..nr_blocks {
        let bitmap = word(index * BLOCK + 16 + (block / ENTRIES) as usize * 16)? as usize;
        let entry = block % ENTRIES;
        let pair = word(bitmap * BLOCK + 16 + (entry / 32) as usize * 8)? >> (2 * (entry % 32)) & 3;
        match pair {
            0b10 => histogram[0] += 1,
            0b01 => histogram[1] += 1,
            0b11 => histogram[2] += 1,
            _ => {}
        }
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r#"<superblock uuid="" time="1" transaction="4" version="2" data_block_size="128" nr_data_blocks="16">
  <def name="1">
    <single_mapping origin_block="0" data_block="5" time="0"/>
  </def>
  <device dev_id="7" mapped_blocks="3" transaction="3" creation_time="0" snap_time="1">
    <ref name="1"/>
    <range_mapping origin_begin="2" data_begin="8" length="2" time="1"/>
  </device>
  <device dev_id="9" mapped_blocks="1" transaction="0" creation_time="0" snap_time="0">
    <ref name="1"/>
  </device>
</superblock>"#;

    #[test]
    fn what_lies_elsewhere_is_the_same_and_what_is_shared_otherwise_is_not() {
        let named = |xml: &str, counts: Vec<u32>| {
            let mut names = Names::new(counts);
            (names.rename(Dump::parse(xml).unwrap()), names.counts())
        };
        let one = named(XML, vec![0, 0, 0, 0, 0, 2, 0, 0, 1, 1]);
        assert_eq!(one, named(&XML.replace("\"5\"", "\"3\""), vec![0, 0, 0, 2, 0, 0, 0, 0, 1, 1]));
        assert_ne!(one, named(&XML.replace("\"5\"", "\"3\""), vec![0, 0, 0, 1, 0, 0, 0, 0, 1, 1]));
        assert_ne!(one.0, named(&XML.replace("\"5\"", "\"8\""), vec![]).0);
        assert_eq!(named(XML, vec![3]).1.1, [3]);
    }
}
