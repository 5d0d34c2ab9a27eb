//! Metrics: what the daemon counts and knows, for a Prometheus to scrape.
//!
//! They are read on the control thread, once for each scrape, so no request ever waits for
//! one. [`families`] is the table of them, [`figures`] what they are made of, [`server`] who
//! answers. Where they are had is a setting like others: a reload opens new addresses before
//! it is taken, and closes those that are not wanted any more after it was.

mod families;
mod figures;
mod server;

use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::control::Daemon;
use super::doors::list;
use super::upgrade::{self, Passing};
use crate::admin::guests::{Door, receive};
use crate::admin::protocol::ListenerStatus;
use crate::config::{Config, ListenAddress, Problems};
use crate::telemetry::events;
use crate::transport::listeners::{self, Listener, Socket, SocketFile};

pub use families::markdown;
pub(super) use server::Scrape;

/// Scrapes that may wait for the control loop.
const SCRAPES: usize = server::PLACES;

/// Where scrapes come in, and those that wait for an answer.
pub(super) struct Metrics {
    /// Whether the service manager passed the sockets: then none is bound here.
    passed: bool,
    open: Vec<Open>,
    ask: mpsc::Sender<Scrape>,
    scrapes: mpsc::Receiver<Scrape>,
    places: Arc<Semaphore>,
}

/// A socket that is served; dropping it closes it.
struct Open {
    /// As it stands in the configuration; none for one that was passed.
    address: Option<ListenAddress>,
    /// A handle to pass on.
    listener: Listener,
    serving: JoinHandle<()>,
    /// Removed once nobody accepts any more.
    file: Option<SocketFile>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A socket that is bound and not served yet.
#[derive(Debug)]
pub(super) struct Bound {
    address: ListenAddress,
    listener: Listener,
    file: Option<SocketFile>,
}

/// Binds the addresses of `METRICS_ADDRESS` that are not among those that are `open`, or takes
/// them from those `inherited`.
///
/// # Errors
/// A problem for each that can't be bound.
pub(super) fn bind(
    config: &Config,
    open: &[ListenAddress],
    inherited: &mut Vec<Listener>,
) -> Result<Vec<Bound>, Problems> {
    let mut bound = Vec::new();
    let mut problems = Problems::default();
    for address in missing(&config.daemon.metrics_address, open) {
        match listeners::bind_metrics(address, inherited) {
            Ok((listener, file)) => bound.push(Bound { address: address.clone(), listener, file }),
            Err(error) => {
                let own = open.iter().find(|own| own.overlaps(address));
                let own = own.map_or_else(String::new, |own| {
                    format!(" (`{own}` is open now; to change one for the other, turn both off by a reload first)")
                });
                if let Some(setting) = config.setting("METRICS_ADDRESS") {
                    problems.push(setting.problem(format!("{error}{own}"), Some(&address.to_string())));
                }
            }
        }
    }
    if problems.is_empty() { Ok(bound) } else { Err(problems) }
}

/// Those of `wanted` that `open` does not have, one for one: port 0 may stand there twice.
fn missing<'a>(wanted: &'a [ListenAddress], open: &[ListenAddress]) -> Vec<&'a ListenAddress> {
    let mut open: Vec<&ListenAddress> = open.iter().collect();
    let is_missing = |address: &&ListenAddress| match open.iter().position(|known| known == address) {
        Some(place) => {
            open.swap_remove(place);
            false
        }
        None => true,
    };
    wanted.iter().filter(is_missing).collect()
}

impl Metrics {
    /// Nowhere yet.
    pub(super) fn new() -> Metrics {
        let (ask, scrapes) = mpsc::channel(SCRAPES);
        let places = Arc::new(Semaphore::new(server::PLACES));
        Metrics { passed: false, open: Vec::new(), ask, scrapes, places }
    }

    /// Serves the sockets that were `passed`; `config` may say otherwise, and does not count
    /// then. Without any, those that were `bound` as it says.
    pub(super) fn open(&mut self, passed: Vec<Listener>, bound: Vec<Bound>, config: &Config) {
        self.passed = !passed.is_empty();
        let wanted = &config.daemon.metrics_address;
        if self.passed && !wanted.is_empty() && listeners::differ(&passed, wanted, false) {
            let local = list(passed.iter().map(Listener::local));
            let warning = format!("METRICS_ADDRESS={} does not count: systemd passed {local}", list(wanted));
            warn!(message_id = events::CONFIG_WARNING, warning, "METRICS_ADDRESS differs from the passed sockets");
        }
        for listener in passed {
            self.serve(listener, None, None);
        }
        self.adopt(wanted, bound);
    }

