//! Gate: the semaphore over requests, with its bounded first-in-first-out queue.
//!
//! `free` counts permits minus those who want one. Taking subtracts one: a result
//! that was positive before is a permit, and nothing else is touched. Returning adds
//! one: a result that was negative before means that somebody waits, and only then is
//! the queue's mutex taken and the permit handed to the oldest waiter.
//!
//! Between the atomic step and the mutex two parties may cross. Two counters under
//! the mutex settle it:
//!
//! - *credits*: a returner found nobody in the queue although somebody had announced
//!   himself. The announcer finds the credit instead of queueing.
//! - *forgiven*: a waiter left after a returner had already counted on him. The
//!   permit is back in `free`, so that returner's hand-over must come to nothing.
//!
//! A smaller limit on reload queues *retirements* at the front: each swallows one
//! permit as it comes back. Nothing is ever taken from a running request.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// A semaphore whose waiters stand in one bounded line, across all workers.
#[derive(Debug)]
pub struct Gate {
    /// Permits free (> 0), or waiters announced (< 0).
    free: AtomicI64,
    permits: AtomicU64,
    queue_limit: AtomicUsize,
    /// Mirror of the line's length, for readers without the lock.
    queued: AtomicUsize,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    places: VecDeque<Place>,
    next: u64,
    credits: u64,
    forgiven: u64,
    /// Places held by waiters, so without retirements.
    waiting: usize,
}

#[derive(Debug)]
struct Place {
    /// `None` is a retirement.
    waiter: Option<(u64, oneshot::Sender<()>)>,
}

/// What [`Gate::enter`] found.
#[derive(Debug)]
pub enum Entry<'a> {
    /// A permit was free.
    Open(Permit<'a>),
    /// All are taken; this is the place in the queue.
    Wait(Ticket<'a>),
    /// All are taken and the queue is full.
    Full,
}

impl Gate {
    /// A gate of `permits` permits and at most `queue_limit` waiters.
    #[must_use]
    pub fn new(permits: u64, queue_limit: usize) -> Self {
        Self {
            free: AtomicI64::new(signed(permits)),
            permits: AtomicU64::new(permits),
            queue_limit: AtomicUsize::new(queue_limit),
            queued: AtomicUsize::new(0),
            line: Mutex::new(Line::default()),
        }
    }

    /// Takes a permit, a place in the queue, or neither.
    #[must_use]
    pub fn enter(&self) -> Entry<'_> {
        if self.free.fetch_sub(1, Ordering::AcqRel) > 0 {
            return Entry::Open(Permit { gate: self });
        }
        let mut line = self.line();
        if line.credits > 0 {
            line.credits -= 1;
            return Entry::Open(Permit { gate: self });
        }
        if line.waiting >= self.queue_limit.load(Ordering::Relaxed) {
            self.withdraw(&mut line);
            return Entry::Full;
        }
        let (handed, receiver) = oneshot::channel();
        let id = line.next;
        line.next += 1;
        line.places.push_back(Place { waiter: Some((id, handed)) });
        line.waiting += 1;
        self.queued.store(line.waiting, Ordering::Relaxed);
        Entry::Wait(Ticket { gate: self, id, receiver, done: false })
    }

    /// Changes both limits; running requests and waiters keep what they have.
    pub fn resize(&self, permits: u64, queue_limit: usize) {
        self.queue_limit.store(queue_limit, Ordering::Relaxed);
        let mut line = self.line();
        let before = self.permits.swap(permits, Ordering::Relaxed);
        for _ in permits..before {
            if self.free.fetch_sub(1, Ordering::AcqRel) > 0 {
                continue;
            }
            if line.credits > 0 {
                line.credits -= 1;
            } else {
                line.places.push_front(Place { waiter: None });
            }
        }
        for _ in before..permits {
            let retiring = line.places.front().is_some_and(|place| place.waiter.is_none());
            if retiring {
                line.places.pop_front();
                self.withdraw(&mut line);
            } else if self.free.fetch_add(1, Ordering::AcqRel) < 0 {
                self.hand_over(&mut line);
            }
        }
    }

    /// Requests that hold a permit now.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        let free = u64::try_from(self.free.load(Ordering::Relaxed)).unwrap_or(0);
        self.permits().saturating_sub(free)
    }

    /// Requests that wait for one now.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Requests that may wait.
    #[must_use]
    pub fn queue_limit(&self) -> usize {
        self.queue_limit.load(Ordering::Relaxed)
    }

    /// Permits in all.
    #[must_use]
    pub fn permits(&self) -> u64 {
        self.permits.load(Ordering::Relaxed)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self) {
        if self.free.fetch_add(1, Ordering::AcqRel) < 0 {
            self.hand_over(&mut self.line());
        }
    }

    /// Hands the permit just returned to whoever is next.
    fn hand_over(&self, line: &mut Line) {
        if line.forgiven > 0 {
            line.forgiven -= 1;
            return;
        }
        loop {
            match line.places.pop_front() {
                None => {
                    line.credits += 1;
                    return;
                }
                Some(Place { waiter: None }) => return,
                Some(Place { waiter: Some((_, handed)) }) => {
                    line.waiting -= 1;
                    self.queued.store(line.waiting, Ordering::Relaxed);
                    // A waiter leaves the line before it drops its receiver, so this
                    // cannot fail; were it to, the next in line gets the permit.
                    if handed.send(()).is_ok() {
                        return;
                    }
                }
            }
        }
    }

    /// Takes back one announcement made to `free`.
    fn withdraw(&self, line: &mut Line) {
        if self.free.fetch_add(1, Ordering::AcqRel) >= 0 {
            line.forgiven += 1;
        }
    }
}

