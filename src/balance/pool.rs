//! Pool: the backends of one route, taken in turn by weight.
//!
//! The order of turns is worked out once: smooth weighted round-robin, which spreads
//! a heavy backend's turns instead of giving them in a row. A request then costs one
//! shared addition, and the turn is the same whichever worker takes it.
//!
//! Where checks and outlier ejection leave no backend at all, the pool *fails open*: they
//! may be wrong of all at once, so requests go to every backend that is not really down, as
//! if nothing were held against it. That lasts until half of those are up again. Otherwise
//! the first one to return would have to take what all of them could not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::endpoint::Endpoint;

/// Attempts of one request that are remembered, so that each goes elsewhere.
const REMEMBERED: usize = 32;

/// The backends of one route.
#[derive(Debug)]
pub struct Pool {
    endpoints: Box<[Arc<Endpoint>]>,
    order: Box<[u16]>,
    turn: AtomicUsize,
    open: AtomicBool,
}

/// The backends that a request has tried.
#[derive(Debug, Default, Clone)]
pub struct Tried {
    places: [u16; REMEMBERED],
    count: usize,
}

impl Tried {
    fn note(&mut self, place: u16) {
        if let Some(free) = self.places.get_mut(self.count) {
            *free = place;
            self.count += 1;
        }
    }

    fn has(&self, place: u16) -> bool {
        self.places.iter().take(self.count).any(|tried| *tried == place)
    }
}

impl Pool {
    /// A pool of these endpoints with their weights (at least 1 each).
    #[must_use]
    pub fn new(members: Vec<(Arc<Endpoint>, u16)>) -> Self {
        let order = smooth(&members.iter().map(|(_, weight)| *weight).collect::<Vec<_>>());
        let endpoints = members.into_iter().map(|(endpoint, _)| endpoint).collect();
        Self { endpoints, order, turn: AtomicUsize::new(0), open: AtomicBool::new(false) }
    }

    /// Its backends.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Whether it has the same endpoints with the same shares as another one.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.order == other.order
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(|(mine, theirs)| Arc::ptr_eq(mine, theirs))
    }

    /// The next backend in turn that was not tried and is up; failing that, one that was
    /// tried; failing that, one that is not really down; failing that, one whose name is
    /// not resolved. `None` when every backend is down, or the pool is empty.
    pub fn pick(&self, tried: &mut Tried, now: u64) -> Option<&Arc<Endpoint>> {
        // Where there is no choice, there is no line of memory for the workers to fight over.
        let turn = if self.order.len() > 1 { self.turn.fetch_add(1, Ordering::Relaxed) } else { 0 };
        let open = self.fails_open();
        let up = |endpoint: &Endpoint| if open { endpoint.admits_anyway(now) } else { endpoint.admits(now) };
        let (place, endpoint) = self
            .scan(turn, |place, endpoint| !tried.has(place) && endpoint.is_resolved() && up(endpoint))
            .or_else(|| self.scan(turn, |_, endpoint| endpoint.is_resolved() && up(endpoint)))
            .or_else(|| {
                self.scan(turn, |place, endpoint| {
                    !tried.has(place) && endpoint.is_resolved() && endpoint.admits_anyway(now)
                })
            })
            .or_else(|| self.scan(turn, |_, endpoint| endpoint.is_resolved() && endpoint.admits_anyway(now)))
            .or_else(|| self.scan(turn, |_, endpoint| endpoint.admits(now)))?;
        tried.note(place);
        Some(endpoint)
    }

    /// Whether no connection can be made to any of its backends.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.is_down())
    }

    /// Whether requests go to every backend that is not really down.
    #[must_use]
    pub fn fails_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Works out anew whether it fails open, and says so; for control, after each change of
    /// a backend's state.
    pub fn weigh(&self) -> bool {
        let count = |wanted: fn(&Endpoint) -> bool| self.endpoints.iter().filter(|one| wanted(one)).count();
        let (up, reachable) = (count(Endpoint::is_up), count(|endpoint| !endpoint.is_down()));
        let open = if self.fails_open() { up * 2 < reachable } else { up == 0 && reachable > 0 };
        self.open.store(open, Ordering::Relaxed);
        open
    }

    fn scan(&self, turn: usize, wanted: impl Fn(u16, &Endpoint) -> bool) -> Option<(u16, &Arc<Endpoint>)> {
        let start = turn.checked_rem(self.order.len())?;
        let (before, from) = self.order.split_at_checked(start)?;
        from.iter().chain(before).copied().find_map(|place| {
            let endpoint = self.endpoints.get(usize::from(place))?;
            wanted(place, endpoint).then_some((place, endpoint))
        })
    }
}

/// Smooth weighted round-robin: in each step every backend gains its weight, the
/// richest is chosen and pays the sum. Source: nginx, `ngx_http_upstream_round_robin`.
fn smooth(weights: &[u16]) -> Box<[u16]> {
    let divisor = weights.iter().copied().filter(|weight| *weight > 0).reduce(gcd).unwrap_or(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor).max(1)).collect();
    let sum: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    (0..sum)
        .filter_map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&weights) {
                *credit += weight;
            }
            // `max_by_key` takes the last of equals, so look from behind: the first wins.
            let (richest, credit) = credit.iter_mut().enumerate().rev().max_by_key(|(_, credit)| **credit)?;
            *credit -= sum;
            u16::try_from(richest).ok()
        })
        .collect()
}

