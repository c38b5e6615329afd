//! The codec against streams that the real `thin_recv` took or refused, against a model, and against every kind of damage.

use super::header::{Command, Header};
use super::*;
use alloc::string::ToString;
use alloc::vec::Vec;
use alloc::{format, vec};
use platform::random::{Random, Seeded};
use sha2::{Digest as _, Sha256};
use std::println;

const MIB: u64 = 1 << 20;

/// What a fixture holds: hexadecimal digits, and `BYTE*COUNT` for many of the same.
fn fixture(text: &str) -> Vec<u8> {
    let byte = |digits: &str| u8::from_str_radix(digits, 16).unwrap();
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        match word.split_once('*') {
            Some((digits, count)) => bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), byte(digits)),
            None => bytes.extend((0..word.len()).step_by(2).map(|at| byte(&word[at..at + 2]))),
        }
    }
    bytes
}

/// Receives a stream into `volume`, in pieces of the sizes that `piece` gives.
fn receive_in(volume: &mut [u8], stream: &[u8], mut piece: impl FnMut() -> usize) -> Result<Decoder, StreamError> {
    let mut decoder = Decoder::new(Some(volume.len() as u64));
    let mut rest = stream;
    while !rest.is_empty() {
        let (mut input, later) = rest.split_at(piece().clamp(1, rest.len()));
        rest = later;
        while let Some(event) = decoder.next(&mut input)? {
            match event {
                Event::Payload { offset, bytes } => {
                    assert!(!bytes.is_empty());
                    volume[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                Event::Unmap { offset, length } => volume[offset as usize..][..length as usize].fill(0),
                Event::Info | Event::Data { .. } | Event::Digest(_) | Event::End(_) => {}
            }
        }
        assert!(input.is_empty(), "None means that all was read");
    }
    decoder.finish()?;
    Ok(decoder)
}

fn receive(volume: &mut [u8], stream: &[u8]) -> Result<Decoder, StreamError> {
    receive_in(volume, stream, || usize::MAX)
}

fn info(volume_bytes: u64) -> Info {
    Info { volume_bytes, block_bytes: 65536, target: Identity([7; 16]), base: None, origin: None, resume: None }
}

#[derive(Debug, Clone, Copy)]
enum Chunk {
    Data { offset: u64, length: u64, byte: u8 },
    Unmap { offset: u64, length: u64 },
}

/// Ascending chunks over a volume, as the dice fall.
fn random_chunks(dice: &Seeded, volume_bytes: u64, most_sectors: u64) -> Vec<Chunk> {
    let (mut chunks, mut offset) = (Vec::new(), 0);
    loop {
        offset += below(dice, most_sectors) * 512;
        let length = (1 + below(dice, most_sectors)) * 512;
        if offset + length > volume_bytes {
            return chunks;
        }
        chunks.push(match below(dice, 4) {
            0 => Chunk::Unmap { offset, length },
            _ => Chunk::Data { offset, length, byte: 1 + below(dice, 255) as u8 },
        });
        offset += length;
    }
}

fn below(dice: &Seeded, limit: u64) -> u64 {
    let mut bytes = [0; 8];
    dice.fill(&mut bytes);
    u64::from_le_bytes(bytes) % limit
}

fn send_chunk(encoder: &mut Encoder, chunk: Chunk, out: &mut Vec<u8>) {
    match chunk {
        Chunk::Data { offset, length, byte } => {
            encoder.data(offset, length, out).unwrap();
            let payload = vec![byte; length as usize];
            for piece in payload.chunks(1000) {
                encoder.payload(piece).unwrap();
                out.extend_from_slice(piece);
            }
        }
        Chunk::Unmap { offset, length } => encoder.unmap(offset, length, out).unwrap(),
    }
}

fn send(info: &Info, chunks: &[Chunk]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(info, &mut out).unwrap();
    chunks.iter().for_each(|chunk| send_chunk(&mut encoder, *chunk, &mut out));
    let counts = encoder.end(&mut out).unwrap();
    assert_eq!((counts.data + counts.unmap) as usize, chunks.len());
    out
}

fn apply(volume: &mut [u8], chunks: &[Chunk]) {
    for chunk in chunks {
        let (offset, length, byte) = match *chunk {
            Chunk::Data { offset, length, byte } => (offset, length, byte),
            Chunk::Unmap { offset, length } => (offset, length, 0),
        };
        volume[offset as usize..][..length as usize].fill(byte);
    }
}

/// The chunks of a stream, each with header and body.
fn split(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut chunks, mut rest) = (Vec::new(), stream);
    while !rest.is_empty() {
        let header = Header::parse(&rest[..HEADER_BYTES]).unwrap();
        let (chunk, later) = rest.split_at(HEADER_BYTES + header.body_bytes() as usize);
        chunks.push(chunk.to_vec());
        rest = later;
    }
    chunks
}

fn kind(chunk: &[u8]) -> Command {
    Header::parse(&chunk[..HEADER_BYTES]).unwrap().command
}

/// Puts chunks together again, with the end's counts put right.
fn join(chunks: &[Vec<u8>]) -> Vec<u8> {
    let count = |wanted| chunks.iter().filter(|chunk| kind(chunk) == wanted).count() as u64;
    let mut stream = chunks.concat();
    if chunks.last().is_some_and(|last| kind(last) == Command::End) {
        stream.truncate(stream.len() - 24);
        let counts = [chunks.len() as u64, count(Command::Data), count(Command::Unmap)];
        counts.iter().for_each(|count| stream.extend(count.to_be_bytes()));
    }
    stream
}

fn chunk(command: Command, offset: u64, length: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Header::new(command, offset, length).write(&mut bytes);
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn what_the_real_receiver_took_becomes_the_same_volume() {
    let cases = [
        (include_str!("fixtures/empty.hex"), "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"),
        (include_str!("fixtures/full.hex"), "e9d22628ebdf0d4950a0fa3910c1a83343eed66967d5639fdda38818605d1ef9"),
        (include_str!("fixtures/optional.hex"), "20be5489f976d8faeeadf9d59e440e88e1f2ca0a5c5bc4568894b6f0a37fa10b"),
    ];
    for (text, sha256) in cases {
        let mut volume = vec![0; MIB as usize];
        let decoder = receive(&mut volume, &fixture(text)).unwrap();
        assert!(decoder.info().is_none() && decoder.token().is_none(), "a foreign stream");
        assert_eq!(
            Sha256::digest(&volume).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat(),
            sha256
        );
    }
}

#[test]
fn what_the_real_receiver_refused_is_refused_with_its_place() {
    let counts = |chunks| Counts { chunks, data: 1, unmap: 0 };
    let cases = [
        (include_str!("fixtures/refused-after-end.hex"), 262308, Reason::AfterEnd),
        (
            include_str!("fixtures/refused-count.hex"),
            65592,
            Reason::CountsDiffer { said: counts(4), counted: counts(3) },
        ),
        (include_str!("fixtures/refused-no-begin.hex"), 0, Reason::NoBegin),
        (include_str!("fixtures/refused-truncated.hex"), 100000, Reason::Truncated),
        (include_str!("fixtures/refused-unknown-command.hex"), 28, Reason::UnknownCommand(9)),
    ];
    for (text, at, reason) in cases {
        let error = receive(&mut vec![0; MIB as usize], &fixture(text)).unwrap_err();
        assert_eq!(error, StreamError { at, reason });
    }
}

#[test]
fn version_1_0_has_neither_beginning_nor_end() {
    let old = |chunk: Vec<u8>| [&0xCA7F_00D5_DE7E_C7EDu64.to_be_bytes(), &chunk[8..]].concat();
    let data = old(chunk(Command::Data, 512, 512, &[9; 512]));
    let stream = [data.clone(), old(chunk(Command::Unmap, 1024, 512, &[]))].concat();
    let mut volume = vec![1; 2048];
    receive_in(&mut volume, &stream, || 7).unwrap();
    assert_eq!(volume, [vec![1; 512], vec![9; 512], vec![0; 512], vec![1; 512]].concat());
    for command in [Command::Data, Command::Optional] {
        let empty = [data.clone(), old(chunk(command, 2048, 0, &[]))].concat();
        assert!(receive(&mut volume, &empty).is_ok(), "it may end with an empty chunk");
    }
    let refused = |stream: &[u8]| receive(&mut vec![0; 2048], stream).unwrap_err();
    assert_eq!(refused(&data[..data.len() - 1]).reason, Reason::Truncated);
    assert_eq!(refused(&[]).reason, Reason::Truncated);
    assert_eq!(refused(&[data.clone(), chunk(Command::Unmap, 0, 512, &[])].concat()).reason, Reason::OtherVersion);
    assert_eq!(refused(&old(chunk(Command::Begin, 0, 0, &[]))).reason, Reason::UnknownCommand(2));
    assert_eq!(refused(&old(chunk(Command::End, 0, 24, &[0; 24]))).reason, Reason::UnknownCommand(3));
    assert_eq!(refused(&old(chunk(Command::Info, 0, 90, &[0; 90]))).reason, Reason::InfoMisplaced);
}

#[test]
fn what_is_sent_is_received_in_whatever_pieces() {
    for round in 0..60 {
        let seed = seed(round);
        let dice = Seeded::from_u64(seed);
        let volume_bytes = (1 + below(&dice, 4096)) * 512;
        let mut info = info(volume_bytes);
        info.base = (below(&dice, 2) == 0).then_some(Identity([3; 16]));
        info.origin = (below(&dice, 2) == 0).then(|| "origin-golden".to_string());
        let chunks = random_chunks(&dice, volume_bytes, 64);
        let stream = send(&info, &chunks);
        let (mut expected, mut volume) = (vec![0xEE; volume_bytes as usize], vec![0xEE; volume_bytes as usize]);
        apply(&mut expected, &chunks);
        let most = 1 + below(&dice, 5000);
        let decoder = receive_in(&mut volume, &stream, || 1 + below(&dice, most) as usize).unwrap();
        assert_eq!(decoder.info(), Some(&info));
        let token = decoder.token().expect("every stream of ours ends with a digest");
        assert_eq!((token.target, token.base), (info.target, info.base));
        assert!(volume == expected, "seed {seed}");
    }
}

/// Another each time, unless SEED is given.
fn seed(round: u64) -> u64 {
    let given = std::env::var("SEED").ok().map(|text| text.parse().expect("SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64 ^ round
    });
    println!("seed {seed}");
    seed
}

/// Few chunks, three stretches.
fn small_stream() -> (Vec<u8>, u64) {
    let volume_bytes = 16 * 512;
    let data = |sector: u64, byte| Chunk::Data { offset: sector * 512, length: 512, byte };
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&info(volume_bytes), &mut out).unwrap();
    for (at, chunk) in [data(0, 1), data(2, 1), data(4, 3), Chunk::Unmap { offset: 2560, length: 1024 }, data(9, 4)]
        .into_iter()
        .enumerate()
    {
        send_chunk(&mut encoder, chunk, &mut out);
        if at == 1 || at == 2 {
            encoder.digest(&mut out).unwrap();
        }
    }
    encoder.end(&mut out).unwrap();
    (out, volume_bytes)
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let (stream, volume_bytes) = small_stream();
    let refused = |stream: &[u8]| receive(&mut vec![0; volume_bytes as usize], stream).is_err();
    assert!(!refused(&stream));
    for at in 0..stream.len() {
        assert!(refused(&stream[..at]), "cut at {at}");
        for bit in 0..8 {
            let mut flipped = stream.clone();
            flipped[at] ^= 1 << bit;
            assert!(refused(&flipped), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn chunks_that_are_moved_left_out_repeated_or_added_are_found() {
    let (stream, volume_bytes) = small_stream();
    let chunks = split(&stream);
    let refused = |chunks: &[Vec<u8>]| receive(&mut vec![0; volume_bytes as usize], &join(chunks)).is_err();
    assert!(!refused(&chunks));
    let foreign = [
        chunk(Command::Optional, 0, 3, b"hey"),
        chunk(Command::Optional, 0, 0, &[]),
        chunk(Command::Data, 15 * 512, 512, &[8; 512]),
        chunk(Command::Data, 0, 0, &[]),
        chunk(Command::Unmap, 8192, 0, &[]),
    ];
    for at in 0..chunks.len() {
        let mut fewer = chunks.clone();
        let taken = fewer.remove(at);
        assert!(refused(&fewer), "chunk {at} left out");
        for other in (0..chunks.len()).filter(|other| chunks[*other] != chunks[at]) {
            let mut swapped = chunks.clone();
            swapped.swap(at, other);
            assert!(refused(&swapped), "chunks {at} and {other} swapped");
        }
        for to in 0..=chunks.len() {
            let mut more = chunks.clone();
            more.insert(to, taken.clone());
            assert!(refused(&more), "chunk {at} repeated at {to}");
        }
        for added in &foreign {
            let mut more = chunks.clone();
            more.insert(at, added.clone());
            assert!(refused(&more), "{added:?} added at {at}");
        }
    }
}

#[test]
fn a_broken_transfer_goes_on_behind_the_last_digest() {
    let dice = Seeded::from_u64(seed(0));
    let volume_bytes = 8192 * 512;
    let chunks = random_chunks(&dice, volume_bytes, 8);
    let whole = info(volume_bytes);
    let mut expected = vec![0; volume_bytes as usize];
    apply(&mut expected, &chunks);
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&whole, &mut out).unwrap();
    for chunk in &chunks {
        send_chunk(&mut encoder, *chunk, &mut out);
        if below(&dice, 20) == 0 {
            encoder.digest(&mut out).unwrap();
        }
    }
    encoder.end(&mut out).unwrap();
    let mut went_on = 0;
    for _ in 0..50 {
        let cut = below(&dice, out.len() as u64) as usize;
        let mut volume = vec![0; volume_bytes as usize];
        let mut decoder = Decoder::new(None);
        let mut input = &out[..cut];
        while let Some(event) = decoder.next(&mut input).unwrap() {
            match event {
                Event::Payload { offset, bytes } => volume[offset as usize..][..bytes.len()].copy_from_slice(bytes),
                Event::Unmap { offset, length } => volume[offset as usize..][..length as usize].fill(0),
                _ => {}
            }
        }
        let Some(token) = decoder.token() else { continue };
        // The sender knows nothing but the token and what it sends.
        let token: Token = token.to_string().parse().unwrap();
        let rest = Info { resume: Some(token.resume), ..whole.clone() };
        assert!(token.fits(&rest) && !token.fits(&whole));
        let later = chunks.iter().filter(|chunk| match chunk {
            Chunk::Data { offset, .. } | Chunk::Unmap { offset, .. } => *offset >= token.resume.offset,
        });
        let decoder = receive(&mut volume, &send(&rest, &later.copied().collect::<Vec<_>>())).unwrap();
        assert!(decoder.token().is_some_and(|token| token.resume.offset <= volume_bytes));
        assert!(volume == expected, "cut at {cut}");
        went_on += 1;
    }
    assert!(went_on > 10, "{went_on}");
}

#[test]
fn a_file_that_was_cut_goes_on_as_if_it_had_not_been() {
    let (stream, _) = small_stream();
    let mut decoder = Decoder::new(None);
    let (mut input, mut checkpoints) = (&stream[..], Vec::new());
    while let Some(event) = decoder.next(&mut input).unwrap() {
        if let Event::Digest(checkpoint) = event {
            checkpoints.push((checkpoint, decoder.position() as usize));
        }
    }
    let (checkpoint, at) = checkpoints[1];
    let mut out = stream[..at].to_vec();
    let mut encoder = Encoder::behind(decoder.info().unwrap(), &checkpoint);
    encoder.unmap(2560, 1024, &mut out).unwrap();
    send_chunk(&mut encoder, Chunk::Data { offset: 9 * 512, length: 512, byte: 4 }, &mut out);
    encoder.end(&mut out).unwrap();
    assert_eq!(out, stream);
}

#[test]
fn digests_come_by_themselves() {
    let digests = |stream: &[u8]| split(stream).iter().filter(|chunk| kind(chunk) == Command::Digest).count();
    let unmap = |at| Chunk::Unmap { offset: at * 512, length: 512 };
    let many: Vec<_> = (0..STRETCH_CHUNKS + 1).map(unmap).collect();
    assert_eq!(digests(&send(&info(MIB * 8), &many[1..])), 1);
    assert_eq!(digests(&send(&info(MIB * 8), &many)), 2);
    let half = |at| Chunk::Data { offset: at * STRETCH_BYTES / 2, length: STRETCH_BYTES / 2, byte: 1 };
    assert_eq!(digests(&send(&info(STRETCH_BYTES * 2), &[half(0), half(1)])), 1);
    assert_eq!(digests(&send(&info(STRETCH_BYTES * 2), &[half(0), half(1), half(2)])), 2);
    assert_eq!(digests(&send(&info(512), &[])), 1);
}

#[test]
fn chunks_out_of_place_are_refused() {
    let begin = || chunk(Command::Begin, 0, 0, &[]);
    let foreign = |tail: Vec<Vec<u8>>| {
        let chunks: Vec<_> = [begin()].into_iter().chain(tail).collect();
        receive(&mut vec![0; 4096], &join(&chunks)).map(|_| ()).map_err(|error| error.reason)
    };
    let end = || chunk(Command::End, 0, 24, &[0; 24]);
    let data = |offset, length: u64| chunk(Command::Data, offset, length, &vec![1; length.min(8192) as usize]);
    let unmap = |offset, length| chunk(Command::Unmap, offset, length, &[]);
    assert_eq!(foreign(vec![data(512, 512), data(0, 1024), unmap(512, 512), end()]), Ok(()), "any order will do");
    assert_eq!(foreign(vec![unmap(0, 4096), data(4096, 0), end()]), Ok(()));
    let (offset, length) = (u64::MAX - 511, 1024);
    assert_eq!(foreign(vec![unmap(offset, length)]), Err(Reason::Overflow { offset, length }));
    let (offset, length) = (0, u64::MAX);
    assert_eq!(foreign(vec![data(offset, length)]), Err(Reason::Overflow { offset, length }));
    assert_eq!(foreign(vec![data(0, 513)]), Err(Reason::NotSectors { offset: 0, length: 513 }));
    assert_eq!(foreign(vec![unmap(1, 512)]), Err(Reason::NotSectors { offset: 1, length: 512 }));
    let beyond = Reason::BeyondVolume { offset: 3584, length: 1024, volume_bytes: 4096 };
    assert_eq!(foreign(vec![data(3584, 1024)]), Err(beyond));
    assert_eq!(foreign(vec![begin()]), Err(Reason::BeginAgain));
    assert_eq!(foreign(vec![chunk(Command::Digest, 0, 32, &[0; 32])]), Err(Reason::DigestMisplaced));
    let bad = Reason::BadHeader { chunk: "END_STREAM", offset: 0, length: 25 };
    assert_eq!(foreign(vec![chunk(Command::End, 0, 25, &[0; 25])]), Err(bad));
    let long = (MIB << 6) + 4 * 4096;
    assert_eq!(foreign(vec![chunk(Command::Optional, 0, long, &[])]), Err(Reason::TooLong { most: long }));
    let just = long - 2 * HEADER_BYTES as u64;
    assert_eq!(foreign(vec![chunk(Command::Optional, 0, just, &[])]), Err(Reason::Truncated));
    // A table of 90 bytes, and a name of 255.
    for (offset, length) in [(512, 90), (0, 346)] {
        let bad = Reason::BadHeader { chunk: "an info chunk", offset, length };
        assert_eq!(foreign(vec![chunk(Command::Info, offset, length, &[])]), Err(bad));
    }

    let ours = |volume_bytes, tail: &[Vec<u8>]| {
        let stream = [begin(), info_chunk(&info(volume_bytes).to_bytes()), tail.concat()].concat();
        receive(&mut vec![0; 4096], &stream).map(|_| ()).map_err(|error| error.reason)
    };
    assert_eq!(ours(4096, &[data(512, 512), unmap(512, 512)]), Err(Reason::OutOfOrder { offset: 512, least: 1024 }));
    let beyond = Reason::BeyondVolume { offset: 1024, length: 512, volume_bytes: 1024 };
    assert_eq!(ours(1024, &[unmap(1024, 512)]), Err(beyond), "the stream's own size holds");
    assert_eq!(ours(4096, &[end()]), Err(Reason::NotDigested));
    assert_eq!(ours(4096, &[info_chunk(&info(4096).to_bytes())]), Err(Reason::InfoMisplaced));
}

fn info_chunk(body: &[u8]) -> Vec<u8> {
    chunk(Command::Info, 0, body.len() as u64, body)
}

#[test]
fn an_error_is_told_again() {
    let mut decoder = Decoder::new(None);
    let mut input = &[0; 40][..];
    let error = decoder.next(&mut input).unwrap_err();
    assert_eq!(error, StreamError { at: 0, reason: Reason::BadMagic(0) });
    let (stream, _) = small_stream();
    assert_eq!(decoder.next(&mut &stream[..]), Err(error));
    assert_eq!(decoder.finish(), Err(error));
}

#[test]
fn an_info_chunk_that_makes_no_sense_is_refused() {
    let parse = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut body = Info { origin: Some("golden".to_string()), ..info(4096) }.to_bytes();
        change(&mut body);
        Info::parse(&body)
    };
    assert!(parse(&|_| ()).is_ok());
    assert_eq!(parse(&|body| body[1] = 2), Err(Reason::InfoVersion(2)));
    let malformed = |change: &dyn Fn(&mut Vec<u8>)| matches!(parse(change), Err(Reason::InfoMalformed(_)));
    assert!(malformed(&|body| body.clear()));
    assert!(malformed(&|body| body.truncate(89)));
    assert!(malformed(&|body| body.truncate(95)), "the name is cut");
    assert!(malformed(&|body| body.push(b'x')), "more than the name");
    assert!(malformed(&|body| body[90] = 0xFF), "no UTF-8");
    assert!(malformed(&|body| body[3] = 4), "unknown flag");
    assert!(malformed(&|body| body[4..8].fill(0)), "no block size");
    assert!(malformed(&|body| body[8..16].fill(0)), "no size");
    assert!(malformed(&|body| body[15] = 1), "no whole sectors");
    assert!(malformed(&|body| body[54] = 2), "goes on, and does not");
    assert!(!malformed(&|body| (body[3], body[54]) = (2, 2)));
    assert!(malformed(&|body| (body[3], body[53]) = (2, 2)), "goes on beyond the volume");
    assert!(!malformed(&|body| (body[3], body[54]) = (2, 16)), "nothing was left to send");
}

#[test]
fn a_token_is_taken_as_it_was_given_out_only() {
    let resume = Resume { offset: 1 << 40, digest: [0xA5; 32] };
    for base in [None, Some(Identity([0; 16])), Some(Identity([1; 16]))] {
        let token = Token { target: Identity([2; 16]), base, resume };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token));
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(core::str::from_utf8(&other).unwrap().parse::<Token>(), Err(BadToken), "at {at}");
            assert_eq!(text[..at].parse::<Token>(), Err(BadToken));
        }
        assert_eq!(text.to_uppercase().parse::<Token>(), Err(BadToken));
    }
    assert_eq!("gs1é".parse::<Token>(), Err(BadToken));
}

