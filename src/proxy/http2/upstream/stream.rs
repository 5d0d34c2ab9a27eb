//! Stream: one request asked of a backend over HTTP/2, as an exchange sees it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Error, Reason as Code, RecvStream, SendStream};
use http::HeaderMap;

use super::connection::Place;
use super::head;
use crate::proxy::forwarded::Forwarded;
use crate::proxy::head::{Framing, Method, RequestHead, ResponseHead};
use crate::proxy::http1::trailers::Trailers;
use crate::proxy::relay::{Fault, Piece, Sink, Source};
use crate::proxy::rewrite::Rewrite;
use crate::telemetry::Reason;

/// Bytes of a request's body in one piece: what every peer takes in a frame (RFC 9113 §4.2).
const PIECE: usize = 16 * 1024;

/// A stream of a connection to a backend.
#[derive(Debug)]
pub struct Http2Upstream {
    /// The connection had answered before this request came.
    reused: bool,
    /// What had gone out and come in on the connection by then, in bytes.
    written: u64,
    heard: u64,
    /// What failed at once, or what failed last.
    fault: Option<Fault>,
    /// The failure was the connection's, and so that of all its streams.
    lost: bool,
    /// The backend says that it has done nothing about the request.
    unprocessed: bool,
    /// So that another connection is to do it: this one has ended in order (RFC 9113 §6.8).
    displaced: bool,
    /// Something of a response was read.
    answered: bool,
    request: Option<Request>,
    response: Option<ResponseFuture>,
    answer: Answer,
    /// Its place on the connection, given back when all of it has gone.
    place: Place,
}

/// The half that carries the request.
#[derive(Debug)]
struct Request {
    stream: SendStream<Bytes>,
    framing: Framing,
    /// Fields behind the body.
    trailers: HeaderMap,
    ended: bool,
}

/// The half that carries the response.
#[derive(Debug, Default)]
struct Answer {
    stream: Option<RecvStream>,
    /// What was taken out of the stream, and is not dealt with.
    pieces: VecDeque<Bytes>,
    /// Bytes of them all.
    taken: usize,
    trailers: Trailers,
    ended: bool,
}

impl Http2Upstream {
    /// A stream at this place, of which nothing was asked yet.
    #[must_use]
    pub fn new(place: Place) -> Self {
        let connection = place.connection();
        Self {
            reused: connection.has_answered(),
            written: connection.written(),
            heard: connection.heard(),
            place,
            fault: None,
            lost: false,
            unprocessed: false,
            displaced: false,
            answered: false,
            request: None,
            response: None,
            answer: Answer::default(),
        }
    }

    /// See [`crate::proxy::upstream::Upstream::begin`].
    pub fn begin(&mut self, asked: &RequestHead, forwarded: &Forwarded<'_>, rewrite: &Rewrite<'_>) {
        let ended = matches!(asked.framing, Framing::Empty | Framing::Length(0));
        let connection = self.place.connection();
        let request = match head::request(asked, forwarded, rewrite, connection.scheme()) {
            Some(request) if connection.takes(&request) => Ok(request),
            // It would be reset, or answered by who knows what.
            Some(_) => Err(Reason::BackendHeaderLimit),
            // Its target is too long once it is encoded.
            None => Err(Reason::TargetTooLong),
        };
        let begun = match request {
            Ok(request) => connection.send(request, ended),
            Err(reason) => {
                self.fault = Some(Fault::Malformed(reason));
                self.unprocessed = true;
                return;
            }
        };
        match begun {
            Ok((response, stream)) => {
                self.request = Some(Request { stream, framing: asked.framing, trailers: HeaderMap::new(), ended });
                self.response = Some(response);
            }
            Err(error) => {
                self.fail(&error);
                self.unprocessed = true;
                // It has stopped taking requests since there was a place on it.
                self.displaced |= error.reason() == Some(Code::REFUSED_STREAM);
            }
        }
    }

