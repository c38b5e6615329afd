//! One appliance with its disks, on either backend: start it, ask it, power it off, kill it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xtask::console::Console;
use xtask::http::{Client, Response};
use xtask::machine::{Accelerator, Disk, EXIT_POWER_OFF, Machine, Profile, Ready};
use xtask::{process, qmp};

use crate::context::{Backend, Context};
use crate::iscsi::Session;

/// The token of every appliance under test.
pub const TOKEN: &str = "e2e-0123456789abcdef0123456789abcdef";

/// The first part of every target's name.
pub const IQN: &str = "iqn.2026-11.io.gossamer";

/// The target that shows the metadata.
pub const METADATA_TARGET: &str = "iqn.2026-11.io.gossamer:pool:metadata";

/// Under emulation on a busy machine a boot may take its time; the figures are `bench boot`'s business.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A clean power-off: outstanding work, a commit, the end.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(60);

/// Disks, and everything else that stays when the appliance is off.
pub struct Site {
    context: Context,
    /// The metadata disk's file.
    pub meta: PathBuf,
    /// The data disk's file.
    pub data: PathBuf,
    /// The file of the disk that a repair writes, if one is attached.
    pub meta_new: Option<PathBuf>,
    /// Settings of the kernel command line.
    pub settings: Vec<String>,
    /// The token to hand over; `None` lets the appliance make one.
    pub token: Option<String>,
    /// Who the instance is, if it is given that.
    pub identity: Option<String>,
    /// Disks served from elsewhere, in place of the two files.
    pub nbd: Option<PathBuf>,
    /// Portal groups.
    pub portals: usize,
}

impl Site {
    /// Two new, blank disks of these sizes.
    pub fn new(context: &Context, meta_bytes: u64, data_bytes: u64) -> Result<Site> {
        let site = Site::over(context, context.scratch.join("meta.img"), context.scratch.join("data.img"));
        process::sparse_file(&site.meta, meta_bytes)?;
        process::sparse_file(&site.data, data_bytes)?;
        Ok(site)
    }

    /// Two disks that are there already.
    pub fn over(context: &Context, meta: PathBuf, data: PathBuf) -> Site {
        let token = Some(TOKEN.to_owned());
        Site {
            context: context.clone(),
            meta,
            data,
            meta_new: None,
            settings: Vec::new(),
            token,
            identity: None,
            nbd: None,
            portals: 1,
        }
    }

    /// Starts the appliance and waits until it serves its pool.
    pub fn start(&self) -> Result<Appliance> {
        self.boot("the ready line", Ready::parse)
    }

    /// Starts the appliance and waits until it says why it does not serve its pool.
    pub fn start_without_pool(&self) -> Result<Appliance> {
        self.boot("the line that says what is wrong", Ready::parse_serving)
    }

    /// Starts the appliance and waits until it serves HTTP, with a pool in whatever mode or none.
    pub fn start_in_any_state(&self) -> Result<Appliance> {
        self.boot("a ready or serving line", |line| Ready::parse(line).or_else(|| Ready::parse_serving(line)))
    }

    fn boot(&self, what: &str, parse: impl Fn(&str) -> Option<Ready>) -> Result<Appliance> {
        let (mut command, ports) = match &self.context.backend {
            Backend::Hosted => (self.hosted()?, None),
            Backend::Image(machine) => {
                let machine = self.machine(machine)?;
                let iscsi: Vec<u16> =
                    [machine.iscsi_port].into_iter().chain(machine.more_iscsi_ports.clone()).collect();
                (machine.command(), Some((iscsi, machine.http_port)))
            }
        };
        let console = Console::start(&mut command, false)?;
        let ready = console.wait_for(what, READY_LIMIT, |line| parse(&line.text))?;
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (iscsi, http) = match ports {
            Some((iscsi, http)) => (iscsi.into_iter().map(loopback).collect(), loopback(http)),
            None => {
                let iscsi = ready.get("iscsi").into_iter().flat_map(|text| text.split(',')).map(str::parse);
                let http = ready.get("http").context("no http= in the ready line")?;
                (iscsi.collect::<Result<Vec<_>, _>>()?, http.parse()?)
            }
        };
        let token = self.token.clone();
        Ok(Appliance { console, ready, iscsi, http: Client::new(http, token), backend: self.context.backend.clone() })
    }

