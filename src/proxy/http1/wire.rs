//! Wire: one HTTP/1 connection's bytes, in both roles.
//!
//! Here is the read half, which finds heads and lends bodies; the write half is
//! [`super::output`]. A wire that waits for a peer owns no
//! buffer: it takes one when there is something to read.

use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::body::Decoder;
use super::output::Output;
use super::parse;
use crate::proxy::head::{Framing, Method, RequestHead, ResponseHead};
use crate::proxy::relay::{Fault, Piece, Raw, Sink, Source};
use crate::telemetry::Reason;
use crate::transport::buffer::{self, Buffer};
use crate::transport::stream::Stream;
use crate::transport::tls;

/// An HTTP/1 connection.
#[derive(Debug)]
pub struct Wire {
    io: Rc<Stream>,
    /// Bytes read: `..lent` is body already consumed but held for a replay,
    /// `lent..data` is body to lend, `data..raw` is free, `raw..` is yet undecoded.
    input: Option<Buffer>,
    lent: usize,
    data: usize,
    raw: usize,
    decoder: Decoder,
    /// Consumed body is held, so that it can be sent again.
    holding: bool,
    /// Up to so many bytes.
    hold_most: usize,
    /// Bytes of a head that were searched for its end.
    searched: usize,
    output: Output,
}

impl Wire {
    /// A wire over a connected stream.
    #[must_use]
    pub fn new(io: Stream) -> Self {
        let io = Rc::new(io);
        Self {
            output: Output::new(Rc::clone(&io)),
            io,
            input: None,
            lent: 0,
            data: 0,
            raw: 0,
            decoder: Decoder::new(Framing::Empty),
            holding: false,
            hold_most: 0,
            searched: 0,
        }
    }

    /// The stream, to watch it or to change its options.
    #[must_use]
    pub fn io(&self) -> &Rc<Stream> {
        &self.io
    }

    /// The stream alone. Whatever was read or is to be written is lost.
    #[must_use]
    pub fn into_io(self) -> Rc<Stream> {
        self.io
    }

    /// The same with what was read and belongs to no message yet.
    #[must_use]
    pub fn into_parts(self) -> (Rc<Stream>, Vec<u8>) {
        let read = self.unread().to_vec();
        (self.io, read)
    }

    /// Bytes that were read and belong to no message yet.
    #[must_use]
    pub fn unread(&self) -> &[u8] {
        self.input.as_ref().and_then(|input| input.filled().get(self.raw..)).unwrap_or_default()
    }

