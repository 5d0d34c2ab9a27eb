//! Generation: the immutable routes and settings of one configuration.
//!
//! A reload builds a new generation and hands it to every worker; requests, streams
//! and tunnels keep the one they began with. What must outlive a reload is not in it:
//! endpoints are passed on by identity, permits and queues are resized in place.
//!
//! Where the backends' names lead belongs to a generation too. When that changes, a new
//! one with the same number is built from the same configuration.
//!
//! Routes that name the same backend share its endpoint, unless they check it differently:
//! what one route's check finds must not count for another that asks something else. Its
//! connections are counted together all the same.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::sync::{Arc, LazyLock};

use crate::balance::budget::Budget;
use crate::balance::discovery::{Directory, Place, places};
use crate::balance::endpoint::Endpoint;
use crate::balance::health::Check;
use crate::balance::pool::{Member, Pool, Terms};
use crate::balance::sip::Key;
use crate::config::{Auto, BackendAddress, Balance, Config, Daemon, Mode, RouteSettings, SentPath, Target};
use crate::routing::{FieldEdits, Rewrites, Table};
use crate::telemetry::events;

/// Descriptors kept back for logs, epoll, reloads and the admin socket.
const RESERVED_DESCRIPTORS: u64 = 128;

/// Waiters for each permit when the queue's limit is worked out: `QUEUE_LIMIT=auto`.
const WAITERS_EACH: usize = 10;

/// One configuration at work.
#[derive(Debug)]
pub struct Generation {
    /// Counts configurations since the start, from 1.
    pub number: u64,
    /// The configuration it was built from.
    pub config: Arc<Config>,
    routes: Box<[Route]>,
    table: Arc<Table>,
}

/// A route at work.
#[derive(Debug)]
pub struct Route {
    /// Its name, as in the log.
    pub name: Arc<str>,
    /// Its settings.
    pub settings: RouteSettings,
    /// What it changes of requests and responses, if anything.
    pub rewrites: Option<Box<Rewrites>>,
    /// Its backends.
    pub pool: Pool,
    /// How often they may be asked again.
    pub budget: Arc<Budget>,
    /// The name of its cookie, with `BALANCE=sticky`.
    pub cookie: Box<str>,
    /// How they are checked.
    check: Option<Arc<Check>>,
}

impl Route {
    /// What it changes of responses.
    #[must_use]
    pub fn response_edits(&self) -> Option<&FieldEdits> {
        self.rewrites.as_ref().and_then(|rewrites| rewrites.response.as_ref())
    }

    /// Its backends with how they are checked.
    fn checked(&self) -> impl Iterator<Item = (&Arc<Endpoint>, Option<&Arc<Check>>)> {
        self.pool.endpoints().iter().map(|endpoint| {
            let check = self.check.as_ref().filter(|_| *endpoint.target() != Target::Echo);
            (endpoint, check)
        })
    }
}

impl Generation {
    /// Builds the routes of `config`, with the names of backends as `directory` has them.
    /// Endpoints that `previous` had too are passed on with all that is known of them.
    #[must_use]
    pub fn build(number: u64, config: impl Into<Arc<Config>>, directory: &Directory, previous: Option<&Self>) -> Self {
        let config = config.into();
        let mut registry = Registry::new(&config, previous);
        let routes = config
            .routes
            .iter()
            .map(|route| {
                let settings = route.settings.clone();
                let check = Check::of(&settings).map(Arc::new);
                let members = settings.backend_address.iter().flat_map(|backend| {
                    let check = check.as_ref().filter(|_| backend.target != Target::Echo);
                    registry.members(backend, directory, check)
                });
                let secret = (settings.balance == Balance::Sticky).then(|| *SECRET);
                let terms = Terms {
                    balance: settings.balance.clone(),
                    slow_start: settings.slow_start,
                    limited: settings.max_backend_connections.is_some(),
                    secret,
                };
                let pool = Pool::new(members.collect(), &terms);
                let cookie = match (&settings.sticky_cookie, secret) {
                    (Auto::Is(name), _) => name.clone(),
                    (Auto::Auto, Some(secret)) => cookie(secret, &route.name),
                    (Auto::Auto, None) => Box::default(),
                };
                let budget = budget(&route.name, &config.daemon, previous);
                let rewrites = Rewrites::of(&settings);
                Route { name: route.name.as_str().into(), settings, rewrites, pool, budget, cookie, check }
            })
            .collect();
        let table = match previous {
            Some(previous) if Arc::ptr_eq(&previous.config, &config) => Arc::clone(&previous.table),
            _ => Arc::new(Table::new(&config.routes)),
        };
        Self { number, config, routes, table }
    }

