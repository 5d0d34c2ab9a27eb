//! Sockets: listeners from the service manager, streams, connections to backends.

pub mod listeners;
