//! The pool's metadata against models, Linux's tools and power cuts.

mod assumed;
mod concurrent;
mod copies;
mod crash;
mod damages;
mod deltas;
mod dumps;
mod facts;
mod faults;
mod golden;
mod harness;
mod hostile;
mod image;
mod judge;
mod model;
mod passes;
mod random;
mod repairs;
mod restores;
mod salvages;
mod space;
mod steps;
mod traps;
mod views;
