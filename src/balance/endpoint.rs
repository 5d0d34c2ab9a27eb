//! Endpoint: one backend, and what is known of it across all workers.
//!
//! An endpoint lives as long as any configuration names it: a reload passes it on,
//! so that its state survives. What is held against it is worked out in
//! [`super::standing`], under a lock that is taken only when something goes wrong or
//! has just gone right again: a request to an endpoint that is well reads two numbers
//! and writes none.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::standing::{Report, Standing, State};
use crate::config::{BackendAddress, Target};
use crate::telemetry::Reason;

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
    standing: Mutex<Standing>,
    /// What of the standing requests look at, in milliseconds of the daemon's clock.
    closed_until: AtomicU64,
    down_until: AtomicU64,
    up_since: AtomicU64,
    /// Whether a connection made, or an answer, changes anything.
    troubled: AtomicBool,
}

#[derive(Debug)]
enum Addresses {
    Known(Arc<[SocketAddr]>),
    Unknown(Arc<str>),
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
            standing: Mutex::default(),
            closed_until: AtomicU64::new(0),
            down_until: AtomicU64::new(0),
            up_since: AtomicU64::new(0),
            troubled: AtomicBool::new(false),
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

    /// Whether anything is held against it, or was counted, that a connection made or an
    /// answer would lift. While nothing is, neither need be reported.
    #[inline]
    #[must_use]
    pub fn is_troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }

    /// Notes a connection made, at `now` milliseconds; whether its state changed.
    pub fn connected(&self, now: u64) -> bool {
        self.is_troubled() && self.change(|standing| standing.connected(now)).1
    }

    /// Notes an answer given, at `now` milliseconds; whether its state changed.
    pub fn answered(&self, now: u64) -> bool {
        self.is_troubled() && self.change(|standing| standing.answered(now)).1
    }

    /// Notes a connection that failed on the backend's side, at `now` milliseconds;
    /// whether its state changed.
    pub fn refused(&self, reason: Reason, now: u64) -> bool {
        // The next attempt goes to the next of its addresses.
        self.turn.fetch_add(1, Ordering::Relaxed);
        self.change(|standing| standing.refused(reason, now)).1
    }

    /// Notes a request that failed in a way that counts for an ejection, at `now`
    /// milliseconds; how many did in a row, and whether its state changed.
    pub fn failed(&self, what: &'static str, now: u64) -> (u32, bool) {
        self.change(|standing| standing.failed(what, now))
    }

    /// Requests that failed in a row in a way that counts for an ejection, and how the last
    /// one did.
    #[must_use]
    pub fn failures(&self) -> (u32, Option<&'static str>) {
        if self.is_troubled() { self.with(|standing| standing.failures()) } else { (0, None) }
    }

    /// Leaves it alone from `now` on; see [`Standing::eject`].
    pub fn eject(&self, time: Duration, most: Duration, why: Arc<str>, now: u64) {
        self.change(|standing| standing.eject(time, most, why, now));
    }

    /// Notes the outcome of a check; `Err` says why it did not pass.
    pub fn checked(&self, outcome: Result<(), Arc<str>>, rise: u32, fall: u32, now: u64) {
        self.change(|standing| standing.checked(outcome, rise, fall, now));
    }

    /// Forgets what checks have found: it is not checked any more.
    pub fn unchecked(&self, now: u64) {
        self.change(|standing| standing.unchecked(now));
    }

    /// How it stands.
    #[must_use]
    pub fn report(&self) -> Report {
        self.with(|standing| standing.report())
    }

    /// Whether anything is held against it.
    #[must_use]
    pub fn state(&self) -> State {
        if self.closed_until.load(Ordering::Relaxed) == 0 { State::Up } else { self.with(|standing| standing.state()) }
    }

    /// Whether it is held to be up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.closed_until.load(Ordering::Relaxed) == 0 && self.is_resolved()
    }

    /// Whether no connection can be made to it: it is down, or has no address.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.down_until.load(Ordering::Relaxed) != 0 || !self.is_resolved()
    }

    /// When it came up after it had been out, in milliseconds of the daemon's clock; 0 for
    /// one that never was out.
    #[must_use]
    pub fn up_since(&self) -> u64 {
        self.up_since.load(Ordering::Relaxed)
    }

    /// Whether a request may go there at `now`: nothing is held against it, or what is has
    /// had its time and this caller is the one that tries whether it still holds.
    #[must_use]
    pub fn admits(&self, now: u64) -> bool {
        match self.closed_until.load(Ordering::Relaxed) {
            0 => true,
            until if now < until => false,
            _ => self.change(|standing| standing.claim(now)).0,
        }
    }

    /// The same where nothing better is left: only one that is down is kept away from.
    #[must_use]
    pub fn admits_anyway(&self, now: u64) -> bool {
        match self.down_until.load(Ordering::Relaxed) {
            0 => true,
            until if now < until => false,
            _ => self.change(|standing| standing.claim_connection(now)).0,
        }
    }

    fn with<T>(&self, read: impl FnOnce(&Standing) -> T) -> T {
        read(&self.standing.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the standing and shows requests what has become of it; whether it changed
    /// in a way that is worth a record.
    #[cold]
    fn change<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> (T, bool) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = standing.changes();
        let outcome = change(&mut standing);
        self.closed_until.store(standing.closed_until(), Ordering::Relaxed);
        self.down_until.store(standing.down_until(), Ordering::Relaxed);
        self.up_since.store(standing.up_since(), Ordering::Relaxed);
        self.troubled.store(!standing.is_clean(), Ordering::Relaxed);
        (outcome, standing.changes() != before)
    }
}