#[test]
fn a_token_fits_the_stream_that_goes_on_where_it_says() {
    let resume = Resume { offset: 512, digest: [0xA5; 32] };
    let rest = Info { resume: Some(resume), ..info(4096) };
    let token = Token::new(&rest, resume);
    assert!(token.fits(&rest));
    let others = [
        Info { resume: None, ..rest.clone() },
        Info { resume: Some(Resume { offset: 1024, ..resume }), ..rest.clone() },
        Info { resume: Some(Resume { digest: [0; 32], ..resume }), ..rest.clone() },
        Info { base: Some(Identity([1; 16])), ..rest.clone() },
        Info { target: Identity([1; 16]), ..rest },
    ];
    for other in others {
        assert!(!token.fits(&other), "{other:?}");
    }
}

/// Piece by piece, as a stream arrives: none as long as nothing is verified, and then what the last digest verified.
#[test]
fn a_token_is_there_once_there_is_something_to_go_on_from() {
    let tokens = |stream: &[u8], info: &Info| {
        let (mut decoder, mut tokens, mut input) = (Decoder::new(None), Vec::new(), stream);
        while let Some(event) = decoder.next(&mut input).unwrap() {
            match event {
                Event::Info => tokens.push(decoder.token()),
                Event::Digest(Checkpoint { resume, .. }) => {
                    assert_eq!(decoder.token(), Some(Token::new(info, resume)));
                    tokens.push(decoder.token());
                }
                _ => assert_eq!(decoder.token(), tokens.last().copied().flatten()),
            }
        }
        tokens.into_iter().map(|token| token.map(|token| token.resume.offset)).collect::<Vec<_>>()
    };
    let (stream, volume_bytes) = small_stream();
    assert_eq!(tokens(&stream, &info(volume_bytes)), [None, Some(3 * 512), Some(5 * 512), Some(10 * 512)]);
    let rest = Info { resume: Some(Resume { offset: 512, digest: [0xA5; 32] }), ..info(4096) };
    let stream = send(&rest, &[Chunk::Unmap { offset: 1024, length: 512 }]);
    assert_eq!(tokens(&stream, &rest), [Some(512), Some(3 * 512)], "that of the stream that it goes on with");
}