    /// The same configuration where `directory` leads now.
    #[must_use]
    pub fn moved(&self, directory: &Directory) -> Self {
        Self::build(self.number, Arc::clone(&self.config), directory, Some(self))
    }

    /// Takes over from `previous`: endpoints that are not used any more, or whose weight is
    /// zero everywhere, drain from now on; all have the limits of this configuration.
    pub fn take_over(&self, previous: Option<&Self>) {
        let taking = self.routes.iter().flat_map(|route| route.pool.taking());
        let used: HashSet<u64> = taking.map(|endpoint| endpoint.number()).collect();
        // One by one and never back and forth: a connection that is given back meanwhile
        // to an endpoint that stays must not be closed.
        for endpoint in previous.into_iter().flat_map(Self::endpoints).chain(self.endpoints()) {
            endpoint.drain(!used.contains(&endpoint.number()));
        }
        // Routes may share a backend: then the least of their limits holds.
        let mut limits: HashMap<&str, Option<usize>> = HashMap::new();
        for route in &self.routes {
            for endpoint in route.pool.endpoints() {
                let limit = limits.entry(endpoint.identity()).or_default();
                *limit = (*limit).into_iter().chain(route.settings.max_backend_connections).min();
            }
        }
        for endpoint in self.endpoints() {
            endpoint.connections().resize(limits.get(&**endpoint.identity()).copied().flatten());
        }
    }

    /// Whether requests meet the same endpoints as with `other`, with the same shares.
    #[must_use]
    pub fn leads_as(&self, other: &Self) -> bool {
        self.routes.len() == other.routes.len()
            && self.routes.iter().zip(&other.routes).all(|(mine, theirs)| mine.pool.same(&theirs.pool))
    }

    /// The route of an HTTP request.
    #[must_use]
    pub fn route(&self, host: Option<&[u8]>, path: &SentPath<'_>, listener: &str) -> Option<&Route> {
        self.table.find(host, path, listener).and_then(|index| self.routes.get(index))
    }

    /// The route of a TCP connection.
    #[must_use]
    pub fn tcp_route(&self, listener: &str) -> Option<&Route> {
        self.table.find_tcp(listener).and_then(|index| self.routes.get(index))
    }

    /// What a listener speaks.
    #[must_use]
    pub fn mode(&self, listener: &str) -> Mode {
        self.table.mode(listener)
    }

    /// All routes.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Every endpoint of every route, once.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let mut seen = HashSet::new();
        self.routes
            .iter()
            .flat_map(|route| route.pool.endpoints())
            .filter(move |endpoint| seen.insert(Arc::as_ptr(endpoint)))
    }

    /// Every endpoint that is checked, once, and how; not those without an address.
    pub fn checks(&self) -> impl Iterator<Item = (Arc<Endpoint>, Arc<Check>)> {
        let mut seen = HashSet::new();
        let checked = self.routes.iter().flat_map(Route::checked);
        let checked = checked.filter_map(|(endpoint, check)| Some((Arc::clone(endpoint), Arc::clone(check?))));
        checked.filter(move |(endpoint, _)| endpoint.is_resolved() && seen.insert(endpoint.number()))
    }

    /// The limits in force, with those set to `auto` worked out.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::of(&self.config.daemon)
    }
}

