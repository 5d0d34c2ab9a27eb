//! Upstream: where one request is asked of a backend, whatever protocol version that speaks.
//!
//! With HTTP/1.1 it is a connection ([`Http1Upstream`]), which others may use before and
//! after ([`super::idle`]); with HTTP/2 a stream of a connection that many use at once
//! ([`Http2Upstream`]). An exchange can't tell them apart.

use std::cell::Cell;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustls::ClientConfig;
use tracing::debug;

use super::echo;
use super::forwarded::Forwarded;
use super::handshake;
use super::head::{Method, RequestHead, ResponseHead};
use super::http1::upstream::Http1Upstream;
use super::http2::upstream::Http2Upstream;
use super::relay::{Fault, Piece, Raw, Sink, Source};
use super::rewrite::Rewrite;
use crate::balance::connections::Slot;
use crate::balance::discovery::Ways;
use crate::balance::endpoint::Endpoint;
use crate::config::{BackendProtocol, RouteSettings, Target};
use crate::telemetry::Reason;
use crate::transport::dial::{self, DialError};
use crate::transport::stream::Stream;
use crate::transport::tls;

/// Bytes that are read of an answer only to keep its connection.
const DISCARDED: usize = 64 * 1024;

/// Where a request is asked. It goes from hand to hand, so it is boxed: a connection of HTTP/1.1
/// once for all its requests.
#[derive(Debug)]
pub enum Upstream {
    /// A connection of HTTP/1.1.
    Http1(Box<Http1Upstream>),
    /// A stream of HTTP/2.
    Http2(Box<Http2Upstream>),
}

macro_rules! on {
    ($upstream:expr, $it:ident => $call:expr) => {
        match $upstream {
            Upstream::Http1($it) => $call,
            Upstream::Http2($it) => $call,
        }
    };
}

impl Upstream {
    /// Queues a request head; the body follows through the sink.
    pub fn begin(&mut self, head: &RequestHead, forwarded: &Forwarded<'_>, rewrite: &Rewrite<'_>) {
        on!(self, it => it.begin(head, forwarded, rewrite));
    }

    /// Reads a response head, interim or final.
    ///
    /// # Errors
    /// The backend's fault.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, to: Method) -> Poll<Result<ResponseHead, Fault>> {
        on!(self, it => it.poll_response(cx, to))
    }

    /// Whether the backend, which has answered, keeps the connection or stream for what is
    /// still to come: then it reads on, or means to.
    #[must_use]
    pub fn stays(&mut self) -> bool {
        on!(self, it => it.stays())
    }

    /// Ready when a backend whose answer is whole ends, or says more than it was asked.
    pub fn poll_stirs(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        on!(self, it => it.poll_stirs(cx))
    }

    /// Whether its connection has ended in order and left the request out, so that another
    /// one is to carry it.
    #[must_use]
    pub fn is_displaced(&self) -> bool {
        match self {
            Self::Http1(_) => false,
            Self::Http2(it) => it.is_displaced(),
        }
    }

    /// Whether its connection has served a request before, so that its end may only tell of
    /// its age.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        on!(self, it => it.is_reused())
    }

    /// Whether the backend may have got anything of the current request.
    #[must_use]
    pub fn has_written(&self) -> bool {
        on!(self, it => it.has_written())
    }

    /// Whether any byte of a response has come.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        on!(self, it => it.has_answered())
    }

    /// Whether its failure, which is over now, is one that the backend was not blamed for
    /// before: many streams end with one connection.
    #[must_use]
    pub fn is_to_blame(&self) -> bool {
        match self {
            Self::Http1(_) => true,
            Self::Http2(stream) => stream.is_to_blame(),
        }
    }

    /// The backend has not answered in time: others are not to find that out on the same
    /// connection.
    pub fn doubt(&mut self) {
        if let Self::Http2(stream) = self {
            stream.doubt();
        }
    }

    /// Reads and drops what has come of an answer that nobody wants, if it is not much: a
    /// connection of HTTP/1.1 can serve on then.
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
        on!(self, it => it.poll_whole(cx, most))
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

    /// From here on it carries bytes of another protocol, which a 101 has agreed to.
    pub fn become_tunnel(&mut self) {
        match self {
            Self::Http1(connection) => connection.become_tunnel(),
            // There is no 101 in HTTP/2 (RFC 9113 §8.6); one is malformed.
            Self::Http2(_) => {}
        }
    }
}

