//! Deadlines: one list for each worker, on a coarse clock.
//!
//! A connection owns one [`Timer`] for its whole life. Setting a deadline writes a
//! number; no timer of the runtime is armed and nothing is sorted. One task, [`Clock::run`],
//! sleeps until the earliest deadline and then walks the list, which costs a few
//! nanoseconds an entry and happens only when something expires, at most once in
//! [`GRAIN`]. The time is read once in a turn of the runtime. Deadlines are therefore late
//! by up to a grain, and early by no more than a turn takes.
//!
//! The list is also how a worker reaches all of its connections: [`Clock::wake_all`]
//! makes each look again at the state it waits in.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How late a deadline may be noticed.
pub const GRAIN: Duration = Duration::from_millis(20);

/// The walker looks at least this often, so that its clock never lags far.
const PULSE: u64 = 1_000;

const NEVER: u64 = u64::MAX;

/// Readings given out before the time is really read anew, in a turn of the runtime that
/// does not end.
const READINGS: u32 = 64;

thread_local! {
    /// Turns of this thread's runtime; 0 where nobody counts them.
    static TURN: Cell<u64> = const { Cell::new(0) };
}

/// Tells this thread's clocks that its runtime has begun another turn: what they read
/// from the system holds for one turn. To be called when the runtime's thread wakes.
pub fn turn() {
    TURN.set(TURN.get().wrapping_add(1).max(1));
}

/// A worker's clock and the deadlines of all its connections.
#[derive(Debug)]
pub struct Clock {
    epoch: Instant,
    read: Cell<Reading>,
    slots: RefCell<Slots>,
    /// Lower bound of all deadlines that are still ahead.
    earliest: Cell<u64>,
    /// When the walker means to wake.
    walker: Cell<u64>,
    sooner: Notify,
}

/// What was last read, in which turn, and how often it was given out since.
#[derive(Debug, Default, Clone, Copy)]
struct Reading {
    millis: u64,
    turn: u64,
    given: u32,
}

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Slot>,
    vacant: Vec<usize>,
}

#[derive(Debug)]
struct Slot {
    at: u64,
    waker: Option<Waker>,
}

impl Clock {
    /// A clock with no deadlines, which counts from `epoch`: clocks with the same one agree.
    #[must_use]
    pub fn since(epoch: Instant) -> Rc<Self> {
        Rc::new(Self {
            epoch,
            read: Cell::default(),
            slots: RefCell::default(),
            earliest: Cell::new(NEVER),
            walker: Cell::new(NEVER),
            sooner: Notify::new(),
        })
    }

    /// Milliseconds since its epoch, as of this turn of the runtime.
    #[must_use]
    pub fn millis(&self) -> u64 {
        let mut read = self.read.get();
        let turn = TURN.get();
        if turn == 0 || turn != read.turn || read.given >= READINGS {
            let millis = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(NEVER);
            read = Reading { millis, turn, given: 0 };
        }
        read.given += 1;
        self.read.set(read);
        read.millis
    }

    /// Microseconds on the same clock, read from the system now. For what is measured rather
    /// than waited for.
    #[must_use]
    pub fn micros(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(NEVER)
    }

    /// A timer without a deadline.
    #[must_use]
    pub fn timer(self: &Rc<Self>) -> Timer {
        let mut slots = self.slots.borrow_mut();
        let slot = Slot { at: NEVER, waker: None };
        let index = match slots.vacant.pop() {
            Some(index) => {
                if let Some(entry) = slots.entries.get_mut(index) {
                    *entry = slot;
                }
                index
            }
            None => {
                slots.entries.push(slot);
                slots.entries.len() - 1
            }
        };
        Timer { clock: Rc::clone(self), index }
    }

    /// Wakes every task that waits with a timer, whatever its deadline.
    pub fn wake_all(&self) {
        let wakers: Vec<Waker> =
            self.slots.borrow_mut().entries.iter_mut().filter_map(|slot| slot.waker.take()).collect();
        for waker in wakers {
            waker.wake();
        }
    }

