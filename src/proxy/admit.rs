//! Admit: a permit, at once or in line.
//!
//! Requests and, in TCP mode, connections stand in the same line. Whoever leaves gives
//! up the place at once; who has waited for `QUEUE_TIMEOUT` is turned away.

use std::future::Future;
use std::time::{Duration, Instant};

use super::worker::Worker;
use crate::admission::gate::{Entry, Permit, Ticket};
use crate::telemetry::Reason;
use crate::transport::clock::Timer;

/// Takes a permit; `queued` becomes the time that was spent in line.
///
/// # Errors
/// [`Reason::QueueFull`], [`Reason::QueueTimeout`], or [`Reason::ClientLeft`] when `left`
/// resolves first.
pub async fn admit<'w>(
    worker: &'w Worker,
    timer: &Timer,
    left: impl Future<Output = ()>,
    queued: &mut Duration,
) -> Result<Permit<'w>, Reason> {
    match worker.shared().gate.enter() {
        Entry::Open(permit) => Ok(permit),
        Entry::Full => {
            worker.shared().note_queue_full();
            Err(Reason::QueueFull)
        }
        // In an allocation of its own: a request that need not wait is the smaller for it.
        Entry::Wait(ticket) => Box::pin(stand(worker, timer, ticket, left, queued)).await,
    }
}

/// Stands in line.
async fn stand<'w>(
    worker: &'w Worker,
    timer: &Timer,
    ticket: Ticket<'w>,
    left: impl Future<Output = ()>,
    queued: &mut Duration,
) -> Result<Permit<'w>, Reason> {
    let joined = Instant::now();
    let limit = worker.generation().config.daemon.queue_timeout;
    let outcome = timer
        .within(Some(limit), async {
            tokio::select! {
                biased;
                permit = ticket => Ok(permit),
                () = left => Err(Reason::ClientLeft),
            }
        })
        .await;
    *queued = joined.elapsed();
    outcome.unwrap_or(Err(Reason::QueueTimeout))
}
