//! What else the appliance asks of its machine: time, randomness, signals, and places to write lines to.

use crate::reactor::{Direction, Reactor, Registration};
use mio::Interest;
use mio::net::UnixStream;
use platform::random::Seeded;
use platform::time::{Clock, Instant, WallClock};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::SystemTime;

/// The host's clocks.
pub struct OsClock(std::time::Instant);

impl OsClock {
    /// Monotonic time counts from now.
    pub fn start() -> OsClock {
        OsClock(std::time::Instant::now())
    }
}

impl Clock for OsClock {
    fn now(&self) -> Instant {
        Instant { nanos: u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX) }
    }
}

impl WallClock for OsClock {
    fn unix_seconds(&self) -> Option<u64> {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs())
    }
}

/// A generator seeded by the host.
pub fn random() -> io::Result<Seeded> {
    let mut seed = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(Seeded::new(seed))
}

/// SIGTERM and SIGINT, as something to wait for.
pub struct Signals(Registration<UnixStream>);

impl Signals {
    /// From now on the two no longer end the process.
    pub fn catch(reactor: &Rc<Reactor>) -> io::Result<Signals> {
        let (read, write) = std::os::unix::net::UnixStream::pair()?;
        read.set_nonblocking(true)?;
        pipe::register(SIGTERM, write.try_clone()?)?;
        pipe::register(SIGINT, write)?;
        Ok(Signals(reactor.register(UnixStream::from_std(read), Interest::READABLE)?))
    }

    /// Resolves when the first arrives.
    pub async fn first(self) {
        let read = |mut pipe: &UnixStream| pipe.read(&mut [0; 64]);
        if let Err(error) = poll_fn(|cx| self.0.poll_io(cx, Direction::Read, read)).await {
            log::error!("signals cannot be received any more, powering off: {error}");
        }
    }
}

/// A line on the console, which is standard output. Whoever waits for it sees it at once.
pub fn console(line: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        log::error!("cannot write to the console: {error}");
    }
}

/// From now on what is logged goes to standard error.
pub fn log_to_stderr(debug: bool) -> Result<(), log::SetLoggerError> {
    log::set_max_level(if debug { log::LevelFilter::Debug } else { log::LevelFilter::Info });
    log::set_logger(&StderrLog)
}

struct StderrLog;

impl log::Log for StderrLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // If standard error is gone there is nobody left to tell.
        let _ = writeln!(io::stderr().lock(), "{} {}: {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}
