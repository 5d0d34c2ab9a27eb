//! DNS: what a stub resolver needs, and no more.
//!
//! The host's own resolver tells no lifetimes and no SRV records, and a general DNS
//! library brings nearly as many crates as the daemon has in all. Three kinds of records
//! from a server that does the work take a page each: [`message`] for the bytes,
//! [`client`] for sending them, [`host`] for what the host's files say.

pub mod client;
pub mod host;
pub mod message;
