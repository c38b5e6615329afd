//! The drivers, put behind the seams, and the appliance upon them.

use crate::budget::Budget;
use crate::console;
use crate::devices::{self, Devices};
use crate::machine::Machine;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use appliance::settings::{Net, Settings};
use appliance::{Parts, Secrets};
use core::future::pending;
use drivers::fw_cfg;
use drivers::scheduler::Scheduler;
use netstack::device::FrameDevice;
use netstack::{Address, ListenOptions, Stack};
use platform::Runtime;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::random::Seeded;
use platform::task::Executor;
use platform::time::{Timers, WallClock};

/// More than any secret has.
const SECRET_BYTES_MAX: usize = 1024;

/// Runs the appliance until it is powered off. The error says what the machine lacks.
pub fn run(
    mut machine: Machine,
    devices: Devices,
    clock: Rc<dyn WallClock>,
    settings: Settings,
    heap_bytes: u64,
) -> Result<(), &'static str> {
    const NO_RANDOMNESS: &str =
        "no source of randomness: use a processor with RDRAND (-cpu …,+rdrand) or add virtio-rng";
    const NO_NETWORK: &str = "no network card: add virtio-net";
    const ONE_PORT: &str = "iSCSI and HTTP cannot share a port: change iscsi.port or http.port";
    let seed = devices.random_seed().ok_or(NO_RANDOMNESS)?;
    let Devices { disks, net, .. } = devices;
    let net = net.ok_or(NO_NETWORK)?;
    if settings.iscsi_ports.contains(&settings.http_port) {
        return Err(ONE_PORT);
    }
    disks.iter().for_each(|disk| machine.add(disk.clone()));
    machine.add(net.clone());
    let executor = Executor::new();
    let timers = Timers::new(Rc::new(machine.clock()));
    let budget = Budget::of(heap_bytes);
    let runtime = Runtime {
        spawner: executor.spawner(),
        timers: timers.clone(),
        random: Rc::new(Seeded::new(seed)),
        bufs: BufPool::new(budget.io_buffers_bytes),
    };
    executor.run(&timers, &machine, serve(runtime, disks, net, clock, settings, budget));
    Ok(())
}

async fn serve(
    runtime: Runtime,
    disks: Vec<devices::Disk>,
    net: Rc<dyn FrameDevice>,
    clock: Rc<dyn WallClock>,
    settings: Settings,
    budget: Budget,
) {
    let stack = Stack::start(&runtime, net, address(settings.net));
    let disks = named(disks).await;
    stack.configured().await;
    let listen = |port, options| stack.listen(port, options).expect("the ports were compared before");
    // The ports share what there is for initiators.
    let connections_max = budget.iscsi.connections_max / settings.iscsi_ports.len().max(1);
    let portal = |port: &u16| listen(*port, ListenOptions { connections_max, ..budget.iscsi });
    let (iscsi, http) = (settings.iscsi_ports.iter().map(portal).collect(), listen(settings.http_port, budget.http));
    let secrets = Secrets { token: secret("opt/io.gossamer/token"), identity: secret("opt/io.gossamer/identity") };
    let cache_blocks = budget.cache_blocks;
    let console = Rc::new(console::line);
    // The machine's power button is not wired up: power-off is asked for over HTTP.
    let stop = Box::pin(pending());
    appliance::run(Parts { runtime, disks, iscsi, http, settings, secrets, cache_blocks, console, clock, stop }).await;
    stack.settle().await;
}

/// The disks by their serials, each behind a scheduler.
async fn named(disks: Vec<devices::Disk>) -> Vec<(String, Disk)> {
    let mut named = Vec::new();
    for disk in disks {
        let serial = disk.serial().await.unwrap_or_default();
        let text = serial.split(|byte| *byte == 0).next().unwrap_or_default();
        let depth = disk.depth();
        named.push((String::from_utf8_lossy(text).into_owned(), Disk::new(Scheduler::new(disk, depth))));
    }
    named
}

fn address(net: Net) -> Address {
    match net {
        Net::Dhcp => Address::Dhcp,
        Net::Static { address, prefix_bits, gateway } => Address::Static { address, prefix_bits, gateway },
    }
}

fn secret(name: &str) -> Option<String> {
    let bytes = fw_cfg::file(name, SECRET_BYTES_MAX)?;
    let text =
        String::from_utf8(bytes).inspect_err(|_| log::warn!("fw_cfg `{name}` is no text and is ignored")).ok()?;
    Some(text.trim_end().into())
}