    /// Reads a response head, interim or final.
    ///
    /// # Errors
    /// The backend's fault.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, to: Method) -> Poll<Result<ResponseHead, Fault>> {
        let Some(response) = self.response.as_mut().filter(|_| self.fault.is_none()) else {
            return Poll::Ready(Err(self.fault.unwrap_or(Fault::Reset)));
        };
        let head = match response.poll_informational(cx) {
            Poll::Ready(Some(Ok(interim))) => {
                let (parts, ()) = interim.into_parts();
                head::response(parts.status, &parts.headers, true, to)
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(self.fail(&error))),
            Poll::Ready(None) | Poll::Pending => match ready!(Pin::new(response).poll(cx)) {
                Ok(answer) => {
                    let (parts, stream) = answer.into_parts();
                    self.response = None;
                    let head = head::response(parts.status, &parts.headers, stream.is_end_stream(), to);
                    self.answer.ended = matches!(&head, Ok(head) if head.framing == Framing::Empty);
                    self.answer.stream = Some(stream);
                    head
                }
                Err(error) => return Poll::Ready(Err(self.fail(&error))),
            },
        };
        self.answered = true;
        self.place.connection().note_answer();
        Poll::Ready(head.map_err(|reason| *self.fault.insert(Fault::Malformed(reason))))
    }

    /// See [`crate::proxy::upstream::Upstream::stays`]. A backend that wants no more resets
    /// the stream (RFC 9113 §8.1).
    #[must_use]
    pub fn stays(&mut self) -> bool {
        self.poll_stirs(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Ready when the stream is reset.
    pub fn poll_stirs(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.request {
            Some(request) => request.stream.poll_reset(cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    /// Whether its connection had answered a request before.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Whether the backend may have got anything of the request. What goes out on a
    /// connection is not told apart by streams: once anything went out after the request was
    /// queued, the request may have been in it.
    #[must_use]
    pub fn has_written(&self) -> bool {
        !self.unprocessed && self.place.connection().written() != self.written
    }

    /// See [`crate::proxy::upstream::Upstream::is_displaced`].
    #[must_use]
    pub fn is_displaced(&self) -> bool {
        self.displaced
    }

    /// Whether anything of a response has come.
    #[must_use]
    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// See [`crate::proxy::upstream::Upstream::is_to_blame`].
    #[must_use]
    pub fn is_to_blame(&self) -> bool {
        !self.lost || self.place.connection().blame()
    }

    /// See [`crate::proxy::upstream::Upstream::doubt`]. A connection on which anything was
    /// heard meanwhile is sound.
    pub fn doubt(&mut self) {
        if self.place.connection().heard() == self.heard {
            self.place.doubt();
        }
    }

    /// See [`crate::proxy::upstream::Upstream::poll_whole`].
    pub fn poll_whole(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<bool> {
        loop {
            if self.answer.taken > most {
                return Poll::Ready(false);
            }
            if self.answer.ended {
                return Poll::Ready(true);
            }
            // Found again by whoever reads it.
            if ready!(self.poll_fill(cx)).is_err() {
                return Poll::Ready(false);
            }
        }
    }

    /// Takes the next piece out of the stream, or what stands behind the last one.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault));
        }
        let Some(stream) = self.answer.stream.as_mut() else { return Poll::Ready(Err(Fault::Truncated)) };
        let error = match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) => {
                if !data.is_empty() {
                    self.answer.taken += data.len();
                    self.answer.pieces.push_back(data);
                }
                return Poll::Ready(Ok(()));
            }
            Some(Err(error)) => error,
            None => match ready!(stream.poll_trailers(cx)) {
                Ok(trailers) => {
                    self.answer.ended = true;
                    let kept = head::trailers(&mut self.answer.trailers, trailers.as_ref());
                    let malformed = || *self.fault.insert(Fault::Malformed(Reason::BackendMalformed));
                    return Poll::Ready(kept.ok_or_else(malformed));
                }
                Err(error) => error,
            },
        };
        Poll::Ready(Err(self.fail(&error)))
    }

    /// What an error says of the backend.
    fn fail(&mut self, error: &Error) -> Fault {
        let refused = error.reason() == Some(Code::REFUSED_STREAM);
        // The end of the connection is told by a GOAWAY that leaves this stream out (RFC 9113
        // §6.8), or not at all.
        self.lost = !error.is_reset();
        let left_out = error.is_remote() && error.is_go_away();
        self.unprocessed |= left_out || (error.is_remote() && refused);
        if left_out && error.reason() == Some(Code::NO_ERROR) && !self.displaced {
            self.displaced = true;
            self.place.connection().note_left_out();
        }
        let fault = if error.is_reset() && error.is_remote() {
            // It has done nothing about the request, whatever that is (RFC 9113 §8.7).
            if refused { Fault::Refused } else { Fault::Reset }
        } else if error.is_library() {
            // What was found wrong, with the stream or with all of the connection.
            Fault::Malformed(Reason::BackendMalformed)
        } else {
            match error.get_io().map(io::Error::kind) {
                None | Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => Fault::Truncated,
                Some(_) => Fault::Reset,
            }
        };
        *self.fault.insert(fault)
    }
}

impl Source for Http2Upstream {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        while self.answer.pieces.is_empty() && !self.answer.ended {
            ready!(self.poll_fill(cx))?;
        }
        Poll::Ready(Ok(self.answer.pieces.front().map_or(Piece::End, |data| Piece::Data(data))))
    }

    fn consume(&mut self, n: usize) {
        let Some(data) = self.answer.pieces.front_mut() else { return };
        let consumed = n.min(data.len());
        data.advance(consumed);
        self.answer.taken -= consumed;
        if data.is_empty() {
            self.answer.pieces.pop_front();
        }
        // Only now may the backend send as much again.
        if let Some(stream) = &mut self.answer.stream {
            let _ = stream.flow_control().release_capacity(n);
        }
    }

    fn withhold(&mut self, name: &[u8]) {
        self.answer.trailers.withhold(name);
    }

    fn trailers(&self) -> &[u8] {
        self.answer.trailers.lines()
    }
}

