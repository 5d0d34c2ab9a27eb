//! Generation: the immutable routes and settings of one configuration.
//!
//! A reload builds a new generation and hands it to every worker; requests, streams
//! and tunnels keep the one they began with. What must outlive a reload is not in it:
//! endpoints are passed on by identity, permits and queues are resized in place.
//!
//! Where the backends' names lead belongs to a generation too. When that changes, a new
//! one with the same number is built from the same configuration.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::balance::budget::Budget;
use crate::balance::discovery::{Directory, places};
use crate::balance::endpoint::Endpoint;
use crate::balance::pool::Pool;
use crate::config::{Auto, BackendAddress, Config, Daemon, Mode, RouteSettings, SentPath};
use crate::routing::Table;

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
    /// Its backends.
    pub pool: Pool,
    /// How often they may be asked again.
    pub budget: Arc<Budget>,
}

impl Generation {
    /// Builds the routes of `config`, with the names of backends as `directory` has them.
    /// Endpoints that `previous` had too are passed on with all that is known of them.
    #[must_use]
    pub fn build(number: u64, config: impl Into<Arc<Config>>, directory: &Directory, previous: Option<&Self>) -> Self {
        let config = config.into();
        let mut registry = Registry::of(previous);
        let routes = config
            .routes
            .iter()
            .map(|route| {
                let backends = &route.settings.backend_address;
                let members = backends.iter().flat_map(|backend| registry.members(backend, directory));
                let pool = Pool::new(members.collect());
                let budget = budget(&route.name, &config.daemon, previous);
                Route { name: route.name.as_str().into(), settings: route.settings.clone(), pool, budget }
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

    /// Takes over from `previous`: endpoints that are not used any more drain from now on.
    pub fn relieve(&self, previous: &Self) {
        let used: HashSet<u64> = self.endpoints().map(|endpoint| endpoint.number()).collect();
        // One by one and never back and forth: a connection that is given back meanwhile
        // to an endpoint that stays must not be closed.
        for endpoint in previous.endpoints().chain(self.endpoints()) {
            endpoint.drain(!used.contains(&endpoint.number()));
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

    /// The limits in force, with those set to `auto` worked out.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits::of(&self.config.daemon)
    }
}

/// Endpoints by identity, so that each is made once.
struct Registry {
    known: HashMap<Arc<str>, Arc<Endpoint>>,
}

impl Registry {
    fn of(previous: Option<&Generation>) -> Self {
        let endpoints = previous.into_iter().flat_map(Generation::endpoints);
        let known = endpoints.map(|endpoint| (Arc::clone(endpoint.identity()), Arc::clone(endpoint)));
        Self { known: known.collect() }
    }

    /// The endpoints of a backend with their weights: one, or one for each place of a name.
    fn members(&mut self, backend: &BackendAddress, directory: &Directory) -> Vec<(Arc<Endpoint>, u16)> {
        let target = &backend.target;
        let places = places(target, directory);
        if places.is_empty() {
            let endpoint = self.endpoint(target.to_string(), || Endpoint::new(backend));
            return vec![(endpoint, backend.weight)];
        }
        let member = |place| {
            let endpoint = self.endpoint(Endpoint::identity_at(target, place), || Endpoint::at(target, place));
            (endpoint, place.weight.unwrap_or(backend.weight))
        };
        // Those kept for when these are down have no place in a pool yet.
        places.iter().filter(|place| !place.backup).map(member).collect()
    }

    fn endpoint(&mut self, identity: String, make: impl FnOnce() -> Endpoint) -> Arc<Endpoint> {
        Arc::clone(self.known.entry(identity.into()).or_insert_with(|| Arc::new(make())))
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
