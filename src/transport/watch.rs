//! Watch: a socket that has joined the runtime's epoll.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use rustix::io::Errno;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

use super::stream::Family;

/// A socket that has joined the runtime's epoll.
#[derive(Debug)]
pub(super) enum Watch {
    Tcp(TcpStream),
    Unix(UnixStream),
}

macro_rules! on {
    ($watch:expr, $socket:ident => $call:expr) => {
        match $watch {
            Watch::Tcp($socket) => $call,
            Watch::Unix($socket) => $call,
        }
    };
}

impl Watch {
    pub(super) fn open(fd: OwnedFd, family: Family) -> io::Result<Self> {
        Ok(match family {
            Family::Tcp => Self::Tcp(TcpStream::from_std(fd.into())?),
            Family::Unix => Self::Unix(UnixStream::from_std(fd.into())?),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        on!(self, socket => socket.as_fd())
    }

    pub(super) fn poll_ready(&self, cx: &mut Context<'_>, interest: Interest) -> Poll<io::Result<()>> {
        match interest {
            Interest::READABLE => on!(self, socket => socket.poll_read_ready(cx)),
            _ => on!(self, socket => socket.poll_write_ready(cx)),
        }
    }

    /// One attempt of `call`; `None` when it would have to wait. It is worth another
    /// attempt at once unless `call` moved less than `wanted`.
    pub(super) fn attempt(&self, interest: Interest, wanted: usize, call: &mut Call<'_>) -> Option<io::Result<usize>> {
        let mut moved = 0;
        let outcome = on!(self, socket => socket.try_io(interest, || {
            moved = retry(|| call(self.fd()))?;
            // The end of the stream lasts; bytes that came short of what was asked do not.
            if moved > 0 && moved < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(moved) }
        }));
        match outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => (moved > 0).then_some(Ok(moved)),
            outcome => Some(outcome),
        }
    }

    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        on!(self, socket => socket.ready(interest).await)
    }

    /// Whether both directions are closed (`EPOLLHUP`), by what the runtime knows.
    pub(super) fn hung_up(&self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // A task that has spent its budget would be told that nothing is ready.
        let ready = std::pin::pin!(tokio::task::unconstrained(self.ready(Interest::WRITABLE | Interest::READABLE)));
        matches!(ready.poll(&mut cx), Poll::Ready(Ok(ready)) if ready.is_write_closed() || ready.is_error())
    }

    /// Leaves epoll.
    pub(super) fn release(self) -> Option<OwnedFd> {
        match self {
            Self::Tcp(socket) => socket.into_std().ok().map(OwnedFd::from),
            Self::Unix(socket) => socket.into_std().ok().map(OwnedFd::from),
        }
    }

    /// Whether it counts as readable. Nothing of the task's budget is needed to be told so.
    pub(super) fn is_readable(&self) -> bool {
        on!(self, socket => socket.try_io(Interest::READABLE, || Ok(()))).is_ok()
    }
}

/// A system call on a socket that says how many bytes it moved.
pub(super) type Call<'a> = dyn FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize> + 'a;

/// Calls again for as long as a signal interrupts it.
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return outcome.map_err(io::Error::from),
        }
    }
}
