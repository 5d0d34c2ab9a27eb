//! What each worker counts.
//!
//! Every worker owns a [`WorkerCounters`] and is the only one that writes to it, so
//! a count is a plain load and store: no locked instruction, no cache line that two
//! workers fight for. Readers add the workers up once in a while and may see one
//! number a moment before another; nobody may conclude from two of them that
//! something leaked.

use super::histogram::{Histogram, Latencies};
use super::reason::Reason;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A number that one thread changes and any thread reads.
///
/// Two writers would lose counts: give each its own.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes `n` away, down to 0.
    #[inline]
    pub fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).saturating_sub(n), Relaxed);
    }

    /// The number now.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters of one worker, which alone may change them.
        ///
        /// They stand on cache lines of their own (128 bytes: processors fetch
        /// lines in pairs).
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerCounters {
            $($(#[doc = $doc])+ pub $name: Count,)+
            classes: [Count; Class::COUNT],
            refusals: Reasons<Count>,
            latency: Histogram,
        }

        #[cfg(test)]
        impl WorkerCounters {
            /// Every plain counter by name, in the order of the table.
            pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, &Count)> {
                [$((stringify!($name), &self.$name),)+].into_iter()
            }
        }

        /// The sum of all workers at one moment.
        #[derive(Clone, Debug)]
        pub struct Snapshot {
            /// When it was taken.
            pub at: Instant,
            $($(#[doc = $doc])+ pub $name: u64,)+
            classes: [u64; Class::COUNT],
            refusals: Reasons<u64>,
            latency: Latencies,
        }

        impl Snapshot {
            fn empty(at: Instant) -> Self {
                Self {
                    at,
                    $($name: 0,)+
                    classes: Default::default(),
                    refusals: Reasons::default(),
                    latency: Latencies::default(),
                }
            }

            fn add(&mut self, worker: &WorkerCounters) {
                $(self.$name += worker.$name.get();)+
                for (sum, count) in self.classes.iter_mut().zip(&worker.classes) {
                    *sum += count.get();
                }
                for (sum, count) in self.refusals.0.iter_mut().zip(&worker.refusals.0) {
                    *sum += count.get();
                }
                self.latency.add(&worker.latency);
            }

            /// Every plain counter by name, in the order of the table.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Client connections that are open.
    connections_open,
    /// Client connections accepted since the start.
    connections_accepted,
    /// Connections handed to a less loaded worker since the start.
    connections_handed,
    /// TLS handshakes with clients that succeeded since the start.
    tls_handshakes,
    /// Those of them that resumed an earlier session.
    tls_resumed,
    /// Exchanges that are under way.
    in_flight,
    /// Tunnels that are open.
    tunnels_open,
    /// Tunnels opened since the start.
    tunnels,
    /// Attempts after the first one, since the start.
    retries,
    /// Attempts that were not made because the request's body was no longer there, since the
    /// start.
    retries_without_body,
    /// Attempts that were not made because the retry budget was spent, since the start.
    retries_over_budget,
    /// Bytes read from clients since the start.
    bytes_in,
    /// Bytes written to clients since the start.
    bytes_out,
    /// Bytes of bodies, tunnels and relayed connections that were spliced, in both
    /// directions, since the start.
    bytes_spliced,
    /// Answers, tunnels and relayed connections cut before their end, since the start.
    cut,
}

/// One slot for each [`Reason`].
#[derive(Clone, Debug)]
struct Reasons<T>([T; Reason::COUNT]);

impl<T: Default> Default for Reasons<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| T::default()))
    }
}

/// Class of a final status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// 2xx, and 101.
    Success,
    /// 3xx.
    Redirect,
    /// 4xx.
    Client,
    /// 5xx.
    Server,
    /// No status, or none of these.
    Other,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 5] = [Self::Success, Self::Redirect, Self::Client, Self::Server, Self::Other];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The class of a status.
    #[must_use]
    pub const fn of(status: u16) -> Self {
        match status {
            101 | 200..=299 => Self::Success,
            300..=399 => Self::Redirect,
            400..=499 => Self::Client,
            500..=599 => Self::Server,
            _ => Self::Other,
        }
    }

    /// `2xx` and so on; `other`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::Client => "4xx",
            Self::Server => "5xx",
            Self::Other => "other",
        }
    }
}

impl WorkerCounters {
    /// Counts one request that has ended, with its final status (0 when none was
    /// sent), its duration in µs, and why it did not end well.
    pub fn ended(&self, status: u16, duration_us: u64, reason: Option<Reason>) {
        if let Some(count) = self.classes.get(Class::of(status) as usize) {
            count.add(1);
        }
        self.latency.record(duration_us);
        if let Some(reason) = reason {
            self.refused(reason);
        }
    }

    /// Counts one request that was answered before it could be read whole: its status
    /// and reason, but no duration.
    pub fn rejected(&self, reason: Reason) {
        if let Some(count) = self.classes.get(Class::of(reason.status()) as usize) {
            count.add(1);
        }
        self.refused(reason);
    }

