//! Load: what one backend has under way and how long it takes to answer, as all workers
//! see it.
//!
//! Taking a share of it gives a [`Lease`]; dropping the lease gives the share back, so
//! that no path of a request can forget to. An answer feeds the latency.
//!
//! The latency is a moving average that believes bad news at once: a value above it
//! becomes it, one below it moves it by the time that went by, with the time constant
//! [`DECAY`]. So does idleness, so that a backend which was slow once is tried again.
//! Source: "peak EWMA" of Finagle's `com.twitter.finagle.loadbalancer`. Beyond that, silence
//! counts while it lasts: a backend that owes answers and gives none is taken to be as slow as
//! it has been silent, long before anybody's deadline. What has been answered and goes on, a
//! long response or a tunnel, is under way, but nothing is owed for it.
//!
//! Everything is a relaxed atomic in a cache line of its own. Two workers that write at
//! once may each act on what the other has not seen; a count never goes wrong by that,
//! and the average is one of many samples.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::endpoint::Endpoint;
use super::tally::Lane;

/// How fast old latencies are forgotten. Source: the default of Finagle and Linkerd.
pub const DECAY: Duration = Duration::from_secs(10);

/// The least that a failed attempt counts as having taken, in microseconds.
const FAILED_LEAST: u64 = 1_000;

/// The most, so that the product with a number under way stays far from overflow.
const LATENCY_MOST: u64 = 60_000_000;

/// The share of its weight that a backend begins with while it warms up. Source: Envoy,
/// `min_weight_percent`.
const COLD: f64 = 0.1;

/// One that is under way, and one that an answer is owed to, as they are counted together.
const SHARE: u64 = 1;
const OWED: u64 = 1 << 32;

/// Nobody has looked at it yet.
const NEW: u64 = u64::MAX;

/// What one backend has under way, and how long it takes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Load {
    /// Those under way in the lower half, those of them that wait for an answer in the upper.
    shares: AtomicU64,
    /// Microseconds of latency in the upper half, 0 while nothing is known; the lower half
    /// of the milliseconds when that was written in the lower.
    latency: AtomicU64,
    /// Milliseconds when it last came to owe an answer, or gave one.
    stirred: AtomicU64,
    /// Milliseconds since which it is there; 0 when it was from the start, [`NEW`] until
    /// somebody has looked at it.
    new_since: AtomicU64,
}

