//! The binary as its users meet it, one module for each side of it.

#[cfg(test)]
mod config; // check, explain, generated documents, precedence of settings
#[cfg(test)]
mod daemon; // starts the binary as systemd would: descriptors, a notify socket, signals
#[cfg(test)]
mod lifecycle; // start, readiness, what is refused, reload, status
#[cfg(test)]
mod lifecycle_drain; // SIGTERM, drain, cut, what waits meanwhile
#[cfg(test)]
mod tidy; // floors, lengths, documents that must stay true
#[cfg(test)]
mod watchdog; // what systemd hears while workers turn over, and while one does not
