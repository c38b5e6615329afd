//! Any bytes as a stream of PDUs, with and without digests: what is received is bounded by what was sent.
#![no_main]

use embedded_io_async::{ErrorType, Read};
use export::iscsi::pdu::{BHS_BYTES, LoginRequest, ScsiCommand};
use export::iscsi::wire::{ReceiveError, Receiver};
use export::scsi::cdb::{Access, Command, DataOut, WHOLE_BYTES_MAX};
use fuzz::within_budget;
use platform::net::NetError;
use platform::task::block_on_ready;

libfuzzer_sys::fuzz_target!(|data: &[u8]| within_budget(|| block_on_ready(async {
    let Some((first, stream)) = data.split_first() else { return };
    let mut receiver = Receiver::new(Pieces { rest: stream, most: usize::from(first >> 2) + 1 });
    receiver.set_digests(first & 1 != 0, first & 2 != 0);
    let received = receive(&mut receiver).await;
    if let Ok(bytes) = received {
        assert!(bytes <= stream.len());
    }
})));

/// A stream that comes in pieces.
struct Pieces<'d> {
    rest: &'d [u8],
    most: usize,
}

impl ErrorType for Pieces<'_> {
    type Error = NetError;
}

impl Read for Pieces<'_> {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, NetError> {
        let len = buf.len().min(self.most).min(self.rest.len());
        let (piece, rest) = self.rest.split_at(len);
        buf[..len].copy_from_slice(piece);
        self.rest = rest;
        Ok(len)
    }
}

/// Receives all PDUs; the bytes that came in headers and data segments.
async fn receive(receiver: &mut Receiver<Pieces<'_>>) -> Result<usize, ReceiveError> {
    let mut bytes = 0;
    while let Some(bhs) = receiver.header().await? {
        bytes += BHS_BYTES;
        assert_eq!(receiver.left(), bhs.data_len());
        let mut part = [0; 100];
        bytes += receiver.data(&mut part).await?;
        bytes += receiver.left();
        let _ = (receiver.end().await?, LoginRequest::of(&bhs).cid.get());
        look_at(&ScsiCommand::of(&bhs).cdb);
    }
    Ok(bytes)
}

/// What is decoded of a command agrees with itself.
fn look_at(cdb: &[u8; 16]) {
    let Ok(command) = Command::decode(cdb) else { return };
    assert!(!command.writes() || command.access() == Access::Write, "{command:?}");
    for block_bytes in [512, 4096] {
        // What is held in memory as a whole is bounded, whatever the command says.
        assert!(
            !matches!(command.data_out(block_bytes), DataOut::Whole(bytes) if bytes > WHOLE_BYTES_MAX),
            "{command:?}"
        );
    }
}
