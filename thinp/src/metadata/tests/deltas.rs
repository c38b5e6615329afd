//! In what two devices differ.

use super::{commit, device, format, id, map, open_view};
use crate::metadata::delta::{Format, Found, Options};
use crate::metadata::view::View;
use crate::metadata::{DataBlock, Metadata, VirtualBlock};
use platform::task::block_on_ready;
use std::string::String;
use std::vec::Vec;

/// Device 2 was a snapshot of device 1, which had 6 blocks: 1 lost the first two, 2 overwrote the third and lost the last, and both
/// got some more.
async fn two_devices() -> (Metadata, View) {
    let (_, metadata) = format(512, 1000).await;
    device(&metadata, 1, 6).await;
    metadata.create_snap(id(2), id(1)).await.unwrap();
    metadata.open_device(id(2)).await.unwrap();
    let all = VirtualBlock(u64::MAX);
    metadata.remove_range(id(1), VirtualBlock(0), VirtualBlock(2), 2).await.unwrap();
    metadata.remove_range(id(2), VirtualBlock(5), all, 1).await.unwrap();
    for (device, block) in [(2, 2), (1, 8), (2, 9), (1, 10), (2, 10), (1, 20), (1, 21), (2, 30)] {
        map(&metadata, device, block).await.unwrap();
    }
    commit(&metadata).await;
    let view = open_view(&metadata).await;
    (metadata, view)
}

fn options(format: Format, same: bool) -> Options {
    Options { left: id(1), right: id(2), format, same, from: VirtualBlock(0) }
}

/// First block, number of blocks, and where the data of the first is on both sides.
type Told = (u64, u64, Option<u64>, Option<u64>);

async fn runs(view: &View, options: &Options) -> Vec<Told> {
    let (mut runs, mut told) = (view.delta_runs(options).await.unwrap(), Vec::new());
    while let Some(run) = runs.next().await.unwrap() {
        let (left, right) = match run.found {
            Found::Same(DataBlock(data)) => (Some(data), Some(data)),
            Found::Different { left, right } => (Some(left.0), Some(right.0)),
            Found::LeftOnly(data) => (Some(data.0), None),
            Found::RightOnly(data) => (None, Some(data.0)),
        };
        told.push((run.begin.0, run.blocks, left, right));
    }
    told
}

#[test]
fn each_block_is_told_of_in_order_and_as_it_is() {
    block_on_ready(async {
        let (_metadata, view) = two_devices().await;
        let same = [(3, 2, Some(3), Some(3))];
        let before = [(0, 2, None, Some(0)), (2, 1, Some(2), Some(6))];
        let behind = [
            (5, 1, Some(5), None),
            (8, 1, Some(7), None),
            (9, 1, None, Some(8)),
            (10, 1, Some(9), Some(10)),
            (20, 2, Some(11), None),
            (30, 1, None, Some(13)),
        ];
        for format in [Format::Json, Format::Xml] {
            assert_eq!(runs(&view, &options(format, true)).await, [&before[..], &same, &behind].concat());
            assert_eq!(runs(&view, &options(format, false)).await, [&before[..], &behind].concat());
        }
    });
}

/// By itself, and as text: in JSON a run ends where its data does not go on.
#[test]
fn the_text_tells_the_same_as_the_runs() {
    block_on_ready(async {
        let (_, metadata) = format(512, 1000).await;
        device(&metadata, 2, 0).await;
        device(&metadata, 1, 1).await;
        map(&metadata, 1, 2).await.unwrap();
        map(&metadata, 1, 1).await.unwrap();
        commit(&metadata).await;
        let view = open_view(&metadata).await;
        let text = async |format| {
            let mut text = Vec::new();
            let sink = async |piece: &[u8]| {
                text.extend_from_slice(piece);
                Ok::<(), ()>(())
            };
            view.delta(&options(format, false), sink).await.unwrap();
            String::from_utf8(text).unwrap()
        };
        let json = [(0, 1, 0), (1, 1, 2), (2, 1, 1)].map(|(begin, length, data)| {
            std::format!("{{\"kind\":\"left_only\",\"begin\":{begin},\"length\":{length},\"data_begin\":{data}}}\n")
        });
        assert_eq!(text(Format::Json).await, json.concat());
        let xml = text(Format::Xml).await;
        assert!(xml.contains("  <diff left=\"1\" right=\"2\">\n    <left_only begin=\"0\" length=\"3\"/>\n"), "{xml}");
    });
}
