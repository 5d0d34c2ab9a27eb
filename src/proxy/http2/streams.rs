//! Streams: those of one client's connection, from when their stories begin until their last
//! frame is gone.
//!
//! A story may be over before that: what it has handed over may wait for the client to take it.
//! So a stream is owed to its client until its end was written, or the client has reset it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::limits::{self, Allowance};

/// The streams of a connection.
#[derive(Debug)]
pub struct Streams {
    /// How many have stories that are not over.
    told: Cell<usize>,
    /// Those whose end has neither been written nor come, in the order of their numbers, which
    /// is that in which they begin (RFC 9113 §5.1.1).
    begun: RefCell<VecDeque<Begun>>,
    /// How many of these have stories that are over.
    owed: Cell<usize>,
    /// The connection's.
    waker: RefCell<Option<Waker>>,
    /// Times that the connection had its turn, and could write all that was handed over.
    cleared: Cell<u64>,
    /// Those who wait for that.
    waiting: RefCell<Vec<Waker>>,
    resets: RefCell<Allowance>,
    /// The client has reset more than is borne.
    too_many_resets: Cell<bool>,
}

#[derive(Debug)]
struct Begun {
    id: u32,
    /// Its story is over.
    over: bool,
}

impl Streams {
    /// None yet.
    #[must_use]
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            told: Cell::new(0),
            begun: RefCell::default(),
            owed: Cell::new(0),
            waker: RefCell::default(),
            cleared: Cell::new(0),
            waiting: RefCell::default(),
            resets: RefCell::new(Allowance::new(limits::RESETS)),
            too_many_resets: Cell::new(false),
        })
    }

    /// A stream whose story begins.
    #[must_use]
    pub fn open(self: &Rc<Self>, id: u32) -> Open {
        self.told.set(self.told.get() + 1);
        self.begun.borrow_mut().push_back(Begun { id, over: false });
        Open { streams: Rc::clone(self), id }
    }

    /// Has this one woken when a story is over that it may wait for.
    pub fn wake_by(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// Forgets a stream; whether it was known.
    pub fn end(&self, id: u32) -> bool {
        let mut begun = self.begun.borrow_mut();
        let Ok(place) = begun.binary_search_by_key(&id, |known| known.id) else { return false };
        if begun.remove(place).is_some_and(|ended| ended.over) {
            self.owed.set(self.owed.get().saturating_sub(1));
        }
        true
    }

    /// Whether none is under way, and none is owed.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.told.get() == 0 && self.begun.borrow().is_empty()
    }

    /// How many are owed whose stories are over.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.owed.get()
    }

    /// Whether the client has reset more streams than is borne.
    #[must_use]
    pub fn too_many_resets(&self) -> bool {
        self.too_many_resets.get()
    }

    /// The connection had its turn, and nothing of what was handed over before is left but
    /// what waits for windows.
    pub fn clear(&self) {
        self.cleared.set(self.cleared.get() + 1);
        if !self.waiting.borrow().is_empty() {
            self.waiting.take().into_iter().for_each(Waker::wake);
        }
    }

    /// How often that was so.
    #[must_use]
    pub fn cleared(&self) -> u64 {
        self.cleared.get()
    }

    /// Ready when that was so once more than this often.
    pub fn poll_cleared(&self, cx: &Context<'_>, times: u64) -> Poll<()> {
        if self.cleared.get() > times {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Ready when all stories are over.
    pub fn poll_told(&self, cx: &Context<'_>) -> Poll<()> {
        self.wake_by(cx.waker());
        if self.told.get() == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// A stream whose story is not over; dropping it says that it is.
#[derive(Debug)]
pub struct Open {
    streams: Rc<Streams>,
    id: u32,
}

impl Open {
    /// The streams of its connection.
    #[must_use]
    pub fn streams(&self) -> &Rc<Streams> {
        &self.streams
    }

    /// Of a connection that has none else.
    #[cfg(test)]
    pub fn alone() -> Self {
        Streams::new().open(1)
    }

    /// The client did not wait for its answer.
    pub fn note_reset(&self, now: u64) {
        self.streams.end(self.id);
        if !self.streams.resets.borrow_mut().spend(now) {
            self.streams.too_many_resets.set(true);
            self.streams.wake();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let told = self.streams.told.get().saturating_sub(1);
        self.streams.told.set(told);
        let owed = {
            let mut begun = self.streams.begun.borrow_mut();
            let place = begun.binary_search_by_key(&self.id, |known| known.id).ok();
            let known = place.and_then(|place| begun.get_mut(place));
            known.map(|begun| begun.over = true).is_some()
        };
        if owed {
            self.streams.owed.set(self.streams.owed.get() + 1);
        }
        if told == 0 || owed {
            self.streams.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Streams;

    #[test]
    fn a_stream_is_owed_from_the_end_of_its_story_to_its_own() {
        let streams = Streams::new();
        let (one, three) = (streams.open(1), streams.open(3));
        assert!(streams.end(3) && !streams.end(3));
        drop(three);
        assert_eq!((streams.owed(), streams.is_none()), (0, false));
        drop(one);
        assert_eq!((streams.owed(), streams.is_none()), (1, false));
        assert!(streams.end(1));
        assert_eq!((streams.owed(), streams.is_none()), (0, true));
    }

    #[test]
    fn a_stream_that_its_client_has_reset_is_owed_to_nobody() {
        let streams = Streams::new();
        let open = streams.open(1);
        open.note_reset(0);
        drop(open);
        assert!(streams.is_none() && !streams.too_many_resets());
    }
}
