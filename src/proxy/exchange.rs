//! Exchange: one attempt to have one backend answer one request.
//!
//! Both directions move in one future: the request's body up, the response down, each
//! as far as it can get, in every turn. So an early answer is seen while the body is
//! still coming, and neither side's slowness blocks the other's.
//!
//! At any moment the exchange waits for exactly one thing, and that decides which
//! deadline runs: the client, when it alone keeps us waiting ([`super::pace`]); the
//! backend before its head (`RESPONSE_TIMEOUT`) and after it (`STREAM_TIMEOUT`).
//!
//! An answer whose status `RETRY_ON` names is held back, with its body unread, until it is
//! known whether another attempt is made: [`Finish::Held`].
//!
//! An answer may be whole before its request is. A backend that then keeps the
//! connection may still want the rest, as it would without a proxy, so the rest goes on
//! to it for as long as it is sent and taken; one that says `close` or ends does not
//! (RFC 9110 §7.5, RFC 9112 §9.6). The client has its answer by then, and has read that
//! the connection ends with it, so nothing that happens to the rest is a failure.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::affinity;
use super::attempt::{Bounds, Failure, Finish, Hold};
use super::client::Client;
use super::head::{Known, RequestHead, ResponseHead, Version};
use super::http2::websocket;
use super::pace::{Pace, Terms};
use super::relay::{End, Fault, Relay, Sink, Source as _, Turn};
use super::upstream::Upstream;
use super::worker::Worker;
use crate::balance::load::Lease;
use crate::balance::retry::{Failed, Progress};
use crate::config::{RetryOn, RouteSettings};
use crate::routing::FieldEdits;
use crate::state::Route;
use crate::telemetry::{Class, Reason};
use crate::transport::clock::Timer;

/// How long a backend that has answered may leave the rest of its request untaken, in
/// milliseconds: whether it means to take it can't be known.
const UNTAKEN: u64 = 5_000;

/// Milliseconds for which nobody looks whether a client leaves on whose connection
/// nothing had to be waited for yet: most are answered sooner.
const UNWATCHED: u64 = 50;

/// Interim responses to one request; what sends more never comes to an end. One every 20
/// seconds (RFC 2518 §10.1 on 102) reaches this after 21 minutes.
const INTERIMS: u8 = 64;

/// One attempt.
#[derive(Debug)]
pub struct Exchange<'a, C> {
    client: &'a mut C,
    upstream: &'a mut Upstream,
    head: &'a RequestHead,
    settings: &'a RouteSettings,
    timer: &'a Timer,
    bounds: Bounds,
    /// Knows whether the client's connection may go on when the answer comes.
    worker: &'a Worker,
    up: Relay,
    down: Relay,
    upload: Upload,
    answer: Answer,
    /// Somebody looks whether the client leaves.
    watching: bool,
    /// Time of the timer's clock at which what is waited for is overdue.
    due: u64,
    /// What was waited for last, and how much had moved by then.
    waiting: Option<(Wait, u64)>,
    /// The same when both sides were last prodded.
    prodded: Option<(Wait, u64)>,
    /// The client's, in both directions together: one that sends does not idle because
    /// it reads later.
    pace: Pace,
    /// How much of the answer had come when the client was last waited for.
    heard: u64,
    /// Since when the client is waited for, which is not the backend's fault.
    excused: Option<u64>,
    /// Interim responses so far.
    interims: u8,
    /// The client waits for leave to send its body (RFC 9110 §10.1.1).
    asks: bool,
    /// What the route changes of the response.
    pub edits: Option<&'a FieldEdits>,
    /// The final status, once its head has come.
    pub status: u16,
    /// Whom to tell how long that took.
    lease: Option<&'a Lease<'a>>,
    /// When the request had been sent whole.
    sent: Option<u64>,
    /// Milliseconds from then to the head of the answer, where that is of interest.
    pub took: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    Going,
    Done,
    /// The backend takes no more of it; it may have answered all the same.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Awaited,
    Going,
    /// It went out whole, and the rest of the request goes on.
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// For the client to send its body.
    Body,
    /// For the client to take the answer.
    Reader,
    /// For the backend's response head.
    Response,
    /// For more of the backend's response.
    Stream,
    /// For the backend to take what follows its answer.
    Rest,
}

