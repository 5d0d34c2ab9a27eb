//! Tier: the backends among which one is chosen, primaries or backups, and what is
//! worked out of their weights once.

use std::sync::Arc;

use super::dice::Dice;
use super::endpoint::Endpoint;

/// How often one is drawn anew that does not serve, before all are gone through.
const DRAWS: usize = 4;

/// One backend of a tier that takes requests.
#[derive(Debug)]
pub(super) struct Seat {
    /// Its place in the pool.
    pub(super) place: u16,
    /// Its weight, at least 1.
    pub(super) weight: u16,
    /// The mean weight of the tier for each unit of its own.
    pub(super) relief: f64,
    /// What keys are mixed with: it depends on nothing but what the backend is called.
    pub(super) seed: u64,
}

/// The backends of one rank.
#[derive(Debug, Default)]
pub(super) struct Tier {
    /// Those that take requests.
    pub(super) seats: Box<[Seat]>,
    /// The places of those that drain: only who names one of them gets there.
    pub(super) drained: Box<[u16]>,
    /// For each seat, how much of 2^32 it keeps of a draw, and who gets the rest; empty when
    /// all weigh the same. Source: A. J. Walker's alias method, by M. Vose, 1991.
    aliases: Box<[(u32, u32)]>,
}

/// Whether a backend can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fitness {
    /// It serves.
    Up,
    /// It is to be tried by this very request, which now has to go there.
    Probe,
    /// It is none of those wanted, or is left alone.
    Out,
}

impl Tier {
    /// A tier of these places of a pool, each with its weight and seed.
    pub(super) fn new(members: &[(u16, u16, u64)]) -> Self {
        let sum: u32 = members.iter().map(|(_, weight, _)| u32::from(*weight)).sum();
        let taking = || members.iter().filter(|(_, weight, _)| *weight > 0);
        let mean = f64::from(sum) / taking().count().max(1) as f64;
        let seat = |(place, weight, seed): &(u16, u16, u64)| Seat {
            place: *place,
            weight: *weight,
            relief: mean / f64::from(*weight),
            seed: *seed,
        };
        let seats: Box<[Seat]> = taking().map(seat).collect();
        let drained = members.iter().filter(|(_, weight, _)| *weight == 0).map(|(place, ..)| *place).collect();
        let aliases = aliases(&seats, sum);
        Self { seats, drained, aliases }
    }

    /// Whether the same places have the same weights.
    pub(super) fn same(&self, other: &Self) -> bool {
        let shares = |tier: &Self| tier.seats.iter().map(|seat| (seat.place, seat.weight)).collect::<Vec<_>>();
        shares(self) == shares(other) && self.drained == other.drained
    }

    /// Whether all its backends weigh the same.
    pub(super) fn is_even(&self) -> bool {
        self.aliases.is_empty()
    }

    /// Draws a seat by weight.
    fn draw(&self, dice: &mut Dice) -> usize {
        let seat = dice.below(self.seats.len());
        match self.aliases.get(seat) {
            Some((kept, other)) if dice.roll() >> 32 >= u64::from(*kept) => usize::try_from(*other).unwrap_or(seat),
            _ => seat,
        }
    }
}

/// A draw is made of a seat, each as likely, and of what that keeps for itself.
fn aliases(seats: &[Seat], sum: u32) -> Box<[(u32, u32)]> {
    let (whole, count) = (u64::from(sum), u64::try_from(seats.len()).unwrap_or(0));
    let even = seats.first().is_none_or(|first| seats.iter().all(|seat| seat.weight == first.weight));
    if even {
        return Box::default();
    }
    // A seat of mean weight has `whole` of these; the poor are filled up by the rich.
    let mut rest: Vec<u64> = seats.iter().map(|seat| u64::from(seat.weight) * count).collect();
    let (mut poor, mut rich): (Vec<usize>, Vec<usize>) =
        (0..seats.len()).partition(|seat| rest.get(*seat).is_some_and(|has| *has < whole));
    let mut table: Vec<(u32, u32)> = (0..seats.len()).map(|seat| (u32::MAX, narrow(seat))).collect();
    while let (Some(low), Some(high)) = (poor.pop(), rich.last().copied()) {
        let has = rest.get(low).copied().unwrap_or(whole);
        if let Some(entry) = table.get_mut(low) {
            *entry = (u32::try_from((has << 32) / whole.max(1)).unwrap_or(u32::MAX), narrow(high));
        }
        if let Some(left) = rest.get_mut(high) {
            *left -= whole - has;
            if *left < whole {
                rich.pop();
                poor.push(high);
            }
        }
    }
    table.into()
}