    /// Wakes tasks as their deadlines pass. Runs for as long as the worker does.
    pub async fn run(&self) {
        loop {
            let now = self.millis();
            if now >= self.earliest.get() {
                self.walk(now);
            }
            let soonest = now.saturating_add(u64::try_from(GRAIN.as_millis()).unwrap_or(1));
            let next = self.earliest.get().clamp(soonest, now.saturating_add(PULSE));
            self.walker.set(next);
            let sleep = tokio::time::sleep_until(self.epoch + Duration::from_millis(next));
            tokio::select! {
                () = sleep => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    fn walk(&self, now: u64) {
        let mut due = Vec::new();
        let mut earliest = NEVER;
        for slot in &mut self.slots.borrow_mut().entries {
            if slot.at <= now {
                due.extend(slot.waker.take());
            } else {
                earliest = earliest.min(slot.at);
            }
        }
        self.earliest.set(earliest);
        for waker in due {
            waker.wake();
        }
    }
}

/// One deadline at a time, for one task.
#[derive(Debug)]
pub struct Timer {
    clock: Rc<Clock>,
    index: usize,
}

impl Timer {
    /// Sets the deadline `after` from now, or none.
    pub fn set(&self, after: Option<Duration>) {
        let at = after.map_or(NEVER, |after| {
            self.clock.millis().saturating_add(u64::try_from(after.as_millis()).unwrap_or(NEVER)).max(1)
        });
        self.set_at(at);
    }

    /// Sets the deadline to a time of [`Clock::millis`]; `u64::MAX` is none.
    pub fn set_at(&self, at: u64) {
        if let Some(slot) = self.clock.slots.borrow_mut().entries.get_mut(self.index) {
            slot.at = at;
        }
        if at < self.clock.earliest.get() {
            self.clock.earliest.set(at);
            if at < self.clock.walker.get() {
                self.clock.sooner.notify_one();
            }
        }
    }

    /// The clock that this timer belongs to.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Ready once the deadline has passed; until then the task is woken by it, and by
    /// [`Clock::wake_all`].
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut slots = self.clock.slots.borrow_mut();
        let Some(slot) = slots.entries.get_mut(self.index) else { return Poll::Pending };
        if slot.at != NEVER && slot.at <= self.clock.millis() {
            return Poll::Ready(());
        }
        match &mut slot.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Runs `future` with `limit` as its deadline, from when it first has to wait; `None`
    /// when that passed first.
    pub async fn within<F: Future>(&self, limit: Option<Duration>, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let mut waits = false;
        let output = poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            if !std::mem::replace(&mut waits, true) {
                self.set(limit);
            }
            self.poll(cx).map(|()| None)
        })
        .await;
        if waits {
            self.set(None);
        }
        output
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut slots = self.clock.slots.borrow_mut();
        if let Some(slot) = slots.entries.get_mut(self.index) {
            slot.at = NEVER;
            slot.waker = None;
        }
        slots.vacant.push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;
    use std::cell::Cell;
    use std::future::{pending, poll_fn};
    use std::rc::Rc;
    use std::task::Poll;
    use std::time::Duration;
    use tokio::time::Instant;

    async fn with_clock<F: Future>(test: impl FnOnce(Rc<Clock>) -> F) -> F::Output {
        let clock = Clock::since(Instant::now());
        let walker = Rc::clone(&clock);
        tokio::select! {
            () = walker.run() => unreachable!(),
            output = test(clock) => output,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_late_by_at_most_a_grain() {
        with_clock(|clock| async move {
            let start = Instant::now();
            let timer = clock.timer();
            assert_eq!(timer.within(Some(Duration::from_millis(300)), pending::<()>()).await, None);
            let late = start.elapsed().saturating_sub(Duration::from_millis(300));
            assert!(late <= super::GRAIN * 2, "{late:?}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_in_time_is_returned() {
        with_clock(|clock| async move {
            let timer = clock.timer();
            let done = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                7
            };
            assert_eq!(timer.within(Some(Duration::from_secs(2)), done).await, Some(7));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_can_move_in_both_directions() {
        with_clock(|clock| async move {
            let (timer, start) = (clock.timer(), Instant::now());
            timer.set(Some(Duration::from_secs(5)));
            tokio::task::yield_now().await;
            timer.set(Some(Duration::from_millis(100)));
            poll_fn(|cx| timer.poll(cx)).await;
            assert!(start.elapsed() < Duration::from_secs(1));
            timer.set(Some(Duration::from_secs(60)));
            poll_fn(|cx| timer.poll(cx)).await;
            assert!(start.elapsed() >= Duration::from_secs(60));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn waking_all_makes_waiting_tasks_look_again() {
        with_clock(|clock| async move {
            let stop = Cell::new(false);
            let timer = clock.timer();
            let waiting = poll_fn(|cx| {
                if stop.get() {
                    return Poll::Ready(());
                }
                timer.poll(cx)
            });
            let waking = async {
                tokio::task::yield_now().await;
                stop.set(true);
                clock.wake_all();
            };
            tokio::join!(waiting, waking);
            assert!(stop.get());
        })
        .await;
    }
}