    /// Makes the disk `meta` or `data` larger while the appliance runs.
    pub fn grow_disk(&self, serial: &str, size_bytes: u64) -> Result<()> {
        let (file, drive) = if serial == "meta" { (&self.meta, "disk0") } else { (&self.data, "disk1") };
        match self.context.backend {
            Backend::Hosted => Ok(File::options().write(true).open(file)?.set_len(size_bytes)?),
            Backend::Image(_) => qmp::block_resize(&self.qmp(), drive, size_bytes),
        }
    }

    fn qmp(&self) -> PathBuf {
        self.context.scratch.join("qmp")
    }

    fn hosted(&self) -> Result<std::process::Command> {
        ensure!(self.nbd.is_none(), "the hosted appliance has files for disks");
        let mut command = process::tied(&self.context.hosted);
        command.arg("--meta").arg(&self.meta).arg("--data").arg(&self.data);
        if let Some(meta_new) = &self.meta_new {
            command.arg("--meta-new").arg(meta_new);
        }
        for _ in 0..self.portals {
            command.args(["--iscsi", "127.0.0.1:0"]);
        }
        command.args(["--http", "127.0.0.1:0"]);
        match &self.token {
            Some(token) => command.args(["--token", token]),
            None => command.arg("token=generate"),
        };
        if let Some(identity) = &self.identity {
            command.args(["--identity", identity]);
        }
        command.args(&self.settings);
        Ok(command)
    }

    fn machine(&self, name: &str) -> Result<Machine> {
        let mut settings = self.settings.clone();
        let more_iscsi_ports = (1..self.portals).map(|_| process::free_port()).collect::<Result<Vec<_>>>()?;
        let guest_ports: Vec<String> = (3260..).take(self.portals).map(|port: u16| port.to_string()).collect();
        settings.push(format!("iscsi.port={}", guest_ports.join(",")));
        let token = match &self.token {
            Some(token) => {
                let file = self.context.scratch.join("token");
                std::fs::write(&file, token)?;
                settings.push("token=given".into());
                Some(file)
            }
            None => {
                settings.push("token=generate".into());
                None
            }
        };
        let mut disks = match &self.nbd {
            Some(socket) => vec![Disk::nbd("meta", socket), Disk::nbd("data", socket)],
            None => vec![Disk::file("meta", &self.meta), Disk::file("data", &self.data)],
        };
        disks.extend(self.meta_new.iter().map(|file| Disk::file("meta-new", file)));
        Ok(Machine {
            profile: Profile::load(&xtask::root(), name)?,
            accelerator: Accelerator::Tcg,
            memory_mib: self.context.memory_mib,
            image: self.context.image.clone(),
            settings,
            token,
            identity: self.identity.clone(),
            disks,
            qmp: Some(self.qmp()),
            iscsi_port: process::free_port()?,
            more_iscsi_ports,
            http_port: process::free_port()?,
        })
    }
}

/// A running appliance. Dropping it kills it.
pub struct Appliance {
    console: Console,
    ready: Ready,
    iscsi: Vec<SocketAddr>,
    /// Its management interface.
    pub http: Client,
    backend: Backend,
}

impl Appliance {
    /// A word of the ready or serving line.
    pub fn said(&self, key: &str) -> Option<&str> {
        self.ready.get(key)
    }

    /// Everything on its console so far.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// The token that it made at its first boot, from its console.
    pub fn token_made(&self) -> Option<String> {
        self.console.text().lines().find_map(|line| Some(line.split_once("gossamer: token ")?.1.trim().to_owned()))
    }

    /// Its iSCSI portal.
    pub fn portal(&self) -> Result<SocketAddr> {
        self.iscsi.first().copied().context("it serves no iSCSI")
    }

