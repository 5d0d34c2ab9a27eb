//! Outlier: an endpoint that fares worse than its pool is left alone for a while.
//!
//! What counts is a failure of the backend's that costs a request or its time: a
//! connection that is not taken within `CONNECT_TIMEOUT`, one that is reset, closed or
//! garbled before its answer is whole, silence beyond a timeout, and, where `EJECT_ON` says
//! so, an answer of 502, 503 or 504. What does not: any other answer, a refused connection
//! (see [`super::standing`]), a kept connection that had died, our own shortages, and
//! clients that leave. An answer begins the count anew.
//!
//! An endpoint is ejected after `EJECT_AFTER` such failures in a row, but only
//!
//! - if at least half of the others fare well: where all fail, none is to blame, and those
//!   that are left would only get more to fail on;
//! - as long as no more than half of the pool is out, whatever the cause: one of two, one
//!   of three, two of four. So the only backend is never ejected.
//!
//! It stays away for `EJECT_TIME`, doubled with each further ejection up to
//! `EJECT_TIME_MAX`. Then one request goes there, the probe: its answer ends the ejection,
//! its failure begins the next one. Should nothing be heard of it, as when its client left,
//! another goes after [`PROBE`].
//!
//! One that answers, but far too late, is a matter of [`super::slowness`].
//!
//! Control alone judges, since it alone sees all pools and no worker decides behind
//! another's back; the workers only count.
//!
//! Source: Envoy, outlier detection; Linkerd, failure accrual.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::standing::{State, millis};
use crate::config::RouteSettings;

/// How long others keep away while a probe is under way.
pub const PROBE: Duration = Duration::from_secs(10);

/// When a route's backends are ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Failures in a row; `None` for never.
    pub after: Option<u32>,
    /// The first ejection.
    pub time: Duration,
    /// The longest one.
    pub most: Duration,
    /// How many times slower than the others a backend may be; `None` for any.
    pub slower: Option<u32>,
}

/// The backends of a route that take requests, and its terms.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// Its terms.
    pub terms: Terms,
    /// Its backends.
    pub endpoints: Vec<&'a Arc<Endpoint>>,
}

impl Terms {
    /// Those of a route.
    #[must_use]
    pub fn of(settings: &RouteSettings) -> Self {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            after: settings.eject_after.map(number),
            time: settings.eject_time,
            most: settings.eject_time_max,
            slower: settings.eject_latency.map(number),
        }
    }
}

impl<'a> Group<'a> {
    /// Backends with the terms of their route.
    pub fn new(terms: Terms, endpoints: impl IntoIterator<Item = &'a Arc<Endpoint>>) -> Self {
        Self { terms, endpoints: endpoints.into_iter().collect() }
    }

    /// Whether any of its backends is ever ejected.
    #[must_use]
    pub fn ejects(&self) -> bool {
        self.endpoints.len() > 1 && (self.terms.after.is_some() || self.terms.slower.is_some())
    }

    fn has(&self, endpoint: &Endpoint) -> bool {
        self.endpoints.iter().any(|other| other.number() == endpoint.number())
    }

    /// Whether `endpoint` can be spared, and is worse than the others.
    fn can_spare(&self, endpoint: &Endpoint) -> bool {
        let others = || self.endpoints.iter().filter(|other| other.number() != endpoint.number());
        let up = others().filter(|other| other.is_up()).count();
        let well = others().filter(|other| other.is_up() && other.failures().0 == 0).count();
        let out = others().count() - up;
        out < self.endpoints.len() / 2 && well * 2 >= others().count()
    }
}

