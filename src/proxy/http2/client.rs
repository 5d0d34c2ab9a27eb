//! The client's side of a stream: one request and its answer.
//!
//! An answer's head is handed over together with what comes first behind it, so that it can be
//! taken back until then, and so that one without a body ends its stream by itself. Streams
//! come and go by themselves: that an answer is to be the connection's last is for the
//! connection to see to.

use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream};
use http::Response;

use super::body::Body;
use super::fields;
use super::output::Output;
use super::streams::Streams;
use crate::proxy::client::{Client, Own};
use crate::proxy::head::{Framing, Method, RequestHead, ResponseHead};
use crate::proxy::relay::{Fault, Piece, Sink, Source};
use crate::routing::FieldEdits;
use crate::transport::stream::Gone;

/// A client's request on a stream of its own.
#[derive(Debug)]
pub struct Http2 {
    body: Body,
    respond: SendResponse<Bytes>,
    /// The head of an answer that was not handed over yet.
    head: Option<Response<()>>,
    output: Output,
    /// What the request asks, by its method.
    method: Method,
    /// The client takes fields behind the answer's body.
    trailers: bool,
    /// Bytes of the request's body, as far as its head says.
    announced: Option<u64>,
    /// What comes in is of another protocol, which was asked for and is not spoken yet.
    asks: bool,
    /// It is spoken now.
    switched: bool,
    /// What the answer sets besides.
    cookie: Option<Box<str>>,
    /// The client has reset the stream, or its connection is gone.
    left: bool,
    /// We have reset it.
    aborted: bool,
    /// Those of its connection; and how often what they have handed over was written when this
    /// one had handed over an interim response, which no window holds back.
    streams: Rc<Streams>,
    informed: Option<u64>,
}

impl Http2 {
    /// The client whose request has this head; `ended` says that nothing follows that.
    #[must_use]
    pub fn new(
        stream: RecvStream,
        ended: bool,
        respond: SendResponse<Bytes>,
        head: &RequestHead,
        streams: Rc<Streams>,
    ) -> Self {
        let announced = match head.framing {
            Framing::Length(length) => Some(length),
            _ => None,
        };
        Self {
            method: head.method,
            trailers: head.trailers,
            announced,
            asks: head.upgrade,
            ..Self::unread(stream, ended, respond, streams)
        }
    }

    /// One whose request has no head that can be made out.
    #[must_use]
    pub fn unread(stream: RecvStream, ended: bool, respond: SendResponse<Bytes>, streams: Rc<Streams>) -> Self {
        Self {
            body: Body::new(stream, ended),
            respond,
            head: None,
            output: Output::new(),
            method: Method::Other,
            trailers: false,
            announced: None,
            asks: false,
            switched: false,
            cookie: None,
            left: false,
            aborted: false,
            streams,
            informed: None,
        }
    }

    /// Whether the client left before its answer was whole, or broke its own request.
    #[must_use]
    pub fn has_left(&mut self) -> bool {
        // An answer that was handed over whole found it there.
        let answered = self.head.is_none() && self.output.is_finished() && self.output.stream_mut().is_some();
        let unknown = !self.left && !self.aborted && !answered;
        self.left || (unknown && self.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready())
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        let reset = match self.output.stream_mut() {
            Some(stream) => stream.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        // Whatever the error is, nobody is there any more.
        let _ = ready!(reset);
        self.left = true;
        Poll::Ready(Gone::Reset)
    }

    /// Hands the head over, if one waits; `ends` says that nothing follows.
    fn open(&mut self, ends: bool) -> Result<(), Fault> {
        if let Some(head) = self.head.take() {
            let stream = self.respond.send_response(head, ends).map_err(|_| Fault::Reset)?;
            self.output.open(stream);
            if ends {
                self.output.finish();
            }
        }
        Ok(())
    }
}

impl Source for Http2 {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        if self.asks { Poll::Ready(Ok(Piece::End)) } else { self.body.poll_piece(cx) }
    }

