//! What the daemon makes of names: a change of addresses becomes a new generation.
//!
//! The pools of a generation never change, so where a name leads elsewhere a generation
//! of the same configuration and number is built and adopted like any other: endpoints
//! that stay keep their connections and all that is known of them, those that go finish
//! what they have. It is no reload: nobody asked for it, and systemd hears nothing.
//! Changes that come close together, as after a deployment, are made one.

use std::collections::{BTreeSet, HashSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::control::Daemon;
use super::doors::list;
use super::lookup::Lookups;
use super::resolver::{News, Resolution, Resolver};
use crate::balance::discovery::{Directory, PLACES_MOST, Query, places};
use crate::config::{Config, Target};
use crate::proxy::workers::WorkerDied;
use crate::state::Generation;
use crate::telemetry::events;

/// How long an unresolvable name holds up READY=1 or a reload.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long further changes are waited for after one.
const GATHER: Duration = Duration::from_millis(100);

/// How long the workers may take to adopt a generation before one counts as stuck.
/// It has the new one in its queue then, and takes it should it ever turn again.
const ADOPT_PATIENCE: Duration = Duration::from_secs(5);

/// When a change of addresses takes effect; never while there is none.
#[derive(Debug, Default)]
pub(super) struct Change(Option<Instant>);

impl Change {
    fn note(&mut self) {
        self.0.get_or_insert_with(|| Instant::now() + GATHER);
    }

    /// Resolves when it is time.
    pub(super) async fn due(&self) {
        match self.0 {
            Some(due) => sleep_until(due).await,
            None => pending().await,
        }
    }
}

/// The names among the backends of a configuration.
pub(super) fn of(config: &Config) -> BTreeSet<Query> {
    targets(config).filter_map(Query::of).collect()
}

fn targets(config: &Config) -> impl Iterator<Item = &Target> {
    config.routes.iter().flat_map(|route| &route.settings.backend_address).map(|backend| &backend.target)
}

/// Waits until each name was looked up once, but not for ever.
pub(super) async fn look_up(resolver: &mut Resolver<Lookups>, config: &Config) {
    let each = async {
        while !resolver.settled() {
            let resolution = resolver.next().await;
            report(&resolution, &resolver.directory(), config);
        }
    };
    if timeout(PATIENCE, each).await.is_err() {
        debug!("starting before every backend's name is resolved");
    }
}

impl Daemon {
    /// Takes note of the news of a name.
    pub(super) fn name_resolved(&mut self, resolution: &Resolution) {
        report(resolution, &self.resolver.directory(), &self.generation.config);
        if matches!(resolution.news, News::Found { .. } | News::Moved { .. }) {
            self.change.note();
        }
    }

    /// Has requests go where the names lead now.
    pub(super) async fn move_backends(&mut self) -> Result<(), WorkerDied> {
        self.change = Change::default();
        let moved = self.generation.moved(&self.resolver.directory(), &self.departed);
        if moved.leads_as(&self.generation) {
            return Ok(());
        }
        self.take_up(moved).await
    }

    /// Puts on record what is wrong with the names of backends that came with a reload. While
    /// they were looked up the configuration before was in force, which does not have them.
    pub(super) fn tell_of_new_names(&self, before: &Config) {
        let mut known: HashSet<&Target> = targets(before).collect();
        let directory = self.resolver.directory();
        for target in targets(&self.generation.config).filter(|target| known.insert(*target)) {
            let Some(query) = Query::of(target) else { continue };
            if let Some(error) = self.resolver.error(&query) {
                warn_unresolved(&target.to_string(), error, directory.contains_key(&query));
            }
            warn_of_many(target, &directory);
        }
    }

    /// Hands a generation to every worker: from here on new requests meet it.
    pub(super) async fn take_up(&mut self, generation: Generation) -> Result<(), WorkerDied> {
        let generation = Arc::new(generation);
        generation.take_over(Some(&self.generation));
        match timeout(ADOPT_PATIENCE, self.workers.adopt(Arc::clone(&generation))).await {
            Ok(adopted) => adopted?,
            Err(_) => {
                let worker = list(self.workers.stuck());
                error!(message_id = events::WORKER_STUCK, worker, "a worker does not take the new configuration");
            }
        }
        self.departed.note(&self.generation, &generation, self.workers.millis());
        self.generation = generation;
        self.watch_backends();
        Ok(())
    }
}

/// Puts the news of a name on record, once for each backend that has it.
fn report(resolution: &Resolution, directory: &Directory, config: &Config) {
    let Resolution { query, news } = resolution;
    let named: BTreeSet<String> =
        targets(config).filter(|target| Query::of(target).as_ref() == Some(query)).map(Target::to_string).collect();
    let found = directory.get(query);
    for backend in &named {
        let addresses = || list(found.map(|found| found.addresses()).unwrap_or_default());
        match news {
            News::Failed(error) => warn_unresolved(backend, error, found.is_some()),
            News::Recovered | News::Found { recovered: true } | News::Moved { recovered: true } => info!(
                message_id = events::BACKEND_RESOLVED,
                backend,
                addresses = addresses(),
                "backend's name resolved again"
            ),
            News::Moved { recovered: false } => info!(
                message_id = events::BACKEND_MOVED,
                backend,
                addresses = addresses(),
                "backend's addresses changed"
            ),
            News::Found { recovered: false } => debug!(backend, addresses = addresses(), "backend's addresses"),
        }
    }
    if let (News::Found { .. } | News::Moved { .. }, Some(target)) =
        (news, targets(config).find(|target| Query::of(target).as_ref() == Some(query)))
    {
        warn_of_many(target, directory);
    }
}

fn warn_unresolved(backend: &str, error: &str, in_use: bool) {
    warn!(message_id = events::BACKEND_UNRESOLVED, backend, error, in_use, "backend's name not resolved");
}

/// Says so where a backend has more addresses than are used.
fn warn_of_many(target: &Target, directory: &Directory) {
    let found = Query::of(target).and_then(|query| directory.get(&query));
    let found = found.map_or(0, |found| found.addresses().len());
    if found > PLACES_MOST && places(target, directory).len() == PLACES_MOST {
        warn!(
            message_id = events::BACKEND_ADDRESSES_IGNORED,
            backend = %target,
            addresses = found,
            limit = PLACES_MOST,
            "a backend's name has more addresses than are used"
        );
    }
}