impl Load {
    /// Requests, or connections of `MODE=tcp`, that hold a lease.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        half(self.shares.load(Relaxed))
    }

    /// Whether any of them waits for its answer.
    fn owes(&self) -> bool {
        self.shares.load(Relaxed) >= OWED
    }

    /// Its latency in microseconds as of `now`, in milliseconds; 0 while nothing is known.
    /// It is forgotten only while no answer is owed: requests that are not answered do not
    /// make a backend look faster with time.
    #[must_use]
    pub fn latency(&self, now: u64) -> f64 {
        let (latency, age) = unpack(self.latency.load(Relaxed), now);
        if age == 0 || self.owes() { f64::from(latency) } else { (f64::from(latency) * fading(age)).floor() }
    }

    /// For how many microseconds as of `now`, in milliseconds, it has owed answers and given
    /// none; 0 while it owes none.
    #[must_use]
    pub fn silence(&self, now: u64) -> f64 {
        if !self.owes() {
            return 0.0;
        }
        let silence = now.saturating_sub(self.stirred.load(Relaxed)).saturating_mul(1_000).min(LATENCY_MOST);
        f64::from(u32::try_from(silence).unwrap_or(u32::MAX))
    }

    fn stir(&self, now: u64) {
        if self.stirred.load(Relaxed) != now {
            self.stirred.store(now, Relaxed);
        }
    }

    /// It is new among others: from when it is first looked at, it warms up.
    pub fn begin_cold(&self) {
        self.new_since.store(NEW, Relaxed);
    }

    /// The share of its weight that it takes at `now`, from a tenth to 1, when it came up at
    /// `up_since` (0: it always was) and warming up takes `slow_start`, all in milliseconds.
    #[must_use]
    pub fn warmth(&self, up_since: u64, now: u64, slow_start: u64) -> f64 {
        let mut new_since = self.new_since.load(Relaxed);
        if new_since == NEW {
            // Somebody else may have been faster, by no more than the clocks differ.
            self.new_since.store(now.max(1), Relaxed);
            new_since = now.max(1);
        }
        let since = up_since.max(new_since);
        let age = now.saturating_sub(since);
        if since == 0 || age >= slow_start {
            return 1.0;
        }
        COLD.max(ratio(age, slow_start))
    }

    /// Notes that an answer took so many microseconds.
    fn observe(&self, micros: u64, now: u64) {
        let sample = u32::try_from(micros.clamp(1, LATENCY_MOST)).unwrap_or(u32::MAX);
        self.update(now, |latency, age| {
            if latency <= sample {
                return sample;
            }
            let kept = fading(age);
            narrow(f64::from(latency) * kept + f64::from(sample) * (1.0 - kept))
        });
    }

    /// Notes that an attempt failed after so many microseconds: twice as slow as before,
    /// or as slow as that. A backend that fails fast must not look like a fast one.
    fn observe_failure(&self, micros: u64, now: u64) {
        let least = u32::try_from(micros.clamp(FAILED_LEAST, LATENCY_MOST)).unwrap_or(u32::MAX);
        self.update(now, |latency, age| narrow(f64::from(latency) * fading(age) * 2.0).max(least));
    }

    /// Notes that nobody waited longer than so many microseconds: so long it takes at least.
    fn observe_patience(&self, micros: u64, now: u64) {
        let least = u32::try_from(micros.min(LATENCY_MOST)).unwrap_or(u32::MAX);
        if f64::from(least) > self.latency(now) {
            self.update(now, |latency, _| latency.max(least));
        }
    }

    fn update(&self, now: u64, change: impl Fn(u32, u32) -> u32) {
        let mut before = self.latency.load(Relaxed);
        loop {
            let (latency, age) = unpack(before, now);
            let changed = change(latency, age);
            // Most answers within one millisecond write nothing.
            if changed == latency && age == 0 {
                return;
            }
            match self.latency.compare_exchange_weak(before, pack(changed, now), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(meanwhile) => before = meanwhile,
            }
        }
    }
}

/// One request's share of a backend's load; dropping it gives the share back.
#[derive(Debug)]
#[must_use = "the share is given back at once"]
pub struct Lease<'a> {
    endpoint: &'a Arc<Endpoint>,
    lane: &'a Lane,
    /// Microseconds at which it was taken; `None` where there is no choice to be made, and
    /// so nothing to go by.
    begun: Option<u64>,
    /// It waits for its answer, and is counted so.
    owed: Cell<bool>,
}

impl<'a> Lease<'a> {
    /// A share of `endpoint`'s load for an attempt of `worker`'s, taken at `begun` microseconds.
    pub(super) fn counted(endpoint: &'a Arc<Endpoint>, worker: usize, begun: u64) -> Self {
        let load = endpoint.load();
        if load.shares.fetch_add(SHARE | OWED, Relaxed) < OWED {
            load.stir(begun / 1_000);
        }
        Self::begin(endpoint, worker, Some(begun))
    }

    /// The right to use `endpoint` where its load decides nothing and so is not counted.
    pub(super) fn uncounted(endpoint: &'a Arc<Endpoint>, worker: usize) -> Self {
        Self::begin(endpoint, worker, None)
    }

    fn begin(endpoint: &'a Arc<Endpoint>, worker: usize, begun: Option<u64>) -> Self {
        let lane = endpoint.tally().lane(worker);
        lane.begun();
        Self { endpoint, lane, begun, owed: Cell::new(begun.is_some()) }
    }

