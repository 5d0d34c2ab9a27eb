//! Endpoint: one backend, and what is known of it across all workers.
//!
//! A name that is resolved has an endpoint for each place that it leads to; one that is
//! not stands for itself, so that requests have something to fail with.
//!
//! An endpoint lives as long as any configuration names it: a reload passes it on,
//! so that its state survives. What is held against it is worked out in
//! [`super::standing`], under a lock that is taken only when something goes wrong or
//! has just gone right again: a request to an endpoint that is well reads two numbers
//! that all workers share and writes none.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::connections::Connections;
use super::discovery::{Place, Query, Ways};
use super::load::Load;
use super::slowness::Gauge;
use super::standing::{Report, Standing, State};
use super::tally::Tally;
use super::tls::Tls;
use crate::config::{BackendAddress, Site, Target};
use crate::telemetry::Reason;

/// One backend.
#[derive(Debug)]
pub struct Endpoint {
    number: u64,
    target: Target,
    identity: Arc<str>,
    host: Arc<str>,
    /// None for Unix sockets, and while a name is not resolved.
    ways: Option<Ways>,
    tls: Option<Tls>,
    /// The second way answered when the first one did not.
    second_first: AtomicBool,
    /// It is to get no more requests.
    draining: AtomicBool,
    connections: Arc<Connections>,
    standing: Mutex<Standing>,
    /// What of the standing requests look at, in milliseconds of the daemon's clock.
    closed_until: AtomicU64,
    down_until: AtomicU64,
    up_since: AtomicU64,
    /// Whether a connection made, or an answer, changes anything.
    troubled: AtomicBool,
    load: Load,
    gauge: Gauge,
    tally: Arc<Tally>,
}

impl Endpoint {
    /// An endpoint that nothing is known of yet; of a name, one that is not resolved.
    #[must_use]
    pub fn new(backend: &BackendAddress) -> Self {
        let target = &backend.target;
        let identity: Arc<str> = target.to_string().into();
        let (ways, host) = match target {
            Target::Ip(address) => (Some(Ways { first: *address, second: None }), address.to_string()),
            Target::Name { host, port } => (None, format!("{host}:{port}")),
            Target::Tls(site @ Site::Ip(address)) => (Some(Ways { first: *address, second: None }), site.to_string()),
            Target::Tls(site @ Site::Name { .. }) => (None, site.to_string()),
            Target::Service(name) => (None, name.clone()),
            Target::Unix(_) | Target::Echo => (None, "localhost".to_owned()),
        };
        Self::make(target, identity, &host, ways)
    }

    /// The endpoint of a name at one of its places.
    #[must_use]
    pub fn at(target: &Target, place: &Place) -> Self {
        let identity = Self::identity_at(target, place).into();
        Self::make(target, identity, &place.authority, Some(place.ways))
    }

    /// The identity of a name's endpoint at one of its places: `app@10.0.0.2:3000`, and
    /// with two ways `localhost@[::1]:3000+127.0.0.1:3000`.
    #[must_use]
    pub fn identity_at(target: &Target, place: &Place) -> String {
        let mut identity = match target {
            Target::Name { host, .. } => host.clone(),
            Target::Tls(Site::Name { host, .. }) => format!("https://{host}"),
            other => other.to_string(),
        };
        // Writing to a String does not fail.
        let _ = write!(identity, "@{}", place.ways.first);
        if let Some(second) = place.ways.second {
            let _ = write!(identity, "+{second}");
        }
        identity
    }

