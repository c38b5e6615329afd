use crate::harness::*;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use thinp::metadata::VirtualBlock;

#[test]
fn a_pool_lives() {
    block_on_ready(async {
        let disk = MemDisk::new(2048 * 8);
        let metadata = format(&disk, 1024).await;
        println!("{} free {}", metadata.metadata_blocks(), metadata.free_metadata_blocks());
        thin_check(&disk);
        check(&disk);
        metadata.create_thin(id(7)).await.unwrap();
        metadata.open_device(id(7)).await.unwrap();
        for block in 0..600 {
            provision(&metadata, id(7), block * 3 % 601).await;
        }
        commit(&metadata).await;
        thin_check(&disk);
        check(&disk);
        metadata.create_snap(id(8), id(7)).await.unwrap();
        commit(&metadata).await;
        thin_check(&disk);
        check(&disk);
        for block in 0..100 {
            provision(&metadata, id(7), block).await;
        }
        commit(&metadata).await;
        thin_check(&disk);
        check(&disk);
        let root = metadata.reserve_metadata_snap(async || Ok(())).await.unwrap();
        thin_check(&disk);
        check(&disk);
        println!("root {root}");
        metadata.remove_range(id(7), VirtualBlock(50), VirtualBlock(500), u64::MAX).await.unwrap();
        metadata.delete(id(8)).await.unwrap();
        commit(&metadata).await;
        thin_check(&disk);
        check(&disk);
        metadata.release_metadata_snap(async || Ok(())).await.unwrap();
        thin_check(&disk);
        check(&disk);
        metadata.close_device(id(7));
        metadata.delete(id(7)).await.unwrap();
        commit(&metadata).await;
        thin_check(&disk);
        check(&disk);
        println!("free {} {}", metadata.free_metadata_blocks(), metadata.free_data_blocks());
        assert_eq!(metadata.free_data_blocks(), 1024);
        assert_eq!(metadata.free_metadata_blocks(), 2048 - 9 - 204);
    });
}
