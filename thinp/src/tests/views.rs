//! Views of an open pool: its status, and its modes.

use super::{BLOCK, id, run};
use crate::PoolOptions;
use crate::control::Mode;
use platform::mem::MemDisk;
use platform::time::Duration;
use std::string::String;
use std::vec::Vec;

#[test]
fn views_are_shown_and_give_way_before_the_pool_is_out_of_metadata() {
    run(1, MemDisk::new(400 * 8), MemDisk::new(256 * BLOCK), async |world| {
        let (pool, thin) = world.pool_with_device(PoolOptions::default()).await;
        world.write(&thin, 0, 20 * BLOCK, 0x11).await.unwrap();
        let old = pool.open_view("old", None).await.unwrap();
        world.runtime.timers.sleep(Duration::from_secs(5)).await;
        world.write(&thin, 20 * BLOCK, BLOCK, 0x11).await.unwrap();
        let young = pool.open_view("young", None).await.unwrap();
        let shown = pool.views();
        let holders: Vec<(String, u64)> =
            shown.views.into_iter().map(|view| (view.holder, view.age.as_secs())).collect();
        assert_eq!(holders.len(), 2);
        assert!(holders[0].0 == "old" && holders[0].1 >= 5 && holders[1].0 == "young" && holders[1].1 < 5);
        // The leaf, what leads to it, and space maps.
        let used = pool.status().metadata_used_blocks;
        assert!(shown.held_back_blocks > 3);
        drop(old);
        assert_eq!(pool.views().held_back_blocks, 0);
        assert_eq!(pool.status().metadata_used_blocks, used - shown.held_back_blocks);
        // Each takes a metadata block for good, and some more until its commit.
        let mut devices = 1;
        while pool.create_thin(id(devices)).await.is_ok() {
            devices += 1;
        }
        assert_eq!(pool.status().mode, Mode::OutOfMetadataSpace);
        assert!(young.is_ended() && pool.views().views.is_empty());
        pool.delete(id(1)).await.unwrap();
        pool.delete(id(2)).await.unwrap();
        assert_eq!((pool.status().mode, pool.status().needs_check), (Mode::Write, false));
    });
}
