//! Certificates: renewed without a reload, and told of before they expire.
//!
//! The files of those that clients are shown, and of all that TLS to backends goes by, are looked
//! at every few seconds, on a thread of the blocking pool. What is new becomes a generation of the same configuration and number, as with names that lead
//! elsewhere: nobody asked for it, systemd hears nothing, and connections stay as they are.

use std::collections::HashMap;
use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::control::Daemon;
use super::doors::list;
use crate::admin::protocol::CertificateStatus;
use crate::config::{Config, FileSource};
use crate::proxy::workers::WorkerDied;
use crate::state::Generation;
use crate::telemetry::events;
use crate::tls::{Clients, Doors, Pair, Renewal, Watch};

/// The shortest pause between two looks at the files.
const PAUSE: Duration = Duration::from_secs(2);

/// How many times longer the pause is than a look took.
const SHARE: u32 = 100;

/// How long before it expires a certificate is told of, in seconds: 14 days and the rest of one.
const SOON: i64 = 15 * 86_400 - 1;

/// How often it is told of again, in seconds.
const AGAIN: i64 = 86_400;

/// The looks at the files of certificates, and what was told of these.
#[derive(Debug)]
pub(super) struct Certificates {
    stage: Stage,
    told: Told,
}

/// By the file of a certificate: when it was told of last, in seconds since 1970, and whether
/// it had expired.
#[derive(Debug, Default)]
struct Told(HashMap<PathBuf, (i64, bool)>);

impl Told {
    /// Whether a certificate is to be told of at `now` that is good until `not_after`: once a
    /// day when little is left, and again when nothing is.
    fn admits(&mut self, file: &Path, not_after: i64, now: i64) -> bool {
        if not_after - now > SOON {
            self.0.remove(file);
            return false;
        }
        let expired = now > not_after;
        if self.0.get(file).is_some_and(|(at, had)| now - at < AGAIN && *had == expired) {
            return false;
        }
        self.0.insert(file.to_path_buf(), (now, expired));
        true
    }
}

#[derive(Debug)]
enum Stage {
    Waiting(Watch, Instant),
    Looking(JoinHandle<(Watch, Option<Renewal>)>, Before, Instant),
    /// The last look panicked, so nobody looks any more.
    Over,
}

/// What came of a look.
#[derive(Debug)]
pub(super) struct Looked {
    renewal: Option<Renewal>,
    before: Before,
}

/// What was there when a look began.
#[derive(Debug, Clone)]
struct Before(Arc<Doors>, Arc<Clients>);

impl Before {
    fn is_of(&self, generation: &Generation) -> bool {
        Arc::ptr_eq(&self.0, &generation.doors) && Arc::ptr_eq(&self.1, &generation.clients)
    }
}

impl Certificates {
    pub(super) fn new() -> Certificates {
        Certificates { stage: Stage::Waiting(Watch::default(), Instant::now() + PAUSE), told: Told::default() }
    }

    /// The outcome of the next look at the files of `generation`. Nothing is lost when the
    /// future is dropped.
    pub(super) async fn looked(&mut self, generation: &Generation) -> Looked {
        loop {
            match &mut self.stage {
                Stage::Waiting(_, _) if generation.doors.is_empty() && generation.clients.is_empty() => pending().await,
                Stage::Waiting(watch, until) => {
                    sleep_until(*until).await;
                    let mut watch = std::mem::take(watch);
                    let config = Arc::clone(&generation.config);
                    let before = Before(Arc::clone(&generation.doors), Arc::clone(&generation.clients));
                    let Before(doors, clients) = before.clone();
                    let look = tokio::task::spawn_blocking(move || {
                        let renewal = watch.look(&config, &doors, &clients);
                        (watch, renewal)
                    });
                    self.stage = Stage::Looking(look, before, Instant::now());
                }
                Stage::Looking(look, before, began) => {
                    let looked = look.await;
                    let (before, pause) = (before.clone(), PAUSE.max(began.elapsed().saturating_mul(SHARE)));
                    let Ok((watch, renewal)) = looked else {
                        self.stage = Stage::Over;
                        continue;
                    };
                    self.stage = Stage::Waiting(watch, Instant::now() + pause);
                    return Looked { renewal, before };
                }
                Stage::Over => pending().await,
            }
        }
    }

    /// What was read last is not what serves.
    fn forget(&mut self) {
        if let Stage::Waiting(watch, _) = &mut self.stage {
            watch.forget();
        }
    }

    /// Tells of each certificate that expires soon or has, once a day; not of those that were
    /// obtained, whose renewal is `acme`'s to tell of.
    fn tell(&mut self, generation: &Generation) {
        let now = unix_now();
        let of_backends = generation.clients.identities().map(|pair| &**pair);
        let pairs: Vec<&Pair> = generation.doors.named().chain(of_backends).collect();
        self.told.0.retain(|path, _| pairs.iter().any(|pair| pair.certificate == *path));
        for pair in pairs {
            if !self.told.admits(&pair.certificate, pair.facts.not_after, now) {
                continue;
            }
            let (names, file, days) = (pair.facts.covers(), pair.certificate.display(), pair.facts.days_left(now));
            if now > pair.facts.not_after {
                error!(message_id = events::CERTIFICATE_EXPIRED, names, %file, "certificate expired");
            } else {
                warn!(message_id = events::CERTIFICATE_EXPIRES, names, %file, days, "certificate expires soon");
            }
        }
    }
}