    /// Whether bytes were read that belong to no message yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.input.as_ref().is_some_and(|input| self.raw < input.len())
    }

    /// Ready when the peer has sent something, which is then read, or ended.
    ///
    /// Readiness alone proves nothing: of a connection just accepted nothing is known, and
    /// one whose last read filled the buffer still counts as readable. So this reads.
    ///
    /// # Errors
    /// [`Fault::Reset`].
    pub fn poll_stirs(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if self.has_input() {
            return Poll::Ready(Ok(()));
        }
        self.drop_decoded();
        self.decoder.clear();
        self.poll_fill(cx).map_ok(|_| ())
    }

    /// Drops empty lines that stand before a request (RFC 9112 §2.2), `most` of them, so
    /// that they don't begin one. `true` when that was all there is.
    pub fn skip_empty_lines(&mut self, most: &mut u32) -> bool {
        self.drop_decoded();
        let mut skipped = false;
        while let Some(input) = self.input.as_mut().filter(|input| *most > 0 && input.filled().starts_with(b"\r\n")) {
            *most -= 1;
            skipped = true;
            input.consume(2);
            self.drop_decoded();
        }
        skipped && !self.has_input()
    }

    /// Reads until a request head is whole; `None` when the peer ended before its
    /// first byte. A head has `limit` bytes at most.
    ///
    /// # Errors
    /// The fault; [`Fault::Malformed`] carries the reason to refuse it with.
    pub fn poll_request(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Result<Option<RequestHead>, Fault>> {
        let too_large = |bytes: &[u8]| {
            if memchr::memchr(b'\n', bytes).is_none() { Reason::TargetTooLong } else { Reason::HeaderTooLarge }
        };
        let head = ready!(self.poll_head(cx, limit, too_large, |input| parse::request(input, limit)))?;
        if let Some(head) = &head {
            self.begin_body(Decoder::behind(head.framing, &head.fields));
        }
        Poll::Ready(Ok(head))
    }

    /// Reads until a response head is whole. `to` is the request's method.
    ///
    /// # Errors
    /// The fault; the peer's end is [`Fault::Truncated`].
    pub fn poll_response(&mut self, cx: &mut Context<'_>, to: Method) -> Poll<Result<ResponseHead, Fault>> {
        let too_large = |_: &[u8]| Reason::BackendHeaderTooLarge;
        let limit = usize::from(u16::MAX);
        let head = ready!(self.poll_head(cx, limit, too_large, |input| parse::response(input, to)))?;
        let head = head.ok_or(Fault::Truncated)?;
        if !head.is_interim() {
            self.begin_body(Decoder::behind(head.framing, &head.fields));
        }
        Poll::Ready(Ok(head))
    }

    fn poll_head<T>(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
        too_large: impl Fn(&[u8]) -> Reason,
        parse: impl Fn(&mut Option<Buffer>) -> Result<Option<T>, Reason>,
    ) -> Poll<Result<Option<T>, Fault>> {
        self.drop_decoded();
        loop {
            if let Some(input) = self.input.as_mut() {
                let length = input.len();
                // The first bytes are parsed as they are, so that what is no HTTP is refused
                // at once; after that, only a whole head is worth parsing.
                if length > 0 && (self.searched == 0 || parse::has_end(input.filled(), self.searched)) {
                    match parse(&mut self.input).map_err(Fault::Malformed)? {
                        Some(head) => {
                            self.searched = 0;
                            return Poll::Ready(Ok(Some(head)));
                        }
                        None => self.searched = length,
                    }
                } else {
                    self.searched = length;
                }
            }
            if let Some(input) = self.input.as_mut() {
                if input.len() >= limit {
                    return Poll::Ready(Err(Fault::Malformed(too_large(input.filled()))));
                }
                input.compact();
                input.widen();
                if input.spare().is_empty() {
                    input.grow(limit.min(input.capacity().saturating_mul(2)));
                }
            }
            let filled = self.poll_fill(cx)?;
            if let (true, Some(input)) = (filled.is_pending(), self.input.as_mut()) {
                input.rest();
            }
            match ready!(filled) {
                0 if self.input.as_ref().is_none_or(Buffer::is_empty) => return Poll::Ready(Ok(None)),
                0 => return Poll::Ready(Err(Fault::Truncated)),
                _ => {}
            }
        }
    }

    /// Takes up the body that follows a head.
    fn begin_body(&mut self, decoder: Decoder) {
        self.decoder = decoder;
        self.lent = 0;
        self.data = 0;
        self.raw = 0;
    }

    /// Holds consumed bytes of the body from here on, until they are more than `most`, or
    /// more than there is memory for.
    pub fn hold(&mut self, most: usize) {
        self.holding = true;
        self.hold_most = most;
    }

    /// Stops holding.
    pub fn release(&mut self) {
        self.holding = false;
    }

    /// Gives up what is held of the body, for a request that is not made again: what was read
    /// of it counts as dealt with.
    pub fn forgo(&mut self) {
        self.holding = false;
        if self.decoder.is_done() {
            self.lent = self.data;
        }
    }

    /// Goes back to the start of the body. `false` when bytes of it are gone.
    pub fn rewind(&mut self) -> bool {
        if self.holding {
            self.lent = 0;
        }
        self.holding
    }

    /// Whether [`Self::rewind`] would succeed.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.holding
    }

    /// Whether the body of the message being read was read to its end.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.decoder.is_done() && self.lent == self.data
    }

    /// Bytes that the body being read still has, as far as its head said; `None` for one
    /// that says so as it goes.
    #[must_use]
    pub fn announced(&self) -> Option<u64> {
        self.decoder.announced()
    }

    /// Reads a body on without lending any of it: whether all of it comes to be in the buffer
    /// and is no more than `most`. Whatever it says, nothing is lost.
    pub fn poll_whole(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<bool> {
        loop {
            loop {
                match self.decode() {
                    Ok(true) => {}
                    Ok(false) => break,
                    // Found again by whoever reads it.
                    Err(_) => return Poll::Ready(false),
                }
            }
            let left = self.decoder.announced().map_or(0, |left| usize::try_from(left).unwrap_or(usize::MAX));
            if (self.data - self.lent).saturating_add(left) > most {
                return Poll::Ready(false);
            }
            if self.decoder.is_done() {
                return Poll::Ready(true);
            }
            if let Some(input) = self.input.as_mut() {
                input.compact();
                input.widen();
                if input.spare().is_empty() {
                    return Poll::Ready(false);
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if self.decoder.end().is_err() => return Poll::Ready(false),
                Ok(_) => {}
                Err(_) => return Poll::Ready(false),
            }
        }
    }

    /// Reads and drops what is left of a body, without keeping any; `None` at the end of
    /// the stream.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        self.input = None;
        (self.lent, self.data, self.raw) = (0, 0, 0);
        match ready!(self.poll_fill(cx)) {
            Ok(0) | Err(_) => Poll::Ready(None),
            Ok(n) => {
                self.input = None;
                Poll::Ready(Some(n))
            }
        }
    }

    /// From here on the connection carries bytes of no framing, in both directions.
    pub fn become_tunnel(&mut self) {
        self.begin_body(Decoder::new(Framing::UntilClose));
        self.holding = false;
        self.output.become_tunnel();
    }

    /// Gives back what a body that was dealt with has left behind.
    pub fn forget_body(&mut self) {
        self.decoder.clear();
    }

    /// What is to go out.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// What is to go out, to begin a message.
    pub fn output_mut(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Decodes more of a body, from what was read; `false` when there is no more.
    #[inline]
    fn decode(&mut self) -> Result<bool, Fault> {
        let Some(input) = self.input.as_mut().filter(|input| self.raw < input.len()) else { return Ok(false) };
        if self.decoder.is_done() {
            return Ok(false);
        }
        let filled = input.filled_mut();
        let raw = filled.get_mut(self.raw..).unwrap_or_default();
        let decoded = self.decoder.decode(raw)?;
        // Keep the body in one piece: close the gap that framing left.
        if self.raw > self.data {
            filled.copy_within(self.raw..self.raw + decoded.data, self.data);
        }
        self.data += decoded.data;
        self.raw += decoded.taken;
        Ok(true)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Fault>> {
        if self.input.is_none() {
            // Wait first: a connection that waits owns no buffer.
            ready!(self.io.poll_readable(cx)).map_err(|_| Fault::Reset)?;
        }
        let input = self.input.get_or_insert_with(Buffer::take_wide);
        let outcome = self.io.poll_read(cx, input.spare()).map_err(|error| fault(&error));
        if outcome.is_pending() && input.is_empty() {
            self.input = None;
            return Poll::Pending;
        }
        let n = ready!(outcome)?;
        input.fill(n);
        Poll::Ready(Ok(n))
    }

    /// Drops what was decoded and lent, so that the buffer begins with undecoded bytes.
    fn drop_decoded(&mut self) {
        if let Some(input) = self.input.as_mut() {
            input.consume(self.raw);
            if input.is_empty() {
                self.input = None;
            }
        }
        (self.lent, self.data, self.raw) = (0, 0, 0);
    }

    /// Makes room for more of a body.
    fn make_room(&mut self) {
        self.holding = self.holding && self.has_room_to_hold();
        if !self.holding {
            self.drop_decoded();
        }
        if let Some(input) = self.input.as_mut() {
            input.compact();
        }
    }

    /// Whether there is room for more of a body, or some can be made, with all of it held.
    /// One that is going to be too much is held only while that takes no more than a body
    /// which is not held.
    fn has_room_to_hold(&mut self) -> bool {
        let Some(input) = self.input.as_mut() else { return true };
        if self.raw == input.len() {
            // Framing behind the data, which has been dealt with.
            input.truncate(self.data);
            self.raw = self.data;
        }
        if input.len() < buffer::SIZE {
            return true;
        }
        let left = self.decoder.announced().map(|left| usize::try_from(left).unwrap_or(usize::MAX));
        let whole = self.data.saturating_add(left.unwrap_or(0));
        if whole > self.hold_most {
            return false;
        }
        input.compact();
        // With the framing between, if there is some.
        let wanted = if left.is_some() { whole } else { input.capacity().saturating_mul(2) };
        !input.spare().is_empty() || input.extend(wanted.min(self.hold_most.saturating_add(buffer::SIZE)))
    }
}

/// What a failed read says of the peer.
fn fault(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Fault::Truncated,
        io::ErrorKind::InvalidData if matches!(tls::fault(error), tls::Fault::Alert(_)) => Fault::Alert,
        _ => Fault::Reset,
    }
}

impl Source for Wire {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        while self.lent == self.data && !self.decoder.is_done() {
            if self.decode()? {
                continue;
            }
            self.make_room();
            if ready!(self.poll_fill(cx))? == 0 {
                self.decoder.end()?;
            }
        }
        if self.lent == self.data {
            if !self.holding {
                self.drop_decoded();
            }
            return Poll::Ready(Ok(Piece::End));
        }
        let filled = self.input.as_ref().map(Buffer::filled).unwrap_or_default();
        Poll::Ready(Ok(Piece::Data(filled.get(self.lent..self.data).unwrap_or_default())))
    }

    fn consume(&mut self, n: usize) {
        self.lent = self.lent.saturating_add(n).min(self.data);
        self.holding &= self.lent <= self.hold_most;
    }

    fn raw_source(&self) -> Option<Raw<'_>> {
        let has_bytes = self.holding || self.lent < self.data || self.has_input() || self.io.tls().is_some();
        self.decoder.plain().filter(|_| !has_bytes).map(|left| Raw { io: &self.io, left, anyway: false })
    }

    fn spliced_from(&mut self, n: usize) {
        self.drop_decoded();
        self.decoder.skip(u64::try_from(n).unwrap_or(u64::MAX));
    }

    fn withhold(&mut self, name: &[u8]) {
        self.decoder.withhold(name);
    }

    fn trailers(&self) -> &[u8] {
        self.decoder.trailers()
    }
}

