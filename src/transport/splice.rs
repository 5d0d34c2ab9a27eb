//! Splice: bytes from one socket to another without coming through the process.
//!
//! `splice(2)` moves the pages of a socket's receive queue into a pipe, and from there
//! into another socket's send queue. For bulk data that takes less than half of what
//! reading and writing take; for small messages it is the dearer way. So a relay copies
//! first and splices once a stream has proved large.
//!
//! A [`Pipe`] is filled only when it is empty. Then `EAGAIN` on the way in says that the
//! socket is empty and on the way out that the socket is full, and never the pipe:
//! nothing need be known of how much a pipe holds, which may be more than
//! `F_GETPIPE_SZ` says (a slot takes a page of any size) or less (a slot may be taken by
//! a few bytes).
//!
//! The kernel bounds the pages in the pipes of one user (`pipe-user-pages-soft`, 16,384
//! unless changed), over all of the user's processes. Half of it is ours, so that a
//! second instance or a successor has as much. Who gets no pipe copies. A relay has a
//! pipe only while there are bytes in it or it moves some, so the few pipes go round
//! among many streams; each thread keeps those that nobody has for a moment.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;

use super::stream::Stream;
use crate::admission::quota::{Quota, Share};

/// Bytes that a pipe is made for. More than [`MOST`], since a slot of it (one for each
/// page of this size) is taken by each packet, and packets are smaller than pages.
const SIZE: usize = 1024 * 1024;

/// Bytes that are put into a pipe at once.
pub const MOST: usize = 256 * 1024;

/// What a call is expected to move at least: a socket that gave or took less than asked for
/// may still have more, since pages count and not only bytes.
const ANY: usize = 0;

/// `pipe-user-pages-soft` as the kernel sets it, for where it can't be read: a sandbox
/// that hides `/proc/sys`, or a host that bounds nothing.
const USUAL_PAGES: u64 = 16 * 1024;

/// What all threads have together; none before [`provide`].
static PIPES: Quota = Quota::new(0);

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { pipes: Vec::new(), unused: 0 }) };
}

/// Pipes of this thread that nobody has.
struct Pool {
    pipes: Vec<Pipe>,
    /// The least that there were of them since the last [`trim`].
    unused: usize,
}

/// A pipe and what is in it.
#[derive(Debug)]
pub struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    inside: usize,
    _share: Share<'static>,
}

/// Allows the process as many pipes as this host's limit leaves it; until then there are
/// none. Reads a file, so it is not for a worker.
pub fn provide() {
    let stated = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").ok();
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    PIPES.resize(allowance(stated.and_then(|pages| pages.trim().parse().ok()), page));
}

/// How many pipes fit into half of `pages` of `page` bytes; 0 pages stand for no limit.
fn allowance(pages: Option<u64>, page: u64) -> u64 {
    let pages = pages.filter(|pages| *pages > 0).unwrap_or(USUAL_PAGES);
    let each = u64::try_from(SIZE).unwrap_or(u64::MAX) / page.max(1);
    pages / 2 / each.max(1)
}

/// Closes the pipes that this thread has not needed since this was last called.
pub fn trim() {
    let unused: Vec<Pipe> = POOL.with_borrow_mut(|pool| {
        let unused = pool.pipes.drain(..pool.unused.min(pool.pipes.len())).collect();
        pool.unused = pool.pipes.len();
        unused
    });
    drop(unused);
}

