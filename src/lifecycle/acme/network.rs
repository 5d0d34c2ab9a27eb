//! Network: real servers, and the store on disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::Error;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::order::{Failure, Scope, Server, Terms, open_store};
use super::store::Trouble;
use super::{Advice, Authority, Held, Job, Loaded, Order, schedule};
use crate::tls::challenges::Challenges;

/// How long an order may take in all.
const ORDER_PATIENCE: Duration = Duration::from_secs(600);

/// How long a question may take.
const ADVICE_PATIENCE: Duration = Duration::from_secs(120);

/// Over the network; what servers are to be shown is published in these challenges.
#[derive(Debug, Clone)]
pub(in crate::lifecycle) struct Network {
    challenges: Arc<Challenges>,
}

impl Network {
    pub(in crate::lifecycle) fn new(challenges: Arc<Challenges>) -> Network {
        Network { challenges }
    }
}

impl Authority for Network {
    fn load(&self, terms: Arc<Terms>, names: Vec<Box<str>>, locked: bool) -> Job<Loaded> {
        Box::pin(async move { spawn_blocking(move || load(&terms, names, locked)).await.map_err(Failure::here)? })
    }

    fn order(&self, terms: Arc<Terms>, order: Order) -> Job<Held> {
        let challenges = Arc::clone(&self.challenges);
        Box::pin(async move {
            let late = || Failure {
                scope: Scope::Name,
                error: format!("the order took longer than {} s", ORDER_PATIENCE.as_secs()),
                retry_after: None,
            };
            timeout(ORDER_PATIENCE, obtain(terms, order, challenges)).await.unwrap_or_else(|_| Err(late()))
        })
    }

    fn advise(&self, terms: Arc<Terms>, held: Held) -> Job<Advice> {
        Box::pin(async move {
            let late = || Failure::here("the server gives no advice in time");
            timeout(ADVICE_PATIENCE, advise(terms, held)).await.unwrap_or_else(|_| Err(late()))
        })
    }

    fn note(&self, terms: &Arc<Terms>, name: &str, trouble: Option<Trouble>) {
        let (terms, name) = (Arc::clone(terms), name.to_owned());
        spawn_blocking(move || {
            let noted = open_store(&terms)
                .map_err(|failure| failure.error)
                .and_then(|store| store.save_trouble(&name, trouble.as_ref()).map_err(|error| error.to_string()));
            if let Err(error) = noted {
                tracing::warn!(name, error, "what became of an order can't be noted");
            }
        });
    }
}

/// What the store has for these names, read before anybody is served. What can't be read is
/// told of when it is read again.
pub(in crate::lifecycle) async fn kept(terms: Option<Terms>, names: BTreeSet<Box<str>>) -> Vec<(Box<str>, Held)> {
    let Some(terms) = terms.filter(|_| !names.is_empty()) else { return Vec::new() };
    let read = move || load(&terms, names.into_iter().collect(), true).map(|loaded| loaded.found).unwrap_or_default();
    let found = spawn_blocking(read).await.unwrap_or_default();
    found.into_iter().filter_map(|(name, held, _)| Some((name, held?))).collect()
}

fn load(terms: &Terms, names: Vec<Box<str>>, locked: bool) -> Result<Loaded, Failure> {
    let store = open_store(terms)?;
    let mut loaded = Loaded { lock: if locked { None } else { store.lock()? }, ..Loaded::default() };
    for name in names {
        // One file that can't be read is as good as none, but is told of: it is not written
        // over before there is something better.
        let held = match store.certificate(&name) {
            Ok(Some(pem)) => Held::read(&name, &pem, &store.certificate_path(&name))
                .map(Some)
                .map_err(|error| format!("{name}: {error}")),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let held = held.unwrap_or_else(|error| {
            loaded.unreadable.push(error);
            None
        });
        let trouble = store.trouble(&name).unwrap_or_else(|error| {
            loaded.unreadable.push(error.to_string());
            None
        });
        loaded.found.push((name, held, trouble));
    }
    Ok(loaded)
}

async fn obtain(terms: Arc<Terms>, order: Order, challenges: Arc<Challenges>) -> Result<Held, Failure> {
    let Order { name, replaces, note } = order;
    let server = Server::open(Arc::clone(&terms)).await?;
    let (turn, noted, of) = (note.failures.saturating_sub(1), Arc::clone(&terms), name.clone());
    spawn_blocking(move || Ok::<_, Failure>(open_store(&noted)?.save_trouble(&of, Some(&note))?))
        .await
        .map_err(Failure::here)??;
    let replaces = replaces.and_then(|held| held.identifier());
    let pem = server.obtain(&name, turn, replaces, &challenges).await?;
    let unusable = |error| Failure { scope: Scope::Name, error, retry_after: None };
    let kept = move || {
        let store = open_store(&terms)?;
        let held = Held::read(&name, pem.as_bytes(), &store.certificate_path(&name)).map_err(unusable)?;
        store.save_certificate(&name, &pem)?;
        store.save_trouble(&name, None)?;
        Ok(held)
    };
    spawn_blocking(kept).await.map_err(Failure::here)?
}

async fn advise(terms: Arc<Terms>, held: Held) -> Result<Advice, Failure> {
    let none = Advice { window: None, again: schedule::ADVICE_PAUSE };
    let Some(identifier) = held.identifier() else { return Ok(none) };
    let server = Server::open(terms).await?;
    match server.account().await?.renewal_info(&identifier).await {
        Ok((info, again)) => {
            let window = info.suggested_window;
            Ok(Advice { window: Some((SystemTime::from(window.start), SystemTime::from(window.end))), again })
        }
        Err(Error::Unsupported(_)) => Ok(none),
        Err(error) => Err(Failure::here(error)),
    }
}
