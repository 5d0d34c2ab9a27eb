//! From nothing to READY=1.
//!
//! All that can be refused is refused before anything accepts: the configuration
//! as a whole, the passed descriptors, the addresses to bind. Names are looked up
//! before the workers start, since clients that wait in the backlog are better off
//! than clients that are told of an unresolved backend; but a name that does not
//! resolve holds the start up for [`names::PATIENCE`] at most, and is tried on.
//!
//! In an upgrade there is a process that serves already. Then this one stops short of what
//! only one of them can do, and does it once the other one says so: [`Started::open`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook_tokio::Signals;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::acme::{self, Acme, Network as AcmeNetwork, Terms};
use super::backends::Ledger;
use super::certificates::Certificates;
use super::checker::{Checker, Network};
use super::control::{Daemon, Fixed, Served};
use super::doors::{Doors, list};
use super::lookup::Lookups;
use super::metrics::{self, Metrics};
use super::notify::Notifier;
use super::resolver::Resolver;
use super::tickets::Tickets;
use super::upgrade::{Predecessor, Program, Upgrade, Word};
use super::watchdog::Watchdog;
use super::{names, reload, status};
use crate::admin::{self, Question, protocol::ListenerStatus};
use crate::config::{Config, LogFormat, Origin, Problems, Request};
use crate::proxy::workers::{WorkerDied, Workers};
use crate::state::{Departed, Generation};
use crate::telemetry::{self, Guard, Log, events};
use crate::tls;
use crate::transport::listeners::{ListenError, Listener, Passed};

/// Questions of admin clients that may wait for the control loop.
const QUESTIONS: usize = 8;

/// `EX_CONFIG` of `sysexits.h`.
const EX_CONFIG: u8 = 78;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The files or the environment; exit code 78.
    #[error("{}", .0.report("not started"))]
    Configuration(Problems),
    /// The listening sockets; exit code 78.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// The system lacks something; exit code 1.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A worker ended before it accepted; exit code 1.
    #[error("{0}")]
    Worker(WorkerDied),
}

impl Refusal {
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Refusal::Configuration(_) | Refusal::Listen(_) => EX_CONFIG,
            Refusal::System { .. } | Refusal::Worker(_) => 1,
        }
    }

    /// One line for `systemctl status`.
    pub(super) fn brief(&self) -> String {
        let whole = self.to_string();
        format!("not started: {}", whole.lines().next().unwrap_or_default())
    }
}

/// Tells stderr, and the log as an event unless somebody sits at a terminal.
///
/// Under systemd stderr is the journal too, and said there on purpose: a record's
/// message is constant, so that `journalctl -u` without `-x` would name no file.
pub(super) fn report(refusal: &Refusal) {
    let stderr = io::stderr();
    let _ = writeln!(stderr.lock(), "{refusal}");
    if !stderr.is_terminal() {
        error!(message_id = events::START_REFUSED, error = %refusal, "not started");
    }
}

/// Starts the log as the configuration wants it, or, without one, as its defaults do.
pub(super) fn log(config: Option<&Config>) -> io::Result<(Log, Guard)> {
    let daemon = config.map(|config| &config.daemon);
    let format = match daemon.map_or(LogFormat::Auto, |daemon| daemon.log_format) {
        LogFormat::Auto => telemetry::LogFormat::Auto,
        LogFormat::Journald => telemetry::LogFormat::Journald,
        LogFormat::Text => telemetry::LogFormat::Text,
        LogFormat::Json => telemetry::LogFormat::Json,
    };
    let level = daemon.map_or(tracing::Level::INFO, |daemon| daemon.log_level.into());
    telemetry::start(format, level.into())
}

/// Opens the line to systemd; without one the daemon runs all the same.
pub(super) fn notifier(environment: &BTreeMap<OsString, OsString>) -> Notifier {
    Notifier::open(environment).unwrap_or_else(|error| {
        warn!(%error, "the service manager can't be told of readiness");
        Notifier::default()
    })
}

/// What the start is made of.
pub(super) struct Parts {
    pub(super) request: Request,
    pub(super) program: Program,
    pub(super) config: Result<Config, Problems>,
    pub(super) signals: Signals,
    pub(super) log: Log,
}

/// A daemon that accepts, and has not said so to anybody.
struct Started {
    daemon: Daemon,
    admin: Option<UnixListener>,
    ask: mpsc::Sender<Question>,
    scraped: Vec<Listener>,
    scrapers: Vec<metrics::Bound>,
}

