//! Io: carries the frames of one connection, as the `h2` crate wants them carried.
//!
//! The crate reads for as long as there is something to read; so that one connection does
//! not take all of a worker's time, what it can read in a turn is bounded here.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::{Breach, Ending, Endings, Guard};
use crate::transport::buffer::Buffer;
use crate::transport::clock::Clock;
use crate::transport::stream::Stream;

/// Bytes read in a turn, as a relay moves in one.
const TURN_BYTES: usize = 256 * 1024;

/// A connection's stream.
#[derive(Debug)]
pub struct Io {
    stream: Rc<Stream>,
    watch: Rc<Watch>,
    /// Bytes that were read before, and how many of them were passed on.
    before: Vec<u8>,
    passed: usize,
    /// Our direction was ended.
    ended: bool,
}

/// What is known of a connection by what it carries.
#[derive(Debug)]
pub struct Watch {
    clock: Rc<Clock>,
    guard: RefCell<Guard>,
    /// Those of a client's streams; a backend's are of no interest.
    endings: RefCell<Option<Endings>>,
    /// Bytes read in this turn.
    read: Cell<usize>,
    /// Bytes read and written in all.
    heard: Cell<u64>,
    written: Cell<u64>,
    /// Bytes written that the socket has not taken.
    held: Cell<u64>,
    /// The socket has taken no more when it was last tried.
    blocked: Cell<bool>,
    /// Writes are tried even if the socket does not count as ready for them.
    prodded: Cell<bool>,
}

impl Watch {
    /// Begins a turn.
    pub fn turn(&self) {
        self.read.set(0);
    }

    /// Why the connection must end, if it must; no more is read.
    #[must_use]
    pub fn breach(&self) -> Option<Breach> {
        self.guard.borrow().breach()
    }

    /// Since when a header block is under way, in milliseconds of the worker's clock.
    #[must_use]
    pub fn block_since(&self) -> Option<u64> {
        self.guard.borrow().block_since()
    }

    /// Counts a request that a backend is asked.
    pub fn asked(&self) {
        self.guard.borrow_mut().asked();
    }

    /// How large a head the backend takes, if it has said so; see [`Guard::header_list`].
    #[must_use]
    pub fn header_list(&self) -> Option<u32> {
        self.guard.borrow().header_list()
    }

    /// Bytes read in all.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.heard.get()
    }

    /// Bytes written in all.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.get()
    }

    /// Whether there is something to write that the socket has no room for.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Bytes of heads and bodies that the client has taken, or its socket for it.
    #[must_use]
    pub fn taken(&self) -> u64 {
        let carried = self.endings.borrow().as_ref().map_or(0, Endings::carried);
        carried.saturating_sub(self.held.get())
    }

    /// Has writes tried until there is no room at all, before the client is given up.
    pub fn prod(&self) {
        self.prodded.set(true);
    }

    /// The streams that the client has reset since this was last asked.
    #[must_use]
    pub fn take_resets(&self) -> Vec<u32> {
        self.guard.borrow_mut().take_resets()
    }

    /// The streams that we have ended since this was last asked.
    #[must_use]
    pub fn take_endings(&self) -> Vec<(u32, Ending)> {
        self.endings.borrow_mut().as_mut().map(Endings::take).unwrap_or_default()
    }

    /// The first `n` bytes of these were sent.
    fn note_sent(&self, n: usize, from: &[IoSlice<'_>]) {
        let mut endings = self.endings.borrow_mut();
        let Some(endings) = endings.as_mut() else { return self.guard.borrow_mut().sent(n) };
        let carried = endings.carried();
        let mut left = n;
        for slice in from {
            endings.sent(slice.get(..left.min(slice.len())).unwrap_or_default());
            left = left.saturating_sub(slice.len());
        }
        // What only answers a frame that brings nothing makes up for none.
        if endings.carried() > carried {
            self.guard.borrow_mut().sent(n);
        }
    }

    fn count(&self, bytes: &[u8]) {
        self.heard.set(self.heard.get() + u64::try_from(bytes.len()).unwrap_or(0));
        self.read.set(self.read.get() + bytes.len());
        self.guard.borrow_mut().read(bytes, self.clock.millis());
    }
}

impl Io {
    /// Over a stream of which `before` was read already.
    #[must_use]
    pub fn new(stream: Rc<Stream>, before: Vec<u8>, clock: Rc<Clock>, guard: Guard) -> (Self, Rc<Watch>) {
        let watch = Rc::new(Watch {
            clock,
            endings: RefCell::new(guard.is_of_client().then(Endings::default)),
            guard: RefCell::new(guard),
            read: Cell::new(0),
            heard: Cell::new(0),
            written: Cell::new(0),
            held: Cell::new(0),
            blocked: Cell::new(false),
            prodded: Cell::new(false),
        });
        (Self { stream, watch: Rc::clone(&watch), before, passed: 0, ended: false }, watch)
    }

    fn poll_send(&self, cx: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut prodded = self.watch.prodded.get();
        let outcome = self.stream.poll_write_prodded(cx, from, &mut prodded);
        self.watch.prodded.set(prodded);
        self.note_room(outcome.is_pending());
        if let Poll::Ready(Ok(n)) = outcome {
            self.watch.written.set(self.watch.written.get() + u64::try_from(n).unwrap_or(0));
            self.watch.note_sent(n, from);
        }
        outcome
    }

    /// Sends what was written and is held.
    fn poll_release(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut prodded = self.watch.prodded.get();
        let outcome = self.stream.poll_flush(cx, &mut prodded);
        self.watch.prodded.set(prodded);
        self.note_room(outcome.is_pending());
        outcome
    }

    fn note_room(&self, blocked: bool) {
        self.watch.blocked.set(blocked);
        self.watch.held.set(u64::try_from(self.stream.held()).unwrap_or(0));
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Whoever looks after the connection ends it now.
        if self.watch.breach().is_some() {
            return Poll::Pending;
        }
        if self.watch.read.get() >= TURN_BYTES {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = self.before.get(self.passed..).unwrap_or_default();
        if !before.is_empty() {
            let piece = before.get(..before.len().min(into.remaining())).unwrap_or_default();
            into.put_slice(piece);
            self.watch.count(piece);
            self.passed += piece.len();
            if self.passed == self.before.len() {
                self.before = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        // The crate asks for more after each frame.
        ready!(self.stream.poll_readable(cx))?;
        // Its room would have to be zeroed before a read, all of it for a few bytes; and what was
        // never touched takes no memory.
        let mut buffer = Buffer::take();
        let spare = buffer.spare();
        let most = into.remaining().min(spare.len());
        let n = ready!(self.stream.poll_read(cx, spare.get_mut(..most).unwrap_or_default()))?;
        buffer.fill(n);
        self.watch.count(buffer.filled());
        into.put_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, &[IoSlice::new(from)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_release(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            self.stream.shutdown_write()?;
        }
        self.poll_release(cx)
    }
}
