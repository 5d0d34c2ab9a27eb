//! TCP mode: a connection relayed to a backend, whatever it carries.
//!
//! A permit stands for a connection, taken before the backend is dialled and kept to
//! the end. Failed dials are retried like requests of which no byte was sent. A client
//! that can't be served is closed; there is no language to tell it why. For the choice of
//! a backend, its latency is the time until it took the connection.

use std::future::{Future, pending};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use super::admit::admit;
use super::affinity;
use super::attempts::may_retry;
use super::http1::wire::Wire;
use super::slot::{self, only_slot};
use super::story::Source;
use super::tunnel::{self, Patience};
use super::upstream::Dial;
use super::verdict;
use super::worker::Worker;
use crate::balance::connections::Slot;
use crate::balance::load::Lease;
use crate::balance::pool::Tried;
use crate::balance::retry::{Allowance, Failed, Progress, Retry, Step, Terms};
use crate::config::AccessLog;
use crate::state::Route;
use crate::telemetry::Text;
use crate::telemetry::{Class, Kind, Peer, Record};
use crate::telemetry::{Reason, Side};
use crate::transport::clock::Timer;
use crate::transport::stream::Stream;

/// A connection relayed, as it goes on record.
#[derive(Default)]
struct Course {
    attempts: u8,
    backend: Option<Arc<str>>,
    queue: Duration,
    up: u64,
    down: u64,
}

/// Serves one client connection on a listener in TCP mode, to its end.
pub async fn serve(worker: Rc<Worker>, io: Stream, source: Source) {
    let generation = worker.generation();
    let Some(route) = generation.tcp_route(&source.listener).map(Arc::clone) else { return };
    // A connection may last for days: it holds its route alone.
    drop(generation);
    let started = Instant::now();
    let mut course = Course::default();
    let counters = worker.counters();
    counters.in_flight.add(1);
    let outcome = Box::pin(relay(&worker, &route, source.peer, io, &mut course)).await;
    counters.in_flight.sub(1);
    counters.bytes_in.add(course.up);
    counters.bytes_out.add(course.down);
    let reason = outcome.err();
    let duration_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    counters.ended(0, duration_us, reason);
    let wanted = match route.settings.access_log {
        AccessLog::On => true,
        AccessLog::Off => false,
        AccessLog::Errors => reason.is_some(),
    };
    if wanted {
        worker.log().access(Record {
            kind: Kind::Connection,
            client: source.peer,
            listener: Arc::clone(&source.listener),
            method: Text::EMPTY,
            host: Text::EMPTY,
            path: Text::EMPTY,
            version: 0,
            status: 0,
            backend: course.backend,
            route: Arc::clone(&route.name),
            attempts: course.attempts,
            duration_us,
            queue_us: u64::try_from(course.queue.as_micros()).unwrap_or(u64::MAX),
            bytes_in: course.up,
            bytes_out: course.down,
            reason,
            request_id: Text::EMPTY,
        });
    }
}

async fn relay(worker: &Worker, route: &Route, peer: Peer, io: Stream, course: &mut Course) -> Result<(), Reason> {
    io.keep_alive();
    let mut client = Wire::new(io);
    let timer = worker.clock().timer();
    let stream = Rc::clone(client.io());
    let mut left = pin!(async move { stream.left().await });

    let leaving = async { _ = left.as_mut().await };
    let _permit = match admit(worker, &timer, leaving, &mut course.queue).await {
        Ok(permit) => permit,
        Err(reason) => return Err(unserved(&client, reason)),
    };
    let dialled = tokio::select! {
        biased;
        dialled = dial(worker, route, peer, &timer, course) => dialled,
        _ = left.as_mut() => Err(Reason::ClientLeft),
    };
    let (_lease, _slot, backend) = match dialled {
        Ok(dialled) => dialled,
        Err(reason) => return Err(unserved(&client, reason)),
    };
    backend.keep_alive();
    let mut backend = Wire::new(backend);
    client.become_tunnel();
    backend.become_tunnel();
    let poll_left = |_: &mut Wire, cx: &mut Context<'_>| left.as_mut().poll(cx);
    let passed = tunnel::run(&mut client, &mut backend, poll_left, &timer, Patience::of(&route.settings)).await;
    (course.up, course.down) = (passed.up, passed.down);
    worker.counters().bytes_spliced.add(passed.spliced);
    match passed.cut {
        None => Ok(()),
        Some(reason) => {
            worker.counters().cut.add(1);
            client.io().reset_on_close();
            // What was passed on whole stays so.
            if !backend.output().is_finished() {
                backend.io().reset_on_close();
            }
            Err(reason)
        }
    }
}

/// Has the client's connection end by a reset, which tells that nothing was served; an
/// end would look like an empty answer.
fn unserved(client: &Wire, reason: Reason) -> Reason {
    client.io().reset_on_close();
    reason
}

/// Dials the backends in turn until one takes the connection or the rules say to stop.
async fn dial<'r>(
    worker: &Worker,
    route: &'r Route,
    peer: Peer,
    timer: &Timer,
    course: &mut Course,
) -> Result<(Lease<'r>, Slot, Stream), Reason> {
    let settings = &route.settings;
    let mut retry = Retry::new(Terms::of(settings));
    let mut tried = Tried::default();
    let affinity = affinity::of_peer(route, &peer);
    let mut failed = None;
    loop {
        let Some(lease) = affinity::pick(&route.pool, &mut tried, affinity, worker) else {
            return Err(failed.unwrap_or(Reason::BackendsDown));
        };
        let endpoint = lease.endpoint();
        if course.attempts > 0 {
            lease.lane().retried();
        }
        course.attempts = course.attempts.saturating_add(1);
        course.backend = Some(Arc::clone(endpoint.identity()));
        // A client that leaves is seen to by whoever awaits this.
        let patience = worker.generation().config.daemon.queue_timeout;
        let claimed = slot::claim(worker, endpoint, timer, pending(), patience, &mut course.queue).await;
        let slot = claimed.map(only_slot)?;
        let dial = Dial::new(endpoint);
        let dialled = timer.within(Some(settings.connect_timeout), dial.run()).await;
        let reason = match dialled.unwrap_or_else(|| Err(dial.late())) {
            Ok(stream) => {
                route.budget.deposit(worker.index(), timer.clock().millis());
                verdict::connected(worker, endpoint);
                affinity::answered(&lease, 0, timer.clock());
                lease.lane().answered(Class::Other, 0);
                return Ok((lease, slot, stream));
            }
            Err(reason) => reason,
        };
        affinity::failed(&lease, reason, timer.clock());
        if reason.side() != Side::Backend {
            return Err(reason);
        }
        verdict::failed(worker, settings, endpoint, reason, true);
        lease.lane().failed(reason);
        failed = Some(reason);
        let allowance = Allowance { idempotent: false, replayable: true };
        match retry.next(Failed::of(reason, Progress::Unsent, false), allowance, fastrand::f64()) {
            Step::Answer | Step::Replace => return Err(reason),
            Step::Wait(wait) => {
                let _share = worker.shared().sleepers.take().ok_or(reason)?;
                if !may_retry(worker, route, timer) {
                    return Err(reason);
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
}
