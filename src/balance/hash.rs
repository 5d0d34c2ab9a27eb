//! hash: what has the same key meets the same backend, as long as that has not much more
//! than its share.
//!
//! Rendezvous hashing: each backend draws a number from the key and its own name, and the
//! best number wins. So a backend that comes or goes moves only the keys that it wins or
//! had won, 1/n of them; there is no table to build when a pool changes, weights are exact,
//! and what overflows from one backend spreads over all others instead of falling onto a
//! neighbour. It costs a few nanoseconds for each backend; docs/balancing.md has the
//! figures beside those of a ring and of Maglev's table.
//!
//! A backend is full with [`CROWD`] times its share of what is under way; then the key's
//! second choice takes the request, and so on. Below [`FEW`] it is never full: with hardly
//! anything under way, one request more than the share is no burden, and leaving the key's
//! backend for it would be.
//!
//! A backend that warms up gets its keys back one after the other, each of them once.
//!
//! Sources: D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates",
//! 1998; V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent hashing with bounded loads",
//! 2018.

use super::dice::{mix, unit};
use super::endpoint::Endpoint;
use super::tier::{Fitness, Seat, Tier, View};

/// How many times its share of all that is under way a backend takes. Source: HAProxy
/// suggests 125 to 150 % for `hash-balance-factor`; Vimeo's setting was 125 %.
pub const CROWD: f64 = 1.25;

/// Requests under way, the new one included, with which no backend is full.
pub const FEW: u32 = 4;

/// Full backends that are passed over before the first choice is taken after all.
const PASSED_MOST: usize = 16;

/// Chooses a seat for a key.
pub(super) fn choose<W: Fn(u16, &Endpoint) -> bool>(view: &View<'_, W>, key: u64) -> Option<usize> {
    // Where all warm up, nobody is left to spare them.
    search(view, key, |index, seat| is_awake(view, index, seat, key))
        .or_else(|| search(view, key, |_, _| true))
        .or_else(|| any(view, key))
}

