//! Slowness: a backend that takes far longer than the others of its pool, and has for a
//! while, is an outlier too.
//!
//! Measured is the time from when a request was sent whole to the head of its answer: what
//! clients take for their bodies, and for what they are answered, is theirs. A backend is
//! slow in a second in which its mean is `EJECT_LATENCY` times the median of the others',
//! and [`FLOOR`] above it; means of fewer than [`LEAST`] answers say nothing. After
//! [`SECONDS`] of that, with few words for the defence in between, it is ejected by the
//! rules of [`super::outlier`].
//!
//! Off unless asked for. Where each client or key has a backend of its own (`BALANCE=hash:`,
//! `sticky`), or one route serves what takes long beside what does not, a backend may be
//! slower than the others because of what it is asked, and the next one to be asked that
//! would follow it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::endpoint::Endpoint;
use super::outlier::{Group, can_be_spared};
use super::standing::{State, millis};

/// Answers in a second from which on their mean counts.
pub const LEAST: u64 = 5;

/// How far a slow backend's mean lies above the others' at least, however fast those are.
pub const FLOOR: Duration = Duration::from_millis(100);

/// Slow seconds after which a backend is ejected.
pub const SECONDS: u32 = 10;

/// How long one backend's answers took, since this was last looked at.
#[derive(Debug, Default)]
pub struct Gauge {
    answers: AtomicU64,
    millis: AtomicU64,
}

impl Gauge {
    /// Counts an answer in.
    pub fn add(&self, millis: u64) {
        self.answers.fetch_add(1, Relaxed);
        self.millis.fetch_add(millis, Relaxed);
    }

    /// The mean of what was counted since the last time, if it was enough to go by. One that
    /// is counted in meanwhile may be half in this mean and half in the next.
    fn take(&self) -> Option<u64> {
        let (answers, millis) = (self.answers.swap(0, Relaxed), self.millis.swap(0, Relaxed));
        (answers >= LEAST).then(|| millis / answers)
    }
}

/// The seconds in which backends were slow, by the endpoint's number.
#[derive(Debug, Default)]
pub struct Slowness {
    seconds: HashMap<u64, u32>,
}

impl Slowness {
    /// Takes in a second's answers and ejects what was slow for too long, at `now`
    /// milliseconds. To be called once a second.
    pub fn judge(&mut self, groups: &[Group<'_>], now: u64) {
        if groups.iter().all(|group| group.terms.slower.is_none()) {
            self.seconds.clear();
            return;
        }
        let mut means: HashMap<u64, Option<u64>> = HashMap::new();
        for endpoint in groups.iter().filter(|group| group.terms.slower.is_some()).flat_map(|group| &group.endpoints) {
            means.entry(endpoint.number()).or_insert_with(|| endpoint.gauge().take());
        }
        self.seconds.retain(|number, _| means.contains_key(number));
        let mut seen = HashSet::new();
        for group in groups {
            let Some(factor) = group.terms.slower else { continue };
            for endpoint in &group.endpoints {
                // In several routes it is measured by the first of them.
                if endpoint.state() != State::Up || !seen.insert(endpoint.number()) {
                    continue;
                }
                let seconds = self.seconds.entry(endpoint.number()).or_default();
                let Some(Compared { mean, others }) = compare(group, endpoint, &means) else {
                    *seconds = seconds.saturating_sub(1);
                    continue;
                };
                if mean <= others.saturating_mul(u64::from(factor)) || mean - others <= millis(FLOOR) {
                    *seconds = 0;
                    continue;
                }
                *seconds = seconds.saturating_add(1);
                if *seconds >= SECONDS && can_be_spared(groups, group, endpoint) {
                    let why = format!("answers take {mean} ms, those of the others {others} ms");
                    endpoint.eject(group.terms.time, group.terms.most, why.into(), now);
                    *seconds = 0;
                }
            }
        }
    }
}

/// An endpoint's mean, and the median of the others', in milliseconds.
struct Compared {
    mean: u64,
    others: u64,
}

/// `None` where too little is known of it, or of more than half of the others.
fn compare(group: &Group<'_>, endpoint: &Endpoint, means: &HashMap<u64, Option<u64>>) -> Option<Compared> {
    let mean = |endpoint: &Endpoint| means.get(&endpoint.number()).copied().flatten();
    let others = || group.endpoints.iter().filter(|other| other.number() != endpoint.number() && other.is_up());
    let mut known: Vec<u64> = others().filter_map(|other| mean(other)).collect();
    if known.is_empty() || known.len() * 2 < others().count() {
        return None;
    }
    known.sort_unstable();
    Some(Compared { mean: mean(endpoint)?, others: known.get(known.len() / 2).copied()? })
}

#[cfg(test)]
mod tests {
    use super::{SECONDS, Slowness};
    use crate::balance::endpoint::Endpoint;
    use crate::balance::outlier::{Group, Terms};
    use crate::balance::standing::State;
    use crate::config::{BackendAddress, Target};
    use std::sync::Arc;
    use std::time::Duration;

