//! Upgrade: another process takes over, with all sockets, and this one drains beside it.
//!
//! ```text
//! this process                              the new one
//! asked → Starting ── launches ───────────→ reads its configuration, takes the sockets,
//!                                           starts its workers: both accept
//!           Telling ←───── ready, or why not ───────┘
//!           MAINPID=, BARRIER=1 to systemd
//!         Over ──────────── go ───────────→ READY=1, admin socket, metrics
//!         drains ←───────── hurry ──────────  when it is to be upgraded itself
//!         ends ····························→ knows by the end of the line between them
//! ```
//!
//! Until the new process is ready nothing is given away: whatever goes wrong with it, this one
//! serves on. Systemd hears of it from this one alone, since it listens to the main process, and
//! the new one speaks only after systemd has taken note. It is nobody's child by then
//! ([`launch`]), so that its end is noticed. When it ends before this one has drained, this one
//! ends at once: systemd starts a service again only when its last process is gone.
//!
//! Nobody waits for the end of this process once another one serves, so it has
//! `UPGRADE_DRAIN_TIMEOUT`, and not `DRAIN_TIMEOUT` as in a stop, where everybody does. It has no
//! more than that either as soon as somebody waits: the service stops, or the next upgrade is
//! asked for.
//!
//! One at a time: an upgrade waits for the process before to end, and for a reload; a reload is
//! refused meanwhile, as the new process may have read the files already.
//!
//! Source: `sd_notify(3)` on `MAINPID=` and `BARRIER=1`.

mod launch;
mod line;

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitCode;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, info};

use super::control::Daemon;
use super::notify::Notifier;
use super::tickets;
use crate::admin::protocol::{Answer, UpgradeStatus};
use crate::telemetry::events;
use crate::transport::listeners::{self, Listener};

pub use launch::launch;
pub(super) use launch::{Passing, Program};
use line::{Heard, Left, Successor};
pub(super) use line::{Predecessor, Word};

/// How long the new process may take until it is ready: names and certificates take their time.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// How long systemd may take to read what it was told. It will read it, so the upgrade goes on.
const TOLD_PATIENCE: Duration = Duration::from_secs(10);

/// How long an idle connection of a client may still send a request: nobody waits for the end
/// of this process.
pub(super) const SILENCE: Duration = Duration::from_secs(5);

/// `UPGRADE_DRAIN_TIMEOUT=auto`, unless `DRAIN_TIMEOUT` is longer: whoever has honest answers that
/// take an hour has said so there.
const DRAIN: Duration = Duration::from_secs(900);

/// A client of the admin socket that waits for the end of an upgrade.
type Waiter = oneshot::Sender<Answer>;

/// The upgrade under way, or wished for.
#[derive(Debug, Default)]
pub(super) struct Upgrade {
    stage: Stage,
    wanted: bool,
    waiters: Vec<Waiter>,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Starting(JoinHandle<Result<Successor, String>>),
    Telling {
        successor: Successor,
        told: UnixStream,
        until: Instant,
    },
    Over {
        successor: Successor,
        /// It has said so.
        stops: bool,
    },
}

/// What the loop hears of an upgrade.
#[derive(Debug)]
pub(super) enum Step {
    /// The new process is ready, or won't be.
    Started(Result<Successor, String>),
    /// Systemd knows of it.
    Told,
    /// It has said something, or has ended.
    Heard(Heard),
}

impl Upgrade {
    /// The next step of the upgrade under way; for ever when there is none. Nothing is lost
    /// when the future is dropped.
    pub(super) async fn step(&mut self) -> Step {
        match &mut self.stage {
            Stage::Idle => pending().await,
            Stage::Starting(start) => Step::Started(match start.await {
                Ok(started) => started,
                Err(fault) => Err(fault.to_string()),
            }),
            Stage::Telling { successor, told, until } => tokio::select! {
                // Systemd closes its end, having read all that came before; nobody sends anything.
                _ = timeout_at(*until, told.read_u8()) => Step::Told,
                () = successor.gone() => Step::Heard(Heard::Gone),
            },
            Stage::Over { successor, .. } => Step::Heard(successor.heard().await),
        }
    }

    /// Whether one is under way.
    pub(super) fn running(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// Whether another process serves now.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over { .. })
    }