    /// The backend.
    #[must_use]
    pub fn endpoint(&self) -> &'a Arc<Endpoint> {
        self.endpoint
    }

    /// Where its worker counts what comes of the attempt.
    #[must_use]
    pub fn lane(&self) -> &'a Lane {
        self.lane
    }

    /// Whether what becomes of the attempt is to be told. Otherwise nobody need read a clock.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.begun.is_some()
    }

    /// The head of an answer came at `now` microseconds.
    pub fn answered(&self, now: u64) {
        self.settle();
        self.tell(now, |load, micros, now| {
            load.stir(now);
            load.observe(micros, now);
        });
    }

    /// The attempt failed on the backend's side at `now` microseconds, or its answer says
    /// that it did (5xx).
    pub fn failed(&self, now: u64) {
        self.settle();
        self.tell(now, |load, micros, now| {
            load.stir(now);
            load.observe_failure(micros, now);
        });
    }

    /// Nobody waits any longer at `now` microseconds.
    pub fn abandoned(&self, now: u64) {
        self.tell(now, Load::observe_patience);
    }

    /// Nothing is owed any more.
    fn settle(&self) {
        if self.owed.replace(false) {
            self.endpoint.load().shares.fetch_sub(OWED, Relaxed);
        }
    }

    fn tell(&self, now: u64, note: fn(&Load, u64, u64)) {
        if let Some(begun) = self.begun {
            note(self.endpoint.load(), now.saturating_sub(begun), now / 1_000);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.lane.over();
        if self.begun.is_some() {
            let owed = if self.owed.get() { OWED } else { 0 };
            self.endpoint.load().shares.fetch_sub(SHARE | owed, Relaxed);
        }
    }
}

fn pack(latency: u32, now: u64) -> u64 {
    (u64::from(latency) << 32) | now & u64::from(u32::MAX)
}

/// The latency, and its age in milliseconds: 0 too when another worker's clock is ahead,
/// and after 24 days without an answer, when the count of milliseconds has come round.
fn unpack(packed: u64, now: u64) -> (u32, u32) {
    let age = half(now).wrapping_sub(half(packed));
    (half(packed >> 32), if age > u32::MAX / 2 { 0 } else { age })
}

/// The lower half of a word.
fn half(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0)
}

/// What is left of an old value after so many milliseconds.
fn fading(age: u32) -> f64 {
    (-f64::from(age) / (DECAY.as_secs_f64() * 1_000.0)).exp()
}

