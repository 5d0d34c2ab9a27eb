//! Retry: what follows a failed attempt.
//!
//! `RETRY_ON` says which failures are worth another attempt; the rule of RFC 9110 §9.2.2
//! says which requests may be sent again, by how far the attempt got:
//!
//! | when it failed | may it be sent again? |
//! | --- | --- |
//! | no byte of the request was written, or the backend says that it did nothing about it (RFC 9113 §8.7) | yes, whatever the method |
//! | bytes were written, and no byte of a response was seen, or only the head of one that is itself a failure | idempotent methods only (others with `RETRY_NON_IDEMPOTENT`), and only if every byte of the body that was taken from the client is still held |
//! | anything else of a response was seen | never |
//!
//! What a connection of HTTP/2 has left out as it ended in order (RFC 9113 §6.8) goes to another
//! one at once, a few times over, and without spending a retry either: some servers end each
//! connection after so many requests, however many have been put on it.
//!
//! A reused connection that dies before the first byte of a response is replaced
//! once, by the same rule, at once, and without spending a retry: it tells of the
//! connection's age, not of the backend's health.
//!
//! Backoff doubles from `RETRY_BACKOFF` to `RETRY_BACKOFF_MAX`, with full jitter.
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog. What a
//! backend asks for by `Retry-After` comes before it, all of it within the same cap: for a
//! client that waits, a backend's wish for minutes is a wish for another backend.

use std::time::Duration;

use crate::config::{RetryOn, RouteSettings};
use crate::telemetry::Reason;

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// What `RETRY_ON` calls it; `None` when it has no word for that.
    pub cause: Option<RetryOn>,
    /// How far it got.
    pub progress: Progress,
    /// Its connection had served another request before, and ended.
    pub stale: bool,
    /// Its connection has ended in order, and left it out.
    pub displaced: bool,
    /// How long the backend asks to be left alone.
    pub after: Option<Duration>,
}

/// How often a request is put on another connection at once because the last one has left it out.
/// Once or twice is what a server needs that ends each after so many; one that serves nobody is
/// to be left alone, as any that fails.
const DISPLACED: u8 = 4;

/// How far an attempt got before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No byte of the request was written, or the backend did nothing about it.
    Unsent,
    /// Bytes were written, and nothing came back but, perhaps, the head of an answer that is
    /// itself a failure.
    Sent,
    /// The response had begun.
    Answered,
}

/// What the request allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// The method is idempotent, or is to be treated as if it were.
    pub idempotent: bool,
    /// All of the body taken from the client so far is still held.
    pub replayable: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send it again at once, on another connection to the same backend.
    Replace,
    /// Wait this long, then try again, elsewhere if there is elsewhere.
    Wait(Duration),
    /// Give up: answer with the failure.
    Answer,
}

/// What a route says of retries.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Further attempts at most.
    pub most: usize,
    /// What is tried again.
    pub on: &'a [RetryOn],
    /// First wait.
    pub backoff: Duration,
    /// Longest wait.
    pub backoff_most: Duration,
}

/// The retries of one request.
#[derive(Debug)]
pub struct Retry<'a> {
    terms: Terms<'a>,
    left: usize,
    backoff: Duration,
    replaced: bool,
    displaced: u8,
}

impl Failed {
    /// An attempt that ended for `reason` after so much progress.
    #[must_use]
    pub fn of(reason: Reason, progress: Progress, reused: bool) -> Self {
        let cause = match reason {
            Reason::BackendConnectRefused
            | Reason::BackendConnectTimeout
            | Reason::BackendUnreachable
            | Reason::BackendUnresolved
            | Reason::BackendTlsUntrusted
            | Reason::BackendTlsExpired
            | Reason::BackendTlsNameMismatch
            | Reason::BackendTlsAlert
            | Reason::BackendTlsFailed
            | Reason::BackendTlsTimeout
            // Nothing was done there either (RFC 9113 §8.7).
            | Reason::BackendStreamRefused => Some(RetryOn::Connect),
            Reason::BackendReset | Reason::BackendClosed => Some(RetryOn::Reset),
            Reason::BackendResponseTimeout | Reason::BackendAttemptTimeout => Some(RetryOn::Timeout),
            _ => None,
        };
        // Silence on a reused connection is the backend's, and says nothing of its age.
        Self { cause, progress, stale: reused && cause == Some(RetryOn::Reset), displaced: false, after: None }
    }

