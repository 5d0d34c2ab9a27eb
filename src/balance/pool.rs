//! Pool: the backends of one route, and who of them takes a request.
//!
//! A pool is immutable and belongs to one configuration. What it goes by, health and load,
//! is the endpoints' own, so that a reload, which makes new pools, forgets nothing.
//!
//! Whatever the algorithm, a backend must be one that the request has not tried, whose name
//! is resolved, and that is not down; backups come after all others. Where that leaves
//! nobody, one that was tried is tried again; failing that, one that is not really down;
//! failing that, one whose name is not resolved, since its reason is the answer.
//!
//! Where checks and outlier ejection leave no backend at all, the pool *fails open*: they
//! may be wrong of all at once, so requests go to every backend that is not really down, as
//! if nothing were held against it. That lasts until half of the primaries are up again, or
//! half of the backups, which then take the requests until half of the primaries are.
//! Otherwise the first one to return would have to take what all of them could not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::dice::Dice;
use super::endpoint::Endpoint;
use super::load::Lease;
use super::round_robin::Turns;
use super::sip::Key;
use super::stance::{Stance, Tally};
use super::sticky::Token;
use super::tier::{Fitness, Tier, View};
use super::{hash, least, p2c};
use crate::config::Balance;

/// Attempts of one request that are remembered, so that each goes elsewhere.
const REMEMBERED: usize = 32;

/// What a backend's name is digested with, for its place among keys: any fixed number.
/// Another one would send every key elsewhere.
const NAMES: Key = Key::new(*b"doorward ring v1");

/// A backend as a route has it.
#[derive(Debug, Clone)]
pub struct Member {
    /// The backend.
    pub endpoint: Arc<Endpoint>,
    /// Its weight; with 0 it drains.
    pub weight: u16,
    /// It is used only while none of the others takes requests.
    pub backup: bool,
}

/// How a route chooses.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The algorithm.
    pub balance: Balance,
    /// How long a backend that is new or came back takes less than its share.
    pub slow_start: Option<Duration>,
    /// Backends may come to have all the connections that they may have.
    pub limited: bool,
    /// What tokens are made with; without it nobody sticks.
    pub secret: Option<Key>,
}

/// The backends of one route.
#[derive(Debug)]
pub struct Pool {
    endpoints: Box<[Arc<Endpoint>]>,
    /// Those without the mark `backup`, then those with it.
    tiers: [Tier; 2],
    policy: Policy,
    /// Milliseconds; 0 when nothing warms up.
    slow_start: u64,
    limited: bool,
    /// A [`Stance`].
    stance: AtomicU8,
}

/// The algorithm with what it keeps.
#[derive(Debug)]
enum Policy {
    RoundRobin([Turns; 2]),
    LeastRequests,
    P2c,
    Hash,
    /// The token of each endpoint.
    Sticky(Box<[Token]>),
}

/// What is asked of a pool.
#[derive(Debug, Default, Clone, Copy)]
pub struct Ask {
    /// Milliseconds of the worker's clock.
    pub now: u64,
    /// Microseconds of the same clock, read just now; from them on the attempt is timed.
    pub micros: u64,
    /// A random number.
    pub draw: u64,
    /// What the request goes by.
    pub key: Affinity,
    /// Who asks.
    pub worker: usize,
}

/// What of a request leads it to a certain backend.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// Nothing.
    #[default]
    None,
    /// A digest of its key.
    Key(u64),
    /// The token in its cookie.
    Token(Token),
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

impl Affinity {
    /// That of a key: what is the same in a request leads to the same backend, also from
    /// another host that has the same backends.
    #[must_use]
    pub fn of(key: &[u8]) -> Self {
        Self::Key(NAMES.digest(key))
    }
}

