//! Forwarded: what a backend is told of whom a request is made for.
//!
//! Three fields named `X-Forwarded-`, or `Forwarded` of RFC 7239, or both. In the usual
//! case, which the encoder writes by itself, they state what we know; what a trusted peer
//! knows of others is kept in front of that ([`super::origin`] reads it).

use std::net::IpAddr;

use super::head::{Fields, Known, RequestHead};
use super::http1::grammar::is_token;
use super::http1::parse::is_authority;
use super::origin::{HOPS, node, sound, x_forwarded_for};
use crate::config::Forwarding;

/// What a request gains on its way to a backend.
#[derive(Debug, Clone, Copy)]
pub struct Forwarded<'a> {
    /// The peer's address, or `unix:`.
    pub peer: &'a [u8],
    /// `http` or `https`: how the peer reached us.
    pub scheme: &'a str,
    /// The authority for a request that has none.
    pub host: &'a str,
    /// The id that this request has in the log.
    pub request_id: &'a [u8],
    /// Which fields say so.
    pub kind: Forwarding,
    /// What the peer says of others is kept.
    pub trusted: bool,
}

impl Forwarded<'_> {
    /// Whether only the three `X-Forwarded-` fields are written, with what we know: the
    /// usual case.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.kind == Forwarding::XForwarded && !self.trusted
    }

    /// Whether a field that begins with `X-Forwarded-` and has no meaning to us goes on.
    /// One written with `_` never does: backends may take it for another.
    #[must_use]
    pub fn keeps(&self, name: &[u8]) -> bool {
        self.trusted
            && matches!(self.kind, Forwarding::XForwarded | Forwarding::Both)
            && memchr::memchr(b'_', name).is_none()
    }

    /// Writes the forwarding fields in any case but the usual one.
    pub fn write(&self, out: &mut Vec<u8>, head: &RequestHead) {
        let fields = self.trusted.then_some(&head.fields);
        let only = |known| {
            let mut values = fields.into_iter().flat_map(move |fields| fields.values(known));
            values.next().filter(|_| values.next().is_none())
        };
        let proto = only(Known::XForwardedProto).filter(|value| is_scheme(value));
        let host = only(Known::XForwardedHost).filter(|value| !value.is_empty() && is_authority(value).is_some());
        if matches!(self.kind, Forwarding::XForwarded | Forwarding::Both) {
            out.extend_from_slice(b"X-Forwarded-For: ");
            for part in fields.into_iter().flat_map(x_forwarded_for) {
                out.extend_from_slice(part);
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(self.peer);
            out.extend_from_slice(b"\r\nX-Forwarded-Proto: ");
            out.extend_from_slice(proto.unwrap_or(self.scheme.as_bytes()));
            if let Some(host) = host.or(head.authority()) {
                out.extend_from_slice(b"\r\nX-Forwarded-Host: ");
                out.extend_from_slice(host);
            }
            out.extend_from_slice(b"\r\n");
        }
        if !matches!(self.kind, Forwarding::Rfc7239 | Forwarding::Both) {
            return;
        }
        out.extend_from_slice(b"Forwarded: ");
        if let Some(fields) = fields {
            if self.kind == Forwarding::Rfc7239 {
                kept(out, fields);
            } else {
                converted(out, fields, proto, host);
            }
        }
        let address = std::str::from_utf8(self.peer).ok().and_then(|peer| peer.parse().ok());
        pair(out, address, Some(self.scheme.as_bytes()), head.authority());
        out.extend_from_slice(b"\r\n");
    }
}

/// The chain of the peer as it came, without what can't be read and all left of that:
/// an open quotation mark there would swallow what is appended.
fn kept(out: &mut Vec<u8>, fields: &Fields) {
    let lines = || fields.values(Known::Forwarded).map(sound);
    let whole = lines().rev().take_while(|(_, whole)| *whole).count();
    // The end of the line that is broken goes on too.
    let first = lines().count().saturating_sub(whole + 1);
    for (value, _) in lines().skip(first) {
        let says = |byte: &u8| !b", \t".contains(byte);
        if let (Some(first), Some(last)) = (value.iter().position(says), value.iter().rposition(says)) {
            out.extend_from_slice(value.get(first..=last).unwrap_or_default());
            out.extend_from_slice(b", ");
        }
    }
}

/// The chain of `X-Forwarded-For` in the other syntax. `proto` and `host` are what the
/// peer says of whom it asks for: they belong to the last node.
fn converted(out: &mut Vec<u8>, fields: &Fields, proto: Option<&[u8]>, host: Option<&[u8]>) {
    let count = x_forwarded_for(fields).count();
    for (at, part) in x_forwarded_for(fields).enumerate().skip(count.saturating_sub(HOPS)) {
        let last = at + 1 == count;
        let address = node(part).and_then(|peer| peer.ip());
        pair(out, address, proto.filter(|_| last), host.filter(|_| last));
        out.extend_from_slice(b", ");
    }
}

/// Writes one element of `Forwarded`.
fn pair(out: &mut Vec<u8>, address: Option<IpAddr>, proto: Option<&[u8]>, host: Option<&[u8]>) {
    use std::io::Write;
    // Writing into a vector can't fail. An IPv6 address is quoted and in brackets (RFC
    // 7239 §6); a Unix peer has no address to tell.
    let _ = match address {
        Some(IpAddr::V4(four)) => write!(out, "for={four}"),
        Some(IpAddr::V6(six)) => write!(out, "for=\"[{six}]\""),
        None => write!(out, "for=unknown"),
    };
    if let Some(host) = host.filter(|host| !host.is_empty()) {
        out.extend_from_slice(b";host=");
        // An authority has neither quotation marks nor backslashes.
        let quote: &[u8] = if host.iter().all(|byte| is_token(*byte)) { b"" } else { b"\"" };
        out.extend_from_slice(quote);
        out.extend_from_slice(host);
        out.extend_from_slice(quote);
    }
    if let Some(proto) = proto {
        out.extend_from_slice(b";proto=");
        out.extend_from_slice(proto);
    }
}

