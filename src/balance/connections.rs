//! Connections: how many an endpoint has, in all workers together, and who waits for one.
//!
//! Every connection holds a [`Slot`] for as long as it is open, idle or not; dropping it
//! is the accounting. Without a limit that is all: one addition when a connection is made
//! and one when it is closed. With a limit (`MAX_BACKEND_CONNECTIONS`), who finds no slot
//! stands in one bounded line, first come, first served, and gets
//!
//! - the slot of a connection that is closed, to make one of his own, or
//! - a connection that is given back, on whichever worker that is.
//!
//! `open` is the one atomic that decides; the line's mutex is touched only by those who
//! wait and those who see somebody wait. Both sides first write and then read (`open` and
//! `waiting`, `idle` and `waiting`, sequentially consistent), so that of two who cross at
//! least one sees the other, and nobody waits for what is free.
//!
//! An idle connection belongs to the worker that keeps it, and only that one can give it
//! up. So `idle` tells whoever waits that it is worth asking the workers.

use std::any::Any;
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// Who may wait, for each connection that there may be.
const WAITERS_EACH: usize = 10;

/// No limit.
const UNLIMITED: usize = usize::MAX;

/// The connections of one endpoint.
#[derive(Debug)]
pub struct Connections {
    /// Open or about to be.
    open: AtomicUsize,
    limit: AtomicUsize,
    /// Idle ones that were marked.
    idle: AtomicUsize,
    /// Mirror of the line's length.
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    places: VecDeque<Place>,
    next: u64,
}

#[derive(Debug)]
struct Place {
    id: u64,
    handed: oneshot::Sender<Handed>,
}

/// What [`Connections::enter`] found.
#[derive(Debug)]
pub enum Entry {
    /// Leave to make a connection.
    Open(Slot),
    /// None may be made; this is the place in line.
    Wait(Ticket),
    /// None may be made, and the line is full.
    Full,
}

/// What one who waited gets.
#[derive(Debug)]
pub enum Handed {
    /// Leave to make a connection.
    Slot(Slot),
    /// A connection.
    Connection(Parked),
}

/// An idle connection on its way to another worker.
#[derive(Debug)]
pub struct Parked {
    /// Its socket, of which nothing was read that is not used up.
    pub socket: OwnedFd,
    /// The TLS on it, which whoever parked it knows.
    pub tls: Option<Box<dyn Any + Send>>,
    /// Since when it is idle, in milliseconds of the daemon's clock.
    pub since: u64,
    /// When it has been idle for too long.
    pub until: u64,
    /// Its slot.
    pub slot: Slot,
}