/// Starts everything, or says why not; the daemon that comes out accepts, and has said READY=1
/// on the line to systemd that comes with it. One that is to take over from another process
/// does what that one says.
///
/// # Errors
/// The exit code, once all have been told.
pub(super) async fn start(
    parts: Parts,
    mut passed: Result<Passed, ListenError>,
) -> Result<(Daemon, Notifier), ExitCode> {
    let hand_over = passed.as_mut().ok().and_then(|passed| passed.hand_over.take());
    let hand_over = hand_over.and_then(|line| {
        let predecessor = Predecessor::new(line);
        predecessor.inspect_err(|error| warn!(%error, "the process before can't be heard")).ok()
    });
    let environment = parts.request.environment.clone();
    // Systemd listens to the main process alone, and logs whatever another one says.
    let notifier = |main| if main { self::notifier(&environment) } else { Notifier::default() };
    match (prepare(parts, passed).await, hand_over) {
        (Ok(started), None) => {
            let mut notifier = notifier(true);
            Ok((started.open(&mut notifier), notifier))
        }
        (Ok(mut started), Some(mut predecessor)) => match predecessor.ready().await {
            Word::Go => {
                let mut notifier = notifier(true);
                started.daemon.tickets.doubt();
                let pid = predecessor.pid();
                info!(message_id = events::TOOK_OVER, predecessor = pid, "taken over from another process");
                started.daemon.predecessor = Some(predecessor);
                Ok((started.open(&mut notifier), notifier))
            }
            Word::Stay => {
                warn!("the process before goes on without this one");
                let patience = started.daemon.generation.config.daemon.drain_timeout;
                started.daemon.retire(super::upgrade::SILENCE, patience);
                Ok((started.daemon, Notifier::default()))
            }
        },
        (Err(refusal), hand_over) => {
            notifier(hand_over.is_none()).status(&refusal.brief());
            report(&refusal);
            if let Some(predecessor) = hand_over {
                predecessor.refuse(refusal.to_string()).await;
            }
            Err(ExitCode::from(refusal.exit_code()))
        }
    }
}

/// All that can be refused, and then the workers.
async fn prepare(parts: Parts, mut passed: Result<Passed, ListenError>) -> Result<Started, Refusal> {
    let Parts { request, program, config, signals, log } = parts;
    let began = Instant::now();
    let config = config.map_err(Refusal::Configuration)?;
    let left = passed.as_mut().ok().and_then(|passed| passed.ticket_keys.take());
    let tickets = Tickets::recover(left, tls::tickets::now());
    let loaded = Problems::join(tls::Doors::load(&config, tickets.keys(), None), tls::Clients::load(&config, None));
    let (certificates, clients) = loaded.map_err(Refusal::Configuration)?;
    let mut passed = passed?;
    let scraped = std::mem::take(&mut passed.metrics);
    let scrapers = if scraped.is_empty() { metrics::bind(&config, &[], &mut passed.bound) } else { Ok(Vec::new()) };
    let doors = Doors::open(passed, &config, &request.environment)?;
    let sockets = doors.to_pass().map_err(|error| Refusal::System { what: "can't keep the sockets", error })?;
    let scrapers = scrapers.map_err(Refusal::Configuration)?;
    info!(
        message_id = events::STARTED,
        version = env!("CARGO_PKG_VERSION"),
        config = %config.origin,
        backends = backends(&config),
        "started"
    );
    warn_of(&config, &certificates, &clients, doors.listeners.iter().any(Listener::is_tls));
    doors.announce();
    raise_descriptor_limit();

    let fixed = Fixed::of(&config.daemon, doors.passed);
    let mut resolver = Resolver::new(Lookups::at(&config.daemon.resolver));
    resolver.watch(&names::of(&config));
    names::look_up(&mut resolver, &config).await;
    let terms = Terms::of(&config, &request.environment, &doors.status());
    let kept = acme::kept(terms, config.acme_names()).await;
    let obtained = kept.iter().map(|(_, held)| Arc::clone(&held.pair)).collect();
    let certificates = certificates.with_obtained(&config, obtained).unwrap_or(certificates);
    let directory = resolver.directory();
    let generation = Generation::build_with(1, config, clients, &directory, None).with_doors(certificates);
    let generation = Arc::new(generation);
    generation.take_over(None);

    let threads = generation.workers();
    let mut workers = Workers::start(threads, &doors.listeners, Arc::clone(&generation), log.clone())
        .map_err(|error| Refusal::System { what: "can't start the workers", error })?;
    workers.accepting().await.map_err(Refusal::Worker)?;
    let (ask, questions) = mpsc::channel(QUESTIONS);
    let listeners = doors.status();

    let pulse = status::Pulse::new(workers.snapshot());
    let ledger = Ledger::new(workers.stirred());
    let acme = Acme::new(AcmeNetwork::new(workers.challenges()), SystemTime::now);
    let mut daemon = Daemon {
        began,
        fixed,
        threads,
        listeners,
        files: doors.files,
        sockets,
        program,
        admin: None,
        request,
        log,
        signals,
        questions,
        metrics: Metrics::new(),
        watchdog: Watchdog::new(sd_notify::watchdog_enabled()),
        workers,
        generation,
        departed: Departed::default(),
        resolver,
        change: names::Change::default(),
        reload: reload::Reload::default(),
        drain: None,
        upgrade: Upgrade::default(),
        predecessor: None,
        pulse,
        checker: Checker::new(Network),
        ledger,
        acme,
        certificates: Certificates::new(),
        tickets,
    };
    daemon.watch_backends();
    let config = Arc::clone(&daemon.generation.config);
    daemon.watch_certificates(&config);
    daemon.acme.know(kept);
    Ok(Started { daemon, admin: doors.admin, ask, scraped, scrapers })
}

