//! A small appliance: what `docs/api.md` says of snapshots and streams, over volumes whose blocks are a byte each.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};
use thinp::stream::{Decoder, Encoder, Event, Identity, Info, Token};

pub const BLOCK_BYTES: u64 = 65536;

/// Blocks between two digests: few, so that there are some.
pub const STRETCH_BLOCKS: u64 = 4;

/// Seeded choices; SEED repeats those of a test.
pub struct Dice(u64);

impl Dice {
    pub fn new(round: u64) -> Dice {
        let given = std::env::var("SEED").ok().map(|text| text.parse().expect("SEED is a number"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = given.unwrap_or(now ^ round);
        println!("seed {seed}");
        Dice(seed)
    }

    /// A number from `low` to `high` (splitmix64).
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + (mixed ^ (mixed >> 31)) % (high - low + 1)
    }
}

#[derive(Clone, Default)]
struct Volume {
    blocks: BTreeMap<u64, u8>,
    size_bytes: u64,
    identity: u64,
    read_only: bool,
    intact: bool,
}

#[derive(Default)]
struct State {
    volumes: BTreeMap<String, Volume>,
    identities: u64,
    cuts: Vec<u64>,
    refuse_streams: bool,
    cut_uploads_at: Option<u64>,
    full_at: Option<u64>,
    /// What was received of a volume, and how to go on.
    receiving: BTreeMap<String, (Volume, Token)>,
    held: Option<String>,
    resumed: usize,
    sent_bytes: u64,
    sent_after_answer: u64,
}

pub struct Fake {
    pub url: String,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that goes away is no concern of the next one.
                let _ = answer(&shared, &stream.unwrap());
            }
        });
        Fake { url, state }
    }

    pub fn make(&self, name: &str, size_bytes: u64) {
        self.state.lock().unwrap().volumes.insert(name.into(), Volume { size_bytes, ..Volume::default() });
    }

    pub fn fill(&self, name: &str, blocks: Range<u64>, byte: u8) {
        let mut state = self.state.lock().unwrap();
        state.volumes.get_mut(name).unwrap().blocks.extend(blocks.map(|block| (block, byte)));
    }

    /// Some writes, discards, and now and then another size: of whole blocks, for the fake knows no parts of them.
    pub fn change(&self, name: &str, dice: &mut Dice) {
        let mut state = self.state.lock().unwrap();
        let volume = state.volumes.get_mut(name).unwrap();
        if volume.size_bytes.is_multiple_of(BLOCK_BYTES) && dice.between(0, 3) == 0 {
            volume.size_bytes = dice.between(10, 50) * BLOCK_BYTES;
            let end = volume.size_bytes;
            volume.blocks.retain(|block, _| block * BLOCK_BYTES < end);
        }
        let blocks = volume.size_bytes.div_ceil(BLOCK_BYTES);
        for _ in 0..dice.between(0, 8) {
            let begin = dice.between(0, blocks - 1);
            let end = dice.between(begin, blocks - 1) + 1;
            let byte = dice.between(1, 255) as u8;
            match dice.between(0, 2) {
                0 => volume.blocks.retain(|block, _| !(begin..end).contains(block)),
                _ => volume.blocks.extend((begin..end.min(begin + 5)).map(|block| (block, byte))),
            }
        }
    }

    pub fn contents(&self, name: &str) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let volume = &state.volumes[name];
        let mut bytes = vec![0; volume.size_bytes as usize];
        for (block, byte) in &volume.blocks {
            let begin = (block * BLOCK_BYTES) as usize;
            let end = (begin + BLOCK_BYTES as usize).min(bytes.len());
            bytes[begin..end].fill(*byte);
        }
        bytes
    }

    pub fn snapshots(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.volumes.iter().filter(|(_, volume)| volume.read_only).map(|(name, _)| name.clone()).collect()
    }

    pub fn remove(&self, name: &str) {
        self.state.lock().unwrap().volumes.remove(name);
    }

    pub fn spoil(&self, name: &str) {
        self.state.lock().unwrap().volumes.get_mut(name).unwrap().intact = false;
    }

    pub fn hold(&self, name: Option<&str>) {
        self.state.lock().unwrap().held = name.map(str::to_owned);
    }

    pub fn cut_downloads(&self, at: &[u64]) {
        self.state.lock().unwrap().cuts = at.to_vec();
    }

    pub fn refuse_streams(&self, refuse: bool) {
        self.state.lock().unwrap().refuse_streams = refuse;
    }

    pub fn cut_uploads_at(&self, at: Option<u64>) {
        self.state.lock().unwrap().cut_uploads_at = at;
    }

    pub fn full_at(&self, at: Option<u64>) {
        self.state.lock().unwrap().full_at = at;
    }

    pub fn resumed(&self) -> usize {
        self.state.lock().unwrap().resumed
    }

    pub fn sent_after_answer(&self) -> u64 {
        self.state.lock().unwrap().sent_after_answer
    }

    pub fn sent_bytes(&self) -> u64 {
        self.state.lock().unwrap().sent_bytes
    }
}

