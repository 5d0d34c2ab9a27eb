//! Pool: a worker's HTTP/2 connections to backends, and who waits for a place on one.
//!
//! The newest connection that has room takes a request. When none has, whoever comes waits
//! in one line for a place that comes free, or for a connection that somebody opens: as
//! many are opened as those in line need, so that a hundred requests which come at once
//! dial once. One that can't be opened beside others that serve ends nobody's wait: it is tried
//! again after a pause. Some servers end a connection after so many requests (nginx'
//! `keepalive_requests`), and leave out what else is on it: the next one is given no more than
//! that, until it turns out to last for longer. The count of connections, and whether there may be another, is
//! [`crate::balance::connections`]' business, as with HTTP/1.1.
//!
//! A connection belongs to its worker. Where `MAX_BACKEND_CONNECTIONS` leaves another
//! worker without one, this one takes no more requests on its own, which then ends with
//! those that are on it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Connection, Driver, Place, STREAMS, reason};
use crate::balance::connections::Slot;
use crate::balance::endpoint::Endpoint;
use crate::config::RouteSettings;
use crate::proxy::attempt::Failure;
use crate::proxy::upstream::Dial;
use crate::telemetry::Reason;
use crate::transport::clock::Clock;

/// How long no other connection is opened after one could not be, while there are some: a
/// backend that takes no more of them serves on those it has.
const PAUSE: Duration = Duration::from_secs(1);

/// The connections of a worker.
#[derive(Debug)]
pub struct Pool {
    clock: Rc<Clock>,
    /// By the endpoint's number.
    by_backend: RefCell<FxHashMap<u64, Rc<Group>>>,
}

/// Those to one backend.
#[derive(Debug)]
pub struct Group {
    clock: Rc<Clock>,
    endpoint: Arc<Endpoint>,
    /// Those that take requests, the newest last.
    connections: RefCell<Vec<Rc<Connection>>>,
    /// How many are being opened, and how many there are with these and those that only end.
    dialling: Cell<usize>,
    open: Cell<usize>,
    /// Requests that one of them is likely to have room for.
    expected: Cell<usize>,
    /// Requests that a connection lasts for.
    lasts: Cell<usize>,
    /// Requests in line.
    waiting: Cell<usize>,
    /// Why the last one could not be opened; how many could not, and whether somebody was
    /// told of the last.
    failed: Cell<Option<Reason>>,
    failed_at: Cell<u64>,
    failures: Cell<u64>,
    told: Cell<bool>,
    /// Places came free, or there is something else to see for those in line.
    changed: Notify,
    /// How long a connection may be idle, and how many.
    idle_timeout: Cell<Duration>,
    idle_most: Cell<usize>,
}

impl Pool {
    /// No connections yet.
    #[must_use]
    pub fn new(clock: Rc<Clock>) -> Self {
        Self { clock, by_backend: RefCell::default() }
    }

    /// Those to this backend, to be kept as the route has it.
    #[must_use]
    pub fn group(&self, endpoint: &Arc<Endpoint>, settings: &RouteSettings) -> Rc<Group> {
        let mut by_backend = self.by_backend.borrow_mut();
        let group = by_backend.entry(endpoint.number()).or_insert_with(|| {
            Rc::new(Group {
                clock: Rc::clone(&self.clock),
                endpoint: Arc::clone(endpoint),
                connections: RefCell::default(),
                dialling: Cell::new(0),
                open: Cell::new(0),
                expected: Cell::new(STREAMS),
                lasts: Cell::new(usize::MAX),
                waiting: Cell::new(0),
                failed: Cell::new(None),
                failed_at: Cell::new(0),
                failures: Cell::new(0),
                told: Cell::new(true),
                changed: Notify::new(),
                idle_timeout: Cell::default(),
                idle_most: Cell::default(),
            })
        });
        group.idle_timeout.set(settings.backend_idle_timeout);
        group.idle_most.set(settings.backend_idle_connections);
        Rc::clone(group)
    }

    /// Closes what is idle where somebody on another worker waits for a connection.
    pub fn give_up(&self) {
        for group in self.by_backend.borrow().values().filter(|group| group.is_wanted_elsewhere()) {
            group.retire(|connection| connection.is_idle());
        }
    }

