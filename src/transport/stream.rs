//! Stream: a connected socket, TCP or Unix, read and written without waiting.
//!
//! Both directions work on `&self`, so that a third party (the watch for a client
//! that leaves) can wait on the same socket. A read that got less than it asked for,
//! or a write that could not place all, has emptied or filled the kernel's buffer:
//! the readiness is then cleared at once, which saves the system call that would only
//! have said `EAGAIN`.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

/// A connected stream socket, registered with this thread's runtime.
#[derive(Debug)]
pub enum Stream {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

/// A socket before it is registered with a runtime, so that it can change threads.
#[derive(Debug)]
pub enum Raw {
    /// TCP over IPv4 or IPv6.
    Tcp(std::net::TcpStream),
    /// A Unix stream socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Raw {
    /// Registers a non-blocking socket with the current runtime.
    ///
    /// # Errors
    /// When the runtime cannot register it (out of memory or of epoll watches).
    pub fn register(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Tcp(socket) => Stream::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => Stream::Unix(UnixStream::from_std(socket)?),
        })
    }
}

macro_rules! on {
    ($self:expr, $socket:ident => $call:expr) => {
        match $self {
            Stream::Tcp($socket) => $call,
            Stream::Unix($socket) => $call,
        }
    };
}

impl Stream {
    /// Takes the socket out of this thread's runtime.
    ///
    /// # Errors
    /// When it cannot be deregistered.
    pub fn into_raw(self) -> io::Result<Raw> {
        Ok(match self {
            Self::Tcp(socket) => Raw::Tcp(socket.into_std()?),
            Self::Unix(socket) => Raw::Unix(socket.into_std()?),
        })
    }

    /// Ready when a read is worth trying: bytes, the end, or an error.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, socket => socket.poll_read_ready(cx))
    }

    /// Reads into `into`; 0 is the end of the stream.
    ///
    /// # Errors
    /// Whatever `read(2)` reports.
    pub fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_readable(cx))?;
            if let Some(outcome) = self.try_read(into) {
                return Poll::Ready(outcome);
            }
        }
    }

    /// One read without waiting; `None` when it would have to.
    pub fn try_read(&self, into: &mut [u8]) -> Option<io::Result<usize>> {
        let wanted = into.len();
        let mut got = 0;
        let outcome = self.attempt(Interest::READABLE, |fd| {
            got = retry(|| rustix::io::read(fd, &mut *into))?;
            if got > 0 && got < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(got) }
        });
        settle(outcome, got)
    }

    /// Writes from `from`, in order; says how many bytes in all.
    ///
    /// # Errors
    /// Whatever `writev(2)` reports.
    pub fn poll_write(&self, cx: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let wanted: usize = from.iter().map(|slice| slice.len()).sum();
        loop {
            ready!(self.poll_writable(cx))?;
            let mut put = 0;
            let outcome = self.attempt(Interest::WRITABLE, |fd| {
                put = retry(|| rustix::io::writev(fd, from))?;
                if put < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(put) }
            });
            if let Some(outcome) = settle(outcome, put) {
                return Poll::Ready(outcome);
            }
        }
    }

    /// Ends this side's direction: the peer reads the end of the stream.
    ///
    /// # Errors
    /// When the peer is gone already.
    pub fn shutdown_write(&self) -> io::Result<()> {
        on!(self, socket => rustix::net::shutdown(socket, rustix::net::Shutdown::Write)?);
        Ok(())
    }

    /// Makes closing the socket send a reset, so that what was sent can't be taken
    /// for whole.
    pub fn reset_on_close(&self) {
        if let Self::Tcp(socket) = self {
            // Failing to set it only means an ordinary close.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
    }

    /// TCP keepalive 60/10/6: a peer that vanished is found after two minutes.
    pub fn keep_alive(&self) {
        if let Self::Tcp(socket) = self {
            let keepalive = TcpKeepalive::new()
                .with_time(Duration::from_secs(60))
                .with_interval(Duration::from_secs(10))
                .with_retries(6);
            // Without it the peer is merely found later.
            let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
        }
    }

    /// Whether anything has arrived that was not read: bytes, the end, or an error.
    /// Costs no system call, and nothing of the task's budget: a task that has spent it
    /// would be told that nothing is ready.
    #[must_use]
    pub fn stirred(&self) -> bool {
        self.attempt(Interest::READABLE, |_| Ok(())).is_ok()
    }

    /// The same, asked of the kernel where the runtime may be wrong: it takes a socket for
    /// readable until a read finds less than it asked for, and one that took just what was
    /// there does not. No system call where the runtime knows.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let outcome =
            self.attempt(Interest::READABLE, |socket| retry(|| recv(socket, &mut [0_u8], peek).map(|(_, n)| n)));
        !matches!(outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Resolves when the peer has left for good: it reset the connection or closed
    /// both directions.
    ///
    /// A peer that only ended its own direction (a half-close) may still want its
    /// answer, and one that sent more than was read is still there: neither counts.
    pub async fn left(&self) {
        let mut interest = Interest::READABLE | Interest::ERROR;
        loop {
            let ready = on!(self, socket => socket.ready(interest).await);
            match ready {
                Ok(ready) if ready.is_error() => return,
                Ok(_) if self.hung_up() => return,
                Ok(ready) if ready.is_read_closed() => interest = Interest::ERROR,
                // Bytes are there, so being readable says nothing more. The end still does:
                // a Unix peer that closes brings no error with it.
                Ok(_) => interest = Interest::PRIORITY | Interest::ERROR,
                Err(_) => return,
            }
        }
    }

    /// Whether both directions are closed (`EPOLLHUP`), by what the runtime knows.
    fn hung_up(&self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let ready = on!(self, socket => {
            let ready = std::pin::pin!(socket.ready(Interest::WRITABLE | Interest::READABLE));
            ready.poll(&mut cx)
        });
        matches!(ready, Poll::Ready(Ok(ready)) if ready.is_write_closed() || ready.is_error())
    }

    /// Ready when a write is worth trying.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, socket => socket.poll_write_ready(cx))
    }

    pub(super) fn attempt<T>(
        &self,
        interest: Interest,
        call: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        use std::os::fd::AsFd;
        on!(self, socket => socket.try_io(interest, || call(socket.as_fd())))
    }
}