fn gcd(a: u16, b: u16) -> u16 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::{Pool, Tried, smooth};
    use crate::balance::endpoint::Endpoint;
    use crate::balance::standing::FALL;
    use crate::config::{BackendAddress, Target};
    use crate::telemetry::Reason;
    use std::sync::Arc;

    fn pool(weights: &[u16]) -> Pool {
        let members = weights.iter().enumerate().map(|(index, weight)| {
            let target = Target::Ip(format!("127.0.0.1:{}", 4000 + index).parse().unwrap());
            (Arc::new(Endpoint::new(&BackendAddress { target, weight: *weight })), *weight)
        });
        Pool::new(members.collect())
    }

    fn pick(pool: &Pool, tried: &mut Tried) -> String {
        pool.pick(tried, 0).expect("a backend").identity().to_string()
    }

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let pool = pool(&[1, 1, 1]);
        let taken: Vec<_> = (0..4).map(|_| pick(&pool, &mut Tried::default())).collect();
        assert_eq!(taken, ["127.0.0.1:4000", "127.0.0.1:4001", "127.0.0.1:4002", "127.0.0.1:4000"]);
    }

    #[test]
    fn heavy_backends_get_their_share_spread_out() {
        assert_eq!(*smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*smooth(&[10, 20]), [1, 0, 1]);
    }

    #[test]
    fn each_attempt_of_a_request_goes_elsewhere_while_there_is_elsewhere() {
        let pool = pool(&[1, 1, 1]);
        let mut tried = Tried::default();
        let mut taken: Vec<_> = (0..3).map(|_| pick(&pool, &mut tried)).collect();
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 3);
        pick(&pool, &mut tried);
    }

    #[test]
    fn a_backend_that_is_down_is_passed_over_and_none_is_left_when_all_are() {
        let pool = pool(&[1, 1]);
        let (first, second) = (&pool.endpoints()[0], &pool.endpoints()[1]);
        for _ in 0..FALL {
            first.refused(Reason::BackendConnectRefused, 0);
        }
        for _ in 0..4 {
            assert_eq!(pick(&pool, &mut Tried::default()), **second.identity());
        }
        for _ in 0..FALL {
            second.refused(Reason::BackendConnectRefused, 0);
        }
        assert!(pool.is_down());
        assert!(pool.pick(&mut Tried::default(), 1).is_none());
    }

    #[test]
    fn a_name_that_is_not_resolved_is_passed_over_while_there_is_another() {
        let target = Target::Name { host: "app.test".into(), port: 80 };
        let named = Arc::new(Endpoint::new(&BackendAddress { target, weight: 1 }));
        let pool = Pool::new(vec![(Arc::clone(&named), 1), (Arc::clone(&pool(&[1]).endpoints()[0]), 1)]);
        let taken: Vec<_> = (0..4).map(|_| pick(&pool, &mut Tried::default())).collect();
        assert_eq!(taken, ["127.0.0.1:4000"; 4]);
        let unknown = Pool::new(vec![(
            Arc::new(Endpoint::new(&BackendAddress {
                target: Target::Name { host: "other.test".into(), port: 80 },
                weight: 1,
            })),
            1,
        )]);
        assert_eq!(pick(&unknown, &mut Tried::default()), "other.test:80", "its reason is the answer");
    }

    fn fail_check(endpoint: &Endpoint) {
        endpoint.checked(Err("status 500".into()), 1, 1, 0);
    }

    #[test]
    fn where_every_check_fails_all_are_used_but_those_that_are_down() {
        let pool = pool(&[1, 1, 1]);
        pool.endpoints().iter().for_each(|endpoint| fail_check(endpoint));
        for _ in 0..FALL {
            pool.endpoints()[1].refused(Reason::BackendConnectRefused, 0);
        }
        assert!(!pool.is_down());
        // Also before control has seen to it.
        for weighed in [false, true] {
            let mut tried = Tried::default();
            let mut taken = [pick(&pool, &mut tried), pick(&pool, &mut tried)];
            taken.sort();
            assert_eq!(taken, ["127.0.0.1:4000", "127.0.0.1:4002"], "{weighed}");
            pool.weigh();
        }
    }

    #[test]
    fn a_pool_fails_open_when_none_is_left_and_until_half_are_back() {
        let pool = pool(&[1, 1, 1, 1]);
        for (index, endpoint) in pool.endpoints().iter().enumerate() {
            assert!(!pool.weigh(), "{index}");
            fail_check(endpoint);
        }
        assert!(pool.weigh() && pool.fails_open());
        pool.endpoints()[2].checked(Ok(()), 1, 1, 0);
        assert!(pool.weigh());
        let taken: Vec<_> = (0..4).map(|_| pick(&pool, &mut Tried::default())).collect();
        assert_eq!(taken.len(), taken.iter().collect::<std::collections::BTreeSet<_>>().len(), "the first is spared");
        pool.endpoints()[3].checked(Ok(()), 1, 1, 0);
        assert!(!pool.weigh() && !pool.fails_open());
        for _ in 0..4 {
            assert!(["127.0.0.1:4002", "127.0.0.1:4003"].contains(&pick(&pool, &mut Tried::default()).as_str()));
        }
    }

    #[test]
    fn one_that_fails_its_check_is_better_than_one_without_an_address() {
        let target = Target::Name { host: "app.test".into(), port: 80 };
        let named = Arc::new(Endpoint::new(&BackendAddress { target, weight: 1 }));
        let failing = Arc::clone(&pool(&[1]).endpoints()[0]);
        fail_check(&failing);
        let pool = Pool::new(vec![(named, 1), (failing, 1)]);
        assert_eq!(pick(&pool, &mut Tried::default()), "127.0.0.1:4000");
    }

    #[test]
    fn an_empty_pool_has_nothing_to_pick() {
        assert!(Pool::new(Vec::new()).pick(&mut Tried::default(), 0).is_none());
    }
}