fn narrow(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// A tier as one request sees it.
pub(super) struct View<'a, W> {
    pub(super) tier: &'a Tier,
    pub(super) endpoints: &'a [Arc<Endpoint>],
    /// Which of them the request could go to.
    pub(super) wanted: W,
    /// Only those that are down are left alone.
    pub(super) anyway: bool,
    /// Only those that have a connection to spare.
    pub(super) with_room: bool,
    /// Milliseconds.
    pub(super) now: u64,
    /// Milliseconds that warming up takes; 0 when nothing warms up.
    pub(super) slow_start: u64,
}

impl<'a, W: Fn(u16, &Endpoint) -> bool> View<'a, W> {
    /// The backend of a seat.
    pub(super) fn endpoint(&self, seat: usize) -> Option<&'a Endpoint> {
        let seat = self.tier.seats.get(seat)?;
        self.endpoints.get(usize::from(seat.place)).map(|endpoint| &**endpoint)
    }

    /// Whether the backend at a place of the pool can be chosen.
    pub(super) fn fitness(&self, place: u16) -> Fitness {
        let Some(endpoint) = self.endpoints.get(usize::from(place)) else { return Fitness::Out };
        if !(self.wanted)(place, endpoint) || (self.with_room && endpoint.connections().is_full()) {
            return Fitness::Out;
        }
        let up = if self.anyway { !endpoint.is_down() } else { endpoint.is_up() };
        // Asked last, and only of one that is taken then: this may use up the probe.
        let admits = || if self.anyway { endpoint.admits_anyway(self.now) } else { endpoint.admits(self.now) };
        if up {
            Fitness::Up
        } else if admits() {
            Fitness::Probe
        } else {
            Fitness::Out
        }
    }

    /// The share of its weight that a seat takes now.
    pub(super) fn warmth(&self, seat: usize) -> f64 {
        if self.slow_start == 0 {
            return 1.0;
        }
        let warmth = |endpoint: &Endpoint| endpoint.load().warmth(endpoint.up_since(), self.now, self.slow_start);
        self.endpoint(seat).map_or(1.0, warmth)
    }

    /// What a seat has under way for its weight: a backend of mean weight, that is warm, has
    /// its number of requests.
    pub(super) fn burden(&self, seat: usize) -> f64 {
        let relief = self.tier.seats.get(seat).map_or(1.0, |seat| seat.relief);
        let in_flight = self.endpoint(seat).map_or(0, |endpoint| endpoint.load().in_flight());
        f64::from(in_flight) * relief / self.warmth(seat)
    }

    /// Draws a fit seat that is not `but`, by weight and warmth. When several draws
    /// found none, all seats are gone through from the last one on.
    pub(super) fn draw(&self, dice: &mut Dice, but: Option<usize>) -> Option<(usize, Fitness)> {
        let mut last = 0;
        for _ in 0..DRAWS {
            last = self.tier.draw(dice);
            let warmth = self.warmth(last);
            if Some(last) == but || (warmth < 1.0 && dice.unit() >= warmth) {
                continue;
            }
            match self.fitness_of(last) {
                Fitness::Out => {}
                fitness => return Some((last, fitness)),
            }
        }
        let count = self.tier.seats.len();
        (1..=count).map(|step| (last + step) % count).filter(|seat| Some(*seat) != but).find_map(|seat| {
            match self.fitness_of(seat) {
                Fitness::Out => None,
                fitness => Some((seat, fitness)),
            }
        })
    }

    /// Whether the backend of a seat can be chosen.
    pub(super) fn fitness_of(&self, seat: usize) -> Fitness {
        self.tier.seats.get(seat).map_or(Fitness::Out, |seat| self.fitness(seat.place))
    }
}

