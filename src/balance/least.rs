//! least-requests: the one that has the fewest requests under way for its weight; of
//! several, one drawn by weight.
//!
//! All are looked at in a small pool, and [`LOOKED_AT`] neighbours from a random one on in
//! a large one: each look reads a cache line that other processors write, and with so many
//! choices the best of some is hardly worse than the best of all.

use super::dice::Dice;
use super::endpoint::Endpoint;
use super::tier::{Fitness, View};

/// Backends that are looked at for one request.
const LOOKED_AT: usize = 32;

/// Chooses a seat.
pub(super) fn choose<W: Fn(u16, &Endpoint) -> bool>(view: &View<'_, W>, dice: &mut Dice) -> Option<usize> {
    let count = view.tier.seats.len();
    let start = if count > LOOKED_AT { dice.below(count) } else { 0 };
    let mut best: Option<usize> = None;
    let (mut least, mut weight) = (f64::INFINITY, 0.0);
    for (looked_at, step) in (0..count).enumerate() {
        if looked_at >= LOOKED_AT && best.is_some() {
            break;
        }
        let seat = (start + step) % count;
        match view.fitness_of(seat) {
            Fitness::Out => continue,
            Fitness::Probe => return Some(seat),
            Fitness::Up => {}
        }
        let burden = view.burden(seat);
        let share = view.tier.seats.get(seat).map_or(1.0, |seat| f64::from(seat.weight)) * view.warmth(seat);
        if burden < least {
            (best, least, weight) = (Some(seat), burden, share);
        } else if burden == least {
            // Each of the equals so far is in its right to be drawn.
            weight += share;
            if dice.unit() * weight < share {
                best = Some(seat);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use crate::balance::fixture::{ask, member, of};
    use crate::balance::pool::Tried;
    use crate::config::Balance;

    #[test]
    fn least_requests_fills_up_by_weight() {
        let pool = of(Balance::LeastRequests, vec![member(0, 1), member(1, 3), member(2, 2)]);
        let held: Vec<_> = (0..60).map(|n| pool.pick(&mut Tried::default(), &ask(n)).unwrap()).collect();
        assert_eq!(pool.endpoints().iter().map(|one| one.load().in_flight()).collect::<Vec<_>>(), [10, 30, 20]);
        drop(held);
        assert!(pool.endpoints().iter().all(|one| one.load().in_flight() == 0));
    }
}
