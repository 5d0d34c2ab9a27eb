//! Wire: one HTTP/1 connection's bytes, in both roles.
//!
//! The read half finds heads and lends bodies; the write half frames bodies and sends
//! head and first bytes in one `writev(2)`. A wire that waits for a peer owns no
//! buffer: it takes one when there is something to read.

use std::io::IoSlice;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::body::Decoder;
use super::parse;
use crate::proxy::head::{Framing, Method, RequestHead, ResponseHead};
use crate::proxy::relay::{Fault, Piece, Raw, Sink, Source};
use crate::telemetry::Reason;
use crate::transport::buffer::{self, Buffer};
use crate::transport::stream::Stream;

/// Bytes of a piece that is copied behind a head instead of being sent from where it lies:
/// one slice is cheaper to send than two.
const GATHERED: usize = 2 * 1024;

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
    /// Consumed body is held while it fits, so that it can be sent again.
    holding: bool,
    /// Bytes of a head that were searched for its end.
    searched: usize,
    /// Writes are tried, until one fails, even if the socket does not count as writable.
    prodded: bool,
    output: Output,
    /// Bytes written since the last message began.
    pub written: u64,
}

/// The write half: what is to go out before the next bytes of a body.
#[derive(Debug)]
struct Output {
    prefix: Vec<u8>,
    sent: usize,
    framing: Framing,
    /// Bytes of the current chunk that its size line promised and that are to come.
    chunk: usize,
    finished: bool,
    /// Finishing ends our direction of the connection: it is a tunnel.
    shuts: bool,
}

impl Wire {
    /// A wire over a connected stream.
    #[must_use]
    pub fn new(io: Stream) -> Self {
        Self {
            io: Rc::new(io),
            input: None,
            lent: 0,
            data: 0,
            raw: 0,
            decoder: Decoder::new(Framing::Empty),
            holding: false,
            searched: 0,
            prodded: false,
            output: Output {
                prefix: Vec::new(),
                sent: 0,
                framing: Framing::Empty,
                chunk: 0,
                finished: true,
                shuts: false,
            },
            written: 0,
        }
    }

    /// The stream, to watch it or to change its options.
    #[must_use]
    pub fn io(&self) -> &Rc<Stream> {
        &self.io
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

    /// Holds consumed bytes of the body from here on, for as long as they fit the buffer.
    pub fn hold(&mut self) {
        self.holding = true;
    }

    /// Stops holding.
    pub fn release(&mut self) {
        self.holding = false;
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
        self.output.framing = Framing::UntilClose;
        self.output.finished = false;
        self.output.shuts = true;
    }

    /// Gives back what a body that was dealt with has left behind.
    pub fn forget_body(&mut self) {
        self.decoder.clear();
    }

    /// The buffer to write the next head into. What follows is framed as `framing`.
    pub fn begin(&mut self, framing: Framing) -> &mut Vec<u8> {
        self.written = 0;
        self.output.chunk = 0;
        self.output.finished = false;
        self.output.framing = framing;
        self.output.lease()
    }

    /// The buffer to write an interim head into.
    pub fn interim(&mut self) -> &mut Vec<u8> {
        self.output.lease()
    }

    /// Drops the message being written if no byte of it has gone out. `false`: one has.
    pub fn retract(&mut self) -> bool {
        if self.written == 0 {
            self.output.advance(usize::MAX);
            self.output.chunk = 0;
            self.output.finished = true;
        }
        self.written == 0
    }

    /// Whether the message being written has gone out whole.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.output.finished && self.output.prefix.is_empty()
    }

    /// Has writes tried even if the socket does not count as writable, until there is no
    /// room at all: see [`Stream::write_anyway`]. Before a peer is given up for taking
    /// nothing.
    pub fn prod(&mut self) {
        self.prodded = true;
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Fault>> {
        if self.input.is_none() {
            // Wait first: a connection that waits owns no buffer.
            ready!(self.io.poll_readable(cx)).map_err(|_| Fault::Reset)?;
        }
        let input = self.input.get_or_insert_with(Buffer::take_wide);
        let outcome = self.io.poll_read(cx, input.spare()).map_err(|_| Fault::Reset);
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
        let Some(input) = self.input.as_mut() else { return };
        if !self.holding {
            self.drop_decoded();
        } else if input.len() >= buffer::SIZE && self.raw == input.len() {
            // All is data; what lies before `lent` is consumed. It is too much to hold.
            self.holding = false;
            self.drop_decoded();
        }
        if let Some(input) = self.input.as_mut() {
            input.compact();
        }
    }
}

impl Drop for Wire {
    /// Where the end of the connection ends the message, an end before it was whole must
    /// not look like one: also when a drain is cut short and every task is dropped.
    fn drop(&mut self) {
        if !self.output.finished && self.output.framing == Framing::UntilClose {
            self.io.reset_on_close();
        }
    }
}

impl Source for Wire {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        while self.lent == self.data && !self.decoder.is_done() {
            if let Some(input) = self.input.as_mut() {
                if self.raw < input.len() {
                    let filled = input.filled_mut();
                    let raw = filled.get_mut(self.raw..).unwrap_or_default();
                    let decoded = self.decoder.decode(raw)?;
                    // Keep the body in one piece: close the gap that framing left.
                    if self.raw > self.data {
                        filled.copy_within(self.raw..self.raw + decoded.data, self.data);
                    }
                    self.data += decoded.data;
                    self.raw += decoded.taken;
                    continue;
                }
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
    }

    fn raw_source(&self) -> Option<Raw<'_>> {
        let has_bytes = self.holding || self.lent < self.data || self.has_input();
        self.decoder.plain().filter(|_| !has_bytes).map(|left| Raw { io: &self.io, left, anyway: false })
    }

