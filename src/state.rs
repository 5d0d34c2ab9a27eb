//! Generation: the immutable routes and settings of one configuration.
//!
//! A reload builds a new generation and hands it to every worker; requests, streams
//! and tunnels keep the one they began with. What must outlive a reload is not in it:
//! endpoints are passed on by identity, permits and queues are resized in place.

use std::collections::HashMap;
use std::sync::Arc;

use crate::balance::endpoint::Endpoint;
use crate::balance::pool::Pool;
use crate::config::{Auto, Config, Daemon, Mode, RouteSettings, SentPath};
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
    pub config: Config,
    routes: Box<[Route]>,
    table: Table,
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
}

impl Generation {
    /// Builds the routes of `config`. Endpoints that `previous` had too are passed on
    /// with all that is known of them.
    #[must_use]
    pub fn build(number: u64, config: Config, previous: Option<&Self>) -> Self {
        let mut known: HashMap<Arc<str>, Arc<Endpoint>> = previous
            .into_iter()
            .flat_map(Self::endpoints)
            .map(|endpoint| (Arc::clone(endpoint.identity()), Arc::clone(endpoint)))
            .collect();
        let routes = config
            .routes
            .iter()
            .map(|route| {
                let members = route.settings.backend_address.iter().map(|backend| {
                    let identity: Arc<str> = backend.target.to_string().into();
                    let endpoint = known.entry(identity).or_insert_with(|| Arc::new(Endpoint::new(backend)));
                    (Arc::clone(endpoint), backend.weight)
                });
                let pool = Pool::new(members.collect());
                Route { name: route.name.as_str().into(), settings: route.settings.clone(), pool }
            })
            .collect();
        let table = Table::new(&config.routes);
        Self { number, config, routes, table }
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
        let mut seen = std::collections::HashSet::new();
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