/// Ejects what is to be ejected at `now` milliseconds; returns how many that were.
///
/// A backend that several routes share is ejected for all of them, so each must be able to
/// spare it; but not a route that has no other, which goes on using it.
pub fn judge(groups: &[Group<'_>], now: u64) -> usize {
    let mut ejected = 0;
    for group in groups {
        let Some(after) = group.terms.after else { continue };
        for endpoint in &group.endpoints {
            let (failures, last) = endpoint.failures();
            if failures < after || endpoint.state() != State::Up {
                continue;
            }
            if can_be_spared(groups, group, endpoint) {
                let why = format!("{failures} failures in a row, the last one {}", last.unwrap_or_default());
                endpoint.eject(group.terms.time, group.terms.most, why.into(), now);
                ejected += 1;
            }
        }
    }
    ejected
}

/// Lets those return at once, at `now` milliseconds, that no route would eject any more.
pub fn pardon(groups: &[Group<'_>], now: u64) {
    for endpoint in groups.iter().flat_map(|group| &group.endpoints) {
        let ejects = || groups.iter().any(|group| group.ejects() && group.has(endpoint));
        if endpoint.is_troubled() && !ejects() {
            endpoint.pardon(now);
        }
    }
}

/// Whether each route that has the endpoint beside others can spare it, and `group` is one.
pub(super) fn can_be_spared(groups: &[Group<'_>], group: &Group<'_>, endpoint: &Endpoint) -> bool {
    let mut concerned = groups.iter().filter(|group| group.endpoints.len() > 1 && group.has(endpoint));
    group.endpoints.len() > 1 && concerned.all(|group| group.can_spare(endpoint))
}

/// A time that an endpoint is left alone. Times are milliseconds of the daemon's clock.
#[derive(Debug)]
pub struct Ejection {
    since: u64,
    over: u64,
    lent: u64,
    time: Duration,
    first: Duration,
    most: Duration,
    why: Arc<str>,
}

impl Ejection {
    /// The `count`th ejection, counted from 1, which begins at `now`.
    #[must_use]
    pub fn new(first: Duration, most: Duration, count: u32, why: Arc<str>, now: u64) -> Self {
        let mut ejection = Self { since: now, over: 0, lent: 0, time: first, first, most, why: Arc::clone(&why) };
        ejection.prolong(count, why, now);
        ejection
    }

    /// Another one follows at once.
    pub fn prolong(&mut self, count: u32, why: Arc<str>, now: u64) {
        let doublings = count.saturating_sub(1).min(16);
        self.time = self.first.saturating_mul(1 << doublings).min(self.most);
        self.over = now.saturating_add(millis(self.time));
        self.lent = 0;
        self.why = why;
    }

    /// Whether its time is over, so that a probe may go.
    #[must_use]
    pub fn is_over(&self, now: u64) -> bool {
        now >= self.over
    }

    /// A probe goes.
    pub fn lend(&mut self, now: u64) {
        self.lent = now.saturating_add(millis(PROBE));
    }

    /// Until when nobody goes there.
    #[must_use]
    pub fn until(&self) -> u64 {
        self.over.max(self.lent)
    }

    /// Since when it has been away.
    #[must_use]
    pub fn since(&self) -> u64 {
        self.since
    }

    /// How long the present ejection lasts.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time
    }

    /// What it did.
    #[must_use]
    pub fn why(&self) -> Arc<str> {
        Arc::clone(&self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::{Group, Terms, judge, pardon};
    use crate::balance::endpoint::Endpoint;
    use crate::balance::standing::{FALL, State};
    use crate::config::{BackendAddress, Target};
    use crate::telemetry::Reason;
    use std::sync::Arc;
    use std::time::Duration;

    const TERMS: Terms =
        Terms { after: Some(5), time: Duration::from_secs(30), most: Duration::from_secs(300), slower: None };

    fn endpoints(count: u16) -> Vec<Arc<Endpoint>> {
        let at = |index| Target::Ip(format!("127.0.0.1:{}", 4000 + index).parse().unwrap());
        (0..count)
            .map(|index| Arc::new(Endpoint::new(&BackendAddress { target: at(index), weight: 1, backup: false })))
            .collect()
    }

    fn fail(endpoint: &Endpoint, times: u32, now: u64) {
        for _ in 0..times {
            endpoint.failed("backend_reset", now);
        }
    }

    fn one(endpoints: &[Arc<Endpoint>], now: u64) -> usize {
        judge(&[Group::new(TERMS, endpoints)], now)
    }

    fn ejected(endpoints: &[Arc<Endpoint>]) -> usize {
        endpoints.iter().filter(|endpoint| endpoint.state() == State::Ejected).count()
    }

    #[test]
    fn failures_in_a_row_eject_and_an_answer_between_them_saves() {
        let pool = endpoints(3);
        fail(&pool[0], 4, 0);
        assert_eq!(one(&pool, 0), 0);
        pool[0].answered(0);
        fail(&pool[0], 4, 0);
        assert_eq!(one(&pool, 0), 0);
        fail(&pool[0], 1, 0);
        assert_eq!(one(&pool, 0), 1);
        let report = pool[0].report();
        assert_eq!(report.state, State::Ejected);
        assert_eq!(report.why.as_deref(), Some("5 failures in a row, the last one backend_reset"));
        assert!(!pool[0].admits(29_999) && pool[0].admits(30_000));
    }

    #[test]
    fn the_only_backend_is_never_ejected_and_of_two_only_one() {
        let pool = endpoints(1);
        fail(&pool[0], 100, 0);
        assert_eq!(one(&pool, 0), 0);
        let pool = endpoints(2);
        fail(&pool[0], 5, 0);
        assert_eq!(one(&pool, 0), 1);
        fail(&pool[1], 5, 0);
        assert_eq!((one(&pool, 0), ejected(&pool)), (0, 1));
    }

    #[test]
    fn never_more_than_half_of_a_pool_is_out_whatever_the_cause() {
        for count in 2..=9 {
            let pool = endpoints(count);
            // One after the other, so that the others always fare well.
            for endpoint in &pool {
                fail(endpoint, 5, 0);
                one(&pool, 0);
            }
            assert_eq!(ejected(&pool), usize::from(count) / 2, "of {count}");
        }
        let pool = endpoints(4);
        for _ in 0..FALL {
            pool[0].refused(Reason::BackendConnectRefused, 0);
        }
        fail(&pool[1], 5, 0);
        assert_eq!(one(&pool, 0), 1);
        fail(&pool[2], 5, 0);
        assert_eq!(one(&pool, 0), 0, "one is down and one is ejected");
    }

    #[test]
    fn where_all_fail_none_is_to_blame() {
        let pool = endpoints(5);
        pool.iter().for_each(|endpoint| fail(endpoint, 50, 0));
        assert_eq!(one(&pool, 0), 0);
        // Two of them recover: half of the others fare well.
        pool[3].answered(1);
        pool[4].answered(1);
        assert_eq!((one(&pool, 1), ejected(&pool)), (2, 2));
    }

    #[test]
    fn a_backend_of_several_routes_must_be_spared_by_each_that_has_another() {
        let all = endpoints(4);
        let (wide, narrow, lone) = (&all[..], &all[..2], &all[..1]);
        let groups = [wide, narrow, lone].map(|endpoints| Group::new(TERMS, endpoints));
        fail(&all[0], 5, 0);
        assert_eq!(judge(&groups, 0), 1);
        fail(&all[1], 5, 0);
        assert_eq!(judge(&groups, 0), 0, "the pool of two has lost one already");
        all[1].answered(0);
        fail(&all[2], 5, 0);
        assert_eq!(judge(&groups, 0), 1);
    }

    #[test]
    fn a_route_without_terms_ejects_nobody() {
        let pool = endpoints(3);
        fail(&pool[0], 50, 0);
        let terms = Terms { after: None, ..TERMS };
        assert_eq!(judge(&[Group::new(terms, &pool)], 0), 0);
    }

    #[test]
    fn where_nobody_is_ejected_any_more_those_who_were_return() {
        let pool = endpoints(3);
        fail(&pool[0], 5, 0);
        one(&pool, 0);
        let never = Terms { after: None, ..TERMS };
        pardon(&[Group::new(never, &pool), Group::new(TERMS, &pool[..2])], 5);
        assert_eq!(pool[0].state(), State::Ejected, "another route still would");
        pardon(&[Group::new(never, &pool), Group::new(TERMS, &pool[..1])], 5);
        assert_eq!((pool[0].state(), pool[0].up_since()), (State::Up, 5));
    }
}
