//! Registry: which endpoint a backend has in a new generation.
//!
//! One that the generation before had too is passed on with all that is known of it. So is
//! one that left a short while ago: name servers that give a part of the addresses at a
//! time, now these, now those, must not have a backend that fails its checks begin anew
//! with each answer, as if it were sound.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::Generation;
use crate::balance::discovery::{Directory, Place, places};
use crate::balance::endpoint::Endpoint;
use crate::balance::health::Check;
use crate::balance::pool::Member;
use crate::balance::tally::Tally;
use crate::balance::tls::Tls;
use crate::config::BackendAddress;

/// How long an endpoint that left is known.
pub const KNOWN: Duration = Duration::from_secs(300);

/// How many of those that left are known; of more, the last ones.
pub const KNOWN_MOST: usize = 1024;

/// What a new generation takes over from.
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    /// The generation before.
    pub generation: &'a Generation,
    /// What left that one or those before it.
    pub departed: &'a Departed,
}

/// Endpoints that are in no generation any more, and may return.
#[derive(Debug, Default)]
pub struct Departed {
    /// The one that left first comes first.
    left: VecDeque<Left>,
}

#[derive(Debug)]
struct Left {
    endpoint: Arc<Endpoint>,
    check: Option<Arc<Check>>,
    /// In milliseconds.
    at: u64,
}

impl Departed {
    /// Takes note of those that have left with the step from `before` to `after`, at `now`
    /// milliseconds, and forgets those that have returned or have been away for [`KNOWN`].
    pub fn note(&mut self, before: &Generation, after: &Generation, now: u64) {
        let present: HashSet<u64> = after.endpoints().map(|endpoint| endpoint.number()).collect();
        let known = u64::try_from(KNOWN.as_millis()).unwrap_or(u64::MAX);
        self.left.retain(|left| !present.contains(&left.endpoint.number()) && now.saturating_sub(left.at) < known);
        let mut seen = HashSet::new();
        for (endpoint, check) in before.routes().iter().flat_map(|route| route.checked()) {
            let number = endpoint.number();
            if endpoint.is_resolved() && !present.contains(&number) && seen.insert(number) {
                self.left.push_back(Left { endpoint: Arc::clone(endpoint), check: check.cloned(), at: now });
            }
        }
        self.left.drain(..self.left.len().saturating_sub(KNOWN_MOST));
    }

    /// The endpoints, the one that left first first.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.left.iter().map(|left| &left.endpoint)
    }
}

/// Endpoints by identity and by how they are checked, so that each is made once, and those
/// that were there before.
pub(super) struct Registry {
    made: HashMap<Arc<str>, Vec<Entry>>,
    before: HashMap<Arc<str>, Vec<Entry>>,
    departed: HashMap<Arc<str>, Vec<Entry>>,
    /// The checks of all routes.
    checks: HashSet<Option<Arc<Check>>>,
    workers: usize,
}

type Entry = (Option<Arc<Check>>, Arc<Endpoint>);

/// How a route meets a backend. Routes that differ in it have endpoints of their own.
#[derive(Debug, Clone)]
pub(super) struct Meets<'a> {
    /// How it is checked.
    pub(super) check: Option<&'a Arc<Check>>,
    /// With what trust, and by what name, it is spoken to over TLS.
    pub(super) tls: Option<(&'a Arc<ClientConfig>, ServerName<'static>)>,
}

impl Meets<'_> {
    fn trusts(&self, endpoint: &Endpoint) -> bool {
        match (endpoint.tls(), &self.tls) {
            (None, None) => true,
            (Some(tls), Some((trust, name))) => tls.is(trust, name),
            _ => false,
        }
    }
}

impl Registry {
    /// A registry for routes with these checks, and for so many workers, that takes over from
    /// `past`.
    pub(super) fn new(
        checks: impl Iterator<Item = Option<Arc<Check>>>,
        workers: usize,
        past: Option<Past<'_>>,
    ) -> Self {
        let mut before: HashMap<Arc<str>, Vec<Entry>> = HashMap::new();
        let mut seen = HashSet::new();
        for (endpoint, check) in past.iter().flat_map(|past| past.generation.routes()).flat_map(|route| route.checked())
        {
            if seen.insert(endpoint.number()) {
                let known = before.entry(Arc::clone(endpoint.identity())).or_default();
                known.push((check.cloned(), Arc::clone(endpoint)));
            }
        }
        let mut departed: HashMap<Arc<str>, Vec<Entry>> = HashMap::new();
        for Left { endpoint, check, .. } in past.iter().flat_map(|past| &past.departed.left) {
            let known = departed.entry(Arc::clone(endpoint.identity())).or_default();
            known.push((check.clone(), Arc::clone(endpoint)));
        }
        Self { made: HashMap::new(), before, departed, checks: checks.collect(), workers }
    }

