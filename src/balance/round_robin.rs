//! round-robin: one after the other, by weight.
//!
//! The order of turns is worked out once: smooth weighted round-robin, which spreads a
//! heavy backend's turns instead of giving them in a row. A request then costs one shared
//! addition, and the turn is the same whichever worker takes it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::dice::Dice;
use super::endpoint::Endpoint;
use super::tier::{Fitness, Tier, View};

/// Whose turn it is in a tier.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Seats, each as often as its weight says.
    order: Box<[u16]>,
    turn: AtomicUsize,
}

impl Turns {
    /// The turns of this tier, from the first one on.
    pub(super) fn new(tier: &Tier) -> Self {
        let weights: Vec<u16> = tier.seats.iter().map(|seat| seat.weight).collect();
        Self { order: smooth(&weights), turn: AtomicUsize::new(0) }
    }

    /// Chooses a seat.
    pub(super) fn choose<W: Fn(u16, &Endpoint) -> bool>(&self, view: &View<'_, W>, dice: &mut Dice) -> Option<usize> {
        let start = self.turn.fetch_add(1, Relaxed).checked_rem(self.order.len())?;
        let (before, from) = self.order.split_at_checked(start)?;
        let mut cold = None;
        for seat in from.iter().chain(before).copied().map(usize::from) {
            let warmth = view.warmth(seat);
            if warmth < 1.0 && dice.unit() >= warmth {
                cold.get_or_insert(seat);
                continue;
            }
            if view.fitness_of(seat) != Fitness::Out {
                return Some(seat);
            }
        }
        cold.filter(|seat| view.fitness_of(*seat) != Fitness::Out)
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
    use super::smooth;
    use crate::balance::fixture::{in_turn, pick};
    use crate::balance::pool::Tried;

    #[test]
    fn heavy_backends_get_their_share_spread_out() {
        assert_eq!(*smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*smooth(&[10, 20]), [1, 0, 1]);
    }

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let pool = in_turn(&[1, 1, 1]);
        let taken: Vec<_> = (0..4).map(|_| pick(&pool, &mut Tried::default())).collect();
        assert_eq!(taken, ["127.0.0.1:4000", "127.0.0.1:4001", "127.0.0.1:4002", "127.0.0.1:4000"]);
    }
}
