//! Tunnel: bytes of any protocol, both ways, each direction ending by itself.
//!
//! After a 101 and in TCP mode. The end of one side's direction is passed on as a
//! half-close and the other direction lives on, so that any protocol passes. Once the
//! backend's has ended, the client's is waited for only as long as for a body: a
//! backend that has closed would otherwise leave its place taken for as long as the
//! client likes.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::relay::{End, Relay, Sink, Source, Turn};
use crate::config::RouteSettings;
use crate::telemetry::Reason;
use crate::transport::clock::Timer;
use crate::transport::stream::Gone;

/// What passed through a tunnel, and why it ended if not by itself.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    /// Bytes from the client to the backend.
    pub up: u64,
    /// Bytes from the backend to the client.
    pub down: u64,
    /// How many of both were spliced.
    pub spliced: u64,
    /// Why it was cut.
    pub cut: Option<Reason>,
}

/// How long nothing may move.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// While both sides may speak, or the backend alone.
    pub idle: Option<Duration>,
    /// While the client alone may.
    pub client: Duration,
}

impl Patience {
    /// As a route sets it.
    #[must_use]
    pub fn of(settings: &RouteSettings) -> Self {
        Self { idle: settings.stream_timeout, client: settings.body_timeout }
    }
}

/// Relays until both directions have ended, a side fails, the client leaves, which `poll_left`
/// tells, or nothing has moved for as long as `patience` has it.
pub async fn run<C, B>(
    client: &mut C,
    backend: &mut B,
    mut poll_left: impl FnMut(&mut C, &mut Context<'_>) -> Poll<Gone>,
    timer: &Timer,
    patience: Patience,
) -> Passed
where
    C: Source + Sink,
    B: Source + Sink,
{
    let (mut up, mut down) = (Relay::default(), Relay::default());
    let (mut up_ended, mut down_ended) = (false, false);
    let mut up_waits = End::Source;
    let (mut moved, mut prodded, mut refused) = (None, None, None);
    let mut closed = false;
    let mut turn = |cx: &mut Context<'_>| loop {
        if !up_ended {
            match up.turn(cx, client, backend) {
                Turn::Done => up_ended = true,
                Turn::Waits(end) => up_waits = end,
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
        if !down_ended && !closed {
            match poll_left(client, cx) {
                Poll::Ready(Gone::Reset) => return Poll::Ready(Some(Reason::ClientLeft)),
                // What it sent before is still to be read.
                Poll::Ready(Gone::Closed) => closed = true,
                Poll::Pending => {}
            }
        }
        if closed && up_ended && !down_ended {
            return Poll::Ready(Some(Reason::ClientLeft));
        }
        let client_alone = down_ended && up_waits == End::Source;
        let now = (up.moved, down.moved, client.held(), backend.held(), client_alone);
        if moved != Some(now) {
            moved = Some(now);
            let client = client_alone.then_some(patience.client);
            timer.set(client.into_iter().chain(patience.idle).min());
        }
        ready!(timer.poll(cx));
        if prodded == moved {
            let silent = if client_alone { Reason::ClientBodyTimeout } else { Reason::BackendStreamTimeout };
            return Poll::Ready(Some(silent));
        }
        // A socket that only seems full may have room: another turn will tell.
        prodded = moved;
        client.prod();
        backend.prod();
    };
    let cut = poll_fn(&mut turn).await;
    timer.set(None);
    Passed { up: up.moved, down: down.moved, spliced: up.spliced + down.spliced, cut }
}
