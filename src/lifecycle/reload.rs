//! Reload: read anew, check all of it, swap in one step; or change nothing.
//!
//! ```text
//! asked → Reading (a thread of the blocking pool) ── refused ──────────────┐
//!           └ sound → Resolving (names that are new, at most 2 s)          │
//!                       └ adopted by every worker ──→ READY=1, answers ←───┘
//! ```
//!
//! systemd is told RELOADING=1 at the beginning and READY=1 at the end, whatever
//! came of it. Who asks while a reload runs gets a further one afterwards, since the
//! files may have changed after they were read; any number of such wishes is one.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, error, info, warn};

use super::control::Daemon;
use super::doors::list;
use super::lookup::Lookups;
use super::metrics::{self, Bound};
use super::names;
use super::notify::Notifier;
use super::start::warn_of;
use crate::admin::protocol::{Answer, ReloadStatus};
use crate::config::{self, Config, ListenAddress, Problems};
use crate::proxy::workers::WorkerDied;
use crate::state::{Generation, Past};
use crate::telemetry::events;
use crate::tls;
use crate::transport::listeners;

/// How long reading the files may take; a dead network file system takes for ever.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// A client of the admin socket that waits for the end of a reload.
type Waiter = oneshot::Sender<Answer>;

/// The reload under way, the one wished for after it, and how the last one ended.
#[derive(Debug, Default)]
pub(super) struct Reload {
    stage: Stage,
    waiters: Vec<Waiter>,
    again: Option<Vec<Waiter>>,
    last: Option<ReloadStatus>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Reading(JoinHandle<Result<Loaded, Problems>>, Instant),
    Resolving(Box<Loaded>, Instant),
}

/// A configuration with the certificates that it names.
#[derive(Debug)]
pub(super) struct Loaded {
    config: Config,
    doors: tls::Doors,
    clients: tls::Clients,
    metrics: Vec<Bound>,
}

impl Loaded {
    /// Reads both. Certificates that `past` has are kept where what is new has expired.
    /// Addresses of metrics are bound that are new, unless none is to be.
    fn read(request: &config::Request, past: &Generation, bound: Option<&[ListenAddress]>) -> Result<Loaded, Problems> {
        let Generation { doors, clients, .. } = past;
        let config = config::load(request)?;
        let doors = tls::Doors::load(&config, doors.keys(), Some(doors));
        let (doors, clients) = Problems::join(doors, tls::Clients::load(&config, Some(clients)))?;
        let metrics = bound.map_or_else(|| Ok(Vec::new()), |bound| metrics::bind(&config, bound, &mut Vec::new()))?;
        Ok(Loaded { config, doors, clients, metrics })
    }
}

/// What the loop hears of a reload.
#[derive(Debug)]
pub(super) enum Step {
    /// The files were read and checked, or could not be in time.
    Read(Result<Box<Loaded>, Unread>),
    /// Names had time enough.
    Names,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    /// It is wrong.
    #[error("{0}")]
    Wrong(Problems),
    /// It can't be read in time.
    #[error("the files can't be read within {} s", READ_PATIENCE.as_secs())]
    Late,
    /// Reading it failed in a way that it should not: a fault in doorward.
    #[error("reading the files failed: {0}")]
    Fault(tokio::task::JoinError),
}

impl Reload {
    /// The next step of the reload under way; for ever when there is none.
    pub(super) async fn step(&mut self) -> Step {
        match &mut self.stage {
            Stage::Idle => pending().await,
            Stage::Reading(reading, until) => Step::Read(match timeout_at(*until, reading).await {
                Ok(Ok(Ok(loaded))) => Ok(Box::new(loaded)),
                Ok(Ok(Err(problems))) => Err(Unread::Wrong(problems)),
                Ok(Err(fault)) => Err(Unread::Fault(fault)),
                Err(_) => Err(Unread::Late),
            }),
            Stage::Resolving(_, until) => {
                sleep_until(*until).await;
                Step::Names
            }
        }
    }

    /// Whether a sound one waits for names.
    pub(super) fn resolving(&self) -> bool {
        matches!(self.stage, Stage::Resolving(..))
    }

    /// Whether one is under way.
    pub(super) fn running(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// How the last one ended.
    pub(super) fn last(&self) -> Option<&ReloadStatus> {
        self.last.as_ref()
    }

    /// The first line of why the last one was refused, if it was.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.last.as_ref()?.error.as_deref()?.lines().next()
    }

    fn end(&mut self, last: ReloadStatus, answer: &Answer) {
        self.stage = Stage::Idle;
        self.last = Some(last);
        for waiter in self.waiters.drain(..) {
            // A client that left meanwhile needs no answer.
            let _ = waiter.send(answer.clone());
        }
    }
}

impl Daemon {
    /// Reloads now, or once more after the reload that runs.
    pub(super) fn ask_reload(&mut self, notifier: &mut Notifier, waiter: Option<Waiter>) {
        if self.drain.is_some() {
            debug!("no reload while stopping");
            if let Some(waiter) = waiter {
                let _ = waiter.send(Answer::refused("doorward is stopping"));
            }
        } else if self.upgrade.running() {
            // The new process may have read the files already.
            warn!("no reload while another process takes over; ask again when it has");
            if let Some(waiter) = waiter {
                let _ = waiter.send(Answer::refused("another process is taking over; ask again when it has"));
            }
        } else if self.reload.running() {
            self.reload.again.get_or_insert_default().extend(waiter);
        } else {
            self.reload.waiters.extend(waiter);
            self.begin_reload(notifier);
        }
    }

