//! Standing: what is held against one endpoint, since when, and what would lift it.
//!
//! Three things can be, each by a rule of its own:
//!
//! | it is | because | until |
//! | --- | --- | --- |
//! | down | [`FALL`] connections in a row were refused, or could not be made | one stands; that is tried after [`DOWN_FIRST`], doubled up to [`DOWN_MOST`] |
//! | failing | its checks do not pass ([`super::health`]) | they pass |
//! | ejected | it fares worse than its pool ([`super::outlier`]) | its time is over, and one request, the probe, was answered |
//!
//! Down is a fact: nobody takes connections there, and to ask again costs a fraction of a
//! millisecond and no byte of a request. So it is asked about once a second, and where all
//! backends are down a request is answered with 503 at once: there is nowhere to send it.
//! Failing and ejected are opinions, which may be wrong of all backends at once (a check of
//! the wrong path, a database that all of them share). So they count only as long as some
//! backend is better off; a pool without any is used as if nothing were held against it
//! ([`super::pool`]), except what is down.
//!
//! A refused connection never ejects: a backend that restarts is back within a second, and
//! would else be kept out for half a minute. One that times out counts for both, since each
//! further attempt costs a request as long.

use std::sync::Arc;
use std::time::Duration;

use super::health::Checked;
use super::outlier::Ejection;
use crate::telemetry::Reason;

/// Failed connection attempts in a row after which an endpoint is down.
pub const FALL: u32 = 5;

/// How long an endpoint is first held to be down.
pub const DOWN_FIRST: Duration = Duration::from_millis(100);

/// How long an endpoint is held to be down at most before it is probed again: short,
/// since every request is refused meanwhile where it is the only one.
pub const DOWN_MOST: Duration = Duration::from_secs(1);

/// Whether requests go to an endpoint, and if not, what speaks against it. Where several
/// things do, the one that stands first here counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No connection can be made.
    Down,
    /// Its checks fail.
    Failing,
    /// It fares worse than its pool.
    Ejected,
    /// Nothing is held against it.
    Up,
}

impl State {
    /// The word for it in log and status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            State::Down => "down",
            State::Failing => "failing",
            State::Ejected => "ejected",
            State::Up => "up",
        }
    }
}

/// How an endpoint stands at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its state.
    pub state: State,
    /// Since when, in milliseconds of the daemon's clock; 0 for one that was never out.
    pub since: u64,
    /// Why, if it is out.
    pub why: Option<Arc<str>>,
    /// Of an ejected one: how long the ejection lasts.
    pub eject_time: Option<Duration>,
    /// Counts changes of state.
    pub changes: u64,
}

/// What is held against one endpoint. All times are milliseconds of the daemon's clock.
#[derive(Debug, Default)]
pub struct Standing {
    /// Connections that failed in a row.
    refusals: u32,
    down: Option<Down>,
    /// Requests that failed in a row, as far as they count for an ejection.
    failures: u32,
    last: Option<&'static str>,
    ejection: Option<Ejection>,
    ejections: u32,
    /// When the last ejection ended.
    returned: u64,
    checked: Checked,
    up_since: u64,
    changes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Down {
    since: u64,
    /// Until then nobody goes there; afterwards one does.
    until: u64,
    reason: Reason,
}

impl Standing {
    /// Takes note of a connection that was made.
    pub fn connected(&mut self, now: u64) {
        let before = self.state();
        self.refusals = 0;
        self.down = None;
        self.note(before, now);
    }

    /// Takes note of an answer. It ends an ejection whose time is over; an earlier one
    /// was to a request that is older than the ejection.
    pub fn answered(&mut self, now: u64) {
        let before = self.state();
        self.refusals = 0;
        self.down = None;
        self.failures = 0;
        if self.ejection.as_ref().is_some_and(|ejection| ejection.is_over(now)) {
            self.ejection = None;
            self.returned = now;
        }
        self.note(before, now);
    }

    /// Takes note of a connection that could not be made, for `reason`.
    pub fn refused(&mut self, reason: Reason, now: u64) {
        let before = self.state();
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= FALL {
            let doublings = (self.refusals - FALL).min(16);
            let rest = DOWN_FIRST.saturating_mul(1 << doublings).min(DOWN_MOST);
            let since = self.down.map_or(now, |down| down.since);
            self.down = Some(Down { since, until: now.saturating_add(millis(rest)).max(1), reason });
        }
        self.note(before, now);
    }

    /// Takes note of a request that failed in a way that counts for an ejection; returns
    /// how many did in a row. One that was the probe of an ejected endpoint prolongs the
    /// ejection.
    pub fn failed(&mut self, what: &'static str, now: u64) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(what);
        if let Some(ejection) = self.ejection.as_mut().filter(|ejection| ejection.is_over(now)) {
            self.ejections = self.ejections.saturating_add(1);
            ejection.prolong(self.ejections, format!("the probe failed: {what}").into(), now);
            self.changes += 1;
        }
        self.failures
    }

    /// Requests that failed in a row, and how the last one did.
    #[must_use]
    pub fn failures(&self) -> (u32, Option<&'static str>) {
        (self.failures, self.last)
    }

