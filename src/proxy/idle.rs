//! Idle: a worker's HTTP/1.1 connections to backends that wait for the next request.
//!
//! Every worker keeps its own, so borrowing one takes no lock. The newest is used first,
//! and when there are too many the oldest goes; what has waited longer than it may, or
//! has stirred while it should have been silent, is closed instead of reused. How long it
//! may is `BACKEND_IDLE_TIMEOUT`, or what the backend says of itself in `Keep-Alive`
//! where that is shorter.
//!
//! Where a backend's connections are limited, what is given back goes to whoever waits
//! for one, on whichever worker; what lies here when somebody begins to wait is given up
//! when the worker is asked to ([`IdlePool::give_up`]).

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use super::http1::upstream::Http1Upstream;
use super::upstream::Upstream;
use crate::balance::connections::{IdleMark, Parked};
use crate::balance::endpoint::Endpoint;
use crate::config::RouteSettings;

/// How long a connection may have been idle to carry a request that must not be
/// repeated: the shorter, the less likely the backend closes it meanwhile.
const FRESH: u64 = 1_000;

/// A worker's idle connections.
#[derive(Debug, Default)]
pub struct IdlePool {
    /// By the endpoint's number, the newest last.
    by_backend: RefCell<FxHashMap<u64, VecDeque<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    upstream: Box<Http1Upstream>,
    since: u64,
    until: u64,
    /// Tells those who wait that it is there, where there is a limit.
    mark: Option<IdleMark>,
}

impl Idle {
    fn is_good(&self, now: u64) -> bool {
        now < self.until && !self.upstream.stirred()
    }

    fn park(self) -> Option<Parked> {
        let (socket, tls, slot) = self.upstream.release()?;
        let tls = tls.map(|tls| tls as Box<dyn Any + Send>);
        Some(Parked { socket, tls, since: self.since, until: self.until, slot })
    }
}

/// Whether a connection that is idle since then may carry a request at `now`.
#[must_use]
pub fn is_fresh(since: u64, repeatable: bool, now: u64) -> bool {
    repeatable || now.saturating_sub(since) < FRESH
}

impl IdlePool {
    /// The newest connection to `endpoint` that is still good at `now` milliseconds. A
    /// request that must not be repeated takes only one that was used just now.
    pub fn take(&self, endpoint: &Endpoint, repeatable: bool, now: u64) -> Option<Upstream> {
        let mut by_backend = self.by_backend.borrow_mut();
        let idle = by_backend.get_mut(&endpoint.number())?;
        while let Some(newest) = idle.back() {
            // Those before it are older still.
            if !is_fresh(newest.since, repeatable, now) {
                return None;
            }
            let newest = idle.pop_back()?;
            if newest.is_good(now) {
                let mut upstream = newest.upstream;
                upstream.reuse();
                return Some(Upstream::Http1(upstream));
            }
        }
        None
    }

    /// Keeps a connection whose exchange is over at `now`, if it can serve another.
    pub fn put(&self, endpoint: &Endpoint, upstream: Upstream, settings: &RouteSettings, now: u64) {
        // A stream ends with its exchange; its connection is kept elsewhere.
        let Upstream::Http1(mut upstream) = upstream else { return };
        let connections = endpoint.connections();
        if !upstream.is_reusable() || endpoint.is_draining() {
            return;
        }
        let kept =
            upstream.patience().map_or(settings.backend_idle_timeout, |its| its.min(settings.backend_idle_timeout));
        if kept.is_zero() || settings.backend_idle_connections == 0 {
            return;
        }
        upstream.rest();
        let mark = if connections.is_limited() {
            if connections.is_over() {
                return;
            }
            Some(connections.mark_idle())
        } else {
            None
        };
        let until = now.saturating_add(u64::try_from(kept.as_millis()).unwrap_or(u64::MAX));
        let idle = Idle { upstream, since: now, until, mark };
        // Seen after the mark was made: who begins to wait later sees the mark.
        if idle.mark.is_some() && connections.waiting() > 0 {
            give(idle);
            return;
        }
        let mut by_backend = self.by_backend.borrow_mut();
        let kept = by_backend.entry(endpoint.number()).or_default();
        if kept.len() >= settings.backend_idle_connections {
            kept.pop_front();
        }
        kept.push_back(idle);
    }

    /// Gives up connections that somebody waits for, the newest first.
    pub fn give_up(&self) {
        for idle in self.by_backend.borrow_mut().values_mut() {
            let wanted = |idle: &Idle| idle.mark.as_ref().is_some_and(|mark| mark.of().waiting() > 0);
            while idle.back().is_some_and(wanted) {
                if let Some(idle) = idle.pop_back() {
                    give(idle);
                }
            }
        }
    }

    /// Closes what leads to none of these endpoints, or to one that drains, or is not
    /// counted where there is a limit now.
    pub fn keep_only<'a>(&self, endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) {
        let (mut kept, mut limited) = (FxHashSet::default(), FxHashSet::default());
        for endpoint in endpoints.filter(|endpoint| !endpoint.is_draining()) {
            kept.insert(endpoint.number());
            if endpoint.connections().is_limited() {
                limited.insert(endpoint.number());
            }
        }
        self.by_backend.borrow_mut().retain(|number, idle| {
            if limited.contains(number) {
                idle.retain(|idle| idle.mark.is_some());
            }
            kept.contains(number) && !idle.is_empty()
        });
    }

    /// Closes what has waited too long at `now`, and what stirred.
    pub fn sweep(&self, now: u64) {
        self.by_backend.borrow_mut().retain(|_, idle| {
            idle.retain(|idle| idle.is_good(now));
            !idle.is_empty()
        });
    }
}

/// Hands a connection to who waits for one. What can't be moved, or is not wanted any more,
/// is closed: its slot is then free.
fn give(idle: Idle) {
    let Some(mark) = &idle.mark else { return };
    let connections = Arc::clone(mark.of());
    if let Some(parked) = idle.park() {
        drop(connections.hand_over(parked));
    }
}

/// How long a backend keeps an idle connection, by its `Keep-Alive: timeout=N, max=N`: less
/// a second for the way there, or half of it where that is more. Zero: not at all.
///
/// Source: RFC 2068 §19.7.1.1; the parameters are those of Apache and Node.
#[must_use]
pub fn stated(keep_alive: &[u8]) -> Option<Duration> {
    let mut patience = None;
    for parameter in keep_alive.split(|byte| *byte == b',') {
        let mut parts = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { continue };
        let Some(value) = std::str::from_utf8(value).ok().and_then(|value| value.parse::<u32>().ok()) else { continue };
        if name.eq_ignore_ascii_case(b"timeout") {
            let whole = Duration::from_secs(value.into());
            patience = Some((whole / 2).max(whole.saturating_sub(Duration::from_secs(1))));
        } else if name.eq_ignore_ascii_case(b"max") && value == 0 {
            return Some(Duration::ZERO);
        }
    }
    patience
}

#[cfg(test)]
mod tests {
    use super::stated;
    use std::time::Duration;

    #[test]
    fn what_a_backend_says_of_its_patience_is_taken_with_a_margin() {
        for (field, millis) in [
            ("timeout=5", Some(4_000)),
            ("timeout=1", Some(500)),
            ("Timeout = 2 , max=100", Some(1_000)),
            ("timeout=0", Some(0)),
            ("max=100", None),
            ("timeout=5, max=0", Some(0)),
            ("timeout=-1", None),
            ("timeout", None),
            ("", None),
        ] {
            assert_eq!(stated(field.as_bytes()), millis.map(Duration::from_millis), "{field}");
        }
    }
}