    /// Takes no more requests on what leads to none of these endpoints, or to one that
    /// drains.
    pub fn keep_only<'a>(&self, endpoints: impl Iterator<Item = &'a Arc<Endpoint>>) {
        let kept: FxHashSet<u64> =
            endpoints.filter(|endpoint| !endpoint.is_draining()).map(|endpoint| endpoint.number()).collect();
        for (number, group) in &*self.by_backend.borrow() {
            if !kept.contains(number) {
                group.retire(|_| true);
            }
        }
    }

    /// Closes what has been idle for too long at `now`.
    pub fn sweep(&self, now: u64) {
        self.by_backend.borrow_mut().retain(|_, group| {
            group.retire(|connection| connection.is_over(now));
            // Whoever uses it holds it, too.
            Rc::strong_count(group) > 1 || !group.connections.borrow().is_empty()
        });
    }
}

impl Group {
    /// A place on the newest connection that has room, for a request that has not waited.
    #[must_use]
    pub fn take(self: &Rc<Self>) -> Option<Place> {
        // Those in line come first, also those that have yet to see what there is for them.
        if self.room() > self.waiting.get() { self.place() } else { None }
    }

    /// Requests that there is room for.
    fn room(&self) -> usize {
        self.connections.borrow().iter().map(|connection| connection.room()).sum()
    }

    /// Stands in line, for no longer than `patience` once connections can't be opened.
    #[must_use]
    pub fn join(self: &Rc<Self>, patience: Duration) -> Waiting {
        self.waiting.set(self.waiting.get() + 1);
        let until = self.clock.millis().saturating_add(millis(patience));
        Waiting { failures: self.failures.get(), until, group: Rc::clone(self) }
    }

    fn place(self: &Rc<Self>) -> Option<Place> {
        let mut connections = self.connections.borrow_mut();
        let found = loop {
            let at = connections.iter().rposition(|connection| connection.has_room())?;
            match connections.get(at) {
                Some(connection) if connection.is_sound() => break Rc::clone(connection),
                _ => connections.remove(at).retire(),
            }
        };
        drop(connections);
        let place = Place::new(Rc::clone(self), Rc::clone(&found));
        self.mark(&found);
        Some(place)
    }

    /// Opens a connection. Whoever is in line hears of it, and whoever asked may leave.
    pub fn open(self: &Rc<Self>, slot: Slot, limit: Duration) {
        let dialling = Dialling::new(self);
        let group = Rc::clone(self);
        group.open.set(group.open.get() + 1);
        tokio::task::spawn_local(async move {
            // Held as long as the connection is.
            let _slot = slot;
            let deadline = Instant::now() + limit;
            let dial = Dial::http2(&group.endpoint);
            let dialled = async {
                let stream = dial.run().await?;
                let mut driver = Driver::open(stream, &group.clock).await.map_err(|error| reason(&error))?;
                driver.settled().await.map(|()| driver)
            };
            let driver = match timeout_at(deadline, dialled).await.unwrap_or_else(|_| Err(dial.late())) {
                Ok(driver) => driver,
                Err(reason) => {
                    group.open.set(group.open.get().saturating_sub(1));
                    return dialling.failed(reason);
                }
            };
            let connection = Rc::clone(driver.connection());
            connection.lasts_for(group.lasts.get());
            group.expected.set(connection.most().clamp(1, group.lasts.get()));
            group.rest(&connection);
            group.mark(&connection);
            group.connections.borrow_mut().push(Rc::clone(&connection));
            drop(dialling);
            driver.run(|| group.changed()).await;
            group.open.set(group.open.get().saturating_sub(1));
            group.retire(|one| Rc::ptr_eq(one, &connection));
            group.changed();
        });
    }

    /// Has those in line look again.
    pub fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// A place on a connection of the group has come free, of the request of this number.
    pub fn freed(&self, connection: &Rc<Connection>, number: usize) {
        let idle = connection.is_idle();
        if let Some(lasts) = connection.lasted(number) {
            self.lasts.set(lasts);
            self.expected.set(self.expected.get().min(lasts));
        }
        if self.is_wanted_elsewhere() || (idle && !self.is_kept()) {
            self.retire(|one| Rc::ptr_eq(one, connection));
        } else {
            if idle {
                self.rest(connection);
            }
            self.mark(connection);
        }
        if self.waiting.get() > 0 {
            self.changed.notify_one();
        }
    }

