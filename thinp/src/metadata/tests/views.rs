//! What a view tells, and how much it may hold back.

use super::{commit, device, format, id, map, open_view};
use crate::metadata::{DataBlock, Details, MetadataError, VirtualBlock};
use platform::task::block_on_ready;
use std::vec::Vec;

#[test]
fn a_view_tells_of_its_moment() {
    block_on_ready(async {
        let (_, metadata) = format(512, 1000).await;
        device(&metadata, 1, 300).await;
        metadata.set_transaction_id(0, 7).await.unwrap();
        let held = metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
        device(&metadata, 2, 1).await;
        let shared = metadata.lookup(id(1), VirtualBlock(0)).await.unwrap().unwrap().block;
        // The leaf is the snapshot's, and from here on there is another.
        metadata.remove_range(id(1), VirtualBlock(1), VirtualBlock(2), 1).await.unwrap();
        let view = open_view(&metadata).await;
        metadata.set_transaction_id(7, 8).await.unwrap();
        device(&metadata, 3, 1).await;
        commit(&metadata).await;
        assert_eq!((view.transaction_id(), view.held_root()), (7, Some(held)));
        let counts = [shared.0, 301, 999].map(DataBlock);
        let mut counted = Vec::new();
        for block in counts {
            counted.push(view.data_block_count(block).await.unwrap());
        }
        assert_eq!(counted, [2, 0, 0]);
        let snapshot = view.metadata_snapshot().await.unwrap().unwrap();
        let (mut devices, mut told) = (snapshot.devices().await.unwrap(), Vec::new());
        while let Some((device, details)) = devices.next().await.unwrap() {
            told.push((device, details.mapped_blocks));
        }
        assert_eq!(told, [(id(1), 300)]);
        assert_eq!((snapshot.held_root(), snapshot.metadata_snapshot().await.unwrap().is_none()), (None, true));
    });
}

#[test]
fn a_view_tells_what_is_in_use_and_what_it_read() {
    block_on_ready(async {
        let (_, metadata) = format(512, 1000).await;
        device(&metadata, 1, 300).await;
        commit(&metadata).await;
        let view = open_view(&metadata).await;
        assert_eq!(view.metadata_blocks_in_use(), 512 - metadata.core().tm.free_blocks());
        assert_eq!(view.blocks_read(), 0);
        view.devices().await.unwrap().next().await.unwrap();
        // Each root twice: to begin with, and as a leaf.
        assert_eq!(view.blocks_read(), 4);
        let mut mappings = view.mappings(id(1)).await.unwrap();
        let mut mapped = 0;
        while mappings.next().await.unwrap().is_some() {
            mapped += 1;
        }
        assert_eq!((mapped, view.blocks_read()), (300, 10));
    });
}

#[test]
fn a_view_holds_back_a_quarter_at_most() {
    for (freed, ended) in [(100, false), (126, false), (129, true), (250, true)] {
        block_on_ready(async {
            let (_, metadata) = format(512, 1000).await;
            let mut hogged = metadata.hog(200).await.unwrap();
            let view = open_view(&metadata).await;
            metadata.let_go(hogged.split_off(hogged.len() - freed)).await.unwrap();
            assert!(metadata.has_room());
            assert_eq!((view.is_ended(), metadata.held_back_blocks() >= freed as u64), (ended, !ended), "{freed}");
            assert!(metadata.held_back_blocks() <= 128);
        });
    }
}

#[test]
fn a_view_that_holds_nothing_back_is_in_nobodys_way() {
    block_on_ready(async {
        let (_, metadata) = format(512, 1000).await;
        metadata.hog(60).await.unwrap();
        let view = open_view(&metadata).await;
        assert!(!metadata.has_room() && metadata.held_back_blocks() == 0);
        metadata.set_transaction_id(5, 6).await.unwrap_err();
        assert!(!view.is_ended());
        view.devices().await.unwrap();
    });
}

/// Device 1 has mappings and no details, device 2 the reverse.
#[test]
fn devices_that_are_in_one_tree_only_are_not_taken_for_each_other() {
    block_on_ready(async {
        let (_, metadata) = format(512, 1000).await;
        let core = metadata.core();
        core.set_device_root(id(1), core.mapping_root()).await.unwrap();
        core.set_device_details(id(2), Details::default()).await.unwrap();
        let view = open_view(&metadata).await;
        let error = view.devices().await.unwrap().next().await.unwrap_err();
        assert!(matches!(error, MetadataError::Storage(pdata::Error::Damaged { kind: "details tree", .. })), "{error}");
    });
}

#[test]
fn views_are_opened_beside_changes_and_map_nothing_new() {
    block_on_ready(async {
        let (_, metadata) = format(512, 1000).await;
        device(&metadata, 1, 1).await;
        let view = open_view(&metadata).await;
        assert!(!metadata.any_changes());
        map(&metadata, 1, 1).await.unwrap();
        commit(&metadata).await;
        let (mut mappings, mut blocks) = (view.mappings(id(1)).await.unwrap(), Vec::new());
        while let Some((block, _)) = mappings.next().await.unwrap() {
            blocks.push(block.0);
        }
        assert_eq!(blocks, [0]);
    });
}