    /// Counts `reason` alone, for what never became a request.
    pub fn refused(&self, reason: Reason) {
        if let Some(count) = self.refusals.0.get(reason.index()) {
            count.add(1);
        }
    }
}

impl Snapshot {
    /// Adds up `workers` at `at`.
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerCounters>, at: Instant) -> Self {
        let mut sum = Self::empty(at);
        workers.into_iter().for_each(|worker| sum.add(worker));
        sum
    }

    /// Requests ended since the start.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// Requests ended since the start, by class of status.
    pub fn classes(&self) -> impl Iterator<Item = (Class, u64)> {
        Class::ALL.into_iter().zip(self.classes)
    }

    /// What did not end well since the start, by reason; zeros are left out.
    pub fn refusals(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.reasons().filter(|(_, count)| *count > 0)
    }

    /// What did not end well since the start, by every reason that there is.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().copied().zip(self.refusals.0.iter().copied())
    }

    /// Durations of all requests since the start.
    #[must_use]
    pub const fn latency(&self) -> &Latencies {
        &self.latency
    }

    /// Rates between `earlier` and this one; all zero when no time has passed.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Rates {
        let seconds = self.at.saturating_duration_since(earlier.at).as_secs_f64();
        let latency = self.latency.since(&earlier.latency);
        let requests = self.requests().saturating_sub(earlier.requests());
        #[expect(clippy::cast_precision_loss, reason = "f64 is exact up to 2^53")]
        let per_second = if seconds > 0.0 { requests as f64 / seconds } else { 0.0 };
        Rates {
            requests_per_second: per_second,
            p50: latency.quantile(0.5).map(Duration::from_micros),
            p99: latency.quantile(0.99).map(Duration::from_micros),
        }
    }
}

/// What happened between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Requests that ended, for each second.
    pub requests_per_second: f64,
    /// Half of them took no longer; `None` when there was none.
    pub p50: Option<Duration>,
    /// 99 of 100 took no longer; `None` when there was none.
    pub p99: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_the_sum_of_all_workers() {
        let workers = [WorkerCounters::default(), WorkerCounters::default()];
        for worker in &workers {
            worker.connections_open.add(3);
            worker.connections_open.sub(1);
            worker.bytes_out.add(100);
            worker.ended(200, 10, None);
            worker.ended(502, 15, Some(Reason::BackendConnectRefused));
            worker.refused(Reason::BadRequest);
        }
        workers[0].ended(0, 12, Some(Reason::ClientLeft));
        workers[0].rejected(Reason::BadRequest);
        let sum = Snapshot::of(&workers, Instant::now());
        assert_eq!((sum.connections_open, sum.bytes_out, sum.requests()), (4, 200, 6));
        let classes: Vec<u64> = sum.classes().map(|(_, count)| count).collect();
        assert_eq!(classes, [2, 0, 1, 2, 1]);
        let refusals: Vec<_> = sum.refusals().collect();
        assert_eq!(refusals, [(Reason::BackendConnectRefused, 2), (Reason::ClientLeft, 1), (Reason::BadRequest, 3)]);
        assert_eq!(sum.latency().count(), 5);
        assert!(sum.named().any(|pair| pair == ("bytes_out", 200)));
    }

    #[test]
    fn rates_are_of_the_time_between() {
        let worker = WorkerCounters::default();
        let start = Instant::now();
        (0..500).for_each(|_| worker.ended(200, 10, None));
        let earlier = Snapshot::of([&worker], start);
        (0..99).for_each(|_| worker.ended(200, 14, None));
        worker.ended(200, 1_000_000, None);
        let later = Snapshot::of([&worker], start + Duration::from_secs(2));
        let rates = later.since(&earlier);
        assert!((rates.requests_per_second - 50.0).abs() < 1e-9);
        assert_eq!(rates.p50, Some(Duration::from_micros(14)));
        assert_eq!(rates.p99, Some(Duration::from_micros(14)));

        let quiet = Snapshot::of([&worker], start + Duration::from_secs(3)).since(&later);
        assert_eq!((quiet.requests_per_second, quiet.p50, quiet.p99), (0.0, None, None));
        assert_eq!(later.since(&later).requests_per_second, 0.0);
    }

    #[test]
    fn a_count_never_falls_below_zero() {
        let count = Count::default();
        count.sub(1);
        assert_eq!(count.get(), 0);
    }

    #[test]
    fn workers_share_no_cache_line() {
        assert_eq!(std::mem::align_of::<WorkerCounters>(), 128);
    }

    #[test]
    fn each_status_has_its_class() {
        for (status, class) in
            [(101, "2xx"), (204, "2xx"), (304, "3xx"), (499, "4xx"), (504, "5xx"), (0, "other"), (600, "other")]
        {
            assert_eq!(Class::of(status).as_str(), class, "{status}");
        }
    }
}
