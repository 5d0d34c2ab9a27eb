//! Limits how often one place may log what a client can trigger.
//!
//! A token bucket in the form of the generic cell rate algorithm: one number, the
//! time at which the bucket would be full again, is moved by one interval for each
//! event, and an event is refused when that would lead further ahead than the burst
//! allows. No clock of its own, no lock; one static for each call site.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Lets at most `per_second` events through a second, as many at once after a
/// quiet second, and counts the others.
///
/// ```
/// # use std::time::Instant;
/// use doorward::telemetry::Limiter;
///
/// static REFUSALS: Limiter = Limiter::new(5);
/// if let Some(suppressed) = REFUSALS.admit(Instant::now()) {
///     tracing::warn!(suppressed, "client refused");
/// }
/// ```
#[derive(Debug)]
pub struct Limiter {
    /// Between two events, in ns.
    interval: u64,
    /// How far `full` may lie ahead before an event is refused, in ns.
    slack: u64,
    /// When the bucket is full again, in ns since `epoch`.
    full: AtomicU64,
    suppressed: AtomicU64,
    /// Time of the first event.
    epoch: OnceLock<Instant>,
}

impl Limiter {
    /// A limit of `per_second` events; 0 counts as 1.
    #[must_use]
    pub const fn new(per_second: u32) -> Self {
        let interval = 1_000_000_000 / if per_second == 0 { 1 } else { per_second as u64 };
        Self {
            interval,
            slack: 1_000_000_000 - interval,
            full: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
            epoch: OnceLock::new(),
        }
    }

    /// Takes one event at `now`.
    ///
    /// `Some` lets it through and says how many were refused since the last that was
    /// let through; `None` refuses it. A `now` that goes back is taken as it comes
    /// and gains nothing.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let epoch = *self.epoch.get_or_init(|| now);
        let now = u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX);
        let taken = self.full.fetch_update(Relaxed, Relaxed, |full| {
            let ahead = full.saturating_sub(now);
            (ahead <= self.slack).then(|| full.max(now).saturating_add(self.interval))
        });
        if taken.is_err() {
            self.suppressed.fetch_add(1, Relaxed);
            return None;
        }
        Some(self.suppressed.swap(0, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_one_for_each_interval() {
        let limiter = Limiter::new(4);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..4 {
            assert_eq!(limiter.admit(at(0)), Some(0));
        }
        assert_eq!(limiter.admit(at(0)), None);
        assert_eq!(limiter.admit(at(249)), None);
        assert_eq!(limiter.admit(at(250)), Some(2));
        assert_eq!(limiter.admit(at(250)), None);
        assert_eq!(limiter.admit(at(500)), Some(1));
    }

    #[test]
    fn a_quiet_hour_gives_no_more_than_one_burst() {
        let limiter = Limiter::new(4);
        let start = Instant::now();
        assert_eq!(limiter.admit(start), Some(0));
        let later = start + Duration::from_secs(3600);
        let admitted = (0..20).filter(|_| limiter.admit(later).is_some()).count();
        assert_eq!(admitted, 4);
    }

    #[test]
    fn a_clock_that_goes_back_gains_nothing() {
        let limiter = Limiter::new(1);
        let start = Instant::now();
        assert_eq!(limiter.admit(start + Duration::from_secs(9)), Some(0));
        assert_eq!(limiter.admit(start), None);
        assert_eq!(limiter.admit(start + Duration::from_secs(10)), Some(1));
    }

    #[test]
    fn threads_together_get_one_burst() {
        let limiter = Limiter::new(50);
        let now = Instant::now();
        let admitted: usize = std::thread::scope(|scope| {
            let count = || (0..100).filter(|_| limiter.admit(now).is_some()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 50);
        assert_eq!(limiter.admit(now + Duration::from_secs(1)), Some(350));
    }
}