    /// An attempt that was answered with this status, of which nothing has gone on.
    #[must_use]
    pub fn status(status: u16, after: Option<Duration>) -> Self {
        Self { cause: RetryOn::of_status(status), progress: Progress::Sent, stale: false, displaced: false, after }
    }
}

impl<'a> Terms<'a> {
    /// Those of a route.
    #[must_use]
    pub fn of(settings: &'a RouteSettings) -> Self {
        Self {
            most: settings.max_retries,
            on: &settings.retry_on,
            backoff: settings.retry_backoff,
            backoff_most: settings.retry_backoff_max,
        }
    }
}

impl<'a> Retry<'a> {
    /// A request of which no attempt has failed yet.
    #[must_use]
    pub fn new(terms: Terms<'a>) -> Self {
        Self { terms, left: terms.most, backoff: terms.backoff, replaced: false, displaced: 0 }
    }

    /// What to do after a failure; `jitter` is a random number from 0 to 1.
    pub fn next(&mut self, failed: Failed, allowance: Allowance, jitter: f64) -> Step {
        let again = match failed.progress {
            Progress::Unsent => true,
            Progress::Sent => allowance.idempotent && allowance.replayable,
            Progress::Answered => false,
        };
        if !again {
            return Step::Answer;
        }
        if failed.displaced && self.displaced < DISPLACED {
            self.displaced += 1;
            return Step::Replace;
        }
        if failed.stale && !self.replaced {
            self.replaced = true;
            return Step::Replace;
        }
        if !self.wants(failed) {
            return Step::Answer;
        }
        self.left -= 1;
        let most = self.terms.backoff_most;
        let wait = self.backoff.min(most).mul_f64(jitter.clamp(0.0, 1.0));
        self.backoff = self.backoff.saturating_mul(2).min(most);
        // On top of what is asked for, so that those told at the same time come back spread.
        Step::Wait(failed.after.unwrap_or_default().saturating_add(wait).min(most))
    }

    /// Whether there would be another attempt if the request could be made again.
    #[must_use]
    pub fn wants(&self, failed: Failed) -> bool {
        self.is_left() && failed.cause.is_some_and(|cause| self.terms.on.contains(&cause))
    }

    /// Whether an answer of this status is a failure that is tried again, while it may be.
    #[must_use]
    pub fn is_failure(&self, status: u16) -> bool {
        RetryOn::of_status(status).is_some_and(|cause| self.terms.on.contains(&cause))
    }