    /// Ejects it: requests keep away for `time`, doubled for each ejection before that is
    /// not forgiven, `most` in all. One is forgiven for each `most` that it was up since.
    pub fn eject(&mut self, time: Duration, most: Duration, why: Arc<str>, now: u64) {
        let before = self.state();
        let good = now.saturating_sub(self.returned) / millis(most).max(1);
        self.ejections = self.ejections.saturating_sub(u32::try_from(good).unwrap_or(u32::MAX)).saturating_add(1);
        self.ejection = Some(Ejection::new(time, most, self.ejections, why, now));
        self.failures = 0;
        self.note(before, now);
    }

    /// Ends an ejection: it is not to be ejected any more.
    pub fn pardon(&mut self, now: u64) {
        let before = self.state();
        self.ejection = None;
        self.note(before, now);
    }

    /// Takes note of the outcome of a check; `Err` says why it did not pass.
    pub fn checked(&mut self, outcome: Result<(), Arc<str>>, rise: u32, fall: u32, now: u64) {
        let before = self.state();
        if outcome.is_ok() {
            // It takes connections.
            self.refusals = 0;
            self.down = None;
        }
        self.checked.note(outcome, rise, fall, now);
        self.note(before, now);
    }

    /// Forgets what checks have found: it is not checked any more.
    pub fn unchecked(&mut self, now: u64) {
        let before = self.state();
        self.checked = Checked::default();
        self.note(before, now);
    }

    /// Asks to send a request there at `now`. Of what is held against it and has had its
    /// time, one request tries whether it still holds; who is told `true` is that one.
    pub fn claim(&mut self, now: u64) -> bool {
        if self.checked.is_failing() || self.closed_until() > now {
            return false;
        }
        if let Some(ejection) = &mut self.ejection {
            ejection.lend(now);
        }
        self.claim_connection(now);
        true
    }

    /// The same for a request that must go somewhere: only where no connection can be made
    /// it can't go.
    pub fn claim_connection(&mut self, now: u64) -> bool {
        match &mut self.down {
            Some(down) if now < down.until => false,
            Some(down) => {
                down.until = now.saturating_add(millis(DOWN_MOST));
                true
            }
            None => true,
        }
    }

    /// Until when nobody goes there: 0 when nothing is held against it, `u64::MAX` while
    /// its checks fail.
    #[must_use]
    pub fn closed_until(&self) -> u64 {
        if self.checked.is_failing() {
            return u64::MAX;
        }
        self.down_until().max(self.ejection.as_ref().map_or(0, Ejection::until))
    }

    /// Until when no connection is tried: 0 when they can be made.
    #[must_use]
    pub fn down_until(&self) -> u64 {
        self.down.map_or(0, |down| down.until)
    }

    /// Counts changes of state.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether a connection made or an answer changes nothing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.refusals == 0 && self.failures == 0 && self.down.is_none() && self.ejection.is_none()
    }

    /// Whether requests go there, and what speaks against it.
    #[must_use]
    pub fn state(&self) -> State {
        if self.down.is_some() {
            State::Down
        } else if self.checked.is_failing() {
            State::Failing
        } else if self.ejection.is_some() {
            State::Ejected
        } else {
            State::Up
        }
    }

    /// When it came up after it had been out; 0 for one that never was.
    #[must_use]
    pub fn up_since(&self) -> u64 {
        self.up_since
    }

    /// How it stands.
    #[must_use]
    pub fn report(&self) -> Report {
        let state = self.state();
        let (since, why) = match (state, &self.down, &self.ejection) {
            (State::Down, Some(down), _) => (down.since, Some(down.reason.as_str().into())),
            (State::Failing, ..) => (self.checked.since(), self.checked.why()),
            (State::Ejected, _, Some(ejection)) => (ejection.since(), Some(ejection.why())),
            _ => (self.up_since, None),
        };
        let eject_time = self.ejection.as_ref().filter(|_| state == State::Ejected).map(Ejection::time);
        Report { state, since, why, eject_time, changes: self.changes }
    }

    fn note(&mut self, before: State, now: u64) {
        let after = self.state();
        if before == after {
            return;
        }
        self.changes += 1;
        if after == State::Up {
            self.up_since = now.max(1);
        }
    }
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{DOWN_MOST, FALL, Standing, State, millis};
    use crate::telemetry::Reason;
    use std::time::Duration;

    const REFUSED: Reason = Reason::BackendConnectRefused;
    const RESET: &str = "backend_reset";
    const TIME: Duration = Duration::from_secs(30);
    const MOST: Duration = Duration::from_secs(300);

    fn eject(standing: &mut Standing, now: u64) {
        standing.eject(TIME, MOST, "5 failures in a row".into(), now);
    }

    fn fall(standing: &mut Standing, now: u64) {
        (0..FALL).for_each(|_| standing.refused(REFUSED, now));
    }

