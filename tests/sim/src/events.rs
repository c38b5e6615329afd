//! What happened inside, as the libraries' own log tells it at the finest level: so the product needs no switch for tests.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Kinds of changes that a power cut may hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Split,
    Merge,
    OverflowCount,
    BreakSharing,
    Discard,
    Delete,
    ReserveRelease,
    Resize,
    Abort,
    Swap,
    DeleteStep,
    Moment,
    RollBack,
    Receive,
    EndOfReceive,
    Sanitize,
    Copy,
}

/// All of them, with their names.
pub const EVENTS: [(Event, &str); 17] = [
    (Event::Split, "a split"),
    (Event::Merge, "a merge"),
    (Event::OverflowCount, "an overflow count"),
    (Event::BreakSharing, "breaking sharing"),
    (Event::Discard, "a discard"),
    (Event::Delete, "a delete"),
    (Event::ReserveRelease, "reserve or release"),
    (Event::Resize, "a resize"),
    (Event::Abort, "an abort"),
    (Event::Swap, "a swap of the records"),
    (Event::DeleteStep, "a step of a long delete"),
    (Event::Moment, "a group snapshot"),
    (Event::RollBack, "a roll-back"),
    (Event::Receive, "a receive"),
    (Event::EndOfReceive, "the end of a receive"),
    (Event::Sanitize, "a sanitize"),
    (Event::Copy, "a copy"),
];

/// So many times each.
pub type Counts = [u64; EVENTS.len()];

fn event_of(target: &str, text: &str) -> Option<Event> {
    Some(match text {
        _ if target.starts_with("pdata") && text.contains(" split") => Event::Split,
        _ if target.starts_with("pdata") && text.ends_with(" merged") => Event::Merge,
        "overflow count inserted" | "overflow count removed" => Event::OverflowCount,
        "sharing broken" => Event::BreakSharing,
        "mappings discarded" => Event::Discard,
        "device deleted" => Event::Delete,
        "metadata snapshot reserved" | "metadata snapshot released" => Event::ReserveRelease,
        "pool grown" => Event::Resize,
        // It is told twice: writes may meet what is lost until it is forgotten.
        "transaction aborted" | "transaction aborted, and forgotten" => Event::Abort,
        "mappings swapped" => Event::Swap,
        "step of a long delete" => Event::DeleteStep,
        "mappings shared by copy" => Event::Copy,
        _ => return None,
    })
}

thread_local! {
    /// What happened since the last commit.
    static OPEN: Cell<[bool; EVENTS.len()]> = const { Cell::new([false; EVENTS.len()]) };
    /// What was asked for and is not answered.
    static ASKED: Cell<[bool; EVENTS.len()]> = const { Cell::new([false; EVENTS.len()]) };
    /// Nobody listens: a recovery runs.
    static MUTED: Cell<bool> = const { Cell::new(false) };
    static WHEN_ABORTED: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
}

/// What happened since the last commit became durable, and what was asked for as a whole and is not answered.
pub fn open() -> [bool; EVENTS.len()] {
    let (open, asked) = (OPEN.get(), ASKED.get());
    std::array::from_fn(|event| open[event] || asked[event])
}

/// Something is asked for until this is dropped.
pub struct Asked(Event);

/// Something is about to be asked for.
pub fn asked(event: Event) -> Asked {
    set_asked(event, true);
    Asked(event)
}

impl Drop for Asked {
    fn drop(&mut self) {
        set_asked(self.0, false);
    }
}

fn set_asked(event: Event, is: bool) {
    let mut asked = ASKED.get();
    asked[event as usize] = is;
    ASKED.set(asked);
}

/// A commit became durable.
pub fn committed() {
    OPEN.set([false; EVENTS.len()]);
}

/// Has `f` called at once when a transaction is aborted; `None`: nobody.
pub fn when_aborted(f: Option<Rc<dyn Fn()>>) {
    WHEN_ABORTED.set(f);
}

/// Runs something whose events do not count.
pub fn muted<T>(f: impl FnOnce() -> T) -> T {
    /// Also if it panics: the next run is to be heard.
    struct Unmute;
    impl Drop for Unmute {
        fn drop(&mut self) {
            MUTED.set(false);
        }
    }
    let _unmute = Unmute;
    MUTED.set(true);
    f()
}

struct Listener {
    /// Shows what the appliance logs, too.
    verbose: bool,
}

impl log::Log for Listener {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        self.verbose || metadata.level() == log::Level::Trace && !MUTED.get()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.verbose && record.level() < log::Level::Trace {
            let who = if MUTED.get() { "recovery" } else { "appliance" };
            eprintln!("{who}: {} {}: {}", record.level(), record.target(), record.args());
        }
        if record.level() != log::Level::Trace || MUTED.get() {
            return;
        }
        let text = record.args().to_string();
        let Some(event) = event_of(record.target(), &text) else { return };
        let mut open = OPEN.get();
        open[event as usize] = true;
        OPEN.set(open);
        let aborted = WHEN_ABORTED.with_borrow(Clone::clone);
        if let Some(aborted) = aborted.filter(|_| event == Event::Abort) {
            aborted();
        }
    }

    fn flush(&self) {}
}

/// Listens from now on. To be called once.
pub fn listen(verbose: bool) {
    let listener: &'static Listener = Box::leak(Box::new(Listener { verbose }));
    log::set_logger(listener).expect("nobody else logs");
    log::set_max_level(log::LevelFilter::Trace);
}
