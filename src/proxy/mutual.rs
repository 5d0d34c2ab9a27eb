//! Mutual: what certificates of clients mean for a request.
//!
//! A handshake only asks for one, by the server name; what a request needs is known once its
//! route is. One that comes on a connection made for another name, or before a reload, may
//! stand under another policy than its host has. It is sent to a connection of its own, by
//! 421, before anything else is said of it: neither what the client has shown nor that it has
//! shown nothing counts there (RFC 9110 §15.5.20, RFC 9113 §9.1.2).
//!
//! Where nobody is asked for certificates, all of this is a look at two empty places.

use std::time::{SystemTime, UNIX_EPOCH};

use super::head::RequestHead;
use super::story::Source;
use crate::state::{Generation, Route};
use crate::telemetry::Reason;

/// Whether a request is served, as far as the certificate of its client is concerned. One that
/// is only sent on to TLS (`sent_on`) is asked for it there.
///
/// # Errors
/// [`Reason::Misdirected`] and [`Reason::ClientCertificateRequired`].
#[inline]
pub fn admit(
    generation: &Generation,
    source: &Source,
    head: &RequestHead,
    route: Option<&Route>,
    sent_on: bool,
) -> Result<(), Reason> {
    if source.identity.is_none() && !generation.doors.asks() {
        return Ok(());
    }
    examine(generation, source, head, route.filter(|_| !sent_on))
}

fn examine(generation: &Generation, source: &Source, head: &RequestHead, route: Option<&Route>) -> Result<(), Reason> {
    let identity = source.identity.as_deref();
    // In clear there is no handshake that could do better.
    if source.is_secure() && !generation.doors.meets(head.authority(), identity) {
        return Err(Reason::Misdirected);
    }
    let wanted = route.is_some_and(|route| !route.settings.tls_client_ca.is_empty());
    let certified = || identity.is_some_and(|identity| identity.is_certified(unix_now()));
    if wanted && !certified() { Err(Reason::ClientCertificateRequired) } else { Ok(()) }
}

/// What the backend of a route is told of the client's certificate, as lines of HTTP/1.
#[must_use]
pub fn lines<'a>(source: &'a Source, route: &Route) -> [&'a [u8]; 2] {
    match &source.identity {
        Some(identity) if !route.settings.tls_client_ca.is_empty() => identity.lines(route.settings.tls_client_fields),
        _ => [&[], &[]],
    }
}

/// Seconds since 1970.
fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
