//! HTTP/1.1 and 1.0 on the wire (RFC 9112).
//!
//! [`wire`] reads a connection's bytes, [`output`] writes them. [`lines`] takes heads apart by
//! the [`grammar`], [`parse`] says what they mean, [`encode`] writes them. [`body`] finds the
//! ends of bodies, [`trailers`] keeps what stands behind them.
//! [`Http1`] is the client's side of it, [`upstream`] the backend's.

pub mod body;
pub mod encode;
pub mod grammar;
pub mod lines;
pub mod output;
pub mod parse;
pub mod trailers;
pub mod upstream;
pub mod wire;

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use encode::Onward;
use wire::Wire;

use super::client::{Client, Own};
use super::head::{Framing, Method, RequestHead, ResponseHead, Version};
use super::relay::{Fault, Piece, Raw, Sink, Source};
use crate::routing::FieldEdits;
use crate::transport::stream::{Gone, Stream};

/// A client's HTTP/1 connection.
#[derive(Debug)]
pub struct Http1 {
    wire: Wire,
    version: Version,
    method: Method,
    keep_alive: bool,
    /// The client takes fields behind the answer's body.
    trailers: bool,
    /// Nothing of the answer to the current request was queued yet.
    unanswered: bool,
    /// What the answer sets besides.
    cookie: Option<Box<str>>,
    /// Time of the worker's clock from which on each answer is the last.
    expires: u64,
    leaving: Leaving,
}

/// The watch for the client's leaving, once something came of it that was not read: only
/// then is there anything to tell apart.
#[derive(Default)]
struct Leaving(Option<Pin<Box<dyn Future<Output = Gone>>>>);

impl fmt::Debug for Leaving {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Leaving").field(&self.0.is_some()).finish()
    }
}

impl Http1 {
    /// A client on a connection just accepted.
    #[must_use]
    pub fn new(io: Stream) -> Self {
        Self {
            wire: Wire::new(io),
            version: Version::Http11,
            method: Method::Other,
            keep_alive: true,
            trailers: false,
            unanswered: true,
            cookie: None,
            expires: u64::MAX,
            leaving: Leaving::default(),
        }
    }

    /// The connection's bytes.
    #[must_use]
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// The connection's bytes, to read or write.
    pub fn wire_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Whether its connection carries no TLS.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.wire.io().tls().is_none()
    }

    /// The connection alone, with what was read of it and belongs to no request.
    #[must_use]
    pub fn into_parts(self) -> (Rc<Stream>, Vec<u8>) {
        self.wire.into_parts()
    }

    /// Reads the next request's head.
    ///
    /// # Errors
    /// See [`Wire::poll_request`].
    pub fn poll_request(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Result<Option<RequestHead>, Fault>> {
        let head = std::task::ready!(self.wire.poll_request(cx, limit))?;
        if let Some(head) = &head {
            self.version = head.version;
            self.method = head.method;
            self.keep_alive = head.keep_alive;
            self.trailers = head.trailers;
            self.unanswered = true;
            self.cookie = None;
            self.leaving = Leaving::default();
        }
        Poll::Ready(Ok(head))
    }

    /// Whether nothing of an answer to the current request was queued yet.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        self.unanswered
    }

    /// Sets the time of the worker's clock from which on the connection is old.
    pub fn expire(&mut self, at: u64) {
        self.expires = at;
    }

    /// Whether the connection can serve another request.
    #[must_use]
    pub fn can_go_on(&self) -> bool {
        self.keep_alive && self.wire.is_read() && self.wire.output().is_finished()
    }

    fn onward(&mut self, framing: Framing, last: bool) -> Onward {
        self.keep_alive &= !last && framing != Framing::UntilClose;
        self.unanswered = false;
        Onward { version: self.version, framing, keep_alive: self.keep_alive, trailers: false }
    }
}

