//! Slot: leave to have a connection to a backend, at once or in its line.
//!
//! There is a line only where `MAX_BACKEND_CONNECTIONS` limits the connections of a
//! backend. Whoever leaves gives up the place at once; who has waited for `QUEUE_TIMEOUT`
//! is turned away.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::worker::Worker;
use crate::balance::connections::{Entry, Handed, Slot, Ticket};
use crate::balance::endpoint::Endpoint;
use crate::telemetry::Reason;
use crate::transport::clock::Timer;

/// Takes a slot, or a connection that another request gives back; `queued` grows by the
/// time that was spent in line. Who is in haste does not stand there.
///
/// # Errors
/// [`Reason::BackendConnectionLimit`], or [`Reason::ClientLeft`] when `left` resolves
/// first.
pub(super) async fn claim(
    worker: &Worker,
    endpoint: &Arc<Endpoint>,
    timer: &Timer,
    left: impl Future<Output = ()>,
    patience: Duration,
    queued: &mut Duration,
) -> Result<Handed, Reason> {
    match endpoint.connections().enter() {
        Entry::Open(slot) => Ok(Handed::Slot(slot)),
        Entry::Full => Err(full(worker, endpoint)),
        Entry::Wait(_) if patience.is_zero() => Err(Reason::BackendConnectionLimit),
        Entry::Wait(ticket) => {
            if endpoint.connections().idle() > 0 {
                worker.shared().ask_for_idle();
            }
            Box::pin(stand(worker, endpoint, timer, ticket, left, patience, queued)).await
        }
    }
}

/// A slot where a connection of somebody else's is of no use.
pub(super) fn only_slot(handed: Handed) -> Slot {
    match handed {
        Handed::Slot(slot) => slot,
        // The connection is closed, and its slot remains.
        Handed::Connection(parked) => parked.slot,
    }
}

async fn stand(
    worker: &Worker,
    endpoint: &Arc<Endpoint>,
    timer: &Timer,
    ticket: Ticket,
    left: impl Future<Output = ()>,
    patience: Duration,
    queued: &mut Duration,
) -> Result<Handed, Reason> {
    let joined = Instant::now();
    let outcome = timer
        .within(Some(patience), async {
            tokio::select! {
                biased;
                handed = ticket => Ok(handed),
                () = left => Err(Reason::ClientLeft),
            }
        })
        .await;
    *queued += joined.elapsed();
    outcome.unwrap_or_else(|| Err(full(worker, endpoint)))
}

fn full(worker: &Worker, endpoint: &Endpoint) -> Reason {
    worker.shared().note_backend_full(endpoint);
    Reason::BackendConnectionLimit
}
