//! Relay: moves a body from one side to the other, as it comes.
//!
//! A [`Source`] lends what it has, a [`Sink`] takes as much as it can; whatever is
//! behind them (HTTP/1, frames, plain bytes) deals with its own framing. Nothing is
//! copied in between and nothing is gathered up: when the sink does not take, the
//! source is not read, and so the peer is not either.

use std::task::{Context, Poll};

use crate::telemetry::Reason;

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
    /// The message is malformed; the reason is the one to answer a client with.
    #[error("malformed: {}", .0.as_str())]
    Malformed(Reason),
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

    /// Ends the body with these fields, where they can be taken; [`Self::poll_finish`] is
    /// still to come.
    fn trail(&mut self, _lines: &[u8]) {}

    /// Ends the body and sends everything.
    ///
    /// # Errors
    /// The peer's fault.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>>;
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
    ended: bool,
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
    /// Moves as much as can be moved now.
    pub fn turn(&mut self, cx: &mut Context<'_>, source: &mut impl Source, sink: &mut impl Sink) -> Turn {
        let (begun, mut pieces) = (self.moved, 0);
        while !self.ended {
            if pieces == TURN_PIECES || self.moved - begun >= TURN_BYTES {
                cx.waker().wake_by_ref();
                return Turn::Waits(End::Source);
            }
            match source.poll_piece(cx) {
                Poll::Ready(Ok(Piece::Data(data))) => match sink.poll_push(cx, data) {
                    Poll::Ready(Ok(n)) => {
                        source.consume(n);
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
}
