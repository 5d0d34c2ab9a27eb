//! The backend's side of HTTP/2: requests share a few connections.
//!
//! A [`connection`] carries as many requests at once as the backend allows, each as a
//! [`stream`] of its own, whose [`head`] is worked out for it; the [`pool`] of a worker has those to one backend, and opens
//! another when all of them are full.

pub mod connection;
pub mod head;
pub mod pool;
pub mod stream;

pub use stream::Http2Upstream;
