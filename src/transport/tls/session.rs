//! Session: the TLS that a stream carries, from its handshake to its end.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::{CommonState, HandshakeKind, ProtocolVersion};

use super::fault::Fault;
use super::records::{self, FRONT, SCRATCH, Seal, Step, WHOLE, Work};
use crate::transport::stream::Stream;

/// Bytes of records in a row that bring no data: tickets, key updates, padding. A peer that
/// sends more of them means to keep us busy. rustls bounds each kind, but not all together.
const USELESS: usize = 64 * 1024;

/// Bytes that are held and have not been tried to send, up to which what comes next goes
/// out with them: tickets, the end of a handshake.
const JOINED: usize = 4 * 1024;

/// One side of a TLS connection.
pub(super) enum Side {
    /// Ours is the server's.
    Server(UnbufferedServerConnection),
    /// Ours is the client's.
    Client(UnbufferedClientConnection),
}

/// How the peer's direction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It said so.
    Said,
    /// It did not, or worse.
    Failed(Fault),
}

/// TLS over one stream. It holds no more bytes than it must: what came in of a record that
/// is not whole, what its reader had no room for, and what the socket had no room for.
pub struct Session {
    inner: RefCell<Inner>,
    server_name: Option<Box<str>>,
}

struct Inner {
    side: Side,
    /// Ciphertext that came in and was not dealt with.
    rest: Vec<u8>,
    /// Plain bytes that the reader had no room for.
    spill: Vec<u8>,
    /// Those of them that it has had since.
    spilled: usize,
    /// Ciphertext that is to go out.
    out: Vec<u8>,
    /// What of it has gone out.
    sent: usize,
    /// The socket had no room for it.
    blocked: bool,
    end: Option<End>,
    /// Bytes since the last that brought data.
    useless: usize,
    /// What becomes of our direction.
    ours: Ours,
}

/// Our direction of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    /// It goes on.
    Open,
    /// Its end is announced, and comes once that has gone out.
    Ending,
    /// It is over, or must not end well.
    Over,
}

impl fmt::Debug for Session {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Session").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

impl Session {
    /// A session whose handshake is to come; `came` has come of it already.
    pub(super) fn new(side: Side, came: Vec<u8>, server_name: Option<Box<str>>) -> Self {
        let inner = Inner {
            side,
            rest: came,
            spill: Vec::new(),
            spilled: 0,
            out: Vec::new(),
            sent: 0,
            blocked: false,
            end: None,
            useless: 0,
            ours: Ours::Open,
        };
        Self { inner: RefCell::new(inner), server_name }
    }

    /// The server name that the client asked for (SNI, RFC 6066 §3), or that we did.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The application protocol that was agreed on (ALPN, RFC 7301).
    #[must_use]
    pub fn alpn(&self) -> Option<Box<[u8]>> {
        self.inner.borrow().common().alpn_protocol().map(Box::from)
    }

    /// Whether that is `protocol`.
    #[must_use]
    pub fn speaks(&self, protocol: &[u8]) -> bool {
        self.inner.borrow().common().alpn_protocol() == Some(protocol)
    }

    /// The peer's certificate and those that lead to its authority, as it sent them, or had
    /// sent them where the session was resumed.
    #[must_use]
    pub fn peer_certificates(&self) -> Option<Vec<CertificateDer<'static>>> {
        self.inner.borrow().common().peer_certificates().map(<[_]>::to_vec)
    }