    fn consume(&mut self, n: usize) {
        self.body.consume(n);
    }

    fn withhold(&mut self, name: &[u8]) {
        self.body.withhold(name);
    }

    fn trailers(&self) -> &[u8] {
        self.body.trailers()
    }
}

impl Sink for Http2 {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        let gathered = self.output.gather(data)?;
        if gathered > 0 {
            return Poll::Ready(Ok(gathered));
        }
        self.open(false)?;
        ready!(self.output.poll_flush(cx))?;
        Poll::Ready(self.output.gather(data))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.open(false)?;
        if let Some(times) = self.informed {
            ready!(self.streams.poll_cleared(cx, times));
            self.informed = None;
        }
        self.output.poll_flush(cx)
    }

    fn trail(&mut self, lines: &[u8]) {
        if self.trailers && !lines.is_empty() {
            self.output.trail(fields::of_lines(lines));
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if !self.output.is_whole() {
            return Poll::Ready(Err(Fault::Truncated));
        }
        self.open(self.output.is_empty())?;
        self.output.poll_finish(cx)
    }
}

impl Client for Http2 {
    fn hold(&mut self, most: usize) {
        // One that says beforehand that it is larger is never gathered up.
        let fits = self.announced.is_none_or(|length| usize::try_from(length).is_ok_and(|length| length <= most));
        self.body.hold(if fits { most } else { 0 });
    }

    fn release(&mut self) {
        self.body.release();
    }

    fn forgo(&mut self) {
        self.body.forgo();
    }

    fn is_held(&self) -> bool {
        self.body.is_held()
    }

    fn rewind(&mut self) {
        self.body.rewind();
    }

    fn is_old(&self, _now: u64) -> bool {
        false
    }

    fn is_read(&self) -> bool {
        self.asks || self.body.is_read()
    }

    fn set_cookie(&mut self, cookie: Option<Box<str>>) {
        self.cookie = cookie;
    }

    fn inform(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>) {
        // The crate would send one after a reset, too.
        let gone = self.poll_reset(&mut Context::from_waker(Waker::noop())).is_ready();
        if !gone {
            // That it can't be sent will be seen when the answer can't.
            let _ = self.respond.send_informational(fields::interim(head, edits));
            self.informed = Some(self.streams.cleared());
        }
    }

    fn answer(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>, _last: bool) {
        let trailers = self.trailers && head.framing == Framing::Chunked;
        self.head = Some(fields::response(head, edits, self.cookie.take().as_deref(), trailers));
        self.output.begin(head.framing);
    }

    fn answer_own(&mut self, own: &Own<'_>, _last: bool) {
        self.head = Some(fields::own(own));
        let body = if self.method == Method::Head { &[] } else { own.body };
        let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
        self.output.begin(Framing::Length(length));
        // It is a few lines, for which there is room.
        let _ = self.output.gather(body);
    }

    fn retract(&mut self) -> bool {
        if self.head.take().is_some() {
            self.output.retract();
        }
        self.output.stream_mut().is_none()
    }

    fn switch(&mut self, head: &ResponseHead, edits: Option<&FieldEdits>) {
        self.head = Some(fields::switching(head, edits, self.cookie.take().as_deref()));
        self.output.begin(Framing::UntilClose);
        self.body.release();
        (self.asks, self.switched) = (false, true);
    }

    fn close_write(&mut self) -> Result<(), Fault> {
        // The answer's last frame has ended our direction of the stream.
        Ok(())
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        // Whoever looks for that waits, and the body waits with it.
        self.body.gather(cx);
        self.poll_reset(cx)
    }

    fn is_watched(&self) -> bool {
        true
    }

    fn abort(&mut self) {
        self.aborted = true;
        // The other protocol's end by a reset has a code of its own (RFC 8441 §5).
        self.respond.send_reset(if self.switched { Code::CANCEL } else { Code::INTERNAL_ERROR });
    }

    fn bytes_out(&self) -> u64 {
        self.output.written()
    }
}
