//! The sending side of a connection: a bounded queue, and the task that numbers PDUs and writes them.

use super::digest::Digest;
use super::link::Link;
use super::pdu::{Bhs, padding};
use crate::budget::Claim;
use alloc::rc::Rc;
use alloc::vec::Vec;
use embedded_io_async::Write;
use platform::buf::Buf;
use platform::net::NetError;
use zerocopy::byteorder::big_endian::U32;

/// A PDU to be sent, complete but for its numbers.
pub struct Outgoing {
    /// The header; StatSN, ExpCmdSN, MaxCmdSN and the data length are filled in when it is sent.
    pub header: Bhs,
    /// The data segment.
    pub payload: Payload,
    /// Takes a StatSN.
    pub status: bool,
}

/// A data segment.
pub enum Payload {
    /// None.
    None,
    /// Of a few bytes.
    Bytes(Vec<u8>),
    /// A part of a chunk, whose claim is given up with the last part.
    Part(Buf, Rc<Claim>),
}

impl Payload {
    fn bytes(&self) -> &[u8] {
        match self {
            Payload::None => &[],
            Payload::Bytes(bytes) => bytes,
            Payload::Part(buf, _) => buf,
        }
    }
}

impl Outgoing {
    /// A response, which takes a StatSN.
    pub fn status(header: Bhs, payload: Payload) -> Outgoing {
        Outgoing { header, payload, status: true }
    }

    /// A PDU that takes no StatSN.
    pub fn unnumbered(header: Bhs, payload: Payload) -> Outgoing {
        Outgoing { header, payload, status: false }
    }
}

/// Sends what is queued until the queue is closed and empty. `stat_sn` is the first StatSN.
pub async fn run<W: Write<Error = NetError>>(link: &Link, writer: &mut W, mut stat_sn: u32) -> Result<(), NetError> {
    while let Some(mut pdu) = link.queue.pop().await {
        pdu.header.sn = U32::new(stat_sn);
        if pdu.status {
            stat_sn = stat_sn.wrapping_add(1);
        }
        let (expected, max) = link.numbers();
        pdu.header.expected_sn = U32::new(expected);
        pdu.header.max_cmd_sn = U32::new(max);
        send(link, writer, pdu).await?;
        if link.queue.is_empty() {
            writer.flush().await?;
        }
    }
    Ok(())
}

async fn send<W: Write<Error = NetError>>(link: &Link, writer: &mut W, mut pdu: Outgoing) -> Result<(), NetError> {
    let data = pdu.payload.bytes();
    pdu.header.set_data_len(data.len());
    let header = pdu.header.to_bytes();
    writer.write_all(&header).await?;
    if link.params().header_digest {
        writer.write_all(&Digest::of(&header)).await?;
    }
    if data.is_empty() {
        return Ok(());
    }
    writer.write_all(data).await?;
    let pad = [0; 3];
    let pad = pad.get(..padding(data.len())).unwrap_or_default();
    if !pad.is_empty() {
        writer.write_all(pad).await?;
    }
    if link.params().data_digest {
        let mut digest = Digest::new();
        digest.update(data);
        digest.update(pad);
        writer.write_all(&digest.finish()).await?;
    }
    Ok(())
}
