//! Endpoint: one backend, and what is known of it across all workers.
//!
//! An endpoint lives as long as any configuration names it: a reload passes it on,
//! so that its state survives. It is *down* after [`FALL`] failed connection attempts
//! in a row, for a time that doubles from [`DOWN_FIRST`] to [`DOWN_MOST`]; then one
//! request may probe it, and one success brings it back. Only connection failures on
//! the backend's side count: our own shortages and leaving clients never do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::config::{BackendAddress, Target};

/// Failed connection attempts in a row after which an endpoint is down.
pub const FALL: u32 = 5;

/// How long an endpoint is first held to be down.
pub const DOWN_FIRST: Duration = Duration::from_millis(100);

/// How long an endpoint is held to be down at most before it is probed again: short,
/// since every request is refused meanwhile where it is the only one.
pub const DOWN_MOST: Duration = Duration::from_secs(1);

/// Addresses of one name that are kept; more are ignored.
const ADDRESSES_MOST: usize = 64;

/// One backend.
#[derive(Debug)]
pub struct Endpoint {
    number: u64,
    target: Target,
    identity: Arc<str>,
    host: Arc<str>,
    addresses: RwLock<Addresses>,
    turn: AtomicU32,
    failures: AtomicU32,
    /// Milliseconds of the daemon's clock until which it is left alone; 0 when up.
    down_until: AtomicU64,
}

#[derive(Debug)]
enum Addresses {
    Known(Arc<[SocketAddr]>),
    Unknown(Arc<str>),
}

/// A change of state worth a journal record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was up and is down now.
    WentDown,
    /// It was down and is up now.
    CameUp,
}

impl Endpoint {
    /// An endpoint that nothing is known of yet.
    #[must_use]
    pub fn new(backend: &BackendAddress) -> Self {
        let identity: Arc<str> = backend.target.to_string().into();
        let (addresses, host) = match &backend.target {
            Target::Ip(address) => (Addresses::Known(Arc::from([*address])), Arc::clone(&identity)),
            Target::Name { .. } => (Addresses::Unknown("not resolved yet".into()), Arc::clone(&identity)),
            Target::Unix(_) | Target::Echo => (Addresses::Known(Arc::from([])), "localhost".into()),
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            target: backend.target.clone(),
            identity,
            host,
            addresses: RwLock::new(addresses),
            turn: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            down_until: AtomicU64::new(0),
        }
    }

    /// Its number: no two endpoints of a process have the same.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Where it is.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its canonical name, as in the log: `10.0.0.2:3000`, `unix:/run/app.sock`.
    #[must_use]
    pub fn identity(&self) -> &Arc<str> {
        &self.identity
    }

    /// The authority for a request that brought none (HTTP/1.0 without Host).
    #[must_use]
    pub fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// Takes note of what its name resolved to, or why it did not. A failed lookup
    /// keeps the addresses known before: a name server's outage is not the backend's.
    pub fn resolved(&self, outcome: Result<Vec<SocketAddr>, String>) {
        let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
        match (outcome, &*addresses) {
            (Ok(mut found), _) if !found.is_empty() => {
                found.truncate(ADDRESSES_MOST);
                *addresses = Addresses::Known(found.into());
            }
            (_, Addresses::Known(_)) => {}
            (Ok(_), Addresses::Unknown(_)) => *addresses = Addresses::Unknown("no address".into()),
            (Err(reason), Addresses::Unknown(_)) => *addresses = Addresses::Unknown(reason.into()),
        }
    }

    /// The address to dial next: the known ones in turn; none for Unix sockets.
    ///
    /// # Errors
    /// Why the name is not resolved.
    pub fn address(&self) -> Result<Option<SocketAddr>, Arc<str>> {
        match &*self.addresses.read().unwrap_or_else(PoisonError::into_inner) {
            Addresses::Known(known) => {
                let turn = usize::try_from(self.turn.load(Ordering::Relaxed)).unwrap_or(0);
                Ok(known.get(turn.checked_rem(known.len()).unwrap_or(0)).copied())
            }
            Addresses::Unknown(reason) => Err(Arc::clone(reason)),
        }
    }

