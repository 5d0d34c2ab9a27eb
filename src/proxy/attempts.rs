//! Attempts: has one backend after another asked, until one answers or the rules say stop.
//!
//! Which backend is the pool's to say, whether again is [`Retry`]'s; here they are dialled
//! and asked.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::exchange::{Exchange, Failure, Finish};
use super::forwarded::Forwarded;
use super::head::{RequestHead, ResponseHead};
use super::rewrite::Rewrite;
use super::story::{Course, Source};
use super::upstream::{self, Upstream};
use super::verdict;
use super::worker::Worker;
use crate::balance::endpoint::Endpoint;
use crate::balance::pool::Tried;
use crate::balance::retry::{Allowance, Failed, Progress, Retry, Step};
use crate::state::Route;
use crate::telemetry::Text;
use crate::telemetry::{Reason, Side};
use crate::transport::clock::Timer;

/// A request with everything that stays the same while it is served.
pub(super) struct Asked<'a> {
    pub worker: &'a Worker,
    pub source: &'a Source,
    pub head: &'a RequestHead,
    pub timer: &'a Timer,
    pub route: &'a Route,
    /// What is sent on in place of what came.
    pub rewrite: Rewrite<'a>,
    pub request_id: &'a Text<64>,
    /// What the peer says of others is kept.
    pub trusted: bool,
}

impl<'a> Asked<'a> {
    /// Makes attempts until one is answered or the rules say to stop.
    pub async fn attempts<C: Client>(
        &self,
        client: &mut C,
        course: &mut Course<'a>,
        deadline: u64,
    ) -> Result<(Connected<'a>, Option<ResponseHead>), Reason> {
        let settings = &self.route.settings;
        let retries = u32::try_from(settings.max_retries).unwrap_or(u32::MAX);
        let mut retry = Retry::new(retries, settings.retry_backoff, settings.retry_backoff_max);
        let mut tried = Tried::default();
        let mut failed: Option<Reason> = None;
        let mut again: Option<&'a Arc<Endpoint>> = None;
        loop {
            let replacing = again.is_some();
            let Some(endpoint) = again.take().or_else(|| self.pick(&mut tried)) else {
                return Err(failed.unwrap_or(Reason::BackendsDown));
            };
            course.attempts = course.attempts.saturating_add(1);
            course.backend = Some(endpoint.identity());
            let failure = match self.connect(endpoint, client, deadline, !replacing).await {
                Err(reason) => Failure { reason, failed: Failed { progress: Progress::Unsent, reused: false } },
                Ok(mut connection) => {
                    if !connection.is_reused() {
                        // Now, not once the answer is whole: that may take hours, and until
                        // then nobody else would be sent to a backend that is back.
                        verdict::connected(self.worker, endpoint);
                    }
                    self.begin(&mut connection, endpoint);
                    let mut exchange =
                        Exchange::new(client, &mut connection, self.head, settings, self.timer, deadline, self.worker);
                    let outcome = exchange.run().await;
                    course.status = exchange.status;
                    course.bytes_in = course.bytes_in.max(exchange.bytes_in());
                    match outcome {
                        Ok(finish) => {
                            verdict::answered(self.worker, settings, endpoint, course.status);
                            let switched = match finish {
                                Finish::Complete => None,
                                Finish::Switch(head) => Some(head),
                            };
                            return Ok((Connected { connection, endpoint }, switched));
                        }
                        Err(failure) => failure,
                    }
                }
            };
            let reason = failure.reason;
            if reason.side() != Side::Backend {
                return Err(reason);
            }
            verdict::failed(self.worker, settings, endpoint, reason, failure.failed.reused);
            failed = Some(reason);
            let allowance = Allowance { idempotent: self.head.method.is_idempotent(), replayable: client.is_held() };
            match retry.next(failure.failed, allowance, fastrand::f64()) {
                Step::Answer => return Err(reason),
                Step::Replace => again = Some(endpoint),
                Step::Wait(wait) => {
                    // With every backend known to be down, waiting only holds a permit.
                    if self.route.pool.is_down() {
                        return Err(reason);
                    }
                    self.worker.counters().retries.add(1);
                    Box::pin(self.back_off(wait, client, deadline)).await.map_err(|why| why.unwrap_or(reason))?;
                }
            }
            client.rewind();
        }
    }

    fn pick(&self, tried: &mut Tried) -> Option<&'a Arc<Endpoint>> {
        self.route.pool.pick(tried, self.timer.clock().millis())
    }

    /// An idle connection to `endpoint`, or a new one.
    async fn connect(
        &self,
        endpoint: &Arc<Endpoint>,
        client: &mut impl Client,
        deadline: u64,
        reuse: bool,
    ) -> Result<Upstream, Reason> {
        let now = self.timer.clock().millis();
        if reuse {
            if let Some(idle) = self.worker.idle().take(endpoint, self.head.method.is_idempotent(), now) {
                return Ok(idle);
            }
        }
        Box::pin(self.dial(endpoint, client, deadline)).await
    }

    /// A new connection to `endpoint`.
    async fn dial(&self, endpoint: &Endpoint, client: &mut impl Client, deadline: u64) -> Result<Upstream, Reason> {
        let now = self.timer.clock().millis();
        let remaining = Duration::from_millis(deadline.saturating_sub(now));
        let limit = self.route.settings.connect_timeout.min(remaining);
        let outcome = self
            .timer
            .within(Some(limit), async {
                tokio::select! {
                    biased;
                    stream = upstream::connect(endpoint) => stream,
                    () = left(client) => Err(Reason::ClientLeft),
                }
            })
            .await;
        // What the request had left was shorter than CONNECT_TIMEOUT: not the backend's fault.
        let late = if limit == remaining { Reason::RequestTimeout } else { Reason::BackendConnectTimeout };
        outcome.unwrap_or(Err(late)).map(upstream::http)
    }

    fn begin(&self, connection: &mut Upstream, endpoint: &Endpoint) {
        let forwarded = Forwarded {
            peer: self.source.address.as_bytes(),
            scheme: "http",
            host: endpoint.host(),
            request_id: self.request_id.as_bytes(),
            kind: self.route.settings.forwarded,
            trusted: self.trusted,
        };
        connection.begin(self.head, &forwarded, &self.rewrite);
    }

    /// Sleeps before the next attempt. `Err(None)`: too many sleep already.
    async fn back_off(&self, wait: Duration, client: &mut impl Client, deadline: u64) -> Result<(), Option<Reason>> {
        let _share = self.worker.shared().sleepers.take().ok_or(None)?;
        let ends = self.timer.clock().millis().saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        if ends >= deadline {
            return Err(Some(Reason::RequestTimeout));
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = left(client) => Err(Some(Reason::ClientLeft)),
        }
    }
}

/// A connection with the backend that it leads to.
pub(super) struct Connected<'a> {
    pub connection: Upstream,
    pub endpoint: &'a Arc<Endpoint>,
}

/// Resolves when the client has left for good.
pub(super) async fn left(client: &mut impl Client) {
    poll_fn(|cx| client.poll_left(cx)).await;
}