impl<'a, C: Client> Exchange<'a, C> {
    /// An attempt about to begin: the request head is queued on `upstream`.
    pub fn new(
        client: &'a mut C,
        upstream: &'a mut Upstream,
        head: &'a RequestHead,
        route: &'a Route,
        timer: &'a Timer,
        bounds: Bounds,
        worker: &'a Worker,
    ) -> Self {
        Self {
            watching: client.is_watched(),
            due: u64::MAX,
            client,
            upstream,
            head,
            settings: &route.settings,
            edits: None,
            timer,
            bounds,
            worker,
            up: Relay::default(),
            down: Relay::default(),
            upload: Upload::Going,
            answer: Answer::Awaited,
            waiting: None,
            prodded: None,
            pace: Pace::default(),
            heard: 0,
            excused: None,
            interims: 0,
            // The expectation of HTTP/1.0 is ignored (RFC 9110 §10.1.1).
            asks: head.version != Version::Http10 && head.fields.first(Known::Expect).is_some(),
            status: 0,
            lease: None,
            sent: None,
            took: None,
        }
    }

    /// Has `lease` told when the head of the answer has come.
    pub fn timed_by(&mut self, lease: &'a Lease<'a>) {
        self.lease = Some(lease);
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The failure, with how far the attempt got.
    pub async fn run(&mut self) -> Result<Finish, Failure> {
        let outcome = poll_fn(|cx| {
            loop {
                if let Poll::Ready(outcome) = self.turn(cx) {
                    return Poll::Ready(outcome);
                }
                // Once we have ended our direction, its end looks like leaving.
                if self.watching && self.answer != Answer::Whole && self.client.poll_left(cx).is_ready() {
                    return Poll::Ready(Err(Reason::ClientLeft));
                }
                ready!(self.timer.poll(cx));
                if !self.watching && self.timer.clock().millis() < self.due {
                    // It takes its time: from now on somebody looks whether the client waits.
                    self.watching = true;
                    self.timer.set_at(self.due);
                } else if let Some(outcome) = self.overdue() {
                    return Poll::Ready(outcome);
                }
            }
        })
        .await;
        self.timer.set(None);
        // Taken, since what is held back runs once more.
        let spliced = std::mem::take(&mut self.up.spliced) + std::mem::take(&mut self.down.spliced);
        if spliced > 0 {
            self.worker.counters().bytes_spliced.add(spliced);
        }
        outcome.map_err(|reason| {
            if matches!(reason, Reason::BackendResponseTimeout | Reason::BackendAttemptTimeout) {
                self.upstream.doubt();
            }
            let displaced = self.upstream.is_displaced();
            let failed = Failed { displaced, ..Failed::of(reason, self.progress(), self.upstream.is_reused()) };
            Failure { reason, failed, blamed: !displaced && !failed.stale && self.upstream.is_to_blame() }
        })
    }

    /// Has an answer go on to the client that was [`Finish::Held`], by [`Self::run`] again.
    pub fn pass(&mut self, head: &ResponseHead) {
        self.begin(head, self.timer.clock().millis());
        self.waiting = None;
    }

    /// The same for the answer of an earlier attempt, of whose request no more is sent.
    pub fn resume(&mut self, head: &ResponseHead) {
        self.client.forgo();
        self.upload = if self.client.is_read() { Upload::Done } else { Upload::Stopped };
        self.pass(head);
    }

    /// Whether an answer that is held back is a failure by `RETRY_ON`, and the client has
    /// heard nothing of it.
    #[must_use]
    pub fn is_failure(&self, head: &ResponseHead) -> bool {
        RetryOn::of_status(head.status).is_some_and(|status| self.settings.retry_on.contains(&status))
            && self.interims == 0
    }

    /// Whether all of an answer that is held back is here, of at most `most` bytes; that is
    /// waited for, unless the client leaves.
    pub async fn whole(&mut self, most: usize) -> bool {
        poll_fn(|cx| match self.upstream.poll_whole(cx, most) {
            Poll::Pending if self.client.poll_left(cx).is_ready() => Poll::Ready(false),
            whole => whole,
        })
        .await
    }

    /// Whether the request can be made again.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        self.client.is_held()
    }

