//! What clients meet that come by TLS, and what operators are told of it.

mod certificates; // what check, start and reload say of certificates and keys
pub mod issued; // certificates made for a test
