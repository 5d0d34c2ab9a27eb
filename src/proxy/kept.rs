//! Kept: an answer that another attempt was to make good.
//!
//! It is kept until that has an answer, and goes to the client if it has none: what a
//! backend said is better than anything of ours. A short one that has come whole is taken
//! into memory, so that its connection can serve on, if only for the next attempt; of all
//! others the connection is kept with what has not been read.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::affinity;
use super::attempt::{Bounds, Hold};
use super::attempts::{Asked, Connected};
use super::client::Client;
use super::exchange::Exchange;
use super::head::ResponseHead;
use super::relay::{End, Fault, Piece, Relay, Source, Turn};
use super::story::{After, Course};
use super::verdict;
use crate::routing::FieldEdits;
use crate::telemetry::{Reason, Side};
use crate::transport::buffer;

/// Bytes of a body that are taken into memory: what the connection itself may hold of it.
pub(super) const MOST: usize = buffer::SIZE;

/// An answer that another attempt was to make good.
pub(super) struct Kept<'a> {
    head: Box<ResponseHead>,
    backend: &'a Arc<str>,
    cookie: Option<Box<str>>,
    /// Its body, once that is here.
    whole: Whole,
    /// Where the body is to be read until then.
    connected: Option<Connected<'a>>,
}

/// A body in memory.
#[derive(Default)]
struct Whole {
    body: Vec<u8>,
    trailers: Vec<u8>,
    lent: usize,
}

impl Kept<'_> {
    /// Whether it holds no connection.
    pub fn is_whole(&self) -> bool {
        self.connected.is_none()
    }
}

impl Source for Whole {
    fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Result<Piece<'_>, Fault>> {
        let left = self.body.get(self.lent..).unwrap_or_default();
        Poll::Ready(Ok(if left.is_empty() { Piece::End } else { Piece::Data(left) }))
    }

    fn consume(&mut self, n: usize) {
        self.lent = self.lent.saturating_add(n);
    }

    fn trailers(&self) -> &[u8] {
        &self.trailers
    }
}

impl<'a> Asked<'a> {
    /// Keeps an answer whose body is still to be read.
    pub fn keep(&self, head: Box<ResponseHead>, connected: Connected<'a>) -> Kept<'a> {
        let cookie = affinity::cookie(self.route, &connected.lease, self.affinity);
        let backend = connected.lease.endpoint().identity();
        let mut kept = Kept { head, backend, cookie, whole: Whole::default(), connected: Some(connected) };
        self.take_in(&mut kept);
        kept
    }

    /// Takes the answer into memory, if all of it has come by now.
    pub fn take_in(&self, kept: &mut Kept<'a>) {
        let Some(Connected { connection, .. }) = &mut kept.connected else { return };
        for name in self.edits.into_iter().flat_map(FieldEdits::dropped) {
            connection.withhold(name.as_bytes());
        }
        let Some(body) = connection.take_whole(MOST) else { return };
        kept.whole = Whole { body, trailers: connection.trailers().to_vec(), lent: 0 };
        kept.connected.take().into_iter().for_each(|connected| self.give_back(connected));
    }

    /// Lets go of an answer that is not passed on; its connection is kept if what has come
    /// of the answer is all of it.
    pub fn let_go(&self, kept: Option<Box<Kept<'a>>>) {
        if let Some(mut connected) = kept.and_then(|kept| kept.connected) {
            connected.connection.discard();
            self.give_back(connected);
        }
    }

    fn give_back(&self, connected: Connected<'a>) {
        let Connected { connection, lease } = connected;
        let now = self.timer.clock().millis();
        self.worker.idle().put(lease.endpoint(), connection, &self.route.settings, now);
    }

    /// Passes on the answer of an earlier attempt, if there is one, since those after it came
    /// to nothing.
    #[cold]
    pub async fn hand_on<C: Client>(
        &self,
        kept: Option<Box<Kept<'a>>>,
        reason: Reason,
        client: &mut C,
        course: &mut Course<'a>,
        deadline: u64,
    ) -> Result<After, Reason> {
        let kept =
            kept.filter(|_| course.status == 0 && reason.side() != Side::Client && reason != Reason::RequestTimeout);
        let Some(kept) = kept else { return Err(reason) };
        let Kept { head, backend, cookie, whole, connected } = *kept;
        course.backend = Some(backend);
        client.set_cookie(cookie);
        match connected {
            None => self.pass_whole(&head, whole, client, course, deadline).await?,
            Some(mut connected) => {
                let bounds = Bounds { deadline, attempt: u64::MAX, hold: Hold::None };
                let connection = &mut connected.connection;
                let mut exchange =
                    Exchange::new(client, connection, self.head, self.route, self.timer, bounds, self.worker);
                exchange.edits = self.edits;
                exchange.resume(&head);
                let outcome = exchange.run().await;
                course.status = exchange.status;
                if let Err(failure) = outcome {
                    let endpoint = connected.lease.endpoint();
                    connected.lease.lane().failed(failure.reason);
                    verdict::failed(self.worker, &self.route.settings, endpoint, failure.reason, failure.blamed);
                    return Err(failure.reason);
                }
                self.give_back(connected);
            }
        }
        Ok(if client.is_read() { After::GoOn } else { After::Linger })
    }

    async fn pass_whole<C: Client>(
        &self,
        head: &ResponseHead,
        mut whole: Whole,
        client: &mut C,
        course: &mut Course<'a>,
        deadline: u64,
    ) -> Result<(), Reason> {
        let now = self.timer.clock().millis();
        client.forgo();
        let last = self.worker.is_draining() || !client.is_read() || client.is_old(now);
        course.status = head.status;
        client.answer(head, self.edits, last);
        let mut relay = Relay::default();
        let sent = poll_fn(|cx| match relay.turn(cx, &mut whole, client) {
            Turn::Done => Poll::Ready(Ok(())),
            Turn::Waits(End::Source | End::Sink) => Poll::Pending,
            Turn::Failed(..) => Poll::Ready(Err(Reason::ClientLeft)),
        });
        let remaining = Duration::from_millis(deadline.saturating_sub(now));
        // It is so short that how fast it is taken is of no interest.
        let patience = self.route.settings.body_timeout.min(remaining);
        let late = if patience == remaining { Reason::RequestTimeout } else { Reason::ClientSlowReader };
        self.timer.within(Some(patience), sent).await.unwrap_or(Err(late))
    }
}
