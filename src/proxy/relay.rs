//! Relay: moves a body from one side to the other, as it comes.
//!
//! A [`Source`] lends what it has, a [`Sink`] takes as much as it can; whatever is
//! behind them (HTTP/1, frames, plain bytes) deals with its own framing. Nothing is
//! copied in between and nothing is gathered up: when the sink does not take, the
//! source is not read, and so the peer is not either.
//!
//! Where both sides are plain sockets at this point of their messages ([`Raw`]), a body
//! that has proved large is spliced: see [`splice`]. A body proves so by four pieces in a
//! row that would fill a buffer, or by one where its head announces that much more is to
//! come; it no longer counts as such once it comes in small pieces: those are cheaper to
//! copy.
//!
//! In one turn a relay moves [`TURN_BYTES`] or [`TURN_PIECES`], and then has everybody
//! else's turn before its next.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

use crate::telemetry::Reason;
use crate::transport::buffer;
use crate::transport::splice::{self, Pipe};
use crate::transport::stream::Stream;

/// What a piece must have to show that a body is large: what any buffer holds.
const LARGE: usize = buffer::SIZE;

/// Large pieces in a row after which a body is spliced.
const PROVED: u8 = 4;

/// Bytes still to come, by what the head said, from which on one large piece is enough.
const ANNOUNCED: u64 = 128 * 1024;

/// Where the count of large pieces ends: so many small ones lead back to copying.
const SURE: u8 = 8;

/// What a source lends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of the body.
    Data(&'a [u8]),
    /// The body is over, and complete.
    End,
}

/// One side's failure, without saying which side: the caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The peer reset the connection, or a write failed.
    #[error("connection reset")]
    Reset,
    /// The peer ended its direction before the message was whole.
    #[error("ended early")]
    Truncated,
    /// The peer says that it has done nothing about the message, and won't.
    #[error("refused")]
    Refused,
    /// The peer ended TLS with an alert.
    #[error("ended with an alert")]
    Alert,
    /// The message is malformed; the reason is the one to answer a client with.
    #[error("malformed: {}", .0.as_str())]
    Malformed(Reason),
}

/// A side of a body that is a plain socket: the bytes of the body are those on the socket,
/// and none of them are anywhere else.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// The socket.
    pub io: &'a Stream,
    /// Bytes that the body may still have; `u64::MAX` when its end is the stream's.
    pub left: u64,
    /// The socket is to be tried even if it does not count as ready.
    pub anyway: bool,
}

/// Where a body comes from.
pub trait Source {
    /// Lends the next piece. The same piece is lent again until it is consumed.
    ///
    /// # Errors
    /// The peer's fault; the body is incomplete then.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>>;

    /// Counts the first `n` bytes of the piece as dealt with.
    fn consume(&mut self, n: usize);

    /// The socket, if what comes next of the body can be taken straight from it.
    fn raw_source(&self) -> Option<Raw<'_>> {
        None
    }

    /// Counts `n` bytes of the body as taken from the socket.
    fn spliced_from(&mut self, _n: usize) {}

    /// Fields of this name behind the body, which has not begun to be read, don't go on.
    fn withhold(&mut self, _name: &[u8]) {}

    /// The fields behind a body that is over, those that may go on: each a whole line.
    fn trailers(&self) -> &[u8] {
        &[]
    }
}

/// Where a body goes.
pub trait Sink {
    /// Takes some of `data`, together with whatever is still to go out before it.
    ///
    /// # Errors
    /// The peer's fault.
    fn poll_push(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>>;

    /// Sends what was taken or prepared but has not gone out yet.
    ///
    /// # Errors
    /// The peer's fault.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>>;

    /// Bytes that were taken and have not gone out yet. While they get fewer the peer takes
    /// some, though no more are taken from the source.
    fn held(&self) -> usize {
        0
    }

    /// Ends the body with these fields, where they can be taken; [`Self::poll_finish`] is
    /// still to come.
    fn trail(&mut self, _lines: &[u8]) {}

    /// Has writes tried even if the peer does not count as ready for them, until there is
    /// no room at all. Before it is given up for taking nothing.
    fn prod(&mut self) {}

    /// Ends the body and sends everything.
    ///
    /// # Errors
    /// The peer's fault.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>>;

    /// The socket, if what comes next of the body can be put straight into it.
    fn raw_sink(&self) -> Option<Raw<'_>> {
        None
    }

