//! Ways to place keys: the daemon's beside a ring of points and Maglev's table.

use doorward::balance::pool::{Affinity, Ask, Member, Pool, Terms, Tried};
use doorward::config::{BackendAddress, Balance, HashKey, Target};
use std::sync::Arc;

use doorward::balance::endpoint::Endpoint;

use super::world::Random;

/// Points that each backend has on the ring. Source: ketama, and nginx's `hash … consistent`.
const POINTS: u64 = 160;

/// Places in Maglev's table. Source: Envoy's default.
const TABLE: usize = 65_537;

/// A placement: where a key lives, as the name of a backend.
pub type Place<'a> = Box<dyn Fn(u64) -> usize + 'a>;

/// How a placement is made of the names of backends.
pub type Way = fn(&[usize]) -> Place<'static>;

fn hash(text: u64, salt: u64) -> u64 {
    Random::new(text.wrapping_mul(0x9e37_79b9).wrapping_add(salt.rotate_left(32))).next()
}

/// The daemon's own.
pub fn rendezvous(names: &[usize]) -> Place<'static> {
    let member = |name: &usize| {
        let address = format!("10.0.{}.{}:80", name / 256, name % 256);
        let target = Target::Ip(address.parse().expect("an address"));
        let endpoint = Arc::new(Endpoint::new(&BackendAddress { target, weight: 1, backup: false }));
        (*name, Member { endpoint, weight: 1, backup: false })
    };
    let members: Vec<(usize, Member)> = names.iter().map(member).collect();
    let by_number: std::collections::BTreeMap<u64, usize> =
        members.iter().map(|(name, member)| (member.endpoint.number(), *name)).collect();
    let terms = Terms { balance: Balance::Hash(HashKey::Client), slow_start: None, limited: false, secret: None };
    let pool = Pool::new(members.into_iter().map(|(_, member)| member).collect(), &terms);
    Box::new(move |key| {
        let ask = Ask { now: 1, micros: 1_000, draw: key, key: Affinity::of(&key.to_le_bytes()), worker: 0 };
        by_number[&pool.pick(&mut Tried::default(), &ask).expect("a backend").endpoint().number()]
    })
}

/// A ring of points: a key belongs to the next one.
pub fn ring(names: &[usize]) -> Place<'static> {
    let points = |name: &usize| (0..POINTS).map(|point| (hash(*name as u64, point + 1), *name)).collect::<Vec<_>>();
    let mut ring: Vec<(u64, usize)> = names.iter().flat_map(points).collect();
    ring.sort_unstable();
    Box::new(move |key| {
        let at = ring.partition_point(|(point, _)| *point < hash(key, 0));
        ring[at % ring.len()].1
    })
}

/// Maglev's table: backends take places in turn, each by a permutation of its own.
///
/// Source: D. Eisenbud et al., "Maglev: a fast and reliable software network load
/// balancer", NSDI 2016.
pub fn maglev(names: &[usize]) -> Place<'static> {
    let mut table = vec![usize::MAX; TABLE];
    let mut next = vec![0_usize; names.len()];
    let mut filled = 0;
    'filling: loop {
        for (index, name) in names.iter().enumerate() {
            let (offset, skip) = (hash(*name as u64, 1), hash(*name as u64, 2));
            let (offset, skip) = (offset as usize % TABLE, skip as usize % (TABLE - 1) + 1);
            loop {
                let place = (offset + next[index] * skip) % TABLE;
                next[index] += 1;
                if table[place] == usize::MAX {
                    table[place] = *name;
                    filled += 1;
                    break;
                }
            }
            if filled == TABLE {
                break 'filling;
            }
        }
    }
    Box::new(move |key| table[hash(key, 0) as usize % TABLE])
}

/// How evenly keys lie, and how many move when one backend of `count` goes.
#[derive(Debug)]
pub struct Figures {
    /// Keys of the backend that has most, by the mean.
    pub imbalance: f64,
    /// Keys that moved, for each that had to.
    pub moved: f64,
}

/// Places so many keys on `count` backends, and again without one of them.
pub fn measure(place: Way, count: usize, keys: u64) -> Figures {
    let all: Vec<usize> = (0..count).collect();
    let fewer: Vec<usize> = all.iter().copied().filter(|name| *name != count / 2).collect();
    let (before, after) = (place(&all), place(&fewer));
    let mut counts = vec![0_u64; count];
    let (mut moved, mut had_to) = (0_u64, 0_u64);
    for key in 0..keys {
        let (first, second) = (before(key), after(key));
        counts[first] += 1;
        moved += u64::from(first != second);
        had_to += u64::from(first == count / 2);
    }
    let most = counts.iter().max().copied().unwrap_or(0);
    Figures { imbalance: most as f64 * count as f64 / keys as f64, moved: moved as f64 / had_to.max(1) as f64 }
}
