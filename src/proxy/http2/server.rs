//! Server: one client connection that speaks HTTP/2, to its end.
//!
//! The connection is one task, which moves the frames; each stream is another, which tells
//! its story. The connection looks after what concerns all of them:
//!
//! ```text
//! handshake → open ─ a drain, old age, idleness → GOAWAY, twice ─ the last stream ends → over
//!                  └ it asks for too much, a header block comes too slowly → GOAWAY → over
//! ```
//!
//! The first of two GOAWAYs says that the connection ends, the second, after a round trip,
//! which streams were still heard: whatever a client sends meanwhile is served, and what is
//! not served it can safely send elsewhere (RFC 9113 §6.8).

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason as Code, RecvStream};
use http::Request;

use super::guard::{Breach, Ending, Guard};
use super::io::{Io, Watch};
use super::limits;
use super::streams::Streams;
use super::tellers::Story;
use crate::proxy::connection::{self, Age};
use crate::proxy::pace::{Pace, Terms};
use crate::proxy::story::Source;
use crate::proxy::worker::Worker;
use crate::telemetry::{Limiter, Reason, events};
use crate::transport::buffer::Buffer;
use crate::transport::clock::Timer;
use crate::transport::stream::Stream;

/// How long a client that was told that the connection ends is waited for once nothing is
/// under way: for its answer to that, and for its end of the stream.
pub const PARTING: Duration = Duration::from_secs(5);

/// How much longer than a request's own `BODY_TIMEOUT` its connection waits for a client that
/// takes nothing: streams whose stories are not over are to tell by themselves.
const UNTAKEN: Duration = Duration::from_secs(5);

/// Bytes of a client's that are read meanwhile.
const PARTING_BYTES: usize = 256 * 1024;

/// Serves one client connection of which `before` was read already.
pub async fn serve(
    worker: Rc<Worker>,
    stream: Rc<Stream>,
    before: Vec<u8>,
    source: Rc<Source>,
    timer: Timer,
    age: Age,
) {
    let generation = worker.generation();
    let daemon = &generation.config.daemon;
    let (patience, builder) = (daemon.header_timeout, builder(daemon.http2_max_streams, daemon.max_header_size));
    drop(generation);
    let (io, watch) = Io::new(Rc::clone(&stream), before, Rc::clone(worker.clock()), Guard::new(true));
    let streams = Streams::new();
    // What each step needs is in an allocation of its own: a connection lasts, and most of its
    // time it is idle.
    let handshake = Box::pin(handshake(builder, io, Rc::clone(&watch)));
    let opened = timer.within(Some(patience), handshake).await.map(|opened| {
        opened.map(|connection| {
            Box::new(Serving {
                worker: Rc::clone(&worker),
                source: Rc::clone(&source),
                connection,
                watch,
                streams: Rc::clone(&streams),
                timer: &timer,
                age,
                idle_since: timer.clock().millis(),
                pace: Pace::default(),
                terms: None,
                prodded: None,
                left_at: 0,
                too_large: 0,
                phase: Phase::Open,
            })
        })
    });
    let ended = match opened {
        None => return refused(&worker, &source, Reason::ClientHeaderTimeout, Code::SETTINGS_TIMEOUT),
        Some(Err(error)) => Ended::of(&error),
        Some(Ok(mut serving)) => poll_fn(|cx| serving.poll(cx)).await,
    };
    if let Ended::Fault(reason, code) = ended {
        refused(&worker, &source, reason, code);
    }
    if ended != Ended::Gone {
        part(&stream, &timer).await;
    }
    // Whoever is still about to end has lost the client by now.
    poll_fn(|cx| streams.poll_told(cx)).await;
}

/// Speaks first, and hears what the client does.
async fn handshake(builder: Builder, io: Io, watch: Rc<Watch>) -> Result<Connection<Io, Bytes>, h2::Error> {
    let mut handshake = pin!(builder.handshake(io));
    poll_fn(|cx| {
        watch.turn();
        handshake.as_mut().poll(cx)
    })
    .await
}

