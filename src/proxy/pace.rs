//! Pace: how long a client may keep us waiting, by what it moves meanwhile.
//!
//! The patience with a client is a budget of time. It runs down only while the client
//! alone is waited for; every byte that it moves gives some of it back, at the least
//! rate that is accepted; it never holds more than it began with. So one rule bounds
//! both silence (the whole budget, `BODY_TIMEOUT`) and trickling (`MIN_BODY_RATE`), a
//! client at the rate or above lives on however long its body is, and what was moved
//! fast once buys no more than one budget of slowness afterwards. An average over the
//! whole body, as Kestrel and mod_reqtimeout keep, would let a client that began with a
//! gigabyte trickle for weeks.
//!
//! No clock of its own: callers say what time it is. Nothing is computed for a client
//! that is never waited for.

use std::time::Duration;

use crate::config::RouteSettings;

/// What is asked of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The budget: how long it may be silent, in microseconds.
    budget: u64,
    /// Bytes that give a second back; with `None` any byte gives back all.
    rate: Option<u64>,
}

impl Terms {
    /// `budget` of silence, and `rate` bytes a second in the long run.
    #[must_use]
    pub fn new(budget: Duration, rate: Option<usize>) -> Self {
        Self {
            budget: u64::try_from(budget.as_micros()).unwrap_or(u64::MAX),
            rate: rate.and_then(|rate| u64::try_from(rate).ok()),
        }
    }

    /// As a route sets them.
    #[must_use]
    pub fn of(settings: &RouteSettings) -> Self {
        Self::new(settings.body_timeout, settings.min_body_rate)
    }

    /// What `bytes` give back, in microseconds.
    fn worth(self, bytes: u64) -> u64 {
        match self.rate {
            _ if bytes == 0 => 0,
            None => self.budget,
            Some(rate) => bytes.saturating_mul(1_000_000) / rate.max(1),
        }
    }
}

/// How much of a client's budget is spent.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pace {
    /// Microseconds spent.
    spent: u64,
    /// Since when it is waited for, in milliseconds of the caller's clock.
    since: Option<u64>,
    /// Bytes that it had moved by the last reckoning.
    seen: u64,
}

impl Pace {
    /// The client alone is waited for, from `now` on or still; it has `moved` so many
    /// bytes in all. Returns the time at which its budget is spent. Times are milliseconds
    /// of one clock that does not go back.
    pub fn waits(&mut self, now: u64, moved: u64, terms: Terms) -> u64 {
        self.reckon(now, terms);
        self.spent = self.spent.saturating_sub(terms.worth(moved.saturating_sub(self.seen)));
        self.seen = moved;
        self.since = Some(now);
        now.saturating_add(terms.budget.saturating_sub(self.spent).div_ceil(1_000))
    }

    /// Whether the client is waited for.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.since.is_some()
    }

    /// Something else is waited for from `now` on.
    pub fn rests(&mut self, now: u64, terms: Terms) {
        self.reckon(now, terms);
        self.since = None;
    }

    /// Gives back all that was spent.
    pub fn restore(&mut self) {
        self.spent = 0;
        self.since = None;
    }

    fn reckon(&mut self, now: u64, terms: Terms) {
        if let Some(since) = self.since {
            let waited = now.saturating_sub(since).saturating_mul(1_000);
            self.spent = self.spent.saturating_add(waited).min(terms.budget);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, Terms};
    use std::time::Duration;

    const TERMS: Terms = Terms { budget: 30_000_000, rate: Some(100) };

    /// Plays `moves` of (milliseconds later, bytes); says when it was cut, if ever.
    fn play(terms: Terms, moves: impl IntoIterator<Item = (u64, u64)>) -> Option<u64> {
        let (mut pace, mut now, mut moved) = (Pace::default(), 0, 0);
        let mut ends = pace.waits(now, moved, terms);
        for (later, bytes) in moves {
            if now + later > ends {
                return Some(ends);
            }
            now += later;
            moved += bytes;
            ends = pace.waits(now, moved, terms);
        }
        None
    }

    #[test]
    fn silence_ends_with_the_budget() {
        assert_eq!(Pace::default().waits(1_000, 0, TERMS), 31_000);
        assert_eq!(Terms::new(Duration::from_secs(30), Some(100)), TERMS);
    }

    #[test]
    fn at_the_least_rate_a_client_lives_for_ever_and_below_it_does_not() {
        let week = 7 * 86_400;
        assert_eq!(play(TERMS, (0..week).map(|_| (1_000, 100))), None);
        // In bursts, too, with silence between them that the budget covers.
        assert_eq!(play(TERMS, (0..week / 29).map(|_| (29_000, 2_900))), None);
        let cut = play(TERMS, (0..week).map(|_| (1_000, 90))).unwrap();
        assert!((290_000..=310_000).contains(&cut), "{cut}");
        let cut = play(TERMS, (0..week).map(|_| (29_000, 1))).unwrap();
        assert!((30_000..=31_000).contains(&cut), "{cut}");
    }

    #[test]
    fn what_was_moved_fast_before_buys_one_budget_and_no_more() {
        let moves = std::iter::once((10, 1 << 40)).chain((0..1_000).map(|_| (1_000, 1)));
        let cut = play(TERMS, moves).unwrap();
        assert!((30_000..=31_000).contains(&cut), "{cut}");
    }

    #[test]
    fn without_a_rate_any_byte_begins_the_budget_anew() {
        let terms = Terms { rate: None, ..TERMS };
        assert_eq!(play(terms, (0..10_000).map(|_| (29_000, 1))), None);
        assert_eq!(play(terms, [(29_000, 1), (31_000, 1)]), Some(59_000));
    }

    #[test]
    fn time_that_others_take_is_not_spent_but_what_was_spent_stays_so() {
        let mut pace = Pace::default();
        assert_eq!(pace.waits(0, 0, TERMS), 30_000);
        pace.rests(20_000, TERMS);
        pace.rests(90_000, TERMS);
        // Resting is no rest from the rule: ten seconds are left, and a byte's worth.
        assert_eq!(pace.waits(100_000, 0, TERMS), 110_000);
        assert_eq!(pace.waits(100_000, 1, TERMS), 110_010);
        pace.restore();
        assert_eq!(pace.waits(100_000, 1, TERMS), 130_000);
    }

    #[test]
    fn numbers_at_their_limits_stay_in_order() {
        let terms = Terms::new(Duration::MAX, Some(usize::MAX));
        let mut pace = Pace::default();
        let ends = pace.waits(u64::MAX, u64::MAX, terms);
        assert_eq!(ends, u64::MAX);
        assert_eq!(Terms::new(Duration::ZERO, Some(0)).worth(u64::MAX), u64::MAX);
    }
}
