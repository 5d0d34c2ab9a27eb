//! Exchange: one attempt to have one backend answer one request.
//!
//! Both directions move in one future: the request's body up, the response down, each
//! as far as it can get, in every turn. So an early answer is seen while the body is
//! still coming, and neither side's slowness blocks the other's.
//!
//! At any moment the exchange waits for exactly one thing, and that decides which
//! deadline runs: the client, when it alone keeps us waiting (`BODY_TIMEOUT`); the
//! backend before its head (`RESPONSE_TIMEOUT`) and after it (`STREAM_TIMEOUT`).

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::client::Client;
use super::head::{Known, RequestHead, ResponseHead};
use super::relay::{End, Fault, Relay, Turn};
use super::upstream::Upstream;
use super::worker::Worker;
use crate::balance::retry::{Failed, Progress};
use crate::config::RouteSettings;
use crate::telemetry::Reason;
use crate::transport::clock::Timer;

/// Milliseconds for which nobody looks whether a client leaves on whose connection
/// nothing had to be waited for yet: most are answered sooner.
const UNWATCHED: u64 = 50;

/// How an exchange ended that did not fail.
#[derive(Debug)]
pub enum Finish {
    /// The answer went out whole.
    Complete,
    /// The backend agreed to another protocol.
    Switch(ResponseHead),
}

/// How an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The stable reason.
    pub reason: Reason,
    /// How far it got, and on what connection.
    pub failed: Failed,
}

/// One attempt.
#[derive(Debug)]
pub struct Exchange<'a, C> {
    client: &'a mut C,
    upstream: &'a mut Upstream,
    head: &'a RequestHead,
    settings: &'a RouteSettings,
    timer: &'a Timer,
    /// Time of the timer's clock at which the whole request must be over.
    deadline: u64,
    /// Knows whether the client's connection may go on when the answer comes.
    worker: &'a Worker,
    up: Relay,
    down: Relay,
    upload: Upload,
    answered: bool,
    /// Somebody looks whether the client leaves.
    watching: bool,
    /// Time of the timer's clock at which what is waited for is overdue.
    due: u64,
    /// What was waited for last, and how much had moved by then.
    waiting: Option<(Wait, u64)>,
    /// The client waits for leave to send its body (RFC 9110 §10.1.1).
    asks: bool,
    /// The final status, once its head has come.
    pub status: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    Going,
    Done,
    /// The backend takes no more of it; it may have answered all the same.
    Stopped,
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
}

impl<'a, C: Client> Exchange<'a, C> {
    /// An attempt about to begin: the request head is queued on `upstream`.
    pub fn new(
        client: &'a mut C,
        upstream: &'a mut Upstream,
        head: &'a RequestHead,
        settings: &'a RouteSettings,
        timer: &'a Timer,
        deadline: u64,
        worker: &'a Worker,
    ) -> Self {
        Self {
            watching: client.is_watched(),
            due: u64::MAX,
            client,
            upstream,
            head,
            settings,
            timer,
            deadline,
            worker,
            up: Relay::default(),
            down: Relay::default(),
            upload: Upload::Going,
            answered: false,
            waiting: None,
            asks: head.fields.first(Known::Expect).is_some(),
            status: 0,
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The failure, with how far the attempt got.
    pub async fn run(&mut self) -> Result<Finish, Failure> {
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(outcome) = self.turn(cx) {
                return Poll::Ready(outcome);
            }
            if self.watching && self.client.poll_left(cx).is_ready() {
                return Poll::Ready(Err(Reason::ClientLeft));
            }
            std::task::ready!(self.timer.poll(cx));
            if self.watching || self.timer.clock().millis() >= self.due {
                return Poll::Ready(Err(self.overdue()));
            }
            // It takes its time: from now on somebody looks whether the client waits.
            self.watching = true;
            self.timer.set_at(self.due);
            if self.client.poll_left(cx).is_ready() {
                return Poll::Ready(Err(Reason::ClientLeft));
            }
            self.timer.poll(cx).map(|()| Err(self.overdue()))
        })
        .await;
        self.timer.set(None);
        let spliced = self.up.spliced + self.down.spliced;
        if spliced > 0 {
            self.worker.counters().bytes_spliced.add(spliced);
        }
        outcome.map_err(|reason| Failure {
            reason,
            failed: Failed { progress: self.progress(), reused: self.upstream.is_reused() && died(reason) },
        })
    }