/// The settings that a client is told, and the limits that hold without them.
fn builder(streams: usize, header_size: usize) -> Builder {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(count(streams))
        .max_header_list_size(count(header_size))
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::connection_window(count(streams)))
        .max_frame_size(limits::FRAME_SIZE)
        .header_table_size(limits::HEADER_TABLE)
        .max_send_buffer_size(limits::SEND_BUFFER)
        .max_concurrent_reset_streams(limits::RESETS_REMEMBERED)
        .reset_stream_duration(limits::RESET_MEMORY)
        .max_pending_accept_reset_streams(limits::RESETS_UNSEEN)
        .max_local_error_reset_streams(Some(limits::FAULTS))
        .data_frame_budget(limits::SMALL_DATA)
        .enable_connect_protocol();
    builder
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// In order: the client may still have to read what was sent.
    InOrder,
    /// The client is gone.
    Gone,
    /// By a fault of the client, which was told so by this code.
    Fault(Reason, Code),
}

impl Ended {
    fn of(error: &h2::Error) -> Self {
        match error.reason() {
            Some(code) if error.is_library() && code == Code::ENHANCE_YOUR_CALM => {
                Self::Fault(Reason::Http2Flood, code)
            }
            Some(code) if error.is_library() => Self::Fault(Reason::Http2Malformed, code),
            Some(_) => Self::InOrder,
            None => Self::Gone,
        }
    }
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It takes streams.
    Open,
    /// It ends once those under way have ended.
    Leaving,
    /// It ends now, in order.
    Over,
    /// It ends now, by a fault of the client.
    Refused(Reason, Code),
}

/// A connection being served.
struct Serving<'a> {
    worker: Rc<Worker>,
    source: Rc<Source>,
    connection: Connection<Io, Bytes>,
    watch: Rc<Watch>,
    streams: Rc<Streams>,
    timer: &'a Timer,
    age: Age,
    /// When the last stream ended, in milliseconds of the worker's clock.
    idle_since: u64,
    /// How long the client leaves untaken what is its own to take.
    pace: Pace,
    /// What is asked of it, while that is asked.
    terms: Option<Terms>,
    /// Bytes that it had taken when writes were last tried against all odds.
    prodded: Option<u64>,
    /// When the client was told that the connection ends, likewise.
    left_at: u64,
    /// The stream whose head was too large for the crate last.
    too_large: u32,
    phase: Phase,
}