impl Sink for Wire {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        self.output.poll_push(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.output.poll_flush(cx)
    }

    fn held(&self) -> usize {
        self.output.held()
    }

    fn prod(&mut self) {
        self.output.prod();
    }

    fn trail(&mut self, lines: &[u8]) {
        self.output.trail(lines);
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        self.output.poll_finish(cx)
    }

    fn raw_sink(&self) -> Option<Raw<'_>> {
        self.output.raw_sink()
    }

    fn spliced_to(&mut self, n: usize) {
        self.output.spliced_to(n);
    }
}

#[cfg(test)]
mod tests {
    use super::{Method, Piece, Source, Wire};
    use crate::transport::stream::{Family, Socket};
    use std::future::poll_fn;
    use std::io::Write;
    use std::net::TcpListener;
    use std::task::{Context, Poll, Waker};

    #[tokio::test]
    async fn a_connection_that_has_sent_nothing_does_not_stir_and_owns_no_buffer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let mut wire = Wire::new(Socket::new(accepted.into(), Family::Tcp).into());
        let polled = wire.poll_stirs(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending) && wire.input.is_none());
        peer.write_all(b"G").unwrap();
        poll_fn(|cx| wire.poll_stirs(cx)).await.unwrap();
        assert!(wire.has_input());
    }

    #[tokio::test]
    async fn asking_whether_a_body_is_whole_loses_nothing_and_lets_nothing_malformed_pass() {
        for (sent, whole, read) in [
            ("Content-Length: 4\r\n\r\nbody", true, Some("body")),
            ("Content-Length: 9\r\n\r\nlong body", false, Some("long body")),
            ("Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n", true, Some("body")),
            ("Transfer-Encoding: chunked\r\n\r\n2\r\nbody\r\n0\r\n\r\n", false, None),
        ] {
            let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.write_all(format!("HTTP/1.1 200 OK\r\n{sent}").as_bytes()).unwrap();
            let mut wire = Wire::new(Socket::new(ours.into(), Family::Unix).into());
            poll_fn(|cx| wire.poll_response(cx, Method::Other)).await.unwrap();
            for _ in 0..2 {
                assert_eq!(poll_fn(|cx| wire.poll_whole(cx, 8)).await, whole, "{sent}");
            }
            let mut body = String::new();
            let mut piece = async || {
                let copied = |piece: Piece<'_>| match piece {
                    Piece::Data(data) => String::from_utf8_lossy(data).into_owned(),
                    Piece::End => String::new(),
                };
                let text = poll_fn(|cx| wire.poll_piece(cx).map_ok(copied)).await.ok()?;
                wire.consume(text.len());
                Some(text)
            };
            let outcome = loop {
                match piece().await {
                    Some(text) if text.is_empty() => break Some(body.as_str()),
                    Some(text) => body.push_str(&text),
                    None => break None,
                }
            };
            assert_eq!(outcome, read, "{sent}");
        }
    }
}
