//! Upstream: a connection to a backend. Those that wait for the next request are in
//! [`super::idle`].

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tracing::debug;

use super::echo;
use super::forwarded::Forwarded;
use super::handshake;
use super::head::{Known, Method, RequestHead, ResponseHead};
use super::http1::encode;
use super::http1::wire::Wire;
use super::idle::stated;
use super::relay::{Fault, Piece, Raw, Sink, Source};
use super::rewrite::Rewrite;
use crate::balance::connections::{Parked, Slot};
use crate::balance::discovery::Ways;
use crate::balance::endpoint::Endpoint;
use crate::config::Target;
use crate::telemetry::Reason;
use crate::transport::dial::{self, DialError};
use crate::transport::stream::{Family, Socket, Stream};
use crate::transport::tls;

/// Bytes that are read of an answer only to keep its connection.
const DISCARDED: usize = 64 * 1024;

/// A connection to a backend.
#[derive(Debug)]
pub enum Upstream {
    /// HTTP/1.1.
    Http1(Http1Upstream),
}

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

impl Upstream {
    /// Queues a request head; the body follows through the sink.
    pub fn begin(&mut self, head: &RequestHead, forwarded: &Forwarded<'_>, rewrite: &Rewrite<'_>) {
        let Self::Http1(upstream) = self;
        upstream.keep_alive = false;
        upstream.answered = false;
        encode::request(upstream.wire.output_mut().begin(head.framing), head, forwarded, rewrite);
    }

    /// Reads a response head, interim or final.
    ///
    /// # Errors
    /// The backend's fault.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, to: Method) -> Poll<Result<ResponseHead, Fault>> {
        let Self::Http1(upstream) = self;
        let outcome = std::task::ready!(upstream.wire.poll_response(cx, to));
        // An interim response and one that can't be read are answers too, though nothing
        // of them is left in the buffer.
        upstream.answered |= !matches!(outcome, Err(Fault::Reset | Fault::Truncated));
        let head = outcome?;
        if !head.is_interim() {
            upstream.keep_alive = head.keep_alive;
            upstream.patience = head.fields.first(Known::KeepAlive).and_then(stated);
        }
        Poll::Ready(Ok(head))
    }

    /// Whether the backend, which has answered, keeps the connection for what is still to
    /// come: then it reads on, or means to.
    #[must_use]
    pub fn stays(&self) -> bool {
        let Self::Http1(upstream) = self;
        upstream.keep_alive && upstream.wire.is_read() && !upstream.wire.has_input()
    }

    /// Ready when a backend whose answer is whole ends, or says more than it was asked.
    pub fn poll_stirs(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self::Http1(upstream) = self;
        upstream.wire.poll_stirs(cx).map(drop)
    }

    /// Whether it has served a request before.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        let Self::Http1(upstream) = self;
        upstream.reused
    }

    /// Whether any byte of the current request was written.
    #[must_use]
    pub fn has_written(&self) -> bool {
        let Self::Http1(upstream) = self;
        upstream.wire.output().written() > 0
    }

    /// Whether any byte of a response has come.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        let Self::Http1(upstream) = self;
        upstream.answered || upstream.wire.has_input()
    }

    /// Reads and drops what has come of an answer that nobody wants, if it is not much: the
    /// connection can serve on then.
    pub fn discard(&mut self) {
        let mut most = DISCARDED;
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Ok(Piece::Data(data))) = self.poll_piece(&mut cx) {
            let n = data.len();
            if n > most {
                return;
            }
            most -= n;
            self.consume(n);
        }
    }

    /// Whether all of the answer's body, of at most `most` bytes, is here to be read; ready
    /// as soon as that is known. Nothing of it is lost.
    pub fn poll_whole(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<bool> {
        let Self::Http1(upstream) = self;
        upstream.wire.poll_whole(cx, most)
    }

    /// Takes the answer's body out, if all of it has come and is at most `most` bytes: the
    /// connection is free then. Else nothing of it is lost.
    pub fn take_whole(&mut self, most: usize) -> Option<Vec<u8>> {
        let mut cx = Context::from_waker(Waker::noop());
        if self.poll_whole(&mut cx, most) != Poll::Ready(true) {
            return None;
        }
        let mut body = Vec::new();
        while let Poll::Ready(Ok(Piece::Data(data))) = self.poll_piece(&mut cx) {
            let n = data.len();
            body.extend_from_slice(data);
            self.consume(n);
        }
        Some(body)
    }

    /// From here on it carries bytes of another protocol.
    pub fn become_tunnel(&mut self) {
        let Self::Http1(upstream) = self;
        upstream.wire.become_tunnel();
        upstream.wire.io().keep_alive();
    }

    /// How long the backend says it keeps it idle, less a margin.
    #[must_use]
    pub(super) fn patience(&self) -> Option<Duration> {
        let Self::Http1(upstream) = self;
        upstream.patience
    }

    /// Whether anything has come while nothing should.
    #[must_use]
    pub(super) fn stirred(&self) -> bool {
        let Self::Http1(upstream) = self;
        upstream.wire.io().stirred()
    }

    /// Its exchange is over: nothing of it need be remembered while it is idle.
    pub(super) fn rest(&mut self) {
        let Self::Http1(upstream) = self;
        upstream.wire.forget_body();
    }

    /// It is to serve another request.
    pub(super) fn reuse(&mut self) {
        let Self::Http1(upstream) = self;
        upstream.reused = true;
    }

    /// Takes its socket from this thread, with its slot. It must be idle.
    pub(super) fn release(self) -> Option<(OwnedFd, Slot)> {
        let Self::Http1(Http1Upstream { wire, slot, .. }) = self;
        Some((Rc::into_inner(wire.into_io())?.release()?, slot))
    }

    /// Whether it can serve another request.
    pub(super) fn is_reusable(&self) -> bool {
        let Self::Http1(upstream) = self;
        let wire = &upstream.wire;
        upstream.keep_alive
            && wire.is_read()
            && wire.output().is_finished()
            && !wire.has_input()
            && !wire.io().has_input()
    }
}

