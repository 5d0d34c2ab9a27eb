//! Origin: for whom a request is made, read from peers that may say so.
//!
//! A proxy before us appends the address that it saw to what it was told. So a chain is
//! read from the right, as far as it was written by peers that are trusted: the first
//! address that is none of these is the client, and what stands left of it anybody may
//! have made up. What can't be read (an unknown or obfuscated node, broken syntax) ends
//! the walk where it stands.
//!
//! Only one kind of field is believed, the one that `FORWARDED` names: a proxy that
//! appends to `X-Forwarded-For` passes a `Forwarded` of its client's making on as it is,
//! and the other way round. Where both are written, `X-Forwarded-For` is the one that is
//! read, and `Forwarded` is made from it (RFC 7239 §7.4).
//!
//! A peer that is not trusted costs one look at a list; the rest is done only for those
//! that are.

use std::net::{IpAddr, SocketAddr};

use super::head::{Fields, Known};
use super::http1::grammar::is_token;
use crate::config::{Forwarding, PeerPattern};
use crate::telemetry::Peer;

/// Proxies in a row that are believed.
pub const HOPS: usize = 64;

/// For whom a request is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The client: the peer itself, or whom a trusted one asks for. Its port is 0 where
    /// none was given.
    pub client: Peer,
    /// The peer's own fields are kept.
    pub trusted: bool,
}

impl Origin {
    /// Works out who asks: `peer` is who is connected, `trusted` who may say more.
    #[must_use]
    pub fn of(peer: Peer, trusted: &[PeerPattern], kind: Forwarding, fields: &Fields) -> Self {
        let is_trusted = |peer: &Peer| {
            let address = peer.ip();
            trusted.iter().any(|pattern| pattern.matches(address))
        };
        if trusted.is_empty() || !is_trusted(&peer) {
            return Self { client: peer, trusted: false };
        }
        let client = if kind == Forwarding::Rfc7239 {
            let elements = fields.values(Known::Forwarded).rev().flat_map(|value| Backwards { rest: Some(value) });
            rightmost(peer, is_trusted, elements.filter(|part| !part.is_empty()).map(|part| element(part)?))
        } else {
            rightmost(peer, is_trusted, x_forwarded_for(fields).rev().map(node))
        };
        Self { client, trusted: true }
    }

    /// Whether a trusted peer says that the client came by TLS, to the last of those that say
    /// anything.
    #[must_use]
    pub fn came_by_tls(&self, kind: Forwarding, fields: &Fields) -> bool {
        if !self.trusted {
            return false;
        }
        if kind == Forwarding::Rfc7239 {
            let last = fields.values(Known::Forwarded).last().unwrap_or_default().to_ascii_lowercase();
            return last
                .split(|byte| b",; ".contains(byte))
                .any(|part| matches!(part, b"proto=https" | b"proto=\"https\""));
        }
        fields.values(Known::XForwardedProto).last().is_some_and(|value| value.eq_ignore_ascii_case(b"https"))
    }
}

/// The first of `nodes`, which come from the right, that is not trusted; else the last
/// one that could be read.
fn rightmost(peer: Peer, is_trusted: impl Fn(&Peer) -> bool, nodes: impl Iterator<Item = Option<Peer>>) -> Peer {
    let mut client = peer;
    for node in nodes.take(HOPS) {
        let Some(node) = node else { break };
        client = node;
        if !is_trusted(&node) {
            break;
        }
    }
    client
}

/// The elements of all `X-Forwarded-For` fields, in order. Empty ones are none (RFC 9110
/// §5.6.1.2).
pub fn x_forwarded_for(fields: &Fields) -> impl DoubleEndedIterator<Item = &[u8]> {
    fields
        .values(Known::XForwardedFor)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|part| !part.is_empty())
}

/// An address with or without a port, an IPv6 one with or without brackets, or `unix:`.
#[must_use]
pub fn node(text: &[u8]) -> Option<Peer> {
    let text = std::str::from_utf8(text).ok()?;
    if text == "unix:" {
        return Some(Peer::Unix);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(Peer::Ip(address));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().ok().map(|address| Peer::Ip(SocketAddr::new(address, 0)))
}

/// The elements of one `Forwarded` field from the right. What trusted peers have
/// appended is found whatever stands left of it, even an open quotation mark.
struct Backwards<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Backwards<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest.take()?;
        let mut quoted = false;
        for (at, byte) in rest.iter().enumerate().rev() {
            let before = rest.get(..at).unwrap_or_default();
            if *byte == b'"' {
                let escapes = before.iter().rev().take_while(|byte| **byte == b'\\').count();
                quoted ^= escapes % 2 == 0;
            } else if *byte == b',' && !quoted {
                self.rest = Some(before);
                return Some(rest.get(at + 1..).unwrap_or_default().trim_ascii());
            }
        }
        Some(rest.trim_ascii())
    }
}

