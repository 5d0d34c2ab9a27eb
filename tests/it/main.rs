//! The binary as its users meet it, one module for each side of it.

#[cfg(test)]
mod acme; // certificates from an ACME server
#[cfg(test)]
mod backend; // backends that do as a test says, and addresses that take nobody in
#[cfg(test)]
mod balance; // simulated: what each algorithm makes of slow, dead and returning backends
#[cfg(test)]
mod clients; // a scanner and a browser in front of it, where tests/run has installed them
#[cfg(test)]
mod config; // check, explain, generated documents, precedence of settings
#[cfg(test)]
mod daemon; // starts the binary as systemd would: descriptors, a notify socket, signals
#[cfg(test)]
mod http2; // clients and backends that speak HTTP/2
#[cfg(test)]
mod lifecycle; // start, readiness, what is refused, reload, status
#[cfg(test)]
mod lifecycle_drain; // SIGTERM, drain, cut, what waits meanwhile
#[cfg(test)]
mod metrics; // what a scrape says, and where it is to be had
#[cfg(test)]
mod nameserver; // a name server that says what a test wants
#[cfg(test)]
mod peer; // plain sockets with a buffer: clients, and backends that do as a test says
#[cfg(test)]
mod routing; // the routing table, and what explain says of a request
#[cfg(test)]
mod server; // backends that answer by themselves and count
#[cfg(test)]
mod tidy; // floors, lengths, documents that must stay true
#[cfg(test)]
mod tls; // clients that come by TLS, backends that speak it, certificates
#[cfg(test)]
mod traffic; // requests, tunnels and connections on their way through
#[cfg(test)]
mod upgrade; // another process takes over, or can't
#[cfg(test)]
mod upgrade_drain; // how long the process before has, alone and when it is waited for
#[cfg(test)]
mod watchdog; // what systemd hears while workers turn over, and while one does not
