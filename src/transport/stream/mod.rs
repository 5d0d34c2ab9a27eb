//! Stream: a connected socket, TCP or Unix, read and written without waiting.
//!
//! Both directions work on `&self`, so that a third party (the watch for a client
//! that leaves) can wait on the same socket. A read that got less than it asked for,
//! or a write that could not place all, has emptied or filled the kernel's buffer:
//! the readiness is then cleared at once, which saves the system call that would only
//! have said `EAGAIN`.
//!
//! A socket joins the runtime's epoll when it first has to be waited for. A connection
//! that brings one request and is closed after its answer never does, which saves it
//! two system calls; one that moves to another thread has nothing to undo.
//!
//! A stream may carry TLS ([`super::tls`]): what is read and written is then the plain
//! bytes, and what is asked of it (has anything arrived?) is answered for them.

mod peer;

use std::cell::{OnceCell, RefCell};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;

pub use peer::Gone;

use super::tls::Session;
use super::watch::{Call, Watch, retry};

/// A non-blocking stream socket that no runtime knows of, so that it can change threads.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    family: Family,
}

/// What a socket is reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// TCP over IPv4 or IPv6.
    Tcp,
    /// A Unix stream socket.
    Unix,
}

impl Socket {
    /// A socket of this family; it must be non-blocking.
    #[must_use]
    pub fn new(fd: OwnedFd, family: Family) -> Self {
        Self { fd, family }
    }
}

/// A stream socket, connected or listening, waited for on this thread's runtime.
#[derive(Debug)]
pub struct Stream {
    family: Family,
    /// The socket until it first has to be waited for.
    fresh: RefCell<Option<OwnedFd>>,
    /// The socket from then on.
    watch: OnceCell<Watch>,
    /// The TLS that it carries.
    tls: Option<Box<Session>>,
}

impl From<Socket> for Stream {
    fn from(socket: Socket) -> Self {
        Self { family: socket.family, fresh: RefCell::new(Some(socket.fd)), watch: OnceCell::new(), tls: None }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(tls) = &self.tls {
            tls.part(self);
        }
    }
}

impl Stream {
    /// The socket without its watch, so that it can change threads, with the TLS that it
    /// carries; `None` when the runtime does not let go of it, and it is closed.
    #[must_use]
    pub fn release(mut self) -> Option<(OwnedFd, Option<Box<Session>>)> {
        let fd = match self.watch.take() {
            Some(watch) => watch.release(),
            None => self.fresh.take(),
        };
        Some((fd?, self.tls.take()))
    }

    /// The same one on this thread.
    #[must_use]
    pub fn resume(fd: OwnedFd, family: Family, tls: Option<Box<Session>>) -> Self {
        let mut stream = Self::from(Socket::new(fd, family));
        stream.tls = tls;
        stream
    }

    /// The TLS that it carries.
    #[must_use]
    pub fn tls(&self) -> Option<&Session> {
        self.tls.as_deref()
    }

    /// Has what is read and written from here on go through `session`.
    pub(super) fn carry(&mut self, session: Box<Session>) {
        self.tls = Some(session);
    }