    /// Whether one more connection may be idle.
    fn is_kept(&self) -> bool {
        let idle = self.connections.borrow().iter().filter(|connection| connection.is_idle()).count();
        idle <= self.idle_most.get() && !self.endpoint.is_draining() && !self.endpoint.connections().is_over()
    }

    /// Whether more wait for a connection on other workers than get one soon, when those end
    /// that take no more.
    fn is_wanted_elsewhere(&self) -> bool {
        let ending = self.open.get().saturating_sub(self.dialling.get() + self.connections.borrow().len());
        self.endpoint.connections().waiting() > self.waiting.get() + ending
    }

    /// Whether there are connections that serve.
    fn serves(&self) -> bool {
        self.connections.borrow().iter().any(|connection| connection.serves())
    }

    /// Until when no other connection is opened, if not at once.
    fn pause(&self) -> Option<u64> {
        self.failed.get()?;
        let until = self.failed_at.get().saturating_add(millis(PAUSE));
        (until > self.clock.millis() && self.serves()).then_some(until)
    }

    fn rest(&self, connection: &Connection) {
        connection.rest(self.clock.millis().saturating_add(millis(self.idle_timeout.get())));
    }

    fn mark(&self, connection: &Connection) {
        let connections = self.endpoint.connections();
        connection.mark(connections.is_limited().then_some(|| connections.mark_idle()));
    }

    fn retire(&self, over: impl Fn(&Rc<Connection>) -> bool) {
        self.connections.borrow_mut().retain(|connection| {
            let over = over(connection);
            if over {
                connection.retire();
            }
            !over
        });
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A connection that is being opened.
struct Dialling(Rc<Group>);

impl Dialling {
    fn new(group: &Rc<Group>) -> Self {
        group.dialling.set(group.dialling.get() + 1);
        Self(Rc::clone(group))
    }

    /// It could not be.
    fn failed(self, reason: Reason) {
        let group = &self.0;
        group.failed.set(Some(reason));
        group.failed_at.set(group.clock.millis());
        group.failures.set(group.failures.get() + 1);
        group.told.set(false);
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        self.0.dialling.set(self.0.dialling.get().saturating_sub(1));
        self.0.changed();
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy)]
pub struct Missing {
    /// Why no connection could be opened.
    pub reason: Reason,
    /// Nobody was told before.
    pub first: bool,
}

impl From<Missing> for Failure {
    fn from(missing: Missing) -> Self {
        Self { blamed: missing.first, ..Self::unsent(missing.reason) }
    }
}

/// A request in line; dropping it leaves the line.
#[derive(Debug)]
pub struct Waiting {
    group: Rc<Group>,
    /// Connections that could not be opened by then.
    failures: u64,
    /// How long it waits while some can't be opened.
    until: u64,
}

impl Waiting {
    /// A place, if there is one by now.
    ///
    /// # Errors
    /// When none could be opened since the request waits, none is being opened, and there are
    /// none to wait for, or it has waited long enough.
    pub fn look(&self) -> Result<Option<Place>, Missing> {
        let group = &self.group;
        if let Some(place) = group.place() {
            return Ok(Some(place));
        }
        let failing = group.failures.get() != self.failures || group.pause().is_some();
        let patient = group.serves() && group.clock.millis() < self.until;
        match group.failed.get() {
            Some(reason) if failing && !patient && group.dialling.get() == 0 => {
                Err(Missing { reason, first: !group.told.replace(true) })
            }
            _ => Ok(None),
        }
    }

    /// Whether there is not room for all in line, with that of connections that are being
    /// opened.
    #[must_use]
    pub fn wants_connection(&self) -> bool {
        let group = &self.group;
        group.pause().is_none()
            && group.room().saturating_add(group.dialling.get().saturating_mul(group.expected.get()))
                < group.waiting.get()
    }

    /// Opens a connection, which takes no longer than `limit`.
    pub fn open(&self, slot: Slot, limit: Duration) {
        self.group.open(slot, limit);
    }

    /// Resolves when it is worth looking again.
    pub async fn changed(&self) {
        let changed = self.group.changed.notified();
        match self.group.pause() {
            None => changed.await,
            Some(until) => {
                let left = until.min(self.until).saturating_sub(self.group.clock.millis()).max(1);
                let _ = timeout(Duration::from_millis(left), changed).await;
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.group.waiting.set(self.group.waiting.get().saturating_sub(1));
    }
}