#[test]
fn the_encoder_refuses_what_a_decoder_would() {
    let mut out = Vec::new();
    assert!(Encoder::begin(&info(1000), &mut out).is_err());
    for (bytes, fits) in [(0, false), (1, true), (ORIGIN_BYTES_MAX, true), (ORIGIN_BYTES_MAX + 1, false)] {
        let origin = Some("x".repeat(bytes));
        assert_eq!(Encoder::begin(&Info { origin, ..info(4096) }, &mut out).is_ok(), fits, "a name of {bytes} bytes");
    }
    let mut encoder = Encoder::begin(&info(4096), &mut out).unwrap();
    encoder.data(1024, 512, &mut out).unwrap();
    assert_eq!(encoder.unmap(2048, 512, &mut out), Err(Reason::PayloadDiffers(512)), "payload is missing");
    assert_eq!(encoder.payload(&[0; 513]), Err(Reason::PayloadDiffers(513)));
    encoder.payload(&[0; 512]).unwrap();
    assert!(encoder.unmap(1024, 512, &mut out).is_err(), "backwards");
    assert!(encoder.unmap(3584, 1024, &mut out).is_err(), "beyond the end");
    let mut encoder = Encoder::begin(&info(1 << 40), &mut out).unwrap();
    assert!(encoder.data(0, STRETCH_BYTES + 512, &mut out).is_err());
    encoder.data(0, STRETCH_BYTES, &mut out).unwrap();
    assert_eq!(encoder.end(&mut out), Err(Reason::PayloadDiffers(STRETCH_BYTES)));
}

