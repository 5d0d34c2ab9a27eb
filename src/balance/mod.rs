//! Which backend, and whether again.
//!
//! [`discovery`] tells where a name leads, [`endpoint`] holds what is known of one
//! backend, [`standing`] what is held against it, by [`health`] checks or as an
//! [`outlier`]; [`pool`] takes them in turn, [`retry`] decides what follows a failure,
//! [`budget`] bounds how often. Policy only: no I/O, and time comes as an argument.

pub mod budget;
pub mod discovery;
pub mod endpoint;
pub mod health;
pub mod outlier;
pub mod pool;
pub mod retry;
pub mod standing;
