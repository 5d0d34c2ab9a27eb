//! How the daemon fares: one live line for `systemctl status`, all of it for
//! `doorward status`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::control::Daemon;
use super::upgrade::Predecessor;
use crate::admin::protocol::{BackendStatus, ReloadStatus, Status, TlsStatus};
use crate::balance::discovery::Query;
use crate::balance::endpoint::Endpoint;
use crate::balance::standing::State;
use crate::balance::tally::Counts;
use crate::config::Origin;
use crate::telemetry::{Rates, Snapshot, Standing, status_line};
use crate::transport::listeners;

/// How a backend is said to stand that is well and takes nothing new.
pub(super) const DRAINING: &str = "draining";

/// Two readings of the counters, about a second apart, and what lies between them.
#[derive(Debug)]
pub(super) struct Pulse {
    last: Snapshot,
    rates: Rates,
}

impl Pulse {
    /// The first reading.
    pub(super) fn new(first: Snapshot) -> Pulse {
        let rates = first.since(&first);
        Pulse { last: first, rates }
    }

    /// Takes the next one.
    pub(super) fn take(&mut self, now: Snapshot) {
        self.rates = now.since(&self.last);
        self.last = now;
    }
}

impl Daemon {
    /// The line in `systemctl status`. A refused reload stays in it until one is
    /// taken: the live figures would wipe it out within a second.
    pub(super) fn live_line(&mut self) -> String {
        let load = self.workers.load();
        let (mut up, mut all) = (0, 0);
        for endpoint in self.generation.endpoints().filter(|endpoint| !endpoint.is_draining()) {
            all += 1;
            up += usize::from(endpoint.is_up());
        }
        let fails_open = self.generation.routes().iter().any(|route| route.pool.fails_open());
        let standing =
            Standing { in_flight: load.in_flight, queued: load.queued, backends_up: up, backends: all, fails_open };
        let line = status_line(&self.pulse.last, &self.pulse.rates, &standing);
        match (&self.drain, self.reload.refusal()) {
            (Some(_), _) => format!("draining: {line}"),
            (None, _) if self.upgrade.waits() && self.predecessor.is_some() => {
                let pid = self.predecessor.as_ref().and_then(Predecessor::pid);
                let left = self.predecessor.as_ref().and_then(Predecessor::left);
                let which = pid.map_or_else(|| "the one before".to_owned(), |pid| pid.to_string());
                let most = left.map_or_else(String::new, |left| format!(", {} s at most", left.time().as_secs()));
                format!("upgrade waits for process {which}{most}: {line}")
            }
            (None, Some(reason)) => {
                format!("reload refused: {reason}, still serving generation {}; {line}", self.generation.number)
            }
            (None, None) => line,
        }
    }

    /// The answer to `doorward status`.
    pub(super) fn status(&self) -> Status {
        let load = self.workers.load();
        let now = self.workers.snapshot();
        let micros = |latency: Option<std::time::Duration>| {
            latency.map_or(0, |latency| u64::try_from(latency.as_micros()).unwrap_or(u64::MAX))
        };
        let phase = match &self.drain {
            Some(_) => "draining",
            None if self.reload.running() => "reloading",
            None if self.upgrade.running() || self.upgrade.waits() => "upgrading",
            None => "serving",
        };
        let backends = self.generation.endpoints().map(|endpoint| BackendStatus {
            connections: endpoint.connections().open(),
            waiting: endpoint.connections().waiting(),
            ..counted(&endpoint.tally().sum(), self.backend_status(endpoint))
        });
        let routes = self.generation.routes().iter().filter(|route| route.pool.fails_open());
        let left = self.predecessor.as_ref().and_then(Predecessor::left);
        let failing_open = routes.map(|route| route.name.to_string()).collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            phase: phase.to_owned(),
            predecessor: self.predecessor.as_ref().and_then(Predecessor::pid),
            predecessor_left: left.map(|left| left.time().as_secs()),
            predecessor_connections: left.map(|left| left.connections),
            generation: self.generation.number,
            config: match &self.generation.config.origin {
                Origin::File(path) | Origin::Line(path, _) => Some(path.to_path_buf()),
                Origin::Default | Origin::Environment => None,
            },
            uptime: self.began.elapsed().as_secs(),
            workers: self.threads,
            listeners: self.listeners.iter().cloned().chain(self.metrics.listeners()).collect(),
            in_flight: load.in_flight,
            queued: load.queued,
            tls: self.listeners.iter().any(|listener| listener.name == listeners::HTTPS).then(|| TlsStatus {
                handshakes: now.tls_handshakes,
                resumed: now.tls_resumed,
                under_way: load.handshakes,
                waiting: load.handshakes_waiting,
                failed: now
                    .refusals()
                    .filter(|(reason, _)| reason.is_of_handshakes())
                    .map(|(reason, count)| (reason.as_str().to_owned(), count))
                    .collect(),
            }),
            connections: now.connections_open,
            requests: now.requests(),
            retries: now.retries,
            retries_over_budget: now.retries_over_budget,
            retries_without_body: now.retries_without_body,
            bytes_spliced: now.bytes_spliced,
            requests_per_second: self.pulse.rates.requests_per_second,
            p50_us: micros(self.pulse.rates.p50),
            p99_us: micros(self.pulse.rates.p99),
            backends: backends.collect(),
            failing_open,
            certificates: self.certificates(),
            backend_certificates: self.backend_certificates(),
            automatic: self.certificate_status(),
            log_dropped: self.log.dropped(),
            reload: self.reload.last().cloned(),
        }
    }
}

impl Daemon {
    /// How a backend stands; what is counted of it is left out.
    pub(super) fn backend_status(&self, endpoint: &Endpoint) -> BackendStatus {
        // In milliseconds: else it would be another second with each look.
        let (unix, millis) = (unix_millis(), self.workers.millis());
        let report = endpoint.report();
        let unresolved = Query::of(endpoint.target()).filter(|_| !endpoint.is_resolved());
        let unresolved = unresolved.map(|query| self.resolver.error(&query).unwrap_or("not resolved yet").to_owned());
        let state = if unresolved.is_some() { State::Down } else { report.state };
        let drains = endpoint.is_draining() && state == State::Up;
        BackendStatus {
            address: endpoint.identity().to_string(),
            up: state == State::Up && !drains,
            state: if drains { DRAINING } else { state.as_str() }.to_owned(),
            since: (report.since > 0).then(|| unix.saturating_sub(millis.saturating_sub(report.since)) / 1_000),
            reason: unresolved.or_else(|| report.why.map(|reason| reason.to_string())),
            ..BackendStatus::default()
        }
    }
}

/// A backend's status with what was counted of it.
fn counted(counts: &Counts, status: BackendStatus) -> BackendStatus {
    BackendStatus {
        in_flight: counts.under_way,
        attempts: counts.attempts,
        retries: counts.retries,
        responses: counts.responses().map(|(class, count)| (class.as_str().to_owned(), count)).collect(),
        response_ms: counts.waited_ms,
        failures: counts.failures().map(|(cause, count)| (cause.as_str().to_owned(), count)).collect(),
        ..status
    }
}

impl ReloadStatus {
    /// A reload that ended just now.
    pub(super) fn now(error: Option<String>) -> ReloadStatus {
        ReloadStatus { ok: error.is_none(), at: unix_now(), error }
    }
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    unix_millis() / 1_000
}

/// Milliseconds since 1970.
fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
