//! Quota: a bounded count without a queue.
//!
//! For what is refused rather than made to wait: tunnels, connections, requests
//! that sleep in backoff. One compare-and-swap to take, one subtraction to return.

use std::sync::atomic::{AtomicU64, Ordering};

/// A count that never exceeds its limit.
#[derive(Debug)]
pub struct Quota {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Quota {
    /// A quota of `limit` shares.
    #[must_use]
    pub const fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit: AtomicU64::new(limit) }
    }

    /// Takes a share, or `None` when all are taken.
    #[must_use]
    pub fn take(&self) -> Option<Share<'_>> {
        let limit = self.limit.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < limit).then_some(used + 1))
            .ok()
            .map(|_| Share { quota: self })
    }

    /// Changes the limit. Shares beyond a lower one stay until they are returned.
    pub fn resize(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Shares in use now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The limit in force.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }
}

/// One share of a [`Quota`]; dropping it gives it back.
#[derive(Debug)]
pub struct Share<'a> {
    quota: &'a Quota,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Quota;

    #[test]
    fn a_quota_refuses_beyond_its_limit_and_takes_shares_back() {
        let quota = Quota::new(2);
        let first = quota.take();
        let second = quota.take();
        assert!(first.is_some() && second.is_some());
        assert!(quota.take().is_none());
        drop(first);
        assert!(quota.take().is_some());
        assert_eq!(quota.used(), 1);
    }

    #[test]
    fn a_lower_limit_leaves_taken_shares_alone() {
        let quota = Quota::new(2);
        let held = (quota.take(), quota.take());
        quota.resize(1);
        assert_eq!(quota.used(), 2);
        drop(held.0);
        assert!(quota.take().is_none());
    }
}