impl Source for Upstream {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        let Self::Http1(upstream) = self;
        upstream.wire.poll_piece(cx)
    }

    fn consume(&mut self, n: usize) {
        let Self::Http1(upstream) = self;
        upstream.wire.consume(n);
    }

    fn raw_source(&self) -> Option<Raw<'_>> {
        let Self::Http1(upstream) = self;
        upstream.wire.raw_source()
    }

    fn spliced_from(&mut self, n: usize) {
        let Self::Http1(upstream) = self;
        upstream.wire.spliced_from(n);
    }

    fn withhold(&mut self, name: &[u8]) {
        let Self::Http1(upstream) = self;
        upstream.wire.withhold(name);
    }

    fn trailers(&self) -> &[u8] {
        let Self::Http1(upstream) = self;
        upstream.wire.trailers()
    }
}

impl Sink for Upstream {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        let Self::Http1(upstream) = self;
        upstream.wire.poll_push(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Self::Http1(upstream) = self;
        upstream.wire.poll_flush(cx)
    }

    fn held(&self) -> usize {
        let Self::Http1(upstream) = self;
        upstream.wire.held()
    }

    fn prod(&mut self) {
        let Self::Http1(upstream) = self;
        upstream.wire.prod();
    }

    fn trail(&mut self, lines: &[u8]) {
        let Self::Http1(upstream) = self;
        upstream.wire.trail(lines);
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Self::Http1(upstream) = self;
        upstream.wire.poll_finish(cx)
    }

    fn raw_sink(&self) -> Option<Raw<'_>> {
        let Self::Http1(upstream) = self;
        upstream.wire.raw_sink()
    }

    fn spliced_to(&mut self, n: usize) {
        let Self::Http1(upstream) = self;
        upstream.wire.spliced_to(n);
    }
}

/// A connection to a backend that is being made.
#[derive(Debug)]
pub struct Dial<'a> {
    endpoint: &'a Endpoint,
    /// The backend has taken it, and TLS is to be agreed on.
    taken: Cell<bool>,
}

impl<'a> Dial<'a> {
    /// One that has not begun.
    #[must_use]
    pub fn new(endpoint: &'a Endpoint) -> Self {
        Self { endpoint, taken: Cell::new(false) }
    }

    /// Makes it.
    ///
    /// # Errors
    /// The reason to answer with.
    pub async fn run(&self) -> Result<Stream, Reason> {
        let stream = self.connect().await?;
        match (self.endpoint.tls(), self.endpoint.target()) {
            (Some(tls), _) => {
                self.taken.set(true);
                let agreed = tls::connect(stream, Arc::clone(tls.config()), tls.name().clone());
                Box::pin(agreed).await.map_err(|fault| {
                    debug!(backend = &**self.endpoint.identity(), error = %fault, "TLS handshake failed");
                    handshake::reason(fault)
                })
            }
            // Nothing may be said in clear that was to be secret.
            (None, Target::Tls(_)) => Err(Reason::Internal),
            (None, _) => Ok(stream),
        }
    }

    /// What it is called that it takes too long.
    #[must_use]
    pub fn late(&self) -> Reason {
        if self.taken.get() { Reason::BackendTlsTimeout } else { Reason::BackendConnectTimeout }
    }

    async fn connect(&self) -> Result<Stream, Reason> {
        let dialled = match self.endpoint.target() {
            Target::Echo => return echo::connect().map_err(|_| Reason::OutOfDescriptors),
            Target::Unix(path) => dial::unix(path).await,
            Target::Ip(_) | Target::Name { .. } | Target::Service(_) | Target::Tls(_) => match self.endpoint.ways() {
                Some(Ways { first, second: None }) => dial::tcp(first).await,
                Some(Ways { first, second: Some(second) }) => {
                    Box::pin(dial::either(first, second)).await.map(|(stream, way)| {
                        self.endpoint.led(way);
                        stream
                    })
                }
                None => return Err(Reason::BackendUnresolved),
            },
        };
        dialled.map_err(|error| match error {
            DialError::Refused => Reason::BackendConnectRefused,
            DialError::TimedOut => Reason::BackendConnectTimeout,
            DialError::Unreachable => Reason::BackendUnreachable,
            DialError::OutOfDescriptors => Reason::OutOfDescriptors,
            DialError::OutOfPorts => Reason::OutOfPorts,
        })
    }
}

/// Makes an HTTP connection of a stream.
#[must_use]
pub fn http(stream: Stream, slot: Slot) -> Upstream {
    let wire = Wire::new(stream);
    Upstream::Http1(Http1Upstream { wire, slot, patience: None, reused: false, keep_alive: false, answered: false })
}

/// Takes over a connection that was idle elsewhere, if it is still good at `now`. Only its
/// slot is left otherwise.
///
/// # Errors
/// The slot.
pub(super) fn adopt(parked: Parked, endpoint: &Endpoint, now: u64) -> Result<Upstream, Slot> {
    let family = match endpoint.target() {
        Target::Unix(_) | Target::Echo => Family::Unix,
        Target::Ip(_) | Target::Name { .. } | Target::Service(_) | Target::Tls(_) => Family::Tcp,
    };
    let stream = Stream::from(Socket::new(parked.socket, family));
    if now >= parked.until || stream.stirred() {
        return Err(parked.slot);
    }
    let mut upstream = http(stream, parked.slot);
    upstream.reuse();
    Ok(upstream)
}