    /// The iSCSI portals, one of each portal group.
    pub fn portals(&self) -> &[SocketAddr] {
        &self.iscsi
    }

    /// The URL of a volume for QEMU and libiscsi.
    pub fn url(&self, target: &str) -> Result<String> {
        Ok(format!("iscsi://{}/{target}/0", self.portal()?))
    }

    /// A session with a volume.
    pub fn login(&self, volume: &str) -> Result<Session> {
        let target = format!("{IQN}:{volume}");
        Session::login(self.portal()?, &target).with_context(|| format!("login to {target}"))
    }

    /// A request that must succeed.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.answer(method, path, body)?.success().with_context(|| format!("{method} {path} {body}"))
    }

    /// A request and its answer, whatever it is.
    pub fn answer(&self, method: &str, path: &str, body: &Value) -> Result<Response> {
        if body.is_null() { self.http.send(method, path) } else { self.http.send_json(method, path, body) }
    }

    /// Creates a volume and exports it to all.
    pub fn make_volume(&self, name: &str, size_bytes: u64) -> Result<()> {
        self.call("POST", "/v1/volumes", &json!({"name": name, "size_bytes": size_bytes}))?;
        self.export(name)
    }

    /// Takes a snapshot and exports it to all.
    pub fn make_snapshot(&self, name: &str, origin: &str) -> Result<()> {
        self.call("POST", &format!("/v1/volumes/{origin}/snapshots"), &json!({"name": name}))?;
        self.export(name)
    }

    /// Exports a volume to all.
    pub fn export(&self, name: &str) -> Result<()> {
        self.call("PUT", &format!("/v1/volumes/{name}/export"), &json!({"initiators": "all"})).map(drop)
    }

    /// The names of all volumes.
    pub fn volumes(&self) -> Result<Vec<String>> {
        let answer = self.call("GET", "/v1/volumes", &Value::Null)?;
        let list = answer["volumes"].as_array().context("not a list of volumes")?;
        list.iter()
            .map(|volume| volume["name"].as_str().map(str::to_owned).context("a volume without a name"))
            .collect()
    }

    /// Sends a pool message; the errno (0 or negative) and the answer.
    pub fn message(&self, text: &str) -> Result<(i64, String)> {
        let answer = self.http.request("POST", "/v1/pool/message", "text/plain", text.as_bytes())?.json()?;
        let errno = answer["errno"].as_i64().with_context(|| format!("no errno in {answer}"))?;
        Ok((errno, answer["answer"].as_str().unwrap_or_default().to_owned()))
    }

    /// Powers off through the management interface and waits for the orderly end.
    pub fn power_off(mut self) -> Result<()> {
        self.call("POST", "/v1/power-off", &Value::Null)?;
        let status = self.console.wait_end(POWER_OFF_LIMIT).context("after POST /v1/power-off")?;
        let expected = if self.backend == Backend::Hosted { 0 } else { EXIT_POWER_OFF };
        let text = self.settled_console();
        ensure!(status.code() == Some(expected), "it ended with {status} instead of {expected}:\n{text}");
        ensure!(text.contains("gossamer: powered off"), "it did not say that it powered off:\n{text}");
        for alarm in ["gossamer: panic", "gossamer: exception"] {
            ensure!(!text.contains(alarm), "there was trouble before:\n{text}");
        }
        Ok(())
    }

    /// The console after the process ended, when its last line has surely been read.
    fn settled_console(&self) -> String {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end && !self.console.text().contains("gossamer: powered off") {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.console.text()
    }

    /// Ends it at once.
    pub fn kill(mut self) -> Result<()> {
        self.console.kill()
    }

    /// An error when it has ended or panicked.
    pub fn check_alive(&mut self) -> Result<()> {
        let text = self.console.text();
        if !self.console.is_running()? || text.contains("gossamer: panic") {
            bail!("the appliance is gone:\n{text}");
        }
        Ok(())
    }
}
