//! The backend's side of an HTTP/1.1 connection: one request at a time, and idle between
//! two ([`crate::proxy::idle`]).

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::encode;
use super::wire::Wire;
use crate::balance::connections::{Parked, Slot};
use crate::balance::endpoint::Endpoint;
use crate::config::Target;
use crate::proxy::forwarded::Forwarded;
use crate::proxy::head::{Known, Method, RequestHead, ResponseHead};
use crate::proxy::idle::stated;
use crate::proxy::relay::{Fault, Piece, Raw, Sink, Source};
use crate::proxy::rewrite::Rewrite;
use crate::transport::stream::{Family, Stream};
use crate::transport::tls::Session;

/// An HTTP/1.1 connection to a backend.
#[derive(Debug)]
pub struct Http1Upstream {
    wire: Wire,
    /// Leave to be open.
    slot: Slot,
    /// How long the backend says it keeps it idle.
    patience: Option<Duration>,
    /// It has served a request before.
    reused: bool,
    /// The backend would take another request on it.
    keep_alive: bool,
    /// Something of a response to the current request was read, and dealt with.
    answered: bool,
}

impl Http1Upstream {
    /// Makes an HTTP/1.1 connection of a stream.
    #[must_use]
    pub fn new(stream: Stream, slot: Slot) -> Self {
        let wire = Wire::new(stream);
        Self { wire, slot, patience: None, reused: false, keep_alive: false, answered: false }
    }

    /// Takes over a connection that was idle elsewhere, if it is still good at `now`. Only
    /// its slot is left otherwise.
    ///
    /// # Errors
    /// The slot.
    pub fn adopt(parked: Parked, endpoint: &Endpoint, now: u64) -> Result<Self, Slot> {
        let family = match endpoint.target() {
            Target::Unix(_) | Target::Echo => Family::Unix,
            Target::Ip(_) | Target::Name { .. } | Target::Service(_) | Target::Tls(_) => Family::Tcp,
        };
        let tls = parked.tls.and_then(|tls| tls.downcast().ok());
        if tls.is_some() != endpoint.tls().is_some() {
            return Err(parked.slot);
        }
        let stream = Stream::resume(parked.socket, family, tls);
        if now >= parked.until || stream.stirred() {
            return Err(parked.slot);
        }
        let mut upstream = Self::new(stream, parked.slot);
        upstream.reuse();
        Ok(upstream)
    }

    /// See [`crate::proxy::upstream::Upstream::begin`].
    pub fn begin(&mut self, head: &RequestHead, forwarded: &Forwarded<'_>, rewrite: &Rewrite<'_>) {
        self.keep_alive = false;
        self.answered = false;
        encode::request(self.wire.output_mut().begin(head.framing), head, forwarded, rewrite);
    }

    /// Reads a response head, interim or final.
    ///
    /// # Errors
    /// The backend's fault.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, to: Method) -> Poll<Result<ResponseHead, Fault>> {
        let outcome = ready!(self.wire.poll_response(cx, to));
        // An interim response and one that can't be read are answers too, though nothing
        // of them is left in the buffer.
        self.answered |= !matches!(outcome, Err(Fault::Reset | Fault::Truncated | Fault::Alert));
        let head = outcome?;
        if !head.is_interim() {
            self.keep_alive = head.keep_alive;
            self.patience = head.fields.first(Known::KeepAlive).and_then(stated);
        }
        Poll::Ready(Ok(head))
    }

    /// See [`crate::proxy::upstream::Upstream::stays`].
    #[must_use]
    pub fn stays(&self) -> bool {
        self.keep_alive && self.wire.is_read() && !self.wire.has_input()
    }

    /// Ready when a backend whose answer is whole ends, or says more than it was asked.
    pub fn poll_stirs(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wire.poll_stirs(cx).map(drop)
    }

    /// Whether it has served a request before.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Whether any byte of the current request was written.
    #[must_use]
    pub fn has_written(&self) -> bool {
        self.wire.output().written() > 0
    }

    /// Whether any byte of a response has come.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.answered || self.wire.has_input()
    }

    /// See [`crate::proxy::upstream::Upstream::poll_whole`].
    pub fn poll_whole(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<bool> {
        self.wire.poll_whole(cx, most)
    }

    /// From here on it carries bytes of another protocol.
    pub fn become_tunnel(&mut self) {
        self.wire.become_tunnel();
        self.wire.io().keep_alive();
    }

    /// How long the backend says it keeps it idle, less a margin.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        self.patience
    }

    /// Whether anything has come while nothing should.
    #[must_use]
    pub fn stirred(&self) -> bool {
        self.wire.io().stirred()
    }

    /// Its exchange is over: nothing of it need be remembered while it is idle.
    pub fn rest(&mut self) {
        self.wire.forget_body();
    }

    /// It is to serve another request.
    pub fn reuse(&mut self) {
        self.reused = true;
    }

    /// Takes its socket from this thread, with its TLS and its slot. It must be idle.
    #[must_use]
    pub fn release(self) -> Option<(OwnedFd, Option<Box<Session>>, Slot)> {
        let (socket, tls) = Rc::into_inner(self.wire.into_io())?.release()?;
        Some((socket, tls, self.slot))
    }

    /// Whether it can serve another request.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        let wire = &self.wire;
        self.keep_alive && wire.is_read() && wire.output().is_finished() && !wire.has_input() && !wire.io().has_input()
    }
}

impl Source for Http1Upstream {
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

impl Sink for Http1Upstream {
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
        self.wire.trail(lines);
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