impl Pool {
    /// A pool of these backends.
    #[must_use]
    pub fn new(members: Vec<Member>, terms: &Terms) -> Self {
        let tier = |backup| {
            let ranked = (0..).zip(&members).filter(|(_, member)| member.backup == backup);
            let seated = |(place, member): (u16, &Member)| {
                (place, member.weight, NAMES.digest(member.endpoint.identity().as_bytes()))
            };
            Tier::new(&ranked.map(seated).collect::<Vec<_>>())
        };
        let tiers = [tier(false), tier(true)];
        let policy = match terms.balance {
            Balance::RoundRobin => Policy::RoundRobin(tiers.each_ref().map(Turns::new)),
            Balance::LeastRequests => Policy::LeastRequests,
            Balance::P2c => Policy::P2c,
            Balance::Hash(_) => Policy::Hash,
            Balance::Sticky => terms.secret.map_or(Policy::P2c, |secret| {
                let token = |member: &Member| Token::of(secret, member.endpoint.identity());
                Policy::Sticky(members.iter().map(token).collect())
            }),
        };
        let slow_start = terms.slow_start.map_or(0, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        let endpoints = members.into_iter().map(|member| member.endpoint).collect();
        let limited = terms.limited;
        Self { endpoints, tiers, policy, slow_start, limited, stance: AtomicU8::default() }
    }

    /// Its backends.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// Those that take requests: all but those with a weight of zero.
    pub fn taking(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let seats = self.tiers.iter().flat_map(|tier| &tier.seats);
        seats.filter_map(|seat| self.endpoints.get(usize::from(seat.place)))
    }

    /// Whether it has the same endpoints with the same shares as another one.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(|(mine, theirs)| Arc::ptr_eq(mine, theirs))
            && self.tiers.iter().zip(&other.tiers).all(|(mine, theirs)| mine.same(theirs))
    }

    /// Whether there is more than one backend, so that a random number, a clock and the
    /// request's key are needed.
    #[must_use]
    pub fn is_choice(&self) -> bool {
        self.endpoints.len() > 1
    }

    /// The token of a backend that was leased from this pool, where clients stick.
    #[must_use]
    pub fn token(&self, lease: &Lease<'_>) -> Option<Token> {
        let Policy::Sticky(tokens) = &self.policy else { return None };
        let tokens = self.is_choice().then_some(tokens)?;
        let place = self.endpoints.iter().position(|endpoint| Arc::ptr_eq(endpoint, lease.endpoint()))?;
        tokens.get(place).copied()
    }