impl Pipe {
    /// An empty pipe; `None` when all are in use, here or by this user's other processes.
    #[must_use]
    pub fn take() -> Option<Self> {
        let kept = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let kept = pool.pipes.pop();
            pool.unused = pool.unused.min(pool.pipes.len());
            kept
        });
        kept.ok().flatten().or_else(|| Self::open(PIPES.take()?))
    }

    /// Bytes in it.
    #[must_use]
    pub fn inside(&self) -> usize {
        self.inside
    }

    fn open(share: Share<'static>) -> Option<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        fcntl_setpipe_size(&into, SIZE).ok()?;
        Some(Self { out, into, inside: 0, _share: share })
    }

    /// Gives the pipe back. One with bytes in it is closed, and they are lost: whoever
    /// has it next must not meet them.
    pub fn put(self) {
        if self.inside == 0 {
            // The pool is gone when the thread ends.
            let _ = POOL.try_with(|pool| pool.borrow_mut().pipes.push(self));
        }
    }

    /// Takes in at most `most` bytes that `from` has received; 0 is the end of the stream.
    /// The pipe must be empty.
    ///
    /// # Errors
    /// Whatever `splice(2)` reports; nothing was taken then.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &Stream, most: usize) -> Poll<io::Result<usize>> {
        let into = &self.into;
        let n = ready!(from.poll_move(cx, Interest::READABLE, ANY, &mut |socket| {
            match splice(socket, None, into, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
                // At a mark of urgent data nothing can be spliced, though bytes are there.
                Err(Errno::AGAIN) if has_bytes(socket) => Err(Errno::INVAL),
                outcome => outcome,
            }
        }))?;
        self.inside += n;
        Poll::Ready(Ok(n))
    }

    /// Sends at most `most` of the bytes in it over `to`, and says how many. There must be
    /// some. With `anyway` it is tried even if `to` does not count as writable: see
    /// [`Stream::write_anyway`].
    ///
    /// What goes out is not held back for more (`SPLICE_F_MORE`): whether more comes at
    /// once is not known, and the kernel would wait for it up to 200 ms.
    ///
    /// # Errors
    /// Whatever `splice(2)` reports.
    pub fn poll_drain(
        &mut self,
        cx: &mut Context<'_>,
        to: &Stream,
        most: usize,
        anyway: bool,
    ) -> Poll<io::Result<usize>> {
        let most = most.min(self.inside);
        let out = &self.out;
        let mut call =
            |socket: BorrowedFd<'_>| splice(out, None, socket, None, most, SpliceFlags::MOVE | SpliceFlags::NONBLOCK);
        let n = match anyway.then(|| to.move_anyway(&mut call)).flatten() {
            Some(outcome) => outcome?,
            None => ready!(to.poll_move(cx, Interest::WRITABLE, ANY, &mut call))?,
        };
        if n == 0 {
            // What we counted is not there: never to be waited for.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.inside = self.inside.saturating_sub(n);
        Poll::Ready(Ok(n))
    }
}

fn has_bytes(socket: BorrowedFd<'_>) -> bool {
    matches!(rustix::net::recv(socket, &mut [0_u8], RecvFlags::PEEK), Ok((_, 1..)))
}

/// Whether an error of [`Pipe::poll_fill`] says that this socket can't be spliced from, and
/// nothing of the socket itself: it must be read instead.
#[must_use]
pub fn is_refused(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::INVAL | Errno::NOSYS | Errno::PERM))
}

#[cfg(test)]
mod tests {
    use super::{MOST, PIPES, POOL, Pipe, allowance, provide, trim};
    use crate::transport::stream::{Family, Socket, Stream};
    use std::future::poll_fn;
    use std::io::IoSlice;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::task::{Context, Waker};