/// Reads a `forwarded-element`: its node if that is an address; `None` when it breaks
/// the grammar of RFC 7239 §4.
fn element(text: &[u8]) -> Option<Option<Peer>> {
    let (mut client, mut rest) = (None, text);
    loop {
        let name = rest.iter().position(|byte| !is_token(*byte)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at_checked(name)?;
        if !name.is_empty() {
            let (value, behind) = parameter(behind.strip_prefix(b"=")?)?;
            if name.eq_ignore_ascii_case(b"for") && client.replace(value).is_some() {
                return None;
            }
            rest = behind;
        }
        match rest.trim_ascii() {
            [] => break,
            [b';', behind @ ..] => rest = behind.trim_ascii(),
            _ => return None,
        }
    }
    // `unix:` is a node of X-Forwarded-For only; here it is not one (RFC 7239 §6).
    Some(client.and_then(node).filter(|peer| *peer != Peer::Unix))
}

/// A token or a quoted string at the front of `text`, and what follows it. Escapes stay.
fn parameter(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|byte| !is_token(*byte)).unwrap_or(text.len());
        return (end > 0).then(|| text.split_at_checked(end)).flatten();
    };
    let mut escaped = false;
    let end = quoted.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    Some((quoted.get(..end)?, quoted.get(end + 1..)?))
}

/// The end of a `Forwarded` value that can be read, and whether that is all of it.
#[must_use]
pub fn sound(value: &[u8]) -> (&[u8], bool) {
    let mut sound = value.len();
    for part in (Backwards { rest: Some(value) }) {
        if !part.is_empty() {
            if element(part).is_none() {
                return (value.get(sound..).unwrap_or_default(), false);
            }
            sound = (part.as_ptr() as usize).wrapping_sub(value.as_ptr() as usize);
        }
    }
    (value, true)
}

#[cfg(test)]
mod tests {
    use super::Origin;
    use crate::config::{Config, Forwarding, PeerPattern};
    use crate::proxy::forwarded::tests::head;
    use crate::telemetry::Peer;
    use std::collections::BTreeMap;

    fn trusted() -> Vec<PeerPattern> {
        let key = ("TRUSTED_PROXIES".into(), "10.0.0.0/8,fd00::/8,unix:".into());
        Config::assemble(None, Vec::new(), &BTreeMap::from([key])).unwrap().daemon.trusted_proxies
    }

