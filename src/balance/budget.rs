//! Retry budget: bounds the load that retries may add to a pool in trouble.
//!
//! Within any [`WINDOW`], retries may be a share of the requests that were answered, or a
//! few a second where that is more. A request that fails pays for none: so a pool that fails
//! altogether gets at most what the requests before it have paid for, and then no more than
//! clients ask of it, whatever the number of attempts that each may make; while the failures
//! of one backend among several are paid for by the others' answers. A quiet pool can still
//! retry. Attempts limit a request, the budget all of them together: that is what keeps an
//! outage from growing by itself. Source: Finagle's `RetryBudget`; gRPC proposal A6, "Retry
//! Throttling", where too it is successes that pay; B. Beyer et al., "Site Reliability
//! Engineering", ch. 21.
//!
//! Every answer counts, so each worker does that in a [`Lane`] of its own, and no two
//! fight for a line of memory. Retries are few and have one lane for all. No clock of its
//! own: callers pass `now`, and a worker whose clock is a moment ahead does no harm.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::RouteSettings;

/// How far back attempts count: ten steps.
pub const WINDOW: Duration = Duration::from_millis(STEPS << STEP_BITS);

/// A step is 1,024 ms: time is taken no finer.
const STEP_BITS: u32 = 10;

/// Steps of a window, and the seconds for which the least rate counts in it.
const STEPS: u64 = 10;

/// Steps that are remembered: a power of two above those of a window.
const PLACES: usize = 16;

/// Lanes are few enough that a route costs little; above that, workers share them.
const LANES_MOST: usize = 64;

/// The budget of one pool.
#[derive(Debug)]
pub struct Budget {
    /// Requests that were answered. A power of two of them.
    answered: Box<[Lane]>,
    /// Retries.
    retries: Lane,
}

/// How much may be spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Retries for each hundred requests that were answered in a window.
    pub percent: u64,
    /// Retries a second that are allowed whatever the share comes to.
    pub least: u64,
}

/// The retries of this window have reached what its answers allow; the caller
/// returns the backend's own failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("retry budget spent")]
pub struct Exhausted;

/// Attempts of the last steps. Each place holds the number of its step in the upper half
/// and a count in the lower one, so that one that is out of date is known by itself and
/// nobody has to clear it.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane([AtomicU64; PLACES]);

impl Budget {
    /// A budget of which nothing is spent, for about so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        let lanes = workers.clamp(1, LANES_MOST).next_power_of_two();
        Self { answered: (0..lanes).map(|_| Lane::default()).collect(), retries: Lane::default() }
    }

    /// Counts a request that `worker` had answered at `now` milliseconds, by anything but a
    /// failure that is worth a retry.
    pub fn deposit(&self, worker: usize, now: u64) {
        // Nearly always the worker's own, so this is one addition to memory that no other
        // thread writes to.
        if let Some(lane) = self.answered.get(worker & (self.answered.len() - 1)) {
            lane.add(step(now));
        }
    }

    /// Takes one retry at `now` milliseconds.
    ///
    /// # Errors
    /// [`Exhausted`] when the retries of the window would exceed the terms. They never do,
    /// whoever asks at the same time; near the limit one too many may be refused.
    pub fn withdraw(&self, terms: Terms, now: u64) -> Result<(), Exhausted> {
        let step = step(now);
        let answered: u64 = self.answered.iter().map(|lane| lane.sum(step)).sum();
        let allowed = (answered.saturating_mul(terms.percent) / 100).max(terms.least.saturating_mul(STEPS));
        // Taken first and then looked at, so that two workers don't take the same last one.
        self.retries.add(step);
        if self.retries.sum(step) > allowed {
            self.retries.take_back(step);
            return Err(Exhausted);
        }
        Ok(())
    }
}

impl Terms {
    /// Those of a route; `None` when it has no budget.
    #[must_use]
    pub fn of(settings: &RouteSettings) -> Option<Self> {
        let number = |value| u64::try_from(value).unwrap_or(u64::MAX);
        Some(Self { percent: number(settings.retry_budget?), least: number(settings.retry_budget_min) })
    }
}

