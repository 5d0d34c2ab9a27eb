//! Body: the receive half of a stream (RFC 9113 §8.1).
//!
//! A chunk is lent as it lies in the frame. Its bytes count as taken, and the peer may send as
//! many more, only once they were passed on: so a body that nobody takes fills its window and
//! no more. What waits of one, or is kept for another attempt, is copied where it came in small
//! frames, since a few bytes of a frame keep all of what it was read with.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;

use crate::proxy::http1::trailers::Trailers;
use crate::proxy::relay::{Fault, Piece, Source};
use crate::telemetry::Reason;
use crate::transport::buffer::Buffer;

/// Bytes in a frame from which on it is not copied to wait: half of what it may have kept from
/// being used again.
const LARGE: usize = 8 * 1024;

/// A body that comes in.
#[derive(Debug)]
pub struct Body {
    stream: RecvStream,
    /// What has come and was not asked for.
    ahead: Option<Box<Ahead>>,
    /// What was taken from the stream and not passed on.
    chunk: Bytes,
    /// No DATA is to come; fields may be.
    data_over: bool,
    /// Nothing is to come.
    over: bool,
    trailers: Trailers,
    held: Held,
}

/// What waits of a body.
#[derive(Debug, Default)]
struct Ahead {
    frames: VecDeque<Bytes>,
    /// Small frames behind them, as one.
    small: Vec<u8>,
}

impl Ahead {
    fn put(&mut self, frame: Bytes) {
        if frame.len() < LARGE {
            self.small.extend_from_slice(&frame);
            return;
        }
        if !self.small.is_empty() {
            self.frames.push_back(std::mem::take(&mut self.small).into());
        }
        self.frames.push_back(frame);
    }

    fn next(&mut self) -> Option<Bytes> {
        let small = || (!self.small.is_empty()).then(|| std::mem::take(&mut self.small).into());
        self.frames.pop_front().or_else(small)
    }
}

/// What is kept of a body, from its start.
#[derive(Debug, Default)]
struct Held {
    /// All that was passed on so far is kept.
    on: bool,
    most: usize,
    kept: Option<Buffer>,
    /// Bytes of it that were passed on since it was last gone back to.
    passed: usize,
}

impl Held {
    /// What is to be passed on again.
    fn rest(&self) -> &[u8] {
        self.kept.as_ref().and_then(|kept| kept.filled().get(self.passed..)).unwrap_or_default()
    }

    fn pass(&mut self, n: usize) {
        self.passed = self.passed.saturating_add(n);
        if !self.on && self.rest().is_empty() {
            self.drop();
        }
    }

    /// Keeps what is passed on for the first time, unless that is too much.
    fn keep(&mut self, piece: &[u8]) {
        if !self.on {
            return;
        }
        let kept = self.kept.get_or_insert_with(Buffer::take);
        let whole = kept.len().saturating_add(piece.len());
        let wanted = if whole > kept.capacity() { whole.max(kept.capacity() * 2).min(self.most) } else { 0 };
        if whole > self.most || !kept.extend(wanted) {
            self.on = false;
            self.drop();
            return;
        }
        kept.append(piece);
        self.passed = whole;
    }

    fn drop(&mut self) {
        (self.kept, self.passed) = (None, 0);
    }
}

impl Body {
    /// A body of which nothing was read; `over` says that there is none.
    #[must_use]
    pub fn new(stream: RecvStream, over: bool) -> Self {
        Self {
            stream,
            ahead: None,
            chunk: Bytes::new(),
            data_over: over,
            over,
            trailers: Trailers::default(),
            held: Held::default(),
        }
    }

    /// Keeps what is passed on from here on, up to `most` bytes.
    pub fn hold(&mut self, most: usize) {
        self.held.on = true;
        self.held.most = most;
    }

    /// Keeps no more.
    pub fn release(&mut self) {
        self.held.on = false;
        self.held.pass(0);
    }

    /// Gives up what is kept; what has come of a body that is whole counts as dealt with.
    pub fn forgo(&mut self) {
        self.held.on = false;
        self.held.drop();
        if self.stream.is_end_stream() {
            self.take(self.chunk.len());
            while let Some(chunk) = self.next_ahead() {
                self.chunk = chunk;
                self.take(self.chunk.len());
            }
            (self.data_over, self.over) = (true, true);
        }
    }

    /// Whether all that was passed on so far is kept.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.on
    }

    /// Goes back to the start of a body that is kept.
    pub fn rewind(&mut self) {
        if self.held.on {
            self.held.passed = 0;
        }
    }

    /// Whether it was passed on to its end.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.over && self.chunk.is_empty() && self.held.rest().is_empty()
    }

    /// Takes in what has come while nobody asks for it; the peer may send no more for that.
    pub fn gather(&mut self, cx: &mut Context<'_>) {
        while !self.data_over {
            // An end or an error is found again by who asks.
            let Poll::Ready(Some(Ok(frame))) = self.stream.poll_data(cx) else { return };
            self.ahead.get_or_insert_default().put(frame);
        }
    }

    fn next_ahead(&mut self) -> Option<Bytes> {
        let next = self.ahead.as_mut()?.next();
        if next.is_none() {
            self.ahead = None;
        }
        next
    }

    /// Takes bytes off the chunk; the peer may send as many more.
    fn take(&mut self, n: usize) -> Bytes {
        let piece = self.chunk.split_to(n.min(self.chunk.len()));
        // It fails for a stream that is closed, whose window is of no interest.
        let _ = self.stream.flow_control().release_capacity(piece.len());
        piece
    }

    fn take_trailers(&mut self, fields: &HeaderMap) -> Result<(), Fault> {
        for (name, value) in fields {
            let taken = self.trailers.take(name.as_str().as_bytes(), value.as_bytes());
            taken.ok_or(Fault::Malformed(Reason::BadRequest))?;
        }
        Ok(())
    }
}

impl Source for Body {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        if self.held.rest().is_empty() {
            while self.chunk.is_empty() && !self.over {
                if let Some(chunk) = self.next_ahead() {
                    self.chunk = chunk;
                    continue;
                }
                if !self.data_over {
                    match ready!(self.stream.poll_data(cx)) {
                        Some(chunk) => self.chunk = chunk.map_err(|error| fault(&error))?,
                        None => self.data_over = true,
                    }
                    continue;
                }
                if let Some(fields) = ready!(self.stream.poll_trailers(cx)).map_err(|error| fault(&error))? {
                    self.take_trailers(&fields)?;
                }
                self.over = true;
            }
            if self.chunk.is_empty() {
                return Poll::Ready(Ok(Piece::End));
            }
            return Poll::Ready(Ok(Piece::Data(&self.chunk)));
        }
        Poll::Ready(Ok(Piece::Data(self.held.rest())))
    }

    fn consume(&mut self, n: usize) {
        if self.held.rest().is_empty() {
            let piece = self.take(n);
            self.held.keep(&piece);
        } else {
            self.held.pass(n);
        }
    }

    fn withhold(&mut self, name: &[u8]) {
        self.trailers.withhold(name);
    }

    fn trailers(&self) -> &[u8] {
        self.trailers.lines()
    }
}

/// What an error of a stream's receive half means: the peer broke its own message, or left.
pub fn fault(error: &h2::Error) -> Fault {
    if error.is_library() && error.is_reset() { Fault::Malformed(Reason::BadRequest) } else { Fault::Reset }
}
