//! HTTP/2 towards clients (RFC 9113).

/// Bodies, trailers, windows.
mod bodies;
/// A client over a library.
mod client;
/// What each rule of the RFC has the daemon do, frame by frame.
mod conformance;
/// Drain, age, idleness.
mod ending;
/// A client that writes and reads single frames.
mod frames;
/// What one connection may ask for.
mod limits;
/// What a backend is told, and what a client is answered.
mod requests;
/// Other protocols on a stream.
mod websocket;
