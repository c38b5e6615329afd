//! `cargo xtask run`: from nothing to an appliance that serves, on this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;

use crate::console::Console;
use crate::http::Client;
use crate::machine::{Accelerator, Disk, EXIT_POWER_OFF, Machine, Profile, Ready};
use crate::{image, packages, process};

const USAGE: &str = "\
usage: cargo xtask run [options]
  --no-install        install nothing: say what is missing, and end
  --machine NAME      q35 or microvm (default q35)
  --memory MIB        the machine's memory (default 256)
  --accel NAME        kvm or tcg (default: kvm if the image really boots with it)
  --dir FOLDER        where disks and token are (default gossamer-disks in the repository)
  --meta FILE         the metadata disk (default FOLDER/meta.img)
  --data FILE         the data disk (default FOLDER/data.img)
  --meta-new FILE     a disk that a repair of the metadata writes
  --meta-size SIZE    of a metadata disk made now (default 64M)
  --data-size SIZE    of a data disk made now, sparse (default 16G)
  --iscsi-port PORT   on 127.0.0.1 (default 3260)
  --http-port PORT    on 127.0.0.1 (default 8080)
  KEY=VALUE           a setting of the appliance, such as block=1M";

/// From QEMU's start to the ready line; a second is usual.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Long enough for a boot under any accelerator that works.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Outstanding work, a commit, the end.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(60);
/// How often Ctrl-C and QEMU's end are looked for.
const POLL: Duration = Duration::from_millis(50);

/// What the command line asks for.
struct Options {
    install: bool,
    machine: String,
    memory_mib: u64,
    accelerator: Option<Accelerator>,
    folder: PathBuf,
    meta: Option<PathBuf>,
    meta_new: Option<PathBuf>,
    data: Option<PathBuf>,
    meta_bytes: u64,
    data_bytes: u64,
    iscsi_port: u16,
    http_port: u16,
    settings: Vec<String>,
}

impl Options {
    fn parse(root: &Path, parser: &mut lexopt::Parser) -> Result<Option<Options>> {
        let mut options = Options {
            install: true,
            machine: "q35".into(),
            memory_mib: 256,
            accelerator: None,
            folder: root.join("gossamer-disks"),
            meta: None,
            meta_new: None,
            data: None,
            meta_bytes: 64 << 20,
            data_bytes: 16 << 30,
            iscsi_port: 3260,
            http_port: 8080,
            settings: Vec::new(),
        };
        while let Some(argument) = parser.next()? {
            match argument {
                Long("no-install") => options.install = false,
                Long("machine") => options.machine = parser.value()?.string()?,
                Long("memory") => options.memory_mib = parser.value()?.parse()?,
                Long("accel") => {
                    options.accelerator = Some(match parser.value()?.string()?.as_str() {
                        "kvm" => Accelerator::Kvm,
                        "tcg" => Accelerator::Tcg,
                        other => bail!("--accel {other}: use kvm or tcg"),
                    });
                }
                Long("dir") => options.folder = parser.value()?.into(),
                Long("meta") => options.meta = Some(parser.value()?.into()),
                Long("meta-new") => options.meta_new = Some(parser.value()?.into()),
                Long("data") => options.data = Some(parser.value()?.into()),
                Long("meta-size") => options.meta_bytes = process::size_bytes(&parser.value()?.string()?)?,
                Long("data-size") => options.data_bytes = process::size_bytes(&parser.value()?.string()?)?,
                Long("iscsi-port") => options.iscsi_port = parser.value()?.parse()?,
                Long("http-port") => options.http_port = parser.value()?.parse()?,
                Long("help") | Short('h') => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                Value(word) if word.to_string_lossy().contains('=') => options.settings.push(word.string()?),
                other => bail!("{}\n{USAGE}", other.unexpected()),
            }
        }
        Ok(Some(options))
    }
}

/// Runs the appliance until Ctrl-C or until it powers off.
pub fn run(root: &Path, parser: &mut lexopt::Parser) -> Result<()> {
    let Some(options) = Options::parse(root, parser)? else { return Ok(()) };
    let profile = Profile::load(root, &options.machine)?;
    packages::ensure(packages::RUN, options.install)?;
    for (what, port) in [("--iscsi-port", options.iscsi_port), ("--http-port", options.http_port)] {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("port {port} of 127.0.0.1 is taken; choose another with {what}"))?;
    }
    let image = image::build(root)?;
    fs::create_dir_all(&options.folder).with_context(|| options.folder.display().to_string())?;
    let meta = disk(options.meta, &options.folder, "meta.img", options.meta_bytes)?;
    let data = disk(options.data, &options.folder, "data.img", options.data_bytes)?;
    let token_file = options.folder.join("token");
    let token = token(&token_file)?;
    let mut settings = options.settings;
    settings.extend(["net=dhcp".to_owned(), "token=given".to_owned()]);
    settings.push(format!("iscsi.portal=127.0.0.1:{}", options.iscsi_port));
    let mut machine = Machine {
        profile,
        accelerator: Accelerator::Tcg,
        memory_mib: options.memory_mib,
        image,
        settings,
        token: Some(token_file),
        identity: None,
        disks: Vec::new(),
        qmp: None,
        iscsi_port: options.iscsi_port,
        more_iscsi_ports: Vec::new(),
        http_port: options.http_port,
    };
    machine.accelerator = match options.accelerator {
        Some(accelerator) => accelerator,
        None => pick_accelerator(&machine),
    };
    machine.disks = vec![Disk::file("meta", &meta), Disk::file("data", &data)];
    machine.disks.extend(options.meta_new.iter().map(|file| Disk::file("meta-new", file)));

    // From here on Ctrl-C means: power off in order.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    println!("{}\n", process::describe(&machine.command()));
    let console = machine.start(true)?;
    let ready = console.wait_for("the ready line", READY_LIMIT, |line| Some((Ready::parse(&line.text)?, line.at)))?;
    tell(&machine, &token, ready.1 - console.started());
    serve(console, &machine, &token, &interrupted)
}

