//! The admin socket: who may ask the daemon, what, and in which words.
//!
//! Permissions of the socket file decide who may ask; the protocol is one JSON
//! object a line each way (see [`protocol`]), so that `socat` and a script do as
//! well as `doorward status`. The server knows nothing of the daemon: it passes
//! each question on as a [`Question`] and waits for the answer, so the control
//! loop stays the only place where anything happens.

pub mod guests;
pub mod protocol;
mod server;

pub use server::{Question, serve};