    /// Bytes of the request's body that were passed on.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.up.moved
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Finish, Reason>> {
        let mut client_waits = false;
        if self.upload == Upload::Going {
            match self.up.turn(cx, self.client, self.upstream) {
                Turn::Done => {
                    self.upload = Upload::Done;
                    self.sent = Some(self.timer.clock().millis());
                }
                Turn::Waits(end) => client_waits = end == End::Source,
                Turn::Failed(..) if self.answer == Answer::Whole => self.upload = Upload::Stopped,
                Turn::Failed(End::Source, Fault::Malformed(reason)) => return Poll::Ready(Err(reason)),
                Turn::Failed(End::Source, _) => return Poll::Ready(Err(Reason::ClientLeft)),
                Turn::Failed(End::Sink, _) => self.upload = Upload::Stopped,
            }
        }
        let mut body_wanted = client_waits && self.may_send();
        if self.answer == Answer::Whole {
            return self.rest(cx, body_wanted);
        }
        while self.answer == Answer::Awaited {
            // Interim responses go out before more of them are read.
            match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientLeft)),
                Poll::Pending => {
                    self.wait(Wait::Reader);
                    return Poll::Pending;
                }
            }
            let Poll::Ready(response) = self.upstream.poll_response(cx, self.head.method) else {
                self.wait(if body_wanted { Wait::Body } else { Wait::Response });
                return Poll::Pending;
            };
            let now = self.timer.clock().millis();
            if let Ok(head) = &response {
                self.count(head, now);
            }
            match response {
                Ok(head) if head.is_interim() => {
                    if self.interims >= INTERIMS {
                        return Poll::Ready(Err(Reason::BackendMalformed));
                    }
                    self.interims += 1;
                    self.asks &= head.status != 100;
                    self.client.inform(&head, self.edits);
                    // The backend was not silent, and may have given the client leave to send.
                    self.waiting = None;
                    body_wanted = client_waits && self.may_send();
                }
                Ok(head) if head.status == 101 => {
                    if let Some(lease) = self.lease {
                        affinity::answered(lease, head.status, self.timer.clock());
                    }
                    let agreed = websocket::verify(self.head, &head);
                    return Poll::Ready(agreed.map(|()| Finish::Switch(Box::new(head))));
                }
                // To whom asks by a CONNECT for another protocol it would say that it is spoken.
                Ok(head) if self.head.is_connect() && matches!(head.status, 200..300) => {
                    return Poll::Ready(Err(Reason::BackendNotUpgraded));
                }
                Ok(head) if self.holds(&head) => return Poll::Ready(Ok(Finish::Held(Box::new(head)))),
                Ok(head) => self.begin(&head, now),
                Err(fault) => return Poll::Ready(Err(backend(fault, false))),
            }
        }
        match self.down.turn(cx, self.upstream, self.client) {
            Turn::Done if self.upload == Upload::Going && self.may_send() && self.upstream.stays() => {
                self.answer = Answer::Whole;
                match self.client.close_write() {
                    Ok(()) => self.rest(cx, body_wanted),
                    Err(_) => Poll::Ready(Ok(Finish::Complete)),
                }
            }
            Turn::Done => Poll::Ready(Ok(Finish::Complete)),
            Turn::Waits(End::Sink) => {
                self.wait(Wait::Reader);
                Poll::Pending
            }
            Turn::Waits(End::Source) => {
                // While the backend speaks, too, the client does not keep us waiting alone.
                if self.heard != self.down.moved {
                    self.heard = self.down.moved;
                    self.pace.restore();
                }
                self.wait(if body_wanted { Wait::Body } else { Wait::Stream });
                Poll::Pending
            }
            Turn::Failed(End::Source, fault) => Poll::Ready(Err(backend(fault, true))),
            Turn::Failed(End::Sink, _) => Poll::Ready(Err(Reason::ClientLeft)),
        }
    }

    /// Counts a response that has come at `now` milliseconds, unless it is an interim one.
    fn count(&mut self, head: &ResponseHead, now: u64) {
        if head.is_interim() {
            return;
        }
        let waited = self.sent.map(|sent| now.saturating_sub(sent));
        self.took = waited.filter(|_| self.settings.eject_latency.is_some());
        if let Some(lease) = self.lease {
            // One ahead of the request's end was not waited for.
            lease.lane().answered(Class::of(head.status), waited.unwrap_or(0));
        }
    }

    fn holds(&self, head: &ResponseHead) -> bool {
        match self.bounds.hold {
            Hold::None => false,
            Hold::Failures => self.is_failure(head),
            Hold::All => true,
        }
    }

    /// Begins the answer, at `now` milliseconds.
    fn begin(&mut self, head: &ResponseHead, now: u64) {
        // An answer ahead of the request's end: what still comes of that body can't be told
        // from the next request in time.
        let last = self.worker.is_draining() || self.upload != Upload::Done || self.client.is_old(now);
        self.status = head.status;
        if let Some(lease) = self.lease {
            affinity::answered(lease, head.status, self.timer.clock());
        }
        self.client.release();
        for name in self.edits.into_iter().flat_map(FieldEdits::dropped) {
            self.upstream.withhold(name.as_bytes());
        }
        self.client.answer(head, self.edits, last);
        self.answer = Answer::Going;
    }

    /// Whether the client is free to send: one that waits for leave and has sent nothing
    /// keeps nobody waiting.
    fn may_send(&self) -> bool {
        !self.asks || self.up.moved > 0
    }

    /// Goes on with the request after its answer, until either side has enough.
    fn rest(&mut self, cx: &mut Context<'_>, body_wanted: bool) -> Poll<Result<Finish, Reason>> {
        if self.upload != Upload::Going || self.upstream.poll_stirs(cx).is_ready() {
            return Poll::Ready(Ok(Finish::Complete));
        }
        self.wait(if body_wanted { Wait::Body } else { Wait::Rest });
        Poll::Pending
    }

    /// Sets the deadline anew when something else is waited for, or something moved.
    fn wait(&mut self, wait: Wait) {
        // What a side still has to take does not count as moved.
        let held = u64::try_from(self.client.held() + self.upstream.held()).unwrap_or(0);
        let moved = self.up.moved.wrapping_add(self.down.moved).saturating_sub(held);
        if self.waiting == Some((wait, moved)) {
            return;
        }
        self.waiting = Some((wait, moved));
        let now = self.timer.clock().millis();
        let after = |limit: Duration| now.saturating_add(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let client = matches!(wait, Wait::Body | Wait::Reader);
        if !client && self.pace.is_waited_for() {
            self.pace.rests(now, Terms::of(self.settings));
        }
        match (client, self.excused) {
            (true, None) => self.excused = Some(now),
            (false, Some(since)) => {
                self.excused = None;
                self.bounds.attempt = self.bounds.attempt.saturating_add(now.saturating_sub(since));
            }
            _ => {}
        }
        let at = match wait {
            Wait::Body | Wait::Reader => self.pace.waits(now, moved, Terms::of(self.settings)),
            Wait::Response => after(self.settings.response_timeout).min(self.bounds.attempt),
            Wait::Stream => self.settings.stream_timeout.map_or(u64::MAX, after),
            Wait::Rest => now.saturating_add(UNTAKEN),
        };
        self.due = at.min(self.bounds.deadline);
        let unwatched = if self.watching { u64::MAX } else { now.saturating_add(UNWATCHED) };
        self.timer.set_at(self.due.min(unwatched));
    }

    /// The time is over: how the exchange ends, unless somebody turns out to take what
    /// only seemed stuck. `None` asks for another turn, which will tell.
    fn overdue(&mut self) -> Option<Result<Finish, Reason>> {
        let now = self.timer.clock().millis();
        let late = now >= self.bounds.deadline;
        if !late && self.prodded != self.waiting {
            self.prodded = self.waiting;
            self.client.prod();
            self.upstream.prod();
            return None;
        }
        Some(match self.waiting {
            _ if self.answer == Answer::Whole => Ok(Finish::Complete),
            _ if late => Err(Reason::RequestTimeout),
            Some((Wait::Body, _)) => Err(Reason::ClientBodyTimeout),
            Some((Wait::Reader, _)) => Err(Reason::ClientSlowReader),
            Some((Wait::Stream, _)) => Err(Reason::BackendStreamTimeout),
            Some((Wait::Response, _)) if now >= self.bounds.attempt => Err(Reason::BackendAttemptTimeout),
            Some((Wait::Response | Wait::Rest, _)) | None => Err(Reason::BackendResponseTimeout),
        })
    }

    fn progress(&self) -> Progress {
        if self.answer != Answer::Awaited || self.upstream.has_answered() {
            Progress::Answered
        } else if self.upstream.has_written() || (self.up.moved > 0 && !self.client.is_held()) {
            // Bytes of the body that are gone count as sent, also when they went nowhere:
            // without them the request must not be made again.
            Progress::Sent
        } else {
            Progress::Unsent
        }
    }
}

