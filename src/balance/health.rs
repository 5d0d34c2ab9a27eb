//! Health: what checks in a row say of an endpoint.
//!
//! One that passes does not make a backend sound, nor one that fails a broken one: `fall`
//! failures in a row take it out and `rise` successes bring it back. Only the very first
//! check decides alone, so that a daemon that starts in front of a broken backend does not
//! send requests there until it has counted.
//!
//! Source: HAProxy, `rise` and `fall` of a server.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Auto, BackendHost, BackendProtocol, HealthCheck, RouteSettings};

/// How backends are checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Check {
    /// What is done.
    pub kind: HealthCheck,
    /// What is spoken.
    pub protocol: BackendProtocol,
    /// From one check to the next.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
    /// Successes in a row that bring a backend back.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
    /// Statuses with which it passes.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// The `Host` that is asked for; `None` for the backend's own.
    pub host: Option<Box<str>>,
}

impl Check {
    /// That of a route, if it has one.
    #[must_use]
    pub fn of(settings: &RouteSettings) -> Option<Self> {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Some(Self {
            kind: settings.health_check.clone()?,
            protocol: settings.backend_protocol,
            interval: settings.health_interval,
            timeout: settings.health_timeout,
            rise: number(settings.health_rise),
            fall: number(settings.health_fall),
            statuses: settings.health_status.clone(),
            host: match (&settings.health_host, &settings.backend_host) {
                (Auto::Is(host), _) => Some(host.clone()),
                (Auto::Auto, BackendHost::Named(host)) => Some(host.as_str().into()),
                (Auto::Auto, BackendHost::Client | BackendHost::Backend) => None,
            },
        })
    }

    /// Whether a check passes that was answered so.
    #[must_use]
    pub fn passes(&self, status: u16) -> bool {
        self.statuses.iter().any(|range| range.contains(&status))
    }
}

/// What the checks of one endpoint have found so far.
#[derive(Debug, Default)]
pub struct Checked {
    /// Checks in a row that spoke against the present verdict.
    against: u32,
    verdict: Verdict,
}

#[derive(Debug, Default)]
enum Verdict {
    /// No check has ended yet; it counts as sound.
    #[default]
    Open,
    Sound,
    Failing {
        since: u64,
        why: Arc<str>,
    },
}

impl Checked {
    /// Takes note of the outcome of a check at `now` milliseconds; `Err` says why it did
    /// not pass.
    pub fn note(&mut self, outcome: Result<(), Arc<str>>, rise: u32, fall: u32, now: u64) {
        match (&mut self.verdict, outcome) {
            (Verdict::Open | Verdict::Sound, Ok(())) => *self = Self { against: 0, verdict: Verdict::Sound },
            (Verdict::Failing { .. }, Ok(())) => {
                self.against += 1;
                if self.against >= rise {
                    *self = Self { against: 0, verdict: Verdict::Sound };
                }
            }
            (Verdict::Failing { why: known, .. }, Err(why)) => {
                self.against = 0;
                *known = why;
            }
            (open @ (Verdict::Open | Verdict::Sound), Err(why)) => {
                self.against += 1;
                if self.against >= fall || matches!(open, Verdict::Open) {
                    *self = Self { against: 0, verdict: Verdict::Failing { since: now, why } };
                }
            }
        }
    }

    /// Whether the endpoint is held to be broken.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        matches!(self.verdict, Verdict::Failing { .. })
    }

    /// Since when it is failing, in milliseconds; 0 when it is not.
    #[must_use]
    pub fn since(&self) -> u64 {
        match self.verdict {
            Verdict::Failing { since, .. } => since,
            Verdict::Open | Verdict::Sound => 0,
        }
    }

    /// What the last check said, if it is failing.
    #[must_use]
    pub fn why(&self) -> Option<Arc<str>> {
        match &self.verdict {
            Verdict::Failing { why, .. } => Some(Arc::clone(why)),
            Verdict::Open | Verdict::Sound => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Checked;

    /// Feeds outcomes, `+` for passed and `-` for not; the verdict after each as the same.
    fn verdicts(outcomes: &str, rise: u32, fall: u32) -> String {
        let mut checked = Checked::default();
        let after = outcomes.chars().map(|outcome| {
            let outcome = if outcome == '+' { Ok(()) } else { Err("status 500".into()) };
            checked.note(outcome, rise, fall, 7);
            if checked.is_failing() { '-' } else { '+' }
        });
        after.collect()
    }

    #[test]
    fn it_takes_fall_failures_in_a_row_to_fall_and_rise_successes_to_rise() {
        assert_eq!(verdicts("+---++", 2, 3), "+++--+");
        assert_eq!(verdicts("+--+--+---", 2, 3), "+++++++++-");
        assert_eq!(verdicts("+----+-+-++", 2, 3), "+++-------+");
        assert_eq!(verdicts("+-+-", 1, 1), "+-+-");
    }

    #[test]
    fn the_first_check_decides_alone() {
        assert_eq!(verdicts("-", 2, 3), "-");
        assert_eq!(verdicts("-++", 2, 3), "--+");
        assert_eq!(verdicts("+-", 2, 3), "++");
    }

    #[test]
    fn the_latest_reason_stands_and_the_first_time() {
        let mut checked = Checked::default();
        checked.note(Err("status 500".into()), 2, 3, 5);
        checked.note(Err("timeout".into()), 2, 3, 9);
        assert_eq!((checked.since(), checked.why().as_deref()), (5, Some("timeout")));
    }
}