    fn make(target: &Target, identity: Arc<str>, authority: &str, ways: Option<Ways>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            target: target.clone(),
            identity,
            host: without_default_port(target, authority).into(),
            ways,
            tls: None,
            second_first: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            connections: Connections::new(),
            standing: Mutex::default(),
            closed_until: AtomicU64::new(0),
            down_until: AtomicU64::new(0),
            up_since: AtomicU64::new(0),
            troubled: AtomicBool::new(false),
            load: Load::default(),
            gauge: Gauge::default(),
            tally: Arc::new(Tally::new(1)),
        }
    }

    /// What it has under way, and how long it takes.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.load
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

    /// Its canonical name, as in the log: `10.0.0.2:3000`, `unix:/run/app.sock`,
    /// `app@10.0.0.2:3000`, `https://app.example.com@10.0.0.2:443`.
    #[must_use]
    pub fn identity(&self) -> &Arc<str> {
        &self.identity
    }

    /// The authority that it goes by, without the port that goes without saying.
    #[must_use]
    pub fn host(&self) -> &Arc<str> {
        &self.host
    }

    /// Whether that is the same as `authority` is for it.
    #[must_use]
    pub fn goes_by(&self, authority: &str) -> bool {
        *self.host == *without_default_port(&self.target, authority)
    }

    /// Has it spoken to over TLS. It must have no connections yet.
    pub fn secure(&mut self, tls: Tls) {
        self.tls = Some(tls);
    }

    /// How it is spoken to over TLS, if it is.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The ways to dial, the better one first; none for what has no address.
    #[must_use]
    pub fn ways(&self) -> Option<Ways> {
        let ways = self.ways?;
        match ways.second {
            Some(second) if self.second_first.load(Ordering::Relaxed) => {
                Some(Ways { first: second, second: Some(ways.first) })
            }
            _ => Some(ways),
        }
    }

    /// Takes note of the way that led there, where there are two: it is tried first from
    /// now on (RFC 8305 §9.1).
    pub fn led(&self, way: SocketAddr) {
        let second = self.ways.is_some_and(|ways| ways.second == Some(way));
        if self.second_first.load(Ordering::Relaxed) != second {
            self.second_first.store(second, Ordering::Relaxed);
        }
    }

    /// Whether its name, if it has one, is resolved.
    #[must_use]
    pub fn is_resolved(&self) -> bool {
        self.ways.is_some() || Query::of(&self.target).is_none()
    }

    /// Whether it drains: requests that it has are finished, and connections are closed
    /// instead of kept.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Has it drain, or serve again.
    pub fn drain(&self, drains: bool) {
        self.draining.store(drains, Ordering::Relaxed);
    }

    /// Has its connections counted together with those of another endpoint, which is the
    /// same backend. It must have none yet.
    pub fn share_connections(&mut self, other: &Self) {
        self.connections = Arc::clone(&other.connections);
    }

    /// Has what comes of attempts at it counted in `tally`. There must have been none yet.
    pub fn count_in(&mut self, tally: Arc<Tally>) {
        self.tally = tally;
    }

    /// What has come of attempts at it.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Its connections, those of all workers.
    #[must_use]
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
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

    /// Ends an ejection.
    pub fn pardon(&self, now: u64) {
        self.change(|standing| standing.pardon(now));
    }

    /// Notes the outcome of a check; `Err` says why it did not pass. Whether its state
    /// changed.
    pub fn checked(&self, outcome: Result<(), Arc<str>>, rise: u32, fall: u32, now: u64) -> bool {
        self.change(|standing| standing.checked(outcome, rise, fall, now)).1
    }

    /// Forgets what checks have found: it is not checked any more.
    pub fn unchecked(&self, now: u64) {
        self.change(|standing| standing.unchecked(now));
    }

    /// How long its answers take, for routes that eject for that.
    #[must_use]
    pub fn gauge(&self) -> &Gauge {
        &self.gauge
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

/// An authority as clients of its scheme write it (RFC 9110 §4.2.3): some servers know their
/// name only so.
fn without_default_port<'a>(target: &Target, authority: &'a str) -> &'a str {
    let port = if target.is_tls() { ":443" } else { ":80" };
    authority.strip_suffix(port).unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::Endpoint;
    use crate::balance::discovery::{Place, Ways};
    use crate::balance::standing::FALL;
    use crate::config::{BackendAddress, Site, Target};
    use crate::telemetry::Reason;

    const REFUSED: Reason = Reason::BackendConnectRefused;

    fn named() -> Target {
        Target::Name { host: "app.test".into(), port: 80 }
    }

    fn at(first: &str, second: Option<&str>) -> Endpoint {
        let ways = Ways { first: first.parse().unwrap(), second: second.map(|way| way.parse().unwrap()) };
        Endpoint::at(&named(), &Place { ways, authority: "app.test:80".into(), weight: None, backup: false })
    }

    fn endpoint() -> Endpoint {
        at("192.0.2.1:80", None)
    }

    #[test]
    fn what_requests_look_at_follows_the_standing() {
        let endpoint = endpoint();
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
        let endpoint = endpoint();
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
        let endpoint = endpoint();
        endpoint.checked(Err("status 500".into()), 2, 3, 1);
        assert!(!endpoint.admits(1 << 50) && endpoint.admits_anyway(2) && !endpoint.is_up() && !endpoint.is_down());
        endpoint.unchecked(3);
        assert!(endpoint.admits(3));
    }

    #[test]
    fn the_way_that_led_there_is_tried_first_next_time() {
        let (six, four) = ("[2001:db8::1]:80", "192.0.2.1:80");
        let endpoint = at(six, Some(four));
        let first = || endpoint.ways().unwrap().first.to_string();
        assert_eq!(first(), six);
        endpoint.led(four.parse().unwrap());
        assert_eq!(first(), four);
        assert_eq!(endpoint.ways().unwrap().second.unwrap().to_string(), six);
        endpoint.led(six.parse().unwrap());
        assert_eq!(first(), six);
        assert_eq!(&**endpoint.identity(), "app.test@[2001:db8::1]:80+192.0.2.1:80");
        assert_eq!(&**endpoint.host(), "app.test");
    }

    #[test]
    fn a_backend_goes_by_its_name_without_the_port_that_goes_without_saying() {
        let host =
            |target: Target| Endpoint::new(&BackendAddress { target, weight: 1, backup: false }).host().to_string();
        let name = |port| Site::Name { host: "app.test".into(), port };
        for (site, cleartext, tls) in [
            (name(80), "app.test", "app.test:80"),
            (name(443), "app.test:443", "app.test"),
            (name(8080), "app.test:8080", "app.test:8080"),
            (Site::Ip("[::1]:80".parse().unwrap()), "[::1]", "[::1]:80"),
            (Site::Ip("[::1]:443".parse().unwrap()), "[::1]:443", "[::1]"),
        ] {
            assert_eq!((host(site.clone().into()).as_str(), host(Target::Tls(site)).as_str()), (cleartext, tls));
        }
        assert_eq!(host(Target::Echo), "localhost");
        let place = |authority: &str| {
            let ways = Ways { first: "192.0.2.1:443".parse().unwrap(), second: None };
            Place { ways, authority: authority.into(), weight: None, backup: false }
        };
        let endpoint = Endpoint::at(&Target::Tls(name(443)), &place("app.test:443"));
        assert_eq!(&**endpoint.identity(), "https://app.test@192.0.2.1:443");
        assert!(
            endpoint.goes_by("app.test:443") && !endpoint.goes_by("app.test:80") && !endpoint.goes_by("b.test:443")
        );
    }

    #[test]
    fn a_name_without_an_address_stands_for_itself() {
        let endpoint = Endpoint::new(&BackendAddress { target: named(), weight: 1, backup: false });
        assert!(!endpoint.is_resolved() && !endpoint.is_up());
        assert_eq!((&**endpoint.identity(), endpoint.ways()), ("app.test:80", None));
    }
}
