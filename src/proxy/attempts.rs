//! Attempts: has one backend after another asked, until one answers or the rules say stop.
//!
//! Which backend is the pool's to say, whether again is [`Retry`]'s; here they are dialled
//! and asked.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::affinity;
use super::attempt::{Bounds, Failure, Finish, Hold};
use super::client::Client;
use super::exchange::Exchange;
use super::forwarded::Forwarded;
use super::head::{RequestHead, ResponseHead};
use super::http1::upstream::Http1Upstream;
use super::http2::upstream::Http2Upstream;
use super::idle::is_fresh;
use super::kept::{self, Kept};
use super::rewrite::Rewrite;
use super::slot::{self, only_slot};
use super::story::{Course, Source};
use super::upstream::{self, Dial, Upstream};
use super::verdict;
use super::worker::{Worker, budget_spent};
use crate::admission::quota::Share;
use crate::balance::budget::{self, Exhausted};
use crate::balance::connections::Handed;
use crate::balance::endpoint::Endpoint;
use crate::balance::load::Lease;
use crate::balance::pool::{Affinity, Tried};
use crate::balance::retry::{self, Allowance, Failed, Progress, Retry, Step};
use crate::config::{BackendProtocol, Balance};
use crate::routing::FieldEdits;
use crate::state::Route;
use crate::telemetry::Text;
use crate::telemetry::{Reason, Side};
use crate::transport::clock::Timer;

/// How long the rest of a short answer is waited for where the next attempt needs its
/// connection. Many send a head and a body one after the other.
const REST: Duration = Duration::from_millis(100);

/// A request with everything that stays the same while it is served.
pub(super) struct Asked<'a> {
    pub worker: &'a Worker,
    pub source: &'a Source,
    pub head: &'a RequestHead,
    pub timer: &'a Timer,
    pub route: &'a Route,
    /// What is sent on in place of what came.
    pub rewrite: Rewrite<'a>,
    /// What becomes of the response's fields.
    pub edits: Option<&'a FieldEdits>,
    pub request_id: &'a Text<64>,
    /// What the peer says of others is kept.
    pub trusted: bool,
    /// What leads it to a certain backend.
    pub affinity: Affinity,
}

/// What attempts have come to: the connection, and the head that ends HTTP on it, if one does.
pub(super) type Answered<'a> = (Connected<'a>, Option<Box<ResponseHead>>);

