//! Generation: the immutable routes and settings of one configuration.
//!
//! A reload builds a new generation and hands it to every worker; requests, streams
//! and tunnels keep the one they began with. What must outlive a reload is not in it:
//! endpoints are passed on by identity, permits and queues are resized in place.
//!
//! Where the backends' names lead belongs to a generation too. When that changes, a new
//! one with the same number is built from the same configuration. The two share the routes
//! that lead where they did, and of the others all but the pool, so that many changes while
//! a long request holds its generation cost little.
//!
//! Routes that name the same backend share its endpoint, unless they check it differently:
//! what one route's check finds must not count for another that asks something else. Its
//! connections are counted together all the same.

mod registry;

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher as _;
use std::sync::{Arc, LazyLock};

use rustls::ClientConfig;

use crate::balance::budget::Budget;
use crate::balance::discovery::Directory;
use crate::balance::endpoint::Endpoint;
use crate::balance::health::Check;
use crate::balance::pool::{Pool, Terms};
use crate::balance::sip::Key;
use crate::config::{Auto, Balance, CLIENT_FIELDS, Config, Daemon, Mode, RouteSettings, SentPath, Target, server_name};
use crate::routing::{FieldEdits, Rewrites, Table};
use crate::telemetry::events;
use crate::tls::{Clients, Doors};

pub use registry::{Departed, KNOWN, KNOWN_MOST, Past};
use registry::{Meets, Registry};

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
    /// What clients are shown that come by TLS.
    pub doors: Arc<Doors>,
    /// How backends are spoken to over TLS.
    pub clients: Arc<Clients>,
    /// Threads that serve: those of the first generation.
    workers: usize,
    routes: Box<[Arc<Route>]>,
    table: Arc<Table>,
}

/// A route at work.
#[derive(Debug)]
pub struct Route {
    /// Its name, as in the log.
    pub name: Arc<str>,
    /// Its settings.
    pub settings: Arc<RouteSettings>,
    /// What it changes of requests and responses, if anything.
    pub rewrites: Option<Arc<Rewrites>>,
    /// Its backends.
    pub pool: Pool,
    /// How often they may be asked again.
    pub budget: Arc<Budget>,
    /// The name of its cookie, with `BALANCE=sticky`.
    pub cookie: Arc<str>,
    /// How they are checked.
    check: Option<Arc<Check>>,
}

impl Route {
    /// The same route with other backends.
    fn with(&self, pool: Pool) -> Self {
        Self {
            name: Arc::clone(&self.name),
            settings: Arc::clone(&self.settings),
            rewrites: self.rewrites.clone(),
            pool,
            budget: Arc::clone(&self.budget),
            cookie: Arc::clone(&self.cookie),
            check: self.check.clone(),
        }
    }