    fn begin_reload(&mut self, notifier: &mut Notifier) {
        notifier.reloading();
        let (request, past) = (self.request.clone(), Arc::clone(&self.generation));
        let bound = self.metrics.bound();
        let reading = tokio::task::spawn_blocking(move || Loaded::read(&request, &past, bound.as_deref()));
        self.reload.stage = Stage::Reading(reading, Instant::now() + READ_PATIENCE);
    }

    /// Goes on with the reload under way.
    pub(super) async fn reload_step(&mut self, notifier: &mut Notifier, step: Step) -> Result<(), WorkerDied> {
        match step {
            Step::Read(Ok(loaded)) => {
                let config = &loaded.config;
                let mut wanted = names::of(config);
                wanted.extend(names::of(&self.generation.config));
                self.resolver.watch(&wanted);
                // From here on nothing refuses it any more, so its own name servers are asked.
                if config.daemon.resolver != self.generation.config.daemon.resolver {
                    self.resolver.ask(Lookups::at(&config.daemon.resolver));
                }
                self.reload.stage = Stage::Resolving(loaded, Instant::now() + names::PATIENCE);
                self.adopt_if_settled(notifier).await
            }
            Step::Read(Err(unread)) => {
                self.refuse(notifier, &unread);
                Ok(())
            }
            Step::Names => self.adopt(notifier).await,
        }
    }

    /// Swaps the generations, if all that is waited for is names and each was looked up.
    pub(super) async fn adopt_if_settled(&mut self, notifier: &mut Notifier) -> Result<(), WorkerDied> {
        if self.reload.resolving() && self.resolver.settled() {
            return self.adopt(notifier).await;
        }
        Ok(())
    }

    /// Swaps the generations: from here on new requests meet the new one.
    async fn adopt(&mut self, notifier: &mut Notifier) -> Result<(), WorkerDied> {
        let Stage::Resolving(loaded, _) = std::mem::take(&mut self.reload.stage) else { return Ok(()) };
        let Loaded { config, doors, clients, metrics } = *loaded;
        self.metrics.adopt(&config.daemon.metrics_address, metrics);
        let number = self.generation.number.saturating_add(1);
        let before = Arc::clone(&self.generation.config);
        self.watch_certificates(&config);
        let doors = self.with_obtained(&config, doors);
        let past = Past { generation: &self.generation, departed: &self.departed };
        let directory = self.resolver.directory();
        let generation = Generation::build_with(number, config, clients, &directory, Some(past)).with_doors(doors);
        self.take_up(generation).await?;
        self.log.set_level(tracing::Level::from(self.generation.config.daemon.log_level).into());
        self.resolver.watch(&names::of(&self.generation.config));
        info!(message_id = events::RELOADED, generation = number, "reloaded");
        self.tell_of_new_names(&before);
        let listens = self.listeners.iter().any(|listener| listener.name == listeners::HTTPS);
        warn_of(&self.generation.config, &self.generation.doors, &self.generation.clients, listens);
        self.warn_of_fixed();
        self.tell_of_certificates();
        self.reload.end(ReloadStatus::now(None), &Answer::reloaded(number));
        self.end_reload(notifier);
        Ok(())
    }

    fn refuse(&mut self, notifier: &mut Notifier, unread: &Unread) {
        let report = match unread {
            Unread::Late | Unread::Fault(_) => {
                format!("{unread}; still serving generation {}", self.generation.number)
            }
            Unread::Wrong(problems) => problems.report(&format!("still serving generation {}", self.generation.number)),
        };
        error!(
            message_id = events::RELOAD_REFUSED,
            error = report,
            generation = self.generation.number,
            // Not constant as messages are: whoever sent a signal reads only this line.
            "reload refused: {}",
            report.lines().next().unwrap_or_default()
        );
        self.reload.end(ReloadStatus::now(Some(report.clone())), &Answer::refused(report));
        self.end_reload(notifier);
    }

    fn end_reload(&mut self, notifier: &mut Notifier) {
        let line = self.live_line();
        notifier.ready(&line);
        if let Some(waiters) = self.reload.again.take() {
            self.reload.waiters = waiters;
            self.begin_reload(notifier);
        } else {
            self.begin_upgrade();
        }
    }

    /// The daemon stops: whoever waits for a reload hears so.
    pub(super) fn abandon_reload(&mut self) {
        let reload = std::mem::take(&mut self.reload);
        for waiter in reload.waiters.into_iter().chain(reload.again.unwrap_or_default()) {
            let _ = waiter.send(Answer::refused("doorward is stopping"));
        }
        self.reload.last = reload.last;
    }

    /// Names what the new configuration wants and a running process can't do.
    fn warn_of_fixed(&self) {
        let wanted = &self.generation.config.daemon;
        let warn = |key, wanted: String| {
            warn!(
                message_id = events::CONFIG_WARNING,
                warning = format!("{key}={wanted} takes effect with the next restart"),
                "a reload can't change this"
            );
        };
        if let Some([plain, tls]) = &self.fixed.addresses {
            for (key, bound, wanted) in
                [("PROXY_ADDRESS", plain, &wanted.proxy_address), ("PROXY_TLS_ADDRESS", tls, &wanted.proxy_tls_address)]
            {
                if bound != wanted {
                    warn(key, list(wanted));
                }
            }
        }
        let text = |key| self.generation.config.setting(key).map_or("auto", |setting| &setting.text).to_owned();
        if self.fixed.workers != wanted.workers {
            warn("WORKERS", text("WORKERS"));
        }
        if self.fixed.log_format != wanted.log_format {
            warn("LOG_FORMAT", text("LOG_FORMAT"));
        }
    }
}
