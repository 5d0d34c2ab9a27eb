//! Which backend, and whether again.
//!
//! [`discovery`] tells where a name leads, [`endpoint`] holds what is known of one
//! backend, [`standing`] what is held against it, by [`health`] checks or as an
//! [`outlier`] in failures or [`slowness`], [`load`] what it has under way, [`tally`] what
//! has come of it, for operators; [`pool`] chooses one for a request by the route's
//! algorithm, [`retry`] decides what follows a failure, [`budget`] bounds how often. Policy
//! only: no I/O, and time and random numbers come as arguments.

pub mod budget;
pub mod connections;
mod dice;
pub mod discovery;
pub mod endpoint;
#[cfg(test)]
mod fixture;
mod hash;
pub mod health;
mod least;
pub mod load;
pub mod outlier;
mod p2c;
pub mod pool;
pub mod retry;
mod round_robin;
pub mod sip;
pub mod slowness;
pub mod stance;
pub mod standing;
pub mod sticky;
pub mod tally;
mod tier;
pub mod tls;
