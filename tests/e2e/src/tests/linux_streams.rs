//! Streams from here into Linux's dm-thin, and from there into volumes here, with equal and different sizes of blocks.
//!
//! No `thin_send` and `thin_recv` are packaged: `guest/receive.c` receives as the real one does, and what is sent here is made from the
//! metadata that Linux left, by `thin_dump` and `thin_delta`, as the real one makes it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::dice::Dice;
use xtask::process;
use xtask::thin_dump::{Device, Dump};

use super::backup::{command, read};
use crate::appliance::{Appliance, Site};
use crate::context::Context;
use crate::iscsi::BLOCK_BYTES;
use crate::runner::Test;

pub const TESTS: &[Test] = &[Test::new("linux_streams::volumes_go_there_and_back", volumes_go_there_and_back)];

/// 399 blocks of 64 KiB, no whole number of 128 KiB.
const SECTORS: u64 = 51072;
/// Sizes of Linux's blocks, in sectors; ours have 128. Powers of two: the kernel (6.12) rounds the beginning of a discard as if all were, and
/// leaves the first block of a range mapped where they are not.
const BLOCKS: [u64; 2] = [128, 256];
const DATA_BYTES: u64 = 64 << 20;
const META_BYTES: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(240);

/// A snapshot here: what it holds, and how many sectors are mapped.
struct Held {
    contents: Vec<u8>,
    mapped_sectors: u64,
}

fn volumes_go_there_and_back(context: &Context) -> Result<()> {
    let site = Site::new(context, 8 << 20, 256 << 20)?;
    let appliance = site.start()?;
    let states = send(context, &appliance)?;
    let told = in_linux(context)?;
    for (step, state) in ["full", "increment"].iter().zip(&states) {
        for block in BLOCKS {
            let (digest, mapped) = told.get(&(step.to_string(), block)).context("a line is missing")?;
            ensure!(*digest == sha256(&state.contents)?, "{step}, blocks of {block}: Linux holds something else");
            ensure!(block != 128 || *mapped == state.mapped_sectors, "{step}: Linux maps {mapped} sectors");
        }
    }
    for block in BLOCKS {
        let linux = Linux::open(context, block)?;
        let name = format!("linux-{block}");
        // Device 1 is the snapshot after the full stream; 0 went on, by the increment and by Linux's own writes.
        receive(context, &appliance, &name, &linux.full(1)?, &["--size", &(SECTORS * 512).to_string()])?;
        ensure!(read(&appliance, &name)? == states[0].contents, "blocks of {block}: the full stream from Linux");
        appliance.call("DELETE", &format!("/v1/volumes/{name}"), &Value::Null)?;
        receive(context, &appliance, &name, &linux.full(1)?, &["--size", &(SECTORS * 512).to_string()])?;
        receive(context, &appliance, &name, &linux.increment(context, (1, 0))?, &["--base", &name])?;
        let (digest, _) = told.get(&("own".to_owned(), block)).context("a line is missing")?;
        ensure!(sha256(&read(&appliance, &name)?)? == *digest, "blocks of {block}: the increment from Linux");
    }
    appliance.power_off()?;
    context.thin_check(&site.meta)
}

