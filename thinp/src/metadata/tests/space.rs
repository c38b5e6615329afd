//! What devices have for themselves, and what it costs to find that out.

use super::{commit, device, format, id, open_view};
use crate::metadata::space::DeviceSpace;
use platform::task::block_on_ready;

/// Device 1 with two leaves, so many snapshots of it from 2 on, and device 100 with 5 blocks; what each has, what deleting the
/// first ones frees, and how many blocks were read for the first answer.
async fn space(snapshots: u64, deleted: &[u64]) -> (std::vec::Vec<DeviceSpace>, u64, u64) {
    let (_, metadata) = format(512, 1000).await;
    device(&metadata, 1, 300).await;
    for n in 0..snapshots {
        metadata.create_snap(id(2 + n), id(1)).await.unwrap();
    }
    device(&metadata, 100, 5).await;
    commit(&metadata).await;
    let view = open_view(&metadata).await;
    let space = view.space(1 << 20).await.unwrap();
    let read = view.blocks_read();
    let deleted: std::vec::Vec<_> = deleted.iter().map(|n| id(*n)).collect();
    (space, view.freed_by(&deleted, 1 << 20).await.unwrap(), read)
}

#[test]
fn what_several_devices_share_goes_with_the_last_of_them() {
    block_on_ready(async {
        let of = |device, mapped_blocks, exclusive_blocks| DeviceSpace {
            device: id(device),
            mapped_blocks,
            exclusive_blocks,
        };
        assert_eq!(space(1, &[1, 2]).await.0, [of(1, 300, 0), of(2, 300, 0), of(100, 5, 5)]);
        assert_eq!(space(0, &[]).await.0, [of(1, 300, 300), of(100, 5, 5)]);
        for (deleted, frees) in [(&[1, 2][..], 300), (&[1], 0), (&[2, 100], 5), (&[100, 2, 1], 305), (&[], 0)] {
            assert_eq!(space(1, deleted).await.1, frees, "{deleted:?}");
        }
    });
}

/// Space is told of pools with thousands of snapshots.
#[test]
fn one_more_snapshot_of_the_same_costs_one_more_read() {
    block_on_ready(async {
        let (three, four) = (space(3, &[]).await.2, space(4, &[]).await.2);
        assert_eq!(four - three, 1);
    });
}
