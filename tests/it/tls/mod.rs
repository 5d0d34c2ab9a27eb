//! What clients meet that come by TLS, and backends that are spoken to by it, and what
//! operators are told of it.

mod backends; // backends that are `https://`
mod certificates; // what check, start and reload say of certificates and keys
mod front; // TLS before any backend of a test
pub mod issued; // certificates made for a test
