//! Dumps an arbitrary image, the pool or its metadata snapshot, or the delta of two of its devices, in the form that the bytes
//! tell.
#![no_main]

use fuzz::image::{Bytes, decode};
use fuzz::{run, runtime};
use platform::block::Disk;
use std::convert::Infallible;
use thinp::control::DeviceId;
use thinp::metadata::dump::{Format, Options, dump};
use thinp::metadata::{VirtualBlock, delta};

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
    let mut device = || DeviceId::new(u64::from(bytes.byte() % 16)).unwrap_or(DeviceId::MAX);
    let (left, right, from) = (device(), device(), VirtualBlock(u64::from(bytes.byte())));
    let format = [delta::Format::Xml, delta::Format::XmlVerbose, delta::Format::Json][usize::from(form % 3)];
    let pair = delta::Options { left, right, format, same: form & 8 != 0, from };
    // Damage is an error, and fine.
    let _ = dump(&runtime(), &disk, &options, bounded()).await;
    let _ = delta::delta(&runtime(), &disk, options.metadata_snap, &pair, bounded()).await;
}));

/// Takes no more than a text can have.
fn bounded() -> impl AsyncFnMut(&[u8]) -> Result<(), Infallible> {
    let mut written = 0;
    async move |piece: &[u8]| {
        written += piece.len();
        assert!(written < DUMP_BYTES_MAX, "the text has no end");
        Ok(())
    }
}
