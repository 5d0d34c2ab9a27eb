//! HTTP/2 on the wire (RFC 9113), over the `h2` crate.
//!
//! [`server`] is a client's connection; each of its [`streams`] has a task of its own ([`tellers`])
//! that tells the same story as a request of HTTP/1 does, over an [`Http2`](client::Http2). [`head`] makes of
//! what opened a stream what a head of HTTP/1 is, so that whatever is refused there is
//! refused here; [`fields`] turns fields of one form into the other. [`body`] is what comes in
//! on a stream, [`output`] what goes out. [`io`] carries the frames, and [`guard`] looks at
//! what they cost; how much of that is borne is in [`limits`]. [`upstream`] is a connection to a
//! backend, whose streams many requests use at once. [`websocket`] is what a backend of HTTP/1.1
//! must prove.

pub mod body;
pub mod client;
pub mod fields;
pub mod guard;
pub mod head;
pub mod io;
pub mod limits;
pub mod output;
pub mod server;
pub mod streams;
pub mod tellers;
pub mod upstream;
pub mod websocket;

/// What a client sends first that knows that HTTP/2 is spoken here (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How that begins: all that a reader of HTTP/1 has to see of it.
pub const PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0\r\n";