fn answer(state: &Mutex<State>, stream: &TcpStream) -> std::io::Result<()> {
    let mut input = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    assert!(head.contains(&"Authorization: Bearer gsm-secret".to_owned()), "{head:?}");
    let words: Vec<&str> = head[0].split(' ').collect();
    let (path, query) = words[1].split_once('?').unwrap_or((words[1], ""));
    let query: BTreeMap<&str, &str> = query.split('&').filter_map(|part| part.split_once('=')).collect();
    let parts: Vec<&str> = path.split('/').skip(2).collect();
    let mut state = state.lock().unwrap();
    match (words[0], parts.as_slice()) {
        ("GET", ["pool"]) => say(stream, 200, &json!({"data_block_sectors": 128})),
        ("GET", ["volumes", name]) => match state.volumes.get(*name) {
            Some(volume) => say(stream, 200, &show(volume)),
            None => no_such(stream),
        },
        ("DELETE", ["volumes", name]) if state.held.as_deref() == Some(*name) => {
            say(stream, 409, &json!({"errno": -16, "error": "EBUSY", "message": "it is in use"}))
        }
        ("DELETE", ["volumes", name]) => match state.volumes.remove(*name) {
            Some(_) => say(stream, 204, &Value::Null),
            None => no_such(stream),
        },
        ("POST", ["volumes", name, "snapshots"]) => {
            let length = head.iter().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
            let mut body = vec![0; length];
            input.read_exact(&mut body)?;
            let body: Value = serde_json::from_slice(&body).unwrap();
            state.identities += 1;
            let identity = state.identities;
            let snapshot = Volume { identity, read_only: true, intact: true, ..state.volumes[*name].clone() };
            assert_eq!(body["read_only"], true);
            state.volumes.insert(body["name"].as_str().unwrap().to_owned(), snapshot.clone());
            say(stream, 201, &show(&snapshot))
        }
        ("GET", ["volumes", left, "delta"]) => {
            let (left, right) = (&state.volumes[*left], &state.volumes[query["to"]]);
            let changed = right.blocks.iter().filter(|(block, byte)| left.blocks.get(block) != Some(byte));
            let line = |(block, _): (&u64, &u8)| format!("{{\"kind\":\"different\",\"begin\":{block},\"length\":1}}\n");
            plain(stream, 200, &changed.map(line).collect::<String>())
        }
        ("GET", ["volumes", name, "stream"]) if !state.refuse_streams => send(&mut state, stream, name, &query),
        ("GET", ["volumes", name, "receive"]) => match state.receiving.get(*name) {
            Some((_, token)) => say(stream, 200, &json!({"running": false, "resume": token.to_string()})),
            None => no_such(stream),
        },
        ("PUT", ["volumes", name, "stream"]) => receive(&mut state, stream, &mut input, name),
        _ => say(stream, 503, &json!({"error": "busy", "message": "not now"})),
    }
}

fn show(volume: &Volume) -> Value {
    let contents = volume.read_only.then(|| identity(volume.identity).to_string());
    let intact = volume.read_only.then_some(volume.intact);
    json!({"mapped_bytes": volume.blocks.len() as u64 * BLOCK_BYTES, "read_only": volume.read_only,
           "intact": intact, "contents": contents})
}

fn identity(number: u64) -> Identity {
    Identity([number as u8; 16])
}

fn no_such(stream: &TcpStream) -> std::io::Result<()> {
    say(stream, 404, &json!({"errno": -61, "error": "ENODATA", "message": "no such volume"}))
}

fn say(stream: &TcpStream, status: u16, body: &Value) -> std::io::Result<()> {
    plain(stream, status, &if body.is_null() { String::new() } else { body.to_string() })
}

