//! Trailers: the fields behind a chunked body (RFC 9112 §7.1.2).
//!
//! Whoever reads them may merge them with the head's (RFC 9110 §6.5.1), after the head was
//! acted on. So whatever decides on framing, routing, who asks, what may be kept or how the
//! content is read must have stood in the head, and does not go on from here. What goes on
//! is for the end of a body to say: checksums, signatures, timings, outcomes.

use crate::config::same_name;
use crate::proxy::head::{Known, MAX_FIELDS};

/// The trailer fields of one body.
#[derive(Debug, Default)]
pub struct Trailers {
    /// Names that the head's `Connection` lists, each ended by a comma.
    nominated: Vec<u8>,
    /// Names that the route removes or sets, likewise.
    withheld: Vec<u8>,
    /// The field line that is being read, without its end.
    line: Vec<u8>,
    /// Lines that go on, with their ends.
    lines: Vec<u8>,
    count: usize,
}

impl Trailers {
    /// Fields of this name end here (RFC 9110 §7.6.1).
    pub fn nominate(&mut self, name: &[u8]) {
        self.nominated.extend_from_slice(name);
        self.nominated.push(b',');
    }

    /// Fields of this name, however it is spelled, don't go on.
    pub fn withhold(&mut self, name: &[u8]) {
        self.withheld.extend_from_slice(name);
        self.withheld.push(b',');
    }

    /// Takes in one byte of a field line, but not of its end. It is of the grammar, and the
    /// caller bounds them all.
    pub fn push(&mut self, byte: u8) {
        self.line.push(byte);
    }

    /// Ends a field line. `None`: there are more fields than a head may have.
    pub fn end_line(&mut self) -> Option<()> {
        let colon = memchr::memchr(b':', &self.line)?;
        let line = std::mem::take(&mut self.line);
        let (name, value) = line.split_at_checked(colon)?;
        self.take(name, value.get(1..)?.trim_ascii())?;
        self.line = line;
        self.line.clear();
        Some(())
    }

    /// Takes in one field. `None`: there are more than a head may have.
    pub fn take(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        self.count += 1;
        let nominated = self.nominated.split(|byte| *byte == b',').any(|listed| listed.eq_ignore_ascii_case(name));
        let withheld = self.withheld.split(|byte| *byte == b',').any(|listed| same_name(listed, name));
        if !nominated && !withheld && may_trail(name) {
            self.lines.extend_from_slice(name);
            self.lines.extend_from_slice(b": ");
            self.lines.extend_from_slice(value);
            self.lines.extend_from_slice(b"\r\n");
        }
        (self.count <= MAX_FIELDS).then_some(())
    }

    /// The lines that go on, with their ends.
    #[must_use]
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }
}

/// Names of fields that mean something only in a head: by the kinds of RFC 9110 §6.5.1
/// (framing, routing, request modifiers, authentication, response control data, content
/// format), in lower case.
const HEAD_ONLY: &[&[u8]] = &[
    b"age",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expires",
    b"location",
    b"pragma",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-status",
    b"range",
    b"realm",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"warning",
    b"www-authenticate",
];

/// Whether a field of this name may go on as a trailer. What doorward itself acts on or
/// writes may not: a reader could take it for what doorward says.
fn may_trail(name: &[u8]) -> bool {
    let conditional = name.get(..3).is_some_and(|start| start.eq_ignore_ascii_case(b"if-"));
    Known::of(name) == Known::Other && !conditional && !HEAD_ONLY.iter().any(|known| known.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::{Trailers, may_trail};
    use crate::proxy::head::MAX_FIELDS;

    #[test]
    fn what_must_stand_in_a_head_does_not_trail() {
        for name in [
            "Transfer-Encoding",
            "content-length",
            "HOST",
            "Connection",
            "TE",
            "Trailer",
            "Upgrade",
            "Keep-Alive",
            "Proxy-Connection",
            "Max-Forwards",
            "Expect",
            "Date",
            "Via",
            "Forwarded",
            "X-Forwarded-For",
            "X-Forwarded-Proto",
            "X-Forwarded-Prefix",
            "x_forwarded_for",
            "X-Request-Id",
            "HTTP2-Settings",
            "If-Match",
            "if-none-match",
            "IF-RANGE",
            "Range",
            "Authorization",
            "Cookie",
            "Set-Cookie",
            "WWW-Authenticate",
            "Proxy-Authorization",
            "Cache-Control",
            "Content-Type",
            "Content-Encoding",
            "Location",
            "Vary",
            "Proxy-Status",
        ] {
            assert!(!may_trail(name.as_bytes()), "{name}");
        }
        for name in
            ["ETag", "Server-Timing", "Content-Digest", "Repr-Digest", "grpc-status", "X-Sum", "Content-MD5", "If"]
        {
            assert!(may_trail(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn there_are_no_more_of_them_than_a_head_may_have() {
        let mut trailers = Trailers::default();
        let mut line = || {
            b"X:y".iter().for_each(|byte| trailers.push(*byte));
            trailers.end_line()
        };
        assert!((0..MAX_FIELDS).all(|_| line().is_some()));
        assert!(line().is_none());
    }
}
