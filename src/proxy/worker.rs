//! Worker: one thread with its own runtime, connections and idle backends.
//!
//! A request never leaves its worker, so nothing on its way takes a lock or is
//! reference-counted across threads. What workers share is in [`Shared`]: permits,
//! quotas, counters, and the number of connections each has.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::http2::tellers::Tellers;
use super::http2::upstream::pool::Pool as StreamPool;
use super::idle::IdlePool;
use super::story::Source;
use super::{accept, accept_tls, connection, tcp};
use crate::admission::gate::Gate;
use crate::admission::quota::Quota;
use crate::balance::endpoint::Endpoint;
use crate::config::Mode;
use crate::state::{Generation, Limits};
use crate::telemetry::Limiter;
use crate::telemetry::Log;
use crate::telemetry::Peer;
use crate::telemetry::Reason;
use crate::telemetry::Text;
use crate::telemetry::WorkerCounters;
use crate::telemetry::events;
use crate::tls::challenges::Challenges;
use crate::transport::clock::Clock;
use crate::transport::listeners::Listener;
use crate::transport::splice;
use crate::transport::stream::{Socket, Stream};

/// Connections that may wait to be taken over by another worker.
pub const HANDED_MOST: usize = 1024;

/// How often idle backend connections and pipes are looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The semaphore over requests, and its queue.
    pub gate: Gate,
    /// Tunnels.
    pub tunnels: Quota,
    /// Client connections.
    pub connections: Quota,
    /// TLS handshakes with clients, and those in line for one.
    pub handshakes: Gate,
    /// Requests that sleep before a retry: at most a tenth of the permits.
    pub sleepers: Quota,
    /// A place for each worker.
    pub lanes: Box<[Lane]>,
    /// From when on the workers' clocks count, and with them what is known of backends.
    pub epoch: tokio::time::Instant,
    /// What an ACME server is shown, while an order is under way.
    pub challenges: Arc<Challenges>,
    /// Has control look at the backends.
    pub stirred: Arc<Notify>,
    full: AtomicBool,
}

/// What others see of a worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Lane {
    /// Its counters.
    pub counters: WorkerCounters,
    /// Connections it has or is about to get.
    pub load: AtomicUsize,
    /// Grows as the worker turns over.
    pub beat: AtomicU64,
    /// Somebody waits for a connection that this worker may have idle.
    pub wanted: Notify,
}

impl Shared {
    /// The shared state of `workers` workers.
    #[must_use]
    pub fn new(workers: usize, limits: &Limits) -> Self {
        Self {
            gate: Gate::new(limits.permits, limits.queue),
            tunnels: Quota::new(limits.tunnels),
            connections: Quota::new(limits.connections),
            handshakes: Gate::new(limits.handshakes, waiters(limits)),
            sleepers: Quota::new(sleepers(limits)),
            lanes: (0..workers).map(|_| Lane::default()).collect(),
            epoch: tokio::time::Instant::now(),
            challenges: Arc::default(),
            stirred: Arc::default(),
            full: AtomicBool::new(false),
        }
    }

    /// Takes up the limits of a new generation.
    pub fn resize(&self, limits: &Limits) {
        self.gate.resize(limits.permits, limits.queue);
        self.tunnels.resize(limits.tunnels);
        self.connections.resize(limits.connections);
        self.handshakes.resize(limits.handshakes, waiters(limits));
        self.sleepers.resize(sleepers(limits));
    }