    fn spliced_from(&mut self, n: usize) {
        self.drop_decoded();
        self.decoder.skip(u64::try_from(n).unwrap_or(u64::MAX));
    }

    fn trailers(&self) -> &[u8] {
        self.decoder.trailers()
    }
}

impl Sink for Wire {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        let mut data = data;
        if let Framing::Length(left) = self.output.framing {
            // Never more than was announced, whatever the source says.
            data = data.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(data);
        }
        if data.is_empty() || self.output.framing == Framing::Empty {
            return Poll::Ready(Err(Fault::Truncated));
        }
        if self.output.gather(data) {
            return Poll::Ready(Ok(data.len()));
        }
        let chunked = self.output.framing == Framing::Chunked;
        if chunked {
            self.output.open_chunk(data.len());
            data = data.get(..self.output.chunk).unwrap_or(data);
        }
        loop {
            let ends_chunk: &[u8] = if chunked && data.len() == self.output.chunk { b"\r\n" } else { b"" };
            let pending = self.output.pending().len();
            let slices = [IoSlice::new(self.output.pending()), IoSlice::new(data), IoSlice::new(ends_chunk)];
            let n = ready!(self.io.poll_write_prodded(cx, &slices, &mut self.prodded)).map_err(|_| Fault::Reset)?;
            self.written += u64::try_from(n).unwrap_or(0);
            self.output.advance(n.min(pending));
            let n = n.saturating_sub(pending);
            if n == 0 {
                continue;
            }
            let taken = n.min(data.len());
            if chunked {
                self.output.chunk -= taken;
                if self.output.chunk == 0 {
                    // What of the chunk's CRLF did not go out goes before the next bytes.
                    let rest = ends_chunk.get(n - taken..).unwrap_or_default();
                    self.output.prefix.extend_from_slice(rest);
                }
            } else if let Framing::Length(left) = &mut self.output.framing {
                *left = left.saturating_sub(u64::try_from(taken).unwrap_or(0));
            }
            return Poll::Ready(Ok(taken));
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        while !self.output.pending().is_empty() {
            let slices = [IoSlice::new(self.output.pending())];
            let n = ready!(self.io.poll_write_prodded(cx, &slices, &mut self.prodded)).map_err(|_| Fault::Reset)?;
            self.written += u64::try_from(n).unwrap_or(0);
            self.output.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    fn trail(&mut self, lines: &[u8]) {
        if !lines.is_empty() && self.output.framing == Framing::Chunked && !self.output.finished {
            let prefix = self.output.lease();
            prefix.extend_from_slice(b"0\r\n");
            prefix.extend_from_slice(lines);
            prefix.extend_from_slice(b"\r\n");
            self.output.finished = true;
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if !self.output.finished {
            match self.output.framing {
                Framing::Chunked => self.output.lease().extend_from_slice(b"0\r\n\r\n"),
                Framing::Length(left) if left > 0 => return Poll::Ready(Err(Fault::Truncated)),
                _ => {}
            }
            self.output.finished = true;
        }
        ready!(self.poll_flush(cx))?;
        if std::mem::take(&mut self.output.shuts) {
            self.io.shutdown_write().map_err(|_| Fault::Reset)?;
        }
        Poll::Ready(Ok(()))
    }

    fn raw_sink(&self) -> Option<Raw<'_>> {
        let left = match self.output.framing {
            _ if self.output.finished || !self.output.pending().is_empty() => return None,
            Framing::Length(left) if left > 0 => left,
            Framing::UntilClose => u64::MAX,
            _ => return None,
        };
        Some(Raw { io: &self.io, left, anyway: self.prodded })
    }

    fn spliced_to(&mut self, n: usize) {
        self.prodded &= n > 0;
        let n = u64::try_from(n).unwrap_or(0);
        self.written += n;
        if let Framing::Length(left) = &mut self.output.framing {
            *left = left.saturating_sub(n);
        }
    }
}

impl Output {
    fn pending(&self) -> &[u8] {
        self.prefix.get(self.sent..).unwrap_or_default()
    }

    fn advance(&mut self, n: usize) {
        self.sent = self.sent.saturating_add(n);
        if self.sent >= self.prefix.len() {
            self.sent = 0;
            buffer::recycle(std::mem::take(&mut self.prefix));
        }
    }

    /// The vector for what goes out next, taken from the pool if there is none.
    fn lease(&mut self) -> &mut Vec<u8> {
        if self.prefix.capacity() == 0 {
            self.prefix = buffer::scratch();
        }
        &mut self.prefix
    }

    /// Takes a small piece in whole, to go out with what is to go before it and what comes
    /// next. `false`: it is too large, or enough is waiting.
    fn gather(&mut self, data: &[u8]) -> bool {
        if data.len() > GATHERED || self.pending().len() > GATHERED || self.chunk > 0 {
            return false;
        }
        let chunked = self.framing == Framing::Chunked;
        if chunked {
            self.open_chunk(data.len());
            self.chunk = 0;
        }
        let prefix = self.lease();
        prefix.extend_from_slice(data);
        if chunked {
            prefix.extend_from_slice(b"\r\n");
        }
        if let Framing::Length(left) = &mut self.framing {
            *left = left.saturating_sub(u64::try_from(data.len()).unwrap_or(0));
        }
        true
    }

    /// Writes a size line unless a chunk is open already.
    fn open_chunk(&mut self, bytes: usize) {
        use std::io::Write;
        if self.chunk == 0 {
            // Writing into a vector can't fail.
            let _ = write!(self.lease(), "{bytes:x}\r\n");
            self.chunk = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Wire;
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
}