/// Endpoints by identity and by how they are checked, so that each is made once, and those
/// of the generation before.
struct Registry {
    made: HashMap<Arc<str>, Vec<Entry>>,
    before: HashMap<Arc<str>, Vec<Entry>>,
    /// The checks of all routes.
    checks: HashSet<Option<Check>>,
}

type Entry = (Option<Arc<Check>>, Arc<Endpoint>);

impl Registry {
    fn new(config: &Config, previous: Option<&Generation>) -> Self {
        let mut before: HashMap<Arc<str>, Vec<Entry>> = HashMap::new();
        let mut seen = HashSet::new();
        for (endpoint, check) in previous.iter().flat_map(|previous| &previous.routes).flat_map(Route::checked) {
            if seen.insert(endpoint.number()) {
                let known = before.entry(Arc::clone(endpoint.identity())).or_default();
                known.push((check.cloned(), Arc::clone(endpoint)));
            }
        }
        let checks = config.routes.iter().map(|route| Check::of(&route.settings)).collect();
        Self { made: HashMap::new(), before, checks }
    }

    /// The endpoints of a backend: one, or one for each place of a name.
    fn members(&mut self, backend: &BackendAddress, directory: &Directory, check: Option<&Arc<Check>>) -> Vec<Member> {
        let target = &backend.target;
        let places = places(target, directory);
        if places.is_empty() {
            let endpoint = self.endpoint(target.to_string(), None, check, || Endpoint::new(backend));
            return vec![Member { endpoint, weight: backend.weight, backup: backend.backup }];
        }
        let member = |place: &Place| {
            let (identity, authority) = (Endpoint::identity_at(target, place), Some(place.authority.as_str()));
            let endpoint = self.endpoint(identity, authority, check, || Endpoint::at(target, place));
            let weight = place.weight.unwrap_or(backend.weight);
            Member { endpoint, weight, backup: backend.backup || place.backup }
        };
        places.iter().map(member).collect()
    }

    /// The endpoint of this identity that is checked so: one of this generation or of the
    /// one before. If there it was checked in another way, which no route wants any more,
    /// it is still the same backend. One that went by another authority is not: what it is
    /// asked for by that name, and what it answers, may be another thing.
    fn endpoint(
        &mut self,
        identity: String,
        authority: Option<&str>,
        check: Option<&Arc<Check>>,
        make: impl FnOnce() -> Endpoint,
    ) -> Arc<Endpoint> {
        let made = self.made.entry(identity.as_str().into()).or_default();
        if let Some((_, endpoint)) = made.iter().find(|(known, _)| known.as_ref() == check) {
            return Arc::clone(endpoint);
        }
        let endpoint = self.before.get_mut(identity.as_str()).and_then(|before| {
            let named = |endpoint: &Endpoint| authority.is_none_or(|authority| **endpoint.host() == *authority);
            let same = before.iter().position(|(known, endpoint)| known.as_ref() == check && named(endpoint));
            let unused = |known: &Option<Arc<Check>>| !self.checks.contains(&known.as_deref().cloned());
            let free = || before.iter().position(|(known, endpoint)| unused(known) && named(endpoint));
            let place = same.or_else(free)?;
            Some(before.swap_remove(place).1)
        });
        let endpoint = endpoint.unwrap_or_else(|| {
            let mut endpoint = make();
            // However it is checked, it is one backend with one limit.
            let others = made.iter().chain(self.before.get(identity.as_str()).into_iter().flatten());
            if let Some((_, other)) = others.last() {
                endpoint.share_connections(other);
            }
            if !self.before.is_empty() {
                endpoint.load().begin_cold();
            }
            Arc::new(endpoint)
        });
        made.push((check.cloned(), Arc::clone(&endpoint)));
        endpoint
    }
}

/// The retry budget of a route: the one it had before, since a reload is no reason to retry
/// more.
fn budget(route: &str, daemon: &Daemon, previous: Option<&Generation>) -> Arc<Budget> {
    let before = previous.and_then(|previous| previous.routes.iter().find(|before| &*before.name == route));
    before.map_or_else(
        || {
            let cores = || std::thread::available_parallelism().map_or(1, usize::from);
            Arc::new(Budget::new(daemon.workers.unwrap_or_else(cores)))
        },
        |before| Arc::clone(&before.budget),
    )
}

