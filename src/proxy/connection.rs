//! Connection: reads requests off one client connection and has each told as a story.
//!
//! Between requests a connection owns no buffer and its future is small: the exchange's
//! is allocated when a request begins. What happens while it waits (idle, drain) and
//! how it ends (at once, or after the client could read its answer) is decided here.

use std::future::poll_fn;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::answer;
use super::http1::Http1;
use super::http2::{PREFACE_LINE, server};
use super::relay::{Fault, Sink};
use super::story::{self, After, Source};
use super::worker::Worker;
use crate::config::AccessLog;
use crate::telemetry::Reason;
use crate::telemetry::Text;
use crate::telemetry::{Kind, Record};
use crate::transport::clock::Timer;
use crate::transport::stream::Stream;

/// How long what a client still sends after its last answer is read and dropped.
const LINGER: Duration = Duration::from_secs(5);

/// How many bytes of it.
const LINGER_BYTES: u64 = 256 * 1024;

/// The same for the rest of a body that was announced. Many clients read nothing before
/// they have sent all, so anything less would turn a 413 into a connection error; with
/// silence ended after [`LINGER`] it costs less than serving the upload would. nginx's
/// `lingering_time` is as long and bounds no bytes.
const LINGER_BODY: Duration = Duration::from_secs(30);

/// How many bytes of such a body.
const LINGER_BODY_BYTES: u64 = 64 * 1024 * 1024;

/// Empty lines that begin no request where one should begin. Old clients send one behind a
/// body; what is more counts as a head, and so has its bounds.
const EMPTY_LINES: u32 = 8;

/// Serves one client connection that speaks HTTP, to its end. It speaks HTTP/1 unless HTTP/2 was
/// agreed on with TLS, or its first bytes without TLS say so.
pub fn serve(worker: Rc<Worker>, io: Stream, source: Source) -> impl Future<Output = ()> {
    // Made here, so that the future has room for one of the two and not for both.
    let mut client = Http1::new(io);
    async move {
        let timer = worker.clock().timer();
        let age = Age { born: timer.clock().millis(), spread: 0.9 + 0.2 * fastrand::f64() };
        if client.wire().io().tls().is_some_and(|tls| tls.speaks(b"h2")) {
            let (stream, before) = client.into_parts();
            return Box::pin(server::serve(worker, stream, before, Rc::new(source), timer, age)).await;
        }
        let mut first = true;
        loop {
            if !stirs(&worker, &mut client, &timer, first).await {
                return;
            }
            // From here to the answer: in its own allocation.
            let after = match Box::pin(request(&worker, &source, &mut client, &timer, age, first)).await {
                Served::Request(after) => after,
                Served::Preface => {
                    let (stream, before) = client.into_parts();
                    return Box::pin(server::serve(worker, stream, before, Rc::new(source), timer, age)).await;
                }
            };
            match after {
                // In a drain, too: the answer may have begun before it, and promised to go on.
                After::GoOn if client.can_go_on() => {
                    first = false;
                    // Answers that need no waiting for must not keep the others waiting.
                    tokio::task::coop::consume_budget().await;
                }
                // Nothing more was sent to us: closing resets nothing.
                After::GoOn if !client.wire().has_input() && !client.wire().io().has_unread() => return,
                After::GoOn | After::Linger => return Box::pin(linger(&mut client, &timer)).await,
                After::Close => return,
            }
        }
    }
}

/// What stood where a request should begin.
enum Served {
    /// One, or what was taken for one.
    Request(After),
    /// What says that the client speaks HTTP/2; all of it is still to be read.
    Preface,
}

/// What the age of a connection is reckoned from.
#[derive(Debug, Clone, Copy)]
pub struct Age {
    /// When it was accepted, in milliseconds of the worker's clock.
    born: u64,
    /// Its share of the limit, from 0.9 to 1.1, as in gRPC: connections that were made at
    /// once, after a restart, say, do not all end at once.
    spread: f64,
}

impl Age {
    /// When it reaches `limit`.
    pub fn reaches(self, limit: Duration) -> u64 {
        self.born.saturating_add(u64::try_from(limit.mul_f64(self.spread).as_millis()).unwrap_or(u64::MAX))
    }
}