impl Daemon {
    /// Has new connections meet the certificates that are new.
    pub(super) async fn certificates_looked(&mut self, looked: Looked) -> Result<(), WorkerDied> {
        let Looked { renewal, before } = looked;
        if !before.is_of(&self.generation) {
            // A reload was faster; what was found may be older than what it brought.
            self.certificates.forget();
        } else if let Some(Renewal { doors, changed, clients, renewed, faults }) = renewal {
            for error in faults {
                warn!(message_id = events::CERTIFICATE_NOT_RENEWED, error, "certificate not renewed");
            }
            let doors = changed.then_some(doors);
            let before = Arc::clone(&self.generation);
            let next = match clients {
                Some(clients) => {
                    let next = self.generation.trusting(clients, &self.resolver.directory(), &self.departed);
                    Some(match doors {
                        Some(doors) => next.with_doors(doors),
                        None => next,
                    })
                }
                None => doors.map(|doors| self.generation.renewed(doors)),
            };
            if let Some(next) = next {
                self.take_up(next).await?;
            }
            renewed.iter().for_each(|pair| tell_of_renewed(pair));
            tell_of_backends(&before, &self.generation);
        }
        self.certificates.tell(&self.generation);
        Ok(())
    }

    /// Tells of the certificates that came with a start or a reload.
    pub(super) fn tell_of_certificates(&mut self) {
        self.certificates.forget();
        let credentials = list(credentials(&self.generation.config));
        if self.generation.number > 1 && !credentials.is_empty() {
            info!(credentials, "credentials are those of the start; only a restart changes them");
        }
        self.certificates.told.0.clear();
        self.certificates.tell(&self.generation);
    }

    /// The certificates that clients are shown.
    pub(super) fn certificates(&self) -> Vec<CertificateStatus> {
        self.generation.doors.pairs().map(status).collect()
    }

    /// Those that backends are shown.
    pub(super) fn backend_certificates(&self) -> Vec<CertificateStatus> {
        self.generation.clients.identities().map(|pair| status(pair)).collect()
    }
}

fn status(pair: &Pair) -> CertificateStatus {
    let facts = &pair.facts;
    let names = facts.names.iter().cloned().chain(facts.addresses.iter().map(ToString::to_string));
    CertificateStatus {
        subject: facts.subject.clone(),
        names: names.collect(),
        issuer: facts.issuer.clone(),
        key: facts.key.clone(),
        not_after: facts.not_after,
        days_left: facts.days_left(unix_now()),
        file: pair.certificate.clone(),
    }
}

/// Tells which routes go by other files towards their backends than before.
fn tell_of_backends(before: &Generation, after: &Generation) {
    let routes = after.routes().iter().enumerate();
    let changed = routes.filter(|(at, _)| !after.clients.is_as(&before.clients, *at));
    let routes = list(changed.map(|(_, route)| &*route.name));
    if !routes.is_empty() {
        info!(message_id = events::BACKEND_TLS_RENEWED, routes, "files of TLS to backends taken up");
    }
}

fn tell_of_renewed(pair: &Pair) {
    info!(
        message_id = events::CERTIFICATE_RENEWED,
        names = pair.facts.covers(),
        file = %pair.certificate.display(),
        days = pair.facts.days_left(unix_now()),
        "certificate renewed"
    );
}

/// The credentials among the files of a configuration's certificates.
fn credentials(config: &Config) -> Vec<String> {
    let files = crate::config::Certificates::of(config).flat_map(|one| one.certificates.iter().chain(one.keys));
    let names = files.filter(|file| matches!(file, FileSource::Credential(_))).map(ToString::to_string);
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.dedup();
    names
}

/// Seconds since 1970.
fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{AGAIN, Told};
    use std::path::Path;

    #[test]
    fn a_certificate_is_told_of_once_a_day_from_fourteen_days_on_and_when_it_expires() {
        let (mut told, file, end) = (Told::default(), Path::new("/a.crt"), 100 * AGAIN);
        let mut hours = Vec::new();
        // From twenty days before to two days after, hour by hour.
        for now in (80 * AGAIN..102 * AGAIN).step_by(3_600) {
            if told.admits(file, end, now) {
                hours.push((now - end) / 3_600);
            }
        }
        let days = (-14..=0).map(|day| day * 24 - 23);
        assert_eq!(hours, days.chain([1, 25]).collect::<Vec<_>>());
        // A new one begins anew.
        assert!(!told.admits(file, end + 90 * AGAIN, 102 * AGAIN) && told.admits(file, end, 102 * AGAIN));
    }
}
