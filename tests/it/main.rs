//! The binary as its users meet it, one module for each side of it.

#[cfg(test)]
mod config; // check, explain, generated documents, precedence of settings
