//! Trees as only others leave them behind.

use super::{BTree, NODE, NodeMut, ValueType, edit};
use crate::TransactionManager;
use crate::block_manager::BlockManager;
use crate::space_map::DiskMap;
use alloc::rc::Rc;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use zerocopy::little_endian::U64;

/// Values that are blocks of a disk map.
struct Blocks(Rc<DiskMap>);

impl ValueType for Blocks {
    type Value = U64;

    async fn inc(&self, tm: &TransactionManager, values: &[U64]) -> crate::Result<()> {
        for value in values {
            self.0.inc(tm, value.get()..value.get() + 1).await?;
        }
        Ok(())
    }

    async fn dec(&self, tm: &TransactionManager, values: &[U64]) -> crate::Result<()> {
        for value in values {
            self.0.dec(tm, value.get()..value.get() + 1, &mut |_| ()).await?;
        }
        Ok(())
    }
}

/// Older kernels leave roots with one child. When one is replaced by its child, which another tree shares, both refer to
/// what is in it (reference 4.4).
#[test]
fn trap_4_a_root_takes_the_place_of_a_shared_child() {
    block_on_ready(async {
        let blocks = BlockManager::new(Disk::new(MemDisk::new(8 * 200)), BufPool::new(1 << 18), 64);
        let tm = TransactionManager::create(blocks, 200).await.unwrap();
        let data = Rc::new(DiskMap::create(&tm, 100).await.unwrap());
        let tree = BTree::new(Blocks(data.clone()));
        let count = async |block| tm.blocks().look(|blocks| data.try_count(blocks, block)).await.unwrap();
        for shared in [false, true] {
            let mut leaf = tree.create(&tm).await.unwrap();
            data.inc(&tm, 0..50).await.unwrap();
            for key in 0..50 {
                leaf = tree.insert(&tm, leaf, key, key.into()).await.unwrap().0;
            }
            let root = tm.new_block(&NODE).await.unwrap();
            NodeMut::format(&mut root.bytes_mut(), true, 8);
            edit(&root, |root| root.insert(0, 0, &leaf.to_le_bytes())).unwrap();
            let root = root.number();
            if shared {
                tm.inc(root);
            }
            let (smaller, gone) = tree.remove(&tm, root, 7).await.unwrap();
            assert_eq!(gone, Some(7.into()));
            data.dec(&tm, 7..8, &mut |_| ()).await.unwrap();
            let references = 1 + u32::from(shared);
            assert_eq!((count(7).await, count(8).await), (references - 1, references));
            tree.delete(&tm, smaller).await.unwrap();
            assert_eq!((count(7).await, count(8).await), (references - 1, references - 1));
            if shared {
                tree.delete(&tm, root).await.unwrap();
            }
            assert_eq!(data.nr_free(), 100);
        }
    });
}
