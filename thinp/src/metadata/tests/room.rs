//! What may begin with how many free metadata blocks, and what is undone because it left too few.

use super::{commit, device, format, id, map};
use crate::metadata::{Metadata, MetadataError, VirtualBlock};
use platform::task::block_on_ready;

/// The most that a change of mappings takes in [`pool`]: 21 bitmaps, 2 leaves of large counts, 4 blocks of the data map's index, and
/// 6 and 5 new leaves of large counts.
const CHANGE: u64 = 38;

/// What a discard leaves: as much, but for new leaves.
const LEFT_BY_DISCARD: u64 = 27;

/// What everything else leaves.
const LEFT_BY_OTHERS: u64 = CHANGE + LEFT_BY_DISCARD;

/// The data map has 20 bitmaps, the metadata map has one. Devices 1 to 6 share all that they have with a metadata snapshot: the
/// first change of each copies a leaf.
async fn pool() -> Metadata {
    let (_, metadata) = format(512, 20 * 16_320).await;
    for n in 1..=6 {
        device(&metadata, n, 2).await;
    }
    metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
    metadata
}

fn free(metadata: &Metadata) -> u64 {
    metadata.core().tm.free_blocks()
}

/// Takes metadata blocks until only so many are to spare; what was taken.
async fn leave(metadata: &Metadata, spare: u64) -> std::vec::Vec<u64> {
    commit(metadata).await;
    let hogged = metadata.hog(free(metadata) - (metadata.spare_blocks() - spare)).await.unwrap();
    assert_eq!(metadata.spare_blocks(), spare);
    hogged
}

/// The transaction of the last change was undone, and nothing else is known of it.
async fn is_undone(metadata: &Metadata, error: MetadataError) {
    assert!(error.is_no_metadata_space(), "{error}");
    assert!(metadata.ran_out_alone());
    metadata.roll_back().await.unwrap();
    assert!(!metadata.ran_out_alone() && !metadata.any_changes());
}

#[test]
fn changes_cost_what_they_touch_at_most() {
    block_on_ready(async {
        let metadata = pool().await;
        let costs = metadata.costs(&metadata.core()).await.unwrap();
        assert_eq!((costs.blocks(0, 0), costs.blocks(1, 0), costs.blocks(0, 1)), (0, 3, 2));
        assert_eq!((costs.blocks(1000, 0), costs.blocks(0, 1000), costs.blocks(1000, 1000)), (25, 2, 27));
        assert_eq!(costs.change(), CHANGE);
    });
}

/// Ways, the metadata map itself, and a leaf for each device that changed.
#[test]
fn what_a_commit_takes_is_not_to_spare() {
    block_on_ready(async {
        let metadata = pool().await;
        let kept = || free(&metadata) - metadata.spare_blocks();
        let idle = kept();
        assert_eq!(idle, 41);
        for changed in 1..4 {
            metadata.create_thin(id(10 + changed)).await.unwrap();
            assert_eq!(kept(), idle + changed);
        }
        commit(&metadata).await;
        assert_eq!(kept(), idle);
    });
}

#[test]
fn what_might_leave_too_little_has_a_transaction_of_its_own() {
    block_on_ready(async {
        let metadata = pool().await;
        map(&metadata, 1, 7).await.unwrap();
        assert!(!metadata.is_tight());
        leave(&metadata, LEFT_BY_OTHERS + CHANGE).await;
        map(&metadata, 2, 7).await.unwrap();
        assert!(!metadata.is_tight());
        commit(&metadata).await;
        leave(&metadata, LEFT_BY_OTHERS + CHANGE - 1).await;
        map(&metadata, 3, 7).await.unwrap();
        assert!(metadata.is_tight());
        // The next one waits for the commit.
        assert_eq!(map(&metadata, 3, 8).await, Err(MetadataError::NoMetadataSpace));
        assert!(!metadata.ran_out_alone());
        commit(&metadata).await;
        map(&metadata, 3, 8).await.unwrap();
        commit(&metadata).await;
        // Where less is to be left, more may go together.
        leave(&metadata, LEFT_BY_DISCARD + CHANGE).await;
        let (first, second) = (VirtualBlock(0), VirtualBlock(1));
        assert_eq!(metadata.remove_range(id(4), first, second, 1).await.unwrap().mappings, 1);
        assert!(!metadata.is_tight());
        commit(&metadata).await;
        leave(&metadata, LEFT_BY_DISCARD + CHANGE - 1).await;
        assert_eq!(metadata.remove_range(id(5), first, second, 1).await.unwrap().mappings, 1);
        assert!(metadata.is_tight());
        commit(&metadata).await;
        leave(&metadata, LEFT_BY_DISCARD).await;
        let refused = metadata.remove_range(id(6), first, second, 1).await.unwrap_err();
        is_undone(&metadata, refused).await;
        assert_eq!(metadata.details(id(6)).unwrap().mapped_blocks, 2);
    });
}

/// Else each try would be undone like the last.
#[test]
fn what_was_undone_is_not_tried_again_before_there_are_more_free_blocks() {
    block_on_ready(async {
        let metadata = pool().await;
        leave(&metadata, LEFT_BY_OTHERS + 2).await;
        let mut hogged = leave(&metadata, LEFT_BY_OTHERS).await;
        assert!(metadata.has_room());
        is_undone(&metadata, map(&metadata, 1, 7).await.unwrap_err()).await;
        assert_eq!(metadata.lookup(id(1), VirtualBlock(7)).await, Ok(None));
        let then = free(&metadata);
        assert!(!metadata.has_room());
        // A commit that brings none changes nothing.
        metadata.set_transaction_id(0, 1).await.unwrap();
        commit(&metadata).await;
        assert_eq!((free(&metadata), metadata.has_room()), (then, false));
        assert_eq!(map(&metadata, 1, 7).await, Err(MetadataError::NoMetadataSpace));
        // One that brings some makes it worth a try, also later when there are as few as then.
        metadata.let_go(hogged.split_off(1)).await.unwrap();
        assert!(free(&metadata) > then && metadata.has_room());
        leave(&metadata, LEFT_BY_OTHERS).await;
        assert_eq!((free(&metadata), metadata.has_room()), (then, true));
        leave(&metadata, LEFT_BY_OTHERS - 1).await;
        assert!(!metadata.has_room());
    });
}

/// Also within one call: what is tight after others is left to the next transaction.
#[test]
fn a_discard_stops_where_it_gets_tight() {
    block_on_ready(async {
        let (_, metadata) = format(512, 20 * 16_320).await;
        for n in 1..=2 {
            device(&metadata, n, 1000).await;
        }
        metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
        leave(&metadata, LEFT_BY_DISCARD + CHANGE).await;
        let removed = metadata.remove_range(id(1), VirtualBlock(0), VirtualBlock(1000), 1000).await.unwrap();
        // The first pass leaves the floor of the first leaf, 84 of 248 mappings.
        assert_eq!((removed.mappings, removed.next), (164, Some(VirtualBlock(164))));
    });
}