/// `scheme` of RFC 3986 §3.1.
fn is_scheme(value: &[u8]) -> bool {
    value.first().is_some_and(u8::is_ascii_alphabetic)
        && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

#[cfg(test)]
pub(super) mod tests {
    use super::Forwarded;
    use crate::config::Forwarding;
    use crate::proxy::head::RequestHead;
    use crate::proxy::http1::parse;
    use crate::transport::buffer::Buffer;

    /// A request with these fields, each with its line end.
    pub fn head(fields: &str) -> RequestHead {
        let mut buffer = Buffer::take();
        let text = format!("GET / HTTP/1.1\r\nHost: door.test:81\r\n{fields}\r\n");
        assert_eq!(buffer.append(text.as_bytes()), text.len());
        parse::request(&mut Some(buffer), 60 * 1024).unwrap().unwrap()
    }

    fn written(kind: Forwarding, trusted: bool, peer: &str, fields: &str) -> Vec<String> {
        let forwarded =
            Forwarded { peer: peer.as_bytes(), scheme: "http", host: "backend", request_id: b"x", kind, trusted };
        let mut out = Vec::new();
        forwarded.write(&mut out, &head(fields));
        String::from_utf8(out).unwrap().split_terminator("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn each_kind_of_field_is_written_by_its_grammar() {
        let x = |peer| {
            let all = ["X-Forwarded-For: ", "X-Forwarded-Proto: http", "X-Forwarded-Host: door.test:81"];
            vec![format!("{}{peer}", all[0]), all[1].to_owned(), all[2].to_owned()]
        };
        for (peer, node) in [("192.0.2.1", "192.0.2.1"), ("2001:db8::1", "\"[2001:db8::1]\""), ("unix:", "unknown")] {
            let forwarded = format!("Forwarded: for={node};host=\"door.test:81\";proto=http");
            let said = "X-Forwarded-For: 192.0.2.9\r\nForwarded: for=192.0.2.9\r\nX-Forwarded-Proto: https\r\n";
            assert_eq!(written(Forwarding::Rfc7239, false, peer, said).concat(), forwarded);
            let mut both = x(peer);
            both.push(forwarded);
            assert_eq!(written(Forwarding::Both, false, peer, said), both);
            assert!(written(Forwarding::Off, false, peer, said).is_empty());
            assert!(written(Forwarding::Off, true, peer, said).is_empty());
        }
    }

    #[test]
    fn what_a_trusted_peer_says_is_kept_and_appended_to() {
        let x = "X-Forwarded-For: 192.0.2.9 ,2001:db8::1\r\nX-Forwarded-For: 192.0.2.1\r\n\
                 X-Forwarded-Proto: https\r\nX-Forwarded-Host: site.test\r\n";
        let kept = [
            "X-Forwarded-For: 192.0.2.9, 2001:db8::1, 192.0.2.1, 10.0.0.1",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: site.test",
        ];
        assert_eq!(written(Forwarding::XForwarded, true, "10.0.0.1", x), kept);
        let both = written(Forwarding::Both, true, "10.0.0.1", &format!("Forwarded: for=192.0.2.66\r\n{x}"));
        assert_eq!(both[..3], kept);
        assert_eq!(
            both[3],
            "Forwarded: for=192.0.2.9, for=\"[2001:db8::1]\", for=192.0.2.1;host=site.test;proto=https, \
             for=10.0.0.1;host=\"door.test:81\";proto=http"
        );
        // What is none of what it should be, or stands twice, is stated by us.
        for wrong in ["X-Forwarded-Proto: a b\r\n", "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n"] {
            let fields = format!("{wrong}X-Forwarded-Host: a/b\r\n");
            let lines = written(Forwarding::XForwarded, true, "10.0.0.1", &fields);
            assert_eq!(lines[1..], ["X-Forwarded-Proto: http", "X-Forwarded-Host: door.test:81"]);
        }
        // Only so many nodes are turned into longer ones.
        let many = format!("X-Forwarded-For: {}\r\n", "x,".repeat(1000));
        let lines = written(Forwarding::Both, true, "10.0.0.1", &many);
        assert_eq!(lines[3].matches("for=unknown").count(), 64);
    }

    #[test]
    fn a_chain_that_breaks_its_grammar_is_kept_from_there_on() {
        let end = "for=10.0.0.1;host=\"door.test:81\";proto=http";
        for (values, kept) in [
            (
                &["for=192.0.2.1;proto=https, for=_x;secret=\"a,b\""][..],
                "for=192.0.2.1;proto=https, for=_x;secret=\"a,b\", ",
            ),
            (&["for=192.0.2.1", " ", "for=unknown"], "for=192.0.2.1, for=unknown, "),
            (&["for=\", for=192.0.2.1"], "for=192.0.2.1, "),
            (&["for=192.0.2.9", "x=\", for=192.0.2.1", "for=10.0.0.2"], "for=192.0.2.1, for=10.0.0.2, "),
            (&["for=192.0.2.9", "x=\"", "for=10.0.0.2"], "for=10.0.0.2, "),
            (&["for=192.0.2.9, x=\""], ""),
            (&[", ", "for=a ,", ","], "for=a, "),
        ] {
            let fields: String = values.iter().map(|value| format!("Forwarded: {value}\r\n")).collect();
            let lines = written(Forwarding::Rfc7239, true, "10.0.0.1", &fields);
            assert_eq!(lines, [format!("Forwarded: {kept}{end}")], "{values:?}");
        }
    }
}
