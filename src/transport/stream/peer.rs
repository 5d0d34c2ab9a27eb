//! Whether the other side of a [`Stream`] has sent anything, and whether it is still there.

use std::io;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use rustix::net::RecvFlags;
use tokio::io::Interest;

use super::Stream;
use crate::transport::tls::Session;
use crate::transport::watch::Watch;

/// How a peer left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// It reset the connection: nothing more can be read.
    Reset,
    /// It closed both directions: what it sent before may still wait to be read.
    Closed,
}

impl Stream {
    /// Whether anything has arrived that was not read: bytes, the end, or an error.
    /// Costs no system call once the socket is watched and nothing came, and nothing of the
    /// task's budget: a task that has spent it would be told that nothing is ready.
    #[must_use]
    pub fn stirred(&self) -> bool {
        let stirred = match self.watch.get() {
            Some(watch) => watch.is_readable(),
            None => !matches!(self.peek(), Err(error) if error.kind() == io::ErrorKind::WouldBlock),
        };
        self.tls().map_or(stirred, |tls| tls.has_more() || stirred && tls.stirs(self))
    }

    /// The same, asked of the kernel where the runtime may be wrong: it takes a socket for
    /// readable until a read finds less than it asked for, and one that took just what was
    /// there does not. No system call where the runtime knows.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let Some(watch) = self.watch.get().filter(|_| self.tls.is_none()) else { return self.stirred() };
        let mut peek = |fd: BorrowedFd<'_>| Ok(rustix::net::recv(fd, &mut [0_u8], RecvFlags::PEEK)?.1);
        watch.attempt(Interest::READABLE, 1, &mut peek).is_some()
    }

    /// Whether bytes are on the socket that were not read: closing it would then send a
    /// reset, which can take from the peer what it has not read either.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.watch.get().is_none_or(Watch::is_readable) && matches!(self.peek(), Ok(1..))
    }

    fn peek(&self) -> io::Result<usize> {
        self.with(|fd| Ok(rustix::net::recv(fd, &mut [0_u8], RecvFlags::PEEK)?.1))
    }

    /// Ready when anything has arrived that was not read; unlike [`Self::poll_readable`]
    /// it waits for that, and says nothing it does not know.
    pub fn poll_stirred(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.tls().is_some_and(Session::has_more) {
            return Poll::Ready(Ok(()));
        }
        self.watch()?.poll_ready(cx, Interest::READABLE)
    }

    /// Resolves when the peer has left for good: it reset the connection or closed
    /// both directions.
    ///
    /// A peer that only ended its own direction (a half-close) may still want its
    /// answer, and one that sent more than was read is still there: neither counts.
    pub async fn left(&self) -> Gone {
        let Ok(watch) = self.watch() else { return Gone::Reset };
        let mut interest = Interest::READABLE | Interest::ERROR;
        loop {
            match watch.ready(interest).await {
                Ok(ready) if ready.is_error() => return Gone::Reset,
                Ok(_) if watch.hung_up() => return Gone::Closed,
                Ok(ready) if ready.is_read_closed() => interest = Interest::ERROR,
                // Bytes are there, so being readable says nothing more. The end still does:
                // a Unix peer that closes brings no error with it.
                Ok(_) => interest = Interest::PRIORITY | Interest::ERROR,
                Err(_) => return Gone::Reset,
            }
        }
    }
}