    /// What it changes of responses to requests that came by TLS, or not.
    #[must_use]
    pub fn response_edits(&self, secure: bool) -> Option<&FieldEdits> {
        let rewrites = self.rewrites.as_ref()?;
        rewrites.secure_response.as_ref().filter(|_| secure).or(rewrites.response.as_ref())
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
    /// Endpoints that are known from the `past` are passed on with all that is known of them.
    /// No backend is reached over TLS.
    #[must_use]
    pub fn build(number: u64, config: impl Into<Arc<Config>>, directory: &Directory, past: Option<Past<'_>>) -> Self {
        Self::build_with(number, config, Clients::default(), directory, past)
    }

    /// The same with these `clients` of backends that speak TLS.
    #[must_use]
    pub fn build_with(
        number: u64,
        config: impl Into<Arc<Config>>,
        clients: Clients,
        directory: &Directory,
        past: Option<Past<'_>>,
    ) -> Self {
        let config = config.into();
        let checks: Vec<_> = config.routes.iter().map(|route| Check::of(&route.settings).map(Arc::new)).collect();
        let wanted = || config.daemon.workers.unwrap_or_else(cores);
        let workers = past.map_or_else(wanted, |past| past.generation.workers);
        let mut registry = Registry::new(checks.iter().cloned(), workers, past);
        let budgets = past.iter().flat_map(|past| &past.generation.routes);
        let budgets: HashMap<&str, &Arc<Budget>> = budgets.map(|route| (&*route.name, &route.budget)).collect();
        // What one route says of certificates must not come from a client on any other: backends
        // may be the same.
        let asks = config.routes.iter().any(|route| !route.settings.tls_client_ca.is_empty());
        let guarded = if asks { CLIENT_FIELDS } else { &[] };
        let routes = config
            .routes
            .iter()
            .zip(checks)
            .enumerate()
            .map(|(index, (route, check))| {
                let settings = &route.settings;
                let pool = pool(&mut registry, settings, directory, check.as_ref(), clients.of_route(index));
                let cookie = match &settings.sticky_cookie {
                    Auto::Is(name) => name.as_ref().into(),
                    Auto::Auto if settings.balance == Balance::Sticky => cookie(*SECRET, &route.name),
                    Auto::Auto => Arc::default(),
                };
                // A reload is no reason to retry more.
                let known = budgets.get(route.name.as_str());
                let budget = known.map_or_else(|| Arc::new(Budget::new(workers)), |known| Arc::clone(known));
                let rewrites = Rewrites::without(settings, guarded).map(Arc::from);
                let (name, settings) = (route.name.as_str().into(), Arc::new(settings.clone()));
                Arc::new(Route { name, settings, rewrites, pool, budget, cookie, check })
            })
            .collect();
        let table = Arc::new(Table::new(&config.routes));
        Self { number, config, doors: Arc::default(), clients: Arc::new(clients), workers, routes, table }
    }

    /// The same one with these certificates.
    #[must_use]
    pub fn with_doors(self, doors: impl Into<Arc<Doors>>) -> Self {
        Self { doors: doors.into(), ..self }
    }

    /// The same configuration where `directory` leads now.
    #[must_use]
    pub fn moved(&self, directory: &Directory, departed: &Departed) -> Self {
        self.trusting(Arc::clone(&self.clients), directory, departed)
    }

    /// The same configuration where `directory` leads now, with these `clients` of the same
    /// routes. A backend that is trusted otherwise is another one.
    #[must_use]
    pub fn trusting(&self, clients: impl Into<Arc<Clients>>, directory: &Directory, departed: &Departed) -> Self {
        let clients = clients.into();
        let past = Past { generation: self, departed };
        let checks = self.routes.iter().map(|route| route.check.clone());
        let mut registry = Registry::new(checks, self.workers, Some(past));
        let changed = |(index, route): (usize, &Arc<Route>)| {
            let (check, client) = (route.check.as_ref(), clients.of_route(index));
            let pool = pool(&mut registry, &route.settings, directory, check, client);
            let same = clients.is_as(&self.clients, index) && pool.same(&route.pool);
            if same { Arc::clone(route) } else { Arc::new(route.with(pool)) }
        };
        let routes = self.routes.iter().enumerate().map(changed).collect();
        Self {
            number: self.number,
            config: Arc::clone(&self.config),
            doors: Arc::clone(&self.doors),
            clients,
            workers: self.workers,
            routes,
            table: Arc::clone(&self.table),
        }
    }

    /// The same configuration with the certificates that there are now.
    #[must_use]
    pub fn renewed(&self, doors: Doors) -> Self {
        Self {
            number: self.number,
            config: Arc::clone(&self.config),
            doors: Arc::new(doors),
            clients: Arc::clone(&self.clients),
            workers: self.workers,
            routes: self.routes.clone(),
            table: Arc::clone(&self.table),
        }
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
            && self
                .routes
                .iter()
                .zip(&other.routes)
                .all(|(mine, theirs)| Arc::ptr_eq(mine, theirs) || mine.pool.same(&theirs.pool))
    }

    /// The route of an HTTP request.
    #[must_use]
    pub fn route(&self, host: Option<&[u8]>, path: &SentPath<'_>, listener: &str) -> Option<&Route> {
        self.table.find(host, path, listener).and_then(|index| self.routes.get(index)).map(|route| &**route)
    }

    /// The route of a TCP connection.
    #[must_use]
    pub fn tcp_route(&self, listener: &str) -> Option<&Arc<Route>> {
        self.table.find_tcp(listener).and_then(|index| self.routes.get(index))
    }

    /// What a listener speaks.
    #[must_use]
    pub fn mode(&self, listener: &str) -> Mode {
        self.table.mode(listener)
    }

    /// Threads that serve, each of which counts by itself. A reload changes nothing of that.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// All routes.
    #[must_use]
    pub fn routes(&self) -> &[Arc<Route>] {
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
        let checked = self.routes.iter().flat_map(|route| route.checked());
        let checked = checked.filter_map(|(endpoint, check)| Some((Arc::clone(endpoint), Arc::clone(check?))));
        checked.filter(move |(endpoint, _)| endpoint.is_resolved() && seen.insert(endpoint.number()))
    }

    /// The limits in force, with those set to `auto` worked out.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::of(&self.config.daemon)
    }
}

