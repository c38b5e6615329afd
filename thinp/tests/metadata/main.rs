//! The pool's metadata against models, Linux's tools and power cuts.

mod crash;
mod golden;
mod harness;
mod model;
mod random;
mod smoke;
mod speed;
