//! Figures: what the metrics are made of, gathered at one moment.
//!
//! A scrape counts nothing: it is what workers have counted, what control knows of backends
//! and certificates, and what the configuration says.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::admin::protocol::{AutomaticStatus, BackendStatus};
use crate::balance::endpoint::Endpoint;
use crate::balance::standing::State;
use crate::balance::tally::Counts;
use crate::lifecycle::control::Daemon;
use crate::lifecycle::status::DRAINING;
use crate::proxy::workers::Load;
use crate::state::Limits;
use crate::telemetry::Snapshot;
use crate::tls::Pair;

/// Every state that a backend may be in.
pub(super) const STATES: &[&str] =
    &[State::Up.as_str(), State::Down.as_str(), State::Failing.as_str(), State::Ejected.as_str(), DRAINING];

/// What there is to tell at one moment. Times are in seconds since 1970.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) started: u64,
    pub(super) threads: u64,
    pub(super) drains: bool,
    pub(super) generation: u64,
    pub(super) reload_ok: bool,
    pub(super) reload_at: u64,
    pub(super) log_dropped: u64,
    pub(super) counts: Snapshot,
    pub(super) load: Load,
    pub(super) limits: Limits,
    /// Every backend of every route.
    pub(super) members: Vec<Member>,
    /// Every backend once, whatever routes it is in.
    pub(super) backends: Vec<Backend>,
    /// Every route, and whether it fails open.
    pub(super) routes: Vec<(Arc<str>, bool)>,
    pub(super) certificates: Vec<Certificate>,
    pub(super) automatic: Vec<Automatic>,
}

/// A backend as one route sees it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) route: Arc<str>,
    pub(super) backend: Arc<str>,
    pub(super) up: bool,
    pub(super) state: String,
    pub(super) changes: u64,
    pub(super) failures: u32,
}

/// What all routes have of a backend together.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) backend: Arc<str>,
    pub(super) connections: usize,
    pub(super) waiting: usize,
    pub(super) counts: Counts,
}

/// A certificate.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) shown_to: &'static str,
    pub(super) names: String,
    pub(super) file: String,
    pub(super) not_after: i64,
}

/// A name that a certificate is had for by ACME.
#[derive(Debug)]
pub(super) struct Automatic {
    pub(super) name: String,
    pub(super) valid: bool,
    pub(super) fails: bool,
    pub(super) next: Option<u64>,
}

impl Certificate {
    fn of(pair: &Pair, shown_to: &'static str) -> Self {
        let file = pair.certificate.display().to_string();
        Self { shown_to, names: pair.facts.covers(), file, not_after: pair.facts.not_after }
    }
}

impl From<AutomaticStatus> for Automatic {
    fn from(status: AutomaticStatus) -> Self {
        let now = SystemTime::now();
        let ends = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let valid = status.not_after.is_some_and(|seconds| ends(seconds) > now);
        Self { name: status.name, valid, fails: status.error.is_some(), next: status.next }
    }
}

impl Daemon {
    /// What there is to tell now.
    pub(super) fn figures(&self) -> Figures {
        let routes = self.generation.routes();
        let mut members = Vec::new();
        for route in routes {
            members.extend(route.pool.endpoints().iter().map(|endpoint| self.member(&route.name, endpoint)));
        }
        let started = SystemTime::now() - self.began.elapsed();
        let started = started.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let shown = self.generation.doors.pairs().map(|pair| Certificate::of(pair, "clients"));
        let proving = self.generation.clients.identities().map(|pair| Certificate::of(pair, "backends"));
        let last = self.reload.last();
        Figures {
            started,
            threads: u64::try_from(self.threads).unwrap_or(u64::MAX),
            drains: self.drain.is_some(),
            generation: self.generation.number,
            reload_ok: last.is_none_or(|last| last.ok),
            reload_at: last.map_or(started, |last| last.at),
            log_dropped: self.log.dropped(),
            counts: self.workers.snapshot(),
            load: self.workers.load(),
            limits: self.generation.limits(),
            members,
            backends: backends(self.generation.endpoints()),
            routes: routes.iter().map(|route| (Arc::clone(&route.name), route.pool.fails_open())).collect(),
            certificates: shown.chain(proving).collect(),
            automatic: self.certificate_status().into_iter().map(Automatic::from).collect(),
        }
    }

    fn member(&self, route: &Arc<str>, endpoint: &Endpoint) -> Member {
        let BackendStatus { up, state, .. } = self.backend_status(endpoint);
        Member {
            route: Arc::clone(route),
            backend: Arc::clone(endpoint.identity()),
            up,
            state,
            changes: endpoint.report().changes,
            failures: endpoint.failures().0,
        }
    }
}

/// Each backend once: endpoints of it that are checked differently share all of this.
fn backends<'a>(endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) -> Vec<Backend> {
    let mut seen = HashSet::new();
    let each = endpoints.filter(|endpoint| seen.insert(Arc::clone(endpoint.identity())));
    let backend = |endpoint: &Arc<Endpoint>| Backend {
        backend: Arc::clone(endpoint.identity()),
        connections: endpoint.connections().open(),
        waiting: endpoint.connections().waiting(),
        counts: endpoint.tally().sum(),
    };
    each.map(backend).collect()
}