impl Lane {
    fn add(&self, step: u32) {
        let Some(place) = self.place(step) else { return };
        let held = place.load(Ordering::Relaxed);
        let fresh = (u64::from(step) << 32) | 1;
        let begun =
            number(held) != step && place.compare_exchange(held, fresh, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if !begun {
            place.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Undoes an addition to the same step.
    fn take_back(&self, step: u32) {
        if let Some(place) = self.place(step) {
            place.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What was counted in the window that ends with `step`. A worker whose clock is ahead
    /// may have counted a step further on.
    fn sum(&self, step: u32) -> u64 {
        let held = self.0.iter().map(|place| place.load(Ordering::Relaxed));
        let within = |held: &u64| u64::from(step.wrapping_add(1).wrapping_sub(number(*held))) <= STEPS;
        held.filter(within).map(|held| held & LOWER).sum()
    }

    fn place(&self, step: u32) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(step).unwrap_or(0) & (PLACES - 1))
    }
}

/// The lower half of a place: the count.
const LOWER: u64 = u32::MAX as u64;

/// The step that a time lies in. Its number goes round after 139 years.
fn step(now: u64) -> u32 {
    u32::try_from((now >> STEP_BITS) & LOWER).unwrap_or(0)
}

/// The step that a place holds the count of.
fn number(held: u64) -> u32 {
    u32::try_from(held >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Budget, Exhausted, Terms, WINDOW};

    const TERMS: Terms = Terms { percent: 20, least: 10 };

    /// How many retries are granted at `now` before one is refused.
    fn granted(budget: &Budget, terms: Terms, now: u64) -> usize {
        (0..).take_while(|_| budget.withdraw(terms, now).is_ok()).count()
    }

    fn window() -> u64 {
        u64::try_from(WINDOW.as_millis()).unwrap()
    }

    #[test]
    fn retries_are_a_fifth_of_what_was_answered_by_all_workers() {
        let budget = Budget::new(3);
        for now in 0..5_000 {
            budget.deposit(usize::try_from(now % 7).unwrap(), now);
        }
        assert_eq!(granted(&budget, TERMS, 5_000), 1_000);
        budget.deposit(0, 5_000);
        assert_eq!(budget.withdraw(TERMS, 5_000), Err(Exhausted), "a fifth of one is none");
        (1..5).for_each(|_| budget.deposit(0, 5_000));
        assert_eq!(granted(&budget, TERMS, 5_000), 1);
    }

    #[test]
    fn a_quiet_pool_has_the_least_rate_over_the_window() {
        let budget = Budget::new(1);
        assert_eq!(granted(&budget, TERMS, 7), 100);
        assert_eq!(granted(&budget, TERMS, window() - 1), 0);
        assert_eq!(granted(&budget, TERMS, window() + 7), 100);
        let none = Terms { percent: 20, least: 0 };
        assert_eq!(granted(&Budget::new(1), none, 7), 0);
    }

    #[test]
    fn what_lies_further_back_than_the_window_counts_no_more() {
        let budget = Budget::new(1);
        (0..10_000).for_each(|_| budget.deposit(0, 0));
        assert_eq!(granted(&budget, TERMS, window() - 1), 2_000);
        let budget = Budget::new(1);
        (0..10_000).for_each(|_| budget.deposit(0, 0));
        assert_eq!(granted(&budget, TERMS, window()), 100);
        // Nor once every place was used again.
        assert_eq!(granted(&budget, TERMS, 16 * window()), 100);
    }

    #[test]
    fn a_clock_that_is_a_step_ahead_counts_too() {
        let budget = Budget::new(2);
        (0..1_000).for_each(|_| budget.deposit(1, 2_048));
        assert_eq!(granted(&budget, TERMS, 2_047), 200);
        assert_eq!(granted(&budget, TERMS, 2_048), 0);
    }

    #[test]
    fn workers_that_ask_at_once_never_get_more_than_there_is() {
        let budget = Budget::new(4);
        (0..20_000).for_each(|_| budget.deposit(0, 0));
        let granted: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..4_000).filter(|_| budget.withdraw(TERMS, 0).is_ok()).count()))
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        // One that looks while another is being refused may be refused as well.
        assert!((3_900..=4_000).contains(&granted), "{granted}");
    }

    #[test]
    fn deposits_of_many_threads_in_one_lane_are_all_counted() {
        let budget = Budget::new(1);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let budget = &budget;
                scope.spawn(move || (0..5_000).for_each(|now| budget.deposit(worker, now)));
            }
        });
        // Each thread may lose one count in a step that another begins at the same moment.
        let counted = granted(&budget, Terms { percent: 100, least: 0 }, 5_000);
        assert!((19_900..=20_000).contains(&counted), "{counted}");
    }
}
