//! How far a transfer is, for who looks on.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar with rate and time left on a terminal, and nothing elsewhere.
pub struct Progress(ProgressBar);

impl Progress {
    /// Of something that has so many bytes.
    pub fn new(what: String, bytes: u64, quiet: bool) -> Progress {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_message(what);
        let template = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(500));
        Progress(bar)
    }

    /// So many bytes more.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// So many bytes in all.
    pub fn reach(&self, bytes: u64) {
        self.0.set_position(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
