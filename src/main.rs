//! doorward, the binary.
fn main() {}