#[test]
fn an_identity_is_written_as_it_is_read() {
    let identity = Identity(core::array::from_fn(|place| 0xf0 ^ (place as u8 * 17)));
    let text = identity.to_string();
    assert_eq!((text.as_str(), text.parse()), ("f0e1d2c3b4a5968778695a4b3c2d1e0f", Ok(identity)));
    assert_eq!(format!("{identity:?}"), text);
    for wrong in [&text[1..], &format!("{text}0"), &text.replace('f', "g"), ""] {
        assert!(wrong.parse::<Identity>().is_err(), "{wrong}");
    }
}

/// 90 bytes and a name of 255.
#[test]
fn an_info_chunk_is_no_longer_than_the_longest_name_makes_it() {
    let body = Info { origin: Some("x".repeat(255)), ..info(4096) }.to_bytes();
    let of_length = |length: u64| {
        let body = &body[..body.len().min(length as usize)];
        let stream = [chunk(Command::Begin, 0, 0, &[]), chunk(Command::Info, 0, length, body)].concat();
        receive(&mut vec![0; 4096], &stream).map(|_| ()).map_err(|error| error.reason)
    };
    assert_eq!(of_length(345), Err(Reason::Truncated), "only the end is missing");
    let bad = Reason::BadHeader { chunk: "an info chunk", offset: 0, length: 346 };
    assert_eq!(of_length(346), Err(bad));
}