    /// The endpoints of a backend: one, or one for each place of a name.
    pub(super) fn members(
        &mut self,
        backend: &BackendAddress,
        directory: &Directory,
        meets: &Meets<'_>,
    ) -> Vec<Member> {
        let target = &backend.target;
        let places = places(target, directory);
        if places.is_empty() {
            let endpoint = self.endpoint(target.to_string(), None, meets, || Endpoint::new(backend));
            return vec![Member { endpoint, weight: backend.weight, backup: backend.backup }];
        }
        let member = |place: &Place| {
            let (identity, authority) = (Endpoint::identity_at(target, place), Some(place.authority.as_str()));
            let endpoint = self.endpoint(identity, authority, meets, || Endpoint::at(target, place));
            let weight = place.weight.unwrap_or(backend.weight);
            Member { endpoint, weight, backup: backend.backup || place.backup }
        };
        places.iter().map(member).collect()
    }

    /// The endpoint of this identity that is met so: one of this generation, of the one
    /// before, or that left. If before it was checked in another way, which no route wants
    /// any more, it is still the same backend. One that went by another authority is not:
    /// what it is asked for by that name, and what it answers, may be another thing. Nor is
    /// one that proves to be somebody in another way.
    fn endpoint(
        &mut self,
        identity: String,
        authority: Option<&str>,
        meets: &Meets<'_>,
        make: impl FnOnce() -> Endpoint,
    ) -> Arc<Endpoint> {
        let made = self.made.entry(identity.as_str().into()).or_default();
        let checked = |known: &Option<Arc<Check>>| known.as_ref() == meets.check;
        if let Some((_, endpoint)) = made.iter().find(|(known, endpoint)| checked(known) && meets.trusts(endpoint)) {
            return Arc::clone(endpoint);
        }
        let named = |endpoint: &Endpoint| {
            authority.is_none_or(|authority| endpoint.goes_by(authority)) && meets.trusts(endpoint)
        };
        let same = |(known, endpoint): &Entry| checked(known) && named(endpoint);
        let endpoint = self.before.get_mut(identity.as_str()).and_then(|before| {
            let unused = |(known, endpoint): &Entry| !self.checks.contains(known) && named(endpoint);
            let place = before.iter().position(same).or_else(|| before.iter().position(unused))?;
            Some(before.swap_remove(place).1)
        });
        // What was found long ago by another check would count until that is asked again.
        let returned = || {
            let departed = self.departed.get(identity.as_str())?;
            departed.iter().rev().find(|entry| same(entry)).map(|(_, endpoint)| Arc::clone(endpoint))
        };
        let endpoint = endpoint.or_else(returned).unwrap_or_else(|| {
            let mut endpoint = make();
            // However it is checked, it is one backend with one limit. Of other trust it is
            // not: who waits for a connection could be handed one of the wrong kind.
            let known = [&self.before, &self.departed].into_iter().filter_map(|known| known.get(identity.as_str()));
            let known: Vec<_> = made.iter().chain(known.flatten()).map(|(_, endpoint)| endpoint).collect();
            if let Some(other) = known.iter().rfind(|one| meets.trusts(one)) {
                endpoint.share_connections(other);
            }
            let tally = known.first().map_or_else(|| Arc::new(Tally::new(self.workers)), |one| Arc::clone(one.tally()));
            endpoint.count_in(tally);
            if let Some((trust, name)) = &meets.tls {
                endpoint.secure(Tls::new(trust, name.clone()));
            }
            if !self.before.is_empty() {
                endpoint.load().begin_cold();
            }
            Arc::new(endpoint)
        });
        made.push((meets.check.cloned(), Arc::clone(&endpoint)));
        endpoint
    }
}

#[cfg(test)]
mod tests {
    use super::{Departed, KNOWN, KNOWN_MOST};
    use crate::balance::discovery::{Directory, Found, Query};
    use crate::balance::standing::State;
    use crate::config::{Config, Text};
    use crate::state::{Generation, Past};
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{IpAddr, Ipv4Addr};
    use std::path::Path;
    use std::sync::Arc;

