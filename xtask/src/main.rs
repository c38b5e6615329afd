//! Every chore of the project: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::BufRead;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;
use xtask::dice::Dice;
use xtask::nbd::{Flush, Server, Supply};
use xtask::{bench, conformance, fuzz, gossamer, image, run, sim, suite, tidy, tools};

const USAGE: &str = "\
usage: cargo xtask COMMAND [options]
  run        build the image and run it in QEMU; Ctrl-C powers off
  test       install what the tests need and run all of them
  soak       the same, much longer
  build      build the image and print where it is
  bench boot how fast it boots, how big it is, how little memory it needs
  bench delta what a delta of two snapshots costs beside thin_delta
  bench pdata what metadata operations cost, in time and in heap
  bench streams what streams cost beside what changed, and how fast they go
  gossamer   build the host's program as one static file and print where it is
  pool       check, dump, restore or repair metadata images: gossamer-pool
  conformance libiscsi's conformance tests on volumes of each shape
  fuzz       look for damaged metadata, streams and commands that upset what reads them
  tidy       check the rules of the house
  sim        the deterministic simulator: power cuts at every point
  mutants    build an image with a fault put in, or have the simulator find it
  nbd        serve files as disks whose power can be cut
`cargo xtask COMMAND --help` tells the options.";

fn main() -> ExitCode {
    match command() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the command line says; false when something was found wanting.
fn command() -> Result<bool> {
    let root = xtask::root();
    let mut parser = lexopt::Parser::from_env();
    let command = match parser.next()? {
        Some(Value(command)) => command.string()?,
        Some(Long("help") | Short('h')) => {
            println!("{USAGE}");
            return Ok(true);
        }
        _ => bail!("{USAGE}"),
    };
    match command.as_str() {
        "run" => run::run(&root, &mut parser).map(|()| true),
        "test" => suite::run(&root, &mut parser, false),
        "soak" => suite::run(&root, &mut parser, true),
        "bench" => bench::run(&root, &mut parser),
        "conformance" => conformance::chore(&root, &mut parser),
        "fuzz" => fuzz::run(&root, &mut parser),
        "build" => {
            println!("{}", image::build(&root)?.display());
            Ok(true)
        }
        "gossamer" => {
            println!("{}", gossamer::build(&root)?.display());
            Ok(true)
        }
        "pool" => tools::run(&root, parser.raw_args()?),
        "tidy" => {
            let findings = tidy::check(&root)?;
            findings.iter().for_each(|finding| println!("{finding}"));
            Ok(findings.is_empty())
        }
        "sim" => sim::run(&root, parser.raw_args()?),
        "mutants" => sim::mutants(&root, &mut parser),
        "nbd" => nbd(&mut parser).map(|()| true),
        other => bail!("{other}?\n{USAGE}"),
    }
}

const NBD_USAGE: &str = "\
usage: cargo xtask nbd [options] NAME=FILE...
  --socket PATH    listen on a unix socket
  --tcp ADDRESS    listen on TCP, such as 127.0.0.1:10809
  --seed N         of the cuts
  --ignore-flush   acknowledge flushes and do nothing
Lines on standard input: `cut` takes the power, `on` gives it back; their end ends the server.";

fn nbd(parser: &mut lexopt::Parser) -> Result<()> {
    let (mut socket, mut tcp, mut seed, mut flush) = (None, None, Dice::fresh_seed(), Flush::Honest);
    let mut files = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("socket") => socket = Some(PathBuf::from(parser.value()?)),
            Long("tcp") => tcp = Some(parser.value()?.string()?),
            Long("seed") => seed = parser.value()?.parse()?,
            Long("ignore-flush") => flush = Flush::Ignored,
            Value(file) => files.push(file.string()?),
            _ => bail!("{NBD_USAGE}"),
        }
    }
    let supply = Supply::new(seed);
    supply.set_flush(flush);
    let mut server = Server::new(supply.clone());
    for file in &files {
        let (name, path) = file.split_once('=').with_context(|| format!("{file}: not NAME=FILE\n{NBD_USAGE}"))?;
        let file = File::options().read(true).write(true).open(path).with_context(|| path.to_owned())?;
        server.export(name, supply.add(file)?);
    }
    if socket.is_none() && tcp.is_none() {
        bail!("{NBD_USAGE}");
    }
    if let Some(path) = &socket {
        server.listen_unix(path)?;
    }
    if let Some(address) = &tcp {
        println!("listening on {}", server.listen_tcp(address)?);
    }
    println!("seed {seed}");
    for line in std::io::stdin().lock().lines() {
        match line?.trim() {
            "cut" => println!("{:?}", supply.cut()?),
            "on" => supply.power_on(),
            "" => {}
            other => println!("{other}? cut or on"),
        }
    }
    if let Some(path) = &socket {
        std::fs::remove_file(path)?;
    }
    Ok(())
}
