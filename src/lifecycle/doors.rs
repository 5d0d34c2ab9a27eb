//! Where clients come in: the sockets that systemd passed, or those of
//! `PROXY_ADDRESS` and `PROXY_TLS_ADDRESS`, and the admin socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixListener;

use tracing::{info, warn};

use super::upgrade::{self, Passing};
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
    /// Whether the service manager passed that one.
    admin_passed: bool,
    /// Files to remove once nobody accepts any more.
    pub(super) files: Vec<SocketFile>,
    /// Whether the service manager passed the sockets for traffic.
    pub(super) passed: bool,
}

impl Doors {
    /// Takes the passed sockets, or binds those that the configuration names. The
    /// admin socket is bound only where the environment says so.
    pub(super) fn open(
        mut passed: Passed,
        config: &Config,
        environment: &BTreeMap<OsString, OsString>,
    ) -> Result<Doors, ListenError> {
        let (plain, tls) = (&config.daemon.proxy_address, &config.daemon.proxy_tls_address);
        let by_manager = !passed.traffic.is_empty();
        let mut bound = if by_manager {
            for (key, wanted, for_tls) in [("PROXY_ADDRESS", plain, false), ("PROXY_TLS_ADDRESS", tls, true)] {
                // A default that nobody wrote is contradicted by nothing.
                if config.setting(key).is_none() || !listeners::differ(&passed.traffic, wanted, for_tls) {
                    continue;
                }
                let local = passed.traffic.iter().filter(|listener| listener.is_tls() == for_tls);
                let local = list(local.map(Listener::local));
                let local = if local.is_empty() { "none" } else { &local };
                let warning = format!("{key}={} does not count: systemd passed {local}", list(wanted));
                warn!(message_id = events::CONFIG_WARNING, warning, "{key} differs from the passed sockets");
            }
            listeners::Bound { listeners: passed.traffic, files: Vec::new() }
        } else {
            listeners::bind(plain, tls, &mut passed.bound)?
        };
        let admin_passed = passed.admin.is_some();
        let admin = match (passed.admin, listeners::admin_path(environment)) {
            (Some(admin), _) => Some(admin),
            (None, Some(path)) => {
                let (admin, file) = listeners::bind_admin(&path, &mut passed.bound)?;
                bound.files.push(file);
                Some(admin)
            }
            (None, None) => None,
        };
        Ok(Doors { listeners: bound.listeners, admin, admin_passed, files: bound.files, passed: by_manager })
    }

    /// All of them once more, as a later process is to have them.
    pub(super) fn to_pass(&self) -> io::Result<Vec<Passing>> {
        let mut passing = upgrade::to_pass(&self.listeners, self.passed)?;
        if let Some(admin) = &self.admin {
            let name =
                if self.admin_passed { listeners::ADMIN.to_owned() } else { listeners::bound_as(listeners::ADMIN) };
            passing.push(Passing::new(&name, admin.try_clone()?));
        }
        Ok(passing)
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
