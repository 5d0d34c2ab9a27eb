//! The control loop: one value in, one reaction, and the next.
//!
//! Every reaction is short. What takes time (reading files, looking up names,
//! draining) goes on elsewhere and comes back as a [`Control`] of its own, so the
//! loop turns, and with it the watchdog, the status line and the admin socket. The
//! one wait inside a reaction is for the workers to take a new generation, which
//! each does at its next turn.

use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_core::Stream as _;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook_tokio::Signals;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{debug, error, info};

use super::acme::{Acme, Network as AcmeNetwork, News};
use super::backends::Ledger;
use super::certificates::{Certificates, Looked};
use super::checker::{Checked, Checker, Network};
use super::doors::list;
use super::drain::Drain;
use super::lookup::Lookups;
use super::metrics::{Metrics, Scrape};
use super::names::Change;
use super::notify::Notifier;
use super::reload::{self, Reload};
use super::resolver::{Resolution, Resolver};
use super::status::Pulse;
use super::tickets::Tickets;
use super::upgrade::{self, Passing, Predecessor, Program, Upgrade};
use super::watchdog::{Verdict, Watchdog};
use crate::admin::Question;
use crate::admin::protocol::{Answer, Command, ListenerStatus};
use crate::config::{Auto, Daemon as Settings, ListenAddress, LogFormat, Request};
use crate::proxy::workers::{WorkerDied, Workers};
use crate::state::{Departed, Generation};
use crate::telemetry::{Log, events};
use crate::tls;
use crate::transport::listeners::SocketFile;

/// How often the status line is worked out.
const TICK: Duration = Duration::from_secs(1);

