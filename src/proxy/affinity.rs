//! Affinity: what of a request leads it to a certain backend, and what the pool is told of
//! the attempt.
//!
//! Where a pool has one backend, nothing is looked for, no random number is drawn and no
//! clock is read.

use super::head::RequestHead;
use super::worker::Worker;
use crate::balance::load::Lease;
use crate::balance::pool::{Affinity, Ask, Pool, Tried};
use crate::balance::sticky::Token;
use crate::config::{Balance, HashKey};
use crate::state::Route;
use crate::telemetry::{Peer, Reason, Side};
use crate::transport::clock::Clock;

/// What a request goes by on this route.
pub fn of(route: &Route, client: &Peer, head: &RequestHead) -> Affinity {
    if !route.pool.is_choice() {
        return Affinity::None;
    }
    match &route.settings.balance {
        Balance::RoundRobin | Balance::LeastRequests | Balance::P2c => Affinity::None,
        Balance::Hash(HashKey::Client) => of_client(client),
        Balance::Hash(HashKey::Header(name)) => field(head, name.as_bytes()).map_or(Affinity::None, Affinity::of),
        Balance::Hash(HashKey::Cookie(name)) => value_of(head, name.as_bytes()).map_or(Affinity::None, Affinity::of),
        Balance::Sticky => {
            let token = value_of(head, route.cookie.as_bytes()).and_then(Token::parse);
            token.map_or(Affinity::None, Affinity::Token)
        }
    }
}

/// What a connection of `MODE=tcp` goes by.
pub fn of_peer(route: &Route, peer: &Peer) -> Affinity {
    if route.pool.is_choice() && route.settings.balance == Balance::Hash(HashKey::Client) {
        of_client(peer)
    } else {
        Affinity::None
    }
}

/// Clients of one address have one key; those on Unix sockets have none.
fn of_client(client: &Peer) -> Affinity {
    match client.ip() {
        Some(std::net::IpAddr::V4(ip)) => Affinity::of(&ip.octets()),
        Some(std::net::IpAddr::V6(ip)) => Affinity::of(&ip.octets()),
        None => Affinity::None,
    }
}

/// The cookie that makes a client stick to a backend, where clients do and this one has
/// another cookie or none. It holds for the session and for the whole host, scripts can't
/// read it, and other sites can't have it sent along but by a link (RFC 6265bis §5.7).
pub fn cookie(route: &Route, lease: &Lease<'_>, given: Affinity) -> Option<Box<str>> {
    let token = route.pool.token(lease).filter(|token| given != Affinity::Token(*token))?;
    let letters = token.letters();
    let letters = std::str::from_utf8(&letters).unwrap_or_default();
    Some(format!("{}={letters}; Path=/; HttpOnly; SameSite=Lax", route.cookie).into())
}

/// Has the pool choose.
pub fn pick<'a>(pool: &'a Pool, tried: &mut Tried, key: Affinity, worker: &Worker) -> Option<Lease<'a>> {
    let (clock, worker) = (worker.clock(), worker.index());
    let now = clock.millis();
    let ask = if pool.is_choice() {
        Ask { now, micros: clock.micros(), draw: fastrand::u64(..), key, worker }
    } else {
        Ask { now, worker, ..Ask::default() }
    };
    pool.pick(tried, &ask)
}

/// Tells that the head of an answer has come. An answer that says of itself that it is a
/// failure counts as one: a backend that fails fast must not look fast.
pub fn answered(lease: &Lease<'_>, status: u16, clock: &Clock) {
    if !lease.is_counted() {
        return;
    }
    let now = clock.micros();
    if status >= 500 { lease.failed(now) } else { lease.answered(now) }
}

/// Tells that the attempt came to nothing.
pub fn failed(lease: &Lease<'_>, reason: Reason, clock: &Clock) {
    if !lease.is_counted() {
        return;
    }
    let now = clock.micros();
    if reason.side() == Side::Backend { lease.failed(now) } else { lease.abandoned(now) }
}

/// The value of the first field of this name, unless it is empty.
fn field<'a>(head: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    fields(head, name).next().filter(|value| !value.is_empty())
}

/// The value of the first cookie of this name, unless it is empty (RFC 6265 §4.2.1).
fn value_of<'a>(head: &'a RequestHead, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = fields(head, b"cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    let value = pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))?;
    let bare = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    (!bare.is_empty()).then_some(bare)
}

fn fields<'a>(head: &'a RequestHead, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let bytes = head.bytes();
    let named = head.fields.iter().filter(move |field| field.name.of(bytes).eq_ignore_ascii_case(name));
    named.map(move |field| field.value.of(bytes))
}
