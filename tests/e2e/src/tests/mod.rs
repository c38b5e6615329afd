//! The tests, by what they show.

mod api;
mod backup;
mod bad_disks;
mod bad_peers;
mod conformance;
mod group;
mod growth;
mod image_copy;
mod linux_commands;
mod linux_faults;
mod linux_initiator;
mod linux_pools;
mod linux_streams;
mod metadata_snapshot;
mod needs_check;
mod owner;
mod power_cut;
mod scsi;
mod streams;

use crate::runner::Test;

/// All of them.
pub const ALL: &[&[Test]] = &[
    image_copy::TESTS,
    api::TESTS,
    backup::TESTS,
    bad_disks::TESTS,
    bad_peers::TESTS,
    conformance::TESTS,
    group::TESTS,
    growth::TESTS,
    linux_commands::TESTS,
    linux_faults::TESTS,
    linux_initiator::TESTS,
    metadata_snapshot::TESTS,
    needs_check::TESTS,
    owner::TESTS,
    linux_pools::TESTS,
    linux_streams::TESTS,
    power_cut::TESTS,
    scsi::TESTS,
    streams::TESTS,
];