#[cfg(test)]
mod tests {
    use super::{Dice, Tier};
    use crate::balance::fixture::{ask, assert_near, down, keyed, member, shares, terms};
    use crate::balance::load::Lease;
    use crate::balance::pool::{Ask, Pool, Terms};
    use crate::config::{Balance, HashKey};
    use std::time::Duration;

    /// How often each seat is drawn of 100,000 times.
    fn drawn(weights: &[u16]) -> Vec<u32> {
        let members: Vec<_> = (0..).zip(weights).map(|(place, weight)| (place, *weight, 0)).collect();
        let tier = Tier::new(&members);
        let mut dice = Dice::new(5);
        let mut counts = vec![0; tier.seats.len()];
        for _ in 0..100_000 {
            counts[tier.draw(&mut dice)] += 1;
        }
        counts
    }

    #[test]
    fn seats_are_drawn_by_weight() {
        for weights in [&[1, 1, 1][..], &[3, 1], &[1, 2, 7], &[256, 1, 1, 128], &[5]] {
            let sum: u32 = weights.iter().map(|weight| u32::from(*weight)).sum();
            for (count, weight) in drawn(weights).iter().zip(weights) {
                let meant = f64::from(*weight) / f64::from(sum) * 100_000.0;
                let off = (f64::from(*count) - meant).abs();
                assert!(off < 5.0 * meant.sqrt() + 1.0, "{weights:?}: {count} instead of {meant}");
            }
        }
    }

    #[test]
    fn those_that_drain_have_no_seat() {
        let tier = Tier::new(&[(0, 2, 0), (1, 0, 0), (2, 4, 0)]);
        assert_eq!(tier.seats.iter().map(|seat| seat.place).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(*tier.drained, [1]);
        assert!(tier.seats[0].relief == 1.5 && tier.seats[1].relief == 0.75);
    }

    #[test]
    fn a_backend_that_warms_up_takes_a_growing_share_with_every_algorithm() {
        for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::P2c, Balance::Hash(HashKey::Client)] {
            let slow = Terms { slow_start: Some(Duration::from_secs(10)), ..terms(balance.clone()) };
            let pool = Pool::new((0..4).map(|number| member(number, 1)).collect(), &slow);
            for endpoint in pool.endpoints() {
                Lease::counted(endpoint, 0, 0).answered(1_000);
            }
            // It went down, and came up again.
            down(&pool.endpoints()[1]);
            pool.endpoints()[1].connected(1_000);
            // A key that is not back yet has another backend meanwhile, whose share grows.
            let hash = matches!(balance, Balance::Hash(_));
            for (now, warmth) in [(1_000, 0.1), (6_000, 0.5), (11_000, 1.0)] {
                let share = if hash { warmth / 4.0 } else { warmth / (3.0 + warmth) };
                let at = |n| Ask { now, ..keyed(n) };
                let found = shares(&pool, 20_000, at)[1] as f64 / 20_000.0;
                assert!((0.8..1.2).contains(&(found / share)), "{balance} at {now}: {found} instead of {share}");
            }
            // When all of them come back at once, nobody is the warmer one.
            for endpoint in pool.endpoints() {
                down(endpoint);
                endpoint.connected(20_000);
            }
            assert_near(&shares(&pool, 8_000, |n| Ask { now: 20_000, ..keyed(n) }), &[0.25; 4]);
        }
    }

    #[test]
    fn a_backend_that_is_new_in_a_reload_warms_up_from_the_first_request_on() {
        let slow = Terms { slow_start: Some(Duration::from_secs(10)), ..terms(Balance::P2c) };
        let pool = Pool::new((0..4).map(|number| member(number, 1)).collect(), &slow);
        pool.endpoints()[3].load().begin_cold();
        for (now, warmth) in [(500_000, 0.1), (505_000, 0.5), (510_000, 1.0)] {
            let found = shares(&pool, 20_000, |n| Ask { now, ..ask(n) })[3] as f64 / 20_000.0;
            assert!((0.8..1.2).contains(&(found / (warmth / (3.0 + warmth)))), "at {now}: {found}");
        }
    }
}
