//! What the daemon makes of certificates: who wants them, what is told of them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{error, info, warn};

use super::{News, Report, Terms};
use crate::admin::protocol::{AutomaticStatus, ListenerStatus};
use crate::config::{AcmeChallenge, Auto, Config, FileSource};
use crate::lifecycle::control::Daemon;
use crate::proxy::workers::WorkerDied;
use crate::telemetry::events;
use crate::tls::Doors;
use crate::transport::listeners::HTTPS;

impl Terms {
    /// What `config` says, in this environment and with these listeners; none without
    /// `ACME=on`.
    pub(in crate::lifecycle) fn of(
        config: &Config,
        environment: &BTreeMap<OsString, OsString>,
        listeners: &[ListenerStatus],
    ) -> Option<Terms> {
        let daemon = &config.daemon;
        if !daemon.acme {
            return None;
        }
        let file = |source: &FileSource| {
            // One that was not passed is looked for where it would be, and told of then.
            source.path(Some(config.credentials.as_deref().unwrap_or(Path::new("/run/credentials"))))
        };
        let binding = daemon.acme_eab_key_id.clone().zip(daemon.acme_eab_key.as_ref().and_then(file));
        let (tls, plain): (Vec<_>, Vec<_>) = listeners.iter().partition(|listener| listener.name == HTTPS);
        let challenges = match daemon.acme_challenge {
            Auto::Is(challenge) => vec![challenge],
            // The port that certificates are for is the one that is sure to be reachable; that
            // for plain traffic is often a local one. But something before it may end TLS: then
            // the other one is tried.
            Auto::Auto if plain.is_empty() => vec![AcmeChallenge::TlsAlpn01],
            Auto::Auto if tls.is_empty() => vec![AcmeChallenge::Http01],
            Auto::Auto => vec![AcmeChallenge::TlsAlpn01, AcmeChallenge::Http01],
        };
        Some(Terms {
            state: state_folder(environment),
            directory: daemon.acme_directory.clone(),
            ca: daemon.acme_ca.as_ref().and_then(file),
            email: daemon.acme_email.clone(),
            binding,
            challenges,
        })
    }
}

/// The folder for what must outlive the process: systemd's, else the one of the XDG Base
/// Directory Specification for this user.
fn state_folder(environment: &BTreeMap<OsString, OsString>) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let variable = |name: &str| environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
    // The first one, if a unit names several.
    let of_unit = variable("STATE_DIRECTORY").and_then(|all| std::env::split_paths(all).next());
    let of_user = || {
        let state = variable("XDG_STATE_HOME").map(PathBuf::from).and_then(absolute);
        let home = || variable("HOME").map(|home| Path::new(home).join(".local/state")).and_then(absolute);
        state.or_else(home).map(|state| state.join("doorward"))
    };
    of_unit.and_then(absolute).or_else(of_user)
}

impl Daemon {
    /// Has certificates obtained as `config` wants, from now on.
    pub(in crate::lifecycle) fn watch_certificates(&mut self, config: &Config) {
        let terms = Terms::of(config, &self.request.environment, &self.listeners);
        self.acme.watch(terms, config.acme_names());
    }

    /// `doors` with the certificates that have been obtained.
    pub(in crate::lifecycle) fn with_obtained(&self, config: &Config, doors: Doors) -> Doors {
        let pairs = self.acme.certificates().cloned().collect();
        doors.with_obtained(config, pairs).unwrap_or_else(|error| {
            error!(%error, "certificates that were obtained can't be shown");
            doors
        })
    }

    /// Tells of a certificate, and has it serve.
    pub(in crate::lifecycle) async fn certificate_news(&mut self, news: News) -> Result<(), WorkerDied> {
        if matches!(news, News::Loaded(_) | News::Obtained { .. }) {
            self.show_obtained().await?;
        }
        match news {
            News::Loaded(unreadable) => {
                for error in unreadable {
                    warn!(message_id = events::ACME_UNREADABLE, error, "a kept certificate can't be read");
                }
            }
            News::Obtained { name, held, renewed, renewal } => info!(
                message_id = events::ACME_OBTAINED,
                name = &*name,
                not_after = date(held.life.not_after),
                renewal = date(renewal),
                "{}",
                if renewed { "certificate renewed" } else { "certificate obtained" }
            ),
            News::Failed { name, error, wait } => warn!(
                message_id = events::ACME_FAILED,
                name = name.as_deref().unwrap_or("all"),
                error,
                retry_s = wait.as_secs(),
                "no certificate for now"
            ),
            News::Expiring { name, not_after, error } => error!(
                message_id = events::ACME_EXPIRES,
                name = &*name,
                not_after = date(not_after),
                error,
                "a certificate ends soon and is not renewed"
            ),
        }
        Ok(())
    }

    /// Has new connections meet the certificates that were obtained, as a generation of the
    /// same configuration and number: no reload, and connections stay as they are.
    async fn show_obtained(&mut self) -> Result<(), WorkerDied> {
        let pairs = self.acme.certificates().cloned().collect();
        match self.generation.doors.with_obtained(&self.generation.config, pairs) {
            Ok(doors) => self.take_up(self.generation.renewed(doors)).await,
            Err(error) => {
                error!(%error, "certificates that were obtained can't be shown");
                Ok(())
            }
        }
    }

    /// How each certificate stands, for `doorward status`.
    pub(in crate::lifecycle) fn certificate_status(&self) -> Vec<AutomaticStatus> {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let status = |Report { name, state, not_after, next, error }: Report<'_>| AutomaticStatus {
            name: name.to_owned(),
            state: state.to_owned(),
            not_after: not_after.map(seconds),
            next: next.map(seconds),
            error: error.map(str::to_owned),
        };
        self.acme.report().map(status).collect()
    }
}

/// A time as RFC 3339 has it, in whole seconds.
fn date(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_where_the_unit_says_else_with_the_user() {
        let folder = |set: &[(&str, &str)]| {
            state_folder(&set.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect())
        };
        let unit = ("STATE_DIRECTORY", "/var/lib/doorward:/var/lib/other");
        assert_eq!(folder(&[unit, ("HOME", "/root")]), Some("/var/lib/doorward".into()));
        let (state, home) = (("XDG_STATE_HOME", "/s"), ("HOME", "/home/me"));
        assert_eq!(folder(&[state, home]), Some("/s/doorward".into()));
        assert_eq!(folder(&[("XDG_STATE_HOME", "s"), home]), Some("/home/me/.local/state/doorward".into()));
        assert_eq!(folder(&[("STATE_DIRECTORY", ""), ("HOME", "me")]), None);
    }
}
