//! fio at work on a volume. It speaks no iSCSI in Debian, so QEMU does that for it, and serves it over NBD.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use xtask::process;

/// Starting and stopping take less.
const LIMIT: Duration = Duration::from_secs(30);

/// fio, which writes anywhere in a volume without pause until it is stopped.
pub struct Fio {
    bridge: Child,
    fio: Child,
    report: PathBuf,
}

impl Fio {
    /// Starts it on the volume at `url`, with its files in `folder`.
    pub fn start(folder: &Path, url: &str, seed: u64) -> Result<Fio> {
        let (port, report) = (process::free_port()?, folder.join("fio.json"));
        let mut bridge = process::tied("qemu-nbd");
        bridge.args(["--persistent", "--shared=2", "--format=raw", "--cache=none", "--bind=127.0.0.1"]);
        let mut bridge = bridge.arg(format!("--port={port}")).arg(url).spawn().context("qemu-nbd")?;
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(bridge.try_wait()?.is_none() && began.elapsed() < LIMIT, "qemu-nbd serves nothing of {url}");
            thread::sleep(Duration::from_millis(5));
        }
        let mut fio = process::tied("fio");
        fio.args(["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=4", "--thread"]);
        fio.args([
            "--time_based",
            "--runtime=600",
            "--refill_buffers",
            "--rate_iops=2000",
            "--output-format=json",
            "--eta=never",
        ]);
        fio.arg(format!("--uri=nbd://127.0.0.1:{port}")).arg(format!("--randseed={seed}"));
        fio.arg("--output").arg(&report);
        Ok(Fio { bridge, fio: fio.spawn().context("fio")?, report })
    }

    /// Stops it, and tells how many writes it did. An error if any failed, or if it had ended before.
    pub fn stop(mut self) -> Result<u64> {
        ensure!(self.fio.try_wait()?.is_none(), "fio ended by itself: {}", self.told());
        // Only an interrupted fio tells what it did.
        process::succeed(Command::new("kill").args(["-INT", &self.fio.id().to_string()]), LIMIT)?;
        if process::wait(&mut self.fio, LIMIT)?.is_none() {
            process::end(&mut self.fio)?;
            bail!("fio does not stop");
        }
        process::end(&mut self.bridge)?;
        let told = self.told();
        // It says first that it was interrupted.
        let json = told.find('{').and_then(|at| told.get(at..)).unwrap_or_default();
        let report: Value = serde_json::from_str(json).with_context(|| told.clone())?;
        let job = &report["jobs"][0];
        ensure!(job["error"] == 0, "{told}");
        job["write"]["total_ios"].as_u64().with_context(|| told.clone())
    }

    fn told(&self) -> String {
        fs::read_to_string(&self.report).unwrap_or_else(|error| error.to_string())
    }
}
