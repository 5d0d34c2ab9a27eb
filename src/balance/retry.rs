//! Retry: what follows a failed attempt.
//!
//! The rule of RFC 9110 §9.2.2, by how far the attempt got:
//!
//! | when it failed | may it be sent again? |
//! | --- | --- |
//! | no byte of the request was written | yes, whatever the method |
//! | bytes were written, no byte of a response was seen | idempotent methods only, and only if every byte of the body that was taken from the client is still held |
//! | a byte of the response was seen | never |
//!
//! A reused connection that dies before the first byte of a response is replaced
//! once, by the same rule, at once, and without spending a retry: it tells of the
//! connection's age, not of the backend's health.
//!
//! Backoff doubles from `RETRY_BACKOFF` to `RETRY_BACKOFF_MAX`, with full jitter.
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog.

use std::time::Duration;

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// How far it got.
    pub progress: Progress,
    /// Its connection had served another request before.
    pub reused: bool,
}

/// How far an attempt got before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No byte of the request was written.
    Unsent,
    /// Bytes were written; nothing came back.
    Sent,
    /// The response had begun.
    Answered,
}

/// What the request allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// The method is idempotent.
    pub idempotent: bool,
    /// All of the body taken from the client so far is still held.
    pub replayable: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send it again at once, on a new connection to the same backend.
    Replace,
    /// Wait this long, then try again, elsewhere if there is elsewhere.
    Wait(Duration),
    /// Give up: answer with the failure.
    Answer,
}

/// The retries of one request.
#[derive(Debug)]
pub struct Retry {
    left: u32,
    backoff: Duration,
    most: Duration,
    replaced: bool,
    retries: u32,
}

impl Retry {
    /// At most `retries` further attempts, with backoff from `backoff` up to `most`.
    #[must_use]
    pub fn new(retries: u32, backoff: Duration, most: Duration) -> Self {
        Self { left: retries, backoff, most, replaced: false, retries: 0 }
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
        if failed.reused && !self.replaced {
            self.replaced = true;
            return Step::Replace;
        }
        if self.left == 0 {
            return Step::Answer;
        }
        self.left -= 1;
        self.retries += 1;
        let wait = self.backoff.min(self.most).mul_f64(jitter.clamp(0.0, 1.0));
        self.backoff = self.backoff.saturating_mul(2).min(self.most);
        Step::Wait(wait)
    }

    /// Retries spent.
    #[must_use]
    pub fn spent(&self) -> u32 {
        self.retries
    }
}

#[cfg(test)]
mod tests {
    use super::{Allowance, Failed, Progress, Retry, Step};
    use std::time::Duration;

    const GET: Allowance = Allowance { idempotent: true, replayable: true };
    const POST: Allowance = Allowance { idempotent: false, replayable: true };
    const LONG_PUT: Allowance = Allowance { idempotent: true, replayable: false };

    fn fresh(progress: Progress) -> Failed {
        Failed { progress, reused: false }
    }

    fn retry() -> Retry {
        Retry::new(3, Duration::from_millis(25), Duration::from_millis(80))
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
            let step = retry().next(fresh(progress), allowance, 1.0);
            assert_eq!(matches!(step, Step::Wait(_)), again, "{progress:?} {allowance:?} gave {step:?}");
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_ends_after_the_last_retry() {
        let mut retry = retry();
        let waits: Vec<_> = (0..4).map(|_| retry.next(fresh(Progress::Unsent), GET, 1.0)).collect();
        let ms = |n| Step::Wait(Duration::from_millis(n));
        assert_eq!(waits, [ms(25), ms(50), ms(80), Step::Answer]);
        assert_eq!(retry.spent(), 3);
    }

    #[test]
    fn jitter_takes_any_part_of_the_backoff() {
        assert_eq!(retry().next(fresh(Progress::Unsent), GET, 0.0), Step::Wait(Duration::ZERO));
        assert_eq!(retry().next(fresh(Progress::Unsent), GET, 0.5), Step::Wait(Duration::from_micros(12_500)));
    }

    #[test]
    fn a_dead_reused_connection_is_replaced_once_without_spending_a_retry() {
        let stale = Failed { progress: Progress::Sent, reused: true };
        let mut retry = Retry::new(0, Duration::from_millis(25), Duration::from_secs(1));
        assert_eq!(retry.next(stale, GET, 1.0), Step::Replace);
        assert_eq!(retry.next(stale, GET, 1.0), Step::Answer);
        assert_eq!(retry.spent(), 0);
    }

    #[test]
    fn a_post_on_a_dead_reused_connection_is_not_sent_twice() {
        let stale = |progress| Failed { progress, reused: true };
        assert_eq!(retry().next(stale(Progress::Sent), POST, 1.0), Step::Answer);
        assert_eq!(retry().next(stale(Progress::Unsent), POST, 1.0), Step::Replace);
    }
}
