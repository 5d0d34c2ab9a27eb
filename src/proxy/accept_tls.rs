//! Accept, for TLS: makes the handshake with a client, on the worker that is to serve it.
//!
//! What a client makes us do and hold grows with what it does itself. One that says nothing
//! costs no more than in clear: no buffer, no slot. Half a hello costs as many bytes as it has,
//! like half a request's head: 17 KiB at most, for each connection. The whole one gets a client
//! one of `MAX_TLS_HANDSHAKES` slots, which bound the half-open sessions of the whole daemon,
//! each of some 10 KiB, and the signatures that are made for them. Who finds none waits in line,
//! with those bytes and nothing else, before any cryptography: a burst of honest clients is
//! served a little later, and nobody has to come again. Beyond ten times as many there is no
//! waiting.
//!
//! Slots could be held by clients that say hello and never go on. So while anybody
//! is in line, a handshake has [`PRESSED`] and not `TLS_HANDSHAKE_TIMEOUT`: more than any
//! honest client needs, and the slots come round every second.
//!
//! What goes wrong is counted by its reason. It is told to the log at debug only, and not
//! often: anybody can bring it about.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::server::ClientHello;
use rustls::{AlertDescription, ServerConfig};

use super::connection;
use super::story::Source;
use super::worker::Worker;
use crate::admission::gate::{Entry, Permit};
use crate::config::Mode;
use crate::telemetry::{Limiter, Reason};
use crate::tls::Doors;
use crate::tls::challenges::ACME_TLS;
use crate::transport::clock::Timer;
use crate::transport::stream::Stream;
use crate::transport::tls::{self, Fault, Greeting, Refused};

/// How long a handshake may take while others wait for its slot.
const PRESSED: Duration = Duration::from_secs(1);

/// Waiters for each slot.
pub(super) const WAITERS_EACH: usize = 10;

/// Makes a handshake with a client just accepted, behind which `mode` is spoken, and takes note
/// of the certificate that it has shown. `None`: there is none, and the client has been dealt
/// with.
pub async fn accept_tls(worker: &Worker, io: Stream, source: &mut Source, mode: Mode) -> Option<Stream> {
    let timer = worker.clock().timer();
    let limit = worker.generation().config.daemon.tls_handshake_timeout;
    let ends = after(&timer, limit);
    let greeting = match greeting(worker, &io, &timer, ends).await? {
        Ok(greeting) => greeting,
        Err(Refusal { fault: Some(Fault::PlainHttp), .. }) => {
            connection::refuse_plain(worker, source, io, &timer).await;
            return None;
        }
        Err(refusal) => {
            // What it was told must not be lost to a reset.
            let _ = io.shutdown_write();
            return refusal.note(worker, source);
        }
    };
    let _slot = match slot(worker, &timer, ends).await {
        Ok(slot) => slot,
        Err(refusal) => return refusal.note(worker, source),
    };
    // What was shown counts for who asked, so both are of one generation.
    let generation = worker.generation();
    let doors = &generation.doors;
    let mut accepted = pin!(tls::accept(io, greeting, |hello| choose(worker, doors, hello, mode)));
    let mut due = ends.min(after(&timer, PRESSED));
    timer.set_at(due);
    let accepted = poll_fn(|cx| {
        loop {
            if let Poll::Ready(accepted) = accepted.as_mut().poll(cx) {
                return Poll::Ready(Some(accepted));
            }
            std::task::ready!(timer.poll(cx));
            // Nor does one that stalls keep a stop waiting: it is no request.
            if due >= ends || worker.shared().handshakes.queued() > 0 || worker.is_draining() {
                return Poll::Ready(None);
            }
            due = ends.min(after(&timer, PRESSED));
            timer.set_at(due);
        }
    })
    .await;
    match accepted {
        Some(Ok(stream)) => {
            let counters = worker.counters();
            counters.tls_handshakes.add(1);
            counters.tls_resumed.add(u64::from(stream.tls().is_some_and(tls::Session::is_resumed)));
            source.identity = stream
                .tls()
                .filter(|_| doors.asks())
                .and_then(|session| doors.identify(session.server_name(), session.peer_certificates().as_deref()));
            // Whoever looks only at the certificate has seen it (RFC 8737 §3).
            let looks = stream.tls().is_some_and(|tls| tls.speaks(ACME_TLS));
            (!looks).then_some(stream)
        }
        Some(Err(Refused { fault, stream })) => {
            // What it was told must not be lost to a reset.
            let _ = stream.shutdown_write();
            Refusal::from(fault).note(worker, source)
        }
        None => Refusal::from(Reason::TlsHandshakeTimeout).note(worker, source),
    }
}