impl<'a> Asked<'a> {
    /// Makes attempts until one is answered or the rules say to stop. An answer that another
    /// attempt was to make good is left in `kept`.
    pub async fn attempts<C: Client>(
        &self,
        client: &mut C,
        course: &mut Course<'a>,
        deadline: u64,
        kept: &mut Option<Box<Kept<'a>>>,
    ) -> Result<Answered<'a>, Reason> {
        let settings = &self.route.settings;
        let idempotent = self.head.method.is_idempotent() || settings.retry_non_idempotent;
        let mut retry = Retry::new(retry::Terms::of(settings));
        let mut tried = Tried::default();
        let mut failed: Option<Reason> = None;
        let mut again: Option<Lease<'a>> = None;
        'attempts: loop {
            let replacing = again.is_some();
            let Some(lease) = again.take().or_else(|| self.pick(&mut tried)) else {
                return Err(failed.unwrap_or(Reason::BackendsDown));
            };
            let endpoint = lease.endpoint();
            if settings.balance == Balance::Sticky {
                client.set_cookie(affinity::cookie(self.route, &lease, self.affinity));
            }
            if course.attempts > 0 && !replacing {
                lease.lane().retried();
            }
            course.attempts = course.attempts.saturating_add(1);
            course.backend = Some(endpoint.identity());
            let mut bounds = Bounds {
                deadline,
                attempt: self.until(settings.attempt_timeout),
                hold: match kept {
                    Some(_) => Hold::All,
                    None if idempotent && retry.is_left() => Hold::Failures,
                    None => Hold::None,
                },
            };
            // Else the connection that it waits for may be the one of the answer that it keeps.
            let waits = kept.as_ref().is_none_or(|kept| kept.is_whole());
            let how = How { reuse: !replacing, waits };
            let failure = match self.connect(endpoint, client, &mut bounds, how, course).await {
                Err(failure) => failure,
                Ok(mut connection) => {
                    if !connection.is_reused() {
                        // Now, not once the answer is whole: that may take hours, and until
                        // then nobody else would be sent to a backend that is back.
                        verdict::connected(self.worker, endpoint);
                    }
                    self.begin(&mut connection, endpoint);
                    let mut exchange =
                        Exchange::new(client, &mut connection, self.head, self.route, self.timer, bounds, self.worker);
                    exchange.timed_by(&lease);
                    exchange.edits = self.edits;
                    let outcome = loop {
                        let outcome = exchange.run().await;
                        course.bytes_in = course.bytes_in.max(exchange.bytes_in());
                        let Ok(Finish::Held(head)) = outcome else { break outcome };
                        let step = if exchange.is_failure(&head) {
                            let failed = Failed::status(head.status, retry_after(&head));
                            let allowance = Allowance { idempotent, replayable: exchange.is_replayable() };
                            self.next(&mut retry, failed, allowance)
                        } else {
                            Step::Answer
                        };
                        if let Some(leave) = self.leave_beside(&mut exchange, step, deadline).await {
                            verdict::answered(self.worker, settings, endpoint, head.status);
                            affinity::answered(&lease, head.status, self.timer.clock());
                            self.let_go(kept.take());
                            let connected = Connected { connection, lease };
                            let mut answer = Box::new(self.keep(head, connected));
                            Box::pin(leave.taken(client)).await?;
                            self.take_in(&mut answer);
                            *kept = Some(answer);
                            client.rewind();
                            continue 'attempts;
                        }
                        self.let_go(kept.take());
                        exchange.pass(&head);
                    };
                    course.status = exchange.status;
                    match outcome {
                        Ok(finish) => {
                            // A 101 is never held back.
                            self.let_go(kept.take());
                            if !retry.is_failure(course.status) {
                                self.route.budget.deposit(self.worker.index(), self.timer.clock().millis());
                            }
                            verdict::answered(self.worker, settings, endpoint, course.status);
                            verdict::took(endpoint, exchange.took);
                            let switched = match finish {
                                Finish::Complete | Finish::Held(_) => None,
                                Finish::Switch(head) => Some(head),
                            };
                            return Ok((Connected { connection, lease }, switched));
                        }
                        Err(failure) => failure,
                    }
                }
            };
            let reason = failure.reason;
            if !failure.failed.stale && !failure.failed.displaced {
                affinity::failed(&lease, reason, self.timer.clock());
            }
            if reason.side() != Side::Backend {
                return Err(reason);
            }
            verdict::failed(self.worker, settings, endpoint, reason, failure.blamed);
            failed = Some(reason);
            let allowance = Allowance { idempotent, replayable: client.is_held() };
            match self.next(&mut retry, failure.failed, allowance) {
                Step::Replace => again = Some(lease),
                step => {
                    lease.lane().failed(reason);
                    let leave = self.leave(step, deadline).ok_or(reason)?;
                    // Nothing is asked of that backend meanwhile.
                    drop(lease);
                    Box::pin(leave.taken(client)).await?;
                }
            }
            client.rewind();
        }
    }

    /// What to do after a failure.
    fn next(&self, retry: &mut Retry<'_>, failed: Failed, allowance: Allowance) -> Step {
        if failed.progress == Progress::Sent && allowance.idempotent && !allowance.replayable && retry.wants(failed) {
            self.worker.counters().retries_without_body.add(1);
        }
        retry.next(failed, allowance, fastrand::f64())
    }

    /// Leave for the attempt that a step asks for, if there may be one.
    fn leave(&self, step: Step, deadline: u64) -> Option<Leave<'a>> {
        let Step::Wait(wait) = step else { return None };
        let share = self.worker.shared().sleepers.take()?;
        // An attempt that could not begin in time is none.
        let granted = self.until(Some(wait)) < deadline && may_retry(self.worker, self.route, self.timer);
        granted.then_some(Leave { wait, _share: share })
    }

    /// The same after an answer has come. An attempt that has no connection to be made on but
    /// the one of that very answer is none: that is given up only once the answer is whole.
    async fn leave_beside<C: Client>(
        &self,
        exchange: &mut Exchange<'_, C>,
        step: Step,
        deadline: u64,
    ) -> Option<Leave<'a>> {
        if matches!(step, Step::Wait(_)) && self.route.pool.is_full() {
            let rest = Box::pin(tokio::time::timeout(REST, exchange.whole(kept::MOST)));
            if !matches!(rest.await, Ok(true)) {
                return None;
            }
        }
        self.leave(step, deadline)
    }

    fn pick(&self, tried: &mut Tried) -> Option<Lease<'a>> {
        affinity::pick(&self.route.pool, tried, self.affinity, self.worker)
    }

    /// An idle connection to `endpoint`, or a new one; with HTTP/2 a stream on either.
    async fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        client: &mut impl Client,
        bounds: &mut Bounds,
        how: How,
        course: &mut Course<'a>,
    ) -> Result<Upstream, Failure> {
        if upstream::protocol(endpoint, &self.route.settings) == BackendProtocol::H2 {
            return Box::pin(self.stream(endpoint, client, bounds, how, course)).await;
        }
        let now = self.timer.clock().millis();
        if how.reuse {
            if let Some(idle) = self.worker.idle().take(endpoint, self.head.method.is_idempotent(), now) {
                return Ok(idle);
            }
        }
        let connection = Box::pin(async {
            let handed = self.claim(endpoint, client, bounds, how, course).await?;
            // The time in line is nobody's fault, least of all the backend's.
            bounds.attempt = self.until(self.route.settings.attempt_timeout);
            let slot = match handed {
                Handed::Connection(parked) if how.reuse => {
                    let now = self.timer.clock().millis();
                    if is_fresh(parked.since, self.head.method.is_idempotent(), now) {
                        match Http1Upstream::adopt(parked, endpoint, now) {
                            Ok(connection) => return Ok(Upstream::Http1(Box::new(connection))),
                            Err(slot) => slot,
                        }
                    } else {
                        parked.slot
                    }
                }
                handed => only_slot(handed),
            };
            let limit = self.route.settings.connect_timeout;
            let dial = Dial::new(endpoint);
            let dialled = self.within(client, bounds, limit, dial.run(), || dial.late()).await?;
            dialled.map(|stream| upstream::http1(stream, slot))
        });
        connection.await.map_err(Failure::unsent)
    }

    /// A place on a connection that others use too: at once, when one comes free, or on one
    /// that is opened for all who wait.
    async fn stream(
        &self,
        endpoint: &Arc<Endpoint>,
        client: &mut impl Client,
        bounds: &mut Bounds,
        how: How,
        course: &mut Course<'a>,
    ) -> Result<Upstream, Failure> {
        let group = self.worker.streams().group(endpoint, &self.route.settings);
        let mut place = group.take();
        if place.is_none() {
            let waiting = group.join(self.route.settings.connect_timeout);
            // Taken out where the first turn would only look.
            while place.is_none() {
                if waiting.wants_connection() {
                    let handed = {
                        let mut claim = pin!(self.claim(endpoint, client, bounds, how, course));
                        loop {
                            tokio::select! {
                                biased;
                                () = waiting.changed() => {
                                    place = waiting.look()?;
                                    if place.is_some() || !waiting.wants_connection() {
                                        break None;
                                    }
                                }
                                handed = &mut claim => break Some(handed.map_err(Failure::unsent)?),
                            }
                        }
                    };
                    bounds.attempt = self.until(self.route.settings.attempt_timeout);
                    if let Some(handed) = handed {
                        waiting.open(only_slot(handed), self.route.settings.connect_timeout);
                    }
                    continue;
                }
                // What is being opened has its own time, and comes to an end.
                let late = || Reason::BackendConnectTimeout;
                let changed = self.within(client, bounds, Duration::MAX, waiting.changed(), late).await;
                changed.map_err(Failure::unsent)?;
                place = waiting.look()?;
            }
        }
        let stream = place.map(Http2Upstream::new).ok_or_else(|| Failure::unsent(Reason::Internal))?;
        Ok(Upstream::Http2(Box::new(stream)))
    }

    /// Leave to have a connection to `endpoint`.
    async fn claim(
        &self,
        endpoint: &Arc<Endpoint>,
        client: &mut impl Client,
        bounds: &Bounds,
        how: How,
        course: &mut Course<'a>,
    ) -> Result<Handed, Reason> {
        let now = self.timer.clock().millis();
        let remaining = Duration::from_millis(bounds.deadline.saturating_sub(now));
        let patience = if how.waits {
            self.worker.generation().config.daemon.queue_timeout.min(remaining)
        } else {
            Duration::ZERO
        };
        let queued = &mut course.queue;
        let claimed = slot::claim(self.worker, endpoint, self.timer, left(client), patience, queued).await;
        claimed.map_err(|reason| match reason {
            Reason::BackendConnectionLimit if self.timer.clock().millis() >= bounds.deadline => Reason::RequestTimeout,
            reason => reason,
        })
    }

    /// Waits for a connection to be made, for as long as that may take.
    async fn within<T>(
        &self,
        client: &mut impl Client,
        bounds: &Bounds,
        limit: Duration,
        made: impl Future<Output = T>,
        late: impl Fn() -> Reason,
    ) -> Result<T, Reason> {
        let now = self.timer.clock().millis();
        let remaining = Duration::from_millis(bounds.deadline.saturating_sub(now));
        let attempt = Duration::from_millis(bounds.attempt.saturating_sub(now));
        let limit = limit.min(attempt).min(remaining);
        let outcome = self
            .timer
            .within(Some(limit), async {
                tokio::select! {
                    biased;
                    made = made => Ok(made),
                    () = left(client) => Err(Reason::ClientLeft),
                }
            })
            .await;
        // What the request had left was shorter than what an attempt may take: not the backend's fault.
        let late = || if limit == remaining { Reason::RequestTimeout } else { late() };
        outcome.unwrap_or_else(|| Err(late()))
    }

    fn begin(&self, connection: &mut Upstream, endpoint: &Endpoint) {
        let forwarded = Forwarded {
            peer: self.source.address.as_bytes(),
            scheme: self.source.scheme(),
            host: endpoint.host(),
            request_id: self.request_id.as_bytes(),
            kind: self.route.settings.forwarded,
            trusted: self.trusted,
        };
        connection.begin(self.head, &forwarded, &self.rewrite);
    }

    /// The time of the timer's clock at which a limit that begins now is over.
    pub fn until(&self, limit: Option<Duration>) -> u64 {
        limit.map_or(u64::MAX, |limit| {
            self.timer.clock().millis().saturating_add(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
        })
    }
}

