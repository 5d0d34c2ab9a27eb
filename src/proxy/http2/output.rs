//! Output: the send half of a stream (RFC 9113 §8.1).
//!
//! What goes out belongs to the `h2` crate once it is handed over, so it is copied, once, into
//! frames as large as everybody takes. No more is handed over than the peer has opened its
//! windows for: what waits for a window waits here, where the one who sends sees it. Small
//! pieces are gathered up, so that a small answer is one frame, and the last one ends the
//! stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

use super::limits::FRAME_SIZE;
use crate::proxy::head::Framing;
use crate::proxy::relay::Fault;

/// Bytes that are gathered up for a frame.
const GATHERED: usize = FRAME_SIZE as usize;

/// What is to go out on a stream, once that is open for it.
#[derive(Debug)]
pub struct Output {
    stream: Option<SendStream<Bytes>>,
    gathered: Vec<u8>,
    /// What was gathered before, and the windows had no room for.
    rest: Bytes,
    /// Bytes that the body still has by what its head says.
    left: Option<u64>,
    trailers: HeaderMap,
    finished: bool,
    written: u64,
}

impl Output {
    /// Nothing to go out yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stream: None,
            gathered: Vec::new(),
            rest: Bytes::new(),
            left: None,
            trailers: HeaderMap::new(),
            finished: true,
            written: 0,
        }
    }

    /// Begins a message whose body ends as `framing` says.
    pub fn begin(&mut self, framing: Framing) {
        self.drop_gathered();
        self.left = match framing {
            Framing::Empty => Some(0),
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        };
        self.finished = false;
        self.written = 0;
    }

    /// Drops the message that was begun, of which nothing was handed over.
    pub fn retract(&mut self) {
        self.drop_gathered();
        self.trailers.clear();
        self.finished = true;
    }

    fn drop_gathered(&mut self) {
        self.gathered.clear();
        self.rest.clear();
    }

    /// The head was handed over; what follows goes here.
    pub fn open(&mut self, stream: SendStream<Bytes>) {
        self.stream = Some(stream);
    }

    /// The stream, once it is open.
    pub fn stream_mut(&mut self) -> Option<&mut SendStream<Bytes>> {
        self.stream.as_mut()
    }

    /// Whether the message has no body and no fields behind it, as far as is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.gathered.is_empty() && self.rest.is_empty() && self.trailers.is_empty()
    }

    /// Whether the message ends as its head said. Else it must not look whole.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.left.unwrap_or(0) == 0
    }

    /// The message has been handed over whole.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Whether nothing was begun that was not handed over whole.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Bytes of the body that were handed over since the message began.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes in what fits into the next frame; 0 when that is full, or a part of the last one
    /// still waits.
    ///
    /// # Errors
    /// [`Fault::Truncated`] when there is more than the head said.
    pub fn gather(&mut self, data: &[u8]) -> Result<usize, Fault> {
        let left = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        if left == 0 || self.finished {
            return Err(Fault::Truncated);
        }
        let room = if self.rest.is_empty() { GATHERED.saturating_sub(self.gathered.len()) } else { 0 };
        let n = data.len().min(left).min(room);
        self.gathered.extend_from_slice(data.get(..n).unwrap_or_default());
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(u64::try_from(n).unwrap_or(0));
        }
        Ok(n)
    }

    /// Ends the body with these fields.
    pub fn trail(&mut self, fields: HeaderMap) {
        self.trailers = fields;
    }

    /// Hands over what was gathered up, as the windows allow. The stream must be open.
    ///
    /// # Errors
    /// [`Fault::Reset`] when it is closed.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.poll_hand_over(cx, false)
    }

    /// Ends the message. The stream must be open.
    ///
    /// # Errors
    /// [`Fault::Truncated`] when there should be more of the body, else as before.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        if !self.is_whole() {
            return Poll::Ready(Err(Fault::Truncated));
        }
        ready!(self.poll_hand_over(cx, self.trailers.is_empty()))?;
        if !self.finished {
            let trailers = std::mem::take(&mut self.trailers);
            let Some(stream) = self.stream.as_mut() else { return Poll::Ready(Err(Fault::Reset)) };
            let sent =
                if trailers.is_empty() { stream.send_data(Bytes::new(), true) } else { stream.send_trailers(trailers) };
            sent.map_err(|_| Fault::Reset)?;
            self.finished = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Hands over; the last frame ends the stream if `ends`.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>, ends: bool) -> Poll<Result<(), Fault>> {
        if !self.gathered.is_empty() {
            // Nothing is gathered while there is a rest. What came in one piece is its own
            // allocation then, and needs no other.
            self.rest = std::mem::take(&mut self.gathered).into();
        }
        while !self.rest.is_empty() {
            let Some(stream) = self.stream.as_mut() else { return Poll::Ready(Err(Fault::Reset)) };
            let room = ready!(poll_room(stream, cx, self.rest.len()))?;
            let piece = if room == self.rest.len() { std::mem::take(&mut self.rest) } else { self.rest.split_to(room) };
            self.written += u64::try_from(room).unwrap_or(0);
            let last = ends && self.rest.is_empty();
            stream.send_data(piece, last).map_err(|_| Fault::Reset)?;
            self.finished = last;
        }
        Poll::Ready(Ok(()))
    }
}

impl Default for Output {
    fn default() -> Self {
        Self::new()
    }
}

/// How many of so many bytes the peer takes now.
fn poll_room(stream: &mut SendStream<Bytes>, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Fault>> {
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room.min(wanted)));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Fault::Reset)),
        }
    }
}