fn narrow(micros: f64) -> u32 {
    (micros.round() as u32).min(u32::try_from(LATENCY_MOST).unwrap_or(u32::MAX))
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::{LATENCY_MOST, Lease, Load};
    use crate::balance::endpoint::Endpoint;
    use crate::config::{BackendAddress, Target};
    use std::sync::Arc;

    fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint::new(&BackendAddress { target: Target::Echo, weight: 1, backup: false }))
    }

    #[test]
    fn a_lease_is_under_way_until_it_is_dropped() {
        let endpoint = endpoint();
        let (first, second) = (Lease::counted(&endpoint, 0, 0), Lease::counted(&endpoint, 0, 0));
        assert_eq!(endpoint.load().in_flight(), 2);
        drop(first);
        assert_eq!(endpoint.load().in_flight(), 1);
        second.answered(5);
        drop(second);
        assert_eq!(endpoint.load().in_flight(), 0);
        let none = Lease::uncounted(&endpoint, 0);
        none.answered(900);
        assert_eq!((endpoint.load().in_flight(), none.is_counted()), (0, false));
        assert!(endpoint.load().latency(0) == 5.0, "what is not counted is not measured");
    }

    #[test]
    fn bad_news_is_believed_at_once_and_good_news_with_time() {
        let load = Load::default();
        assert!(load.latency(0) == 0.0);
        load.observe(2_000, 10);
        load.observe(50_000, 11);
        assert!(load.latency(11) == 50_000.0);
        load.observe(2_000, 11);
        assert!(load.latency(11) == 50_000.0, "no time has gone by");
        load.observe(2_000, 11 + 10_000);
        let third = load.latency(10_011);
        assert!((19_000.0..20_000.0).contains(&third), "{third}");
    }

    #[test]
    fn what_was_slow_is_forgotten_also_without_answers() {
        let load = Load::default();
        load.observe(1_000_000, 1);
        assert!((360_000.0..370_000.0).contains(&load.latency(10_001)));
        assert!(load.latency(200_001) == 0.0, "as if nothing were known");
        assert!(load.latency(0) == 1_000_000.0, "another clock that lags");
    }

    #[test]
    fn silence_is_what_passes_between_a_request_and_any_answer() {
        let endpoint = endpoint();
        Lease::counted(&endpoint, 0, 1_000).answered(6_000);
        let load = endpoint.load();
        assert!(load.latency(4_006) < 5_000.0, "idle, it is forgotten");
        let first = Lease::counted(&endpoint, 0, 9_000_000);
        assert!(load.silence(9_000) == 0.0, "not since its last answer, but since it has requests");
        assert!(load.silence(9_500) == 500_000.0 && load.latency(9_500) == 5_000.0);
        let second = Lease::counted(&endpoint, 0, 9_500_000);
        assert!(load.silence(9_600) == 600_000.0, "more requests are no answer");
        second.answered(9_700_000);
        assert!(load.silence(9_701) == 1_000.0, "an answer is");
        drop((first, second));
        assert!(load.silence(60_000) == 0.0);
    }

    /// Else whoever has a long answer or a tunnel open would get nothing else for as long.
    #[test]
    fn what_is_answered_and_goes_on_is_under_way_and_no_silence() {
        let endpoint = endpoint();
        let load = endpoint.load();
        let tunnel = Lease::counted(&endpoint, 0, 1_000);
        tunnel.answered(6_000);
        assert!(load.silence(60_000) == 0.0 && load.in_flight() == 1);
        assert!(load.latency(4_006) < 5_000.0, "as if idle, it is forgotten");
        let second = Lease::counted(&endpoint, 0, 60_000_000);
        assert!(load.silence(60_000) == 0.0, "only now is an answer owed again");
        assert!(load.silence(60_500) == 500_000.0 && load.in_flight() == 2);
        second.failed(60_600_000);
        assert!(load.silence(70_000) == 0.0);
        second.answered(60_700_000);
        drop(tunnel);
        assert!(load.in_flight() == 1 && load.silence(70_000) == 0.0, "settled once");
        drop(second);
        assert!(load.in_flight() == 0);
    }

    #[test]
    fn failing_fast_looks_slow_and_ever_slower() {
        let load = Load::default();
        load.observe(3_000, 1);
        load.observe_failure(100, 1);
        assert!(load.latency(1) == 6_000.0);
        load.observe_failure(100, 1);
        assert!(load.latency(1) == 12_000.0);
        load.observe_failure(90_000, 1);
        assert!(load.latency(1) == 90_000.0);
        for _ in 0..64 {
            load.observe_failure(100, 1);
        }
        assert!(load.latency(1) == LATENCY_MOST as f64);
        let unknown = Load::default();
        unknown.observe_failure(20, 1);
        assert!(unknown.latency(1) == 1_000.0);
    }

    #[test]
    fn who_gave_up_says_only_how_long_it_took_at_least() {
        let load = Load::default();
        load.observe(3_000, 1);
        load.observe_patience(1_000, 1);
        assert!(load.latency(1) == 3_000.0);
        load.observe_patience(8_000, 1);
        assert!(load.latency(1) == 8_000.0);
    }

    #[test]
    fn a_backend_that_came_up_or_is_new_takes_a_growing_share() {
        let load = Load::default();
        assert!(load.warmth(0, 5, 1_000) == 1.0, "it was there from the start");
        let warmth: Vec<f64> = [2_000, 2_050, 2_250, 2_500, 3_000].map(|now| load.warmth(2_000, now, 1_000)).into();
        assert_eq!(warmth, [0.1, 0.1, 0.25, 0.5, 1.0]);
        assert!(load.warmth(2_000, 2_001, 0) == 1.0);
        load.begin_cold();
        let warmth: Vec<f64> = [7_000, 7_250, 8_000].map(|now| load.warmth(0, now, 1_000)).into();
        assert_eq!(warmth, [0.1, 0.25, 1.0]);
        assert!(load.warmth(8_000, 8_500, 1_000) == 0.5, "the later of both counts");
    }

    #[test]
    fn it_has_a_cache_line_of_its_own() {
        assert_eq!((std::mem::align_of::<Load>(), std::mem::size_of::<Load>()), (128, 128));
    }
}