    /// Counts `n` bytes of the body as put into the socket; 0 says that it took none.
    fn spliced_to(&mut self, _n: usize) {}
}

/// Which side a relay waits for, or failed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The side that bytes come from.
    Source,
    /// The side that bytes go to.
    Sink,
}

/// Bytes moved in a turn, so that a fast pair of peers does not starve the others.
const TURN_BYTES: u64 = 256 * 1024;

/// Pieces moved in a turn, likewise.
const TURN_PIECES: u32 = 256;

/// One direction of an exchange.
#[derive(Debug, Default)]
pub struct Relay {
    /// Bytes of the body moved so far.
    pub moved: u64,
    /// Those of them that were spliced.
    pub spliced: u64,
    ended: bool,
    /// Large pieces in a row; from [`PROVED`] on, the body is spliced.
    large: u8,
    /// Bytes that the sink has not taken yet, if there are some.
    pipe: Option<Pipe>,
}

/// How a turn of a [`Relay`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The body has gone out whole.
    Done,
    /// Nothing more can be done until that side moves.
    Waits(End),
    /// That side failed.
    Failed(End, Fault),
}

impl Relay {
    /// Moves as much as can be moved now, and is fair.
    pub fn turn(&mut self, cx: &mut Context<'_>, source: &mut impl Source, sink: &mut impl Sink) -> Turn {
        let begun = self.moved;
        let mut pieces = 0;
        while !self.ended {
            if pieces == TURN_PIECES || self.moved - begun >= TURN_BYTES {
                return others_first(cx);
            }
            // What is in the pipe goes out before anything that comes after it.
            if self.large >= PROVED || self.pipe.is_some() {
                if let Some(turn) = self.splice(cx, source, sink, begun) {
                    return turn;
                }
            }
            match source.poll_piece(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => match sink.poll_push(cx, data) {
                    Poll::Ready(Ok(n)) => {
                        source.consume(n);
                        self.large = match self.large {
                            _ if n < LARGE => 0,
                            _ if announces(source) => PROVED,
                            pieces => pieces.saturating_add(1),
                        };
                        self.moved += u64::try_from(n).unwrap_or(0);
                        pieces += 1;
                    }
                    Poll::Ready(Err(fault)) => return Turn::Failed(End::Sink, fault),
                    Poll::Pending => return Turn::Waits(End::Sink),
                },
                Poll::Ready(Ok(Piece::End)) => {
                    sink.trail(source.trailers());
                    self.ended = true;
                }
                Poll::Ready(Err(fault)) => return Turn::Failed(End::Source, fault),
                // Let go of what is prepared: a head whose body is still to come.
                Poll::Pending => {
                    return match sink.poll_flush(cx) {
                        Poll::Ready(Ok(())) => Turn::Waits(End::Source),
                        Poll::Ready(Err(fault)) => Turn::Failed(End::Sink, fault),
                        Poll::Pending => Turn::Waits(End::Sink),
                    };
                }
            }
        }
        match sink.poll_finish(cx) {
            Poll::Ready(Ok(())) => Turn::Done,
            Poll::Ready(Err(fault)) => Turn::Failed(End::Sink, fault),
            Poll::Pending => Turn::Waits(End::Sink),
        }
    }

