//! Where clients come in: the sockets that systemd passed, or those of
//! `PROXY_ADDRESS`, and the admin socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::net::UnixListener;

use tracing::{info, warn};

use crate::admin::protocol::ListenerStatus;
use crate::config::Config;
use crate::telemetry::events;
use crate::transport::listeners::{self, ListenError, Listener, Passed, SocketFile};

/// All listening sockets of the daemon.
#[derive(Debug)]
pub(super) struct Doors {
    /// For traffic; the workers take handles of their own.
    pub(super) listeners: Vec<Listener>,
    /// For `doorward status` and `doorward reload`.
    pub(super) admin: Option<UnixListener>,
    /// Files to remove once nobody accepts any more.
    pub(super) files: Vec<SocketFile>,
    /// Whether the service manager passed the sockets for traffic.
    pub(super) passed: bool,
}

impl Doors {
    /// Takes the passed sockets, or binds those that the configuration names. The
    /// admin socket is bound only where the environment says so.
    pub(super) fn open(
        passed: Passed,
        config: &Config,
        environment: &BTreeMap<OsString, OsString>,
    ) -> Result<Doors, ListenError> {
        let wanted = &config.daemon.proxy_address;
        let by_manager = !passed.traffic.is_empty();
        let mut bound = if by_manager {
            // A default that nobody wrote is contradicted by nothing.
            if config.setting("PROXY_ADDRESS").is_some() && listeners::differ(&passed.traffic, wanted) {
                warn!(
                    message_id = events::CONFIG_WARNING,
                    warning = format!(
                        "PROXY_ADDRESS={} does not count: systemd passed {}",
                        list(wanted),
                        list(passed.traffic.iter().map(Listener::local))
                    ),
                    "PROXY_ADDRESS differs from the passed sockets"
                );
            }
            listeners::Bound { listeners: passed.traffic, files: Vec::new() }
        } else {
            listeners::bind(wanted)?
        };
        let admin = match (passed.admin, listeners::admin_path(environment)) {
            (Some(admin), _) => Some(admin),
            (None, Some(path)) => {
                let (admin, file) = listeners::bind_admin(&path)?;
                bound.files.push(file);
                Some(admin)
            }
            (None, None) => None,
        };
        Ok(Doors { listeners: bound.listeners, admin, files: bound.files, passed: by_manager })
    }

    /// Tells the log where clients come in, and which of the two ways it happened.
    pub(super) fn announce(&self) {
        for listener in &self.listeners {
            info!(
                message_id = events::LISTENING,
                address = listener.local(),
                listener = &*listener.name,
                passed = self.passed,
                "{}",
                if self.passed {
                    "listening on a socket that systemd passed"
                } else {
                    "listening on a socket of its own"
                }
            );
        }
    }

    /// The same for the admin socket's clients.
    pub(super) fn status(&self) -> Vec<ListenerStatus> {
        let each = self.listeners.iter().map(|listener| ListenerStatus {
            name: listener.name.to_string(),
            address: listener.local(),
            passed: self.passed,
        });
        each.collect()
    }
}

/// Things as a configuration file lists them.
pub(super) fn list<T: ToString>(things: impl IntoIterator<Item = T>) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(",")
}