/// What a hello is answered with.
fn choose(
    worker: &Worker,
    doors: &Doors,
    hello: &ClientHello<'_>,
    mode: Mode,
) -> Result<Arc<ServerConfig>, AlertDescription> {
    // An authority that looks who serves a name offers this and nothing else (RFC 8737 §3).
    if hello.alpn().is_some_and(|mut offers| offers.next() == Some(ACME_TLS) && offers.next().is_none()) {
        let shown = hello.server_name().and_then(|name| worker.shared().challenges.handshake(name));
        return shown.ok_or(AlertDescription::NoApplicationProtocol);
    }
    doors.choose(hello, mode).ok_or(AlertDescription::UnrecognisedName)
}

/// Why a client is not let in.
struct Refusal {
    reason: Reason,
    fault: Option<Fault>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, fault: None }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let reason = match fault {
            Fault::Reset | Fault::Ended | Fault::Truncated => Reason::TlsHandshakeLeft,
            Fault::PlainHttp => Reason::TlsPlainHttp,
            Fault::NotTls | Fault::Protocol => Reason::TlsProtocolError,
            Fault::UnknownName => Reason::TlsUnknownName,
            Fault::Incompatible(_) => Reason::TlsIncompatible,
            Fault::Certificate(_) => Reason::TlsClientCertificate,
            Fault::Alert(_) => Reason::TlsAlert,
            Fault::Ours => Reason::Internal,
        };
        Self { reason, fault: Some(fault) }
    }
}

impl Refusal {
    /// Counts it, and tells the log of it now and then.
    fn note<T>(self, worker: &Worker, source: &Source) -> Option<T> {
        worker.counters().refused(self.reason);
        static LIMITER: Limiter = Limiter::new(10);
        if let Some(suppressed) = LIMITER.admit(Instant::now()) {
            let cause = self.fault.map(|fault| fault.to_string());
            tracing::debug!(
                client = %source.peer,
                listener = &*source.listener,
                reason = self.reason.as_str(),
                cause,
                suppressed,
                "TLS handshake failed"
            );
        }
        None
    }
}

/// Waits for a client's hello. `None`: it did not come before the worker's drain ended it.
async fn greeting(worker: &Worker, io: &Stream, timer: &Timer, ends: u64) -> Option<Result<Greeting, Refusal>> {
    let mut greeting = pin!(tls::greeting(io));
    let mut drains = false;
    timer.set_at(ends);
    poll_fn(|cx| {
        if let Poll::Ready(greeting) = greeting.as_mut().poll(cx) {
            return Poll::Ready(Some(greeting.map_err(Refusal::from)));
        }
        // It may be on the wire already, so a drain leaves a moment for it.
        if !drains && worker.is_draining() {
            drains = true;
            timer.set(Some(worker.silence()));
        }
        timer.poll(cx).map(|()| (!drains).then_some(Err(Reason::TlsHandshakeTimeout.into())))
    })
    .await
}

/// Takes one of the slots, or waits for it.
async fn slot<'w>(worker: &'w Worker, timer: &Timer, ends: u64) -> Result<Permit<'w>, Refusal> {
    match worker.shared().handshakes.enter() {
        Entry::Open(permit) => Ok(permit),
        Entry::Full => Err(Reason::TlsHandshakeLimit.into()),
        Entry::Wait(ticket) => {
            let left = Duration::from_millis(ends.saturating_sub(timer.clock().millis()));
            timer.within(Some(left), ticket).await.ok_or_else(|| Reason::TlsHandshakeLimit.into())
        }
    }
}

fn after(timer: &Timer, span: Duration) -> u64 {
    timer.clock().millis().saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}
