//! What becomes of requests and connections on their way through.

/// When a connection is old.
mod age;
/// What is counted of attempts at backends.
mod attempts;
/// Which backend takes a request.
mod balance;
/// Bodies: framing, size, both directions at once, what is expected and refused.
mod bodies;
/// Answers ahead of their request, and how connections end.
mod closing;
/// Where names of backends lead.
mod discovery;
/// Starts the daemon in front of a test's backends.
pub mod door;
/// Backends that fare worse than the others.
mod ejection;
/// Backends that are checked.
mod health;
/// Heads, connections and their reuse, versions.
mod http;
/// Clients that leave, and those that only end their direction.
mod leaving;
/// The records that requests leave behind.
mod log;
/// What neither side may send.
mod malformed;
/// What the daemon holds in memory for whom.
mod memory;
/// Requests about the way itself: OPTIONS, TRACE, Max-Forwards.
mod options;
/// For whom a request is made, as backends and the log are told.
mod origin;
/// Slow clients, and those that only seem slow.
mod pace;
/// What waits, for whom, and who is blamed when it took too long.
mod patience;
/// Connections to backends: how many, how long they are kept, who waits for one.
mod pools;
/// Permits, and the queue before them.
mod queue;
/// Bodies that are kept, to be sent again.
mod replay;
/// Attempts after a failed one.
mod retries;
/// What an outage makes of retries.
mod retry_budget;
/// What is tried again, and what becomes of answers that are not wanted.
mod retry_on;
/// What routes change, and what they answer by themselves.
mod rewrites;
/// Listeners, routes, backends in turn.
mod routes;
/// When trying again is pointless, or the fault is ours.
mod shortages;
/// Messages that two readers could understand differently, as tables.
mod smuggling;
/// Large bodies and tunnels, which the kernel moves by itself.
mod splice;
/// Connections relayed without being read.
mod tcp;
/// How long each side may keep the other waiting.
mod timeouts;
/// Fields behind a body.
mod trailers;
/// Protocols that take over a connection.
mod tunnels;
