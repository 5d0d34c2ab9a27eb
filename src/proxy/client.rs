//! Client: the side that asks, whatever protocol version it asks in.
//!
//! The story of a request is told over this trait, so that routing, admission, retries
//! and records know nothing of HTTP/1 bytes or of TCP.

use std::task::{Context, Poll};

use super::head::ResponseHead;
use super::relay::{Fault, Sink, Source};
use crate::routing::FieldEdits;
use crate::transport::stream::Gone;

/// An answer of our own.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    /// Its status code.
    pub status: u16,
    /// Its fields, without framing and connection.
    pub fields: &'a [(&'a str, &'a str)],
    /// Its body.
    pub body: &'a [u8],
}

/// One request's client: the source of its body and the sink of its answer.
pub trait Client: Source + Sink {
    /// Holds the body as it is consumed, up to so many bytes, so that it can be sent again.
    fn hold(&mut self, most: usize);

    /// Stops holding the body.
    fn release(&mut self);

    /// Gives up what is held of the body: the request is not made again.
    fn forgo(&mut self);

    /// Whether all of the body consumed so far is still held.
    fn is_held(&self) -> bool;

    /// Goes back to the start of a held body.
    fn rewind(&mut self);

    /// Whether the connection is so old at `now`, in milliseconds of the worker's clock,
    /// that the answer which begins then is to be its last.
    fn is_old(&self, now: u64) -> bool;

    /// Whether the request was read to its end.
    fn is_read(&self) -> bool;

    /// Has the answer to this request, if it is a backend's, set a cookie: the whole value of
    /// the field `Set-Cookie`. `None` takes that back.
    fn set_cookie(&mut self, cookie: Option<Box<str>>);

    /// Queues an interim response, for a client that understands them.
    fn inform(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>);

    /// Queues a response head with the route's edits; its body follows through the sink.
    /// `last` says that no other request will be served on this connection.
    fn answer(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>, last: bool);

    /// Queues an answer of our own, whole.
    fn answer_own(&mut self, own: &Own<'_>, last: bool);

    /// Takes back an answer of which no byte has gone out, so that another can be given.
    /// `false` when it is too late for that.
    fn retract(&mut self) -> bool;

    /// Queues the head that ends HTTP on this connection; from here on the source and
    /// the sink carry bytes of another protocol.
    fn switch(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>);

    /// Ends our direction once the answer, which was the last, has gone out: the client
    /// reads the end of the stream, while its body may still come.
    ///
    /// # Errors
    /// [`Fault::Reset`] when the client is gone.
    fn close_write(&mut self) -> Result<(), Fault>;

    /// Ready when the client has left for good, with how it did. A half-close is not leaving.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Gone>;

    /// Whether looking out for the client's leaving costs nothing. If not, that is begun
    /// only when a request takes its time.
    fn is_watched(&self) -> bool;

    /// Makes the end of this exchange look like the failure it is.
    fn abort(&mut self);

    /// Bytes written to the client since its answer began.
    fn bytes_out(&self) -> u64;
}
