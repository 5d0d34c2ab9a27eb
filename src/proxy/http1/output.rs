//! Output: the write half of an HTTP/1 connection.
//!
//! It frames bodies and sends a head together with the first bytes behind it: a small
//! piece is copied into the same buffer, since one slice is cheaper to send than two; a
//! large one goes out from where it lies.

use std::io::IoSlice;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::proxy::head::Framing;
use crate::proxy::relay::{Fault, Raw, Sink};
use crate::transport::buffer;
use crate::transport::stream::Stream;

/// Bytes of a piece that is copied behind a head.
const GATHERED: usize = 2 * 1024;

/// What is to go out, and how what follows is framed.
#[derive(Debug)]
pub struct Output {
    io: Rc<Stream>,
    /// Heads and framing that go out before the next bytes of a body.
    prefix: Vec<u8>,
    /// Bytes of the prefix that have gone out.
    sent: usize,
    framing: Framing,
    /// Bytes of the current chunk that its size line promised and that are to come.
    chunk: usize,
    finished: bool,
    /// Finishing ends our direction of the connection: it is a tunnel.
    shuts: bool,
    /// Writes are tried, until one fails, even if the socket does not count as writable.
    prodded: bool,
    /// Bytes written since the last message began.
    written: u64,
}

impl Output {
    /// Nothing to go out yet over this stream.
    #[must_use]
    pub fn new(io: Rc<Stream>) -> Self {
        Self {
            io,
            prefix: Vec::new(),
            sent: 0,
            framing: Framing::Empty,
            chunk: 0,
            finished: true,
            shuts: false,
            prodded: false,
            written: 0,
        }
    }

    /// The buffer to write the next head into. What follows is framed as `framing`.
    pub fn begin(&mut self, framing: Framing) -> &mut Vec<u8> {
        self.written = 0;
        self.chunk = 0;
        self.finished = false;
        self.framing = framing;
        self.lease()
    }

    /// From here on bytes go out as they are; finishing ends our direction.
    pub fn become_tunnel(&mut self) {
        self.framing = Framing::UntilClose;
        self.finished = false;
        self.shuts = true;
    }

    /// Drops the message being written if no byte of it has gone out, nor was encrypted to.
    /// `false`: one has.
    pub fn retract(&mut self) -> bool {
        if self.written == 0 {
            self.advance(usize::MAX);
            self.chunk = 0;
            self.finished = true;
        }
        self.written == 0
    }

    /// Bytes written since the last message began.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether the message being written has gone out whole.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished && self.prefix.is_empty() && self.io.held() == 0
    }

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
    pub fn lease(&mut self) -> &mut Vec<u8> {
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

impl Drop for Output {
    /// Where the end of the connection ends the message, an end before it was whole must
    /// not look like one: also when a drain is cut short and every task is dropped.
    fn drop(&mut self) {
        if !self.finished && self.framing == Framing::UntilClose {
            self.io.reset_on_close();
        }
    }
}

impl Sink for Output {
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
        let mut data = data;
        if let Framing::Length(left) = self.framing {
            // Never more than was announced, whatever the source says.
            data = data.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(data);
        }
        if data.is_empty() || self.framing == Framing::Empty {
            return Poll::Ready(Err(Fault::Truncated));
        }
        if self.gather(data) {
            return Poll::Ready(Ok(data.len()));
        }
        let chunked = self.framing == Framing::Chunked;
        if chunked {
            self.open_chunk(data.len());
            data = data.get(..self.chunk).unwrap_or(data);
        }
        loop {
            let ends_chunk: &[u8] = if chunked && data.len() == self.chunk { b"\r\n" } else { b"" };
            let before = self.prefix.get(self.sent..).unwrap_or_default();
            let pending = before.len();
            let slices = [IoSlice::new(before), IoSlice::new(data), IoSlice::new(ends_chunk)];
            // One slice is cheaper to send than three of which two are empty.
            let slices = slices.get(usize::from(before.is_empty())..2 + usize::from(!ends_chunk.is_empty()));
            let slices = slices.unwrap_or_default();
            let n = ready!(self.io.poll_write_prodded(cx, slices, &mut self.prodded)).map_err(|_| Fault::Reset)?;
            self.written += u64::try_from(n).unwrap_or(0);
            self.advance(n.min(pending));
            let n = n.saturating_sub(pending);
            if n == 0 {
                continue;
            }
            let taken = n.min(data.len());
            if chunked {
                self.chunk -= taken;
                if self.chunk == 0 {
                    // What of the chunk's CRLF did not go out goes before the next bytes.
                    let rest = ends_chunk.get(n - taken..).unwrap_or_default();
                    self.prefix.extend_from_slice(rest);
                }
            } else if let Framing::Length(left) = &mut self.framing {
                *left = left.saturating_sub(u64::try_from(taken).unwrap_or(0));
            }
            return Poll::Ready(Ok(taken));
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        while !self.pending().is_empty() {
            let slices = [IoSlice::new(self.prefix.get(self.sent..).unwrap_or_default())];
            let n = ready!(self.io.poll_write_prodded(cx, &slices, &mut self.prodded)).map_err(|_| Fault::Reset)?;
            self.written += u64::try_from(n).unwrap_or(0);
            self.advance(n);
        }
        self.io.poll_flush(cx, &mut self.prodded).map_err(|_| Fault::Reset)
    }

    fn held(&self) -> usize {
        self.io.held()
    }

    /// See [`Stream::write_anyway`].
    fn prod(&mut self) {
        self.prodded = true;
    }

    fn trail(&mut self, lines: &[u8]) {
        if !lines.is_empty() && self.framing == Framing::Chunked && !self.finished {
            let prefix = self.lease();
            prefix.extend_from_slice(b"0\r\n");
            prefix.extend_from_slice(lines);
            prefix.extend_from_slice(b"\r\n");
            self.finished = true;
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if !self.finished {
            match self.framing {
                Framing::Chunked => self.lease().extend_from_slice(b"0\r\n\r\n"),
                Framing::Length(left) if left > 0 => return Poll::Ready(Err(Fault::Truncated)),
                _ => {}
            }
            self.finished = true;
        }
        ready!(self.poll_flush(cx))?;
        if std::mem::take(&mut self.shuts) {
            self.io.shutdown_write().map_err(|_| Fault::Reset)?;
        }
        self.io.poll_flush(cx, &mut self.prodded).map_err(|_| Fault::Reset)
    }

    fn raw_sink(&self) -> Option<Raw<'_>> {
        let left = match self.framing {
            _ if self.finished || !self.pending().is_empty() || self.io.tls().is_some() => return None,
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
        if let Framing::Length(left) = &mut self.framing {
            *left = left.saturating_sub(n);
        }
    }
}
