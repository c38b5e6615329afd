//! Dumps an arbitrary image as XML, the pool or its metadata snapshot, in the form that the bytes tell.
#![no_main]

use fuzz::image::{Bytes, decode};
use fuzz::{run, runtime};
use platform::block::Disk;
use std::convert::Infallible;
use thinp::metadata::dump::{DumpError, Format, Options, dump};

/// Many more than all devices of an image can have mappings between them, as long as each is written once.
const DUMP_BYTES_MAX: usize = 64 << 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let mut bytes = Bytes::new(data);
    let disk = Disk::new(decode(&mut bytes));
    let form = bytes.byte();
    let options = Options {
        format: [Format::Xml, Format::Xml09, Format::HumanReadable, Format::Json][usize::from(form % 4)],
        metadata_snap: form & 0x10 != 0,
        skip_mappings: form & 0x20 != 0,
        ..Options::default()
    };
    // Damage is an error, and fine.
    let _ = dump_all(&disk, &options).await;
}));

async fn dump_all(disk: &Disk, options: &Options) -> Result<(), DumpError<Infallible>> {
    let mut written = 0;
    dump(&runtime(), disk, options, async |piece: &[u8]| {
        written += piece.len();
        assert!(written < DUMP_BYTES_MAX, "the dump has no end");
        Ok(())
    })
    .await
}
