//! Pools to test with.

use super::endpoint::Endpoint;
use super::load::Lease;
use super::pool::{Affinity, Ask, Member, Pool, Terms, Tried};
use super::sip::Key;
use super::standing::FALL;
use crate::config::{BackendAddress, Balance, HashKey, Target};
use crate::telemetry::Reason;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) const SECRET: Key = Key::new([9; 16]);

pub(super) fn endpoint(number: usize) -> Arc<Endpoint> {
    let target = Target::Ip(format!("127.0.0.1:{}", 4000 + number).parse().unwrap());
    Arc::new(Endpoint::new(&BackendAddress { target, weight: 1, backup: false }))
}

pub(super) fn member(number: usize, weight: u16) -> Member {
    Member { endpoint: endpoint(number), weight, backup: false }
}

pub(super) fn backup(number: usize) -> Member {
    Member { backup: true, ..member(number, 1) }
}

pub(super) fn terms(balance: Balance) -> Terms {
    Terms { balance, slow_start: None, limited: false, secret: Some(SECRET) }
}

pub(super) fn of(balance: Balance, members: Vec<Member>) -> Pool {
    Pool::new(members, &terms(balance))
}

pub(super) fn in_turn(weights: &[u16]) -> Pool {
    of(Balance::RoundRobin, (0..).zip(weights).map(|(number, weight)| member(number, *weight)).collect())
}

/// What the `n`th of many requests asks.
pub(super) fn ask(n: u64) -> Ask {
    Ask { now: 1, micros: 1_000, draw: n, key: Affinity::None, worker: 0 }
}

pub(super) fn keyed(n: u64) -> Ask {
    Ask { key: Affinity::of(&n.to_le_bytes()), ..ask(n) }
}

pub(super) fn pick(pool: &Pool, tried: &mut Tried) -> String {
    name(&pool.pick(tried, &ask(7)).expect("a backend"))
}

pub(super) fn name(lease: &Lease<'_>) -> String {
    lease.endpoint().identity().to_string()
}

pub(super) fn down(endpoint: &Endpoint) {
    for _ in 0..FALL {
        endpoint.refused(Reason::BackendConnectRefused, 0);
    }
}

/// How often each backend is picked by so many requests, one after the other.
pub(super) fn shares(pool: &Pool, requests: u64, ask: impl Fn(u64) -> Ask) -> Vec<u64> {
    let mut counts = BTreeMap::new();
    for n in 0..requests {
        let lease = pool.pick(&mut Tried::default(), &ask(n)).expect("a backend");
        *counts.entry(lease.endpoint().number()).or_insert(0) += 1;
    }
    pool.endpoints().iter().map(|endpoint| counts.get(&endpoint.number()).copied().unwrap_or(0)).collect()
}

#[track_caller]
pub(super) fn assert_near(counts: &[u64], shares: &[f64]) {
    let sum: f64 = counts.iter().sum::<u64>() as f64;
    for (count, share) in counts.iter().zip(shares) {
        let off = (*count as f64 - share * sum).abs();
        assert!(off <= 5.0 * (share * sum).sqrt() + 1.0, "{counts:?} where {shares:?} are meant");
    }
}

pub(super) fn every_balance() -> [Balance; 5] {
    [Balance::RoundRobin, Balance::LeastRequests, Balance::P2c, Balance::Hash(HashKey::Client), Balance::Sticky]
}
