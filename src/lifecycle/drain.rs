//! Leaving: no new connections, the busy ones finish, what remains is cut.
//!
//! An idle connection gets [`SILENCE`] before it is closed, since a request may be
//! on the wire already; no longer, because nobody serves meanwhile and every moment
//! of a stop is a stall for those who wait. All of it ends after `DRAIN_TIMEOUT`,
//! or at the next SIGTERM or SIGINT. After a hand-over, where another process serves
//! (`upgrade`), both are longer, and a signal is not the end but the beginning of
//! `DRAIN_TIMEOUT`. systemd is told every second that the stop is
//! alive, so that `TimeoutStopSec=` never cuts a drain that the configuration allows.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::control::Daemon;
use super::notify::Notifier;
use crate::telemetry::events;

/// How long an idle connection may still send a request.
const SILENCE: Duration = Duration::from_millis(250);

/// How long systemd waits for the next word: the loop gives one every second.
const NEXT_WORD: Duration = Duration::from_secs(10);

/// A drain under way.
#[derive(Debug)]
pub(super) struct Drain {
    /// When what remains is cut.
    pub(super) deadline: Instant,
}

impl Drain {
    /// How long systemd shall wait for the next word.
    pub(super) fn next_word(&self) -> Duration {
        NEXT_WORD
    }
}

impl Daemon {
    /// Stops accepting. Sockets that systemd passed stay open there, so new clients
    /// wait in their backlog; those bound here are closed and refuse.
    pub(super) fn begin_drain(&mut self, notifier: &mut Notifier, signal: &'static str) {
        let patience = self.generation.config.daemon.drain_timeout;
        info!(message_id = events::STOPPING, signal, timeout_s = patience.as_secs_f64(), "stopping");
        self.abandon_upgrade();
        self.retire(SILENCE, patience);
        if let Some(predecessor) = &self.predecessor {
            predecessor.stopping();
        }
        notifier.stopping(&self.live_line(), NEXT_WORD);
    }

    /// Takes nothing on any more, has idle connections close after this silence, and what is
    /// left end within `patience`.
    pub(super) fn retire(&mut self, silence: Duration, patience: Duration) {
        self.abandon_reload();
        self.acme.stop();
        self.sockets.clear();
        self.workers.drain(silence);
        self.files.clear();
        self.drain = Some(Drain { deadline: Instant::now() + patience });
    }

    /// Ends what is left, and says what that was.
    pub(super) fn cut(mut self, cause: &'static str) -> ExitCode {
        let left = self.workers.cut();
        if left.connections > 0 || left.requests > 0 || left.tunnels > 0 {
            warn!(
                message_id = events::DRAIN_CUT,
                cause,
                cut = left.connections,
                requests = left.requests,
                tunnels = left.tunnels,
                "connections cut at the end of the drain"
            );
        }
        info!(message_id = events::STOPPED, "stopped");
        ExitCode::SUCCESS
    }
}