/// Tells a call that moved bytes and then cleared the readiness from one that has to wait.
fn settle(outcome: io::Result<usize>, moved: usize) -> Option<io::Result<usize>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => (moved > 0).then_some(Ok(moved)),
        outcome => Some(outcome),
    }
}

pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return outcome.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stream;
    use std::future::poll_fn;
    use std::io::IoSlice;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use tokio::net::{TcpListener, TcpStream, UnixStream};

    async fn tcp() -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (one, two) = tokio::join!(TcpStream::connect(address), listener.accept());
        (Stream::Tcp(one.unwrap()), Stream::Tcp(two.unwrap().0))
    }

    fn unix() -> (Stream, Stream) {
        let (one, two) = UnixStream::pair().unwrap();
        (Stream::Unix(one), Stream::Unix(two))
    }

    async fn write(stream: &Stream, bytes: &[u8]) {
        let n = poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)])).await.unwrap();
        assert_eq!(n, bytes.len());
    }

    async fn read(stream: &Stream) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        let n = poll_fn(|cx| stream.poll_read(cx, &mut bytes)).await.unwrap();
        bytes.truncate(n);
        bytes
    }

    #[tokio::test]
    async fn bytes_the_half_close_and_the_answer_pass() {
        for (one, two) in [tcp().await, unix()] {
            write(&one, b"ping").await;
            one.shutdown_write().unwrap();
            assert_eq!(read(&two).await, b"ping");
            assert_eq!(read(&two).await, b"");
            write(&two, b"pong").await;
            assert_eq!(read(&one).await, b"pong");
        }
    }

    #[tokio::test]
    async fn a_half_close_and_early_bytes_are_not_leaving() {
        for (one, two) in [tcp().await, unix()] {
            write(&one, b"more").await;
            one.shutdown_write().unwrap();
            let mut left = pin!(two.left());
            // The end of the stream arrives; the watch must go on waiting.
            poll_fn(|cx| two.poll_readable(cx)).await.unwrap();
            let polled = left.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(polled, Poll::Pending));
        }
    }

    #[tokio::test]
    async fn a_reset_after_a_half_close_is_leaving() {
        let (one, two) = tcp().await;
        one.shutdown_write().unwrap();
        assert_eq!(read(&two).await, b"");
        one.reset_on_close();
        drop(one);
        two.left().await;
    }

    #[tokio::test]
    async fn a_closed_unix_peer_has_left() {
        let (one, two) = unix();
        drop(one);
        two.left().await;
    }

    #[tokio::test]
    async fn a_unix_peer_that_closes_after_early_bytes_has_left() {
        let (one, two) = unix();
        write(&one, b"more").await;
        let mut left = pin!(two.left());
        poll_fn(|cx| two.poll_readable(cx)).await.unwrap();
        assert!(left.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(one);
        left.await;
    }

    #[tokio::test]
    async fn a_read_of_just_what_was_there_leaves_no_input_behind() {
        for (one, two) in [tcp().await, unix()] {
            write(&one, b"just this").await;
            let mut bytes = [0; 9];
            assert_eq!(poll_fn(|cx| two.poll_read(cx, &mut bytes)).await.unwrap(), 9);
            assert!(two.stirred(), "the runtime can't know");
            assert!(!two.has_input() && !two.stirred());
            write(&one, b"more").await;
            poll_fn(|cx| two.poll_readable(cx)).await.unwrap();
            assert!(two.has_input() && two.has_input(), "nothing is taken");
            assert_eq!(read(&two).await, b"more");
            drop(one);
            poll_fn(|cx| two.poll_readable(cx)).await.unwrap();
            assert!(two.has_input(), "the end");
        }
    }

    #[tokio::test]
    async fn an_idle_stream_stirs_only_when_something_arrives() {
        // An accepted stream is assumed readable until a first read; a dialled one is not.
        let (dialled, accepted) = tcp().await;
        assert!(!dialled.stirred());
        write(&accepted, b"x").await;
        poll_fn(|cx| dialled.poll_readable(cx)).await.unwrap();
        assert!(dialled.stirred());
        while tokio::task::coop::has_budget_remaining() {
            tokio::task::coop::consume_budget().await;
        }
        assert!(dialled.stirred(), "a spent budget hides nothing");
    }
}
