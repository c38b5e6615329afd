//! The log, on the serial console: one line a record, with the seconds since the clock was started.

use core::fmt::Write;
use drivers::clock::TscClock;
use drivers::uart::Uart;
use log::{LevelFilter, Log, Metadata, Record};
use platform::time::Clock;
use spin::Once;

static CONSOLE: Console = Console { clock: Once::new() };

struct Console {
    clock: Once<TscClock>,
}

/// Readies the UART and sends log records to it.
pub fn init() {
    Uart::COM1.init();
    log::set_max_level(LevelFilter::Info);
    // It can fail only if there is a logger already, and this is the only call.
    let _ = log::set_logger(&CONSOLE);
}

/// From now on records have a time.
pub fn set_clock(clock: TscClock) {
    CONSOLE.clock.call_once(|| clock);
}

/// Logs what helps to find faults, too, or not.
pub fn log_debug(debug: bool) {
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
}

/// Shows a line to whoever started the machine.
pub fn line(text: &str) {
    let mut uart = Uart::COM1;
    // The UART takes everything.
    let _ = writeln!(uart, "{text}");
}

/// The clock, once it was set.
pub fn clock() -> Option<TscClock> {
    CONSOLE.clock.get().copied()
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let micros = self.clock.get().map_or(0, |clock| clock.now().nanos / 1000);
        let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
        let mut uart = Uart::COM1;
        // The UART takes everything.
        let _ = writeln!(uart, "[{seconds:5}.{micros:06}] {:5} {}: {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}
