//! Tunnel: bytes of any protocol, both ways, each direction ending by itself.
//!
//! After a 101 and in TCP mode. The end of one side's direction is passed on as a
//! half-close and the other direction lives on, so that any protocol passes.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use super::relay::{End, Relay, Sink, Source, Turn};
use crate::telemetry::Reason;
use crate::transport::clock::Timer;

/// What passed through a tunnel, and why it ended if not by itself.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    /// Bytes from the client to the backend.
    pub up: u64,
    /// Bytes from the backend to the client.
    pub down: u64,
    /// Why it was cut.
    pub cut: Option<Reason>,
}

/// Relays until both directions have ended, a side fails, the client leaves, or nothing
/// has moved for `idle`.
pub async fn run<C, B>(
    client: &mut C,
    backend: &mut B,
    mut left: Pin<&mut impl Future<Output = ()>>,
    timer: &Timer,
    idle: Option<Duration>,
) -> Passed
where
    C: Source + Sink,
    B: Source + Sink,
{
    let (mut up, mut down) = (Relay::default(), Relay::default());
    let (mut up_ended, mut down_ended) = (false, false);
    let (mut moved, mut refused) = (None, None);
    let cut = poll_fn(|cx| {
        if !up_ended {
            match up.turn(cx, client, backend) {
                Turn::Done => up_ended = true,
                Turn::Waits(_) => {}
                Turn::Failed(End::Source, _) => return Poll::Ready(Some(Reason::ClientLeft)),
                // What the backend said before it took no more is still to come; if it had
                // said all, this is no failure.
                Turn::Failed(End::Sink, _) => {
                    up_ended = true;
                    refused = (!down_ended).then_some(Reason::BackendReset);
                }
            }
        }
        if !down_ended {
            match down.turn(cx, backend, client) {
                Turn::Done => down_ended = true,
                Turn::Waits(_) => {}
                Turn::Failed(End::Source, _) => return Poll::Ready(Some(Reason::BackendReset)),
                Turn::Failed(End::Sink, _) => return Poll::Ready(Some(Reason::ClientLeft)),
            }
        }
        if up_ended && down_ended {
            return Poll::Ready(refused);
        }
        // Once we have ended our direction to the client, its end closes the connection
        // while bytes may still wait in it: that is no leaving.
        if !down_ended && left.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Reason::ClientLeft));
        }
        if moved != Some((up.moved, down.moved)) {
            moved = Some((up.moved, down.moved));
            timer.set(idle);
        }
        timer.poll(cx).map(|()| Some(Reason::BackendStreamTimeout))
    })
    .await;
    timer.set(None);
    Passed { up: up.moved, down: down.moved, cut }
}