/// Leave to serve one request; dropping it returns it.
#[derive(Debug)]
pub struct Permit<'a> {
    gate: &'a Gate,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.gate.give_back();
    }
}

/// A place in the queue: a future of the permit. Dropping it leaves the queue at once.
#[derive(Debug)]
pub struct Ticket<'a> {
    gate: &'a Gate,
    id: u64,
    receiver: oneshot::Receiver<()>,
    done: bool,
}

impl<'a> Future for Ticket<'a> {
    type Output = Permit<'a>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit<'a>> {
        match Pin::new(&mut self.receiver).poll(cx) {
            Poll::Ready(Ok(())) => {
                self.done = true;
                Poll::Ready(Permit { gate: self.gate })
            }
            // The sender lives in the line until it is used.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut line = self.gate.line();
        let place = line.places.iter().position(|place| place.waiter.as_ref().is_some_and(|(id, _)| *id == self.id));
        if let Some(place) = place {
            line.places.remove(place);
            line.waiting -= 1;
            self.gate.queued.store(line.waiting, Ordering::Relaxed);
            self.gate.withdraw(&mut line);
        } else if self.receiver.try_recv().is_ok() {
            drop(line);
            self.gate.give_back();
        }
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Entry, Gate, Permit, Ticket};
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, Poll, Waker};

    fn open(gate: &Gate) -> Permit<'_> {
        match gate.enter() {
            Entry::Open(permit) => permit,
            other => panic!("expected a permit, got {other:?}"),
        }
    }

    fn wait(gate: &Gate) -> Ticket<'_> {
        match gate.enter() {
            Entry::Wait(ticket) => ticket,
            other => panic!("expected a place in the queue, got {other:?}"),
        }
    }

    fn poll<'a>(ticket: &mut Ticket<'a>) -> Option<Permit<'a>> {
        match Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    #[test]
    fn waiters_are_served_in_the_order_they_came() {
        let gate = Gate::new(1, 8);
        let held = open(&gate);
        let mut first = wait(&gate);
        let mut second = wait(&gate);
        drop(held);
        assert!(poll(&mut second).is_none());
        let permit = poll(&mut first).expect("the oldest waiter gets the permit");
        assert!(matches!(gate.enter(), Entry::Wait(_)), "nobody overtakes the queue");
        drop(permit);
        assert!(poll(&mut second).is_some());
    }

    #[test]
    fn a_full_queue_refuses_and_a_leaver_makes_room() {
        let gate = Gate::new(1, 1);
        let _held = open(&gate);
        let waiting = wait(&gate);
        assert!(matches!(gate.enter(), Entry::Full));
        drop(waiting);
        assert_eq!(gate.queued(), 0);
        assert!(matches!(gate.enter(), Entry::Wait(_)));
    }

    #[test]
    fn a_permit_handed_to_one_who_left_is_not_lost() {
        let gate = Gate::new(1, 8);
        let held = open(&gate);
        let waiting = wait(&gate);
        drop(held);
        drop(waiting);
        assert!(matches!(gate.enter(), Entry::Open(_)));
    }

    #[test]
    fn resizing_down_retires_permits_as_they_return_and_up_again_frees_them() {
        let gate = Gate::new(2, 8);
        let (one, two) = (open(&gate), open(&gate));
        gate.resize(1, 8);
        drop(one);
        let mut waiting = wait(&gate);
        assert!(poll(&mut waiting).is_none(), "one permit was retired, the other is held");
        gate.resize(2, 8);
        let permit = poll(&mut waiting).expect("the larger gate serves the waiter");
        drop((two, permit));
        let both = (open(&gate), open(&gate));
        assert!(matches!(gate.enter(), Entry::Wait(_)));
        drop(both);
        assert_eq!(gate.in_flight(), 0);
    }

    #[test]
    fn cancelling_a_retirement_does_not_create_a_permit() {
        let gate = Gate::new(1, 8);
        let held = open(&gate);
        gate.resize(0, 8);
        gate.resize(1, 8);
        assert!(matches!(gate.enter(), Entry::Wait(_)));
        drop(held);
        let _only = open(&gate);
        assert!(matches!(gate.enter(), Entry::Wait(_)));
    }

    #[test]
    fn permits_are_conserved_when_many_threads_enter_leave_and_give_up() {
        let gate = Arc::new(Gate::new(3, 4));
        let inside = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..8_u64)
            .map(|seed| {
                let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..4_000 {
                        let permit = match gate.enter() {
                            Entry::Open(permit) => Some(permit),
                            Entry::Full => None,
                            Entry::Wait(mut ticket) if random.bool() => poll(&mut ticket),
                            Entry::Wait(ticket) => Some(runtime.block_on(ticket)),
                        };
                        if let Some(permit) = permit {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                            if random.bool() {
                                std::thread::yield_now();
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!((gate.in_flight(), gate.queued()), (0, 0));
        let all = (open(&gate), open(&gate), open(&gate));
        assert!(matches!(gate.enter(), Entry::Wait(_)));
        drop(all);
    }
}