impl Source for Upstream {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        on!(self, it => it.poll_piece(cx))
    }

    fn consume(&mut self, n: usize) {
        on!(self, it => it.consume(n));
    }

    fn raw_source(&self) -> Option<Raw<'_>> {
        on!(self, it => it.raw_source())
    }

    fn spliced_from(&mut self, n: usize) {
        on!(self, it => it.spliced_from(n));
    }

    fn withhold(&mut self, name: &[u8]) {
        on!(self, it => it.withhold(name));
    }

    fn trailers(&self) -> &[u8] {
        on!(self, it => it.trailers())
    }
}

impl Sink for Upstream {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        on!(self, it => it.poll_push(cx, data))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        on!(self, it => it.poll_flush(cx))
    }

    fn held(&self) -> usize {
        on!(self, it => it.held())
    }

    fn prod(&mut self) {
        on!(self, it => it.prod());
    }

    fn trail(&mut self, lines: &[u8]) {
        on!(self, it => it.trail(lines));
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        on!(self, it => it.poll_finish(cx))
    }

    fn raw_sink(&self) -> Option<Raw<'_>> {
        on!(self, it => it.raw_sink())
    }

    fn spliced_to(&mut self, n: usize) {
        on!(self, it => it.spliced_to(n));
    }
}

/// What a backend of this route speaks.
#[must_use]
pub fn protocol(endpoint: &Endpoint, settings: &RouteSettings) -> BackendProtocol {
    match endpoint.target() {
        Target::Echo => BackendProtocol::Http1,
        _ => settings.backend_protocol,
    }
}

/// A connection to a backend that is being made.
#[derive(Debug)]
pub struct Dial<'a> {
    endpoint: &'a Endpoint,
    /// HTTP/2 is to be spoken, which TLS has to agree on (RFC 9113 §3.2).
    http2: bool,
    /// The backend has taken it, and TLS is to be agreed on.
    taken: Cell<bool>,
}

impl<'a> Dial<'a> {
    /// One that has not begun.
    #[must_use]
    pub fn new(endpoint: &'a Endpoint) -> Self {
        Self { endpoint, http2: false, taken: Cell::new(false) }
    }

    /// The same for a connection of HTTP/2.
    #[must_use]
    pub fn http2(endpoint: &'a Endpoint) -> Self {
        Self { http2: true, ..Self::new(endpoint) }
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
                let config = if self.http2 { offering_http2(tls.config()) } else { Arc::clone(tls.config()) };
                let agreed = Box::pin(tls::connect(stream, config, tls.name().clone())).await;
                let stream = agreed.map_err(|fault| {
                    debug!(backend = &**self.endpoint.identity(), error = %fault, "TLS handshake failed");
                    handshake::reason(fault)
                })?;
                let agreed = !self.http2 || stream.tls().is_some_and(|session| session.speaks(HTTP2));
                if agreed { Ok(stream) } else { Err(Reason::BackendMalformed) }
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

/// The name of HTTP/2 over TLS (RFC 9113 §3.2).
const HTTP2: &[u8] = b"h2";

/// The same terms, with HTTP/2 as the only protocol that will do.
fn offering_http2(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Arc::new(config)
}

/// Makes an HTTP/1.1 connection of a stream.
#[must_use]
pub fn http1(stream: Stream, slot: Slot) -> Upstream {
    Upstream::Http1(Box::new(Http1Upstream::new(stream, slot)))
}