    const TERMS: Terms =
        Terms { after: None, time: Duration::from_secs(30), most: Duration::from_secs(300), slower: Some(5) };

    fn endpoints(count: u16) -> Vec<Arc<Endpoint>> {
        let at = |index| Target::Ip(format!("127.0.0.1:{}", 4000 + index).parse().unwrap());
        (0..count)
            .map(|index| Arc::new(Endpoint::new(&BackendAddress { target: at(index), weight: 1, backup: false })))
            .collect()
    }

    /// Plays seconds in which each endpoint gives `answers` of so many milliseconds; the
    /// second in which one was ejected, counted from 1, and which one.
    fn play(
        endpoints: &[Arc<Endpoint>],
        seconds: u64,
        answers: u64,
        ms: impl Fn(u64, usize) -> u64,
    ) -> Option<(u64, usize)> {
        let mut slowness = Slowness::default();
        for second in 1..=seconds {
            for (index, endpoint) in endpoints.iter().enumerate() {
                (0..answers).for_each(|_| endpoint.gauge().add(ms(second, index)));
            }
            slowness.judge(&[Group::new(TERMS, endpoints)], second * 1000);
            if let Some(ejected) = endpoints.iter().position(|endpoint| endpoint.state() == State::Ejected) {
                return Some((second, ejected));
            }
        }
        None
    }

    #[test]
    fn what_is_slow_for_long_enough_is_ejected() {
        let pool = endpoints(3);
        let ejected = play(&pool, 60, 50, |_, index| if index == 1 { 900 } else { 20 });
        assert_eq!(ejected, Some((u64::from(SECONDS), 1)));
        assert_eq!(pool[1].report().why.as_deref(), Some("answers take 900 ms, those of the others 20 ms"));
    }

    #[test]
    fn what_is_only_somewhat_slower_or_slow_for_a_moment_is_not() {
        for (what, ms) in [
            ("four times", (|_, index| if index == 1 { 800 } else { 200 }) as fn(u64, usize) -> u64),
            ("far, but nothing to notice", |_, index| if index == 1 { 90 } else { 1 }),
            ("now and then", |second, index| if index == 1 && second % SECONDS as u64 != 0 { 900 } else { 20 }),
            ("all of them", |_, _| 5_000),
        ] {
            assert_eq!(play(&endpoints(3), 60, 50, ms), None, "{what}");
        }
    }

    #[test]
    fn a_few_answers_say_nothing() {
        assert_eq!(play(&endpoints(3), 60, 4, |_, index| if index == 1 { 900 } else { 20 }), None);
    }

    #[test]
    fn of_two_the_slow_one_is_ejected_and_the_only_one_never() {
        assert!(play(&endpoints(2), 60, 50, |_, index| if index == 0 { 900 } else { 20 }).is_some());
        assert_eq!(play(&endpoints(1), 60, 50, |_, _| 900), None);
    }

    #[test]
    fn no_more_than_half_are_ejected_and_none_where_most_are_slow() {
        for (slow, ejected) in [(1, 1), (2, 2), (3, 0)] {
            let pool = endpoints(4);
            let mut slowness = Slowness::default();
            for second in 1..=25 {
                for (index, endpoint) in pool.iter().enumerate() {
                    (0..50).for_each(|_| endpoint.gauge().add(if index < slow { 900 } else { 10 }));
                }
                slowness.judge(&[Group::new(TERMS, &pool)], second * 1000);
            }
            let out = pool.iter().filter(|endpoint| endpoint.state() == State::Ejected).count();
            assert_eq!(out, ejected, "{slow} of four are slow");
        }
    }
}