    fn config(text: &str) -> Config {
        let text = Text { path: Path::new("config.env").into(), bytes: text.into() };
        Config::assemble(Some(text), Vec::new(), &BTreeMap::new()).unwrap()
    }

    /// `app.test` at these addresses of 10.0.0.0/8.
    fn at(numbers: impl IntoIterator<Item = u32>) -> Directory {
        let ip = |number: u32| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number));
        let addresses: BTreeSet<IpAddr> = numbers.into_iter().map(ip).collect();
        Directory::from([(Query::Host("app.test".into()), Found::Addresses(addresses))])
    }

    fn last(generation: &Generation) -> (u64, State) {
        let endpoint = generation.endpoints().last().unwrap();
        (endpoint.number(), endpoint.state())
    }

    const CHECKED: &str = "BACKEND_ADDRESS=app.test:80\nHEALTH_CHECK=/health\n";

    #[test]
    fn a_backend_that_comes_and_goes_with_the_answers_of_a_name_server_stays_the_same() {
        let mut departed = Departed::default();
        let mut generation = Generation::build(1, config(CHECKED), &at([1, 2]), None);
        let bad = last(&generation).0;
        generation.endpoints().last().unwrap().checked(Err("status 500".into()), 2, 3, 0);
        let mut now = 0;
        for answer in [[1, 3], [1, 4], [1, 3], [1, 2]].into_iter().cycle().take(40) {
            now += 2_000;
            let moved = generation.moved(&at(answer), &departed);
            departed.note(&generation, &moved, now);
            generation = moved;
            let expected = if answer == [1, 2] { (bad, State::Failing) } else { (last(&generation).0, State::Up) };
            assert_eq!(last(&generation), expected);
        }
        assert_eq!(departed.endpoints().count(), 2);
        // With another check it begins anew.
        let away = generation.moved(&at([1]), &departed);
        departed.note(&generation, &away, now);
        let past = Some(Past { generation: &away, departed: &departed });
        let other = Generation::build(2, config("BACKEND_ADDRESS=app.test:80\n"), &at([1, 2]), past);
        assert!(last(&other).0 != bad && last(&other).1 == State::Up);
        // It is not known for ever.
        departed.note(&away, &away, now + u64::try_from(KNOWN.as_millis()).unwrap());
        assert_ne!(last(&away.moved(&at([1, 2]), &departed)).0, bad);
    }

    /// A sum that fell with one of them would look like a counter that begins anew.
    #[test]
    fn endpoints_of_one_name_have_one_tally_and_those_of_others_another() {
        let both = format!("{CHECKED}WORKERS=3\n");
        let mut departed = Departed::default();
        let generation = Generation::build(1, config(&both), &at([1, 2]), None);
        let tally = |generation: &Generation| Arc::clone(generation.endpoints().last().unwrap().tally());
        let first = tally(&generation);
        let others = generation.endpoints().filter(|one| Arc::ptr_eq(one.tally(), &first)).count();
        assert_eq!((others, generation.workers()), (1, 3));
        first.lane(2).begun();
        let away = generation.moved(&at([1]), &departed);
        departed.note(&generation, &away, 0);
        // It returns, and is checked no more; how many threads count was settled by the start.
        let past = Some(Past { generation: &away, departed: &departed });
        let unchecked = config("BACKEND_ADDRESS=app.test:80\nWORKERS=1\n");
        let returned = Generation::build(2, unchecked, &at([1, 2]), past);
        assert_ne!(last(&returned).0, last(&generation).0);
        assert!(Arc::ptr_eq(&tally(&returned), &first));
        let new = tally(&returned.moved(&at([3]), &departed));
        assert!(!Arc::ptr_eq(&new, &first));
        new.lane(2).begun();
        assert_eq!((new.sum().attempts, first.sum().attempts, returned.workers()), (1, 1, 3));
    }

    #[test]
    fn of_those_that_left_only_so_many_are_known() {
        let mut departed = Departed::default();
        let mut generation = Generation::build(1, config(CHECKED), &at([0]), None);
        for answer in 1..200 {
            let moved = generation.moved(&at(answer * 10..answer * 10 + 10), &departed);
            departed.note(&generation, &moved, 0);
            generation = moved;
        }
        assert_eq!(departed.endpoints().count(), KNOWN_MOST);
        let last_left = departed.endpoints().last().unwrap().number();
        assert_eq!(last(&generation.moved(&at(1980..1990), &departed)).0, last_left);
    }
}