    #[test]
    fn refused_connections_take_it_down_and_one_that_stands_brings_it_back() {
        let mut standing = Standing::default();
        for _ in 1..FALL {
            standing.refused(REFUSED, 10);
        }
        assert_eq!(standing.state(), State::Up);
        standing.refused(REFUSED, 10);
        assert_eq!(standing.state(), State::Down);
        let report = standing.report();
        assert_eq!((report.since, report.why.as_deref()), (10, Some("backend_connect_refused")));
        standing.connected(70);
        assert_eq!((standing.state(), standing.up_since(), standing.is_clean()), (State::Up, 70, true));
    }

    #[test]
    fn what_is_down_is_tried_again_within_a_second_however_long_it_lasts() {
        let mut standing = Standing::default();
        fall(&mut standing, 0);
        let mut tried = Vec::new();
        while tried.len() < 8 {
            let now = standing.closed_until();
            assert!(!standing.claim(now - 1));
            assert!(standing.claim(now));
            assert!(!standing.claim(now), "the probe is under way");
            tried.push(now);
            standing.refused(REFUSED, now);
        }
        let pauses: Vec<u64> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!((tried[0], pauses.as_slice()), (100, &[200, 400, 800, 1000, 1000, 1000, 1000][..]));
        assert_eq!(standing.report().since, 0, "since the beginning, not since the last probe");
    }

    #[test]
    fn a_probe_of_which_nothing_is_heard_leaves_the_turn_to_another() {
        let mut standing = Standing::default();
        fall(&mut standing, 0);
        assert!(standing.claim(100));
        assert!(!standing.claim(1_099));
        assert!(standing.claim(100 + millis(DOWN_MOST)));
    }

    #[test]
    fn an_ejected_endpoint_returns_only_by_a_probe_that_is_answered() {
        let mut standing = Standing::default();
        eject(&mut standing, 1_000);
        assert_eq!(standing.state(), State::Ejected);
        // Answers to requests that were under way say nothing.
        standing.answered(2_000);
        standing.connected(2_000);
        assert!(!standing.claim(30_999));
        assert!(standing.claim(31_000));
        assert!(!standing.claim(31_001), "one probe at a time");
        assert_eq!(standing.state(), State::Ejected);
        standing.answered(31_200);
        assert_eq!((standing.state(), standing.up_since()), (State::Up, 31_200));
        assert!(standing.claim(31_200));
    }

    #[test]
    fn each_ejection_is_twice_as_long_as_the_one_before_up_to_its_cap() {
        let mut standing = Standing::default();
        eject(&mut standing, 0);
        let mut times = vec![standing.report().eject_time.unwrap().as_secs()];
        let mut now = 0;
        for _ in 0..5 {
            now += times.last().unwrap() * 1000;
            assert!(standing.claim(now));
            standing.failed(RESET, now);
            assert!(!standing.claim(now + 1));
            times.push(standing.report().eject_time.unwrap().as_secs());
        }
        assert_eq!(times, [30, 60, 120, 240, 300, 300]);
        assert_eq!(standing.report().why.as_deref(), Some("the probe failed: backend_reset"));
    }

    #[test]
    fn past_ejections_are_forgiven_one_by_one() {
        let mut standing = Standing::default();
        let mut now = 0;
        // It fails again soon after each return: 30, 60, 120.
        for seconds in [30, 60, 120] {
            eject(&mut standing, now);
            assert_eq!(standing.report().eject_time, Some(Duration::from_secs(seconds)));
            now += seconds * 1000;
            standing.answered(now);
            now += 1000;
        }
        // Ten minutes without a fault forgive two of them.
        now += 600_000;
        eject(&mut standing, now);
        assert_eq!(standing.report().eject_time, Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_refused_probe_does_not_return_it_and_a_refusal_alone_never_ejects() {
        let mut standing = Standing::default();
        fall(&mut standing, 0);
        assert_eq!((standing.state(), standing.failures().0), (State::Down, 0));
        let mut standing = Standing::default();
        eject(&mut standing, 0);
        assert!(standing.claim(30_000));
        standing.refused(REFUSED, 30_000);
        assert_eq!(standing.state(), State::Ejected);
    }

    #[test]
    fn checks_that_fail_close_it_and_what_is_not_down_can_still_be_claimed() {
        let mut standing = Standing::default();
        standing.checked(Err("status 500".into()), 2, 3, 5);
        assert_eq!((standing.state(), standing.closed_until()), (State::Failing, u64::MAX));
        assert_eq!(standing.report().why.as_deref(), Some("status 500"));
        assert!(!standing.claim(1 << 40) && standing.claim_connection(6));
        standing.answered(7);
        assert_eq!(standing.state(), State::Failing, "only checks lift what checks have found");
        fall(&mut standing, 8);
        assert!(!standing.claim_connection(9));
        standing.checked(Ok(()), 2, 3, 10);
        assert_eq!(standing.state(), State::Failing, "a check got through, so it is not down");
        standing.checked(Ok(()), 2, 3, 11);
        assert_eq!((standing.state(), standing.up_since()), (State::Up, 11));
    }

    #[test]
    fn an_endpoint_that_is_checked_no_more_is_up() {
        let mut standing = Standing::default();
        standing.checked(Err("status 500".into()), 2, 3, 5);
        standing.unchecked(6);
        assert_eq!((standing.state(), standing.report().changes), (State::Up, 2));
    }
}