impl Sink for Http2Upstream {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        let Some(Request { stream, framing, .. }) = &mut self.request else { return Poll::Ready(Err(Fault::Reset)) };
        let wanted = data.len().min(PIECE);
        if stream.capacity() == 0 {
            stream.reserve_capacity(wanted);
            // What the error is, the response will tell.
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Fault::Reset)),
            }
        }
        let taken = data.get(..wanted.min(stream.capacity())).unwrap_or_default();
        stream.send_data(Bytes::copy_from_slice(taken), false).map_err(|_| Fault::Reset)?;
        if let Framing::Length(left) = framing {
            *left = left.saturating_sub(u64::try_from(taken.len()).unwrap_or(u64::MAX));
        }
        Poll::Ready(Ok(taken.len()))
    }

    /// What was queued goes out by itself.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn trail(&mut self, lines: &[u8]) {
        if let Some(request) = &mut self.request {
            request.trailers = head::of_lines(lines);
        }
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Some(Request { stream, framing, trailers, ended }) = &mut self.request else {
            return Poll::Ready(Err(Fault::Reset));
        };
        if std::mem::replace(ended, true) {
            return Poll::Ready(Ok(()));
        }
        if matches!(framing, Framing::Length(left) if *left > 0) {
            return Poll::Ready(Err(Fault::Truncated));
        }
        let trailers = std::mem::take(trailers);
        let sent =
            if trailers.is_empty() { stream.send_data(Bytes::new(), true) } else { stream.send_trailers(trailers) };
        Poll::Ready(sent.map_err(|_| Fault::Reset))
    }
}