    /// The version of TLS.
    #[must_use]
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.inner.borrow().common().protocol_version()
    }

    /// The cipher suite, by its name.
    #[must_use]
    pub fn cipher(&self) -> Option<&'static str> {
        self.inner.borrow().common().negotiated_cipher_suite().and_then(|suite| suite.suite().as_str())
    }

    /// Whether it goes on where an earlier one of the same client ended, by a ticket.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.inner.borrow().common().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Bytes that are allocated for what is on its way.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        let inner = self.inner.borrow();
        [&inner.rest, &inner.spill, &inner.out].iter().map(|bytes| bytes.capacity()).sum()
    }

    /// Has new keys used from here on, and asks the peer for the same.
    #[cfg(test)]
    pub(super) fn refresh(&self) -> Result<(), rustls::Error> {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let Side::Client(client) = &mut inner.side else { return Ok(()) };
        loop {
            match client.process_tls_records(&mut []).state? {
                rustls::unbuffered::ConnectionState::TransmitTlsData(data) => data.done(),
                rustls::unbuffered::ConnectionState::WriteTraffic(traffic) => break traffic.refresh_traffic_keys()?,
                state => return Err(rustls::Error::General(format!("{state:?}"))),
            }
        }
        while inner.common().wants_write() {
            inner.step(&mut [], &mut [], None);
        }
        Ok(())
    }

    /// Goes on with the handshake. What our side says last of it may be left to go out with
    /// the first data.
    ///
    /// # Errors
    /// The fault; the peer was told of it, if there was room for that.
    pub(super) fn poll_handshake(&self, io: &Stream, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let mut inner = self.inner.borrow_mut();
        let outcome = ready!(inner.poll_handshake(io, cx));
        if outcome.is_err() {
            inner.give_up(io);
        }
        Poll::Ready(outcome)
    }

    /// See [`Stream::poll_read`].
    pub(in crate::transport) fn poll_read(
        &self,
        io: &Stream,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        let n = inner.unspill(into);
        if n > 0 || into.is_empty() {
            return Poll::Ready(Ok(n));
        }
        let mut recv = |into: &mut [u8]| io.poll_recv(cx, into);
        let outcome = inner.read(into, &mut recv);
        if !inner.out.is_empty() && (outcome.is_pending() || matches!(outcome, Poll::Ready(Err(_)))) {
            // Tickets, or an alert: nobody else may have anything to send. What can't go out
            // is waited for together with what is to come.
            let _ = inner.poll_flush(io, cx, &mut false);
        }
        outcome
    }

    /// See [`Stream::poll_write_prodded`]. All that is taken is encrypted, and what the socket
    /// has no room for is held; until that is gone, no more is taken.
    pub(in crate::transport) fn poll_write(
        &self,
        io: &Stream,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
        prodded: &mut bool,
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        if inner.blocked || inner.held() > JOINED {
            ready!(inner.poll_flush(io, cx, prodded))?;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let to = scratch.get_mut(FRONT..).unwrap_or_default();
            let (taken, sealed) = inner.seal(Seal { from, to, close: false })?;
            // What was encrypted before goes out before.
            let first = inner.out.get(inner.sent..).unwrap_or_default();
            let start = FRONT.checked_sub(first.len()).ok_or_else(|| Fault::Ours.into_io())?;
            records::copy(first, scratch.get_mut(start..).unwrap_or_default());
            inner.drop_out();
            let bytes = scratch.get(start..FRONT + sealed).unwrap_or_default();
            let n = match io.poll_send(cx, &[IoSlice::new(bytes)], prodded)? {
                Poll::Ready(n) => n,
                Poll::Pending => 0,
            };
            let held = bytes.get(n..).unwrap_or_default();
            if !held.is_empty() {
                inner.out = held.to_vec();
                inner.blocked = true;
            }
            Poll::Ready(Ok(taken))
        })
    }

    /// See [`Stream::poll_flush`].
    pub(in crate::transport) fn poll_flush(
        &self,
        io: &Stream,
        cx: &mut Context<'_>,
        prodded: &mut bool,
    ) -> Poll<io::Result<()>> {
        self.inner.borrow_mut().poll_flush(io, cx, prodded)
    }

    /// See [`Stream::held`].
    pub(in crate::transport) fn held(&self) -> usize {
        self.inner.borrow().held()
    }

    /// Whether a read finds something though nothing more comes in.
    pub(in crate::transport) fn has_more(&self) -> bool {
        self.inner.borrow().has_more()
    }

    /// Whether there is something to read, once what has come in is looked at: tickets and the
    /// like are dealt with, and are nothing.
    pub(in crate::transport) fn stirs(&self, io: &Stream) -> bool {
        let mut inner = self.inner.borrow_mut();
        let mut recv = |into: &mut [u8]| io.try_recv(into).map_or(Poll::Pending, Poll::Ready);
        inner.has_more() || inner.read(&mut [], &mut recv).is_ready() || inner.has_more()
    }

    /// Ends our direction, with notice (RFC 8446 §6.1).
    pub(in crate::transport) fn shutdown(&self, io: &Stream) -> io::Result<()> {
        let mut inner = self.inner.borrow_mut();
        if inner.ours == Ours::Open {
            inner.notify()?;
            inner.ours = Ours::Ending;
        }
        inner.flush_now(io)
    }

    /// The connection must not end well.
    pub(in crate::transport) fn abort(&self) {
        self.inner.borrow_mut().ours = Ours::Over;
    }

    /// The stream is going to be closed: the peer is told so, if all that was said to it has
    /// gone out and there is room for that.
    pub(in crate::transport) fn part(&self, io: &Stream) {
        let mut inner = self.inner.borrow_mut();
        let failed = matches!(inner.end, Some(End::Failed(_)));
        if inner.ours == Ours::Open && !failed && !inner.blocked && inner.notify().is_ok() {
            let _ = inner.flush_now(io);
        }
    }
}

impl Inner {
    fn common(&self) -> &CommonState {
        match &self.side {
            Side::Server(server) => server,
            Side::Client(client) => client,
        }
    }

