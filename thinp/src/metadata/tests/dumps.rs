//! What a dump writes, and in what pieces.

use super::{commit, device, format, id, map, open_view, runtime};
use crate::metadata::dump::{DumpError, Format, Options, dump};
use crate::metadata::{Metadata, MetadataError, VirtualBlock};
use platform::block::Disk;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::string::{String, ToString};
use std::vec::Vec;

/// Device 1 has a range and a block, device 2 is its snapshot, device 3 has what came later.
async fn three_devices() -> (MemDisk, Metadata) {
    let (disk, metadata) = format(512, 1000).await;
    metadata.set_transaction_id(0, 9).await.unwrap();
    device(&metadata, 1, 3).await;
    map(&metadata, 1, 5).await.unwrap();
    metadata.create_snap(id(2), id(1)).await.unwrap();
    device(&metadata, 3, 2).await;
    commit(&metadata).await;
    (disk, metadata)
}

async fn text(disk: &MemDisk, format: Format, devices: &[u64]) -> Result<String, DumpError<()>> {
    let devices = devices.iter().map(|device| id(*device)).collect();
    let options = Options { format, devices, ..Options::default() };
    let mut text = Vec::new();
    let sink = async |piece: &[u8]| {
        text.extend_from_slice(piece);
        Ok(())
    };
    dump(&runtime(), &Disk::new(disk.clone()), &options, sink).await?;
    Ok(String::from_utf8(text).unwrap())
}

/// As reference 8.1 has them. In the newer XML a leaf that devices share is defined once.
#[test]
fn each_format_has_its_own_words() {
    block_on_ready(async {
        let (disk, metadata) = three_devices().await;
        let leaf = open_view(&metadata).await.committed.root_of(id(1)).await.unwrap();
        let xml = XML.replace("LEAF", &leaf.to_string());
        assert_eq!(text(&disk, Format::Xml, &[]).await, Ok(xml));
        assert_eq!(text(&disk, Format::Xml09, &[2, 3]).await, Ok(XML_09.into()));
        assert_eq!(text(&disk, Format::HumanReadable, &[2, 3]).await, Ok(READABLE.into()));
    });
}

const XML: &str = concat!(
    r#"<superblock uuid="" time="1" transaction="9" version="2" data_block_size="128" nr_data_blocks="1000">"#,
    r#"
  <def name="LEAF">
    <range_mapping origin_begin="0" data_begin="0" length="3" time="0"/>
    <single_mapping origin_block="5" data_block="3" time="0"/>
  </def>
  <device dev_id="1" mapped_blocks="4" transaction="9" creation_time="0" snap_time="1">
    <ref name="LEAF"/>
  </device>
  <device dev_id="2" mapped_blocks="4" transaction="9" creation_time="1" snap_time="1">
    <ref name="LEAF"/>
  </device>
  <device dev_id="3" mapped_blocks="2" transaction="9" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="4" length="2" time="1"/>
  </device>
</superblock>"#
);

const XML_09: &str = concat!(
    r#"<superblock uuid="" time="1" transaction="9" flags="0" version="2" "#,
    r#"data_block_size="128" nr_data_blocks="1000">
  <device dev_id="2" mapped_blocks="4" transaction="9" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="0" length="3" time="0"/>
    <single_mapping origin_block="5" data_block="3" time="0"/>
  </device>
  <device dev_id="3" mapped_blocks="2" transaction="9" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="4" length="2" time="1"/>
  </device>
</superblock>
"#
);

const READABLE: &str = r#"begin superblock: "", 1, 9, 0, 2, 128, 1000
device: 2
mapped_blocks: 4
transaction: 9
creation time: 1
snap time: 1
    (0..2) -> (0..2), 0
    (5..5) -> (3..3), 0

device: 3
mapped_blocks: 2
transaction: 9
creation time: 1
snap time: 1
    (0..1) -> (4..5), 1

end superblock
"#;

const JSON: [&str; 3] = [
    "{\"device\":1,\"begin\":0,\"length\":3,\"data_begin\":0,\"time\":0}\n",
    "{\"device\":1,\"begin\":5,\"length\":1,\"data_begin\":3,\"time\":0}\n",
    "{\"device\":3,\"begin\":0,\"length\":2,\"data_begin\":4,\"time\":1}\n",
];

#[test]
fn the_devices_that_are_asked_for_are_dumped_or_missed() {
    block_on_ready(async {
        let (disk, _metadata) = three_devices().await;
        assert_eq!(text(&disk, Format::Json, &[3, 1]).await, Ok(JSON.concat()));
        assert_eq!(text(&disk, Format::Json, &[3]).await, Ok(JSON[2].into()));
        let missing = Err(DumpError::Metadata(MetadataError::NoDevice(id(4))));
        assert_eq!(text(&disk, Format::Json, &[1, 4, 3]).await, missing);
    });
}

#[test]
fn one_device_of_a_view_is_dumped_from_where_it_is_asked_for() {
    block_on_ready(async {
        let (_disk, metadata) = three_devices().await;
        let view = open_view(&metadata).await;
        let text = async |device, from| {
            let mut text = Vec::new();
            let sink = async |piece: &[u8]| {
                text.extend_from_slice(piece);
                Ok::<(), ()>(())
            };
            view.dump_device(id(device), VirtualBlock(from), Format::Json, sink).await.map(|()| text)
        };
        for (from, lines) in [(0, &JSON[..2]), (3, &JSON[1..2]), (6, &[])] {
            assert_eq!(text(1, from).await, Ok(lines.concat().into_bytes()), "from {from}");
        }
        assert_eq!(text(4, 0).await, Err(DumpError::Metadata(MetadataError::NoDevice(id(4)))));
    });
}

/// So memory does not grow with what is dumped.
#[test]
fn one_device_of_a_view_is_dumped_in_pieces() {
    block_on_ready(async {
        let (_disk, metadata) = format(512, 2000).await;
        device(&metadata, 1, 0).await;
        for block in 0..1500 {
            map(&metadata, 1, 2 * block).await.unwrap();
        }
        commit(&metadata).await;
        let mut lens = Vec::new();
        let sink = async |piece: &[u8]| {
            lens.push(piece.len());
            Ok::<(), ()>(())
        };
        let view = open_view(&metadata).await;
        view.dump_device(id(1), VirtualBlock(0), Format::Json, sink).await.unwrap();
        // The first has 64 KiB and the text of a leaf more at most.
        assert!(lens.len() == 2 && (0x1_0000..0x1_4000).contains(&lens[0]), "{lens:?}");
    });
}
