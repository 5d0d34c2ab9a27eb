//! Upstream: a connection to a backend, and the pool of those that wait.
//!
//! Every worker keeps its own idle connections, so borrowing one takes no lock. The
//! newest is used first; what has waited longer than `BACKEND_IDLE_TIMEOUT`, or has
//! stirred while it should have been silent, is closed instead of reused.

use std::cell::RefCell;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use super::echo;
use super::forwarded::Forwarded;
use super::head::{Method, RequestHead, ResponseHead};
use super::http1::encode;
use super::http1::wire::Wire;
use super::relay::{Fault, Piece, Raw, Sink, Source};
use super::rewrite::Rewrite;
use crate::balance::discovery::Ways;
use crate::balance::endpoint::Endpoint;
use crate::config::Target;
use crate::telemetry::Reason;
use crate::transport::dial::{self, DialError};
use crate::transport::stream::Stream;

/// Idle connections that a worker keeps for one backend.
const IDLE_MOST: usize = 128;

/// How long a connection may have been idle to carry a request that must not be
/// repeated: the shorter, the less likely the backend closes it meanwhile.
const FRESH: u64 = 1_000;

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

    /// From here on it carries bytes of another protocol.
    pub fn become_tunnel(&mut self) {
        let Self::Http1(upstream) = self;
        upstream.wire.become_tunnel();
        upstream.wire.io().keep_alive();
    }

    fn is_reusable(&self) -> bool {
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

/// A worker's idle connections.
#[derive(Debug, Default)]
pub struct IdlePool {
    /// By the endpoint's number.
    by_backend: RefCell<FxHashMap<u64, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    since: u64,
    limit: u64,
}

impl IdlePool {
    /// The newest connection to `endpoint` that is still good at `now` milliseconds. A
    /// request that must not be repeated takes only one that was used just now.
    pub fn take(&self, endpoint: &Endpoint, repeatable: bool, now: u64) -> Option<Upstream> {
        let mut by_backend = self.by_backend.borrow_mut();
        let idle = by_backend.get_mut(&endpoint.number())?;
        while let Some(newest) = idle.last() {
            let age = now.saturating_sub(newest.since);
            // Those below are older still.
            if age >= newest.limit {
                idle.clear();
                return None;
            }
            if !repeatable && age >= FRESH {
                return None;
            }
            let Idle { mut upstream, .. } = idle.pop()?;
            let Upstream::Http1(inner) = &mut upstream;
            if !inner.wire.io().stirred() {
                inner.reused = true;
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is over, if it can serve another.
    pub fn put(&self, endpoint: &Endpoint, mut upstream: Upstream, limit: Duration, now: u64) {
        if !upstream.is_reusable() || limit.is_zero() || endpoint.is_draining() {
            return;
        }
        let Upstream::Http1(inner) = &mut upstream;
        inner.wire.forget_body();
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut by_backend = self.by_backend.borrow_mut();
        let entry = Idle { upstream, since: now, limit };
        match by_backend.get_mut(&endpoint.number()) {
            Some(idle) if idle.len() < IDLE_MOST => idle.push(entry),
            Some(_) => {}
            None => {
                by_backend.insert(endpoint.number(), vec![entry]);
            }
        }
    }

    /// Closes what leads to none of these endpoints, or to one that drains.
    pub fn keep_only<'a>(&self, endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) {
        let kept: FxHashSet<u64> =
            endpoints.filter(|endpoint| !endpoint.is_draining()).map(|endpoint| endpoint.number()).collect();
        self.by_backend.borrow_mut().retain(|number, _| kept.contains(number));
    }

    /// Closes what has waited too long at `now`, and what stirred.
    pub fn sweep(&self, now: u64) {
        self.by_backend.borrow_mut().retain(|_, idle| {
            idle.retain(|entry| {
                let Upstream::Http1(inner) = &entry.upstream;
                now.saturating_sub(entry.since) < entry.limit && !inner.wire.io().stirred()
            });
            !idle.is_empty()
        });
    }
}

/// Connects to a backend.
///
/// # Errors
/// The reason to answer with.
pub async fn connect(endpoint: &Endpoint) -> Result<Stream, Reason> {
    let dialled = match endpoint.target() {
        Target::Echo => return echo::connect().map_err(|_| Reason::OutOfDescriptors),
        Target::Unix(path) => dial::unix(path).await,
        Target::Ip(_) | Target::Name { .. } | Target::Service(_) => match endpoint.ways() {
            Some(Ways { first, second: None }) => dial::tcp(first).await,
            Some(Ways { first, second: Some(second) }) => {
                Box::pin(dial::either(first, second)).await.map(|(stream, way)| {
                    endpoint.led(way);
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

/// Makes an HTTP connection of a stream.
#[must_use]
pub fn http(stream: Stream) -> Upstream {
    Upstream::Http1(Http1Upstream { wire: Wire::new(stream), reused: false, keep_alive: false, answered: false })
}