/// The disk's file, made sparse when it is not there.
fn disk(chosen: Option<PathBuf>, folder: &Path, name: &str, size_bytes: u64) -> Result<PathBuf> {
    let path = chosen.unwrap_or_else(|| folder.join(name));
    if process::sparse_file(&path, size_bytes)? {
        println!("made {} ({} MiB, sparse)", path.display(), size_bytes >> 20);
    }
    Ok(path)
}

/// The access token, made at the first use and kept for the next, readable by its owner only.
fn token(path: &Path) -> Result<String> {
    if let Ok(token) = fs::read_to_string(path) {
        return Ok(token.trim().to_owned());
    }
    let mut secret = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let token = format!("gsm-{:032x}", u128::from_be_bytes(secret));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(token.as_bytes()).with_context(|| path.display().to_string())?;
    Ok(token)
}

/// KVM when the image boots with it: that `/dev/kvm` is there says little on nested machines.
fn pick_accelerator(machine: &Machine) -> Accelerator {
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        println!("no access to /dev/kvm: the machine is emulated (tcg)");
        return Accelerator::Tcg;
    }
    match probe(&Machine { accelerator: Accelerator::Kvm, ..machine.clone() }) {
        Ok(took) => {
            println!("the image boots with kvm ({} ms to its first line)", took.as_millis());
            Accelerator::Kvm
        }
        Err(error) => {
            let why = error.to_string();
            println!("the image does not boot with kvm here, so the machine is emulated (tcg): {}", why.trim_end());
            Accelerator::Tcg
        }
    }
}

/// Boots without disks, until the image says who it is.
fn probe(machine: &Machine) -> Result<Duration> {
    let machine = Machine {
        disks: Vec::new(),
        iscsi_port: process::free_port()?,
        http_port: process::free_port()?,
        ..machine.clone()
    };
    let console = machine.start(false)?;
    let first = console
        .wait_for("a line of the image", PROBE_LIMIT, |line| line.text.contains("gossamer").then_some(line.at))?;
    Ok(first - console.started())
}

fn tell(machine: &Machine, token: &str, took: Duration) {
    let (iscsi, http) = (machine.iscsi_port, machine.http_port);
    let curl = format!("curl -sS -H 'Authorization: Bearer {token}' -H 'Content-Type: application/json'");
    println!(
        "\nReady after {:.2} s ({}, {}).\n\
         \x20 iSCSI portal  127.0.0.1:{iscsi}\n\
         \x20 HTTP          http://127.0.0.1:{http}\n\
         \x20 token         {token}\n\
         Nothing is exported until you say so. Try, in another terminal:\n\
         \x20 {curl} -d '{{\"name\":\"v1\",\"size_bytes\":1073741824}}' http://127.0.0.1:{http}/v1/volumes \\\n\
         \x20   && {curl} -X PUT -d '{{\"initiators\":\"all\"}}' http://127.0.0.1:{http}/v1/volumes/v1/export\n\
         \x20 qemu-img info iscsi://127.0.0.1:{iscsi}/iqn.2026-11.io.gossamer:v1/0    # packages qemu-utils qemu-block-extra\n\
         \x20 {curl} -d '{{\"name\":\"s1\"}}' http://127.0.0.1:{http}/v1/volumes/v1/snapshots\n\
         Ctrl-C powers off.\n",
        took.as_secs_f64(),
        machine.profile.name,
        machine.accelerator
    );
}

/// Waits for Ctrl-C, then for the orderly end; a second Ctrl-C does not wait.
fn serve(mut console: Console, machine: &Machine, token: &str, interrupted: &AtomicBool) -> Result<()> {
    while console.is_running()? {
        if interrupted.swap(false, Ordering::SeqCst) {
            println!("\nPowering off (Ctrl-C again: at once).");
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, machine.http_port));
            let client = Client { timeout: Duration::from_secs(10), ..Client::new(address, Some(token.to_owned())) };
            if let Err(error) = client.send("POST", "/v1/power-off").and_then(|answer| answer.success()) {
                console.kill()?;
                return Err(error.context("it does not power off, so it was ended as by a power cut"));
            }
            wait_power_off(&mut console, interrupted)?;
        }
        std::thread::sleep(POLL);
    }
    let status = console.wait_end(POWER_OFF_LIMIT)?;
    if status.code() != Some(EXIT_POWER_OFF) {
        bail!("the machine ended without a power-off: {status}");
    }
    println!("Powered off.");
    Ok(())
}

fn wait_power_off(console: &mut Console, interrupted: &AtomicBool) -> Result<()> {
    let end = Instant::now() + POWER_OFF_LIMIT;
    while console.is_running()? {
        if interrupted.load(Ordering::SeqCst) || Instant::now() > end {
            console.kill()?;
            bail!("it was ended as by a power cut; what was flushed is safe");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