    /// Whether another client connection may be accepted.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let room = self.connections.used() < self.connections.limit();
        if room {
            self.full.store(false, Ordering::Relaxed);
        }
        room
    }

    /// Says once that no more connections are accepted for now.
    pub fn note_full(&self) {
        if !self.full.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                message_id = events::CONNECTIONS_FULL,
                limit = self.connections.limit(),
                "MAX_CONNECTIONS are open; new clients wait in the backlog"
            );
        }
    }

    /// Has every worker give up idle connections that somebody waits for.
    pub fn ask_for_idle(&self) {
        for lane in &self.lanes {
            lane.wanted.notify_one();
        }
    }

    /// Says, not too often, that a backend has all the connections that it may have.
    pub fn note_backend_full(&self, endpoint: &Endpoint) {
        static LIMITER: Limiter = Limiter::new(1);
        if let Some(suppressed) = LIMITER.admit(std::time::Instant::now()) {
            tracing::warn!(
                message_id = events::BACKEND_FULL,
                backend = &**endpoint.identity(),
                connections = endpoint.connections().open(),
                waiting = endpoint.connections().waiting(),
                suppressed,
                "the backend has MAX_BACKEND_CONNECTIONS; requests are turned away"
            );
        }
    }

    /// Says, not too often, that the queue is full.
    pub fn note_queue_full(&self) {
        static LIMITER: Limiter = Limiter::new(1);
        if let Some(suppressed) = LIMITER.admit(std::time::Instant::now()) {
            tracing::warn!(
                message_id = events::QUEUE_FULL,
                limit = self.gate.queue_limit(),
                suppressed,
                "the queue is full; clients are turned away"
            );
        }
    }

    /// The least loaded worker, when `index` stands above the mean.
    #[must_use]
    pub fn better_than(&self, index: usize) -> Option<usize> {
        let load = |lane: &Lane| lane.load.load(Ordering::Relaxed);
        let mine = load(self.lanes.get(index)?);
        let sum: usize = self.lanes.iter().map(load).sum();
        if mine * self.lanes.len() <= sum {
            return None;
        }
        let (least, lane) = self.lanes.iter().enumerate().min_by_key(|(_, lane)| load(lane))?;
        (load(lane) < mine && least != index).then_some(least)
    }
}

fn sleepers(limits: &Limits) -> u64 {
    (limits.permits / 10).max(1)
}

fn waiters(limits: &Limits) -> usize {
    usize::try_from(limits.handshakes).unwrap_or(usize::MAX).saturating_mul(accept_tls::WAITERS_EACH)
}

/// A connection just accepted, here or on another worker.
#[derive(Debug)]
pub struct Arrival {
    /// Its socket.
    pub socket: Socket,
    /// The client.
    pub peer: Peer,
    /// The listener's name.
    pub listener: Arc<str>,
}

/// What control tells a worker.
#[derive(Debug)]
pub enum Order {
    /// Serve new requests with this generation; say so when done.
    Adopt(Arc<Generation>, tokio::sync::oneshot::Sender<()>),
    /// Accept no more; close idle connections after this silence; end when none is left.
    Drain(Duration),
    /// Turn over, to show that it can.
    Beat,
    /// End now.
    Cut,
}

/// One worker, on its own thread.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    log: Log,
    #[expect(clippy::redundant_allocation, reason = "a request clones the Rc: no atomic step on its way")]
    generation: RefCell<Rc<Arc<Generation>>>,
    clock: Rc<Clock>,
    idle: IdlePool,
    streams: StreamPool,
    tellers: Rc<Tellers>,
    draining: Cell<Option<Duration>>,
    open: Cell<usize>,
    emptied: Notify,
    others: Box<[mpsc::Sender<Arrival>]>,
}

/// What a worker's thread starts with.
pub struct Start {
    /// Its place among the workers.
    pub index: usize,
    /// What all share.
    pub shared: Arc<Shared>,
    /// The log.
    pub log: Log,
    /// The first generation.
    pub generation: Arc<Generation>,
    /// The listeners, its own copies.
    pub listeners: Vec<Listener>,
    /// The ways to hand connections to each worker.
    pub others: Box<[mpsc::Sender<Arrival>]>,
    /// Connections handed to this worker.
    pub handed: mpsc::Receiver<Arrival>,
    /// What control says.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// Told when it accepts.
    pub accepting: tokio::sync::oneshot::Sender<()>,
}

