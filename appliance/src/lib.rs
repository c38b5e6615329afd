//! Puts the parts together, once, over the platform it is given: which task runs what, settings, records.
//!
//! The composition roots (`kernel`, `hosted`, the simulator) fill in [`Parts`] and await [`run`]; everything
//! above them is the same in all three. What runs:
//!
//! - a task that accepts management connections, one for each of them;
//! - a task that accepts iSCSI connections, and the tasks of [`export`];
//! - the pool's own periodic commit, in [`thinp`].
//!
//! [`Catalog`](catalog::Catalog) is what the pool's reserved device says of volumes, exports and tokens;
//! [`service`] changes it and the pool together; [`control`] is that in the words of the management interface.
//! This crate knows no addresses, interrupts, sockets or files.
//!
//! ```
//! use appliance::settings::Settings;
//!
//! let (settings, warnings) = Settings::parse("block=1M format=yes colour=red");
//! assert_eq!(settings.data_block_sectors, 2048);
//! assert_eq!(warnings.len(), 1);
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod access;
pub mod catalog;
mod check;
mod control;
mod deletions;
pub mod errors;
mod fixed;
mod holds;
mod owner;
pub mod policies;
mod repair;
pub mod reservations;
mod runs;
pub mod sanitize;
pub mod service;
pub mod settings;
mod snapshots;
mod space;
mod startup;
pub mod streams;
#[cfg(test)]
mod tests;
mod units;
mod utc;

use crate::repair::Workshop;
use crate::service::{Service, Targets};
use crate::settings::Settings;
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::pin::Pin;
use core::time::Duration;
use export::{Portal, PortalGroup, PortalOptions};
use mgmt::{Api, Health, HealthState, Limits};
use platform::Runtime;
use platform::block::Disk;
use platform::net::Listener;
use platform::time::WallClock;

/// What the machine gives the appliance.
pub struct Parts<L: Listener> {
    /// Tasks, time, randomness, buffers.
    pub runtime: Runtime,
    /// All disks by their serials: `meta` and `data` make the pool.
    pub disks: Vec<(String, Disk)>,
    /// Where initiators connect: a portal group each.
    pub iscsi: Vec<L>,
    /// Where managers connect.
    pub http: L,
    /// What the command line says.
    pub settings: Settings,
    /// What must not be on a command line.
    pub secrets: Secrets,
    /// Metadata blocks of 4 KiB to keep in memory.
    pub cache_blocks: usize,
    /// Shows a line to whoever started the machine.
    pub console: Rc<dyn Fn(&str)>,
    /// What time of day it is, if the machine knows.
    pub clock: Rc<dyn WallClock>,
    /// Resolves when the machine asks for a power-off (a signal, a button); may never.
    pub stop: Pin<Box<dyn Future<Output = ()>>>,
}

/// What must not be on a command line.
#[derive(Default)]
pub struct Secrets {
    /// A token for the management interface.
    pub token: Option<String>,
    /// Who this instance is, as 32 hexadecimal digits (hyphens allowed).
    pub identity: Option<String>,
}

const METADATA_BLOCK_BYTES: usize = 4096;