/// Two states of a volume as streams in files: a full one, and an increment with discards.
fn send(context: &Context, appliance: &Appliance) -> Result<Vec<Held>> {
    let mut dice = Dice::new(context.seed);
    appliance.make_volume("v1", SECTORS * BLOCK_BYTES as u64)?;
    let mut states = Vec::new();
    for (step, from) in [("full", None), ("increment", Some("full"))] {
        let mut session = appliance.login("v1")?;
        for _ in 0..40 {
            let len = dice.between(1, 900);
            let at = dice.below(SECTORS - len + 1);
            if dice.chance(35) {
                session.unmap(at, len as u32)?;
            } else {
                let mut data = vec![0; len as usize * BLOCK_BYTES];
                dice.fill(&mut data);
                session.write(at, &data, false)?;
            }
        }
        session.logout()?;
        let snapshot = json!({"name": step, "read_only": true});
        let made = appliance.call("POST", "/v1/volumes/v1/snapshots", &snapshot)?;
        let mapped_bytes = made["mapped_bytes"].as_u64().context("no mapped_bytes")?;
        let mut send = command(context, appliance);
        send.args(["volume", "send", step]).args(from.map(|from| format!("--from={from}")));
        let file = File::create(context.scratch.join(step))?;
        let sent = send.stdout(file.try_clone()?).status()?;
        ensure!(sent.success(), "gossamer volume send: {sent}");
        // A disk has whole sectors.
        file.set_len(file.metadata()?.len().next_multiple_of(4096))?;
        states.push(Held { contents: read(appliance, step)?, mapped_sectors: mapped_bytes / 512 });
    }
    Ok(states)
}