impl Connections {
    /// None yet, and no limit.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            limit: AtomicUsize::new(UNLIMITED),
            idle: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
        })
    }

    /// Changes the limit; `None` is none. Nothing is cut for it.
    pub fn resize(self: &Arc<Self>, limit: Option<usize>) {
        self.limit.store(limit.unwrap_or(UNLIMITED), Ordering::SeqCst);
        self.serve();
    }

    /// Leave to make a connection, a place in line, or neither.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Entry {
        if self.waiting.load(Ordering::SeqCst) == 0 && self.claim() {
            return Entry::Open(self.slot());
        }
        let ticket = {
            let mut line = self.line();
            if line.places.is_empty() && self.claim() {
                return Entry::Open(self.slot());
            }
            if line.places.len() >= self.limit.load(Ordering::Relaxed).saturating_mul(WAITERS_EACH) {
                return Entry::Full;
            }
            let (handed, receiver) = oneshot::channel();
            let id = line.next;
            line.next += 1;
            line.places.push_back(Place { id, handed });
            self.waiting.store(line.places.len(), Ordering::SeqCst);
            Ticket { of: Arc::clone(self), id, receiver }
        };
        // Whoever closed one before it could see this place has left its slot free.
        self.serve();
        Entry::Wait(ticket)
    }

    /// Connections that are open or about to be.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Requests that wait for one.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Idle ones that were marked, on all workers.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.load(Ordering::SeqCst)
    }

    /// Whether there is a limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != UNLIMITED
    }

    /// Whether there are more than there should be, after the limit was lowered.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.open() > self.limit.load(Ordering::Relaxed)
    }

    /// Whether a request would have to wait now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.is_limited() && self.open() >= self.limit.load(Ordering::Relaxed) && self.idle.load(Ordering::Relaxed) == 0
    }

    /// Marks a connection as idle for as long as the value lives.
    #[must_use]
    pub fn mark_idle(self: &Arc<Self>) -> IdleMark {
        self.idle.fetch_add(1, Ordering::SeqCst);
        IdleMark { of: Arc::clone(self) }
    }

    /// Gives a connection to who has waited longest.
    ///
    /// # Errors
    /// The connection, when nobody waits any more.
    pub fn hand_over(&self, parked: Parked) -> Result<(), Parked> {
        let mut line = self.line();
        let Some(place) = line.places.pop_front() else { return Err(parked) };
        self.waiting.store(line.places.len(), Ordering::SeqCst);
        // A waiter leaves the line before it drops its receiver, so this can't fail; were
        // it to, the connection comes back.
        match place.handed.send(Handed::Connection(parked)) {
            Err(Handed::Connection(parked)) => Err(parked),
            Ok(()) | Err(Handed::Slot(_)) => Ok(()),
        }
    }

    fn slot(self: &Arc<Self>) -> Slot {
        Slot { of: Some(Arc::clone(self)) }
    }

    /// Takes a slot if there is one.
    fn claim(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        let more = |open: usize| (open < limit).then_some(open + 1);
        self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
    }

    /// Gives slots that are free to those who wait.
    fn serve(self: &Arc<Self>) {
        let mut line = self.line();
        while !line.places.is_empty() && self.claim() {
            let Some(place) = line.places.pop_front() else { return };
            if let Err(Handed::Slot(mut slot)) = place.handed.send(Handed::Slot(self.slot())) {
                // As above; its drop would want the line.
                slot.of = None;
                self.open.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.waiting.store(line.places.len(), Ordering::SeqCst);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave for one connection to be open; dropping it gives it back.
#[derive(Debug)]
pub struct Slot {
    /// None only on its way out.
    of: Option<Arc<Connections>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(of) = self.of.take() {
            of.open.fetch_sub(1, Ordering::SeqCst);
            if of.waiting.load(Ordering::SeqCst) > 0 {
                of.serve();
            }
        }
    }
}

/// Counts one idle connection; dropping it is what ends that.
#[derive(Debug)]
pub struct IdleMark {
    of: Arc<Connections>,
}

impl IdleMark {
    /// The connections that it is one of.
    #[must_use]
    pub fn of(&self) -> &Arc<Connections> {
        &self.of
    }
}

impl Drop for IdleMark {
    fn drop(&mut self) {
        self.of.idle.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A place in line: a future of what is handed over. Dropping it leaves the line at once.
#[derive(Debug)]
pub struct Ticket {
    of: Arc<Connections>,
    id: u64,
    receiver: oneshot::Receiver<Handed>,
}

impl Future for Ticket {
    type Output = Handed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Handed> {
        match Pin::new(&mut self.receiver).poll(cx) {
            Poll::Ready(Ok(handed)) => Poll::Ready(handed),
            // The sender lives in the line until it is used.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut line = self.of.line();
        if let Some(at) = line.places.iter().position(|place| place.id == self.id) {
            line.places.remove(at);
            self.of.waiting.store(line.places.len(), Ordering::SeqCst);
        }
        // What was handed over already is dropped with the receiver, after the lock, and so
        // goes to the next in line.
    }
}

#[cfg(test)]
mod tests {
    use super::{Connections, Entry, Handed, Parked, Slot, Ticket};
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Waker};

    fn limited(limit: usize) -> Arc<Connections> {
        let connections = Connections::new();
        connections.resize(Some(limit));
        connections
    }

    fn open(connections: &Arc<Connections>) -> Slot {
        match connections.enter() {
            Entry::Open(slot) => slot,
            other => panic!("expected a slot, got {other:?}"),
        }
    }

    fn wait(connections: &Arc<Connections>) -> Ticket {
        match connections.enter() {
            Entry::Wait(ticket) => ticket,
            other => panic!("expected a place in line, got {other:?}"),
        }
    }

    fn poll(ticket: &mut Ticket) -> Option<Handed> {
        match Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(handed) => Some(handed),
            Poll::Pending => None,
        }
    }

    fn parked(slot: Slot) -> Parked {
        Parked { socket: std::fs::File::open("/dev/null").unwrap().into(), tls: None, since: 1, until: 2, slot }
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let connections = Connections::new();
        let slots: Vec<Slot> = (0..1_000).map(|_| open(&connections)).collect();
        assert_eq!(connections.open(), 1_000);
        drop(slots);
        assert_eq!((connections.open(), connections.is_full()), (0, false));
    }

    #[test]
    fn a_slot_that_comes_free_goes_to_the_oldest_in_line() {
        let connections = limited(1);
        let held = open(&connections);
        let (mut first, mut second) = (wait(&connections), wait(&connections));
        assert_eq!(connections.waiting(), 2);
        drop(held);
        assert!(poll(&mut second).is_none());
        let Some(Handed::Slot(slot)) = poll(&mut first) else { panic!("the oldest gets it") };
        assert!(matches!(connections.enter(), Entry::Wait(_)), "nobody overtakes");
        drop(slot);
        assert!(poll(&mut second).is_some());
    }

    #[test]
    fn a_connection_that_is_given_back_goes_over_with_its_slot() {
        let connections = limited(1);
        let held = open(&connections);
        let mut waiting = wait(&connections);
        connections.hand_over(parked(held)).unwrap();
        assert!(matches!(poll(&mut waiting), Some(Handed::Connection(_))));
        assert_eq!(connections.open(), 0, "it was dropped with the answer above");
        let parked = connections.hand_over(parked(open(&connections))).unwrap_err();
        assert_eq!((connections.open(), parked.since), (1, 1));
    }

    #[test]
    fn what_was_handed_to_one_who_left_goes_to_the_next() {
        let connections = limited(1);
        let held = open(&connections);
        let (first, mut second) = (wait(&connections), wait(&connections));
        connections.hand_over(parked(held)).unwrap();
        drop(first);
        assert!(matches!(poll(&mut second), Some(Handed::Slot(_))));
        assert_eq!((connections.open(), connections.waiting()), (0, 0));
    }

    #[test]
    fn the_line_is_bounded_and_a_leaver_makes_room() {
        let connections = limited(1);
        let _held = open(&connections);
        let mut line: Vec<Ticket> = (0..10).map(|_| wait(&connections)).collect();
        assert!(matches!(connections.enter(), Entry::Full));
        line.pop();
        assert!(matches!(connections.enter(), Entry::Wait(_)));
    }

    #[test]
    fn a_larger_limit_serves_those_who_wait_and_a_smaller_one_cuts_nobody() {
        let connections = limited(1);
        let held = open(&connections);
        let mut waiting = wait(&connections);
        connections.resize(Some(2));
        let handed = poll(&mut waiting).expect("a slot");
        connections.resize(Some(1));
        assert!(connections.is_over());
        let mut waiting = wait(&connections);
        drop(held);
        assert!(poll(&mut waiting).is_none() && !connections.is_over());
        drop(handed);
        assert!(poll(&mut waiting).is_some());
        connections.resize(None);
        assert!(!connections.is_limited() && !connections.is_full());
    }

    #[test]
    fn idle_ones_are_counted_while_they_are() {
        let connections = limited(1);
        let _held = open(&connections);
        assert!(connections.is_full());
        let mark = connections.mark_idle();
        assert!(!connections.is_full() && connections.idle() == 1);
        drop(mark);
        assert!(connections.is_full());
    }

    #[test]
    fn slots_are_conserved_when_many_threads_enter_hand_over_and_give_up() {
        let connections = limited(3);
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..8_u64)
            .map(|seed| {
                let (connections, inside) = (Arc::clone(&connections), Arc::clone(&inside));
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..3_000 {
                        let handed = match connections.enter() {
                            Entry::Open(slot) => Some(Handed::Slot(slot)),
                            Entry::Full => None,
                            Entry::Wait(mut ticket) if random.bool() => poll(&mut ticket),
                            Entry::Wait(ticket) => Some(runtime.block_on(ticket)),
                        };
                        let Some(handed) = handed else { continue };
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                        if random.bool() {
                            std::thread::yield_now();
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                        let parked = match handed {
                            Handed::Slot(slot) => parked(slot),
                            Handed::Connection(parked) => parked,
                        };
                        if random.bool() {
                            // Whoever nobody waits for is closed.
                            let _ = connections.hand_over(parked);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!((connections.open(), connections.waiting()), (0, 0));
    }
}
