//! The library as a target would use it, against models and the library's own checker.

mod arrays;
mod cache;
mod cache_target;
mod faults;
mod harness;
mod levels;
mod maps;
mod pairs;
mod shrinks;
mod traces;
mod traps;
mod trees;
