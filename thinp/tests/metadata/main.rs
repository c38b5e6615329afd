//! The pool's metadata against models, Linux's tools and power cuts.

mod crash;
mod harness;
mod model;
mod random;
mod smoke;