/// Waits for the first byte of a request. `false`: nothing came in time, or the worker
/// drains and there was a short silence; the connection is closed without a word.
async fn stirs(worker: &Worker, client: &mut Http1, timer: &Timer, first: bool) -> bool {
    let generation = worker.generation();
    let daemon = &generation.config.daemon;
    timer.set(Some(if first { daemon.header_timeout } else { daemon.idle_timeout }));
    drop(generation);
    let mut silence = None;
    let mut empty_lines = EMPTY_LINES;
    let stirred = poll_fn(|cx| {
        while let Poll::Ready(outcome) = client.wire_mut().poll_stirs(cx) {
            if !client.wire_mut().skip_empty_lines(&mut empty_lines) {
                return Poll::Ready(outcome.is_ok());
            }
        }
        // A request may be on the wire already, so a drain leaves a moment for it.
        if silence.is_none() && worker.is_draining() {
            silence = Some(());
            timer.set(Some(worker.silence()));
        }
        timer.poll(cx).map(|()| false)
    })
    .await;
    timer.set(None);
    stirred
}

/// Serves what comes next; `first` says that nothing came before.
async fn request(worker: &Worker, source: &Source, client: &mut Http1, timer: &Timer, age: Age, first: bool) -> Served {
    let generation = worker.generation();
    let daemon = &generation.config.daemon;
    client.expire(daemon.max_connection_age.map_or(u64::MAX, |limit| age.reaches(limit)));
    let limit = daemon.max_header_size;
    let head = timer.within(Some(daemon.header_timeout), poll_fn(|cx| client.poll_request(cx, limit))).await;
    let reason = match head {
        Some(Ok(Some(head))) => {
            // The story looks up its own generation; this one need not outlive the head.
            drop(generation);
            return Served::Request(story::story(worker, source, client, &head, timer).await);
        }
        // Ended before the first byte of a request, or within its head: nobody to answer.
        Some(Ok(None) | Err(Fault::Reset | Fault::Refused | Fault::Alert)) => return Served::Request(After::Close),
        Some(Err(Fault::Truncated)) => Reason::ClientLeft,
        // Its first line is one of HTTP, but of no version that has such lines.
        Some(Err(Fault::Malformed(Reason::VersionUnsupported)))
            if first && daemon.http2 && client.is_plain() && client.wire().unread().starts_with(PREFACE_LINE) =>
        {
            return Served::Preface;
        }
        Some(Err(Fault::Malformed(reason))) => reason,
        None => Reason::ClientHeaderTimeout,
    };
    Served::Request(Box::pin(refuse(worker, source, client, reason, timer)).await)
}

/// Tells a client that speaks HTTP in clear where TLS is expected, in clear.
pub(super) async fn refuse_plain(worker: &Worker, source: &Source, io: Stream, timer: &Timer) {
    let mut client = Http1::new(io);
    if Box::pin(refuse(worker, source, &mut client, Reason::TlsPlainHttp, timer)).await == After::Linger {
        Box::pin(linger(&mut client, timer)).await;
    }
}

/// Tells a client that speaks TLS where HTTP is expected, as far as it can understand that.
/// An answer of HTTP would be reported as a record of a wrong version.
fn refuse_tls(client: &Http1) -> After {
    /// A fatal alert `handshake_failure` (RFC 8446 §6), in clear.
    const ALERT: [u8; 7] = [21, 3, 1, 0, 2, 2, 40];
    let _ = client.wire().io().write_anyway(&[IoSlice::new(&ALERT)]);
    After::Linger
}

/// Counts what never became a request, and puts it on record.
pub(super) fn note_refusal(worker: &Worker, source: &Source, reason: Reason) {
    worker.counters().rejected(reason);
    let generation = worker.generation();
    let logged = generation.routes().last().map(|route| route.settings.access_log);
    if logged != Some(AccessLog::Off) {
        worker.log().access(Record {
            kind: Kind::Request,
            client: source.peer,
            listener: Arc::clone(&source.listener),
            method: Text::EMPTY,
            host: Text::EMPTY,
            path: Text::EMPTY,
            version: 0,
            status: reason.status(),
            backend: None,
            route: Arc::from(""),
            attempts: 0,
            duration_us: 0,
            queue_us: 0,
            bytes_in: 0,
            bytes_out: 0,
            reason: Some(reason),
            request_id: Text::EMPTY,
        });
    }
}