impl Started {
    /// Does what only the main process can: answers on the admin socket and to scrapes, removes
    /// the files of sockets at its end, and tells systemd.
    fn open(self, notifier: &mut Notifier) -> Daemon {
        let Started { mut daemon, admin, ask, scraped, scrapers } = self;
        let config = Arc::clone(&daemon.generation.config);
        daemon.metrics.open(scraped, scrapers, &config);
        daemon.admin = admin.map(|socket| {
            Served(tokio::spawn(async move {
                if let Err(error) = admin::serve(socket, ask).await {
                    warn!(%error, "admin socket can't be served");
                }
            }))
        });
        for file in &mut daemon.files {
            file.own(true);
        }
        daemon.tell_of_certificates();
        daemon.tickets.keep(!daemon.generation.doors.is_empty(), tls::tickets::now(), notifier);
        notifier.ready(&daemon.live_line());
        info!(message_id = events::READY, workers = daemon.threads, "ready");
        if !notifier.connected() && io::stderr().is_terminal() {
            let text = greeting(&daemon.generation.config, &daemon.listeners);
            let _ = io::stderr().lock().write_all(text.as_bytes());
        }
        daemon
    }
}

/// What is allowed and yet seems unmeant. `listens` says whether somebody does for TLS.
pub(super) fn warn_of(config: &Config, certificates: &tls::Doors, clients: &tls::Clients, listens: bool) {
    if let Some(warning) = certificates.lack(config).filter(|_| listens) {
        warn!(message_id = events::CONFIG_WARNING, warning, "configuration deserves a look");
    }
    if config.daemon.acme && !listens {
        let warning = "certificates are obtained, but nobody listens for TLS here; PROXY_TLS_ADDRESS does, or a socket \
                       unit with FileDescriptorName=https";
        warn!(message_id = events::CONFIG_WARNING, warning, "configuration deserves a look");
    }
    for warning in config.warnings.iter().chain(certificates.warnings()).chain(clients.warnings()) {
        warn!(message_id = events::CONFIG_WARNING, warning, "configuration deserves a look");
    }
}

/// Every backend of every route, for the log.
fn backends(config: &Config) -> String {
    let targets = config.routes.iter().flat_map(|route| &route.settings.backend_address);
    let each: BTreeSet<String> = targets.map(|backend| backend.target.to_string()).collect();
    list(each)
}

/// Raises the soft limit of open files to the hard one: the soft one is low for the
/// sake of programs that use `select(2)`, which doorward does not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files can't be raised");
    }
}

/// A few lines for whoever starts it by hand.
fn greeting(config: &Config, listeners: &[ListenerStatus]) -> String {
    let addresses = listeners.iter().map(|listener| match listener.address.strip_prefix("unix:") {
        Some(_) => listener.address.clone(),
        None => format!("http://{}", listener.address),
    });
    let change = match &config.origin {
        Origin::File(path) | Origin::Line(path, _) => {
            format!("edit {}, then `kill -HUP {}`", path.display(), std::process::id())
        }
        Origin::Default | Origin::Environment => {
            String::from("write BACKEND_ADDRESS=127.0.0.1:3000 into ./config.env, or set it in the environment")
        }
    };
    format!(
        "\ndoorward {} is ready\n  listens on  {}\n  sends to    {}\n  change it   {change}\n  \
         learn more  `doorward explain`; Ctrl-C stops\n\n",
        env!("CARGO_PKG_VERSION"),
        addresses.collect::<Vec<_>>().join("  "),
        backends(config).replace(',', "  "),
    )
}