/// What tokens in cookies are made with. It follows from the id of the machine, so that
/// clients stay with their backends over a restart; machine-id(5) wants it to be seen by
/// nobody, which a digest keeps to.
static SECRET: LazyLock<Key> = LazyLock::new(|| {
    let id = std::fs::read_to_string("/etc/machine-id").ok().and_then(|id| u128::from_str_radix(id.trim(), 16).ok());
    let [low, high] = match id.filter(|id| *id != 0) {
        Some(id) => {
            let machine = Key::new(id.to_be_bytes());
            [&b"doorward sticky 1"[..], b"doorward sticky 2"].map(|purpose| machine.digest(purpose))
        }
        None => {
            tracing::warn!(
                message_id = events::CONFIG_WARNING,
                warning = "there is no /etc/machine-id: with a restart, clients lose the backends they stick to",
                "no machine id"
            );
            [(); 2].map(|()| std::hash::RandomState::new().hash_one(0))
        }
    };
    Key::new((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
});

/// The cookie of a route that names none: routes of one host must not take each other's.
fn cookie(secret: Key, route: &str) -> Box<str> {
    let code = secret.digest(&[b"route ", route.as_bytes()].concat()) >> 32;
    format!("doorward-{code:08x}").into()
}

/// Numbers that bound the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests served at once.
    pub permits: u64,
    /// Requests waiting for that.
    pub queue: usize,
    /// Tunnels open at once.
    pub tunnels: u64,
    /// Client connections open at once.
    pub connections: u64,
}

impl Limits {
    /// Works out the limits. A tunnel takes two descriptors and may take half of them
    /// in all; client connections may take three quarters.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .unwrap_or(1 << 20)
            .saturating_sub(RESERVED_DESCRIPTORS)
            .max(16);
        let auto = |value: &Auto<usize>, otherwise: u64| match value {
            Auto::Auto => otherwise,
            Auto::Is(value) => u64::try_from(*value).unwrap_or(u64::MAX),
        };
        let permits = daemon.max_concurrent_requests;
        Self {
            permits: u64::try_from(permits).unwrap_or(u64::MAX),
            queue: match daemon.queue_limit {
                Auto::Auto => permits.saturating_mul(WAITERS_EACH),
                Auto::Is(limit) => limit,
            },
            tunnels: auto(&daemon.max_tunnels, descriptors / 4),
            connections: auto(&daemon.max_connections, descriptors / 4 * 3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Directory, Generation};
    use crate::balance::connections::Entry;
    use crate::balance::discovery::{Found, Query, Service};
    use crate::config::{Config, Text};
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    fn generation(main: &str, routes: &[&str], previous: Option<&Generation>) -> Generation {
        let text = |name: String, text: &str| Text { path: Path::new(&name).into(), bytes: text.into() };
        let routes = routes.iter().enumerate().map(|(index, route)| text(format!("routes.d/r{index}.env"), route));
        let config = Config::assemble(Some(text("config.env".into(), main)), routes.collect(), &BTreeMap::new());
        Generation::build(1, config.unwrap(), &Directory::new(), previous)
    }

    /// The number of the first backend of each route.
    fn numbers(generation: &Generation) -> Vec<u64> {
        generation.routes().iter().map(|route| route.pool.endpoints()[0].number()).collect()
    }

    #[test]
    fn routes_share_a_backend_unless_they_check_it_differently() {
        let main = "BACKEND_ADDRESS=10.0.0.1:80\nHEALTH_CHECK=/health\n";
        let routes = ["MATCH_PATH=/a\n", "MATCH_PATH=/b\nHEALTH_CHECK=/b\n", "MATCH_PATH=/c\nHEALTH_CHECK=off\n"];
        let generation = generation(main, &routes, None);
        let [a, b, c, default] = numbers(&generation).try_into().unwrap();
        assert!(a == default && a != b && b != c && c != a);
        let checked: Vec<u64> = generation.checks().map(|(endpoint, _)| endpoint.number()).collect();
        assert_eq!(checked, [a, b]);
    }

    #[test]
    fn a_backend_outlives_a_change_of_its_check_but_does_not_become_another_routes() {
        let main = "BACKEND_ADDRESS=10.0.0.1:80\nHEALTH_CHECK=/health\n";
        let before = generation(main, &["MATCH_PATH=/a\nHEALTH_CHECK=/a\n"], None);
        let [a, default] = numbers(&before).try_into().unwrap();
        let after = generation(main, &["MATCH_PATH=/a\nHEALTH_CHECK=/b\n"], Some(&before));
        assert_eq!(numbers(&after), [a, default]);
        // The first route asks as the other one did: it gets what that check has found.
        let swapped = generation(
            "BACKEND_ADDRESS=10.0.0.1:80\nHEALTH_CHECK=/a\n",
            &["MATCH_PATH=/a\nHEALTH_CHECK=/health\n"],
            Some(&before),
        );
        assert_eq!(numbers(&swapped), [default, a]);
        let fewer = generation(main, &["MATCH_PATH=/a\n"], Some(&before));
        assert_eq!(numbers(&fewer), [default, default]);
    }

    #[test]
    fn a_backend_has_one_limit_however_it_is_checked() {
        let main = "BACKEND_ADDRESS=10.0.0.1:80\nHEALTH_CHECK=/health\nMAX_BACKEND_CONNECTIONS=3\n";
        let route = "MATCH_PATH=/a\nMAX_BACKEND_CONNECTIONS=2\n";
        let together = generation(main, &[route], None);
        together.take_over(None);
        let apart = generation(main, &[&format!("{route}HEALTH_CHECK=/a\n")], Some(&together));
        apart.take_over(Some(&together));
        let [one, other] = [0, 1].map(|route: usize| &apart.routes()[route].pool.endpoints()[0]);
        assert_ne!(one.number(), other.number());
        let slots = [one, other].map(|endpoint| endpoint.connections().enter());
        assert!(slots.iter().all(|entry| matches!(entry, Entry::Open(_))));
        for endpoint in [one, other] {
            assert_eq!(endpoint.connections().open(), 2);
            assert!(matches!(endpoint.connections().enter(), Entry::Wait(_)));
        }
    }

    #[test]
    fn a_host_of_a_service_that_is_renamed_goes_by_its_new_name() {
        let directory = |host: &str, weight| {
            let addresses = BTreeSet::from(["10.0.0.1".parse().unwrap()]);
            let service = Service { priority: 1, weight, host: host.into(), port: 80, addresses };
            let query = Query::Service("_http._tcp.app.test".into());
            Directory::from([(query, Found::Services(BTreeSet::from([service])))])
        };
        let told = |generation: &Generation| {
            let endpoint = &generation.routes()[0].pool.endpoints()[0];
            (endpoint.number(), endpoint.host().to_string())
        };
        let unresolved = generation("BACKEND_ADDRESS=srv:_http._tcp.app.test\n", &[], None);
        let first = unresolved.moved(&directory("v1.test", 1));
        let (number, host) = told(&first);
        assert_eq!(host, "v1.test:80");
        assert_eq!(told(&first.moved(&directory("v1.test", 2))), (number, host));
        let renamed = first.moved(&directory("v2.test", 1));
        assert!(told(&renamed).1 == "v2.test:80" && !renamed.leads_as(&first));
    }

    #[test]
    fn the_built_in_backend_is_not_checked() {
        let generation = generation("HEALTH_CHECK=tcp\nBACKEND_ADDRESS=builtin:echo,10.0.0.1:80\n", &[], None);
        let checked: Vec<String> = generation.checks().map(|(endpoint, _)| endpoint.identity().to_string()).collect();
        assert_eq!(checked, ["10.0.0.1:80"]);
    }
}