/// The backends of a route, each with what is known of it.
fn pool(
    registry: &mut Registry,
    settings: &RouteSettings,
    directory: &Directory,
    check: Option<&Arc<Check>>,
    client: Option<&Arc<ClientConfig>>,
) -> Pool {
    let members = settings.backend_address.iter().flat_map(|backend| {
        let check = check.filter(|_| backend.target != Target::Echo);
        let tls = client.zip(server_name(&settings.backend_tls_name, &backend.target));
        registry.members(backend, directory, &Meets { check, tls })
    });
    let terms = Terms {
        balance: settings.balance.clone(),
        slow_start: settings.slow_start,
        limited: settings.max_backend_connections.is_some(),
        secret: (settings.balance == Balance::Sticky).then(|| *SECRET),
    };
    Pool::new(members.collect(), &terms)
}

/// The cores that this process may use: affinity and the cgroup's quota count.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
    Key::new(((u128::from(high) << 64) | u128::from(low)).to_le_bytes())
});

/// The cookie of a route that names none: routes of one host must not take each other's.
fn cookie(secret: Key, route: &str) -> Arc<str> {
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
    /// TLS handshakes with clients under way at once.
    pub handshakes: u64,
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
            handshakes: u64::try_from(daemon.max_tls_handshakes).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Departed, Directory, Generation, Past};
    use crate::balance::connections::Entry;
    use crate::balance::discovery::{Found, Query, Service};
    use crate::config::{Config, Text};
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;
    use std::sync::Arc;

    fn generation(main: &str, routes: &[&str], previous: Option<&Generation>) -> Generation {
        let text = |name: String, text: &str| Text { path: Path::new(&name).into(), bytes: text.into() };
        let routes = routes.iter().enumerate().map(|(index, route)| text(format!("routes.d/r{index}.env"), route));
        let config = Config::assemble(Some(text("config.env".into(), main)), routes.collect(), &BTreeMap::new());
        let departed = Departed::default();
        let past = previous.map(|generation| Past { generation, departed: &departed });
        Generation::build(1, config.unwrap(), &Directory::new(), past)
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
        let first = unresolved.moved(&directory("v1.test", 1), &Departed::default());
        let (number, host) = told(&first);
        assert_eq!(host, "v1.test");
        assert_eq!(told(&first.moved(&directory("v1.test", 2), &Departed::default())), (number, host));
        let renamed = first.moved(&directory("v2.test", 1), &Departed::default());
        assert!(told(&renamed).1 == "v2.test" && !renamed.leads_as(&first));
    }

    #[test]
    fn the_built_in_backend_is_not_checked() {
        let generation = generation("HEALTH_CHECK=tcp\nBACKEND_ADDRESS=builtin:echo,10.0.0.1:80\n", &[], None);
        let checked: Vec<String> = generation.checks().map(|(endpoint, _)| endpoint.identity().to_string()).collect();
        assert_eq!(checked, ["10.0.0.1:80"]);
    }

    #[test]
    fn a_move_of_addresses_makes_only_those_pools_anew_that_lead_elsewhere() {
        let routes = ["MATCH_PATH=/fixed\nBACKEND_ADDRESS=10.0.0.1:80\n", "MATCH_PATH=/named\n"];
        let before = generation("BACKEND_ADDRESS=app.test:80\nBALANCE=sticky\n", &routes, None);
        let found = Found::Addresses(["10.0.0.2".parse().unwrap()].into());
        let directory = Directory::from([(Query::Host("app.test".into()), found)]);
        let after = before.moved(&directory, &Departed::default());
        assert!(!after.leads_as(&before));
        let same: Vec<bool> =
            before.routes().iter().zip(after.routes()).map(|(before, after)| Arc::ptr_eq(before, after)).collect();
        assert_eq!(same, [true, false, false]);
        for (before, after) in before.routes().iter().zip(after.routes()) {
            assert!(Arc::ptr_eq(&before.settings, &after.settings) && Arc::ptr_eq(&before.budget, &after.budget));
            assert!(Arc::ptr_eq(&before.cookie, &after.cookie) && after.name == before.name);
        }
        let again = after.moved(&directory, &Departed::default());
        assert!(again.leads_as(&after) && again.routes().iter().zip(after.routes()).all(|(a, b)| Arc::ptr_eq(a, b)));
    }
}