/// What a fault on the backend's connection is called, by whether its answer had begun.
fn backend(fault: Fault, answered: bool) -> Reason {
    match fault {
        // A body's breach of framing has the reason that a client's would have.
        Fault::Malformed(Reason::BackendHeaderTooLarge) => Reason::BackendHeaderTooLarge,
        // What it would be sent can't be said in its version.
        Fault::Malformed(Reason::TargetTooLong) => Reason::TargetTooLong,
        Fault::Malformed(Reason::BackendHeaderLimit) => Reason::BackendHeaderLimit,
        Fault::Malformed(_) => Reason::BackendMalformed,
        Fault::Truncated if answered => Reason::BackendTruncated,
        Fault::Truncated => Reason::BackendClosed,
        Fault::Reset => Reason::BackendReset,
        Fault::Refused if answered => Reason::BackendReset,
        Fault::Refused => Reason::BackendStreamRefused,
        Fault::Alert => Reason::BackendTlsAlert,
    }
}

#[cfg(test)]
mod tests {
    use super::super::forwarded::Forwarded;
    use super::super::http1::Http1;
    use super::super::rewrite::Rewrite;
    use super::super::upstream;
    use super::{Bounds, Client, Exchange, Hold, Progress, Worker};
    use crate::balance::connections::{Connections, Entry, Slot};
    use crate::config::{Config, Forwarding};
    use crate::state::Generation;
    use crate::transport::stream::{Family, Socket, Stream};
    use std::collections::BTreeMap;
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn slot() -> Slot {
        let Entry::Open(slot) = Connections::new().enter() else { panic!("there is no limit") };
        slot
    }

