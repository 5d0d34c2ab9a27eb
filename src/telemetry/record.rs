//! One record for each request, tunnel or relayed connection.
//!
//! A worker fills in what it knows and hands the record over; it formats nothing.
//! The log's writer turns it into one event whose fields journald knows in upper
//! case: `journalctl -u doorward STATUS=502 -o json`.

use super::reason::{Reason, Side};
use super::text::Text;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tracing::Level;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An HTTP request and its answer.
    Request,
    /// The tunnel that followed a 101.
    Tunnel,
    /// A connection that was relayed as bytes (`MODE=tcp`).
    Connection,
}

impl Kind {
    /// The message that the record is logged with.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Tunnel => "tunnel",
            Self::Connection => "connection",
        }
    }
}

/// The other end of a client's connection.
///
/// Prints the address alone, without a port, so that `journalctl
/// CLIENT=192.0.2.7` finds all of a client: an IPv4 address in IPv6 clothes
/// (`::ffff:192.0.2.7`) as IPv4, an IPv6 address without brackets, a Unix peer as
/// `unix:`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A client that came over IP.
    Ip(SocketAddr),
    /// A client that came over a Unix socket, where peers have no names.
    Unix,
}

impl Peer {
    /// The address in its one form; none for a Unix peer.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip().to_canonical()),
            Self::Unix => None,
        }
    }

    /// The port; none for a Unix peer, nor where it is 0: a client that a proxy named
    /// without its port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(address) => Some(address.port()).filter(|port| *port != 0),
            Self::Unix => None,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            Some(address) => address.fmt(out),
            None => out.pad("unix:"),
        }
    }
}

/// What is known of one exchange when it has ended.
///
/// Empty texts, a zero `version`, a zero `status` and `None` are left out of the
/// log.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is about.
    pub kind: Kind,
    /// Who asked.
    pub client: Peer,
    /// Name of the listening socket (`http`, …).
    pub listener: Arc<str>,
    /// The request's method.
    pub method: Text<16>,
    /// The authority that the request named.
    pub host: Text<64>,
    /// The path without its query, since queries hold secrets; see [`path_only`].
    pub path: Text<192>,
    /// HTTP version: 10, 11, 20; 0 when there is none.
    pub version: u8,
    /// The status that the client was answered with; 0 when there is none.
    pub status: u16,
    /// The backend of the last attempt.
    pub backend: Option<Arc<str>>,
    /// Name of the route.
    pub route: Arc<str>,
    /// Attempts made, the first one included; 0 when none was.
    pub attempts: u8,
    /// From the first byte of the request to the last of the answer, in µs.
    pub duration_us: u64,
    /// Time spent waiting for a permit, in µs.
    pub queue_us: u64,
    /// Bytes that came from the client.
    pub bytes_in: u64,
    /// Bytes that went to the client.
    pub bytes_out: u64,
    /// Why it did not end well.
    pub reason: Option<Reason>,
    /// The request's id.
    pub request_id: Text<64>,
}

impl Record {
    /// A warning when the status is 500 or more, or when the reason is on the
    /// backend's side or ours; information otherwise.
    #[must_use]
    pub fn level(&self) -> Level {
        let blame = self.reason.map(Reason::side);
        if self.status >= 500 || matches!(blame, Some(Side::Backend | Side::Ours)) { Level::WARN } else { Level::INFO }
    }
}

/// The part of a request target that a record may hold: all before `?` or `#`.
#[must_use]
pub fn path_only(target: &[u8]) -> &[u8] {
    let end = memchr::memchr2(b'?', b'#', target).unwrap_or(target.len());
    target.get(..end).unwrap_or(target)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request that went well.
    pub(in crate::telemetry) fn sample() -> Record {
        Record {
            kind: Kind::Request,
            client: Peer::Ip("[::ffff:192.0.2.7]:5000".parse().unwrap()),
            listener: "http".into(),
            method: "GET".into(),
            host: "example.org".into(),
            path: Text::new(path_only(b"/a\x1bb?token=secret")),
            version: 11,
            status: 200,
            backend: Some("127.0.0.1:3000".into()),
            route: "default".into(),
            attempts: 1,
            duration_us: 1_250,
            queue_us: 10,
            bytes_in: 80,
            bytes_out: 400,
            reason: None,
            request_id: "abc".into(),
        }
    }

    #[test]
    fn a_peer_has_one_address_form() {
        for (address, shown) in [
            ("[::ffff:192.0.2.7]:5000", "192.0.2.7"),
            ("192.0.2.7:5000", "192.0.2.7"),
            ("[2001:db8::1]:5000", "2001:db8::1"),
        ] {
            let peer = Peer::Ip(address.parse().unwrap());
            assert_eq!(peer.to_string(), shown);
            assert_eq!(peer.port(), Some(5000));
        }
        assert_eq!(Peer::Unix.to_string(), "unix:");
        assert_eq!(Peer::Unix.port(), None);
        assert_eq!(Peer::Ip("192.0.2.7:0".parse().unwrap()).port(), None);
    }

    #[test]
    fn a_path_leaves_its_query_behind() {
        for (target, path) in [("/a?b=c", "/a"), ("/a#b?c", "/a"), ("/a", "/a"), ("?x", ""), ("*", "*")] {
            assert_eq!(path_only(target.as_bytes()), path.as_bytes());
        }
    }

    #[test]
    fn a_failure_on_our_side_or_the_backends_is_a_warning() {
        let level = |status, reason| Record { status, reason, ..sample() }.level();
        assert_eq!(level(200, None), Level::INFO);
        assert_eq!(level(404, Some(Reason::NoRoute)), Level::INFO);
        assert_eq!(level(499, Some(Reason::ClientLeft)), Level::INFO);
        assert_eq!(level(500, None), Level::WARN);
        assert_eq!(level(200, Some(Reason::BackendTruncated)), Level::WARN);
        assert_eq!(level(0, Some(Reason::DrainCut)), Level::WARN);
    }
}
