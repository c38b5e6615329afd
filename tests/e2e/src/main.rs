//! tests/e2e
fn main() {}