/// How long connections may take to end at a power-off.
const SHUTDOWN_TIME: Duration = Duration::from_secs(5);
/// How long the disks may take to carry out what is left at a power-off. A pool that is not closed stays ours.
const CLOSE_TIME: Duration = Duration::from_secs(60);
/// How long to wait before a listener that failed is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Runs the appliance until it is powered off. The pool is closed in order when this resolves.
pub async fn run<L: Listener>(parts: Parts<L>) {
    let Parts { runtime, disks, iscsi, http, settings, secrets, cache_blocks, console, clock, stop } = parts;
    let clock = settings.time.map_or(clock, |time| time.from_now(&runtime.timers));
    let service = Service::new(&runtime, settings, &secrets, clock);
    let options = PortalOptions {
        groups: groups(&iscsi, &service.settings),
        // The rest is for copies, zeroes and reads of others.
        payload_bytes_max: runtime.bufs.budget_bytes() / 2,
        ..PortalOptions::default()
    };
    let portal = Portal::new(&runtime, Rc::new(Targets(service.clone())), options);
    // Half of what the cache may take, which a pool that is read-only may hold at the same time.
    let memory_bytes = cache_blocks.saturating_mul(METADATA_BLOCK_BYTES) / 2;
    let workshop = Workshop { disks: disks.clone(), memory_bytes, console: console.clone() };
    let manager =
        control::Manager { runtime: runtime.clone(), service: service.clone(), portal: portal.clone(), workshop };
    let manager = Rc::new(manager);
    let api = Rc::new(Api::new(&runtime, manager, Limits::default()));
    let iscsi_at: Vec<String> = iscsi.iter().map(Listener::describe).collect();
    let (iscsi_at, http_at) = (iscsi_at.join(","), http.describe());
    let serving = api.clone();
    listen(&runtime, http, move |stream| {
        let api = serving.clone();
        async move { api.serve(stream).await }
    });
    let stopping = service.clone();
    runtime.spawner.spawn(async move {
        stop.await;
        stopping.want_power_off();
    });
    match startup::open(&runtime, &disks, &service, cache_blocks, &*console).await {
        Ok(served) => {
            service.serve(served);
            if service.settings.check_at_start
                && let Err(error) = service.start_check(&runtime)
            {
                log::warn!("the metadata is not checked: {error}");
            }
            service.begin(&runtime);
        }
        Err(reason) => {
            startup::lend_token(&service, &*console);
            service.give_up(reason);
        }
    }
    for listener in iscsi {
        let serving = portal.clone();
        listen(&runtime, listener, move |stream| {
            let portal = serving.clone();
            async move { portal.serve(stream).await }
        });
    }
    announce(&runtime, &service, console.clone(), iscsi_at, http_at);
    warn_of_low_water(&runtime, &service, &portal);
    owner::watch(&runtime, &service, console.clone());
    service.powered_off().await;
    portal.shutdown().await;
    if runtime.timers.timeout(SHUTDOWN_TIME, api.shutdown()).await.is_err() {
        log::warn!("management connections were still open at the power-off");
    }
    if runtime.timers.timeout(CLOSE_TIME, service.close()).await.is_err() {
        log::error!("the pool is not closed: its disks do not answer");
    }
    console("gossamer: powered off");
}

/// The portal groups of these listeners.
fn groups<L: Listener>(listeners: &[L], settings: &Settings) -> Vec<PortalGroup> {
    let group = |(tag, listener): (u16, &L)| {
        let told = settings.iscsi_portals.iter().filter(|portal| portal.group == tag);
        PortalGroup { port: listener.port(), addresses: told.map(|portal| portal.address.clone()).collect() }
    };
    (1..).zip(listeners).map(group).collect()
}

/// Accepts connections for ever, and serves each in a task of its own.
fn listen<L: Listener, F: Future<Output = ()> + 'static>(
    runtime: &Runtime,
    listener: L,
    serve: impl Fn(L::Stream) -> F + 'static,
) {
    let (spawner, timers) = (runtime.spawner.clone(), runtime.timers.clone());
    runtime.spawner.spawn(async move {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    spawner.spawn(serve(stream));
                }
                Err(error) => {
                    log::error!("listening at {}: {error}; trying again", listener.describe());
                    timers.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

/// Tells initiators each time that the pool's free space reaches its low water mark from above.
fn warn_of_low_water(runtime: &Runtime, service: &Rc<Service>, portal: &Portal<Targets>) {
    let Some(pool) = service.pool() else { return };
    let (service, portal) = (service.clone(), portal.clone());
    runtime.spawner.spawn(async move {
        let is_low = || {
            let space = service.pool_space();
            space.threshold_bytes > 0 && space.available_bytes <= space.threshold_bytes
        };
        let (mut low, mut seen) = (is_low(), pool.events());
        while !service.is_powering_off() {
            seen = pool.event_after(seen).await;
            let was_low = core::mem::replace(&mut low, is_low());
            if low && !was_low {
                portal.threshold_reached();
            }
        }
    });
}

/// Tells the console once how the pool is, and when it is ready if it was not at first.
fn announce(runtime: &Runtime, service: &Rc<Service>, console: Rc<dyn Fn(&str)>, iscsi_at: String, http_at: String) {
    let service = service.clone();
    runtime.spawner.spawn(async move {
        let mut told = false;
        loop {
            let Health { state, reason } = service.health();
            let reason = reason.unwrap_or_default();
            let Some(pool) = service.pool() else {
                return console(&format!("gossamer: serving http={http_at} pool=unavailable reason={reason}"));
            };
            let seen = pool.events();
            if state == HealthState::Ok {
                return console(&format!("gossamer: ready iscsi={iscsi_at} http={http_at} pool=write"));
            }
            if !told {
                console(&format!("gossamer: serving iscsi={iscsi_at} http={http_at} pool=degraded reason={reason}"));
                told = true;
            }
            pool.event_after(seen).await;
            // A closed pool raises no more events, and waiting for one ends at once.
            if service.is_powering_off() {
                return;
            }
        }
    });
}