    /// Whether there is another attempt to make.
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Allowance, Failed, Progress, Retry, Step, Terms};
    use crate::balance::budget::{self, Budget};
    use crate::config::RetryOn;
    use crate::telemetry::{Reason, Side};
    use std::time::Duration;

    const GET: Allowance = Allowance { idempotent: true, replayable: true };
    const POST: Allowance = Allowance { idempotent: false, replayable: true };
    const LONG_PUT: Allowance = Allowance { idempotent: true, replayable: false };

    const ALL: [RetryOn; 6] = [
        RetryOn::Connect,
        RetryOn::Reset,
        RetryOn::BadGateway,
        RetryOn::ServiceUnavailable,
        RetryOn::GatewayTimeout,
        RetryOn::Timeout,
    ];

    fn reset(progress: Progress) -> Failed {
        Failed::of(Reason::BackendReset, progress, false)
    }

    fn retry(on: &[RetryOn]) -> Retry<'_> {
        let backoff = Duration::from_millis(25);
        Retry::new(Terms { most: 3, on, backoff, backoff_most: Duration::from_millis(80) })
    }

    fn wait(millis: u64) -> Step {
        Step::Wait(Duration::from_millis(millis))
    }

    #[test]
    fn the_rule_of_rfc_9110_holds_for_every_case() {
        let cases = [
            (Progress::Unsent, GET, true),
            (Progress::Unsent, POST, true),
            (Progress::Unsent, LONG_PUT, true),
            (Progress::Sent, GET, true),
            (Progress::Sent, POST, false),
            (Progress::Sent, LONG_PUT, false),
            (Progress::Answered, GET, false),
            (Progress::Answered, POST, false),
        ];
        for (progress, allowance, again) in cases {
            let step = retry(&ALL).next(reset(progress), allowance, 1.0);
            assert_eq!(matches!(step, Step::Wait(_)), again, "{progress:?} {allowance:?} gave {step:?}");
        }
    }

    #[test]
    fn only_what_is_listed_is_tried_again() {
        let failures = [
            (Failed::of(Reason::BackendConnectRefused, Progress::Unsent, false), RetryOn::Connect),
            (Failed::of(Reason::BackendConnectTimeout, Progress::Unsent, false), RetryOn::Connect),
            (Failed::of(Reason::BackendClosed, Progress::Sent, false), RetryOn::Reset),
            (Failed::of(Reason::BackendResponseTimeout, Progress::Sent, false), RetryOn::Timeout),
            (Failed::of(Reason::BackendAttemptTimeout, Progress::Sent, false), RetryOn::Timeout),
            (Failed::status(502, None), RetryOn::BadGateway),
            (Failed::status(503, None), RetryOn::ServiceUnavailable),
            (Failed::status(504, None), RetryOn::GatewayTimeout),
        ];
        for (failed, named) in failures {
            for listed in ALL {
                let on = [listed];
                let step = retry(&on).next(failed, GET, 1.0);
                assert_eq!(matches!(step, Step::Wait(_)), listed == named, "{failed:?} with {listed:?}");
            }
        }
        for other in [Failed::status(500, None), Failed::of(Reason::BackendMalformed, Progress::Sent, true)] {
            assert_eq!(retry(&ALL).next(other, GET, 1.0), Step::Answer, "{other:?}");
        }
    }

    #[test]
    fn only_failures_of_a_backend_have_a_cause() {
        for reason in Reason::ALL {
            let cause = Failed::of(*reason, Progress::Unsent, false).cause;
            assert!(cause.is_none() || reason.side() == Side::Backend, "{reason}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_ends_after_the_last_retry() {
        let mut retry = retry(&ALL);
        let waits: Vec<_> = (0..4).map(|_| retry.next(reset(Progress::Unsent), GET, 1.0)).collect();
        assert_eq!(waits, [wait(25), wait(50), wait(80), Step::Answer]);
        assert!(!retry.is_left());
    }

    #[test]
    fn jitter_takes_any_part_of_the_backoff() {
        assert_eq!(retry(&ALL).next(reset(Progress::Unsent), GET, 0.0), Step::Wait(Duration::ZERO));
        assert_eq!(retry(&ALL).next(reset(Progress::Unsent), GET, 0.5), Step::Wait(Duration::from_micros(12_500)));
    }

    #[test]
    fn a_backends_wish_is_waited_for_before_the_backoff_and_within_its_cap() {
        let wish = |millis| Failed::status(503, Some(Duration::from_millis(millis)));
        assert_eq!(retry(&ALL).next(wish(50), GET, 0.0), wait(50));
        assert_eq!(retry(&ALL).next(wish(50), GET, 1.0), wait(75));
        assert_eq!(retry(&ALL).next(wish(3_600_000), GET, 0.0), wait(80));
        assert_eq!(retry(&ALL).next(wish(0), GET, 1.0), wait(25));
    }

    #[test]
    fn a_dead_reused_connection_is_replaced_once_without_spending_a_retry() {
        let stale = Failed::of(Reason::BackendClosed, Progress::Sent, true);
        let mut retry = Retry::new(Terms { most: 0, on: &[], backoff: Duration::ZERO, backoff_most: Duration::ZERO });
        assert_eq!(retry.next(stale, GET, 1.0), Step::Replace);
        assert_eq!(retry.next(stale, GET, 1.0), Step::Answer);
        let silent = Failed::of(Reason::BackendResponseTimeout, Progress::Sent, true);
        assert_eq!(Retry::new(retry.terms).next(silent, GET, 1.0), Step::Answer);
    }

    #[test]
    fn what_was_left_out_goes_to_another_connection_many_times_but_not_for_ever() {
        let left_out = Failed { displaced: true, ..Failed::of(Reason::BackendClosed, Progress::Unsent, true) };
        let mut retry = Retry::new(Terms { most: 1, on: &ALL, backoff: Duration::ZERO, backoff_most: Duration::ZERO });
        // One more for a connection that had served before, and then as any failure.
        assert!((0..=super::DISPLACED).all(|_| retry.next(left_out, POST, 1.0) == Step::Replace));
        assert_eq!(retry.next(left_out, POST, 1.0), wait(0));
        assert_eq!(retry.next(left_out, POST, 1.0), Step::Answer);
    }

    #[test]
    fn a_post_on_a_dead_reused_connection_is_not_sent_twice() {
        let stale = |progress| Failed::of(Reason::BackendReset, progress, true);
        assert_eq!(retry(&ALL).next(stale(Progress::Sent), POST, 1.0), Step::Answer);
        assert_eq!(retry(&ALL).next(stale(Progress::Unsent), POST, 1.0), Step::Replace);
    }

    /// Attempts for each request when all of them fail, after ten seconds in which all were
    /// answered: `rate` requests a second for `seconds`, each trying again for as long as it
    /// may.
    fn amplification(budget: Option<budget::Terms>, rate: u64, seconds: u64) -> f64 {
        let pool = Budget::new(1);
        (0..rate * 10).for_each(|n| pool.deposit(0, n * 1_000 / rate));
        let mut random = fastrand::Rng::with_seed(4);
        // By the time at which the next attempt of a request is due.
        let mut due: std::collections::BTreeMap<(u64, u64), Retry<'_>> =
            (0..rate * seconds).map(|n| ((10_000 + n * 1_000 / rate, n), retry(&ALL))).collect();
        let mut attempts = 0_u64;
        while let Some(((now, request), mut retry)) = due.pop_first() {
            attempts += 1;
            if let Step::Wait(wait) = retry.next(Failed::status(503, None), GET, random.f64()) {
                if budget.is_none_or(|terms| pool.withdraw(terms, now).is_ok()) {
                    due.insert((now + u64::try_from(wait.as_millis()).unwrap(), request), retry);
                }
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "both are small")]
        let ratio = attempts as f64 / (rate * seconds) as f64;
        ratio
    }

    #[test]
    fn a_full_outage_is_made_worse_by_a_fifth_at_most_however_long_it_is() {
        let terms = budget::Terms { percent: 20, least: 10 };
        // Where the least rate is small beside them.
        for rate in [1_000, 10_000] {
            for seconds in [10, 11, 15, 20, 21, 30, 40, 60, 600] {
                let ratio = amplification(Some(terms), rate, seconds);
                assert!(ratio <= 1.2, "{ratio} with {rate} a second for {seconds} s");
            }
            let ratio = amplification(Some(terms), rate, 10);
            assert!(ratio > 1.17, "{ratio}: what was paid for is there to be used");
        }
        assert!(
            (amplification(None, 1_000, 10) - 4.0).abs() < 1e-9,
            "without a budget, each request is made four times"
        );
        // Of a few requests, all may be tried again.
        assert!((amplification(Some(terms), 3, 60) - 4.0).abs() < 1e-9);
    }
}