impl Worker {
    /// Runs a worker until it was drained or cut.
    ///
    /// # Errors
    /// When a listener can't be registered with the runtime.
    pub async fn run(start: Start) -> io::Result<()> {
        let Start { index, shared, log, generation, listeners, others, mut handed, mut orders, accepting } = start;
        let clock = Clock::since(shared.epoch);
        let worker = Rc::new(Self {
            index,
            streams: StreamPool::new(Rc::clone(&clock)),
            tellers: Rc::default(),
            clock,
            shared,
            log,
            generation: RefCell::new(Rc::new(generation)),
            idle: IdlePool::default(),
            draining: Cell::new(None),
            open: Cell::new(0),
            emptied: Notify::new(),
            others,
        });
        let mut doors = tokio::task::JoinSet::new();
        for listener in listeners {
            doors.spawn_local(accept::run(Rc::clone(&worker), accept::Door::open(listener)?));
        }
        let clock = Rc::clone(&worker.clock);
        tokio::task::spawn_local(async move { clock.run().await });
        let mut sweep = tokio::time::interval(SWEEP);
        // Another worker may still hand a connection over.
        let mut handing = true;
        // Control may have given up waiting; then it says so through `orders`.
        let _ = accepting.send(());
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None | Some(Order::Cut) => return Ok(()),
                    Some(Order::Beat) => {
                        worker.lane().beat.fetch_add(1, Ordering::Relaxed);
                    }
                    Some(Order::Adopt(generation, done)) => {
                        worker.idle.keep_only(generation.endpoints());
                        worker.streams.keep_only(generation.endpoints());
                        *worker.generation.borrow_mut() = Rc::new(generation);
                        let _ = done.send(());
                    }
                    Some(Order::Drain(silence)) => {
                        doors.abort_all();
                        // The others keep what they accept from now on; what is on its way
                        // still arrives.
                        handed.close();
                        worker.draining.set(Some(silence));
                        worker.clock.wake_all();
                    }
                },
                arrival = handed.recv(), if handing => match arrival {
                    Some(arrival) => worker.serve(arrival),
                    None => handing = false,
                },
                _ = sweep.tick() => {
                    worker.idle.sweep(worker.clock.millis());
                    worker.streams.sweep(worker.clock.millis());
                    splice::trim();
                }
                () = worker.lane().wanted.notified() => {
                    worker.idle.give_up();
                    worker.streams.give_up();
                }
                () = worker.emptied.notified() => {}
            }
            if worker.is_draining() && worker.open.get() == 0 && !handing {
                return Ok(());
            }
        }
    }

    /// A worker without a thread, a door or neighbours.
    #[cfg(test)]
    pub(super) fn alone(generation: Generation) -> Rc<Self> {
        let clock = Clock::since(tokio::time::Instant::now());
        Rc::new(Self {
            index: 0,
            shared: Arc::new(Shared::new(1, &generation.limits())),
            streams: StreamPool::new(Rc::clone(&clock)),
            tellers: Rc::default(),
            log: Log::silent(),
            generation: RefCell::new(Rc::new(Arc::new(generation))),
            clock,
            idle: IdlePool::default(),
            draining: Cell::new(None),
            open: Cell::new(0),
            emptied: Notify::new(),
            others: Box::default(),
        })
    }

    /// The generation that new requests use.
    #[must_use]
    pub fn generation(&self) -> Rc<Arc<Generation>> {
        Rc::clone(&self.generation.borrow())
    }

    /// Its place among the workers.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// What all workers share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> &WorkerCounters {
        &self.lane().counters
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &Rc<Clock> {
        &self.clock
    }

    /// Its tasks that tell the stories of HTTP/2 streams.
    #[must_use]
    pub fn tellers(&self) -> &Rc<Tellers> {
        &self.tellers
    }

    /// Its HTTP/2 connections to backends.
    #[must_use]
    pub fn streams(&self) -> &StreamPool {
        &self.streams
    }

    /// Its idle HTTP/1.1 connections to backends.
    #[must_use]
    pub fn idle(&self) -> &IdlePool {
        &self.idle
    }

    /// Whether it accepts no more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.get().is_some()
    }

    /// How long an idle connection must be silent before a drain closes it.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.draining.get().unwrap_or_default()
    }

    /// Serves a connection just accepted.
    pub fn take(self: &Rc<Self>, arrival: Arrival) {
        self.lane().load.fetch_add(1, Ordering::Relaxed);
        self.serve(arrival);
    }

    /// Hands a connection to another worker.
    ///
    /// # Errors
    /// The connection, when that one has too many waiting.
    pub fn hand_to(&self, other: usize, arrival: Arrival) -> Result<(), Arrival> {
        let (Some(lane), Some(way)) = (self.shared.lanes.get(other), self.others.get(other)) else {
            return Err(arrival);
        };
        let Ok(place) = way.try_reserve() else { return Err(arrival) };
        lane.load.fetch_add(1, Ordering::Relaxed);
        place.send(arrival);
        Ok(())
    }

    fn lane(&self) -> &Lane {
        // There is a lane for each index from the start on.
        static NONE: std::sync::LazyLock<Lane> = std::sync::LazyLock::new(Lane::default);
        self.shared.lanes.get(self.index).unwrap_or(&NONE)
    }

    fn serve(self: &Rc<Self>, arrival: Arrival) {
        let guard = Open::new(self);
        let worker = Rc::clone(self);
        let Arrival { socket, peer, listener } = arrival;
        let mode = self.generation.borrow().mode(&listener);
        let address = address(&peer);
        let mut source = Source { peer, address, listener, identity: None };
        tokio::task::spawn_local(async move {
            let _guard = guard;
            let shared = Arc::clone(&worker.shared);
            // Accepting pauses at the limit; workers that accept at the same moment may
            // each be one over it, and those are served rather than dropped.
            let _share = shared.connections.take();
            let mut io = Stream::from(socket);
            if source.is_secure() {
                match Box::pin(accept_tls::accept_tls(&worker, io, &mut source, mode)).await {
                    Some(secured) => io = secured,
                    None => return,
                }
            }
            match mode {
                Mode::Http => connection::serve(worker, io, source).await,
                Mode::Tcp => tcp::serve(worker, io, source).await,
            }
        });
    }
}