    /// Where scrapes come in.
    pub(super) fn listeners(&self) -> impl Iterator<Item = ListenerStatus> {
        self.open.iter().map(|open| ListenerStatus {
            name: listeners::METRICS.to_owned(),
            address: open.listener.local(),
            passed: self.passed,
        })
    }

    /// What is open and was bound here; none where sockets were passed, so that nothing is to be.
    pub(super) fn bound(&self) -> Option<Vec<ListenAddress>> {
        (!self.passed).then(|| self.open.iter().filter_map(|open| open.address.clone()).collect())
    }

    /// Serves what was `bound`, and closes what is not `wanted` any more.
    pub(super) fn adopt(&mut self, wanted: &[ListenAddress], bound: Vec<Bound>) {
        if self.passed {
            return;
        }
        let mut wanted: Vec<&ListenAddress> = wanted.iter().collect();
        self.open.retain(|open| {
            let Some(address) = &open.address else { return true };
            let place = wanted.iter().position(|wanted| *wanted == address);
            if let Some(place) = place {
                wanted.swap_remove(place);
            } else {
                info!(%address, listener = listeners::METRICS, "not listening any more");
            }
            place.is_some()
        });
        for Bound { address, listener, mut file } in bound {
            if let Some(file) = &mut file {
                file.own(true);
            }
            self.serve(listener, Some(address), file);
        }
    }

    /// What a later process is to have of them.
    pub(super) fn to_pass(&self) -> io::Result<Vec<Passing>> {
        upgrade::to_pass(self.open.iter().map(|open| &open.listener), self.passed)
    }

    /// Receives nobody any more, since another process does.
    pub(super) fn leave(&mut self) {
        for mut open in self.open.drain(..) {
            if let Some(file) = &mut open.file {
                file.own(false);
            }
        }
    }

    fn serve(&mut self, listener: Listener, address: Option<ListenAddress>, file: Option<SocketFile>) {
        info!(
            message_id = events::LISTENING,
            address = listener.local(),
            listener = listeners::METRICS,
            passed = self.passed,
            "{}",
            if self.passed {
                "listening for scrapes on a socket that systemd passed"
            } else {
                "listening for scrapes on a socket of its own"
            }
        );
        let (places, ask) = (Arc::clone(&self.places), self.ask.clone());
        let served = match listener.try_clone() {
            Ok(served) => served.socket,
            Err(error) => {
                warn!(%error, "metrics can't be served");
                return;
            }
        };
        let serving = tokio::spawn(async move {
            match served {
                Socket::Tcp(socket) => attend(TcpListener::from_std(socket), places, ask).await,
                Socket::Unix(socket) => attend(UnixListener::from_std(socket), places, ask).await,
            }
        });
        self.open.push(Open { address, listener, serving, file });
    }

    /// The next scrape. Nothing is lost when the future is dropped.
    pub(super) async fn scraped(&mut self) -> Scrape {
        match self.scrapes.recv().await {
            Some(scrape) => scrape,
            // Ends only without a sender, and one is held here.
            None => std::future::pending().await,
        }
    }
}

async fn attend(door: io::Result<impl Door>, places: Arc<Semaphore>, ask: mpsc::Sender<Scrape>) {
    match door {
        Ok(door) => {
            let serve = |scraper| server::serve(scraper, ask.clone());
            receive(door, places, listeners::METRICS, &server::full(), serve).await;
        }
        Err(error) => warn!(%error, "metrics can't be served"),
    }
}

impl Daemon {
    /// Answers a scrape.
    pub(super) fn expose(&self, scrape: Scrape) {
        match families::exposition(self.figures(), scrape.format) {
            // Who has left meanwhile needs no answer.
            Ok(metrics) => drop(scrape.answer.send(metrics)),
            Err(error) => warn!(%error, "metrics can't be written"),
        }
    }
}
