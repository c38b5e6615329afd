//! Writes a stream as the bytes tell, and reads it back: the same. Then changes it as the bytes tell: refused, every time.
#![no_main]

use fuzz::image::Bytes;
use fuzz::run;
use thinp::stream::{Decoder, Encoder, Event, Identity, Info, StreamError};

/// Sectors of the volume.
const SECTORS: u64 = 256;

libfuzzer_sys::fuzz_target!(|data: &[u8]| run(async {
    let mut bytes = Bytes::new(data);
    let (mut stream, expected) = write(&mut bytes);
    assert_eq!(read(&stream, usize::from(bytes.byte()) + 1), Ok(expected));
    let unchanged = stream.clone();
    change(&mut stream, &mut bytes);
    if stream != unchanged {
        assert!(read(&stream, usize::MAX).is_err(), "a change that nobody noticed");
    }
}));

/// A byte for each sector: what was written, 0 where nothing was, 255 where it was unmapped.
type Volume = Vec<u8>;

fn write(bytes: &mut Bytes<'_>) -> (Vec<u8>, Volume) {
    let flags = bytes.byte();
    let info = Info {
        volume_bytes: SECTORS * 512,
        block_bytes: 65536,
        target: Identity([flags; 16]),
        base: (flags & 1 != 0).then_some(Identity([1; 16])),
        origin: (flags & 2 != 0).then(|| "origin".into()),
        resume: None,
    };
    let (mut out, mut volume, mut at) = (Vec::new(), vec![0; SECTORS as usize], 0);
    let mut encoder = Encoder::begin(&info, &mut out).expect("the info is right");
    for _ in 0..bytes.byte() % 32 {
        let (kind, gap, sectors) = (bytes.byte(), u64::from(bytes.byte() % 16), u64::from(bytes.byte() % 8));
        let (offset, length) = ((at + gap) * 512, sectors * 512);
        if kind % 8 == 0 {
            encoder.digest(&mut out).expect("between two chunks");
        }
        let written = match kind % 3 {
            0 => encoder.unmap(offset, length, &mut out),
            _ => encoder.data(offset, length, &mut out),
        };
        if at + gap + sectors > SECTORS {
            assert!(written.is_err(), "beyond the volume");
            continue;
        }
        written.expect("in order");
        let byte = if kind % 3 == 0 { 255 } else { kind % 254 + 1 };
        if kind % 3 != 0 {
            let payload = vec![byte; length as usize];
            encoder.payload(&payload).expect("as many as were told");
            out.extend(payload);
        }
        volume[(at + gap) as usize..][..sectors as usize].fill(byte);
        at += gap + sectors;
    }
    encoder.end(&mut out).expect("between two chunks");
    (out, volume)
}

fn read(stream: &[u8], piece: usize) -> Result<Volume, StreamError> {
    let (mut decoder, mut volume) = (Decoder::new(None), vec![0; SECTORS as usize]);
    for mut input in stream.chunks(piece) {
        while let Some(event) = decoder.next(&mut input)? {
            match event {
                Event::Payload { offset, bytes } => {
                    let sectors = (offset / 512) as usize..=((offset + bytes.len() as u64 - 1) / 512) as usize;
                    // Beyond the end only if the size was changed, which the next digest tells.
                    volume.get_mut(sectors).into_iter().for_each(|place| place.fill(bytes[0]));
                }
                Event::Unmap { offset, length } => {
                    let sectors = (offset / 512) as usize..((offset + length) / 512) as usize;
                    volume.get_mut(sectors).into_iter().for_each(|place| place.fill(255));
                }
                Event::Info | Event::Data { .. } | Event::Digest(_) | Event::End(_) => {}
            }
        }
    }
    decoder.finish()?;
    Ok(volume)
}

/// One change: a byte, a cut, a piece that is left out, repeated or moved.
fn change(stream: &mut Vec<u8>, bytes: &mut Bytes<'_>) {
    let kind = bytes.byte();
    let mut place = || bytes.number() as usize % stream.len();
    let (one, other) = (place(), place());
    let (from, to) = (one.min(other), one.max(other));
    match kind % 5 {
        0 => stream[from] ^= kind,
        1 => stream.truncate(from),
        2 => drop(stream.drain(from..to)),
        3 => stream.extend_from_within(from..to),
        _ => stream[from..].rotate_left(to - from),
    }
}
