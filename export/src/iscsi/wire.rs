//! PDUs on a stream: headers and data segments in, with padding and digests.

use super::digest::Digest;
use super::pdu::{BHS_BYTES, Bhs, padding};
use embedded_io_async::{Read, ReadExactError};
use platform::net::NetError;

/// Why receiving cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The connection broke or ended within a PDU.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A header digest is wrong: nothing after it can be trusted.
    #[error("a header digest is wrong")]
    HeaderDigest,
}

/// The receiving side of a connection.
pub struct Receiver<R> {
    reader: R,
    header_digest: bool,
    data_digest: bool,
    /// Bytes of the current data segment, and of its padding, that were not received yet.
    left: usize,
    pad: usize,
    has_data: bool,
    digest: Digest,
}

impl<R: Read<Error = NetError>> Receiver<R> {
    /// Receives without digests, as in the login phase.
    pub fn new(reader: R) -> Receiver<R> {
        Receiver {
            reader,
            header_digest: false,
            data_digest: false,
            left: 0,
            pad: 0,
            has_data: false,
            digest: Digest::new(),
        }
    }

    /// Expects digests from the next PDU on.
    pub fn set_digests(&mut self, header: bool, data: bool) {
        (self.header_digest, self.data_digest) = (header, data);
    }

    /// The next header; `None` at the end of the stream. Additional headers are passed over: no command that
    /// needs them is supported.
    pub async fn header(&mut self) -> Result<Option<Bhs>, ReceiveError> {
        let mut bytes = [0; BHS_BYTES];
        let first = self.reader.read(&mut bytes).await?;
        if first == 0 {
            return Ok(None);
        }
        if let Some(rest) = bytes.get_mut(first..) {
            self.exact(rest).await?;
        }
        let mut digest = Digest::new();
        digest.update(&bytes);
        let bhs = Bhs::from_bytes(bytes);
        for _ in 0..bhs.ahs_words {
            let mut word = [0; 4];
            self.exact(&mut word).await?;
            digest.update(&word);
        }
        if self.header_digest {
            let mut sent = [0; 4];
            self.exact(&mut sent).await?;
            if sent != digest.finish() {
                return Err(ReceiveError::HeaderDigest);
            }
        }
        self.left = bhs.data_len();
        self.pad = padding(self.left);
        self.has_data = self.left > 0;
        self.digest = Digest::new();
        Ok(Some(bhs))
    }

    /// Bytes of the current data segment that were not received yet.
    pub fn left(&self) -> usize {
        self.left
    }

    /// Fills `into`, or as much of it as the data segment has; returns how much.
    pub async fn data(&mut self, into: &mut [u8]) -> Result<usize, ReceiveError> {
        let len = into.len().min(self.left);
        let Some(into) = into.get_mut(..len) else { return Ok(0) };
        self.exact(into).await?;
        if self.data_digest {
            self.digest.update(into);
        }
        self.left -= len;
        Ok(len)
    }

    /// Passes over the rest of the data segment. False if the data digest was wrong.
    pub async fn end(&mut self) -> Result<bool, ReceiveError> {
        let mut scratch = [0; 512];
        while self.left > 0 {
            self.data(&mut scratch).await?;
        }
        let mut pad = [0; 3];
        let pad = pad.get_mut(..self.pad).unwrap_or_default();
        self.exact(pad).await?;
        self.pad = 0;
        if !(self.data_digest && self.has_data) {
            return Ok(true);
        }
        self.has_data = false;
        self.digest.update(pad);
        let mut sent = [0; 4];
        self.exact(&mut sent).await?;
        Ok(sent == self.digest.finish())
    }

    async fn exact(&mut self, into: &mut [u8]) -> Result<(), ReceiveError> {
        self.reader.read_exact(into).await.map_err(|error| match error {
            ReadExactError::UnexpectedEof => ReceiveError::Net(NetError::Closed),
            ReadExactError::Other(error) => ReceiveError::Net(error),
        })
    }
}