fn plain(mut stream: &TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let answer = format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes())
}

fn send(state: &mut State, mut stream: &TcpStream, name: &str, query: &BTreeMap<&str, &str>) -> std::io::Result<()> {
    let (right, left) = (state.volumes[name].clone(), query.get("from").map(|base| state.volumes[*base].clone()));
    let token: Option<Token> = query.get("resume").map(|text| text.parse().unwrap());
    let (target, base) = (identity(right.identity), left.as_ref().map(|left| identity(left.identity)));
    state.resumed += usize::from(token.is_some());
    let info = Info {
        volume_bytes: right.size_bytes,
        block_bytes: BLOCK_BYTES as u32,
        target,
        base,
        origin: None,
        resume: token.map(|token| token.resume),
    };
    let (mut out, left) = (Vec::new(), left.unwrap_or_default());
    let mut encoder = Encoder::begin(&info, &mut out).unwrap();
    let from = info.resume.map_or(0, |resume| resume.offset);
    let last = right.size_bytes.div_ceil(BLOCK_BYTES);
    for block in 0..last {
        let offset = block * BLOCK_BYTES;
        let length = BLOCK_BYTES.min(right.size_bytes - offset);
        match (left.blocks.get(&block), right.blocks.get(&block)) {
            (before, now) if before == now || offset < from => continue,
            (_, Some(byte)) => {
                encoder.data(offset, length, &mut out).unwrap();
                let payload = vec![*byte; length as usize];
                encoder.payload(&payload).unwrap();
                out.extend(payload);
            }
            (_, None) => encoder.unmap(offset, length, &mut out).unwrap(),
        }
        if block % STRETCH_BLOCKS == 0 {
            encoder.digest(&mut out).unwrap();
        }
    }
    encoder.end(&mut out).unwrap();
    let cut = if state.cuts.is_empty() { usize::MAX } else { state.cuts.remove(0) as usize };
    let sent = &out[..cut.min(out.len())];
    state.sent_bytes += sent.len() as u64;
    write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for chunk in sent.chunks(10000) {
        write!(stream, "{:x}\r\n", chunk.len())?;
        stream.write_all(chunk)?;
        stream.write_all(b"\r\n")?;
    }
    if sent.len() < out.len() { Ok(()) } else { stream.write_all(b"0\r\n\r\n") }
}

fn receive(state: &mut State, stream: &TcpStream, input: &mut impl BufRead, name: &str) -> std::io::Result<()> {
    let (mut decoder, mut volume) = (Decoder::new(None), Volume::default());
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
        let mut chunk = vec![0; length + 2];
        input.read_exact(&mut chunk)?;
        let mut bytes = &chunk[..length];
        while let Some(event) = decoder.next(&mut bytes).unwrap() {
            match event {
                Event::Info => {
                    let info = decoder.info().unwrap();
                    assert!(info.base.is_none(), "a restore is one full stream");
                    if info.resume.is_some() {
                        let (kept, token) = state.receiving.remove(name).unwrap();
                        assert!(token.fits(info));
                        volume = kept;
                        state.resumed += 1;
                    }
                    volume.size_bytes = info.volume_bytes;
                }
                Event::Payload { offset, bytes } => drop(volume.blocks.insert(offset / BLOCK_BYTES, bytes[0])),
                Event::Unmap { offset, .. } => drop(volume.blocks.remove(&(offset / BLOCK_BYTES))),
                Event::Digest(_) => {
                    state.receiving.insert(name.into(), (volume.clone(), decoder.token().unwrap()));
                }
                Event::Data { .. } | Event::End(_) => {}
            }
        }
        let at = decoder.position();
        if state.full_at.is_some_and(|full| at > full) {
            say(stream, 507, &json!({"errno": -28, "error": "ENOSPC", "message": "the pool is full"}))?;
            // As the appliance does: what is still under way must not reset the connection before the answer is read.
            stream.shutdown(Shutdown::Write)?;
            let more = std::io::copy(input, &mut std::io::sink())?;
            state.sent_after_answer = more;
            return Ok(());
        }
        if state.cut_uploads_at.is_some_and(|most| at > most) {
            return Ok(());
        }
        if length == 0 {
            decoder.finish().unwrap();
            state.receiving.remove(name);
            state.volumes.insert(name.into(), volume);
            return say(stream, 200, &json!({"name": name}));
        }
    }
}