/// What Linux holds after each step, with blocks of each size: the digest, and how many sectors are mapped.
fn in_linux(context: &Context) -> Result<BTreeMap<(String, u64), (String, u64)>> {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let receive = context.scratch.join("receive");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o"]).arg(&receive).arg(guest.join("receive.c"));
    process::succeed(&mut gcc, LIMIT)?;
    let mut vm = process::tied(context.lab("linux-vm")?);
    let pools = BLOCKS.map(|block| [(format!("meta-{block}"), META_BYTES), (format!("data-{block}"), DATA_BYTES)]);
    for (name, bytes) in pools.iter().flatten() {
        process::sparse_file(&context.scratch.join(name), *bytes)?;
    }
    for name in pools.iter().flatten().map(|(name, _)| name.as_str()).chain(["full", "increment"]) {
        vm.arg("--disk").arg(format!("{},serial={name}", context.scratch.join(name).display()));
    }
    let blocks = BLOCKS.map(|block| block.to_string()).join(" ");
    vm.args(["--env", &format!("SECTORS={SECTORS}"), "--env", &format!("BLOCKS={blocks}"), "--file"]).arg(receive);
    let ended = process::succeed(vm.arg("--").arg(guest.join("streams.sh")), LIMIT)?;
    let text = ended.text();
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [step, block, digest, mapped] = words.as_slice() else { return None };
        Some(((step.to_string(), block.parse().ok()?), (digest.to_string(), mapped.parse().ok()?)))
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Receives a stream that is not one of ours.
fn receive(context: &Context, appliance: &Appliance, name: &str, stream: &[u8], options: &[&str]) -> Result<()> {
    let mut command = command(context, appliance);
    command.args(["volume", "receive", name]).args(options).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn()?;
    child.stdin.take().context("no standard input")?.write_all(stream)?;
    let status = process::wait(&mut child, LIMIT)?.context("gossamer volume receive does not end")?;
    ensure!(status.success(), "gossamer volume receive {name}: {status}");
    Ok(())
}

fn sha256(contents: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(contents)?;
    let output = child.wait_with_output()?;
    Ok(String::from_utf8(output.stdout)?.split(' ').next().unwrap_or_default().to_owned())
}

/// A pool that Linux left, read as `thin_send` reads it.
struct Linux {
    meta: PathBuf,
    data: File,
    pool: Dump,
}

impl Linux {
    fn open(context: &Context, block: u64) -> Result<Linux> {
        let meta = context.scratch.join(format!("meta-{block}"));
        context.thin_check(&meta)?;
        let pool = Dump::parse(&context.thin_dump(&meta, false)?)?;
        Ok(Linux { meta, data: File::open(context.scratch.join(format!("data-{block}")))?, pool })
    }

    fn device(&self, id: u64) -> Result<&Device> {
        self.pool.devices.get(&id).with_context(|| format!("Linux has no device {id}"))
    }

    /// A DATA chunk for each run of mapped blocks.
    fn full(&self, id: u64) -> Result<Vec<u8>> {
        let mut stream = Stream::begin();
        let blocks: Vec<u64> = self.device(id)?.mappings.keys().copied().collect();
        for run in blocks.chunk_by(|one, next| one + 1 == *next) {
            self.data(&mut stream, id, run[0], run.len() as u64)?;
        }
        Ok(stream.end())
    }

    /// What `thin_delta` tells: what is new or different as DATA, what is gone as UNMAP.
    fn increment(&self, context: &Context, (left, right): (u64, u64)) -> Result<Vec<u8>> {
        let mut thin_delta = context.thin_tool("thin_delta")?;
        thin_delta.args(["--snap1", &left.to_string(), "--snap2", &right.to_string()]);
        let ended = process::succeed(thin_delta.arg(&self.meta), LIMIT)?;
        let (text, mut stream) = (String::from_utf8(ended.stdout)?, Stream::begin());
        for line in text.lines().map(str::trim) {
            let number =
                |key: &str| -> Option<u64> { line.split_once(&format!("{key}=\""))?.1.split('"').next()?.parse().ok() };
            let run = number("begin").zip(number("length"));
            match (line.split(' ').next(), run) {
                (Some("<different" | "<right_only"), Some((begin, length))) => {
                    self.data(&mut stream, right, begin, length)?;
                }
                (Some("<left_only"), Some((begin, length))) => {
                    let (offset, length) = self.place(begin, length);
                    stream.chunk(1, offset, length, &[]);
                }
                _ => {}
            }
        }
        ensure!(stream.counts[1] > 0 && stream.counts[2] > 0, "Linux's changes lack writes or discards:\n{text}");
        Ok(stream.end())
    }

    /// Bytes in the volume of these blocks.
    fn place(&self, begin: u64, length: u64) -> (u64, u64) {
        let block_bytes = self.pool.data_block_sectors * 512;
        let end = ((begin + length) * block_bytes).min(SECTORS * 512);
        (begin * block_bytes, end - begin * block_bytes)
    }

    fn data(&self, stream: &mut Stream, id: u64, begin: u64, length: u64) -> Result<()> {
        let ((offset, bytes), mappings) = (self.place(begin, length), &self.device(id)?.mappings);
        let block_bytes = self.pool.data_block_sectors * 512;
        let mut payload = vec![0; bytes as usize];
        for (block, part) in (begin..).zip(payload.chunks_mut(block_bytes as usize)) {
            let (at, _) = mappings.get(&block).context("thin_delta tells of a block that thin_dump does not")?;
            self.data.read_exact_at(part, at * block_bytes)?;
        }
        stream.chunk(0, offset, bytes, &payload);
        Ok(())
    }
}

/// What `thin_send` 1.1 writes.
struct Stream {
    bytes: Vec<u8>,
    /// Chunks of all kinds, DATA, UNMAP.
    counts: [u64; 3],
}

impl Stream {
    fn begin() -> Stream {
        let mut stream = Stream { bytes: Vec::new(), counts: [0; 3] };
        stream.chunk(2, 0, 0, &[]);
        stream
    }

    fn chunk(&mut self, command: u32, offset: u64, length: u64, payload: &[u8]) {
        self.bytes.extend(0x24C4_F02A_AE2E_4FA9_u64.to_be_bytes());
        self.bytes.extend(offset.to_be_bytes());
        self.bytes.extend(length.to_be_bytes());
        self.bytes.extend(command.to_be_bytes());
        self.bytes.extend_from_slice(payload);
        self.counts[0] += 1;
        self.counts[1] += u64::from(command == 0);
        self.counts[2] += u64::from(command == 1);
    }

    fn end(mut self) -> Vec<u8> {
        let counts = [self.counts[0] + 1, self.counts[1], self.counts[2]];
        self.chunk(3, 0, 24, &counts.map(u64::to_be_bytes).concat());
        self.bytes
    }
}
