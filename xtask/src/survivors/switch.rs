//! Which change is on. `cargo xtask mutants --source` puts this file into its copy of `pdata`; nothing else has it.

extern crate std as outside;

use outside::io::Write as _;
use outside::sync::OnceLock;
use outside::sync::atomic::{AtomicBool, Ordering};

/// No change: tell which functions are reached.
const RECORD: u32 = u32::MAX;

/// More than there are changes.
static REACHED: [AtomicBool; 1 << 16] = [const { AtomicBool::new(false) }; 1 << 16];

/// The number of the change that is on, asked in the function whose first change is `function`. The compiler knows of no change.
pub const fn on(function: u32) -> u32 {
    outside::intrinsics::const_eval_select((function,), compiling, running)
}

const fn compiling(_: u32) -> u32 {
    RECORD
}

fn running(function: u32) -> u32 {
    static NUMBER: OnceLock<u32> = OnceLock::new();
    let number = *NUMBER.get_or_init(|| match outside::env::var("SURVIVORS_CHANGE") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => RECORD,
    });
    if number == RECORD && !REACHED[function as usize].swap(true, Ordering::Relaxed) {
        let path = outside::env::var_os("SURVIVORS_REACHED").unwrap();
        let mut file = outside::fs::File::options().create(true).append(true).open(path).unwrap();
        // In one piece: other threads write, too.
        file.write_all(outside::format!("{function}\n").as_bytes()).unwrap();
    }
    number
}

/// Iterators of different types as one.
pub fn boxed<'a, T>(items: impl Iterator<Item = T> + 'a) -> outside::boxed::Box<dyn Iterator<Item = T> + 'a> {
    outside::boxed::Box::new(items)
}
