//! Entry: one name, its certificate, and what was tried.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::{Held, Trouble, schedule};

/// What is had for a name, and what was tried.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) held: Option<Held>,
    /// It is another server's, and serves until there is one of this server's.
    pub(super) elsewhere: bool,
    pub(super) trouble: Option<Trouble>,
    pub(super) advised: Option<Advised>,
    pub(super) warned: Option<SystemTime>,
}

/// Advice that was taken.
#[derive(Debug)]
pub(super) struct Advised {
    pub(super) window: Option<(SystemTime, SystemTime)>,
    /// The moment in it that was chosen.
    pub(super) renewal: Option<SystemTime>,
    pub(super) again: Instant,
}

impl Entry {
    /// When a certificate is ordered.
    pub(super) fn due(&self, now: SystemTime) -> SystemTime {
        let wanted = match (&self.held, &self.advised) {
            (Some(_), Some(Advised { renewal: Some(renewal), .. })) => *renewal,
            (Some(held), _) if !self.elsewhere => held.life.renewal(held.spread()),
            _ => UNIX_EPOCH,
        };
        match &self.trouble {
            Some(trouble) if trouble.is_sensible(now) => wanted.max(trouble.until()),
            _ => wanted,
        }
    }
}

impl Trouble {
    fn until(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.retry_at)
    }

    /// Whether it was noted by a clock that this one can follow: nobody waits longer.
    pub(super) fn is_sensible(&self, now: SystemTime) -> bool {
        let longest = schedule::LONGEST.as_secs();
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.retry_at <= now.saturating_add(longest)
    }
}