    /// Whether it had to be waited for on this thread before.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watch.get().is_some()
    }

    /// Joins the runtime's epoll now, so that waiting can't fail later.
    ///
    /// # Errors
    /// When the runtime can't register the socket: out of memory or of epoll watches.
    pub fn join(&self) -> io::Result<()> {
        self.watch().map(drop)
    }

    /// The watch on the socket, which joins the runtime's epoll if it has not yet.
    fn watch(&self) -> io::Result<&Watch> {
        if let Some(watch) = self.watch.get() {
            return Ok(watch);
        }
        let fd = self.fresh.take().ok_or(io::ErrorKind::NotConnected)?;
        let watch = Watch::open(fd, self.family)?;
        Ok(self.watch.get_or_init(|| watch))
    }

    /// Calls with the descriptor. There is none once the socket could not be watched.
    pub(super) fn with<T>(&self, call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        match (self.watch.get(), &*self.fresh.borrow()) {
            (Some(watch), _) => call(watch.fd()),
            (None, Some(fd)) => call(fd.as_fd()),
            (None, None) => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Moves bytes with `call`, of which there are at most `wanted`, once the socket is
    /// ready for it. Costs nothing of the task's budget unless it has to wait, so whoever
    /// moves many in a row must make a pause.
    ///
    /// # Errors
    /// Whatever the call reports, but `EAGAIN` and `EINTR`.
    pub fn poll_move(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        wanted: usize,
        call: &mut Call<'_>,
    ) -> Poll<io::Result<usize>> {
        if !self.is_watched() {
            let outcome = self.with(|fd| retry(|| call(fd)));
            if !matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                return Poll::Ready(outcome);
            }
        }
        let watch = self.watch()?;
        loop {
            if let Some(outcome) = watch.attempt(interest, wanted, call) {
                return Poll::Ready(outcome);
            }
            ready!(watch.poll_ready(cx, interest))?;
        }
    }

    /// Ready when a read is worth trying: bytes, the end, or an error; or because nobody
    /// knows yet.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let readable = match self.watch.get() {
            _ if self.tls().is_some_and(Session::has_more) => Poll::Ready(Ok(())),
            Some(watch) => watch.poll_ready(cx, Interest::READABLE),
            None => Poll::Ready(Ok(())),
        };
        if let (true, Some(tls)) = (readable.is_pending(), &self.tls) {
            // The peer may wait for it before it says more.
            let _ = tls.poll_flush(self, cx, &mut false);
        }
        readable
    }

    /// Ready once a connection that is being made stands, or has failed.
    pub fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.watch()?.poll_ready(cx, Interest::WRITABLE))?;
        Poll::Ready(self.with(|fd| Ok(rustix::net::sockopt::socket_error(fd)??)))
    }

    /// Takes a connection in, from a listening socket.
    ///
    /// # Errors
    /// Whatever `accept4(2)` reports.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Socket, Option<SocketAddr>)>> {
        let mut accepted = None;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        ready!(self.poll_move(cx, Interest::READABLE, 1, &mut |listener| {
            accepted = Some(match self.family {
                Family::Tcp => rustix::net::acceptfrom_with(listener, flags)?,
                Family::Unix => (rustix::net::accept_with(listener, flags)?, None),
            });
            Ok(1)
        }))?;
        let (fd, address) = accepted.ok_or(io::ErrorKind::ConnectionAborted)?;
        Poll::Ready(Ok((Socket::new(fd, self.family), address.and_then(|address| address.try_into().ok()))))
    }

    /// Reads into `into`; 0 is the end of the stream.
    ///
    /// # Errors
    /// Whatever `recv(2)` reports. Of TLS, what [`super::tls::fault`] finds in the error:
    /// an end without notice, above all, is `UnexpectedEof`, since anybody on the way can
    /// bring it about (RFC 8446 §6.1).
    pub fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match &self.tls {
            None => self.poll_recv(cx, into),
            Some(tls) => tls.poll_read(self, cx, into),
        }
    }

    /// Reads the bytes that are on the socket.
    pub(super) fn poll_recv(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_move(cx, Interest::READABLE, into.len(), &mut |fd| {
            rustix::net::recv(fd, &mut *into, RecvFlags::empty()).map(|(n, _)| n)
        })
    }

    /// The same without waiting: `None` when there are none.
    pub(super) fn try_recv(&self, into: &mut [u8]) -> Option<io::Result<usize>> {
        let wanted = into.len();
        let mut call = |fd: BorrowedFd<'_>| rustix::net::recv(fd, &mut *into, RecvFlags::empty()).map(|(n, _)| n);
        match self.watch.get() {
            Some(watch) => watch.attempt(Interest::READABLE, wanted, &mut call),
            None => self.move_anyway(&mut call),
        }
    }

    /// Writes from `from`, in order; says how many bytes in all were taken. With TLS some of
    /// them may still be [`Self::held`].
    ///
    /// # Errors
    /// Whatever `send(2)` or `sendmsg(2)` reports.
    pub fn poll_write(&self, cx: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_write_prodded(cx, from, &mut false)
    }

    /// The same, but tried even if the socket does not count as writable for as long as it
    /// was `prodded` and there is room.
    ///
    /// # Errors
    /// Whatever `send(2)` or `sendmsg(2)` reports.
    pub fn poll_write_prodded(
        &self,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
        prodded: &mut bool,
    ) -> Poll<io::Result<usize>> {
        match &self.tls {
            None => self.poll_send(cx, from, prodded),
            Some(tls) => tls.poll_write(self, cx, from, prodded),
        }
    }

    /// Bytes that were taken and have not gone out: [`Self::poll_flush`] sends them. Always
    /// none without TLS.
    #[must_use]
    pub fn held(&self) -> usize {
        self.tls().map_or(0, Session::held)
    }

    /// Sends what is [`Self::held`], and then what [`Self::shutdown_write`] left to do.
    ///
    /// # Errors
    /// Whatever `send(2)` reports.
    pub fn poll_flush(&self, cx: &mut Context<'_>, prodded: &mut bool) -> Poll<io::Result<()>> {
        self.tls().map_or(Poll::Ready(Ok(())), |tls| tls.poll_flush(self, cx, prodded))
    }

    /// Puts bytes on the socket.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
        prodded: &mut bool,
    ) -> Poll<io::Result<usize>> {
        if *prodded {
            if let Some(outcome) = self.write_anyway(from) {
                return Poll::Ready(outcome);
            }
            *prodded = false;
        }
        let wanted = from.iter().map(|slice| slice.len()).sum();
        self.poll_move(cx, Interest::WRITABLE, wanted, &mut |fd| send(fd, from))
    }

    /// One write on the socket whatever the runtime knows of readiness; `None` when there is no
    /// room.
    ///
    /// A full socket counts as writable again only once a third of its buffer is free,
    /// which may be megabytes: a peer that takes little by little seems to take nothing.
    ///
    /// # Errors
    /// Whatever `sendmsg(2)` reports.
    pub fn write_anyway(&self, from: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        self.move_anyway(&mut |fd| send(fd, from))
    }

    /// The same with another call.
    ///
    /// # Errors
    /// Whatever the call reports, but `EAGAIN` and `EINTR`.
    pub fn move_anyway(&self, call: &mut Call<'_>) -> Option<io::Result<usize>> {
        match self.with(|fd| retry(|| call(fd))) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            outcome => Some(outcome),
        }
    }

    /// Ends this side's direction: the peer reads the end of the stream. With TLS there may
    /// be no room for the notice of it, and [`Self::poll_flush`] has to do the rest.
    ///
    /// # Errors
    /// When the peer is gone already.
    pub fn shutdown_write(&self) -> io::Result<()> {
        match &self.tls {
            None => self.end(),
            Some(tls) => tls.shutdown(self),
        }
    }

    /// Ends this side's direction of the socket.
    pub(super) fn end(&self) -> io::Result<()> {
        self.with(|fd| Ok(rustix::net::shutdown(fd, rustix::net::Shutdown::Write)?))
    }

    /// Makes closing the socket send a reset, so that what was sent can't be taken
    /// for whole.
    pub fn reset_on_close(&self) {
        if let Some(tls) = &self.tls {
            tls.abort();
        }
        if self.family == Family::Tcp {
            // Failing to set it only means an ordinary close.
            let _ = self.with(|fd| SockRef::from(&fd).set_linger(Some(Duration::ZERO)));
        }
    }

    /// TCP keepalive 60/10/6: a peer that vanished is found after two minutes.
    pub fn keep_alive(&self) {
        if self.family == Family::Tcp {
            let keepalive = TcpKeepalive::new()
                .with_time(Duration::from_secs(60))
                .with_interval(Duration::from_secs(10))
                .with_retries(6);
            // Without it the peer is merely found later.
            let _ = self.with(|fd| SockRef::from(&fd).set_tcp_keepalive(&keepalive));
        }
    }
}

fn send(fd: BorrowedFd<'_>, from: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    match from {
        [only] => rustix::net::send(fd, only, SendFlags::NOSIGNAL),
        _ => rustix::net::sendmsg(fd, from, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL),
    }
}

#[cfg(test)]
mod tests;
