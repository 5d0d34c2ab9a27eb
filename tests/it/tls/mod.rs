//! What clients meet that come by TLS, and backends that are spoken to by it, and what
//! operators are told of it.

mod backends; // backends that are `https://`
mod certificates; // what check, start and reload say of certificates and keys
mod front; // TLS before any backend of a test
mod handshakes; // who is let in, who is not, and what that costs
mod insist; // clients that are kept on TLS
pub mod issued; // certificates made for a test
mod mutual; // clients that show certificates, and those that should
pub mod secured; // the daemon with a certificate, and clients that speak TLS
mod serving;
mod tickets; // sessions that are resumed in another process // requests and connections that come by TLS