    /// A connection whose other end has reset it.
    fn reset() -> Stream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        socket2::SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
        drop(accepted);
        // Until it has arrived.
        dialled.read(&mut [0]).unwrap_err();
        dialled.set_nonblocking(true).unwrap();
        Socket::new(dialled.into(), Family::Tcp).into()
    }

    /// Small pieces are taken over before anything is written, so that nothing was
    /// written does not say that nothing was taken.
    #[tokio::test]
    async fn a_body_whose_start_is_gone_counts_as_sent_though_nothing_went_out() {
        let config = Config::assemble(None, Vec::new(), &BTreeMap::new()).unwrap();
        let worker = Worker::alone(Generation::build(1, config, &Default::default(), None));
        let generation = worker.generation();
        let route = generation.routes().last().unwrap();
        for (chunks, progress) in [(1, Progress::Unsent), (900, Progress::Sent)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
            theirs.write_all("0000000000000001\r\nx\r\n".repeat(chunks).as_bytes()).unwrap();
            let mut client = Http1::new(Socket::new(ours.into(), Family::Unix).into());
            let head = poll_fn(|cx| client.poll_request(cx, 32_768)).await.unwrap().unwrap();
            client.hold(100);
            let mut upstream = upstream::http1(reset(), slot());
            upstream.begin(
                &head,
                &Forwarded {
                    peer: b"unix:",
                    scheme: "http",
                    host: "a",
                    request_id: b"x",
                    kind: Forwarding::XForwarded,
                    trusted: false,
                },
                &Rewrite::default(),
            );
            let timer = worker.clock().timer();
            let bounds = Bounds { deadline: u64::MAX, attempt: u64::MAX, hold: Hold::None };
            let mut exchange = Exchange::new(&mut client, &mut upstream, &head, route, &timer, bounds, &worker);
            let failure = exchange.run().await.unwrap_err();
            assert_eq!(failure.failed.progress, progress, "{chunks} chunks: {:?}", failure.reason);
        }
    }
}