    /// Moves bytes through a pipe. `None` when that can't go on and the pipe is empty: the
    /// rest, or the body's end, is found by copying.
    fn splice(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Source,
        sink: &mut impl Sink,
        begun: u64,
    ) -> Option<Turn> {
        if self.pipe.is_none() {
            source.raw_source()?;
            sink.raw_sink()?;
        }
        let Some(mut pipe) = self.pipe.take().or_else(Pipe::take) else {
            self.large = 0;
            return None;
        };
        let turn = loop {
            let room = sink.raw_sink();
            if pipe.inside() > 0 {
                // What is in the pipe was within what the sink had room for.
                let Some(to) = room else { break Some(Turn::Failed(End::Sink, Fault::Truncated)) };
                match pipe.poll_drain(cx, to.io, usize::try_from(to.left).unwrap_or(usize::MAX), to.anyway) {
                    Poll::Ready(Ok(n)) => {
                        sink.spliced_to(n);
                        let n = u64::try_from(n).unwrap_or(0);
                        self.moved += n;
                        self.spliced += n;
                    }
                    Poll::Ready(Err(_)) => break Some(Turn::Failed(End::Sink, Fault::Reset)),
                    Poll::Pending => {
                        sink.spliced_to(0);
                        break Some(Turn::Waits(End::Sink));
                    }
                }
                continue;
            }
            if self.moved - begun >= TURN_BYTES {
                break Some(others_first(cx));
            }
            let (Some(from), Some(to)) = (source.raw_source(), room) else { break None };
            if self.large < PROVED {
                self.large = 0;
                break None;
            }
            let most = usize::try_from(from.left.min(to.left)).unwrap_or(usize::MAX).min(splice::MOST);
            match pipe.poll_fill(cx, from.io, most) {
                // The end: what it means is the source's to say.
                Poll::Ready(Ok(0)) => break None,
                Poll::Ready(Ok(n)) => {
                    source.spliced_from(n);
                    self.large = if n >= LARGE { SURE } else { self.large.saturating_sub(1) };
                }
                Poll::Ready(Err(error)) if splice::is_refused(&error) => {
                    self.large = 0;
                    break None;
                }
                Poll::Ready(Err(_)) => break Some(Turn::Failed(End::Source, Fault::Reset)),
                Poll::Pending => break Some(Turn::Waits(End::Source)),
            }
        };
        // A pipe that waits with nothing in it is better used by others.
        if pipe.inside() > 0 {
            self.pipe = Some(pipe)
        } else {
            pipe.put()
        }
        turn
    }
}

/// Whether the source says that much more is to come, so that no more pieces need prove it.
fn announces(source: &impl Source) -> bool {
    source.raw_source().is_some_and(|raw| (ANNOUNCED..u64::MAX).contains(&raw.left))
}

/// Ends a turn in which enough was moved: the next comes after whatever else is ready,
/// also what the kernel has not told of yet.
fn others_first(cx: &mut Context<'_>) -> Turn {
    let _ = pin!(tokio::task::yield_now()).poll(cx);
    Turn::Waits(End::Source)
}

#[cfg(test)]
mod tests {
    use super::{ANNOUNCED, End, Fault, LARGE, PROVED, Piece, Raw, Relay, Sink, Source, TURN_BYTES, Turn};
    use crate::transport::splice;
    use crate::transport::stream::{Family, Socket, Stream};
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::task::{Context, Poll, Waker};

    /// Lends large pieces, so many, before its socket.
    struct From {
        pieces: usize,
        io: Stream,
        raw: bool,
        left: u64,
    }

    impl Source for From {
        fn poll_piece(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
            if self.pieces > 0 { Poll::Ready(Ok(Piece::Data(&[0; LARGE]))) } else { Poll::Pending }
        }

        fn consume(&mut self, _n: usize) {
            self.pieces -= 1;
        }

