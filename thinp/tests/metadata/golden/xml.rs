//! What `thin_dump` 1.x prints, as far as mappings go.

use crate::harness::id;
use crate::model::Mappings;
use std::collections::BTreeMap;

/// The attributes of one XML element on a line of its own.
fn attributes(line: &str) -> BTreeMap<&str, &str> {
    let parts: Vec<&str> = line.split('"').collect();
    parts.chunks_exact(2).map(|pair| (pair[0].trim_end_matches('=').rsplit(' ').next().unwrap(), pair[1])).collect()
}

/// The attributes of the whole pool.
pub fn superblock(xml: &str) -> BTreeMap<&str, &str> {
    attributes(xml.lines().next().unwrap())
}

/// The mappings in what `thin_dump` 1.x prints: `def` is a named run of mappings, `ref` stands for one.
pub fn parse(xml: &str) -> Mappings {
    let (mut all, mut named) = (Mappings::new(), BTreeMap::<String, BTreeMap<u64, u64>>::new());
    let (mut current, mut name, mut device) = (BTreeMap::new(), String::new(), None);
    for line in xml.lines().map(str::trim) {
        let attributes = attributes(line);
        let number = |name: &str| attributes[name].parse::<u64>().unwrap();
        match line.split([' ', '>', '/']).find(|word| !word.trim_start_matches('<').is_empty()).unwrap_or("") {
            "<def" => name = attributes["name"].into(),
            "<device" => device = Some(id(number("dev_id"))),
            "<ref" => current.extend(&named[attributes["name"]]),
            "<single_mapping" => drop(current.insert(number("origin_block"), number("data_block"))),
            "<range_mapping" => {
                let blocks = number("origin_begin")..number("origin_begin") + number("length");
                current.extend(blocks.zip(number("data_begin")..));
            }
            _ => {}
        }
        if line == "</def>" {
            named.insert(std::mem::take(&mut name), std::mem::take(&mut current));
        } else if line == "</device>" || line.starts_with("<device") && line.ends_with("/>") {
            all.insert(device.take().unwrap(), std::mem::take(&mut current));
        }
    }
    all
}
