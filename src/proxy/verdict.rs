//! Verdict: what the outcome of an attempt says of the backend.
//!
//! Only what the backend did is told to its [`Endpoint`]: nothing of clients that leave, and
//! nothing of what this process or its host has run out of. What that comes to is policy
//! ([`crate::balance::standing`]); that it came to something, control is told.

use super::worker::Worker;
use crate::balance::endpoint::Endpoint;
use crate::config::{EjectOn, RouteSettings};
use crate::telemetry::Reason;

/// What a failure says of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It takes no connections, which is soon found out and costs nothing.
    Refused,
    /// It takes no connections, and each attempt costs the time to find out.
    ConnectTimeout,
    /// It fails at requests.
    Failed(EjectOn),
    /// Nothing.
    Nothing,
}

fn meaning(reason: Reason) -> Meaning {
    match reason {
        Reason::BackendConnectRefused
        | Reason::BackendUnreachable
        | Reason::BackendTlsUntrusted
        | Reason::BackendTlsExpired
        | Reason::BackendTlsNameMismatch
        | Reason::BackendTlsAlert
        | Reason::BackendTlsFailed => Meaning::Refused,
        Reason::BackendConnectTimeout | Reason::BackendTlsTimeout => Meaning::ConnectTimeout,
        Reason::BackendReset
        | Reason::BackendClosed
        | Reason::BackendStreamRefused
        | Reason::BackendMalformed
        | Reason::BackendTruncated => Meaning::Failed(EjectOn::Reset),
        Reason::BackendResponseTimeout | Reason::BackendAttemptTimeout | Reason::BackendStreamTimeout => {
            Meaning::Failed(EjectOn::Timeout)
        }
        // A name without an address is the resolver's to deal with, a head that is too large
        // one resource's; all else is not the backend's doing.
        _ => Meaning::Nothing,
    }
}

/// A connection was made.
pub fn connected(worker: &Worker, endpoint: &Endpoint) {
    if endpoint.is_troubled() && endpoint.connected(worker.clock().millis()) {
        worker.shared().stirred.notify_one();
    }
}

/// An answer was given, with this status.
pub fn answered(worker: &Worker, settings: &RouteSettings, endpoint: &Endpoint, status: u16) {
    let counts = |on: &EjectOn| settings.eject_after.is_some() && settings.eject_on.contains(on);
    if let Some(on) = EjectOn::of_status(status).filter(counts) {
        count(worker, settings, endpoint, on, on.as_str());
    } else if endpoint.is_troubled() && endpoint.answered(worker.clock().millis()) {
        worker.shared().stirred.notify_one();
    }
}

/// The head of an answer came so many milliseconds after the request was sent, if that was
/// measured.
pub fn took(endpoint: &Endpoint, millis: Option<u64>) {
    if let Some(millis) = millis {
        endpoint.gauge().add(millis);
    }
}

/// An attempt failed. It is not `blamed` on the backend if its connection, which had served a
/// request before, had ended meanwhile, or if it only shared the end of a connection.
#[cold]
pub fn failed(worker: &Worker, settings: &RouteSettings, endpoint: &Endpoint, reason: Reason, blamed: bool) {
    let meaning = meaning(reason);
    if !blamed {
        return;
    }
    if matches!(meaning, Meaning::Refused | Meaning::ConnectTimeout)
        && endpoint.refused(reason, worker.clock().millis())
    {
        worker.shared().stirred.notify_one();
    }
    match meaning {
        Meaning::ConnectTimeout => count(worker, settings, endpoint, EjectOn::Timeout, reason.as_str()),
        Meaning::Failed(on) => count(worker, settings, endpoint, on, reason.as_str()),
        Meaning::Refused | Meaning::Nothing => {}
    }
}

/// Counts a failure, if it is of a kind that the route ejects for.
#[cold]
fn count(worker: &Worker, settings: &RouteSettings, endpoint: &Endpoint, on: EjectOn, what: &'static str) {
    let Some(after) = settings.eject_after.filter(|_| settings.eject_on.contains(&on)) else { return };
    let (failures, changed) = endpoint.failed(what, worker.clock().millis());
    // Control looks at each multiple, not at each failure: there may be thousands a second.
    if changed || failures % u32::try_from(after).unwrap_or(u32::MAX).max(1) == 0 {
        worker.shared().stirred.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::{Meaning, meaning};
    use crate::telemetry::{Reason, Side};

    #[test]
    fn only_what_a_backend_did_is_held_against_it() {
        for reason in Reason::ALL {
            let blamed = meaning(*reason) != Meaning::Nothing;
            assert!(!blamed || reason.side() == Side::Backend, "{}", reason.as_str());
        }
        for reason in [Reason::OutOfDescriptors, Reason::OutOfPorts, Reason::ClientLeft, Reason::BackendUnresolved] {
            assert_eq!(meaning(reason), Meaning::Nothing, "{}", reason.as_str());
        }
    }
}