/// An open connection; dropping it is what ends it in every account.
struct Open {
    worker: Rc<Worker>,
}

impl Open {
    fn new(worker: &Rc<Worker>) -> Self {
        worker.open.set(worker.open.get() + 1);
        worker.counters().connections_open.add(1);
        Self { worker: Rc::clone(worker) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let worker = &self.worker;
        worker.counters().connections_open.sub(1);
        worker.lane().load.fetch_sub(1, Ordering::Relaxed);
        worker.open.set(worker.open.get().saturating_sub(1));
        if worker.open.get() == 0 && worker.is_draining() {
            worker.emptied.notify_one();
        }
    }
}

/// A client's address as it goes to backends.
fn address(peer: &Peer) -> Text<48> {
    match peer.ip() {
        // Nearly every one, written without the machinery of formatting.
        Some(IpAddr::V4(ip)) => {
            let [a, b, c, d] = ip.octets();
            let mut text = Vec::with_capacity(16);
            for (octet, end) in [(a, &b"."[..]), (b, b"."), (c, b"."), (d, b"")] {
                text.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
                text.extend_from_slice(end);
            }
            Text::new(text)
        }
        Some(ip) => Text::new(ip.to_string()),
        None => Text::new("unix:"),
    }
}

/// Puts on record, not too often, that a route's retry budget is spent.
pub fn budget_spent(route: &str) {
    static LIMITER: Limiter = Limiter::new(1);
    if let Some(suppressed) = LIMITER.admit(std::time::Instant::now()) {
        tracing::warn!(
            message_id = events::RETRY_BUDGET_SPENT,
            route,
            suppressed,
            "the retry budget is spent; failures go to clients as they are"
        );
    }
}

/// Puts on record that a backend died within an answer.
pub fn response_cut(backend: &str, reason: Reason) {
    static LIMITER: Limiter = Limiter::new(10);
    if let Some(suppressed) = LIMITER.admit(std::time::Instant::now()) {
        tracing::warn!(
            message_id = events::RESPONSE_CUT,
            backend,
            reason = reason.as_str(),
            suppressed,
            "the backend failed within a response; the client's connection was cut"
        );
    }
}
