//! Tally: what has come of the attempts at one backend, for operators to look at. Nothing is
//! decided by it.
//!
//! An attempt begins when a request, or a connection of `MODE=tcp`, is given to the backend, and
//! ends by a response, by a failure, or by neither: the client has left, or something of ours ran
//! out. One that goes on over another connection, since that which it was sent on had ended, is
//! still the same. A response is counted with its head, so that a failure may follow it.
//!
//! Each worker counts in a [`Lane`] of its own, a cache line that no other thread writes to: a
//! count is a plain load and store. Who reads adds them up.
//!
//! A tally goes by the backend's name. Endpoints that differ only in how they are checked or
//! trusted have the same one, so that no sum of it ever falls when one of them goes.

use std::sync::LazyLock;

use crate::telemetry::{Class, Count, Reason};

/// What has come of the attempts at one backend.
#[derive(Debug)]
pub struct Tally {
    lanes: Box<[Lane]>,
}

/// What one worker has counted, which alone may change it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Lane {
    attempts: Count,
    over: Count,
    retries: Count,
    responses: [Count; Class::COUNT],
    waited_ms: Count,
    failures: [Count; Cause::COUNT],
}

/// What an attempt failed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// Nothing came in time.
    Timeout,
    /// The connection ended before the answer was whole.
    Reset,
    /// What came was no answer.
    Malformed,
}

impl Cause {
    /// All causes.
    pub const ALL: [Self; 5] = [Self::Connect, Self::Tls, Self::Timeout, Self::Reset, Self::Malformed];
    const COUNT: usize = Self::ALL.len();

    /// The cause that a reason is of; none where the backend is not to blame, or was never asked.
    #[must_use]
    pub const fn of(reason: Reason) -> Option<Self> {
        Some(match reason {
            Reason::BackendConnectRefused
            | Reason::BackendConnectTimeout
            | Reason::BackendUnreachable
            | Reason::BackendUnresolved => Self::Connect,
            Reason::BackendTlsUntrusted
            | Reason::BackendTlsExpired
            | Reason::BackendTlsNameMismatch
            | Reason::BackendTlsAlert
            | Reason::BackendTlsFailed
            | Reason::BackendTlsTimeout => Self::Tls,
            Reason::BackendResponseTimeout | Reason::BackendAttemptTimeout | Reason::BackendStreamTimeout => {
                Self::Timeout
            }
            Reason::BackendReset | Reason::BackendClosed | Reason::BackendStreamRefused | Reason::BackendTruncated => {
                Self::Reset
            }
            Reason::BackendMalformed
            | Reason::BackendHeaderTooLarge
            | Reason::BackendNotUpgraded
            | Reason::BackendWebsocketAccept => Self::Malformed,
            _ => return None,
        })
    }

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Malformed => "malformed",
        }
    }
}

impl Lane {
    /// An attempt has begun.
    pub fn begun(&self) {
        self.attempts.add(1);
    }

    /// All of it is over, the rest of its response or its tunnel included.
    pub fn over(&self) {
        self.over.add(1);
    }

    /// It was a retry.
    pub fn retried(&self) {
        self.retries.add(1);
    }

    /// The head of a response has come, so many milliseconds after the request was sent whole; in
    /// `MODE=tcp` a connection was made.
    pub fn answered(&self, class: Class, waited_ms: u64) {
        if let Some(count) = self.responses.get(class as usize) {
            count.add(1);
        }
        self.waited_ms.add(waited_ms);
    }

    /// It has failed for this reason.
    pub fn failed(&self, reason: Reason) {
        if let Some(count) = Cause::of(reason).and_then(|cause| self.failures.get(cause as usize)) {
            count.add(1);
        }
    }
}

impl Tally {
    /// One of which nothing is counted, for so many workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self { lanes: (0..workers.max(1)).map(|_| Lane::default()).collect() }
    }

    /// The lane of a worker.
    #[inline]
    #[must_use]
    pub fn lane(&self, worker: usize) -> &Lane {
        // There is one for each worker from the start on.
        static NONE: LazyLock<Lane> = LazyLock::new(Lane::default);
        self.lanes.get(worker).unwrap_or_else(|| &NONE)
    }

    /// What all workers have counted by now.
    #[must_use]
    pub fn sum(&self) -> Counts {
        let mut sum = Counts::default();
        for lane in &self.lanes {
            // In this order, so that what begins and ends meanwhile is not under way.
            let over = lane.over.get();
            let attempts = lane.attempts.get();
            sum.attempts += attempts;
            sum.under_way += attempts.saturating_sub(over);
            sum.retries += lane.retries.get();
            sum.waited_ms += lane.waited_ms.get();
            add(&mut sum.responses, &lane.responses);
            add(&mut sum.failures, &lane.failures);
        }
        sum
    }
}

fn add(sums: &mut [u64], counts: &[Count]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count.get();
    }
}

/// What has come of the attempts at one backend by some moment.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Attempts.
    pub attempts: u64,
    /// Those of them that are not over.
    pub under_way: u64,
    /// Those of them that were not their request's first.
    pub retries: u64,
    /// Milliseconds that passed between requests sent whole and the heads of their responses.
    pub waited_ms: u64,
    responses: [u64; Class::COUNT],
    failures: [u64; Cause::COUNT],
}

impl Counts {
    /// Responses by class of status; in `MODE=tcp`, connections that were made are
    /// [`Class::Other`].
    pub fn responses(&self) -> impl Iterator<Item = (Class, u64)> {
        Class::ALL.into_iter().zip(self.responses)
    }

    /// Failures by cause.
    pub fn failures(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().zip(self.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::{Cause, Lane, Tally};
    use crate::telemetry::{Class, Reason, Side};

    #[test]
    fn what_workers_count_apart_is_one_sum() {
        let tally = Tally::new(2);
        for worker in [0, 1, 1] {
            let lane = tally.lane(worker);
            lane.begun();
            lane.answered(Class::of(404), 20);
            lane.over();
        }
        let lane = tally.lane(1);
        lane.begun();
        lane.retried();
        lane.failed(Reason::BackendConnectTimeout);
        lane.failed(Reason::ClientLeft);
        let sum = tally.sum();
        assert_eq!((sum.attempts, sum.under_way, sum.retries, sum.waited_ms), (4, 1, 1, 60));
        let nonzero = |(class, count): (Class, u64)| (count > 0).then_some((class.as_str(), count));
        assert_eq!(sum.responses().filter_map(nonzero).collect::<Vec<_>>(), [("4xx", 3)]);
        let failures: Vec<u64> = sum.failures().map(|(_, count)| count).collect();
        assert_eq!(failures, [1, 0, 0, 0, 0]);
    }

    #[test]
    fn whatever_a_backend_fails_by_has_a_cause_and_nothing_else_has() {
        for reason in Reason::ALL {
            let asked = reason.side() == Side::Backend && *reason != Reason::BackendsDown;
            assert_eq!(Cause::of(*reason).is_some(), asked, "{}", reason.as_str());
        }
    }

    #[test]
    fn each_worker_writes_to_one_line_of_its_own() {
        assert_eq!((std::mem::align_of::<Lane>(), std::mem::size_of::<Lane>()), (128, 128));
    }
}