    /// Whether one is wished for that has not begun.
    pub(super) fn waits(&self) -> bool {
        self.wanted
    }

    fn answer(&mut self, answer: &Answer) {
        for waiter in self.waiters.drain(..) {
            // A client that left meanwhile needs no answer.
            let _ = waiter.send(answer.clone());
        }
    }
}

impl Daemon {
    /// Has another process take over, now or as soon as that is possible.
    pub(super) fn ask_upgrade(&mut self, notifier: &Notifier, waiter: Option<Waiter>) {
        self.upgrade.waiters.extend(waiter);
        if self.drain.is_some() {
            self.upgrade.answer(&Answer::refused("doorward is stopping"));
        } else if !notifier.connected() {
            // Nobody would learn of the new process, or of its end.
            self.refuse_upgrade(
                "an upgrade needs systemd, which did not start this process (there is no NOTIFY_SOCKET)",
            );
        } else if !self.upgrade.running() {
            self.upgrade.wanted = true;
            self.begin_upgrade();
        }
    }

    /// Begins the upgrade that is wished for, unless something has to end first.
    pub(super) fn begin_upgrade(&mut self) {
        if !self.upgrade.wanted || self.upgrade.running() || self.drain.is_some() {
            return;
        }
        if let Some(predecessor) = &mut self.predecessor {
            if predecessor.hurry() {
                info!(
                    message_id = events::UPGRADE_WAITS,
                    predecessor = predecessor.pid(),
                    "the upgrade waits for the process before"
                );
            }
            return;
        }
        if self.reload.running() {
            debug!("the upgrade waits for the reload");
            return;
        }
        self.upgrade.wanted = false;
        match self.to_pass() {
            Ok(passing) => {
                info!(program = %self.program.path().display(), "upgrade begins");
                let start = Successor::start(self.program.clone(), passing, READY_PATIENCE);
                self.upgrade.stage = Stage::Starting(tokio::spawn(start));
            }
            Err(error) => self.refuse_upgrade(&format!("the sockets can't be passed: {error}")),
        }
    }

    /// All that the new process is given.
    fn to_pass(&self) -> io::Result<Vec<Passing>> {
        let mut passing = self.sockets.iter().map(Passing::try_clone).collect::<io::Result<Vec<_>>>()?;
        passing.extend(self.metrics.to_pass()?);
        if !self.generation.doors.is_empty() {
            let keys = tickets::parcel(&self.tickets.keys().to_bytes())?;
            passing.push(Passing::new(listeners::TICKET_KEYS, keys));
        }
        Ok(passing)
    }

    /// Goes on with the upgrade under way. When this process has to end at once, why, and how.
    pub(super) fn upgrade_step(&mut self, notifier: &mut Notifier, step: Step) -> Option<(&'static str, ExitCode)> {
        match (std::mem::take(&mut self.upgrade.stage), step) {
            (Stage::Starting(_), Step::Started(Ok(successor))) => match told(notifier, successor.pid()) {
                Ok(told) => {
                    let until = Instant::now() + TOLD_PATIENCE;
                    self.upgrade.stage = Stage::Telling { successor, told, until };
                }
                Err(error) => {
                    successor.dismiss();
                    self.refuse_upgrade(&format!("systemd can't be told: {error}"));
                }
            },
            (Stage::Starting(_), Step::Started(Err(reason))) => self.refuse_upgrade(&reason),
            (Stage::Telling { successor, .. }, Step::Told) => self.hand_over(successor),
            (Stage::Over { successor, stops }, Step::Heard(Heard::Hurry)) => {
                self.upgrade.stage = Stage::Over { successor, stops };
                self.hurry("upgrade");
            }
            (Stage::Over { successor, .. }, Step::Heard(Heard::Stopping)) => {
                self.upgrade.stage = Stage::Over { successor, stops: true };
                self.hurry("stop");
            }
            // The stop has lasted as long as it may.
            (Stage::Over { stops: true, .. }, Step::Heard(Heard::Gone)) => return Some(("stop", ExitCode::SUCCESS)),
            // The new process is the main one: systemd ends what is left of the service, and
            // starts it again. So it does where it has not read that yet, as this is a failure.
            (_, Step::Heard(Heard::Gone)) => {
                self.upgrade.answer(&Answer::refused("the new process ended as soon as it had taken over"));
                error!(message_id = events::SUCCESSOR_DIED, "the process that took over has ended");
                return Some(("successor", ExitCode::FAILURE));
            }
            (stage, step) => {
                debug!(?step, "a step of no upgrade");
                self.upgrade.stage = stage;
            }
        }
        None
    }