impl Serving<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        self.streams.wake_by(cx.waker());
        self.watch.turn();
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, mut respond)))) => {
                    // Whoever goes on after that has not heard, or does not want to.
                    if self.phase == Phase::Leaving && self.timer.clock().millis() > after(self.left_at, PARTING) {
                        respond.send_reset(Code::REFUSED_STREAM);
                    } else {
                        self.begin(request, respond);
                    }
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Ended::of(&error)),
                Poll::Ready(None) => {
                    return Poll::Ready(match self.phase {
                        Phase::Refused(reason, code) => Ended::Fault(reason, code),
                        _ => Ended::InOrder,
                    });
                }
                Poll::Pending => {}
            }
            if !self.watch.is_blocked() {
                self.streams.clear();
            }
            self.note_endings();
            let now = self.timer.clock().millis();
            let breach = self.watch.breach().or(self.streams.too_many_resets().then_some(Breach::Flood));
            if let Some(breach) = breach.filter(|_| !matches!(self.phase, Phase::Refused(..))) {
                match breach {
                    Breach::Flood => self.refuse(Reason::Http2Flood, Code::ENHANCE_YOUR_CALM, now),
                    Breach::Preface => self.refuse(Reason::Http2Malformed, Code::PROTOCOL_ERROR, now),
                }
                continue;
            }
            let busy = matches!(self.phase, Phase::Open | Phase::Leaving) && !self.streams.is_none();
            if busy {
                self.idle_since = now;
            }
            let untaken = self.untaken(now);
            if self.phase == Phase::Open && self.is_to_leave(now) {
                self.leave(now);
                continue;
            }
            self.timer.set_at(self.deadline(busy, untaken));
            ready!(self.timer.poll(cx));
            match self.phase {
                _ if self.is_header_late(now) => self.refuse(Reason::ClientHeaderTimeout, Code::ENHANCE_YOUR_CALM, now),
                _ if untaken.is_some_and(|due| now >= due) => self.press(now),
                Phase::Open if !busy => self.leave(now),
                Phase::Leaving if !busy => {
                    self.phase = Phase::Over;
                    self.idle_since = now;
                    self.connection.abrupt_shutdown(Code::NO_ERROR);
                }
                // It does not even take that.
                Phase::Over => return Poll::Ready(Ended::Gone),
                Phase::Refused(reason, code) => return Poll::Ready(Ended::Fault(reason, code)),
                Phase::Open | Phase::Leaving => {}
            }
        }
    }

    /// Counts, and puts on record, the requests that the crate has refused by itself.
    fn note_endings(&mut self) {
        for stream in self.watch.take_resets() {
            self.streams.end(stream);
        }
        for (stream, ending) in self.watch.take_endings() {
            let begun = self.streams.end(stream);
            match ending {
                Ending::Head if !begun => {
                    self.too_large = stream;
                    connection::note_refusal(&self.worker, &self.source, Reason::HeaderTooLarge);
                }
                Ending::Reset(code) => match Code::from(code) {
                    Code::REFUSED_STREAM => self.worker.counters().refused(Reason::Http2StreamLimit),
                    Code::PROTOCOL_ERROR | Code::FLOW_CONTROL_ERROR if !begun && stream != self.too_large => {
                        connection::note_refusal(&self.worker, &self.source, Reason::BadRequest);
                    }
                    _ => {}
                },
                Ending::Head | Ending::Body => {}
            }
        }
    }

    /// Has a stream's story told.
    fn begin(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let open = self.streams.open(respond.stream_id().as_u32());
        let (worker, source) = (Rc::clone(&self.worker), Rc::clone(&self.source));
        self.worker.tellers().tell(Story { worker, source, request, respond, open });
    }

    fn is_to_leave(&self, now: u64) -> bool {
        let limit = self.worker.generation().config.daemon.max_connection_age;
        self.worker.is_draining() || limit.is_some_and(|limit| now >= self.age.reaches(limit))
    }

    /// Tells the client that the connection ends.
    fn leave(&mut self, now: u64) {
        self.phase = Phase::Leaving;
        (self.idle_since, self.left_at) = (now, now);
        self.connection.graceful_shutdown();
    }

    /// Tells the client that it has gone too far; its streams end.
    fn refuse(&mut self, reason: Reason, code: Code, now: u64) {
        self.phase = Phase::Refused(reason, code);
        self.idle_since = now;
        self.connection.abrupt_shutdown(code);
    }

    /// When the client will have left untaken for too long what its streams have handed over:
    /// because it reads nothing, or has shut a window again.
    fn untaken(&mut self, now: u64) -> Option<u64> {
        if !matches!(self.phase, Phase::Open | Phase::Leaving) {
            return None;
        }
        if !self.watch.is_blocked() && self.streams.owed() == 0 {
            self.pace.restore();
            (self.terms, self.prodded) = (None, None);
            return None;
        }
        let terms = *self.terms.get_or_insert_with(|| patience(&self.worker));
        Some(self.pace.waits(now, self.watch.taken(), terms))
    }

    /// The client is late with taking what is its own; unless it turns out that it only seemed so.
    fn press(&mut self, now: u64) {
        let taken = self.watch.taken();
        if self.prodded.replace(taken) != Some(taken) {
            return self.watch.prod();
        }
        self.worker.counters().cut.add(u64::try_from(self.streams.owed()).unwrap_or(0));
        self.refuse(Reason::ClientSlowReader, Code::ENHANCE_YOUR_CALM, now);
    }

    fn is_header_late(&self, now: u64) -> bool {
        self.header_due().is_some_and(|due| now >= due)
    }

    /// Of no account once the connection ends anyway, which has a time of its own.
    fn header_due(&self) -> Option<u64> {
        if !matches!(self.phase, Phase::Open | Phase::Leaving) {
            return None;
        }
        self.watch.block_since().map(|since| after(since, self.worker.generation().config.daemon.header_timeout))
    }

    /// When something is overdue.
    fn deadline(&self, busy: bool, untaken: Option<u64>) -> u64 {
        let generation = self.worker.generation();
        let daemon = &generation.config.daemon;
        let idle = match self.phase {
            _ if busy => None,
            Phase::Open => Some(after(self.idle_since, daemon.idle_timeout)),
            Phase::Leaving | Phase::Over | Phase::Refused(..) => Some(after(self.idle_since, PARTING)),
        };
        let old = (self.phase == Phase::Open).then(|| daemon.max_connection_age.map(|limit| self.age.reaches(limit)));
        [idle, old.flatten(), self.header_due(), untaken].into_iter().flatten().min().unwrap_or(u64::MAX)
    }
}