    /// Bytes of the request's body that were passed on.
    #[must_use]
    pub fn bytes_in(&self) -> u64 {
        self.up.moved
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Result<Finish, Reason>> {
        let mut body_wanted = false;
        if self.upload == Upload::Going {
            match self.up.turn(cx, self.client, self.upstream) {
                Turn::Done => self.upload = Upload::Done,
                Turn::Waits(end) => body_wanted = end == End::Source,
                Turn::Failed(End::Source, Fault::Malformed(reason)) => return Poll::Ready(Err(reason)),
                Turn::Failed(End::Source, _) => return Poll::Ready(Err(Reason::ClientLeft)),
                Turn::Failed(End::Sink, _) => self.upload = Upload::Stopped,
            }
        }
        while !self.answered {
            // Interim responses go out before more of them are read.
            match self.client.poll_flush(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Reason::ClientLeft)),
                Poll::Pending => {
                    self.wait(Wait::Reader);
                    return Poll::Pending;
                }
            }
            match self.upstream.poll_response(cx, self.head.method) {
                Poll::Ready(Ok(head)) if head.is_interim() => {
                    self.asks &= head.status != 100;
                    self.client.inform(&head);
                }
                Poll::Ready(Ok(head)) if head.status == 101 => {
                    let agreed = head.agrees_to(self.head);
                    return Poll::Ready(if agreed { Ok(Finish::Switch(head)) } else { Err(Reason::BackendMalformed) });
                }
                Poll::Ready(Ok(head)) => {
                    // An answer ahead of the request's end: what still comes of that body
                    // can't be told from the next request in time.
                    let last = self.worker.is_draining() || self.upload != Upload::Done;
                    self.status = head.status;
                    self.client.release();
                    self.client.answer(&head, last);
                    self.answered = true;
                }
                Poll::Ready(Err(fault)) => return Poll::Ready(Err(backend(fault, false))),
                Poll::Pending => {
                    // A client that waits for leave and has sent nothing keeps nobody waiting.
                    let held = body_wanted && (!self.asks || self.up.moved > 0);
                    self.wait(if held { Wait::Body } else { Wait::Response });
                    return Poll::Pending;
                }
            }
        }
        match self.down.turn(cx, self.upstream, self.client) {
            Turn::Done => Poll::Ready(Ok(Finish::Complete)),
            Turn::Waits(end) => {
                self.wait(if end == End::Sink { Wait::Reader } else { Wait::Stream });
                Poll::Pending
            }
            Turn::Failed(End::Source, fault) => Poll::Ready(Err(backend(fault, true))),
            Turn::Failed(End::Sink, _) => Poll::Ready(Err(Reason::ClientLeft)),
        }
    }

    /// Sets the deadline anew when something else is waited for, or something moved.
    fn wait(&mut self, wait: Wait) {
        let now = (wait, self.up.moved.wrapping_add(self.down.moved));
        if self.waiting == Some(now) {
            return;
        }
        self.waiting = Some(now);
        let limit = match wait {
            Wait::Body | Wait::Reader => Some(self.settings.body_timeout),
            Wait::Response => Some(self.settings.response_timeout),
            Wait::Stream => self.settings.stream_timeout,
        };
        let at = limit.map_or(u64::MAX, |limit| {
            self.timer.clock().millis().saturating_add(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
        });
        self.due = at.min(self.deadline);
        let unwatched = if self.watching { u64::MAX } else { self.timer.clock().millis().saturating_add(UNWATCHED) };
        self.timer.set_at(self.due.min(unwatched));
    }

    fn overdue(&self) -> Reason {
        if self.timer.clock().millis() >= self.deadline {
            return Reason::RequestTimeout;
        }
        match self.waiting {
            Some((Wait::Body, _)) => Reason::ClientBodyTimeout,
            Some((Wait::Reader, _)) => Reason::ClientSlowReader,
            Some((Wait::Stream, _)) => Reason::BackendStreamTimeout,
            Some((Wait::Response, _)) | None => Reason::BackendResponseTimeout,
        }
    }

    fn progress(&self) -> Progress {
        if self.answered || self.upstream.has_answered() {
            Progress::Answered
        } else if self.upstream.has_written() {
            Progress::Sent
        } else {
            Progress::Unsent
        }
    }
}

/// Whether the connection itself ended. Silence on a reused one is the backend's, and
/// says nothing of the connection's age.
fn died(reason: Reason) -> bool {
    matches!(reason, Reason::BackendClosed | Reason::BackendReset)
}

/// What a fault on the backend's connection is called, by whether its answer had begun.
fn backend(fault: Fault, answered: bool) -> Reason {
    match fault {
        Fault::Malformed(_) => Reason::BackendMalformed,
        Fault::Truncated if answered => Reason::BackendTruncated,
        Fault::Truncated => Reason::BackendClosed,
        Fault::Reset => Reason::BackendReset,
    }
}