impl Source for Http1 {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        self.wire.poll_piece(cx)
    }

    fn consume(&mut self, n: usize) {
        self.wire.consume(n);
    }

    fn raw_source(&self) -> Option<Raw<'_>> {
        self.wire.raw_source()
    }

    fn spliced_from(&mut self, n: usize) {
        self.wire.spliced_from(n);
    }

    fn withhold(&mut self, name: &[u8]) {
        self.wire.withhold(name);
    }

    fn trailers(&self) -> &[u8] {
        self.wire.trailers()
    }
}

impl Sink for Http1 {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        self.wire.poll_push(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.wire.poll_flush(cx)
    }

    fn held(&self) -> usize {
        self.wire.held()
    }

    fn prod(&mut self) {
        self.wire.prod();
    }

    fn trail(&mut self, lines: &[u8]) {
        if self.trailers {
            self.wire.trail(lines);
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.wire.poll_finish(cx)
    }

    fn raw_sink(&self) -> Option<Raw<'_>> {
        self.wire.raw_sink()
    }

    fn spliced_to(&mut self, n: usize) {
        self.wire.spliced_to(n);
    }
}

impl Client for Http1 {
    fn hold(&mut self, most: usize) {
        self.wire.hold(most);
    }

    fn release(&mut self) {
        self.wire.release();
    }

    fn forgo(&mut self) {
        self.wire.forgo();
    }

    fn is_held(&self) -> bool {
        self.wire.is_held()
    }

    fn rewind(&mut self) {
        self.wire.rewind();
    }

    fn is_old(&self, now: u64) -> bool {
        now >= self.expires
    }

    fn is_read(&self) -> bool {
        self.wire.is_read()
    }

    fn set_cookie(&mut self, cookie: Option<Box<str>>) {
        self.cookie = cookie;
    }

    fn inform(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>) {
        // HTTP/1.0 knows no interim responses (RFC 9110 §15.2).
        if self.version != Version::Http10 {
            encode::interim(self.wire.output_mut().lease(), head, edits);
        }
    }

    fn answer(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>, last: bool) {
        let framing = match (head.framing, self.version) {
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
            (Framing::Chunked | Framing::UntilClose, _) => Framing::Chunked,
            (framing, _) => framing,
        };
        let mut onward = self.onward(framing, last);
        onward.trailers = self.trailers && head.framing == Framing::Chunked && framing == Framing::Chunked;
        let out = self.wire.output_mut().begin(framing);
        encode::response(out, head, edits, &onward);
        if let Some(cookie) = self.cookie.take() {
            encode::set_cookie(out, &cookie);
        }
    }

    fn answer_own(&mut self, own: &Own<'_>, last: bool) {
        let framing = if self.method == Method::Head { Framing::Empty } else { Framing::Length(0) };
        let onward = self.onward(framing, last);
        encode::own(self.wire.output_mut().begin(Framing::Empty), own, &onward);
    }

    fn retract(&mut self) -> bool {
        self.unanswered |= self.wire.output_mut().retract();
        self.unanswered
    }

    fn switch(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>) {
        self.keep_alive = false;
        self.unanswered = false;
        let out = self.wire.output_mut().begin(Framing::Empty);
        encode::switching(out, head, edits);
        if let Some(cookie) = self.cookie.take() {
            encode::set_cookie(out, &cookie);
        }
        self.wire.become_tunnel();
    }

    fn close_write(&mut self) -> Result<(), Fault> {
        self.wire.io().shutdown_write().map_err(|_| Fault::Reset)
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        if self.leaving.0.is_none() {
            let _ = std::task::ready!(self.wire.io().poll_stirred(cx));
            let io = Rc::clone(self.wire.io());
            self.leaving = Leaving(Some(Box::pin(async move { io.left().await })));
        }
        self.leaving.0.as_mut().map_or(Poll::Ready(Gone::Reset), |left| left.as_mut().poll(cx))
    }

    fn is_watched(&self) -> bool {
        self.wire.io().is_watched()
    }

    fn abort(&mut self) {
        self.keep_alive = false;
        self.wire.io().reset_on_close();
    }

    fn bytes_out(&self) -> u64 {
        self.wire.output().written()
    }
}