    fn pairs() -> [(Stream, Stream); 2] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let two = listener.accept().unwrap().0;
        [one.set_nonblocking(true), two.set_nonblocking(true)].into_iter().for_each(Result::unwrap);
        let unix = UnixStream::pair().unwrap();
        [unix.0.set_nonblocking(true), unix.1.set_nonblocking(true)].into_iter().for_each(Result::unwrap);
        let stream = |fd: OwnedFd, family| Stream::from(Socket::new(fd, family));
        [
            (stream(one.into(), Family::Tcp), stream(two.into(), Family::Tcp)),
            (stream(unix.0.into(), Family::Unix), stream(unix.1.into(), Family::Unix)),
        ]
    }

    async fn write(stream: &Stream, bytes: &[u8]) {
        assert_eq!(poll_fn(|cx| stream.poll_write(cx, &[IoSlice::new(bytes)])).await.unwrap(), bytes.len());
    }

    fn kept() -> usize {
        POOL.with_borrow(|pool| pool.pipes.len())
    }

    #[tokio::test]
    async fn bytes_pass_as_they_are_and_no_further_than_asked_for() {
        provide();
        let mut pipe = Pipe::take().unwrap();
        for (from, one) in pairs() {
            for (to, two) in pairs() {
                write(&from, b"hello world").await;
                assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &one, 5)).await.unwrap(), 5);
                assert_eq!(poll_fn(|cx| pipe.poll_drain(cx, &two, 4, false)).await.unwrap(), 4);
                assert_eq!(pipe.inside(), 1);
                assert_eq!(poll_fn(|cx| pipe.poll_drain(cx, &two, MOST, false)).await.unwrap(), 1);
                let mut bytes = [0; 16];
                assert_eq!(poll_fn(|cx| to.poll_read(cx, &mut bytes)).await.unwrap(), 5);
                assert_eq!(&bytes[..5], b"hello");
                assert_eq!(poll_fn(|cx| one.poll_read(cx, &mut bytes)).await.unwrap(), 6);
                assert_eq!(&bytes[..6], b" world");
            }
        }
    }

    #[tokio::test]
    async fn an_empty_socket_and_a_full_one_are_waited_for_and_the_end_is_seen() {
        provide();
        let cx = &mut Context::from_waker(Waker::noop());
        let mut pipe = Pipe::take().unwrap();
        for (from, one) in pairs() {
            for (to, two) in pairs() {
                assert!(pipe.poll_fill(cx, &one, MOST).is_pending(), "nothing was sent");
                let block = vec![7; 64 * 1024];
                let (mut sent, mut passed) = (0, 0);
                // Until nothing more goes out, with nobody reading.
                while pipe.inside() == 0 {
                    if sent == passed {
                        sent += poll_fn(|cx| from.poll_write(cx, &[IoSlice::new(&block)])).await.unwrap();
                    }
                    passed += poll_fn(|cx| pipe.poll_fill(cx, &one, MOST)).await.unwrap();
                    while pipe.inside() > 0 && pipe.poll_drain(cx, &two, MOST, false).map(Result::unwrap).is_ready() {}
                    assert!(passed < 1 << 30, "it never fills");
                }
                let moving = async {
                    while pipe.inside() > 0 || passed < sent {
                        if pipe.inside() == 0 {
                            passed += poll_fn(|cx| pipe.poll_fill(cx, &one, MOST)).await.unwrap();
                        }
                        poll_fn(|cx| pipe.poll_drain(cx, &two, MOST, false)).await.unwrap();
                    }
                };
                let reading = async {
                    let (mut got, mut bytes) = (0, vec![0; MOST]);
                    while got < sent {
                        got += poll_fn(|cx| to.poll_read(cx, &mut bytes)).await.unwrap();
                    }
                    got
                };
                assert_eq!(tokio::join!(moving, reading).1, sent);
                assert!(pipe.poll_fill(cx, &one, MOST).is_pending(), "all was taken");
            }
            from.shutdown_write().unwrap();
            assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &one, MOST)).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn an_empty_pipe_is_used_again_and_one_with_bytes_never() {
        provide();
        let [(from, to), _] = pairs();
        let mut pipe = Pipe::take().unwrap();
        write(&from, b"secret").await;
        poll_fn(|cx| pipe.poll_fill(cx, &to, MOST)).await.unwrap();
        pipe.put();
        assert_eq!(kept(), 0);
        Pipe::take().unwrap().put();
        assert_eq!(kept(), 1);
        let again = Pipe::take().unwrap();
        assert_eq!((kept(), again.inside()), (0, 0));
    }

    #[test]
    fn pipes_that_nobody_needed_since_the_last_look_are_closed() {
        provide();
        let pipes: Vec<_> = (0..3).map(|_| Pipe::take().unwrap()).collect();
        pipes.into_iter().for_each(Pipe::put);
        trim();
        assert_eq!(kept(), 3, "they were in use until now");
        Pipe::take().unwrap().put();
        trim();
        assert_eq!(kept(), 1, "one at a time was enough");
        trim();
        assert_eq!(kept(), 0);
    }

    #[test]
    fn half_of_the_users_pages_is_the_limit() {
        let pipes = |pages| allowance(pages, 4096);
        assert_eq!(pipes(Some(16_384)), 32);
        assert_eq!((pipes(None), pipes(Some(0))), (32, 32), "unknown, or none");
        assert_eq!((pipes(Some(1_024)), pipes(Some(511))), (2, 0));
        assert_eq!(allowance(Some(16_384), 65_536), 512);
        provide();
        assert!(PIPES.limit() > 0);
    }
}