/// The nearest seat that is fit and not full; failing that, the nearest one that is fit.
fn search<W>(view: &View<'_, W>, key: u64, awake: impl Fn(usize, &Seat) -> bool) -> Option<usize>
where
    W: Fn(u16, &Endpoint) -> bool,
{
    let mut first = None;
    let mut after = f64::NEG_INFINITY;
    let mut crowd = None;
    for _ in 0..PASSED_MOST {
        let Some((seat, distance)) = nearest(view.tier, key, after, &awake) else { break };
        after = distance;
        match view.fitness_of(seat) {
            Fitness::Out => continue,
            Fitness::Probe => return Some(seat),
            Fitness::Up => {}
        }
        let in_flight = view.endpoint(seat).map_or(0, |endpoint| endpoint.load().in_flight()).saturating_add(1);
        let has_room = |crowd: &mut Crowd| crowd.has_room(view.tier.seats.get(seat), in_flight);
        if in_flight <= FEW || has_room(crowd.get_or_insert_with(|| Crowd::of(view))) {
            return Some(seat);
        }
        first.get_or_insert(seat);
    }
    first
}

/// The seat that is next to the key behind those up to `after`, and how far it is.
fn nearest(tier: &Tier, key: u64, after: f64, awake: impl Fn(usize, &Seat) -> bool) -> Option<(usize, f64)> {
    let even = tier.is_even();
    let mut best: Option<(usize, f64)> = None;
    for (index, seat) in tier.seats.iter().enumerate() {
        let distance = distance(seat, key, even);
        if distance > after && best.is_none_or(|(_, least)| distance < least) && awake(index, seat) {
            best = Some((index, distance));
        }
    }
    best
}

/// How far a seat is from a key: a number of the exponential distribution, for the weight.
/// The least of such numbers is a given seat's with the probability of its weight in all.
fn distance(seat: &Seat, key: u64, even: bool) -> f64 {
    let number = unit(mix(key ^ seat.seed));
    // Where all weigh the same, the order is that of the numbers themselves.
    if even { number } else { -(1.0 - number).ln() / f64::from(seat.weight) }
}

/// Whether a backend that warms up has this key back.
fn is_awake<W: Fn(u16, &Endpoint) -> bool>(view: &View<'_, W>, index: usize, seat: &Seat, key: u64) -> bool {
    let warmth = view.warmth(index);
    warmth >= 1.0 || unit(mix(key.rotate_left(32) ^ seat.seed)) < warmth
}

/// What the backends that are up have under way together.
struct Crowd {
    /// Requests, the new one included.
    total: f64,
    /// Their weights.
    weight: f64,
}

impl Crowd {
    fn of<W: Fn(u16, &Endpoint) -> bool>(view: &View<'_, W>) -> Self {
        let mut crowd = Self { total: 1.0, weight: 0.0 };
        for (index, seat) in view.tier.seats.iter().enumerate() {
            let Some(endpoint) = view.endpoint(index).filter(|endpoint| endpoint.is_up()) else { continue };
            crowd.total += f64::from(endpoint.load().in_flight());
            crowd.weight += f64::from(seat.weight);
        }
        crowd
    }

    /// Whether a seat that would have so many under way keeps to its share.
    fn has_room(&self, seat: Option<&Seat>, in_flight: u32) -> bool {
        let weight = seat.map_or(0.0, |seat| f64::from(seat.weight));
        f64::from(in_flight) <= (CROWD * self.total * weight / self.weight.max(1.0)).ceil()
    }
}

/// Any that is fit, from a seat on that the key leads to.
fn any<W: Fn(u16, &Endpoint) -> bool>(view: &View<'_, W>, key: u64) -> Option<usize> {
    let count = view.tier.seats.len();
    let start = usize::try_from(key).unwrap_or(0).checked_rem(count)?;
    (0..count).map(|step| (start + step) % count).find(|seat| view.fitness_of(*seat) != Fitness::Out)
}

#[cfg(test)]
mod tests {
    use crate::balance::fixture::{keyed, member, name, of};
    use crate::balance::pool::Tried;
    use crate::config::{Balance, HashKey};

    #[test]
    fn a_key_stays_and_what_comes_or_goes_moves_only_its_own_keys() {
        for weighted in [false, true] {
            let weight = |number: usize| if weighted { u16::try_from(1 + number % 3).unwrap() } else { 1 };
            let members = |numbers: &[usize]| numbers.iter().map(|number| member(*number, weight(*number))).collect();
            let all: Vec<usize> = (0..20).collect();
            let without: Vec<usize> = all.iter().copied().filter(|number| *number != 7).collect();
            let homes = |numbers: &[usize]| -> Vec<String> {
                let pool = of(Balance::Hash(HashKey::Client), members(numbers));
                (0..20_000).map(|n| name(&pool.pick(&mut Tried::default(), &keyed(n)).unwrap())).collect()
            };
            let (before, after) = (homes(&all), homes(&without));
            let mut moved = 0.0;
            for (before, after) in before.iter().zip(&after) {
                if before != after {
                    assert_eq!(before, "127.0.0.1:4007", "only its keys move, to {after}");
                    moved += 1.0;
                }
            }
            let share = f64::from(weight(7)) / all.iter().map(|number| f64::from(weight(*number))).sum::<f64>();
            let found = moved / 20_000.0;
            assert!((found - share).abs() < 0.2 * share, "{found} of the keys moved, and not {share}");
            // Whatever order they are listed in.
            let turned: Vec<usize> = all.iter().rev().copied().collect();
            assert_eq!(homes(&turned), before);
        }
    }

    #[test]
    fn no_backend_has_much_more_than_its_share_however_the_keys_fall() {
        let pool = of(Balance::Hash(HashKey::Client), (0..10).map(|number| member(number, 1)).collect());
        // Nine of ten requests have the same key.
        let ask = |n: u64| if n % 10 == 0 { keyed(n) } else { keyed(1) };
        let held: Vec<_> = (0..1_000).map(|n| pool.pick(&mut Tried::default(), &ask(n)).unwrap()).collect();
        let most = pool.endpoints().iter().map(|one| one.load().in_flight()).max().unwrap();
        assert_eq!(most, 125);
        drop(held);
        // With little under way, everything stays where it belongs.
        let held: Vec<_> = (0..4).map(|_| pool.pick(&mut Tried::default(), &keyed(1)).unwrap()).collect();
        assert!(held.iter().all(|lease| name(lease) == name(&held[0])));
    }
}
