//! Reads an arbitrary stream, of chunks that make sense with right digests between them, of chunks that make none, and of plain bytes.
//! In whatever pieces it comes, the same is read, and nothing that is read leads out of the volume or backwards.
#![no_main]

use fuzz::image::Bytes;
use fuzz::run;
use thinp::stream::{Decoder, Event, StreamError};

/// Size of the volume, unless the stream says another.
const VOLUME_BYTES: u64 = 1 << 20;

/// Most payload of a chunk.
const PAYLOAD_BYTES_MAX: u64 = 2048;

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let mut bytes = Bytes::new(data);
    let piece = usize::from(bytes.byte()) + 1;
    let stream = Writer::default().write(&mut bytes);
    assert_eq!(read(&stream, piece), read(&stream, usize::MAX), "in pieces of {piece}");
}));

/// What was read: each chunk, the payload joined, and how it ended.
type Seen = (Vec<(u64, u64)>, Vec<u8>, Result<u64, StreamError>);

fn read(stream: &[u8], piece: usize) -> Seen {
    let (mut chunks, mut payload) = (Vec::new(), Vec::new());
    let mut decoder = Decoder::new(Some(VOLUME_BYTES));
    let mut pieces = stream.chunks(piece);
    let ended = loop {
        let Some(mut input) = pieces.next() else { break decoder.finish().map(|counts| counts.chunks) };
        if let Err(error) = read_piece(&mut decoder, &mut input, &mut chunks, &mut payload) {
            assert_eq!(decoder.finish(), Err(error), "an error stays");
            break Err(error);
        }
    };
    if let Err(error) = ended {
        assert!(error.at <= stream.len() as u64);
    }
    (chunks, payload, ended)
}

fn read_piece(
    decoder: &mut Decoder,
    input: &mut &[u8],
    chunks: &mut Vec<(u64, u64)>,
    payload: &mut Vec<u8>,
) -> Result<(), StreamError> {
    while let Some(event) = decoder.next(input)? {
        match event {
            Event::Data { offset, length } | Event::Unmap { offset, length } => {
                let end = offset.checked_add(length).expect("bounded");
                assert!(end <= decoder.info().map_or(VOLUME_BYTES, |info| info.volume_bytes));
                let before = chunks.last().map_or(0, |(offset, length)| offset + length);
                assert!(decoder.info().is_none() || offset >= before, "backwards");
                chunks.push((offset, length));
            }
            Event::Payload { offset, bytes } => {
                let (begin, length) = chunks.last().expect("payload has a chunk");
                assert!(!bytes.is_empty() && offset >= *begin && offset + bytes.len() as u64 <= begin + length);
                payload.extend_from_slice(bytes);
            }
            Event::Digest(checkpoint) => {
                let token = decoder.token().expect("there is a digest");
                assert_eq!(token.resume, checkpoint.resume);
                assert_eq!(token.to_string().parse(), Ok(token));
            }
            Event::Info | Event::End(_) => {}
        }
    }
    assert!(input.is_empty());
    Ok(())
}

/// Makes the stream; knows the format by itself, so that the digests are right where nothing else is.
#[derive(Default)]
struct Writer {
    stream: Vec<u8>,
    last: [u8; 32],
    stretch: Vec<u8>,
    counts: [u64; 3],
}

impl Writer {
    fn write(mut self, bytes: &mut Bytes<'_>) -> Vec<u8> {
        while !bytes.is_empty() {
            let kind = bytes.byte();
            let (offset, length) = (number(bytes, kind & 0x20 != 0), number(bytes, kind & 0x40 != 0));
            match kind % 9 {
                0 => self.chunk(2, 0, 0, &[]),
                1 => self.info(bytes),
                2 | 3 => {
                    self.counts[1] += 1;
                    self.chunk(0, offset, length, &vec![kind; length.min(PAYLOAD_BYTES_MAX) as usize]);
                }
                4 => {
                    self.counts[2] += 1;
                    self.chunk(1, offset, length, &[]);
                }
                5 => self.digest(),
                6 => {
                    let counts = [self.counts[0] + 1, self.counts[1], self.counts[2]];
                    self.plain(3, 0, 24, &counts.map(u64::to_be_bytes).concat());
                }
                7 => {
                    self.chunk(0x8000_0000 | offset as u32, 0, length, &vec![0; length.min(PAYLOAD_BYTES_MAX) as usize])
                }
                _ => {
                    let raw: Vec<u8> = (0..bytes.byte()).map(|_| bytes.byte()).collect();
                    self.stream.extend(raw);
                }
            }
        }
        self.stream
    }

    fn info(&mut self, bytes: &mut Bytes<'_>) {
        let (flags, volume_bytes, from) = (bytes.byte(), number(bytes, false), number(bytes, false));
        let mut body = vec![0, 1, 0, flags, 0, 1, 0, 0];
        body.extend(volume_bytes.to_be_bytes());
        body.extend([[flags & 1; 16]; 2].concat());
        body.extend(from.to_be_bytes());
        body.extend([flags & 2; 32]);
        body.extend([0, flags >> 4]);
        body.extend((0..flags >> 4).map(|_| b'o'));
        self.chunk(0x8067_7301, 0, body.len() as u64, &body);
    }

    fn digest(&mut self) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.last).update(&self.stretch);
        self.last = *hasher.finalize().as_bytes();
        self.stretch.clear();
        self.plain(0x8067_7302, 0, 32, &self.last.clone());
    }

    /// A chunk that the digest covers.
    fn chunk(&mut self, command: u32, offset: u64, length: u64, body: &[u8]) {
        let from = self.stream.len();
        self.plain(command, offset, length, body);
        self.stretch.extend_from_slice(&self.stream[from..]);
    }

    fn plain(&mut self, command: u32, offset: u64, length: u64, body: &[u8]) {
        self.counts[0] += 1;
        self.stream.extend(0x24C4_F02A_AE2E_4FA9u64.to_be_bytes());
        self.stream.extend(offset.to_be_bytes());
        self.stream.extend(length.to_be_bytes());
        self.stream.extend(command.to_be_bytes());
        self.stream.extend_from_slice(body);
    }
}

/// Whole sectors within the volume, or almost anything.
fn number(bytes: &mut Bytes<'_>, wild: bool) -> u64 {
    let number = u64::from(bytes.byte());
    if wild { (number << 56) | bytes.number() } else { number % 64 * 512 }
}