/// How long a process that was taken over from waits at its end for who asked it something.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// All that can happen to the daemon.
#[derive(Debug)]
pub(super) enum Control {
    /// SIGHUP.
    Hangup,
    /// SIGTERM or SIGINT: the first one drains, the next one cuts.
    Stop(&'static str),
    /// SIGUSR2.
    Upgrade,
    /// A step of an upgrade is done.
    Upgrading(upgrade::Step),
    /// The process that this one took over from has ended.
    PredecessorGone,
    /// A signal that has no meaning yet.
    Unused(i32),
    /// A client of the admin socket asks.
    Question(Question),
    /// Somebody wants the metrics.
    Scrape(Scrape),
    /// A step of a reload is done.
    Reload(reload::Step),
    /// There is news of a name.
    Resolved(Resolution),
    /// A backend was checked.
    Checked(Checked),
    /// There is news of a certificate.
    Certificate(Box<News>),
    /// A worker has seen something of a backend.
    Stirred,
    /// The files of certificates were looked at.
    Looked(Box<Looked>),
    /// Names lead elsewhere, and that is to take effect.
    Moved,
    /// Time to work out the status line.
    Tick,
    /// Time to see whether the workers turn over.
    Round,
    /// Every connection has ended.
    Drained,
    /// `DRAIN_TIMEOUT` is over, or `UPGRADE_DRAIN_TIMEOUT` after a hand-over.
    DrainLate,
    /// A worker thread ended unasked.
    WorkerDied(WorkerDied),
}

/// What a running daemon can't change, as it was at the start.
#[derive(Debug)]
pub(super) struct Fixed {
    /// Those for plain traffic and those for TLS; none when systemd passed the sockets.
    pub(super) addresses: Option<[Vec<ListenAddress>; 2]>,
    pub(super) workers: Auto<usize>,
    pub(super) log_format: LogFormat,
}

impl Fixed {
    pub(super) fn of(settings: &Settings, passed: bool) -> Fixed {
        Fixed {
            addresses: (!passed).then(|| [settings.proxy_address.clone(), settings.proxy_tls_address.clone()]),
            workers: settings.workers,
            log_format: settings.log_format,
        }
    }
}

/// A daemon that serves.
pub(super) struct Daemon {
    pub(super) began: Instant,
    pub(super) fixed: Fixed,
    pub(super) threads: usize,
    pub(super) listeners: Vec<ListenerStatus>,
    pub(super) files: Vec<SocketFile>,
    /// The sockets once more, but for those of metrics, to pass them on.
    pub(super) sockets: Vec<Passing>,
    pub(super) program: Program,
    /// Who asks on the admin socket; none without one, or when another process answers.
    pub(super) admin: Option<Served>,
    pub(super) request: Request,
    pub(super) log: Log,
    pub(super) signals: Signals,
    pub(super) questions: mpsc::Receiver<Question>,
    pub(super) metrics: Metrics,
    pub(super) watchdog: Watchdog,
    pub(super) workers: Workers,
    pub(super) generation: Arc<Generation>,
    /// Backends that it has no more.
    pub(super) departed: Departed,
    pub(super) resolver: Resolver<Lookups>,
    pub(super) change: Change,
    pub(super) reload: Reload,
    pub(super) drain: Option<Drain>,
    pub(super) upgrade: Upgrade,
    pub(super) predecessor: Option<Predecessor>,
    pub(super) pulse: Pulse,
    pub(super) checker: Checker<Network>,
    pub(super) ledger: Ledger,
    pub(super) acme: Acme<AcmeNetwork>,
    pub(super) certificates: Certificates,
    pub(super) tickets: Tickets,
}

/// A task that serves; dropping it ends that.
#[derive(Debug)]
pub(super) struct Served(pub(super) JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Daemon {
    /// Serves until it is told to stop and has stopped.
    pub(super) async fn serve(mut self, mut notifier: Notifier) -> ExitCode {
        let mut tick = every(TICK);
        let mut round = every(self.watchdog.period());
        loop {
            match self.next(&mut tick, &mut round).await {
                Control::Hangup => self.ask_reload(&mut notifier, None),
                Control::Question(Question { command: Command::Status, answer }) => {
                    // A client that left meanwhile needs no answer.
                    let _ = answer.send(Answer::status(self.status()));
                }
                Control::Question(Question { command: Command::Reload, answer }) => {
                    self.ask_reload(&mut notifier, Some(answer));
                }
                Control::Question(Question { command: Command::Upgrade, answer }) => {
                    self.ask_upgrade(&notifier, Some(answer));
                }
                Control::Upgrade => self.ask_upgrade(&notifier, None),
                Control::Upgrading(step) => {
                    if let Some((cause, code)) = self.upgrade_step(&mut notifier, step) {
                        self.cut(cause);
                        return code;
                    }
                }
                Control::PredecessorGone => self.predecessor_gone(),
                Control::Scrape(scrape) => self.expose(scrape),
                Control::Reload(step) => {
                    if let Err(died) = self.reload_step(&mut notifier, step).await {
                        return worker_died(&died);
                    }
                }
                Control::Resolved(resolution) => {
                    self.name_resolved(&resolution);
                    if let Err(died) = self.adopt_if_settled(&mut notifier).await {
                        return worker_died(&died);
                    }
                }
                Control::Moved => {
                    if let Err(died) = self.move_backends().await {
                        return worker_died(&died);
                    }
                }
                Control::Checked(checked) => self.backend_checked(checked),
                Control::Certificate(news) => {
                    if let Err(died) = self.certificate_news(*news).await {
                        return worker_died(&died);
                    }
                }
                Control::Stirred => self.look_at_backends(),
                Control::Looked(looked) => {
                    if let Err(died) = self.certificates_looked(*looked).await {
                        return worker_died(&died);
                    }
                }
                Control::Tick => self.tick(&mut notifier),
                Control::Round => self.round(&mut notifier),
                // It is on its way, and systemd tells all processes of a service that stops, some of
                // them twice.
                Control::Stop(signal) if self.upgrade.is_over() => self.hurry(signal),
                Control::Stop(signal) if self.drain.is_none() => self.begin_drain(&mut notifier, signal),
                Control::Stop(signal) => return self.cut(signal),
                Control::DrainLate => return self.cut("timeout"),
                Control::Drained => {
                    if self.upgrade.is_over() {
                        self.hear_out().await;
                    }
                    info!(message_id = events::STOPPED, "stopped");
                    return ExitCode::SUCCESS;
                }
                Control::WorkerDied(died) => return worker_died(&died),
                Control::Unused(signal) => debug!(signal, "signal without a meaning ignored"),
            }
        }
    }

    /// Lets those who asked on the admin socket have their answers, that of the upgrade not
    /// least: each has a copy of what questions come by until it has gone.
    async fn hear_out(&mut self) {
        self.admin = None;
        let _ = timeout(LAST_WORDS, async { while self.questions.recv().await.is_some() {} }).await;
    }

    /// Waits for what happens next. Each branch may be dropped and polled anew
    /// without losing anything.
    async fn next(&mut self, tick: &mut Interval, round: &mut Interval) -> Control {
        // What drains stays where it is: no names are followed, and nothing is adopted any more.
        // A reload that waits for names takes in all that are known.
        let serving = self.drain.is_none();
        tokio::select! {
            signal = next_signal(&mut self.signals) => match signal {
                SIGHUP => Control::Hangup,
                SIGTERM => Control::Stop("SIGTERM"),
                SIGINT => Control::Stop("SIGINT"),
                SIGUSR2 => Control::Upgrade,
                other => Control::Unused(other),
            },
            Some(question) = self.questions.recv() => Control::Question(question),
            scrape = self.metrics.scraped() => Control::Scrape(scrape),
            step = self.reload.step() => Control::Reload(step),
            step = self.upgrade.step() => Control::Upgrading(step),
            resolution = self.resolver.next(), if serving => Control::Resolved(resolution),
            checked = self.checker.next() => Control::Checked(checked),
            news = self.acme.next(), if serving => Control::Certificate(Box::new(news)),
            () = self.ledger.stirred() => Control::Stirred,
            looked = self.certificates.looked(&self.generation), if serving => Control::Looked(Box::new(looked)),
            () = self.change.due(), if serving && !self.reload.resolving() => Control::Moved,
            _ = tick.tick() => Control::Tick,
            _ = round.tick() => Control::Round,
            control = workers(&mut self.workers, self.drain.as_ref(), &mut self.predecessor) => control,
        }
    }

    fn tick(&mut self, notifier: &mut Notifier) {
        self.ledger.second(&self.generation, self.workers.millis());
        self.look_at_backends();
        self.tickets.keep(!self.generation.doors.is_empty(), tls::tickets::now(), notifier);
        self.pulse.take(self.workers.snapshot());
        let line = self.live_line();
        notifier.status(&line);
        if let Some(drain) = &self.drain {
            notifier.extend(drain.next_word());
        }
        self.tell_left();
    }

    fn round(&mut self, notifier: &mut Notifier) {
        let stuck = self.workers.stuck();
        // Asks them to turn over again until the next round.
        let turned = self.workers.turned();
        match self.watchdog.round(turned) {
            Verdict::Feed => notifier.watchdog(),
            Verdict::Recovered => {
                info!("every worker turns over again");
                notifier.watchdog();
            }
            Verdict::Wait => debug!(worker = list(&stuck), "waiting for a worker to turn over"),
            Verdict::Stuck => {
                error!(message_id = events::WORKER_STUCK, worker = list(&stuck), "a worker does not turn over");
            }
        }
    }
}

/// The end of the workers: asked for, overdue, or unasked; and that of the process before. In a
/// drain that one ends first: systemd allows a stop its time only as long as the main process
/// asks for it.
async fn workers(workers: &mut Workers, drain: Option<&Drain>, predecessor: &mut Option<Predecessor>) -> Control {
    let Some(drain) = drain else {
        return tokio::select! {
            died = workers.died() => Control::WorkerDied(died),
            () = gone(predecessor) => Control::PredecessorGone,
        };
    };
    let drained = async {
        workers.drained().await?;
        if predecessor.is_some() {
            gone(predecessor).await;
        }
        Ok(())
    };
    tokio::select! {
        drained = drained => match drained {
            Ok(()) => Control::Drained,
            Err(died) => Control::WorkerDied(died),
        },
        () = sleep_until(drain.deadline) => Control::DrainLate,
    }
}

/// Resolves when the process before this one has ended; never where there was none.
async fn gone(predecessor: &mut Option<Predecessor>) {
    match predecessor {
        Some(predecessor) => predecessor.gone().await,
        None => pending().await,
    }
}

fn worker_died(died: &WorkerDied) -> ExitCode {
    error!(message_id = events::WORKER_DIED, error = %died, "a worker died");
    ExitCode::FAILURE
}

async fn next_signal(signals: &mut Signals) -> i32 {
    match poll_fn(|cx| Pin::new(&mut *signals).poll_next(cx)).await {
        Some(signal) => signal,
        // Ends only when its handle is closed, which nobody does.
        None => pending().await,
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    // After a pause the next turn comes a whole period later, not in a burst.
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
