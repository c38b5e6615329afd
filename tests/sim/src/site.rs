//! An appliance in the simulation, put together as `hosted` does it, and how its clients reach it.

use crate::http::{Manager, TOKEN};
use crate::net::Port;
use crate::world::World;
use appliance::settings::Settings;
use appliance::{Parts, Secrets};
use platform::Runtime;
use platform::block::Disk;
use platform::task::JoinHandle;
use platform::time::Duration;
use platform::time::WallClock;
use std::rc::Rc;

/// Which instance an appliance is.
#[derive(Clone, Copy, Default)]
pub struct Instance {
    /// 32 hexadecimal digits; else it has no identity of its own.
    pub identity: Option<&'static str>,
    /// It is told that whoever has the pool is dead.
    pub takes_over: bool,
}

/// The disks of a pool, with their serials.
pub fn pool(meta: Disk, data: Disk) -> [(&'static str, Disk); 2] {
    [("meta", meta), ("data", data)]
}

/// An appliance that runs.
pub struct Site {
    pub iscsi: Port,
    pub http: Port,
}

/// The time of day is known to nobody: policies have their own tests.
struct NoClock;

impl WallClock for NoClock {
    fn unix_seconds(&self) -> Option<u64> {
        None
    }
}

impl Site {
    /// Starts one on these disks, each with its serial; the handle resolves when it has powered off.
    pub fn start(
        runtime: &Runtime,
        world: &World,
        disks: impl IntoIterator<Item = (&'static str, Disk)>,
        cache_blocks: usize,
        instance: Instance,
    ) -> (Site, JoinHandle<()>) {
        let (iscsi, http) = (Port::new(world), Port::new(world));
        let (settings, warnings) =
            Settings::parse(if instance.takes_over { "token=given takeover=yes" } else { "token=given" });
        assert!(warnings.is_empty(), "{warnings:?}");
        let parts = Parts {
            runtime: runtime.clone(),
            disks: disks.into_iter().map(|(serial, disk)| (serial.to_owned(), disk)).collect(),
            iscsi: vec![iscsi.clone()],
            http: http.clone(),
            settings,
            secrets: Secrets { token: Some(TOKEN.into()), identity: instance.identity.map(str::to_owned) },
            cache_blocks,
            console: Rc::new(|_| ()),
            clock: Rc::new(NoClock),
            stop: Box::pin(std::future::pending()),
        };
        let ended = runtime.spawner.spawn(async move { appliance::run(parts).await });
        (Site { iscsi, http }, ended)
    }

    /// Powers it off; that it ends is for its handle to tell.
    pub async fn power_off(&self) {
        let mut manager = Manager::connect(&self.http).expect("the appliance takes connections");
        let off = manager.ask("POST", "/v1/power-off", None).await.expect("an answer");
        assert!(off.is_ok(), "power-off: {off:?}");
    }

    /// Waits until the pool is served. The error is why it never will be.
    pub async fn ready(&self, runtime: &Runtime) -> Result<(), String> {
        loop {
            let mut manager = Manager::connect(&self.http).expect("the appliance takes connections");
            let health = manager.ask("GET", "/healthz", None).await.expect("a network that works");
            match (health.body["status"].as_str(), health.body["reason"].as_str()) {
                (Some("unavailable"), Some(reason)) if reason.ends_with("the pool is being opened") => {
                    runtime.timers.sleep(Duration::from_millis(1)).await;
                }
                (Some("unavailable"), reason) => return Err(reason.unwrap_or("no reason").to_owned()),
                _ => return Ok(()),
            }
        }
    }
}
