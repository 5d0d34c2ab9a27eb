//! p2c: the better one of two that are drawn at random.
//!
//! Better is what has the lower product of latency and requests under way, the new one
//! included: about the time that the request would take there. Two that are drawn anew
//! each time, instead of the best of all, keep workers that see the same numbers from
//! rushing to the same backend, and cost the same for two backends as for a thousand.
//!
//! A difference in latency that is within [`NOISE`] decides nothing: then the number under
//! way does. Of equals the one drawn first is taken, so that an idle pool is used by
//! weight. A backend of which nothing is known gets one request at once, and no more
//! before that is answered. One that has requests and leaves them all unanswered is as slow
//! as it has been silent; where both are such, more are drawn: with a third of a pool frozen,
//! two draws meet nothing else every ninth time.
//!
//! Source: M. Mitzenmacher, "The power of two choices in randomized load balancing", 1996;
//! the product is Finagle's.

use super::dice::Dice;
use super::endpoint::Endpoint;
use super::tier::{Fitness, View};

/// Two latencies whose ratio is below this are the same. One long request makes a latency
/// jump by more than that; in the simulation, a narrower band loses to that noise in evenness
/// what a wider one loses where a backend really is slower.
const NOISE: f64 = 2.0;

/// How many more are drawn while the better one is silent.
const MORE: usize = 4;

/// Chooses a seat.
pub(super) fn choose<W: Fn(u16, &Endpoint) -> bool>(view: &View<'_, W>, dice: &mut Dice) -> Option<usize> {
    let (mut best, fitness) = view.draw(dice, None)?;
    if fitness == Fitness::Probe {
        return Some(best);
    }
    let mut cost = Cost::of(view, best);
    for drawn in 0..=MORE {
        if drawn > 0 && !cost.silent {
            break;
        }
        match view.draw(dice, Some(best)) {
            None => break,
            Some((other, Fitness::Probe)) => return Some(other),
            Some((other, _)) => {
                let challenge = Cost::of(view, other);
                if challenge.is_below(cost) {
                    (best, cost) = (other, challenge);
                }
            }
        }
    }
    Some(best)
}

/// What a request is expected to cost at one backend.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Microseconds; 0 while nothing is known.
    latency: f64,
    /// Requests under way, for its weight.
    burden: f64,
    /// It has requests, and has not answered for much longer than it should take.
    silent: bool,
}

impl Cost {
    fn of<W: Fn(u16, &Endpoint) -> bool>(view: &View<'_, W>, seat: usize) -> Self {
        let burden = view.burden(seat);
        let Some(load) = view.endpoint(seat).map(Endpoint::load) else {
            return Self { latency: 0.0, burden, silent: false };
        };
        let (latency, silence) = (load.latency(view.now), load.silence(view.now));
        // Of an unknown one there is nothing to compare its silence with.
        let silent = silence > latency * NOISE;
        Self { latency: if latency > 0.0 { latency.max(silence) } else { 0.0 }, burden, silent }
    }

    fn is_below(self, other: Self) -> bool {
        match self.rank().cmp(&other.rank()) {
            std::cmp::Ordering::Equal => {}
            order => return order.is_lt(),
        }
        if self.latency < other.latency * NOISE && other.latency < self.latency * NOISE || self.latency == 0.0 {
            return self.burden < other.burden;
        }
        self.latency * (self.burden + 1.0) < other.latency * (other.burden + 1.0)
    }

    /// What is idle and unknown comes first, what is busy and unknown last.
    fn rank(self) -> u8 {
        match (self.latency > 0.0, self.burden > 0.0) {
            (false, false) => 0,
            (true, _) => 1,
            (false, true) => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cost;
    use crate::balance::fixture::{ask, member, of, shares};
    use crate::balance::load::Lease;
    use crate::balance::pool::Tried;
    use crate::config::Balance;

    fn below(one: (f64, f64), other: (f64, f64)) -> bool {
        let cost = |(latency, burden)| Cost { latency, burden, silent: false };
        cost(one).is_below(cost(other))
    }

    #[test]
    fn the_product_of_latency_and_requests_under_way_decides() {
        assert!(below((1_000.0, 3.0), (5_000.0, 0.0)), "4 ms against 5 ms");
        assert!(!below((1_000.0, 5.0), (5_000.0, 0.0)), "6 ms against 5 ms");
    }

    #[test]
    fn latencies_that_hardly_differ_leave_it_to_the_requests_under_way() {
        assert!(below((1_900.0, 1.0), (1_000.0, 2.0)));
        assert!(!below((1_000.0, 1.0), (1_900.0, 1.0)), "the first one drawn stays");
        assert!(below((1_000.0, 1.0), (2_100.0, 1.0)));
    }

    #[test]
    fn what_is_unknown_gets_one_request_and_no_more_before_its_answer() {
        assert!(below((0.0, 0.0), (1.0, 0.0)));
        assert!(below((900_000.0, 50.0), (0.0, 1.0)));
        assert!(!below((0.0, 0.0), (0.0, 0.0)));
        assert!(below((0.0, 1.0), (0.0, 2.0)), "where all are unknown and busy");
    }

    #[test]
    fn p2c_leaves_a_slow_backend_alone_until_the_others_are_as_busy() {
        let pool = of(Balance::P2c, (0..4).map(|number| member(number, 1)).collect());
        for (endpoint, micros) in pool.endpoints().iter().zip([1_000, 1_000, 50_000, 1_000]) {
            Lease::counted(endpoint, 0, 0).answered(micros);
        }
        assert_eq!(shares(&pool, 300, ask)[2], 0);
        let held: Vec<_> = (0..90).map(|n| pool.pick(&mut Tried::default(), &ask(n)).unwrap()).collect();
        let loads: Vec<_> = pool.endpoints().iter().map(|one| one.load().in_flight()).collect();
        assert!(loads[2] <= 1 && loads.iter().enumerate().all(|(at, load)| at == 2 || *load > 25), "{loads:?}");
        drop(held);
    }
}