    /// The new process serves; this one leaves.
    fn hand_over(&mut self, successor: Successor) {
        // From here on whoever asks is answered there.
        self.admin = None;
        self.metrics.leave();
        for file in &mut self.files {
            file.own(false);
        }
        let status = UpgradeStatus {
            pid: successor.pid(),
            version: successor.version().to_owned(),
            from_pid: std::process::id(),
            from_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let settings = &self.generation.config.daemon;
        let patience = settings.upgrade_drain_timeout.unwrap_or_else(|| settings.drain_timeout.max(DRAIN));
        info!(
            message_id = events::HANDED_OVER,
            successor = status.pid,
            successor_version = status.version,
            timeout_s = patience.as_secs_f64(),
            "another process has taken over"
        );
        self.retire(SILENCE, patience);
        // It is the other one's to check backends, and to say how they are.
        self.checker.watch([]);
        successor.go();
        self.upgrade.answer(&Answer::upgraded(status));
        self.upgrade.stage = Stage::Over { successor, stops: false };
        self.tell_left();
    }

    /// Somebody waits for the end of this process, which has handed over: from now on it has
    /// `DRAIN_TIMEOUT`, unless it has less.
    pub(super) fn hurry(&mut self, cause: &'static str) {
        let Some(drain) = &mut self.drain else { return };
        let deadline = Instant::now() + self.generation.config.daemon.drain_timeout;
        if deadline < drain.deadline {
            drain.deadline = deadline;
            let left = deadline.saturating_duration_since(Instant::now());
            info!(cause, timeout_s = left.as_secs_f64(), "what is left has to end sooner");
        }
        self.tell_left();
    }

    /// Has the new process know what this one still has, which it says where it is asked.
    pub(super) fn tell_left(&mut self) {
        let (Stage::Over { successor, .. }, Some(drain)) = (&mut self.upgrade.stage, &self.drain) else { return };
        successor.left(Left { ends: drain.deadline, connections: self.workers.snapshot().connections_open });
    }

    fn refuse_upgrade(&mut self, reason: &str) {
        error!(
            message_id = events::UPGRADE_FAILED,
            error = reason,
            // Not constant as messages are: whoever sent a signal reads only this line.
            "upgrade failed: {}",
            reason.lines().next().unwrap_or_default()
        );
        self.upgrade.answer(&Answer::refused(format!("{reason}\nthe process before serves on")));
        self.upgrade.wanted = false;
    }

    /// The daemon stops: whoever waits for an upgrade hears so. A process that starts finds the
    /// line broken and is ended by systemd with the service.
    pub(super) fn abandon_upgrade(&mut self) {
        if let Stage::Starting(start) = &self.upgrade.stage {
            start.abort();
        }
        self.upgrade.stage = Stage::Idle;
        self.upgrade.wanted = false;
        self.upgrade.answer(&Answer::refused("doorward is stopping"));
    }

    /// The process before has drained.
    pub(super) fn predecessor_gone(&mut self) {
        self.predecessor = None;
        info!("the process before has ended");
        self.begin_upgrade();
    }
}

/// Names the main process to systemd; what comes back ends once it knows.
fn told(notifier: &mut Notifier, pid: u32) -> io::Result<UnixStream> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    notifier.resign(pid, theirs.into())?;
    Ok(ours)
}

/// Sockets as a later process is to have them: by their names when systemd passed them, else
/// as bound.
pub(super) fn to_pass<'a>(listeners: impl IntoIterator<Item = &'a Listener>, passed: bool) -> io::Result<Vec<Passing>> {
    let name =
        |listener: &Listener| if passed { listener.name.to_string() } else { listeners::bound_as(&listener.name) };
    let each = listeners.into_iter().map(|listener| {
        let descriptor: OwnedFd = listener.try_clone()?.socket.into();
        Ok(Passing::new(&name(listener), descriptor))
    });
    each.collect()
}
