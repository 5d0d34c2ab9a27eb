//! The watchdog: systemd hears from it only while every thread turns over.
//!
//! The control loop asks at each [`Watchdog::period`] whether every worker has
//! turned over since it last asked. That the question is asked at all shows that
//! the control thread turns. One round without a turn may be chance, since a period
//! is but a quarter of systemd's patience; two in a row make the worker stuck, and
//! what is then left is enough for one more round before systemd acts.
//!
//! Policy only: no clock, no socket.

use std::time::Duration;

/// systemd's patience when it set none: workers are watched all the same.
const UNTOLD: Duration = Duration::from_secs(30);

/// Rounds in a row without a turn that make a worker stuck: half the patience.
const STUCK: u32 = 2;

/// Watches over the workers.
#[derive(Debug)]
pub struct Watchdog {
    patience: Duration,
    missed: u32,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All turned over: tell systemd.
    Feed,
    /// All turned over, after some were stuck: tell systemd and the operator.
    Recovered,
    /// Some did not: wait for the next round.
    Wait,
    /// Some did not for half of systemd's patience: tell the operator, once.
    Stuck,
}

impl Watchdog {
    /// A watchdog for a service manager that waits `patience` (`WATCHDOG_USEC=`).
    pub fn new(patience: Option<Duration>) -> Watchdog {
        Watchdog { patience: patience.filter(|patience| !patience.is_zero()).unwrap_or(UNTOLD), missed: 0 }
    }

    /// How often to ask: four times in systemd's patience.
    pub fn period(&self) -> Duration {
        (self.patience / 4).max(Duration::from_millis(1))
    }

    /// Takes note of a round: whether every worker `turned` since the last one.
    pub fn round(&mut self, turned: bool) -> Verdict {
        if turned {
            let was_stuck = self.missed >= STUCK;
            self.missed = 0;
            return if was_stuck { Verdict::Recovered } else { Verdict::Feed };
        }
        self.missed = self.missed.saturating_add(1);
        if self.missed == STUCK { Verdict::Stuck } else { Verdict::Wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_stuck_after_half_of_the_patience_and_said_so_once() {
        let mut watchdog = Watchdog::new(Some(Duration::from_secs(8)));
        assert_eq!(watchdog.period(), Duration::from_secs(2));
        let verdicts = [true, false, true, false, false, false, true, true].map(|turned| watchdog.round(turned));
        assert_eq!(
            verdicts,
            [
                Verdict::Feed,
                Verdict::Wait,
                Verdict::Feed,
                Verdict::Wait,
                Verdict::Stuck,
                Verdict::Wait,
                Verdict::Recovered,
                Verdict::Feed
            ]
        );
    }

    #[test]
    fn workers_are_watched_without_systemd_too() {
        assert!(Watchdog::new(None).period() > Duration::ZERO);
        assert!(Watchdog::new(Some(Duration::ZERO)).period() > Duration::ZERO);
    }
}