    /// Whether its name, if it has one, is resolved.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        !matches!(self.target, Target::Name { .. })
            || matches!(&*self.addresses.read().unwrap_or_else(PoisonError::into_inner), Addresses::Known(_))
    }

    /// Notes a connection made, or an answer given.
    pub fn succeeded(&self) -> Option<Change> {
        // The usual case reads one shared line and writes nothing.
        if self.failures.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.failures.store(0, Ordering::Relaxed);
        (self.down_until.swap(0, Ordering::Relaxed) != 0).then_some(Change::CameUp)
    }

    /// Notes a connection that failed on the backend's side, at `now` milliseconds.
    pub fn failed(&self, now: u64) -> Option<Change> {
        // The next attempt goes to the next of its addresses.
        self.turn.fetch_add(1, Ordering::Relaxed);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < FALL {
            return None;
        }
        let doublings = (failures - FALL).min(16);
        let rest = DOWN_FIRST.saturating_mul(1 << doublings).min(DOWN_MOST);
        let until = now.saturating_add(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX)).max(1);
        (self.down_until.swap(until, Ordering::Relaxed) == 0).then_some(Change::WentDown)
    }

    /// Whether it is held to be up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.down_until.load(Ordering::Relaxed) == 0 && self.is_resolved()
    }

    /// Whether a request may go there at `now`: it is up, or its rest is over and this
    /// caller is the one that probes it.
    #[must_use]
    pub fn admits(&self, now: u64) -> bool {
        let until = self.down_until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        // Whoever moves the mark is the probe; the others keep away meanwhile.
        let next = now.saturating_add(u64::try_from(DOWN_MOST.as_millis()).unwrap_or(u64::MAX));
        now >= until && self.down_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, Endpoint, FALL};
    use crate::config::{BackendAddress, Target};

    fn named() -> Endpoint {
        Endpoint::new(&BackendAddress { target: Target::Name { host: "app.test".into(), port: 80 }, weight: 1 })
    }

    #[test]
    fn five_failures_in_a_row_take_it_down_and_one_success_brings_it_back() {
        let endpoint = named();
        endpoint.resolved(Ok(vec!["192.0.2.1:80".parse().unwrap()]));
        for _ in 1..FALL {
            assert_eq!(endpoint.failed(10), None);
        }
        assert!(endpoint.admits(10));
        assert_eq!(endpoint.failed(10), Some(Change::WentDown));
        assert!(!endpoint.admits(20) && !endpoint.is_up());
        assert_eq!(endpoint.succeeded(), Some(Change::CameUp));
        assert!(endpoint.admits(20) && endpoint.is_up());
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let endpoint = named();
        for round in 0..20 {
            assert_eq!(endpoint.failed(round), None);
            assert_eq!(endpoint.succeeded(), None);
        }
    }

    #[test]
    fn after_its_rest_exactly_one_request_probes_it() {
        let endpoint = named();
        for _ in 0..FALL {
            endpoint.failed(0);
        }
        assert!(!endpoint.admits(99));
        assert!(endpoint.admits(100));
        assert!(!endpoint.admits(101), "the probe is under way");
    }

    #[test]
    fn failures_move_on_to_the_next_address_of_the_name() {
        let endpoint = named();
        endpoint.resolved(Ok(vec!["[::1]:80".parse().unwrap(), "127.0.0.1:80".parse().unwrap()]));
        let first = endpoint.address().unwrap();
        endpoint.failed(0);
        assert_ne!(endpoint.address().unwrap(), first);
    }

    #[test]
    fn a_failed_lookup_keeps_the_addresses_known_before() {
        let endpoint = named();
        endpoint.resolved(Err("name server failure".into()));
        assert_eq!(endpoint.address().unwrap_err().as_ref(), "name server failure");
        endpoint.resolved(Ok(vec!["127.0.0.1:80".parse().unwrap()]));
        endpoint.resolved(Err("name server failure".into()));
        assert!(endpoint.address().is_ok());
    }
}
