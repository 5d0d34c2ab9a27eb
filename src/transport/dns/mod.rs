//! DNS: what a stub resolver needs, and no more.
//!
//! The host's own resolver tells no lifetimes and no SRV records, and a general DNS
//! library brings nearly as many crates as the daemon has in all. Here is what there is to
//! do around a library that reads and writes messages: [`message`] says what an answer
//! means, [`client`] asks, [`host`] knows what the host's files say.

pub mod client;
pub mod host;
pub mod message;
