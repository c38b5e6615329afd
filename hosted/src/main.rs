//! hosted
fn main() {}