        fn raw_source(&self) -> Option<Raw<'_>> {
            (self.raw && self.pieces == 0).then_some(Raw { io: &self.io, left: self.left, anyway: false })
        }
    }

    /// Takes every piece, and has a socket.
    struct To {
        pushed: usize,
        spliced: usize,
        io: Stream,
    }

    impl Sink for To {
        fn poll_push(&mut self, _cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Fault>> {
            self.pushed += data.len();
            Poll::Ready(Ok(data.len()))
        }

        fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
            Poll::Ready(Ok(()))
        }

        fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
            Poll::Ready(Ok(()))
        }

        fn raw_sink(&self) -> Option<Raw<'_>> {
            Some(Raw { io: &self.io, left: u64::MAX, anyway: false })
        }

        fn spliced_to(&mut self, n: usize) {
            self.spliced += n;
        }
    }

    /// A stream and its peer, which waits.
    fn pair() -> (Stream, UnixStream) {
        let (one, two) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        (Socket::new(one.into(), Family::Unix).into(), two)
    }

    fn sides() -> (From, UnixStream, To, UnixStream) {
        splice::provide();
        let ((from, sender), (to, reader)) = (pair(), pair());
        let from = From { pieces: usize::from(PROVED), io: from, raw: true, left: u64::MAX };
        (from, sender, To { pushed: 0, spliced: 0, io: to }, reader)
    }

    #[tokio::test]
    async fn what_is_in_the_pipe_goes_out_before_what_comes_after_it() {
        let (mut from, mut sender, mut to, mut reader) = sides();
        let mut filled = 0;
        while let Poll::Ready(n) =
            to.io.poll_write(&mut Context::from_waker(Waker::noop()), &[std::io::IoSlice::new(&[1; 4096])])
        {
            filled += n.unwrap();
        }
        // Too little to go on splicing, and no room for it.
        sender.write_all(b"first").unwrap();
        let mut relay = Relay::default();
        let cx = &mut Context::from_waker(Waker::noop());
        assert_eq!(relay.turn(cx, &mut from, &mut to), Turn::Waits(End::Sink));
        let before = to.pushed;
        from.pieces = 1;
        assert_eq!(relay.turn(cx, &mut from, &mut to), Turn::Waits(End::Sink));
        assert_eq!((to.pushed, to.spliced, from.pieces), (before, 0, 1), "a later piece must not overtake");
        reader.read_exact(&mut vec![0; filled]).unwrap();
        let turn = poll_fn(|cx| match relay.turn(cx, &mut from, &mut to) {
            Turn::Waits(End::Sink) => Poll::Pending,
            turn => Poll::Ready(turn),
        });
        assert_eq!(turn.await, Turn::Waits(End::Source));
        let mut first = [0; 5];
        reader.read_exact(&mut first).unwrap();
        assert_eq!((&first, to.spliced, to.pushed), (b"first", 5, before + LARGE));
        assert_eq!((relay.spliced, relay.moved), (5, (before + LARGE + 5) as u64));
    }

    #[tokio::test]
    async fn a_body_is_spliced_once_it_has_proved_large_and_copied_where_it_can_not_be() {
        for raw in [true, false] {
            let (mut from, mut sender, mut to, _reader) = sides();
            from.raw = raw;
            from.pieces -= 1;
            sender.write_all(&[7; LARGE]).unwrap();
            let mut relay = Relay::default();
            let cx = &mut Context::from_waker(Waker::noop());
            assert_eq!(relay.turn(cx, &mut from, &mut to), Turn::Waits(End::Source));
            assert_eq!((relay.spliced, from.pieces), (0, 0), "one piece too few");
            from.pieces = 1;
            assert_eq!(relay.turn(cx, &mut from, &mut to), Turn::Waits(End::Source));
            assert_eq!(relay.spliced, if raw { LARGE as u64 } else { 0 });
        }
    }

    #[tokio::test]
    async fn a_body_that_announces_much_is_spliced_after_one_large_piece() {
        for (left, spliced) in [(ANNOUNCED, LARGE), (ANNOUNCED - 1, 0), (u64::MAX, 0)] {
            let (mut from, mut sender, mut to, _reader) = sides();
            (from.pieces, from.left) = (1, left);
            sender.write_all(&[7; LARGE]).unwrap();
            let mut relay = Relay::default();
            let cx = &mut Context::from_waker(Waker::noop());
            assert_eq!(relay.turn(cx, &mut from, &mut to), Turn::Waits(End::Source));
            assert_eq!(relay.spliced, spliced as u64, "{left}");
        }
    }

    #[tokio::test]
    async fn a_turn_ends_when_enough_was_moved() {
        let (mut from, _sender, mut to, _reader) = sides();
        from.pieces = usize::MAX;
        let mut relay = Relay::default();
        let cx = &mut Context::from_waker(Waker::noop());
        for turn in 1..=3 {
            assert_eq!(relay.turn(cx, &mut from, &mut to), Turn::Waits(End::Source));
            assert_eq!(relay.moved, turn * TURN_BYTES);
        }
    }
}