/// Whether a route's backends may be asked once more, which then counts as done.
pub(super) fn may_retry(worker: &Worker, route: &Route, timer: &Timer) -> bool {
    // With every backend known to be down, waiting only holds a permit.
    if route.pool.is_down() {
        return false;
    }
    let granted =
        budget::Terms::of(&route.settings).map_or(Ok(()), |terms| route.budget.withdraw(terms, timer.clock().millis()));
    match granted {
        Ok(()) => worker.counters().retries.add(1),
        Err(Exhausted) => {
            worker.counters().retries_over_budget.add(1);
            budget_spent(&route.name);
        }
    }
    granted.is_ok()
}

/// How a connection is come by.
#[derive(Debug, Clone, Copy)]
struct How {
    /// One that has served before will do.
    reuse: bool,
    /// It may be waited for.
    waits: bool,
}

/// Leave to make another attempt.
struct Leave<'a> {
    wait: Duration,
    _share: Share<'a>,
}

impl Leave<'_> {
    /// Waits until then.
    async fn taken(self, client: &mut impl Client) -> Result<(), Reason> {
        tokio::select! {
            () = tokio::time::sleep(self.wait) => Ok(()),
            () = left(client) => Err(Reason::ClientLeft),
        }
    }
}

/// A connection with the share of the backend that it leads to.
pub(super) struct Connected<'a> {
    pub connection: Upstream,
    pub lease: Lease<'a>,
}

/// How long a backend asks to be left alone (RFC 9110 §10.2.3).
fn retry_after(head: &ResponseHead) -> Option<Duration> {
    let bytes = head.fields.bytes();
    let field = head.fields.iter().find(|field| field.name.of(bytes).eq_ignore_ascii_case(b"retry-after"))?;
    let text = std::str::from_utf8(field.value.of(bytes)).ok()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}

/// Resolves when the client has left for good.
pub(super) async fn left(client: &mut impl Client) {
    poll_fn(|cx| client.poll_left(cx)).await;
}
