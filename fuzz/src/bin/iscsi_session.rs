//! Whole sessions of several initiators on a live target: see [`fuzz::iscsi`].
#![no_main]

use fuzz::{iscsi, within_budget};

libfuzzer_sys::fuzz_target!(|data: &[u8]| within_budget(|| iscsi::play(data)));
