//! Dumps, and what becomes of them.

use super::{device, format, map, runtime};
use crate::metadata::MetadataError;
use crate::metadata::dump::{self, dump};
use crate::metadata::restore::{Overrides, RestoreError, Restored, restore};
use platform::block::{Disk, IoError, Op};
use platform::layers::Fault;
use platform::mem::MemDisk;
use platform::task::block_on_ready;
use std::rc::Rc;
use std::string::String;
use std::vec::Vec;

async fn restored(text: &str, disk: &Disk) -> Result<Restored, RestoreError<()>> {
    let mut pieces = text.as_bytes().chunks(1000);
    let source = async |out: &mut Vec<u8>| {
        out.extend_from_slice(pieces.next().unwrap_or_default());
        Ok(())
    };
    restore(&runtime(), disk, 64, &Overrides::default(), source).await
}

/// A pool with one device, which has every second of `2 * mappings` blocks, at this time.
fn text(mappings: u64, time: u32) -> String {
    let mut text = std::format!("<superblock uuid=\"\" time=\"{time}\" transaction=\"1\" version=\"2\" ");
    text += "data_block_size=\"128\" nr_data_blocks=\"100000\">\n";
    let times = std::format!("creation_time=\"{time}\" snap_time=\"0\"");
    text += &std::format!("<device dev_id=\"1\" mapped_blocks=\"{mappings}\" transaction=\"0\" {times}>\n");
    for block in 0..mappings {
        let origin = 2 * block;
        text += &std::format!("<single_mapping origin_block=\"{origin}\" data_block=\"{block}\" time=\"{time}\"/>\n");
    }
    text + "</device></superblock>"
}

#[test]
fn a_restore_tells_what_the_pool_has_and_takes() {
    block_on_ready(async {
        let disk = MemDisk::new(128 * 8);
        let restored = restored(&text(400, 0), &Disk::new(disk.clone())).await.unwrap();
        assert_eq!((restored.devices, restored.mappings, restored.metadata_blocks), (1, 400, 128));
        // As the metadata map's root has it (reference 1.1).
        let used = u64::from_le_bytes(disk.peek(200, 8).try_into().unwrap());
        assert!(restored.metadata_blocks_used == used && used > 10, "{restored:?}");
    });
}

#[test]
fn the_last_time_of_all_can_be_restored() {
    block_on_ready(async {
        let disk = Disk::new(MemDisk::new(128 * 8));
        restored(&text(1, (1 << 24) - 1), &disk).await.unwrap();
        let error = restored(&text(1, 1 << 24), &disk).await.unwrap_err();
        assert!(matches!(error, RestoreError::Wrong { line: 1, .. }), "{error:?}");
    });
}

#[test]
fn a_disk_that_is_too_small_is_told_from_one_that_fails() {
    block_on_ready(async {
        let small = Disk::new(MemDisk::new(64 * 8));
        assert_eq!(restored(&text(20_000, 0), &small).await, Err(RestoreError::TooSmall { blocks: 64 }));
        let fails = Fault::new(Rc::new(MemDisk::new(512 * 8)), |request| {
            let write = matches!(request.op, Op::Write { .. }) && request.sector > 0;
            write.then_some(IoError::Device { op: request.op, sector: request.sector })
        });
        let error = restored(&text(20_000, 0), &Disk::new(fails)).await.unwrap_err();
        assert!(matches!(error, RestoreError::Metadata(MetadataError::Storage(_))), "{error:?}");
    });
}

/// Of a pool of any size.
#[test]
fn a_dump_is_written_in_pieces() {
    block_on_ready(async {
        let (disk, metadata) = format(512, 10_000).await;
        device(&metadata, 1, 0).await;
        for block in 0..3000 {
            map(&metadata, 1, 2 * block).await.unwrap();
        }
        super::commit(&metadata).await;
        let (mut pieces, mut bytes) = (0, 0);
        let sink = async |piece: &[u8]| {
            // Some 64 KiB, and what a leaf adds.
            assert!(piece.len() < 100 << 10, "{}", piece.len());
            pieces += 1;
            bytes += piece.len();
            Ok::<(), ()>(())
        };
        dump(&runtime(), &Disk::new(disk), &dump::Options::default(), sink).await.unwrap();
        assert!(pieces > 2 && bytes > 150 << 10, "{pieces} pieces, {bytes} bytes");
    });
}