#[cfg(test)]
mod tests {
    use super::Endpoint;
    use crate::balance::standing::FALL;
    use crate::config::{BackendAddress, Target};
    use crate::telemetry::Reason;

    const REFUSED: Reason = Reason::BackendConnectRefused;

    fn named() -> Endpoint {
        Endpoint::new(&BackendAddress { target: Target::Name { host: "app.test".into(), port: 80 }, weight: 1 })
    }

    #[test]
    fn what_requests_look_at_follows_the_standing() {
        let endpoint = named();
        endpoint.resolved(Ok(vec!["192.0.2.1:80".parse().unwrap()]));
        assert!(!endpoint.is_troubled() && !endpoint.connected(5) && !endpoint.answered(5));
        for _ in 1..FALL {
            assert!(!endpoint.refused(REFUSED, 10));
        }
        assert!(endpoint.admits(10) && endpoint.is_troubled());
        assert!(endpoint.refused(REFUSED, 10), "a change");
        assert!(!endpoint.admits(20) && !endpoint.admits_anyway(20) && !endpoint.is_up() && endpoint.is_down());
        assert!(endpoint.connected(30), "a change");
        assert!(endpoint.admits(30) && endpoint.is_up() && !endpoint.is_troubled());
        assert_eq!(endpoint.up_since(), 30);
    }

    #[test]
    fn exactly_one_of_many_threads_is_the_probe() {
        let endpoint = named();
        for _ in 0..FALL {
            endpoint.refused(REFUSED, 0);
        }
        assert!(!endpoint.admits(99));
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| endpoint.admits(100))).collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert_eq!(admitted, 1);
    }

    #[test]
    fn failing_checks_close_it_only_as_long_as_there_is_better() {
        let endpoint = named();
        endpoint.resolved(Ok(vec!["192.0.2.1:80".parse().unwrap()]));
        endpoint.checked(Err("status 500".into()), 2, 3, 1);
        assert!(!endpoint.admits(1 << 50) && endpoint.admits_anyway(2) && !endpoint.is_up() && !endpoint.is_down());
        endpoint.unchecked(3);
        assert!(endpoint.admits(3));
    }

    #[test]
    fn failures_move_on_to_the_next_address_of_the_name() {
        let endpoint = named();
        endpoint.resolved(Ok(vec!["[::1]:80".parse().unwrap(), "127.0.0.1:80".parse().unwrap()]));
        let first = endpoint.address().unwrap();
        endpoint.refused(REFUSED, 0);
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