/// Answers what never became a request.
async fn refuse(worker: &Worker, source: &Source, client: &mut Http1, reason: Reason, timer: &Timer) -> After {
    note_refusal(worker, source, reason);
    match reason {
        Reason::ClientLeft => return After::Close,
        Reason::TlsOnPlainPort => return refuse_tls(client),
        _ => {}
    }
    answer::refusal(client, reason, None, None, true);
    match timer.within(Some(LINGER), poll_fn(|cx| client.poll_finish(cx))).await {
        Some(Ok(())) => After::Linger,
        Some(Err(_)) | None => After::Close,
    }
}

/// Ends our direction and reads on for a while: closing with bytes unread would send a
/// reset, which can take the answer from the client before it was read (RFC 9112 §9.6).
/// The client's own end is what ends it well; until then no buffer is held.
async fn linger(client: &mut Http1, timer: &Timer) {
    if client.wire().io().shutdown_write().is_err() {
        return;
    }
    // Reading what is there on a socket that is not watched would leave nobody else a turn.
    let _ = client.wire().io().join();
    let wire = client.wire_mut();
    let (time, mut most) = match wire.announced() {
        Some(0) => (LINGER, LINGER_BYTES),
        rest => (LINGER_BODY, LINGER_BYTES + rest.unwrap_or(u64::MAX).min(LINGER_BODY_BYTES)),
    };
    let after =
        |span: Duration| timer.clock().millis().saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
    let ends = after(time);
    timer.set_at(after(LINGER));
    poll_fn(|cx| {
        while let Poll::Ready(read) = wire.poll_discard(cx) {
            match read.and_then(|n| most.checked_sub(u64::try_from(n).unwrap_or(u64::MAX))) {
                Some(left) => most = left,
                None => return Poll::Ready(()),
            }
            timer.set_at(after(LINGER).min(ends));
        }
        timer.poll(cx)
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::{Age, Source, Worker, request, serve};
    use crate::config::Config;
    use crate::proxy::http1::Http1;
    use crate::state::Generation;
    use crate::telemetry::{Peer, Text};
    use crate::transport::stream::{Family, Socket, Stream};
    use std::collections::BTreeMap;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::time::Duration;

    /// What an idle connection and a request under way take on the heap decides how many
    /// of each a host can hold.
    #[tokio::test]
    async fn an_idle_connection_is_small_and_a_request_is_bounded() {
        let config = Config::assemble(None, Vec::new(), &BTreeMap::new()).unwrap();
        let worker = Worker::alone(Generation::build(1, config, &Default::default(), None));
        let source = Source { peer: Peer::Unix, address: Text::new("unix:"), listener: "http".into(), identity: None };
        let (one, two) = UnixStream::pair().unwrap();
        let [one, two] = [one, two].map(|socket| Stream::from(Socket::new(socket.into(), Family::Unix)));

        let mut client = Http1::new(one);
        let timer = worker.clock().timer();
        let busy = request(&worker, &source, &mut client, &timer, Age { born: 0, spread: 1.0 }, true);
        let busy = std::mem::size_of_val(&busy);
        let idle = std::mem::size_of_val(&serve(Rc::clone(&worker), two, source.clone()));
        assert!(idle <= 768, "an idle connection takes {idle} bytes");
        assert!(busy <= 4096, "a request under way takes {busy} bytes");
    }

    #[test]
    fn an_age_is_reached_within_a_tenth_of_its_limit() {
        let (limit, born) = (Duration::from_secs(60), 7);
        let reached = |spread| Age { born, spread }.reaches(limit);
        assert_eq!([reached(0.9), reached(1.0), reached(1.1)], [54_007, 60_007, 66_007]);
        assert_eq!(Age { born: u64::MAX, spread: 1.1 }.reaches(limit), u64::MAX);
    }
}
