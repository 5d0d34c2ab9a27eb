//! HTTP/2 (RFC 9113): towards clients, and towards backends.

/// Backends that speak HTTP/2, over a library and frame by frame.
pub mod backend;
/// Bodies, trailers, windows.
mod bodies;
/// A client over a library.
mod client;
/// What each rule of the RFC has the daemon do, frame by frame.
mod conformance;
/// Clients that take their answers late, or not at all.
mod delivery;
/// Drain, age, idleness.
mod ending;
/// A client that writes and reads single frames.
mod frames;
/// gRPC through the daemon.
mod grpc;
/// A service of gRPC and its client.
mod grpc_calls;
/// What one connection may ask for.
mod limits;
/// Backends that break off, refuse, flood, stall, or speak something else.
mod misbehaving;
/// Backends that reset streams, or change their settings, in each phase of them.
mod phases;
/// What a backend is told, and what a client is answered.
mod requests;
/// Clients that agree on it with TLS.
mod secured;
/// Streams that their clients reset, at any moment of their way.
mod storm;
/// What tools of others make of it.
mod tools;
/// Requests asked of backends over HTTP/2, and how many connections that takes.
mod upstream;
/// Other protocols on a stream.
mod websocket;
