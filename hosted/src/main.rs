//! The appliance as a Linux process: files as its disks, the host's sockets as its network.
//!
//! The same composition as on bare metal, so that most of it can be tested and debugged without a machine. What is
//! acknowledged as durable is as durable as `fdatasync` of the files.
#![forbid(unsafe_code)]

mod args;
mod disk;
mod net;
mod os;
mod reactor;
#[cfg(test)]
mod tests;

use appliance::settings::Settings;
use appliance::{Parts, Secrets};
use args::Args;
use disk::FileDisk;
use net::Net;
use os::Signals;
use platform::Runtime;
use platform::block::Disk;
use platform::buf::BufPool;
use platform::task::{Executor, Machine};
use platform::time::{Clock, Duration, Instant, Timers};
use reactor::Reactor;
use std::error::Error;
use std::process::ExitCode;
use std::rc::Rc;

/// Most bytes of I/O buffers.
const BUFFER_BYTES: usize = 256 << 20;

/// Metadata blocks of 4 KiB to keep in memory.
const CACHE_BLOCKS: usize = 64 << 8;

/// How long the last answers may take to be delivered when the appliance has ended.
const SETTLE: Duration = Duration::from_secs(2);

/// What the executor polls and parks on.
struct Host {
    reactor: Rc<Reactor>,
    disks: Vec<FileDisk>,
    clock: Rc<os::OsClock>,
}

impl Machine for Host {
    fn poll(&self) -> bool {
        let ready = self.reactor.look().expect("epoll works as long as the process lives");
        self.disks.iter().fold(ready, |any, disk| disk.poll() | any)
    }

    fn park(&self, deadline: Option<Instant>) {
        self.reactor.wait(self.clock.now(), deadline).expect("epoll works as long as the process lives");
    }
}

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("hosted: {error}\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hosted: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let (settings, warnings) = Settings::parse(&args.settings);
    os::log_to_stderr(settings.log_debug)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));

    let executor = Executor::new();
    let clock = Rc::new(os::OsClock::start());
    let timers = Timers::new(clock.clone());
    let runtime = Runtime {
        spawner: executor.spawner(),
        timers: timers.clone(),
        random: Rc::new(os::random()?),
        bufs: BufPool::new(BUFFER_BYTES),
    };
    let reactor = Reactor::new()?;
    let signals = Signals::catch(&reactor)?;
    let meta = FileDisk::open(&args.meta, reactor.bell())?;
    let data = FileDisk::open(&args.data, reactor.bell())?;
    let mut disks = vec![("meta", meta), ("data", data)];
    if let Some(path) = &args.meta_new {
        disks.push(("meta-new", FileDisk::open(path, reactor.bell())?));
    }
    let net = Net::new(reactor.clone(), runtime.clone());
    let listen = |address| net.listen(address).map_err(|error| format!("cannot listen on {address}: {error}"));

    let parts = Parts {
        runtime,
        disks: disks.iter().map(|(serial, disk)| (String::from(*serial), Disk::new(disk.clone()))).collect(),
        iscsi: args.iscsi.into_iter().map(&listen).collect::<Result<_, _>>()?,
        http: listen(args.http)?,
        settings,
        secrets: Secrets { token: args.token, identity: args.identity },
        cache_blocks: CACHE_BLOCKS,
        console: Rc::new(os::console),
        clock: clock.clone(),
        stop: Box::pin(signals.first()),
    };
    let host = Host { reactor, disks: disks.into_iter().map(|(_, disk)| disk).collect(), clock };
    executor.run(&timers.clone(), &host, async move {
        appliance::run(parts).await;
        if timers.timeout(SETTLE, net.settle()).await.is_err() {
            log::warn!("some peers have not taken the last that was sent to them");
        }
    });
    Ok(())
}
