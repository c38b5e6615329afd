//! The deterministic simulator: the whole appliance in one thread, with simulated disks, network and time, driven by
//! simulated clients; one seed decides everything. See `docs/simulator.md`.
#![forbid(unsafe_code)]

mod clients;
mod contest;
mod disk;
mod duel;
mod events;
mod explore;
mod faults;
#[cfg(test)]
mod found;
mod hangs;
mod history;
mod http;
mod image;
mod initiator;
mod judge;
mod lies;
mod life;
mod manager;
mod model;
mod moments;
mod net;
mod premade;
mod quick;
mod readers;
mod recover;
mod repairs;
mod run;
mod shape;
mod site;
mod streams;
mod transfers;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    match run::command() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error:#}");
            ExitCode::from(2)
        }
    }
}