    /// Who asks, when 10.0.0.1 brings these fields; with the port, if there is one.
    fn client(kind: Forwarding, fields: &str) -> String {
        let peer = Peer::Ip("10.0.0.1:5000".parse().unwrap());
        let origin = Origin::of(peer, &trusted(), kind, &head(fields).fields);
        assert!(origin.trusted);
        match origin.client.port() {
            Some(port) => format!("{}#{port}", origin.client),
            None => origin.client.to_string(),
        }
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_not_trusted() {
        for (values, shown) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
            (&["192.0.2.9, 192.0.2.1, 10.0.0.2,fd00::1"], "192.0.2.1"),
            (&["192.0.2.9", "192.0.2.1", "10.0.0.2"], "192.0.2.1"),
            (&["192.0.2.1 ,, ", "", " , 10.0.0.2"], "192.0.2.1"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["[2001:db8::1]:4711"], "2001:db8::1#4711"),
            (&["192.0.2.1:4711"], "192.0.2.1#4711"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1"),
            (&["192.0.2.1, unix:"], "192.0.2.1"),
            // All of them trusted: the leftmost.
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["unix:"], "unix:"),
            // What can't be read stops the walk at the last one that could.
            (&["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
            (&["192.0.2.1, x"], "10.0.0.1#5000"),
            (&["192.0.2.1, \"10.0.0.2\""], "10.0.0.1#5000"),
            (&["192.0.2.1, 10.0.0.2.3, 10.0.0.3"], "10.0.0.3"),
            (&["192.0.2.1, \u{e4}, 10.0.0.3"], "10.0.0.3"),
            (&[""], "10.0.0.1#5000"),
            (&[], "10.0.0.1#5000"),
        ] {
            let fields: String = values.iter().map(|value| format!("X-Forwarded-For: {value}\r\n")).collect();
            for kind in [Forwarding::XForwarded, Forwarding::Both, Forwarding::Off] {
                assert_eq!(client(kind, &fields), shown, "{values:?}");
            }
            // The other kind of field says nothing.
            assert_eq!(client(Forwarding::Rfc7239, &fields), "10.0.0.1#5000");
        }
    }

    #[test]
    fn forwarded_is_read_from_the_right_by_its_grammar() {
        for (values, shown) in [
            (&["for=192.0.2.1"][..], "192.0.2.1"),
            (&["For=192.0.2.9, FOR=192.0.2.1;proto=https, by=10.0.0.1;for=10.0.0.2"], "192.0.2.1"),
            (&["for=192.0.2.9", "for=192.0.2.1", "for=\"[fd00::2]\""], "192.0.2.1"),
            (&["for=\"[2001:db8::1]:4711\""], "2001:db8::1#4711"),
            (&["for=\"192.0.2.1:4711\";host=\"a,b;for=\\\"x\\\\\";proto=http"], "192.0.2.1#4711"),
            (&["for=192.0.2.1 ; proto=http ,"], "192.0.2.1"),
            (&["for=192.0.2.1, for=10.0.0.2;;proto=a"], "192.0.2.1"),
            // A client's open quotation mark hides nothing of what a proxy has appended.
            (&["for=\", for=192.0.2.1"], "192.0.2.1"),
            (&["for=\"\\\", for=192.0.2.1, for=10.0.0.2"], "192.0.2.1"),
            (&["x=\"", "for=192.0.2.1"], "192.0.2.1"),
            // What can't be read stops the walk at the last one that could.
            (&["for=192.0.2.1, for=unknown, for=10.0.0.2"], "10.0.0.2"),
            (&["for=192.0.2.1, for=_hidden"], "10.0.0.1#5000"),
            (&["for=192.0.2.1, proto=https"], "10.0.0.1#5000"),
            (&["for=192.0.2.1, for=10.0.0.2;for=10.0.0.3"], "10.0.0.1#5000"),
            (&["for=192.0.2.1, for=10.0.0.2:80"], "10.0.0.1#5000"),
            (&["for=192.0.2.1, for= 10.0.0.2"], "10.0.0.1#5000"),
            (&["for=192.0.2.1, for=\"10.0.0.2"], "10.0.0.1#5000"),
            (&["for=192.0.2.1, for"], "10.0.0.1#5000"),
            (&["for=192.0.2.1, for=\"unix:\""], "10.0.0.1#5000"),
            (&["192.0.2.1"], "10.0.0.1#5000"),
        ] {
            let fields: String = values.iter().map(|value| format!("Forwarded: {value}\r\n")).collect();
            assert_eq!(client(Forwarding::Rfc7239, &fields), shown, "{values:?}");
            assert_eq!(client(Forwarding::XForwarded, &fields), "10.0.0.1#5000");
        }
    }

    #[test]
    fn a_chain_is_walked_only_so_far() {
        let fields = format!("X-Forwarded-For: 192.0.2.1{}\r\n", ", 10.0.0.2".repeat(63));
        assert_eq!(client(Forwarding::XForwarded, &fields), "192.0.2.1");
        let fields = format!("X-Forwarded-For: 192.0.2.1{}\r\n", ", 10.0.0.2".repeat(64));
        assert_eq!(client(Forwarding::XForwarded, &fields), "10.0.0.2");
    }

    #[test]
    fn a_peer_that_is_not_trusted_is_the_client_whatever_it_says() {
        let fields = head("X-Forwarded-For: 192.0.2.1\r\n").fields;
        for (peer, list) in [
            (Peer::Ip("192.0.2.7:1".parse().unwrap()), trusted()),
            (Peer::Unix, Vec::new()),
            (Peer::Unix, {
                let mut list = trusted();
                list.pop();
                list
            }),
        ] {
            let origin = Origin::of(peer, &list, Forwarding::XForwarded, &fields);
            assert_eq!(origin, Origin { client: peer, trusted: false });
        }
        let origin = Origin::of(Peer::Unix, &trusted(), Forwarding::XForwarded, &fields);
        assert_eq!(origin.client.to_string(), "192.0.2.1");
    }
}