    fn held(&self) -> usize {
        self.out.len() - self.sent
    }

    fn has_more(&self) -> bool {
        !self.spill.is_empty() || self.end.is_some() || records::is_whole(&self.rest)
    }

    /// Deals with records in `bytes`; says how many of the bytes are done with.
    fn step(&mut self, bytes: &mut [u8], into: &mut [u8], seal: Option<&mut Seal<'_>>) -> (usize, Step) {
        let work = Work { into, spill: &mut self.spill, out: &mut self.out, seal };
        match &mut self.side {
            Side::Server(server) => records::step(server.process_tls_records(bytes), work),
            Side::Client(client) => records::step(client.process_tls_records(bytes), work),
        }
    }

    fn poll_handshake(&mut self, io: &Stream, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let (mut start, mut have) = (0, restore(&mut self.rest, scratch));
            let outcome = loop {
                let (done, step) = self.step(scratch.get_mut(start..have).unwrap_or_default(), &mut [], None);
                start += done;
                match step {
                    Step::Again(_) => continue,
                    Step::Waits if !self.common().is_handshaking() => break Poll::Ready(Ok(())),
                    Step::Waits => {}
                    Step::Sealed(..) => break Poll::Ready(Err(Fault::Ours)),
                    Step::Ended => break Poll::Ready(Err(Fault::Ended)),
                    Step::Failed(fault) => break Poll::Ready(Err(fault)),
                }
                match self.poll_flush(io, cx, &mut false) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => break Poll::Ready(Err(Fault::Reset)),
                    Poll::Pending => break Poll::Pending,
                }
                scratch.copy_within(start..have, 0);
                (start, have) = (0, have - start);
                let window = (have + WHOLE).min(scratch.len());
                let Some(spare) = scratch.get_mut(have..window).filter(|spare| !spare.is_empty()) else {
                    break Poll::Ready(Err(Fault::Protocol));
                };
                match io.poll_recv(cx, spare) {
                    Poll::Ready(Ok(0)) => break Poll::Ready(Err(Fault::Ended)),
                    Poll::Ready(Ok(n)) => have += n,
                    Poll::Ready(Err(_)) => break Poll::Ready(Err(Fault::Reset)),
                    Poll::Pending => break Poll::Pending,
                }
            };
            self.rest = keep(scratch, start, have);
            outcome
        })
    }

    /// Copies what the reader had no room for before.
    fn unspill(&mut self, into: &mut [u8]) -> usize {
        let left = self.spill.get(self.spilled..).unwrap_or_default();
        let n = records::copy(left, into);
        self.spilled += n;
        if self.spilled >= self.spill.len() {
            self.spill = Vec::new();
            self.spilled = 0;
        }
        n
    }

    /// Reads what has come in, and `recv`s until there is something of use. With no room in
    /// `into` it spills.
    fn read(
        &mut self,
        into: &mut [u8],
        recv: &mut dyn FnMut(&mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match self.end {
            Some(End::Said) => return Poll::Ready(Ok(0)),
            Some(End::Failed(fault)) => return Poll::Ready(Err(fault.into_io())),
            None => {}
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let (mut start, mut have) = (0, restore(&mut self.rest, scratch));
            let outcome = loop {
                match self.open(scratch.get_mut(..have).unwrap_or_default(), &mut start, into) {
                    Ok(Some(n)) => break Poll::Ready(Ok(n)),
                    Ok(None) => {}
                    Err(fault) => break Poll::Ready(Err(self.fail(fault))),
                }
                scratch.copy_within(start..have, 0);
                (start, have) = (0, have - start);
                // No more than the reader has room for: what it has none for is copied twice.
                let window = into.len().max(have + WHOLE).min(scratch.len());
                let spare = scratch.get_mut(have..window).unwrap_or_default();
                if spare.is_empty() || self.useless > USELESS {
                    break Poll::Ready(Err(self.fail(Fault::Protocol)));
                }
                match recv(spare) {
                    Poll::Ready(Ok(0)) => break Poll::Ready(Err(self.fail(Fault::Truncated))),
                    Poll::Ready(Ok(n)) => {
                        have += n;
                        self.useless += n;
                    }
                    Poll::Ready(Err(_)) => break Poll::Ready(Err(self.fail(Fault::Reset))),
                    Poll::Pending => break Poll::Pending,
                }
            };
            self.rest = keep(scratch, start, have);
            outcome
        })
    }

    /// Decrypts records of `bytes` from `start` on, as many as there is room for. `None`:
    /// they brought nothing, and more must come in.
    fn open(&mut self, bytes: &mut [u8], start: &mut usize, into: &mut [u8]) -> Result<Option<usize>, Fault> {
        let mut filled = 0;
        loop {
            let left = bytes.get_mut(*start..).unwrap_or_default();
            let room = into.get_mut(filled..).unwrap_or_default();
            // Nothing in it is worth a look, or there would be no room for what is.
            if left.is_empty() || filled > 0 && !records::fits(left, room.len()) {
                return Ok((filled > 0).then_some(filled));
            }
            let (done, step) = self.step(left, room, None);
            *start += done;
            match step {
                Step::Again(n) => {
                    filled += n;
                    if n > 0 || !self.spill.is_empty() {
                        self.useless = 0;
                    }
                    if !self.spill.is_empty() {
                        return Ok(Some(filled));
                    }
                }
                Step::Ended => {
                    self.end = Some(End::Said);
                    return Ok(Some(filled));
                }
                Step::Waits | Step::Sealed(..) => return Ok((filled > 0).then_some(filled)),
                // What came before it is good.
                Step::Failed(fault) if filled > 0 => {
                    self.fail(fault);
                    return Ok(Some(filled));
                }
                Step::Failed(fault) => return Err(fault),
            }
        }
    }

    /// Encrypts: how many plain bytes were taken, and how many bytes became of them.
    fn seal(&mut self, mut seal: Seal<'_>) -> io::Result<(usize, usize)> {
        // Nothing can be written without a look at what has come in.
        let mut rest = std::mem::take(&mut self.rest);
        let mut start = 0;
        let outcome = loop {
            let (done, step) = self.step(rest.get_mut(start..).unwrap_or_default(), &mut [], Some(&mut seal));
            start += done;
            match step {
                Step::Again(_) => {}
                Step::Sealed(taken, sealed) => break Ok((taken, sealed)),
                Step::Ended => self.end = Some(End::Said),
                Step::Waits => break Err(Fault::Ours),
                Step::Failed(fault) => break Err(fault),
            }
        };
        if start > 0 {
            rest.drain(..start.min(rest.len()));
        }
        self.rest = rest;
        outcome.map_err(|fault| self.fail(fault))
    }

    /// The connection has failed: nothing more is read.
    fn fail(&mut self, fault: Fault) -> io::Error {
        self.end = Some(End::Failed(fault));
        self.tell();
        fault.into_io()
    }

    /// Puts the alert that a failure has led to among what goes out.
    fn tell(&mut self) {
        while self.common().wants_write() && matches!(self.step(&mut [], &mut [], None), (_, Step::Again(_))) {}
    }

    /// The handshake has failed: sends what tells the peer why.
    fn give_up(&mut self, io: &Stream) {
        self.tell();
        let _ = self.flush_now(io);
        self.ours = Ours::Over;
    }

    fn drop_out(&mut self) {
        self.out = Vec::new();
        self.sent = 0;
        self.blocked = false;
    }

    fn poll_flush(&mut self, io: &Stream, cx: &mut Context<'_>, prodded: &mut bool) -> Poll<io::Result<()>> {
        self.flush(io, &mut |bytes| io.poll_send(cx, &[IoSlice::new(bytes)], prodded))
    }

    /// Sends what there is room for, without waiting for more.
    fn flush_now(&mut self, io: &Stream) -> io::Result<()> {
        let mut send = |bytes: &[u8]| io.write_anyway(&[IoSlice::new(bytes)]).map_or(Poll::Pending, Poll::Ready);
        match self.flush(io, &mut send) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Ok(()),
        }
    }

    fn flush(&mut self, io: &Stream, send: &mut dyn FnMut(&[u8]) -> Poll<io::Result<usize>>) -> Poll<io::Result<()>> {
        while self.held() > 0 {
            match send(self.out.get(self.sent..).unwrap_or_default()) {
                Poll::Ready(n) => self.sent += n?,
                Poll::Pending => {
                    self.blocked = true;
                    return Poll::Pending;
                }
            }
        }
        self.drop_out();
        if self.ours == Ours::Ending {
            self.ours = Ours::Over;
            io.end()?;
        }
        Poll::Ready(Ok(()))
    }

    /// Puts notice of our end among what goes out.
    fn notify(&mut self) -> io::Result<()> {
        let mut notice = [0; 512];
        let (_, n) = self.seal(Seal { from: &[], to: &mut notice, close: true })?;
        self.out.extend_from_slice(notice.get(..n).unwrap_or_default());
        Ok(())
    }
}

/// Puts what was kept to the front of the scratch.
fn restore(rest: &mut Vec<u8>, scratch: &mut [u8]) -> usize {
    let rest = std::mem::take(rest);
    records::copy(&rest, scratch)
}

/// What is left of the scratch, in no more room than it needs.
fn keep(scratch: &[u8], start: usize, have: usize) -> Vec<u8> {
    scratch.get(start..have).unwrap_or_default().to_vec()
}
