//! Which backend, and whether again.
//!
//! [`endpoint`] holds what is known of one backend, [`pool`] takes them in turn,
//! [`retry`] decides what follows a failure. Policy only: no I/O, and time comes as
//! an argument.

pub mod endpoint;
pub mod pool;
pub mod retry;