/// What any route of these asks of a client that leaves its answers untaken: the most patient
/// terms, since a connection has streams of all of them.
fn patience(worker: &Worker) -> Terms {
    let generation = worker.generation();
    let settings = || generation.routes().iter().map(|route| &route.settings);
    let budget = settings().map(|settings| settings.body_timeout).max().unwrap_or(PARTING);
    // No rate at all is the most patient one.
    let rate = settings().map(|settings| settings.min_body_rate).min().flatten();
    Terms::new(budget.saturating_add(UNTAKEN), rate)
}

fn after(since: u64, limit: Duration) -> u64 {
    since.saturating_add(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
}

/// Counts a connection that was ended for what its client did, and puts it on record, not
/// too often.
fn refused(worker: &Worker, source: &Source, reason: Reason, code: Code) {
    static LIMITER: Limiter = Limiter::new(5);
    worker.counters().refused(reason);
    if let Some(suppressed) = LIMITER.admit(Instant::now()) {
        tracing::warn!(
            message_id = events::HTTP2_REFUSED,
            client = source.address.as_str(),
            reason = reason.as_str(),
            code = ?code,
            suppressed,
            "a client's HTTP/2 connection was closed for what it did"
        );
    }
}

/// Reads on until the client has read what was sent and ends its direction: closing with
/// bytes unread would send a reset, which can take the last frames from it.
async fn part(stream: &Stream, timer: &Timer) {
    let mut most = PARTING_BYTES;
    timer.set(Some(PARTING));
    poll_fn(|cx| {
        let mut scratch = Buffer::take();
        while let Poll::Ready(read) = stream.poll_read(cx, scratch.spare()) {
            match read.ok().filter(|n| *n > 0).and_then(|n| most.checked_sub(n)) {
                Some(left) => most = left,
                None => return Poll::Ready(()),
            }
        }
        timer.poll(cx)
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Connection, Io, Serving, serve};

    fn size_of_future<A, B, C, D, E, F, T>(_: fn(A, B, C, D, E, F) -> T) -> usize {
        size_of::<T>()
    }

    /// What an idle connection takes on the heap, beside what the crate holds of it, is little
    /// of what it takes at all.
    #[test]
    fn an_idle_connection_is_bounded() {
        let ours = size_of::<Serving<'static>>() - size_of::<Connection<Io, Bytes>>();
        assert!(ours <= 256, "a connection being served takes {ours} bytes");
        let size = size_of_future(serve);
        assert!(size <= 512, "a connection's task takes {size} bytes");
    }
}