    /// The backend for the next attempt of a request. `None` when every backend is down, or
    /// the pool is empty.
    pub fn pick(&self, tried: &mut Tried, ask: &Ask) -> Option<Lease<'_>> {
        if let [only] = &*self.endpoints {
            // No choice: no worker writes what another one reads.
            let admitted = only.admits(ask.now) || (only.is_resolved() && only.admits_anyway(ask.now));
            return admitted.then(|| Lease::uncounted(only, ask.worker));
        }
        let mut dice = Dice::new(ask.draw);
        let stance = self.stance();
        let open = stance == Stance::Open;
        let mut choose = |anyway, again, unresolved| {
            let wanted =
                |place, endpoint: &Endpoint| (again || !tried.has(place)) && (unresolved || endpoint.is_resolved());
            let backups = if stance == Stance::Backups { self.choose(1, &mut dice, ask, anyway, wanted) } else { None };
            backups.or_else(|| self.choose(0, &mut dice, ask, anyway, wanted))
        };
        let place = choose(open, false, false)
            .or_else(|| choose(open, true, false))
            .or_else(|| choose(true, false, false))
            .or_else(|| choose(true, true, false))
            .or_else(|| choose(false, true, true))?;
        tried.note(place);
        let endpoint = self.endpoints.get(usize::from(place))?;
        Some(Lease::counted(endpoint, ask.worker, ask.micros))
    }

    /// Whether no connection can be made to any of its backends.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.endpoints.iter().all(|endpoint| endpoint.is_down())
    }

    /// Whether a request would have to wait for a connection, whichever of its backends that
    /// are not down it went to.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.taking().filter(|endpoint| !endpoint.is_down()).all(|endpoint| endpoint.connections().is_full())
    }

    /// Whether requests go to every backend that is not really down.
    #[must_use]
    pub fn fails_open(&self) -> bool {
        self.stance() == Stance::Open
    }

    /// How it chooses, as it was last worked out.
    #[must_use]
    pub fn stance(&self) -> Stance {
        Stance::of(self.stance.load(Ordering::Relaxed))
    }

    /// Works out how it chooses, and says so; for control, which knows how the route did
    /// `before`, and asks after each change of a backend's state. Those that drain are no
    /// help. It goes on failing open while nothing is up, be it that none can be reached:
    /// one that comes to take connections again is then tried whatever its checks say.
    pub fn weigh(&self, before: Stance) -> Stance {
        let tally = |tier: &Tier| {
            let seated = || tier.seats.iter().filter_map(|seat| self.endpoints.get(usize::from(seat.place)));
            let up = seated().filter(|endpoint| endpoint.is_up()).count();
            Tally { up, reachable: seated().filter(|endpoint| !endpoint.is_down()).count(), all: tier.seats.len() }
        };
        let stance = before.next(self.tiers.each_ref().map(tally));
        self.stance.store(stance as u8, Ordering::Relaxed);
        stance
    }

    /// The place of one that is wanted, from the `first` tier on, a backup only if there is
    /// none else; `anyway` where nothing but being down is held against anybody.
    fn choose<W>(&self, first: usize, dice: &mut Dice, ask: &Ask, anyway: bool, wanted: W) -> Option<u16>
    where
        W: Fn(u16, &Endpoint) -> bool,
    {
        self.tiers.iter().enumerate().skip(first).find_map(|(rank, tier)| {
            let view = |with_room| View {
                tier,
                endpoints: &self.endpoints,
                wanted: &wanted,
                anyway,
                with_room,
                now: ask.now,
                slow_start: self.slow_start,
            };
            if let (Policy::Sticky(tokens), Affinity::Token(token)) = (&self.policy, ask.key) {
                let named = |place: &u16| tokens.get(usize::from(*place)) == Some(&token);
                let drained = tier.drained.iter().copied();
                let place = tier.seats.iter().map(|seat| seat.place).chain(drained).find(named);
                if let Some(place) = place.filter(|place| view(false).fitness(*place) != Fitness::Out) {
                    return Some(place);
                }
            }
            let mut choose = |view: &View<'_, _>| match (&self.policy, ask.key) {
                (Policy::RoundRobin(turns), _) => turns.get(rank)?.choose(view, dice),
                (Policy::LeastRequests, _) => least::choose(view, dice),
                (Policy::Hash, Affinity::Key(key)) => hash::choose(view, key),
                // Also for requests without a key, and clients without a cookie.
                (Policy::P2c | Policy::Hash | Policy::Sticky(_), _) => p2c::choose(view, dice),
            };
            // Where all connections are taken a request would have to wait.
            let seat = if self.limited { choose(&view(true)) } else { None };
            tier.seats.get(seat.or_else(|| choose(&view(false)))?).map(|seat| seat.place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Affinity, Ask, Balance, Member, Pool, Stance, Terms, Tried};
    use crate::balance::endpoint::Endpoint;
    use crate::balance::fixture::{
        SECRET, ask, assert_near, backup, down, every_balance, in_turn, keyed, member, name, of, pick, shares, terms,
    };
    use crate::balance::sticky::Token;
    use crate::config::{BackendAddress, Target};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    #[test]
    fn every_algorithm_gives_an_idle_pool_shares_by_weight() {
        for balance in every_balance() {
            let pool = of(balance.clone(), vec![member(0, 1), member(1, 5), member(2, 2)]);
            let counts = shares(&pool, 20_000, keyed);
            println!("{balance}: {counts:?}");
            assert_near(&counts, &[0.125, 0.625, 0.25]);
        }
    }

    #[test]
    fn each_attempt_of_a_request_goes_elsewhere_while_there_is_elsewhere() {
        for balance in every_balance() {
            let pool = of(balance, vec![member(0, 1), member(1, 256), backup(2), member(3, 1)]);
            let mut tried = Tried::default();
            let mut taken: Vec<_> = (0..4).map(|_| pick(&pool, &mut tried)).collect();
            assert_eq!(taken.pop().unwrap(), "127.0.0.1:4002", "the backup comes last");
            taken.sort();
            assert_eq!(taken, ["127.0.0.1:4000", "127.0.0.1:4001", "127.0.0.1:4003"]);
            pick(&pool, &mut tried);
        }
    }

    #[test]
    fn a_backend_that_is_down_is_passed_over_and_none_is_left_when_all_are() {
        for balance in every_balance() {
            let pool = of(balance, vec![member(0, 1), member(1, 1)]);
            let (first, second) = (&pool.endpoints()[0], &pool.endpoints()[1]);
            down(first);
            assert_eq!(shares(&pool, 50, keyed), [0, 50]);
            down(second);
            assert!(pool.is_down());
            assert!(pool.pick(&mut Tried::default(), &ask(1)).is_none());
        }
    }

    #[test]
    fn a_backend_that_is_to_be_probed_gets_one_request_soon() {
        for balance in every_balance() {
            let pool = of(balance, vec![member(0, 1), member(1, 1), member(2, 1)]);
            down(&pool.endpoints()[1]);
            let later = |n| Ask { now: 150, ..keyed(n) };
            assert_eq!(shares(&pool, 60, later)[1], 1);
        }
    }

    #[test]
    fn backups_are_used_only_while_no_other_takes_requests() {
        for balance in every_balance() {
            let pool = of(balance, vec![backup(0), member(1, 1), member(2, 1), backup(3)]);
            let counts = shares(&pool, 400, keyed);
            assert_eq!((counts[0], counts[3]), (0, 0));
            down(&pool.endpoints()[1]);
            assert_eq!(shares(&pool, 100, keyed), [0, 0, 100, 0]);
            down(&pool.endpoints()[2]);
            let counts = shares(&pool, 400, keyed);
            assert_eq!((counts[1], counts[2]), (0, 0));
            assert_near(&[counts[0], counts[3]], &[0.5, 0.5]);
            pool.endpoints()[2].connected(1);
            assert_eq!(shares(&pool, 100, keyed), [0, 0, 100, 0]);
        }
    }

    #[test]
    fn a_backend_without_a_connection_to_spare_is_passed_over_unless_all_are() {
        for balance in every_balance() {
            let members = vec![member(0, 1), member(1, 1), backup(2)];
            let pool = Pool::new(members, &Terms { limited: true, ..terms(balance) });
            let fill = |place: usize| {
                let connections = pool.endpoints()[place].connections();
                connections.resize(Some(1));
                connections.enter()
            };
            let first = fill(0);
            assert_eq!(shares(&pool, 100, keyed), [0, 100, 0]);
            let second = fill(1);
            // Then one of them is waited for: backups are for backends that are down.
            assert_eq!(shares(&pool, 400, keyed)[2], 0);
            drop(first);
            assert_eq!(shares(&pool, 100, keyed), [100, 0, 0]);
            drop(second);
        }
    }

    #[test]
    fn a_backend_that_drains_takes_nothing_new() {
        for balance in every_balance() {
            let pool = of(balance, vec![member(0, 1), member(1, 0), member(2, 1)]);
            assert_eq!(shares(&pool, 400, keyed)[1], 0);
            down(&pool.endpoints()[0]);
            down(&pool.endpoints()[2]);
            assert!(pool.pick(&mut Tried::default(), &keyed(1)).is_none(), "not even when it is the last one");
        }
    }

    #[test]
    fn a_cookie_leads_to_its_backend_also_while_that_drains_and_not_while_it_is_down() {
        let pool = of(Balance::Sticky, vec![member(0, 1), member(1, 0), member(2, 1), backup(3)]);
        let named = |number: u16, n| {
            let token = Token::of(SECRET, &format!("127.0.0.1:400{number}"));
            Ask { key: Affinity::Token(token), ..ask(n) }
        };
        assert_eq!(shares(&pool, 50, |n| named(2, n)), [0, 0, 50, 0]);
        assert_eq!(shares(&pool, 50, |n| named(1, n)), [0, 50, 0, 0]);
        assert_eq!(shares(&pool, 50, |n| named(3, n))[3], 0, "nobody is held on a backup");
        assert_near(&shares(&pool, 400, |n| named(9, n)), &[0.5, 0.0, 0.5, 0.0]);
        down(&pool.endpoints()[2]);
        let lease = pool.pick(&mut Tried::default(), &named(2, 1)).unwrap();
        assert_eq!(name(&lease), "127.0.0.1:4000");
        assert_eq!(pool.token(&lease), Some(Token::of(SECRET, "127.0.0.1:4000")));
        down(&pool.endpoints()[0]);
        assert_eq!(shares(&pool, 50, |n| named(3, n)), [0, 0, 0, 50]);
        assert_eq!(in_turn(&[1, 1]).token(&lease), None, "no cookie where nobody sticks");
    }

    fn fail_check(endpoint: &Endpoint) {
        endpoint.checked(Err("status 500".into()), 1, 1, 0);
    }

    #[test]
    fn where_every_check_fails_all_are_used_but_those_that_are_down() {
        for balance in every_balance() {
            let pool = of(balance, (0..3).map(|number| member(number, 1)).collect());
            pool.endpoints().iter().for_each(|endpoint| fail_check(endpoint));
            down(&pool.endpoints()[1]);
            assert!(!pool.is_down());
            // Also before control has seen to it.
            for weighed in [false, true] {
                let mut tried = Tried::default();
                let taken = BTreeSet::from([pick(&pool, &mut tried), pick(&pool, &mut tried)]);
                assert_eq!(taken, ["127.0.0.1:4000", "127.0.0.1:4002"].map(String::from).into(), "{weighed}");
                pool.weigh(pool.stance());
            }
        }
    }

    #[test]
    fn a_pool_fails_open_when_none_is_left_and_until_half_are_back() {
        for balance in every_balance() {
            let mut members: Vec<Member> = (0..4).map(|number| member(number, 1)).collect();
            // One that drains is no help.
            members.push(member(4, 0));
            let pool = of(balance, members);
            for (index, endpoint) in pool.endpoints()[..4].iter().enumerate() {
                assert!(pool.weigh(pool.stance()) == Stance::Sound, "{index}");
                fail_check(endpoint);
            }
            assert!(pool.weigh(pool.stance()) == Stance::Open && pool.fails_open());
            pool.endpoints()[2].checked(Ok(()), 1, 1, 0);
            assert_eq!(pool.weigh(pool.stance()), Stance::Open);
            let counts = shares(&pool, 400, keyed);
            assert!(counts[..4].iter().all(|count| *count > 50), "the first one is spared: {counts:?}");
            pool.endpoints()[3].checked(Ok(()), 1, 1, 0);
            assert!(pool.weigh(pool.stance()) == Stance::Sound && !pool.fails_open());
            let counts = shares(&pool, 400, keyed);
            assert_eq!((counts[0], counts[1]), (0, 0));
        }
    }

    fn pass_check(endpoint: &Endpoint) {
        endpoint.checked(Ok(()), 1, 1, 0);
    }

    #[test]
    fn a_pool_that_failed_open_sends_requests_to_backups_once_half_of_them_are_back() {
        for balance in every_balance() {
            let mut members: Vec<Member> = (0..4).map(|number| member(number, 1)).collect();
            members.extend([backup(4), backup(5)]);
            let pool = of(balance, members);
            let all = pool.endpoints();
            all.iter().for_each(|endpoint| fail_check(endpoint));
            assert_eq!(pool.weigh(pool.stance()), Stance::Open);
            pass_check(&all[4]);
            assert_eq!(pool.weigh(pool.stance()), Stance::Backups);
            assert_eq!(shares(&pool, 100, keyed), [0, 0, 0, 0, 100, 0]);
            // A single primary of four can't take it all either.
            pass_check(&all[0]);
            assert_eq!(pool.weigh(pool.stance()), Stance::Backups);
            assert_eq!(shares(&pool, 100, keyed), [0, 0, 0, 0, 100, 0]);
            let mut tried = Tried::default();
            assert_eq!([(); 2].map(|()| pick(&pool, &mut tried)), ["127.0.0.1:4004", "127.0.0.1:4000"]);
            // Without them it is as open as before.
            fail_check(&all[4]);
            assert_eq!(pool.weigh(pool.stance()), Stance::Open);
            pass_check(&all[4]);
            pass_check(&all[1]);
            assert_eq!(pool.weigh(pool.stance()), Stance::Sound);
            let counts = shares(&pool, 100, keyed);
            assert_eq!((counts[0] + counts[1], counts[4]), (100, 0));
        }
    }

    #[test]
    fn a_pool_goes_on_failing_open_when_its_last_backend_goes_down() {
        let pool = of(Balance::P2c, vec![member(0, 1), member(1, 0)]);
        let only = &pool.endpoints()[0];
        fail_check(only);
        assert_eq!(pool.weigh(Stance::Sound), Stance::Open);
        down(only);
        assert_eq!(pool.weigh(Stance::Open), Stance::Open);
        pass_check(only);
        assert_eq!(pool.weigh(Stance::Open), Stance::Sound);
        // Where none was up, but none can be reached, it never began to.
        down(only);
        assert_eq!(pool.weigh(Stance::Sound), Stance::Sound);
        assert_eq!(of(Balance::P2c, vec![member(1, 0)]).weigh(Stance::Open), Stance::Sound, "nobody takes requests");
    }

    #[test]
    fn one_that_fails_its_check_is_better_than_one_without_an_address() {
        let target = Target::Name { host: "app.test".into(), port: 80 };
        let named = Arc::new(Endpoint::new(&BackendAddress { target, weight: 1, backup: false }));
        for balance in every_balance() {
            let failing = member(0, 1);
            fail_check(&failing.endpoint);
            let pool = of(balance, vec![Member { endpoint: Arc::clone(&named), weight: 1, backup: false }, failing]);
            assert_eq!(pick(&pool, &mut Tried::default()), "127.0.0.1:4000");
        }
    }

    #[test]
    fn where_there_is_no_choice_nothing_is_counted() {
        for balance in every_balance() {
            let pool = of(balance, vec![member(0, 1)]);
            let lease = pool.pick(&mut Tried::default(), &Ask::default()).unwrap();
            assert!(!pool.is_choice() && !lease.is_counted());
            assert_eq!(lease.endpoint().load().in_flight(), 0);
        }
    }

    #[test]
    fn a_name_that_is_not_resolved_is_passed_over_while_there_is_another() {
        let unresolved = |host: &str| {
            let target = Target::Name { host: host.into(), port: 80 };
            Arc::new(Endpoint::new(&BackendAddress { target, weight: 1, backup: false }))
        };
        for balance in every_balance() {
            let named = Member { endpoint: unresolved("app.test"), weight: 1, backup: false };
            let pool = of(balance.clone(), vec![named, member(0, 1)]);
            assert_eq!(shares(&pool, 40, keyed), [0, 40]);
            let both = ["app.test", "other.test"].map(unresolved);
            let pool = of(balance, both.map(|endpoint| Member { endpoint, weight: 1, backup: false }).into());
            assert!(pick(&pool, &mut Tried::default()).ends_with(".test:80"), "its reason is the answer");
        }
    }

    #[test]
    fn an_empty_pool_has_nothing_to_pick() {
        for balance in every_balance() {
            assert!(of(balance, Vec::new()).pick(&mut Tried::default(), &keyed(1)).is_none());
        }
    }
}
